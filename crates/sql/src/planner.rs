//! Queries to table plans: names bound, types coerced, Postgres' meaning given.
//!
//! A plan that leaves here has been through `plan::functions::rules::analyzer`; its output columns have canonical types.
//! Everything is synchronous: tables are found through a [`Resolver`], functions in `plan::functions`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::ParamValues;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column as DfColumn, DFSchema, DFSchemaRef, DataFusionError, ScalarValue};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Union};
use datafusion::sql::planner::{PlannerContext, SqlToRel};
use datafusion::sql::sqlparser::ast;
use flow::{Error, RelationId, Result, SqlState};
use plan::error::from_datafusion_error_in;
use plan::functions::zone::Zone;
use plan::functions::{canonical, rules};

use crate::context::Context;
use crate::limits::{EXPRESSION_DEPTH_MAX, with_large_stack};
use crate::names::Source;
use crate::origin::{self, Known};
use crate::resolver::{Column, Resolver};
use crate::rewrite::{self, shown};
use crate::{limit, locate, merged, scopes, session};

/// What planning depends on besides the text and the catalog.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The session's `TimeZone`.
    pub zone: String,
    /// Microseconds since 1970 UTC at the start of the transaction: what `now()` gives. `None` for a standing query, in
    /// which the clock's functions are refused.
    pub now_us: Option<i64>,
}

impl Settings {
    /// For a view or a sink.
    pub fn standing(zone: impl Into<String>) -> Settings {
        Settings { zone: zone.into(), now_us: None }
    }

    /// For a statement that runs now.
    pub fn at(zone: impl Into<String>, now_us: i64) -> Settings {
        Settings { zone: zone.into(), now_us: Some(now_us) }
    }
}

/// Plans statements of one session at one moment.
pub struct Planner<'a> {
    pub(crate) resolver: &'a dyn Resolver,
    pub(crate) settings: Settings,
    pub(crate) zone: Zone,
    pub(crate) options: Arc<ConfigOptions>,
}

/// A query that can run.
#[derive(Clone, Debug)]
pub struct QueryPlan {
    /// Analysed, not optimised. Its columns are those of `schema` by position; their names in the plan may differ.
    pub plan: LogicalPlan,
    /// Output columns: shown names, which may repeat, and canonical types; with the metadata [`PG_TYPE`] and
    /// [`PG_COLUMN`] where there is more to say.
    ///
    /// [`PG_TYPE`]: catalog::types::PG_TYPE
    /// [`PG_COLUMN`]: catalog::types::PG_COLUMN
    pub schema: SchemaRef,
    /// Types of `$1`, `$2`, …
    pub parameters: Vec<DataType>,
    /// Their OIDs, where the Arrow types do not tell them.
    pub parameter_oids: Vec<Option<u32>>,
    /// Every relation that the query reads, directly or through views, without repetition.
    pub relations: Vec<RelationId>,
}

/// A plan as SqlToRel made it.
pub(crate) struct Raw {
    pub plan: LogicalPlan,
    /// One for each parameter: its type, where it was given.
    pub parameters: Vec<Option<DataType>>,
    pub relations: Vec<RelationId>,
    pub known: Known,
}

