//! Subqueries and LATERAL as joins, before DataFusion optimises a plan.
//!
//! DataFusion decorrelates the easy forms only, and some of them with another answer than SQL's. Here every subquery in an
//! expression becomes a join, so that ad-hoc and standing queries get the same rows:
//!
//! | written | becomes |
//! |---|---|
//! | EXISTS as a conjunct of WHERE | a semi join; NOT EXISTS an anti join |
//! | EXISTS elsewhere | a mark join, or one row with a count if the subquery is uncorrelated |
//! | `x IN (…)` where only "is it true" matters | EXISTS with `y = x` |
//! | `x IN (…)` elsewhere | CASE over up to three EXISTS: found, or unknown because of a NULL, or not found |
//! | a scalar subquery | a left join; [`single_row`](crate::functions::single_row) guards what could be several rows |
//!
//! A correlated subquery is joined in one of two ways. If its references to the outer query stand only in filters that can
//! be moved up, these filters become the condition of the join ([`pull`]). Otherwise the subquery is evaluated for every
//! distinct combination of the outer values that it reads, all at once, and joined by them ([`push`]): after Neumann and
//! Kemper, "Unnesting Arbitrary Queries" (2015).
//!
//! Left for DataFusion's own rules: uncorrelated scalar subqueries of at most one row, correlated ones that are a global
//! aggregate over equalities, and NOT IN with an uncorrelated subquery as a conjunct, which has a join of its own.

