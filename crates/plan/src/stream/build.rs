//! Constructors of stream nodes: each derives schema and traits from the inputs.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use flow::{Error, Result};

use super::keys::{Side, contains_key, filtered_keys, join_keys, map_keys, normalise};
use super::types::keeps_identity;
use super::{
    AggCall, ChangeKind, Distribution, JoinKind, RankKind, SortKey, StreamNode, StreamOp, TimeColumn, Traits,
    placement, time,
};
use crate::expr::{self, Expr, Literal};
use crate::table::RelationSource;

/// The output column of `exprs` that has the values of input column `column`, as it is or in a cast that keeps keys and
/// distribution true.
pub(super) fn kept_column(exprs: &[Expr], input: &Schema, column: usize) -> Option<usize> {
    let plain = |e: &Expr| matches!(e, Expr::Column(c) if *c == column);
    exprs.iter().position(plain).or_else(|| {
        exprs.iter().position(|e| match e {
            Expr::Cast { expr, to, safe: false } => {
                plain(expr) && input.fields().get(column).is_some_and(|f| keeps_identity(f.data_type(), to))
            }
            _ => false,
        })
    })
}

/// A column of a Top-N beyond its input's: the rank, in the type of the three rank functions.
fn rank_field(name: &str) -> FieldRef {
    Arc::new(Field::new(name, DataType::Int64, false))
}

impl StreamNode {
    fn new(
        op: StreamOp,
        inputs: Vec<StreamNode>,
        schema: SchemaRef,
        change_kind: ChangeKind,
        keys: Vec<Vec<usize>>,
    ) -> StreamNode {
        let distribution = placement(&op, &inputs).output;
        let bounded = inputs.iter().all(|n| n.traits.bounded);
        let times = time::times(&op, &inputs);
        let traits = Traits { change_kind, unique_keys: keys, distribution, bounded, times };
        StreamNode { op, inputs, schema, traits }
    }

    /// The number of columns.
    pub fn width(&self) -> usize {
        self.schema.fields().len()
    }

    /// Columns `0 .. width` as expressions.
    pub fn columns(&self) -> Vec<Expr> {
        (0..self.width()).map(Expr::Column).collect()
    }

    /// Changes of a relation, projected to `columns` of its schema.
    pub fn relation(source: &RelationSource, columns: Vec<usize>) -> Result<StreamNode> {
        let schema = Arc::new(source.schema.project(&columns)?);
        let new_number = |c: usize| columns.iter().position(|k| *k == c);
        let traits = Traits {
            change_kind: source.change_kind,
            unique_keys: map_keys(&source.unique_keys, new_number),
            distribution: placement::map_distribution(&source.distribution, new_number),
            bounded: source.bounded,
            times: source
                .times
                .iter()
                .filter_map(|t| Some(TimeColumn { column: new_number(t.column)?, ..*t }))
                .collect(),
        };
        let op = StreamOp::Relation { relation: source.relation, name: source.name.clone(), columns };
        Ok(StreamNode { op, inputs: vec![], schema, traits })
    }

    /// Constant rows.
    pub fn values(rows: &RecordBatch) -> Result<StreamNode> {
        let keys = if rows.num_rows() <= 1 { vec![vec![]] } else { vec![] };
        let op = StreamOp::Values { ipc: crate::expr::encode_batch(rows)? };
        Ok(StreamNode::new(op, vec![], rows.schema(), ChangeKind::AppendOnly, keys))
    }

