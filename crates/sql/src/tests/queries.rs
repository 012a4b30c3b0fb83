//! Queries from text to rows, through the planner and a DataFusion session.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::LogicalPlan;
use flow::{Error, RelationId, Result, SqlState};
use plan::functions::cast::to_text;
use plan::functions::zone::Zone;

use crate::resolver::{Column, Content, Relation, RelationKind, Resolver};
use crate::statement::{Name, Statement};
use crate::*;

/// 2024-05-06 07:08:09 UTC.
const NOW_US: i64 = 1_714_979_289_000_000;

/// A catalog of relations in `public`.
pub(super) struct World {
    pub relations: Vec<Relation>,
    pub zone: String,
}

impl Resolver for World {
    fn relation(&self, name: &Name) -> Option<Relation> {
        let schema = name.schema.as_deref().unwrap_or("public");
        self.relations.iter().find(|r| r.schema == schema && r.name == name.name).cloned()
    }

    fn relation_by_id(&self, id: RelationId) -> Option<Relation> {
        self.relations.iter().find(|r| r.id == id).cloned()
    }

    fn relation_names(&self) -> Vec<String> {
        self.relations.iter().map(|r| r.name.clone()).collect()
    }
}

impl World {
    pub fn empty() -> World {
        World { relations: Vec::new(), zone: "UTC".to_string() }
    }

    /// Creates what `text` says; `INSERT` may follow any number of times.
    pub fn with(statements: &[&str]) -> World {
        let mut world = World::empty();
        for text in statements {
            world.apply(text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        }
        world
    }

    fn planner(&self) -> Planner<'_> {
        Planner::new(self, Settings::at(&self.zone, NOW_US)).unwrap()
    }

    fn apply(&mut self, text: &str) -> Result<()> {
        let parsed = parse(text, &Limits::default())?.remove(0);
        match parsed.statement {
            Statement::CreateTable(t) => {
                let columns: Vec<Column> = t
                    .columns
                    .iter()
                    .map(|c| Column {
                        name: c.name.clone(),
                        data_type: types::arrow_type(&c.sql_type).unwrap(),
                        nullable: !c.not_null,
                        default: c.default.as_ref().map(|d| d.text.clone()),
                        characters_max: types::character_limit(&c.sql_type),
                        pg_type: None,
                    })
                    .collect();
                let key = t.primary_key.iter().map(|k| columns.iter().position(|c| c.name == *k).unwrap()).collect();
                self.add(t.name.name, RelationKind::Table, columns, key, None);
            }
            Statement::CreateView(v) => {
                let planner = Planner::new(self, Settings::standing(&self.zone))?;
                let plan = planner.query(&v.query, &parsed.source, &[])?;
                let columns = plan.view_columns(&v.columns)?;
                let definition = definition::qualify(&v.query, &parsed.source, self)?;
                self.add(v.name.name, RelationKind::View, columns, Vec::new(), Some(definition.text));
            }
            Statement::Insert(insert) => {
                let plan = self.planner().insert(&insert, &parsed.source, &[])?;
                let rows = execute(plan.plan.clone())?;
                let table = plan.table;
                self.append(&table, rows);
            }
            other => panic!("{other:?}"),
        }
        Ok(())
    }

    fn add(&mut self, name: String, kind: RelationKind, columns: Vec<Column>, key: Vec<usize>, view: Option<String>) {
        let id = RelationId(100 + self.relations.len() as u32);
        let mut relation = Relation {
            id,
            kind,
            database: "dev".into(),
            schema: "public".into(),
            name,
            columns,
            primary_key: key,
            key_name: None,
            content: Content::Definition(String::new()),
        };
        relation.content = match view {
            Some(text) => Content::Definition(text),
            None => {
                let table = MemTable::try_new(relation.arrow_schema(), vec![vec![]]).unwrap();
                Content::Scan(provider_as_source(Arc::new(table)))
            }
        };
        self.relations.push(relation);
    }

    fn append(&mut self, table: &Relation, rows: Vec<RecordBatch>) {
        let scan = format!("SELECT * FROM {}", table.name);
        let parsed = parse(&scan, &Limits::default()).unwrap().remove(0);
        let Statement::Query(query) = parsed.statement else { panic!() };
        let mut all = execute(self.planner().query(&query, &scan, &[]).unwrap().plan).unwrap();
        let schema = table.arrow_schema();
        all.extend(rows);
        let all: Vec<RecordBatch> =
            all.into_iter().map(|b| RecordBatch::try_new(Arc::clone(&schema), b.columns().to_vec()).unwrap()).collect();
        let memory = MemTable::try_new(Arc::clone(&schema), vec![all]).unwrap();
        let at = self.relations.iter().position(|r| r.id == table.id).unwrap();
        self.relations[at].content = Content::Scan(provider_as_source(Arc::new(memory)));
    }

