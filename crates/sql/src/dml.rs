//! INSERT, UPDATE and DELETE to plans of the rows that they add and take away.
//!
//! The plans only read; whoever runs them makes the changes, checks NOT NULL and keys, and answers RETURNING by
//! [`Returning::over`] the affected rows.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
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
use crate::planner::{Planner, QueryPlan, Raw, bind, type_parameters};
use crate::resolver::{Relation, RelationKind};
use crate::rewrite::{self, NAME_END};
use crate::statement::{Assignment, Conflict, ConflictTarget, ConflictUpdate, Delete, Insert, Name, Update};

/// Rows to insert.
#[derive(Clone, Debug)]
pub struct InsertPlan {
    pub table: Relation,
    /// Gives exactly the table's columns, in order, by name and type. NULLs in NOT NULL columns are not checked.
    pub plan: LogicalPlan,
    /// What the statement says about keys that exist; `None` leaves it to the table's declaration.
    pub on_conflict: Option<ConflictPlan>,
    pub returning: Option<Returning>,
    /// Types of `$1`, `$2`, … of the plan and of RETURNING together.
    pub parameters: Vec<DataType>,
    /// Their OIDs, where the Arrow types do not tell them.
    pub parameter_oids: Vec<Option<u32>>,
    pub relations: Vec<RelationId>,
}

/// ON CONFLICT of an INSERT.
#[derive(Clone, Debug)]
pub enum ConflictPlan {
    DoNothing,
    Update(Box<ConflictUpdatePlan>),
}

/// DO UPDATE: from rows that exist and the rows proposed in their place to the rows as they shall be.
#[derive(Clone, Debug)]
pub struct ConflictUpdatePlan {
    /// Gives the number of a pair and the table's columns as they shall be, for the pairs that WHERE lets through.
    plan: LogicalPlan,
    parameters: Vec<DataType>,
}

impl ConflictUpdatePlan {
    /// The plan that computes the update of each pair: row `i` of `existing` stands where row `i` of `proposed` wants to be.
    /// Both have the table's columns and then the pair's number ([`with_number`]). `values` are the statement's parameters.
    ///
    /// The plan's columns are the pair's number, then the table's columns.
    pub fn over(
        &self,
        existing: Arc<dyn TableProvider>,
        proposed: Arc<dyn TableProvider>,
        values: &[ScalarValue],
    ) -> Result<LogicalPlan> {
        // RETURNING, planned later, may have added parameters.
        let values = values.get(..self.parameters.len()).unwrap_or(values);
        let plan = bind(&self.plan, &self.parameters, values.to_vec())?;
        with_rows(plan, &[existing, proposed])
    }
}

/// Rows to change.
#[derive(Clone, Debug)]
pub struct UpdatePlan {
    pub table: Relation,
    /// Gives the table's columns as they are, then the table's columns as they shall be, then what `joined` says.
    pub plan: LogicalPlan,
    /// Set when FROM joins other relations, so that a row may come more than once.
    pub joined: Option<Joined>,
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
    /// Gives the table's columns, then what `joined` says.
    pub plan: LogicalPlan,
    /// Set when USING joins other relations, so that a row may come more than once.
    pub joined: Option<Joined>,
    pub returning: Option<Returning>,
    pub parameters: Vec<DataType>,
    /// Their OIDs, where the Arrow types do not tell them.
    pub parameter_oids: Vec<Option<u32>>,
    pub relations: Vec<RelationId>,
}

/// The columns that a plan has beyond the table's because of FROM or USING.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The column that numbers the table's rows, for a table whose rows have no key to tell them apart.
    pub number: Option<usize>,
    /// The columns of each joined relation, which RETURNING may name.
    pub parts: Vec<Range<usize>>,
}

/// A RETURNING list.
#[derive(Clone, Debug)]
pub struct Returning {
    /// Reads the rows from sources that [`over`](Self::over) replaces.
    plan: LogicalPlan,
    /// Output columns, as of a query.
    pub schema: SchemaRef,
    parameters: Vec<DataType>,
}

impl Returning {
    /// The plan that answers RETURNING from `rows`: the rows inserted, the rows as updated, or the rows deleted, with the
    /// table's columns. If the statement joins other relations, the rows of each follow; all of them have as many rows and
    /// their number as a last column ([`with_number`]). `values` are the statement's parameters.
    pub fn over(&self, rows: &[Arc<dyn TableProvider>], values: &[ScalarValue]) -> Result<LogicalPlan> {
        with_rows(bind(&self.plan, &self.parameters, values.to_vec())?, rows)
    }
}

