//! The system relations as clients see them: statements of real clients are planned and run over a small catalog.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use catalog::{
    Catalog, Column, Connector, Definition, Format, IfExists, NewRelation, ObjectRef, Query, RelationKind, Scope,
    Settings, Table,
};
use datafusion::common::ScalarValue;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::ScalarUDF;
use datafusion::physical_plan::collect;
use flow::RelationId;
use query::system::rewrite::{Rewritten, rewrite};
use query::system::{ActivityInfo, JobInfo, SessionInfo, SystemCatalog, SystemSource};
use sql::{Content, Name, Planner, Resolver};

#[derive(Debug, Default)]
struct Server {
    set: Mutex<Vec<(String, Option<String>, bool)>>,
    view: Mutex<RelationId>,
}

impl SystemSource for Server {
    fn jobs(&self) -> Vec<JobInfo> {
        let relation = *self.view.lock().unwrap();
        vec![JobInfo { relation, state: "running".to_string(), progress: Some(1.0), ..JobInfo::default() }]
    }

    fn sessions(&self) -> Vec<ActivityInfo> {
        vec![ActivityInfo {
            pid: 77,
            database: "dev".into(),
            user: "ann".into(),
            state: "active".into(),
            ..Default::default()
        }]
    }

    fn row_estimate(&self, _: RelationId) -> Option<u64> {
        Some(7)
    }

    fn relation_bytes(&self, _: RelationId) -> Option<u64> {
        Some(8192)
    }

    fn set_config(&self, name: &str, value: Option<&str>, is_local: bool) -> flow::Result<String> {
        self.set.lock().unwrap().push((name.to_string(), value.map(str::to_string), is_local));
        Ok(value.unwrap_or_default().to_string())
    }
}

/// A database with a table that has a key, one without, a view, a materialized view, a source and another schema.
struct World {
    system: SystemCatalog,
    server: Arc<Server>,
    oids: BTreeMap<&'static str, u32>,
}

fn world() -> World {
    let mut catalog = Catalog::new();
    let scope = Scope::new("dev", ["public"]);
    let column = |name: &str, t: DataType, declared: &str| Column::new(name, t, declared);
    let sql = |text: &str| Query { sql: text.to_string(), ..Query::default() };
    let mut oids = BTreeMap::new();
    let change = catalog.plan_create_schema("dev", "sales", "ann", false).unwrap().change.unwrap();
    catalog.apply(&change).unwrap();
    let key = Definition::Table(Table { primary_key: vec![0], ..Table::default() });
    let plain = Definition::Table(Table { append_only: true, ..Table::default() });
    let connector = Connector {
        options: [("connector", "file"), ("path", "x.csv"), ("password", "canary")]
            .map(|(k, v)| (k.into(), v.into()))
            .into(),
        format: Some(Format { format: "PLAIN".into(), encode: "CSV".into(), options: Default::default() }),
    };
    let columns = vec![
        column("id", DataType::Int64, "bigint"),
        column("name", DataType::Utf8View, "varchar(10)").not_null().with_default("'x'"),
        column("tags", DataType::new_list(DataType::Utf8View, true), "text[]"),
        column("price", DataType::Decimal128(10, 2), "numeric(10,2)"),
    ];
    let small = vec![column("n", DataType::Int64, "bigint")];
    #[allow(clippy::type_complexity, reason = "a table of what the test creates")]
    let objects: Vec<(&'static str, &[&str], Vec<Column>, Definition, &[&str])> = vec![
        ("t", &["t"], columns.clone(), key, &[]),
        (
            "child",
            &["child"],
            vec![column("a", DataType::Int32, "int"), column("j", DataType::Utf8View, "")],
            plain,
            &[],
        ),
        ("v", &["v"], columns, Definition::View(sql("SELECT * FROM t")), &["t"]),
        ("m", &["m"], small.clone(), Definition::MaterializedView(sql("SELECT count(*) AS n FROM v")), &["v"]),
        ("src", &["src"], small.clone(), Definition::Source(catalog::Source { connector, ..Default::default() }), &[]),
        ("hidden", &["sales", "hidden"], small, Definition::Table(Table::default()), &[]),
    ];
    for (key, name, columns, definition, reads) in objects {
        let depends_on = reads.iter().map(|r| RelationId(oids[r])).collect();
        let new = NewRelation { name, owner: "ann", columns, definition, depends_on };
        let change = catalog.plan_create(&scope, new, IfExists::Error).unwrap().change.unwrap();
        catalog.apply(&change).unwrap();
        oids.insert(key, catalog.resolve("dev", &["public"], name).unwrap().oid.0);
    }
    for comment in [
        ObjectRef::Relation(RelationKind::Table, &["t"]),
        ObjectRef::Column(&["t"], "name"),
        ObjectRef::Schema("sales"),
    ] {
        let change = catalog.plan_comment(&scope, comment, Some("a comment")).unwrap().change.unwrap();
        catalog.apply(&change).unwrap();
    }
    let session = SessionInfo {
        database: "dev".to_string(),
        user: "ann".to_string(),
        search_path: vec!["ann".to_string(), "public".to_string()],
        pid: 77,
        client: Some(("127.0.0.1".to_string(), 5000)),
        settings: Arc::new(Settings::new(|_| None)),
        now_us: 0,
        server_start_us: 1_700_000_000_000_000,
    };
    let server = Arc::new(Server::default());
    *server.view.lock().unwrap() = RelationId(oids["m"]);
    let source: Arc<dyn SystemSource> = Arc::clone(&server) as Arc<dyn SystemSource>;
    World { system: SystemCatalog::new(catalog, session, source), server, oids }
}

