//! `pg_type` and the static catalogs around types: ranges, collations, access methods, operator classes.

use std::collections::BTreeSet;

use catalog::types::{PgType, TYPES, oid};

use super::Fill;
use crate::system::Snapshot;
use crate::system::rows::Rows;

const PG_CATALOG: u32 = catalog::snapshot::PG_CATALOG_OID;
const OWNER: u32 = catalog::snapshot::BOOTSTRAP_ROLE_OID;
const DEFAULT_COLLATION: u32 = 100;
const C_COLLATION: u32 = 950;

pub fn filler(name: &str) -> Option<Fill> {
    Some(match name {
        "pg_type" => pg_type,
        "pg_range" => pg_range,
        "pg_collation" => pg_collation,
        "pg_am" => pg_am,
        "pg_opclass" => pg_opclass,
        "pg_language" => pg_language,
        "pg_tablespace" => pg_tablespace,
        _ => return None,
    })
}

/// `attcollation` of a column of this type; 0 for types without an order of text.
pub fn collation_of(type_oid: u32) -> u32 {
    match type_oid {
        oid::NAME => C_COLLATION,
        t if super::relations::is_text(t) => DEFAULT_COLLATION,
        _ => 0,
    }
}

/// Default btree operator classes: their OID, name, family and input type, as in PostgreSQL.
const BTREE_CLASSES: &[(u32, &str, u32, u32)] = &[
    (1978, "int4_ops", 1976, oid::INT4),
    (1979, "int2_ops", 1976, oid::INT2),
    (1981, "oid_ops", 1989, oid::OID),
    (3122, "date_ops", 434, oid::DATE),
    (3123, "float8_ops", 1970, oid::FLOAT8),
    (3124, "int8_ops", 1976, oid::INT8),
    (3125, "numeric_ops", 1988, oid::NUMERIC),
    (3126, "text_ops", 1994, oid::TEXT),
    (3127, "timestamptz_ops", 434, oid::TIMESTAMPTZ),
    (3128, "timestamp_ops", 434, oid::TIMESTAMP),
    (10003, "bool_ops", 424, oid::BOOL),
    (10004, "bpchar_ops", 426, oid::BPCHAR),
    (10006, "bytea_ops", 428, oid::BYTEA),
    (10007, "char_ops", 429, oid::CHAR),
    (10012, "float4_ops", 1970, oid::FLOAT4),
    (10022, "interval_ops", 1982, oid::INTERVAL),
    (10028, "name_ops", 1994, oid::NAME),
    (10038, "time_ops", 1996, oid::TIME),
];

/// The btree operator class that an index over this type uses; 0 when there is none.
pub fn btree_class_of(type_oid: u32) -> u32 {
    let type_oid = if type_oid == oid::VARCHAR { oid::TEXT } else { type_oid };
    BTREE_CLASSES.iter().find(|c| c.3 == type_oid).map_or(0, |c| c.0)
}

/// Names of the input, output, receive and send functions. PostgreSQL puts an underscore before the suffix for the types
/// that came later, and has a few names of their own.
fn io_functions(t: &PgType) -> [String; 4] {
    let with = |stem: &str, separator: &str| ["in", "out", "recv", "send"].map(|s| format!("{stem}{separator}{s}"));
    let missing = || "-".to_string();
    match t.name {
        "money" => with("cash", "_"),
        "refcursor" => with("text", ""),
        "aclitem" => ["aclitemin".into(), "aclitemout".into(), missing(), missing()],
        "any" | "anyelement" => [format!("{}_in", t.name), format!("{}_out", t.name), missing(), missing()],
        _ if t.kind == 'r' => with("range", "_"),
        "bool" | "bytea" | "char" | "name" | "int8" | "int2" | "int2vector" | "int4" | "regproc" | "text" | "oid"
        | "tid" | "xid" | "cid" | "oidvector" | "float4" | "float8" | "unknown" | "bpchar" | "varchar"
        | "regprocedure" | "regoper" | "regoperator" | "regclass" | "regtype" | "regnamespace" | "regrole"
        | "tsvector" | "tsquery" => with(t.name, ""),
        _ => with(t.name, "_"),
    }
}

/// The functions that `pg_type` names, each once.
pub fn io_function_names() -> BTreeSet<String> {
    let arrays = ["array_in", "array_out", "array_recv", "array_send"].map(String::from);
    TYPES.iter().flat_map(io_functions).chain(arrays).filter(|name| name != "-").collect()
}

