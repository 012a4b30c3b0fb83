//! The PostgreSQL names and numbers of the types that Millstream has, and how Arrow types map to them.
//!
//! One static table, [`TYPES`], is the source for `pg_type`, for `format_type` and for what goes over the wire; its OIDs
//! are PostgreSQL's own, because clients compile them in.

use arrow_schema::{DataType, IntervalUnit, TimeUnit};

/// Key in the metadata of a result's field: the SQL name of its PostgreSQL type, where the Arrow type does not tell it.
pub const PG_TYPE: &str = "pg.type";
/// Key in the metadata of a result's field: the relation's OID and the column's number, as `oid.number`, of the column
/// that it shows unchanged.
pub const PG_COLUMN: &str = "pg.column";

/// One scalar type. Its array type has the OID [`array_oid`](Self::array_oid) and the name `_` + [`name`](Self::name).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PgType {
    pub oid: u32,
    /// As in `pg_type.typname`: `int4`.
    pub name: &'static str,
    /// As `format_type` writes it: `integer`.
    pub sql_name: &'static str,
    /// 0 when there is no array type.
    pub array_oid: u32,
    /// Bytes of the value in PostgreSQL; -1 for variable length, -2 for a C string.
    pub length: i16,
    /// `pg_type.typcategory`.
    pub category: char,
    /// `pg_type.typtype`: `b` base, `p` pseudo-type, `r` range.
    pub kind: char,
    /// `pg_type.typalign`.
    pub align: char,
}

impl PgType {
    /// Whether the type is its category's preferred one, as PostgreSQL has it.
    pub fn preferred(&self) -> bool {
        matches!(self.name, "bool" | "text" | "oid" | "float8" | "inet" | "interval" | "timestamptz" | "varbit")
    }

    /// Whether PostgreSQL passes the value in a machine word.
    pub fn by_value(&self) -> bool {
        matches!(self.length, 1 | 2 | 4 | 8)
    }
}

macro_rules! types {
    ($($oid:literal $name:literal $sql:literal $array:literal $length:literal $category:literal $kind:literal $align:literal;)*) => {
        /// Every scalar type that a client may meet, in the order of their OIDs.
        pub const TYPES: &[PgType] = &[$(PgType {
            oid: $oid, name: $name, sql_name: $sql, array_oid: $array, length: $length, category: $category, kind: $kind, align: $align,
        }),*];
    };
}