/// Puts rows in the place of [`AffectedRows`].
fn with_rows(plan: LogicalPlan, rows: &[Arc<dyn TableProvider>]) -> Result<LogicalPlan> {
    let replaced = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::TableScan(scan) => match scan.source.downcast_ref::<AffectedRows>().map(|a| a.part) {
            None => Ok(Transformed::no(LogicalPlan::TableScan(scan))),
            Some(part) => {
                let rows = rows.get(part).ok_or_else(|| {
                    datafusion::common::DataFusionError::Internal("rows of a joined relation are missing".into())
                })?;
                let source = provider_as_source(Arc::clone(rows));
                Ok(Transformed::yes(LogicalPlan::TableScan(TableScan { source, ..scan })))
            }
        },
        other => Ok(Transformed::no(other)),
    });
    replaced.map(|t| t.data).map_err(plan::error::from_datafusion_error)
}

/// Rows with their number, from 0, as a last column: what ties the parts of one row together.
pub fn with_number(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let mut columns = columns;
    columns.push(Arc::new(Int64Array::from_iter_values(0..rows as i64)));
    Ok(RecordBatch::try_new(numbered_schema(schema), columns)?)
}

/// The name of the column that numbers rows; no statement can write it, because it holds a control character.
const NUMBER: &str = "\u{1f}n";

