//! Filling a system relation: rows are given by column name, columns come out typed.

use std::sync::Arc;

use arrow::array::{
    ArrayBuilder, ArrayRef, BinaryBuilder, BooleanBuilder, Decimal128Builder, Float32Builder, Float64Builder,
    Int16Builder, Int32Builder, Int64Builder, IntervalMonthDayNanoBuilder, RecordBatch, RecordBatchOptions,
    StringViewBuilder, TimestampMicrosecondBuilder, new_null_array,
};
use arrow::datatypes::DataType;
use flow::{Error, Result};

use super::layout::SystemRelation;

/// One value on its way into a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// Microseconds since the Unix epoch.
    Timestamp(i64),
    Ints(Vec<i64>),
    Texts(Vec<String>),
}

macro_rules! cell_from {
    ($($from:ty => |$v:ident| $cell:expr),* $(,)?) => {
        $(impl From<$from> for Cell { fn from($v: $from) -> Cell { $cell } })*
    };
}

cell_from! {
    bool => |v| Cell::Bool(v),
    i16 => |v| Cell::Int(v.into()),
    i32 => |v| Cell::Int(v.into()),
    i64 => |v| Cell::Int(v),
    u32 => |v| Cell::Int(v.into()),
    usize => |v| Cell::Int(v as i64),
    f64 => |v| Cell::Float(v),
    char => |v| Cell::Text(v.to_string()),
    &str => |v| Cell::Text(v.to_string()),
    String => |v| Cell::Text(v),
    &String => |v| Cell::Text(v.clone()),
    Vec<i64> => |v| Cell::Ints(v),
    Vec<String> => |v| Cell::Texts(v),
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(v: Option<T>) -> Cell {
        v.map_or(Cell::Null, Into::into)
    }
}

/// The rows of one system relation while they are being made.
pub struct Rows {
    relation: &'static SystemRelation,
    columns: Vec<Vec<Cell>>,
    count: usize,
}

impl Rows {
    pub fn new(relation: &'static SystemRelation) -> Rows {
        Rows { relation, columns: relation.columns.iter().map(|_| Vec::new()).collect(), count: 0 }
    }

    /// Adds a row. Columns that are not named get NULL, or the zero of their type where the column is NOT NULL. A name that
    /// the relation does not have is ignored, which a test on every relation rules out.
    pub fn push(&mut self, values: impl IntoIterator<Item = (&'static str, Cell)>) {
        for (name, cell) in values {
            let position = self.relation.columns.iter().position(|c| c.name == name);
            debug_assert!(position.is_some(), "{} has no column {name}", self.relation.name);
            if let Some(column) = position.and_then(|p| self.columns.get_mut(p)) {
                column.push(cell);
            }
        }
        self.count += 1;
        for (column, layout) in self.columns.iter_mut().zip(&self.relation.columns) {
            if column.len() < self.count {
                column.push(if layout.not_null { zero(layout.type_oid) } else { Cell::Null });
            }
        }
    }

    pub fn finish(self) -> Result<RecordBatch> {
        let schema = self.relation.arrow_schema();
        let columns = schema
            .fields()
            .iter()
            .zip(&self.columns)
            .map(|(field, cells)| column(field.data_type(), cells))
            .collect::<Result<Vec<ArrayRef>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(self.count));
        Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
    }
}

fn zero(type_oid: u32) -> Cell {
    match super::layout::arrow_type(type_oid) {
        DataType::Boolean => Cell::Bool(false),
        DataType::Int16 | DataType::Int32 | DataType::Int64 => Cell::Int(0),
        DataType::Float32 | DataType::Float64 => Cell::Float(0.0),
        DataType::List(f) if f.data_type() == &DataType::Utf8View => Cell::Texts(Vec::new()),
        DataType::List(_) => Cell::Ints(Vec::new()),
        // A function that is not there is written as a dash.
        DataType::Utf8View if type_oid == 24 => Cell::Text("-".to_string()),
        DataType::Utf8View => Cell::Text(String::new()),
        _ => Cell::Null,
    }
}

