//! `information_schema`: the SQL standard's view of the same facts.
//!
//! Materialized views, which the standard does not know, are listed as `MATERIALIZED VIEW`, so that tools which only look
//! here find them.

use catalog::types::{self, oid};
use catalog::{Column, RelationKind};

use super::{Fill, primary_key_index};
use crate::system::Snapshot;
use crate::system::layout;
use crate::system::registry::functions_by_name;
use crate::system::rows::{Cell, Rows};

pub fn filler(name: &str) -> Option<Fill> {
    Some(match name {
        "information_schema_catalog_name" => catalog_name,
        "schemata" => schemata,
        "tables" => tables,
        "columns" => columns,
        "views" => views,
        "view_table_usage" => view_table_usage,
        "table_constraints" => table_constraints,
        "key_column_usage" => key_column_usage,
        "constraint_column_usage" => constraint_column_usage,
        "constraint_table_usage" => constraint_table_usage,
        "table_privileges" | "role_table_grants" => table_privileges,
        "enabled_roles" => enabled_roles,
        "character_sets" => character_sets,
        "element_types" => element_types,
        "routines" => routines,
        "foreign_tables" => foreign_tables,
        _ => return None,
    })
}

fn yes_no(yes: bool) -> Cell {
    if yes { "YES" } else { "NO" }.into()
}

fn database(s: &Snapshot) -> Cell {
    (&s.session.database).into()
}

fn catalog_name(s: &Snapshot, rows: &mut Rows) {
    rows.push([("catalog_name", database(s))]);
}

fn schemata(s: &Snapshot, rows: &mut Rows) {
    let roles = s.roles();
    for n in s.namespaces() {
        let owner = roles.iter().find(|r| r.oid == n.owner).map(|r| r.name.as_str());
        rows.push([("catalog_name", database(s)), ("schema_name", n.name.into()), ("schema_owner", owner.into())]);
    }
}

fn tables(s: &Snapshot, rows: &mut Rows) {
    let mut push = |schema: &str, name: &str, kind: &str, insertable: bool| {
        rows.push([
            ("table_catalog", database(s)),
            ("table_schema", schema.into()),
            ("table_name", name.into()),
            ("table_type", kind.into()),
            ("is_insertable_into", yes_no(insertable)),
            ("is_typed", yes_no(false)),
        ]);
    };
    for r in layout::relations() {
        push(r.schema, r.name, if r.kind == "r" { "BASE TABLE" } else { "VIEW" }, false);
    }
    for r in s.readable() {
        let kind = match r.kind() {
            RelationKind::Table => "BASE TABLE",
            RelationKind::Source => "FOREIGN",
            RelationKind::MaterializedView => "MATERIALIZED VIEW",
            RelationKind::View | RelationKind::Sink => "VIEW",
        };
        push(&r.schema, &r.name, kind, r.kind() == RelationKind::Table);
    }
}

/// What `columns` says about a type: its name and the measures that apply to it.
struct TypeFacts {
    data_type: String,
    udt_name: String,
    character_length: Option<i32>,
    octet_length: Option<i32>,
    precision: Option<i32>,
    radix: Option<i32>,
    scale: Option<i32>,
    datetime_precision: Option<i32>,
}

fn type_facts(type_oid: u32, typmod: i32) -> TypeFacts {
    /// Octets of one character of UTF-8, and of a text without limit, as PostgreSQL has them.
    const OCTETS_PER_CHARACTER: i32 = 4;
    const UNLIMITED_OCTETS: i32 = 1 << 30;
    let scalar = types::by_oid(type_oid);
    let (data_type, udt_name) = match (scalar, types::element_of(type_oid)) {
        (Some(t), _) if t.category == 'A' => ("ARRAY".to_string(), t.name.to_string()),
        (Some(t), _) => (t.sql_name.trim_matches('"').to_string(), t.name.to_string()),
        (None, Some(element)) => ("ARRAY".to_string(), format!("_{}", element.name)),
        (None, None) => ("USER-DEFINED".to_string(), "unknown".to_string()),
    };
    let text = matches!(type_oid, oid::VARCHAR | oid::BPCHAR);
    let character_length = (text && typmod >= 4).then(|| typmod - 4);
    let octet_length = match (type_oid, character_length) {
        (_, Some(n)) => Some(n.saturating_mul(OCTETS_PER_CHARACTER)),
        (oid::TEXT | oid::VARCHAR | oid::BPCHAR, None) => Some(UNLIMITED_OCTETS),
        _ => None,
    };
    let binary = |bits: i32, scale: Option<i32>| (Some(bits), Some(2), scale);
    let (precision, radix, scale) = match type_oid {
        oid::INT2 => binary(16, Some(0)),
        oid::INT4 => binary(32, Some(0)),
        oid::INT8 => binary(64, Some(0)),
        oid::FLOAT4 => binary(24, None),
        oid::FLOAT8 => binary(53, None),
        oid::NUMERIC if typmod >= 4 => {
            let packed = typmod - 4;
            (Some(packed >> 16), Some(10), Some(((packed & 0x7ff) ^ 1024) - 1024))
        }
        oid::NUMERIC => (None, Some(10), None),
        _ => (None, None, None),
    };
    let datetime_precision = match type_oid {
        oid::DATE => Some(0),
        oid::TIME | oid::TIMESTAMP | oid::TIMESTAMPTZ | oid::INTERVAL => Some(if typmod >= 0 { typmod } else { 6 }),
        _ => None,
    };
    TypeFacts { data_type, udt_name, character_length, octet_length, precision, radix, scale, datetime_precision }
}