    /// `exprs` with their names over this node. Merges with a projection below where no expression would be computed
    /// twice. Without expressions the result has one column that nobody reads, because a batch needs a column to travel.
    pub fn project(self, exprs: Vec<(Expr, String)>) -> Result<StreamNode> {
        let (mut exprs, mut names): (Vec<Expr>, Vec<String>) = exprs.into_iter().unzip();
        if exprs.is_empty() {
            let present = datafusion::common::ScalarValue::Boolean(Some(true));
            exprs.push(Expr::Literal(Literal::from_scalar(&present)?));
            names.push("present".into());
        }
        let mut input = self;
        let merged = match &input.op {
            StreamOp::Project { exprs: inner } if mergeable(&exprs, inner) => {
                let mut outer = exprs.clone();
                outer.iter_mut().for_each(|e| e.replace_columns(&|c| inner.get(c).cloned().unwrap_or(Expr::Column(c))));
                outer.iter().all(|e| e.depth() <= expr::DEPTH_MAX).then_some(outer)
            }
            _ => None,
        };
        if let Some(merged) = merged
            && let Some(below) = input.inputs.pop()
        {
            return below.project(merged.into_iter().zip(names).collect());
        }
        input = input.without_unread_rank(&exprs)?;
        let mut fields = Vec::with_capacity(exprs.len());
        for (e, name) in exprs.iter().zip(names) {
            fields.push(project_field(e, &name, &input.schema)?);
        }
        let keys = map_keys(&input.traits.unique_keys, |c| kept_column(&exprs, &input.schema, c));
        let change_kind = input.traits.change_kind;
        Ok(StreamNode::new(StreamOp::Project { exprs }, vec![input], Arc::new(Schema::new(fields)), change_kind, keys))
    }

    /// Only the columns in `columns`, with their names; the node itself when that is all of them in order.
    pub fn pick(self, columns: &[usize]) -> Result<StreamNode> {
        if columns.len() == self.width() && columns.iter().enumerate().all(|(i, c)| i == *c) {
            return Ok(self);
        }
        let named = columns.iter().map(|c| (Expr::Column(*c), self.name_of(*c))).collect();
        self.project(named)
    }

    /// This node's columns followed by `more`; the node itself when there are none. Equal expressions share a column:
    /// returns where each of `more` is.
    pub fn extend(self, more: Vec<Expr>) -> Result<(StreamNode, Vec<usize>)> {
        let mut exprs = self.columns();
        let mut places = Vec::with_capacity(more.len());
        for e in more {
            places.push(match exprs.iter().position(|have| *have == e) {
                Some(i) => i,
                None => {
                    exprs.push(e);
                    exprs.len() - 1
                }
            });
        }
        if exprs.len() == self.width() {
            return Ok((self, places));
        }
        let names = exprs.iter().enumerate().map(|(i, e)| match e {
            Expr::Column(c) if i < self.width() => self.name_of(*c),
            e => e.named(&self.schema).to_string(),
        });
        let named = exprs.iter().cloned().zip(names.collect::<Vec<_>>()).collect();
        Ok((self.project(named)?, places))
    }

    pub(super) fn name_of(&self, column: usize) -> String {
        self.schema.fields().get(column).map_or_else(|| format!("#{column}"), |f| f.name().clone())
    }

    /// A Top-N whose rank `exprs` do not read need not append it.
    fn without_unread_rank(self, exprs: &[Expr]) -> Result<StreamNode> {
        let StreamOp::TopN { emit_rank: true, .. } = &self.op else { return Ok(self) };
        let rank = self.width() - 1;
        let mut read = false;
        exprs.iter().for_each(|e| e.visit_columns(&mut |c| read |= c == rank));
        if read {
            return Ok(self);
        }
        let StreamNode { op, mut inputs, .. } = self;
        match (op, inputs.pop()) {
            (StreamOp::TopN { partition, order, offset, limit, rank, .. }, Some(input)) => {
                Ok(input.top_n(partition, order, (offset, limit), rank, None))
            }
            _ => Err(Error::internal("a top-n without an input")),
        }
    }

