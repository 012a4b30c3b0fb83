//! Side tables: what a relation could not take, kept so that it can be read.
//!
//! `"r$late"` has the columns of `r` and then `_split`, `_row` and `_watermark`; `"s$errors"` has `split`, `position`, `line`,
//! `column_name`, `reason`, `record`. The newest [`ROWS_KEPT`] rows of each stay in the table; views and sinks over it get
//! every row and are never told that one has left, and the counters count all.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Int64Array, RecordBatch, StringViewArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::take;
use arrow::datatypes::DataType;
use catalog::{Column, Relation, SideKind};
use connect::BadRecord;
use flow::{ChangeBatch, Epoch, Error, Result};
use runtime::Budget;

use crate::gate::Late;
use crate::table::Table;

/// Rows that a side table keeps.
pub const ROWS_KEPT: usize = 10_000;

/// The columns of a side table of `relation`.
pub fn columns(relation: &Relation, kind: SideKind) -> Vec<Column> {
    let column = |name: &str, data_type: DataType| Column::new(name, data_type, "");
    match kind {
        SideKind::Late => {
            let own = relation.columns.iter().map(|c| Column { nullable: true, default: None, ..c.clone() });
            let time = relation.watermark().and_then(|w| relation.columns.get(w.column));
            let time = time.map_or(DataType::Int64, |c| c.data_type.clone());
            let more =
                [column("_split", DataType::Utf8View), column("_row", DataType::Int64), column("_watermark", time)];
            own.chain(more).collect()
        }
        SideKind::Errors => vec![
            column("split", DataType::Utf8View),
            column("position", DataType::Int64),
            column("line", DataType::Int64),
            column("column_name", DataType::Utf8View),
            column("reason", DataType::Utf8View),
            column("record", DataType::Binary),
        ],
    }
}

/// The rows of `"r$late"`. `first_row` is the number in its split of the first row that came to the gate with them.
pub fn late_rows(table: &Table, late: &Late, split: &str, first_row: u64) -> Result<RecordBatch> {
    let rows = late.rows.num_rows();
    let mut columns: Vec<ArrayRef> = late.rows.columns().to_vec();
    let numbers: Int64Array = late.numbers.iter().map(|n| (first_row + *n as u64) as i64).collect();
    columns.push(Arc::new(StringViewArray::from_iter_values(std::iter::repeat_n(split, rows))));
    columns.push(Arc::new(numbers));
    let watermark = TimestampMicrosecondArray::from_value(late.watermark_us, 1);
    let schema = table.store.schema();
    let time = schema.fields().last().ok_or_else(|| Error::internal("a side table without columns"))?;
    let watermark = match late.watermark_us {
        crate::gate::Gate::START => arrow::array::new_null_array(time.data_type(), 1),
        _ => Arc::new(watermark.with_data_type(time.data_type().clone())) as ArrayRef,
    };
    columns.push(take(&watermark, &UInt32Array::from_value(0, rows), None)?);
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// The rows of `"s$errors"`.
pub fn error_rows(table: &Table, errors: &[BadRecord], split: &str) -> Result<RecordBatch> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringViewArray::from_iter_values(errors.iter().map(|_| split))),
        Arc::new(errors.iter().map(|e| number(e.offset.0)).collect::<Int64Array>()),
        Arc::new(errors.iter().map(|e| (e.line > 0).then(|| number(e.line))).collect::<Int64Array>()),
        Arc::new(errors.iter().map(|e| e.column.as_deref()).collect::<StringViewArray>()),
        Arc::new(StringViewArray::from_iter_values(errors.iter().map(|e| e.reason.as_str()))),
        Arc::new(BinaryArray::from_iter_values(errors.iter().map(|e| without_line_end(&e.bytes)))),
    ];
    Ok(RecordBatch::try_new(Arc::clone(table.store.schema()), columns)?)
}

fn without_line_end(record: &[u8]) -> &[u8] {
    let record = record.strip_suffix(b"\n").unwrap_or(record);
    record.strip_suffix(b"\r").unwrap_or(record)
}

/// A side table as its one writer sees it.
pub struct SideTable {
    pub table: Arc<Table>,
    /// What is in the table, oldest first.
    kept: VecDeque<RecordBatch>,
    rows: usize,
}

impl SideTable {
    /// A side table with the rows that are in it.
    pub fn recovered(table: Arc<Table>) -> Result<SideTable> {
        const SCAN_ROWS: usize = 1_024;
        let kept = table.store.head()?.scan(None, SCAN_ROWS)?.collect::<Result<VecDeque<RecordBatch>>>()?;
        let rows = kept.iter().map(RecordBatch::num_rows).sum();
        Ok(SideTable { table, kept, rows })
    }

    /// Adds rows in the open epoch, and lets the oldest go. Returns what readers of the table get.
    pub fn add(&mut self, rows: RecordBatch, epoch: Epoch, budget: &Budget) -> Result<ChangeBatch> {
        let before = self.table.store.bytes();
        let change = ChangeBatch::insert(rows.clone());
        self.table.store.apply(0, epoch, &change)?;
        self.rows += rows.num_rows();
        self.kept.push_back(rows);
        while self.rows > ROWS_KEPT {
            let Some(oldest) = self.kept.pop_front() else { break };
            let gone = oldest.num_rows().min(self.rows - ROWS_KEPT);
            self.table.store.apply(0, epoch, &ChangeBatch::delete(oldest.slice(0, gone)))?;
            if gone < oldest.num_rows() {
                self.kept.push_front(oldest.slice(gone, oldest.num_rows() - gone));
            }
            self.rows -= gone;
        }
        budget.change(before, self.table.store.bytes())?;
        Ok(change)
    }

    /// Frees what no reader can see any more.
    pub fn maintain(&self, floor: Epoch, budget: &Budget) -> Result<()> {
        let before = self.table.store.bytes();
        self.table.store.maintain(floor)?;
        let _ = budget.change(before, self.table.store.bytes());
        Ok(())
    }
}