struct ColumnRow<'a> {
    schema: &'a str,
    table: &'a str,
    name: &'a str,
    number: usize,
    type_oid: u32,
    typmod: i32,
    nullable: bool,
    default: Option<&'a str>,
    updatable: bool,
}

fn push_column(s: &Snapshot, rows: &mut Rows, c: ColumnRow<'_>) {
    let facts = type_facts(c.type_oid, c.typmod);
    rows.push([
        ("table_catalog", database(s)),
        ("table_schema", c.schema.into()),
        ("table_name", c.table.into()),
        ("column_name", c.name.into()),
        ("ordinal_position", c.number.into()),
        ("column_default", c.default.into()),
        ("is_nullable", yes_no(c.nullable)),
        ("data_type", facts.data_type.into()),
        ("character_maximum_length", facts.character_length.into()),
        ("character_octet_length", facts.octet_length.into()),
        ("numeric_precision", facts.precision.into()),
        ("numeric_precision_radix", facts.radix.into()),
        ("numeric_scale", facts.scale.into()),
        ("datetime_precision", facts.datetime_precision.into()),
        ("udt_catalog", database(s)),
        ("udt_schema", "pg_catalog".into()),
        ("udt_name", facts.udt_name.into()),
        ("dtd_identifier", c.number.to_string().into()),
        ("is_self_referencing", yes_no(false)),
        ("is_identity", yes_no(false)),
        ("identity_cycle", yes_no(false)),
        ("is_generated", "NEVER".into()),
        ("is_updatable", yes_no(c.updatable)),
    ]);
}

fn columns(s: &Snapshot, rows: &mut Rows) {
    for r in layout::relations() {
        for (i, c) in r.columns.iter().enumerate() {
            let row = ColumnRow {
                schema: r.schema,
                table: r.name,
                name: c.name,
                number: i + 1,
                type_oid: c.type_oid,
                typmod: -1,
                nullable: !c.not_null,
                default: None,
                updatable: false,
            };
            push_column(s, rows, row);
        }
    }
    for r in s.readable() {
        for (i, c) in r.columns.iter().enumerate() {
            let row = ColumnRow {
                schema: &r.schema,
                table: &r.name,
                name: &c.name,
                number: i + 1,
                type_oid: c.type_oid,
                typmod: c.typmod,
                nullable: c.nullable,
                default: c.default.as_deref(),
                updatable: r.kind() == RelationKind::Table,
            };
            push_column(s, rows, row);
        }
    }
}

fn views(s: &Snapshot, rows: &mut Rows) {
    for r in s.readable() {
        let Some(text) = s.query_text(r) else { continue };
        rows.push([
            ("table_catalog", database(s)),
            ("table_schema", (&r.schema).into()),
            ("table_name", (&r.name).into()),
            ("view_definition", text.into()),
            ("check_option", "NONE".into()),
            ("is_updatable", yes_no(false)),
            ("is_insertable_into", yes_no(false)),
            ("is_trigger_updatable", yes_no(false)),
            ("is_trigger_deletable", yes_no(false)),
            ("is_trigger_insertable_into", yes_no(false)),
        ]);
    }
}

fn view_table_usage(s: &Snapshot, rows: &mut Rows) {
    for r in s.readable().filter(|r| r.definition.query().is_some()) {
        for input in r.depends_on.iter().filter_map(|oid| s.catalog.relation(*oid)) {
            rows.push([
                ("view_catalog", database(s)),
                ("view_schema", (&r.schema).into()),
                ("view_name", (&r.name).into()),
                ("table_catalog", database(s)),
                ("table_schema", (&input.schema).into()),
                ("table_name", (&input.name).into()),
            ]);
        }
    }
}

fn table_constraints(s: &Snapshot, rows: &mut Rows) {
    for index in s.readable().filter_map(|r| primary_key_index(r)) {
        rows.push([
            ("constraint_catalog", database(s)),
            ("constraint_schema", (&index.table.schema).into()),
            ("constraint_name", index.name.into()),
            ("table_catalog", database(s)),
            ("table_schema", (&index.table.schema).into()),
            ("table_name", (&index.table.name).into()),
            ("constraint_type", "PRIMARY KEY".into()),
            ("is_deferrable", yes_no(false)),
            ("initially_deferred", yes_no(false)),
            ("enforced", yes_no(true)),
        ]);
    }
}

/// Calls `push` with schema, table, constraint, column and position for every key column.
fn key_columns(s: &Snapshot, mut push: impl FnMut(&str, &str, &str, &Column, usize)) {
    for index in s.readable().filter_map(|r| primary_key_index(r)) {
        for (i, column) in index.columns.iter().enumerate() {
            push(&index.table.schema, &index.table.name, index.name, column, i + 1);
        }
    }
}

