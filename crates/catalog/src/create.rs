//! Checking `CREATE …` requests and turning them into changes.

use std::collections::BTreeSet;

use arrow_schema::{DataType, IntervalUnit};
use flow::{Error, RelationId, Result, SqlState};

use crate::change::{CatalogChange, Database, Role, Schema};
use crate::names::{self, MAX_COLUMNS, MAX_PRIMARY_KEY_COLUMNS, MAX_RELATIONS};
use crate::relation::{Column, Definition, PrimaryKey, Relation, RelationKind};
use crate::resolve::{Scope, undefined_database};
use crate::snapshot::{Catalog, Notice, Planned};

/// What `CREATE` does when the name is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IfExists {
    #[default]
    Error,
    /// `IF NOT EXISTS`: a notice, and nothing changes.
    Skip,
    /// `OR REPLACE`: the object keeps its OID and takes the new definition.
    Replace,
}

/// A request for a relation. The planner settles OID, schema and the name of the key.
#[derive(Clone, Debug)]
pub struct NewRelation<'a> {
    /// The name as written, folded, one to three parts.
    pub name: &'a [&'a str],
    pub owner: &'a str,
    pub columns: Vec<Column>,
    pub definition: Definition,
    /// What its query (or its INTO) names; duplicates do no harm.
    pub depends_on: Vec<RelationId>,
}

impl Catalog {
    /// Plans `CREATE DATABASE`.
    pub fn plan_create_database(&self, name: &str, owner: &str, if_not_exists: bool) -> Result<Planned> {
        let name = names::checked_identifier(name)?;
        if self.database(&name).is_some() {
            let message = format!("database \"{name}\" already exists");
            return match if_not_exists {
                true => Ok(Planned::nothing(Notice::new("42P04", format!("{message}, skipping")))),
                false => Err(Error::new(SqlState::DuplicateDatabase, message)),
            };
        }
        let database = Database { oid: self.next_oid(), name, owner: owner.to_string() };
        let public_oid = database.oid + 1;
        Ok(Planned::change(CatalogChange::CreateDatabase { database, public_oid }))
    }

    /// Plans `CREATE SCHEMA`.
    pub fn plan_create_schema(&self, database: &str, name: &str, owner: &str, if_not_exists: bool) -> Result<Planned> {
        if self.database(database).is_none() {
            return Err(undefined_database(self, database));
        }
        let name = names::checked_identifier(name)?;
        if self.schema(database, &name).is_some() || names::VIRTUAL_SCHEMAS.contains(&name.as_str()) {
            let message = format!("schema \"{name}\" already exists");
            return match if_not_exists {
                true => Ok(Planned::nothing(Notice::new("42P06", format!("{message}, skipping")))),
                false => Err(Error::new(SqlState::DuplicateSchema, message)),
            };
        }
        check_schema_name(&name)?;
        let schema = Schema { oid: self.next_oid(), database: database.to_string(), name, owner: owner.to_string() };
        Ok(Planned::change(CatalogChange::CreateSchema(schema)))
    }

    /// Plans `CREATE ROLE` (or the first login of a new user).
    pub fn plan_create_role(&self, name: &str, superuser: bool, login: bool, if_not_exists: bool) -> Result<Planned> {
        let name = names::checked_identifier(name)?;
        if self.role(&name).is_some() {
            let message = format!("role \"{name}\" already exists");
            return match if_not_exists {
                true => Ok(Planned::nothing(Notice::new("42710", format!("{message}, skipping")))),
                false => Err(Error::new(SqlState::DuplicateObject, message)),
            };
        }
        if name.starts_with("pg_") {
            return Err(Error::new(SqlState::ReservedName, format!("role name \"{name}\" is reserved"))
                .with_detail("Role names starting with \"pg_\" are reserved."));
        }
        Ok(Planned::change(CatalogChange::CreateRole(Role { oid: self.next_oid(), name, superuser, login })))
    }

