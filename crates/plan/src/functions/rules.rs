//! The analyser of every plan, ad-hoc or standing: DataFusion's, with Postgres' meaning of literals, operators and casts.
//!
//! Order matters: operators become functions before types are coerced, so that the functions' own typing counts; casts
//! are rewritten after, so that those which coercion put in are included. Subqueries become joins last. All of it runs before constants are folded.
//! Running the rules on an analysed plan changes nothing.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DFSchemaRef, DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::expr::{Placeholder, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    BinaryExpr, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, RecursiveQuery, Union, Values, lit,
};
use datafusion::optimizer::analyzer::resolve_grouping_function::ResolveGroupingFunction;
use datafusion::optimizer::analyzer::type_coercion::TypeCoercion;
use datafusion::optimizer::{Analyzer, AnalyzerRule};
use datafusion::sql::sqlparser::ast::BinaryOperator;

use super::arithmetic::{Negate, Op};
use super::overload::Type;
use super::typing::PostgresTypes;
use super::{arithmetic, cast, chain, scalar};

/// DataFusion's analyser with our rules in it.
pub fn analyzer() -> Analyzer {
    Analyzer::with_rules(vec![
        Arc::new(ResolveGroupingFunction::new()),
        Arc::new(PostgresOperators),
        Arc::new(PostgresTypes),
        Arc::new(TypeCoercion::new()),
        Arc::new(PostgresCasts),
        Arc::new(crate::table::UnnestSubqueries),
    ])
}

pub(super) fn call(name: &str, args: Vec<Expr>) -> Option<Expr> {
    scalar(name).map(|function| Expr::ScalarFunction(ScalarFunction::new_udf(function, args)))
}

/// The integer literal as Postgres types it: `integer` where it fits.
fn narrow(value: &ScalarValue) -> Option<ScalarValue> {
    match value {
        ScalarValue::Int64(Some(v)) => i32::try_from(*v).ok().map(|v| ScalarValue::Int32(Some(v))),
        _ => None,
    }
}

fn narrowed(expr: Expr) -> Expr {
    match &expr {
        Expr::Literal(value, metadata) => match narrow(value) {
            Some(value) => Expr::Literal(value, metadata.clone()),
            None => expr,
        },
        _ => expr,
    }
}

/// Plans `+ - * / %` as calls of our functions; folds them at once where both sides are literals, so that a long sum of
/// literals is no deep tree.
#[derive(Debug)]
pub struct ArithmeticPlanner;

impl ExprPlanner for ArithmeticPlanner {
    fn plan_binary_op(&self, raw: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        let op = match raw.op {
            BinaryOperator::Plus => Op::Add,
            BinaryOperator::Minus => Op::Sub,
            BinaryOperator::Multiply => Op::Mul,
            BinaryOperator::Divide => Op::Div,
            BinaryOperator::Modulo => Op::Rem,
            _ => return plan_operator(raw, schema),
        };
        let (mut left, mut right) = (narrowed(raw.left), narrowed(raw.right));
        infer(op, &mut left, &mut right, schema);
        if let Some(folded) = fold(op, &left, &right) {
            return Ok(PlannerResult::Planned(folded));
        }
        if let Some(chain) = chain::grow(op, &mut left, &mut right, schema) {
            return Ok(PlannerResult::Planned(chain));
        }
        match call(op.sign(), vec![left, right]) {
            Some(call) => Ok(PlannerResult::Planned(call)),
            None => datafusion::common::internal_err!("operator {} is not registered", op.sign()),
        }
    }
}

/// The function of an operator that is one.
fn function_of(op: &BinaryOperator) -> Option<&'static str> {
    Some(match op {
        BinaryOperator::StringConcat => "||",
        BinaryOperator::BitwiseAnd => "&",
        BinaryOperator::BitwiseOr => "|",
        BinaryOperator::PGBitwiseXor | BinaryOperator::BitwiseXor => "#",
        BinaryOperator::PGBitwiseShiftLeft => "<<",
        BinaryOperator::PGBitwiseShiftRight => ">>",
        BinaryOperator::PGExp => "power",
        BinaryOperator::PGStartsWith => "^@",
        BinaryOperator::PGRegexMatch => "~",
        BinaryOperator::PGRegexIMatch => "~*",
        BinaryOperator::PGRegexNotMatch => "!~",
        BinaryOperator::PGRegexNotIMatch => "!~*",
        _ => return None,
    })
}

