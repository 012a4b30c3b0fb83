//! Functions that look something up by OID: names, texts, comments, visibility, sizes.

use arrow::array::ArrayRef;
use catalog::types::format_type;
use catalog::{Commented, RelationKind};
use flow::{RelationId, Result};

use super::{Arguments, BOOL, Definition, INT4, INT8, NAME, OID, TEXT, bools, ints, stable, texts};
use crate::system::Snapshot;
use crate::system::content::{self, constraint_definition, index_definition, primary_key_index};
use crate::system::layout;
use crate::system::registry::functions_by_name;

pub(super) const FUNCTIONS: &[Definition] = &[
    stable("pg_get_userbyid", NAME, user_by_id),
    stable("format_type", TEXT, format_type_name),
    stable("pg_get_expr", TEXT, get_expr),
    stable("pg_get_constraintdef", TEXT, get_constraintdef),
    stable("pg_get_indexdef", TEXT, get_indexdef),
    stable("pg_get_viewdef", TEXT, get_viewdef),
    stable("pg_get_ruledef", TEXT, absent_text),
    stable("pg_get_triggerdef", TEXT, absent_text),
    stable("pg_get_functiondef", TEXT, absent_text),
    stable("pg_get_function_sqlbody", TEXT, absent_text),
    stable("pg_get_statisticsobjdef", TEXT, absent_text),
    stable("pg_get_statisticsobjdef_columns", TEXT, absent_text),
    stable("pg_get_partkeydef", TEXT, absent_text),
    stable("pg_get_partition_constraintdef", TEXT, absent_text),
    stable("pg_get_serial_sequence", TEXT, absent_text),
    stable("pg_tablespace_location", TEXT, tablespace_location),
    stable("pg_get_function_result", TEXT, function_result),
    stable("pg_get_function_arguments", TEXT, function_arguments),
    stable("pg_get_function_identity_arguments", TEXT, function_arguments),
    stable("obj_description", TEXT, obj_description),
    stable("col_description", TEXT, col_description),
    stable("shobj_description", TEXT, shobj_description),
    stable("pg_table_is_visible", BOOL, table_is_visible),
    stable("pg_type_is_visible", BOOL, is_given),
    stable("pg_function_is_visible", BOOL, is_given),
    stable("pg_operator_is_visible", BOOL, is_given),
    stable("pg_opclass_is_visible", BOOL, is_given),
    stable("pg_opfamily_is_visible", BOOL, is_given),
    stable("pg_collation_is_visible", BOOL, is_given),
    stable("pg_conversion_is_visible", BOOL, is_given),
    stable("pg_statistics_obj_is_visible", BOOL, is_given),
    stable("pg_ts_config_is_visible", BOOL, is_given),
    stable("pg_ts_dict_is_visible", BOOL, is_given),
    stable("pg_ts_parser_is_visible", BOOL, is_given),
    stable("pg_ts_template_is_visible", BOOL, is_given),
    stable("pg_relation_is_publishable", BOOL, never),
    stable("pg_relation_is_updatable", INT4, relation_is_updatable),
    stable("pg_column_is_updatable", BOOL, column_is_updatable),
    stable("pg_relation_size", INT8, relation_size),
    stable("pg_table_size", INT8, relation_size),
    stable("pg_total_relation_size", INT8, relation_size),
    stable("pg_indexes_size", INT8, no_size),
    stable("pg_database_size", INT8, database_size),
    stable("pg_tablespace_size", INT8, no_size),
    stable("pg_relation_filenode", OID, relation_filenode),
    stable("pg_partition_root", OID, absent_int),
    stable("pg_partition_ancestors", 1028, no_oids),
    stable("pg_stat_get_numscans", INT8, no_size),
    stable("pg_stat_get_live_tuples", INT8, live_tuples),
    stable("pg_sequence_last_value", INT8, absent_int),
];

fn absent_text(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_text(None))
}

fn absent_int(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_int(None))
}

fn never(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_bool(false))
}

fn tablespace_location(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_text(Some("")))
}

fn no_oids(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(super::text_lists(a.rows, &[]))
}

/// True for every object that is named, since all of these live in `pg_catalog`.
fn is_given(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(bools(a.ints(0)?.iter().map(|oid| oid.map(|_| true))))
}

fn user_by_id(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let roles = s.roles();
    a.text_of_oid(|oid| {
        let name = roles.iter().find(|r| i64::from(r.oid) == oid).map(|r| r.name.clone());
        Some(name.unwrap_or_else(|| format!("unknown (OID={oid})")))
    })
}

fn format_type_name(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let (oids, typmods) = (a.ints(0)?, a.ints(1)?);
    Ok(texts(oids.iter().zip(typmods.iter()).map(|(oid, typmod)| {
        let oid = u32::try_from(oid?).unwrap_or(u32::MAX);
        Some(format_type(oid, typmod.and_then(|t| i32::try_from(t).ok()).unwrap_or(-1)))
    })))
}

/// The catalogs keep an expression's text where PostgreSQL keeps its tree.
fn get_expr(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(texts(a.texts(0)?.iter()))
}

fn get_constraintdef(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let keys: Vec<_> = s.readable().filter_map(|r| primary_key_index(r)).collect();
    a.text_of_oid(|oid| keys.iter().find(|k| i64::from(k.oid) == oid).map(constraint_definition))
}

/// The whole definition, or with a column number above 0 that column's name.
fn get_indexdef(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let keys: Vec<_> = s.readable().filter_map(|r| primary_key_index(r)).collect();
    let (oids, numbers) = (a.ints(0)?, a.ints(1)?);
    Ok(texts(oids.iter().zip(numbers.iter()).map(|(oid, number)| {
        let oid = oid?;
        let key = keys.iter().find(|k| i64::from(k.oid) == oid)?;
        match number.unwrap_or(0) {
            0 => Some(index_definition(key)),
            n => {
                let column = usize::try_from(n - 1).ok().and_then(|i| key.columns.get(i))?;
                Some(flow::identifier::quote(&column.name).into_owned())
            }
        }
    })))
}