    pub fn plan(&self, text: &str) -> Result<QueryPlan> {
        let parsed = parse(text, &Limits::default())?.remove(0);
        let Statement::Query(query) = parsed.statement else { panic!("{text}") };
        self.planner().query(&query, &parsed.source, &[])
    }

    /// Header and rows as text, columns by `|`, rows sorted unless the query orders them.
    pub fn run(&self, text: &str) -> Result<Vec<String>> {
        let plan = self.plan(text)?;
        let names: Vec<&str> = plan.schema.fields().iter().map(|f| f.name().as_str()).collect();
        let mut lines = rows_of(&execute(plan.plan.clone())?, &self.zone);
        if !text.to_lowercase().contains("order by") {
            lines.sort();
        }
        lines.insert(0, names.join("|"));
        Ok(lines)
    }

    /// The one value of a query.
    pub fn value(&self, text: &str) -> Result<String> {
        let lines = self.run(text)?;
        assert_eq!(lines.len(), 2, "{text}: {lines:?}");
        Ok(lines[1].clone())
    }

    pub fn error(&self, text: &str) -> Error {
        match self.run(text) {
            Ok(lines) => panic!("{text} gave {lines:?}"),
            Err(e) => e,
        }
    }

    fn types(&self, text: &str) -> Vec<String> {
        match self.plan(text) {
            Ok(plan) => plan.schema.fields().iter().map(|f| plan::functions::type_name(f.data_type())).collect(),
            Err(e) => vec![format!("{e:?}")],
        }
    }
}

pub(super) fn rows_of(batches: &[RecordBatch], zone: &str) -> Vec<String> {
    let zone = Zone::parse(zone).unwrap();
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch.columns().iter().map(|c| to_text(c, &zone).unwrap()).collect();
        for i in 0..batch.num_rows() {
            let cells: Vec<&str> = columns.iter().map(|c| if c.is_null(i) { "NULL" } else { c.value(i) }).collect();
            lines.push(cells.join("|"));
        }
    }
    lines
}

/// Executes a plan on a session of its own.
pub(super) fn execute(plan: LogicalPlan) -> Result<Vec<RecordBatch>> {
    let state = session_state(Arc::new(RuntimeEnv::default()), 2, "UTC");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    with_large_stack(|| {
        runtime.block_on(async {
            let physical = state.create_physical_plan(&plan).await.map_err(plan::error::from_datafusion_error)?;
            let context = state.task_ctx();
            datafusion::physical_plan::collect(physical, context).await.map_err(plan::error::from_datafusion_error)
        })
    })
}

/// Collects what is wrong, so that one run shows all of it.
#[derive(Default)]
struct Check(Vec<String>);

impl Check {
    fn that<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, got: T, expected: T) {
        if got != expected {
            self.0.push(format!("{what}\n     got {got:?}\nexpected {expected:?}"));
        }
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.0.is_empty(), "{} wrong:\n{}", self.0.len(), self.0.join("\n"));
        }
    }
}

fn shop() -> World {
    World::with(&[
        "CREATE TABLE orders (id int PRIMARY KEY, customer text, amount numeric(10,2), at timestamp, n bigint, f float8)",
        "INSERT INTO orders VALUES (1, 'ann', 10.50, '2024-01-01 10:00', 5, 0.1), (2, 'bob', 20, '2024-01-02', 7, 0.2), \
         (3, 'ann', 5.25, '2024-02-01 12:30:15.5', NULL, 0.3), (4, NULL, NULL, NULL, 0, NULL)",
        "CREATE TABLE customers (name text PRIMARY KEY, city varchar(8) DEFAULT 'Rome')",
        "INSERT INTO customers VALUES ('ann', 'Paris'), ('cy', DEFAULT)",
        "INSERT INTO customers (name) VALUES ('dee')",
    ])
}

