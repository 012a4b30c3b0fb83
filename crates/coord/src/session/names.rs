//! What names mean to a session: its own relations, the system catalogs, and functions that know the session.

use std::collections::BTreeSet;
use std::sync::Arc;

use catalog::{Catalog, Definition, Relation, Scope};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{LogicalPlan, ScalarUDF};
use flow::{Error, RelationId, Result, SqlState};
use query::relation_provider;
use query::system::SystemCatalog;
use sql::{Content, Name, RelationKind, Resolver};

use super::private::PrivateCatalog;
use crate::engine::Engine;

/// `pg_attribute.atttypmod` of character types is the length plus this.
const CHARACTER_TYPMOD_OFFSET: i32 = 4;

/// The most characters that a `varchar(n)` or `char(n)` column takes.
pub fn character_limit(column: &catalog::Column) -> Option<u64> {
    let limited = column.sql_type.starts_with("character") && column.typmod > CHARACTER_TYPMOD_OFFSET;
    limited.then_some((column.typmod - CHARACTER_TYPMOD_OFFSET) as u64)
}

/// Looks names up in one version of the catalog.
pub struct SessionNames<'a> {
    engine: &'a Arc<Engine>,
    catalog: &'a Catalog,
    scope: Scope,
    /// Absent for standing queries: they do not read system catalogs.
    system: Option<&'a SystemCatalog>,
    /// What the session's transaction has done to the catalog.
    private: Option<&'a PrivateCatalog>,
}

impl<'a> SessionNames<'a> {
    pub fn new(
        engine: &'a Arc<Engine>,
        catalog: &'a Catalog,
        scope: Scope,
        system: Option<&'a SystemCatalog>,
    ) -> SessionNames<'a> {
        SessionNames { engine, catalog, scope, system, private: None }
    }

    pub fn with_private(mut self, private: Option<&'a PrivateCatalog>) -> SessionNames<'a> {
        self.private = private;
        self
    }

    /// The catalog's relation as the planner sees it; sinks cannot be read or written.
    fn resolved(&self, relation: &Relation) -> Option<sql::Relation> {
        let (kind, content) = match &relation.definition {
            Definition::View(query) => (RelationKind::View, Content::Definition(query.sql.clone())),
            Definition::Sink(_) => return None,
            // A view whose job has not started has no rows yet: a statement that runs now reads its query.
            Definition::MaterializedView(query)
                if self.system.is_some() && self.private.is_some_and(|p| p.pending_view(relation.oid).is_some()) =>
            {
                (RelationKind::MaterializedView, Content::Definition(query.sql.clone()))
            }
            other => {
                let kind = match other {
                    Definition::Table(table) if table.side.is_some() => RelationKind::Side,
                    Definition::Table(_) => RelationKind::Table,
                    Definition::Source(_) => RelationKind::Source,
                    _ => RelationKind::MaterializedView,
                };
                let traits = self.private.and_then(|p| p.pending_view(relation.oid));
                let table = self.private.and_then(|p| p.table(relation.oid));
                let key = match table {
                    Some(table) => table.store.key().map(<[usize]>::to_vec),
                    None => self.engine.index_key(relation.oid),
                };
                let provider = relation_provider(self.engine.relation_source(relation, traits), key);
                (kind, Content::Scan(provider_as_source(Arc::new(provider))))
            }
        };
        let columns = relation
            .columns
            .iter()
            .map(|c| {
                let mut column = sql::Column::new(&c.name, c.data_type.clone(), c.nullable);
                column.default = c.default.clone();
                let arrow = catalog::types::oid_and_typmod(&c.data_type, "");
                column.pg_type = Some((c.type_oid, c.typmod)).filter(|own| *own != arrow);
                column.characters_max = character_limit(c);
                column
            })
            .collect();
        Some(sql::Relation {
            id: relation.oid,
            kind,
            database: relation.database.clone(),
            schema: relation.schema.clone(),
            name: relation.name.clone(),
            columns,
            primary_key: relation.primary_key().to_vec(),
            key_name: relation.table().and_then(|t| t.key.as_ref()).map(|k| k.name.clone()),
            content,
        })
    }
}

impl Resolver for SessionNames<'_> {
    fn relation(&self, name: &Name) -> Option<sql::Relation> {
        // As in PostgreSQL, pg_catalog comes before the search path for unqualified names.
        if let Some(table) = self.system.and_then(|s| s.table(name.schema.as_deref(), &name.name)) {
            let columns = table
                .schema()
                .fields()
                .iter()
                .map(|f| sql::Column::new(f.name(), f.data_type().clone(), f.is_nullable()))
                .collect();
            return Some(sql::Relation {
                id: RelationId(0),
                kind: RelationKind::System,
                database: self.scope.database.clone(),
                schema: name.schema.clone().unwrap_or_else(|| "pg_catalog".into()),
                name: name.name.clone(),
                columns,
                primary_key: Vec::new(),
                key_name: None,
                content: Content::Scan(provider_as_source(table)),
            });
        }
        let parts = super::define::parts(name);
        let relation = self.catalog.lookup(&self.scope.database, &self.scope.search_path, &parts).ok().flatten()?;
        self.resolved(relation)
    }

    fn relation_by_id(&self, id: RelationId) -> Option<sql::Relation> {
        self.catalog.relation(id).and_then(|r| self.resolved(r))
    }

    fn relation_names(&self) -> Vec<String> {
        let visible =
            |r: &&Arc<Relation>| r.database == self.scope.database && self.scope.search_path.contains(&r.schema);
        self.catalog.relations().filter(visible).map(|r| r.name.clone()).collect()
    }

    fn function(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.system.and_then(|system| system.function(name))
    }
}

/// The relations of ours that a plan scans; system tables are not among them.
pub fn scanned(plan: &LogicalPlan) -> Result<BTreeSet<RelationId>> {
    let mut relations = BTreeSet::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            relations.extend(plan::table::relation_of(&scan.source).map(|s| s.relation));
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(plan::error::from_datafusion_error)?;
    Ok(relations)
}

/// The table that a statement may write.
pub fn writable(catalog: &Catalog, scope: &Scope, name: &Name) -> Result<Arc<Relation>> {
    let found = catalog.resolve(&scope.database, &scope.search_path, &super::define::parts(name));
    let relation = found.map_err(|e| if name.position > 0 { e.with_position(name.position) } else { e })?;
    if relation.table().is_none() {
        return Err(Error::new(
            SqlState::WrongObjectType,
            format!("cannot change {} \"{}\"", relation.kind().noun(), relation.name),
        )
        .with_hint("Change the tables that it reads."));
    }
    if let Some(of) = relation.side().and_then(|side| catalog.relation(side.of)) {
        return Err(Error::new(
            SqlState::WrongObjectType,
            format!("cannot change table \"{}\", which {} \"{}\" writes", relation.name, of.kind().noun(), of.name),
        )
        .with_hint("Write its rows into a table of your own with CREATE SINK … INTO."));
    }
    Ok(Arc::clone(relation))
}
