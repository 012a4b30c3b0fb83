//! Every operator against a slow, obvious twin: multisets of rows, recomputed from scratch after every epoch.

mod aggregates;
mod cells;
mod joins;
mod others;
mod parts;
mod restore_aggregates;
mod restore_others;
mod topns;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::*;
use flow::{ChangeBatch, Diff, Epoch, ProcessFunction, SlotId, TaskId};
use plan::{ChangeKind, Task, TaskOp};

use super::{OpContext, instantiate};

/// One value, ordered and compared as SQL groups values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum V {
    Bool(bool),
    Int(i128),
    /// Order-preserving image of a double; see [`float`].
    Float(i64),
    Text(String),
    /// Greater than everything, as NULLS LAST.
    Null,
}

pub fn int(v: i64) -> V {
    V::Int(v as i128)
}

pub fn text(v: &str) -> V {
    V::Text(v.to_string())
}

pub fn float(v: f64) -> V {
    let v = if v == 0.0 { 0.0 } else { v };
    let bits = if v.is_nan() { f64::NAN.to_bits() } else { v.to_bits() } as i64;
    V::Float(if bits < 0 { !bits ^ i64::MIN } else { bits })
}

impl V {
    pub fn as_f64(&self) -> f64 {
        let V::Float(image) = self else { panic!("{self:?} is not a float") };
        f64::from_bits((if *image < 0 { !(*image ^ i64::MIN) } else { *image }) as u64)
    }

    pub fn as_int(&self) -> i128 {
        let V::Int(v) = self else { panic!("{self:?} is not a number") };
        *v
    }

    pub fn is_null(&self) -> bool {
        *self == V::Null
    }
}

pub type Row = Vec<V>;
pub type Bag = BTreeMap<Row, i64>;

/// `bag[row] += weight`, zero rows left out.
pub fn add(bag: &mut Bag, row: Row, weight: i64) {
    let now = bag.get(&row).copied().unwrap_or(0) + weight;
    if now == 0 {
        bag.remove(&row);
    } else {
        bag.insert(row, now);
    }
}