mod pull;
mod push;
mod shape;

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{
    Column, DFSchema, DFSchemaRef, ExprSchema, JoinConstraint, JoinType, NullEquality, Result, ScalarValue,
    TableReference,
};
use datafusion::logical_expr::expr::{AggregateFunction, Exists, InSubquery, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{
    Aggregate, BinaryExpr, Case, Expr, ExprSchemable, Filter, Join, LogicalPlan, Operator, Projection, Subquery,
    SubqueryAlias, lit,
};
use datafusion::optimizer::rewrite_set_comparison::RewriteSetComparison;
use datafusion::optimizer::{AnalyzerRule, OptimizerContext, OptimizerRule};
use flow::Error;

use crate::functions::{self, single_row};
use push::Domain;
use shape::{at_most_one_row, datafusion_decorrelates, has_subquery, reads_outer, without_select_list};

/// The analyser rule of this module; it runs after types are coerced. Running it again changes nothing.
#[derive(Debug)]
pub struct UnnestSubqueries;

impl AnalyzerRule for UnnestSubqueries {
    fn name(&self) -> &str {
        "unnest_subqueries"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let (subqueries, comparisons) = shape::subqueries_of(&plan)?;
        if !subqueries {
            return Ok(plan);
        }
        let plan = match comparisons {
            true => RewriteSetComparison::new().rewrite(plan, &OptimizerContext::new())?.data,
            false => plan,
        };
        let plan = Unnesting { names: 0 }.plan(plan)?;
        match shape::reads_any_outer(&plan)? {
            true => Err(unsupported("this form of correlated subquery is not supported")),
            false => Ok(plan),
        }
    }
}

fn unsupported(message: &str) -> datafusion::common::DataFusionError {
    external(Error::unsupported(message).with_hint("Write it as a join, or create a view for a part of it."))
}

fn external(error: Error) -> datafusion::common::DataFusionError {
    datafusion::common::DataFusionError::External(Box::new(error))
}

/// One run over a plan.
struct Unnesting {
    /// Names given out so far: the optimiser may bring any two of these joins next to each other.
    names: usize,
}

/// A subquery without references to the query around it, ready to be joined.
struct Joinable {
    plan: LogicalPlan,
    on: Vec<(Expr, Expr)>,
    filter: Option<Expr>,
    null_equality: NullEquality,
    alias: TableReference,
    /// The columns that were asked for, as the join shows them.
    values: Vec<Column>,
}

impl Unnesting {
    fn next(&mut self) -> usize {
        self.names += 1;
        self.names
    }

    fn plan(&mut self, plan: LogicalPlan) -> Result<LogicalPlan> {
        Ok(plan.transform_up(|node| self.node(node))?.data)
    }

    fn node(&mut self, node: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        if let LogicalPlan::Join(join) = node {
            return self.join_node(join);
        }
        if !node.expressions().iter().any(has_subquery) {
            return Ok(Transformed::no(node));
        }
        match node {
            LogicalPlan::Filter(filter) => self.filter(filter).map(Transformed::yes),
            LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_) | LogicalPlan::Window(_) | LogicalPlan::Sort(_) => {
                self.values(node).map(Transformed::yes)
            }
            other => Ok(Transformed::no(other)),
        }
    }

    /// A node whose expressions are values: each subquery becomes a column of a join below the node.
    fn values(&mut self, node: LogicalPlan) -> Result<LogicalPlan> {
        let Some(below) = node.inputs().first().copied().cloned() else {
            return Ok(node);
        };
        let width = below.schema().fields().len();
        let mut input = below;
        let names = NamePreserver::new(&node);
        let is_sort = matches!(node, LogicalPlan::Sort(_));
        let aggregated = !matches!(node, LogicalPlan::Projection(_));
        let mut exprs = Vec::new();
        for expr in node.expressions() {
            if !has_subquery(&expr) {
                exprs.push(expr);
                continue;
            }
            let name = names.save(&expr);
            let value = self.value(expr, &mut input, aggregated)?;
            exprs.push(if is_sort { value } else { name.restore(value) });
        }
        let original = Arc::clone(node.schema());
        let passes_through = matches!(node, LogicalPlan::Sort(_) | LogicalPlan::Window(_));
        let grown = input.schema().fields().len() > width;
        let node = node.with_new_exprs(exprs, vec![input])?;
        if passes_through && grown { only(node, &original) } else { Ok(node) }
    }

    fn filter(&mut self, filter: Filter) -> Result<LogicalPlan> {
        let Filter { predicate, input, .. } = filter;
        let original = Arc::clone(input.schema());
        let (with, without): (Vec<Expr>, Vec<Expr>) =
            split_conjunction_owned(predicate).into_iter().partition(has_subquery);
        // Plain conditions first: what follows is then joined, and its outer values collected, for fewer rows.
        let mut input = match conjunction(without) {
            Some(predicate) => LogicalPlan::Filter(Filter::try_new(predicate, input)?),
            None => Arc::unwrap_or_clone(input),
        };
        let mut rest = Vec::new();
        for conjunct in with {
            if let Some(condition) = self.conjunct(conjunct, &mut input)? {
                rest.push(condition);
            }
        }
        if let Some(predicate) = conjunction(rest) {
            input = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input))?);
        }
        if input.schema().fields().len() > original.fields().len() { only(input, &original) } else { Ok(input) }
    }

    /// A conjunct of WHERE: joined into `input`, or what is left to filter by.
    fn conjunct(&mut self, conjunct: Expr, input: &mut LogicalPlan) -> Result<Option<Expr>> {
        match conjunct {
            Expr::Alias(alias) => self.conjunct(*alias.expr, input),
            Expr::Not(inner) => match *inner {
                Expr::Exists(e) => self.conjunct(Expr::Exists(Exists { negated: !e.negated, ..e }), input),
                Expr::InSubquery(i) => self.conjunct(Expr::InSubquery(InSubquery { negated: !i.negated, ..i }), input),
                inner => self.truth(Expr::Not(Box::new(inner)), input).map(Some),
            },
            Expr::Exists(exists) => {
                let plan = without_select_list(self.plan(Arc::unwrap_or_clone(exists.subquery.subquery))?)?;
                if !reads_outer(&plan, input.schema())? {
                    let found = self.found(plan, input)?;
                    return Ok(Some(if exists.negated { !found } else { found }));
                }
                let kind = if exists.negated { JoinType::LeftAnti } else { JoinType::LeftSemi };
                let joinable = self.joinable(plan, &[], input, true)?;
                *input = join(input.clone(), joinable, kind)?;
                Ok(None)
            }
            Expr::InSubquery(i) if has_subquery(&i.expr) => self.truth(Expr::InSubquery(i), input).map(Some),
            Expr::InSubquery(i) if !i.negated => {
                let found = found_in(&i, input.schema())?;
                self.conjunct(found, input)
            }
            Expr::InSubquery(mut i) => {
                let plan = self.plan(Arc::unwrap_or_clone(i.subquery.subquery))?;
                let correlated = reads_outer(&plan, input.schema())? || shape::reads_any_outer(&plan)?;
                let is_tested = i.expr.exists(|e| Ok(matches!(e, Expr::Column(_))))?;
                // DataFusion takes the column from a select list.
                let plan = if plan.head_output_expr()?.is_some() { plan } else { all_columns(plan)? };
                i.subquery.subquery = Arc::new(plan);
                if !correlated && is_tested {
                    return Ok(Some(Expr::InSubquery(i)));
                }
                let not_excluded = not_found_in(&i, input.schema())?;
                self.conjunct(not_excluded, input)
            }
            other => self.truth(other, input).map(Some),
        }
    }

    /// An expression of which only "is it true" matters.
    fn truth(&mut self, expr: Expr, input: &mut LogicalPlan) -> Result<Expr> {
        match expr {
            e if !has_subquery(&e) => Ok(e),
            Expr::Alias(alias) => self.truth(*alias.expr, input),
            Expr::BinaryExpr(b) if matches!(b.op, Operator::And | Operator::Or) => Ok(Expr::BinaryExpr(BinaryExpr {
                left: Box::new(self.truth(*b.left, input)?),
                op: b.op,
                right: Box::new(self.truth(*b.right, input)?),
            })),
            Expr::InSubquery(mut i) if !i.negated => {
                *i.expr = self.value(*i.expr, input, false)?;
                let found = found_in(&i, input.schema())?;
                self.value(found, input, false)
            }
            other => self.value(other, input, false),
        }
    }

    /// `expr` with columns of `input`, which grows, in place of its subqueries. `everything`: also of those that
    /// DataFusion would decorrelate in a projection or filter.
    fn value(&mut self, expr: Expr, input: &mut LogicalPlan, everything: bool) -> Result<Expr> {
        if !has_subquery(&expr) {
            return Ok(expr);
        }
        let replaced = expr.transform_down(|e| {
            let value = match e {
                Expr::Exists(exists) => self.mark(exists, input)?,
                Expr::InSubquery(i) => self.membership(i, input, everything)?,
                Expr::ScalarSubquery(subquery) => self.scalar(subquery, input, everything)?,
                other => return Ok(Transformed::no(other)),
            };
            Ok(Transformed::new(value, true, TreeNodeRecursion::Jump))
        })?;
        Ok(replaced.data)
    }

    /// EXISTS as a value.
    fn mark(&mut self, exists: Exists, input: &mut LogicalPlan) -> Result<Expr> {
        let plan = without_select_list(self.plan(Arc::unwrap_or_clone(exists.subquery.subquery))?)?;
        let found = if reads_outer(&plan, input.schema())? {
            let joinable = self.joinable(plan, &[], input, true)?;
            let mark = Column::new(Some(joinable.alias.clone()), "mark");
            *input = join(input.clone(), joinable, JoinType::LeftMark)?;
            Expr::Column(mark)
        } else {
            self.found(plan, input)?
        };
        Ok(if exists.negated { !found } else { found })
    }

    /// Whether the uncorrelated `plan` has a row: a column of one row that is joined to all of `input`.
    fn found(&mut self, plan: LogicalPlan, input: &mut LogicalPlan) -> Result<Expr> {
        let name = format!("__n{}", self.next());
        let counted = count_rows()?.alias(name.as_str());
        let counted = LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(plan), vec![], vec![counted])?);
        let alias = TableReference::bare(format!("__q{}", self.next()));
        let any = Expr::Column(Column::new_unqualified(name)).gt(lit(0i64)).alias("found");
        let counted = LogicalPlan::Projection(Projection::try_new(vec![any], Arc::new(counted))?);
        let counted = SubqueryAlias::try_new(Arc::new(counted), alias.clone())?;
        *input = cross(input.clone(), LogicalPlan::SubqueryAlias(counted))?;
        Ok(Expr::Column(Column::new(Some(alias), "found")))
    }

    /// IN as a value: true, false or NULL.
    fn membership(&mut self, mut i: InSubquery, input: &mut LogicalPlan, everything: bool) -> Result<Expr> {
        *i.expr = self.value(*i.expr, input, everything)?;
        let plan = self.plan(Arc::unwrap_or_clone(Arc::clone(&i.subquery.subquery)))?;
        i.subquery.subquery = Arc::new(plan);
        let schema = Arc::clone(input.schema());
        let found = found_in(&i, &schema)?;
        let (candidate, field) = first_column(&i.subquery.subquery)?;
        let mut unknown = Vec::new();
        if i.expr.nullable(schema.as_ref())? {
            let any = Expr::Exists(Exists { subquery: i.subquery.clone(), negated: false });
            unknown.push(i.expr.as_ref().clone().is_null().and(any));
        }
        if field {
            unknown.push(exists_with(&i.subquery, Expr::Column(candidate).is_null(), false)?);
        }
        let value = match unknown.into_iter().reduce(Expr::or) {
            None => found,
            Some(unknown) => Expr::Case(Case {
                expr: None,
                when_then_expr: vec![
                    (Box::new(found), Box::new(lit(true))),
                    (Box::new(unknown), Box::new(Expr::Literal(ScalarValue::Boolean(None), None))),
                ],
                else_expr: Some(Box::new(lit(false))),
            }),
        };
        let value = self.value(value, input, everything)?;
        Ok(if i.negated { Expr::Not(Box::new(value)) } else { value })
    }

    fn scalar(&mut self, subquery: Subquery, input: &mut LogicalPlan, everything: bool) -> Result<Expr> {
        let plan = self.plan(Arc::unwrap_or_clone(Arc::clone(&subquery.subquery)))?;
        let here = reads_outer(&plan, input.schema())?;
        let one = at_most_one_row(&plan);
        if !here && !shape::reads_any_outer(&plan)? {
            let plan = if one { plan } else { self.checked(plan, vec![])? };
            return Ok(Expr::ScalarSubquery(Subquery { subquery: Arc::new(plan), ..subquery }));
        }
        if here && !everything && datafusion_decorrelates(&plan, input.schema())? {
            return Ok(Expr::ScalarSubquery(Subquery { subquery: Arc::new(plan), ..subquery }));
        }
        let (value, _) = first_column(&plan)?;
        let joinable = match one {
            true => self.joinable(plan, &[value], input, false)?,
            false => self.grouped(plan, value, input)?,
        };
        let values = joinable.values.clone();
        *input = join(input.clone(), joinable, JoinType::Left)?;
        match values.as_slice() {
            [value] => Ok(Expr::Column(value.clone())),
            [value, count] => single(Expr::Column(value.clone()), Expr::Column(count.clone())),
            _ => Err(external(Error::internal("a scalar subquery without a value"))),
        }
    }

    /// The first column of `plan` per group of `keys`, and how many rows there were. Without keys the count is checked
    /// at once and is no column.
    fn checked(&mut self, plan: LogicalPlan, keys: Vec<Expr>) -> Result<LogicalPlan> {
        let (value, _) = first_column(&plan)?;
        let name = plan.schema().field(0).name().clone();
        let data_type = plan.schema().field(0).data_type().clone();
        let n = self.next();
        let (any, count) = (format!("__v{n}"), format!("__n{n}"));
        let calls = vec![any_value(Expr::Column(value), &data_type)?.alias(&any), count_rows()?.alias(&count)];
        let bare = keys.is_empty();
        let aggregate = LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(plan), keys, calls)?);
        if !bare {
            return Ok(aggregate);
        }
        let column = |name: String| Expr::Column(Column::new_unqualified(name));
        let value = single(column(any), column(count))?.alias(name);
        Ok(LogicalPlan::Projection(Projection::try_new(vec![value], Arc::new(aggregate))?))
    }

    /// A correlated scalar subquery that may have several rows, as a value and a count for each combination of outer
    /// values.
    fn grouped(&mut self, plan: LogicalPlan, value: Column, input: &LogicalPlan) -> Result<Joinable> {
        let outer = Arc::clone(input.schema());
        let data_type = plan.schema().field(0).data_type().clone();
        let pulled = pull::pull(self, &plan, &outer, false)?
            .and_then(|pulled| pull::equalities(&pulled.conditions).map(|pairs| (pulled.plan, pairs)));
        let (plan, outer_keys, inner_keys, null_equality) = match pulled {
            Some((plan, pairs)) => {
                let (outer_keys, inner_keys): (Vec<Expr>, Vec<Expr>) = pairs.into_iter().unzip();
                let outer_keys = outer_keys.into_iter().map(|e| in_scope(e, &outer)).collect::<Result<Vec<_>>>()?;
                (plan, outer_keys, inner_keys, NullEquality::NullEqualsNothing)
            }
            None => {
                let domain = Domain::new(self, &plan, input)?;
                let (plan, columns) = push::push(self, &plan, &domain)?;
                let inner = columns.into_iter().map(Expr::Column).collect();
                let outer_keys = domain.columns.iter().cloned().map(Expr::Column).collect();
                (plan, outer_keys, inner, NullEquality::NullEqualsNull)
            }
        };
        let alias = TableReference::bare(format!("__q{}", self.next()));
        let keys: Vec<Expr> = inner_keys.into_iter().enumerate().map(|(i, e)| e.alias(format!("k{i}"))).collect();
        let on = outer_keys
            .into_iter()
            .enumerate()
            .map(|(i, e)| (e, Expr::Column(Column::new(Some(alias.clone()), format!("k{i}")))))
            .collect();
        let calls = vec![any_value(Expr::Column(value), &data_type)?.alias("v"), count_rows()?.alias("n")];
        let plan = LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(plan), keys, calls)?);
        let plan = LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(plan), alias.clone())?);
        let values = ["v", "n"].map(|name| Column::new(Some(alias.clone()), name)).to_vec();
        Ok(Joinable { plan, on, filter: None, null_equality, alias, values })
    }

    /// `plan` as the right side of a join with `input`; its columns `wanted` are values of the result.
    fn joinable(
        &mut self,
        plan: LogicalPlan,
        wanted: &[Column],
        input: &LogicalPlan,
        only_existence: bool,
    ) -> Result<Joinable> {
        let outer = Arc::clone(input.schema());
        let alias = TableReference::bare(format!("__q{}", self.next()));
        if let Some(pulled) = pull::pull(self, &plan, &outer, only_existence)? {
            let mut kept: Vec<Column> = wanted.to_vec();
            for condition in &pulled.conditions {
                for column in condition.column_refs() {
                    if !kept.contains(column) {
                        kept.push(column.clone());
                    }
                }
            }
            let (plan, shown) = aliased(pulled.plan, &kept, &alias)?;
            let conditions = pulled
                .conditions
                .into_iter()
                .map(|e| in_scope(renamed(e, &kept, &shown)?, &outer))
                .collect::<Result<Vec<_>>>()?;
            let values = shown.into_iter().take(wanted.len()).collect();
            return Ok(Joinable {
                plan,
                on: vec![],
                filter: conjunction(conditions),
                null_equality: NullEquality::NullEqualsNothing,
                alias,
                values,
            });
        }
        let domain = Domain::new(self, &plan, input)?;
        let (plan, columns) = push::push(self, &plan, &domain)?;
        let kept: Vec<Column> = wanted.iter().chain(&columns).cloned().collect();
        let (plan, shown) = aliased(plan, &kept, &alias)?;
        let (values, keys) = shown.split_at(wanted.len());
        let on = domain.columns.iter().zip(keys).map(|(o, k)| (Expr::Column(o.clone()), Expr::Column(k.clone())));
        Ok(Joinable {
            plan,
            on: on.collect(),
            filter: None,
            null_equality: NullEquality::NullEqualsNull,
            alias,
            values: values.to_vec(),
        })
    }

    /// LATERAL, and subqueries in ON.
    fn join_node(&mut self, mut join: Join) -> Result<Transformed<LogicalPlan>> {
        let mut changed = false;
        if let Some(plan) = lateral(&join.right)? {
            changed = true;
            if reads_outer(&plan, join.left.schema())? {
                let lateral = self.lateral(join, plan)?;
                return Ok(Transformed::yes(lateral));
            }
            join.right = Arc::new(plan);
        }
        let subqueries = join.filter.as_ref().is_some_and(has_subquery);
        if !subqueries {
            return Ok(Transformed::new(LogicalPlan::Join(join), changed, TreeNodeRecursion::Continue));
        }
        let original = Arc::clone(&join.schema);
        let (with, without): (Vec<Expr>, Vec<Expr>) =
            join.filter.take().map(split_conjunction_owned).unwrap_or_default().into_iter().partition(has_subquery);
        match join.join_type {
            JoinType::Inner => {
                join.filter = conjunction(without);
                let join = Arc::new(LogicalPlan::Join(join));
                let Some(predicate) = conjunction(with) else {
                    return Ok(Transformed::yes(Arc::unwrap_or_clone(join)));
                };
                self.filter(Filter::try_new(predicate, join)?).map(Transformed::yes)
            }
            // The condition decides which rows match: its subqueries become columns of the side that they read.
            JoinType::Left | JoinType::Right | JoinType::Full => {
                let mut conditions = without;
                for condition in with {
                    let (mut left, mut right) = (join.left.as_ref().clone(), join.right.as_ref().clone());
                    let value = if shape::reads_only(&condition, left.schema())? {
                        self.value(condition, &mut left, true)?
                    } else if shape::reads_only(&condition, right.schema())? {
                        self.value(condition, &mut right, true)?
                    } else {
                        return Err(unsupported("this form of subquery in ON of an outer join is not supported"));
                    };
                    conditions.push(value);
                    (join.left, join.right) = (Arc::new(left), Arc::new(right));
                }
                let join = Join::try_new(
                    join.left,
                    join.right,
                    join.on,
                    conjunction(conditions),
                    join.join_type,
                    join.join_constraint,
                    join.null_equality,
                    join.null_aware,
                )?;
                only(LogicalPlan::Join(join), &original).map(Transformed::yes)
            }
            _ => Err(unsupported("this form of subquery in ON is not supported")),
        }
    }

    /// A join whose right side, `plan`, reads columns of its left side.
    fn lateral(&mut self, original: Join, plan: LogicalPlan) -> Result<LogicalPlan> {
        if !matches!(original.join_type, JoinType::Inner | JoinType::Left) {
            let error = Error::new(
                flow::SqlState::SyntaxError,
                "the combining JOIN type must be INNER or LEFT for a LATERAL reference",
            );
            return Err(external(error));
        }
        let outer = Arc::clone(original.left.schema());
        // Under the equality of a null-safe join the condition's own must stay what it is.
        let mut conditions: Vec<Expr> = original.filter.clone().map(split_conjunction_owned).unwrap_or_default();
        conditions.extend(original.on.iter().map(|(l, r)| l.clone().eq(r.clone()).is_true()));
        let (right, on, null_equality) = match pull::pull(self, &plan, &outer, false)? {
            Some(pulled) => {
                for condition in pulled.conditions {
                    conditions.push(in_scope(condition, &outer)?);
                }
                (pulled.plan, vec![], NullEquality::NullEqualsNothing)
            }
            None => {
                let domain = Domain::new(self, &plan, &original.left)?;
                let (plan, columns) = push::push(self, &plan, &domain)?;
                let pairs = domain.columns.iter().cloned().map(Expr::Column).zip(columns.into_iter().map(Expr::Column));
                (plan, pairs.collect(), NullEquality::NullEqualsNull)
            }
        };
        let conditions = conditions.into_iter().map(|c| match null_equality {
            NullEquality::NullEqualsNull => guarded(c),
            NullEquality::NullEqualsNothing => c,
        });
        let join = Join::try_new(
            original.left,
            Arc::new(right),
            on,
            conjunction(conditions),
            original.join_type,
            JoinConstraint::On,
            null_equality,
            false,
        )?;
        only(LogicalPlan::Join(join), &original.schema)
    }
}

