//! The file sink that delivers exactly once: files in a folder, staged as changes come and published by checkpoints.
//!
//! ```text
//! write ──► open files, one for each folder of values ──roll──► finished ──prepare──► prepared ──commit──► published
//!                                   (hidden, in .millstream-staged)                              (renamed or copied)
//! ```
//!
//! The law: a file belongs to one epoch of a checkpoint, has one name for ever, and is published by whoever holds a permit for a
//! checkpoint that lists it. So a commit may be repeated, by another writer too, and what no durable checkpoint
//! lists is never seen. What an earlier `prepare` gave and no commit has published is listed again by the next one: a checkpoint that
//! fails loses nothing. A note of the last commit lets readers of the folder take files away: without it a repeated commit
//! would miss them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use checkpoint::CommitPermit;
use flow::{ChangeBatch, Epoch, Error, Result, SqlState};

use crate::format::Format;
use crate::format::encode::LineFormat;
use crate::format::records::{Content, Records};
use crate::options::RowForm;
use crate::sink::{SinkRequest, SinkWriter};

use super::columns::{ColumnFile, Columns};
use super::options::{FileSinkOptions, FolderOptions, SinkMode};
use super::partition::Partitioning;
use super::staged::{Names, Prepared, StagedFile};
use super::target::{Output, Target};

/// Rows that are encoded at a time; between them a file may be ended.
const CHUNK_ROWS: usize = 8192;

/// Encoded bytes of a file that are held back before they are written.
const BUFFER_BYTES: usize = 256 << 10;

/// Files that are written to at a time. With more folders than that, the file that waited longest is ended.
const OPEN_FILES_MAX: usize = 64;

/// Files of one checkpoint at most.
const FILES_MAX: usize = 1 << 16;

/// Checks what can be checked without writing.
pub fn validate(options: &FileSinkOptions, folder: &FolderOptions, request: &SinkRequest<'_>) -> Result<()> {
    Encoding::new(options, request)?;
    partitioning(folder, request)?;
    Target::new(&options.path, &folder.s3)?.check()
}

/// Begins with nothing.
pub fn open(
    options: &FileSinkOptions,
    folder: &FolderOptions,
    request: &SinkRequest<'_>,
) -> Result<Box<dyn SinkWriter>> {
    let writer = FolderWriter::new(options, folder, request)?;
    let target = &writer.files.target;
    target.create()?;
    target.create_staging()?;
    target.remove_staged(&writer.files.left_behind()?)?;
    Ok(Box::new(writer))
}

/// Goes on behind a checkpoint, after its commit.
pub fn resume(
    options: &FileSinkOptions,
    folder: &FolderOptions,
    request: &SinkRequest<'_>,
    permit: &CommitPermit,
    bytes: &[u8],
) -> Result<Box<dyn SinkWriter>> {
    let prepared = Prepared::read(bytes, permit)?;
    let mut writer = FolderWriter::new(options, folder, request)?;
    writer.files.target.create_staging()?;
    // Looked for first: a bucket that is away is not taken for one without the files.
    let left = writer.files.left_behind()?;
    writer.files.publish(&prepared, bytes, true)?;
    writer.files.target.remove_staged(&left)?;
    writer.files.next = prepared.next;
    writer.rows = prepared.rows;
    writer.published = prepared.epoch;
    if let Encoding::Lines(records) = &mut writer.encoding {
        records.go_on(prepared.first);
    }
    Ok(Box::new(writer))
}

fn partitioning(folder: &FolderOptions, request: &SinkRequest<'_>) -> Result<Option<Partitioning>> {
    folder.partition_by.as_deref().map(|list| Partitioning::new(&request.schema, list)).transpose()
}

/// What stands in the files.
enum Encoding {
    Lines(Box<Records>),
    Columns(Columns),
}

impl Encoding {
    fn new(options: &FileSinkOptions, request: &SinkRequest<'_>) -> Result<Encoding> {
        let content = match options.form {
            RowForm::Plain => match options.mode_for(request.append_only)? {
                mode if options.format == Format::Parquet => {
                    return Ok(Encoding::Columns(Columns::new(&request.schema, mode)?));
                }
                SinkMode::Append => Content::Rows,
                SinkMode::Changes => Content::Changes,
                SinkMode::Snapshot => return Err(Error::internal("a snapshot does not deliver exactly once")),
            },
            form => Content::of(form, request.append_only),
        };
        let format = match options.format {
            Format::Csv => LineFormat::Csv { delimiter: options.delimiter, null: options.null.clone() },
            _ => LineFormat::Json,
        };
        Ok(Encoding::Lines(Box::new(Records::new(request, format, content, options.primary_key.as_deref())?)))
    }
}

