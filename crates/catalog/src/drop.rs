//! Checking `DROP …` requests and turning them into changes.

use flow::{Error, RelationId, Result, SqlState};

use crate::change::CatalogChange;
use crate::names;
use crate::relation::{Relation, RelationKind};
use crate::resolve::{Scope, undefined_database};
use crate::snapshot::{Catalog, DEFAULT_SCHEMA, Notice, Planned};

/// Most dependants that an error or notice names one by one.
const MAX_REPORTED_OBJECTS: usize = 100;

impl Catalog {
    /// Plans `DROP kind name, … [CASCADE]`. `targets` are folded names of one to three parts.
    ///
    /// Errors: `42P01` (with the kind in its words), `42809` wrong kind with the statement that fits, `2BP01` with every
    /// dependant in the detail. With `CASCADE` the change takes them along and a notice says so.
    pub fn plan_drop(
        &self,
        scope: &Scope,
        kind: RelationKind,
        targets: &[&[&str]],
        if_exists: bool,
        cascade: bool,
    ) -> Result<Planned> {
        let mut notices = Vec::new();
        let mut roots = Vec::new();
        for parts in targets {
            match self.target_of_kind(scope, kind, parts, "remove")? {
                Some(relation) => roots.push(relation.oid),
                None if if_exists => notices.push(Notice::new(
                    "00000",
                    format!("{} \"{}\" does not exist, skipping", kind.noun(), parts.join(".")),
                )),
                None => {
                    return Err(self.undefined(
                        SqlState::UndefinedTable,
                        kind.noun(),
                        &scope.database,
                        &scope.search_path,
                        parts,
                    ));
                }
            }
        }
        if roots.is_empty() {
            return Ok(Planned { change: None, notices });
        }
        for root in &roots {
            self.refuse_side(*root, "drop", |of| roots.contains(&of))?;
        }
        let named = roots.len();
        let sides: Vec<RelationId> = roots.iter().flat_map(|root| self.sides(*root)).map(|(oid, _)| oid).collect();
        roots.extend(sides);
        let order = self.drop_order(&roots);
        let extra: Vec<RelationId> = order.iter().rev().copied().filter(|oid| !roots.contains(oid)).collect();
        if !extra.is_empty() && !cascade {
            let subject = match roots[..named] {
                [one] => self.relation(one).map_or_else(String::new, |r| describe(scope, r)),
                _ => "desired object(s)".to_string(),
            };
            return Err(self.dependents_exist(scope, &subject, &extra));
        }
        notices.extend(self.cascade_notice(scope, &extra));
        Ok(Planned {
            change: Some(CatalogChange::Drop { relations: order, schemas: Vec::new(), databases: Vec::new() }),
            notices,
        })
    }

    /// Plans `DROP SCHEMA name [CASCADE]`. Errors: `3F000`, `42501` for a system schema, `2BP01` when not empty.
    pub fn plan_drop_schema(&self, scope: &Scope, name: &str, if_exists: bool, cascade: bool) -> Result<Planned> {
        if names::is_system_schema(name) {
            return Err(Error::new(
                SqlState::DependentObjectsExist,
                format!("cannot drop schema {name} because it is required by the database system"),
            ));
        }
        let Some(schema) = self.schema(&scope.database, name) else {
            return match if_exists {
                true => {
                    Ok(Planned::nothing(Notice::new("00000", format!("schema \"{name}\" does not exist, skipping"))))
                }
                false => Err(self.undefined_schema(&scope.database, name)),
            };
        };
        let content: Vec<RelationId> = self.relations_in(&scope.database, name).map(|r| r.oid).collect();
        let order = self.drop_order(&content);
        let extra: Vec<RelationId> = order.iter().rev().copied().collect();
        if !extra.is_empty() && !cascade {
            return Err(self.dependents_exist(scope, &format!("schema {}", flow::identifier::quote(name)), &extra));
        }
        let notices = self.cascade_notice(scope, &extra).into_iter().collect();
        Ok(Planned {
            change: Some(CatalogChange::Drop { relations: order, schemas: vec![schema.oid], databases: Vec::new() }),
            notices,
        })
    }

    /// Plans `DROP DATABASE name`, with everything in it, as PostgreSQL does. `current` is the session's database.
    ///
    /// Errors: `3D000`, `55006` for the current one.
    pub fn plan_drop_database(&self, current: &str, name: &str, if_exists: bool) -> Result<Planned> {
        let Some(database) = self.database(name) else {
            return match if_exists {
                true => {
                    Ok(Planned::nothing(Notice::new("00000", format!("database \"{name}\" does not exist, skipping"))))
                }
                false => Err(undefined_database(self, name)),
            };
        };
        if name == current {
            return Err(Error::new(SqlState::ObjectInUse, "cannot drop the currently open database"));
        }
        let content: Vec<RelationId> = self.relations().filter(|r| r.database == name).map(|r| r.oid).collect();
        Ok(Planned::change(CatalogChange::Drop {
            relations: self.drop_order(&content),
            schemas: self.schemas(name).map(|s| s.oid).collect(),
            databases: vec![database.oid],
        }))
    }

