//! `pg_class` and what hangs on it: columns, keys, comments, view texts.

use std::sync::Arc;

use catalog::types::{self, oid};
use catalog::{Column, Commented, Definition, Relation, RelationKind};
use flow::identifier::quote;

use super::{Fill, derived_oid, option_texts, relkind};
use crate::system::Snapshot;
use crate::system::layout;
use crate::system::rows::{Cell, Rows};

/// OIDs of the catalogs that `classid` and `classoid` columns name.
const PG_CLASS: u32 = 1259;
const PG_NAMESPACE: u32 = 2615;
const PG_DATABASE: u32 = 1262;
const PG_REWRITE: u32 = 2618;
const PG_CONSTRAINT: u32 = 2606;

pub fn filler(name: &str) -> Option<Fill> {
    Some(match name {
        "pg_class" => pg_class,
        "pg_attribute" => pg_attribute,
        "pg_attrdef" => pg_attrdef,
        "pg_index" => pg_index,
        "pg_constraint" => pg_constraint,
        "pg_description" => pg_description,
        "pg_shdescription" => pg_shdescription,
        "pg_depend" => pg_depend,
        "pg_rewrite" => pg_rewrite,
        "pg_tables" => pg_tables,
        "pg_views" => pg_views,
        "pg_matviews" => pg_matviews,
        "pg_indexes" => pg_indexes,
        "pg_foreign_table" => pg_foreign_table,
        "pg_foreign_server" => pg_foreign_server,
        "pg_foreign_data_wrapper" => pg_foreign_data_wrapper,
        "pg_stat_all_tables" | "pg_stat_user_tables" => pg_stat_user_tables,
        _ => return None,
    })
}

/// The index that a primary key is, as PostgreSQL sees it.
pub struct IndexInfo<'a> {
    pub oid: u32,
    pub name: &'a str,
    pub table: &'a Relation,
    /// Key columns, in key order.
    pub columns: Vec<&'a Column>,
    /// Their numbers, from 1.
    pub numbers: Vec<i64>,
}

/// The primary key of a table, if it has one.
pub fn primary_key_index(table: &Relation) -> Option<IndexInfo<'_>> {
    let Definition::Table(t) = &table.definition else { return None };
    let key = t.key.as_ref()?;
    let columns = t.primary_key.iter().filter_map(|p| table.columns.get(*p)).collect();
    let numbers = t.primary_key.iter().map(|p| *p as i64 + 1).collect();
    Some(IndexInfo { oid: key.oid, name: &key.name, table, columns, numbers })
}

/// `PRIMARY KEY (a, b)`.
pub fn constraint_definition(index: &IndexInfo<'_>) -> String {
    format!("PRIMARY KEY ({})", column_list(index))
}

/// `CREATE UNIQUE INDEX t_pkey ON public.t USING btree (a, b)`.
pub fn index_definition(index: &IndexInfo<'_>) -> String {
    format!(
        "CREATE UNIQUE INDEX {} ON {} USING btree ({})",
        quote(index.name),
        index.table.qualified_name(),
        column_list(index)
    )
}

fn column_list(index: &IndexInfo<'_>) -> String {
    index.columns.iter().map(|c| quote(&c.name)).collect::<Vec<_>>().join(", ")
}

fn indexes(s: &Snapshot) -> impl Iterator<Item = IndexInfo<'_>> {
    s.readable().filter_map(|r| primary_key_index(r))
}