fn get_viewdef(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let oids = super::reg::relation_oids(s, a, 0)?;
    Ok(texts(oids.into_iter().map(|oid| Some(format!("{};", s.query_text(s.readable_by_oid(oid?)?)?)))))
}

fn function_number(oid: i64) -> Option<usize> {
    usize::try_from(oid - i64::from(content::FIRST_FUNCTION_OID)).ok()
}

fn function_result(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let functions = functions_by_name();
    a.text_of_oid(|oid| functions.get(function_number(oid)?).map(|f| format_type(f.result, -1)))
}

fn function_arguments(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let functions = functions_by_name();
    a.text_of_oid(|oid| {
        let f = functions.get(function_number(oid)?)?;
        Some(f.arguments.iter().map(|o| format_type(*o, -1)).collect::<Vec<_>>().join(", "))
    })
}

/// The comment on a relation, schema or function. The name of the catalog, when given, tells which it is.
fn obj_description(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let functions = functions_by_name();
    let (oids, classes) = (a.ints(0)?, a.texts(1)?);
    Ok(texts(oids.iter().zip(classes.iter()).map(|(oid, class)| {
        let oid = oid?;
        let number = u32::try_from(oid).ok()?;
        let relation = || s.catalog.comment(Commented::Relation(RelationId(number))).map(str::to_string);
        let schema = || s.catalog.comment(Commented::Schema(number)).map(str::to_string);
        match class {
            Some("pg_class") => relation(),
            Some("pg_namespace") => schema(),
            Some("pg_proc") => {
                functions.get(function_number(oid)?).map(|f| f.description.clone()).filter(|d| !d.is_empty())
            }
            Some(_) => None,
            None => relation().or_else(schema),
        }
    })))
}

fn col_description(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let (oids, numbers) = (a.ints(0)?, a.ints(1)?);
    Ok(texts(oids.iter().zip(numbers.iter()).map(|(oid, number)| {
        let about = Commented::Column(RelationId(u32::try_from(oid?).ok()?), u32::try_from(number?).ok()?);
        s.catalog.comment(about)
    })))
}

fn shobj_description(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    a.text_of_oid(|oid| s.catalog.comment(Commented::Database(u32::try_from(oid).ok()?)).map(str::to_string))
}

fn table_is_visible(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let indexes: Vec<_> = s.readable().filter_map(|r| primary_key_index(r)).collect();
    let oids = super::reg::relation_oids(s, a, 0)?;
    Ok(bools(oids.into_iter().map(|oid| {
        let oid = oid?;
        if let Some(r) = s.readable_by_oid(oid) {
            return Some(s.is_visible(&r.schema, &r.name));
        }
        if let Some(index) = indexes.iter().find(|i| i64::from(i.oid) == oid) {
            return Some(s.is_visible(&index.table.schema, index.name));
        }
        layout::relations().find(|r| i64::from(r.oid) == oid).map(|r| s.is_visible(r.schema, r.name))
    })))
}

/// PostgreSQL's bits: 4 UPDATE, 8 INSERT, 16 DELETE.
fn relation_is_updatable(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(ints(a.ints(0)?.iter().map(|oid| {
        let table = s.readable_by_oid(oid?).and_then(|r| r.table());
        Some(table.map_or(0, |t| if t.append_only { 8 } else { 4 | 8 | 16 }))
    })))
}

fn column_is_updatable(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(bools(
        a.ints(0)?.iter().map(|oid| Some(s.readable_by_oid(oid?).is_some_and(|r| r.kind() == RelationKind::Table))),
    ))
}

fn relation_size(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let oids = super::reg::relation_oids(s, a, 0)?;
    Ok(ints(oids.into_iter().map(|oid| {
        let stored = [RelationKind::Table, RelationKind::MaterializedView];
        let relation = s.readable_by_oid(oid?).filter(|r| stored.contains(&r.kind()));
        let bytes = relation.and_then(|r| s.source.relation_bytes(r.oid));
        Some(bytes.map_or(0, |b| i64::try_from(b).unwrap_or(i64::MAX)))
    })))
}

fn live_tuples(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(ints(a.ints(0)?.iter().map(|oid| {
        let rows = u32::try_from(oid?).ok().and_then(|oid| s.source.row_estimate(RelationId(oid)));
        Some(rows.map_or(0, |r| i64::try_from(r).unwrap_or(i64::MAX)))
    })))
}

fn no_size(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_int(Some(0)))
}

/// All stored relations of a database, named by OID or by name.
fn database_size(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let sum = |database: &str| -> i64 {
        let stored = s.catalog.relations().filter(|r| r.database == database);
        stored.filter_map(|r| s.source.relation_bytes(r.oid)).map(|b| i64::try_from(b).unwrap_or(i64::MAX)).sum()
    };
    if a.is_text(0) {
        return Ok(ints(a.texts(0)?.iter().map(|name| name.map(sum))));
    }
    Ok(ints(a.ints(0)?.iter().map(|oid| {
        let oid = oid?;
        s.catalog.databases().find(|d| i64::from(d.oid) == oid).map(|d| sum(&d.name))
    })))
}

fn relation_filenode(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let oids = super::reg::relation_oids(s, a, 0)?;
    Ok(ints(oids.into_iter().map(|oid| oid.filter(|o| s.readable_by_oid(*o).is_some_and(|r| r.table().is_some())))))
}