pub fn schema(types: &[DataType]) -> SchemaRef {
    let fields = types.iter().enumerate().map(|(n, t)| Field::new(format!("c{n}"), t.clone(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn column(data_type: &DataType, values: &[&V]) -> ArrayRef {
    let ints = || values.iter().map(|v| if v.is_null() { None } else { Some(v.as_int()) });
    match data_type {
        DataType::Int64 => Arc::new(ints().map(|v| v.map(|v| v as i64)).collect::<Int64Array>()),
        DataType::Int32 => Arc::new(ints().map(|v| v.map(|v| v as i32)).collect::<Int32Array>()),
        DataType::Date32 => Arc::new(ints().map(|v| v.map(|v| v as i32)).collect::<Date32Array>()),
        DataType::Timestamp(TimeUnit::Microsecond, None) => {
            Arc::new(ints().map(|v| v.map(|v| v as i64)).collect::<TimestampMicrosecondArray>())
        }
        DataType::Decimal128(p, s) => {
            Arc::new(ints().collect::<Decimal128Array>().with_precision_and_scale(*p, *s).unwrap())
        }
        DataType::Float64 => {
            let values = values.iter().map(|v| if v.is_null() { None } else { Some(v.as_f64()) });
            Arc::new(values.collect::<Float64Array>())
        }
        DataType::Boolean => {
            Arc::new(values.iter().map(|v| if let V::Bool(b) = v { Some(*b) } else { None }).collect::<BooleanArray>())
        }
        DataType::Utf8View => {
            let values = values.iter().map(|v| if let V::Text(t) = v { Some(t.as_str()) } else { None });
            Arc::new(values.collect::<StringViewArray>())
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let times = ints().map(|v| v.map(|v| v as i64)).collect::<TimestampMicrosecondArray>();
            Arc::new(times.with_timezone_opt(zone.clone()))
        }
        other => panic!("no test column of type {other}"),
    }
}

fn value(column: &ArrayRef, i: usize) -> V {
    if column.is_null(i) {
        return V::Null;
    }
    match column.data_type() {
        DataType::Int64 => int(column.as_primitive::<Int64Type>().value(i)),
        DataType::UInt64 => V::Int(column.as_primitive::<UInt64Type>().value(i) as i128),
        DataType::Int32 => int(column.as_primitive::<Int32Type>().value(i) as i64),
        DataType::Date32 => int(column.as_primitive::<Date32Type>().value(i) as i64),
        DataType::Timestamp(TimeUnit::Microsecond, None) => {
            int(column.as_primitive::<TimestampMicrosecondType>().value(i))
        }
        DataType::Decimal128(_, _) => V::Int(column.as_primitive::<Decimal128Type>().value(i)),
        DataType::Float64 => float(column.as_primitive::<Float64Type>().value(i)),
        DataType::Boolean => V::Bool(column.as_boolean().value(i)),
        DataType::Utf8View => text(column.as_string_view().value(i)),
        DataType::Timestamp(_, _) => int(column.as_primitive::<TimestampMicrosecondType>().value(i)),
        other => panic!("no test value of type {other}"),
    }
}

pub fn batch(schema: &SchemaRef, rows: &[(Row, i64)]) -> ChangeBatch {
    let columns = schema.fields().iter().enumerate().map(|(n, f)| {
        let values: Vec<&V> = rows.iter().map(|(row, _)| &row[n]).collect();
        column(f.data_type(), &values)
    });
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    let records = RecordBatch::try_new_with_options(schema.clone(), columns.collect(), &options).unwrap();
    ChangeBatch::new(records, Diff::from_weights(rows.iter().map(|(_, w)| *w).collect()))
}

pub fn rows_of(batch: &ChangeBatch) -> Vec<(Row, i64)> {
    (0..batch.num_rows())
        .map(|i| (batch.rows.columns().iter().map(|c| value(c, i)).collect(), batch.weight(i)))
        .collect()
}

/// xorshift64*, seeded: one line replays a failure.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// A random value of a small domain with its traps: NULL, −0.0, NaN, infinities, extreme integers, long texts.
pub fn random_value(rng: &mut Rng, data_type: &DataType, domain: u64) -> V {
    if rng.chance(12) {
        return V::Null;
    }
    let n = rng.below(domain) as i64;
    match data_type {
        DataType::Int64 if rng.chance(3) => int(*rng.pick(&[i64::MAX, i64::MIN, i64::MAX - 1])),
        DataType::Int64 | DataType::Int32 | DataType::Date32 => int(n - domain as i64 / 2),
        DataType::Decimal128(_, _) => int((n - domain as i64 / 2) * 37),
        DataType::Float64 => match rng.below(20) {
            0 => float(f64::NAN),
            1 => float(f64::INFINITY),
            2 => float(f64::NEG_INFINITY),
            3 => float(*rng.pick(&[-0.0, 0.0])),
            4 => float(*rng.pick(&[1e16, -1e16])),
            _ => float((n - domain as i64 / 2) as f64 * 0.25),
        },
        DataType::Boolean => V::Bool(n % 2 == 0),
        DataType::Utf8View => V::Text(match n % 3 {
            0 => format!("t{n}"),
            1 => format!("a text that is longer than a view holds {n}"),
            _ => format!("exactly12{n:03}"),
        }),
        other => panic!("no random value of type {other}"),
    }
}

/// One input of an operator under test: its rows so far.
pub struct Feed {
    pub schema: SchemaRef,
    pub kind: ChangeKind,
    pub domains: Vec<u64>,
    pub bag: Bag,
}

impl Feed {
    pub fn new(types: &[DataType], domains: &[u64], kind: ChangeKind) -> Feed {
        Feed { schema: schema(types), kind, domains: domains.to_vec(), bag: Bag::new() }
    }

    fn random_row(&self, rng: &mut Rng) -> Row {
        let fields = self.schema.fields().iter().zip(&self.domains);
        fields.map(|(f, domain)| random_value(rng, f.data_type(), *domain)).collect()
    }

    /// Random changes of an epoch, whose sum leaves no row negative, in an arbitrary order.
    pub fn epoch(&mut self, rng: &mut Rng) -> Vec<(Row, i64)> {
        let mut changes = Vec::new();
        let count = *rng.pick(&[0, 1, 3, 20, 60]);
        for _ in 0..count {
            let present = self.bag.len() as u64;
            let retracts = self.kind == ChangeKind::Retract;
            if retracts && present > 0 && rng.chance(45) {
                let (row, weight) = self.bag.iter().nth(rng.below(present) as usize).unwrap();
                let (row, weight) = (row.clone(), *weight);
                let taken = if rng.chance(70) { weight } else { 1 + rng.below(weight as u64) as i64 };
                add(&mut self.bag, row.clone(), -taken);
                changes.push((row, -taken));
            } else {
                let row = self.random_row(rng);
                let weight = if rng.chance(80) { 1 } else { 1 + rng.below(4) as i64 };
                add(&mut self.bag, row.clone(), weight);
                changes.push((row, weight));
            }
            if retracts && rng.chance(15) {
                // Comes and goes within the epoch, perhaps going first.
                let row = self.random_row(rng);
                let weight = 1 + rng.below(2) as i64;
                changes.push((row.clone(), weight));
                changes.push((row, -weight));
            }
        }
        for n in (1..changes.len()).rev() {
            changes.swap(n, rng.below(n as u64 + 1) as usize);
        }
        changes
    }
}

pub fn context() -> OpContext {
    OpContext::new(SlotId(0), 1)
}

pub fn make(op: &TaskOp, inputs: &[SchemaRef], output: &SchemaRef, batch_rows: usize) -> Box<dyn ProcessFunction> {
    let task = Task {
        id: TaskId(0),
        op: op.clone(),
        inputs: vec![],
        schema: output.clone(),
        change_kind: ChangeKind::Retract,
    };
    instantiate(&task, inputs, &OpContext { batch_rows, ..context() }).unwrap()
}

/// Runs `op` over random epochs of `feeds` and checks after each that its output adds up to `twin(inputs)`. `look` sees
/// every epoch's output.
pub fn against_twin(
    seed: u64,
    epochs: usize,
    op: &TaskOp,
    output: &SchemaRef,
    mut feeds: Vec<Feed>,
    twin: impl Fn(&[&Bag]) -> Bag,
    mut look: impl FnMut(&[(Row, i64)]),
) {
    let mut rng = Rng::new(seed);
    let schemas: Vec<SchemaRef> = feeds.iter().map(|f| f.schema.clone()).collect();
    let batch_rows = *rng.pick(&[1, 7, 8192]);
    let mut function = make(op, &schemas, output, batch_rows);
    let mut shown = Bag::new();
    for epoch in 0..epochs {
        let mut batches: Vec<(usize, ChangeBatch)> = Vec::new();
        for (port, feed) in feeds.iter_mut().enumerate() {
            let changes = feed.epoch(&mut rng);
            let mut rest = changes.as_slice();
            while !rest.is_empty() {
                let most = *rng.pick(&[1, 5, 100]);
                let length = 1 + rng.below(most) as usize;
                let (now, later) = rest.split_at(length.min(rest.len()));
                batches.push((port, batch(&feed.schema, now)));
                rest = later;
            }
        }
        for n in (1..batches.len()).rev() {
            batches.swap(n, rng.below(n as u64 + 1) as usize);
        }
        let mut out: Vec<ChangeBatch> = Vec::new();
        for (port, batch) in batches {
            function.process(port, batch, &mut out).unwrap_or_else(|e| panic!("seed {seed} epoch {epoch}: {e}"));
        }
        function
            .finish_epoch(Epoch(epoch as u64 + 1), &mut out)
            .unwrap_or_else(|e| panic!("seed {seed} epoch {epoch}: {e}"));
        let mut changes = Vec::new();
        for batch in &out {
            assert_eq!(batch.schema(), *output, "seed {seed}");
            changes.extend(rows_of(batch));
        }
        for (row, weight) in &changes {
            add(&mut shown, row.clone(), *weight);
        }
        look(&changes);
        let bags: Vec<&Bag> = feeds.iter().map(|f| &f.bag).collect();
        let expected = twin(&bags);
        assert_eq!(shown, expected, "seed {seed} epoch {epoch} batch_rows {batch_rows} op {op:?}");
        let _ = function.state_bytes();
    }
}

/// Changes of one input port.
type PortChanges = (usize, Vec<(Row, i64)>);

/// Runs given epochs, each a list of (port, changes), and returns each epoch's net output.
pub fn run_epochs(function: &mut dyn ProcessFunction, inputs: &[SchemaRef], epochs: &[Vec<PortChanges>]) -> Vec<Bag> {
    let mut nets = Vec::new();
    for (n, epoch) in epochs.iter().enumerate() {
        let mut out: Vec<ChangeBatch> = Vec::new();
        for (port, changes) in epoch {
            function.process(*port, batch(&inputs[*port], changes), &mut out).unwrap();
        }
        function.finish_epoch(Epoch(n as u64 + 1), &mut out).unwrap();
        let mut net = Bag::new();
        for batch in &out {
            for (row, weight) in rows_of(batch) {
                add(&mut net, row, weight);
            }
        }
        nets.push(net);
    }
    nets
}

/// A bag from literal rows.
pub fn bag(rows: &[(Row, i64)]) -> Bag {
    let mut bag = Bag::new();
    for (row, weight) in rows {
        add(&mut bag, row.clone(), *weight);
    }
    bag
}
