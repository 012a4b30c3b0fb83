//! The sink `stdout`: lines on the server's standard output, for trials and for `millstream run`.
//!
//! The lines of an epoch come out together, at its end. Where rows change or disappear, each line says `op` and `epoch` first.

use std::io::{ErrorKind, Write};

use checkpoint::CommitPermit;
use flow::{ChangeBatch, Epoch, Error, Result, SqlState};

use crate::format::Format;
use crate::format::encode::LineFormat;
use crate::format::records::{Content, FORMS, PRIMARY_KEY, Records, primary_key};
use crate::options::{Form, OptionReader, OptionSpec, Options};
use crate::sink::{Delivery, SinkConnector, SinkRequest, SinkWriter};

/// The options of a stdout sink, as documented in `docs/connectors/stdout.md`.
pub static OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "connector",
        values: "stdout",
        default: None,
        required: true,
        meaning: "Chooses this connector.",
    },
    OptionSpec {
        name: "format",
        values: "json, csv",
        default: Some("json"),
        required: false,
        meaning: "One JSON object a line, or CSV; also written ENCODE JSON or ENCODE CSV.",
    },
    PRIMARY_KEY,
];

/// `WITH (connector = 'stdout')`.
pub struct StdoutConnector;

fn records(request: &SinkRequest<'_>) -> Result<Records> {
    let reader = OptionReader::with_forms("sink connector \"stdout\"", request.options, OPTIONS)?;
    let format = reader.one_of("format", &[("json", Format::Json), ("csv", Format::Csv)])?;
    let format = match format {
        Format::Csv => LineFormat::Csv { delimiter: b',', null: String::new() },
        _ => LineFormat::Json,
    };
    let form = request.options.form();
    Records::new(request, format, Content::of(form, request.append_only), primary_key(&reader, form)?)
}

impl SinkConnector for StdoutConnector {
    fn name(&self) -> &'static str {
        "stdout"
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn forms(&self) -> &'static [Form] {
        FORMS
    }

    fn validate(&self, request: &SinkRequest<'_>) -> Result<()> {
        records(request).map(|_| ())
    }

    fn open(&self, request: &SinkRequest<'_>) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(LineWriter::new(std::io::stdout(), records(request)?)))
    }

    fn delivery(&self, _options: &Options) -> Result<Delivery> {
        Ok(Delivery::AtLeastOnce)
    }

    fn resume(
        &self,
        request: &SinkRequest<'_>,
        _permit: &CommitPermit,
        _prepared: &[u8],
    ) -> Result<Box<dyn SinkWriter>> {
        self.open(request)
    }
}

/// Writes the lines of each epoch at once.
struct LineWriter<W> {
    out: W,
    records: Records,
    buffer: Vec<u8>,
    /// Bytes of it that are out already.
    out_bytes: usize,
    /// The epoch whose lines are in the buffer to its end.
    finished: Epoch,
    published: Epoch,
    rows: u64,
}

impl<W: Write> LineWriter<W> {
    fn new(out: W, records: Records) -> LineWriter<W> {
        let (finished, published) = (Epoch(0), Epoch(0));
        LineWriter { out, records, buffer: Vec::new(), out_bytes: 0, finished, published, rows: 0 }
    }

