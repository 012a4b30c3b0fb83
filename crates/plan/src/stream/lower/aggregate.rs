//! GROUP BY.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr as df;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{Aggregate, GroupingSet};
use flow::{Error, Result, SqlState};

use super::super::build::cast;
use super::super::{AggCall, AggFunction, StreamNode};
use super::Lowering;
use crate::expr::{Expr, Literal, from_datafusion};

/// Grouping sets that one GROUP BY may expand to; each is an aggregate of its own over a shared input.
const GROUPING_SETS_MAX: usize = 64;

/// What a message about an unknown aggregate offers instead.
const SUPPORTED: &str = "Supported aggregates are count, sum, avg, min, max, bool_and, bool_or (every), \
                         each with DISTINCT and FILTER.";

impl Lowering {
    pub(super) fn aggregate(&mut self, aggregate: &Aggregate) -> Result<StreamNode> {
        if let Some(sessions) = self.sessions(aggregate)? {
            return Ok(sessions);
        }
        let input = self.plan(&aggregate.input)?;
        let schema = aggregate.input.schema();
        match aggregate.group_expr.as_slice() {
            [df::Expr::GroupingSet(sets)] => grouping_sets(input, sets, aggregate),
            group => {
                // DataFusion's output schema holds each distinct expression once.
                let mut exprs: Vec<&df::Expr> = Vec::with_capacity(group.len());
                for e in group {
                    if !exprs.contains(&e) {
                        exprs.push(e);
                    }
                }
                let calls = calls(aggregate, schema, exprs.len())?;
                let group = exprs.into_iter().map(|e| from_datafusion(e, schema)).collect::<Result<Vec<_>>>()?;
                one(input, group, &calls)
            }
        }
    }
}

/// A call before its argument and filter have columns.
#[derive(Clone)]
pub(super) struct Call {
    pub function: AggFunction,
    pub arg: Option<Expr>,
    pub distinct: bool,
    pub filter: Option<Expr>,
    pub output: DataType,
}

/// One aggregate of `input`: computes what the groups and calls read in a projection below. Output: the groups, then the
/// calls.
fn one(input: StreamNode, group: Vec<Expr>, calls: &[Call]) -> Result<StreamNode> {
    let mut exprs: Vec<Expr> = Vec::new();
    let mut place = |e: &Expr| match exprs.iter().position(|have| have == e) {
        Some(i) => i,
        None => {
            exprs.push(e.clone());
            exprs.len() - 1
        }
    };
    // Equal group expressions share a column of the aggregate; a projection above repeats it.
    let mut columns: Vec<usize> = Vec::new();
    let mut repeats = Vec::with_capacity(group.len());
    for e in &group {
        let c = place(e);
        repeats.push(columns.iter().position(|have| *have == c).unwrap_or_else(|| {
            columns.push(c);
            columns.len() - 1
        }));
    }
    let mut calls: Vec<AggCall> = calls
        .iter()
        .map(|call| AggCall {
            function: call.function,
            arg: call.arg.as_ref().map(&mut place),
            distinct: call.distinct,
            filter: call.filter.as_ref().map(&mut place),
            output: call.output.clone(),
        })
        .collect();
    // The input as it is, when it has just the columns that are read; count(*) alone reads none.
    let plain: Option<Vec<usize>> =
        exprs.iter().map(|e| if let Expr::Column(c) = e { Some(*c) } else { None }).collect();
    let input = match plain {
        Some(plain) if plain.len() == input.width() || plain.is_empty() => {
            let at = |c: usize| plain.get(c).copied().unwrap_or(c);
            columns.iter_mut().for_each(|c| *c = at(*c));
            for call in &mut calls {
                call.arg = call.arg.map(at);
                call.filter = call.filter.map(at);
            }
            input
        }
        _ => {
            let named = exprs.into_iter().map(|e| {
                let name = e.named(&input.schema).to_string();
                (e, name)
            });
            let named = named.collect();
            input.project(named)?
        }
    };
    let distinct_groups = columns.len();
    let names = columns
        .iter()
        .map(|c| input.name_of(*c))
        .chain(calls.iter().map(|c| c.named(&input.schema).to_string()))
        .collect();
    let node = input.aggregate(columns, calls, names)?;
    if distinct_groups == repeats.len() {
        return Ok(node);
    }
    let picked: Vec<usize> = repeats.into_iter().chain(distinct_groups..node.width()).collect();
    node.pick(&picked)
}

/// The calls of `aggregate`, whose output has so many `groups` before them.
pub(super) fn calls(aggregate: &Aggregate, schema: &DFSchema, groups: usize) -> Result<Vec<Call>> {
    let outputs = aggregate.schema.fields().iter().skip(groups);
    aggregate.aggr_expr.iter().zip(outputs).map(|(e, field)| call(e, field.data_type(), schema)).collect()
}

