//! Every type against what PostgreSQL 15 itself printed and sent, as recorded in `postgres_15.tsv`.
//!
//! Columns of the file: settings (`name=value` joined by semicolons), type, literal, binary form in hexadecimal, text form;
//! or in place of the last two an exclamation mark with the SQLSTATE, and the message. Made by running, for each line,
//! `SELECT encode(typesend('literal'::type), 'hex'), concat('literal'::type)`.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::RecordBatch;

use super::fake::schema_named;
use crate::decode::{decode_parameter, parse_column};
use crate::encode::{Format, RowEncoder};
use crate::settings::{FloatDigits, parse_date_style};
use crate::types::PgType;
use crate::{ByteaOutput, IntervalStyle, TextSettings, TimeZone};

/// Literals whose outcome differs from PostgreSQL's: Arrow counts microseconds from 1970 and so ends in the year 294247, and
/// an array column has a fixed number of dimensions.
const DIFFERENT: &[(&str, &str)] = &[
    ("timestamp", "294276-12-31 23:59:59.999999"),
    ("timestamptz", "294276-12-31 23:00:00+00"),
    ("int4[]", "{{1,2},{3,4}}"),
];

fn settings_of(text: &str) -> TextSettings {
    let mut settings = TextSettings::default();
    for (name, value) in text.split(';').filter_map(|s| s.split_once('=')) {
        match name {
            "timezone" => settings.time_zone = TimeZone::parse(value).unwrap(),
            "datestyle" => {
                let parsed = parse_date_style(value, settings.date_style, settings.date_order).unwrap();
                (settings.date_style, settings.date_order) = parsed;
            }
            "intervalstyle" => settings.interval_style = IntervalStyle::parse(value).unwrap(),
            "bytea_output" => settings.bytea_output = ByteaOutput::parse(value).unwrap(),
            "extra_float_digits" => settings.extra_float_digits = FloatDigits::parse(value).unwrap(),
            other => panic!("{other}"),
        }
    }
    settings
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// (binary in hexadecimal, text), or (`!` and SQLSTATE, message), as in the file.
fn ours(settings: &TextSettings, type_name: &str, literal: &str) -> (String, String) {
    let schema = schema_named(type_name);
    let cells = std::iter::once(Some(Cow::Borrowed(literal.as_bytes())));
    let array = match parse_column(schema.field(0).data_type(), cells, settings) {
        Ok(array) => array,
        Err(bad) => return (format!("!{}", bad.error.state().code()), bad.error.message().to_string()),
    };
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![array]).unwrap();
    let value = |format: Format| {
        let mut row = Vec::new();
        let rows = RowEncoder::new(&schema, &[format], *settings).bind(&batch).unwrap();
        rows.write_data_row(0, &mut row).unwrap();
        assert_eq!(row.len(), 1 + u32::from_be_bytes(row[1..5].try_into().unwrap()) as usize);
        row.split_off(11)
    };
    let binary = value(Format::Binary);
    // What has been sent in binary can be received in binary.
    let oid = PgType::of_field(schema.field(0)).oid;
    let target = schema.field(0).data_type();
    let back = decode_parameter(Some(&binary), Format::Binary, oid, target, settings).unwrap();
    assert_eq!(&back, batch.column(0), "{type_name} {literal}");
    (hex(&binary), String::from_utf8(value(Format::Text)).unwrap())
}

#[test]
fn values_are_read_and_written_as_by_postgres() {
    let mut differences = Vec::new();
    let mut lines = 0;
    for line in include_str!("postgres_15.tsv").lines() {
        let [settings, type_name, literal, binary, text] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let unescape = |s: &str| s.replace("\\t", "\t");
        let expected = (binary.to_string(), unescape(text));
        let found = ours(&settings_of(settings), type_name, &unescape(literal));
        if found != expected && !DIFFERENT.contains(&(type_name, literal)) {
            differences.push(format!("{settings} {type_name} {literal:?}: {found:?}, Postgres has {expected:?}"));
        }
        lines += 1;
    }
    assert!(lines > 700);
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
}
