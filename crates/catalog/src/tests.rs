//! The catalog as its callers use it: plan, log, apply, replay.

use std::collections::BTreeMap;

use arrow_schema::DataType;
use flow::{RelationId, Result};
use indexmap::IndexMap;

use crate::names::{MAX_COLUMNS, MAX_IDENTIFIER_BYTES};
use crate::*;

/// A catalog with its log, so that every test also checks that replaying the log gives the same catalog.
struct Server {
    catalog: Catalog,
    log: Vec<Vec<u8>>,
    scope: Scope,
}

impl Server {
    fn new() -> Server {
        Server { catalog: Catalog::new(), log: Vec::new(), scope: Scope::new("dev", ["public"]) }
    }

    fn run(&mut self, plan: impl FnOnce(&Catalog, &Scope) -> Result<Planned>) -> Result<Vec<Notice>> {
        let planned = plan(&self.catalog, &self.scope)?;
        if let Some(change) = &planned.change {
            self.log.push(change.encode()?);
            self.catalog.apply(change)?;
        }
        Ok(planned.notices)
    }

    fn create(
        &mut self,
        name: &[&str],
        columns: Vec<Column>,
        definition: Definition,
        reads: &[RelationId],
    ) -> RelationId {
        let depends_on = reads.to_vec();
        self.run(|c, s| {
            c.plan_create(s, NewRelation { name, owner: "ann", columns, definition, depends_on }, IfExists::Error)
        })
        .unwrap();
        let scope = self.scope.clone();
        self.catalog.resolve(&scope.database, &scope.search_path, name).unwrap().oid
    }

    fn table(&mut self, name: &[&str], key: &[usize]) -> RelationId {
        let definition = Definition::Table(Table { primary_key: key.to_vec(), ..Table::default() });
        self.create(name, two_columns(), definition, &[])
    }

    fn view(&mut self, name: &[&str], reads: &[RelationId]) -> RelationId {
        self.create(name, two_columns(), Definition::View(query()), reads)
    }

    fn drop(&mut self, kind: RelationKind, name: &str, cascade: bool) -> Result<Vec<Notice>> {
        self.run(|c, s| c.plan_drop(s, kind, &[&[name]], false, cascade))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut replayed = Catalog::new();
        for bytes in &self.log {
            replayed.apply(&CatalogChange::decode(bytes).unwrap()).unwrap();
        }
        assert!(replayed == self.catalog, "replaying the log gives another catalog");
        assert!(
            Catalog::decode(&self.catalog.encode().unwrap()).unwrap() == self.catalog,
            "the encoded catalog differs"
        );
    }
}

fn two_columns() -> Vec<Column> {
    vec![Column::new("id", DataType::Int64, "bigint"), Column::new("name", DataType::Utf8View, "varchar(10)")]
}

fn query() -> Query {
    Query {
        sql: "SELECT id, name FROM t".to_string(),
        search_path: vec!["public".to_string()],
        references: BTreeMap::from([("t".to_string(), RelationId(16_384))]),
        emit_on_close: false,
        change_retention_us: None,
        parallelism: None,
    }
}

fn error_of(result: Result<Vec<Notice>>) -> (String, String, String, String) {
    let e = result.unwrap_err();
    let text = |t: Option<&str>| t.unwrap_or_default().to_string();
    (e.state().code().to_string(), e.message().to_string(), text(e.detail()), text(e.hint()))
}

#[test]
fn oids_are_never_reused_even_after_a_restart() {
    let mut s = Server::new();
    let first = s.table(&["t"], &[0]);
    let role_and_key = s.catalog.next_oid();
    s.drop(RelationKind::Table, "t", false).unwrap();
    let second = s.table(&["t"], &[0]);
    assert_eq!(first, RelationId(16_384));
    assert!(second.0 >= role_and_key);
    let restarted = Catalog::decode(&s.catalog.encode().unwrap()).unwrap();
    assert_eq!(restarted.next_oid(), s.catalog.next_oid());
}