impl<'a> Planner<'a> {
    /// Errors: `22023` for a time zone that does not exist.
    pub fn new(resolver: &'a dyn Resolver, settings: Settings) -> Result<Planner<'a>> {
        let zone = Zone::parse(&settings.zone).ok_or_else(|| {
            Error::new(
                SqlState::InvalidParameterValue,
                format!("invalid value for parameter \"TimeZone\": \"{}\"", settings.zone),
            )
        })?;
        let options = session::shared_options(&settings.zone);
        Ok(Planner { resolver, settings, zone, options })
    }

    /// Plans a query.
    ///
    /// `source` is the text that the tree was parsed from ([`crate::Parsed::source`]). `declared` are types that the client
    /// gave for parameters; the others are inferred, and are `text` where nothing tells.
    pub fn query(&self, query: &ast::Query, source: &str, declared: &[Option<DataType>]) -> Result<QueryPlan> {
        with_large_stack(|| {
            let raw = self.raw_query(query.clone(), source, declared, 0)?;
            self.finish(raw, source)
        })
    }

    /// The value of an expression without columns, as a parameter of EXECUTE has, cast to `to`.
    pub fn constant(&self, expr: &ast::Expr, source: &str, to: &DataType) -> Result<ScalarValue> {
        with_large_stack(|| {
            let context = Context::new(self, 0);
            let text = Source::new(source);
            let mut expr = expr.clone();
            rewrite::rewrite(&mut expr, &text, false)?;
            let relational = SqlToRel::new(&context);
            let fail = |e: DataFusionError| locate::complete(from_datafusion_error_in(source, e), &text);
            let expr = relational.sql_to_expr(expr, &DFSchema::empty(), &mut PlannerContext::new()).map_err(fail)?;
            let cast = Expr::Cast(Cast::new(Box::new(expr), to.clone()));
            let plan =
                LogicalPlanBuilder::empty(true).project([cast.alias("value")]).and_then(|b| b.build()).map_err(fail)?;
            let plan = self.analyze(plan).map_err(fail)?;
            let LogicalPlan::Projection(projection) = &plan else {
                return Err(Error::internal("an expression that is no projection"));
            };
            crate::constant::evaluate(&projection.expr[0], &self.options).map_err(fail)
        })
    }

    /// Binds names; types are not yet coerced. `depth` counts the views around.
    pub(crate) fn raw_query(
        &self,
        query: ast::Query,
        source: &str,
        declared: &[Option<DataType>],
        depth: usize,
    ) -> Result<Raw> {
        self.raw_query_for(query, source, declared, depth, None)
    }

    /// As [`raw_query`](Self::raw_query); VALUES at the top are typed by `rows`.
    pub(crate) fn raw_query_for(
        &self,
        mut query: ast::Query,
        source: &str,
        declared: &[Option<DataType>],
        depth: usize,
        rows: Option<DFSchemaRef>,
    ) -> Result<Raw> {
        let text = Source::new(source);
        let located = |e: Error| if depth == 0 { locate::complete(e, &text) } else { locate::inside_view(e) };
        limit::compute(&mut query, self, source).map_err(located)?;
        scopes::complete(&mut query, self.resolver, &text).map_err(located)?;
        merged::rewrite(&mut query, self, source, depth).map_err(located)?;
        let found = rewrite::rewrite(&mut query, &text, self.settings.now_us.is_none()).map_err(located)?;
        let count = found.parameters.max(declared.len());
        let declared: Vec<Option<DataType>> = (0..count).map(|i| declared.get(i).cloned().flatten()).collect();
        let types: Vec<Option<FieldRef>> =
            declared.iter().map(|t| t.as_ref().map(|t| Arc::new(Field::new("", t.clone(), true)))).collect();
        let context = Context::new(self, depth);
        let mut planner_context = PlannerContext::new().with_prepare_param_data_types(types);
        planner_context.set_table_schema(rows);
        let statement = ast::Statement::Query(Box::new(query));
        let plan = SqlToRel::new(&context)
            .sql_statement_to_plan_with_context(statement, &mut planner_context)
            .and_then(flat_unions)
            .map_err(|e| located(from_datafusion_error_in(source, e)))?;
        let known = context.known.into_inner();
        Ok(Raw { plan, parameters: declared, relations: context.relations.into_inner(), known })
    }

    /// Types the parameters, analyses, and casts the output to canonical types.
    pub(crate) fn finish(&self, raw: Raw, source: &str) -> Result<QueryPlan> {
        let text = Source::new(source);
        let fail = |e: DataFusionError| locate::complete(from_datafusion_error_in(source, e), &text);
        // Before the analysis, which takes apart what tells a varchar from a text.
        let described = origin::describe(&raw.plan, &raw.known);
        let parameter_oids = origin::parameter_types(&raw.plan, &raw.known, raw.parameters.len());
        let (plan, parameters) = type_parameters(raw.plan, &raw.parameters).map_err(fail)?;
        let plan = self.analyze(plan).map_err(fail)?;
        let plan = canonical_output(plan).map_err(fail)?;
        check_depth(&plan)?;
        let fields: Vec<Field> = plan
            .schema()
            .fields()
            .iter()
            .zip(&described)
            .map(|(f, d)| {
                let field = Field::new(shown(f.name()), f.data_type().clone(), f.is_nullable());
                field.with_metadata(d.metadata(f.data_type()))
            })
            .collect();
        let mut relations = raw.relations;
        relations.sort();
        relations.dedup();
        Ok(QueryPlan { plan, schema: Arc::new(Schema::new(fields)), parameters, parameter_oids, relations })
    }

    pub(crate) fn analyze(&self, plan: LogicalPlan) -> std::result::Result<LogicalPlan, DataFusionError> {
        rules::analyzer().execute_and_check(plan, &self.options, |_, _| {})
    }
}

impl QueryPlan {
    /// The plan with `values` for `$1`, `$2`, …; each of the type in [`parameters`](Self::parameters).
    pub fn bind(&self, values: Vec<ScalarValue>) -> Result<LogicalPlan> {
        bind(&self.plan, &self.parameters, values)
    }

