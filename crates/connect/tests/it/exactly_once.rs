//! The file sink that delivers exactly once, over crashes at every point. The reader is our own source over the folder, as any
//! reader that looks for files by a pattern.

use std::collections::BTreeSet;

use arrow::array::{Int64Array, StringViewArray};
use checkpoint::{CommitPermit, Generation};
use connect::{Delivery, SinkRequest, SinkWriter};
use flow::{ChangeBatch, Diff, Epoch};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::*;

const STAGING: &str = ".millstream-staged";

fn columns() -> SchemaRef {
    schema(&[("id", "int8"), ("p", "text"), ("t", "text")])
}

/// Rows that follow from their numbers.
pub(crate) fn rows(ids: std::ops::Range<i64>) -> ChangeBatch {
    let p = ids.clone().map(|id| [Some("a/b"), None, Some("x")][id.rem_euclid(3) as usize]);
    let t = ids.clone().map(|id| format!("t{id}").repeat(1 + id.rem_euclid(5) as usize));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(ids)),
        Arc::new(StringViewArray::from_iter(p)),
        Arc::new(StringViewArray::from_iter_values(t)),
    ];
    ChangeBatch::insert(RecordBatch::try_new(self::columns(), columns).unwrap())
}

pub(crate) fn permit(epoch: u64) -> CommitPermit {
    CommitPermit::of_claimed(Generation(1), Epoch(epoch))
}

/// Where a sink writes.
pub(crate) enum Place {
    Local(Folder),
    /// The prefix in the bucket, without a slash at its end.
    S3(String),
}

impl Place {
    fn path(&self) -> String {
        match self {
            Place::Local(folder) => format!("{}/out", folder.0.path().display()),
            Place::S3(prefix) => format!("s3://bucket/{prefix}"),
        }
    }

    pub(crate) fn options(&self, form: &str, encode: &str, more: &[(&str, &str)]) -> Options {
        let mut pairs = vec![("delivery".to_string(), "exactly_once".to_string())];
        pairs.extend(self.reach());
        pairs.extend(more.iter().map(|(k, v)| (k.to_string(), v.to_string())));
        pairs.extend([("connector".into(), "file".into()), ("path".into(), format!("{}/", self.path()))]);
        Options::new(pairs).unwrap().with_encode(form, encode, Vec::<(String, String)>::new()).unwrap()
    }

    fn reach(&self) -> Vec<(String, String)> {
        match self {
            Place::Local(_) => Vec::new(),
            Place::S3(_) => s3::reach(),
        }
    }

    /// The files that a reader finds.
    fn source(&self, encode: &str) -> Option<Box<dyn Source>> {
        let ending = if encode == "json" { "ndjson" } else { encode };
        let mut pairs = self.reach();
        pairs.extend([("connector".into(), "file".into()), ("path".into(), format!("{}/**/*.{ending}", self.path()))]);
        pairs.push(("format".into(), encode.into()));
        if encode == "csv" {
            pairs.push(("header".into(), "true".into()));
        }
        match connect::source("file").unwrap().open(&Options::new(pairs).unwrap(), &columns()) {
            Ok(source) => Some(source),
            Err(e) if e.state().code() == "58P01" => None,
            Err(e) => panic!("{e:?}"),
        }
    }

    /// The numbers of the rows that a reader finds, sorted.
    fn visible(&self, encode: &str) -> Vec<i64> {
        let Some(source) = self.source(encode) else { return Vec::new() };
        let mut ids = Vec::new();
        for split in source.splits().unwrap() {
            assert!(!split.0.contains(STAGING), "{}", split.0);
            let (batch, bad) = read_all(&mut *source.reader(&split, None).unwrap());
            assert_eq!(bad, [], "a torn file {}", split.0);
            assert!(batch.num_rows() > 0);
            let own = batch.column(0).as_primitive::<arrow::datatypes::Int64Type>().values().to_vec();
            for (row, id) in own.iter().enumerate() {
                assert_eq!(table(&batch.slice(row, 1)), table(&rows(*id..id + 1).rows));
            }
            ids.extend(own);
        }
        ids.sort_unstable();
        ids
    }

    /// The names in the folder of staged files.
    fn staged(&self) -> BTreeSet<String> {
        match self {
            Place::Local(_) => {
                let entries = std::fs::read_dir(format!("{}/{STAGING}", self.path())).unwrap();
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
            }
            Place::S3(prefix) => s3::names(&format!("{prefix}/{STAGING}/")),
        }
    }

