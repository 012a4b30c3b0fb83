//! A correlated subquery evaluated for all its outer values at once.
//!
//! The *domain* is the set of distinct combinations of outer values. It is joined to the subquery as far down as the outer
//! values are read, and every operator above keeps the rows of different combinations apart: it groups, ranks, compares
//! and joins by the domain's columns too.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, JoinConstraint, JoinType, NullEquality, Result, TableReference};
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{
    Aggregate, Case, Distinct, DistinctOn, Expr, ExprFunctionExt, FetchType, Filter, Join, Limit, LogicalPlan,
    LogicalPlanBuilder, Operator, Projection, SkipType, Sort, SortExpr, SubqueryAlias, Union, Values, Window,
    WindowFunctionDefinition, binary_expr, lit,
};

use super::shape::outer_columns;
use super::{Unnesting, cross, only, unsupported};
use crate::functions;

/// The outer values that a subquery reads.
pub(super) struct Domain {
    /// Distinct rows, one column for each of `columns`.
    plan: Arc<LogicalPlan>,
    /// Columns of the outer query.
    pub columns: Vec<Column>,
    outer: Arc<DFSchema>,
}

impl Domain {
    /// What `plan` reads of `input`.
    pub fn new(unnesting: &mut Unnesting, plan: &LogicalPlan, input: &LogicalPlan) -> Result<Domain> {
        let outer = Arc::clone(input.schema());
        let columns = outer_columns(plan, &outer)?;
        let exprs = columns.iter().map(|c| Expr::Column(c.clone()).alias(format!("__o{}", unnesting.next()))).collect();
        let rows = LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input.clone()))?);
        let rows = LogicalPlan::Distinct(Distinct::All(Arc::new(rows)));
        Ok(Domain { plan: Arc::new(rows), columns, outer })
    }

    fn is_read_by(&self, plan: &LogicalPlan) -> Result<bool> {
        super::reads_outer(plan, &self.outer)
    }

    fn is_read_in(&self, expr: &Expr) -> Result<bool> {
        super::shape::expr_reads_outer(expr, &self.outer)
    }

    /// The domain under names of its own.
    fn fresh(&self, unnesting: &mut Unnesting) -> Result<(LogicalPlan, Vec<Column>)> {
        let n = unnesting.next();
        let alias = TableReference::bare(format!("__d{n}"));
        let names: Vec<String> = (0..self.columns.len()).map(|i| format!("__d{n}_{i}")).collect();
        let own = self.plan.schema().columns();
        let exprs = own.into_iter().zip(&names).map(|(c, n)| Expr::Column(c).alias(n)).collect();
        let plan = LogicalPlan::Projection(Projection::try_new(exprs, Arc::clone(&self.plan))?);
        let plan = LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(plan), alias.clone())?);
        Ok((plan, names.into_iter().map(|n| Column::new(Some(alias.clone()), n)).collect()))
    }

    /// `expr` with the domain's columns `own` in place of outer references.
    fn bind(&self, expr: Expr, own: &[Column]) -> Result<Expr> {
        let bound = expr.transform(|e| match &e {
            Expr::OuterReferenceColumn(_, c) => match self.columns.iter().position(|o| o == c).and_then(|i| own.get(i))
            {
                Some(column) => Ok(Transformed::yes(Expr::Column(column.clone()))),
                None => Ok(Transformed::no(e)),
            },
            _ => Ok(Transformed::no(e)),
        })?;
        Ok(bound.data)
    }

    fn bind_all(&self, exprs: &[Expr], own: &[Column], names: &NamePreserver) -> Result<Vec<Expr>> {
        exprs
            .iter()
            .map(|e| {
                let name = names.save(e);
                Ok(name.restore(self.bind(e.clone(), own)?))
            })
            .collect()
    }

    fn bind_sort(&self, sort: &[SortExpr], own: &[Column]) -> Result<Vec<SortExpr>> {
        sort.iter().map(|s| Ok(SortExpr::new(self.bind(s.expr.clone(), own)?, s.asc, s.nulls_first))).collect()
    }
}

