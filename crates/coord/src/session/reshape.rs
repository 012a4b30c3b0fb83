//! ALTER TABLE: columns added and dropped, defaults and NOT NULL changed. The table is made anew with its rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, new_null_array};
use catalog::{Catalog, ColumnSource, Definition, Relation, RelationKind, Scope};
use flow::{Error, RelationId, Result, SqlState};
use sql::Planner;
use sql::planner::Settings;
use sql::statement::{Alter, AlterAction, Parsed};

use super::Session;
use super::define::parts;
use super::private::query_text;
use super::replan::STANDING_ZONE;
use crate::table::{encode_value, reshape};

/// A table's shape while the actions of one statement change it.
struct Shape {
    relation: Relation,
    columns: Vec<ColumnSource>,
    /// Columns of the old table that are dropped, and whether with what uses them.
    dropped: Vec<(String, bool)>,
    changed: bool,
}

impl Session {
    pub(super) async fn alter_columns(
        &mut self,
        alter: &Alter,
        catalog: &Catalog,
        scope: &Scope,
        parsed: &Parsed,
    ) -> Result<()> {
        let name = parts(&alter.name);
        let relation = match catalog.lookup(&scope.database, &scope.search_path, &name)? {
            Some(relation) => Arc::clone(relation),
            None if alter.if_exists => {
                self.notice(format!("relation \"{}\" does not exist, skipping", name.join(".")));
                return Ok(());
            }
            None => Arc::clone(catalog.resolve(&scope.database, &scope.search_path, &name)?),
        };
        if relation.kind() != RelationKind::Table {
            return Err(Error::new(SqlState::WrongObjectType, format!("\"{}\" is not a table", relation.name)));
        }
        if relation.watermark().is_some() || relation.side().is_some() {
            return Err(Error::unsupported(format!(
                "the columns of table \"{}\" cannot be changed: it has, or belongs to, a watermark",
                relation.name
            ))
            .with_hint("Create another table and copy the rows."));
        }
        if let Some(sink) = self.sink_into(relation.oid) {
            return Err(Error::new(
                SqlState::ObjectNotInPrerequisiteState,
                format!("table \"{}\" is written by sink \"{}\"", relation.name, sink.name),
            )
            .with_hint("Drop the sink first."));
        }
        let mut shape = Shape {
            columns: (0..relation.columns.len()).map(ColumnSource::Kept).collect(),
            relation: Relation::clone(&relation),
            dropped: Vec::new(),
            changed: false,
        };
        for action in &alter.actions {
            self.apply_action(action, &mut shape, &relation, parsed)?;
        }
        if !shape.changed {
            return Ok(());
        }
        self.carry_out_shape(shape, &relation, scope).await
    }

