//! Configuration: defaults, then the file, then the environment, then flags. Unknown keys are refused.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use checkpoint::door::{Door, Store, ThreadRest};
use checkpoint::local::LocalStore;
use checkpoint::remote::RemoteStore;
use cluster::roster::WORKERS_MAX;
use coord::engine::CheckpointConfig;
use coord::history::HistoryConfig;
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Yaml};
use flow::{Error, Result, SqlState};
use serde::{Deserialize, Serialize};

use crate::ServerArgs;

/// Where the file is looked for when no flag names one.
const DEFAULT_FILE: &str = "conf/millstream.yaml";

/// A sink is waited for no less.
const CHECKPOINT_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// Between two signs of life of a node, and until it counts as away.
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
const HEARTBEAT_MAX: Duration = Duration::from_secs(600);

/// An application waits for its workers no less.
const WORKERS_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// How long missing workers are waited for, or how long new ones have to stay.
const WORKERS_TIME_MIN: Duration = Duration::from_millis(1);
const WORKERS_TIME_MAX: Duration = Duration::from_secs(86_400);

/// The settings that an environment variable can give.
const SETTINGS: &[&str] = &[
    "data_dir",
    "pg_addr",
    "http_addr",
    "slots",
    "memory_limit",
    "batch_rows",
    "checkpoint_interval",
    "checkpoint_timeout",
    "checkpoint_url",
    "checkpoints_retained",
    "history_addr",
    "history_age",
    "history_retained",
    "cluster_addr",
    "cluster_workers",
    "cluster_workers_min",
    "worker_wait_timeout",
    "worker_stabilization_timeout",
    "cluster_token",
    "coordinator_addr",
    "worker_addr",
    "heartbeat_interval",
    "heartbeat_timeout",
    "high_availability",
    "workers_timeout",
    "max_connections",
    "log_format",
    "log_level",
];

/// Every setting of the server, as the file spells it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub data_dir: PathBuf,
    pub pg_addr: SocketAddr,
    pub http_addr: SocketAddr,
    /// Compute threads; 0 is one a core.
    pub slots: usize,
    /// `512MiB`, `4GiB`, a number of bytes, or `auto` for half of the machine's memory.
    pub memory_limit: String,
    /// Rows of a batch under load.
    pub batch_rows: usize,
    /// `10s`, `250ms`: the first epoch after so long becomes a checkpoint; `off`: no state is kept over restarts.
    pub checkpoint_interval: String,
    /// `s3://bucket/prefix`, `file:///a/folder`: where checkpoints are kept; empty: in a folder of the data directory.
    pub checkpoint_url: String,
    /// `10min`, `30s`: a sink whose target does not answer for so long is stopped.
    pub checkpoint_timeout: String,
    pub checkpoints_retained: usize,
    /// Jobs that have ended and are remembered; 0: none.
    pub history_retained: usize,
    /// `30d`, `12h`: how long they are; `off`: as long as there are not too many.
    pub history_age: String,
    /// Where `millstream history` shows them.
    pub history_addr: SocketAddr,
    /// Chosen for one start, never by the file.
    #[serde(skip)]
    pub from_savepoint: Option<String>,
    /// Where a coordinator listens for workers.
    pub cluster_addr: SocketAddr,
    /// Workers that a coordinator's jobs run on; more are spare.
    pub cluster_workers: usize,
    /// The least that they run on, where others are missing.
    pub cluster_workers_min: usize,
    /// `15s`: how long workers that are missing are waited for, before the jobs run on those that are there.
    pub worker_wait_timeout: String,
    /// `30s`: how long a worker has to stay before jobs that run on too few spread over it.
    pub worker_stabilization_timeout: String,
    /// What all nodes of a cluster know and nobody else.
    pub cluster_token: String,
    /// Where a worker finds the coordinator, as `host:port`; several, separated by commas, where others take over from it.
    pub coordinator_addr: String,
    /// Where a worker listens for others.
    pub worker_addr: SocketAddr,
    /// `1s`: how often the nodes of a cluster say that they are there.
    pub heartbeat_interval: String,
    /// `10s`: a node of which nothing is heard for so long is away.
    pub heartbeat_timeout: String,
    /// `none`, or `store`: a coordinator's log is beside the checkpoints, and another coordinator can take over.
    pub high_availability: String,
    /// `2min`: how long an application waits for its workers before it gives up.
    pub workers_timeout: String,
    /// Connections beyond this are refused.
    pub max_connections: usize,
    /// `text` or `json`.
    pub log_format: String,
    pub log_level: String,
}

