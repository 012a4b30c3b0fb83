//! Finding objects by the names that statements use.

use std::sync::Arc;

use flow::{Error, Result, SqlState};

use crate::names::{self, truncate_identifier};
use crate::relation::Relation;
use crate::snapshot::Catalog;

/// Where unqualified names are looked up: a session's database and its search path, with `$user` already expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub database: String,
    pub search_path: Vec<String>,
}

impl Scope {
    pub fn new(database: impl Into<String>, search_path: impl IntoIterator<Item = impl Into<String>>) -> Scope {
        Scope { database: database.into(), search_path: search_path.into_iter().map(Into::into).collect() }
    }
}

/// A relation name of one to three parts, split.
pub(crate) struct Parts<'a> {
    pub schema: Option<&'a str>,
    pub name: &'a str,
}

impl<'a> Parts<'a> {
    /// `parts` are folded identifiers; a database part must be the session's own.
    pub fn split(database: &str, parts: &[&'a str]) -> Result<Parts<'a>> {
        match parts {
            [name] => Ok(Parts { schema: None, name: truncate_identifier(name) }),
            [schema, name] => Ok(Parts { schema: Some(truncate_identifier(schema)), name: truncate_identifier(name) }),
            [db, schema, name] if truncate_identifier(db) == database => {
                Ok(Parts { schema: Some(truncate_identifier(schema)), name: truncate_identifier(name) })
            }
            [_, _, _] => {
                Err(Error::unsupported(format!("cross-database references are not implemented: {}", dotted(parts))))
            }
            _ => Err(Error::new(
                SqlState::SyntaxError,
                format!("improper relation name (too many dotted names): {}", parts.join(".")),
            )),
        }
    }
}

fn dotted(parts: &[&str]) -> String {
    format!("\"{}\"", parts.join("."))
}

impl Catalog {
    /// The relation that a name of one to three parts means. `parts` are folded identifiers.
    ///
    /// Only user relations: a caller that serves `pg_catalog` looks there first for unqualified names, as PostgreSQL does.
    /// Errors: `42P01` with the nearest name as a hint, `0A000` for another database.
    pub fn resolve(&self, database: &str, search_path: &[impl AsRef<str>], parts: &[&str]) -> Result<&Arc<Relation>> {
        match self.lookup(database, search_path, parts)? {
            Some(relation) => Ok(relation),
            None => Err(self.undefined_relation(database, search_path, parts)),
        }
    }

    /// As [`resolve`](Self::resolve), but a name that means nothing is not an error.
    pub fn lookup(
        &self,
        database: &str,
        search_path: &[impl AsRef<str>],
        parts: &[&str],
    ) -> Result<Option<&Arc<Relation>>> {
        let Parts { schema, name } = Parts::split(database, parts)?;
        Ok(match schema {
            Some(schema) => self.relation_named(database, schema, name),
            None => search_path.iter().find_map(|schema| self.relation_named(database, schema.as_ref(), name)),
        })
    }

    /// `42P01 relation "x" does not exist`, with the nearest existing name as a hint.
    pub fn undefined_relation(&self, database: &str, search_path: &[impl AsRef<str>], parts: &[&str]) -> Error {
        self.undefined(SqlState::UndefinedTable, "relation", database, search_path, parts)
    }

    pub(crate) fn undefined(
        &self,
        state: SqlState,
        noun: &str,
        database: &str,
        search_path: &[impl AsRef<str>],
        parts: &[&str],
    ) -> Error {
        let error = Error::new(state, format!("{noun} {} does not exist", dotted(parts)));
        let (schema, name) = match parts {
            [.., schema, name] => (Some(*schema), *name),
            [name] => (None, *name),
            [] => return error,
        };
        if let Some(schema) = schema {
            if self.schema(database, schema).is_none() && !names::is_system_schema(schema) {
                let schemas = self.schemas(database).map(|s| s.name.as_str()).chain(names::VIRTUAL_SCHEMAS);
                let error = error.with_detail(format!("There is no schema \"{schema}\" in database \"{database}\"."));
                return match names::nearest(schema, schemas) {
                    Some(near) => error.with_hint(format!("Perhaps you meant schema \"{near}\".")),
                    None => error,
                };
            }
            let here = self.relations_in(database, schema).map(|r| r.name.as_str());
            return match names::nearest(name, here) {
                Some(near) => error.with_hint(format!("Perhaps you meant \"{schema}.{near}\".")),
                None => error,
            };
        }
        let visible = search_path.iter().flat_map(|s| self.relations_in(database, s.as_ref()));
        if let Some(near) = names::nearest(name, visible.map(|r| r.name.as_str())) {
            return error.with_hint(format!("Perhaps you meant \"{near}\"."));
        }
        // The right name in a schema that is not searched is the other common slip.
        match self.schemas(database).find(|s| self.relation_named(database, &s.name, name).is_some()) {
            Some(s) => {
                error.with_hint(format!("There is \"{}.{name}\", but \"{}\" is not in search_path.", s.name, s.name))
            }
            None => error,
        }
    }

    /// The schema in which `CREATE … name` makes its object, and the name itself, cut to length.
    ///
    /// Errors: `3F000` when no schema was selected or the named one does not exist, `42501` in a system schema.
    pub fn creation_place(&self, scope: &Scope, parts: &[&str]) -> Result<(String, String)> {
        let database = self.database(&scope.database).ok_or_else(|| undefined_database(self, &scope.database))?;
        let Parts { schema, name } = Parts::split(&database.name, parts)?;
        let name = names::checked_identifier(name)?;
        let schema = match schema {
            Some(schema) => schema,
            None => scope
                .search_path
                .iter()
                .map(String::as_str)
                .find(|s| self.schema(&database.name, s).is_some() || names::VIRTUAL_SCHEMAS.contains(s))
                .ok_or_else(|| Error::new(SqlState::InvalidSchemaName, "no schema has been selected to create in"))?,
        };
        if names::is_system_schema(schema) {
            return Err(Error::new(
                SqlState::InsufficientPrivilege,
                format!("permission denied to create \"{schema}.{name}\""),
            )
            .with_detail("System catalog modifications are currently disallowed."));
        }
        match self.schema(&database.name, schema) {
            Some(s) => Ok((s.name.clone(), name)),
            None => Err(self.undefined_schema(&database.name, schema)),
        }
    }

    /// `3F000 schema "x" does not exist`, with the nearest existing name as a hint.
    pub fn undefined_schema(&self, database: &str, schema: &str) -> Error {
        let error = Error::new(SqlState::InvalidSchemaName, format!("schema \"{schema}\" does not exist"));
        match names::nearest(schema, self.schemas(database).map(|s| s.name.as_str())) {
            Some(near) => error.with_hint(format!("Perhaps you meant \"{near}\".")),
            None => error,
        }
    }
}

/// `3D000 database "x" does not exist`, with the nearest existing name as a hint.
pub fn undefined_database(catalog: &Catalog, name: &str) -> Error {
    let error = Error::new(SqlState::InvalidCatalogName, format!("database \"{name}\" does not exist"));
    match names::nearest(name, catalog.databases().map(|d| d.name.as_str())) {
        Some(near) => error.with_hint(format!("Perhaps you meant \"{near}\".")),
        None => error,
    }
}
