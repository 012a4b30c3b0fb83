//! From the optimised table plan to the stream plan.
//!
//! Law of this module: the node that a table plan is lowered to has the plan's columns, in order and of equal types, and
//! nothing else; only a plan without columns becomes a node with one column, which nothing reads. Names may differ inside
//! the tree. The top node has the declared names and canonical types.

mod aggregate;
mod join;
mod rank;
mod session;
mod values;

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::logical_expr::{
    Distinct, FetchType, Limit, LogicalPlan, Projection, SkipType, SortExpr, TableScan, Union, Unnest,
};
use flow::{Error, Result, SqlState};

use super::types::canonical_type;
use super::{RankKind, SortKey, StreamNode};
use crate::error::from_datafusion_error;
use crate::expr::{self, Expr, from_datafusion};
use crate::table::relation_of;

/// Levels of plan nodes that a statement may have; deeper ones are refused with `54001`.
const PLAN_DEPTH_MAX: usize = 256;

/// The change-stream operators that compute `plan`, an optimised plan (see [`crate::table::optimize`]).
///
/// The result has the plan's column names and the canonical types (see [`super::canonical_type`]). Errors: `0A000` naming
/// what a standing query cannot do and what to write instead, `54001` for a plan that is too deep.
pub fn lower(plan: &LogicalPlan) -> Result<StreamNode> {
    let node = Lowering { depth: 0 }.plan(plan)?;
    let fields = plan.schema().fields();
    if fields.is_empty() {
        return Err(Error::unsupported("a standing query without columns is not supported")
            .with_hint("Select at least one column."));
    }
    let mut declared = Vec::with_capacity(fields.len());
    for (want, have) in fields.iter().zip(node.schema.fields()) {
        let data_type = canonical_type(have.data_type())
            .map_err(|e| Error::new(e.state(), format!("column \"{}\": {}", want.name(), e.message())))?;
        declared.push(Field::new(want.name(), data_type, have.is_nullable()));
    }
    node.conform(&Arc::new(Schema::new(declared)))
}

/// The walk over one table plan.
struct Lowering {
    depth: usize,
}

impl Lowering {
    fn plan(&mut self, plan: &LogicalPlan) -> Result<StreamNode> {
        if self.depth >= PLAN_DEPTH_MAX {
            return Err(Error::new(SqlState::StatementTooComplex, "query is nested too deeply")
                .with_detail(format!("A query may have {PLAN_DEPTH_MAX} levels of operators."))
                .with_hint("Create views for parts of it."));
        }
        self.depth += 1;
        let node = self.node(plan);
        self.depth -= 1;
        let node = node?;
        debug_assert!(node.width() == plan.schema().fields().len().max(1), "{}", plan.display());
        Ok(node)
    }