struct FolderWriter {
    encoding: Encoding,
    partitioning: Option<Partitioning>,
    files: Files,
    rows: u64,
    published: Epoch,
}

impl FolderWriter {
    fn new(options: &FileSinkOptions, folder: &FolderOptions, request: &SinkRequest<'_>) -> Result<FolderWriter> {
        let encoding = Encoding::new(options, request)?;
        let (extension, mut header) = match options.format {
            Format::Csv => ("csv", Vec::new()),
            Format::Json => ("ndjson", Vec::new()),
            Format::Parquet => ("parquet", Vec::new()),
        };
        if let Encoding::Lines(records) = &encoding
            && options.header
        {
            records.header(&mut header);
        }
        let files = Files {
            target: Target::new(&options.path, &folder.s3)?,
            names: Names::new(request.identity, request.attempt, extension)?,
            header,
            roll_bytes: folder.roll_bytes,
            roll_interval_us: i64::try_from(folder.roll_interval.as_micros()).unwrap_or(i64::MAX),
            open: BTreeMap::new(),
            ending: VecDeque::new(),
            finished: Vec::new(),
            prepared: Vec::new(),
            done: BTreeSet::new(),
            next: 0,
            uses: 0,
        };
        let partitioning = partitioning(folder, request)?;
        Ok(FolderWriter { encoding, partitioning, files, rows: 0, published: Epoch(0) })
    }

    /// Takes changes whose rows belong to `folder`, all of them even if the target takes nothing.
    fn take(&mut self, folder: &str, epoch: Epoch, change: &ChangeBatch) -> Result<()> {
        let (mut lines, mut refused) = (Vec::new(), Ok(()));
        for start in (0..change.num_rows()).step_by(CHUNK_ROWS) {
            let chunk = change.slice(start, CHUNK_ROWS.min(change.num_rows() - start));
            match &mut self.encoding {
                Encoding::Lines(records) => {
                    self.rows += records.write(epoch, &chunk, &mut lines)?;
                    self.files.append(folder, &mut lines)?;
                }
                Encoding::Columns(columns) => {
                    let rows = columns.rows(epoch, &chunk)?;
                    self.rows += rows.num_rows() as u64;
                    if rows.num_rows() > 0 {
                        let file = self.files.file(folder)?;
                        if file.columns.is_none() {
                            file.columns = Some(columns.begin()?);
                        }
                        if let Some(columns) = &mut file.columns {
                            columns.write(&rows)?;
                            file.buffer.append(&mut columns.take());
                        }
                        self.files.end_if_large(folder)?;
                    }
                }
            }
            if refused.is_ok() {
                refused = self.files.settle();
                if refused.as_ref().is_err_and(|e| !e.may_pass()) {
                    break;
                }
            }
        }
        refused
    }
}

impl SinkWriter for FolderWriter {
    fn write(&mut self, epoch: Epoch, change: &ChangeBatch) -> Result<()> {
        let Some(partitioning) = &self.partitioning else { return self.take("", epoch, change) };
        let mut refused = Ok(());
        for (folder, change) in partitioning.split(change)? {
            match self.take(&folder, epoch, &change) {
                Err(e) if e.may_pass() => refused = Err(e),
                taken => taken?,
            }
        }
        refused
    }

    fn finish_epoch(&mut self, epoch: Epoch, now_us: i64) -> Result<()> {
        if let Encoding::Lines(records) = &mut self.encoding {
            let (files, mut lines) = (&mut self.files, Vec::new());
            self.rows += records.finish(epoch, now_us, &mut lines, &mut |lines| {
                files.append("", lines)?;
                match files.settle() {
                    // What the target does not take waits in memory.
                    Err(e) if e.may_pass() => Ok(()),
                    settled => settled,
                }
            })?;
            files.append("", &mut lines)?;
        }
        self.files.roll_by_time(now_us)?;
        self.files.settle()
    }

    fn make_up(&mut self) -> Result<()> {
        self.files.settle()
    }

    fn flush(&mut self, _now_us: i64) -> Result<()> {
        // Only a commit publishes.
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.files.drop_unprepared()
    }

    fn published(&self) -> Epoch {
        self.published
    }

    fn prepare(&mut self, epoch: Epoch) -> Result<Vec<u8>> {
        self.files.prepare(epoch)?;
        let first = match &self.encoding {
            Encoding::Lines(records) => records.first(),
            Encoding::Columns(_) => false,
        };
        Prepared::new(epoch, first, self.rows, self.files.next, self.files.prepared.clone()).to_bytes()
    }