#[test]
fn queries_give_rows_with_postgres_column_names() {
    let mut check = Check::default();
    let w = shop();
    for (text, expected) in [
        ("SELECT 1", vec!["?column?", "1"]),
        ("SELECT 1, 1, 'a' AS x, 2 AS x", vec!["?column?|?column?|x|x", "1|1|a|2"]),
        ("SELECT count(*), sum(n), max(amount)::int FROM orders", vec!["count|sum|max", "4|12|20"]),
        ("SELECT id, id FROM orders WHERE id = 1", vec!["id|id", "1|1"]),
        (
            "SELECT *, id FROM orders WHERE id = 2",
            vec!["id|customer|amount|at|n|f|id", "2|bob|20.00|2024-01-02 00:00:00|7|0.2|2"],
        ),
        (
            "SELECT customer, count(*) FROM orders GROUP BY customer ORDER BY count DESC, customer",
            vec!["customer|count", "ann|2", "bob|1", "NULL|1"],
        ),
        (
            "SELECT o.id, c.city FROM orders o LEFT JOIN customers c ON c.name = o.customer ORDER BY o.id",
            vec!["id|city", "1|Paris", "2|NULL", "3|Paris", "4|NULL"],
        ),
        ("SELECT id FROM orders ORDER BY customer DESC, id LIMIT 1", vec!["id", "4"]),
        ("SELECT id FROM orders ORDER BY id FETCH FIRST 2 ROWS ONLY", vec!["id", "1", "2"]),
        ("SELECT id FROM orders ORDER BY id OFFSET 3", vec!["id", "4"]),
        ("VALUES (1, 'a'), (2, 'b')", vec!["column1|column2", "1|a", "2|b"]),
        ("TABLE customers", vec!["name|city", "ann|Paris", "cy|Rome", "dee|Rome"]),
        ("SELECT CASE WHEN id > 2 THEN 'big' ELSE customer END FROM orders WHERE id = 1", vec!["customer", "ann"]),
        ("SELECT upper(customer), customer || '!' FROM orders WHERE id = 2", vec!["upper|?column?", "BOB|bob!"]),
        ("SELECT * FROM generate_series(1, 3)", vec!["generate_series", "1", "2", "3"]),
        ("SELECT g FROM generate_series(1, 2) AS g", vec!["g", "1", "2"]),
        ("SELECT DISTINCT customer FROM orders WHERE customer IS NOT NULL", vec!["customer", "ann", "bob"]),
        ("SELECT id FROM orders WHERE customer IN (SELECT name FROM customers)", vec!["id", "1", "3"]),
        ("SELECT EXISTS (SELECT 1 FROM orders WHERE id = 9)", vec!["exists", "false"]),
        (
            "SELECT name, NOT EXISTS (SELECT FROM orders WHERE customer = name) AS idle FROM customers",
            vec!["name|idle", "ann|false", "cy|true", "dee|true"],
        ),
        ("SELECT avg(f), sum(f) FROM orders", vec!["avg|sum", "0.19999999999999998|0.6"]),
        ("SELECT sum(amount), avg(amount) FROM orders", vec!["sum|avg", "35.75|11.916666666666666667"]),
        (
            "SELECT customer, sum(id) FILTER (WHERE id > 1) FROM orders GROUP BY 1 HAVING count(*) > 1",
            vec!["customer|sum", "ann|3"],
        ),
        (
            "SELECT count(DISTINCT customer), sum(DISTINCT n), avg(DISTINCT n) FROM orders",
            vec!["count|sum|avg", "2|12|4"],
        ),
        (
            "SELECT row_number() OVER (ORDER BY id), sum(id) OVER (ORDER BY id ROWS 1 PRECEDING) FROM orders WHERE id < 4 ORDER BY 1",
            vec!["row_number|sum", "1|1", "2|3", "3|5"],
        ),
        ("WITH x AS (SELECT id * 2 AS d FROM orders) SELECT max(d) FROM x", vec!["max", "8"]),
        (
            "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT n FROM r ORDER BY n",
            vec!["n", "1", "2", "3"],
        ),
        (
            "SELECT extract(year FROM at), date_trunc('month', at) FROM orders WHERE id = 3",
            vec!["extract|date_trunc", "2024|2024-02-01 00:00:00"],
        ),
        ("SELECT now(), current_date", vec!["now|current_date", "2024-05-06 07:08:09+00|2024-05-06"]),
        ("SELECT bool_and(id > 0), every(id > 1) FROM orders", vec!["bool_and|every", "true|false"]),
        ("SELECT upper('a') COLLATE \"C\", 'ab' OPERATOR(pg_catalog.~) '^a'", vec!["upper|?column?", "A|true"]),
        ("SELECT string_agg(customer, ',' ORDER BY id) FROM orders", vec!["string_agg", "ann,bob,ann"]),
    ] {
        check.that(
            text,
            w.run(text).map_err(|e| format!("{e:?}")),
            Ok(expected.iter().map(|s| s.to_string()).collect()),
        );
    }
}