/// What names mean when only the system relations exist.
struct SystemNames(SystemCatalog);

impl Resolver for SystemNames {
    fn relation(&self, name: &Name) -> Option<sql::Relation> {
        let table = self.0.table(name.schema.as_deref(), &name.name)?;
        let column = |f: &Arc<Field>| sql::Column::new(f.name(), f.data_type().clone(), f.is_nullable());
        Some(sql::Relation {
            id: RelationId(0),
            kind: sql::RelationKind::System,
            database: "dev".to_string(),
            schema: name.schema.clone().unwrap_or_else(|| "pg_catalog".to_string()),
            name: name.name.clone(),
            columns: table.schema().fields().iter().map(column).collect(),
            primary_key: Vec::new(),
            key_name: None,
            content: Content::Scan(provider_as_source(table)),
        })
    }

    fn relation_by_id(&self, _: RelationId) -> Option<sql::Relation> {
        None
    }

    fn function(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.0.function(name)
    }
}

impl World {
    /// The rows that a statement gives, and what the rewriter said of it.
    async fn run(&self, sql: &str) -> Result<(Rewritten, Vec<RecordBatch>), String> {
        let mut sql = sql.to_string();
        for (name, oid) in &self.oids {
            sql = sql.replace(&format!("{{{name}}}"), &oid.to_string());
        }
        let mut query = sql::parse_query(&sql).map_err(|e| format!("parse: {e}"))?;
        let rewritten = rewrite(&mut query);
        let text = query.to_string();
        let fail = |stage: &str, e: &dyn std::fmt::Display| format!("{stage}: {e}\n    {text}");
        let names = SystemNames(self.system.clone());
        let planner = Planner::new(&names, sql::Settings::at("UTC", 0)).map_err(|e| fail("settings", &e))?;
        let planned = planner.query(&query, &sql, &[]).map_err(|e| fail("plan", &e))?;
        let values = self.parameters(&planned.parameters).map_err(|e| fail("bind", &e))?;
        let plan = planned.bind(values).map_err(|e| fail("bind", &e))?;
        let state = query::base_state(1 << 30, 1).map_err(|e| fail("state", &e))?;
        let physical = state.create_physical_plan(&plan).await.map_err(|e| fail("optimise", &e))?;
        let batches = collect(physical, state.task_ctx()).await.map_err(|e| fail("run", &e))?;
        Ok((rewritten, batches))
    }

    /// A value for each parameter: the table `t` by number or by name, as its type asks.
    fn parameters(&self, types: &[DataType]) -> datafusion::error::Result<Vec<ScalarValue>> {
        let one = |t: &DataType| match t {
            t if t.is_numeric() => ScalarValue::from(i64::from(self.oids["t"])).cast_to(t),
            DataType::Boolean => Ok(ScalarValue::from(true)),
            t => ScalarValue::from("t").cast_to(t),
        };
        types
            .iter()
            .map(|t| match t {
                DataType::List(element) => {
                    let value = one(element.data_type())?;
                    Ok(ScalarValue::List(ScalarValue::new_list(&[value], element.data_type(), true)))
                }
                t => one(t),
            })
            .collect()
    }