fn pg_class(s: &Snapshot, rows: &mut Rows) {
    for r in layout::relations() {
        rows.push([
            ("oid", r.oid.into()),
            ("relname", r.name.into()),
            ("relnamespace", s.namespace_oid(r.schema).into()),
            ("relowner", catalog::snapshot::BOOTSTRAP_ROLE_OID.into()),
            ("relam", if r.kind == "r" { 2 } else { 0 }.into()),
            ("reltuples", Cell::Float(-1.0)),
            ("relpersistence", "p".into()),
            ("relkind", r.kind.into()),
            ("relnatts", r.columns.len().into()),
            ("relispopulated", true.into()),
            ("relreplident", "n".into()),
        ]);
    }
    for r in s.readable() {
        let kind = r.kind();
        let stored = matches!(kind, RelationKind::Table | RelationKind::MaterializedView);
        let estimate = s.source.row_estimate(r.oid).map_or(-1.0, |n| n as f64);
        let pages = s.source.relation_bytes(r.oid).map_or(0, |b| b.div_ceil(8192).min(i32::MAX as u64));
        let append_only = r.table().is_some_and(|t| t.append_only);
        rows.push([
            ("oid", r.oid.0.into()),
            ("relname", (&r.name).into()),
            ("relnamespace", s.namespace_oid(&r.schema).into()),
            ("relowner", s.role_oid(&r.owner).into()),
            ("relam", if stored { 2 } else { 0 }.into()),
            ("relfilenode", if stored { r.oid.0 } else { 0 }.into()),
            ("relpages", (pages as i64).into()),
            ("reltuples", Cell::Float(estimate)),
            ("relhasindex", primary_key_index(r).is_some().into()),
            ("relpersistence", "p".into()),
            ("relkind", relkind(kind).into()),
            ("relnatts", r.columns.len().into()),
            ("relhasrules", matches!(kind, RelationKind::View).into()),
            ("relispopulated", true.into()),
            ("relreplident", if stored { "d" } else { "n" }.into()),
            ("reloptions", append_only.then(|| vec!["append_only=true".to_string()]).into()),
        ]);
    }
    for index in indexes(s) {
        rows.push([
            ("oid", index.oid.into()),
            ("relname", index.name.into()),
            ("relnamespace", s.namespace_oid(&index.table.schema).into()),
            ("relowner", s.role_oid(&index.table.owner).into()),
            ("relam", 403.into()),
            ("relfilenode", index.oid.into()),
            ("relpersistence", "p".into()),
            ("relkind", "i".into()),
            ("relnatts", index.columns.len().into()),
            ("relispopulated", true.into()),
            ("relreplident", "n".into()),
        ]);
    }
}

struct Attribute<'a> {
    relation: u32,
    name: &'a str,
    type_oid: u32,
    typmod: i32,
    number: usize,
    not_null: bool,
    has_default: bool,
}

fn push_attribute(rows: &mut Rows, a: Attribute<'_>) {
    let scalar = types::by_oid(a.type_oid);
    let (length, by_value, align) = scalar.map_or((-1, false, 'i'), |t| (t.length, t.by_value(), t.align));
    rows.push([
        ("attrelid", a.relation.into()),
        ("attname", a.name.into()),
        ("atttypid", a.type_oid.into()),
        ("attstattarget", (-1).into()),
        ("attlen", length.into()),
        ("attnum", a.number.into()),
        ("attndims", usize::from(scalar.is_none()).into()),
        ("attcacheoff", (-1).into()),
        ("atttypmod", a.typmod.into()),
        ("attbyval", by_value.into()),
        ("attalign", align.into()),
        ("attstorage", if length < 0 { "x" } else { "p" }.into()),
        ("attnotnull", a.not_null.into()),
        ("atthasdef", a.has_default.into()),
        ("attislocal", true.into()),
        ("attcollation", super::types::collation_of(a.type_oid).into()),
    ]);
}

fn pg_attribute(s: &Snapshot, rows: &mut Rows) {
    for r in layout::relations() {
        for (i, c) in r.columns.iter().enumerate() {
            push_attribute(
                rows,
                Attribute {
                    relation: r.oid,
                    name: c.name,
                    type_oid: c.type_oid,
                    typmod: -1,
                    number: i + 1,
                    not_null: c.not_null,
                    has_default: false,
                },
            );
        }
    }
    let column = |relation: u32, number: usize, c: &Column, rows: &mut Rows, index: bool| {
        push_attribute(
            rows,
            Attribute {
                relation,
                name: &c.name,
                type_oid: c.type_oid,
                typmod: c.typmod,
                number,
                not_null: !c.nullable && !index,
                has_default: c.default.is_some() && !index,
            },
        );
    };
    for r in s.readable() {
        for (i, c) in r.columns.iter().enumerate() {
            column(r.oid.0, i + 1, c, rows, false);
        }
    }
    for index in indexes(s) {
        for (i, c) in index.columns.iter().enumerate() {
            column(index.oid, i + 1, c, rows, true);
        }
    }
}

fn pg_attrdef(s: &Snapshot, rows: &mut Rows) {
    for r in s.readable() {
        for (i, c) in r.columns.iter().enumerate() {
            let Some(default) = &c.default else { continue };
            rows.push([
                ("oid", derived_oid(r.oid, i + 1).into()),
                ("adrelid", r.oid.0.into()),
                ("adnum", (i + 1).into()),
                // The expression's text stands in for its tree; pg_get_expr gives it back.
                ("adbin", default.into()),
            ]);
        }
    }
}