/// Operators on text and bits are functions; a literal that is compared takes the type of the other side, which
/// DataFusion would otherwise refuse while it still builds the plan.
fn plan_operator(mut raw: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
    if let Some(name) = function_of(&raw.op) {
        let is_array = |e: &Expr| matches!(e.get_type(schema), Ok(t) if t.is_nested());
        if is_array(&raw.left) || is_array(&raw.right) {
            return Ok(PlannerResult::Original(raw));
        }
        let (left, right) = (narrowed(raw.left), narrowed(raw.right));
        let given = [left.get_type(schema)?, right.get_type(schema)?];
        let Some(function) = scalar(name) else {
            return datafusion::common::internal_err!("operator {name} is not registered");
        };
        if function.coerce_types(&given).is_err() {
            let error = super::overload::no_operator(if name == "power" { "^" } else { name }, &given[0], &given[1]);
            return Err(DataFusionError::External(Box::new(error)));
        }
        // A chain of them is one call: as a tree, each level would be named and typed again and again.
        let operands = match left {
            Expr::ScalarFunction(call)
                if name == "||" && call.func.name() == name && Type::of(&given[0]) == Type::Text =>
            {
                let mut operands = call.args;
                operands.push(right);
                operands
            }
            left => vec![left, right],
        };
        return Ok(PlannerResult::Planned(Expr::ScalarFunction(ScalarFunction::new_udf(function, operands))));
    }
    if raw.op == BinaryOperator::PGOverlap {
        return match call("array_has_any", vec![raw.left, raw.right]) {
            Some(call) => Ok(PlannerResult::Planned(call)),
            None => datafusion::common::internal_err!("array_has_any is not registered"),
        };
    }
    let compares = matches!(
        raw.op,
        BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::Lt
            | BinaryOperator::LtEq
            | BinaryOperator::Gt
            | BinaryOperator::GtEq
    );
    let is_literal = |e: &Expr| matches!(e, Expr::Literal(ScalarValue::Utf8(Some(_)), _));
    if compares && is_literal(&raw.left) != is_literal(&raw.right) {
        let literal_is_left = is_literal(&raw.left);
        let known = if literal_is_left { &raw.right } else { &raw.left };
        let Ok(known) = known.get_type(schema) else { return Ok(PlannerResult::Original(raw)) };
        let wanted = match Type::of(&known) {
            Type::Unknown | Type::Text | Type::Other => return Ok(PlannerResult::Original(raw)),
            Type::Numeric => DataType::Decimal128(38, 18),
            _ => super::canonical(&known),
        };
        let side = if literal_is_left { &mut raw.left } else { &mut raw.right };
        let literal = std::mem::take(side);
        *side = Expr::Cast(datafusion::logical_expr::Cast::new(Box::new(literal), wanted));
    }
    Ok(PlannerResult::Original(raw))
}

/// A parameter beside an operand of known type takes the type that a bare literal would take there.
fn infer(op: Op, left: &mut Expr, right: &mut Expr, schema: &DFSchema) {
    let is_open = |e: &Expr| matches!(e, Expr::Placeholder(Placeholder { field: None, .. }));
    let (open, known, open_is_left) = match (is_open(left), is_open(right)) {
        (true, false) => (left, right, true),
        (false, true) => (right, left, false),
        _ => return,
    };
    let Ok(known) = known.get_type(schema) else { return };
    let types = if open_is_left {
        arithmetic::types(op, &DataType::Null, &known)
    } else {
        arithmetic::types(op, &known, &DataType::Null)
    };
    if let (Expr::Placeholder(parameter), Some(types), false) = (open, types, known.is_null()) {
        let wanted = if open_is_left { types.left } else { types.right };
        parameter.field = Some(Arc::new(Field::new("", wanted, true)));
    }
}

/// The value of an operation on two integer literals, unless it fails: then it is left to fail where it is evaluated.
fn fold(op: Op, left: &Expr, right: &Expr) -> Option<Expr> {
    let (Expr::Literal(l, _), Expr::Literal(r, _)) = (left, right) else { return None };
    let value = match (l, r) {
        (ScalarValue::Int32(Some(l)), ScalarValue::Int32(Some(r))) => ScalarValue::Int32(Some(match op {
            Op::Add => l.checked_add(*r)?,
            Op::Sub => l.checked_sub(*r)?,
            Op::Mul => l.checked_mul(*r)?,
            Op::Div => l.checked_div(*r)?,
            Op::Rem => l.checked_rem(*r)?,
        })),
        (ScalarValue::Int64(Some(l)), ScalarValue::Int64(Some(r))) => ScalarValue::Int64(Some(match op {
            Op::Add => l.checked_add(*r)?,
            Op::Sub => l.checked_sub(*r)?,
            Op::Mul => l.checked_mul(*r)?,
            Op::Div => l.checked_div(*r)?,
            Op::Rem => l.checked_rem(*r)?,
        })),
        _ => return None,
    };
    // An Int64 that came from a wide literal must not be narrowed again: `2147483648 - 1` is a bigint.
    match value {
        ScalarValue::Int64(Some(v)) if i32::try_from(v).is_ok() => {
            Some(Expr::Cast(datafusion::logical_expr::Cast::new(Box::new(lit(v)), DataType::Int64)))
        }
        value => Some(Expr::Literal(value, None)),
    }
}

