//! PostgreSQL's typing of comparisons, conditions and branches, before DataFusion's coercion sees them.
//!
//! DataFusion compares text with numbers, takes numbers for conditions, and orders floats and intervals by their bits. Here
//! a string literal takes the type of what stands beside it, operands that no operator of PostgreSQL takes are refused, -0
//! is 0, and a day is 24 hours.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::expr::{AggregateFunction, Case, InList, InSubquery, Like, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    BinaryExpr, Cast, Distinct, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, Subquery, Union,
};
use datafusion::optimizer::AnalyzerRule;
use flow::{Error, SqlState};

use super::conditional::unmatched;
use super::overload::{self, Type, no_operator, written};
use super::rules::{call, with_types};
use super::{aggregate, library};

/// The rule; it runs after the literals have got their types and before coercion.
#[derive(Debug)]
pub struct PostgresTypes;

impl AnalyzerRule for PostgresTypes {
    fn analyze(&self, plan: LogicalPlan, config: &ConfigOptions) -> Result<LogicalPlan> {
        let zone = config.execution.time_zone.clone().unwrap_or_else(|| "UTC".to_string());
        Ok(plan.transform_up_with_subqueries(|plan| types_of_node(plan, &zone))?.data)
    }

    fn name(&self) -> &str {
        "postgres_types"
    }
}

fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// The key in the metadata of a cast's field under which stands the name of the column that the value is assigned to.
pub const ASSIGNED: &str = "assigned";

/// The function that gives floats one zero and one NaN.
const FLOAT_KEY: &str = "float_key";
/// The function that gives intervals the order of their lengths.
const INTERVAL_ORDER: &str = "interval_order";

fn types_of_node(plan: LogicalPlan, zone: &str) -> Result<Transformed<LogicalPlan>> {
    // LIMIT and OFFSET must stay the literals that the physical planner reads; VALUES have been typed.
    if matches!(plan, LogicalPlan::Limit(_) | LogicalPlan::RecursiveQuery(_)) {
        return Ok(Transformed::no(plan));
    }
    if let LogicalPlan::Union(union) = plan {
        return union_of(union);
    }
    if let LogicalPlan::Distinct(Distinct::All(input)) = &plan {
        let floats = input.schema().fields().iter().any(|f| f.data_type().is_floating());
        let done = matches!(input.as_ref(), LogicalPlan::Projection(p) if p.expr.iter().any(|e| is_call(e, FLOAT_KEY)));
        if !floats || done {
            return Ok(Transformed::no(plan));
        }
        let distinct = LogicalPlanBuilder::from(float_keys(input)?).distinct()?.build()?;
        return Ok(Transformed::yes(distinct));
    }
    let mut schema = merge_schema(&plan.inputs());
    if let LogicalPlan::TableScan(scan) = &plan {
        schema.merge(&DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?);
    }
    let names = NamePreserver::new(&plan);
    let is_sort = matches!(plan, LogicalPlan::Sort(_));
    let is_filter = matches!(plan, LogicalPlan::Filter(_));
    let groups = match &plan {
        LogicalPlan::Aggregate(aggregate) => aggregate.group_expr.clone(),
        _ => Vec::new(),
    };
    let joins = match &plan {
        LogicalPlan::Join(join) => join.on.iter().flat_map(|(l, r)| [l.clone(), r.clone()]).collect(),
        _ => Vec::new(),
    };
    plan.map_expressions(|expr| {
        let name = names.save(&expr);
        let is_key = is_sort || groups.contains(&expr) || joins.contains(&expr);
        let mut rewritten = rewrite(expr, &schema, zone)?;
        if is_filter {
            rewritten = rewritten.map_data(|e| condition(e, "WHERE", &schema))?;
        }
        if is_key {
            let ordered =
                if is_sort { order_key(rewritten.data, &schema)? } else { equality_key(rewritten.data, &schema)? };
            rewritten = Transformed::yes(ordered);
        }
        Ok(rewritten.update_data(|e| name.restore(e)))
    })?
    .map_data(|plan| plan.recompute_schema())
}