    fn commit(&mut self, permit: &CommitPermit, bytes: &[u8]) -> Result<()> {
        let prepared = Prepared::read(bytes, permit)?;
        self.files.publish(&prepared, bytes, false)?;
        self.published = self.published.max(prepared.epoch);
        Ok(())
    }

    fn rows_written(&self) -> u64 {
        self.rows
    }

    fn state_bytes(&self) -> usize {
        let records = match &self.encoding {
            Encoding::Lines(records) => records.state_bytes(),
            Encoding::Columns(_) => 0,
        };
        let ending = self.files.ending.iter().map(|(_, file)| file);
        records + self.files.open.values().chain(ending).map(OpenFile::memory_bytes).sum::<usize>()
    }
}

/// The files of one writer.
struct Files {
    target: Target,
    names: Names,
    /// What every file begins with.
    header: Vec<u8>,
    roll_bytes: u64,
    roll_interval_us: i64,
    /// By the folder that they will be in: empty, or ending with `/`.
    open: BTreeMap<String, OpenFile>,
    /// Files that get no more rows, with their folders, until all of their bytes are durable.
    ending: VecDeque<(String, OpenFile)>,
    /// Ended since the last checkpoint.
    finished: Vec<FinishedFile>,
    /// Of checkpoints of which no commit is known.
    prepared: Vec<StagedFile>,
    /// The staged names of the files of the last commit. A checkpoint that was prepared before it lists them too.
    done: BTreeSet<String>,
    /// The number of the next file.
    next: u64,
    /// Counts the uses of files, to find the one that waited longest.
    uses: u64,
}

struct OpenFile {
    number: u64,
    /// Once there are enough bytes to begin it.
    output: Option<Output>,
    columns: Option<ColumnFile>,
    buffer: Vec<u8>,
    /// Of what was given to `output`.
    bytes: u64,
    hash: crc32fast::Hasher,
    /// The end of the epoch in which it was begun.
    since_us: Option<i64>,
    used: u64,
}

/// A file whose bytes are durable.
struct FinishedFile {
    folder: String,
    number: u64,
    bytes: u64,
    crc32: u32,
}

impl OpenFile {
    /// Gives the target what is held back. May be called again after an error that may pass.
    fn flush(&mut self, target: &Target, names: &Names) -> Result<&mut Output> {
        let output = match self.output.take() {
            Some(output) => self.output.insert(output),
            None => self.output.insert(target.stage(&names.staged(self.number))?),
        };
        if !self.buffer.is_empty() {
            output.write(&self.buffer, self.bytes)?;
            self.hash.update(&self.buffer);
            self.bytes += self.buffer.len() as u64;
            self.buffer.clear();
        }
        output.push()?;
        Ok(output)
    }

    fn memory_bytes(&self) -> usize {
        let columns = self.columns.as_ref().map_or(0, ColumnFile::memory_bytes);
        self.buffer.capacity() + self.output.as_ref().map_or(0, Output::held_bytes) + columns
    }

    /// About the bytes that the file would have now.
    fn length(&self) -> u64 {
        let columns = self.columns.as_ref().map_or(0, ColumnFile::held_bytes);
        self.bytes + (self.buffer.len() + columns) as u64
    }
}

impl Files {
    /// The open file of a folder, begun if there is none.
    fn file(&mut self, folder: &str) -> Result<&mut OpenFile> {
        if !self.open.contains_key(folder) {
            if self.open.len() >= OPEN_FILES_MAX {
                let oldest = self.open.iter().min_by_key(|(_, file)| file.used).map(|(folder, _)| folder.clone());
                oldest.map_or(Ok(()), |folder| self.end(&folder))?;
            }
            if self.finished.len() + self.prepared.len() + self.open.len() + self.ending.len() >= FILES_MAX {
                return Err(Error::new(SqlState::ProgramLimitExceeded, "too many files of a sink in one checkpoint")
                    .with_detail(format!("There are {FILES_MAX} at most."))
                    .with_hint("Choose a larger roll_size, or partition by columns of fewer values."));
            }
            let number = self.next;
            self.next += 1;
            let (buffer, hash) = (self.header.clone(), crc32fast::Hasher::new());
            let file = OpenFile {
                number,
                output: None,
                columns: None,
                buffer,
                bytes: 0,
                hash,
                since_us: None,
                used: self.uses,
            };
            self.open.insert(folder.to_string(), file);
        }
        self.uses += 1;
        let file = self.open.get_mut(folder).ok_or_else(|| Error::internal("a file that was begun is not there"))?;
        file.used = self.uses;
        Ok(file)
    }

