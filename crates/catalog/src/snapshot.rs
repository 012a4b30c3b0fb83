//! One version of the catalog, and how a change makes the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flow::{Error, RelationId, Result};
use serde::{Deserialize, Serialize};

use crate::change::{self, CatalogChange, Commented, Database, Role, Schema};
use crate::relation::{Definition, Relation, RelationKind, SideKind};

/// The first OID given to an object of a user; smaller ones belong to the system, as in PostgreSQL.
pub const FIRST_USER_OID: u32 = 16_384;
/// OID of schema `pg_catalog`.
pub const PG_CATALOG_OID: u32 = 11;
/// OID of schema `information_schema`.
pub const INFORMATION_SCHEMA_OID: u32 = 13_000;
/// OID of schema `ms_catalog`.
pub const MS_CATALOG_OID: u32 = 13_500;
/// OID of schema `public` of the default database.
pub const PUBLIC_OID: u32 = 2_200;
/// OID of the default database.
pub const DEFAULT_DATABASE_OID: u32 = 5;
/// The database that always exists at first start.
pub const DEFAULT_DATABASE: &str = "dev";
/// The schema that every database starts with.
pub const DEFAULT_SCHEMA: &str = "public";
/// OID of the role that owns the system.
pub const BOOTSTRAP_ROLE_OID: u32 = 10;
/// The role that owns the system.
pub const BOOTSTRAP_ROLE: &str = "millstream";

/// Something to tell the user that is not an error: PostgreSQL's NOTICE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// SQLSTATE of the notice: `00000`, or `42P07` for "already exists, skipping".
    pub code: &'static str,
    pub message: String,
    pub detail: Option<String>,
}

impl Notice {
    pub(crate) fn new(code: &'static str, message: String) -> Notice {
        Notice { code, message, detail: None }
    }
}

/// The outcome of a planner: the change to log and apply (none when an `IF [NOT] EXISTS` made it void) and notices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Planned {
    pub change: Option<CatalogChange>,
    pub notices: Vec<Notice>,
}

impl Planned {
    pub(crate) fn change(change: CatalogChange) -> Planned {
        Planned { change: Some(change), notices: Vec::new() }
    }

    pub(crate) fn nothing(notice: Notice) -> Planned {
        Planned { change: None, notices: vec![notice] }
    }
}

/// One immutable version of the catalog. Clones share everything.
#[derive(Clone, Debug)]
pub struct Catalog {
    state: Arc<State>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    version: u64,
    next_oid: u32,
    roles: BTreeMap<String, Role>,
    databases: BTreeMap<String, Database>,
    /// By database, then by name.
    schemas: BTreeMap<String, BTreeMap<String, Schema>>,
    relations: BTreeMap<RelationId, Arc<Relation>>,
    /// Pairs, because JSON has no maps with structured keys.
    comments: Vec<(Commented, String)>,
    /// What `ALTER SYSTEM` has set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    system: BTreeMap<String, String>,
    /// database → schema → name → OID; derived from `relations`.
    #[serde(skip)]
    by_name: BTreeMap<String, BTreeMap<String, BTreeMap<String, RelationId>>>,
    /// What reads each relation directly; derived from `depends_on`.
    #[serde(skip)]
    readers: BTreeMap<RelationId, BTreeSet<RelationId>>,
}

impl State {
    fn find(&self, database: &str, schema: &str, name: &str) -> Option<&Arc<Relation>> {
        self.relations.get(self.by_name.get(database)?.get(schema)?.get(name)?)
    }

    fn index(&mut self, relation: Arc<Relation>) {
        for input in &relation.depends_on {
            self.readers.entry(*input).or_default().insert(relation.oid);
        }
        self.by_name
            .entry(relation.database.clone())
            .or_default()
            .entry(relation.schema.clone())
            .or_default()
            .insert(relation.name.clone(), relation.oid);
        self.relations.insert(relation.oid, relation);
    }