/// An equality that DataFusion must not take for a key of a null-safe join.
fn guarded(condition: Expr) -> Expr {
    match &condition {
        Expr::BinaryExpr(b) if b.op == Operator::Eq => condition.is_true(),
        _ => condition,
    }
}

/// The plan of a LATERAL side, under its alias.
fn lateral(side: &Arc<LogicalPlan>) -> Result<Option<LogicalPlan>> {
    match side.as_ref() {
        LogicalPlan::Subquery(subquery) => Ok(Some(subquery.subquery.as_ref().clone())),
        LogicalPlan::SubqueryAlias(alias) => match lateral(&alias.input)? {
            Some(plan) => {
                let aliased = SubqueryAlias::try_new(Arc::new(plan), alias.alias.clone())?;
                Ok(Some(LogicalPlan::SubqueryAlias(aliased)))
            }
            None => Ok(None),
        },
        _ => Ok(None),
    }
}

/// `input` joined with a subquery.
fn join(input: LogicalPlan, right: Joinable, kind: JoinType) -> Result<LogicalPlan> {
    let Joinable { plan, on, filter, null_equality, .. } = right;
    let join =
        Join::try_new(Arc::new(input), Arc::new(plan), on, filter, kind, JoinConstraint::On, null_equality, false)?;
    Ok(LogicalPlan::Join(join))
}