types! {
    16 "bool" "boolean" 1000 1 'B' 'b' 'c';
    17 "bytea" "bytea" 1001 -1 'U' 'b' 'i';
    18 "char" "\"char\"" 1002 1 'Z' 'b' 'c';
    19 "name" "name" 1003 64 'S' 'b' 'c';
    20 "int8" "bigint" 1016 8 'N' 'b' 'd';
    21 "int2" "smallint" 1005 2 'N' 'b' 's';
    22 "int2vector" "int2vector" 1006 -1 'A' 'b' 'i';
    23 "int4" "integer" 1007 4 'N' 'b' 'i';
    24 "regproc" "regproc" 1008 4 'N' 'b' 'i';
    25 "text" "text" 1009 -1 'S' 'b' 'i';
    26 "oid" "oid" 1028 4 'N' 'b' 'i';
    27 "tid" "tid" 1010 6 'U' 'b' 's';
    28 "xid" "xid" 1011 4 'U' 'b' 'i';
    29 "cid" "cid" 1012 4 'U' 'b' 'i';
    30 "oidvector" "oidvector" 1013 -1 'A' 'b' 'i';
    114 "json" "json" 199 -1 'U' 'b' 'i';
    142 "xml" "xml" 143 -1 'U' 'b' 'i';
    194 "pg_node_tree" "pg_node_tree" 0 -1 'Z' 'b' 'i';
    600 "point" "point" 1017 16 'G' 'b' 'd';
    650 "cidr" "cidr" 651 -1 'I' 'b' 'i';
    700 "float4" "real" 1021 4 'N' 'b' 'i';
    701 "float8" "double precision" 1022 8 'N' 'b' 'd';
    705 "unknown" "unknown" 0 -2 'X' 'p' 'c';
    790 "money" "money" 791 8 'N' 'b' 'd';
    829 "macaddr" "macaddr" 1040 6 'U' 'b' 'i';
    869 "inet" "inet" 1041 -1 'I' 'b' 'i';
    1033 "aclitem" "aclitem" 1034 12 'U' 'b' 'i';
    1042 "bpchar" "character" 1014 -1 'S' 'b' 'i';
    1043 "varchar" "character varying" 1015 -1 'S' 'b' 'i';
    1082 "date" "date" 1182 4 'D' 'b' 'i';
    1083 "time" "time without time zone" 1183 8 'D' 'b' 'd';
    1114 "timestamp" "timestamp without time zone" 1115 8 'D' 'b' 'd';
    1184 "timestamptz" "timestamp with time zone" 1185 8 'D' 'b' 'd';
    1186 "interval" "interval" 1187 16 'T' 'b' 'd';
    1266 "timetz" "time with time zone" 1270 12 'D' 'b' 'd';
    1560 "bit" "bit" 1561 -1 'V' 'b' 'i';
    1562 "varbit" "bit varying" 1563 -1 'V' 'b' 'i';
    1700 "numeric" "numeric" 1231 -1 'N' 'b' 'i';
    1790 "refcursor" "refcursor" 2201 -1 'U' 'b' 'i';
    2202 "regprocedure" "regprocedure" 2207 4 'N' 'b' 'i';
    2203 "regoper" "regoper" 2208 4 'N' 'b' 'i';
    2204 "regoperator" "regoperator" 2209 4 'N' 'b' 'i';
    2205 "regclass" "regclass" 2210 4 'N' 'b' 'i';
    2206 "regtype" "regtype" 2211 4 'N' 'b' 'i';
    2249 "record" "record" 2287 -1 'P' 'p' 'd';
    2275 "cstring" "cstring" 1263 -2 'P' 'p' 'c';
    2276 "any" "\"any\"" 0 4 'P' 'p' 'i';
    2277 "anyarray" "anyarray" 0 -1 'P' 'p' 'd';
    2278 "void" "void" 0 4 'P' 'p' 'i';
    2283 "anyelement" "anyelement" 0 4 'P' 'p' 'i';
    2950 "uuid" "uuid" 2951 16 'U' 'b' 'c';
    3220 "pg_lsn" "pg_lsn" 3221 8 'U' 'b' 'd';
    3614 "tsvector" "tsvector" 3643 -1 'U' 'b' 'i';
    3615 "tsquery" "tsquery" 3645 -1 'U' 'b' 'i';
    3802 "jsonb" "jsonb" 3807 -1 'U' 'b' 'i';
    3904 "int4range" "int4range" 3905 -1 'R' 'r' 'i';
    3906 "numrange" "numrange" 3907 -1 'R' 'r' 'i';
    3908 "tsrange" "tsrange" 3909 -1 'R' 'r' 'd';
    3910 "tstzrange" "tstzrange" 3911 -1 'R' 'r' 'd';
    3912 "daterange" "daterange" 3913 -1 'R' 'r' 'i';
    3926 "int8range" "int8range" 3927 -1 'R' 'r' 'd';
    4089 "regnamespace" "regnamespace" 4090 4 'N' 'b' 'i';
    4096 "regrole" "regrole" 4097 4 'N' 'b' 'i';
}