#[test]
fn types_are_those_of_postgres() {
    let mut check = Check::default();
    let w = shop();
    for (text, expected) in [
        ("SELECT 1, 3000000000, 1.5, 'a', NULL, true", vec!["integer", "bigint", "numeric", "text", "text", "boolean"]),
        (
            "SELECT id + 1, id + n, id * 1.5, id / f, n - 1 FROM orders",
            vec!["integer", "bigint", "numeric", "double precision", "bigint"],
        ),
        (
            "SELECT count(*), sum(id), sum(f), sum(amount), avg(amount) FROM orders",
            vec!["bigint", "bigint", "double precision", "numeric", "numeric"],
        ),
        (
            "SELECT at - at, at + interval '1 day', at::date, at::date - 1, at::date - at::date FROM orders",
            vec!["interval", "timestamp without time zone", "date", "date", "integer"],
        ),
        ("SELECT coalesce(id, 0), CASE WHEN id > 1 THEN 1 ELSE 0 END, -id FROM orders", vec!["integer"; 3]),
        ("SELECT 1 UNION ALL SELECT id FROM orders", vec!["integer"]),
        ("SELECT 1 UNION ALL SELECT n FROM orders", vec!["bigint"]),
        ("VALUES (1, 2.5), (2, 3)", vec!["integer", "numeric"]),
        (
            "SELECT now(), current_date, localtimestamp",
            vec!["timestamp with time zone", "date", "timestamp without time zone"],
        ),
        ("SELECT ARRAY[1, 2], upper('a'), length('a')", vec!["integer[]", "text", "integer"]),
    ] {
        check.that(text, w.types(text), expected.iter().map(|s| s.to_string()).collect());
    }
}

#[test]
fn arithmetic_is_checked_before_and_after_folding() {
    let mut check = Check::default();
    let w = shop();
    for (text, state, message) in [
        ("SELECT 9223372036854775807 + 1", SqlState::NumericValueOutOfRange, "bigint out of range"),
        ("SELECT 2147483647 + 1", SqlState::NumericValueOutOfRange, "integer out of range"),
        ("SELECT 1 / 0", SqlState::DivisionByZero, "division by zero"),
        ("SELECT 1 % 0", SqlState::DivisionByZero, "division by zero"),
        ("SELECT 1.0 / 0", SqlState::DivisionByZero, "division by zero"),
        ("SELECT 1::float8 / 0", SqlState::DivisionByZero, "division by zero"),
        ("SELECT id / (id - 1) FROM orders", SqlState::DivisionByZero, "division by zero"),
        ("SELECT f / 0 FROM orders", SqlState::DivisionByZero, "division by zero"),
        ("SELECT (id + 2147483647) FROM orders", SqlState::NumericValueOutOfRange, "integer out of range"),
        (
            "SELECT -(id - 2147483647 - 2) FROM orders WHERE id = 1",
            SqlState::NumericValueOutOfRange,
            "integer out of range",
        ),
        ("SELECT 1e308::float8 * 10", SqlState::NumericValueOutOfRange, "value out of range: overflow"),
        ("SELECT 3000000000::int", SqlState::NumericValueOutOfRange, "integer out of range"),
        ("SELECT 40000::smallint", SqlState::NumericValueOutOfRange, "smallint out of range"),
        ("SELECT 1e20::float8::bigint", SqlState::NumericValueOutOfRange, "bigint out of range"),
        ("SELECT 12345.67::numeric(4,1)", SqlState::NumericValueOutOfRange, "numeric field overflow"),
        ("SELECT 'abc'::int", SqlState::InvalidTextRepresentation, "invalid input syntax for type integer: \"abc\""),
        (
            "SELECT id FROM orders WHERE id = 'abc'",
            SqlState::InvalidTextRepresentation,
            "invalid input syntax for type integer: \"abc\"",
        ),
        (
            "SELECT 'maybe'::boolean",
            SqlState::InvalidTextRepresentation,
            "invalid input syntax for type boolean: \"maybe\"",
        ),
        (
            "SELECT '2024-13-01'::date",
            SqlState::DatetimeFieldOverflow,
            "date/time field value out of range: \"2024-13-01\"",
        ),
        ("SELECT 'x'::timestamp", SqlState::InvalidDatetimeFormat, "invalid input syntax for type timestamp: \"x\""),
    ] {
        let got = w.run(text).map_err(|e| (e.state(), e.message().to_string()));
        check.that(text, got, Err((state, message.to_string())));
    }
    for text in [
        "SELECT id FROM orders WHERE id <> 2 AND 10 / (id - 2) > 5",
        "SELECT id FROM orders WHERE CASE WHEN id <> 2 THEN 10 / (id - 2) > 5 ELSE false END",
        "SELECT id FROM orders WHERE NOT (id = 2 OR 10 / (id - 2) <= 5)",
    ] {
        assert_eq!(w.run(text).unwrap_or_else(|e| panic!("{text}: {e:?}")), ["id", "3"], "{text}");
    }
    assert_eq!(w.value("SELECT CASE WHEN 0 <> 0 THEN 1 / 0 ELSE 2 END").unwrap(), "2");
    assert_eq!(
        w.run("SELECT CASE WHEN id <> 1 THEN 10 / (id - 1) END FROM orders ORDER BY id").unwrap(),
        ["case", "NULL", "10", "5", "3"]
    );
}