/// `plan` for every row of the domain: its own columns in their order, then the domain's, which are returned.
pub(super) fn push(
    unnesting: &mut Unnesting,
    plan: &LogicalPlan,
    domain: &Domain,
) -> Result<(LogicalPlan, Vec<Column>)> {
    if !domain.is_read_by(plan)? {
        let (rows, own) = domain.fresh(unnesting)?;
        return Ok(match plan {
            LogicalPlan::EmptyRelation(e) if e.produce_one_row && e.schema.fields().is_empty() => (rows, own),
            _ => (cross(plan.clone(), rows)?, own),
        });
    }
    let names = NamePreserver::new(plan);
    match plan {
        LogicalPlan::Filter(filter) => {
            let (input, own) = push(unnesting, &filter.input, domain)?;
            let predicate = domain.bind(filter.predicate.clone(), &own)?;
            Ok((LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input))?), own))
        }
        LogicalPlan::Projection(projection) => {
            let (input, own) = push(unnesting, &projection.input, domain)?;
            let mut exprs = domain.bind_all(&projection.expr, &own, &names)?;
            exprs.extend(own.iter().cloned().map(Expr::Column));
            Ok((LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?), own))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let (input, own) = push(unnesting, &alias.input, domain)?;
            let plan = SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?;
            let own = own.into_iter().map(|c| Column::new(Some(alias.alias.clone()), c.name)).collect();
            Ok((LogicalPlan::SubqueryAlias(plan), own))
        }
        LogicalPlan::Sort(sort) if sort.fetch.is_none() => push(unnesting, &sort.input, domain),
        LogicalPlan::Limit(limit) => push_limit(unnesting, limit, domain),
        LogicalPlan::Aggregate(aggregate) => push_aggregate(unnesting, aggregate, &names, domain),
        LogicalPlan::Window(window) => push_window(unnesting, window, &names, domain),
        LogicalPlan::Join(join) => push_join(unnesting, join, domain),
        LogicalPlan::Distinct(Distinct::All(input)) => {
            let (input, own) = push(unnesting, input, domain)?;
            Ok((LogicalPlan::Distinct(Distinct::All(Arc::new(input))), own))
        }
        LogicalPlan::Distinct(Distinct::On(on)) => {
            let (input, own) = push(unnesting, &on.input, domain)?;
            let columns = || own.iter().cloned().map(Expr::Column);
            let keys = columns().chain(domain.bind_all(&on.on_expr, &own, &names)?).collect();
            let select = domain.bind_all(&on.select_expr, &own, &names)?.into_iter().chain(columns()).collect();
            let sort = match &on.sort_expr {
                Some(sort) => {
                    let first = columns().map(|c| SortExpr::new(c, true, false));
                    Some(first.chain(domain.bind_sort(sort, &own)?).collect())
                }
                None => None,
            };
            let on = DistinctOn::try_new(keys, select, sort, Arc::new(input))?;
            Ok((LogicalPlan::Distinct(Distinct::On(on)), own))
        }
        LogicalPlan::Union(union) => {
            let mut inputs = Vec::with_capacity(union.inputs.len());
            for input in &union.inputs {
                let (input, own) = push(unnesting, input, domain)?;
                // Columns are united by position; inputs may share qualified names, which a projection takes off.
                let exprs = input.schema().columns().into_iter().enumerate().map(|(i, c)| {
                    let name = format!("__u{i}");
                    Expr::Column(c).alias(name)
                });
                debug_assert_eq!(own.len(), domain.columns.len());
                let exprs = exprs.collect();
                inputs.push(Arc::new(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?)));
            }
            let united = LogicalPlan::Union(Union::try_new(inputs)?);
            named_back(unnesting, united, &union.schema, domain)
        }
        LogicalPlan::Values(values) => push_values(unnesting, values, domain),
        LogicalPlan::Unnest(unnest) => {
            let (input, own) = push(unnesting, &unnest.input, domain)?;
            let plan = LogicalPlanBuilder::from(input)
                .unnest_columns_with_options(unnest.exec_columns.clone(), unnest.options.clone())?
                .build()?;
            Ok((plan, own))
        }
        _ => Err(unsupported("this form of correlated subquery is not supported")),
    }
}