fn cross(left: LogicalPlan, right: LogicalPlan) -> Result<LogicalPlan> {
    let join = Join::try_new(
        Arc::new(left),
        Arc::new(right),
        vec![],
        None,
        JoinType::Inner,
        JoinConstraint::On,
        NullEquality::NullEqualsNothing,
        false,
    )?;
    Ok(LogicalPlan::Join(join))
}

/// `plan` with the columns of `schema` alone.
fn only(plan: LogicalPlan, schema: &DFSchema) -> Result<LogicalPlan> {
    let columns = schema.columns().into_iter().map(Expr::Column).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?))
}

fn all_columns(plan: LogicalPlan) -> Result<LogicalPlan> {
    let schema = Arc::clone(plan.schema());
    only(plan, &schema)
}

/// The columns `kept` of `plan` under `alias`, with names of their own; and these. Without columns one that says nothing.
fn aliased(plan: LogicalPlan, kept: &[Column], alias: &TableReference) -> Result<(LogicalPlan, Vec<Column>)> {
    let names: Vec<String> = (0..kept.len()).map(|i| format!("c{i}")).collect();
    let mut exprs: Vec<Expr> = kept.iter().zip(&names).map(|(c, n)| Expr::Column(c.clone()).alias(n)).collect();
    if exprs.is_empty() {
        exprs.push(lit(true).alias("present"));
    }
    let plan = LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(plan))?);
    let plan = LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(plan), alias.clone())?);
    Ok((plan, names.into_iter().map(|n| Column::new(Some(alias.clone()), n)).collect()))
}