/// A place for checkpoints beside the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointPlace {
    /// A bucket of S3, and the prefix in it.
    Bucket { bucket: String, prefix: String },
    /// A folder that several machines may share.
    Folder(PathBuf),
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data_dir: "./millstream-data".into(),
            pg_addr: SocketAddr::from(([127, 0, 0, 1], 7432)),
            http_addr: SocketAddr::from(([127, 0, 0, 1], 7480)),
            slots: 0,
            memory_limit: "auto".into(),
            batch_rows: 8192,
            checkpoint_interval: "10s".into(),
            checkpoint_url: String::new(),
            checkpoint_timeout: "10min".into(),
            checkpoints_retained: 3,
            history_retained: 1000,
            history_age: "30d".into(),
            history_addr: SocketAddr::from(([127, 0, 0, 1], 7482)),
            from_savepoint: None,
            cluster_addr: SocketAddr::from(([127, 0, 0, 1], 7490)),
            cluster_workers: 1,
            cluster_workers_min: 1,
            worker_wait_timeout: "15s".into(),
            worker_stabilization_timeout: "30s".into(),
            cluster_token: String::new(),
            coordinator_addr: "127.0.0.1:7490".into(),
            worker_addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            heartbeat_interval: "1s".into(),
            heartbeat_timeout: "10s".into(),
            high_availability: "none".into(),
            workers_timeout: "2min".into(),
            max_connections: 1000,
            log_format: "text".into(),
            log_level: "info".into(),
        }
    }
}