    /// The columns of a view over this query. `names` rename the first of them.
    ///
    /// Errors: `42701` for a name that comes twice, `42601` for more names than columns.
    pub fn view_columns(&self, names: &[String]) -> Result<Vec<Column>> {
        let fields = self.schema.fields();
        if names.len() > fields.len() {
            return Err(Error::new(SqlState::SyntaxError, "CREATE VIEW specifies more column names than columns"));
        }
        let mut columns: Vec<Column> = Vec::with_capacity(fields.len());
        for (i, field) in fields.iter().enumerate() {
            let name = names.get(i).map_or(field.name().as_str(), String::as_str);
            if columns.iter().any(|c| c.name == name) {
                return Err(Error::new(
                    SqlState::DuplicateColumn,
                    format!("column \"{name}\" specified more than once"),
                )
                .with_hint("Give the columns different names with AS."));
            }
            let mut column = Column::new(name, field.data_type().clone(), field.is_nullable());
            column.pg_type = origin::pg_type_of(field);
            columns.push(column);
        }
        Ok(columns)
    }

    /// The plan with its columns named `names`, unqualified: what a standing view materializes.
    pub fn named(&self, columns: &[Column]) -> Result<LogicalPlan> {
        let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
        rename(self.plan.clone(), &names)
    }
}

pub(crate) fn bind(plan: &LogicalPlan, parameters: &[DataType], values: Vec<ScalarValue>) -> Result<LogicalPlan> {
    if values.len() != parameters.len() {
        return Err(Error::new(
            SqlState::ProtocolViolation,
            format!("the statement needs {} parameters but {} were given", parameters.len(), values.len()),
        ));
    }
    if values.is_empty() {
        return Ok(plan.clone());
    }
    with_large_stack(|| {
        plan.clone().replace_params_with_values(&ParamValues::from(values)).map_err(plan::error::from_datafusion_error)
    })
}

/// `plan` with its first columns named `names` and every column unqualified.
pub(crate) fn rename(plan: LogicalPlan, names: &[&str]) -> Result<LogicalPlan> {
    let schema = plan.schema();
    let exprs: Vec<Expr> = schema
        .iter()
        .enumerate()
        .map(|(i, (qualifier, field))| {
            let name = names.get(i).copied().unwrap_or_else(|| shown(field.name()));
            Expr::Column(DfColumn::new(qualifier.cloned(), field.name())).alias(name)
        })
        .collect();
    LogicalPlanBuilder::from(plan).project(exprs).and_then(|b| b.build()).map_err(plan::error::from_datafusion_error)
}

/// UNION ALL of UNION ALL as one union of all branches: a chain of hundreds is no deep tree then.
fn flat_unions(plan: LogicalPlan) -> std::result::Result<LogicalPlan, DataFusionError> {
    let flat = plan.transform_down_with_subqueries(|node| {
        let LogicalPlan::Union(union) = node else { return Ok(Transformed::no(node)) };
        let is_union = |input: &Arc<LogicalPlan>| matches!(input.as_ref(), LogicalPlan::Union(_));
        if !union.inputs.iter().any(is_union) {
            return Ok(Transformed::no(LogicalPlan::Union(union)));
        }
        let mut branches = Vec::new();
        let mut pending: Vec<Arc<LogicalPlan>> = union.inputs.into_iter().rev().collect();
        while let Some(input) = pending.pop() {
            match input.as_ref() {
                LogicalPlan::Union(inner) => pending.extend(inner.inputs.iter().rev().cloned()),
                _ => branches.push(input),
            }
        }
        Ok(Transformed::yes(LogicalPlan::Union(Union::try_new_with_loose_types(branches)?)))
    })?;
    Ok(flat.data)
}

fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        other => other,
    }
}

