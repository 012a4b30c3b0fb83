//! Which Postgres type an Arrow column is, and back.
//!
//! The Arrow type decides, except that a field may say more by the metadata entry [`PG_TYPE`]: catalog columns of type
//! `oid` or `name`, `varchar(20)`, `json` and so on look to Arrow like plain integers and text.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};

/// Under [`PG_TYPE`] a field's metadata has a Postgres type name, optionally with modifiers and `[]`: `oid`, `name`,
/// `varchar(20)`, `char(3)`, `json`, `int2vector`, `regclass`, `oid[]`.
pub use catalog::types::{PG_COLUMN, PG_TYPE};

/// Type OIDs of PostgreSQL's `pg_type`.
pub mod oid {
    pub const BOOL: u32 = 16;
    pub const BYTEA: u32 = 17;
    pub const CHAR: u32 = 18;
    pub const NAME: u32 = 19;
    pub const INT8: u32 = 20;
    pub const INT2: u32 = 21;
    pub const INT2VECTOR: u32 = 22;
    pub const INT4: u32 = 23;
    pub const REGPROC: u32 = 24;
    pub const TEXT: u32 = 25;
    pub const OID: u32 = 26;
    pub const TID: u32 = 27;
    pub const XID: u32 = 28;
    pub const CID: u32 = 29;
    pub const OIDVECTOR: u32 = 30;
    pub const JSON: u32 = 114;
    pub const PG_NODE_TREE: u32 = 194;
    pub const FLOAT4: u32 = 700;
    pub const FLOAT8: u32 = 701;
    pub const UNKNOWN: u32 = 705;
    pub const ACLITEM: u32 = 1033;
    pub const BPCHAR: u32 = 1042;
    pub const VARCHAR: u32 = 1043;
    pub const DATE: u32 = 1082;
    pub const TIME: u32 = 1083;
    pub const TIMESTAMP: u32 = 1114;
    pub const TIMESTAMPTZ: u32 = 1184;
    pub const INTERVAL: u32 = 1186;
    pub const NUMERIC: u32 = 1700;
    pub const REGPROCEDURE: u32 = 2202;
    pub const REGOPER: u32 = 2203;
    pub const REGCLASS: u32 = 2205;
    pub const REGTYPE: u32 = 2206;
    pub const RECORD: u32 = 2249;
    pub const VOID: u32 = 2278;
    pub const UUID: u32 = 2950;
    pub const JSONB: u32 = 3802;
    pub const REGNAMESPACE: u32 = 4089;
    pub const REGROLE: u32 = 4096;
}

/// Name, OID, OID of the array type, and `typlen` of every type that the frontend can name.
const TYPES: &[(&str, u32, u32, i16)] = &[
    ("bool", oid::BOOL, 1000, 1),
    ("bytea", oid::BYTEA, 1001, -1),
    ("\"char\"", oid::CHAR, 1002, 1),
    ("name", oid::NAME, 1003, 64),
    ("int8", oid::INT8, 1016, 8),
    ("int2", oid::INT2, 1005, 2),
    ("int2vector", oid::INT2VECTOR, 1006, -1),
    ("int4", oid::INT4, 1007, 4),
    ("regproc", oid::REGPROC, 1008, 4),
    ("text", oid::TEXT, 1009, -1),
    ("oid", oid::OID, 1028, 4),
    ("tid", oid::TID, 1010, 6),
    ("xid", oid::XID, 1011, 4),
    ("cid", oid::CID, 1012, 4),
    ("oidvector", oid::OIDVECTOR, 1013, -1),
    ("json", oid::JSON, 199, -1),
    ("pg_node_tree", oid::PG_NODE_TREE, 0, -1),
    ("float4", oid::FLOAT4, 1021, 4),
    ("float8", oid::FLOAT8, 1022, 8),
    ("unknown", oid::UNKNOWN, 0, -2),
    ("aclitem", oid::ACLITEM, 1034, 12),
    ("bpchar", oid::BPCHAR, 1014, -1),
    ("varchar", oid::VARCHAR, 1015, -1),
    ("date", oid::DATE, 1182, 4),
    ("time", oid::TIME, 1183, 8),
    ("timestamp", oid::TIMESTAMP, 1115, 8),
    ("timestamptz", oid::TIMESTAMPTZ, 1185, 8),
    ("interval", oid::INTERVAL, 1187, 16),
    ("numeric", oid::NUMERIC, 1231, -1),
    ("regprocedure", oid::REGPROCEDURE, 2207, 4),
    ("regoper", oid::REGOPER, 2208, 4),
    ("regclass", oid::REGCLASS, 2210, 4),
    ("regtype", oid::REGTYPE, 2211, 4),
    ("record", oid::RECORD, 2287, -1),
    ("void", oid::VOID, 0, 4),
    ("uuid", oid::UUID, 2951, 16),
    ("jsonb", oid::JSONB, 3807, -1),
    ("regnamespace", oid::REGNAMESPACE, 4090, 4),
    ("regrole", oid::REGROLE, 4097, 4),
];