/// OIDs that code elsewhere names.
pub mod oid {
    pub const BOOL: u32 = 16;
    pub const BYTEA: u32 = 17;
    pub const CHAR: u32 = 18;
    pub const NAME: u32 = 19;
    pub const INT8: u32 = 20;
    pub const INT2: u32 = 21;
    pub const INT2VECTOR: u32 = 22;
    pub const INT4: u32 = 23;
    pub const TEXT: u32 = 25;
    pub const OID: u32 = 26;
    pub const XID: u32 = 28;
    pub const CID: u32 = 29;
    pub const OIDVECTOR: u32 = 30;
    pub const PG_NODE_TREE: u32 = 194;
    pub const FLOAT4: u32 = 700;
    pub const FLOAT8: u32 = 701;
    pub const UNKNOWN: u32 = 705;
    pub const BPCHAR: u32 = 1042;
    pub const VARCHAR: u32 = 1043;
    pub const DATE: u32 = 1082;
    pub const TIME: u32 = 1083;
    pub const TIMESTAMP: u32 = 1114;
    pub const TIMESTAMPTZ: u32 = 1184;
    pub const INTERVAL: u32 = 1186;
    pub const NUMERIC: u32 = 1700;
    pub const RECORD: u32 = 2249;
}

/// The scalar type with this OID.
pub fn by_oid(oid: u32) -> Option<&'static PgType> {
    TYPES.binary_search_by_key(&oid, |t| t.oid).ok().map(|i| &TYPES[i])
}

/// The element type of the array type with this OID.
pub fn element_of(array_oid: u32) -> Option<&'static PgType> {
    if array_oid == 0 {
        return None;
    }
    TYPES.iter().find(|t| t.array_oid == array_oid)
}

/// The type OID that a column of this Arrow type has on the wire when nothing more exact was declared.
///
/// Unsigned integers, which only DataFusion's own functions yield, widen to the next signed type.
pub fn oid_of(data_type: &DataType) -> u32 {
    match data_type {
        DataType::Boolean => oid::BOOL,
        DataType::Int8 | DataType::UInt8 | DataType::Int16 => oid::INT2,
        DataType::UInt16 | DataType::Int32 => oid::INT4,
        DataType::UInt32 | DataType::Int64 => oid::INT8,
        DataType::UInt64 | DataType::Decimal128(_, _) | DataType::Decimal256(_, _) => oid::NUMERIC,
        DataType::Decimal32(_, _) | DataType::Decimal64(_, _) => oid::NUMERIC,
        DataType::Float16 | DataType::Float32 => oid::FLOAT4,
        DataType::Float64 => oid::FLOAT8,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => oid::BYTEA,
        DataType::Date32 | DataType::Date64 => oid::DATE,
        DataType::Time32(_) | DataType::Time64(_) => oid::TIME,
        DataType::Timestamp(_, None) => oid::TIMESTAMP,
        DataType::Timestamp(_, Some(_)) => oid::TIMESTAMPTZ,
        DataType::Interval(_) | DataType::Duration(_) => oid::INTERVAL,
        DataType::Dictionary(_, value) => oid_of(value),
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) | DataType::ListView(f) => {
            let element = oid_of(f.data_type());
            match by_oid(element) {
                Some(t) => t.array_oid,
                // An array of arrays is, as in PostgreSQL, the same type with one dimension more.
                None => element,
            }
        }
        DataType::Struct(_) => oid::RECORD,
        _ => oid::TEXT,
    }
}

/// The OID and typmod of a column: `declared` decides where it names a type, else the Arrow type.
///
/// `declared` is SQL as a user wrote it, in any spelling that PostgreSQL takes: `varchar(10)`, `int`, `numeric(10, 2)[]`.
/// The typmod is PostgreSQL's encoding, -1 for none.
pub fn oid_and_typmod(data_type: &DataType, declared: &str) -> (u32, i32) {
    match parse(declared) {
        Some(found) => found,
        None => {
            let typmod = match data_type {
                DataType::Decimal128(38, 18) => -1,
                DataType::Decimal128(p, s) => numeric_typmod(*p as i32, *s as i32),
                _ => -1,
            };
            (oid_of(data_type), typmod)
        }
    }
}