    /// What a commit does with one file; on S3 perhaps without the last step.
    fn publish_by_hand(&self, file: &Value, wholly: bool) {
        let (staged, path) = (file["staged"].as_str().unwrap(), file["path"].as_str().unwrap());
        match self {
            Place::Local(_) => {
                let to = PathBuf::from(format!("{}/{path}", self.path()));
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::rename(format!("{}/{STAGING}/{staged}", self.path()), to).unwrap();
            }
            Place::S3(prefix) => {
                let from = format!("{prefix}/{STAGING}/{staged}");
                s3::put(&format!("{prefix}/{}", path.replace('%', "%25")), s3::get(&from));
                if wholly {
                    s3::delete(&from);
                }
            }
        }
    }

    fn remove_staged(&self, name: &str) {
        match self {
            Place::Local(_) => std::fs::remove_file(format!("{}/{STAGING}/{name}", self.path())).unwrap(),
            Place::S3(prefix) => s3::delete(&format!("{prefix}/{STAGING}/{name}")),
        }
    }
}

fn request<'a>(options: &'a Options, attempt: u64) -> SinkRequest<'a> {
    SinkRequest {
        options,
        schema: columns(),
        append_only: true,
        keys: &[],
        relation: "r",
        identity: "16400-3",
        attempt,
    }
}

pub(crate) fn open_new(options: &Options, attempt: u64) -> Box<dyn SinkWriter> {
    connect::sink("file").unwrap().validate(&request(options, 0)).unwrap();
    connect::sink("file").unwrap().open(&request(options, attempt)).unwrap()
}

pub(crate) fn resume(
    options: &Options,
    attempt: u64,
    epoch: u64,
    prepared: &[u8],
) -> flow::Result<Box<dyn SinkWriter>> {
    connect::sink("file").unwrap().resume(&request(options, attempt), &permit(epoch), prepared)
}

fn files(prepared: &[u8]) -> Vec<Value> {
    let prepared: Value = serde_json::from_slice(prepared).unwrap();
    prepared["files"].as_array().unwrap().clone()
}

/// A checkpoint that is durable.
#[derive(Clone)]
struct Durable {
    epoch: u64,
    prepared: Vec<u8>,
    /// The row that comes next.
    next: i64,
}

/// A sink, and the coordinator that drives it and crashes.
struct Run<'a> {
    place: &'a Place,
    options: Options,
    encode: &'a str,
    rng: SmallRng,
    writer: Box<dyn SinkWriter>,
    attempt: u64,
    epoch: u64,
    now_us: i64,
    next: i64,
    durable: Option<Durable>,
}

impl Run<'_> {
    /// Some epochs of rows.
    fn write(&mut self) {
        for _ in 0..self.rng.random_range(0..4) {
            self.epoch += 1;
            for _ in 0..self.rng.random_range(0..3) {
                let count = self.rng.random_range(0..40);
                self.writer.write(Epoch(self.epoch), &rows(self.next..self.next + count)).unwrap();
                self.next += count;
            }
            self.now_us += self.rng.random_range(0..400_000);
            self.writer.finish_epoch(Epoch(self.epoch), self.now_us).unwrap();
        }
    }

    fn prepare(&mut self) -> Durable {
        self.epoch += 1;
        self.writer.finish_epoch(Epoch(self.epoch), self.now_us).unwrap();
        let prepared = self.writer.prepare(Epoch(self.epoch)).unwrap();
        Durable { epoch: self.epoch, prepared, next: self.next }
    }

    /// Another process goes on, perhaps after some that crashed at once.
    fn recover(&mut self) {
        for _ in 0..self.rng.random_range(1..4) {
            self.attempt += 1;
            self.writer = match &self.durable {
                None => open_new(&self.options, self.attempt),
                Some(d) => resume(&self.options, self.attempt, d.epoch, &d.prepared).unwrap(),
            };
            let (epoch, next) = self.durable.as_ref().map_or((0, 0), |d| (d.epoch, d.next));
            assert_eq!((self.writer.published(), self.writer.rows_written()), (Epoch(epoch), next as u64));
            self.next = next;
        }
        assert!(self.place.staged().iter().all(|name| !name.ends_with(".staged")), "{:?}", self.place.staged());
        self.check();
    }

    fn commit(&mut self, d: &Durable) {
        self.writer.commit(&permit(d.epoch), &d.prepared).unwrap();
        assert_eq!(self.writer.published(), Epoch(d.epoch));
        self.check();
    }

    /// Each row of the last durable checkpoint once, and no other.
    fn check(&self) {
        let next = self.durable.as_ref().map_or(0, |d| d.next);
        assert_eq!(self.place.visible(self.encode), (0..next).collect::<Vec<i64>>());
    }

    /// No row twice, and none after the durable checkpoint.
    fn check_at_most(&self, next: i64) {
        let visible = self.place.visible(self.encode);
        assert!(visible.windows(2).all(|pair| pair[0] < pair[1]), "a row is there twice");
        assert!(visible.last().is_none_or(|last| *last < next), "a row is there too early");
    }
}