impl Config {
    /// Reads file, environment and flags.
    pub fn load(args: &ServerArgs) -> Result<Config> {
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        match &args.config {
            Some(file) if !file.exists() => {
                return Err(Error::new(
                    SqlState::UndefinedFile,
                    format!("configuration file \"{}\" does not exist", file.display()),
                ));
            }
            Some(file) => figment = figment.merge(Yaml::file(file)),
            None => figment = figment.merge(Yaml::file(DEFAULT_FILE)),
        }
        // Only settings: container systems put variables of their own under the name of a service.
        figment = figment.merge(Env::prefixed("MILLSTREAM_").only(SETTINGS));
        let mut flag = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                figment = std::mem::take(&mut figment).merge((name, value));
            }
        };
        flag("data_dir", args.data_dir.as_ref().map(|p| p.display().to_string()));
        flag("pg_addr", args.pg_addr.clone());
        flag("http_addr", args.http_addr.clone());
        flag("memory_limit", args.memory_limit.clone());
        flag("checkpoint_url", args.checkpoint_url.clone());
        flag("log_format", args.log_format.clone());
        flag("log_level", args.log_level.clone());
        flag("cluster_addr", args.cluster_addr.clone());
        flag("coordinator_addr", args.coordinator_addr.clone());
        flag("worker_addr", args.worker_addr.clone());
        flag("high_availability", args.high_availability.clone());
        flag("workers_timeout", args.workers_timeout.clone());
        for (name, number) in [("slots", args.slots), ("cluster_workers", args.cluster_workers)] {
            if let Some(number) = number {
                figment = figment.merge((name, number));
            }
        }
        let mut config: Config = figment.extract().map_err(|e| {
            Error::new(SqlState::InvalidParameterValue, format!("configuration: {e}"))
                .with_hint("conf/millstream.yaml lists every key with its default.")
        })?;
        config.from_savepoint = args.from_savepoint.clone();
        if config.from_savepoint.is_some() && config.checkpoint_interval.trim().eq_ignore_ascii_case("off") {
            return Err(Error::new(
                SqlState::InvalidParameterValue,
                "a start from a savepoint needs a checkpoint_interval",
            ));
        }
        config.memory_bytes()?;
        // A folder is opened only by who uses it.
        config.checkpoints_in(match config.checkpoint_place()? {
            Some(CheckpointPlace::Folder(_)) => None,
            _ => config.checkpoint_store()?,
        })?;
        config.is_highly_available()?;
        if config.slots > flow::hash::VNODES {
            return Err(Error::new(
                SqlState::InvalidParameterValue,
                format!("slots is {}, the most is {}", config.slots, flow::hash::VNODES),
            ));
        }
        if config.cluster_workers == 0 || config.cluster_workers > WORKERS_MAX {
            let message =
                format!("cluster_workers is {}; from 1 to {WORKERS_MAX} are possible", config.cluster_workers);
            return Err(
                Error::new(SqlState::InvalidParameterValue, message).with_hint("Leave the setting out for one worker.")
            );
        }
        if config.cluster_workers_min == 0 || config.cluster_workers_min > config.cluster_workers {
            let (least, most) = (config.cluster_workers_min, config.cluster_workers);
            let message = format!("cluster_workers_min is {least}; from 1 to cluster_workers, {most}, are possible");
            return Err(Error::new(SqlState::InvalidParameterValue, message)
                .with_hint("It is the least number of workers that the jobs run on when others are missing."));
        }
        config.worker_wait_timeout()?;
        config.worker_stabilization_timeout()?;
        if config.heartbeat_timeout()? < 2 * config.heartbeat_interval()? {
            return Err(Error::new(
                SqlState::InvalidParameterValue,
                "heartbeat_timeout must be at least twice the heartbeat_interval",
            )
            .with_hint("Some heartbeats may be late on a busy machine: ten of them are a good measure."));
        }
        config.workers_timeout()?;
        if !matches!(config.log_format.as_str(), "text" | "json") {
            return Err(Error::new(SqlState::InvalidParameterValue, "log_format must be text or json"));
        }
        Ok(config)
    }

    pub fn slot_count(&self) -> usize {
        match self.slots {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()).min(flow::hash::VNODES),
            n => n,
        }
    }

    /// How checkpoints are taken, and the savepoint to start from.
    pub fn checkpoints(&self) -> Result<Option<CheckpointConfig>> {
        self.checkpoints_in(self.checkpoint_store()?)
    }

    /// The same with the store that they are kept in; `None`: the data directory.
    fn checkpoints_in(&self, store: Option<Arc<dyn Store>>) -> Result<Option<CheckpointConfig>> {
        let text = self.checkpoint_interval.trim();
        if text.eq_ignore_ascii_case("off") {
            return Ok(None);
        }
        let interval = coord::engine::checkpoint_interval(text)
            .map_err(|bad| bad.with_hint("Write a time from 250ms to 24h, or off."))?;
        let timeout =
            connect::options::parse_duration(&self.checkpoint_timeout).filter(|t| *t >= CHECKPOINT_TIMEOUT_MIN);
        let timeout = timeout.ok_or_else(|| {
            let message = format!("invalid value for checkpoint_timeout: \"{}\"", self.checkpoint_timeout);
            Error::new(SqlState::InvalidParameterValue, message).with_hint("Write a time from 1s to 24h.")
        })?;
        let nonce = getrandom::u64().map_err(|e| Error::internal(format!("the system gives no random number: {e}")))?;
        let retained = self.checkpoints_retained.max(1);
        let savepoint = self.from_savepoint.clone();
        let (rest, interval) = (None, Some(interval));
        let history = HistoryConfig { retained: self.history_retained, age: history_age(&self.history_age)? };
        Ok(Some(CheckpointConfig { store, rest, savepoint, interval, retained, history, timeout, nonce }))
    }

    /// How often nodes of a cluster say that they are there.
    pub fn heartbeat_interval(&self) -> Result<Duration> {
        duration("heartbeat_interval", &self.heartbeat_interval, HEARTBEAT_MIN..=HEARTBEAT_MAX, "from 50ms to 10min")
    }

    /// After which time without a sign of life a node of a cluster is away.
    pub fn heartbeat_timeout(&self) -> Result<Duration> {
        duration("heartbeat_timeout", &self.heartbeat_timeout, HEARTBEAT_MIN..=HEARTBEAT_MAX, "from 50ms to 10min")
    }

    /// How long workers that are missing are waited for.
    pub fn worker_wait_timeout(&self) -> Result<Duration> {
        let range = WORKERS_TIME_MIN..=WORKERS_TIME_MAX;
        duration("worker_wait_timeout", &self.worker_wait_timeout, range, "from 1ms to 24h")
    }

    /// How long a worker has to stay until jobs that run on too few spread over it.
    pub fn worker_stabilization_timeout(&self) -> Result<Duration> {
        let range = WORKERS_TIME_MIN..=WORKERS_TIME_MAX;
        duration("worker_stabilization_timeout", &self.worker_stabilization_timeout, range, "from 1ms to 24h")
    }

    /// How long an application waits for its workers. Errors: `22023` it is no time, or none from 1s to 24h.
    pub fn workers_timeout(&self) -> Result<Duration> {
        let range = WORKERS_TIMEOUT_MIN..=WORKERS_TIME_MAX;
        duration("workers_timeout", &self.workers_timeout, range, "from 1s to 24h")
    }

    /// Whether coordinators take over from each other. Errors: `22023` a value that is none, or one that lacks what it needs.
    pub fn is_highly_available(&self) -> Result<bool> {
        let refuse = |message: String| Error::new(SqlState::InvalidParameterValue, message);
        match self.high_availability.trim() {
            "none" => return Ok(false),
            "store" => {}
            other => {
                return Err(refuse(format!("invalid value for high_availability: \"{other}\""))
                    .with_hint("Write none, or store."));
            }
        }
        if self.checkpoint_place()?.is_none() {
            return Err(refuse("high_availability needs a checkpoint_url".into())
                .with_detail("The log and the checkpoints must be where all coordinators come to them.")
                .with_hint(
                    "Set checkpoint_url to s3://bucket/prefix, or to file:///a/folder that all machines share.",
                ));
        }
        if self.checkpoint_interval.trim().eq_ignore_ascii_case("off") {
            return Err(refuse("high_availability needs a checkpoint_interval".into())
                .with_hint("Set checkpoint_interval to a time, such as 10s."));
        }
        Ok(true)
    }

    /// Where checkpoints are kept, if not in the data directory. Endpoint, region and credentials come from `AWS_…` in the
    /// environment.
    pub fn checkpoint_store(&self) -> Result<Option<Arc<dyn Store>>> {
        Ok(match self.checkpoint_place()? {
            None => None,
            Some(CheckpointPlace::Bucket { bucket, prefix }) => Some(Arc::new(RemoteStore::s3(&bucket, &prefix, &[])?)),
            Some(CheckpointPlace::Folder(folder)) => Some(Arc::new(LocalStore::join(&folder)?)),
        })
    }

    /// Where checkpoints are kept, if not in the data directory. Errors: `22023` it is no place.
    pub fn checkpoint_place(&self) -> Result<Option<CheckpointPlace>> {
        let url = self.checkpoint_url.trim();
        if url.is_empty() {
            return Ok(None);
        }
        if let Some(folder) = url.strip_prefix("file://").filter(|folder| folder.starts_with('/')) {
            return Ok(Some(CheckpointPlace::Folder(folder.into())));
        }
        let place = url.strip_prefix("s3://").map(|place| place.split_once('/').unwrap_or((place, "")));
        match place {
            Some((bucket, prefix)) if !bucket.is_empty() => {
                Ok(Some(CheckpointPlace::Bucket { bucket: bucket.to_string(), prefix: prefix.to_string() }))
            }
            _ => {
                Err(Error::new(SqlState::InvalidParameterValue, format!("invalid value for checkpoint_url: \"{url}\""))
                    .with_hint(
                        "Write s3://bucket/prefix or file:///a/folder, or leave it empty for a folder of the data \
                         directory.",
                    ))
            }
        }
    }

    /// A way to what lies beside the checkpoints, without a generation. `local` opens the folder if they are in one.
    pub fn door(&self, local: impl FnOnce(&Path) -> Result<LocalStore>) -> Result<Door> {
        let store: Arc<dyn Store> = match self.checkpoint_store()? {
            Some(store) => store,
            None => Arc::new(local(&self.data_dir.join("checkpoints"))?),
        };
        let nonce = getrandom::u64().map_err(|e| Error::internal(format!("the system gives no random number: {e}")))?;
        Ok(Door::new(store, Arc::new(ThreadRest::seeded(nonce)), nonce))
    }

    /// The memory limit in bytes.
    pub fn memory_bytes(&self) -> Result<usize> {
        parse_bytes(&self.memory_limit)
    }
}