fn call(expr: &df::Expr, output: &DataType, schema: &DFSchema) -> Result<Call> {
    let f = match expr {
        df::Expr::Alias(alias) => return call(&alias.expr, output, schema),
        df::Expr::AggregateFunction(f) => f,
        other => return Err(Error::internal(format!("{other} is not an aggregate call"))),
    };
    let function = function(f)?;
    let args = &f.params.args;
    let arg = match args.as_slice() {
        [] if function == AggFunction::Count => None,
        [arg] => Some(from_datafusion(arg, schema)?),
        _ => {
            let name = f.func.name();
            return Err(Error::unsupported(format!("{name} of {} arguments is not supported", args.len())).with_hint(
                format!("Aggregate one value: {name}((a, b)) can be written over a text such as a || ',' || b."),
            ));
        }
    };
    // count(1) and count(*) count rows.
    let arg = match (function, arg) {
        (AggFunction::Count, Some(Expr::Literal(l))) if !f.params.distinct => match l.to_scalar()?.is_null() {
            true => Some(Expr::Literal(l)),
            false => None,
        },
        (_, arg) => arg,
    };
    let filter = f.params.filter.as_ref().map(|e| from_datafusion(e, schema)).transpose()?;
    // These two do not care how often a value comes.
    let idempotent =
        matches!(function, AggFunction::Min | AggFunction::Max | AggFunction::BoolAnd | AggFunction::BoolOr);
    Ok(Call { function, arg, distinct: f.params.distinct && !idempotent, filter, output: output.clone() })
}

fn function(f: &AggregateFunction) -> Result<AggFunction> {
    Ok(match f.func.name().to_ascii_lowercase().as_str() {
        "count" => AggFunction::Count,
        "sum" => AggFunction::Sum,
        "avg" | "mean" => AggFunction::Avg,
        "min" => AggFunction::Min,
        "max" => AggFunction::Max,
        "bool_and" | "every" => AggFunction::BoolAnd,
        "bool_or" => AggFunction::BoolOr,
        name => {
            return Err(Error::unsupported(format!("aggregate {name} is not supported in a standing query"))
                .with_hint(SUPPORTED));
        }
    })
}

/// One aggregate for each set over the same input, united; columns that a set lacks are NULL.
fn grouping_sets(input: StreamNode, sets: &GroupingSet, aggregate: &Aggregate) -> Result<StreamNode> {
    let schema = aggregate.input.schema();
    let all: Vec<&df::Expr> = sets.distinct_expr();
    let place = |e: &df::Expr| all.iter().position(|have| *have == e).unwrap_or_default();
    let sets: Vec<Vec<usize>> = match sets {
        GroupingSet::Rollup(exprs) => {
            (0..=exprs.len()).rev().map(|n| exprs.iter().take(n).map(place).collect()).collect()
        }
        GroupingSet::Cube(exprs) if exprs.len() < 16 => (0..1usize << exprs.len())
            .rev()
            .map(|bits| exprs.iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0).map(|(_, e)| place(e)).collect())
            .collect(),
        GroupingSet::Cube(_) => vec![vec![]; GROUPING_SETS_MAX + 1],
        GroupingSet::GroupingSets(sets) => sets.iter().map(|set| set.iter().map(place).collect()).collect(),
    };
    if sets.len() > GROUPING_SETS_MAX {
        return Err(Error::new(SqlState::ProgramLimitExceeded, "too many grouping sets")
            .with_detail(format!("A GROUP BY may have {GROUPING_SETS_MAX} grouping sets.")));
    }
    let fields = aggregate.schema.fields();
    let names = |i: usize| fields.get(i).map_or_else(String::new, |f| f.name().clone());
    let calls = calls(aggregate, schema, all.len() + 1)?;
    let group = all.iter().map(|e| from_datafusion(e, schema)).collect::<Result<Vec<_>>>()?;
    let id_type = fields.get(all.len()).map_or(DataType::UInt64, |f| f.data_type().clone());
    let mut branches = Vec::with_capacity(sets.len());
    for (n, set) in sets.iter().enumerate() {
        let mut present = set.clone();
        present.sort_unstable();
        present.dedup();
        let key: Vec<Expr> = present.iter().filter_map(|i| group.get(*i).cloned()).collect();
        let node = one(input.clone(), key, &calls)?;
        // DataFusion's id: one bit per group column, the last column lowest, set where the column is not grouped by;
        // above them the number of earlier sets that are equal.
        let bits = (0..all.len()).fold(0u64, |id, i| (id << 1) | u64::from(!present.contains(&i)));
        let same = |other: &&Vec<usize>| {
            let mut other = (*other).clone();
            other.sort_unstable();
            other.dedup();
            other == present
        };
        let ordinal = sets.iter().take(n).filter(same).count() as u64;
        let id = bits | ordinal.checked_shl(all.len() as u32).unwrap_or_default();
        let id = ScalarValue::UInt64(Some(id)).cast_to(&id_type).map_err(crate::error::from_datafusion_error)?;
        let mut exprs = Vec::with_capacity(fields.len());
        for (i, e) in group.iter().enumerate() {
            let value = match present.iter().position(|p| *p == i) {
                Some(at) => Expr::Column(at),
                None => {
                    let null = Expr::Literal(Literal::from_scalar(&ScalarValue::Null)?);
                    cast(null, crate::expr::field_of(e, &input.schema)?.data_type())
                }
            };
            exprs.push((value, names(i)));
        }
        exprs.push((Expr::Literal(Literal::from_scalar(&id)?), names(all.len())));
        for c in 0..calls.len() {
            exprs.push((Expr::Column(present.len() + c), names(all.len() + 1 + c)));
        }
        branches.push(node.project(exprs)?);
    }
    let Some(first) = branches.first() else {
        return Err(Error::internal("a GROUP BY without grouping sets"));
    };
    let united = first.schema.fields().iter().map(|f| Field::new(f.name(), f.data_type().clone(), true));
    let united = Arc::new(Schema::new(united.collect::<Vec<_>>()));
    StreamNode::union(branches, united)
}