    /// Rows for which `predicate` is true.
    pub fn filter(mut self, predicate: Expr) -> Result<StreamNode> {
        if let StreamOp::Filter { predicate: below } = &self.op
            && let Some(input) = self.inputs.pop()
        {
            return input.filter(below.clone().and(predicate));
        }
        let bound = expr::field_of(&predicate, &self.schema)?;
        if !matches!(bound.data_type(), DataType::Boolean | DataType::Null) {
            return Err(Error::new(
                flow::SqlState::DatatypeMismatch,
                format!("argument of WHERE must be type boolean, not type {}", expr::sql_type(bound.data_type())),
            ));
        }
        let keys = filtered_keys(&self.traits.unique_keys, &predicate);
        let (schema, change_kind) = (Arc::clone(&self.schema), self.traits.change_kind);
        Ok(StreamNode::new(StreamOp::Filter { predicate }, vec![self], schema, change_kind, keys))
    }

    /// All rows of all inputs. Each input is cast and renamed to `schema`.
    pub fn union(inputs: Vec<StreamNode>, schema: SchemaRef) -> Result<StreamNode> {
        let mut aligned = Vec::with_capacity(inputs.len());
        for input in inputs {
            aligned.push(input.conform(&schema)?);
        }
        if aligned.len() == 1
            && let Some(only) = aligned.pop()
        {
            return Ok(only);
        }
        let retracts = aligned.iter().any(|n| n.traits.change_kind == ChangeKind::Retract);
        let change_kind = if retracts { ChangeKind::Retract } else { ChangeKind::AppendOnly };
        Ok(StreamNode::new(StreamOp::Union, aligned, schema, change_kind, vec![]))
    }

    /// The node's columns with exactly the names, types and nullability of `schema`.
    pub fn conform(self, schema: &SchemaRef) -> Result<StreamNode> {
        if self.schema == *schema {
            return Ok(self);
        }
        if self.width() != schema.fields().len() {
            let (have, want) = (self.width(), schema.fields().len());
            return Err(Error::internal(format!("{have} columns cannot take the form of {want}")));
        }
        let mut exprs = Vec::with_capacity(self.width());
        for (i, (have, want)) in self.schema.fields().iter().zip(schema.fields()).enumerate() {
            let e = match have.data_type() == want.data_type() {
                true => Expr::Column(i),
                false => cast(Expr::Column(i), want.data_type()),
            };
            exprs.push((e, want.name().clone()));
        }
        let mut node = self.project(exprs)?;
        let matches =
            node.schema.fields().iter().zip(schema.fields()).all(|(have, want)| {
                have.data_type() == want.data_type() && (want.is_nullable() || !have.is_nullable())
            });
        if !matches {
            return Err(Error::internal(format!("columns {} do not fit {}", node.schema, schema)));
        }
        node.schema = Arc::clone(schema);
        Ok(node)
    }

    /// One row per group. `names` are those of the output columns: groups, then calls.
    pub fn aggregate(self, group: Vec<usize>, calls: Vec<AggCall>, names: Vec<String>) -> Result<StreamNode> {
        let mut fields = Vec::with_capacity(group.len() + calls.len());
        for (g, name) in group.iter().zip(&names) {
            let field = self.schema.field(*g);
            if !expr::is_key_type(field.data_type()) {
                return Err(Error::unsupported(format!(
                    "grouping by a column of type {} is not supported",
                    expr::sql_type(field.data_type())
                )));
            }
            fields.push(Field::new(name, field.data_type().clone(), field.is_nullable()));
        }
        for (call, name) in calls.iter().zip(names.iter().skip(group.len())) {
            let nullable = call.function != super::AggFunction::Count;
            fields.push(Field::new(name, call.output.clone(), nullable));
        }
        let mut keys = map_keys(&self.traits.unique_keys, |c| group.iter().position(|g| *g == c));
        keys.push((0..group.len()).collect());
        // Groups of an append-only input without calls, that is DISTINCT, only ever appear.
        let change_kind = match calls.is_empty() && !group.is_empty() {
            true => self.traits.change_kind,
            false => ChangeKind::Retract,
        };
        let schema = Arc::new(Schema::new(fields));
        let op = StreamOp::Aggregate { group, calls, on_close: false };
        Ok(StreamNode::new(op, vec![self], schema, change_kind, normalise(keys)))
    }