fn pg_type(_: &Snapshot, rows: &mut Rows) {
    for t in TYPES {
        let [input, output, receive, send] = io_functions(t);
        let modified = matches!(
            t.name,
            "bpchar"
                | "varchar"
                | "time"
                | "timestamp"
                | "timestamptz"
                | "interval"
                | "timetz"
                | "bit"
                | "varbit"
                | "numeric"
        );
        let modifier = |suffix: &str| if modified { format!("{}typmod{suffix}", t.name) } else { "-".to_string() };
        // The vectors of the catalogs are arrays to those who ask for an element type.
        let element = match t.name {
            "int2vector" => oid::INT2,
            "oidvector" => oid::OID,
            "name" => oid::CHAR,
            _ => 0,
        };
        rows.push([
            ("oid", t.oid.into()),
            ("typname", t.name.into()),
            ("typnamespace", PG_CATALOG.into()),
            ("typowner", OWNER.into()),
            ("typlen", t.length.into()),
            ("typbyval", t.by_value().into()),
            ("typtype", t.kind.into()),
            ("typcategory", t.category.into()),
            ("typispreferred", t.preferred().into()),
            ("typisdefined", true.into()),
            ("typdelim", ",".into()),
            ("typelem", element.into()),
            ("typarray", t.array_oid.into()),
            ("typinput", input.into()),
            ("typoutput", output.into()),
            ("typreceive", receive.into()),
            ("typsend", send.into()),
            ("typmodin", modifier("in").into()),
            ("typmodout", modifier("out").into()),
            ("typalign", t.align.into()),
            ("typstorage", if t.length == -1 { "x" } else { "p" }.into()),
            ("typtypmod", (-1).into()),
            ("typcollation", collation_of(t.oid).into()),
        ]);
    }
    for t in TYPES.iter().filter(|t| t.array_oid != 0) {
        rows.push([
            ("oid", t.array_oid.into()),
            ("typname", format!("_{}", t.name).into()),
            ("typnamespace", PG_CATALOG.into()),
            ("typowner", OWNER.into()),
            ("typlen", (-1).into()),
            ("typtype", if t.kind == 'p' { "p" } else { "b" }.into()),
            ("typcategory", "A".into()),
            ("typisdefined", true.into()),
            ("typdelim", ",".into()),
            ("typsubscript", "array_subscript_handler".into()),
            ("typelem", t.oid.into()),
            ("typinput", "array_in".into()),
            ("typoutput", "array_out".into()),
            ("typreceive", "array_recv".into()),
            ("typsend", "array_send".into()),
            ("typanalyze", "array_typanalyze".into()),
            ("typalign", if t.align == 'd' { "d" } else { "i" }.into()),
            ("typstorage", "x".into()),
            ("typtypmod", (-1).into()),
            ("typcollation", collation_of(t.oid).into()),
        ]);
    }
}

fn pg_range(_: &Snapshot, rows: &mut Rows) {
    for (range, subtype, class) in [
        (3904, oid::INT4, 1978),
        (3906, oid::NUMERIC, 3125),
        (3908, oid::TIMESTAMP, 3128),
        (3910, oid::TIMESTAMPTZ, 3127),
        (3912, oid::DATE, 3122),
        (3926, oid::INT8, 3124),
    ] {
        rows.push([("rngtypid", range.into()), ("rngsubtype", subtype.into()), ("rngsubopc", class.into())]);
    }
}

fn pg_collation(_: &Snapshot, rows: &mut Rows) {
    for (number, name, provider) in [(DEFAULT_COLLATION, "default", "d"), (C_COLLATION, "C", "c"), (951, "POSIX", "c")]
    {
        let locale = (provider == "c").then_some(name);
        rows.push([
            ("oid", number.into()),
            ("collname", name.into()),
            ("collnamespace", PG_CATALOG.into()),
            ("collowner", OWNER.into()),
            ("collprovider", provider.into()),
            ("collisdeterministic", true.into()),
            ("collencoding", (-1).into()),
            ("collcollate", locale.into()),
            ("collctype", locale.into()),
        ]);
    }
}

fn pg_am(_: &Snapshot, rows: &mut Rows) {
    for (number, name, handler, kind) in [(2, "heap", "heap_tableam_handler", "t"), (403, "btree", "bthandler", "i")] {
        rows.push([
            ("oid", number.into()),
            ("amname", name.into()),
            ("amhandler", handler.into()),
            ("amtype", kind.into()),
        ]);
    }
}

fn pg_opclass(_: &Snapshot, rows: &mut Rows) {
    for (number, name, family, input) in BTREE_CLASSES {
        rows.push([
            ("oid", (*number).into()),
            ("opcmethod", 403.into()),
            ("opcname", (*name).into()),
            ("opcnamespace", PG_CATALOG.into()),
            ("opcowner", OWNER.into()),
            ("opcfamily", (*family).into()),
            ("opcintype", (*input).into()),
            ("opcdefault", true.into()),
        ]);
    }
}

fn pg_language(_: &Snapshot, rows: &mut Rows) {
    for (number, name, trusted) in [(12, "internal", false), (14, "sql", true)] {
        rows.push([
            ("oid", number.into()),
            ("lanname", name.into()),
            ("lanowner", OWNER.into()),
            ("lanispl", false.into()),
            ("lanpltrusted", trusted.into()),
        ]);
    }
}

fn pg_tablespace(_: &Snapshot, rows: &mut Rows) {
    for (number, name) in [(1663, "pg_default"), (1664, "pg_global")] {
        rows.push([("oid", number.into()), ("spcname", name.into()), ("spcowner", OWNER.into())]);
    }
}