/// Spellings of the SQL standard and of `format_type`.
const SYNONYMS: &[(&str, &str)] = &[
    ("boolean", "bool"),
    ("smallint", "int2"),
    ("integer", "int4"),
    ("int", "int4"),
    ("bigint", "int8"),
    ("real", "float4"),
    ("double precision", "float8"),
    ("decimal", "numeric"),
    ("character varying", "varchar"),
    ("character", "bpchar"),
    ("char", "bpchar"),
    ("time without time zone", "time"),
    ("timestamp without time zone", "timestamp"),
    ("timestamp with time zone", "timestamptz"),
];

/// A type as RowDescription tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PgType {
    pub oid: u32,
    /// Bytes of the type, -1 where they vary, -2 for C strings.
    pub typlen: i16,
    /// The modifier (`varchar(n)`, `numeric(p,s)`), -1 where there is none.
    pub typmod: i32,
}

impl PgType {
    fn plain(oid: u32) -> PgType {
        let typlen = TYPES.iter().find(|t| t.1 == oid).map_or(-1, |t| t.3);
        PgType { oid, typlen, typmod: -1 }
    }

    /// The type of a result column.
    pub fn of_field(field: &Field) -> PgType {
        field
            .metadata()
            .get(PG_TYPE)
            .and_then(|name| PgType::named(name))
            .unwrap_or_else(|| PgType::of(field.data_type()))
    }

    /// The type that an Arrow type stands for when nothing more is known.
    pub fn of(data_type: &DataType) -> PgType {
        let oid = match data_type {
            DataType::Boolean => oid::BOOL,
            DataType::Int8 | DataType::Int16 | DataType::UInt8 => oid::INT2,
            DataType::Int32 | DataType::UInt16 => oid::INT4,
            DataType::Int64 | DataType::UInt32 => oid::INT8,
            DataType::Float16 | DataType::Float32 => oid::FLOAT4,
            DataType::Float64 => oid::FLOAT8,
            DataType::Decimal32(p, s)
            | DataType::Decimal64(p, s)
            | DataType::Decimal128(p, s)
            | DataType::Decimal256(p, s) => {
                // numeric(38,18) is how a numeric without declared precision is held.
                let typmod =
                    if (*p, *s) == (38, 18) || *s < 0 { -1 } else { ((i32::from(*p) << 16) | i32::from(*s)) + 4 };
                return PgType { oid: oid::NUMERIC, typlen: -1, typmod };
            }
            DataType::UInt64 => oid::NUMERIC,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                oid::BYTEA
            }
            DataType::Date32 | DataType::Date64 => oid::DATE,
            DataType::Time32(_) | DataType::Time64(_) => oid::TIME,
            DataType::Timestamp(_, None) => oid::TIMESTAMP,
            DataType::Timestamp(_, Some(_)) => oid::TIMESTAMPTZ,
            DataType::Interval(_) | DataType::Duration(_) => oid::INTERVAL,
            DataType::Struct(_) => oid::RECORD,
            DataType::Dictionary(_, value) => return PgType::of(value),
            DataType::RunEndEncoded(_, value) => return PgType::of(value.data_type()),
            DataType::List(item)
            | DataType::LargeList(item)
            | DataType::FixedSizeList(item, _)
            | DataType::ListView(item)
            | DataType::LargeListView(item) => {
                // Postgres has one array type per element type, whatever the number of dimensions.
                let element = PgType::of_field(item);
                if element_of(element.oid).is_some() {
                    return element;
                }
                return PgType { oid: array_of(element.oid), typlen: -1, typmod: element.typmod };
            }
            _ => oid::TEXT,
        };
        PgType::plain(oid)
    }

    /// The type of this name, if the frontend knows it.
    pub fn named(name: &str) -> Option<PgType> {
        let name = name.trim();
        if let Some(element) = name.strip_suffix("[]") {
            let element = PgType::named(element)?;
            return Some(PgType { oid: array_of(element.oid), typlen: -1, typmod: element.typmod });
        }
        let (base, modifiers) = match name.split_once('(') {
            Some((base, rest)) => (base.trim(), rest.strip_suffix(')')),
            None => (name, None),
        };
        let base = SYNONYMS.iter().find(|s| s.0 == base).map_or(base, |s| s.1);
        let mut found = PgType::plain(TYPES.iter().find(|t| t.0 == base)?.1);
        if let Some(modifiers) = modifiers {
            let numbers: Vec<i32> = modifiers.split(',').filter_map(|n| n.trim().parse().ok()).collect();
            found.typmod = match (found.oid, numbers.as_slice()) {
                (oid::VARCHAR | oid::BPCHAR, [n]) => n.checked_add(4)?,
                (oid::NUMERIC, [p]) => (p.checked_shl(16)?).checked_add(4)?,
                (oid::NUMERIC, [p, s]) => (p.checked_shl(16)? | (s & 0x7ff)).checked_add(4)?,
                (oid::TIME | oid::TIMESTAMP | oid::TIMESTAMPTZ, [n]) => *n,
                _ => -1,
            };
        }
        Some(found)
    }
}