/// `schema` with the number as a last column; all other columns nullable.
fn numbered_schema(schema: &SchemaRef) -> SchemaRef {
    let mut fields: Vec<Field> = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    fields.push(Field::new(NUMBER, DataType::Int64, false));
    Arc::new(Schema::new(fields))
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

/// Adds the type OIDs of parameters that a later part of the statement has told more of.
fn add_oids(oids: &mut Vec<Option<u32>>, later: Vec<Option<u32>>) {
    oids.resize(oids.len().max(later.len()), None);
    for (oid, later) in oids.iter_mut().zip(later) {
        *oid = oid.or(later);
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

/// Stands for the rows that a statement has touched, or for what was joined to them.
#[derive(Debug)]
pub(crate) struct AffectedRows {
    /// The table, unless they were joined to it.
    pub relation: Option<RelationId>,
    schema: SchemaRef,
    part: usize,
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
            RelationKind::Side => {
                "Its source or table writes it; copy its rows into a table of your own with CREATE SINK … INTO."
            }
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
                type_select_parameters(&query, &table, &targets, &mut given);
                let values = self.prepare_values(&mut query, &table, &targets, &insert.columns, &mut given, &text)?;
                let rows = values.map(|n| row_schema(&table, &targets[..n])).transpose()?;
                let items = select_items(&query);
                let mut raw = self.raw_query_for(query, source, &given.declared, 0, rows)?;
                raw.known.extend(given.known);
                let width = raw.plan.schema().fields().len();
                check_width(width, targets.len(), !insert.columns.is_empty(), insert)?;
                if values.is_none() {
                    self.check_selected(&items, &raw, &table, &targets, &text, insert.table.position)?;
                }
                let mut places = vec![None; table.columns.len()];
                for (i, column) in targets.iter().take(width).enumerate() {
                    places[*column] = Some(i);
                }
                Raw { plan: self.table_rows(&table, raw.plan, &places)?, ..raw }
            }
        };
        if let Some(conflict) = &insert.on_conflict {
            check_conflict_target(&table, conflict)?;
        }
        let QueryPlan { plan, mut parameters, mut parameter_oids, mut relations, .. } = self.finish(raw, source)?;
        let alias = insert.alias.as_deref().unwrap_or(&table.name);
        let on_conflict = match &insert.on_conflict {
            None => None,
            Some(Conflict { update: None, .. }) => Some(ConflictPlan::DoNothing),
            Some(Conflict { update: Some(update), .. }) => {
                let planned = self.conflict_update(&table, alias, update, source, &mut parameters)?;
                add_oids(&mut parameter_oids, planned.parameter_oids);
                relations.extend(planned.relations);
                let plan = ConflictUpdatePlan { plan: planned.plan, parameters: planned.parameters };
                Some(ConflictPlan::Update(Box::new(plan)))
            }
        };
        let target = Part::of(&table, alias);
        let returning =
            self.returning(&table, vec![target], &insert.returning, source, &mut parameters, &mut parameter_oids)?;
        relations.push(table.id);
        Ok(InsertPlan { table, plan, on_conflict, returning, parameters, parameter_oids, relations })
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
        // Expressions whose type is not plain from their form, with their columns.
        let mut computed = Vec::new();
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
                    match form_of(expr) {
                        Form::Typed(from) => check_assignment(&from, column, Some(expr), text)?,
                        Form::Unknown => {}
                        Form::Computed => computed.push((expr.clone(), column)),
                    }
                }
            }
        }
        self.check_computed(computed, text)?;
        Ok(Some(width))
    }

    /// Checks that values of VALUES may be assigned to their columns.
    fn check_computed(&self, computed: Vec<(ast::Expr, &crate::resolver::Column)>, text: &Source<'_>) -> Result<()> {
        // A statement of so many computed values is generated, and then all rows are alike.
        for (expr, column) in computed.into_iter().take(COMPUTED_VALUES_CHECKED) {
            let mut rewritten = expr.clone();
            rewrite::rewrite(&mut rewritten, text, self.settings.now_us.is_none())?;
            let context = Context::new(self, 0);
            let planned =
                SqlToRel::new(&context).sql_to_expr(rewritten, &DFSchema::empty(), &mut PlannerContext::new());
            // What cannot be typed on its own, such as an expression with a parameter, is typed by its place later.
            let typed = planned
                .and_then(|e| LogicalPlanBuilder::empty(true).project([e.alias("value")]))
                .and_then(|b| b.build())
                .and_then(|plan| self.analyze(plan));
            if let Ok(plan) = typed {
                check_assignment(plan.schema().field(0).data_type(), column, Some(&expr), text)?;
            }
        }
        Ok(())
    }

    /// Checks that the columns of a query may be assigned to the columns that they are for.
    fn check_selected(
        &self,
        items: &[Option<ast::Expr>],
        raw: &Raw,
        table: &Relation,
        targets: &[usize],
        text: &Source<'_>,
        position: usize,
    ) -> Result<()> {
        let Some(types) = self.output_types(raw) else { return Ok(()) };
        for (i, (from, target)) in types.iter().zip(targets).enumerate() {
            let item = items.get(i).and_then(Option::as_ref);
            let is_text = matches!(from, DataType::Utf8View | DataType::Utf8 | DataType::LargeUtf8);
            // A literal has no type until its place gives it one; what a set operation makes of its arms is not seen here.
            if is_text && item.is_none_or(|e| !matches!(form_of(e), Form::Computed | Form::Typed(_))) {
                continue;
            }
            check_assignment(from, &table.columns[*target], item, text)
                .map_err(|e| if item.is_none() && position > 0 { e.with_position(position) } else { e })?;
        }
        Ok(())
    }

    /// Types of a plan's columns once it is analysed; `None` when that fails, which planning will tell.
    fn output_types(&self, raw: &Raw) -> Option<Vec<DataType>> {
        let (plan, _) = type_parameters(raw.plan.clone(), &raw.parameters).ok()?;
        let plan = self.analyze(plan).ok()?;
        Some(plan.schema().fields().iter().map(|f| f.data_type().clone()).collect())
    }

    /// Plans DO UPDATE over pairs of rows: the table's under its name or alias, the proposed ones as `excluded`.
    fn conflict_update(
        &self,
        table: &Relation,
        alias: &str,
        update: &ConflictUpdate,
        source: &str,
        parameters: &mut Vec<DataType>,
    ) -> Result<QueryPlan> {
        let declared = parameters.iter().cloned().map(Some).collect();
        let mut given = GivenTypes { declared, known: Known::default() };
        let parts = vec![Part::of(table, alias), Part::of(table, "excluded")];
        let mut projection = vec![number_of(alias)];
        projection.extend(old_columns(table, alias));
        let values = assigned_values(table, &update.assignments, &mut given)?;
        projection.extend(values.iter().map(|(column, value)| new_value(table, *column, value)));
        let rows = WithAffectedRows { inner: self.resolver, table, parts: &parts };
        let planner = self.with_resolver(&rows);
        let mut select = select_parts(&parts, projection);
        select.selection = update.selection.clone();
        let query = rewrite::query_of(SetExpr::Select(Box::new(select)));
        let mut raw = planner.raw_query(query, source, &given.declared, 0)?;
        raw.known.extend(given.known);
        planner.check_assigned(&raw, 1 + table.columns.len(), &values, table, source)?;
        let schema = Arc::clone(raw.plan.schema());
        let mut exprs = vec![column_of(&schema, 0)];
        for (i, definition) in table.columns.iter().enumerate() {
            let value = match values.iter().position(|(column, _)| *column == i) {
                Some(place) => fitted(column_of(&schema, 1 + table.columns.len() + place), definition)?,
                None => column_of(&schema, 1 + i),
            };
            exprs.push(value.alias(format!("{}{NAME_END}new", definition.name)));
        }
        let plan = LogicalPlanBuilder::from(raw.plan)
            .project(exprs)
            .and_then(|b| b.build())
            .map_err(plan::error::from_datafusion_error)?;
        let planned = planner.finish(Raw { plan, ..raw }, source)?;
        parameters.clone_from(&planned.parameters);
        Ok(planned)
    }

    /// Checks the types of assigned values, which are columns of `raw` from `first` on.
    fn check_assigned(
        &self,
        raw: &Raw,
        first: usize,
        values: &[(usize, ast::Expr)],
        table: &Relation,
        source: &str,
    ) -> Result<()> {
        let text = Source::new(source);
        // Literals are typed by their place; for anything else the plan has to be analysed.
        if values.iter().all(|(_, value)| matches!(form_of(value), Form::Unknown)) {
            return Ok(());
        }
        let Some(types) = self.output_types(raw) else { return Ok(()) };
        for (i, (column, value)) in values.iter().enumerate() {
            if let (Some(from), Form::Typed(_) | Form::Computed) = (types.get(first + i), form_of(value)) {
                check_assignment(from, &table.columns[*column], Some(value), &text)?;
            }
        }
        Ok(())
    }

    fn with_resolver<'b>(&'b self, resolver: &'b dyn crate::Resolver) -> Planner<'b> {
        Planner { resolver, settings: self.settings.clone(), zone: self.zone, options: Arc::clone(&self.options) }
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
        let mut given = GivenTypes { declared: declared.to_vec(), known: Known::default() };
        let values = assigned_values(&table, &update.assignments, &mut given)?;
        let mut projection = old_columns(&table, &alias);
        projection.extend(values.iter().map(|(column, value)| new_value(&table, *column, value)));
        let width = projection.len();
        let mut select = rewrite::select_from(object_name(&table), Some(&alias), projection, update.selection.clone());
        join(&mut select, &table, &alias, &update.from, update.returning.is_some());
        let mut query = rewrite::query_of(SetExpr::Select(Box::new(select)));
        query.with.clone_from(&update.with);
        let mut raw = self.raw_query(query, source, &given.declared, 0)?;
        raw.known.extend(given.known);
        self.check_assigned(&raw, table.columns.len(), &values, &table, source)?;
        let schema = Arc::clone(raw.plan.schema());
        let mut exprs: Vec<Expr> = (0..table.columns.len()).map(|i| column_of(&schema, i)).collect();
        for (i, definition) in table.columns.iter().enumerate() {
            let value = match values.iter().position(|(column, _)| *column == i) {
                Some(place) => fitted(column_of(&schema, table.columns.len() + place), definition)?,
                None => column_of(&schema, i),
            };
            exprs.push(value.alias(format!("{}{NAME_END}new", definition.name)));
        }
        let extra = exprs.len();
        exprs.extend((width..schema.fields().len()).map(|i| column_of(&schema, i)));
        let plan = LogicalPlanBuilder::from(raw.plan)
            .project(exprs)
            .and_then(|b| b.build())
            .map_err(plan::error::from_datafusion_error)?;
        let QueryPlan { plan, mut parameters, mut parameter_oids, mut relations, .. } =
            self.finish(Raw { plan, ..raw }, source)?;
        let (joined, mut parts) = joined(&update.from, &table, &plan, extra);
        parts.insert(0, Part::of(&table, &alias));
        let returning =
            self.returning(&table, parts, &update.returning, source, &mut parameters, &mut parameter_oids)?;
        relations.push(table.id);
        let mut assigned: Vec<usize> = values.iter().map(|(column, _)| *column).collect();
        assigned.sort_unstable();
        Ok(UpdatePlan { table, plan, joined, assigned, returning, parameters, parameter_oids, relations })
    }

    fn plan_delete(&self, delete: &Delete, source: &str, declared: &[Option<DataType>]) -> Result<DeletePlan> {
        let table = self.writable_table(&delete.table)?;
        let alias = delete.alias.clone().unwrap_or_else(|| table.name.clone());
        let mut select = rewrite::select_from(
            object_name(&table),
            Some(&alias),
            old_columns(&table, &alias),
            delete.selection.clone(),
        );
        join(&mut select, &table, &alias, &delete.using, delete.returning.is_some());
        let mut query = rewrite::query_of(SetExpr::Select(Box::new(select)));
        query.with.clone_from(&delete.with);
        let raw = self.raw_query(query, source, declared, 0)?;
        let QueryPlan { plan, mut parameters, mut parameter_oids, mut relations, .. } = self.finish(raw, source)?;
        let (joined, mut parts) = joined(&delete.using, &table, &plan, table.columns.len());
        parts.insert(0, Part::of(&table, &alias));
        let returning =
            self.returning(&table, parts, &delete.returning, source, &mut parameters, &mut parameter_oids)?;
        relations.push(table.id);
        Ok(DeletePlan { table, plan, joined, returning, parameters, parameter_oids, relations })
    }

    /// Plans a RETURNING list over the table's columns and those of joined relations, the parts.
    fn returning(
        &self,
        table: &Relation,
        parts: Vec<Part>,
        items: &Option<Vec<SelectItem>>,
        source: &str,
        parameters: &mut Vec<DataType>,
        parameter_oids: &mut Vec<Option<u32>>,
    ) -> Result<Option<Returning>> {
        let Some(items) = items else { return Ok(None) };
        let rows = WithAffectedRows { inner: self.resolver, table, parts: &parts };
        let planner = self.with_resolver(&rows);
        let select = select_parts(&parts, without_numbers(items, &parts));
        let query = rewrite::query_of(SetExpr::Select(Box::new(select)));
        let declared: Vec<Option<DataType>> = parameters.iter().cloned().map(Some).collect();
        let planned = planner.query(&query, source, &declared)?;
        parameters.clone_from(&planned.parameters);
        add_oids(parameter_oids, planned.parameter_oids);
        Ok(Some(Returning { plan: planned.plan, schema: planned.schema, parameters: planned.parameters }))
    }
}

