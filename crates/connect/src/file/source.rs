//! The files of a source: found by its path, checked, one split each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use flow::{Error, Result, SqlState};

use crate::format::{Format, decode, sql_type_name};
use crate::source::{OnError, Source, SourceReader, Split};

use super::chunks::Chunks;
use super::options::FileSourceOptions;
use super::parquet::{self, ParquetReader};
use super::place::{Found, Place};
use super::read::Input;
use super::text::{self, TextReader};

/// Files that are read in turns. Each holds a window of its file, and what it has decoded.
const TURNS: usize = 8;

/// How often files are looked at; each look at a bucket is a request that costs.
const LOCAL_POLL: Duration = Duration::from_millis(100);
const REMOTE_POLL: Duration = Duration::from_secs(10);

/// Files as a source: one split each, named by its path.
pub struct FileSource {
    options: Arc<FileSourceOptions>,
    schema: SchemaRef,
    place: Place,
    /// By name. A file stays once it is here.
    files: Mutex<BTreeMap<Split, Arc<KnownFile>>>,
}

/// A file that was found and checked.
struct KnownFile {
    found: Found,
    layout: Layout,
}

enum Layout {
    /// `None`: a followed file is too short to tell.
    Text(Option<text::Layout>),
    Parquet(Box<parquet::Layout>),
}

impl FileSource {
    /// Errors: `58P01` there is no such file, or none that matches and the source would not wait for one; as
    /// [`Place::list`]; what is wrong with a file, with its name.
    pub fn open(options: FileSourceOptions, schema: &SchemaRef) -> Result<FileSource> {
        for field in schema.fields() {
            if !decode::is_supported(field.data_type()) {
                let (name, type_name) = (field.name(), sql_type_name(field.data_type()));
                return Err(Error::unsupported(format!(
                    "column \"{name}\" of type {type_name} cannot be read from a file"
                ))
                .with_hint("Declare the column as text and cast it in a view."));
            }
        }
        let place = Place::new(&options.path, &options.s3)?;
        let written_once = options.format == Format::Parquet || place.is_remote();
        if options.follow && written_once && !place.is_pattern() {
            let what = if place.is_remote() { "object" } else { "Parquet file" };
            return Err(Error::new(SqlState::InvalidParameterValue, format!("a single {what} cannot be followed"))
                .with_detail("It is written once; it does not grow.")
                .with_hint("Leave follow out, or write a pattern or a folder to wait for more files."));
        }
        let found = place.list()?;
        if found.is_empty() && !options.follow {
            return Err(place.nothing());
        }
        let source =
            FileSource { options: Arc::new(options), schema: Arc::clone(schema), place, files: Mutex::default() };
        source.learn(found)?;
        Ok(source)
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<Split, Arc<KnownFile>>> {
        // Files are only added, each in one step, so what a panic leaves is whole.
        self.files.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes the files that are not known yet. Errors: `XX001` one that is known is gone or is another file.
    fn learn(&self, found: Vec<Found>) -> Result<()> {
        let mut files = self.files();
        let names: BTreeSet<Split> = found.iter().map(|file| Split(file.name.clone())).collect();
        if let Some((_, gone)) = files.iter().find(|(split, _)| !names.contains(split)) {
            return Err(gone.found.changed("it was removed or renamed"));
        }
        for file in found {
            let split = Split(file.name.clone());
            match files.get(&split) {
                Some(known) => {
                    if known.found.mark != file.mark {
                        return Err(known.found.changed("it was replaced by another file"));
                    }
                    if matches!(known.layout, Layout::Parquet(_)) && known.found.size != file.size {
                        let sizes = format!("it had {} bytes and has {}", known.found.size, file.size);
                        return Err(known.found.changed(&sizes));
                    }
                }
                None => {
                    let known = self.check(file)?;
                    files.insert(split, Arc::new(known));
                }
            }
        }
        Ok(())
    }

    fn check(&self, found: Found) -> Result<KnownFile> {
        let layout = match self.options.format {
            Format::Parquet => {
                let layout = parquet::Layout::find(&found.name, &Chunks::open(&found, 0)?, &self.schema)?;
                Layout::Parquet(Box::new(layout))
            }
            _ => {
                let mut input = Input::open(&found, self.options.follow)?;
                Layout::Text(text::Layout::find(&mut input, &self.options, &self.schema)?)
            }
        };
        Ok(KnownFile { found, layout })
    }
}

impl Source for FileSource {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn bounded(&self) -> bool {
        !self.options.follow
    }

    fn on_error(&self) -> OnError {
        self.options.on_error
    }

    fn poll_interval(&self) -> Duration {
        let usual = if self.place.is_remote() { REMOTE_POLL } else { LOCAL_POLL };
        self.options.poll_interval.unwrap_or(usual)
    }

    fn turns(&self) -> usize {
        TURNS
    }

    fn splits(&self) -> Result<Vec<Split>> {
        // A reader of a single file looks after it by itself.
        if self.options.follow && self.place.is_pattern() {
            self.learn(self.place.list()?)?;
        }
        Ok(self.files().keys().cloned().collect())
    }

    fn size(&self, split: &Split) -> u64 {
        self.files().get(split).map_or(0, |file| file.found.size)
    }

    fn has_places(&self) -> bool {
        true
    }

    fn reader(&self, split: &Split, columns: Option<&[usize]>) -> Result<Box<dyn SourceReader>> {
        let file = self.files().get(split).cloned();
        let file = file.ok_or_else(|| Error::internal(format!("the source has no file \"{}\"", split.0)))?;
        let wanted = columns.map_or_else(|| (0..self.schema.fields().len()).collect(), <[usize]>::to_vec);
        Ok(match &file.layout {
            Layout::Text(layout) => {
                let input = Input::open(&file.found, self.options.follow)?;
                let options = Arc::clone(&self.options);
                Box::new(TextReader::new(options, &self.schema, wanted, layout.clone(), input)?)
            }
            Layout::Parquet(layout) => {
                let chunks = Chunks::open(&file.found, wanted.len())?;
                let (name, layout) = (&file.found.name, layout.as_ref().clone());
                Box::new(ParquetReader::new(name, chunks, layout, &self.schema, &wanted, self.options.on_error)?)
            }
        })
    }
}

/// Columns guessed from the first file that shows some.
pub fn infer_schema(options: &FileSourceOptions, sample_rows: usize) -> Result<SchemaRef> {
    let place = Place::new(&options.path, &options.s3)?;
    let mut error = None;
    for found in place.list()? {
        let inferred = match options.format {
            Format::Parquet => parquet::infer_schema(&found.name, &Chunks::open(&found, 0)?),
            _ => text::infer_schema(options, &mut Input::open(&found, options.follow)?, sample_rows),
        };
        match inferred {
            Err(e) if e.state() == SqlState::InvalidTableDefinition => error = error.or(Some(e)),
            other => return other,
        }
    }
    Err(error.unwrap_or_else(|| {
        let nothing = place.nothing();
        if options.follow { nothing.with_hint("Declare the columns to wait for files.") } else { nothing }
    }))
}