/// `expr` with the columns `from` called `to`.
fn renamed(expr: Expr, from: &[Column], to: &[Column]) -> Result<Expr> {
    let replaced = expr.transform(|e| match &e {
        Expr::Column(c) => match from.iter().position(|f| f == c).and_then(|i| to.get(i)) {
            Some(new) => Ok(Transformed::yes(Expr::Column(new.clone()))),
            None => Ok(Transformed::no(e)),
        },
        _ => Ok(Transformed::no(e)),
    })?;
    Ok(replaced.data)
}

/// `expr` with references to `outer` as plain columns; those that go further out stay.
fn in_scope(expr: Expr, outer: &DFSchema) -> Result<Expr> {
    let replaced = expr.transform(|e| match e {
        Expr::OuterReferenceColumn(_, c) if outer.has_column(&c) => Ok(Transformed::yes(Expr::Column(c))),
        e => Ok(Transformed::no(e)),
    })?;
    Ok(replaced.data)
}

/// `expr`, which reads `outer`, as it is written inside a subquery.
fn outside(expr: Expr, outer: &DFSchema) -> Result<Expr> {
    let replaced = expr.transform(|e| match e {
        Expr::Column(c) => {
            let field = Arc::clone(outer.field_from_column(&c)?);
            Ok(Transformed::yes(Expr::OuterReferenceColumn(field, c)))
        }
        e => Ok(Transformed::no(e)),
    })?;
    Ok(replaced.data)
}