/// Columns that RETURNING or DO UPDATE reads under one name.
struct Part {
    name: String,
    schema: SchemaRef,
}

impl Part {
    fn of(table: &Relation, alias: &str) -> Part {
        Part { name: alias.to_string(), schema: table.arrow_schema() }
    }
}

/// Joins what FROM or USING names to the target of an UPDATE or DELETE. A target without a key is numbered, so that a row
/// that several joined rows meet is told from several equal rows. `returned`: the joined columns are wanted too.
fn join(select: &mut ast::Select, table: &Relation, alias: &str, from: &[ast::TableWithJoins], returned: bool) {
    if from.is_empty() {
        return;
    }
    if table.primary_key.is_empty() {
        let expr = rewrite::row_number(Vec::new());
        let number = SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', NUMBER) };
        let items = vec![SelectItem::Wildcard(ast::WildcardAdditionalOptions::default()), number];
        let numbered = rewrite::select_from(object_name(table), None, items, None);
        select.from[0].relation = ast::TableFactor::Derived {
            lateral: false,
            subquery: Box::new(rewrite::query_of(SetExpr::Select(Box::new(numbered)))),
            alias: Some(rewrite::table_alias(alias)),
            sample: None,
        };
        select.projection.push(number_of(alias));
    }
    select.from.extend(from.iter().cloned());
    if returned {
        let mut names = Vec::new();
        from.iter().for_each(|t| relation_names(t, &mut names));
        select.projection.extend(names.into_iter().map(|name| {
            SelectItem::QualifiedWildcard(
                ast::SelectItemQualifiedWildcardKind::ObjectName(name),
                ast::WildcardAdditionalOptions::default(),
            )
        }));
    }
}

