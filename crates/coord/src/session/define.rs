//! DDL: each statement is planned and checked whole, then logged, then carried out.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, IntervalMonthDayNanoType, IntervalUnit, Schema, SchemaRef};
use catalog::{
    Catalog, CatalogChange, Column, Connector, Definition, Format, IfExists, NewRelation, OnConflict, Planned,
    Relation, RelationKind, Scope, Side, SideKind, Sink, SinkInput, Source, Table, Watermark,
};
use datafusion::logical_expr::{Cast, Expr, LogicalPlanBuilder};
use flow::{Error, RelationId, Result, SqlState};
use futures::TryStreamExt;
use sql::planner::Settings;
use sql::statement::{
    Alter, AlterAction, ColumnDefinition, CreateSink, CreateSource, CreateTable, CreateTableAs, CreateView, Drop, Name,
    ObjectKind, Options, Parsed, Query, Set, SetValue, SinkFrom, Statement, WatermarkDefinition,
};
use sql::{Planner, QueryPlan};

use super::private::{Hold, PendingJob, refuse_in_block};
use super::replan::{STANDING_ZONE, standing};
use super::transaction::Status;
use super::{Outcome, Session, planning};
use crate::connectors::SinkRows;
use crate::engine::StandingQuery;

/// The folded parts of a name.
pub fn parts(name: &Name) -> Vec<&str> {
    [name.database.as_deref(), name.schema.as_deref(), Some(name.name.as_str())].into_iter().flatten().collect()
}

fn relation_kind(kind: ObjectKind) -> Result<RelationKind> {
    match kind {
        ObjectKind::Table => Ok(RelationKind::Table),
        ObjectKind::Source => Ok(RelationKind::Source),
        ObjectKind::Sink => Ok(RelationKind::Sink),
        ObjectKind::View => Ok(RelationKind::View),
        ObjectKind::MaterializedView => Ok(RelationKind::MaterializedView),
        other => Err(Error::internal(format!("{other} is not a relation"))),
    }
}

fn if_exists(skip: bool, replace: bool) -> IfExists {
    match (skip, replace) {
        (true, _) => IfExists::Skip,
        (_, true) => IfExists::Replace,
        _ => IfExists::Error,
    }
}

fn connector(options: &Options, format: &Option<sql::statement::Format>) -> Connector {
    let format = format.as_ref().map(|f| Format {
        format: f.format.clone(),
        encode: f.encode.clone(),
        options: f.options.iter().cloned().collect(),
    });
    Connector { options: options.iter().cloned().collect(), format }
}

/// A planned query of a view or sink.
struct PlannedQuery {
    query: QueryPlan,
    stored: catalog::Query,
    /// Relations named in the text, plain views included.
    depends_on: Vec<RelationId>,
}

/// The columns of a view as the catalog keeps them.
fn catalog_columns(columns: &[sql::Column]) -> Vec<Column> {
    let declared = |c: &sql::Column| c.pg_type.map(|(oid, typmod)| catalog::types::format_type(oid, typmod));
    columns.iter().map(|c| Column::new(&c.name, c.data_type.clone(), &declared(c).unwrap_or_default())).collect()
}

/// The standing query of a view or sink with these columns; one that writes into a table gets the table's types.
pub fn standing_plan(query: &QueryPlan, columns: &[sql::Column], relation: &Relation) -> Result<StandingQuery> {
    let plan = query.named(columns)?;
    let emit_on_close = relation.definition.query().is_some_and(|q| q.emit_on_close);
    let types_differ = plan.schema().fields().iter().zip(&relation.columns).any(|(f, c)| *f.data_type() != c.data_type);
    if !types_differ {
        return standing(plan, emit_on_close);
    }
    let exprs = plan.schema().columns().into_iter().zip(&relation.columns).map(|(column, wanted)| {
        let name = column.name.clone();
        Expr::Cast(Cast::new(Box::new(Expr::Column(column)), wanted.data_type.clone())).alias(name)
    });
    let exprs: Vec<Expr> = exprs.collect();
    let plan = LogicalPlanBuilder::from(plan)
        .project(exprs)
        .and_then(LogicalPlanBuilder::build)
        .and_then(|plan| {
            // The casts are ours to give PostgreSQL's meaning.
            plan::functions::rules::analyzer().execute_and_check(plan, &sql::session::options(STANDING_ZONE), |_, _| {})
        })
        .map_err(plan::error::from_datafusion_error)?;
    standing(plan, emit_on_close)
}

impl Session {
    pub(super) async fn define(&mut self, parsed: &Arc<Parsed>) -> Result<Outcome> {
        if !transactional(&parsed.statement) {
            if self.transaction_status() == Status::InTransaction {
                return Err(refuse_in_block(parsed.statement.tag()));
            }
            // What an implicit transaction did before is there for what is created now.
            self.end_implicit(true).await?;
        }
        self.begin_single();
        let outcome = self.define_privately(parsed).await;
        if let Err(error) = self.end_single(outcome.is_ok()).await {
            return Err(outcome.err().unwrap_or(error));
        }
        outcome
    }