const DAY: Duration = Duration::from_secs(86_400);

/// `30d`, `12h`, `off`.
fn history_age(text: &str) -> Result<Option<Duration>> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let days = text.strip_suffix('d').and_then(|days| days.trim().parse::<u32>().ok()).filter(|days| *days > 0);
    let age = days.map(|days| DAY * days).or_else(|| connect::options::parse_duration(text));
    age.map(Some).ok_or_else(|| {
        Error::new(SqlState::InvalidParameterValue, format!("invalid value for history_age: \"{text}\""))
            .with_hint("Write a time such as 30d or 12h, or off.")
    })
}

/// A time of the setting `name`; `told` says which are possible. Errors: `22023`.
fn duration(name: &str, text: &str, range: RangeInclusive<Duration>, told: &str) -> Result<Duration> {
    let time = connect::options::parse_duration(text.trim()).filter(|time| range.contains(time));
    time.ok_or_else(|| {
        Error::new(SqlState::InvalidParameterValue, format!("invalid value for {name}: \"{text}\""))
            .with_hint(format!("Write a time {told}."))
    })
}

/// `512MiB`, `4GB`, `1000000`, `auto`.
fn parse_bytes(text: &str) -> Result<usize> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("auto") {
        return Ok(machine_memory() / 2);
    }
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" | "kib" | "k" => 1024.0,
        "mb" | "mib" | "m" => 1024.0 * 1024.0,
        "gb" | "gib" | "g" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(bad_memory(text)),
    };
    let bytes = number.parse::<f64>().map_err(|_| bad_memory(text))? * factor;
    if bytes < 16.0 * 1024.0 * 1024.0 {
        return Err(bad_memory(text).with_detail("The least is 16MiB."));
    }
    Ok(bytes as usize)
}