/// The names by which the columns of a joined table are qualified.
fn relation_names(table: &ast::TableWithJoins, names: &mut Vec<ObjectName>) {
    let mut of_factor = |factor: &ast::TableFactor| match factor {
        ast::TableFactor::Table { name, alias, .. } => names.push(match alias {
            Some(alias) => ObjectName::from(vec![alias.name.clone()]),
            None => name.clone(),
        }),
        ast::TableFactor::Derived { alias: Some(alias), .. }
        | ast::TableFactor::TableFunction { alias: Some(alias), .. }
        | ast::TableFactor::Function { alias: Some(alias), .. } => {
            names.push(ObjectName::from(vec![alias.name.clone()]));
        }
        ast::TableFactor::NestedJoin { table_with_joins, alias } => match alias {
            Some(alias) => names.push(ObjectName::from(vec![alias.name.clone()])),
            None => relation_names(table_with_joins, names),
        },
        _ => {}
    };
    of_factor(&table.relation);
    table.joins.iter().for_each(|j| of_factor(&j.relation));
}

/// What a plan has from column `first` on, which [`join`] has put there.
fn joined(
    from: &[ast::TableWithJoins],
    table: &Relation,
    plan: &LogicalPlan,
    first: usize,
) -> (Option<Joined>, Vec<Part>) {
    if from.is_empty() {
        return (None, Vec::new());
    }
    let number = table.primary_key.is_empty().then_some(first);
    let schema = plan.schema();
    let mut parts: Vec<Part> = Vec::new();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut at = first + usize::from(number.is_some());
    while at < schema.fields().len() {
        let qualifier = schema.qualified_field(at).0.cloned();
        let end = (at..schema.fields().len())
            .find(|i| schema.qualified_field(*i).0 != qualifier.as_ref())
            .unwrap_or(schema.fields().len());
        let fields: Vec<Field> =
            schema.fields()[at..end].iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
        let name = qualifier.map_or_else(String::new, |q| q.table().to_string());
        parts.push(Part { name, schema: Arc::new(Schema::new(fields)) });
        ranges.push(at..end);
        at = end;
    }
    (Some(Joined { number, parts: ranges }), parts)
}