    fn unindex(&mut self, oid: RelationId) -> Result<Arc<Relation>> {
        let relation = self.relations.remove(&oid).ok_or_else(|| misfit(format!("relation {oid} does not exist")))?;
        for input in &relation.depends_on {
            if let Some(readers) = self.readers.get_mut(input) {
                readers.remove(&oid);
                if readers.is_empty() {
                    self.readers.remove(input);
                }
            }
        }
        // Emptied maps go too, so that a catalog that was decoded has the same index as one that lived on.
        if let Some(schemas) = self.by_name.get_mut(&relation.database) {
            if let Some(names) = schemas.get_mut(&relation.schema) {
                names.remove(&relation.name);
                if names.is_empty() {
                    schemas.remove(&relation.schema);
                }
            }
            if schemas.is_empty() {
                self.by_name.remove(&relation.database);
            }
        }
        Ok(relation)
    }

    fn sides(&self, oid: RelationId) -> Vec<(RelationId, SideKind)> {
        let readers = self.readers.get(&oid).into_iter().flatten();
        let side = |r: &RelationId| self.relations.get(r)?.side().filter(|s| s.of == oid).map(|s| (*r, s.kind));
        readers.filter_map(side).collect()
    }

    fn use_oid(&mut self, oid: u32) -> Result<()> {
        if oid < self.next_oid {
            return Err(misfit(format!("object id {oid} is not new")));
        }
        self.next_oid = oid.checked_add(1).ok_or_else(|| Error::internal("object ids are used up"))?;
        Ok(())
    }

    /// Roles come to exist when they first own something.
    fn ensure_role(&mut self, name: &str) -> Result<()> {
        if !self.roles.contains_key(name) {
            let role = Role { oid: self.next_oid, name: name.to_string(), superuser: true, login: true };
            self.use_oid(role.oid)?;
            self.roles.insert(role.name.clone(), role);
        }
        Ok(())
    }

    fn set_query(&mut self, queries: &[(RelationId, String)]) -> Result<()> {
        for (oid, sql) in queries {
            let relation =
                self.relations.get_mut(oid).ok_or_else(|| misfit(format!("relation {oid} does not exist")))?;
            match Arc::make_mut(relation).definition.query_mut() {
                Some(query) => query.sql = sql.clone(),
                None => return Err(misfit(format!("relation {oid} has no query"))),
            }
        }
        Ok(())
    }

    fn schema_mut(&mut self, oid: u32) -> Result<&mut Schema> {
        self.schemas
            .values_mut()
            .flat_map(|s| s.values_mut())
            .find(|s| s.oid == oid)
            .ok_or_else(|| misfit(format!("schema {oid} does not exist")))
    }

    fn database_name(&self, oid: u32) -> Result<String> {
        let found = self.databases.values().find(|d| d.oid == oid);
        found.map(|d| d.name.clone()).ok_or_else(|| misfit(format!("database {oid} does not exist")))
    }

    /// Re-files every relation for which `edit` says so, after giving it the new place.
    fn move_relations(&mut self, edit: impl Fn(&mut Relation) -> bool) -> Result<()> {
        let oids: Vec<RelationId> = self.relations.keys().copied().collect();
        for oid in oids {
            let Some(mut relation) = self.relations.get(&oid).map(|r| Relation::clone(r)) else { continue };
            if edit(&mut relation) {
                self.unindex(oid)?;
                self.index(Arc::new(relation));
            }
        }
        Ok(())
    }
}

fn misfit(why: String) -> Error {
    Error::internal(format!("catalog change does not fit the catalog: {why}"))
}

impl Default for Catalog {
    fn default() -> Catalog {
        Catalog::new()
    }
}

impl PartialEq for Catalog {
    fn eq(&self, other: &Catalog) -> bool {
        Arc::ptr_eq(&self.state, &other.state) || self.state == other.state
    }
}

