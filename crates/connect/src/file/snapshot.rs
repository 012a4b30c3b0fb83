//! The mode `snapshot`: the file always holds the whole result as of one epoch.
//!
//! The result is kept in memory as a multiset of row keys, in key order, so the rows of the file are sorted by their columns
//! from left to right (ascending, NULL last) and equal results give equal files. The file is replaced by writing
//! another one beside it, making it durable, and renaming it; a reader sees the old or the new file, never a part.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, SchemaRef};
use flow::keys::KeyEncoder;
use flow::{ChangeBatch, Epoch, Error, Result};

use crate::format::encode::Encoder;
use crate::sink::SinkWriter;

use super::io_error;
use super::options::FileSinkOptions;
use super::write::folder_of;

/// Rows that are turned into text at a time.
const CHUNK_ROWS: usize = 8192;

/// Memory of one kept row beside its key bytes: the map's entry and the allocation.
const ROW_OVERHEAD_BYTES: usize = 64;

pub struct SnapshotWriter {
    options: FileSinkOptions,
    flush_interval_us: i64,
    schema: SchemaRef,
    encoder: Encoder,
    keys: KeyEncoder,
    /// Row key → how often the row is in the result; never zero. Negative only inside an epoch.
    rows: BTreeMap<Box<[u8]>, i64>,
    negative: usize,
    key_bytes: usize,
    /// Changes of the epoch that is not finished; kept apart, so that a flush shows whole epochs only.
    pending: Vec<ChangeBatch>,
    pending_bytes: usize,
    finished: Epoch,
    published: Epoch,
    dirty: bool,
    last_flush_us: Option<i64>,
    rows_written: u64,
}

impl SnapshotWriter {
    /// Writes the empty result at once, so that the file exists.
    pub fn open(mut options: FileSinkOptions, schema: SchemaRef, encoder: Encoder) -> Result<SnapshotWriter> {
        // A symbolic link stays; the file that it names is replaced.
        if let Ok(real) = std::fs::canonicalize(&options.path) {
            options.path = real;
        }
        let types: Vec<DataType> = schema.fields().iter().map(|f| f.data_type().clone()).collect();
        let mut writer = SnapshotWriter {
            flush_interval_us: i64::try_from(options.flush_interval.as_micros()).unwrap_or(i64::MAX),
            options,
            schema,
            encoder,
            keys: KeyEncoder::new(&types)?,
            rows: BTreeMap::new(),
            negative: 0,
            key_bytes: 0,
            pending: Vec::new(),
            pending_bytes: 0,
            finished: Epoch(0),
            published: Epoch(0),
            dirty: true,
            last_flush_us: None,
            rows_written: 0,
        };
        writer.publish()?;
        Ok(writer)
    }

    fn apply(&mut self, change: &ChangeBatch) -> Result<()> {
        let keys = self.keys.encode(change.rows.columns())?;
        for row in 0..change.num_rows() {
            // A row without columns has no key bytes of its own.
            let key: &[u8] = if change.rows.num_columns() == 0 { &[] } else { keys.row(row).data() };
            let weight = change.weight(row);
            match self.rows.entry(key.into()) {
                Entry::Vacant(entry) => {
                    self.key_bytes += entry.key().len();
                    self.negative += usize::from(weight < 0);
                    entry.insert(weight);
                }
                Entry::Occupied(mut entry) => {
                    let old = *entry.get();
                    let new = old + weight;
                    self.negative += usize::from(new < 0);
                    self.negative -= usize::from(old < 0);
                    if new == 0 {
                        self.key_bytes -= entry.key().len();
                        entry.remove();
                    } else {
                        entry.insert(new);
                    }
                }
            }
        }
        Ok(())
    }

