//! Which system relations exist and what columns they have.
//!
//! The list is a text file, `layout.txt`, so that all of it can be read at a glance; it is parsed once. Every Arrow field
//! carries the PostgreSQL type of its column in its metadata under [`PG_TYPE`], because several types share one Arrow type
//! (`oid` and `bigint`, `name` and `text`).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use catalog::types::{self, PgType};

pub use catalog::types::PG_TYPE;

/// One column of a system relation.
#[derive(Debug)]
pub struct SystemColumn {
    pub name: &'static str,
    pub type_oid: u32,
    pub not_null: bool,
}

/// A system relation: its name, its numbers, its columns.
#[derive(Debug)]
pub struct SystemRelation {
    pub schema: &'static str,
    pub name: &'static str,
    /// `pg_class.relkind`: `r` or `v`.
    pub kind: &'static str,
    pub oid: u32,
    pub columns: Vec<SystemColumn>,
    arrow_schema: SchemaRef,
}

impl SystemRelation {
    pub fn arrow_schema(&self) -> SchemaRef {
        Arc::clone(&self.arrow_schema)
    }
}

type BySchema = BTreeMap<&'static str, BTreeMap<&'static str, SystemRelation>>;

static LAYOUT: LazyLock<BySchema> = LazyLock::new(|| {
    let mut all: BySchema = BTreeMap::new();
    for relation in include_str!("layout.txt").lines().filter_map(parse_line) {
        all.entry(relation.schema).or_default().insert(relation.name, relation);
    }
    all
});

/// None for comments and for a line that is not of the form; a test counts that there are none of the latter.
fn parse_line(line: &'static str) -> Option<SystemRelation> {
    let mut words = line.split(' ');
    let (schema, name) = words.next()?.split_once('.')?;
    let kind = words.next()?;
    let oid = words.next()?.parse().ok()?;
    let mut columns = Vec::new();
    for word in words {
        let (name, type_name) = word.split_once(':')?;
        let (type_name, not_null) = match type_name.strip_suffix('!') {
            Some(name) => (name, true),
            None => (type_name, false),
        };
        columns.push(SystemColumn { name, type_oid: type_oid(type_name)?, not_null });
    }
    let fields: Vec<Field> = columns
        .iter()
        .map(|c| {
            // Nullable for DataFusion whatever the column: an outer join over a NOT NULL column costs nothing that way.
            Field::new(c.name, arrow_type(c.type_oid), true).with_metadata(pg_type_metadata(c.type_oid))
        })
        .collect();
    Some(SystemRelation { schema, name, kind, oid, columns, arrow_schema: Arc::new(Schema::new(fields)) })
}

fn type_oid(name: &str) -> Option<u32> {
    let scalar = |name: &str| types::TYPES.iter().find(|t| t.name == name);
    match name.strip_prefix('_') {
        Some(element) => scalar(element).map(|t: &PgType| t.array_oid),
        None => scalar(name).map(|t| t.oid),
    }
}

/// Field metadata that names a PostgreSQL type.
pub fn pg_type_metadata(oid: u32) -> HashMap<String, String> {
    HashMap::from([(PG_TYPE.to_string(), types::format_type(oid, -1))])
}

/// How a system column of this type is held: object ids as Int64, everything without a form of its own as text.
pub fn arrow_type(oid: u32) -> DataType {
    match oid {
        22 => DataType::new_list(DataType::Int16, true),
        30 => DataType::new_list(DataType::Int64, true),
        // xid and cid count; every other type that Arrow does not have is text.
        28 | 29 => DataType::Int64,
        _ => match types::element_of(oid) {
            Some(element) => DataType::new_list(arrow_type(element.oid), true),
            None => types::arrow_of(oid, -1).unwrap_or(DataType::Utf8View),
        },
    }
}

/// The system relation with this name, if there is one.
pub fn relation(schema: &str, name: &str) -> Option<&'static SystemRelation> {
    LAYOUT.get(schema)?.get(name)
}

/// The virtual schema that holds a relation of this name, for names without a schema: only `pg_catalog` is searched.
pub fn is_pg_catalog_relation(name: &str) -> bool {
    relation("pg_catalog", name).is_some()
}

/// Every system relation, by schema and name.
pub fn relations() -> impl Iterator<Item = &'static SystemRelation> {
    LAYOUT.values().flat_map(|r| r.values())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_layout_is_a_relation() {
        let lines = include_str!("layout.txt").lines().filter(|l| !l.starts_with('#')).count();
        assert_eq!(relations().count(), lines);
        assert!(lines > 200);
    }

    #[test]
    fn relation_oids_are_distinct() {
        let mut oids: Vec<u32> = relations().map(|r| r.oid).collect();
        oids.sort();
        let count = oids.len();
        oids.dedup();
        assert_eq!(oids.len(), count);
    }

    #[test]
    fn object_ids_are_numbers_that_say_they_are_object_ids() {
        let class = relation("pg_catalog", "pg_class").unwrap().arrow_schema();
        let oid = class.field_with_name("oid").unwrap();
        assert_eq!((oid.data_type(), oid.metadata()[PG_TYPE].as_str()), (&DataType::Int64, "oid"));
        assert_eq!(
            class.field_with_name("reloptions").unwrap().data_type(),
            &DataType::new_list(DataType::Utf8View, true)
        );
    }
}