impl Catalog {
    /// The catalog of a server that has never been used: database `dev` with schema `public`.
    pub fn new() -> Catalog {
        let owner = BOOTSTRAP_ROLE.to_string();
        let role = Role { oid: BOOTSTRAP_ROLE_OID, name: owner.clone(), superuser: true, login: true };
        let database = Database { oid: DEFAULT_DATABASE_OID, name: DEFAULT_DATABASE.to_string(), owner: owner.clone() };
        let public = Schema {
            oid: PUBLIC_OID,
            database: database.name.clone(),
            name: DEFAULT_SCHEMA.to_string(),
            owner: owner.clone(),
        };
        Catalog {
            state: Arc::new(State {
                version: 0,
                next_oid: FIRST_USER_OID,
                roles: BTreeMap::from([(owner, role)]),
                schemas: BTreeMap::from([(database.name.clone(), BTreeMap::from([(public.name.clone(), public)]))]),
                databases: BTreeMap::from([(database.name.clone(), database)]),
                relations: BTreeMap::new(),
                comments: Vec::new(),
                system: BTreeMap::new(),
                by_name: BTreeMap::new(),
                readers: BTreeMap::new(),
            }),
        }
    }

    /// How many changes made this catalog.
    pub fn version(&self) -> u64 {
        self.state.version
    }

    /// The OID that the next new object takes. A planner that needs several takes it and those after it.
    pub fn next_oid(&self) -> u32 {
        self.state.next_oid
    }

    /// The whole catalog as bytes, for a checkpoint.
    pub fn encode(&self) -> Result<Vec<u8>> {
        change::encode(&*self.state, "catalog")
    }