#[test]
fn values_compute_as_in_postgres() {
    let mut check = Check::default();
    let w = shop();
    for (expr, expected) in [
        ("7 / 2", "3"),
        ("-7 % 3", "-1"),
        ("7.0 / 2", "3.5000000000000000"),
        ("1.5 * 2.25", "3.375"),
        ("0.1 + 0.2", "0.3"),
        ("2147483647 + 1::bigint", "2147483648"),
        ("2.5::int", "3"),
        ("2.5::float8::int", "2"),
        ("3.5::float8::int", "4"),
        ("(-2.5)::int", "-3"),
        ("1::float8 / 3", "0.3333333333333333"),
        ("true::text", "true"),
        ("'t'::boolean", "true"),
        ("1::boolean", "true"),
        ("1.50::numeric(10,2)::text", "1.50"),
        ("1e15::float8::text", "1e+15"),
        ("'2024-01-01'::timestamp::text", "2024-01-01 00:00:00"),
        ("'2024-01-01 05:00+02'::timestamptz", "2024-01-01 03:00:00+00"),
        ("date '2024-01-31' + 1", "2024-02-01"),
        ("date '2024-03-01' - date '2024-02-01'", "29"),
        ("date '2024-01-31' + interval '1 month'", "2024-02-29 00:00:00"),
        ("timestamp '2024-01-02 03:00' - timestamp '2024-01-01'", "1 day 03:00:00"),
        ("interval '1 day' * 2.5", "2 days 12:00:00"),
        ("interval '1 hour 30 minutes'", "01:30:00"),
        ("interval '1' day", "1 day"),
        ("time '12:00' + interval '13 hours'", "01:00:00"),
        ("'\\x4142'::bytea", "\\x4142"),
        ("'{1,2,NULL}'::int[]", "{1,2,NULL}"),
        ("ARRAY['a b', 'c']", "{\"a b\",c}"),
        ("CAST('abcdef' AS varchar(3))", "abc"),
        ("'a' || 1 || true", "a1true"),
        ("concat('a', 1, NULL, 2.50)", "a12.50"),
        ("2 ^ 3", "8"),
        ("round(2.567, 2)", "2.57"),
        ("abs(-3)", "3"),
        ("coalesce(NULL, 5)", "5"),
        ("nullif(1, 1)", "NULL"),
        ("greatest(1, 3, 2)", "3"),
        ("substring('abcdef' from 2 for 3)", "bcd"),
        ("position('c' in 'abc')", "3"),
        ("trim('  x ')", "x"),
        ("'abc' LIKE 'a%'", "true"),
        ("'abc' ~ '^a'", "true"),
        ("1 = ANY (ARRAY[1, 2])", "true"),
        ("1 IN (1, 2, NULL)", "true"),
        ("3 IN (1, 2, NULL)", "NULL"),
        ("1 BETWEEN 0 AND 2", "true"),
        ("NULL IS DISTINCT FROM 1", "true"),
        ("int4('7') + 1", "8"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("12345678901234567890", "12345678901234567890"),
        ("1.5::text || 'x'", "1.5x"),
        ("1::numeric / 3", "0.333333333333333333"),
        ("10::numeric * 20::numeric", "200"),
        ("to_char(timestamp '2024-01-02 03:04:05', 'YYYY-MM-DD')", "2024-01-02"),
    ] {
        let text = format!("SELECT {expr}");
        check.that(expr, w.value(&text).map_err(|e| format!("{e:?}")), Ok(expected.to_string()));
    }
}

#[test]
fn the_session_time_zone_reads_and_writes_times() {
    let mut check = Check::default();
    let mut w = shop();
    w.zone = "Europe/Berlin".to_string();
    for (expr, expected) in [
        ("'2024-07-01 12:00'::timestamptz", "2024-07-01 12:00:00+02"),
        ("'2024-07-01 12:00'::timestamptz::text", "2024-07-01 12:00:00+02"),
        ("'2024-07-01 12:00+00'::timestamptz::timestamp", "2024-07-01 14:00:00"),
        ("'2024-07-01 23:30+00'::timestamptz::date", "2024-07-02"),
        ("timestamp '2024-01-01 00:00'::timestamptz", "2024-01-01 00:00:00+01"),
        ("now()", "2024-05-06 09:08:09+02"),
        ("localtimestamp", "2024-05-06 09:08:09"),
    ] {
        let text = format!("SELECT {expr}");
        check.that(expr, w.value(&text).map_err(|e| format!("{e:?}")), Ok(expected.to_string()));
    }
}

#[test]
fn names_that_do_not_exist_are_pointed_at() {
    let mut check = Check::default();
    let w = shop();
    for (text, state, position, hint) in [
        ("SELECT * FROM oders", SqlState::UndefinedTable, 15, Some("orders")),
        ("SELECT custmer FROM orders", SqlState::UndefinedColumn, 8, Some("customer")),
        ("SELECT o.custmer FROM orders o", SqlState::UndefinedColumn, 10, Some("customer")),
        ("SELECT x.id FROM orders o", SqlState::UndefinedTable, 8, None),
        ("SELECT name FROM customers a, customers b", SqlState::AmbiguousColumn, 8, None),
        ("SELECT 1, nosuch(2)", SqlState::UndefinedFunction, 11, None),
        ("SELECT customer, count(*) FROM orders", SqlState::GroupingError, 8, None),
        ("SELECT * FROM public.nothing", SqlState::UndefinedTable, 15, None),
    ] {
        let e = w.error(text);
        let near = e.position().is_some_and(|p| p.abs_diff(position) <= 2);
        let hinted = hint.is_none_or(|hint| e.hint().is_some_and(|h| h.contains(hint)));
        check.that(&format!("{text}: {e:?}"), (e.state(), near, hinted), (state, true, true));
    }
    for (text, state) in [
        ("SELECT 'a' + true", SqlState::UndefinedFunction),
        ("SELECT customer + 1 FROM orders WHERE id > true", SqlState::UndefinedFunction),
        ("SELECT sum(customer) FROM orders", SqlState::UndefinedFunction),
        ("SELECT id FROM orders WHERE sum(id) > 1", SqlState::GroupingError),
        ("SELECT 1 FOR UPDATE", SqlState::FeatureNotSupported),
        ("SELECT $0", SqlState::UndefinedParameter),
        ("SELECT 1 UNION SELECT 1, 2", SqlState::SyntaxError),
    ] {
        let got = w.run(text).map_err(|e| e.state());
        check.that(text, got, Err(state));
    }
}

#[test]
fn parameters_are_typed_by_their_places() {
    let mut check = Check::default();
    let w = shop();
    for (text, expected) in [
        ("SELECT * FROM orders WHERE id = $1", vec!["integer"]),
        ("SELECT * FROM orders WHERE customer = $2 AND amount > $1", vec!["numeric", "text"]),
        ("SELECT $1::int, $2", vec!["integer", "text"]),
        ("SELECT id + $1 FROM orders", vec!["integer"]),
        ("SELECT id FROM orders LIMIT $1 OFFSET $2", vec!["bigint", "bigint"]),
        ("SELECT id FROM orders WHERE at BETWEEN $1 AND $2", vec!["timestamp without time zone"; 2]),
        ("SELECT id FROM orders WHERE id IN ($1, $2)", vec!["integer"; 2]),
        ("SELECT id FROM orders WHERE customer LIKE $1", vec!["text"]),
    ] {
        let types = w.plan(text).map_err(|e| format!("{e:?}"));
        let types = types.map(|p| p.parameters.iter().map(plan::functions::type_name).collect::<Vec<String>>());
        check.that(text, types, Ok(expected.iter().map(|s| s.to_string()).collect()));
    }
    let plan = w.plan("SELECT id FROM orders WHERE id > $1 ORDER BY id LIMIT $2").unwrap();
    let bound = plan.bind(vec![ScalarValue::Int32(Some(1)), ScalarValue::Int64(Some(2))]).unwrap();
    assert_eq!(rows_of(&execute(bound).unwrap(), "UTC"), ["2", "3"]);
    assert_eq!(plan.bind(vec![]).unwrap_err().state(), SqlState::ProtocolViolation);
    let plan = w.plan("SELECT $1 + 1, $1").unwrap();
    assert_eq!(plan.parameters, [DataType::Int32]);
}

#[test]
fn views_expand_wherever_they_are_read_and_survive_renames() {
    let mut w = shop();
    w.apply("CREATE VIEW big (order_id, who) AS SELECT public.orders.id, customer FROM public.orders WHERE orders.amount > 6").unwrap();
    w.apply("CREATE VIEW bigger AS WITH big AS (SELECT * FROM big) SELECT who, count(*) FROM big GROUP BY who")
        .unwrap();
    assert_eq!(w.run("SELECT * FROM bigger").unwrap(), ["who|count", "ann|1", "bob|1"]);
    let orders = w.relations.iter().position(|r| r.name == "orders").unwrap();
    w.relations[orders].name = "sales".to_string();
    assert_eq!(w.run("SELECT b.who FROM big b WHERE order_id = 2").unwrap(), ["who", "bob"]);
    let Content::Definition(text) = &w.relations.iter().find(|r| r.name == "big").unwrap().content else { panic!() };
    assert!(text.contains("\"#100:"), "{text}");
    let shown =
        definition::display(text, &|id| w.relation_by_id(id).map(|r| Name::qualified(r.schema, r.name))).unwrap();
    assert!(shown.contains("FROM public.sales AS orders"), "{shown}");
    let e = w.apply("CREATE VIEW twice AS SELECT id, id FROM sales").unwrap_err();
    assert_eq!(e.state(), SqlState::DuplicateColumn);
    let e = w.apply("CREATE VIEW clock AS SELECT now()").unwrap_err();
    assert_eq!((e.state(), e.position()), (SqlState::FeatureNotSupported, Some(29)));
}

#[test]
fn inserts_fill_defaults_and_cast_to_the_table() {
    let w = shop();
    let insert = |text: &str| -> Result<Vec<String>> {
        let parsed = parse(text, &Limits::default())?.remove(0);
        let Statement::Insert(insert) = parsed.statement else { panic!() };
        let plan = w.planner().insert(&insert, &parsed.source, &[])?;
        let schema: SchemaRef = plan.table.arrow_schema();
        let batches = execute(plan.plan.clone())?;
        for batch in &batches {
            for (a, b) in batch.schema().fields().iter().zip(schema.fields()) {
                assert_eq!((a.name(), a.data_type()), (b.name(), b.data_type()), "{text}");
            }
        }
        Ok(rows_of(&batches, "UTC"))
    };
    assert_eq!(insert("INSERT INTO customers VALUES ('x')").unwrap(), ["x|Rome"]);
    assert_eq!(insert("INSERT INTO customers DEFAULT VALUES").unwrap(), ["NULL|Rome"]);
    assert_eq!(
        insert("INSERT INTO customers (city, name) SELECT 'Oslo', customer FROM orders WHERE id = 1").unwrap(),
        ["ann|Oslo"]
    );
    assert_eq!(
        insert("INSERT INTO orders (id, amount, at) VALUES ('7', 1.005, '2024-01-01'), (8, 2, DEFAULT)").unwrap(),
        ["7|NULL|1.01|2024-01-01 00:00:00|NULL|NULL", "8|NULL|2.00|NULL|NULL|NULL"]
    );
    for (text, state) in [
        ("INSERT INTO customers VALUES ('x', 'much too long')", SqlState::StringDataRightTruncation),
        ("INSERT INTO customers VALUES ('x', 'y', 'z')", SqlState::SyntaxError),
        ("INSERT INTO customers (name, city) VALUES ('x')", SqlState::SyntaxError),
        ("INSERT INTO customers (nme) VALUES ('x')", SqlState::UndefinedColumn),
        ("INSERT INTO customers (name, name) VALUES ('x', 'y')", SqlState::DuplicateColumn),
        ("INSERT INTO nowhere VALUES (1)", SqlState::UndefinedTable),
        ("INSERT INTO orders (id) VALUES ('x')", SqlState::InvalidTextRepresentation),
        ("INSERT INTO orders (id) VALUES (3000000000)", SqlState::NumericValueOutOfRange),
        ("INSERT INTO orders (id) VALUES (1) ON CONFLICT (customer) DO NOTHING", SqlState::InvalidColumnReference),
    ] {
        let e = insert(text).unwrap_err();
        assert_eq!(e.state(), state, "{text}: {e:?}");
    }
    let parsed = parse(
        "INSERT INTO orders (amount, id) VALUES ($1, $2) RETURNING id + $2, upper(customer) AS u",
        &Limits::default(),
    )
    .unwrap()
    .remove(0);
    let Statement::Insert(statement) = parsed.statement else { panic!() };
    let plan = w.planner().insert(&statement, &parsed.source, &[]).unwrap();
    let types: Vec<String> = plan.parameters.iter().map(plan::functions::type_name).collect();
    assert_eq!(types, ["numeric", "integer"]);
    let values = [ScalarValue::Decimal128(Some(150), 10, 2), ScalarValue::Int32(Some(9))];
    let rows = execute(plan.bind(&values).unwrap()).unwrap();
    assert_eq!(rows_of(&rows, "UTC"), ["9|NULL|1.50|NULL|NULL|NULL"]);
    let schema = plan.table.arrow_schema();
    let rows: Vec<RecordBatch> = rows
        .into_iter()
        .map(|b| RecordBatch::try_new(Arc::clone(&schema), b.columns().to_vec()).unwrap_or(b))
        .collect();
    let memory: Arc<dyn TableProvider> = Arc::new(MemTable::try_new(rows_schema(&rows), vec![rows]).unwrap());
    let returning = plan.returning.unwrap();
    let names: Vec<&str> = returning.schema.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(names, ["?column?", "u"]);
    assert_eq!(rows_of(&execute(returning.over(&[memory], &values).unwrap()).unwrap(), "UTC"), ["18|NULL"]);
}

fn rows_schema(rows: &[RecordBatch]) -> SchemaRef {
    rows[0].schema()
}

#[test]
fn updates_give_old_and_new_rows_and_deletes_the_old() {
    let w = shop();
    let parsed =
        parse("UPDATE orders AS o SET amount = amount * 2, customer = DEFAULT WHERE o.id = 1", &Limits::default())
            .unwrap()
            .remove(0);
    let Statement::Update(update) = parsed.statement else { panic!() };
    let plan = w.planner().update(&update, &parsed.source, &[]).unwrap();
    assert_eq!(plan.assigned, [1, 2]);
    assert_eq!(
        rows_of(&execute(plan.plan.clone()).unwrap(), "UTC"),
        ["1|ann|10.50|2024-01-01 10:00:00|5|0.1|1|NULL|21.00|2024-01-01 10:00:00|5|0.1"]
    );
    let parsed = parse("DELETE FROM orders WHERE customer IN (SELECT name FROM customers)", &Limits::default())
        .unwrap()
        .remove(0);
    let Statement::Delete(delete) = parsed.statement else { panic!() };
    let plan = w.planner().delete(&delete, &parsed.source, &[]).unwrap();
    let mut rows = rows_of(&execute(plan.plan.clone()).unwrap(), "UTC");
    rows.sort();
    assert_eq!(rows.len(), 2);
    assert!(rows[0].starts_with("1|ann|10.50"));
    for (text, state) in [
        ("UPDATE orders SET nosuch = 1", SqlState::UndefinedColumn),
        ("UPDATE orders SET id = 1, id = 2", SqlState::SyntaxError),
        ("UPDATE orders SET id = customer WHERE customer = 'ann'", SqlState::DatatypeMismatch),
    ] {
        let parsed = parse(text, &Limits::default()).unwrap().remove(0);
        let Statement::Update(update) = parsed.statement else { panic!() };
        let result = w.planner().update(&update, &parsed.source, &[]).and_then(|p| execute(p.plan.clone()));
        assert_eq!(result.unwrap_err().state(), state, "{text}");
    }
}

#[test]
fn analysing_twice_changes_nothing() {
    let w = shop();
    let plan = w
        .plan("SELECT -id, id + 1, at::text, '2024-01-01'::timestamptz, sum(n) OVER () FROM orders WHERE amount > 1.5")
        .unwrap();
    let again = w.planner().analyze(plan.plan.clone()).unwrap();
    assert_eq!(plan.plan.display_indent().to_string(), again.display_indent().to_string());
}

#[test]
fn constants_are_evaluated_for_execute() {
    let w = World::empty();
    let e = parse_expr("1 + 2").unwrap();
    assert_eq!(w.planner().constant(&e, "1 + 2", &DataType::Int64).unwrap(), ScalarValue::Int64(Some(3)));
    let e = parse_expr("'x'").unwrap();
    assert_eq!(
        w.planner().constant(&e, "'x'", &DataType::Int64).unwrap_err().state(),
        SqlState::InvalidTextRepresentation
    );
}