#[test]
fn a_primary_key_is_not_null_and_gets_a_free_name() {
    let mut s = Server::new();
    s.table(&["t_pkey"], &[]);
    let oid = s.table(&["t"], &[1, 0]);
    let relation = s.catalog.relation(oid).unwrap();
    assert!(relation.columns.iter().all(|c| !c.nullable));
    let key = relation.table().unwrap().key.clone().unwrap();
    assert_eq!(key.name, "t_pkey1");
    assert_ne!(key.oid, oid.0);
    assert_eq!(relation.columns[1].sql_type, "character varying(10)");
}

#[test]
fn tables_that_cannot_be_are_refused() {
    let mut s = Server::new();
    s.table(&["t"], &[0]);
    let column = |name: &str| Column::new(name, DataType::Int32, "");
    let table = |key: &[usize]| Definition::Table(Table { primary_key: key.to_vec(), ..Table::default() });
    let interval = Column::new("i", DataType::Interval(arrow_schema::IntervalUnit::MonthDayNano), "");
    let many: Vec<Column> = (0..=MAX_COLUMNS).map(|i| column(&format!("c{i}"))).collect();
    type Case<'a> = (&'a [&'a str], Vec<Column>, Definition, &'a str, &'a str);
    let cases: Vec<Case> = vec![
        (&["t"], vec![column("a")], table(&[]), "42P07", "relation \"t\" already exists"),
        (&["t_pkey"], vec![column("a")], table(&[]), "42P07", "relation \"t_pkey\" already exists"),
        (&["u"], vec![column("a"), column("a")], table(&[]), "42701", "column \"a\" specified more than once"),
        (&["u"], vec![column("ctid")], table(&[]), "42701", "column name \"ctid\" conflicts with a system column name"),
        (&["u"], vec![column("a")], table(&[1]), "42703", "column number 2 named in key does not exist"),
        (&["u"], vec![column("a")], table(&[0, 0]), "42701", "column \"a\" appears twice in primary key constraint"),
        (&["u"], vec![interval], table(&[0]), "42P16", "column \"i\" of type interval cannot be part of a primary key"),
        (&["u"], many, table(&[]), "54011", "a table can have at most 1600 columns"),
        (&["nope", "u"], vec![column("a")], table(&[]), "3F000", "schema \"nope\" does not exist"),
        (&["pg_catalog", "u"], vec![column("a")], table(&[]), "42501", "permission denied to create \"pg_catalog.u\""),
        (
            &["prod", "public", "u"],
            vec![],
            table(&[]),
            "0A000",
            "cross-database references are not implemented: \"prod.public.u\"",
        ),
        (&[""], vec![column("a")], table(&[]), "42601", "zero-length delimited identifier"),
    ];
    for (name, columns, definition, code, message) in cases {
        let result = s.run(|c, s| {
            let new = NewRelation { name, owner: "ann", columns, definition, depends_on: vec![] };
            c.plan_create(s, new, IfExists::Error)
        });
        let (c, m, _, _) = error_of(result);
        assert_eq!((c.as_str(), m.as_str()), (code, message));
    }
    assert_eq!(s.catalog.relation_count(), 1);
}

#[test]
fn if_not_exists_says_so_and_long_names_are_cut_with_a_notice() {
    let mut s = Server::new();
    s.table(&["t"], &[]);
    let new = |name: &'static [&'static str]| NewRelation {
        name,
        owner: "ann",
        columns: two_columns(),
        definition: Definition::Table(Table::default()),
        depends_on: vec![],
    };
    let notices = s.run(|c, s| c.plan_create(s, new(&["t"]), IfExists::Skip)).unwrap();
    assert_eq!(notices[0].message, "relation \"t\" already exists, skipping");
    let long: &'static str = "n123456789012345678901234567890123456789012345678901234567890123456789";
    let name: &'static [&'static str] = Box::leak(Box::new([long]));
    let notices = s.run(|c, s| c.plan_create(s, new(name), IfExists::Error)).unwrap();
    assert!(
        notices[0]
            .message
            .ends_with("will be truncated to \"n12345678901234567890123456789012345678901234567890123456789012\"")
    );
    assert_eq!(s.catalog.resolve("dev", &["public"], &[long]).unwrap().name.len(), MAX_IDENTIFIER_BYTES);
}