/// The cells as an array of `data_type`; a cell of the wrong kind is an internal error.
pub fn column(data_type: &DataType, cells: &[Cell]) -> Result<ArrayRef> {
    if cells.iter().all(|c| *c == Cell::Null) {
        return Ok(new_null_array(data_type, cells.len()));
    }
    macro_rules! build {
        ($builder:expr, $($cell:pat => $value:expr),*) => {{
            let mut builder = $builder;
            for cell in cells {
                match cell {
                    Cell::Null => builder.append_null(),
                    $($cell => builder.append_value($value),)*
                    other => return Err(misplaced(other, data_type)),
                }
            }
            Arc::new(builder.finish()) as ArrayRef
        }};
    }
    Ok(match data_type {
        DataType::Boolean => build!(BooleanBuilder::new(), Cell::Bool(v) => *v),
        DataType::Int16 => build!(Int16Builder::new(), Cell::Int(v) => *v as i16),
        DataType::Int32 => build!(Int32Builder::new(), Cell::Int(v) => *v as i32),
        DataType::Int64 => build!(Int64Builder::new(), Cell::Int(v) => *v),
        DataType::Float32 => build!(Float32Builder::new(), Cell::Float(v) => *v as f32, Cell::Int(v) => *v as f32),
        DataType::Float64 => build!(Float64Builder::new(), Cell::Float(v) => *v, Cell::Int(v) => *v as f64),
        DataType::Utf8View => build!(StringViewBuilder::new(), Cell::Text(v) => v),
        DataType::Binary => build!(BinaryBuilder::new(), Cell::Text(v) => v.as_bytes()),
        DataType::Timestamp(_, zone) => build!(
            TimestampMicrosecondBuilder::new().with_timezone_opt(zone.clone()), Cell::Timestamp(v) => *v),
        DataType::Decimal128(p, s) => build!(
            Decimal128Builder::new().with_precision_and_scale(*p, *s)?,
            Cell::Int(v) => i128::from(*v) * 10i128.pow(u32::from(s.unsigned_abs()))),
        DataType::Interval(_) => build!(IntervalMonthDayNanoBuilder::new(),),
        DataType::List(item) => {
            let mut ints = Int64Builder::new();
            let mut texts = StringViewBuilder::new();
            let text = item.data_type() == &DataType::Utf8View;
            let mut lengths: Vec<Option<usize>> = Vec::with_capacity(cells.len());
            for cell in cells {
                lengths.push(match cell {
                    Cell::Null => None,
                    Cell::Ints(v) if !text => {
                        ints.append_slice(v);
                        Some(v.len())
                    }
                    Cell::Texts(v) if text => {
                        v.iter().for_each(|t| texts.append_value(t));
                        Some(v.len())
                    }
                    other => return Err(misplaced(other, data_type)),
                });
            }
            if text { list(texts, &lengths) } else { arrow::compute::cast(&list(ints, &lengths), data_type)? }
        }
        other => return Err(Error::internal(format!("no system column has type {other}"))),
    })
}

/// Groups the values of `items` into lists of the given lengths; none is a NULL list.
fn list<B: ArrayBuilder>(mut items: B, lengths: &[Option<usize>]) -> ArrayRef {
    use arrow::array::{GenericListArray, OffsetBufferBuilder};
    let values = items.finish();
    let mut offsets = OffsetBufferBuilder::<i32>::new(lengths.len());
    for length in lengths {
        offsets.push_length(length.unwrap_or(0));
    }
    let nulls = lengths.iter().map(Option::is_some).collect::<Vec<bool>>().into();
    let field = arrow::datatypes::Field::new_list_field(values.data_type().clone(), true);
    Arc::new(GenericListArray::<i32>::new(Arc::new(field), offsets.finish(), values, Some(nulls)))
}

fn misplaced(cell: &Cell, data_type: &DataType) -> Error {
    Error::internal(format!("system column of type {data_type} was given {cell:?}"))
}