/// `SELECT projection FROM` the parts, joined by their numbers.
fn select_parts(parts: &[Part], projection: Vec<SelectItem>) -> ast::Select {
    let name = |part: usize| ObjectName::from(vec![Ident::with_quote('"', format!("{AFFECTED_ROWS}{part}"))]);
    let factor = |part: usize| {
        let select = rewrite::select_from(name(part), Some(&parts[part].name), Vec::new(), None);
        select.from.into_iter().next().map(|t| t.relation)
    };
    let mut select = rewrite::select_from(name(0), Some(&parts[0].name), projection, None);
    let number = |part: usize| {
        let qualifier = Ident::with_quote('"', &parts[part].name);
        Box::new(ast::Expr::CompoundIdentifier(vec![qualifier, Ident::with_quote('"', NUMBER)]))
    };
    for part in 1..parts.len() {
        let Some(relation) = factor(part) else { continue };
        let on = ast::Expr::BinaryOp { left: number(0), op: ast::BinaryOperator::Eq, right: number(part) };
        let join_operator = ast::JoinOperator::Inner(ast::JoinConstraint::On(on));
        select.from[0].joins.push(ast::Join { relation, global: false, join_operator });
    }
    select
}

/// A RETURNING list whose wildcards do not show the numbers that tie the parts together.
fn without_numbers(items: &[SelectItem], parts: &[Part]) -> Vec<SelectItem> {
    if parts.len() == 1 {
        return items.to_vec();
    }
    let columns = |part: &Part| -> Vec<SelectItem> {
        let qualifier = Ident::with_quote('"', &part.name);
        let column = |f: &Arc<Field>| {
            let name = Ident::with_quote('"', rewrite::shown(f.name()));
            SelectItem::UnnamedExpr(ast::Expr::CompoundIdentifier(vec![qualifier.clone(), name]))
        };
        part.schema.fields().iter().map(column).collect()
    };
    let mut plain = Vec::with_capacity(items.len());
    for item in items {
        match item {
            SelectItem::Wildcard(_) => plain.extend(parts.iter().flat_map(columns)),
            SelectItem::QualifiedWildcard(ast::SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                let wanted = name.0.last().and_then(|p| p.as_ident()).map(names::fold);
                match parts.iter().find(|p| Some(&p.name) == wanted.as_ref()) {
                    Some(part) => plain.extend(columns(part)),
                    None => plain.push(item.clone()),
                }
            }
            _ => plain.push(item.clone()),
        }
    }
    plain
}

/// `alias.number` as a column of a select list.
fn number_of(alias: &str) -> SelectItem {
    SelectItem::UnnamedExpr(ast::Expr::CompoundIdentifier(vec![
        Ident::with_quote('"', alias),
        Ident::with_quote('"', NUMBER),
    ]))
}