/// Random writes, checkpoints and crashes. Returns how often each kind of crash came.
pub(crate) fn crash_at_every_point(
    place: &Place,
    encode: &str,
    more: &[(&str, &str)],
    seed: u64,
    rounds: usize,
) -> [usize; 10] {
    let options = place.options("PLAIN", encode, more);
    let writer = open_new(&options, 1);
    let rng = SmallRng::seed_from_u64(seed);
    let mut run = Run { place, options, encode, rng, writer, attempt: 1, epoch: 0, now_us: 0, next: 0, durable: None };
    let mut seen = [0; 10];
    for _ in 0..rounds {
        run.write();
        let before = run.durable.as_ref().map_or(0, |d| d.next);
        run.check_at_most(before);
        let point = run.rng.random_range(0..seen.len());
        seen[point] += 1;
        match point {
            // Nothing was prepared; or the sink ends in good order.
            0 => {
                if run.rng.random_bool(0.3) {
                    run.writer.close().unwrap();
                }
                run.recover();
            }
            // The checkpoint did not become durable.
            1 => {
                run.prepare();
                run.check_at_most(before);
                run.recover();
            }
            // It did, and nothing was committed.
            2 => {
                run.durable = Some(run.prepare());
                run.check_at_most(before);
                run.recover();
            }
            // Half of the commit was done.
            3 => {
                let d = run.prepare();
                for file in files(&d.prepared) {
                    if run.rng.random_bool(0.5) {
                        let wholly = run.rng.random_bool(0.5);
                        place.publish_by_hand(&file, wholly);
                        run.check_at_most(d.next);
                    }
                }
                run.durable = Some(d);
                if run.rng.random_bool(0.5) {
                    run.recover();
                } else {
                    // The same writer tries once more.
                    let d = run.durable.clone().unwrap();
                    run.commit(&d);
                }
            }
            // It was done, and nobody knows.
            4 => {
                let d = run.prepare();
                run.durable = Some(d.clone());
                run.commit(&d);
                run.recover();
            }
            // Neither does the note; and the commit is done once more.
            5 => {
                let d = run.prepare();
                run.durable = Some(d.clone());
                run.commit(&d);
                run.commit(&d);
                if place.staged().contains("16400-3.committed") {
                    place.remove_staged("16400-3.committed");
                }
                run.recover();
            }
            // The checkpoint fails and the job goes on: the next one takes its rows along.
            6 => {
                run.prepare();
                run.check_at_most(before);
            }
            // More is written, and even prepared, before the commit.
            7 => {
                let d = run.prepare();
                run.write();
                let later = run.prepare();
                run.durable = Some(d.clone());
                run.commit(&d);
                if run.rng.random_bool(0.5) {
                    run.durable = Some(later.clone());
                    run.commit(&later);
                    // An answer that was late.
                    run.writer.commit(&permit(d.epoch), &d.prepared).unwrap();
                    run.check();
                } else {
                    run.recover();
                }
            }
            // One that is believed dead goes on.
            8 => {
                let d = run.prepare();
                run.durable = Some(d.clone());
                let committed = run.rng.random_bool(0.3);
                if committed {
                    run.commit(&d);
                }
                run.attempt += 1;
                let newer = resume(&run.options, run.attempt, d.epoch, &d.prepared).unwrap();
                let mut zombie = std::mem::replace(&mut run.writer, newer);
                run.check();
                zombie.write(Epoch(run.epoch + 1), &rows(d.next..d.next + 30)).unwrap();
                zombie.finish_epoch(Epoch(run.epoch + 1), run.now_us).unwrap();
                // What it prepares is in no checkpoint.
                let prepared = zombie.prepare(Epoch(run.epoch + 1)).unwrap();
                zombie.commit(&permit(d.epoch), &d.prepared).unwrap();
                run.check();
                run.epoch += 1;
                run.write();
                let e = run.prepare();
                run.durable = Some(e.clone());
                run.commit(&e);
                zombie.commit(&permit(d.epoch), &d.prepared).unwrap();
                run.check();
                drop(zombie);
                assert!(files(&prepared).iter().all(|z| !files(&e.prepared).contains(z)));
                run.recover();
            }
            _ => {
                let d = run.prepare();
                run.durable = Some(d.clone());
                run.commit(&d);
            }
        }
    }
    seen
}