/// The first column of a subquery, and whether it can be NULL.
fn first_column(plan: &LogicalPlan) -> Result<(Column, bool)> {
    let schema = plan.schema();
    if schema.fields().is_empty() {
        return Err(external(Error::new(flow::SqlState::SyntaxError, "subquery must return only one column")));
    }
    Ok((Column::from(schema.qualified_field(0)), schema.field(0).is_nullable()))
}

/// EXISTS of the rows of `subquery` for which `condition` is true.
fn exists_with(subquery: &Subquery, condition: Expr, negated: bool) -> Result<Expr> {
    let plan = LogicalPlan::Filter(Filter::try_new(condition, Arc::clone(&subquery.subquery))?);
    let outer_ref_columns = plan.all_out_ref_exprs();
    let subquery = Subquery { subquery: Arc::new(plan), outer_ref_columns, spans: subquery.spans.clone() };
    Ok(Expr::Exists(Exists { subquery, negated }))
}

/// What is true where `x IN (…)` is true.
fn found_in(i: &InSubquery, outer: &DFSchemaRef) -> Result<Expr> {
    let (candidate, _) = first_column(&i.subquery.subquery)?;
    let equal = outside(i.expr.as_ref().clone(), outer)?.eq(Expr::Column(candidate));
    exists_with(&i.subquery, equal, false)
}

