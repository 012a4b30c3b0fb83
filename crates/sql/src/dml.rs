//! INSERT, UPDATE and DELETE to plans of the rows that they add and take away.
//!
//! The plans only read; whoever runs them makes the changes, checks NOT NULL and keys, and answers RETURNING by
//! [`Returning::over`] the affected rows.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column as DfColumn, DFSchema, DFSchemaRef, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Cast, Expr, LogicalPlan, LogicalPlanBuilder, TableScan, TableSource};
use datafusion::sql::planner::{PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast::{self, Ident, ObjectName, SelectItem, SetExpr};
use flow::{Error, RelationId, Result, SqlState};
use plan::functions::typing::ASSIGNED;

use crate::context::{Context, undefined_table};
use crate::limits::with_large_stack;
use crate::locate;
use crate::names::{self, Source};
use crate::origin::Known;
use crate::planner::{Planner, QueryPlan, Raw, bind};
use crate::resolver::{Relation, RelationKind};
use crate::rewrite::{self, NAME_END};
use crate::statement::{Delete, Insert, Name, Update};

/// Rows to insert.
#[derive(Clone, Debug)]
pub struct InsertPlan {
    pub table: Relation,
    /// Gives exactly the table's columns, in order, by name and type. NULLs in NOT NULL columns are not checked.
    pub plan: LogicalPlan,
    /// `ON CONFLICT DO NOTHING`.
    pub do_nothing: bool,
    pub returning: Option<Returning>,
    /// Types of `$1`, `$2`, … of the plan and of RETURNING together.
    pub parameters: Vec<DataType>,
    /// Their OIDs, where the Arrow types do not tell them.
    pub parameter_oids: Vec<Option<u32>>,
    pub relations: Vec<RelationId>,
}

/// Rows to change.
#[derive(Clone, Debug)]
pub struct UpdatePlan {
    pub table: Relation,
    /// Gives the table's columns as they are, then the table's columns as they shall be.
    pub plan: LogicalPlan,
    /// Column numbers that are assigned, ascending.
    pub assigned: Vec<usize>,
    pub returning: Option<Returning>,
    pub parameters: Vec<DataType>,
    /// Their OIDs, where the Arrow types do not tell them.
    pub parameter_oids: Vec<Option<u32>>,
    pub relations: Vec<RelationId>,
}

/// Rows to delete.
#[derive(Clone, Debug)]
pub struct DeletePlan {
    pub table: Relation,
    /// Gives the table's columns.
    pub plan: LogicalPlan,
    pub returning: Option<Returning>,
    pub parameters: Vec<DataType>,
    /// Their OIDs, where the Arrow types do not tell them.
    pub parameter_oids: Vec<Option<u32>>,
    pub relations: Vec<RelationId>,
}

/// A RETURNING list.
#[derive(Clone, Debug)]
pub struct Returning {
    /// Reads the table's rows from a source that [`over`](Self::over) replaces.
    plan: LogicalPlan,
    /// Output columns, as of a query.
    pub schema: SchemaRef,
    parameters: Vec<DataType>,
}

impl Returning {
    /// The plan that answers RETURNING from `rows`, which has the table's columns: the rows inserted, the rows as updated,
    /// or the rows deleted. `values` are the statement's parameters.
    pub fn over(&self, rows: Arc<dyn TableProvider>, values: &[ScalarValue]) -> Result<LogicalPlan> {
        let source = provider_as_source(rows);
        let plan = bind(&self.plan, &self.parameters, values.to_vec())?;
        let replaced = plan.transform_up_with_subqueries(|node| match node {
            LogicalPlan::TableScan(scan) if scan.source.downcast_ref::<AffectedRows>().is_some() => {
                Ok(Transformed::yes(LogicalPlan::TableScan(TableScan { source: Arc::clone(&source), ..scan })))
            }
            other => Ok(Transformed::no(other)),
        });
        replaced.map(|t| t.data).map_err(plan::error::from_datafusion_error)
    }
}

/// The types of parameters as the client declared them, or as the columns that take them say.
struct GivenTypes {
    declared: Vec<Option<DataType>>,
    known: Known,
}

impl GivenTypes {
    /// If `value` is a parameter alone, it is of the column's type unless it was declared.
    fn assign(&mut self, value: &ast::Expr, column: &crate::resolver::Column) {
        if let ast::Expr::Value(value) = value
            && let ast::Value::Placeholder(id) = &value.value
            && let Some(n) = id.strip_prefix('$').and_then(|n| n.parse::<usize>().ok())
            && (1..=usize::from(u16::MAX)).contains(&n)
        {
            if self.declared.len() < n {
                self.declared.resize(n, None);
            }
            if self.declared[n - 1].is_none() {
                self.declared[n - 1] = Some(column.data_type.clone());
                self.known.assign(n, column.pg_type);
            }
        }
    }
}

macro_rules! binds {
    ($($plan:ty),*) => { $(
        impl $plan {
            /// The plan with `values` for `$1`, `$2`, …
            pub fn bind(&self, values: &[ScalarValue]) -> Result<LogicalPlan> {
                bind(&self.plan, &self.parameters, values.to_vec())
            }
        }
    )* };
}

binds!(InsertPlan, UpdatePlan, DeletePlan);

/// Stands for the rows that a statement has touched.
#[derive(Debug)]
pub(crate) struct AffectedRows {
    /// The table.
    pub relation: RelationId,
    schema: SchemaRef,
}

impl TableSource for AffectedRows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

impl Planner<'_> {
    /// The table that a statement writes to.
    ///
    /// Errors: `42P01`, `42809` for anything but a table.
    pub fn writable_table(&self, name: &Name) -> Result<Relation> {
        let at = |e: Error| if name.position > 0 { e.with_position(name.position) } else { e };
        let found = self.resolver.relation(name);
        let table = found.ok_or_else(|| at(undefined_table(&name.to_string(), &name.name, self.resolver)))?;
        if table.kind == RelationKind::Table {
            return Ok(table);
        }
        let hint = match table.kind {
            RelationKind::Source => "A source is fed from outside; insert into a table.",
            RelationKind::System => "System tables cannot be changed.",
            _ => "Change the tables that the view reads.",
        };
        Err(at(Error::new(SqlState::WrongObjectType, format!("cannot change {} \"{}\"", table.kind, table.name))
            .with_hint(hint)))
    }

    /// `source` is the text that the statement was parsed from; `declared` are types given for parameters.
    pub fn insert(&self, insert: &Insert, source: &str, declared: &[Option<DataType>]) -> Result<InsertPlan> {
        with_large_stack(|| self.plan_insert(insert, source, declared))
    }

    pub fn update(&self, update: &Update, source: &str, declared: &[Option<DataType>]) -> Result<UpdatePlan> {
        with_large_stack(|| self.plan_update(update, source, declared))
    }

    pub fn delete(&self, delete: &Delete, source: &str, declared: &[Option<DataType>]) -> Result<DeletePlan> {
        with_large_stack(|| self.plan_delete(delete, source, declared))
    }

    /// Rows for COPY FROM or a connector: the plan that turns `rows`, which has the columns `columns` of `table` by name,
    /// into whole rows of the table, with defaults for the others.
    pub fn complete_rows(&self, table: &Relation, rows: Arc<dyn TableProvider>) -> Result<LogicalPlan> {
        let input = LogicalPlanBuilder::scan("rows", provider_as_source(rows), None)
            .and_then(|b| b.build())
            .map_err(plan::error::from_datafusion_error)?;
        let targets: Vec<Option<usize>> =
            table.columns.iter().map(|c| input.schema().index_of_column_by_name(None, &c.name)).collect();
        let raw = self.table_rows(table, input, &targets)?;
        self.analyze(raw).map_err(plan::error::from_datafusion_error)
    }

    fn plan_insert(&self, insert: &Insert, source: &str, declared: &[Option<DataType>]) -> Result<InsertPlan> {
        let table = self.writable_table(&insert.table)?;
        let targets = target_columns(&table, &insert.columns)?;
        let text = Source::new(source);
        let raw = match &insert.source {
            None => {
                let empty = LogicalPlanBuilder::empty(true).build().map_err(plan::error::from_datafusion_error)?;
                let plan = self.table_rows(&table, empty, &vec![None; table.columns.len()])?;
                Raw { plan, parameters: declared.to_vec(), relations: Vec::new(), known: Known::default() }
            }
            Some(query) => {
                let mut query = query.as_ref().clone();
                let mut given = GivenTypes { declared: declared.to_vec(), known: Known::default() };
                let width = self.prepare_values(&mut query, &table, &targets, &insert.columns, &mut given, &text)?;
                let rows = width.map(|n| row_schema(&table, &targets[..n])).transpose()?;
                let mut raw = self.raw_query_for(query, source, &given.declared, 0, rows)?;
                raw.known.extend(given.known);
                let width = raw.plan.schema().fields().len();
                check_width(width, targets.len(), !insert.columns.is_empty(), insert)?;
                let mut places = vec![None; table.columns.len()];
                for (i, column) in targets.iter().take(width).enumerate() {
                    places[*column] = Some(i);
                }
                Raw { plan: self.table_rows(&table, raw.plan, &places)?, ..raw }
            }
        };
        if let Some(columns) = &insert.on_conflict {
            check_conflict_target(&table, columns)?;
        }
        let QueryPlan { plan, mut parameters, parameter_oids, mut relations, .. } = self.finish(raw, source)?;
        let returning = self.returning(&table, insert.alias.as_deref(), &insert.returning, source, &mut parameters)?;
        relations.push(table.id);
        let do_nothing = insert.on_conflict.is_some();
        Ok(InsertPlan { table, plan, do_nothing, returning, parameters, parameter_oids, relations })
    }

    /// Types the parameters of VALUES and puts defaults in. Gives the number of values a row if the query is VALUES.
    fn prepare_values(
        &self,
        query: &mut ast::Query,
        table: &Relation,
        targets: &[usize],
        written: &[(String, usize)],
        given: &mut GivenTypes,
        text: &Source<'_>,
    ) -> Result<Option<usize>> {
        let plain = query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none();
        let SetExpr::Values(values) = query.body.as_mut() else { return Ok(None) };
        if !plain {
            return Ok(None);
        }
        let width = values.rows.first().map_or(0, |r| r.content.len());
        for row in &mut values.rows {
            if row.content.len() != width {
                return Err(Error::new(SqlState::SyntaxError, "VALUES lists must all be the same length")
                    .with_position(text.position(row.opening_token.0.span.start)));
            }
            if width > targets.len() {
                return Err(Error::new(SqlState::SyntaxError, "INSERT has more expressions than target columns")
                    .with_position(text.position(row.opening_token.0.span.start)));
            }
            if width < targets.len() && !written.is_empty() {
                return Err(Error::new(SqlState::SyntaxError, "INSERT has more target columns than expressions")
                    .with_position(written[width].1));
            }
            for (expr, column) in row.content.iter_mut().zip(targets) {
                let column = &table.columns[*column];
                if is_default(expr) {
                    *expr = match &column.default {
                        Some(default) => crate::parse_expr(default)?,
                        None => rewrite::null(),
                    };
                } else {
                    given.assign(expr, column);
                }
            }
        }
        Ok(Some(width))
    }

    /// Whole rows of `table` from `input`: column `i` is input column `places[i]` cast to its type, or the default.
    fn table_rows(&self, table: &Relation, input: LogicalPlan, places: &[Option<usize>]) -> Result<LogicalPlan> {
        let schema = Arc::clone(input.schema());
        let mut exprs = Vec::with_capacity(table.columns.len());
        for (column, place) in table.columns.iter().zip(places) {
            let expr = match place {
                Some(i) => {
                    let (qualifier, field) = schema.qualified_field(*i);
                    Expr::Column(DfColumn::new(qualifier.cloned(), field.name()))
                }
                None => self.default_value(column)?,
            };
            exprs.push(fitted(expr, column)?.alias(&column.name));
        }
        LogicalPlanBuilder::from(input)
            .project(exprs)
            .and_then(|b| b.build())
            .map_err(plan::error::from_datafusion_error)
    }

    fn default_value(&self, column: &crate::resolver::Column) -> Result<Expr> {
        let Some(default) = &column.default else {
            return Ok(Expr::Literal(ScalarValue::Null, None));
        };
        let context = Context::new(self, 1);
        let mut expr = crate::parse_expr(default)?;
        rewrite::rewrite(&mut expr, &Source::new(default), self.settings.now_us.is_none())?;
        SqlToRel::new(&context)
            .sql_to_expr(expr, &DFSchema::empty(), &mut PlannerContext::new())
            .map_err(|e| locate::inside_view(plan::error::from_datafusion_error(e)))
    }

    fn plan_update(&self, update: &Update, source: &str, declared: &[Option<DataType>]) -> Result<UpdatePlan> {
        let table = self.writable_table(&update.table)?;
        let alias = update.alias.clone().unwrap_or_else(|| table.name.clone());
        let mut projection = old_columns(&table, &alias);
        let mut places: Vec<Option<usize>> = vec![None; table.columns.len()];
        let mut given = GivenTypes { declared: declared.to_vec(), known: Known::default() };
        for (name, position, value) in &update.assignments {
            let Some(column) = table.column(name) else {
                return Err(undefined_column(&table, name, *position));
            };
            if places[column].is_some() {
                let message = format!("multiple assignments to same column \"{name}\"");
                return Err(Error::new(SqlState::SyntaxError, message).with_position(*position));
            }
            places[column] = Some(projection.len());
            let mut value = value.clone();
            if is_default(&value) {
                value = match &table.columns[column].default {
                    Some(default) => crate::parse_expr(default)?,
                    None => rewrite::null(),
                };
            }
            given.assign(&value, &table.columns[column]);
            let alias = Ident::with_quote('"', format!("{name}{NAME_END}new"));
            projection.push(SelectItem::ExprWithAlias { expr: value, alias });
        }
        let select = rewrite::select_from(object_name(&table), Some(&alias), projection, update.selection.clone());
        let query = rewrite::query_of(SetExpr::Select(Box::new(select)));
        let mut raw = self.raw_query(query, source, &given.declared, 0)?;
        raw.known.extend(given.known);
        let schema = Arc::clone(raw.plan.schema());
        let column = |i: usize| {
            let (qualifier, field) = schema.qualified_field(i);
            Expr::Column(DfColumn::new(qualifier.cloned(), field.name()))
        };
        let mut exprs: Vec<Expr> = (0..table.columns.len()).map(&column).collect();
        for (i, (definition, place)) in table.columns.iter().zip(&places).enumerate() {
            let value = match place {
                Some(place) => fitted(column(*place), definition)?,
                None => column(i),
            };
            exprs.push(value.alias(format!("{}{NAME_END}new", definition.name)));
        }
        let plan = LogicalPlanBuilder::from(raw.plan)
            .project(exprs)
            .and_then(|b| b.build())
            .map_err(plan::error::from_datafusion_error)?;
        let QueryPlan { plan, mut parameters, parameter_oids, mut relations, .. } =
            self.finish(Raw { plan, ..raw }, source)?;
        let returning = self.returning(&table, Some(&alias), &update.returning, source, &mut parameters)?;
        relations.push(table.id);
        let assigned = places.iter().enumerate().filter(|(_, p)| p.is_some()).map(|(i, _)| i).collect();
        Ok(UpdatePlan { table, plan, assigned, returning, parameters, parameter_oids, relations })
    }

    fn plan_delete(&self, delete: &Delete, source: &str, declared: &[Option<DataType>]) -> Result<DeletePlan> {
        let table = self.writable_table(&delete.table)?;
        let alias = delete.alias.clone().unwrap_or_else(|| table.name.clone());
        let select = rewrite::select_from(
            object_name(&table),
            Some(&alias),
            old_columns(&table, &alias),
            delete.selection.clone(),
        );
        let query = rewrite::query_of(SetExpr::Select(Box::new(select)));
        let raw = self.raw_query(query, source, declared, 0)?;
        let QueryPlan { plan, mut parameters, parameter_oids, mut relations, .. } = self.finish(raw, source)?;
        let returning = self.returning(&table, Some(&alias), &delete.returning, source, &mut parameters)?;
        relations.push(table.id);
        Ok(DeletePlan { table, plan, returning, parameters, parameter_oids, relations })
    }

    /// Plans a RETURNING list over the table's columns.
    fn returning(
        &self,
        table: &Relation,
        alias: Option<&str>,
        items: &Option<Vec<SelectItem>>,
        source: &str,
        parameters: &mut Vec<DataType>,
    ) -> Result<Option<Returning>> {
        let Some(items) = items else { return Ok(None) };
        let rows = WithAffectedRows { inner: self.resolver, table };
        let planner = Planner {
            resolver: &rows,
            settings: self.settings.clone(),
            zone: self.zone,
            options: std::sync::Arc::clone(&self.options),
        };
        let alias = alias.unwrap_or(&table.name);
        let name = ObjectName::from(vec![Ident::with_quote('"', AFFECTED_ROWS)]);
        let select = rewrite::select_from(name, Some(alias), items.clone(), None);
        let query = rewrite::query_of(SetExpr::Select(Box::new(select)));
        let declared: Vec<Option<DataType>> = parameters.iter().cloned().map(Some).collect();
        let planned = planner.query(&query, source, &declared)?;
        parameters.clone_from(&planned.parameters);
        Ok(Some(Returning { plan: planned.plan, schema: planned.schema, parameters: planned.parameters }))
    }
}