#[test]
fn every_row_is_there_once_whenever_it_crashes() {
    let mut seen = [0; 10];
    for seed in 0..24 {
        let encode = ["json", "csv", "parquet"][seed as usize % 3];
        let mut more = vec![];
        if seed / 3 % 2 == 1 {
            more.push(("partition_by", "P"));
        }
        if seed / 6 % 2 == 1 {
            more.extend([("roll_size", "1 kB"), ("roll_interval", "500ms")]);
        }
        let place = Place::Local(Folder::new());
        println!("seed {seed}");
        let own = crash_at_every_point(&place, encode, &more, seed, 25);
        seen.iter_mut().zip(own).for_each(|(all, own)| *all += own);
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

fn names(place: &Place) -> Vec<String> {
    fn below(folder: &Path, root: &Path, names: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => below(&path, root, names),
                false => names.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_string()),
            }
        }
    }
    let (root, mut names) = (PathBuf::from(place.path()), Vec::new());
    below(&root, &root, &mut names);
    names.retain(|name| !name.starts_with(STAGING));
    names.sort();
    names
}

/// Writes one epoch and publishes it.
fn publish(writer: &mut dyn SinkWriter, epoch: u64, change: &ChangeBatch) -> flow::Result<Vec<u8>> {
    writer.write(Epoch(epoch), change)?;
    writer.finish_epoch(Epoch(epoch), epoch as i64)?;
    let prepared = writer.prepare(Epoch(epoch))?;
    writer.commit(&permit(epoch), &prepared)?;
    Ok(prepared)
}

#[test]
fn files_are_named_and_partitioned_and_rolled() {
    let place = Place::Local(Folder::new());
    let options = place.options("PLAIN", "csv", &[("partition_by", "p")]);
    assert_eq!(connect::sink("file").unwrap().delivery(&options), Ok(Delivery::ExactlyOnce));
    let mut writer = open_new(&options, 7);
    publish(&mut *writer, 12, &rows(0..3)).unwrap();
    assert_eq!(
        names(&place),
        [
            "p=__HIVE_DEFAULT_PARTITION__/part-16400-3-000000000012-000001.csv",
            "p=a%2Fb/part-16400-3-000000000012-000000.csv",
            "p=x/part-16400-3-000000000012-000002.csv",
        ]
    );
    let first = format!("{}/p=a%2Fb/part-16400-3-000000000012-000000.csv", place.path());
    assert_eq!(std::fs::read_to_string(first).unwrap(), "id,p,t\n0,a/b,t0\n");

    // By size: each file but the last of a checkpoint is as large as it was to be.
    for encode in ["json", "csv", "parquet"] {
        let place = Place::Local(Folder::new());
        let mut writer = open_new(
            &place.options(
                "PLAIN",
                encode,
                &[("roll_size", "64 kB"), ("header", "true")][..if encode == "csv" { 2 } else { 1 }],
            ),
            1,
        );
        let texts =
            StringViewArray::from_iter_values((0..40_000).map(|id: i64| format!("{:x}", id * 0x9e37_79b9_7f4a)));
        let mut batch = rows(0..40_000).rows;
        let t: ArrayRef = Arc::new(texts);
        batch = RecordBatch::try_new(columns(), vec![batch.column(0).clone(), batch.column(1).clone(), t]).unwrap();
        publish(&mut *writer, 1, &ChangeBatch::insert(batch)).unwrap();
        let sizes: Vec<u64> = names(&place)
            .iter()
            .map(|name| std::fs::metadata(format!("{}/{name}", place.path())).unwrap().len())
            .collect();
        assert!(sizes.len() > 2, "{encode}: {sizes:?}");
        let least = if encode == "parquet" { 32 << 10 } else { 64 << 10 };
        assert!(sizes[..sizes.len() - 1].iter().all(|size| *size >= least), "{encode}: {sizes:?}");
    }

    // By time.
    let place = Place::Local(Folder::new());
    let mut writer = open_new(&place.options("PLAIN", "json", &[("roll_interval", "1s")]), 1);
    for (n, now_us) in [0, 999_999, 1_000_000, 1_500_000].into_iter().enumerate() {
        writer.write(Epoch(n as u64 + 1), &rows(0..1)).unwrap();
        writer.finish_epoch(Epoch(n as u64 + 1), now_us).unwrap();
    }
    assert_eq!(files(&writer.prepare(Epoch(4)).unwrap()).len(), 2);
    assert_eq!(names(&place), [""; 0]);
}