    /// The rows as text, cells joined by `|`, NULL as nothing.
    async fn rows(&self, sql: &str) -> Vec<String> {
        let (_, batches) = self.run(sql).await.unwrap_or_else(|e| panic!("{e}"));
        let mut rows = Vec::new();
        for batch in batches {
            let options = FormatOptions::default();
            let columns: Vec<_> =
                batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
            for i in 0..batch.num_rows() {
                rows.push(columns.iter().map(|c| c.value(i).to_string()).collect::<Vec<_>>().join("|"));
            }
        }
        rows
    }
}

/// The statements of the data file: who sent each, and its text.
fn client_statements() -> Vec<(String, String)> {
    let mut statements: Vec<(String, String)> = Vec::new();
    for line in include_str!("client_statements.txt").lines() {
        if let Some(client) = line.strip_prefix("#### ") {
            statements.push((client.to_string(), String::new()));
        } else if let Some((_, text)) = statements.last_mut() {
            text.push_str(line);
            text.push('\n');
        }
    }
    statements
}

#[tokio::test]
async fn every_statement_of_real_clients_plans_and_runs() {
    let world = world();
    let statements = client_statements();
    assert!(statements.len() > 150);
    let mut failures = Vec::new();
    for (number, (client, sql)) in statements.iter().enumerate() {
        if let Err(e) = world.run(sql).await {
            failures.push(format!("#{number} {client}: {e}\n  {sql}"));
        }
    }
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), statements.len(), failures.join("\n"));
}

/// Runs a query and compares its rows.
async fn check(world: &World, sql: &str, expected: &[&str]) {
    assert_eq!(world.rows(sql).await, expected, "{sql}");
}

#[tokio::test]
async fn relations_have_the_kinds_that_psql_lists_them_by() {
    let w = world();
    check(
        &w,
        "SELECT relname, relkind, relhasindex, pg_get_userbyid(relowner) FROM pg_class
         WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
        &[
            "child|r|false|ann",
            "m|m|false|ann",
            "src|f|false|ann",
            "t|r|true|ann",
            "t_pkey|i|false|ann",
            "v|v|false|ann",
        ],
    )
    .await;
    check(
        &w,
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c
           LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r','p','') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
           AND pg_catalog.pg_table_is_visible(c.oid) ORDER BY 1, 2",
        &["public|child", "public|t"],
    )
    .await;
}