/// `plan`, whose columns correspond to those of `schema` and then to the domain's, with the names of `schema`.
fn named_back(
    unnesting: &mut Unnesting,
    plan: LogicalPlan,
    schema: &DFSchema,
    domain: &Domain,
) -> Result<(LogicalPlan, Vec<Column>)> {
    let n = unnesting.next();
    let own: Vec<Column> = (0..domain.columns.len()).map(|i| Column::new_unqualified(format!("__d{n}_{i}"))).collect();
    let columns = plan.schema().columns();
    let mut exprs = Vec::with_capacity(columns.len());
    for ((qualifier, field), column) in schema.iter().zip(&columns) {
        exprs.push(Expr::Column(column.clone()).alias_qualified(qualifier.cloned(), field.name()));
    }
    for (own, column) in own.iter().zip(columns.iter().skip(schema.fields().len())) {
        exprs.push(Expr::Column(column.clone()).alias(&own.name));
    }
    Ok((LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(plan))?), own))
}

/// The columns of `schema`, then the domain's.
fn in_order(plan: LogicalPlan, schema: &DFSchema, own: &[Column]) -> Result<LogicalPlan> {
    let exprs = schema.columns().into_iter().chain(own.iter().cloned()).map(Expr::Column).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(plan))?))
}

fn push_aggregate(
    unnesting: &mut Unnesting,
    aggregate: &Aggregate,
    names: &NamePreserver,
    domain: &Domain,
) -> Result<(LogicalPlan, Vec<Column>)> {
    if matches!(aggregate.group_expr.as_slice(), [Expr::GroupingSet(_)]) {
        return Err(unsupported("GROUPING SETS in a correlated subquery are not supported"));
    }
    let (input, own) = push(unnesting, &aggregate.input, domain)?;
    let mut group = domain.bind_all(&aggregate.group_expr, &own, names)?;
    group.extend(own.iter().cloned().map(Expr::Column));
    let calls = domain.bind_all(&aggregate.aggr_expr, &own, names)?;
    let grouped = LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(input), group, calls)?);
    if !aggregate.group_expr.is_empty() {
        return Ok((in_order(grouped, &aggregate.schema, &own)?, own));
    }
    // Without GROUP BY there is a row also where nothing was aggregated.
    let alias = TableReference::bare(format!("__a{}", unnesting.next()));
    let columns = aggregate.schema.columns();
    let (mut exprs, mut keys) = (Vec::new(), Vec::new());
    for (i, column) in columns.iter().enumerate() {
        exprs.push(Expr::Column(column.clone()).alias(format!("a{i}")));
    }
    for (i, column) in own.into_iter().enumerate() {
        exprs.push(Expr::Column(column).alias(format!("k{i}")));
        keys.push(Expr::Column(Column::new(Some(alias.clone()), format!("k{i}"))));
    }
    exprs.push(lit(true).alias("present"));
    let grouped = LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(grouped))?);
    let grouped = LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(grouped), alias.clone())?);
    let (rows, own) = domain.fresh(unnesting)?;
    let on = own.iter().cloned().map(Expr::Column).zip(keys).collect();
    let joined = LogicalPlan::Join(Join::try_new(
        Arc::new(rows),
        Arc::new(grouped),
        on,
        None,
        JoinType::Left,
        JoinConstraint::On,
        NullEquality::NullEqualsNull,
        false,
    )?);
    let present = Expr::Column(Column::new(Some(alias.clone()), "present"));
    let mut exprs = Vec::with_capacity(columns.len() + own.len());
    for (i, ((qualifier, field), call)) in aggregate.schema.iter().zip(&aggregate.aggr_expr).enumerate() {
        let value = Expr::Column(Column::new(Some(alias.clone()), format!("a{i}")));
        let empty = match uncalled(call) {
            Expr::AggregateFunction(f) => f.func.default_value(field.data_type())?,
            _ => return Err(unsupported("this form of correlated subquery is not supported")),
        };
        let value = match empty.is_null() {
            true => value,
            false => Expr::Case(Case {
                expr: None,
                when_then_expr: vec![(Box::new(present.clone().is_null()), Box::new(Expr::Literal(empty, None)))],
                else_expr: Some(Box::new(value)),
            }),
        };
        exprs.push(value.alias_qualified(qualifier.cloned(), field.name()));
    }
    exprs.extend(own.iter().cloned().map(Expr::Column));
    Ok((LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(joined))?), own))
}

fn uncalled(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => uncalled(&alias.expr),
        other => other,
    }
}