    /// Changes the transaction's own version of the catalog, or nothing.
    async fn define_privately(&mut self, parsed: &Arc<Parsed>) -> Result<Outcome> {
        self.own_catalog().await?;
        let catalog = self.catalog();
        let scope = self.scope();
        let statement = &parsed.statement;
        match statement {
            Statement::CreateTable(create) => self.create_table(create, &catalog, &scope, parsed).await?,
            Statement::CreateTableAs(create) => return self.create_table_as(create, &catalog, &scope, parsed).await,
            Statement::CreateSource(create) => self.create_source(create, &catalog, &scope, parsed).await?,
            Statement::CreateView(create) if create.materialized => {
                self.create_materialized_view(create, &catalog, &scope, parsed).await?;
            }
            Statement::CreateView(create) => self.create_view(create, &catalog, &scope, parsed)?,
            Statement::CreateSink(create) => self.create_sink(create, &catalog, &scope, parsed).await?,
            Statement::CreateSchema { name, if_not_exists } => {
                let database = name.schema.as_deref().unwrap_or(&self.database);
                let planned = catalog.plan_create_schema(database, &name.name, &self.user, *if_not_exists)?;
                self.carry_out(planned)?;
            }
            Statement::CreateDatabase { name, if_not_exists } => {
                let planned = catalog.plan_create_database(name, &self.user, *if_not_exists)?;
                self.carry_out(planned)?;
            }
            Statement::Drop(drop) => self.drop_objects(drop, &catalog, &scope).await?,
            Statement::Alter(alter) => self.alter(alter, &catalog, &scope, parsed).await?,
            Statement::AlterSystem(set) => self.alter_system(set, &catalog)?,
            Statement::Comment(comment) => self.comment(comment, &catalog, &scope)?,
            other => return Err(Error::unsupported(format!("{} is not supported", other.tag()))),
        }
        Ok(Outcome::Done(statement.tag().into()))
    }

    /// Applies a change to the transaction's catalog; returns it, if there was one.
    pub(super) fn carry_out(&mut self, planned: Planned) -> Result<Option<CatalogChange>> {
        self.catalog_notices(planned.notices);
        if let Some(change) = &planned.change {
            self.private_mut()?.apply(change.clone())?;
        }
        Ok(planned.change)
    }

    /// The relation as a change has left it in the transaction's catalog.
    pub(super) fn applied(&self, oid: RelationId) -> Result<Arc<Relation>> {
        let relation = self.private().and_then(|p| p.catalog.relation(oid)).cloned();
        relation.ok_or_else(|| Error::internal("a relation is not there after its change"))
    }

    /// Gives up the storage of a relation that is dropped or replaced. Nobody else may write a table any more.
    async fn give_up(&mut self, oid: RelationId) -> Result<()> {
        let known = self.engine.catalog().relation(oid).cloned();
        if known.is_some()
            && let Some(table) = self.engine.table(oid)
        {
            self.own_table(&table).await?;
        }
        self.private_mut()?.remove(oid, known.as_ref());
        Ok(())
    }

    pub(super) fn columns(&self, definitions: &[ColumnDefinition], source: &str) -> Result<Vec<Column>> {
        definitions
            .iter()
            .map(|d| {
                let data_type = sql::types::arrow_type(&d.sql_type).map_err(|e| e.with_position(d.position))?;
                let mut column = Column::new(&d.name, data_type, &d.sql_type.to_string().to_lowercase());
                if d.not_null {
                    column = column.not_null();
                }
                if let Some(default) = &d.default {
                    // A default that cannot be evaluated is refused now, not at the first INSERT.
                    self.constant(&default.expr, source, &column.data_type)?;
                    column = column.with_default(&default.text);
                }
                Ok(column)
            })
            .collect()
    }

