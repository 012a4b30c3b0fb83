//! Random rows of every type through the sink's text and back through the source.

use arrow::array::*;
use arrow::datatypes::*;
use connect::SinkRequest;
use flow::{ChangeBatch, Epoch};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

const COLUMNS: &[(&str, &str)] = &[
    ("b", "bool"),
    ("i2", "int2"),
    ("i4", "int4"),
    ("i8", "int8"),
    ("f4", "float4"),
    ("f8", "float8"),
    ("n", "numeric(10,2)"),
    ("nn", "numeric"),
    ("t", "text"),
    ("odd \"name\", é", "text"),
    ("y", "bytea"),
    ("d", "date"),
    ("tm", "time"),
    ("ts", "timestamp"),
    ("tz", "timestamptz"),
    ("iv", "interval"),
    ("a", "int4[]"),
    ("at", "text[]"),
    ("ad", "timestamp[]"),
];

fn text(rng: &mut SmallRng) -> String {
    let pieces = [
        "a",
        "",
        "\"",
        ",",
        "\n",
        "\r",
        "\\",
        "é",
        "😀",
        "{",
        "}",
        "NULL",
        " ",
        "\t",
        "\u{1}",
        "long enough to leave the view",
        "\\x00",
        "1",
    ];
    (0..rng.random_range(0..5)).map(|_| pieces[rng.random_range(0..pieces.len())]).collect()
}

fn maybe<T>(rng: &mut SmallRng, make: impl Fn(&mut SmallRng) -> T) -> Option<T> {
    (rng.random_range(0..5) > 0).then(|| make(rng))
}

pub(crate) fn column(rng: &mut SmallRng, data_type: &DataType, rows: usize) -> ArrayRef {
    /// From year 1 to year 9999.
    fn moment(r: &mut SmallRng) -> i64 {
        let us = r.random_range(-62_135_596_800_000_000i64..253_402_300_800_000_000);
        if r.random() { us } else { us - us.rem_euclid(1_000_000) }
    }
    macro_rules! primitive {
        ($t:ty, $make:expr) => {
            Arc::new(
                (0..rows).map(|_| maybe(rng, $make)).collect::<PrimitiveArray<$t>>().with_data_type(data_type.clone()),
            )
        };
    }
    match data_type {
        DataType::Boolean => Arc::new((0..rows).map(|_| maybe(rng, |r| r.random::<bool>())).collect::<BooleanArray>()),
        DataType::Int16 => primitive!(Int16Type, |r| r.random()),
        DataType::Int32 => primitive!(Int32Type, |r| r.random()),
        DataType::Int64 => primitive!(Int64Type, |r| if r.random() { r.random() } else { r.random_range(-100..100) }),
        DataType::Float32 => primitive!(Float32Type, |r| match r.random_range(0..4) {
            0 => f32::INFINITY,
            1 => r.random_range(-9..9) as f32,
            // Any finite bit pattern.
            _ => Some(f32::from_bits(r.random())).filter(|v| v.is_finite()).unwrap_or(-0.5),
        }),
        DataType::Float64 => primitive!(Float64Type, |r| match r.random_range(0..4) {
            0 => f64::NEG_INFINITY,
            1 => r.random_range(-9..9) as f64,
            _ => Some(f64::from_bits(r.random())).filter(|v| v.is_finite()).unwrap_or(-0.5),
        }),
        DataType::Decimal128(p, _) => {
            let limit = 10i128.pow(u32::from(*p));
            primitive!(Decimal128Type, |r| if r.random() {
                r.random_range(1 - limit..limit)
            } else {
                r.random_range(-999..999)
            })
        }
        DataType::Utf8View => Arc::new((0..rows).map(|_| maybe(rng, text)).collect::<StringViewArray>()),
        DataType::Binary => {
            let bytes = |r: &mut SmallRng| (0..r.random_range(0..9)).map(|_| r.random()).collect::<Vec<u8>>();
            Arc::new((0..rows).map(|_| maybe(rng, bytes)).collect::<BinaryArray>())
        }
        DataType::Date32 => primitive!(Date32Type, |r| (moment(r).div_euclid(86_400_000_000)) as i32),
        DataType::Time64(_) => primitive!(Time64MicrosecondType, |r| r.random_range(0..86_400_000_000)),
        DataType::Timestamp(..) => primitive!(TimestampMicrosecondType, moment),
        DataType::Interval(_) => primitive!(IntervalMonthDayNanoType, |r| IntervalMonthDayNano::new(
            r.random_range(-99..99),
            r.random_range(-99..99),
            r.random_range(-99_999_999_999i64..99_999_999_999) * 1_000,
        )),
        DataType::List(item) => {
            let lengths: Vec<Option<usize>> = (0..rows).map(|_| maybe(rng, |r| r.random_range(0..4))).collect();
            let items = column(rng, item.data_type(), lengths.iter().flatten().sum());
            let offsets = arrow::buffer::OffsetBuffer::from_lengths(lengths.iter().map(|l| l.unwrap_or(0)));
            let nulls = lengths.iter().map(Option::is_some).collect::<Vec<bool>>().into();
            Arc::new(ListArray::new(item.clone(), offsets, items, Some(nulls)))
        }
        other => panic!("no random values of {other}"),
    }
}

#[test]
fn what_the_sink_writes_the_source_reads() {
    let schema = schema(COLUMNS);
    let folder = Folder::new();
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let rows = rng.random_range(0..60);
        let columns = schema.fields().iter().map(|f| column(&mut rng, f.data_type(), rows)).collect();
        let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
        for (format, extra) in [
            ("csv", vec![("header", "true")]),
            ("csv", vec![("header", "true"), ("delimiter", ";"), ("null", "NULL")]),
            ("csv", vec![("header", "true"), ("delimiter", "-"), ("null", "\\N")]),
            ("json", vec![]),
        ] {
            let path = folder.path("rows");
            let pairs = [&[("format", format)], &extra[..]].concat();
            let options = options(&path, &pairs);
            let request = SinkRequest {
                options: &options,
                schema: schema.clone(),
                append_only: true,
                keys: &[],
                relation: "r",
                identity: "",
                attempt: 0,
            };
            let mut writer = connect::sink("file").unwrap().open(&request).unwrap();
            let half = rows / 2;
            writer.write(Epoch(1), &ChangeBatch::insert(batch.slice(0, half))).unwrap();
            writer.write(Epoch(1), &ChangeBatch::insert(batch.slice(half, rows - half))).unwrap();
            writer.finish_epoch(Epoch(1), 0).unwrap();
            assert_eq!((writer.published(), writer.rows_written()), (Epoch(1), rows as u64));
            writer.close().unwrap();
            let (read, bad) = read_all(&mut *reader(&path, &pairs, &schema));
            assert_eq!(bad, []);
            for (c, (got, want)) in read.columns().iter().zip(batch.columns()).enumerate() {
                assert_eq!(got, want, "seed {seed} {format} {extra:?} column {}", COLUMNS[c].0);
            }
            if format == "json" {
                for line in std::fs::read_to_string(&path).unwrap().lines() {
                    assert!(serde_json::from_str::<serde_json::Value>(line).unwrap().is_object());
                }
            }
        }
    }
}