fn push_window(
    unnesting: &mut Unnesting,
    window: &Window,
    names: &NamePreserver,
    domain: &Domain,
) -> Result<(LogicalPlan, Vec<Column>)> {
    let (input, own) = push(unnesting, &window.input, domain)?;
    let mut exprs = Vec::with_capacity(window.window_expr.len());
    for expr in &window.window_expr {
        let name = names.save(expr);
        let bound = domain.bind(expr.clone(), &own)?;
        let apart = bound.transform(|e| match e {
            Expr::WindowFunction(mut function) => {
                function.params.partition_by.extend(own.iter().cloned().map(Expr::Column));
                Ok(Transformed::yes(Expr::WindowFunction(function)))
            }
            e => Ok(Transformed::no(e)),
        })?;
        exprs.push(name.restore(apart.data));
    }
    let plan = LogicalPlan::Window(Window::try_new(exprs, Arc::new(input))?);
    Ok((in_order(plan, &window.schema, &own)?, own))
}

/// LIMIT for each row of the domain: the rows by their number.
fn push_limit(unnesting: &mut Unnesting, limit: &Limit, domain: &Domain) -> Result<(LogicalPlan, Vec<Column>)> {
    let (SkipType::Literal(skip), FetchType::Literal(fetch)) = (limit.get_skip_type()?, limit.get_fetch_type()?) else {
        return Err(unsupported("LIMIT and OFFSET of a correlated subquery must be constants"));
    };
    // Between LIMIT and ORDER BY may be projections, which keep rows and order; the order may read what they leave out.
    let mut above = Vec::new();
    let mut below: &Arc<LogicalPlan> = &limit.input;
    while let LogicalPlan::Projection(p) = below.as_ref() {
        above.push(p);
        below = &p.input;
    }
    let (below, sort): (&LogicalPlan, &[SortExpr]) = match below.as_ref() {
        LogicalPlan::Sort(Sort { expr, input, fetch: None }) => (input, expr),
        other => (other, &[]),
    };
    let (input, own) = push(unnesting, below, domain)?;
    let Some(function) = functions::window("row_number") else {
        return datafusion::common::internal_err!("row_number is not registered");
    };
    let order = domain.bind_sort(sort, &own)?;
    let number = WindowFunction::new(WindowFunctionDefinition::WindowUDF(function), vec![]);
    let mut number =
        Expr::WindowFunction(Box::new(number)).partition_by(own.iter().cloned().map(Expr::Column).collect());
    if !order.is_empty() {
        number = number.order_by(order);
    }
    let name = format!("__r{}", unnesting.next());
    let number = number.build()?.alias(&name);
    let schema = Arc::clone(below.schema());
    let numbered = LogicalPlan::Window(Window::try_new(vec![number], Arc::new(input))?);
    let rank = || Expr::Column(Column::new_unqualified(name.clone()));
    let mut bounds = Vec::new();
    let count = |n: usize| lit(i64::try_from(n).unwrap_or(i64::MAX));
    if skip > 0 {
        bounds.push(rank().gt(count(skip)));
    }
    if let Some(fetch) = fetch {
        bounds.push(rank().lt_eq(count(skip.saturating_add(fetch))));
    }
    let mut plan = match conjunction(bounds) {
        Some(predicate) => LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(numbered))?),
        None => numbered,
    };
    plan = in_order(plan, &schema, &own)?;
    for projection in above.into_iter().rev() {
        let names = NamePreserver::new_for_projection();
        let mut exprs = domain.bind_all(&projection.expr, &own, &names)?;
        exprs.extend(own.iter().cloned().map(Expr::Column));
        plan = LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(plan))?);
    }
    Ok((plan, own))
}