/// A name that no statement can write, because it holds a control character.
const AFFECTED_ROWS: &str = "\u{1f}rows";

/// The catalog with one relation more: the rows that the statement has touched.
struct WithAffectedRows<'a> {
    inner: &'a dyn crate::Resolver,
    table: &'a Relation,
}

impl crate::Resolver for WithAffectedRows<'_> {
    fn relation(&self, name: &Name) -> Option<Relation> {
        if name.name != AFFECTED_ROWS {
            return self.inner.relation(name);
        }
        let source: Arc<dyn TableSource> =
            Arc::new(AffectedRows { relation: self.table.id, schema: self.table.arrow_schema() });
        Some(Relation { content: crate::resolver::Content::Scan(source), ..self.table.clone() })
    }

    fn relation_by_id(&self, id: RelationId) -> Option<Relation> {
        self.inner.relation_by_id(id)
    }

    fn relation_names(&self) -> Vec<String> {
        self.inner.relation_names()
    }

    fn function(&self, name: &str) -> Option<Arc<datafusion::logical_expr::ScalarUDF>> {
        self.inner.function(name)
    }
}

/// `expr` as a value of `column`: cast to its type, and no longer than it takes.
fn fitted(expr: Expr, column: &crate::resolver::Column) -> Result<Expr> {
    let assigned = [(ASSIGNED.to_string(), column.name.clone())].into();
    let field = Field::new("", column.data_type.clone(), true).with_metadata(assigned);
    let value = Expr::Cast(Cast { expr: Box::new(expr), field: Arc::new(field) });
    let Some(limit) = column.characters_max else { return Ok(value) };
    let function =
        plan::functions::scalar("varchar").ok_or_else(|| Error::internal("function varchar is not registered"))?;
    let limit = Expr::Literal(ScalarValue::Int64(Some(i64::try_from(limit).unwrap_or(i64::MAX))), None);
    Ok(Expr::ScalarFunction(ScalarFunction::new_udf(function, vec![value, limit])))
}