/// A plan whose float columns hold one zero and one NaN.
fn float_keys(input: &LogicalPlan) -> Result<LogicalPlan> {
    let exprs = input.schema().iter().map(|(qualifier, field)| {
        let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
        if !field.data_type().is_floating() {
            return Ok(column);
        }
        Ok(function(FLOAT_KEY, column)?.alias_qualified(qualifier.cloned(), field.name()))
    });
    LogicalPlanBuilder::from(input.clone()).project(exprs.collect::<Result<Vec<_>>>()?)?.build()
}

fn function(name: &str, argument: Expr) -> Result<Expr> {
    match call(name, vec![argument]) {
        Some(call) => Ok(call),
        None => datafusion::common::internal_err!("function {name} is not registered"),
    }
}

fn is_call(expr: &Expr, name: &str) -> bool {
    match expr {
        Expr::Alias(alias) => is_call(&alias.expr, name),
        Expr::ScalarFunction(f) => f.func.name() == name,
        _ => false,
    }
}

/// What a float is compared by where equality matters.
fn equality_key(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    match &expr {
        Expr::GroupingSet(_) | Expr::Alias(_) => return Ok(expr),
        // A number that is written is itself, unless it is a zero or a NaN.
        Expr::Literal(ScalarValue::Float64(Some(v)), _) if *v != 0.0 && !v.is_nan() => return Ok(expr),
        Expr::Literal(ScalarValue::Float32(Some(v)), _) if *v != 0.0 && !v.is_nan() => return Ok(expr),
        e if is_call(e, FLOAT_KEY) => return Ok(expr),
        _ => {}
    }
    if expr.get_type(schema)?.is_floating() { function(FLOAT_KEY, expr) } else { Ok(expr) }
}

/// What a value is ordered by.
fn order_key(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    match expr.get_type(schema)? {
        DataType::Interval(_) => function(INTERVAL_ORDER, expr),
        _ => equality_key(expr, schema),
    }
}

/// The inputs of a UNION with their columns brought together.
fn union_of(union: Union) -> Result<Transformed<LogicalPlan>> {
    let Some(first) = union.inputs.first() else { return Ok(Transformed::no(LogicalPlan::Union(union))) };
    let mut wanted = Vec::with_capacity(first.schema().fields().len());
    for (i, field) in first.schema().fields().iter().enumerate() {
        let types: Vec<DataType> =
            union.inputs.iter().filter_map(|p| p.schema().fields().get(i).map(|f| f.data_type().clone())).collect();
        let common = overload::common(&types).ok_or_else(|| external(unmatched("UNION", &types)))?;
        // A column that holds nothing but literals of no type is text.
        let common = if Type::of(&common) == Type::Unknown { DataType::Utf8View } else { common };
        let nullable = union.inputs.iter().any(|p| p.schema().fields().get(i).is_none_or(|f| f.is_nullable()));
        wanted.push(arrow::datatypes::Field::new(field.name(), common, nullable));
    }
    let wanted = Arc::new(arrow::datatypes::Schema::new(wanted));
    let mut inputs = Vec::with_capacity(union.inputs.len());
    for input in union.inputs {
        inputs.push(with_types(input, &wanted)?);
    }
    Ok(Transformed::yes(LogicalPlan::Union(Union::try_new_with_loose_types(inputs)?)))
}