#[test]
fn dropping_something_that_is_read_names_every_dependant() {
    let mut s = Server::new();
    let t = s.table(&["t"], &[]);
    let a = s.view(&["a"], &[t]);
    let b = s.view(&["b"], &[a, t]);
    s.view(&["other"], &[]);
    let (code, message, detail, hint) = error_of(s.drop(RelationKind::Table, "t", false));
    assert_eq!(code, "2BP01");
    assert_eq!(message, "cannot drop table t because other objects depend on it");
    assert_eq!(detail, "view a depends on table t\nview b depends on table t and view a");
    assert_eq!(hint, "Use DROP ... CASCADE to drop the dependent objects too.");
    assert_eq!(s.catalog.dependants(t), [b, a]);

    let notices = s.drop(RelationKind::Table, "t", true).unwrap();
    assert_eq!(notices[0].message, "drop cascades to 2 other objects");
    assert_eq!(notices[0].detail.as_deref(), Some("drop cascades to view a\ndrop cascades to view b"));
    assert_eq!(s.catalog.relations().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["other"]);
}

#[test]
fn dropping_a_view_together_with_what_it_reads_needs_no_cascade() {
    let mut s = Server::new();
    let t = s.view(&["t"], &[]);
    s.view(&["a"], &[t]);
    s.run(|c, s| c.plan_drop(s, RelationKind::View, &[&["t"], &["a"]], false, false)).unwrap();
    assert_eq!(s.catalog.relation_count(), 0);
}

#[test]
fn a_long_chain_of_views_drops_without_deep_recursion() {
    let mut s = Server::new();
    let mut last = s.table(&["t"], &[]);
    for i in 0..2_000 {
        last = s.view(&[&format!("v{i}")], &[last]);
    }
    assert_eq!(s.catalog.dependants(RelationId(16_384)).first(), Some(&last));
    let (_, _, detail, _) = error_of(s.drop(RelationKind::Table, "t", false));
    assert!(detail.ends_with("and 1900 other objects"));
    s.drop(RelationKind::Table, "t", true).unwrap();
    assert_eq!(s.catalog.relation_count(), 0);
}

#[test]
fn a_drop_of_the_wrong_kind_says_which_statement_fits() {
    let mut s = Server::new();
    s.create(&["m"], two_columns(), Definition::MaterializedView(query()), &[]);
    let (code, message, detail, hint) = error_of(s.drop(RelationKind::Table, "m", false));
    assert_eq!((code.as_str(), message.as_str()), ("42809", "\"m\" is not a table"));
    assert_eq!(detail, "\"m\" is a materialized view.");
    assert_eq!(hint, "Use DROP MATERIALIZED VIEW to remove a materialized view.");
    let (code, message, _, hint) = error_of(s.drop(RelationKind::View, "n", false));
    assert_eq!((code.as_str(), message.as_str()), ("42P01", "view \"n\" does not exist"));
    assert_eq!(hint, "Perhaps you meant \"m\".");
    let notices = s.run(|c, s| c.plan_drop(s, RelationKind::View, &[&["n"]], true, false)).unwrap();
    assert_eq!(notices[0].message, "view \"n\" does not exist, skipping");
}