    /// Plans the creation of a relation: names, columns, key and inputs are checked here.
    ///
    /// The change is `CreateRelation` with a fresh OID, or `Replace` with the old one. Errors: `42P07` taken, `3F000` no such
    /// schema, `42501` system schema, `42701` column twice, `42703` key of no such column, `42P16` key twice or of a
    /// type that has no equality, `54011` too many columns, `42809` / `42P16` a replacement that does not fit.
    pub fn plan_create(&self, scope: &Scope, new: NewRelation<'_>, if_exists: IfExists) -> Result<Planned> {
        let (schema, name) = self.creation_place(scope, new.name)?;
        let kind = new.definition.kind();
        let mut notices = Vec::new();
        if let Some(written) = new.name.last().filter(|w| **w != name) {
            notices.push(Notice::new("42622", format!("identifier \"{written}\" will be truncated to \"{name}\"")));
        }
        let existing = self.relation_named(&scope.database, &schema, &name);
        match (existing, if_exists) {
            (None, _) if self.index_named(&scope.database, &schema, &name) => {
                return Err(duplicate_relation(&name));
            }
            (Some(_), IfExists::Error) => return Err(duplicate_relation(&name)),
            (Some(_), IfExists::Skip) => {
                notices.push(Notice::new("42P07", format!("relation \"{name}\" already exists, skipping")));
                return Ok(Planned { change: None, notices });
            }
            (Some(old), IfExists::Replace) if old.kind() != kind => {
                return Err(Error::new(SqlState::WrongObjectType, format!("\"{name}\" is not a {}", kind.noun()))
                    .with_detail(format!("\"{name}\" is a {}.", old.kind().noun())));
            }
            _ => {}
        }
        if existing.is_none() && self.relation_count() >= MAX_RELATIONS {
            return Err(Error::new(
                SqlState::ProgramLimitExceeded,
                format!("the server already has {MAX_RELATIONS} relations, its limit"),
            ));
        }
        let mut columns = new.columns;
        check_columns(&mut columns, kind)?;

        let mut depends_on = new.depends_on;
        depends_on.sort();
        depends_on.dedup();
        if let Some(missing) = depends_on.iter().find(|oid| self.relation(**oid).is_none()) {
            return Err(Error::new(SqlState::UndefinedTable, format!("relation with OID {missing} does not exist"))
                .with_detail("It was dropped while the statement was being planned.")
                .with_hint("Run the statement again."));
        }
        if let Some(old) = existing {
            let downstream = self.foreign_dependants(old.oid);
            if depends_on.iter().any(|oid| *oid == old.oid || downstream.contains(oid)) {
                return Err(Error::new(
                    SqlState::InvalidTableDefinition,
                    format!("{} \"{name}\" would read itself", kind.noun()),
                ));
            }
            // As in PostgreSQL a plain view keeps its columns whether or not something reads them.
            if !downstream.is_empty() || kind == RelationKind::View {
                check_replacement(&old.columns, &columns)?;
            }
        }

        let oid = existing.map_or(RelationId(self.next_oid()), |old| old.oid);
        let mut definition = new.definition;
        if let Definition::Table(table) = &mut definition {
            check_primary_key(&table.primary_key, &mut columns)?;
            let old_key = existing.and_then(|old| old.table()).and_then(|t| t.key.clone());
            table.key = match (table.primary_key.is_empty(), old_key) {
                (true, _) => None,
                (false, Some(key)) => Some(key),
                (false, None) => {
                    let key_oid = if existing.is_some() { self.next_oid() } else { self.next_oid() + 1 };
                    Some(PrimaryKey { oid: key_oid, name: self.free_key_name(&scope.database, &schema, &name) })
                }
            };
        }
        let relation = Box::new(Relation {
            oid,
            database: scope.database.clone(),
            schema,
            name,
            owner: new.owner.to_string(),
            columns,
            definition,
            depends_on,
            created_seq: 0,
        });
        let change = match existing {
            Some(old) => CatalogChange::Replace(Box::new(Relation { owner: old.owner.clone(), ..*relation })),
            None => CatalogChange::CreateRelation(relation),
        };
        Ok(Planned { change: Some(change), notices })
    }

    /// Whether a primary key's index has this name; relations and indexes share names, as in PostgreSQL.
    pub(crate) fn index_named(&self, database: &str, schema: &str, name: &str) -> bool {
        self.relations_in(database, schema)
            .any(|r| r.table().and_then(|t| t.key.as_ref()).is_some_and(|k| k.name == name))
    }

    /// `table_pkey`, or `table_pkey1` and so on when that is taken.
    fn free_key_name(&self, database: &str, schema: &str, table: &str) -> String {
        let mut number = 0usize;
        loop {
            let suffix = if number == 0 { "_pkey".to_string() } else { format!("_pkey{number}") };
            let mut stem = table;
            while stem.len() + suffix.len() > names::MAX_IDENTIFIER_BYTES {
                let mut chars = stem.chars();
                chars.next_back();
                stem = chars.as_str();
            }
            let name = format!("{stem}{suffix}");
            if self.relation_named(database, schema, &name).is_none() && !self.index_named(database, schema, &name) {
                return name;
            }
            number += 1;
        }
    }
}

