//! Formats: bytes of records into typed columns and back, for every connector.
//!
//! ```text
//! bytes ─ csv::Splitter  ─┐
//!                         ├─► spans (one per wanted value) ─► decode: column by column, typed
//! bytes ─ json::Scanner  ─┘                                        └ input: text of one value → value
//! rows  ─ output: value → text ─► encode: CSV and JSON lines
//! ```
//!
//! The two halves meet in [`spans::Spans`]: a scanner only finds where values are and never copies or converts; the decoder runs
//! one tight loop per column. Both work on blocks that fit the processor's cache.

pub mod csv;
pub mod json;
pub mod spans;

pub mod decode;
pub mod infer;
pub mod input;
mod slots;
pub mod speculate;
pub mod temporal;

pub mod encode;
pub mod output;
pub mod records;

use arrow::datatypes::{DataType, IntervalUnit, TimeUnit};

/// How records stand in a byte stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Csv,
    /// One JSON object a line.
    Json,
    /// Columns in row groups, with a footer.
    Parquet,
}

/// The SQL name of a canonical type, for messages.
pub fn sql_type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "boolean".into(),
        DataType::Int16 => "smallint".into(),
        DataType::Int32 => "integer".into(),
        DataType::Int64 => "bigint".into(),
        DataType::Float32 => "real".into(),
        DataType::Float64 => "double precision".into(),
        DataType::Decimal128(38, 18) => "numeric".into(),
        DataType::Decimal128(p, s) => format!("numeric({p},{s})"),
        DataType::Utf8View | DataType::Utf8 | DataType::LargeUtf8 => "text".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "bytea".into(),
        DataType::Date32 => "date".into(),
        DataType::Time64(TimeUnit::Microsecond) => "time".into(),
        DataType::Timestamp(_, None) => "timestamp".into(),
        DataType::Timestamp(_, Some(_)) => "timestamptz".into(),
        DataType::Interval(IntervalUnit::MonthDayNano) => "interval".into(),
        DataType::List(item) => format!("{}[]", sql_type_name(item.data_type())),
        other => other.to_string(),
    }
}
