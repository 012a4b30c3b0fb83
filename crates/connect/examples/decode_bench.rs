//! Throughput of the file source on one thread: CPU-nanoseconds a row of CSV and NDJSON, all columns and some of them. Best of five.
//!
//! `cargo run --release -p millstream-connect --example decode_bench [ROWS] [CASE]`; CASE: `orders.csv`, `orders.json`, `bids.json`

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use connect::{Offset, Options, ReadState};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rows: u64 = std::env::args().nth(1).map_or(Ok(1_000_000), |a| a.parse())?;
    let only = std::env::args().nth(2);
    let folder = std::env::temp_dir().join(format!("decode_bench_{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = run(&folder, rows, only.as_deref());
    std::fs::remove_dir_all(&folder)?;
    result
}

/// What is read: its name, which is also the file's, and the columns of each measurement.
struct Case {
    name: &'static str,
    schema: SchemaRef,
    projections: &'static [Option<&'static [usize]>],
}

fn cases() -> Vec<Case> {
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, None);
    let orders: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("customer", DataType::Utf8View, true),
        Field::new("amount", DataType::Decimal128(12, 2), true),
        Field::new("quantity", DataType::Int32, true),
        Field::new("score", DataType::Float64, true),
        Field::new("paid", DataType::Boolean, true),
        Field::new("ordered_at", timestamp.clone(), true),
        Field::new("note", DataType::Utf8View, true),
    ]));
    let bids: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("auction", DataType::Int64, true),
        Field::new("bidder", DataType::Int64, true),
        Field::new("price", DataType::Int64, true),
        Field::new("channel", DataType::Utf8View, true),
        Field::new("url", DataType::Utf8View, true),
        Field::new("date_time", timestamp, true),
        Field::new("extra", DataType::Utf8View, true),
    ]));
    let some_orders: &[Option<&[usize]>] = &[None, Some(&[0, 2])];
    vec![
        Case { name: "orders.csv", schema: Arc::clone(&orders), projections: some_orders },
        Case { name: "orders.json", schema: orders, projections: some_orders },
        Case { name: "bids.json", schema: bids, projections: &[None, Some(&[0, 2, 5]), Some(&[0, 2]), Some(&[0, 4])] },
    ]
}

fn run(folder: &Path, rows: u64, only: Option<&str>) -> Result<(), Box<dyn std::error::Error>> {
    for case in cases().iter().filter(|c| only.is_none_or(|o| o == c.name)) {
        let path = folder.join(case.name);
        generate(&path, case.name, rows)?;
        let bytes = std::fs::metadata(&path)?.len();
        let format = if case.name.ends_with("csv") { "csv" } else { "json" };
        // With 'skip' all columns are checked, also those that are not wanted.
        let measurements = case.projections.iter().flat_map(|c| [("skip", c), ("stop", c)]);
        for (on_error, columns) in measurements.filter(|(o, c)| c.is_some() || *o == "skip") {
            let path = path.to_string_lossy();
            let options = [("connector", "file"), ("format", format), ("path", &path), ("on_error", on_error)];
            let source = connect::source("file")?.open(&Options::new(options)?, &case.schema)?;
            let mut best = f64::MAX;
            for _ in 0..5 {
                let mut reader = source.reader(&source.splits()?[0], *columns)?;
                let start = cpu_seconds()?;
                let (mut at, mut count) = (Offset::START, 0);
                loop {
                    let outcome = reader.read(at, 8192, 4 << 20, None)?;
                    count += std::hint::black_box(outcome.batch).num_rows() as u64;
                    at = outcome.next;
                    if outcome.state == ReadState::End {
                        break;
                    }
                }
                assert_eq!(count, rows);
                best = best.min(cpu_seconds()? - start);
            }
            let all: Vec<usize> = (0..case.schema.fields().len()).collect();
            let names =
                |c: &[usize]| c.iter().map(|i| case.schema.field(*i).name().as_str()).collect::<Vec<_>>().join(" ");
            let what = columns.map_or_else(|| format!("all {}", all.len()), names);
            println!(
                "{:11} {on_error} {what}: {:.0} ns a row, {:.2} M rows/s, {:.0} MB/s ({} bytes a row)",
                case.name,
                best * 1e9 / rows as f64,
                rows as f64 / best / 1e6,
                bytes as f64 / best / 1e6,
                bytes / rows
            );
        }
        std::fs::remove_file(&path)?;
    }
    Ok(())
}

/// Time that this thread was on a processor: other load on the machine does not count.
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos: u64 = stat.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(nanos as f64 / 1e9)
}

/// Orders with texts of several lengths, now and then a quoted one or none; or bids, as Nexmark makes them.
fn generate(path: &Path, case: &str, rows: u64) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    for id in 0..rows {
        let mix = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        if case == "bids.json" {
            bid(&mut out, id, mix)?;
            continue;
        }
        let (cents, quantity) = (mix % 10_000_000, mix % 50);
        let (hour, minute, second) = (id / 3_600 % 24, id / 60 % 60, id % 60);
        let score = (mix % 1_000_003) as f64 / 997.0;
        let note = match mix % 8 {
            0 => "",
            1 => "please ring twice at the back door",
            _ => "standard",
        };
        let (whole, part, customer) = (cents / 100, cents % 100, mix % 100_000);
        let (at, paid) =
            (format_args!("2024-03-05T{hour:02}:{minute:02}:{second:02}.{:06}", mix % 1_000_000), mix % 3 == 0);
        match case {
            "orders.csv" => {
                let quote = if mix % 16 == 1 { "\"" } else { "" };
                writeln!(
                    out,
                    "{id},customer-{customer},{whole}.{part:02},{quantity},{score},{paid},{at},{quote}{note}{quote}"
                )?;
            }
            _ => writeln!(
                out,
                "{{\"id\":{id},\"customer\":\"customer-{customer}\",\"amount\":{whole}.{part:02},\"quantity\":{quantity},\"score\":{score},\"paid\":{paid},\"ordered_at\":\"{at}\",\"note\":\"{note}\"}}"
            )?,
        }
    }
    out.flush()
}

/// About 245 bytes: ids and prices of different lengths, few channels, urls of one length, 60 to 76 letters of padding.
fn bid(out: &mut impl Write, id: u64, mix: u64) -> std::io::Result<()> {
    let (auction, bidder, price) =
        (1_000 + id / 3 + mix % 100, 1_000 + mix % 10_000, 100 + mix % 10u64.pow(3 + (mix >> 40) as u32 % 5));
    let channel = ["Google", "Facebook", "Baidu", "Apple", "channel-1234"][(mix >> 20) as usize % 5];
    let mut letters = [0u8; 92];
    for (i, letter) in letters.iter_mut().enumerate() {
        *letter = b'a' + ((mix >> (i % 40)) as usize + i * 7) as u8 % 26;
    }
    let letters = std::str::from_utf8(&letters).unwrap_or_default();
    let (a, b, c, extra) =
        (&letters[..5], &letters[5..10], &letters[10..15], &letters[15..75 + (mix >> 8) as usize % 17]);
    let (minute, second, milli) = (id / 600_000 % 60, id / 10_000 % 60, id / 10 % 1_000);
    writeln!(
        out,
        "{{\"auction\":{auction},\"bidder\":{bidder},\"price\":{price},\"channel\":\"{channel}\",\"url\":\"https://www.nexmark.com/{a}/{b}/{c}/item.htm?query=1\",\"date_time\":\"2015-07-15 00:{minute:02}:{second:02}.{milli:03}\",\"extra\":\"{extra}\"}}"
    )
}