/// The value for a column, under a name that its old value does not have.
fn new_value(table: &Relation, column: usize, value: &ast::Expr) -> SelectItem {
    let alias = Ident::with_quote('"', format!("{}{NAME_END}new", table.columns[column].name));
    SelectItem::ExprWithAlias { expr: value.clone(), alias }
}

fn column_of(schema: &DFSchemaRef, i: usize) -> Expr {
    let (qualifier, field) = schema.qualified_field(i);
    Expr::Column(DfColumn::new(qualifier.cloned(), field.name()))
}

/// The columns that SET assigns, with their values: DEFAULT put in, parameters typed.
fn assigned_values(
    table: &Relation,
    assignments: &[Assignment],
    given: &mut GivenTypes,
) -> Result<Vec<(usize, ast::Expr)>> {
    let mut values: Vec<(usize, ast::Expr)> = Vec::with_capacity(assignments.len());
    for Assignment { column: name, position, value } in assignments {
        let Some(column) = table.column(name) else {
            return Err(undefined_column(table, name, *position));
        };
        if values.iter().any(|(c, _)| *c == column) {
            let message = format!("multiple assignments to same column \"{name}\"");
            return Err(Error::new(SqlState::SyntaxError, message).with_position(*position));
        }
        let mut value = value.clone();
        if is_default(&value) {
            value = match &table.columns[column].default {
                Some(default) => crate::parse_expr(default)?,
                None => rewrite::null(),
            };
        }
        given.assign(&value, &table.columns[column]);
        values.push((column, value));
    }
    Ok(values)
}

/// Types the parameters that are columns of INSERT … SELECT.
fn type_select_parameters(query: &ast::Query, table: &Relation, targets: &[usize], given: &mut GivenTypes) {
    for (item, target) in select_items(query).iter().zip(targets) {
        if let Some(value) = item {
            given.assign(value, &table.columns[*target]);
        }
    }
}

/// The select list of a plain SELECT without wildcards, by place; empty for anything else.
fn select_items(query: &ast::Query) -> Vec<Option<ast::Expr>> {
    let SetExpr::Select(select) = query.body.as_ref() else { return Vec::new() };
    let item = |item: &SelectItem| match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr.clone()),
        _ => None,
    };
    let items: Vec<Option<ast::Expr>> = select.projection.iter().map(item).collect();
    if items.iter().any(Option::is_none) { Vec::new() } else { items }
}

/// A name that no statement can write, because it holds a control character; a part's number follows.
const AFFECTED_ROWS: &str = "\u{1f}rows";

/// Most computed values of one VALUES list whose types are checked before they are planned.
const COMPUTED_VALUES_CHECKED: usize = 256;

/// The catalog with the rows that the statement has touched as relations more.
struct WithAffectedRows<'a> {
    inner: &'a dyn crate::Resolver,
    table: &'a Relation,
    parts: &'a [Part],
}