#[test]
fn many_folders_take_few_open_files() {
    let place = Place::Local(Folder::new());
    let mut writer = open_new(&place.options("PLAIN", "json", &[("partition_by", "id")]), 1);
    let prepared = publish(&mut *writer, 1, &rows(0..300)).unwrap();
    assert_eq!(files(&prepared).len(), 300);
    assert_eq!(place.visible("json"), (0..300).collect::<Vec<i64>>());
}

#[test]
fn without_news_nothing_is_touched() {
    let place = Place::Local(Folder::new());
    let mut writer = open_new(&place.options("PLAIN", "parquet", &[]), 1);
    std::fs::remove_dir_all(place.path()).unwrap();
    for epoch in 1..4 {
        writer.write(Epoch(epoch), &rows(0..0)).unwrap();
        writer.finish_epoch(Epoch(epoch), 0).unwrap();
        let prepared = writer.prepare(Epoch(epoch)).unwrap();
        assert_eq!(files(&prepared), [] as [Value; 0]);
        writer.commit(&permit(epoch), &prepared).unwrap();
        assert_eq!(writer.published(), Epoch(epoch));
    }
    // The target is away.
    let e = publish(&mut *writer, 4, &rows(0..3)).unwrap_err();
    assert_eq!((e.state().code(), e.hint().is_some()), ("58030", true), "{e:?}");
    let options = place.options("PLAIN", "parquet", &[]);
    let mut other = SmallRng::seed_from_u64(1);
    let bytes = br#"{"version":1,"epoch":3,"first":false,"rows":0,"next":0,"files":[]}"#;
    let e = resume(&options, other.random_range(2..9), 3, bytes).err().unwrap();
    assert_eq!(e.state().code(), "58030", "a folder that went away is not made anew");
}

#[test]
fn what_is_gone_changed_or_taken_is_named() {
    let options = |place: &Place| place.options("PLAIN", "csv", &[]);
    let prepared = |place: &Place| {
        let mut writer = open_new(&options(place), 1);
        writer.write(Epoch(1), &rows(0..5)).unwrap();
        writer.finish_epoch(Epoch(1), 0).unwrap();
        writer.prepare(Epoch(1)).unwrap()
    };
    let file = "part-16400-3-000000000001-000000.csv";
    let refused = |spoil: &dyn Fn(&str, &str)| {
        let place = Place::Local(Folder::new());
        let bytes = prepared(&place);
        spoil(&format!("{}/{STAGING}/16400-3.1.0.staged", place.path()), &format!("{}/{file}", place.path()));
        let e = resume(&options(&place), 2, 1, &bytes).err().unwrap();
        assert_eq!(e.state().code(), "XX001", "{e:?}");
        assert!(e.message().contains(file), "{e}");
        e.message().to_string()
    };
    assert!(refused(&|staged, _| std::fs::remove_file(staged).unwrap()).contains("is gone"));
    assert!(refused(&|_, published| std::fs::write(published, "x").unwrap()).contains("another file"));
    let flip = |staged: &str| {
        let mut bytes = std::fs::read(staged).unwrap();
        bytes[9] ^= 1;
        std::fs::write(staged, bytes).unwrap();
    };
    assert!(refused(&|staged, _| flip(staged)).contains("was changed"));
    assert!(
        refused(&|staged, published| {
            flip(staged);
            std::fs::rename(staged, published).unwrap();
        })
        .contains("another file")
    );
    // A reader may take a file away that was published: the commit is known to be done.
    let place = Place::Local(Folder::new());
    let bytes = prepared(&place);
    resume(&options(&place), 2, 1, &bytes).unwrap();
    std::fs::remove_file(format!("{}/{file}", place.path())).unwrap();
    resume(&options(&place), 3, 1, &bytes).unwrap();
    assert_eq!(names(&place), [""; 0]);
    // A checkpoint of another epoch, and bytes that are none.
    assert_eq!(resume(&options(&place), 4, 2, &bytes).err().unwrap().state().code(), "XX000");
    assert_eq!(resume(&options(&place), 4, 1, b"{}").err().unwrap().state().code(), "XX001");
}