/// What is true where `x NOT IN (…)` is true: no candidate is equal, or could be if it were not NULL.
fn not_found_in(i: &InSubquery, outer: &DFSchemaRef) -> Result<Expr> {
    let (candidate, nullable) = first_column(&i.subquery.subquery)?;
    let nullable = nullable || i.expr.nullable(outer.as_ref())?;
    let equal = outside(i.expr.as_ref().clone(), outer)?.eq(Expr::Column(candidate));
    exists_with(&i.subquery, if nullable { equal.is_not_false() } else { equal }, true)
}

fn aggregate(name: &str, arg: Expr) -> Result<Expr> {
    match functions::aggregate(name) {
        Some(function) => {
            Ok(Expr::AggregateFunction(AggregateFunction::new_udf(function, vec![arg], false, None, vec![], None)))
        }
        None => datafusion::common::internal_err!("aggregate {name} is not registered"),
    }
}

fn count_rows() -> Result<Expr> {
    aggregate("count", lit(1i64))
}

/// The value of a group that should have one row.
fn any_value(value: Expr, data_type: &DataType) -> Result<Expr> {
    match data_type {
        DataType::Boolean => aggregate("bool_or", value),
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) | DataType::Struct(_) => {
            Err(external(crate::error::scalar_subquery_unsupported()))
        }
        _ => aggregate("max", value),
    }
}

fn single(value: Expr, count: Expr) -> Result<Expr> {
    match functions::scalar(single_row::NAME) {
        Some(function) => Ok(Expr::ScalarFunction(ScalarFunction::new_udf(function, vec![value, count]))),
        None => datafusion::common::internal_err!("{} is not registered", single_row::NAME),
    }
}