impl crate::Resolver for WithAffectedRows<'_> {
    fn relation(&self, name: &Name) -> Option<Relation> {
        let Some(part) = name.name.strip_prefix(AFFECTED_ROWS) else {
            return self.inner.relation(name);
        };
        let part: usize = part.parse().ok()?;
        let schema = &self.parts.get(part)?.schema;
        // A single part needs no number to tie it to others.
        let schema = if self.parts.len() == 1 { Arc::clone(schema) } else { numbered_schema(schema) };
        let relation = (part == 0).then_some(self.table.id);
        let source: Arc<dyn TableSource> = Arc::new(AffectedRows { relation, schema, part });
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
fn check_conflict_target(table: &Relation, conflict: &Conflict) -> Result<()> {
    let at = |e: Error| if conflict.position > 0 { e.with_position(conflict.position) } else { e };
    match &conflict.target {
        ConflictTarget::Any => Ok(()),
        ConflictTarget::Constraint(name) if table.key_name.as_ref() == Some(name) => Ok(()),
        ConflictTarget::Constraint(name) => Err(at(Error::new(
            SqlState::UndefinedObject,
            format!("constraint \"{name}\" for table \"{}\" does not exist", table.name),
        ))),
        ConflictTarget::Columns(columns) => {
            if let Some(unknown) = columns.iter().find(|c| table.column(c).is_none()) {
                return Err(at(Error::new(SqlState::UndefinedColumn, format!("column \"{unknown}\" does not exist"))));
            }
            let mut key: Vec<&str> = table.primary_key.iter().map(|c| table.columns[*c].name.as_str()).collect();
            let mut given: Vec<&str> = columns.iter().map(String::as_str).collect();
            key.sort_unstable();
            given.sort_unstable();
            given.dedup();
            if key.is_empty() || key != given {
                return Err(at(Error::new(
                    SqlState::InvalidColumnReference,
                    "there is no unique or exclusion constraint matching the ON CONFLICT specification",
                )
                .with_hint("Name exactly the columns of the primary key, or none.")));
            }
            Ok(())
        }
    }
}

/// What an expression's form says about its type.
enum Form {
    /// A string or NULL or a parameter: its place decides.
    Unknown,
    Typed(DataType),
    Computed,
}

fn form_of(expr: &ast::Expr) -> Form {
    match expr {
        ast::Expr::Nested(inner) => form_of(inner),
        ast::Expr::UnaryOp { op: ast::UnaryOperator::Minus | ast::UnaryOperator::Plus, expr }
            if matches!(form_of(expr), Form::Typed(DataType::Int32 | DataType::Decimal128(..))) =>
        {
            form_of(expr)
        }
        ast::Expr::Value(value) => match &value.value {
            ast::Value::Number(digits, _) if digits.bytes().all(|b| b.is_ascii_digit()) => Form::Typed(DataType::Int32),
            ast::Value::Number(..) => Form::Typed(DataType::Decimal128(38, 18)),
            ast::Value::Boolean(_) => Form::Typed(DataType::Boolean),
            _ => Form::Unknown,
        },
        ast::Expr::Cast { data_type, .. } => match crate::types::arrow_type(data_type) {
            Ok(data_type) => Form::Typed(data_type),
            Err(_) => Form::Unknown,
        },
        _ => Form::Computed,
    }
}

/// `42804` unless a value of type `from` may be assigned to the column without a cast being written.
fn check_assignment(
    from: &DataType,
    column: &crate::resolver::Column,
    expr: Option<&ast::Expr>,
    text: &Source<'_>,
) -> Result<()> {
    if assignable(from, &column.data_type) {
        return Ok(());
    }
    let shown = |data_type: &DataType| {
        let (oid, _) = catalog::types::oid_and_typmod(data_type, "");
        catalog::types::format_type(oid, -1)
    };
    let error = Error::new(
        SqlState::DatatypeMismatch,
        format!(
            "column \"{}\" is of type {} but expression is of type {}",
            column.name,
            shown(&column.data_type),
            shown(from)
        ),
    )
    .with_hint("You will need to rewrite or cast the expression.");
    let start = expr.map(|e| ast::Spanned::span(e).start).filter(|at| at.line > 0);
    Err(match start {
        Some(at) => error.with_position(text.position(at)),
        None => error,
    })
}

/// Whether PostgreSQL casts `from` to `to` when a value is assigned.
fn assignable(from: &DataType, to: &DataType) -> bool {
    use DataType as T;
    #[derive(PartialEq)]
    enum Family {
        Boolean,
        Number,
        Text,
        Bytes,
        Date,
        Time,
        Timestamp,
        Interval,
        Other,
    }
    let family = |t: &DataType| match t {
        T::Boolean => Family::Boolean,
        T::Int8 | T::Int16 | T::Int32 | T::Int64 | T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64 => Family::Number,
        T::Float16 | T::Float32 | T::Float64 | T::Decimal128(..) | T::Decimal256(..) => Family::Number,
        T::Utf8 | T::LargeUtf8 | T::Utf8View => Family::Text,
        T::Binary | T::LargeBinary | T::BinaryView => Family::Bytes,
        T::Date32 | T::Date64 => Family::Date,
        T::Time32(_) | T::Time64(_) => Family::Time,
        T::Timestamp(..) => Family::Timestamp,
        T::Interval(_) | T::Duration(_) => Family::Interval,
        _ => Family::Other,
    };
    match (from, to) {
        (T::Null, _) => return true,
        (T::List(a), T::List(b)) => return assignable(a.data_type(), b.data_type()),
        (T::List(_), _) => return family(to) == Family::Text,
        (_, T::List(_)) => return family(from) == Family::Other,
        _ => {}
    }
    match (family(from), family(to)) {
        // Types that this function does not know are left to the cast itself.
        (Family::Other, _) | (_, Family::Other | Family::Text) => true,
        (a, b) if a == b => true,
        (Family::Date, Family::Timestamp) | (Family::Timestamp, Family::Date | Family::Time) => true,
        (Family::Time, Family::Interval) | (Family::Interval, Family::Time) => true,
        _ => false,
    }
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