pub(crate) fn check_schema_name(name: &str) -> Result<()> {
    if names::is_system_schema(name) {
        return Err(Error::new(SqlState::ReservedName, format!("unacceptable schema name \"{name}\""))
            .with_detail("The prefix \"pg_\" is reserved for system schemas."));
    }
    Ok(())
}

pub(crate) fn duplicate_relation(name: &str) -> Error {
    Error::new(SqlState::DuplicateTable, format!("relation \"{name}\" already exists"))
}

/// Names within length, not reserved, each once, not too many.
pub(crate) fn check_columns(columns: &mut [Column], kind: RelationKind) -> Result<()> {
    if columns.len() > MAX_COLUMNS {
        return Err(Error::new(
            SqlState::TooManyColumns,
            format!("a {} can have at most {MAX_COLUMNS} columns", kind.noun()),
        )
        .with_detail(format!("This one has {}.", columns.len())));
    }
    let mut seen = BTreeSet::new();
    for column in columns.iter_mut() {
        column.name = names::checked_identifier(&column.name)?;
        if matches!(kind, RelationKind::Table | RelationKind::Source) && names::is_system_column(&column.name) {
            return Err(Error::new(
                SqlState::DuplicateColumn,
                format!("column name \"{}\" conflicts with a system column name", column.name),
            ));
        }
        if !seen.insert(column.name.clone()) {
            let error =
                Error::new(SqlState::DuplicateColumn, format!("column \"{}\" specified more than once", column.name));
            return Err(match kind {
                RelationKind::View | RelationKind::MaterializedView | RelationKind::Sink => {
                    error.with_hint("Give the columns of the query different names with AS.")
                }
                _ => error,
            });
        }
    }
    Ok(())
}

/// Key columns exist, each once, have an equality that bytes can show; they become NOT NULL.
fn check_primary_key(key: &[usize], columns: &mut [Column]) -> Result<()> {
    if key.len() > MAX_PRIMARY_KEY_COLUMNS {
        return Err(Error::new(
            SqlState::TooManyColumns,
            format!("a primary key can have at most {MAX_PRIMARY_KEY_COLUMNS} columns"),
        ));
    }
    for (i, position) in key.iter().enumerate() {
        let Some(column) = columns.get_mut(*position) else {
            return Err(Error::new(
                SqlState::UndefinedColumn,
                format!("column number {} named in key does not exist", position + 1),
            ));
        };
        if key[..i].contains(position) {
            return Err(Error::new(
                SqlState::DuplicateColumn,
                format!("column \"{}\" appears twice in primary key constraint", column.name),
            ));
        }
        if !has_key_equality(&column.data_type) {
            return Err(Error::new(
                SqlState::InvalidTableDefinition,
                format!("column \"{}\" of type {} cannot be part of a primary key", column.name, column.sql_type),
            )
            .with_detail("Equal values of this type can be written in different ways."));
        }
        column.nullable = false;
    }
    Ok(())
}

/// Whether equal values of the type are equal bytes after canonicalisation: not so for intervals, where `1 day` equals
/// `24 hours`, nor for maps, whose entries have no order.
fn has_key_equality(data_type: &DataType) -> bool {
    match data_type {
        DataType::Interval(IntervalUnit::MonthDayNano | IntervalUnit::DayTime | IntervalUnit::YearMonth) => false,
        DataType::Map(_, _) | DataType::Union(_, _) | DataType::Null => false,
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => has_key_equality(f.data_type()),
        DataType::Struct(fields) => fields.iter().all(|f| has_key_equality(f.data_type())),
        _ => true,
    }
}

/// With readers, a replacement keeps every column's name and type in place and may add columns at the end.
fn check_replacement(old: &[Column], new: &[Column]) -> Result<()> {
    let hint = "Drop what reads it first, or use DROP … CASCADE and create it anew.";
    if new.len() < old.len() {
        return Err(Error::new(SqlState::InvalidTableDefinition, "cannot drop columns from view").with_hint(hint));
    }
    for (old, new) in old.iter().zip(new) {
        if old.name != new.name {
            return Err(Error::new(
                SqlState::InvalidTableDefinition,
                format!("cannot change name of view column \"{}\" to \"{}\"", old.name, new.name),
            )
            .with_hint("Use ALTER VIEW ... RENAME COLUMN ... to change name of view column instead."));
        }
        if old.data_type != new.data_type {
            return Err(Error::new(
                SqlState::InvalidTableDefinition,
                format!(
                    "cannot change data type of view column \"{}\" from {} to {}",
                    old.name, old.sql_type, new.sql_type
                ),
            )
            .with_hint(hint));
        }
    }
    Ok(())
}