#[test]
fn schemas_and_databases_come_and_go_with_their_content() {
    let mut s = Server::new();
    s.run(|c, _| c.plan_create_schema("dev", "sales", "bob", false)).unwrap();
    let (code, ..) = error_of(s.run(|c, _| c.plan_create_schema("dev", "sales", "bob", false)));
    assert_eq!(code, "42P06");
    let (code, ..) = error_of(s.run(|c, _| c.plan_create_schema("dev", "pg_mine", "bob", false)));
    assert_eq!(code, "42939");
    let t = s.table(&["sales", "t"], &[]);
    s.view(&["v"], &[t]);
    let (code, message, detail, _) = error_of(s.run(|c, s| c.plan_drop_schema(s, "sales", false, false)));
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("2BP01", "cannot drop schema sales because other objects depend on it")
    );
    assert_eq!(detail, "table sales.t depends on schema sales\nview v depends on table sales.t");
    s.run(|c, _| c.plan_rename_schema("dev", "sales", "shop")).unwrap();
    assert_eq!(s.catalog.resolve("dev", &["public"], &["shop", "t"]).unwrap().oid, t);
    s.run(|c, s| c.plan_drop_schema(s, "shop", false, true)).unwrap();
    assert_eq!(s.catalog.relation_count(), 0);

    s.run(|c, _| c.plan_create_database("prod", "ann", false)).unwrap();
    let (code, ..) = error_of(s.run(|c, _| c.plan_create_database("prod", "ann", false)));
    assert_eq!(code, "42P04");
    s.scope.database = "prod".to_string();
    s.table(&["t"], &[]);
    let (code, ..) = error_of(s.run(|c, _| c.plan_drop_database("prod", "prod", false)));
    assert_eq!(code, "55006");
    s.run(|c, _| c.plan_rename_database("dev", "prod", "live")).unwrap();
    assert!(s.catalog.resolve("live", &["public"], &["t"]).is_ok());
    s.run(|c, _| c.plan_drop_database("dev", "live", false)).unwrap();
    let (code, message, _, hint) = error_of(s.run(|c, _| c.plan_drop_database("dev", "devv", false)));
    assert_eq!((code.as_str(), message.as_str()), ("3D000", "database \"devv\" does not exist"));
    assert_eq!(hint, "Perhaps you meant \"dev\".");
}

#[test]
fn names_resolve_along_the_search_path_and_errors_help() {
    let mut s = Server::new();
    s.run(|c, _| c.plan_create_schema("dev", "sales", "ann", false)).unwrap();
    let public = s.table(&["orders"], &[]);
    let sales = s.table(&["sales", "orders"], &[]);
    s.table(&["sales", "refunds"], &[]);
    let path = |p: &[&str], name: &[&str]| s.catalog.resolve("dev", p, name).map(|r| r.oid);
    assert_eq!(path(&["public", "sales"], &["orders"]), Ok(public));
    assert_eq!(path(&["missing", "sales", "public"], &["orders"]), Ok(sales));
    assert_eq!(path(&[], &["dev", "sales", "orders"]), Ok(sales));
    let hint = |name: &[&str]| path(&["public"], name).unwrap_err().hint().unwrap_or_default().to_string();
    assert_eq!(hint(&["oders"]), "Perhaps you meant \"orders\".");
    assert_eq!(hint(&["sale", "orders"]), "Perhaps you meant schema \"sales\".");
    assert_eq!(hint(&["sales", "oders"]), "Perhaps you meant \"sales.orders\".");
    assert_eq!(hint(&["refunds"]), "There is \"sales.refunds\", but \"sales\" is not in search_path.");
    assert_eq!(path(&["public"], &["a", "b", "c", "d"]).unwrap_err().state().code(), "42601");
}