fn rewrite(expr: Expr, schema: &DFSchema, zone: &str) -> Result<Transformed<Expr>> {
    expr.transform_up(|expr| {
        Ok(match expr {
            Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
                let what = if op == Operator::And { "AND" } else { "OR" };
                let (left, right) = (condition(*left, what, schema)?, condition(*right, what, schema)?);
                Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right))))
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(op) => {
                Transformed::yes(compared(*left, op, *right, schema)?)
            }
            Expr::Between(between) => {
                let (low, high, join) = if between.negated {
                    (Operator::Lt, Operator::Gt, Operator::Or)
                } else {
                    (Operator::GtEq, Operator::LtEq, Operator::And)
                };
                let low = compared(between.expr.as_ref().clone(), low, *between.low, schema)?;
                let high = compared(*between.expr, high, *between.high, schema)?;
                Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(Box::new(low), join, Box::new(high))))
            }
            Expr::InList(list) => Transformed::yes(in_list(list, schema)?),
            Expr::InSubquery(subquery) => Transformed::yes(in_subquery(subquery, schema)?),
            Expr::Like(like) => Transformed::yes(Expr::Like(like_of(like, schema)?)),
            Expr::Case(case) => Transformed::yes(Expr::Case(case_of(case, schema)?)),
            Expr::Not(inner) => Transformed::yes(Expr::Not(Box::new(condition(*inner, "NOT", schema)?))),
            Expr::IsTrue(e) => Transformed::yes(Expr::IsTrue(Box::new(condition(*e, "IS TRUE", schema)?))),
            Expr::IsFalse(e) => Transformed::yes(Expr::IsFalse(Box::new(condition(*e, "IS FALSE", schema)?))),
            Expr::IsUnknown(e) => Transformed::yes(Expr::IsUnknown(Box::new(condition(*e, "IS UNKNOWN", schema)?))),
            Expr::IsNotTrue(e) => Transformed::yes(Expr::IsNotTrue(Box::new(condition(*e, "IS NOT TRUE", schema)?))),
            Expr::IsNotFalse(e) => Transformed::yes(Expr::IsNotFalse(Box::new(condition(*e, "IS NOT FALSE", schema)?))),
            Expr::IsNotUnknown(e) => {
                Transformed::yes(Expr::IsNotUnknown(Box::new(condition(*e, "IS NOT UNKNOWN", schema)?)))
            }
            Expr::ScalarFunction(function) => scalar_call(function, schema, zone)?,
            Expr::AggregateFunction(function) => aggregate_call(function, schema)?,
            Expr::Cast(cast) => {
                check_cast(&cast, schema)?;
                if cast.field.metadata().contains_key(ASSIGNED) {
                    Transformed::yes(Expr::Cast(Cast::new(cast.expr, cast.field.data_type().clone())))
                } else {
                    Transformed::no(Expr::Cast(cast))
                }
            }
            other => Transformed::no(other),
        })
    })
}

fn check_cast(cast: &Cast, schema: &DFSchema) -> Result<()> {
    let (from, to) = (cast.expr.get_type(schema)?, cast.field.data_type());
    if let Some(column) = cast.field.metadata().get(ASSIGNED) {
        if overload::assignable(&from, to) {
            return Ok(());
        }
        let message =
            format!("column \"{column}\" is of type {} but expression is of type {}", written(to), written(&from));
        let error = Error::new(SqlState::DatatypeMismatch, message)
            .with_hint("You will need to rewrite or cast the expression.");
        return Err(external(error));
    }
    if overload::castable(&from, to) {
        return Ok(());
    }
    let message = format!("cannot cast type {} to {}", written(&from), written(to));
    Err(external(Error::new(SqlState::CannotCoerce, message)))
}