#[tokio::test]
async fn columns_show_their_declared_types_defaults_and_comments() {
    let w = world();
    check(
        &w,
        "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod),
           (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid, true) FROM pg_catalog.pg_attrdef d
            WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.atthasdef),
           a.attnotnull, pg_catalog.col_description(a.attrelid, a.attnum)
         FROM pg_catalog.pg_attribute a
         WHERE a.attrelid = '{t}' AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        &[
            "id|bigint||true|",
            "name|character varying(10)|'x'|true|a comment",
            "tags|text[]||false|",
            "price|numeric(10,2)||false|",
        ],
    )
    .await;
    check(
        &w,
        "SELECT column_name, data_type, udt_name, character_maximum_length, numeric_precision, numeric_scale, is_nullable
         FROM information_schema.columns WHERE table_name = 't' ORDER BY ordinal_position",
        &[
            "id|bigint|int8||64|0|NO",
            "name|character varying|varchar|10|||NO",
            "tags|ARRAY|_text||||YES",
            "price|numeric|numeric||10|2|YES",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_primary_key_is_an_index_and_a_constraint() {
    let w = world();
    check(
        &w,
        "SELECT c2.relname, i.indisprimary, pg_catalog.pg_get_indexdef(i.indexrelid, 0, true),
           pg_catalog.pg_get_constraintdef(con.oid, true), contype
         FROM pg_catalog.pg_class c, pg_catalog.pg_class c2, pg_catalog.pg_index i
           LEFT JOIN pg_catalog.pg_constraint con
             ON (conrelid = i.indrelid AND conindid = i.indexrelid AND contype IN ('p','u','x'))
         WHERE c.oid = '{t}' AND c.oid = i.indrelid AND i.indexrelid = c2.oid",
        &["t_pkey|true|CREATE UNIQUE INDEX t_pkey ON public.t USING btree (id)|PRIMARY KEY (id)|p"],
    )
    .await;
    check(
        &w,
        "SELECT a.attname, (information_schema._pg_expandarray(i.indkey)).n, i.indkey[0]
         FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid WHERE a.attnum = i.indkey[0]",
        &["id|1|1"],
    )
    .await;
    check(
        &w,
        "SELECT constraint_name, column_name, ordinal_position FROM information_schema.key_column_usage",
        &["t_pkey|id|1"],
    )
    .await;
}

#[tokio::test]
async fn views_give_their_text_and_what_they_read() {
    let w = world();
    check(
        &w,
        "SELECT pg_get_viewdef('v'::regclass, true), pg_get_viewdef('m')",
        &["SELECT * FROM t;|SELECT count(*) AS n FROM v;"],
    )
    .await;
    check(
        &w,
        "SELECT DISTINCT r.ev_class::regclass::text, d.refobjid::regclass::text
         FROM pg_depend d JOIN pg_rewrite r ON d.objid = r.oid
         WHERE d.classid = 'pg_rewrite'::regclass AND d.deptype = 'n' ORDER BY 1",
        &["m|v", "v|t"],
    )
    .await;
    check(&w, "SELECT name, state, progress FROM ms_catalog.jobs", &["m|running|1.0"]).await;
}

#[tokio::test]
async fn names_and_numbers_of_objects_convert_both_ways() {
    let w = world();
    check(
        &w,
        "SELECT 't'::regclass, 'sales.hidden'::regclass, 'pg_class'::regclass::oid, 1043::regtype, 25::regtype::text",
        &["t|sales.hidden|1259|character varying|text"],
    )
    .await;
    check(
        &w,
        "SELECT to_regclass('nope') IS NULL, to_regtype('int4')::text, 'ann'::regrole, 'sales'::regnamespace",
        &["true|integer|ann|sales"],
    )
    .await;
    let oid = w.oids["t"];
    check(&w, "SELECT relname FROM pg_class WHERE oid = 'public.t'::regclass", &["t"]).await;
    check(&w, &format!("SELECT 'oid ' || {oid}::regclass"), &["oid t"]).await;
    let error = w.run("SELECT 'nope'::regclass").await.unwrap_err();
    assert!(error.contains("relation \"nope\" does not exist"), "{error}");
}

#[tokio::test]
async fn operators_arrays_and_collations_of_the_catalogs_work() {
    let w = world();
    check(
        &w,
        "SELECT c.relname FROM pg_class c WHERE c.relname OPERATOR(pg_catalog.~) '^(t|v)$' COLLATE pg_catalog.default
           AND c.relkind = ANY (ARRAY['r','v']) AND c.relkind <> ALL ('{i,m}') ORDER BY 1",
        &["t", "v"],
    )
    .await;
    check(
        &w,
        "SELECT nspname FROM pg_namespace WHERE nspname = ANY (current_schemas(true)) ORDER BY 1",
        &["pg_catalog", "public"],
    )
    .await;
    check(
        &w,
        "SELECT array_to_string(ARRAY(SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg' ORDER BY 1), ',')",
        &["information_schema,ms_catalog,public,sales"],
    )
    .await;
    check(
        &w,
        "SELECT array_upper(ARRAY[5,6,7], 1), array_lower(ARRAY[5], 1), (current_schemas(false))[1]",
        &["3|1|public"],
    )
    .await;
}

#[tokio::test]
async fn functions_are_listed_with_one_form_each() {
    let w = world();
    check(
        &w,
        "SELECT p.proname, p.prokind, pg_get_function_result(p.oid), pg_get_function_arguments(p.oid), p.oid = 'upper'::regproc::oid
         FROM pg_proc p WHERE p.proname IN ('upper', 'pg_get_userbyid', 'array_recv') ORDER BY 1",
        &["array_recv|f|||false", "pg_get_userbyid|f|name||false", "upper|f|text|text|true"],
    )
    .await;
}

#[tokio::test]
async fn the_session_answers_for_itself() {
    let w = world();
    check(
        &w,
        "SELECT current_database(), current_schema, current_user, session_user, pg_backend_pid(), current_setting('TimeZone'),
           current_setting('no.such', true) IS NULL, has_table_privilege('t', 'SELECT'), pg_is_in_recovery()",
        &["dev|public|ann|ann|77|UTC|true|true|false"],
    )
    .await;
    let version = w.rows("SELECT version()").await;
    assert!(version[0].starts_with("PostgreSQL 15"), "{version:?}");
    check(&w, "SELECT set_config('search_path', '', false)", &[""]).await;
    assert_eq!(*w.server.set.lock().unwrap(), [("search_path".to_string(), Some(String::new()), false)]);
    let error = w.run("SELECT current_setting('nope')").await.unwrap_err();
    assert!(error.contains("unrecognized configuration parameter \"nope\""), "{error}");
    check(&w, "SELECT datname, pid, usename, state FROM pg_stat_activity", &["dev|77|ann|active"]).await;
    check(
        &w,
        "SELECT name, setting, unit FROM pg_settings WHERE name = 'statement_timeout'",
        &["statement_timeout|0|ms"],
    )
    .await;
}

#[tokio::test]
async fn output_columns_are_named_as_postgres_names_them() {
    let w = world();
    let sql = "SELECT 1, 1, pg_get_userbyid(10), relname, relname, CASE WHEN true THEN 1 END, 't'::regclass, oid::text
               FROM pg_class LIMIT 1";
    let (rewritten, batches) = w.run(sql).await.unwrap();
    let names = rewritten.output_names.unwrap();
    assert_eq!(names, ["?column?", "?column?", "pg_get_userbyid", "relname", "relname", "case", "regclass", "oid"]);
    assert_eq!(batches[0].num_columns(), names.len());
    assert!(rewritten.reads_system);
}

#[tokio::test]
async fn secrets_of_connectors_never_appear() {
    let w = world();
    let mut seen = 0;
    for relation in query::system::layout::relations() {
        let batch = w.system.rows(Some(relation.schema), relation.name).unwrap().unwrap();
        assert_eq!(batch.schema(), relation.arrow_schema(), "{}", relation.name);
        let text = arrow::util::pretty::pretty_format_batches(&[batch]).unwrap().to_string();
        assert!(!text.contains("canary"), "{}", relation.name);
        seen += usize::from(text.contains("********"));
    }
    assert!(seen >= 2);
    check(
        &w,
        "SELECT srvname, ftoptions[2] FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver",
        &["file|path=x.csv"],
    )
    .await;
}

#[tokio::test]
async fn tools_find_what_they_look_for() {
    let w = world();
    let statements = client_statements();
    let of = |client: &str, n: usize| {
        let (_, sql) = statements.iter().filter(|(c, _)| c == client).nth(n).unwrap();
        sql.clone()
    };
    let types = w.rows(&of("npgsql", 0)).await;
    assert!(types.contains(&"pg_catalog|20|int8|b|false|".to_string()), "{types:?}");
    assert!(types.contains(&"pg_catalog|1016|_int8|a|false|20".to_string()), "{types:?}");
    check(&w, &of("rails", 1), &["id"]).await;
    check(&w, &of("dbt", 1), &["public|m|public|v", "public|v|public|t"]).await;
    let mut relations = w.rows(&of("dbt", 0)).await;
    relations.sort();
    assert_eq!(
        relations,
        ["dev|child|public|table", "dev|m|public|materialized_view", "dev|t|public|table", "dev|v|public|view",]
    );
    let tables = w.rows(&of("metabase", 0)).await;
    assert_eq!(
        tables,
        [
            "public|src|FOREIGN TABLE||",
            "public|m|MATERIALIZED VIEW||7",
            "public|child|TABLE||7",
            "public|t|TABLE|a comment|7",
            "public|v|VIEW||",
        ]
    );
    let columns = w.rows(&of("metabase", 1)).await;
    assert!(columns.contains(&"id|int8|0|public|t|true||true|false".to_string()), "{columns:?}");
    check(&w, &of("flyway", 1), &["false"]).await;
}
