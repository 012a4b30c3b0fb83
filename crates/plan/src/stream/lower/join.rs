//! Joins of every kind, and what subqueries become.

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::{JoinType, NullEquality, ScalarValue};
use datafusion::logical_expr::Join;
use datafusion::logical_expr::type_coercion::binary::comparison_coercion;
use flow::{Error, Result, SqlState};

use super::super::build::cast;
use super::super::{JoinKind, RankKind, StreamNode};
use super::{Lowering, distinct};
use crate::expr::{Expr, Is, Literal, field_of, from_datafusion, sql_type};

/// Operators below a mark that doubles them.
const MARKED_NODES_MAX: usize = 2_000;

impl Lowering {
    pub(super) fn join(&mut self, join: &Join) -> Result<StreamNode> {
        let left = self.plan(&join.left)?;
        let right = self.plan(&join.right)?;
        let parts = Parts::new(join, left, right)?;
        match join.join_type {
            JoinType::Inner => parts.build(JoinKind::Inner),
            JoinType::Left => parts.build(JoinKind::Left),
            JoinType::Right => parts.build(JoinKind::Right),
            JoinType::Full => parts.build(JoinKind::Full),
            JoinType::LeftSemi => parts.build(JoinKind::LeftSemi),
            JoinType::LeftAnti => parts.build(JoinKind::LeftAnti),
            JoinType::RightSemi => parts.swap().build(JoinKind::LeftSemi),
            JoinType::RightAnti => parts.swap().build(JoinKind::LeftAnti),
            JoinType::LeftMark => parts.mark(),
            JoinType::RightMark => parts.swap().mark(),
        }
    }
}

/// A join whose key columns exist on both sides with equal types. Each side has its plan's columns first, then columns
/// computed for the keys.
#[derive(Clone)]
struct Parts {
    left: StreamNode,
    right: StreamNode,
    /// Columns of the plan on each side, the ones that come out.
    left_out: usize,
    right_out: usize,
    on: Vec<(usize, usize)>,
    /// Over the sides as they are here: left columns, then right columns.
    filter: Option<Expr>,
    nulls_equal: bool,
    null_aware: bool,
}

impl Parts {
    fn new(join: &Join, left: StreamNode, right: StreamNode) -> Result<Parts> {
        let (left_schema, right_schema) = (join.left.schema(), join.right.schema());
        let mut left_keys = Vec::with_capacity(join.on.len());
        let mut right_keys = Vec::with_capacity(join.on.len());
        for (l, r) in &join.on {
            let l = from_datafusion(l, left_schema)?;
            let r = from_datafusion(r, right_schema)?;
            let common = common_type(&l, &left.schema, &r, &right.schema)?;
            left_keys.push(as_type(l, &left.schema, &common)?);
            right_keys.push(as_type(r, &right.schema, &common)?);
        }
        let (left_out, right_out) = (left_schema.fields().len(), right_schema.fields().len());
        let (left, left_places) = left.extend(left_keys)?;
        let (right, right_places) = right.extend(right_keys)?;
        let mut on: Vec<(usize, usize)> = Vec::with_capacity(left_places.len());
        for pair in left_places.into_iter().zip(right_places) {
            if !on.contains(&pair) {
                on.push(pair);
            }
        }
        let filter = match &join.filter {
            Some(filter) => {
                let both = left_schema.join(right_schema).map_err(crate::error::from_datafusion_error)?;
                let width = left.width();
                let shift = |c: usize| if c < left_out { c } else { c - left_out + width };
                Some(from_datafusion(filter, &both)?.map_columns(&shift))
            }
            None => None,
        };
        let filter = filter.filter(|f| !is_true(f));
        let nulls_equal = join.null_equality == NullEquality::NullEqualsNull;
        Ok(Parts { left, right, left_out, right_out, on, filter, nulls_equal, null_aware: join.null_aware })
    }

    /// The same join seen from the other side.
    fn swap(self) -> Parts {
        let (l, r) = (self.left.width(), self.right.width());
        Parts {
            filter: self.filter.map(|f| f.map_columns(&|c| if c < l { c + r } else { c - l })),
            left: self.right,
            right: self.left,
            left_out: self.right_out,
            right_out: self.left_out,
            on: self.on.into_iter().map(|(l, r)| (r, l)).collect(),
            nulls_equal: self.nulls_equal,
            null_aware: self.null_aware,
        }
    }