fn is_comparison(op: Operator) -> bool {
    matches!(
        op,
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

/// Expressions that are conditions whatever they are made of; asking them for their type would walk them again.
fn is_surely_boolean(expr: &Expr) -> bool {
    match expr {
        Expr::BinaryExpr(b) => matches!(b.op, Operator::And | Operator::Or) || is_comparison(b.op),
        Expr::Literal(ScalarValue::Boolean(_), _)
        | Expr::Not(_)
        | Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::IsTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsUnknown(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNotFalse(_)
        | Expr::IsNotUnknown(_)
        | Expr::Exists(_)
        | Expr::InSubquery(_)
        | Expr::InList(_)
        | Expr::Between(_)
        | Expr::Like(_) => true,
        _ => false,
    }
}

/// `expr` as the argument of `what`, which takes booleans.
fn condition(expr: Expr, what: &str, schema: &DFSchema) -> Result<Expr> {
    if is_surely_boolean(&expr) {
        return Ok(expr);
    }
    match expr.get_type(schema)? {
        DataType::Boolean => Ok(expr),
        DataType::Null => Ok(expr),
        t if Type::of(&t) == Type::Unknown => Ok(cast(expr, DataType::Boolean)),
        t => Err(external(Error::new(
            SqlState::DatatypeMismatch,
            format!("argument of {what} must be type boolean, not type {}", written(&t)),
        ))),
    }
}

fn cast(expr: Expr, to: DataType) -> Expr {
    match (expr, to) {
        (Expr::Literal(ScalarValue::Utf8(text), metadata), DataType::Utf8View) => {
            Expr::Literal(ScalarValue::Utf8View(text), metadata)
        }
        (expr, to) => Expr::Cast(Cast::new(Box::new(expr), to)),
    }
}

/// `expr` of type `from` as an operand that is compared as `to`. Between exact numbers it stays as it is: coercion finds
/// the same common type, and keys are found by columns without casts.
fn brought(expr: Expr, from: &DataType, to: &DataType) -> Expr {
    let exact = |t: &DataType| matches!(Type::of(t), Type::Int2 | Type::Int4 | Type::Int8 | Type::Numeric);
    if from == to || exact(from) && exact(to) || *from == DataType::Null {
        return expr;
    }
    match (Type::of(from), to) {
        // The digits of a literal are not rounded to those of the column beside it.
        (Type::Unknown, DataType::Decimal128(_, _)) => cast(expr, DataType::Decimal128(38, 18)),
        _ => cast(expr, to.clone()),
    }
}

fn sign_of(op: Operator) -> &'static str {
    match op {
        Operator::NotEq => "<>",
        Operator::Lt => "<",
        Operator::LtEq => "<=",
        Operator::Gt => ">",
        Operator::GtEq => ">=",
        _ => "=",
    }
}

fn compared(left: Expr, op: Operator, right: Expr, schema: &DFSchema) -> Result<Expr> {
    let (lt, rt) = (left.get_type(schema)?, right.get_type(schema)?);
    let pair = |left: Expr, right: Expr| Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right)));
    if Type::of(&lt) == Type::Other || Type::of(&rt) == Type::Other {
        return Ok(pair(left, right));
    }
    let Some(common) = overload::comparison(&lt, &rt) else {
        return Err(external(no_operator(sign_of(op), &lt, &rt)));
    };
    let common = if Type::of(&common) == Type::Unknown { DataType::Utf8View } else { common };
    let (mut left, mut right) = (brought(left, &lt, &common), brought(right, &rt, &common));
    if common.is_floating() {
        // A literal other than zero is unlike both zeros.
        let is_plain = |e: &Expr| match e {
            Expr::Literal(ScalarValue::Float64(Some(v)), _) => *v != 0.0 && !v.is_nan(),
            Expr::Cast(c) => matches!(c.expr.as_ref(), Expr::Literal(v, _) if is_nonzero(v)),
            _ => false,
        };
        if !is_plain(&left) && !is_plain(&right) {
            left = equality_key(left, schema)?;
            right = equality_key(right, schema)?;
        }
    } else if matches!(common, DataType::Interval(_)) {
        (left, right) = (function(INTERVAL_ORDER, left)?, function(INTERVAL_ORDER, right)?);
    }
    Ok(pair(left, right))
}

/// Whether a literal of a number is one that is not zero.
fn is_nonzero(value: &ScalarValue) -> bool {
    match value {
        ScalarValue::Int32(Some(v)) => *v != 0,
        ScalarValue::Int64(Some(v)) => *v != 0,
        ScalarValue::Decimal128(Some(v), _, _) => *v != 0,
        ScalarValue::Float64(Some(v)) => *v != 0.0 && !v.is_nan(),
        _ => false,
    }
}

