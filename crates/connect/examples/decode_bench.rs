//! Throughput of the file source: rows a CPU-second of CSV and NDJSON, all columns and two of them. Best of three.
//!
//! `cargo run --release -p millstream-connect --example decode_bench [ROWS]`

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use connect::{Offset, Options, ReadState, Split};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rows: u64 = std::env::args().nth(1).map_or(Ok(1_000_000), |a| a.parse())?;
    let folder = std::env::temp_dir().join(format!("decode_bench_{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = run(&folder, rows);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn run(folder: &Path, rows: u64) -> Result<(), Box<dyn std::error::Error>> {
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("customer", DataType::Utf8View, true),
        Field::new("amount", DataType::Decimal128(12, 2), true),
        Field::new("quantity", DataType::Int32, true),
        Field::new("score", DataType::Float64, true),
        Field::new("paid", DataType::Boolean, true),
        Field::new("ordered_at", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        Field::new("note", DataType::Utf8View, true),
    ]));
    for format in ["csv", "json"] {
        let path = folder.join(format!("orders.{format}"));
        generate(&path, format, rows)?;
        let bytes = std::fs::metadata(&path)?.len();
        let options = Options::new([("connector", "file"), ("format", format), ("path", &path.to_string_lossy())])?;
        let source = connect::source("file")?.open(&options, &schema)?;
        for (what, columns) in [("8 of 8 columns", None), ("2 of 8 columns", Some(&[0usize, 2][..]))] {
            let mut best = f64::MAX;
            for _ in 0..3 {
                let mut reader = source.reader(&Split("0".into()), columns)?;
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
            let (rate, speed) = (rows as f64 / best / 1e6, bytes as f64 / best / 1e6);
            println!("{format:4} {what}: {rate:.2} M rows/s, {speed:.0} MB/s ({} bytes a row)", bytes / rows);
        }
    }
    Ok(())
}

/// Time that this thread was on a processor: other load on the machine does not count.
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos: u64 = stat.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(nanos as f64 / 1e9)
}

/// Orders with texts of several lengths, now and then a quoted one or none.
fn generate(path: &Path, format: &str, rows: u64) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    for id in 0..rows {
        let mix = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
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
        match format {
            "csv" => {
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
