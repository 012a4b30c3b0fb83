//! The sink `blackhole`: looks at every value and keeps nothing. For measuring what comes before a sink.

use checkpoint::CommitPermit;
use flow::hash::hash_columns;
use flow::{ChangeBatch, Epoch, Error, Result, SqlState};

use crate::options::{Form, OptionReader, OptionSpec, Options};
use crate::sink::{Delivery, SinkConnector, SinkRequest, SinkWriter};

/// `WITH (connector = 'blackhole')`.
pub struct BlackholeConnector;

/// The options of a blackhole sink, as documented in `docs/connectors/blackhole.md`.
pub static OPTIONS: &[OptionSpec] = &[OptionSpec {
    name: "connector",
    values: "blackhole",
    default: None,
    required: true,
    meaning: "Chooses this connector.",
}];

impl SinkConnector for BlackholeConnector {
    fn name(&self) -> &'static str {
        "blackhole"
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn forms(&self) -> &'static [Form] {
        &[]
    }

    fn validate(&self, request: &SinkRequest<'_>) -> Result<()> {
        OptionReader::new("sink connector \"blackhole\"", request.options, OPTIONS).map(|_| ())
    }

    fn open(&self, request: &SinkRequest<'_>) -> Result<Box<dyn SinkWriter>> {
        self.validate(request)?;
        Ok(Box::new(BlackholeWriter::default()))
    }

    fn delivery(&self, _options: &Options) -> Result<Delivery> {
        Ok(Delivery::AtLeastOnce)
    }

    fn resume(
        &self,
        request: &SinkRequest<'_>,
        _permit: &CommitPermit,
        prepared: &[u8],
    ) -> Result<Box<dyn SinkWriter>> {
        self.validate(request)?;
        let ([rows, sum], []) = prepared.as_chunks::<8>() else {
            return Err(Error::new(SqlState::DataCorrupted, "what a checkpoint holds of a blackhole sink is damaged"));
        };
        let (rows, sum) = (u64::from_le_bytes(*rows), u64::from_le_bytes(*sum));
        Ok(Box::new(BlackholeWriter { rows, sum, published: Epoch(0) }))
    }
}

/// Sums the stable hashes of rows times their weights: equal net content gives an equal sum, whatever the order.
#[derive(Debug, Default)]
pub struct BlackholeWriter {
    rows: u64,
    sum: u64,
    published: Epoch,
}

impl BlackholeWriter {
    /// The sum over all changes so far; 0 when everything was taken away again.
    pub fn checksum(&self) -> u64 {
        self.sum
    }
}

impl SinkWriter for BlackholeWriter {
    fn write(&mut self, _epoch: Epoch, change: &ChangeBatch) -> Result<()> {
        for (row, hash) in hash_columns(change.rows.columns(), change.num_rows())?.into_iter().enumerate() {
            self.sum = self.sum.wrapping_add(hash.wrapping_mul(change.weight(row) as u64));
        }
        self.rows += change.num_rows() as u64;
        Ok(())
    }

    fn finish_epoch(&mut self, epoch: Epoch, _now_us: i64) -> Result<()> {
        self.published = epoch;
        Ok(())
    }

    fn flush(&mut self, _now_us: i64) -> Result<()> {
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        tracing::info!(rows = self.rows, checksum = self.sum, "blackhole sink closed");
        Ok(())
    }

    /// Rows and checksum, 8 bytes each, little-endian.
    fn prepare(&mut self, _epoch: Epoch) -> Result<Vec<u8>> {
        Ok([self.rows, self.sum].map(u64::to_le_bytes).concat())
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
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, RecordBatch};

    use super::*;

    #[test]
    fn what_is_taken_away_again_leaves_no_trace() {
        let column = Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]));
        let rows = RecordBatch::try_from_iter([("a", column as _)]).unwrap();
        let mut writer = BlackholeWriter::default();
        writer.write(Epoch(1), &ChangeBatch::insert(rows.slice(0, 2))).unwrap();
        writer.write(Epoch(1), &ChangeBatch::insert(rows.slice(2, 1))).unwrap();
        assert_ne!(writer.checksum(), 0);
        writer.write(Epoch(2), &ChangeBatch::delete(rows)).unwrap();
        assert_eq!((writer.checksum(), writer.rows_written()), (0, 6));
    }
}