#[test]
fn the_files_of_others_are_left_alone() {
    let place = Place::Local(Folder::new());
    let options = place.options("PLAIN", "json", &[]);
    let mut first = open_new(&options, 1);
    publish(&mut *first, 1, &rows(0..5)).unwrap();
    first.write(Epoch(2), &rows(5..9)).unwrap();
    first.finish_epoch(Epoch(2), 0).unwrap();
    let prepared = first.prepare(Epoch(2)).unwrap();
    std::fs::write(format!("{}/other.txt", place.path()), "x").unwrap();
    // Another sink, and then an earlier writer of the same one.
    let mut request_of_other = request(&options, 9);
    request_of_other.identity = "16400-30";
    let mut other = connect::sink("file").unwrap().open(&request_of_other).unwrap();
    publish(&mut *other, 2, &rows(100..102)).unwrap();
    resume(&options, 0, 1, br#"{"version":1,"epoch":1,"first":false,"rows":5,"next":1,"files":[]}"#).unwrap();
    first.commit(&permit(2), &prepared).unwrap();
    assert_eq!(place.visible("json"), (0..9).chain(100..102).collect::<Vec<i64>>());
    assert!(names(&place).contains(&"other.txt".to_string()));
    // A sink that ends takes along what no checkpoint asks for.
    first.write(Epoch(3), &rows(9..12)).unwrap();
    first.close().unwrap();
    assert!(place.staged().iter().all(|name| !name.ends_with(".staged")), "{:?}", place.staged());
}

#[test]
fn a_rewind_publishes_what_is_new_and_changes_nothing_that_is_there() {
    let place = Place::Local(Folder::new());
    let options = place.options("PLAIN", "json", &[]);
    let mut writer = open_new(&options, 1);
    let old = publish(&mut *writer, 1, &rows(0..5)).unwrap();
    publish(&mut *writer, 2, &rows(5..9)).unwrap();
    // From the first checkpoint on, other rows come; the highest epoch that was committed must not hide them.
    let mut writer = resume(&options, 2, 1, &old).unwrap();
    publish(&mut *writer, 3, &rows(20..22)).unwrap();
    assert_eq!(place.visible("json"), (0..9).chain(20..22).collect::<Vec<i64>>());
}

#[test]
fn changes_are_a_log_in_every_form() {
    let weights =
        |rows: ChangeBatch, weights: &[i64]| ChangeBatch::new(rows.rows, Diff::from_weights(weights.to_vec()));
    let keys = [vec![0]];
    let epochs = [weights(rows(0..3), &[1, 1, 1]), weights(rows(0..3), &[-1, 0, -1]), weights(rows(3..4), &[1])];
    let run = |form: &str, encode: &str, more: &[(&str, &str)]| -> (Place, Vec<Value>) {
        let place = Place::Local(Folder::new());
        let options = place.options(form, encode, more);
        let mut request = request(&options, 1);
        (request.append_only, request.keys) = (false, &keys);
        let connector = connect::sink("file").unwrap();
        connector.validate(&request).unwrap();
        let mut writer = connector.open(&request).unwrap();
        for (n, change) in epochs.iter().enumerate() {
            let epoch = n as u64 + 1;
            let prepared = publish(&mut *writer, epoch, change).unwrap();
            request.attempt += 1;
            writer = connector.resume(&request, &permit(epoch), &prepared).unwrap();
        }
        let lines = names(&place).into_iter().flat_map(|name| {
            let text = std::fs::read(format!("{}/{name}", place.path())).unwrap();
            let text = String::from_utf8(text).unwrap_or_default();
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<Value>>()
        });
        let lines = lines.collect();
        (place, lines)
    };
    let ops = |lines: &[Value], id: &dyn Fn(&Value) -> i64| -> Vec<(String, i64)> {
        lines.iter().map(|line| (line["op"].as_str().unwrap().to_string(), id(line))).collect()
    };
    let expect = |ops: &[(&str, i64)]| ops.iter().map(|(op, id)| (op.to_string(), *id)).collect::<Vec<_>>();
    let (_, lines) = run("PLAIN", "json", &[("mode", "changes")]);
    let found = ops(&lines, &|line| line["id"].as_i64().unwrap());
    assert_eq!(
        found,
        expect(&[("insert", 0), ("insert", 1), ("insert", 2), ("delete", 0), ("delete", 2), ("insert", 3)])
    );
    let (_, lines) = run("UPSERT", "json", &[]);
    let found = ops(&lines, &|line| line["key"]["id"].as_i64().unwrap());
    assert_eq!(
        found,
        expect(&[("upsert", 0), ("upsert", 1), ("upsert", 2), ("delete", 0), ("delete", 2), ("upsert", 3)])
    );
    // What is new after a restart is not taken for what was there at the beginning.
    let (_, lines) = run("DEBEZIUM", "json", &[]);
    let found = ops(&lines, &|line| {
        let row = if line["after"].is_null() { &line["before"] } else { &line["after"] };
        row["id"].as_i64().unwrap()
    });
    assert_eq!(found, expect(&[("r", 0), ("r", 1), ("r", 2), ("d", 0), ("d", 2), ("c", 3)]));
    let (place, _) = run("PLAIN", "parquet", &[("mode", "changes")]);
    let s = schema(&[("op", "text"), ("epoch", "int8"), ("id", "int8")]);
    let mut found = Vec::new();
    for name in names(&place) {
        let path = PathBuf::from(format!("{}/{name}", place.path()));
        found.extend(table(&read_all(&mut *reader(&path, &[("format", "parquet")], &s)).0));
    }
    let want: [&[&str]; 6] = [
        &["insert", "1", "0"],
        &["insert", "1", "1"],
        &["insert", "1", "2"],
        &["delete", "2", "0"],
        &["delete", "2", "2"],
        &["insert", "3", "3"],
    ];
    assert_eq!(found, strings(&want));
}

#[test]
fn parquet_keeps_every_type() {
    let kinds = [
        "bool",
        "int2",
        "int4",
        "int8",
        "float4",
        "float8",
        "numeric",
        "numeric(10,2)",
        "text",
        "bytea",
        "date",
        "time",
        "timestamp",
        "timestamptz",
        "int4[]",
        "text[]",
    ];
    let named: Vec<(String, &str)> = kinds.iter().enumerate().map(|(n, kind)| (format!("c{n}"), *kind)).collect();
    let named: Vec<(&str, &str)> = named.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
    let s = schema(&named);
    for seed in 0..10 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let columns = s.fields().iter().map(|f| round_trip::column(&mut rng, f.data_type(), 50)).collect();
        let batch = RecordBatch::try_new(s.clone(), columns).unwrap();
        let place = Place::Local(Folder::new());
        let options = place.options("PLAIN", "parquet", &[]);
        let mut request = request(&options, 1);
        request.schema = s.clone();
        let mut writer = connect::sink("file").unwrap().open(&request).unwrap();
        publish(&mut *writer, 1, &ChangeBatch::insert(batch.clone())).unwrap();
        let path = PathBuf::from(format!("{}/{}", place.path(), names(&place)[0]));
        let (read, _) = read_all(&mut *reader(&path, &[("format", "parquet")], &s));
        for (c, (got, want)) in read.columns().iter().zip(batch.columns()).enumerate() {
            assert_eq!(got, want, "seed {seed}, column of type {}", kinds[c]);
        }
    }
}