    fn apply_action(&mut self, action: &AlterAction, shape: &mut Shape, old: &Relation, parsed: &Parsed) -> Result<()> {
        match action {
            AlterAction::AddColumn { column, if_not_exists } => {
                if shape.relation.column_index(&column.name).is_some() {
                    let message = format!("column \"{}\" of relation \"{}\" already exists", column.name, old.name);
                    if *if_not_exists {
                        self.notice(format!("{message}, skipping"));
                        return Ok(());
                    }
                    return Err(Error::new(SqlState::DuplicateColumn, message).with_position(column.position));
                }
                let added = self.columns(std::slice::from_ref(column), &parsed.source)?;
                for added in added {
                    // Evaluated once, as PostgreSQL does for a default that is not volatile.
                    let value: ArrayRef = match &column.default {
                        Some(default) => self.constant(&default.expr, &parsed.source, &added.data_type)?,
                        None => new_null_array(&added.data_type, 1),
                    };
                    shape.columns.push(ColumnSource::Value(encode_value(&value)?));
                    shape.relation.columns.push(added);
                    shape.changed = true;
                }
                Ok(())
            }
            AlterAction::DropColumn { name, if_exists, cascade } => {
                let Some(at) = shape.relation.column_index(name) else {
                    let message = format!("column \"{name}\" of relation \"{}\" does not exist", old.name);
                    if *if_exists {
                        self.notice(format!("{message}, skipping"));
                        return Ok(());
                    }
                    return Err(Error::new(SqlState::UndefinedColumn, message));
                };
                if shape.relation.primary_key().contains(&at) {
                    return Err(Error::unsupported("a column of the primary key cannot be dropped")
                        .with_hint("Create a new table, copy the rows, drop the old one and rename the new one."));
                }
                if let ColumnSource::Kept(_) = shape.columns[at] {
                    shape.dropped.push((name.clone(), *cascade));
                }
                shape.columns.remove(at);
                shape.relation.columns.remove(at);
                if let Definition::Table(table) = &mut shape.relation.definition {
                    table.primary_key.iter_mut().filter(|k| **k > at).for_each(|k| *k -= 1);
                }
                shape.changed = true;
                Ok(())
            }
            AlterAction::SetDefault { name, default } => {
                let column = column_mut(shape, old, name)?;
                let data_type = column.data_type.clone();
                column.default = default.as_ref().map(|d| d.text.clone());
                if let Some(default) = default {
                    self.constant(&default.expr, &parsed.source, &data_type)?;
                }
                shape.changed = true;
                Ok(())
            }
            AlterAction::SetNotNull { name, not_null } => {
                if !not_null
                    && shape.relation.column_index(name).is_some_and(|at| shape.relation.primary_key().contains(&at))
                {
                    return Err(Error::new(
                        SqlState::InvalidTableDefinition,
                        format!("column \"{name}\" is in a primary key"),
                    ));
                }
                let column = column_mut(shape, old, name)?;
                if column.nullable == *not_null {
                    column.nullable = !not_null;
                    shape.changed = true;
                }
                Ok(())
            }
            _ => Err(Error::unsupported("this form of ALTER TABLE cannot be combined with others")),
        }
    }

    /// What reads the table directly and cannot do without its dropped columns.
    fn users(&self, shape: &Shape, old: &Relation, catalog: &Catalog) -> Result<Vec<Arc<Relation>>> {
        let without = catalog.plan_reshape(shape.relation.clone(), shape.columns.clone(), Vec::new())?;
        let mut candidate = catalog.clone();
        if let Some(change) = &without.change {
            candidate.apply(change)?;
        }
        let names = self.names(&candidate, None);
        let survives = |reader: &Relation| {
            let text = self.text_after(reader, shape, old)?;
            let tree = sql::parse_query(&text).ok()?;
            let planner = Planner::new(&names, Settings::standing(STANDING_ZONE)).ok()?;
            let plan = planner.query(&tree, &text, &[]).ok()?;
            let same = plan.schema.fields().len() == reader.columns.len()
                && plan.schema.fields().iter().zip(&reader.columns).all(|(f, c)| *f.data_type() == c.data_type);
            same.then_some(())
        };
        let readers = catalog.readers(old.oid).filter_map(|oid| catalog.relation(oid)).cloned();
        Ok(readers.filter(|r| survives(r).is_none()).collect())
    }

    /// The query text of a reader of the table, for the table's new shape.
    fn text_after(&self, reader: &Relation, shape: &Shape, old: &Relation) -> Option<String> {
        let kept = shape.columns.iter().filter(|c| matches!(c, ColumnSource::Kept(_))).count();
        query_text(reader).map(|text| sql::definition::resized(text, old.oid, old.columns.len(), kept))
    }