/// Every column of the table, qualified, in order.
fn old_columns(table: &Relation, alias: &str) -> Vec<SelectItem> {
    let column = |name: &str| {
        SelectItem::UnnamedExpr(ast::Expr::CompoundIdentifier(vec![
            Ident::with_quote('"', alias),
            Ident::with_quote('"', name),
        ]))
    };
    table.columns.iter().map(|c| column(&c.name)).collect()
}

fn object_name(table: &Relation) -> ObjectName {
    ObjectName::from(vec![
        Ident::with_quote('"', &table.database),
        Ident::with_quote('"', &table.schema),
        Ident::with_quote('"', &table.name),
    ])
}

/// The bare word DEFAULT in the place of a value.
fn is_default(expr: &ast::Expr) -> bool {
    matches!(expr, ast::Expr::Identifier(i) if i.quote_style.is_none() && i.value.eq_ignore_ascii_case("default"))
}

/// Column numbers of the insert's targets, in the order of the values.
fn target_columns(table: &Relation, written: &[(String, usize)]) -> Result<Vec<usize>> {
    if written.is_empty() {
        return Ok((0..table.columns.len()).collect());
    }
    let mut targets = Vec::with_capacity(written.len());
    for (name, position) in written {
        let column = table.column(name).ok_or_else(|| undefined_column(table, name, *position))?;
        if targets.contains(&column) {
            let message = format!("column \"{name}\" specified more than once");
            return Err(Error::new(SqlState::DuplicateColumn, message).with_position(*position));
        }
        targets.push(column);
    }
    Ok(targets)
}