/// The element type of an array type.
pub fn element_of(array: u32) -> Option<u32> {
    TYPES.iter().find(|t| t.2 == array && array != 0).map(|t| t.1)
}

/// The array type of an element type; text[] where there is none.
pub fn array_of(element: u32) -> u32 {
    TYPES.iter().find(|t| t.1 == element && t.2 != 0).map_or(1009, |t| t.2)
}

/// The name of a type as Postgres words it in messages.
pub fn name_of(oid: u32) -> String {
    if let Some(element) = element_of(oid) {
        return format!("{}[]", name_of(element));
    }
    let Some((name, ..)) = TYPES.iter().find(|t| t.1 == oid) else { return oid.to_string() };
    match *name {
        "bpchar" => "character".to_string(),
        short => SYNONYMS
            .iter()
            .find(|s| s.1 == short && !matches!(s.0, "int" | "decimal"))
            .map_or(short, |s| s.0)
            .to_string(),
    }
}

/// The canonical Arrow type in which values of a Postgres type travel; `None` if the frontend does not know the type.
pub fn data_type_of(type_oid: u32) -> Option<DataType> {
    if let Some(element) = element_of(type_oid) {
        return Some(DataType::List(Arc::new(Field::new("item", data_type_of(element)?, true))));
    }
    Some(match type_oid {
        oid::BOOL => DataType::Boolean,
        oid::INT2 => DataType::Int16,
        oid::INT4 => DataType::Int32,
        oid::INT8 | oid::OID | oid::XID | oid::CID => DataType::Int64,
        oid::FLOAT4 => DataType::Float32,
        oid::FLOAT8 => DataType::Float64,
        oid::NUMERIC => DataType::Decimal128(38, 18),
        oid::BYTEA => DataType::Binary,
        oid::DATE => DataType::Date32,
        oid::TIME => DataType::Time64(TimeUnit::Microsecond),
        oid::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        oid::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        oid::INTERVAL => DataType::Interval(IntervalUnit::MonthDayNano),
        oid::TEXT
        | oid::VARCHAR
        | oid::BPCHAR
        | oid::NAME
        | oid::CHAR
        | oid::UNKNOWN
        | oid::JSON
        | oid::JSONB
        | oid::UUID
        | oid::REGPROC
        | oid::REGPROCEDURE
        | oid::REGOPER
        | oid::REGCLASS
        | oid::REGTYPE
        | oid::REGNAMESPACE
        | oid::REGROLE
        | oid::PG_NODE_TREE => DataType::Utf8View,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_oids_and_modifiers() {
        let check = |name: &str, oid: u32, typlen: i16, typmod: i32| {
            assert_eq!(PgType::named(name), Some(PgType { oid, typlen, typmod }), "{name}");
        };
        check("oid", 26, 4, -1);
        check("varchar(20)", 1043, -1, 24);
        check("character varying", 1043, -1, -1);
        check("char(3)", 1042, -1, 7);
        check("numeric(10,2)", 1700, -1, 655366);
        check("text[]", 1009, -1, -1);
        check("\"char\"", 18, 1, -1);
        check("timestamp with time zone", 1184, 8, -1);
        assert_eq!(PgType::named("nonsense"), None);
        assert_eq!(PgType::of(&DataType::Decimal128(10, 2)).typmod, 655366);
        assert_eq!(PgType::of(&DataType::Decimal128(38, 18)).typmod, -1);
        assert_eq!(name_of(1184), "timestamp with time zone");
        assert_eq!(name_of(1007), "integer[]");
    }

    #[test]
    fn every_known_oid_that_arrow_can_hold_comes_back() {
        for type_oid in [16, 17, 20, 21, 23, 25, 700, 701, 1082, 1083, 1114, 1184, 1186, 1700, 1007, 1009, 1231] {
            assert_eq!(PgType::of(&data_type_of(type_oid).unwrap()).oid, type_oid);
        }
    }
}