#[test]
fn options_that_do_not_fit_are_refused_with_what_does() {
    let place = Place::Local(Folder::new());
    let connector = connect::sink("file").unwrap();
    let refused = |form: &str, encode: &str, append_only: bool, own: &[(&str, &str)]| {
        let mut pairs = vec![("connector", "file"), ("path", "/tmp/")];
        pairs.extend(own);
        let options = Options::new(pairs).unwrap();
        let options = options.with_encode(form, encode, Vec::<(String, String)>::new()).unwrap();
        let mut request = request(&options, 0);
        (request.append_only, request.identity) = (append_only, "");
        let e = connector.validate(&request).unwrap_err();
        assert!(e.hint().is_some() || e.detail().is_some(), "{e:?}");
        (e.state().code(), format!("{} {}", e.message(), e.hint().unwrap_or_default()))
    };
    const EXACT: (&str, &str) = ("delivery", "exactly_once");
    /// Form, encoding, whether rows are only added, options, and what is answered: state and words.
    type Case = (&'static str, &'static str, bool, &'static [(&'static str, &'static str)], &'static str, &'static str);
    let cases: &[Case] = &[
        ("PLAIN", "json", true, &[("delivery", "exactly_onc")], "22023", "Perhaps you meant 'exactly_once'"),
        ("PLAIN", "json", true, &[EXACT, ("partition", "p")], "42704", ""),
        ("PLAIN", "json", true, &[EXACT, ("roll_sice", "1MB")], "42704", "Perhaps you meant \"roll_size\""),
        ("PLAIN", "json", true, &[EXACT, ("partition_by", "q")], "42703", ""),
        ("PLAIN", "json", true, &[EXACT, ("roll_size", "12")], "22023", "kB"),
        ("PLAIN", "json", true, &[EXACT, ("roll_size", "2GB")], "22023", "roll_size"),
        ("PLAIN", "json", true, &[EXACT, ("header", "true")], "22023", "header"),
        ("PLAIN", "json", true, &[EXACT, ("flush_interval", "1s")], "22023", "Leave the option out"),
        ("PLAIN", "json", true, &[EXACT, ("s3.region", "x")], "22023", "s3://"),
        ("PLAIN", "json", true, &[EXACT, ("mode", "snapshot")], "0A000", "changes"),
        ("PLAIN", "json", false, &[EXACT], "0A000", "mode = 'changes'"),
        ("PLAIN", "json", false, &[EXACT, ("mode", "append")], "0A000", "mode = 'changes'"),
        ("UPSERT", "json", false, &[EXACT], "22023", ""),
        ("DEBEZIUM", "json", false, &[EXACT, ("partition_by", "p")], "22023", "FORMAT PLAIN"),
        ("UPSERT", "parquet", false, &[EXACT], "0A000", "FORMAT PLAIN ENCODE PARQUET"),
        ("PLAIN", "parquet", true, &[], "0A000", "delivery = 'exactly_once'"),
        ("PLAIN", "json", true, &[("partition_by", "p")], "22023", "delivery = 'exactly_once'"),
        ("PLAIN", "json", true, &[("roll_interval", "1s")], "22023", "delivery = 'exactly_once'"),
        ("PLAIN", "json", true, &[], "42809", "delivery = 'exactly_once'"),
    ];
    for (form, encode, append_only, own, state, words) in cases {
        let (got, text) = refused(form, encode, *append_only, own);
        assert_eq!(got, *state, "{own:?}: {text}");
        assert!(text.contains(words), "{own:?}: {text}");
    }
    let state = |path: &str, more: &[(&str, &str)]| {
        let pairs = [&[("connector", "file"), ("path", path), ("format", "json")], more].concat();
        connector.validate(&request(&Options::new(pairs).unwrap(), 0)).unwrap_err().state().code()
    };
    let (nowhere, file) = (format!("{}/a/b/", place.path()), "/dev/null");
    assert_eq!(state(&nowhere, &[EXACT]), "58P01");
    assert_eq!(state(file, &[EXACT]), "42809");
    assert_eq!(state("gs://b/x/", &[EXACT]), "0A000");
    assert_eq!(state("s3:///x/", &[EXACT]), "22023");
    assert_eq!(state("s3://b/x/", &[]), "0A000");
    // Without checkpoints there is no identity.
    let options = place.options("PLAIN", "json", &[]);
    let mut unknown = request(&options, 1);
    unknown.identity = "";
    assert_eq!(connector.open(&unknown).err().unwrap().state().code(), "0A000");
    assert!(!Path::new(&place.path()).exists(), "a refused sink leaves no folder");
    // Rows that are taken away all the same.
    for encode in ["json", "parquet"] {
        let mut writer = open_new(&place.options("PLAIN", encode, &[]), 1);
        let change = ChangeBatch::delete(rows(0..1).rows);
        assert_eq!(writer.write(Epoch(1), &change).unwrap_err().state().code(), "0A000");
    }
    let s = schema(&[("i", "interval")]);
    let options = place.options("PLAIN", "parquet", &[]);
    let mut odd = request(&options, 1);
    odd.schema = s;
    assert_eq!(connector.validate(&odd).unwrap_err().state().code(), "0A000");
    let options = place.options("PLAIN", "parquet", &[("mode", "changes")]);
    let mut odd = request(&options, 1);
    odd.schema = schema(&[("op", "text")]);
    assert_eq!(connector.validate(&odd).unwrap_err().state().code(), "42701");
}