    fn node(&mut self, plan: &LogicalPlan) -> Result<StreamNode> {
        match plan {
            LogicalPlan::Projection(p) => {
                let input = self.plan(&p.input)?;
                self.projection(input, p)
            }
            LogicalPlan::Filter(f) => match self.ranked_filter(f)? {
                Some(node) => Ok(node),
                None => {
                    let input = self.plan(&f.input)?;
                    input.filter(from_datafusion(&f.predicate, f.input.schema())?)
                }
            },
            LogicalPlan::TableScan(scan) => self.scan(scan),
            LogicalPlan::SubqueryAlias(alias) => self.plan(&alias.input),
            LogicalPlan::Union(union) => self.union(union),
            LogicalPlan::Distinct(Distinct::All(input)) => {
                let input = self.plan(input)?;
                distinct(input)
            }
            LogicalPlan::Distinct(Distinct::On(on)) => self.distinct_on(on),
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate),
            LogicalPlan::Join(join) => self.join(join),
            LogicalPlan::Window(window) => self.window(window, None),
            // Rows of a standing query have no order.
            LogicalPlan::Sort(sort) => match sort.fetch {
                None => self.plan(&sort.input),
                Some(fetch) => {
                    let input = self.plan(&sort.input)?;
                    top(input, &sort.expr, sort.input.schema(), 0, Some(fetch as u64))
                }
            },
            LogicalPlan::Limit(limit) => self.limit(limit),
            LogicalPlan::Values(v) => values::rows(v),
            LogicalPlan::EmptyRelation(empty) => values::empty(empty),
            LogicalPlan::Repartition(r) => self.plan(&r.input),
            LogicalPlan::Subquery(_) => {
                Err(Error::unsupported("this form of subquery is not supported").with_hint("Write it as a join."))
            }
            LogicalPlan::Unnest(unnest) => self.unnest(unnest),
            LogicalPlan::RecursiveQuery(_) => {
                Err(Error::unsupported("WITH RECURSIVE is not supported in a standing query"))
            }
            LogicalPlan::Extension(e) => {
                Err(Error::unsupported(format!("{} is not supported in a standing query", e.node.name())))
            }
            LogicalPlan::Statement(_)
            | LogicalPlan::Explain(_)
            | LogicalPlan::Analyze(_)
            | LogicalPlan::Dml(_)
            | LogicalPlan::Ddl(_)
            | LogicalPlan::Copy(_)
            | LogicalPlan::DescribeTable(_) => {
                Err(Error::new(SqlState::SyntaxError, "a standing query must be a SELECT"))
            }
        }
    }

    fn unnest(&mut self, unnest: &Unnest) -> Result<StreamNode> {
        let lists = match unnest.list_type_columns.as_slice() {
            [(column, list)] if list.depth == 1 && unnest.struct_type_columns.is_empty() => Some(*column),
            _ => None,
        };
        let Some(column) = lists.filter(|_| !unnest.options.preserve_nulls()) else {
            return Err(Error::unsupported("this form of unnest is not supported in a standing query")
                .with_hint("Unnest one array at a time."));
        };
        let input = self.plan(&unnest.input)?;
        let node = input.unnest(column)?;
        // The element stands where the list stood, or elsewhere.
        let columns: Vec<usize> = unnest.dependency_indices.clone();
        node.pick(&columns)
    }

    fn projection(&mut self, input: StreamNode, p: &Projection) -> Result<StreamNode> {
        let mut exprs = Vec::with_capacity(p.expr.len());
        for (e, field) in p.expr.iter().zip(p.schema.fields()) {
            exprs.push((from_datafusion(e, p.input.schema())?, field.name().clone()));
        }
        let identity = exprs.len() == input.width()
            && exprs.iter().enumerate().all(|(i, (e, _))| matches!(e, Expr::Column(c) if *c == i));
        if identity { Ok(input) } else { input.project(exprs) }
    }

    fn scan(&mut self, scan: &TableScan) -> Result<StreamNode> {
        let Some(source) = relation_of(&scan.source) else {
            return Err(Error::new(
                SqlState::WrongObjectType,
                format!("\"{}\" cannot be read by a standing query", scan.table_name.table()),
            )
            .with_hint("Standing queries read tables, sources and materialized views."));
        };
        let wanted: Vec<usize> = match &scan.projection {
            Some(columns) => columns.clone(),
            None => (0..source.schema.fields().len()).collect(),
        };
        // Filters may read columns that the projection leaves out, and a batch must have a column to travel.
        let whole = DFSchema::try_from_qualified_schema(scan.table_name.clone(), &source.schema)
            .map_err(from_datafusion_error)?;
        let mut predicates = Vec::with_capacity(scan.filters.len());
        for filter in &scan.filters {
            predicates.push(from_datafusion(filter, &whole)?);
        }
        let mut columns = wanted.clone();
        for predicate in &predicates {
            predicate.visit_columns(&mut |c| {
                if !columns.contains(&c) {
                    columns.push(c);
                }
            });
        }
        if columns.is_empty() {
            if source.schema.fields().is_empty() {
                return Err(Error::unsupported(format!("\"{}\" has no columns", scan.table_name.table())));
            }
            columns.push(narrowest(&source.schema));
        }
        let mut node = StreamNode::relation(&source, columns.clone())?;
        let place = |c: usize| columns.iter().position(|k| *k == c).unwrap_or_default();
        if let Some(predicate) = Expr::all(predicates) {
            node = node.filter(predicate.map_columns(&place))?;
        }
        if let Some(fetch) = scan.fetch {
            node = node.top_n(vec![], vec![], (0, Some(fetch as u64)), RankKind::RowNumber, None);
        }
        if wanted.is_empty() {
            return node.pick(&[0]);
        }
        node.pick(&wanted.iter().map(|c| place(*c)).collect::<Vec<_>>())
    }

    fn union(&mut self, union: &Union) -> Result<StreamNode> {
        let mut inputs = Vec::with_capacity(union.inputs.len());
        for input in &union.inputs {
            inputs.push(self.plan(input)?);
        }
        let mut fields = Vec::with_capacity(union.schema.fields().len());
        for (i, field) in union.schema.fields().iter().enumerate() {
            let nullable = inputs.iter().any(|n| n.schema.fields().get(i).is_none_or(|f| f.is_nullable()));
            fields.push(Field::new(field.name(), field.data_type().clone(), nullable));
        }
        if fields.is_empty() {
            // Nothing is read of the rows but how many there are.
            fields.push(Field::new("present", arrow::datatypes::DataType::Boolean, false));
            let present = Expr::Literal(expr::Literal::from_scalar(&true.into())?);
            inputs = inputs
                .into_iter()
                .map(|n| n.project(vec![(present.clone(), "present".into())]))
                .collect::<Result<_>>()?;
        }
        StreamNode::union(inputs, Arc::new(Schema::new(fields)))
    }

    fn distinct_on(&mut self, on: &datafusion::logical_expr::DistinctOn) -> Result<StreamNode> {
        let input = self.plan(&on.input)?;
        let schema = on.input.schema();
        let (sort, width) = (on.sort_expr.as_deref().unwrap_or_default(), input.width());
        let mut computed = Vec::new();
        for e in &on.on_expr {
            computed.push(from_datafusion(e, schema)?);
        }
        for s in sort {
            computed.push(from_datafusion(&s.expr, schema)?);
        }
        let (input, places) = input.extend(computed)?;
        let (partition, order) = places.split_at(on.on_expr.len());
        let order = sort_keys(order, sort);
        let node = input.top_n(partition.to_vec(), order, (0, Some(1)), RankKind::RowNumber, None);
        let mut exprs = Vec::with_capacity(on.select_expr.len());
        for (e, field) in on.select_expr.iter().zip(on.schema.fields()) {
            exprs.push((from_datafusion(e, schema)?, field.name().clone()));
        }
        debug_assert!(node.width() >= width);
        node.project(exprs)
    }

    fn limit(&mut self, limit: &Limit) -> Result<StreamNode> {
        let constant = || {
            Error::unsupported("LIMIT and OFFSET of a standing query must be constants")
                .with_hint("Write a number: LIMIT 10.")
        };
        let SkipType::Literal(skip) = limit.get_skip_type().map_err(from_datafusion_error)? else {
            return Err(constant());
        };
        let FetchType::Literal(fetch) = limit.get_fetch_type().map_err(from_datafusion_error)? else {
            return Err(constant());
        };
        if skip == 0 && fetch.is_none() {
            return self.plan(&limit.input);
        }
        // Between LIMIT and its ORDER BY there may be projections, which keep rows and order.
        let mut above = Vec::new();
        let mut below: &LogicalPlan = &limit.input;
        loop {
            match below {
                LogicalPlan::Projection(p) => {
                    above.push(p);
                    below = &p.input;
                }
                LogicalPlan::SubqueryAlias(a) => below = &a.input,
                _ => break,
            }
        }
        if let LogicalPlan::Sort(sort) = below {
            let fetch = match (fetch, sort.fetch) {
                (Some(a), Some(b)) => Some(a.min(b.saturating_sub(skip))),
                (None, Some(b)) => Some(b.saturating_sub(skip)),
                (fetch, None) => fetch,
            };
            let input = self.plan(&sort.input)?;
            let mut node = top(input, &sort.expr, sort.input.schema(), skip as u64, fetch.map(|f| f as u64))?;
            for p in above.into_iter().rev() {
                node = self.projection(node, p)?;
            }
            return Ok(node);
        }
        let input = self.plan(&limit.input)?;
        Ok(input.top_n(vec![], vec![], (skip as u64, fetch.map(|f| f as u64)), RankKind::RowNumber, None))
    }
}