    /// `2BP01` for a side table, unless `with` says that its relation is meant, too.
    pub(crate) fn refuse_side(&self, oid: RelationId, verb: &str, with: impl Fn(RelationId) -> bool) -> Result<()> {
        let Some(table) = self.relation(oid) else { return Ok(()) };
        let Some(of) = table.side().filter(|side| !with(side.of)).and_then(|side| self.relation(side.of)) else {
            return Ok(());
        };
        let (noun, name) = (of.kind().noun(), flow::identifier::quote(&of.name));
        let table = flow::identifier::quote(&table.name);
        Err(Error::new(
            SqlState::DependentObjectsExist,
            format!("cannot {verb} table {table} because {noun} {name} requires it"),
        )
        .with_hint(format!("The table belongs to {noun} {name}: {verb} that instead.")))
    }

    /// The relation that `parts` names, if there is one; `42809` when it is of another kind. `verb` completes the hint.
    pub(crate) fn target_of_kind(
        &self,
        scope: &Scope,
        kind: RelationKind,
        parts: &[&str],
        verb: &str,
    ) -> Result<Option<&std::sync::Arc<Relation>>> {
        let Some(relation) = self.lookup(&scope.database, &scope.search_path, parts)? else {
            return Ok(None);
        };
        let found = relation.kind();
        if found == kind {
            return Ok(Some(relation));
        }
        let command = if verb == "remove" { "DROP" } else { "ALTER" };
        Err(Error::new(SqlState::WrongObjectType, format!("\"{}\" is not a {}", relation.name, kind.noun()))
            .with_detail(format!("\"{}\" is a {}.", relation.name, found.noun()))
            .with_hint(format!("Use {command} {} to {verb} a {}.", found.keyword(), found.noun())))
    }

    fn dependents_exist(&self, scope: &Scope, subject: &str, extra: &[RelationId]) -> Error {
        let mut lines = Vec::new();
        for relation in extra.iter().filter_map(|oid| self.relation(*oid)) {
            if lines.len() == MAX_REPORTED_OBJECTS {
                lines.push(format!("and {} other objects", extra.len() - MAX_REPORTED_OBJECTS));
                break;
            }
            // One line for each object, naming what ties it to the subject.
            let tie =
                relation.depends_on.iter().filter_map(|oid| self.relation(*oid)).map(|input| describe(scope, input));
            let tie: Vec<String> = tie
                .filter(|t| {
                    t == subject || extra.iter().filter_map(|o| self.relation(*o)).any(|r| describe(scope, r) == *t)
                })
                .collect();
            let on = if tie.is_empty() { subject.to_string() } else { tie.join(" and ") };
            lines.push(format!("{} depends on {on}", describe(scope, relation)));
        }
        Error::new(SqlState::DependentObjectsExist, format!("cannot drop {subject} because other objects depend on it"))
            .with_detail(lines.join("\n"))
            .with_hint("Use DROP ... CASCADE to drop the dependent objects too.")
    }

    fn cascade_notice(&self, scope: &Scope, extra: &[RelationId]) -> Option<Notice> {
        let named: Vec<String> =
            extra.iter().filter_map(|oid| self.relation(*oid)).map(|r| describe(scope, r)).collect();
        match &named[..] {
            [] => None,
            [one] => Some(Notice::new("00000", format!("drop cascades to {one}"))),
            many => {
                let mut detail: Vec<String> =
                    many.iter().take(MAX_REPORTED_OBJECTS).map(|one| format!("drop cascades to {one}")).collect();
                if many.len() > MAX_REPORTED_OBJECTS {
                    detail.push(format!("and {} other objects", many.len() - MAX_REPORTED_OBJECTS));
                }
                let message = format!("drop cascades to {} other objects", many.len());
                Some(Notice { code: "00000", message, detail: Some(detail.join("\n")) })
            }
        }
    }
}

/// `view sales.totals`; without the schema where the search path finds it.
fn describe(scope: &Scope, relation: &Relation) -> String {
    let visible = scope.database == relation.database && scope.search_path.contains(&relation.schema);
    let visible = visible || (scope.search_path.is_empty() && relation.schema == DEFAULT_SCHEMA);
    if visible {
        format!("{} {}", relation.kind().noun(), flow::identifier::quote(&relation.name))
    } else {
        format!("{} {}", relation.kind().noun(), relation.qualified_name())
    }
}
