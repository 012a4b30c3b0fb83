//! Sending the rows of a result, all at once or so many at a time.

use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::{FutureExt, StreamExt};

use crate::backend::{BatchStream, RowsTag};
use crate::cancel::CancelHandle;
use crate::encode::{BatchRows, Format, RowEncoder};
use crate::failure::Failure;
use crate::settings::TextSettings;
use crate::transport::{FLUSH_BYTES, Transport};

/// How long rows may wait in the buffer for more to come. Long enough that a short query ends within it, so that its
/// answer is one write; short enough that nobody sees the rows of a subscription late.
const FLUSH_DELAY: Duration = Duration::from_millis(2);

/// A result that is being read.
pub(crate) struct RowSource {
    batches: BatchStream,
    encoder: RowEncoder,
    tag: RowsTag,
    /// The batch at hand and the next row of it.
    current: Option<(BatchRows, usize)>,
}

/// How far a call of [`RowSource::send`] came, with the number of rows that it sent.
pub(crate) enum Sent {
    /// As many as were asked for; there may be more.
    Limit,
    /// To the end; the command tag.
    End(String),
}

/// Waits for the next batch. What has been written to the buffer goes out if that takes time.
pub(crate) async fn next_batch(
    batches: &mut BatchStream,
    transport: &mut Transport,
    cancel: &CancelHandle,
) -> Result<Option<RecordBatch>, Failure> {
    cancel.check()?;
    if let Some(ready) = batches.next().now_or_never() {
        return Ok(ready.transpose()?);
    }
    let mut next = batches.next();
    loop {
        tokio::select! {
            biased;
            batch = &mut next => return Ok(batch.transpose()?),
            error = cancel.stopped() => return Err(error.into()),
            () = transport.disconnected() => return Err(Failure::Disconnected),
            () = tokio::time::sleep(FLUSH_DELAY), if transport.has_output() => transport.flush().await?,
        }
    }
}

/// Writes what is in the buffer; a client that does not read can still be stopped.
pub(crate) async fn flush_or_stop(transport: &mut Transport, cancel: &CancelHandle) -> Result<(), Failure> {
    tokio::select! {
        biased;
        outcome = transport.flush() => outcome?,
        error = cancel.stopped() => return Err(error.into()),
    }
    // A long result must not keep its worker thread from the other connections.
    tokio::task::yield_now().await;
    Ok(cancel.check()?)
}

impl RowSource {
    pub(crate) fn new(
        schema: &SchemaRef,
        batches: BatchStream,
        tag: RowsTag,
        formats: &[Format],
        settings: TextSettings,
    ) -> RowSource {
        RowSource { batches, encoder: RowEncoder::new(schema, formats, settings), tag, current: None }
    }

    pub(crate) fn tag(&self) -> RowsTag {
        self.tag
    }

    /// Sends DataRows until there are no more, or `limit` of them have been sent.
    pub(crate) async fn send(
        &mut self,
        transport: &mut Transport,
        cancel: &CancelHandle,
        limit: Option<u64>,
    ) -> Result<Sent, Failure> {
        let mut sent = 0u64;
        loop {
            if let Some((batch, next)) = &mut self.current {
                while *next < batch.rows {
                    if limit == Some(sent) {
                        return Ok(Sent::Limit);
                    }
                    batch.write_data_row(*next, &mut transport.output)?;
                    *next += 1;
                    sent += 1;
                    if transport.output.len() >= FLUSH_BYTES {
                        flush_or_stop(transport, cancel).await?;
                    }
                }
                self.current = None;
            }
            // Exactly as many as were asked for counts as suspended, whether or not there are more.
            if limit == Some(sent) {
                return Ok(Sent::Limit);
            }
            match next_batch(&mut self.batches, transport, cancel).await? {
                Some(batch) => self.current = Some((self.encoder.bind(&batch)?, 0)),
                None => {
                    return Ok(Sent::End(self.tag.of(sent)));
                }
            }
        }
    }
}