/// The first rows of `input` in the order of `sort`.
fn top(input: StreamNode, sort: &[SortExpr], schema: &DFSchema, offset: u64, limit: Option<u64>) -> Result<StreamNode> {
    let width = input.width();
    let mut computed = Vec::with_capacity(sort.len());
    for s in sort {
        computed.push(from_datafusion(&s.expr, schema)?);
    }
    let (input, places) = input.extend(computed)?;
    let node = input.top_n(vec![], sort_keys(&places, sort), (offset, limit), RankKind::RowNumber, None);
    node.pick(&(0..width).collect::<Vec<_>>())
}

/// Sort keys over `columns`, a column that repeats left out: it can decide nothing.
fn sort_keys(columns: &[usize], sort: &[SortExpr]) -> Vec<SortKey> {
    let mut keys: Vec<SortKey> = Vec::with_capacity(columns.len());
    for (column, s) in columns.iter().zip(sort) {
        if !keys.iter().any(|k| k.column == *column) {
            keys.push(SortKey { column: *column, descending: !s.asc, nulls_first: s.nulls_first });
        }
    }
    keys
}

/// Each row once.
fn distinct(input: StreamNode) -> Result<StreamNode> {
    let all: Vec<usize> = (0..input.width()).collect();
    if input.is_unique_by(&all) {
        return Ok(input);
    }
    let names = all.iter().map(|c| input.name_of(*c)).collect();
    input.aggregate(all, vec![], names)
}

/// The column that costs least to carry.
fn narrowest(schema: &SchemaRef) -> usize {
    let width = |i: &usize| schema.field(*i).data_type().primitive_width().unwrap_or(usize::MAX);
    (0..schema.fields().len()).min_by_key(width).unwrap_or_default()
}
