//! What a crash leaves: the disk, the store, the files of sources and sinks, and what clients were told.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use checkpoint::Door;
use checkpoint::door::{NoRest, Store};
use checkpoint::faulty::MemoryStore;
use checkpoint::local::LocalStore;
use parking_lot::Mutex;

use crate::rng::Rng;
use crate::store::Trace;

/// Groups of rows; each has a name.
pub const GROUPS: usize = 6;
pub const ACCOUNTS: usize = 5;
/// Files of the source, each a split.
const FILES: usize = 2;
/// Rows of the source that makes its own.
pub const MADE: usize = 400;
/// A row is late, on purpose, once in so many.
const LATE_ONE_IN: usize = 12;

/// A view that may be there, and whether its rows are its query's at any epoch.
struct View {
    name: &'static str,
    query: &'static str,
    always: bool,
}

const VIEWS: &[View] = &[
    View {
        name: "credits",
        query: "SELECT to_account AS account, sum(amount) AS credits FROM transfers GROUP BY to_account",
        always: true,
    },
    View {
        name: "debits",
        query: "SELECT from_account AS account, sum(amount) AS debits FROM transfers GROUP BY from_account",
        always: true,
    },
    View {
        name: "total",
        query: "SELECT sum(credits - debits) AS total, count(*) AS accounts \
                FROM credits c JOIN debits d ON c.account = d.account",
        always: true,
    },
    View {
        name: "sums",
        query: "SELECT g, count(*) AS n, sum(v) AS s, min(v) AS lo, max(v) AS hi FROM t GROUP BY g",
        always: false,
    },
    View { name: "named", query: "SELECT t.k, t.v, names.name FROM t JOIN names ON t.g = names.g", always: false },
    View { name: "missing", query: "SELECT g, name FROM names WHERE g NOT IN (SELECT g FROM t)", always: false },
    View { name: "top", query: "SELECT k, v FROM t ORDER BY v DESC, k LIMIT 3", always: false },
    View {
        name: "firsts",
        query: "SELECT k, g, v FROM (SELECT *, row_number() OVER (PARTITION BY g ORDER BY v, k) AS r FROM t) \
                WHERE r <= 2",
        always: false,
    },
    View {
        name: "met",
        query: "SELECT e.id, t.k, t.v FROM e JOIN t ON e.g = t.g WHERE e.id % 7 = t.k % 7",
        always: false,
    },
    View {
        name: "minutes",
        query: "SELECT window_start, count(*) AS n, sum(id) AS ids FROM TUMBLE(e, at, INTERVAL '10 seconds') \
                GROUP BY window_start",
        always: false,
    },
    View { name: "seen", query: "SELECT count(*) AS n, sum(id) AS ids FROM e", always: true },
];

/// Where objects are.
pub enum Objects {
    Memory(Arc<MemoryStore>),
    Folder(PathBuf),
}

impl Objects {
    /// As a process that starts sees them.
    pub fn open(&self) -> Arc<dyn Store> {
        match self {
            Objects::Memory(objects) => Arc::clone(objects) as Arc<dyn Store>,
            Objects::Folder(path) => Arc::new(LocalStore::open(path).unwrap_or_else(|e| panic!("open a store: {e}"))),
        }
    }

    pub fn in_memory(&self) -> bool {
        matches!(self, Objects::Memory(_))
    }

    /// Turns one bit of an object over; a second time makes it good.
    pub fn flip(&self, name: &str, at: usize) {
        let flipped = |mut bytes: Vec<u8>| {
            let at = at % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1;
            }
            bytes
        };
        match self {
            Objects::Memory(objects) => {
                if let Some(bytes) = objects.raw(name) {
                    objects.overwrite(name, flipped(bytes.to_vec()).into());
                }
            }
            Objects::Folder(folder) => {
                if let Ok(bytes) = fs::read(folder.join(name)) {
                    fs::write(folder.join(name), flipped(bytes)).unwrap_or_else(|e| panic!("damage {name}: {e}"));
                }
            }
        }
    }
}

/// Rows of the table `t` by key: group and value.
pub type Table = BTreeMap<i64, (i64, i64)>;

/// What a client writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Table,
    Transfer,
}

/// What clients know.
#[derive(Default)]
pub struct Known {
    /// Statements of the set-up that were acknowledged.
    pub set_up: usize,
    pub table: Table,
    /// The table after a statement whose answer never came.
    pub maybe: Option<Table>,
    /// Transfers that were acknowledged.
    pub transfers: usize,
    /// One more may be there.
    pub transfer_maybe: bool,
    /// Epochs of checkpoints that were acknowledged.
    pub checkpoints: usize,
    pub reads: usize,
    /// The engine whose clients are believed: the newest that was looked back from.
    pub reign: u64,
    /// Of which engine the statement was whose answer never came.
    begun: BTreeMap<Kind, u64>,
    /// By engine, whether that statement took effect.
    fates: BTreeMap<(u64, Kind), bool>,
    /// Answers that came when a later engine was there already.
    late: Vec<(u64, Kind)>,
    /// What was wrong.
    pub violations: Vec<String>,
}