    /// A catalog back from [`encode`](Self::encode); `XX001` when the bytes are damaged or from a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Catalog> {
        let mut state: State = change::decode(bytes, "catalog")?;
        for relation in std::mem::take(&mut state.relations).into_values() {
            state.index(relation);
        }
        Ok(Catalog { state: Arc::new(state) })
    }

    /// Makes the next version in place; other clones keep theirs. Pure and deterministic.
    ///
    /// Costs a copy of the maps only when other clones exist, so replaying a log is linear. Fails with an internal error
    /// when the change does not fit; this value must then be thrown away (clones are untouched). A planner's change
    /// applied to the catalog that it was planned on always fits.
    pub fn apply(&mut self, change: &CatalogChange) -> Result<()> {
        let next = Arc::make_mut(&mut self.state);
        next.version += 1;
        match change {
            CatalogChange::CreateRole(role) => {
                next.use_oid(role.oid)?;
                next.roles.insert(role.name.clone(), role.clone());
            }
            CatalogChange::CreateDatabase { database, public_oid } => {
                if next.databases.contains_key(&database.name) {
                    return Err(misfit(format!("database {} exists", database.name)));
                }
                next.use_oid(database.oid)?;
                next.use_oid(*public_oid)?;
                next.ensure_role(&database.owner)?;
                let public = Schema {
                    oid: *public_oid,
                    database: database.name.clone(),
                    name: DEFAULT_SCHEMA.to_string(),
                    owner: database.owner.clone(),
                };
                next.schemas.insert(database.name.clone(), BTreeMap::from([(public.name.clone(), public)]));
                next.databases.insert(database.name.clone(), database.clone());
            }
            CatalogChange::CreateSchema(schema) => {
                next.use_oid(schema.oid)?;
                next.ensure_role(&schema.owner)?;
                let schemas = next
                    .schemas
                    .get_mut(&schema.database)
                    .ok_or_else(|| misfit(format!("database {} does not exist", schema.database)))?;
                if schemas.insert(schema.name.clone(), schema.clone()).is_some() {
                    return Err(misfit(format!("schema {} exists", schema.name)));
                }
            }
            CatalogChange::CreateRelation(relation) => {
                if next.find(&relation.database, &relation.schema, &relation.name).is_some() {
                    return Err(misfit(format!("relation {} exists", relation.name)));
                }
                next.use_oid(relation.oid.0)?;
                if let Some(key) = relation.table().and_then(|t| t.key.as_ref()) {
                    next.use_oid(key.oid)?;
                }
                next.ensure_role(&relation.owner)?;
                let mut relation = Relation::clone(relation);
                relation.created_seq = next.version;
                next.index(Arc::new(relation));
            }
            CatalogChange::Replace(relation) => {
                let old = next.unindex(relation.oid)?;
                let mut relation = Relation::clone(relation);
                relation.created_seq = old.created_seq;
                // A key that the old shape did not have brings a new OID.
                let key = relation.table().and_then(|t| t.key.as_ref()).map(|k| k.oid);
                let old_key = old.table().and_then(|t| t.key.as_ref()).map(|k| k.oid);
                if let Some(oid) = key.filter(|oid| old_key != Some(*oid)) {
                    next.use_oid(oid)?;
                }
                next.index(Arc::new(relation));
            }
            CatalogChange::Reshape { relation, columns, queries } => {
                if columns.len() != relation.columns.len() {
                    return Err(misfit(format!("relation {} has other columns", relation.oid)));
                }
                let old = next.unindex(relation.oid)?;
                let mut relation = Relation::clone(relation);
                relation.created_seq = old.created_seq;
                // Comments follow their columns.
                let oid = relation.oid;
                let comments = std::mem::take(&mut next.comments);
                next.comments = comments
                    .into_iter()
                    .filter_map(|(about, text)| match about {
                        Commented::Column(of, number) if of == oid => {
                            let now =
                                columns.iter().position(|c| *c == change::ColumnSource::Kept(number as usize - 1))?;
                            Some((Commented::Column(of, now as u32 + 1), text))
                        }
                        other => Some((other, text)),
                    })
                    .collect();
                next.index(Arc::new(relation));
                next.set_query(queries)?;
            }
            CatalogChange::Drop { relations, schemas, databases } => {
                for oid in relations {
                    next.unindex(*oid)?;
                }
                for oid in schemas {
                    let schema = next.schema_mut(*oid)?.clone();
                    if next.by_name.get(&schema.database).is_some_and(|names| names.contains_key(&schema.name)) {
                        return Err(misfit(format!("schema {} is not empty", schema.name)));
                    }
                    if let Some(schemas) = next.schemas.get_mut(&schema.database) {
                        schemas.remove(&schema.name);
                    }
                }
                for oid in databases {
                    let name = next.database_name(*oid)?;
                    if next.by_name.contains_key(&name) {
                        return Err(misfit(format!("database {name} is not empty")));
                    }
                    next.schemas.remove(&name);
                    next.databases.remove(&name);
                }
                let live: BTreeSet<u32> = next
                    .relations
                    .keys()
                    .map(|r| r.0)
                    .chain(next.databases.values().map(|d| d.oid))
                    .chain(next.schemas.values().flat_map(|s| s.values()).map(|s| s.oid))
                    .collect();
                next.comments.retain(|(about, _)| match about {
                    Commented::Relation(r) | Commented::Column(r, _) => live.contains(&r.0),
                    Commented::Schema(oid) | Commented::Database(oid) => live.contains(oid),
                });
            }
            CatalogChange::Rename { relation, name, queries } => {
                for (oid, side) in next.sides(*relation) {
                    let mut renamed = Relation::clone(&*next.unindex(oid)?);
                    renamed.name = side.table_name(name);
                    next.index(Arc::new(renamed));
                }
                let mut renamed = Relation::clone(&*next.unindex(*relation)?);
                renamed.name = name.clone();
                next.index(Arc::new(renamed));
                next.set_query(queries)?;
            }
            CatalogChange::RenameColumn { relation, column, name, queries } => {
                let found = next
                    .relations
                    .get_mut(relation)
                    .ok_or_else(|| misfit(format!("relation {relation} does not exist")))?;
                let columns = &mut Arc::make_mut(found).columns;
                columns.get_mut(*column).ok_or_else(|| misfit(format!("column {column} does not exist")))?.name =
                    name.clone();
                // A table of late rows begins with the columns of its relation.
                for (oid, _) in next.sides(*relation).into_iter().filter(|(_, kind)| *kind == SideKind::Late) {
                    if let Some(side) = next.relations.get_mut(&oid)
                        && let Some(column) = Arc::make_mut(side).columns.get_mut(*column)
                    {
                        column.name = name.clone();
                    }
                }
                next.set_query(queries)?;
            }
            CatalogChange::RenameSchema { schema, name } => {
                let old = next.schema_mut(*schema)?.clone();
                if let Some(schemas) = next.schemas.get_mut(&old.database) {
                    schemas.remove(&old.name);
                    schemas.insert(name.clone(), Schema { name: name.clone(), ..old.clone() });
                }
                next.move_relations(|r| {
                    let here = r.database == old.database && r.schema == old.name;
                    if here {
                        r.schema = name.clone();
                    }
                    here
                })?;
            }
            CatalogChange::RenameDatabase { database, name } => {
                let old = next.database_name(*database)?;
                if let Some(mut database) = next.databases.remove(&old) {
                    database.name = name.clone();
                    next.databases.insert(name.clone(), database);
                }
                let mut schemas = next.schemas.remove(&old).unwrap_or_default();
                for schema in schemas.values_mut() {
                    schema.database = name.clone();
                }
                next.schemas.insert(name.clone(), schemas);
                next.move_relations(|r| {
                    let here = r.database == old;
                    if here {
                        r.database = name.clone();
                    }
                    here
                })?;
            }
            CatalogChange::SetSchema { relation, schema } => {
                let sides = next.sides(*relation).into_iter().map(|(oid, _)| oid);
                for oid in sides.chain([*relation]) {
                    let mut moved = Relation::clone(&*next.unindex(oid)?);
                    moved.schema = schema.clone();
                    next.index(Arc::new(moved));
                }
            }
            CatalogChange::SetOwner { relation, owner } => {
                next.ensure_role(owner)?;
                let found = next
                    .relations
                    .get_mut(relation)
                    .ok_or_else(|| misfit(format!("relation {relation} does not exist")))?;
                Arc::make_mut(found).owner = owner.clone();
            }
            CatalogChange::SetReading { relation, rate_limit, paused } => {
                let found = next
                    .relations
                    .get_mut(relation)
                    .ok_or_else(|| misfit(format!("relation {relation} does not exist")))?;
                let Definition::Source(source) = &mut Arc::make_mut(found).definition else {
                    return Err(misfit(format!("relation {relation} is not a source")));
                };
                (source.rate_limit, source.paused) = (*rate_limit, paused.clone());
            }
            CatalogChange::SetParallelism { relation, parallelism } => {
                let found = next
                    .relations
                    .get_mut(relation)
                    .ok_or_else(|| misfit(format!("relation {relation} does not exist")))?;
                match &mut Arc::make_mut(found).definition {
                    Definition::MaterializedView(query) => query.parallelism = *parallelism,
                    Definition::Sink(sink) => sink.parallelism = *parallelism,
                    _ => return Err(misfit(format!("relation {relation} has no parallelism"))),
                }
            }
            CatalogChange::SetSystem { name, value: Some(value) } => {
                next.system.insert(name.clone(), value.clone());
            }
            CatalogChange::SetSystem { name, value: None } => {
                next.system.remove(name);
            }
            CatalogChange::Comment { about, text } => {
                next.comments.retain(|(a, _)| a != about);
                if let Some(text) = text {
                    next.comments.push((*about, text.clone()));
                    next.comments.sort();
                }
            }
        }
        Ok(())
    }

    /// What `ALTER SYSTEM` has set a setting to.
    pub fn system(&self, name: &str) -> Option<&str> {
        self.state.system.get(name).map(String::as_str)
    }

    /// Every role, by name.
    pub fn roles(&self) -> impl Iterator<Item = &Role> {
        self.state.roles.values()
    }

    pub fn role(&self, name: &str) -> Option<&Role> {
        self.state.roles.get(name)
    }

    /// Every database, by name.
    pub fn databases(&self) -> impl Iterator<Item = &Database> {
        self.state.databases.values()
    }

    pub fn database(&self, name: &str) -> Option<&Database> {
        self.state.databases.get(name)
    }

    /// The schemas that users may create objects in, by name; the virtual ones are not among them.
    pub fn schemas(&self, database: &str) -> impl Iterator<Item = &Schema> {
        self.state.schemas.get(database).into_iter().flat_map(|s| s.values())
    }

    pub fn schema(&self, database: &str, name: &str) -> Option<&Schema> {
        self.state.schemas.get(database)?.get(name)
    }

    /// Every relation of every database, by OID, so inputs mostly before their readers.
    pub fn relations(&self) -> impl Iterator<Item = &Arc<Relation>> {
        self.state.relations.values()
    }

    /// The relations of one schema, by name.
    pub fn relations_in<'a>(&'a self, database: &str, schema: &str) -> impl Iterator<Item = &'a Arc<Relation>> {
        let names = self.state.by_name.get(database).and_then(|s| s.get(schema));
        names.into_iter().flat_map(|n| n.values()).filter_map(|oid| self.state.relations.get(oid))
    }

    /// The relations of one kind in one database, by schema and name.
    pub fn relations_of_kind<'a>(
        &'a self,
        database: &str,
        kind: RelationKind,
    ) -> impl Iterator<Item = &'a Arc<Relation>> {
        let schemas = self.state.by_name.get(database);
        schemas
            .into_iter()
            .flat_map(|s| s.values())
            .flat_map(|n| n.values())
            .filter_map(|oid| self.state.relations.get(oid))
            .filter(move |r| r.kind() == kind)
    }

    pub fn relation(&self, oid: RelationId) -> Option<&Arc<Relation>> {
        self.state.relations.get(&oid)
    }

    /// The relation with exactly this place and name.
    pub fn relation_named(&self, database: &str, schema: &str, name: &str) -> Option<&Arc<Relation>> {
        self.state.find(database, schema, name)
    }

    pub fn relation_count(&self) -> usize {
        self.state.relations.len()
    }

    /// What reads this relation directly (or writes into it), by OID.
    pub fn readers(&self, oid: RelationId) -> impl Iterator<Item = RelationId> + '_ {
        self.state.readers.get(&oid).into_iter().flatten().copied()
    }

    /// The side tables of a relation.
    pub fn sides(&self, oid: RelationId) -> Vec<(RelationId, SideKind)> {
        self.state.sides(oid)
    }

    /// [`dependants`](Self::dependants) without the side tables of `oid`, which come and go with it.
    pub fn foreign_dependants(&self, oid: RelationId) -> Vec<RelationId> {
        let mut others = self.dependants(oid);
        others.retain(|other| self.relation(*other).and_then(|r| r.side()).is_none_or(|side| side.of != oid));
        others
    }

    /// Everything that directly or indirectly reads `oid`, without `oid` itself, in drop order: each before what it reads.
    pub fn dependants(&self, oid: RelationId) -> Vec<RelationId> {
        let mut order = self.drop_order(&[oid]);
        order.retain(|o| *o != oid);
        order
    }

    /// `roots` and everything that depends on them, each once, each before what it reads.
    pub fn drop_order(&self, roots: &[RelationId]) -> Vec<RelationId> {
        // Depth-first post-order with an explicit stack: chains of views may be long.
        let mut done = BTreeSet::new();
        let mut order = Vec::new();
        for root in roots {
            let mut stack = vec![(*root, false)];
            while let Some((oid, readers_done)) = stack.pop() {
                if readers_done {
                    if done.insert(oid) {
                        order.push(oid);
                    }
                } else if !done.contains(&oid) {
                    stack.push((oid, true));
                    stack.extend(self.readers(oid).filter(|r| !done.contains(r)).map(|r| (r, false)));
                }
            }
        }
        order
    }

    /// The comment on an object, if it has one.
    pub fn comment(&self, about: Commented) -> Option<&str> {
        self.state.comments.iter().find(|(a, _)| *a == about).map(|(_, text)| text.as_str())
    }

    /// Every comment, in the order of [`Commented`].
    pub fn comments(&self) -> impl Iterator<Item = (Commented, &str)> {
        self.state.comments.iter().map(|(about, text)| (*about, text.as_str()))
    }
}
