//! SQL types as written, and the Arrow types that hold them.

use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};
use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, CharacterLength, DataType as SqlType, ExactNumberInfo, TimezoneInfo,
};
use flow::{Error, Result, SqlState};
use std::sync::Arc;

/// Precision and scale of plain `numeric`.
pub const NUMERIC: (u8, i8) = (38, 18);
/// The most digits that a numeric column can declare.
pub const NUMERIC_PRECISION_MAX: u64 = 38;

/// The canonical Arrow type of a SQL type.
///
/// Errors: `42704` for a type that does not exist, `0A000` for one of Postgres' that Millstream has not, `22023` for a bad
/// precision.
pub fn arrow_type(sql_type: &SqlType) -> Result<DataType> {
    Ok(match sql_type {
        SqlType::Boolean | SqlType::Bool => DataType::Boolean,
        SqlType::SmallInt(_) | SqlType::Int2(_) => DataType::Int16,
        SqlType::Int(_) | SqlType::Integer(_) | SqlType::Int4(_) => DataType::Int32,
        SqlType::BigInt(_) | SqlType::Int8(_) => DataType::Int64,
        SqlType::Real | SqlType::Float4 => DataType::Float32,
        SqlType::Float(ExactNumberInfo::Precision(p)) if *p == 0 || *p > 53 => {
            return Err(Error::new(SqlState::InvalidParameterValue, "precision for type float must be 1 to 53"));
        }
        SqlType::Float(ExactNumberInfo::Precision(p)) if *p <= 24 => DataType::Float32,
        SqlType::Float(_) | SqlType::Float8 | SqlType::DoublePrecision | SqlType::Double(ExactNumberInfo::None) => {
            DataType::Float64
        }
        SqlType::Numeric(info) | SqlType::Decimal(info) | SqlType::Dec(info) => numeric(info)?,
        SqlType::Varchar(_)
        | SqlType::Char(_)
        | SqlType::Character(_)
        | SqlType::CharacterVarying(_)
        | SqlType::CharVarying(_)
        | SqlType::Text
        | SqlType::String(_) => DataType::Utf8View,
        SqlType::Bytea | SqlType::Bytes(_) => DataType::Binary,
        SqlType::Date => DataType::Date32,
        SqlType::Time(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => DataType::Time64(TimeUnit::Microsecond),
        SqlType::Time(..) => {
            return Err(unsupported("time with time zone", "Use timestamptz, or time and a zone column."));
        }
        SqlType::Timestamp(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
            DataType::Timestamp(TimeUnit::Microsecond, None)
        }
        SqlType::Timestamp(_, TimezoneInfo::Tz | TimezoneInfo::WithTimeZone) => timestamptz(),
        SqlType::Interval { .. } => DataType::Interval(IntervalUnit::MonthDayNano),
        SqlType::Array(ArrayElemTypeDef::SquareBracket(inner, _) | ArrayElemTypeDef::AngleBracket(inner)) => {
            match arrow_type(inner)? {
                // int[][] is the same type as int[] in Postgres; one dimension is what Millstream stores.
                DataType::List(_) => return Err(unsupported("multidimensional arrays", "Use one dimension.")),
                element => DataType::List(Arc::new(Field::new("item", element, true))),
            }
        }
        SqlType::Uuid => return Err(unsupported("type uuid", "Use text.")),
        SqlType::JSON | SqlType::JSONB => return Err(unsupported("types json and jsonb", "Use text.")),
        SqlType::Regclass => DataType::Int64,
        SqlType::Custom(name, modifiers) => return custom(&name.to_string().to_lowercase(), modifiers),
        other => {
            return Err(Error::new(SqlState::UndefinedObject, format!("type \"{other}\" does not exist"))
                .with_hint("Use boolean, smallint, integer, bigint, real, double precision, numeric, text, varchar, bytea, date, time, timestamp, timestamptz, interval or an array of them."));
        }
    })
}

/// `timestamp with time zone`.
pub fn timestamptz() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn numeric(info: &ExactNumberInfo) -> Result<DataType> {
    let (precision, scale) = match *info {
        ExactNumberInfo::None => return Ok(DataType::Decimal128(NUMERIC.0, NUMERIC.1)),
        ExactNumberInfo::Precision(precision) => (precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (precision, scale),
    };
    if precision == 0 || precision > NUMERIC_PRECISION_MAX {
        return Err(Error::new(
            SqlState::InvalidParameterValue,
            format!("NUMERIC precision {precision} must be between 1 and {NUMERIC_PRECISION_MAX}"),
        ));
    }
    if scale < 0 || scale as u64 > precision {
        return Err(Error::new(
            SqlState::InvalidParameterValue,
            format!("NUMERIC scale {scale} must be between 0 and precision {precision}"),
        ));
    }
    Ok(DataType::Decimal128(precision as u8, scale as i8))
}

/// Names that sqlparser does not know as types.
fn custom(name: &str, modifiers: &[String]) -> Result<DataType> {
    let name = name.trim_start_matches("pg_catalog.").trim_matches('"');
    Ok(match name {
        "bool" => DataType::Boolean,
        "int2" => DataType::Int16,
        "int4" | "int" | "integer" => DataType::Int32,
        "int8" | "oid" | "regclass" | "regtype" | "regproc" | "regnamespace" | "xid" => DataType::Int64,
        "float4" => DataType::Float32,
        "float8" => DataType::Float64,
        "numeric" | "decimal" => {
            let parsed: Vec<u64> = modifiers.iter().filter_map(|m| m.parse().ok()).collect();
            match parsed.as_slice() {
                [] => numeric(&ExactNumberInfo::None)?,
                [p] => numeric(&ExactNumberInfo::Precision(*p))?,
                [p, s, ..] => numeric(&ExactNumberInfo::PrecisionAndScale(*p, *s as i64))?,
            }
        }
        "text" | "varchar" | "bpchar" | "name" | "char" | "unknown" | "cstring" => DataType::Utf8View,
        "bytea" => DataType::Binary,
        "date" => DataType::Date32,
        "time" => DataType::Time64(TimeUnit::Microsecond),
        "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, None),
        "timestamptz" => timestamptz(),
        "interval" => DataType::Interval(IntervalUnit::MonthDayNano),
        "uuid" => return Err(unsupported("type uuid", "Use text.")),
        "json" | "jsonb" => return Err(unsupported("types json and jsonb", "Use text.")),
        "serial" | "bigserial" | "smallserial" => {
            return Err(unsupported(&format!("type {name}"), "Use bigint and give the values."));
        }
        "money" | "xml" | "inet" | "cidr" | "macaddr" | "bit" | "varbit" | "point" | "hstore" | "citext" => {
            return Err(unsupported(&format!("type {name}"), "Use text."));
        }
        _ => return Err(Error::new(SqlState::UndefinedObject, format!("type \"{name}\" does not exist"))),
    })
}

fn unsupported(what: &str, hint: &str) -> Error {
    Error::unsupported(format!("{what} is not supported")).with_hint(hint)
}

/// What `varchar(n)` and `char(n)` allow, in characters; `None` for every other type.
pub fn character_limit(sql_type: &SqlType) -> Option<u64> {
    let length = match sql_type {
        SqlType::Varchar(length) | SqlType::CharacterVarying(length) | SqlType::CharVarying(length) => {
            length.as_ref()?
        }
        SqlType::Char(length) | SqlType::Character(length) => match length {
            Some(length) => length,
            None => return Some(1),
        },
        _ => return None,
    };
    match length {
        CharacterLength::IntegerLength { length, .. } => Some(*length),
        CharacterLength::Max => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    fn sql(text: &str) -> SqlType {
        Parser::new(&PostgreSqlDialect {}).try_with_sql(text).unwrap().parse_data_type().unwrap()
    }

    #[test]
    fn every_type_name_has_its_arrow_type() {
        let micro = TimeUnit::Microsecond;
        for (text, expected) in [
            ("boolean", DataType::Boolean),
            ("bool", DataType::Boolean),
            ("smallint", DataType::Int16),
            ("int2", DataType::Int16),
            ("int", DataType::Int32),
            ("integer", DataType::Int32),
            ("int4", DataType::Int32),
            ("bigint", DataType::Int64),
            ("int8", DataType::Int64),
            ("real", DataType::Float32),
            ("float4", DataType::Float32),
            ("float(24)", DataType::Float32),
            ("float", DataType::Float64),
            ("double precision", DataType::Float64),
            ("float8", DataType::Float64),
            ("numeric", DataType::Decimal128(38, 18)),
            ("numeric(10)", DataType::Decimal128(10, 0)),
            ("decimal(10,2)", DataType::Decimal128(10, 2)),
            ("text", DataType::Utf8View),
            ("varchar", DataType::Utf8View),
            ("varchar(10)", DataType::Utf8View),
            ("character varying(10)", DataType::Utf8View),
            ("char(3)", DataType::Utf8View),
            ("name", DataType::Utf8View),
            ("bytea", DataType::Binary),
            ("date", DataType::Date32),
            ("time", DataType::Time64(micro)),
            ("time without time zone", DataType::Time64(micro)),
            ("timestamp", DataType::Timestamp(micro, None)),
            ("timestamp(3)", DataType::Timestamp(micro, None)),
            ("timestamp without time zone", DataType::Timestamp(micro, None)),
            ("timestamptz", timestamptz()),
            ("timestamp with time zone", timestamptz()),
            ("interval", DataType::Interval(IntervalUnit::MonthDayNano)),
            ("int[]", DataType::List(Arc::new(Field::new("item", DataType::Int32, true)))),
        ] {
            assert_eq!(arrow_type(&sql(text)).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn types_that_do_not_exist_are_refused_with_their_state() {
        for (text, state) in [
            ("uuid", SqlState::FeatureNotSupported),
            ("jsonb", SqlState::FeatureNotSupported),
            ("numeric(50)", SqlState::InvalidParameterValue),
            ("numeric(5,6)", SqlState::InvalidParameterValue),
            ("float(60)", SqlState::InvalidParameterValue),
            ("colour", SqlState::UndefinedObject),
            ("serial", SqlState::FeatureNotSupported),
        ] {
            assert_eq!(arrow_type(&sql(text)).unwrap_err().state(), state, "{text}");
        }
    }

    #[test]
    fn character_limits_are_read() {
        assert_eq!(character_limit(&sql("varchar(7)")), Some(7));
        assert_eq!(character_limit(&sql("char")), Some(1));
        assert_eq!(character_limit(&sql("varchar")), None);
        assert_eq!(character_limit(&sql("text")), None);
    }
}