impl Known {
    /// This engine's clients are believed from here on, and those of earlier ones not any more. False: a later one's are.
    pub fn follow(&mut self, reign: u64) -> bool {
        self.reign = self.reign.max(reign);
        self.reign == reign
    }

    /// A statement is on its way.
    pub fn begun(&mut self, kind: Kind, reign: u64) {
        self.begun.insert(kind, reign);
    }

    /// A statement of this engine was acknowledged. False: a later engine has begun, and the statement must have taken effect before.
    pub fn acknowledged(&mut self, kind: Kind, reign: u64) -> bool {
        if reign == self.reign {
            self.begun.remove(&kind);
            return true;
        }
        self.late.push((reign, kind));
        self.judge();
        false
    }

    /// A later engine has shown what became of the statement that was on its way.
    pub fn settle(&mut self, kind: Kind, took_effect: bool) {
        if let Some(reign) = self.begun.remove(&kind) {
            self.fates.insert((reign, kind), took_effect);
        }
        self.judge();
    }

    fn judge(&mut self) {
        let (fates, mut wrong) = (&self.fates, Vec::new());
        self.late.retain(|late| match fates.get(late) {
            None => true,
            Some(true) => false,
            Some(false) => {
                wrong.push(format!("engine {} has acknowledged a {:?} that a later one does not have", late.0, late.1));
                false
            }
        });
        self.violations.extend(wrong);
    }

    pub fn violated(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }
}

pub struct World {
    pub seed: u64,
    pub rng: Rng,
    pub folder: PathBuf,
    pub now: Arc<AtomicI64>,
    pub trace: Trace,
    pub objects: Objects,
    pub known: Arc<Mutex<Known>>,
    /// Statements that make everything.
    pub set_up: Arc<Vec<String>>,
    /// Views whose rows are their query's, with the query.
    pub views: Arc<Vec<(&'static str, &'static str)>>,
    /// Whether there is a sink of closed windows.
    pub windows: bool,
    /// Rows written to the files of the source, whose ids are the numbers below.
    pub sent: usize,
    /// Event time of the newest row, in milliseconds.
    newest_ms: usize,
    /// A line whose end is still to be written.
    half: Option<(usize, String)>,
    pub lives: usize,
}

impl World {
    /// `folder` is emptied.
    pub fn new(seed: u64, folder: &Path) -> World {
        let mut rng = Rng::new(seed);
        let _ = fs::remove_dir_all(folder);
        for part in ["data", "in"] {
            fs::create_dir_all(folder.join(part)).unwrap_or_else(|e| panic!("create {}: {e}", folder.display()));
        }
        let objects = match rng.one_in(3) {
            true => Objects::Folder(folder.join("objects")),
            false => Objects::Memory(MemoryStore::new()),
        };
        let chosen: Vec<&View> = VIEWS.iter().filter(|view| view.always || rng.one_in(3)).collect();
        let (windows, made) = (rng.one_in(2), rng.one_in(2));
        let at = folder.display();
        let mut set_up = vec![
            "CREATE TABLE transfers (id bigint PRIMARY KEY, from_account int, to_account int, amount bigint)".into(),
            "CREATE TABLE t (k int PRIMARY KEY, g int, v int)".into(),
            "CREATE TABLE names (g int, name text) APPEND ONLY".into(),
            format!(
                "INSERT INTO names SELECT n, 'name ' || n FROM generate_series(0, {}) AS s (n) \
                 WHERE NOT EXISTS (SELECT 1 FROM names)",
                GROUPS - 1
            ),
            format!(
                "CREATE SOURCE e (id int, g int, at timestamp, WATERMARK FOR at AS at - INTERVAL '1 second') \
                 WITH (connector = 'file', path = '{at}/in/*.ndjson', format = 'json', follow = 'true', \
                 poll_interval = '1ms')"
            ),
        ];
        set_up.extend(chosen.iter().map(|v| format!("CREATE MATERIALIZED VIEW {} AS {}", v.name, v.query)));
        set_up.push(format!(
            "CREATE SINK k AS SELECT e.id, names.name, e.g % 2 AS half FROM e JOIN names ON e.g = names.g \
             WITH (connector = 'file', path = '{at}/out', delivery = 'exactly_once', partition_by = 'half') \
             FORMAT PLAIN ENCODE JSON"
        ));
        if windows {
            set_up.push(format!(
                "CREATE SINK w AS SELECT window_start, count(*) AS n FROM TUMBLE(e, at, INTERVAL '5 seconds') \
                 GROUP BY window_start EMIT ON WINDOW CLOSE \
                 WITH (connector = 'file', path = '{at}/windows', delivery = 'exactly_once') FORMAT PLAIN ENCODE JSON"
            ));
        }
        if made {
            set_up.push(format!(
                "CREATE SOURCE made (id bigint, g bigint) WITH (connector = 'datagen', rows = {MADE}, rate = 2000, \
                 splits = 2, fields.id.kind = 'sequence', fields.id.start = 0, fields.g.min = 0, fields.g.max = 3)"
            ));
            set_up.push("CREATE MATERIALIZED VIEW made_seen AS SELECT count(*) AS n, sum(id) AS ids FROM made".into());
        }
        let mut world = World {
            seed,
            folder: folder.into(),
            now: Arc::new(AtomicI64::new(1_700_000_000_000_000)),
            trace: Trace::default(),
            objects,
            known: Arc::default(),
            set_up: Arc::new(set_up),
            views: Arc::new(chosen.iter().map(|v| (v.name, v.query)).collect()),
            windows,
            sent: 0,
            newest_ms: 0,
            half: None,
            lives: 0,
            rng,
        };
        for file in 0..FILES {
            world.write(file, "");
        }
        world.send(20);
        world
    }