fn push_join(unnesting: &mut Unnesting, join: &Join, domain: &Domain) -> Result<(LogicalPlan, Vec<Column>)> {
    let mut condition_reads = false;
    for e in join.on.iter().flat_map(|(l, r)| [l, r]).chain(&join.filter) {
        condition_reads |= domain.is_read_in(e)?;
    }
    let left_reads = domain.is_read_by(&join.left)?;
    let right_reads = domain.is_read_by(&join.right)?;
    // A side that can come out alone must come out for each row of the domain.
    let (on_left, on_right) = match join.join_type {
        JoinType::Inner => (left_reads || !right_reads, right_reads),
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => (true, right_reads),
        JoinType::Right => (left_reads, true),
        JoinType::Full => (true, true),
        _ => return Err(unsupported("this form of correlated subquery is not supported")),
    };
    let (left, left_own) = match on_left {
        true => push(unnesting, &join.left, domain)?,
        false => (join.left.as_ref().clone(), vec![]),
    };
    let (right, right_own) = match on_right {
        true => push(unnesting, &join.right, domain)?,
        false => (join.right.as_ref().clone(), vec![]),
    };
    let own = if on_left { left_own.clone() } else { right_own.clone() };
    let mut conditions = Vec::new();
    for (l, r) in &join.on {
        let op = match join.null_equality {
            NullEquality::NullEqualsNothing => Operator::Eq,
            NullEquality::NullEqualsNull => Operator::IsNotDistinctFrom,
        };
        conditions.push(binary_expr(domain.bind(l.clone(), &own)?, op, domain.bind(r.clone(), &own)?));
    }
    if let Some(filter) = &join.filter {
        conditions.push(domain.bind(filter.clone(), &own)?);
    }
    if !(condition_reads || on_left && on_right) {
        // The keys are as they were.
        let joined = Join::try_new(
            Arc::new(left),
            Arc::new(right),
            join.on.clone(),
            join.filter.clone(),
            join.join_type,
            join.join_constraint,
            join.null_equality,
            join.null_aware,
        )?;
        return Ok((in_order(LogicalPlan::Join(joined), &join.schema, &own)?, own));
    }
    if join.null_aware {
        return Err(unsupported("this form of correlated subquery is not supported"));
    }
    let (on, null_equality) = match on_left && on_right {
        true => {
            let pairs = left_own.iter().cloned().zip(right_own.iter().cloned());
            let pairs = pairs.map(|(l, r)| (Expr::Column(l), Expr::Column(r))).collect();
            // Under the null-safe equality of the domain the condition's own must stay what it is.
            conditions = conditions.into_iter().map(super::guarded).collect();
            (pairs, NullEquality::NullEqualsNull)
        }
        false => (vec![], NullEquality::NullEqualsNothing),
    };
    let joined = LogicalPlan::Join(Join::try_new(
        Arc::new(left),
        Arc::new(right),
        on,
        conjunction(conditions),
        join.join_type,
        JoinConstraint::On,
        null_equality,
        false,
    )?);
    if join.join_type == JoinType::Full {
        // A row of one side alone has the domain's values on that side.
        let n = unnesting.next();
        let mut exprs: Vec<Expr> = join.schema.columns().into_iter().map(Expr::Column).collect();
        let mut own = Vec::with_capacity(left_own.len());
        for (i, (l, r)) in left_own.into_iter().zip(right_own).enumerate() {
            let name = format!("__d{n}_{i}");
            let (l, r) = (Expr::Column(l), Expr::Column(r));
            let either = Expr::Case(Case {
                expr: None,
                when_then_expr: vec![(Box::new(l.clone().is_null()), Box::new(r))],
                else_expr: Some(Box::new(l)),
            });
            exprs.push(either.alias(&name));
            own.push(Column::new_unqualified(name));
        }
        return Ok((LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(joined))?), own));
    }
    if own.is_empty() {
        Ok((only(joined, &join.schema)?, own))
    } else {
        Ok((in_order(joined, &join.schema, &own)?, own))
    }
}

/// VALUES that read outer values: one projection of the domain for each row.
fn push_values(unnesting: &mut Unnesting, values: &Values, domain: &Domain) -> Result<(LogicalPlan, Vec<Column>)> {
    let mut inputs = Vec::with_capacity(values.values.len());
    for row in &values.values {
        let (rows, own) = domain.fresh(unnesting)?;
        let mut exprs = Vec::with_capacity(row.len() + own.len());
        for (i, e) in row.iter().enumerate() {
            exprs.push(domain.bind(e.clone(), &own)?.alias(format!("__u{i}")));
        }
        for (i, column) in own.into_iter().enumerate() {
            exprs.push(Expr::Column(column).alias(format!("__u{}", row.len() + i)));
        }
        inputs.push(Arc::new(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(rows))?)));
    }
    let united = match inputs.len() {
        1 => Arc::unwrap_or_clone(inputs.swap_remove(0)),
        _ => LogicalPlan::Union(Union::try_new(inputs)?),
    };
    named_back(unnesting, united, &values.schema, domain)
}