/// Literals of type integer, checked operators, checked minus.
#[derive(Debug)]
pub struct PostgresOperators;

impl AnalyzerRule for PostgresOperators {
    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        Ok(plan.transform_up_with_subqueries(operators_of_node)?.data)
    }

    fn name(&self) -> &str {
        "postgres_operators"
    }
}

fn operators_of_node(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    // LIMIT and OFFSET must stay the literals that the physical planner reads.
    if matches!(plan, LogicalPlan::Limit(_)) {
        return Ok(Transformed::no(plan));
    }
    if let LogicalPlan::Values(values) = plan {
        return values_of_node(values);
    }
    // Literals in the inputs may have other types now; coercion will bring the inputs together.
    if let LogicalPlan::Union(union) = plan {
        return Ok(Transformed::yes(LogicalPlan::Union(Union::try_new_with_loose_types(union.inputs)?)));
    }
    if let LogicalPlan::RecursiveQuery(query) = plan {
        return recursive_query(query);
    }
    let names = NamePreserver::new(&plan);
    plan.map_expressions(|expr| {
        let name = names.save(&expr);
        rewrite_operators(expr).map(|t| t.update_data(|e| name.restore(e)))
    })?
    .map_data(|plan| plan.recompute_schema())
}

fn rewrite_operators(expr: Expr) -> Result<Transformed<Expr>> {
    expr.transform_down(|expr| {
        Ok(match expr {
            // Arguments of window functions (lag's offset, ntile's buckets) are read as Int64 literals.
            Expr::WindowFunction(_) => Transformed::new(expr, false, TreeNodeRecursion::Jump),
            // The type was asked for; the value inside keeps all its bits.
            Expr::Cast(ref cast)
                if matches!(*cast.expr, Expr::Literal(ScalarValue::Int64(_), _))
                    && *cast.field.data_type() != DataType::Boolean =>
            {
                Transformed::new(expr, false, TreeNodeRecursion::Jump)
            }
            Expr::InList(_) | Expr::Between(_) => Transformed::no(expr),
            Expr::Literal(ref value, ref metadata) => match narrow(value) {
                Some(value) => Transformed::yes(Expr::Literal(value, metadata.clone())),
                None => Transformed::no(expr),
            },
            Expr::Negative(inner) => match *inner {
                Expr::Literal(..) => Transformed::no(Expr::Negative(inner)),
                other => match call(Negate::NAME, vec![other]) {
                    Some(call) => Transformed::yes(call),
                    None => return datafusion::common::internal_err!("unary minus is not registered"),
                },
            },
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let sign = match op {
                    Operator::Plus => "+",
                    Operator::Minus => "-",
                    Operator::Multiply => "*",
                    Operator::Divide => "/",
                    Operator::Modulo => "%",
                    _ => return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right }))),
                };
                match call(sign, vec![*left, *right]) {
                    Some(call) => Transformed::yes(call),
                    None => return datafusion::common::internal_err!("operator {sign} is not registered"),
                }
            }
            other => Transformed::no(other),
        })
    })
}