fn undefined_column(table: &Relation, name: &str, position: usize) -> Error {
    let message = format!("column \"{name}\" of relation \"{}\" does not exist", table.name);
    let error = Error::new(SqlState::UndefinedColumn, message).with_position(position);
    match names::closest(name, table.columns.iter().map(|c| c.name.as_str())) {
        Some(near) => error.with_hint(format!("Perhaps you meant the column \"{near}\".")),
        None => error,
    }
}

fn check_width(width: usize, targets: usize, explicit: bool, insert: &Insert) -> Result<()> {
    let at = |e: Error| if insert.table.position > 0 { e.with_position(insert.table.position) } else { e };
    if width > targets {
        return Err(at(Error::new(SqlState::SyntaxError, "INSERT has more expressions than target columns")));
    }
    if width < targets && explicit {
        return Err(at(Error::new(SqlState::SyntaxError, "INSERT has more target columns than expressions")));
    }
    Ok(())
}

/// The target must be the primary key.
fn check_conflict_target(table: &Relation, columns: &[String]) -> Result<()> {
    if columns.is_empty() {
        return Ok(());
    }
    let mut key: Vec<&str> = table.primary_key.iter().map(|c| table.columns[*c].name.as_str()).collect();
    let mut given: Vec<&str> = columns.iter().map(String::as_str).collect();
    key.sort_unstable();
    given.sort_unstable();
    if key.is_empty() || key != given {
        return Err(Error::new(
            SqlState::InvalidColumnReference,
            "there is no unique or exclusion constraint matching the ON CONFLICT specification",
        )
        .with_hint("Name exactly the columns of the primary key, or none."));
    }
    Ok(())
}

/// The types of the first values of a row, as DataFusion types VALUES by them.
fn row_schema(table: &Relation, targets: &[usize]) -> Result<DFSchemaRef> {
    let fields: Vec<Field> = targets
        .iter()
        .enumerate()
        .map(|(i, c)| Field::new(format!("column{}", i + 1), table.columns[*c].data_type.clone(), true))
        .collect();
    let schema = DFSchema::try_from(Schema::new(fields)).map_err(plan::error::from_datafusion_error)?;
    Ok(Arc::new(schema))
}