fn bad_memory(text: &str) -> Error {
    Error::new(SqlState::InvalidParameterValue, format!("invalid value for memory_limit: \"{text}\""))
        .with_hint("Write it like 512MiB, 4GiB or auto.")
}

/// Bytes of memory that this process may use: the machine's, or the control group's if that is less.
fn machine_memory() -> usize {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo")
        .and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("MemTotal:"))?.to_string();
            line.split_whitespace().nth(1)?.parse::<usize>().ok()
        })
        .map_or(2 << 30, |kib| kib * 1024);
    let group = read("/sys/fs/cgroup/memory.max").and_then(|t| t.trim().parse::<usize>().ok());
    group.map_or(machine, |g| g.min(machine))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_with_units() {
        assert_eq!(parse_bytes("64MiB").unwrap(), 64 << 20);
        assert_eq!(parse_bytes("1.5 GB").unwrap(), 3 << 29);
        assert!(parse_bytes("12 parsecs").is_err());
        assert!(parse_bytes("1KiB").is_err());
        assert!(parse_bytes("auto").unwrap() > 0);
    }

    #[test]
    fn every_setting_can_come_from_the_environment() {
        let settings = serde_json::to_value(Config::default()).unwrap();
        let mut named: Vec<&str> = settings.as_object().unwrap().keys().map(String::as_str).collect();
        named.sort_unstable();
        let mut listed = SETTINGS.to_vec();
        listed.sort_unstable();
        assert_eq!(listed, named);
    }

    #[test]
    fn checkpoints_are_kept_where_the_flag_says() {
        let args = |url: &str| ServerArgs { checkpoint_url: Some(url.into()), ..ServerArgs::default() };
        let config = Config::load(&args("s3://bucket/some/where")).unwrap();
        assert_eq!(config.checkpoint_store().unwrap().unwrap().place(), "s3://bucket/some/where");
        let refused = Config::load(&args("/a/folder")).unwrap_err();
        assert_eq!(refused.state(), SqlState::InvalidParameterValue);
        assert!(refused.hint().unwrap().contains("s3://bucket/prefix"));
        for relative in ["file://a/folder", "file://", "file:/a"] {
            assert!(Config::load(&args(relative)).is_err(), "{relative}");
        }
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("shared");
        let config = Config::load(&args(&format!("file://{}", shared.display()))).unwrap();
        assert!(!shared.exists());
        assert!(config.checkpoint_store().unwrap().unwrap().place().contains("shared"));
        assert!(shared.is_dir());
    }

    #[test]
    fn high_availability_is_refused_where_it_could_not_work() {
        let args = |value: &str, url: &str| ServerArgs {
            high_availability: Some(value.into()),
            checkpoint_url: Some(url.into()),
            ..ServerArgs::default()
        };
        let refused = |value: &str, url: &str, words: &str| {
            let refused = Config::load(&args(value, url)).unwrap_err();
            assert_eq!(refused.state(), SqlState::InvalidParameterValue, "{refused}");
            assert!(refused.message().contains(words) && refused.hint().is_some(), "{refused}");
        };
        refused("zookeeper", "s3://bucket/p", "invalid value for high_availability: \"zookeeper\"");
        refused("", "s3://bucket/p", "invalid value");
        refused("store", "", "needs a checkpoint_url");
        assert!(Config::load(&args("store", "s3://bucket/p")).unwrap().is_highly_available().unwrap());
        assert!(!Config::load(&args("none", "")).unwrap().is_highly_available().unwrap());
        let off = Config { checkpoint_interval: "off".into(), ..Config::load(&args("store", "s3://b/p")).unwrap() };
        assert!(off.is_highly_available().unwrap_err().message().contains("checkpoint_interval"));
    }

    #[test]
    fn workers_are_waited_for_within_limits() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        let args = ServerArgs { config: Some(file.clone()), ..ServerArgs::default() };
        let load = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Config::load(&args)
        };
        let config = load("cluster_workers: 3\ncluster_workers_min: 3\nworker_wait_timeout: 1ms\n").unwrap();
        assert_eq!(config.worker_wait_timeout().unwrap(), WORKERS_TIME_MIN);
        assert!(config.worker_stabilization_timeout().unwrap() > config.heartbeat_timeout().unwrap());
        let of_default = Config::default();
        assert!(of_default.worker_wait_timeout().unwrap() > of_default.heartbeat_timeout().unwrap());
        for (text, words) in [
            ("cluster_workers: 2\ncluster_workers_min: 3\n", "from 1 to cluster_workers, 2"),
            ("cluster_workers_min: 0\n", "cluster_workers_min is 0"),
            ("worker_wait_timeout: soon\n", "invalid value for worker_wait_timeout: \"soon\""),
            ("worker_stabilization_timeout: 25h\n", "invalid value for worker_stabilization_timeout"),
        ] {
            let refused = load(text).unwrap_err();
            assert_eq!(refused.state(), SqlState::InvalidParameterValue, "{refused}");
            assert!(refused.message().contains(words) && refused.hint().is_some(), "{refused}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        std::fs::write(&file, "pg_adr: 127.0.0.1:1\n").unwrap();
        let args = ServerArgs { config: Some(file.clone()), ..ServerArgs::default() };
        assert!(Config::load(&args).unwrap_err().message().contains("pg_adr"));
        std::fs::write(&file, "slots: 3\n").unwrap();
        assert_eq!(Config::load(&args).unwrap().slots, 3);
        let args = ServerArgs { slots: Some(2), ..args };
        assert_eq!(Config::load(&args).unwrap().slots, 2);
    }
}