/// Both terms of a recursive query keep the types with which the reference to itself was planned.
fn recursive_query(mut query: RecursiveQuery) -> Result<Transformed<LogicalPlan>> {
    let mut own: Option<SchemaRef> = None;
    query.recursive_term.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && scan.table_name.schema().is_none()
            && scan.table_name.table() == query.name
        {
            own = Some(scan.source.schema());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    if let Some(own) = own {
        query.static_term = with_types(query.static_term, &own)?;
        query.recursive_term = with_types(query.recursive_term, &own)?;
    }
    Ok(Transformed::yes(LogicalPlan::RecursiveQuery(query)))
}

/// `plan` with its columns cast to the types of `wanted`, by position.
pub(super) fn with_types(plan: Arc<LogicalPlan>, wanted: &SchemaRef) -> Result<Arc<LogicalPlan>> {
    let schema = plan.schema();
    let same = schema.fields().iter().zip(wanted.fields()).all(|(a, b)| a.data_type() == b.data_type());
    if same || schema.fields().len() != wanted.fields().len() {
        return Ok(plan);
    }
    let exprs: Vec<Expr> = schema
        .iter()
        .zip(wanted.fields())
        .map(|((qualifier, field), wanted)| {
            let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
            let cast = Expr::Cast(datafusion::logical_expr::Cast::new(Box::new(column), wanted.data_type().clone()));
            cast.alias_qualified(qualifier.cloned(), field.name())
        })
        .collect();
    Ok(Arc::new(LogicalPlanBuilder::from(plan.as_ref().clone()).project(exprs)?.build()?))
}

/// A column of VALUES whose values are all integer literals that fit is of type integer.
fn values_of_node(values: Values) -> Result<Transformed<LogicalPlan>> {
    let Values { schema, values } = values;
    let mut fields = Vec::with_capacity(schema.fields().len());
    let mut narrowed_columns = vec![false; schema.fields().len()];
    for (i, (qualifier, field)) in schema.iter().enumerate() {
        let fits = field.data_type() == &DataType::Int64
            && values.iter().all(|row| match row.get(i) {
                Some(Expr::Literal(ScalarValue::Int64(None) | ScalarValue::Null, _)) => true,
                Some(Expr::Literal(value, _)) => narrow(value).is_some(),
                _ => false,
            })
            && values.iter().any(|row| matches!(row.get(i), Some(Expr::Literal(ScalarValue::Int64(Some(_)), _))));
        narrowed_columns[i] = fits;
        let field =
            if fits { Arc::new(field.as_ref().clone().with_data_type(DataType::Int32)) } else { Arc::clone(field) };
        fields.push((qualifier.cloned(), field));
    }
    let mut rows = Vec::with_capacity(values.len());
    for row in values {
        let mut out = Vec::with_capacity(row.len());
        for (i, expr) in row.into_iter().enumerate() {
            out.push(match expr {
                Expr::Literal(ScalarValue::Int64(None) | ScalarValue::Null, m) if narrowed_columns[i] => {
                    Expr::Literal(ScalarValue::Int32(None), m)
                }
                expr @ Expr::Literal(..) if narrowed_columns[i] => narrowed(expr),
                // Of a wider column: the literal keeps its type.
                expr @ Expr::Literal(..) => expr,
                expr => rewrite_operators(expr)?.data,
            });
        }
        rows.push(out);
    }
    let schema: DFSchemaRef = Arc::new(DFSchema::new_with_metadata(fields, schema.metadata().clone())?);
    Ok(Transformed::yes(LogicalPlan::Values(Values { schema, values: rows })))
}

/// Casts that mean something else in Postgres than in Arrow.
#[derive(Debug)]
pub struct PostgresCasts;

impl AnalyzerRule for PostgresCasts {
    fn analyze(&self, plan: LogicalPlan, config: &ConfigOptions) -> Result<LogicalPlan> {
        let zone = config.execution.time_zone.clone().unwrap_or_else(|| "UTC".to_string());
        Ok(plan.transform_up_with_subqueries(|plan| casts_of_node(plan, &zone))?.data)
    }

    fn name(&self) -> &str {
        "postgres_casts"
    }
}

fn casts_of_node(plan: LogicalPlan, zone: &str) -> Result<Transformed<LogicalPlan>> {
    if matches!(plan, LogicalPlan::Limit(_)) {
        return Ok(Transformed::no(plan));
    }
    let mut schema = merge_schema(&plan.inputs());
    if let LogicalPlan::TableScan(scan) = &plan {
        schema.merge(&DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?);
    }
    let names = NamePreserver::new(&plan);
    plan.map_expressions(|expr| {
        let name = names.save(&expr);
        rewrite_casts(expr, &schema, zone).map(|t| t.update_data(|e| name.restore(e)))
    })?
    .map_data(|plan| plan.recompute_schema())
}

fn rewrite_casts(expr: Expr, schema: &DFSchema, zone: &str) -> Result<Transformed<Expr>> {
    expr.transform_up(|expr| {
        let Expr::Cast(cast) = &expr else { return Ok(Transformed::no(expr)) };
        // An outer reference has no column in this node's inputs; its expression knows its own type.
        let from = cast.expr.get_type(schema)?;
        let to = cast.field.data_type();
        let Some((function, arguments)) = cast::function_of(&from, to, zone) else {
            // What the cast said about the type beyond its Arrow type has served its purpose when the plan was bound.
            return Ok(match cast.field.metadata().is_empty() {
                true => Transformed::no(expr),
                false => {
                    let plain = datafusion::logical_expr::Cast::new(cast.expr.clone(), to.clone());
                    Transformed::yes(Expr::Cast(plain))
                }
            });
        };
        let mut args = vec![cast.expr.as_ref().clone()];
        args.extend(arguments.into_iter().map(|value| Expr::Literal(value, None)));
        let Some(call) = call(function, args) else {
            return datafusion::common::internal_err!("cast {function} is not registered");
        };
        // The function gives the canonical layout of text; what wants another gets it by a cast that changes no value.
        let result = match to {
            DataType::Utf8 | DataType::LargeUtf8 => {
                Expr::Cast(datafusion::logical_expr::Cast::new(Box::new(call), to.clone()))
            }
            _ => call,
        };
        Ok(Transformed::yes(result))
    })
}