    /// One row per session of each partition in `keys`: the keys, `window_start`, `window_end`, then the calls. `names` are those
    /// of the calls. Errors: `0A000` for input that takes rows away and for keys of types that have no equality.
    pub fn session(
        self,
        keys: Vec<usize>,
        time: usize,
        gap_us: i64,
        calls: Vec<AggCall>,
        names: Vec<String>,
    ) -> Result<StreamNode> {
        if self.traits.change_kind != ChangeKind::AppendOnly {
            return Err(Error::unsupported("SESSION over rows that can change is not supported in a standing query")
                .with_detail(
                    "A row that is taken away may split a session, for which all its rows would have to be kept.",
                )
                .with_hint("Use a source, or a table declared APPEND ONLY, without GROUP BY below the sessions."));
        }
        let mut fields = Vec::with_capacity(keys.len() + 2 + calls.len());
        for k in &keys {
            let field = self.schema.field(*k);
            if !expr::is_key_type(field.data_type()) {
                return Err(Error::unsupported(format!(
                    "sessions of a column of type {} are not supported",
                    expr::sql_type(field.data_type())
                )));
            }
            fields.push(Field::new(field.name(), field.data_type().clone(), field.is_nullable()));
        }
        let at = self.schema.field(time).data_type().clone();
        fields.push(Field::new("window_start", at.clone(), true));
        fields.push(Field::new("window_end", at, true));
        for (call, name) in calls.iter().zip(&names) {
            fields.push(Field::new(name, call.output.clone(), call.function != super::AggFunction::Count));
        }
        let (start, end) = (keys.len(), keys.len() + 1);
        let with = |last: usize| (0..keys.len()).chain([last]).collect::<Vec<_>>();
        let unique = normalise(vec![with(start), with(end)]);
        let op = StreamOp::Session { keys, time, gap_us, calls, on_close: false };
        Ok(StreamNode::new(op, vec![self], Arc::new(Schema::new(fields)), ChangeKind::Retract, unique))
    }

    /// One row for each element of the list in `column`, which gives way to the element.
    pub fn unnest(self, column: usize) -> Result<StreamNode> {
        let field = self.schema.fields().get(column);
        let Some(DataType::List(item)) = field.map(|f| f.data_type()) else {
            return Err(Error::internal("unnest of a column that is no list"));
        };
        let element = Field::new(self.name_of(column), item.data_type().clone(), true);
        let fields = self.schema.fields().iter().enumerate();
        let fields: Vec<FieldRef> =
            fields.map(|(i, f)| if i == column { Arc::new(element.clone()) } else { Arc::clone(f) }).collect();
        let change_kind = self.traits.change_kind;
        Ok(StreamNode::new(StreamOp::Unnest { column }, vec![self], Arc::new(Schema::new(fields)), change_kind, vec![]))
    }