#[test]
fn renames_keep_oids_and_rewrite_the_texts_given() {
    let mut s = Server::new();
    let t = s.table(&["t"], &[0]);
    let v = s.view(&["v"], &[t]);
    let text = "SELECT id, name FROM u".to_string();
    s.run(|c, s| c.plan_rename(s, RelationKind::Table, &["t"], "u", false, vec![(v, text.clone())])).unwrap();
    assert_eq!(s.catalog.resolve("dev", &["public"], &["u"]).unwrap().oid, t);
    assert!(s.catalog.lookup("dev", &["public"], &["t"]).unwrap().is_none());
    assert_eq!(s.catalog.relation(v).unwrap().definition.query().unwrap().sql, text);
    assert_eq!(s.catalog.relation(v).unwrap().pinned_reference("t"), Some(t));
    let (code, ..) = error_of(s.run(|c, s| c.plan_rename(s, RelationKind::Table, &["u"], "v", false, vec![])));
    assert_eq!(code, "42P07");
    s.run(|c, s| c.plan_rename_column(s, RelationKind::Table, &["u"], "name", "label", vec![])).unwrap();
    assert_eq!(s.catalog.relation(t).unwrap().columns[1].name, "label");
    let (code, _, _, hint) =
        error_of(s.run(|c, s| c.plan_rename_column(s, RelationKind::Table, &["u"], "lable", "x", vec![])));
    assert_eq!((code.as_str(), hint.as_str()), ("42703", "Perhaps you meant \"label\"."));
    let (code, ..) = error_of(s.run(|c, s| c.plan_rename(s, RelationKind::View, &["u"], "x", false, vec![])));
    assert_eq!(code, "42809");
    s.run(|c, _| c.plan_create_schema("dev", "sales", "ann", false)).unwrap();
    s.run(|c, s| c.plan_set_schema(s, RelationKind::Table, &["u"], "sales", false)).unwrap();
    assert_eq!(s.catalog.relation(t).unwrap().qualified_name(), "sales.u");
    assert_eq!(s.catalog.readers(t).collect::<Vec<_>>(), [v]);
}

#[test]
fn replacing_keeps_the_oid_and_what_readers_rely_on() {
    let mut s = Server::new();
    let t = s.table(&["t"], &[]);
    let v = s.view(&["v"], &[t]);
    let w = s.view(&["w"], &[v]);
    let replace = |columns: Vec<Column>, reads: Vec<RelationId>| {
        move |c: &Catalog, s: &Scope| {
            let definition = Definition::View(query());
            let new = NewRelation { name: &["v"], owner: "bob", columns, definition, depends_on: reads };
            c.plan_create(s, new, IfExists::Replace)
        }
    };
    let mut wider = two_columns();
    wider.push(Column::new("extra", DataType::Int32, ""));
    s.run(replace(wider.clone(), vec![])).unwrap();
    let relation = s.catalog.relation(v).unwrap();
    assert_eq!((relation.columns.len(), relation.owner.as_str()), (3, "ann"));
    assert_eq!(s.catalog.readers(t).count(), 0);

    let (code, message, ..) = error_of(s.run(replace(two_columns(), vec![])));
    assert_eq!((code.as_str(), message.as_str()), ("42P16", "cannot drop columns from view"));
    let mut other = wider.clone();
    other[0] = Column::new("id", DataType::Int32, "");
    let (_, message, ..) = error_of(s.run(replace(other, vec![])));
    assert_eq!(message, "cannot change data type of view column \"id\" from bigint to integer");
    let (_, message, ..) = error_of(s.run(replace(wider, vec![w])));
    assert_eq!(message, "view \"v\" would read itself");
}

