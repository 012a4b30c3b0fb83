//! Writes the events of the `nexmark` source to files, one for each of person, auction and bid, with all of their columns.
//!
//! `cargo run --release -p millstream-connect --example nexmark_files -- FOLDER ndjson|csv|parquet [EVENTS] [EVENT_RATE]`

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use arrow::array::RecordBatch;
use connect::format::encode::{Encoder, Lead, LineFormat};
use connect::{Offset, Options, ReadState};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "nexmark_files FOLDER ndjson|csv|parquet [EVENTS] [EVENT_RATE]";
/// Rows and bytes that are made at a time.
const ROWS: usize = 8192;
const BYTES: usize = 64 << 20;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(folder), Some(format)) = (args.first(), args.get(1)) else { return Err(USAGE.into()) };
    let events: u64 = args.get(2).map_or(Ok(10_000_000), |a| a.parse())?;
    let event_rate: u64 = args.get(3).map_or(Ok(10_000), |a| a.parse())?;
    std::fs::create_dir_all(folder)?;
    for table in ["person", "auction", "bid"] {
        write(Path::new(folder), format, table, events, event_rate)?;
    }
    Ok(())
}

/// Writes one table under another name first, so that a file that is there is whole.
fn write(folder: &Path, format: &str, table: &str, events: u64, event_rate: u64) -> Result<()> {
    let connector = connect::source("nexmark")?;
    let (events, event_rate) = (events.to_string(), event_rate.to_string());
    let pairs = [("connector", "nexmark"), ("table", table), ("events", &events), ("event_rate", &event_rate)];
    let options = Options::new(pairs)?;
    let schema = connector.infer_schema(&options, 0)?;
    let source = connector.open(&options, &schema)?;
    let (path, part) = (folder.join(format!("{table}.{format}")), folder.join(format!("{table}.{format}.part")));
    let file = BufWriter::with_capacity(1 << 20, File::create(&part)?);
    let mut writer = match format {
        "parquet" => {
            let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
            Writer::Parquet(Box::new(ArrowWriter::try_new(file, schema.clone(), Some(properties))?))
        }
        "ndjson" => Writer::Lines(Encoder::new(&schema, LineFormat::Json, &[])?, file, Vec::new()),
        "csv" => {
            let format = LineFormat::Csv { delimiter: b',', null: String::new() };
            let encoder = Encoder::new(&schema, format, &[])?;
            let mut header = Vec::new();
            encoder.header(&mut header);
            Writer::Lines(encoder, file, header)
        }
        _ => return Err(USAGE.into()),
    };
    let mut written = 0u64;
    for split in source.splits()? {
        let mut reader = source.reader(&split, None)?;
        let mut at = Offset::START;
        loop {
            let outcome = reader.read(at, ROWS, BYTES, None)?;
            writer.rows(&outcome.batch)?;
            at = outcome.next;
            let before = written;
            written += outcome.batch.num_rows() as u64;
            if written / 1_000_000 > before / 1_000_000 {
                let progress = reader.progress();
                eprint!("\r{table}: {written} rows, {}% of the events", progress.done * 100 / progress.total.max(1));
            }
            if outcome.state == ReadState::End {
                break;
            }
        }
    }
    writer.finish()?;
    std::fs::rename(&part, &path)?;
    eprintln!("\r{table}: {written} rows, {} MB in {}", std::fs::metadata(&path)?.len() / 1_000_000, path.display());
    Ok(())
}

enum Writer {
    Lines(Encoder, BufWriter<File>, Vec<u8>),
    Parquet(Box<ArrowWriter<BufWriter<File>>>),
}

impl Writer {
    fn rows(&mut self, batch: &RecordBatch) -> Result<()> {
        match self {
            Writer::Lines(encoder, file, lines) => {
                encoder.rows(batch, |_| 1, |_| -> [Lead<'_>; 0] { [] }, lines)?;
                file.write_all(lines)?;
                lines.clear();
            }
            Writer::Parquet(writer) => writer.write(batch)?,
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        match self {
            Writer::Lines(_, mut file, lines) => {
                file.write_all(&lines)?;
                file.flush()?;
            }
            Writer::Parquet(writer) => {
                writer.close()?;
            }
        }
        Ok(())
    }
}