/// Refuses expressions that execution could not evaluate on an ordinary stack: `54001`.
fn check_depth(plan: &LogicalPlan) -> Result<()> {
    let mut too_deep = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            let mut level = vec![expr];
            for _ in 0..EXPRESSION_DEPTH_MAX {
                let mut next = Vec::new();
                for expr in level {
                    expr.apply_children(|child| {
                        // An alias is a name, not an operation.
                        next.push(unaliased(child));
                        Ok(TreeNodeRecursion::Continue)
                    })?;
                }
                level = next;
            }
            too_deep |= !level.is_empty();
            Ok(if too_deep { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    })
    .map_err(plan::error::from_datafusion_error)?;
    if too_deep {
        return Err(Error::new(SqlState::StatementTooComplex, "expression is nested too deeply")
            .with_detail(format!("An expression may have {EXPRESSION_DEPTH_MAX} levels."))
            .with_hint("Compute parts of it in a subquery, or use IN (…) or a join with VALUES."));
    }
    Ok(())
}

/// Casts output columns whose type no column can have.
fn canonical_output(plan: LogicalPlan) -> std::result::Result<LogicalPlan, DataFusionError> {
    let schema = plan.schema();
    if schema.fields().iter().all(|f| canonical(f.data_type()) == *f.data_type()) {
        return Ok(plan);
    }
    let exprs: Vec<Expr> = schema
        .iter()
        .map(|(qualifier, field)| {
            let column = Expr::Column(DfColumn::new(qualifier.cloned(), field.name()));
            let wanted = canonical(field.data_type());
            if wanted == *field.data_type() {
                return column;
            }
            Expr::Cast(Cast::new(Box::new(column), wanted)).alias_qualified(qualifier.cloned(), field.name())
        })
        .collect();
    LogicalPlanBuilder::from(plan).project(exprs)?.build()
}

/// Gives every parameter one type: the one that its place asks for, else `text`.
pub(crate) fn type_parameters(
    plan: LogicalPlan,
    declared: &[Option<DataType>],
) -> std::result::Result<(LogicalPlan, Vec<DataType>), DataFusionError> {
    if declared.is_empty() {
        return Ok((plan, Vec::new()));
    }
    // What DataFusion inferred, and what a cast around the parameter says.
    let given = declared.iter().enumerate().filter_map(|(i, t)| Some((format!("${}", i + 1), t.clone()?)));
    let mut known: BTreeMap<String, DataType> = given.collect();
    plan.apply_with_subqueries(|node| {
        let is_limit = matches!(node, LogicalPlan::Limit(_));
        node.apply_expressions(|expr| {
            expr.apply(|e| {
                match e {
                    Expr::Placeholder(Placeholder { id, field: Some(field) })
                        if *field.data_type() != DataType::Null =>
                    {
                        known.entry(id.clone()).or_insert_with(|| canonical(field.data_type()));
                    }
                    Expr::Placeholder(Placeholder { id, .. }) if is_limit => {
                        known.entry(id.clone()).or_insert(DataType::Int64);
                    }
                    Expr::Cast(cast) => {
                        if let Expr::Placeholder(Placeholder { id, field: None }) = cast.expr.as_ref() {
                            known.entry(id.clone()).or_insert_with(|| canonical(cast.field.data_type()));
                        }
                    }
                    // `x = ANY ($1)`
                    Expr::ScalarFunction(call) if call.func.name() == "array_has" => {
                        if let [Expr::Placeholder(Placeholder { id, field: None }), element] = call.args.as_slice()
                            && let Some(input) = node.inputs().first()
                        {
                            let element = canonical(&element.get_type(input.schema())?);
                            known.entry(id.clone()).or_insert_with(|| DataType::new_list(element, true));
                        }
                    }
                    _ => {}
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    let types: Vec<DataType> =
        (1..=declared.len()).map(|n| known.get(&format!("${n}")).cloned().unwrap_or(DataType::Utf8View)).collect();
    let typed = |id: &str| -> FieldRef {
        let n: usize = id.trim_start_matches('$').parse().unwrap_or(1);
        Arc::new(Field::new("", types.get(n.wrapping_sub(1)).cloned().unwrap_or(DataType::Utf8View), true))
    };
    let plan = plan
        .transform_up_with_subqueries(|node| {
            let names = datafusion::logical_expr::expr_rewriter::NamePreserver::new(&node);
            node.map_expressions(|expr| {
                let name = names.save(&expr);
                expr.transform_up(|e| match e {
                    Expr::Placeholder(Placeholder { id, .. }) => {
                        let field = Some(typed(&id));
                        Ok(Transformed::yes(Expr::Placeholder(Placeholder { id, field })))
                    }
                    other => Ok(Transformed::no(other)),
                })
                .map(|t| t.update_data(|e| name.restore(e)))
            })?
            .map_data(|node| node.recompute_schema())
        })?
        .data;
    Ok((plan, types))
}