    /// May be called again: no byte comes twice.
    fn put(&mut self) -> std::io::Result<()> {
        while self.out_bytes < self.buffer.len() {
            match self.out.write(&self.buffer[self.out_bytes..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => self.out_bytes += written,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.out.flush()
    }
}

impl<W: Write + Send> SinkWriter for LineWriter<W> {
    fn write(&mut self, epoch: Epoch, change: &ChangeBatch) -> Result<()> {
        self.rows += self.records.write(epoch, change, &mut self.buffer)?;
        Ok(())
    }

    fn finish_epoch(&mut self, epoch: Epoch, now_us: i64) -> Result<()> {
        self.rows += self.records.finish(epoch, now_us, &mut self.buffer, &mut |_| Ok(()))?;
        self.finished = epoch;
        self.make_up()
    }

    fn make_up(&mut self) -> Result<()> {
        self.put().map_err(|e| {
            let state = if e.kind() == ErrorKind::StorageFull { SqlState::DiskFull } else { SqlState::IoError };
            Error::new(state, format!("could not write to the standard output: {e}"))
        })?;
        self.buffer.clear();
        self.out_bytes = 0;
        self.published = self.finished;
        Ok(())
    }

    fn flush(&mut self, _now_us: i64) -> Result<()> {
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.buffer.clear();
        Ok(())
    }

    fn prepare(&mut self, _epoch: Epoch) -> Result<Vec<u8>> {
        // The lines are out.
        Ok(Vec::new())
    }

    fn commit(&mut self, _permit: &CommitPermit, _prepared: &[u8]) -> Result<()> {
        Ok(())
    }

    fn published(&self) -> Epoch {
        self.published
    }

    fn rows_written(&self) -> u64 {
        self.rows
    }

    fn state_bytes(&self) -> usize {
        self.buffer.capacity() + self.records.state_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, RecordBatch, StringViewArray};

    use super::*;

    fn rows() -> RecordBatch {
        let a = Arc::new(Int64Array::from(vec![Some(1), None]));
        let b = Arc::new(StringViewArray::from(vec!["x,y", "z"]));
        RecordBatch::try_from_iter_with_nullable([("a", a as _, true), ("b", b as _, true)]).unwrap()
    }

    fn written(options: &[(&str, &str)], append_only: bool, changes: &[(u64, ChangeBatch)]) -> String {
        let options = Options::new([("connector", "stdout")].iter().chain(options).map(|(k, v)| (*k, *v))).unwrap();
        let request = SinkRequest {
            options: &options,
            schema: rows().schema(),
            append_only,
            keys: &[],
            relation: "r",
            identity: "",
            attempt: 0,
        };
        let mut writer = LineWriter::new(Vec::new(), records(&request).unwrap());
        for (epoch, change) in changes {
            writer.write(Epoch(*epoch), change).unwrap();
            assert!(writer.published() < Epoch(*epoch));
            writer.finish_epoch(Epoch(*epoch), 0).unwrap();
        }
        // What belongs to no finished epoch never comes out.
        writer.write(Epoch(99), &ChangeBatch::insert(rows())).unwrap();
        writer.close().unwrap();
        String::from_utf8(writer.out).unwrap()
    }

    #[test]
    fn lines_come_at_the_end_of_their_epoch() {
        let one = [(3, ChangeBatch::insert(rows()))];
        assert_eq!(written(&[], true, &one), "{\"a\":1,\"b\":\"x,y\"}\n{\"a\":null,\"b\":\"z\"}\n");
        assert_eq!(written(&[("format", "csv")], true, &one), "1,\"x,y\"\n,z\n");
        let both = [(3, ChangeBatch::insert(rows().slice(0, 1))), (4, ChangeBatch::delete(rows().slice(0, 1)))];
        assert_eq!(written(&[("format", "csv")], false, &both), "insert,3,1,\"x,y\"\ndelete,4,1,\"x,y\"\n");
    }

    #[test]
    fn wrong_options_are_refused() {
        let refused = |pairs: &[(&str, &str)]| {
            let options = Options::new(pairs.iter().copied()).unwrap();
            let request = SinkRequest {
                options: &options,
                schema: rows().schema(),
                append_only: true,
                keys: &[],
                relation: "r",
                identity: "",
                attempt: 0,
            };
            StdoutConnector.validate(&request).err().unwrap().state().code().to_string()
        };
        assert_eq!(refused(&[("connector", "stdout"), ("format", "xml")]), "22023");
        assert_eq!(refused(&[("connector", "stdout"), ("path", "x")]), "42704");
    }
}