/// The OID and typmod of a type written in SQL; none when Millstream knows no such type.
pub fn parse(declared: &str) -> Option<(u32, i32)> {
    let lower = declared.trim().to_ascii_lowercase();
    let mut text = lower.strip_prefix("pg_catalog.").unwrap_or(&lower);
    let mut array = false;
    while let Some(inner) = text.strip_suffix(']') {
        text = inner.rfind('[').map(|at| inner[..at].trim_end())?;
        array = true;
    }
    if let Some(element) = text.strip_suffix(" array") {
        text = element;
        array = true;
    }
    // `timestamp(3) with time zone` has its modifier in the middle.
    let (name, arguments) = match (text.find('('), text.find(')')) {
        (Some(open), Some(close)) if open < close => {
            (format!("{}{}", text[..open].trim_end(), &text[close + 1..]), Some(&text[open + 1..close]))
        }
        _ => (text.to_string(), None),
    };
    let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut arguments_typmod: Vec<i32> = Vec::new();
    for argument in arguments.iter().flat_map(|a| a.split(',')) {
        arguments_typmod.push(argument.trim().parse().ok()?);
    }
    let first = arguments_typmod.first().copied();
    let (oid, typmod) = match name.as_str() {
        "bool" | "boolean" => (oid::BOOL, -1),
        "int2" | "smallint" | "smallserial" | "serial2" => (oid::INT2, -1),
        "int" | "int4" | "integer" | "serial" | "serial4" => (oid::INT4, -1),
        "int8" | "bigint" | "bigserial" | "serial8" => (oid::INT8, -1),
        "real" | "float4" => (oid::FLOAT4, -1),
        "float" if first.is_some_and(|p| p <= 24) => (oid::FLOAT4, -1),
        "float" | "float8" | "double precision" | "double" => (oid::FLOAT8, -1),
        "numeric" | "decimal" | "dec" => {
            let typmod = first.map(|p| numeric_typmod(p, arguments_typmod.get(1).copied().unwrap_or(0)));
            (oid::NUMERIC, typmod.unwrap_or(-1))
        }
        "text" | "string" => (oid::TEXT, -1),
        "varchar" | "character varying" | "char varying" => (oid::VARCHAR, first.map_or(-1, |n| n.saturating_add(4))),
        "char" | "character" => (oid::BPCHAR, first.unwrap_or(1).saturating_add(4)),
        "bpchar" => (oid::BPCHAR, first.map_or(-1, |n| n.saturating_add(4))),
        "\"char\"" => (oid::CHAR, -1),
        "bytes" => (oid::BYTEA, -1),
        "time" | "time without time zone" => (oid::TIME, first.unwrap_or(-1)),
        "timestamp" | "timestamp without time zone" => (oid::TIMESTAMP, first.unwrap_or(-1)),
        "timestamptz" | "timestamp with time zone" => (oid::TIMESTAMPTZ, first.unwrap_or(-1)),
        "timetz" | "time with time zone" => (1266, first.unwrap_or(-1)),
        other => (TYPES.iter().find(|t| t.name == other || t.sql_name == other)?.oid, -1),
    };
    match (array, by_oid(oid)) {
        (false, _) => Some((oid, typmod)),
        (true, Some(t)) if t.array_oid != 0 => Some((t.array_oid, typmod)),
        _ => None,
    }
}

fn numeric_typmod(precision: i32, scale: i32) -> i32 {
    (precision.saturating_mul(1 << 16) | (scale & 0x7ff)).saturating_add(4)
}

/// How PostgreSQL writes the type: `character varying(10)`, `numeric(10,2)[]`; `-` for OID 0 and `???` for an unknown one.
/// A typmod of -1 means none.
pub fn format_type(oid: u32, typmod: i32) -> String {
    if oid == 0 {
        return "-".to_string();
    }
    if let Some(t) = by_oid(oid) {
        return format_scalar(t, typmod);
    }
    match element_of(oid) {
        Some(t) => format!("{}[]", format_scalar(t, typmod)),
        None => "???".to_string(),
    }
}