    async fn carry_out_shape(&mut self, shape: Shape, old: &Arc<Relation>, scope: &Scope) -> Result<()> {
        if !shape.dropped.is_empty() {
            self.release_columns(&shape, old, scope).await?;
        }
        let catalog = self.catalog();
        let table = self.table(old.oid).ok_or_else(|| Error::internal("table without storage"))?;
        let known = self.engine.table(old.oid).is_some_and(|t| Arc::ptr_eq(&t, &table));
        if known {
            // Nobody else writes the table until the end of the transaction, and what was written is complete.
            self.own_table(&table).await?;
            let epoch = self.engine.flush().await?;
            self.written = self.written.max(epoch);
        }
        let has_rows = self.uncommitted().and_then(|w| w.get(old.oid)).is_some_and(|w| !w.is_unchanged());
        if has_rows && self.has_savepoints() {
            return Err(Error::unsupported("ALTER TABLE after changing the table's rows and setting a savepoint")
                .with_hint("Alter the table before its rows, or in a transaction without savepoints."));
        }
        // Readers go on with the columns that they know.
        let readers = catalog.readers(old.oid).filter_map(|oid| catalog.relation(oid));
        let queries: Vec<(RelationId, String)> = readers
            .filter_map(|reader| {
                let text = self.text_after(reader, &shape, old)?;
                (query_text(reader) != Some(&text)).then_some((reader.oid, text))
            })
            .collect();
        let Shape { relation, columns, .. } = shape;
        let planned = catalog.plan_reshape(relation, columns.clone(), queries)?;
        let name_table = |e: Error| match e.state() {
            SqlState::NotNullViolation => {
                let column = e.message().trim_end_matches(" contains null values");
                Error::new(e.state(), format!("{column} of relation \"{}\" contains null values", old.name))
            }
            _ => e,
        };
        self.carry_out(planned)?;
        let relation = self.applied(old.oid)?;
        let reshaped = Arc::new(table.reshaped(&relation, &columns).map_err(name_table)?);
        self.private_mut()?.add_table(Arc::clone(&reshaped));
        // The transaction's own rows take the new shape too.
        let schema = Arc::clone(reshaped.store.schema());
        self.writes()?.reshape_table(&reshaped, &relation, |rows| reshape(&schema, &columns, rows)).map_err(name_table)
    }

    /// Makes sure that nothing misses the dropped columns; with CASCADE by dropping what would.
    async fn release_columns(&mut self, shape: &Shape, old: &Relation, scope: &Scope) -> Result<()> {
        let catalog = self.catalog();
        let users = self.users(shape, old, &catalog)?;
        if let (Some((column, false)), false) = (shape.dropped.iter().find(|(_, cascade)| !cascade), users.is_empty()) {
            let lines: Vec<String> = users
                .iter()
                .map(|r| format!("{} {} depends on column {column} of table {}", r.kind().noun(), r.name, old.name))
                .collect();
            return Err(Error::new(
                SqlState::DependentObjectsExist,
                format!("cannot drop column {column} of table {} because other objects depend on it", old.name),
            )
            .with_detail(lines.join("\n"))
            .with_hint("Use DROP ... CASCADE to drop the dependent objects too."));
        }
        for user in users {
            if let Some(user) = self.catalog().relation(user.oid).cloned() {
                let name = [user.database.as_str(), user.schema.as_str(), user.name.as_str()];
                let planned = self.catalog().plan_drop(scope, user.kind(), &[&name[..]], false, true)?;
                self.notice(format!("drop cascades to {} {}", user.kind().noun(), user.name));
                self.carry_out_drop(planned).await?;
            }
        }
        let catalog = self.catalog();
        let standing = catalog
            .dependants(old.oid)
            .into_iter()
            .filter_map(|oid| catalog.relation(oid))
            .find(|r| matches!(r.kind(), RelationKind::MaterializedView | RelationKind::Sink));
        match standing {
            None => Ok(()),
            // Its job knows the table's columns by their places.
            Some(reader) => Err(Error::unsupported(format!(
                "a column of a table that {} \"{}\" reads cannot be dropped",
                reader.kind().noun(),
                reader.name
            ))
            .with_hint("Drop it first, drop the column, and create it again.")),
        }
    }
}

fn column_mut<'a>(shape: &'a mut Shape, old: &Relation, name: &str) -> Result<&'a mut catalog::Column> {
    shape.relation.columns.iter_mut().find(|c| c.name == name).ok_or_else(|| {
        Error::new(SqlState::UndefinedColumn, format!("column \"{name}\" of relation \"{}\" does not exist", old.name))
    })
}