    /// Adds whole lines to the file of a folder, and empties `lines`.
    fn append(&mut self, folder: &str, lines: &mut Vec<u8>) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.file(folder)?.buffer.append(lines);
        self.end_if_large(folder)
    }

    fn end_if_large(&mut self, folder: &str) -> Result<()> {
        match self.open.get(folder) {
            Some(file) if file.length() >= self.roll_bytes => self.end(folder),
            _ => Ok(()),
        }
    }

    /// The file of the folder gets no more rows. The target hears of it with [`settle`](Self::settle).
    fn end(&mut self, folder: &str) -> Result<()> {
        let Some(mut file) = self.open.remove(folder) else { return Ok(()) };
        if let Some(columns) = file.columns.take() {
            file.buffer.append(&mut columns.finish()?);
        }
        self.ending.push_back((folder.into(), file));
        Ok(())
    }

    /// Gives the target what is due. May be called again after an error that may pass: until then everything is kept.
    fn settle(&mut self) -> Result<()> {
        while let Some((folder, mut file)) = self.ending.pop_front() {
            if let Err(e) = file.flush(&self.target, &self.names).and_then(Output::finish) {
                self.ending.push_front((folder, file));
                return Err(e);
            }
            let OpenFile { number, bytes, hash, .. } = file;
            self.finished.push(FinishedFile { folder, number, bytes, crc32: hash.finalize() });
        }
        for file in self.open.values_mut().filter(|file| file.buffer.len() >= BUFFER_BYTES) {
            file.flush(&self.target, &self.names)?;
        }
        Ok(())
    }

    fn end_all(&mut self) -> Result<()> {
        while let Some(folder) = self.open.keys().next().cloned() {
            self.end(&folder)?;
        }
        Ok(())
    }

    fn roll_by_time(&mut self, now_us: i64) -> Result<()> {
        let mut due = Vec::new();
        for (folder, file) in &mut self.open {
            let since = *file.since_us.get_or_insert(now_us);
            if now_us.saturating_sub(since) >= self.roll_interval_us {
                due.push(folder.clone());
            }
        }
        due.iter().try_for_each(|folder| self.end(folder))
    }

    /// Makes everything that was written durable, and gives it its names.
    fn prepare(&mut self, epoch: Epoch) -> Result<()> {
        self.end_all()?;
        self.settle()?;
        if self.finished.is_empty() {
            return Ok(());
        }
        self.target.sync_staged()?;
        for FinishedFile { folder, number, bytes, crc32 } in self.finished.drain(..) {
            let path = format!("{folder}{}", self.names.published(epoch, number));
            self.prepared.push(StagedFile { staged: self.names.staged(number), path, bytes, crc32 });
        }
        Ok(())
    }

    /// Publishes what was prepared, as `bytes`, by this writer or another one. `again`: an earlier commit may have done it.
    fn publish(&mut self, prepared: &Prepared, bytes: &[u8], again: bool) -> Result<()> {
        if prepared.files.is_empty() {
            return Ok(());
        }
        // A note is written after everything else, so the same bytes say that all of it was done.
        let (target, note) = (&self.target, self.names.note());
        let noted = || -> Result<bool> { Ok(target.noted(&note)?.is_some_and(|noted| noted == bytes)) };
        if !(again && noted()?) {
            let due = prepared.files.iter().filter(|file| !self.done.contains(&file.staged)).cloned();
            match target.publish(&due.collect::<Vec<StagedFile>>(), again) {
                Ok(()) => target.note(&note, bytes)?,
                Err(e) if e.state() == SqlState::DataCorrupted && noted()? => {}
                Err(e) => return Err(e),
            }
        }
        self.done = prepared.files.iter().map(|file| file.staged.clone()).collect();
        self.prepared.retain(|file| !self.done.contains(&file.staged));
        Ok(())
    }

    /// What was staged by writers before this one. Once the commit of the checkpoint is done, nobody needs it.
    fn left_behind(&self) -> Result<Vec<String>> {
        let mut names = self.target.staged_names()?;
        names.retain(|name| self.names.replaces(name));
        Ok(names)
    }

    /// Removes what no checkpoint can ask for.
    fn drop_unprepared(&mut self) -> Result<()> {
        let open = std::mem::take(&mut self.open).into_values();
        let open = open.chain(self.ending.drain(..).map(|(_, file)| file)).map(|file| file.number);
        let numbers = open.chain(self.finished.drain(..).map(|file| file.number));
        let names: Vec<String> = numbers.map(|number| self.names.staged(number)).collect();
        self.target.remove_staged(&names)
    }
}