    /// The rows that are final, each once: what `EMIT ON WINDOW CLOSE` asks for.
    ///
    /// Below projections and filters, so that less is held; within an aggregate, which need not tell what a group was before;
    /// and below aggregates and inner joins that keep windows apart, so that nothing above a closed window ever has to take
    /// back. Errors: `0A000` when no column is an event time.
    pub fn emit_on_close(self) -> Result<StreamNode> {
        if self.is_closed() {
            return Ok(self);
        }
        let Some(time) = self.traits.times.first().copied() else {
            return Err(Error::unsupported("EMIT ON WINDOW CLOSE needs a column that says when a row is final")
                .with_detail("No result column is an event time: none is the time of a source with a watermark, or a window of it, that grouping or joining keeps.")
                .with_hint("Declare WATERMARK FOR … in the source, group by window_start and window_end, and select one of them."));
        };
        let StreamNode { op, inputs, schema, traits } = self;
        let timed = |n: &StreamNode| !n.traits.times.is_empty();
        match op {
            StreamOp::Project { .. } | StreamOp::Filter { .. } if inputs.iter().all(timed) => {
                let inputs = inputs.into_iter().map(StreamNode::emit_on_close).collect::<Result<Vec<_>>>()?;
                let kind = inputs.first().map_or(ChangeKind::Retract, |n| n.traits.change_kind);
                Ok(StreamNode::new(op, inputs, schema, kind, traits.unique_keys))
            }
            StreamOp::Aggregate { group, calls, .. } => {
                // What may change before the window closes need not be told of.
                let inputs = inputs.into_iter().map(|n| match n.traits.change_kind {
                    ChangeKind::Retract if timed(&n) => n.emit_on_close(),
                    _ => Ok(n),
                });
                let inputs = inputs.collect::<Result<Vec<_>>>()?;
                let op = StreamOp::Aggregate { group, calls, on_close: true };
                Ok(StreamNode::new(op, inputs, schema, ChangeKind::AppendOnly, traits.unique_keys))
            }
            StreamOp::Session { keys, time, gap_us, calls, .. } => {
                let op = StreamOp::Session { keys, time, gap_us, calls, on_close: true };
                Ok(StreamNode::new(op, inputs, schema, ChangeKind::AppendOnly, traits.unique_keys))
            }
            // Windows close before they meet; a pair with one is then never taken back.
            StreamOp::Join { kind: JoinKind::Inner | JoinKind::LeftSemi, .. }
                if inputs.iter().any(StreamNode::closes) && inputs.iter().all(|n| n.closes() || n.only_appends()) =>
            {
                let inputs = inputs.into_iter().map(|n| if n.closes() { n.emit_on_close() } else { Ok(n) });
                let inputs = inputs.collect::<Result<Vec<_>>>()?;
                Ok(StreamNode::new(op, inputs, schema, ChangeKind::AppendOnly, traits.unique_keys))
            }
            op => {
                let keys = traits.unique_keys.clone();
                let held = StreamNode { op, inputs, schema: Arc::clone(&schema), traits };
                Ok(StreamNode::new(StreamOp::EmitOnClose { time }, vec![held], schema, ChangeKind::AppendOnly, keys))
            }
        }
    }

    fn only_appends(&self) -> bool {
        self.traits.change_kind == ChangeKind::AppendOnly
    }

    /// Whether the node has windows that can close within it.
    fn closes(&self) -> bool {
        let timed = !self.traits.times.is_empty();
        timed
            && match &self.op {
                StreamOp::Aggregate { .. } | StreamOp::Session { .. } => true,
                StreamOp::Project { .. } | StreamOp::Filter { .. } => self.inputs.iter().all(StreamNode::closes),
                _ => !self.only_appends(),
            }
    }

    /// Whether every row is final when it comes.
    fn is_closed(&self) -> bool {
        match &self.op {
            StreamOp::EmitOnClose { .. }
            | StreamOp::Aggregate { on_close: true, .. }
            | StreamOp::Session { on_close: true, .. } => true,
            StreamOp::Project { .. } | StreamOp::Filter { .. } => self.inputs.iter().all(StreamNode::is_closed),
            _ => false,
        }
    }

    /// A join; `on` are pairs of columns of equal types, `filter` is over left columns then right columns.
    pub fn join(
        kind: JoinKind,
        left: StreamNode,
        right: StreamNode,
        on: Vec<(usize, usize)>,
        nulls_equal: bool,
        filter: Option<Expr>,
        null_aware: bool,
    ) -> Result<StreamNode> {
        for (l, r) in &on {
            let (l, r) = (left.schema.field(*l).data_type(), right.schema.field(*r).data_type());
            if l != r || !expr::is_key_type(l) {
                return Err(Error::unsupported(format!(
                    "a join on columns of types {} and {} is not supported",
                    expr::sql_type(l),
                    expr::sql_type(r)
                )));
            }
        }
        let keys = join_keys(
            kind,
            &Side { keys: &left.traits.unique_keys, schema: &left.schema, on: on.iter().map(|p| p.0).collect() },
            &Side { keys: &right.traits.unique_keys, schema: &right.schema, on: on.iter().map(|p| p.1).collect() },
        );
        let padded = |schema: &Schema, nullable: bool| -> Vec<FieldRef> {
            let pad = |f: &FieldRef| Arc::new(f.as_ref().clone().with_nullable(true));
            schema.fields().iter().map(|f| if nullable { pad(f) } else { Arc::clone(f) }).collect()
        };
        let mut fields = padded(&left.schema, matches!(kind, JoinKind::Right | JoinKind::Full));
        if !matches!(kind, JoinKind::LeftSemi | JoinKind::LeftAnti) {
            fields.extend(padded(&right.schema, matches!(kind, JoinKind::Left | JoinKind::Full)));
        }
        let appends = left.traits.change_kind == ChangeKind::AppendOnly
            && right.traits.change_kind == ChangeKind::AppendOnly
            && matches!(kind, JoinKind::Inner | JoinKind::LeftSemi);
        let change_kind = if appends { ChangeKind::AppendOnly } else { ChangeKind::Retract };
        let op = StreamOp::Join { kind, on, nulls_equal, filter, null_aware };
        Ok(StreamNode::new(op, vec![left, right], Arc::new(Schema::new(fields)), change_kind, keys))
    }