#[test]
fn options_keep_their_order_and_comments_go_with_their_object() {
    let mut s = Server::new();
    let options: IndexMap<String, String> =
        [("path", "x.csv"), ("connector", "file"), ("follow", "true")].map(|(k, v)| (k.into(), v.into())).into();
    let format = Some(Format { format: "PLAIN".into(), encode: "CSV".into(), options: IndexMap::new() });
    let source = s.create(
        &["src"],
        two_columns(),
        Definition::Source(Source { connector: Connector { options, format }, ..Source::default() }),
        &[],
    );
    s.run(|c, s| c.plan_comment(s, ObjectRef::Column(&["src"], "name"), Some("who"))).unwrap();
    s.run(|c, s| c.plan_comment(s, ObjectRef::Relation(RelationKind::Source, &["src"]), Some("all"))).unwrap();
    s.run(|c, s| c.plan_comment(s, ObjectRef::Schema("public"), Some("main"))).unwrap();
    assert_eq!(s.catalog.comment(Commented::Column(source, 2)), Some("who"));
    let back = Catalog::decode(&s.catalog.encode().unwrap()).unwrap();
    let connector = back.relation(source).unwrap().definition.connector().unwrap().clone();
    assert_eq!(connector.options.keys().collect::<Vec<_>>(), ["path", "connector", "follow"]);
    assert_eq!(connector.name(), Some("file"));
    s.drop(RelationKind::Source, "src", false).unwrap();
    assert_eq!(s.catalog.comments().collect::<Vec<_>>().len(), 1);
}

#[test]
fn how_a_source_is_read_is_kept_and_only_told_when_it_changes() {
    let mut s = Server::new();
    let source = s.create(&["src"], two_columns(), Definition::Source(Source::default()), &[]);
    s.table(&["t"], &[]);
    let paused = Some([("0".to_string(), 42)].into());
    s.run(|c, s| {
        c.plan_set_reading(s, &["src"], false, |oid, reading| {
            assert_eq!(oid, source);
            (reading.paused, reading.rate_limit) = (paused.clone(), Some(7));
            Ok(())
        })
    })
    .unwrap();
    let back = Catalog::decode(&s.catalog.encode().unwrap()).unwrap();
    let Definition::Source(kept) = &back.relation(source).unwrap().definition else { panic!() };
    assert_eq!((&kept.paused, kept.rate_limit), (&paused, Some(7)));
    let same = |c: &Catalog, s: &Scope| c.plan_set_reading(s, &["src"], false, |_, _| Ok(()));
    let version = s.catalog.version();
    s.run(same).unwrap();
    assert_eq!(s.catalog.version(), version);
    let (code, ..) = error_of(s.run(|c, s| c.plan_set_reading(s, &["t"], false, |_, _| Ok(()))));
    assert_eq!(code, "42809");
    let (code, ..) = error_of(s.run(|c, s| c.plan_set_reading(s, &["none"], false, |_, _| Ok(()))));
    assert_eq!(code, "42P01");
    let skipped = s.run(|c, s| c.plan_set_reading(s, &["none"], true, |_, _| panic!("there is nothing to change")));
    assert_eq!(skipped.unwrap().len(), 1);
}

#[test]
fn readers_keep_their_version_while_ddl_makes_the_next() {
    let mut s = Server::new();
    s.table(&["t"], &[]);
    let reader = s.catalog.clone();
    s.drop(RelationKind::Table, "t", false).unwrap();
    assert!(reader.resolve("dev", &["public"], &["t"]).is_ok());
    assert!(s.catalog.resolve("dev", &["public"], &["t"]).is_err());
    assert!(reader.version() < s.catalog.version());
}

#[test]
fn damaged_or_newer_records_are_refused() {
    for bytes in [&b""[..], b"{", b"{\"version\":1}", b"{\"version\":1,\"body\":{\"Nope\":1}}", b"\xff\xfe"] {
        assert_eq!(CatalogChange::decode(bytes).unwrap_err().state().code(), "XX001");
        assert_eq!(Catalog::decode(bytes).unwrap_err().state().code(), "XX001");
    }
    let newer = CatalogChange::decode(b"{\"version\":99,\"body\":{}}").unwrap_err();
    assert_eq!(newer.message(), "catalog change has version 99, but this server reads versions up to 4");
    let mut catalog = Catalog::new();
    let misfit = CatalogChange::Drop { relations: vec![RelationId(7)], schemas: vec![], databases: vec![] };
    assert_eq!(catalog.apply(&misfit).unwrap_err().state().code(), "XX000");
}