fn in_list(list: InList, schema: &DFSchema) -> Result<Expr> {
    let InList { expr, list, negated } = list;
    let own = expr.get_type(schema)?;
    let mut types = Vec::with_capacity(list.len());
    let mut common = own.clone();
    for item in &list {
        let t = item.get_type(schema)?;
        if Type::of(&t) == Type::Other || Type::of(&own) == Type::Other {
            return Ok(Expr::InList(InList { expr, list, negated }));
        }
        common = overload::comparison(&common, &t)
            .ok_or_else(|| external(no_operator(if negated { "<>" } else { "=" }, &own, &t)))?;
        types.push(t);
    }
    let common = if Type::of(&common) == Type::Unknown { DataType::Utf8View } else { common };
    let key = |e: Expr| -> Result<Expr> {
        if common.is_floating() {
            equality_key(e, schema)
        } else if matches!(common, DataType::Interval(_)) {
            function(INTERVAL_ORDER, e)
        } else {
            Ok(e)
        }
    };
    let expr = Box::new(key(brought(*expr, &own, &common))?);
    let list = list.into_iter().zip(types).map(|(e, t)| key(brought(e, &t, &common))).collect::<Result<Vec<_>>>()?;
    Ok(Expr::InList(InList { expr, list, negated }))
}

fn in_subquery(mut subquery: InSubquery, schema: &DFSchema) -> Result<Expr> {
    let own = subquery.expr.get_type(schema)?;
    let Some(inner) = subquery.subquery.subquery.schema().fields().first().map(|f| f.data_type().clone()) else {
        return Ok(Expr::InSubquery(subquery));
    };
    if Type::of(&own) == Type::Other || Type::of(&inner) == Type::Other {
        return Ok(Expr::InSubquery(subquery));
    }
    let common = overload::comparison(&own, &inner)
        .ok_or_else(|| external(no_operator(if subquery.negated { "<>" } else { "=" }, &own, &inner)))?;
    if Type::of(&own) == Type::Unknown && Type::of(&inner) != Type::Unknown {
        subquery.expr = Box::new(brought(*subquery.expr, &own, &common));
    }
    if common.is_floating() && !is_call(&subquery.expr, FLOAT_KEY) {
        subquery.expr = Box::new(equality_key(brought(*subquery.expr, &own, &common), schema)?);
        let plan = with_types(
            Arc::clone(&subquery.subquery.subquery),
            &Arc::new(arrow::datatypes::Schema::new(vec![arrow::datatypes::Field::new("", common, true)])),
        )?;
        subquery.subquery = Subquery { subquery: Arc::new(float_keys(&plan)?), ..subquery.subquery };
    }
    Ok(Expr::InSubquery(subquery))
}

fn like_of(mut like: Like, schema: &DFSchema) -> Result<Like> {
    let (et, pt) = (like.expr.get_type(schema)?, like.pattern.get_type(schema)?);
    let textual = |t: &DataType| matches!(Type::of(t), Type::Text | Type::Unknown);
    if !textual(&et) || !textual(&pt) {
        let sign = match (like.negated, like.case_insensitive) {
            (false, false) => "~~",
            (true, false) => "!~~",
            (false, true) => "~~*",
            (true, true) => "!~~*",
        };
        return Err(external(no_operator(sign, &et, &pt)));
    }
    like.expr = Box::new(brought(*like.expr, &et, &DataType::Utf8View));
    like.pattern = Box::new(brought(*like.pattern, &pt, &DataType::Utf8View));
    Ok(like)
}