fn pg_index(s: &Snapshot, rows: &mut Rows) {
    for index in indexes(s) {
        let count = index.columns.len();
        let collations = index.columns.iter().map(|c| i64::from(super::types::collation_of(c.type_oid)));
        let classes = index.columns.iter().map(|c| i64::from(super::types::btree_class_of(c.type_oid)));
        rows.push([
            ("indexrelid", index.oid.into()),
            ("indrelid", index.table.oid.0.into()),
            ("indnatts", count.into()),
            ("indnkeyatts", count.into()),
            ("indisunique", true.into()),
            ("indisprimary", true.into()),
            ("indimmediate", true.into()),
            ("indisvalid", true.into()),
            ("indisready", true.into()),
            ("indislive", true.into()),
            ("indcollation", collations.collect::<Vec<_>>().into()),
            ("indclass", classes.collect::<Vec<_>>().into()),
            ("indoption", vec![0i64; count].into()),
            ("indkey", index.numbers.clone().into()),
        ]);
    }
}

fn pg_constraint(s: &Snapshot, rows: &mut Rows) {
    for index in indexes(s) {
        rows.push([
            ("oid", index.oid.into()),
            ("conname", index.name.into()),
            ("connamespace", s.namespace_oid(&index.table.schema).into()),
            ("contype", "p".into()),
            ("convalidated", true.into()),
            ("conrelid", index.table.oid.0.into()),
            ("conindid", index.oid.into()),
            ("confupdtype", " ".into()),
            ("confdeltype", " ".into()),
            ("confmatchtype", " ".into()),
            ("conislocal", true.into()),
            ("connoinherit", true.into()),
            ("conkey", index.numbers.into()),
        ]);
    }
}

fn pg_description(s: &Snapshot, rows: &mut Rows) {
    for (about, text) in s.catalog.comments() {
        let (object, class, part) = match about {
            Commented::Relation(r) => (r.0, PG_CLASS, 0),
            Commented::Column(r, number) => (r.0, PG_CLASS, number),
            Commented::Schema(oid) => (oid, PG_NAMESPACE, 0),
            Commented::Database(_) => continue,
        };
        rows.push([
            ("objoid", object.into()),
            ("classoid", class.into()),
            ("objsubid", part.into()),
            ("description", text.into()),
        ]);
    }
}

fn pg_shdescription(s: &Snapshot, rows: &mut Rows) {
    for (about, text) in s.catalog.comments() {
        if let Commented::Database(oid) = about {
            rows.push([("objoid", oid.into()), ("classoid", PG_DATABASE.into()), ("description", text.into())]);
        }
    }
}

/// Views depend on what they read through their rule, as in PostgreSQL; keys depend on their tables.
fn pg_depend(s: &Snapshot, rows: &mut Rows) {
    let mut push = |class: u32, object: u32, referenced: u32, number: usize, kind: &'static str| {
        rows.push([
            ("classid", class.into()),
            ("objid", object.into()),
            ("refclassid", PG_CLASS.into()),
            ("refobjid", referenced.into()),
            ("refobjsubid", number.into()),
            ("deptype", kind.into()),
        ]);
    };
    for r in s.readable() {
        if !r.depends_on.is_empty() || r.definition.query().is_some() {
            push(PG_REWRITE, derived_oid(r.oid, 0), r.oid.0, 0, "i");
        }
        for input in &r.depends_on {
            push(PG_REWRITE, derived_oid(r.oid, 0), input.0, 0, "n");
        }
        if let Some(index) = primary_key_index(r) {
            for number in &index.numbers {
                push(PG_CONSTRAINT, index.oid, r.oid.0, *number as usize, "a");
            }
        }
    }
}

fn pg_rewrite(s: &Snapshot, rows: &mut Rows) {
    for r in s.readable().filter(|r| r.definition.query().is_some()) {
        rows.push([
            ("oid", derived_oid(r.oid, 0).into()),
            ("rulename", "_RETURN".into()),
            ("ev_class", r.oid.0.into()),
            ("ev_type", "1".into()),
            ("ev_enabled", "O".into()),
            ("is_instead", true.into()),
        ]);
    }
}

fn of_kind(s: &Snapshot, kind: RelationKind) -> impl Iterator<Item = &Arc<Relation>> {
    s.readable().filter(move |r| r.kind() == kind)
}

