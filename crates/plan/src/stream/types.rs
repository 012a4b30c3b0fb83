//! The Arrow type that a SQL type has everywhere in Millstream, for whatever type an expression came out with.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, IntervalUnit, Schema, SchemaRef, TimeUnit};
use flow::{Error, Result};

use crate::expr::sql_type;

/// The type as which a column of `data_type` is stored and sent, or `0A000` where SQL has no such type.
pub fn canonical_type(data_type: &DataType) -> Result<DataType> {
    Ok(match data_type {
        DataType::Boolean | DataType::Int16 | DataType::Int32 | DataType::Int64 => data_type.clone(),
        DataType::Float32 | DataType::Float64 | DataType::Date32 | DataType::Decimal128(_, _) => data_type.clone(),
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => DataType::Decimal128(*p, *s),
        DataType::Decimal256(p, s) => DataType::Decimal128((*p).min(38), *s),
        // A NULL without a type is text, as in PostgreSQL.
        DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            DataType::Binary
        }
        DataType::Date64 => DataType::Date32,
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(_, None) => DataType::Timestamp(TimeUnit::Microsecond, None),
        DataType::Timestamp(_, Some(_)) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Interval(_) | DataType::Duration(_) => DataType::Interval(IntervalUnit::MonthDayNano),
        DataType::Dictionary(_, value) => canonical_type(value)?,
        DataType::RunEndEncoded(_, value) => canonical_type(value.data_type())?,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => {
            DataType::List(Arc::new(Field::new("item", canonical_type(item.data_type())?, true)))
        }
        DataType::Struct(_) | DataType::Map(_, _) | DataType::Union(_, _) => {
            return Err(Error::unsupported(format!("type {} is not supported as a column", sql_type(data_type))));
        }
    })
}

/// `schema` in canonical types, names and nullability kept; the refusal names the column.
pub fn canonical_schema(schema: &Schema) -> Result<SchemaRef> {
    let fields = schema.fields().iter().map(|f| {
        let data_type = canonical_type(f.data_type())
            .map_err(|e| Error::new(e.state(), format!("column \"{}\": {}", f.name(), e.message())))?;
        Ok(Field::new(f.name(), data_type, f.is_nullable()))
    });
    Ok(Arc::new(Schema::new(fields.collect::<Result<Vec<_>>>()?)))
}

/// Whether the cast keeps distinct values distinct, never fails, and keeps the stable hash (`flow::hash`), so that keys
/// and distribution hold of the cast column as of the original.
pub(super) fn keeps_identity(from: &DataType, to: &DataType) -> bool {
    fn rank(t: &DataType) -> Option<u8> {
        Some(match t {
            DataType::Int8 => 1,
            DataType::Int16 => 2,
            DataType::Int32 => 3,
            DataType::Int64 => 4,
            _ => return None,
        })
    }
    fn unsigned(t: &DataType) -> Option<u8> {
        Some(match t {
            DataType::UInt8 => 2,
            DataType::UInt16 => 3,
            DataType::UInt32 => 4,
            _ => return None,
        })
    }
    let is_text = |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    if from == to || (is_text(from) && is_text(to)) {
        return true;
    }
    if let (DataType::Decimal128(p, s), DataType::Decimal128(to_p, to_s)) = (from, to) {
        return s == to_s && p <= to_p;
    }
    match (rank(from), unsigned(from), rank(to)) {
        (Some(from), _, Some(to)) => from <= to,
        (_, Some(from), Some(to)) => from <= to,
        _ => from == &DataType::UInt64 && to == &DataType::Int64,
    }
}