fn case_of(case: Case, schema: &DFSchema) -> Result<Case> {
    let Case { expr, when_then_expr, else_expr } = case;
    // PostgreSQL looks at ELSE first.
    let mut types = Vec::with_capacity(when_then_expr.len() + 1);
    if let Some(otherwise) = &else_expr {
        types.push(otherwise.get_type(schema)?);
    }
    for (_, then) in &when_then_expr {
        types.push(then.get_type(schema)?);
    }
    let known = types.iter().all(|t| Type::of(t) != Type::Other);
    let common = match overload::common(&types) {
        Some(common) if Type::of(&common) == Type::Unknown => DataType::Utf8View,
        Some(common) => common,
        None if known => return Err(external(unmatched("CASE", &types))),
        None => DataType::Null,
    };
    let result = |e: Box<Expr>, t: &DataType| -> Box<Expr> {
        if common == DataType::Null || *t == common || *t == DataType::Null {
            e
        } else {
            Box::new(cast(*e, common.clone()))
        }
    };
    let own = expr.as_ref().map(|e| e.get_type(schema)).transpose()?;
    let mut compared_as = own.clone();
    if let Some(so_far) = &mut compared_as {
        for (when, _) in &when_then_expr {
            let t = when.get_type(schema)?;
            match overload::comparison(so_far, &t) {
                Some(common) => *so_far = common,
                None => return Err(external(no_operator("=", so_far, &t))),
            }
        }
        if Type::of(so_far) == Type::Unknown {
            *so_far = DataType::Utf8View;
        }
    }
    let offset = usize::from(else_expr.is_some());
    let mut branches = Vec::with_capacity(when_then_expr.len());
    for (i, (when, then)) in when_then_expr.into_iter().enumerate() {
        let when = match &compared_as {
            None => condition(*when, "CASE/WHEN", schema)?,
            Some(common) => {
                let t = when.get_type(schema)?;
                operand(*when, &t, common, schema)?
            }
        };
        branches.push((Box::new(when), result(then, &types[offset + i])));
    }
    let expr = match (expr, own, &compared_as) {
        (Some(e), Some(own), Some(common)) => Some(Box::new(operand(*e, &own, common, schema)?)),
        (expr, _, _) => expr,
    };
    Ok(Case { expr, when_then_expr: branches, else_expr: else_expr.map(|e| result(e, &types[0])) })
}

/// An operand of the equality in `CASE x WHEN y`.
fn operand(expr: Expr, from: &DataType, common: &DataType, schema: &DFSchema) -> Result<Expr> {
    let expr = brought(expr, from, common);
    match common {
        DataType::Interval(_) => function(INTERVAL_ORDER, expr),
        t if t.is_floating() => equality_key(expr, schema),
        _ => Ok(expr),
    }
}

fn scalar_call(mut call: ScalarFunction, schema: &DFSchema, zone: &str) -> Result<Transformed<Expr>> {
    let Some(function) = library::of(&call.func) else {
        return Ok(Transformed::no(Expr::ScalarFunction(call)));
    };
    let given = call.args.iter().map(|a| a.get_type(schema)).collect::<Result<Vec<_>>>()?;
    let wanted = function.argument_types(&given, true).map_err(external)?;
    // Literals get their types here: the type of the result may depend on their values.
    for (argument, wanted) in call.args.iter_mut().zip(&wanted) {
        if let (Expr::Literal(ScalarValue::Utf8(text), _), DataType::Utf8View) = (&*argument, wanted) {
            *argument = Expr::Literal(ScalarValue::Utf8View(text.clone()), None);
        }
    }
    let wants_zone = function.wants_zone(&given);
    if wants_zone {
        call.args.push(Expr::Literal(ScalarValue::Utf8View(Some(zone.to_string())), None));
    }
    Ok(Transformed::yes(Expr::ScalarFunction(call)))
}

fn aggregate_call(mut function: AggregateFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let given = function.params.args.iter().map(|a| a.get_type(schema)).collect::<Result<Vec<_>>>()?;
    aggregate::check_arguments(function.func.name(), &given).map_err(external)?;
    if let Some(filter) = function.params.filter.take() {
        function.params.filter = Some(Box::new(condition(*filter, "FILTER", schema)?));
    }
    if function.params.distinct {
        let args = std::mem::take(&mut function.params.args);
        function.params.args = args.into_iter().map(|e| equality_key(e, schema)).collect::<Result<Vec<_>>>()?;
    }
    Ok(Transformed::yes(Expr::AggregateFunction(function)))
}