    /// Replaces the file by the result of the last finished epoch.
    fn publish(&mut self) -> Result<()> {
        let path = &self.options.path;
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".tmp");
        let temporary: PathBuf = path.with_file_name(name);
        let written = self.write_to(&temporary);
        let replaced = written.and_then(|rows| {
            std::fs::rename(&temporary, path).map_err(|e| io_error("replace file", path, &e))?;
            // The rename itself is durable once the folder is.
            let folder = folder_of(path);
            File::open(folder).and_then(|f| f.sync_all()).map_err(|e| io_error("write folder", folder, &e))?;
            Ok(rows)
        });
        match replaced {
            Ok(rows) => {
                self.rows_written += rows;
                self.published = self.finished;
                self.dirty = false;
                Ok(())
            }
            Err(e) => {
                // The old file stays; what was written of the new one only takes up space.
                if let Err(remove) = std::fs::remove_file(&temporary)
                    && remove.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(path = %temporary.display(), error = %remove, "could not remove an unfinished file");
                }
                Err(e)
            }
        }
    }

    /// Returns the lines written.
    fn write_to(&self, path: &std::path::Path) -> Result<u64> {
        let failed = |e: std::io::Error| io_error("write file", path, &e);
        let file = File::create(path).map_err(|e| io_error("create file", path, &e))?;
        let mut out = BufWriter::with_capacity(1 << 18, file);
        let mut text = Vec::new();
        if self.options.header {
            self.encoder.header(&mut text);
        }
        let mut written = 0;
        let mut rows = self.rows.iter().peekable();
        while rows.peek().is_some() {
            let (mut keys, mut counts) = (Vec::with_capacity(CHUNK_ROWS), Vec::with_capacity(CHUNK_ROWS));
            for (key, count) in rows.by_ref().take(CHUNK_ROWS) {
                keys.push(key.as_ref());
                counts.push(count.unsigned_abs());
            }
            let columns = if self.schema.fields().is_empty() { vec![] } else { self.keys.decode(keys)? };
            let options = RecordBatchOptions::new().with_row_count(Some(counts.len()));
            let batch = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?;
            written += self.encoder.rows(&batch, |row| counts[row], |_| [], &mut text)?;
            out.write_all(&text).map_err(failed)?;
            text.clear();
        }
        out.write_all(&text).map_err(failed)?;
        let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)?;
        Ok(written)
    }
}

impl SinkWriter for SnapshotWriter {
    fn write(&mut self, _epoch: Epoch, change: &ChangeBatch) -> Result<()> {
        self.pending_bytes += change.bytes();
        self.pending.push(change.clone());
        Ok(())
    }

    fn finish_epoch(&mut self, epoch: Epoch, now_us: i64) -> Result<()> {
        self.dirty |= !self.pending.is_empty();
        for change in std::mem::take(&mut self.pending) {
            self.apply(&change)?;
        }
        self.pending_bytes = 0;
        if self.negative > 0 {
            return Err(Error::internal(format!(
                "epoch {epoch} took away {} rows that the result of the sink does not have",
                self.negative
            )));
        }
        self.finished = epoch;
        if !self.dirty {
            // The file already shows the result of this epoch.
            self.published = epoch;
        }
        match self.next_flush_us() {
            Some(due) if due <= now_us => self.flush(now_us),
            _ => Ok(()),
        }
    }

    fn make_up(&mut self) -> Result<()> {
        if self.dirty { self.publish() } else { Ok(()) }
    }

    fn next_flush_us(&self) -> Option<i64> {
        let after = |last: i64| last.saturating_add(self.flush_interval_us);
        self.dirty.then(|| self.last_flush_us.map_or(i64::MIN, after))
    }

    fn flush(&mut self, now_us: i64) -> Result<()> {
        if self.dirty {
            self.publish()?;
            self.last_flush_us = Some(now_us);
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.pending.clear();
        self.pending_bytes = 0;
        if self.dirty { self.publish() } else { Ok(()) }
    }

    fn published(&self) -> Epoch {
        self.published
    }

    fn rows_written(&self) -> u64 {
        self.rows_written
    }

    fn state_bytes(&self) -> usize {
        self.key_bytes + self.rows.len() * ROW_OVERHEAD_BYTES + self.pending_bytes
    }
}