    async fn create_table(
        &mut self,
        create: &CreateTable,
        catalog: &Catalog,
        scope: &Scope,
        parsed: &Parsed,
    ) -> Result<()> {
        let mut options = create.options.clone();
        let times = crate::connectors::take_watermark_options(&mut options)?;
        if !options.is_empty() || create.format.is_some() {
            return Err(Error::unsupported("a table with a connector is not supported")
                .with_hint("Use CREATE SOURCE, and CREATE SINK … INTO to keep its rows in a table."));
        }
        let columns = self.columns(&create.columns, &parsed.source)?;
        let primary_key = create
            .primary_key
            .iter()
            .map(|name| {
                columns.iter().position(|c| &c.name == name).ok_or_else(|| {
                    Error::new(SqlState::UndefinedColumn, format!("column \"{name}\" named in key does not exist"))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let on_conflict = match create.on_conflict {
            sql::statement::OnConflict::Error => OnConflict::Error,
            sql::statement::OnConflict::Overwrite => OnConflict::Overwrite,
            sql::statement::OnConflict::DoNothing => OnConflict::DoNothing,
        };
        if on_conflict != OnConflict::Error && primary_key.is_empty() {
            return Err(Error::new(SqlState::InvalidTableDefinition, "ON CONFLICT needs a primary key"));
        }
        if create.append_only && on_conflict == OnConflict::Overwrite {
            return Err(Error::new(
                SqlState::InvalidTableDefinition,
                "an append-only table cannot overwrite rows on conflict",
            ));
        }
        let watermark = self.watermark(create.watermark.as_ref(), times, &columns, &parsed.source)?;
        if watermark.is_some() && !create.append_only {
            return Err(Error::new(SqlState::InvalidTableDefinition, "a watermark needs a table whose rows only come")
                .with_hint("Add APPEND ONLY after the columns."));
        }
        let table = Table { primary_key, append_only: create.append_only, on_conflict, watermark, ..Table::default() };
        let existing = if_exists(create.if_not_exists, create.or_replace);
        if existing == IfExists::Replace {
            self.refuse_replaced_inputs(catalog, scope, &create.name)?;
        }
        let new = NewRelation {
            name: &parts(&create.name),
            owner: &self.user,
            columns,
            definition: Definition::Table(table),
            depends_on: Vec::new(),
        };
        let planned = catalog.plan_create(scope, new, existing)?;
        match self.carry_out(planned)? {
            Some(CatalogChange::CreateRelation(relation)) => {
                self.new_table(relation.oid)?;
                self.create_sides(relation.oid, scope).await
            }
            Some(CatalogChange::Replace(relation)) => {
                self.give_up(relation.oid).await?;
                self.writes()?.take_table(relation.oid);
                self.new_table(relation.oid)?;
                self.create_sides(relation.oid, scope).await
            }
            _ => Ok(()),
        }
    }

    /// An empty table for a relation that the transaction has made.
    fn new_table(&mut self, oid: RelationId) -> Result<()> {
        let table = Arc::new(crate::table::Table::new(&*self.applied(oid)?, &self.engine.locks)?);
        self.private_mut()?.add_table(table);
        Ok(())
    }

    async fn create_table_as(
        &mut self,
        create: &CreateTableAs,
        catalog: &Catalog,
        scope: &Scope,
        parsed: &Parsed,
    ) -> Result<Outcome> {
        let existing = if_exists(create.if_not_exists, false);
        // As in PostgreSQL a name that is taken is told before the query is looked at.
        let taken = catalog.lookup(
            &scope.database,
            &scope.search_path[..scope.search_path.len().min(1)],
            &parts(&create.name),
        )?;
        let query = match (&taken, create.if_not_exists) {
            (Some(_), true) => None,
            _ => Some(self.plan_query(&create.query, &parsed.source, &[], catalog)?),
        };
        let columns = match &query {
            None => Vec::new(),
            Some(query) if !query.parameters.is_empty() => {
                return Err(Error::new(SqlState::UndefinedParameter, "there is no parameter $1"));
            }
            Some(query) => {
                let mut columns = query.view_columns(&create.columns).map_err(|e| {
                    let message = e
                        .message()
                        .replace("CREATE VIEW specifies more column names", "too many column names were specified");
                    if message == e.message() {
                        e
                    } else {
                        Error::new(e.state(), "too many column names were specified")
                    }
                })?;
                columns.iter_mut().for_each(|c| c.nullable = true);
                catalog_columns(&columns)
            }
        };
        let new = NewRelation {
            name: &parts(&create.name),
            owner: &self.user,
            columns,
            definition: Definition::Table(Table::default()),
            depends_on: Vec::new(),
        };
        let planned = catalog.plan_create(scope, new, existing)?;
        let (Some(CatalogChange::CreateRelation(relation)), Some(query)) = (self.carry_out(planned)?, query) else {
            return Ok(Outcome::Done("CREATE TABLE AS".into()));
        };
        self.new_table(relation.oid)?;
        if !create.with_data {
            return Ok(Outcome::Done("CREATE TABLE AS".into()));
        }
        let relation = self.applied(relation.oid)?;
        let Outcome::Rows { rows, .. } =
            self.run_query(&query, None, &[], super::planning::is_long(&parsed.text)).await?
        else {
            return Err(Error::internal("a query without rows"));
        };
        let schema: SchemaRef = Arc::new(relation.arrow_schema());
        let rows: Vec<_> = rows.try_collect::<Vec<_>>().await?;
        let rows = rows.into_iter().map(|b| super::read::conform(b, &schema)).collect::<Result<Vec<_>>>()?;
        let count = self.insert_until_free(&relation, &rows).await?;
        Ok(Outcome::Done(format!("SELECT {count}")))
    }

    /// A relation with storage of its own that others read keeps its definition: its readers hold its rows.
    fn refuse_replaced_inputs(&self, catalog: &Catalog, scope: &Scope, name: &Name) -> Result<()> {
        if let Some(old) = catalog.lookup(&scope.database, &scope.search_path, &parts(name))? {
            let readers = catalog.foreign_dependants(old.oid);
            if !readers.is_empty() {
                let names: Vec<String> = readers
                    .iter()
                    .filter_map(|oid| catalog.relation(*oid))
                    .map(|r| format!("{} {} depends on it.", r.kind().noun(), r.name))
                    .collect();
                return Err(Error::new(
                    SqlState::DependentObjectsExist,
                    format!("cannot replace {} {} because other objects depend on it", old.kind().noun(), old.name),
                )
                .with_detail(names.join("\n"))
                .with_hint("Drop the dependants first, or use another name."));
            }
        }
        Ok(())
    }

    async fn create_source(
        &mut self,
        create: &CreateSource,
        catalog: &Catalog,
        scope: &Scope,
        parsed: &Parsed,
    ) -> Result<()> {
        let mut options = create.options.clone();
        let times = crate::connectors::take_watermark_options(&mut options)?;
        let rate_limit = crate::connectors::take_rate_limit(&mut options)?;
        let connector = connector(&options, &create.format);
        if let Some(format) = &create.format {
            crate::connectors::check_source_form(&connector).map_err(|e| e.with_position(format.position))?;
        }
        let mut columns = if create.columns.is_empty() {
            let inferred = crate::connectors::infer_source(&connector)?;
            inferred.fields().iter().map(|f| Column::new(f.name(), f.data_type().clone(), "")).collect()
        } else {
            self.columns(&create.columns, &parsed.source)?
        };
        let watermark = self.watermark(create.watermark.as_ref(), times, &columns, &parsed.source)?;
        let mut include = Vec::new();
        for included in &create.include {
            let kind = crate::connectors::include_of(&connector, &included.kind);
            let kind = kind.map_err(|e| e.with_position(included.position))?;
            let name = included.name.clone().unwrap_or_else(|| kind.default_name());
            if columns.iter().any(|c| c.name == name) {
                let message = format!("column \"{name}\" specified more than once");
                return Err(Error::new(SqlState::DuplicateColumn, message)
                    .with_hint(format!("Name it: INCLUDE {} AS another_name.", kind.word()))
                    .with_position(included.position));
            }
            columns.push(Column::new(&name, kind.data_type(), "").not_null());
            include.push(kind.word().to_string());
        }
        let schema: SchemaRef = Arc::new(Schema::new(columns.iter().map(Column::field).collect::<Vec<_>>()));
        // Everything that can be refused is refused here: options, missing files, column types.
        crate::connectors::open_source(&connector, &schema, &include)?;
        let existing = if_exists(create.if_not_exists, create.or_replace);
        if existing == IfExists::Replace {
            self.refuse_replaced_inputs(catalog, scope, &create.name)?;
        }
        let new = NewRelation {
            name: &parts(&create.name),
            owner: &self.user,
            columns,
            definition: Definition::Source(Source { connector, watermark, include, rate_limit, paused: None }),
            depends_on: Vec::new(),
        };
        let planned = catalog.plan_create(scope, new, existing)?;
        let oid = match self.carry_out(planned)? {
            Some(CatalogChange::CreateRelation(relation)) => relation.oid,
            Some(CatalogChange::Replace(relation)) => {
                let known = self.engine.catalog().relation(relation.oid).cloned();
                self.private_mut()?.remove(relation.oid, known.as_ref());
                relation.oid
            }
            _ => return Ok(()),
        };
        self.create_sides(oid, scope).await?;
        self.private_mut()?.add_source(oid);
        Ok(())
    }

    /// The declared event time, checked. `times` are idle timeout and allowed lateness.
    fn watermark(
        &self,
        declared: Option<&WatermarkDefinition>,
        times: (Option<i64>, Option<i64>),
        columns: &[Column],
        source: &str,
    ) -> Result<Option<Watermark>> {
        let Some(declared) = declared else {
            return match times {
                (None, None) => Ok(None),
                _ => Err(Error::new(
                    SqlState::InvalidParameterValue,
                    "idle_timeout and allowed_lateness need a watermark",
                )
                .with_hint("Declare WATERMARK FOR column AS column - INTERVAL '5 seconds' among the columns.")),
            };
        };
        let name = &declared.column;
        let column = columns.iter().position(|c| c.name == *name).ok_or_else(|| {
            Error::new(SqlState::UndefinedColumn, format!("column \"{name}\" named in WATERMARK does not exist"))
                .with_position(declared.position)
        })?;
        if !matches!(columns[column].data_type, DataType::Timestamp(..)) {
            return Err(Error::new(
                SqlState::DatatypeMismatch,
                format!("a watermark needs a timestamp column, and \"{name}\" is {}", columns[column].sql_type),
            )
            .with_position(declared.position));
        }
        let delay_us = match &declared.delay {
            None => 0,
            Some(delay) => {
                let interval = DataType::Interval(IntervalUnit::MonthDayNano);
                let value = self.constant(delay, source, &interval)?;
                let value = value.as_primitive_opt::<IntervalMonthDayNanoType>().filter(|v| v.is_valid(0));
                let value = value.map(|v| v.value(0)).ok_or_else(|| {
                    Error::new(SqlState::InvalidParameterValue, "the delay of a watermark must be an interval")
                        .with_position(declared.position)
                })?;
                let us = i128::from(value.days) * 86_400_000_000 + i128::from(value.nanoseconds / 1_000);
                i64::try_from(us).ok().filter(|us| value.months == 0 && *us >= 0).ok_or_else(|| {
                    Error::new(
                        SqlState::InvalidParameterValue,
                        "the delay of a watermark must not be negative or hold months",
                    )
                    .with_hint("Write days, hours, minutes or seconds.")
                    .with_position(declared.position)
                })?
            }
        };
        Ok(Some(Watermark {
            column,
            expression: declared.text.clone(),
            delay_us,
            idle_timeout_us: times.0,
            allowed_lateness_us: times.1.unwrap_or(0),
        }))
    }

    /// Makes the side tables of a source or table that was just created or replaced, and drops those that it has no more.
    async fn create_sides(&mut self, of: RelationId, scope: &Scope) -> Result<()> {
        let relation = self.applied(of)?;
        let wanted: Vec<SideKind> = SideKind::ALL
            .into_iter()
            .filter(|kind| match kind {
                SideKind::Late => relation.watermark().is_some(),
                SideKind::Errors => relation.kind() == RelationKind::Source,
            })
            .collect();
        let catalog = self.catalog();
        for (oid, kind) in catalog.sides(of) {
            if !wanted.contains(&kind) {
                let change = CatalogChange::Drop { relations: vec![oid], schemas: vec![], databases: vec![] };
                self.give_up(oid).await?;
                self.private_mut()?.apply(change)?;
            }
        }
        for kind in wanted {
            let table = Table { append_only: true, side: Some(Side { of, kind }), ..Table::default() };
            let name = kind.table_name(&relation.name);
            let new = NewRelation {
                name: &[&relation.schema, &name],
                owner: &relation.owner,
                columns: crate::sides::columns(&relation, kind),
                definition: Definition::Table(table),
                depends_on: vec![of],
            };
            let replaced = self.catalog().sides(of).iter().any(|(_, k)| *k == kind);
            let existing = if replaced { IfExists::Replace } else { IfExists::Error };
            let planned = self.catalog().plan_create(scope, new, existing)?;
            match self.carry_out(planned)? {
                Some(CatalogChange::CreateRelation(side)) => self.new_table(side.oid)?,
                Some(CatalogChange::Replace(side)) => {
                    self.give_up(side.oid).await?;
                    self.new_table(side.oid)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Plans the query of a view or sink and pins the names in it.
    fn plan_stored_query(
        &self,
        query: &Query,
        catalog: &Catalog,
        scope: &Scope,
        source: &str,
        standing: bool,
    ) -> Result<PlannedQuery> {
        let names = self.names(catalog, None);
        let settings = if standing { Settings::standing(STANDING_ZONE) } else { self.planning() };
        let planner = Planner::new(&names, settings)?;
        let plan = planning::compute(planning::is_long(source), || planner.query(query, source, &[]))?;
        if !plan.parameters.is_empty() {
            return Err(Error::new(SqlState::UndefinedParameter, "there is no parameter $1")
                .with_hint("A stored query cannot have parameters."));
        }
        let definition = sql::definition::qualify(query, source, &names)?;
        let references =
            definition.relations.iter().map(|oid| (format!("#{oid}"), *oid)).collect::<BTreeMap<String, RelationId>>();
        let stored = catalog::Query {
            sql: definition.text,
            search_path: scope.search_path.clone(),
            references,
            emit_on_close: false,
            change_retention_us: None,
            parallelism: None,
        };
        Ok(PlannedQuery { query: plan, stored, depends_on: definition.relations })
    }

    fn create_view(&mut self, create: &CreateView, catalog: &Catalog, scope: &Scope, parsed: &Parsed) -> Result<()> {
        let planned = self.plan_stored_query(&create.query, catalog, scope, &parsed.source, false)?;
        let columns = catalog_columns(&planned.query.view_columns(&create.columns)?);
        let new = NewRelation {
            name: &parts(&create.name),
            owner: &self.user,
            columns,
            definition: Definition::View(planned.stored),
            depends_on: planned.depends_on,
        };
        let existing = if_exists(create.if_not_exists, create.or_replace);
        let planned = catalog.plan_create(scope, new, existing)?;
        if let Some(CatalogChange::Replace(view)) = &planned.change {
            let standing = |oid: &RelationId| {
                let kind = catalog.relation(*oid).map(|r| r.kind());
                matches!(kind, Some(RelationKind::MaterializedView | RelationKind::Sink))
            };
            if catalog.dependants(view.oid).iter().any(standing) {
                // Standing queries hold the old text's result; they would not follow.
                self.refuse_replaced_inputs(catalog, scope, &create.name)?;
            }
        }
        self.carry_out(planned)?;
        Ok(())
    }

    async fn create_materialized_view(
        &mut self,
        create: &CreateView,
        catalog: &Catalog,
        scope: &Scope,
        parsed: &Parsed,
    ) -> Result<()> {
        let mut query = self.plan_stored_query(&create.query, catalog, scope, &parsed.source, true)?;
        query.stored.emit_on_close = create.emit_on_close;
        crate::connectors::set_view_options(&mut query.stored, &create.options)?;
        self.engine.check_parallelism(query.stored.parallelism)?;
        let columns = query.query.view_columns(&create.columns)?;
        let new = NewRelation {
            name: &parts(&create.name),
            owner: &self.user,
            columns: catalog_columns(&columns),
            definition: Definition::MaterializedView(query.stored),
            depends_on: query.depends_on,
        };
        let existing = if_exists(create.if_not_exists, create.or_replace);
        if existing == IfExists::Replace {
            self.refuse_replaced_inputs(catalog, scope, &create.name)?;
        }
        let planned = catalog.plan_create(scope, new, existing)?;
        let relation = match &planned.change {
            Some(CatalogChange::CreateRelation(relation) | CatalogChange::Replace(relation)) => relation.clone(),
            _ => {
                self.carry_out(planned)?;
                return Ok(());
            }
        };
        let long = planning::is_long(&parsed.source);
        let standing = planning::compute(long, || standing_plan(&query.query, &columns, &relation))?;
        planning::interruptible(long).await;
        self.ready_inputs(&standing).await?;
        let plan = self.engine.process_plan(&standing, &relation)?;
        let oid = relation.oid;
        if matches!(planned.change, Some(CatalogChange::Replace(_))) {
            self.give_up(oid).await?;
        }
        self.carry_out(planned)?;
        let traits = plan::process::view_traits(&standing.node);
        let job = PendingJob { relation: self.applied(oid)?, plan, inputs: standing.inputs, traits };
        self.private_mut()?.add_job(job);
        Ok(())
    }

    /// A job starts from what its inputs hold, so they must be there; one that has stopped is named now.
    async fn ready_inputs(&self, query: &StandingQuery) -> Result<()> {
        for input in &query.inputs {
            // What this transaction makes itself starts before, at the commit.
            if self.private().is_none_or(|p| p.pending_view(*input).is_none()) {
                self.engine.wait_ready(*input).await?;
            }
        }
        // What this session has written is part of the snapshot that the job starts from.
        self.engine.clock.wait_completed(self.written).await
    }

    async fn create_sink(
        &mut self,
        create: &CreateSink,
        catalog: &Catalog,
        scope: &Scope,
        parsed: &Parsed,
    ) -> Result<()> {
        let (from_text, from_query);
        let (query, source): (&Query, &str) = match &create.from {
            SinkFrom::Query { query, .. } => (query, &parsed.source),
            SinkFrom::Relation(name) => {
                from_text = format!("SELECT * FROM {name}");
                from_query = sql::parse_query(&from_text)?;
                (&from_query, &from_text)
            }
        };
        let mut query = self.plan_stored_query(query, catalog, scope, source, true)?;
        query.stored.emit_on_close = matches!(&create.from, SinkFrom::Query { emit_on_close: true, .. });
        let output = query.query.view_columns(&[])?;
        let mut columns = catalog_columns(&output);
        let mut depends_on = query.depends_on.clone();
        let mut options = create.options.clone();
        let parallelism = crate::connectors::take_parallelism(&mut options)?;
        self.engine.check_parallelism(parallelism)?;
        let connector = connector(&options, &create.format);
        let into = match &create.into {
            None => None,
            Some(name) => {
                let table = super::names::writable(catalog, scope, name)?;
                columns = into_table(&output, &table)?;
                if let Some(other) = self.sink_into(table.oid) {
                    return Err(Error::new(
                        SqlState::ObjectNotInPrerequisiteState,
                        format!("table \"{}\" is already written by sink \"{}\"", table.name, other.name),
                    ));
                }
                depends_on.push(table.oid);
                Some(table)
            }
        };
        let input = match &create.from {
            SinkFrom::Relation(_) if query.depends_on.len() == 1 => SinkInput::Relation(query.depends_on[0]),
            _ => SinkInput::Query(query.stored),
        };
        let sink = Sink { input, into: into.as_ref().map(|t| t.oid), connector: connector.clone(), parallelism };
        let new = NewRelation {
            name: &parts(&create.name),
            owner: &self.user,
            columns,
            definition: Definition::Sink(sink),
            depends_on,
        };
        let existing = if_exists(create.if_not_exists, create.or_replace);
        let planned = catalog.plan_create(scope, new, existing)?;
        let relation = match &planned.change {
            Some(CatalogChange::CreateRelation(relation) | CatalogChange::Replace(relation)) => relation.clone(),
            _ => {
                self.carry_out(planned)?;
                return Ok(());
            }
        };
        let standing = standing_plan(&query.query, &output, &relation)?;
        if let Some(table) = &into {
            if standing.inputs.contains(&table.oid)
                || catalog.dependants(table.oid).iter().any(|d| standing.inputs.contains(d))
            {
                return Err(Error::new(
                    SqlState::InvalidTableDefinition,
                    format!("sink \"{}\" would read what it writes", relation.name),
                ));
            }
            let retracts = standing.node.traits.change_kind != plan::ChangeKind::AppendOnly;
            if retracts && table.table().is_some_and(|t| t.append_only) {
                return Err(Error::new(
                    SqlState::WrongObjectType,
                    format!("the sink's rows change, and table \"{}\" is append-only", table.name),
                )
                .with_hint("Use a table without APPEND ONLY."));
            }
        }
        self.ready_inputs(&standing).await?;
        let process = self.engine.process_plan(&standing, &relation)?;
        if into.is_none() {
            if let Some(format) = &create.format {
                crate::connectors::check_sink_form(&connector).map_err(|e| e.with_position(format.position))?;
            }
            let rows = SinkRows {
                schema: Arc::clone(&standing.node.schema),
                append_only: standing.node.traits.change_kind == plan::ChangeKind::AppendOnly,
                keys: &standing.node.traits.unique_keys,
                relation: &crate::connectors::sink_input(&self.catalog(), &relation),
                identity: "",
                attempt: 0,
            };
            crate::connectors::check_sink(&connector, &rows)?;
        }
        let oid = relation.oid;
        if matches!(planned.change, Some(CatalogChange::Replace(_))) {
            self.give_up(oid).await?;
        }
        self.carry_out(planned)?;
        let traits = plan::process::view_traits(&standing.node);
        let job = PendingJob { relation: self.applied(oid)?, plan: process, inputs: standing.inputs, traits };
        self.private_mut()?.add_job(job);
        Ok(())
    }

    async fn drop_objects(&mut self, drop: &Drop, catalog: &Catalog, scope: &Scope) -> Result<()> {
        match drop.kind {
            ObjectKind::Schema | ObjectKind::Database => {
                for name in &drop.names {
                    let catalog = self.catalog();
                    let planned = match drop.kind {
                        ObjectKind::Schema => {
                            catalog.plan_drop_schema(scope, &name.name, drop.if_exists, drop.cascade)?
                        }
                        _ => catalog.plan_drop_database(&self.database, &name.name, drop.if_exists)?,
                    };
                    self.carry_out_drop(planned).await?;
                }
                Ok(())
            }
            kind => {
                let names: Vec<Vec<&str>> = drop.names.iter().map(parts).collect();
                let targets: Vec<&[&str]> = names.iter().map(Vec::as_slice).collect();
                let planned = catalog.plan_drop(scope, relation_kind(kind)?, &targets, drop.if_exists, drop.cascade)?;
                self.carry_out_drop(planned).await
            }
        }
    }

    pub(super) async fn carry_out_drop(&mut self, planned: Planned) -> Result<()> {
        if let Some(CatalogChange::Drop { relations, .. }) = &planned.change {
            for oid in relations.clone() {
                self.give_up(oid).await?;
            }
        }
        self.carry_out(planned)?;
        Ok(())
    }

    async fn alter(&mut self, alter: &Alter, catalog: &Catalog, scope: &Scope, parsed: &Parsed) -> Result<()> {
        let name = parts(&alter.name);
        let Some(action) = alter.actions.first() else { return Ok(()) };
        let planned = match (action, alter.kind) {
            (AlterAction::RenameTo(new), ObjectKind::Schema) => {
                catalog.plan_rename_schema(&self.database, &alter.name.name, new)?
            }
            (AlterAction::RenameTo(new), ObjectKind::Database) => {
                catalog.plan_rename_database(&self.database, &alter.name.name, new)?
            }
            // Stored queries have their names pinned, so a renamed relation is still found.
            (AlterAction::RenameTo(new), kind) => {
                catalog.plan_rename(scope, relation_kind(kind)?, &name, new, alter.if_exists, Vec::new())?
            }
            (AlterAction::RenameColumn { from, to }, kind) => {
                let kind = relation_kind(kind)?;
                if let Some(relation) = catalog.lookup(&scope.database, &scope.search_path, &name)? {
                    let readers = catalog.foreign_dependants(relation.oid);
                    if !readers.is_empty() {
                        let detail: Vec<String> = readers
                            .iter()
                            .filter_map(|oid| catalog.relation(*oid))
                            .map(|r| format!("{} {} depends on it.", r.kind().noun(), r.name))
                            .collect();
                        return Err(Error::new(
                            SqlState::DependentObjectsExist,
                            format!("cannot rename column {from} because other objects depend on {}", relation.name),
                        )
                        .with_detail(detail.join("\n"))
                        .with_hint("Drop the dependants first; their queries name the column."));
                    }
                }
                catalog.plan_rename_column(scope, kind, &name, from, to, Vec::new())?
            }
            (AlterAction::SetSchema(schema), kind) => {
                catalog.plan_set_schema(scope, relation_kind(kind)?, &name, schema, alter.if_exists)?
            }
            (AlterAction::OwnerTo(owner), kind) => catalog.plan_set_owner(scope, relation_kind(kind)?, &name, owner)?,
            (AlterAction::Pause, _) => {
                let mut holds = None;
                let planned = catalog.plan_set_reading(scope, &name, alter.if_exists, |oid, source| {
                    if source.paused.is_none() {
                        let (hold, stands) = Hold::new(&self.engine, oid);
                        (holds, source.paused) = (Some(hold), Some(stands));
                    }
                    Ok(())
                })?;
                if let Some(hold) = holds {
                    self.private_mut()?.add_hold(hold);
                }
                planned
            }
            (AlterAction::Resume, _) => catalog.plan_set_reading(scope, &name, alter.if_exists, |_, source| {
                source.paused = None;
                Ok(())
            })?,
            (AlterAction::SetOptions(options), _) => {
                let mut options = options.clone();
                let rate_limit = crate::connectors::take_rate_limit(&mut options)?;
                if let Some((option, _)) = options.first() {
                    return Err(fixed_option(option));
                }
                catalog.plan_set_reading(scope, &name, alter.if_exists, |_, source| {
                    source.rate_limit = rate_limit.or(source.rate_limit);
                    Ok(())
                })?
            }
            (AlterAction::SetParallelism(parallelism), kind) => {
                self.engine.check_parallelism(*parallelism)?;
                let kind = relation_kind(kind)?;
                let planned = catalog.plan_set_parallelism(scope, kind, &name, alter.if_exists, *parallelism)?;
                if let Some(CatalogChange::SetParallelism { relation, .. }) = &planned.change {
                    self.engine.set_parallelism(*relation, *parallelism).await?;
                }
                planned
            }
            (AlterAction::ResetOptions(names), _) => {
                if let Some(option) = names.iter().find(|name| *name != crate::connectors::RATE_LIMIT) {
                    return Err(fixed_option(option));
                }
                catalog.plan_set_reading(scope, &name, alter.if_exists, |_, source| {
                    source.rate_limit = None;
                    Ok(())
                })?
            }
            _ => return self.alter_columns(alter, catalog, scope, parsed).await,
        };
        self.carry_out(planned)?;
        Ok(())
    }

    fn alter_system(&mut self, set: &Set, catalog: &Catalog) -> Result<()> {
        let value = match &set.value {
            SetValue::Default => None,
            SetValue::Values(values) => Some(values.join(", ")),
        };
        let planned = catalog.plan_set_system(&set.name, value.as_deref())?;
        self.engine.checkpoints()?;
        if let Some(value) = &value {
            crate::engine::checkpoint_interval(value)?;
        }
        self.carry_out(planned)?;
        Ok(())
    }

    fn comment(&mut self, comment: &sql::statement::Comment, catalog: &Catalog, scope: &Scope) -> Result<()> {
        use catalog::ObjectRef;
        let name = parts(&comment.name);
        let object = match (comment.kind, &comment.column) {
            (ObjectKind::Column, Some(column)) => ObjectRef::Column(&name, column),
            (ObjectKind::Schema, _) => ObjectRef::Schema(&comment.name.name),
            (ObjectKind::Database, _) => ObjectRef::Database(&comment.name.name),
            (kind, _) => ObjectRef::Relation(relation_kind(kind)?, &name),
        };
        let planned = catalog.plan_comment(scope, object, comment.comment.as_deref())?;
        self.carry_out(planned)?;
        Ok(())
    }
}

/// Whether a statement changes how a source is read or a job is spread.
fn sets_running(statement: &Statement) -> bool {
    use AlterAction::{Pause, ResetOptions, Resume, SetOptions, SetParallelism};
    let Statement::Alter(alter) = statement else { return false };
    alter.actions.iter().any(|a| matches!(a, Pause | Resume | SetOptions(_) | ResetOptions(_) | SetParallelism(_)))
}

fn fixed_option(name: &str) -> Error {
    Error::unsupported(format!("option \"{name}\" of a source cannot be changed"))
        .with_detail("What can be changed is: rate_limit.")
        .with_hint("Create another source with the option, or drop this one and create it again.")
}

/// Whether a statement can be one of several in a transaction; what reaches outside cannot be taken back.
pub fn transactional(statement: &Statement) -> bool {
    match statement {
        Statement::CreateSource(_) | Statement::CreateSink(_) | Statement::CreateDatabase { .. } => false,
        Statement::AlterSystem(_) => false,
        Statement::Drop(drop) => !matches!(drop.kind, ObjectKind::Source | ObjectKind::Sink | ObjectKind::Database),
        statement if sets_running(statement) => false,
        Statement::CreateTable(create) => !create.or_replace,
        Statement::CreateView(create) => !(create.materialized && create.or_replace),
        _ => true,
    }
}

/// The columns of a sink into `table`: the table's, which the query's take by position.
fn into_table(output: &[sql::Column], table: &Relation) -> Result<Vec<Column>> {
    if output.len() != table.columns.len() {
        return Err(Error::new(
            SqlState::DatatypeMismatch,
            format!("the sink has {} columns, table \"{}\" has {}", output.len(), table.name, table.columns.len()),
        )
        .with_hint("Select the table's columns, in its order."));
    }
    Ok(table.columns.iter().zip(output).map(|(c, o)| Column::new(&o.name, c.data_type.clone(), &c.sql_type)).collect())
}