    pub fn makes(&self) -> bool {
        self.set_up.last().is_some_and(|last| last.contains("made_seen"))
    }

    /// Whether the log is rewritten with every checkpoint and at every start.
    pub fn rewrites_log(&self) -> bool {
        self.seed.is_multiple_of(2)
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn write(&self, file: usize, text: &str) {
        let path = self.folder.join(format!("in/part-{file}.ndjson"));
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    }

    /// Adds rows to the source's files, now and then in the middle of a line.
    pub fn send(&mut self, rows: usize) {
        for _ in 0..rows {
            self.finish_line();
            let id = self.sent;
            self.newest_ms += self.rng.below(700);
            // The watermark is a second behind the newest row of the slower file.
            let late = self.rng.one_in(LATE_ONE_IN);
            let behind = if late { 15_000 + self.rng.below(5_000) } else { self.rng.below(300) };
            let line = line(id, self.newest_ms.saturating_sub(behind));
            let file = self.rng.below(FILES);
            if self.rng.one_in(10) {
                let cut = self.rng.below(line.len());
                self.write(file, &line[..cut]);
                self.half = Some((file, line[cut..].to_string()));
            } else {
                self.write(file, &line);
            }
            self.sent += 1;
        }
    }

    pub fn finish_line(&mut self) {
        if let Some((file, rest)) = self.half.take() {
            self.write(file, &rest);
        }
    }

    /// Lets every window close: each file gets a row far ahead.
    pub fn send_last(&mut self) {
        self.finish_line();
        self.newest_ms += 600_000;
        for file in 0..FILES {
            self.write(file, &line(self.sent, self.newest_ms));
            self.sent += 1;
        }
    }

    /// A door of its own to the objects, past all weather.
    pub fn door(&self) -> Door {
        Door::new(self.objects.open(), Arc::new(NoRest), u64::MAX)
    }

    /// What must be so whenever no process runs: rows and windows are published at most once, none that was never sent, and what
    /// lies in the store is whole.
    pub fn inspect(&self) {
        let mut wrong = Vec::new();
        let published = published(&self.folder.join("out"));
        let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
        for row in &published {
            let (id, name) = (row["id"].as_u64().unwrap_or(u64::MAX), row["name"].as_str().unwrap_or_default());
            *seen.entry(id).or_default() += 1;
            if id >= self.sent as u64 || name != format!("name {}", id as usize % GROUPS) {
                wrong.push(format!("an alien row was published: {row}"));
            }
        }
        let repeated: Vec<_> = seen.iter().filter(|(_, n)| **n > 1).collect();
        if !repeated.is_empty() {
            wrong.push(format!("rows were published more than once: {repeated:?}"));
        }
        let mut windows: BTreeMap<String, usize> = BTreeMap::new();
        for row in self::published(&self.folder.join("windows")) {
            *windows.entry(row["window_start"].to_string()).or_default() += 1;
        }
        let repeated: Vec<_> = windows.iter().filter(|(_, n)| **n > 1).collect();
        if !repeated.is_empty() {
            wrong.push(format!("windows closed more than once: {repeated:?}"));
        }
        match checkpoint::fsck::fsck(&self.door()) {
            Ok(report) if report.is_whole() => {}
            Ok(report) => wrong.push(format!("fsck: {report}")),
            Err(e) => wrong.push(format!("fsck fails: {e}")),
        }
        self.trace.note((published.len(), windows.len()));
        self.known.lock().violations.extend(wrong);
    }

    /// How many rows and closed windows' rows are published.
    pub fn published(&self) -> (usize, u64) {
        let windows = published(&self.folder.join("windows"));
        (published(&self.folder.join("out")).len(), windows.iter().filter_map(|row| row["n"].as_u64()).sum())
    }
}

fn line(id: usize, at_ms: usize) -> String {
    let (hour, minute, second, ms) = (at_ms / 3_600_000 % 24, at_ms / 60_000 % 60, at_ms / 1000 % 60, at_ms % 1000);
    let at = format!("2026-01-01 {hour:02}:{minute:02}:{second:02}.{ms:03}");
    format!("{{\"id\":{id},\"g\":{},\"at\":\"{at}\"}}\n", id % GROUPS)
}

/// The rows of the published files of a sink; what is staged does not count.
fn published(folder: &Path) -> Vec<serde_json::Value> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut rows = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        if path.is_dir() {
            rows.extend(published(&path));
            continue;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        rows.extend(text.lines().map(|line| serde_json::from_str(line).unwrap_or_default()));
    }
    rows
}