    fn build(self, kind: JoinKind) -> Result<StreamNode> {
        if self.null_aware && (kind != JoinKind::LeftAnti || self.on.len() != 1 || self.filter.is_some()) {
            return Err(Error::unsupported("this form of NOT IN (subquery) is not supported in a standing query")
                .with_hint("Write NOT EXISTS (SELECT … WHERE …)."));
        }
        let (left_out, right_out, width) = (self.left_out, self.right_out, self.left.width());
        let semi = matches!(kind, JoinKind::LeftSemi | JoinKind::LeftAnti);
        let node =
            StreamNode::join(kind, self.left, self.right, self.on, self.nulls_equal, self.filter, self.null_aware)?;
        let mut columns: Vec<usize> = (0..left_out).collect();
        if !semi {
            columns.extend(width..width + right_out);
        }
        if columns.is_empty() {
            columns.push(0);
        }
        node.pick(&columns)
    }

    /// Left rows, each with whether it has a match.
    fn mark(self) -> Result<StreamNode> {
        if self.null_aware {
            return Err(Error::unsupported("this form of NOT IN (subquery) is not supported in a standing query")
                .with_hint("Write NOT EXISTS (SELECT … WHERE …)."));
        }
        if self.filter.is_some() { self.mark_by_both() } else { self.mark_by_key() }
    }

    /// The mark where only keys decide: a left join with the distinct keys of the right side.
    fn mark_by_key(self) -> Result<StreamNode> {
        let (out, width) = (self.left_out, self.left.width());
        let present = Expr::Literal(Literal::from_scalar(&ScalarValue::Boolean(Some(true)))?);
        let mut named: Vec<(Expr, String)> =
            self.on.iter().map(|(_, r)| (Expr::Column(*r), self.right.name_of(*r))).collect();
        let keys = named.len();
        named.push((present, "present".into()));
        let marks = self.right.project(named)?;
        let marks = match keys {
            // Without keys the question is whether the right side has any row.
            0 => marks.top_n(vec![], vec![], (0, Some(1)), RankKind::RowNumber, None),
            _ => distinct(marks)?,
        };
        let on = self.on.iter().enumerate().map(|(i, (l, _))| (*l, i)).collect();
        let node = StreamNode::join(JoinKind::Left, self.left, marks, on, self.nulls_equal, None, false)?;
        let mut exprs: Vec<(Expr, String)> = (0..out).map(|c| (Expr::Column(c), node.name_of(c))).collect();
        let mark = Expr::Is { negated: true, what: Is::Null, expr: Box::new(Expr::Column(width + keys)) };
        exprs.push((mark, "mark".into()));
        node.project(exprs)
    }

    /// The mark in general: the left rows that have a match and those that have none, united.
    fn mark_by_both(self) -> Result<StreamNode> {
        if count(&self.left) > MARKED_NODES_MAX {
            return Err(Error::new(SqlState::StatementTooComplex, "too many correlated conditions under OR")
                .with_hint("Create views for parts of the query."));
        }
        let out = self.left_out;
        let marked = |node: StreamNode, mark: bool| -> Result<StreamNode> {
            let mut exprs: Vec<(Expr, String)> = (0..out).map(|c| (Expr::Column(c), node.name_of(c))).collect();
            exprs.push((Expr::Literal(Literal::from_scalar(&ScalarValue::Boolean(Some(mark)))?), "mark".into()));
            node.project(exprs)
        };
        let matched = marked(self.clone().build(JoinKind::LeftSemi)?, true)?;
        let keys = matched.traits.unique_keys.clone();
        let unmatched = marked(self.build(JoinKind::LeftAnti)?, false)?;
        let schema = matched.schema.clone();
        let mut node = StreamNode::union(vec![matched, unmatched], schema)?;
        // Each left row is in exactly one of the two.
        node.traits.unique_keys = keys;
        Ok(node)
    }
}

fn count(node: &StreamNode) -> usize {
    1 + node.inputs.iter().map(count).sum::<usize>()
}

fn is_true(e: &Expr) -> bool {
    matches!(e, Expr::Literal(l) if matches!(l.to_scalar(), Ok(ScalarValue::Boolean(Some(true)))))
}

/// The type in which two key expressions are compared.
fn common_type(l: &Expr, left: &SchemaRef, r: &Expr, right: &SchemaRef) -> Result<DataType> {
    let (l, r) = (field_of(l, left)?, field_of(r, right)?);
    let (l, r) = (plain(l.data_type()), plain(r.data_type()));
    if l == r {
        return Ok(l);
    }
    comparison_coercion(&l, &r).map(|t| plain(&t)).ok_or_else(|| {
        Error::new(SqlState::UndefinedFunction, format!("operator does not exist: {} = {}", sql_type(&l), sql_type(&r)))
            .with_hint("You might need to add explicit type casts.")
    })
}

/// One layout for text and bytes; values of a dictionary.
fn plain(t: &DataType) -> DataType {
    match t {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, value) => plain(value),
        other => other.clone(),
    }
}

fn as_type(e: Expr, input: &SchemaRef, to: &DataType) -> Result<Expr> {
    if field_of(&e, input)?.data_type() == to { Ok(e) } else { Ok(cast(e, to)) }
}