fn key_column_usage(s: &Snapshot, rows: &mut Rows) {
    key_columns(s, |schema, table, constraint, column, position| {
        rows.push([
            ("constraint_catalog", database(s)),
            ("constraint_schema", schema.into()),
            ("constraint_name", constraint.into()),
            ("table_catalog", database(s)),
            ("table_schema", schema.into()),
            ("table_name", table.into()),
            ("column_name", (&column.name).into()),
            ("ordinal_position", position.into()),
        ]);
    });
}

fn constraint_column_usage(s: &Snapshot, rows: &mut Rows) {
    key_columns(s, |schema, table, constraint, column, _| {
        rows.push([
            ("table_catalog", database(s)),
            ("table_schema", schema.into()),
            ("table_name", table.into()),
            ("column_name", (&column.name).into()),
            ("constraint_catalog", database(s)),
            ("constraint_schema", schema.into()),
            ("constraint_name", constraint.into()),
        ]);
    });
}

fn constraint_table_usage(s: &Snapshot, rows: &mut Rows) {
    for index in s.readable().filter_map(|r| primary_key_index(r)) {
        rows.push([
            ("table_catalog", database(s)),
            ("table_schema", (&index.table.schema).into()),
            ("table_name", (&index.table.name).into()),
            ("constraint_catalog", database(s)),
            ("constraint_schema", (&index.table.schema).into()),
            ("constraint_name", index.name.into()),
        ]);
    }
}

fn table_privileges(s: &Snapshot, rows: &mut Rows) {
    for r in s.readable() {
        let all: &[&str] = match r.kind() {
            RelationKind::Table => &["INSERT", "SELECT", "UPDATE", "DELETE", "TRUNCATE"],
            _ => &["SELECT"],
        };
        for privilege in all {
            rows.push([
                ("grantor", (&r.owner).into()),
                ("grantee", (&r.owner).into()),
                ("table_catalog", database(s)),
                ("table_schema", (&r.schema).into()),
                ("table_name", (&r.name).into()),
                ("privilege_type", (*privilege).into()),
                ("is_grantable", yes_no(true)),
                ("with_hierarchy", yes_no(*privilege == "SELECT")),
            ]);
        }
    }
}

fn enabled_roles(s: &Snapshot, rows: &mut Rows) {
    rows.push([("role_name", (&s.session.user).into())]);
}

fn character_sets(s: &Snapshot, rows: &mut Rows) {
    rows.push([
        ("character_set_name", "UTF8".into()),
        ("character_repertoire", "UCS".into()),
        ("form_of_use", "UTF8".into()),
        ("default_collate_catalog", database(s)),
        ("default_collate_schema", "pg_catalog".into()),
        ("default_collate_name", "default".into()),
    ]);
}

fn element_types(s: &Snapshot, rows: &mut Rows) {
    for r in s.readable() {
        for (i, c) in r.columns.iter().enumerate() {
            let Some(element) = types::element_of(c.type_oid) else { continue };
            rows.push([
                ("object_catalog", database(s)),
                ("object_schema", (&r.schema).into()),
                ("object_name", (&r.name).into()),
                ("object_type", if r.kind() == RelationKind::Table { "TABLE" } else { "VIEW" }.into()),
                ("collection_type_identifier", (i + 1).to_string().into()),
                ("data_type", element.sql_name.into()),
                ("udt_catalog", database(s)),
                ("udt_schema", "pg_catalog".into()),
                ("udt_name", element.name.into()),
                ("dtd_identifier", format!("a{}", i + 1).into()),
            ]);
        }
    }
}

fn routines(s: &Snapshot, rows: &mut Rows) {
    for (i, f) in functions_by_name().iter().enumerate().filter(|(_, f)| f.kind == 'f') {
        let result = type_facts(f.result, -1);
        rows.push([
            ("specific_catalog", database(s)),
            ("specific_schema", "pg_catalog".into()),
            ("specific_name", format!("{}_{}", f.name, super::objects::FIRST_FUNCTION_OID + i as u32).into()),
            ("routine_catalog", database(s)),
            ("routine_schema", "pg_catalog".into()),
            ("routine_name", (&f.name).into()),
            ("routine_type", "FUNCTION".into()),
            ("data_type", result.data_type.into()),
            ("type_udt_catalog", database(s)),
            ("type_udt_schema", "pg_catalog".into()),
            ("type_udt_name", result.udt_name.into()),
            ("routine_body", "EXTERNAL".into()),
            ("external_language", "INTERNAL".into()),
        ]);
    }
}

fn foreign_tables(s: &Snapshot, rows: &mut Rows) {
    for r in s.readable().filter(|r| r.kind() == RelationKind::Source) {
        rows.push([
            ("foreign_table_catalog", database(s)),
            ("foreign_table_schema", (&r.schema).into()),
            ("foreign_table_name", (&r.name).into()),
            ("foreign_server_catalog", database(s)),
            ("foreign_server_name", r.definition.connector().and_then(|c| c.name()).into()),
        ]);
    }
}