fn pg_tables(s: &Snapshot, rows: &mut Rows) {
    for r in layout::relations().filter(|r| r.kind == "r") {
        rows.push([
            ("schemaname", r.schema.into()),
            ("tablename", r.name.into()),
            ("tableowner", catalog::snapshot::BOOTSTRAP_ROLE.into()),
            ("hasindexes", false.into()),
            ("hasrules", false.into()),
            ("hastriggers", false.into()),
            ("rowsecurity", false.into()),
        ]);
    }
    for r in of_kind(s, RelationKind::Table) {
        rows.push([
            ("schemaname", (&r.schema).into()),
            ("tablename", (&r.name).into()),
            ("tableowner", (&r.owner).into()),
            ("hasindexes", primary_key_index(r).is_some().into()),
            ("hasrules", false.into()),
            ("hastriggers", false.into()),
            ("rowsecurity", false.into()),
        ]);
    }
}

fn pg_views(s: &Snapshot, rows: &mut Rows) {
    for r in of_kind(s, RelationKind::View) {
        rows.push([
            ("schemaname", (&r.schema).into()),
            ("viewname", (&r.name).into()),
            ("viewowner", (&r.owner).into()),
            ("definition", s.query_text(r).into()),
        ]);
    }
}

fn pg_matviews(s: &Snapshot, rows: &mut Rows) {
    for r in of_kind(s, RelationKind::MaterializedView) {
        rows.push([
            ("schemaname", (&r.schema).into()),
            ("matviewname", (&r.name).into()),
            ("matviewowner", (&r.owner).into()),
            ("hasindexes", false.into()),
            ("ispopulated", true.into()),
            ("definition", s.query_text(r).into()),
        ]);
    }
}

fn pg_indexes(s: &Snapshot, rows: &mut Rows) {
    for index in indexes(s) {
        rows.push([
            ("schemaname", (&index.table.schema).into()),
            ("tablename", (&index.table.name).into()),
            ("indexname", index.name.into()),
            ("indexdef", index_definition(&index).into()),
        ]);
    }
}

/// The connectors of the readable relations, each once, in the order of their names, with a made-up OID.
fn servers(s: &Snapshot) -> Vec<(u32, String)> {
    let names: std::collections::BTreeSet<&str> =
        s.readable().filter_map(|r| r.definition.connector()).filter_map(|c| c.name()).collect();
    names.into_iter().enumerate().map(|(i, name)| (15_000 + i as u32, name.to_string())).collect()
}

fn pg_foreign_table(s: &Snapshot, rows: &mut Rows) {
    let servers = servers(s);
    for r in of_kind(s, RelationKind::Source) {
        let Some(connector) = r.definition.connector() else { continue };
        let server = servers.iter().find(|(_, name)| Some(name.as_str()) == connector.name());
        rows.push([
            ("ftrelid", r.oid.0.into()),
            ("ftserver", server.map_or(0, |(oid, _)| *oid).into()),
            ("ftoptions", option_texts(&connector.options).into()),
        ]);
    }
}

fn pg_foreign_server(s: &Snapshot, rows: &mut Rows) {
    for (server, name) in servers(s) {
        rows.push([
            ("oid", server.into()),
            ("srvname", name.into()),
            ("srvowner", catalog::snapshot::BOOTSTRAP_ROLE_OID.into()),
            ("srvfdw", 14_999.into()),
        ]);
    }
}

fn pg_foreign_data_wrapper(_: &Snapshot, rows: &mut Rows) {
    rows.push([
        ("oid", 14_999.into()),
        ("fdwname", "connector".into()),
        ("fdwowner", catalog::snapshot::BOOTSTRAP_ROLE_OID.into()),
    ]);
}

fn pg_stat_user_tables(s: &Snapshot, rows: &mut Rows) {
    let stored = [RelationKind::Table, RelationKind::MaterializedView];
    for r in s.readable().filter(|r| stored.contains(&r.kind())) {
        rows.push([
            ("relid", r.oid.0.into()),
            ("schemaname", (&r.schema).into()),
            ("relname", (&r.name).into()),
            ("n_live_tup", s.source.row_estimate(r.oid).map(|n| n as i64).into()),
            ("n_dead_tup", 0.into()),
        ]);
    }
}

/// Whether a column of this type has an order that text collations decide.
pub(super) fn is_text(type_oid: u32) -> bool {
    matches!(type_oid, oid::TEXT | oid::VARCHAR | oid::BPCHAR)
}
