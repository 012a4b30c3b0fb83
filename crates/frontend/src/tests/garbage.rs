//! Values made of anything: read or refused, never a panic; and whatever was read can be written and read again.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};

use super::fake::schema_named;
use crate::decode::binary::decode_column;
use crate::decode::parse_column;
use crate::encode::{Format, RowEncoder};
use crate::types::PgType;
use crate::{DateOrder, DateStyle, IntervalStyle, TextSettings, TimeZone};

const TYPES: [&str; 22] = [
    "bool",
    "int2",
    "int4",
    "int8",
    "oid",
    "float4",
    "float8",
    "numeric",
    "numeric(10,2)",
    "text",
    "bytea",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "interval",
    "json",
    "uuid",
    "int4[]",
    "text[]",
    "numeric[]",
    "timestamptz[]",
];

/// Pieces that look like parts of values.
const PIECES: [&str; 46] = [
    "1",
    "0",
    "9",
    "99",
    "2024",
    "-",
    "+",
    ".",
    ":",
    "/",
    ",",
    " ",
    "T",
    "Z",
    "e",
    "E",
    "P",
    "M",
    "Jan",
    "day",
    "days",
    "mon",
    "year",
    "ago",
    "BC",
    "pm",
    "infinity",
    "NaN",
    "epoch",
    "now",
    "{",
    "}",
    "\"",
    "\\",
    "\\x",
    "NULL",
    "t",
    "ä",
    "\u{1F600}",
    "UTC",
    "Europe/Berlin",
    "@",
    "000000",
    "12345678901234567890",
    "24:00:00",
    "02-30",
];

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

fn settings(random: &mut Random) -> TextSettings {
    let zones = ["UTC", "Europe/Berlin", "America/St_Johns", "+05:30", "Australia/Lord_Howe", "Pacific/Apia"];
    let styles = [DateStyle::Iso, DateStyle::Sql, DateStyle::Postgres, DateStyle::German];
    let orders = [DateOrder::Mdy, DateOrder::Dmy, DateOrder::Ymd];
    let intervals =
        [IntervalStyle::Postgres, IntervalStyle::PostgresVerbose, IntervalStyle::SqlStandard, IntervalStyle::Iso8601];
    TextSettings {
        time_zone: TimeZone::parse(zones[random.below(zones.len())]).unwrap(),
        date_style: styles[random.below(styles.len())],
        date_order: orders[random.below(orders.len())],
        interval_style: intervals[random.below(intervals.len())],
        now_us: Some(1_700_000_000_000_000),
        ..TextSettings::default()
    }
}

/// Writes the one value of `array` in both forms; the binary one must come back as it was.
fn check_output(type_name: &str, array: ArrayRef, settings: TextSettings) {
    let schema = schema_named(type_name);
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![array]).unwrap();
    for format in [Format::Text, Format::Binary] {
        let mut row = Vec::new();
        let rows = RowEncoder::new(&schema, &[format], settings).bind(&batch).unwrap();
        rows.write_data_row(0, &mut row).unwrap();
        // Text forms of uuid that are none have no binary form of sixteen bytes.
        if format == Format::Binary && type_name != "uuid" {
            let oid = PgType::of_field(schema.field(0)).oid;
            let cell = (row[7..11] != [0xff; 4]).then_some(&row[11..]);
            let back = decode_column(std::iter::once(cell), oid, schema.field(0).data_type());
            assert_eq!(&back.unwrap(), batch.column(0), "{type_name}");
        }
    }
}

#[test]
fn any_text_is_read_or_refused() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut read = 0;
    for _ in 0..60_000 {
        // An oid of 64 bits, which text can give, has no binary form.
        let type_name = Some(TYPES[random.below(TYPES.len())]).filter(|name| *name != "oid").unwrap_or("int8");
        let schema = schema_named(type_name);
        let text: String = (0..random.below(9)).map(|_| PIECES[random.below(PIECES.len())]).collect();
        let settings = settings(&mut random);
        let cells = std::iter::once(Some(Cow::Borrowed(text.as_bytes())));
        if let Ok(array) = parse_column(schema.field(0).data_type(), cells, &settings) {
            read += 1;
            check_output(type_name, array, settings);
        }
    }
    assert!(read > 5_000, "{read}");
}

#[test]
fn any_bytes_are_read_or_refused() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut read = 0;
    for _ in 0..60_000 {
        let type_name = TYPES[random.below(TYPES.len())];
        let schema = schema_named(type_name);
        let lengths = [0, 1, 2, 4, 8, 16, 12, 20, 28, random.below(40)];
        let length = lengths[random.below(lengths.len())];
        let wild = random.below(2) == 0;
        let bytes: Vec<u8> = (0..length)
            .map(|_| if wild { random.below(256) } else { [0, 0, 0, 1, 2, 23, 0xff][random.below(7)] } as u8)
            .collect();
        let oid = PgType::of_field(schema.field(0)).oid;
        if let Ok(array) = decode_column(std::iter::once(Some(&bytes[..])), oid, schema.field(0).data_type()) {
            read += 1;
            let settings = settings(&mut random);
            check_output(type_name, array, settings);
        }
    }
    assert!(read > 5_000, "{read}");
}
