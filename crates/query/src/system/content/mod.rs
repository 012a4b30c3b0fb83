//! What the system relations hold. Every relation is a function of the [`Snapshot`]; those without a function are empty.

use std::sync::Arc;

use arrow::array::RecordBatch;
use catalog::{Relation, RelationKind};
use flow::{RelationId, Result};
use sql::statement::Name;

use super::Snapshot;
use super::layout::SystemRelation;
use super::rows::Rows;

mod information_schema;
mod ms_catalog;
mod objects;
mod relations;
mod server;
mod types;

pub use objects::FIRST_FUNCTION_OID;
pub use relations::{IndexInfo, constraint_definition, index_definition, primary_key_index};

/// OID of a user who has logged in but owns nothing yet, so that the catalog has no role for them.
const SESSION_ROLE_OID: u32 = 16_383;

/// All rows of `relation`.
pub fn build(snapshot: &Snapshot, relation: &'static SystemRelation) -> Result<RecordBatch> {
    let mut rows = Rows::new(relation);
    if let Some(fill) = filler(relation.schema, relation.name) {
        fill(snapshot, &mut rows);
    }
    rows.finish()
}

/// Whether a relation can ever have rows.
pub fn has_content(relation: &SystemRelation) -> bool {
    filler(relation.schema, relation.name).is_some()
}

type Fill = fn(&Snapshot, &mut Rows);

fn filler(schema: &str, name: &str) -> Option<Fill> {
    match schema {
        "pg_catalog" => relations::filler(name)
            .or_else(|| types::filler(name))
            .or_else(|| objects::filler(name))
            .or_else(|| server::filler(name)),
        "information_schema" => information_schema::filler(name),
        "ms_catalog" => ms_catalog::filler(name),
        _ => None,
    }
}

/// A schema of the session's database, virtual ones included.
pub struct Namespace {
    pub oid: u32,
    pub name: String,
    pub owner: u32,
}

impl Snapshot {
    /// Every schema of the session's database: the virtual ones, then the user's by name.
    pub fn namespaces(&self) -> Vec<Namespace> {
        use catalog::snapshot::{BOOTSTRAP_ROLE_OID, INFORMATION_SCHEMA_OID, MS_CATALOG_OID, PG_CATALOG_OID};
        let system = [
            (PG_CATALOG_OID, "pg_catalog"),
            (INFORMATION_SCHEMA_OID, "information_schema"),
            (MS_CATALOG_OID, "ms_catalog"),
        ];
        let mut all: Vec<Namespace> = system
            .into_iter()
            .map(|(oid, name)| Namespace { oid, name: name.to_string(), owner: BOOTSTRAP_ROLE_OID })
            .collect();
        all.extend(self.catalog.schemas(&self.session.database).map(|s| Namespace {
            oid: s.oid,
            name: s.name.clone(),
            owner: self.role_oid(&s.owner),
        }));
        all
    }

    /// OID of a schema of the session's database; 0 when there is none.
    pub fn namespace_oid(&self, name: &str) -> u32 {
        use catalog::snapshot::{INFORMATION_SCHEMA_OID, MS_CATALOG_OID, PG_CATALOG_OID};
        match name {
            "pg_catalog" => PG_CATALOG_OID,
            "information_schema" => INFORMATION_SCHEMA_OID,
            "ms_catalog" => MS_CATALOG_OID,
            _ => self.catalog.schema(&self.session.database, name).map_or(0, |s| s.oid),
        }
    }

    /// OID of the session's database.
    pub fn database_oid(&self) -> u32 {
        self.catalog.database(&self.session.database).map_or(0, |d| d.oid)
    }

    /// OID of a role by name.
    pub fn role_oid(&self, name: &str) -> u32 {
        self.catalog.role(name).map_or(SESSION_ROLE_OID, |r| r.oid)
    }

    /// Every role: those of the catalog, and the session's user if they are not among them.
    pub fn roles(&self) -> Vec<catalog::Role> {
        let mut roles: Vec<catalog::Role> = self.catalog.roles().cloned().collect();
        if self.catalog.role(&self.session.user).is_none() {
            let name = self.session.user.clone();
            roles.push(catalog::Role { oid: SESSION_ROLE_OID, name, superuser: true, login: true });
        }
        roles
    }

    /// The relations of the session's database that a query can read, so all but sinks, by OID.
    pub fn readable(&self) -> impl Iterator<Item = &Arc<Relation>> {
        self.catalog.relations().filter(|r| r.database == self.session.database && r.kind() != RelationKind::Sink)
    }

    /// A readable relation of the session's database by OID.
    pub fn readable_by_oid(&self, oid: i64) -> Option<&Arc<Relation>> {
        let oid = RelationId(u32::try_from(oid).ok()?);
        self.catalog.relation(oid).filter(|r| r.database == self.session.database && r.kind() != RelationKind::Sink)
    }

    /// The query of a view or sink as it would be written now. The stored text names relations by id; here a name is
    /// qualified where the search path would not find it.
    pub fn query_text(&self, relation: &Relation) -> Option<String> {
        let stored = relation.definition.query()?.sql.trim().trim_end_matches(';');
        let name_of = |id: RelationId| {
            self.catalog.relation(id).map(|r| {
                let mut name = Name::qualified(r.schema.clone(), r.name.clone());
                if self.is_visible(&r.schema, &r.name) {
                    name.schema = None;
                }
                name
            })
        };
        Some(sql::definition::display(stored, &name_of).unwrap_or_else(|_| stored.to_string()))
    }

    /// Whether an unqualified `name` means the object in `schema`: the schema is searched and none before it has the name.
    pub fn is_visible(&self, schema: &str, name: &str) -> bool {
        // pg_catalog is searched first unless the path names it.
        let path = self.session.search_path.iter().map(String::as_str);
        let implicit = (!self.session.search_path.iter().any(|s| s == "pg_catalog")).then_some("pg_catalog");
        for candidate in implicit.into_iter().chain(path) {
            if candidate == schema {
                return true;
            }
            if super::layout::relation(candidate, name).is_some()
                || self.catalog.relation_named(&self.session.database, candidate, name).is_some()
            {
                return false;
            }
        }
        false
    }
}

/// `pg_class.relkind` of a readable relation. A source is what PostgreSQL calls a foreign table: its rows live elsewhere.
pub fn relkind(kind: RelationKind) -> &'static str {
    match kind {
        RelationKind::Table => "r",
        RelationKind::Source => "f",
        RelationKind::View => "v",
        RelationKind::MaterializedView => "m",
        RelationKind::Sink => "",
    }
}

/// Numbers for things that PostgreSQL gives an OID and Millstream does not store: the default of a column, the rule of a
/// view. Stable, because they are computed from the relation's own OID; above every OID that is given out in practice.
pub fn derived_oid(relation: RelationId, number: usize) -> u32 {
    0x8000_0000 | ((relation.0 << 11) & 0x7fff_ffff) | (number as u32 & 0x7ff)
}

/// Options of a connector as `name=value`, with secrets masked.
pub fn option_texts<'a>(options: impl IntoIterator<Item = (&'a String, &'a String)>) -> Vec<String> {
    catalog::shown_options(options).map(|(name, value)| format!("{name}={value}")).collect()
}