    /// The rows at `offset .. offset + limit` of each partition; `range` is (offset, limit). `rank_name` appends the rank
    /// as a column of that name.
    pub fn top_n(
        self,
        partition: Vec<usize>,
        order: Vec<SortKey>,
        range: (u64, Option<u64>),
        rank: RankKind,
        rank_name: Option<&str>,
    ) -> StreamNode {
        let mut keys = self.traits.unique_keys.clone();
        if rank == RankKind::RowNumber {
            if range.1.is_some_and(|limit| limit <= 1) {
                keys.push(partition.clone());
            }
            if rank_name.is_some() {
                keys.push(partition.iter().copied().chain([self.width()]).collect());
            }
        }
        let mut fields: Vec<FieldRef> = self.schema.fields().iter().cloned().collect();
        fields.extend(rank_name.map(rank_field));
        let (offset, limit) = range;
        let op = StreamOp::TopN { partition, order, offset, limit, rank, emit_rank: rank_name.is_some() };
        StreamNode::new(op, vec![self], Arc::new(Schema::new(fields)), ChangeKind::Retract, normalise(keys))
    }

    /// Whether `columns` identify a row.
    pub fn is_unique_by(&self, columns: &[usize]) -> bool {
        contains_key(&self.traits.unique_keys, columns)
    }

    /// Whether the slot of every row is a matter of the whole relation, not of its parts: used by EXPLAIN.
    pub fn is_single(&self) -> bool {
        self.traits.distribution == Distribution::Single
    }
}

/// `e` as type `to`.
pub(super) fn cast(e: Expr, to: &DataType) -> Expr {
    Expr::Cast { expr: Box::new(e), to: to.clone(), safe: false }
}

/// Type of a projected column. Only columns, constants and casts of them promise to hold no NULL: the nullability that
/// functions report is not relied on, since a NULL in such a column would be an error at run time.
fn project_field(e: &Expr, name: &str, input: &SchemaRef) -> Result<Field> {
    let bound = expr::field_of(e, input)?;
    Ok(Field::new(name, bound.data_type().clone(), bound.is_nullable() || !is_traceable(e)))
}

fn is_traceable(e: &Expr) -> bool {
    match e {
        Expr::Column(_) | Expr::Literal(_) => true,
        Expr::Cast { expr, safe: false, .. } => is_traceable(expr),
        _ => false,
    }
}

/// Whether `outer` over `inner` is one projection: nothing that costs is computed twice.
fn mergeable(outer: &[Expr], inner: &[Expr]) -> bool {
    let mut reads = vec![0usize; inner.len()];
    let mut known = true;
    outer.iter().for_each(|e| {
        e.visit_columns(&mut |c| match reads.get_mut(c) {
            Some(n) => *n += 1,
            None => known = false,
        })
    });
    known && inner.iter().zip(&reads).all(|(e, n)| *n <= 1 || matches!(e, Expr::Column(_) | Expr::Literal(_)))
}
