//! Checking `ALTER …` and `COMMENT ON …` requests and turning them into changes.

use flow::{Error, RelationId, Result, SqlState};

use crate::change::{CatalogChange, ColumnSource, Commented};
use crate::create::{check_columns, check_schema_name, duplicate_relation};
use crate::names;
use crate::relation::{Definition, Relation, RelationKind, Source};
use crate::resolve::{Scope, undefined_database};
use crate::settings;
use crate::snapshot::{Catalog, Notice, Planned};

/// What a `COMMENT ON` names; names are folded, relations of one to three parts.
#[derive(Clone, Copy, Debug)]
pub enum ObjectRef<'a> {
    Relation(RelationKind, &'a [&'a str]),
    Column(&'a [&'a str], &'a str),
    Schema(&'a str),
    Database(&'a str),
}

impl Catalog {
    fn alter_target(
        &self,
        scope: &Scope,
        kind: RelationKind,
        parts: &[&str],
        if_exists: bool,
    ) -> Result<std::result::Result<&std::sync::Arc<Relation>, Planned>> {
        match self.target_of_kind(scope, kind, parts, "change")? {
            Some(relation) => Ok(Ok(relation)),
            None if if_exists => Ok(Err(Planned::nothing(Notice::new(
                "00000",
                format!("relation \"{}\" does not exist, skipping", parts.join(".")),
            )))),
            None => Err(self.undefined_relation(&scope.database, &scope.search_path, parts)),
        }
    }

    /// Plans `ALTER kind name RENAME TO new`. `queries` is the new text of every dependant's query that names the relation
    /// (see [`Relation::pinned_reference`]); a dependant left out keeps its text, whose pinned names still find the relation.
    pub fn plan_rename(
        &self,
        scope: &Scope,
        kind: RelationKind,
        parts: &[&str],
        new_name: &str,
        if_exists: bool,
        queries: Vec<(RelationId, String)>,
    ) -> Result<Planned> {
        let relation = match self.alter_target(scope, kind, parts, if_exists)? {
            Ok(relation) => relation,
            Err(skipped) => return Ok(skipped),
        };
        self.refuse_side(relation.oid, "rename", |_| false)?;
        let name = names::checked_identifier(new_name)?;
        self.check_free(&relation.database, &relation.schema, &name)?;
        for (_, side) in self.sides(relation.oid) {
            self.check_free(&relation.database, &relation.schema, &side.table_name(&name))?;
        }
        Ok(Planned::change(CatalogChange::Rename { relation: relation.oid, name, queries }))
    }

    fn check_free(&self, database: &str, schema: &str, name: &str) -> Result<()> {
        if self.relation_named(database, schema, name).is_some() || self.index_named(database, schema, name) {
            return Err(duplicate_relation(name));
        }
        Ok(())
    }

    /// Plans `ALTER kind name RENAME COLUMN old TO new`; `queries` as in [`plan_rename`](Self::plan_rename), and here every
    /// dependant that names the column must be in it.
    pub fn plan_rename_column(
        &self,
        scope: &Scope,
        kind: RelationKind,
        parts: &[&str],
        old: &str,
        new: &str,
        queries: Vec<(RelationId, String)>,
    ) -> Result<Planned> {
        let relation = match self.alter_target(scope, kind, parts, false)? {
            Ok(relation) => relation,
            Err(skipped) => return Ok(skipped),
        };
        let column = self.column_position(relation, old)?;
        let name = names::checked_identifier(new)?;
        if relation.column_index(&name).is_some() {
            return Err(Error::new(
                SqlState::DuplicateColumn,
                format!("column \"{name}\" of relation \"{}\" already exists", relation.name),
            ));
        }
        if names::is_system_column(&name) && matches!(kind, RelationKind::Table | RelationKind::Source) {
            return Err(Error::new(
                SqlState::DuplicateColumn,
                format!("column name \"{name}\" conflicts with a system column name"),
            ));
        }
        Ok(Planned::change(CatalogChange::RenameColumn { relation: relation.oid, column, name, queries }))
    }

    /// Plans a new shape of a table: `relation` is the table as it shall be; `columns` and `queries` as in
    /// [`CatalogChange::Reshape`].
    pub fn plan_reshape(
        &self,
        mut relation: Relation,
        columns: Vec<ColumnSource>,
        queries: Vec<(RelationId, String)>,
    ) -> Result<Planned> {
        let kind = relation.kind();
        check_columns(&mut relation.columns, kind)?;
        Ok(Planned::change(CatalogChange::Reshape { relation: Box::new(relation), columns, queries }))
    }

    fn column_position(&self, relation: &Relation, name: &str) -> Result<usize> {
        relation.column_index(names::truncate_identifier(name)).ok_or_else(|| {
            let error = Error::new(
                SqlState::UndefinedColumn,
                format!("column \"{name}\" of relation \"{}\" does not exist", relation.name),
            );
            match names::nearest(name, relation.columns.iter().map(|c| c.name.as_str())) {
                Some(near) => error.with_hint(format!("Perhaps you meant \"{near}\".")),
                None => error,
            }
        })
    }

    /// Plans `ALTER kind name SET SCHEMA schema`.
    pub fn plan_set_schema(
        &self,
        scope: &Scope,
        kind: RelationKind,
        parts: &[&str],
        schema: &str,
        if_exists: bool,
    ) -> Result<Planned> {
        let relation = match self.alter_target(scope, kind, parts, if_exists)? {
            Ok(relation) => relation,
            Err(skipped) => return Ok(skipped),
        };
        self.refuse_side(relation.oid, "move", |_| false)?;
        let (schema, name) = self.creation_place(scope, &[schema, &relation.name])?;
        if schema == relation.schema {
            return Ok(Planned::default());
        }
        if self.relation_named(&relation.database, &schema, &name).is_some() {
            return Err(Error::new(
                SqlState::DuplicateTable,
                format!("relation \"{name}\" already exists in schema \"{schema}\""),
            ));
        }
        if let Some(key) = relation.table().and_then(|t| t.key.as_ref()) {
            self.check_free(&relation.database, &schema, &key.name)?;
        }
        Ok(Planned::change(CatalogChange::SetSchema { relation: relation.oid, schema }))
    }

    /// Plans `ALTER kind name OWNER TO role`; `42704` when there is no such role.
    pub fn plan_set_owner(&self, scope: &Scope, kind: RelationKind, parts: &[&str], owner: &str) -> Result<Planned> {
        let relation = match self.alter_target(scope, kind, parts, false)? {
            Ok(relation) => relation,
            Err(skipped) => return Ok(skipped),
        };
        if self.role(owner).is_none() {
            return Err(Error::new(SqlState::UndefinedObject, format!("role \"{owner}\" does not exist")));
        }
        Ok(Planned::change(CatalogChange::SetOwner { relation: relation.oid, owner: owner.to_string() }))
    }

    /// Plans a change of how a source is read: `change` gets the source as it is. Plans nothing where it changes nothing.
    pub fn plan_set_reading(
        &self,
        scope: &Scope,
        parts: &[&str],
        if_exists: bool,
        change: impl FnOnce(RelationId, &mut Source) -> Result<()>,
    ) -> Result<Planned> {
        let relation = match self.alter_target(scope, RelationKind::Source, parts, if_exists)? {
            Ok(relation) => relation,
            Err(skipped) => return Ok(skipped),
        };
        let Definition::Source(old) = &relation.definition else {
            return Err(Error::internal("a source without the definition of one"));
        };
        let mut new = old.clone();
        change(relation.oid, &mut new)?;
        if new == *old {
            return Ok(Planned::default());
        }
        let Source { rate_limit, paused, .. } = new;
        Ok(Planned::change(CatalogChange::SetReading { relation: relation.oid, rate_limit, paused }))
    }

    /// Plans `ALTER kind name SET PARALLELISM n`, of a materialized view or a sink.
    pub fn plan_set_parallelism(
        &self,
        scope: &Scope,
        kind: RelationKind,
        parts: &[&str],
        if_exists: bool,
        parallelism: Option<u32>,
    ) -> Result<Planned> {
        match self.alter_target(scope, kind, parts, if_exists)? {
            Err(skipped) => Ok(skipped),
            Ok(relation) if relation.parallelism() == parallelism => Ok(Planned::default()),
            Ok(relation) => Ok(Planned::change(CatalogChange::SetParallelism { relation: relation.oid, parallelism })),
        }
    }

    /// Plans `ALTER SYSTEM SET name = value`, or RESET; the value is checked already. Errors: `42704` there is no such setting,
    /// `55P02` it is not one of the whole server.
    pub fn plan_set_system(&self, name: &str, value: Option<&str>) -> Result<Planned> {
        let setting = settings::find(name).ok_or_else(|| settings::unknown(name))?;
        if setting.name != settings::CHECKPOINT_INTERVAL {
            let message = format!("parameter \"{}\" cannot be changed by ALTER SYSTEM", setting.name);
            return Err(Error::new(SqlState::CantChangeRuntimeParam, message)
                .with_hint("SET changes it for a session, unless it is fixed; conf/millstream.yaml holds what the server starts with."));
        }
        if self.system(setting.name) == value {
            return Ok(Planned::default());
        }
        let (name, value) = (setting.name.to_string(), value.map(str::to_string));
        Ok(Planned::change(CatalogChange::SetSystem { name, value }))
    }

    /// Plans `ALTER SCHEMA name RENAME TO new`.
    pub fn plan_rename_schema(&self, database: &str, name: &str, new: &str) -> Result<Planned> {
        let schema = self.schema(database, name).ok_or_else(|| self.undefined_schema(database, name))?;
        let new = names::checked_identifier(new)?;
        if self.schema(database, &new).is_some() {
            return Err(Error::new(SqlState::DuplicateSchema, format!("schema \"{new}\" already exists")));
        }
        check_schema_name(&new)?;
        Ok(Planned::change(CatalogChange::RenameSchema { schema: schema.oid, name: new }))
    }

    /// Plans `ALTER DATABASE name RENAME TO new`. `current` is the session's database, which cannot be renamed.
    pub fn plan_rename_database(&self, current: &str, name: &str, new: &str) -> Result<Planned> {
        let database = self.database(name).ok_or_else(|| undefined_database(self, name))?;
        if name == current {
            return Err(Error::unsupported("current database cannot be renamed"));
        }
        let new = names::checked_identifier(new)?;
        if self.database(&new).is_some() {
            return Err(Error::new(SqlState::DuplicateDatabase, format!("database \"{new}\" already exists")));
        }
        Ok(Planned::change(CatalogChange::RenameDatabase { database: database.oid, name: new }))
    }

    /// Plans `COMMENT ON … IS …`; an empty or absent text takes the comment away.
    pub fn plan_comment(&self, scope: &Scope, object: ObjectRef<'_>, text: Option<&str>) -> Result<Planned> {
        let about = match object {
            ObjectRef::Relation(kind, parts) => match self.alter_target(scope, kind, parts, false)? {
                Ok(relation) => Commented::Relation(relation.oid),
                Err(skipped) => return Ok(skipped),
            },
            ObjectRef::Column(parts, column) => {
                let relation = self.resolve(&scope.database, &scope.search_path, parts)?;
                // At most MAX_COLUMNS columns, so the number fits.
                Commented::Column(relation.oid, self.column_position(relation, column)? as u32 + 1)
            }
            ObjectRef::Schema(name) => {
                let schema = self.schema(&scope.database, name);
                Commented::Schema(schema.ok_or_else(|| self.undefined_schema(&scope.database, name))?.oid)
            }
            ObjectRef::Database(name) => {
                Commented::Database(self.database(name).ok_or_else(|| undefined_database(self, name))?.oid)
            }
        };
        let text = text.filter(|t| !t.is_empty()).map(str::to_string);
        Ok(Planned::change(CatalogChange::Comment { about, text }))
    }
}