fn format_scalar(t: &PgType, typmod: i32) -> String {
    if typmod < 0 {
        // Without a length the internal name is the only spelling that does not mean character(1).
        return if t.oid == oid::BPCHAR { "bpchar".to_string() } else { t.sql_name.to_string() };
    }
    match t.oid {
        oid::VARCHAR | oid::BPCHAR if typmod >= 4 => format!("{}({})", t.sql_name, typmod - 4),
        oid::NUMERIC if typmod >= 4 => {
            let packed = typmod - 4;
            format!("numeric({},{})", packed >> 16, ((packed & 0x7ff) ^ 1024) - 1024)
        }
        oid::TIME | oid::TIMESTAMP | oid::TIMESTAMPTZ | 1266 => match t.sql_name.split_once(' ') {
            Some((head, tail)) => format!("{head}({typmod}) {tail}"),
            None => t.sql_name.to_string(),
        },
        _ => t.sql_name.to_string(),
    }
}

/// The SQL spelling of an Arrow type for which nothing was declared.
pub fn sql_name_of(data_type: &DataType) -> String {
    let (oid, typmod) = oid_and_typmod(data_type, "");
    format_type(oid, typmod)
}

/// The canonical Arrow type of a type OID and typmod; none for types that Millstream does not store.
pub fn arrow_of(oid: u32, typmod: i32) -> Option<DataType> {
    if let Some(element) = element_of(oid) {
        return arrow_of(element.oid, typmod).map(|t| DataType::new_list(t, true));
    }
    Some(match oid {
        oid::BOOL => DataType::Boolean,
        oid::INT2 => DataType::Int16,
        oid::INT4 => DataType::Int32,
        oid::INT8 | oid::OID => DataType::Int64,
        oid::FLOAT4 => DataType::Float32,
        oid::FLOAT8 => DataType::Float64,
        oid::NUMERIC if typmod >= 4 => {
            let packed = typmod - 4;
            let (precision, scale) = (packed >> 16, ((packed & 0x7ff) ^ 1024) - 1024);
            DataType::Decimal128(u8::try_from(precision).ok()?, i8::try_from(scale).ok()?)
        }
        oid::NUMERIC => DataType::Decimal128(38, 18),
        oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::CHAR | oid::UNKNOWN => DataType::Utf8View,
        oid::BYTEA => DataType::Binary,
        oid::DATE => DataType::Date32,
        oid::TIME => DataType::Time64(TimeUnit::Microsecond),
        oid::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        oid::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        oid::INTERVAL => DataType::Interval(IntervalUnit::MonthDayNano),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_no_oid_repeats() {
        assert!(TYPES.windows(2).all(|w| w[0].oid < w[1].oid));
        let mut arrays: Vec<u32> = TYPES.iter().map(|t| t.array_oid).filter(|o| *o != 0).collect();
        let count = arrays.len();
        arrays.sort();
        arrays.dedup();
        assert_eq!(arrays.len(), count);
    }

    #[test]
    fn declared_types_are_written_back_as_postgres_writes_them() {
        for (declared, expected) in [
            ("varchar(10)", "character varying(10)"),
            ("VARCHAR", "character varying"),
            ("char", "character(1)"),
            ("numeric(10, 2)", "numeric(10,2)"),
            ("decimal(5)", "numeric(5,0)"),
            ("numeric", "numeric"),
            ("int[]", "integer[]"),
            ("numeric(4,1)[][]", "numeric(4,1)[]"),
            ("timestamp(3) with time zone", "timestamp(3) with time zone"),
            ("timestamptz", "timestamp with time zone"),
            ("double  precision", "double precision"),
            ("pg_catalog.int8", "bigint"),
        ] {
            let (oid, typmod) = parse(declared).unwrap();
            assert_eq!(format_type(oid, typmod), expected, "{declared}");
        }
        assert_eq!(parse("no_such_type"), None);
        assert_eq!(parse("int]"), None);
    }

    #[test]
    fn arrow_types_round_trip_through_oids() {
        for t in [
            DataType::Boolean,
            DataType::Int64,
            DataType::Decimal128(12, 3),
            DataType::Decimal128(38, 18),
            DataType::Utf8View,
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            DataType::new_list(DataType::Int32, true),
        ] {
            let (oid, typmod) = oid_and_typmod(&t, "");
            assert_eq!(arrow_of(oid, typmod), Some(t));
        }
    }
}
