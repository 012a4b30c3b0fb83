//! Session settings: which exist, what values they take, and how they read back.
//!
//! Values are kept as text in PostgreSQL's canonical form (`5s`, `on`, `ISO, MDY`), since that is what `SHOW`,
//! `current_setting` and ParameterStatus give out. Typed readers ([`Settings::flag`], [`Settings::duration_ms`], …) are for
//! the code that acts on them.

use std::collections::BTreeMap;

use flow::{Error, Result, SqlState};

use crate::names;

/// What values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Canonically `on` or `off`.
    Bool,
    Integer {
        min: i64,
        max: i64,
    },
    Real {
        min: f64,
        max: f64,
    },
    /// Time in milliseconds, shown in the largest unit that fits: `90s`, `2min`. 0 means off.
    Milliseconds,
    /// Bytes counted in kB, shown as `4MB`.
    Kilobytes {
        min: i64,
    },
    /// One of these words.
    Enum(&'static [&'static str]),
    Text,
    /// A comma-separated list of identifiers.
    NameList,
    TimeZone,
    DateStyle,
    IntervalStyle,
    Encoding,
}

/// One setting that Millstream knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    /// As `SHOW` spells it: `TimeZone`.
    pub name: &'static str,
    pub default: &'static str,
    pub kind: Kind,
    pub description: &'static str,
    /// `pg_settings.category`.
    pub category: &'static str,
    /// Whether a change is told to the client at once (ParameterStatus).
    pub report: bool,
    /// Fixed: any `SET` is refused with `55P02`-like words.
    pub read_only: bool,
}

/// How often checkpoints are taken: the one setting of the whole server that can be changed.
pub const CHECKPOINT_INTERVAL: &str = "checkpoint_interval";

/// The PostgreSQL version that Millstream speaks for.
pub const SERVER_VERSION: &str = "15.0";
/// The same as a number, as `server_version_num` has it.
pub const SERVER_VERSION_NUM: &str = "150000";

const ON_OFF: Kind = Kind::Bool;
const ISOLATION: Kind = Kind::Enum(&["serializable", "repeatable read", "read committed", "read uncommitted"]);
const MESSAGE_LEVELS: Kind =
    Kind::Enum(&["debug5", "debug4", "debug3", "debug2", "debug1", "log", "notice", "warning", "error"]);

const fn setting(
    name: &'static str,
    default: &'static str,
    kind: Kind,
    category: &'static str,
    description: &'static str,
) -> Setting {
    Setting { name, default, kind, description, category, report: false, read_only: false }
}

const fn reported(s: Setting) -> Setting {
    Setting { report: true, ..s }
}

const fn fixed(s: Setting) -> Setting {
    Setting { read_only: true, ..s }
}

const CLIENT: &str = "Client Connection Defaults";
const LOCALE: &str = "Client Connection Defaults / Locale and Formatting";
const STATEMENT: &str = "Client Connection Defaults / Statement Behavior";
const COMPATIBILITY: &str = "Version and Platform Compatibility";
const PRESET: &str = "Preset Options";
const PLANNER: &str = "Query Tuning";
const STREAMING: &str = "Millstream";

/// Every setting, sorted by lower-case name.
pub const SETTINGS: &[Setting] = &[
    reported(setting(
        "application_name",
        "",
        Kind::Text,
        CLIENT,
        "Name of the application, shown in pg_stat_activity.",
    )),
    setting("array_nulls", "on", ON_OFF, COMPATIBILITY, "Reads an unquoted NULL in array input as a null element."),
    setting(
        "background_ddl",
        "off",
        ON_OFF,
        STREAMING,
        "Makes CREATE MATERIALIZED VIEW return before its back-fill is done.",
    ),
    setting(
        "backslash_quote",
        "safe_encoding",
        Kind::Enum(&["safe_encoding", "on", "off"]),
        COMPATIBILITY,
        "Whether \\' is allowed in string literals.",
    ),
    fixed(setting(
        "block_size",
        "8192",
        Kind::Integer { min: 8192, max: 8192 },
        PRESET,
        "Size of a disk block as clients of PostgreSQL expect it.",
    )),
    setting("bytea_output", "hex", Kind::Enum(&["hex", "escape"]), STATEMENT, "Text form of bytea values."),
    setting("check_function_bodies", "on", ON_OFF, STATEMENT, "Checks function bodies at CREATE FUNCTION."),
    fixed(setting(
        CHECKPOINT_INTERVAL,
        "10s",
        Kind::Milliseconds,
        STREAMING,
        "How often the state of views and sinks is made durable; ALTER SYSTEM sets it.",
    )),
    reported(setting("client_encoding", "UTF8", Kind::Encoding, LOCALE, "Character set of the client; only UTF8.")),
    setting(
        "client_min_messages",
        "notice",
        MESSAGE_LEVELS,
        STATEMENT,
        "Least severe messages that are sent to the client.",
    ),
    reported(setting(
        "DateStyle",
        "ISO, MDY",
        Kind::DateStyle,
        LOCALE,
        "Text form of dates and the order of day and month in ambiguous input.",
    )),
    setting("default_table_access_method", "heap", Kind::Text, STATEMENT, "Accepted for dumps; tables have one form."),
    setting("default_tablespace", "", Kind::Text, STATEMENT, "Accepted for dumps; there is one tablespace."),
    setting(
        "default_text_search_config",
        "pg_catalog.simple",
        Kind::Text,
        LOCALE,
        "Accepted for clients; there is no text search.",
    ),
    setting("default_transaction_deferrable", "off", ON_OFF, STATEMENT, "Default of a transaction's DEFERRABLE."),
    setting(
        "default_transaction_isolation",
        "serializable",
        ISOLATION,
        STATEMENT,
        "Default isolation level of new transactions; every level reads one epoch.",
    ),
    reported(setting(
        "default_transaction_read_only",
        "off",
        ON_OFF,
        STATEMENT,
        "Whether new transactions are read-only.",
    )),
    setting("enable_hashjoin", "on", ON_OFF, PLANNER, "Accepted for clients; has no effect."),
    setting("enable_indexscan", "on", ON_OFF, PLANNER, "Accepted for clients; has no effect."),
    setting("enable_mergejoin", "on", ON_OFF, PLANNER, "Accepted for clients; has no effect."),
    setting("enable_nestloop", "on", ON_OFF, PLANNER, "Accepted for clients; has no effect."),
    setting("enable_seqscan", "on", ON_OFF, PLANNER, "Accepted for clients; has no effect."),
    setting("escape_string_warning", "on", ON_OFF, COMPATIBILITY, "Accepted for clients; has no effect."),
    setting(
        "extra_float_digits",
        "1",
        Kind::Integer { min: -15, max: 3 },
        LOCALE,
        "Digits of floating-point output; above 0 the shortest exact form.",
    ),
    setting("geqo", "on", ON_OFF, PLANNER, "Accepted for clients; has no effect."),
    setting(
        "idle_in_transaction_session_timeout",
        "0",
        Kind::Milliseconds,
        STATEMENT,
        "Ends a session that idles in a transaction for longer.",
    ),
    setting(
        "idle_session_timeout",
        "0",
        Kind::Milliseconds,
        STATEMENT,
        "Ends a session that idles outside a transaction for longer.",
    ),
    reported(fixed(setting("in_hot_standby", "off", ON_OFF, PRESET, "Whether the server is a standby."))),
    reported(fixed(setting("integer_datetimes", "on", ON_OFF, PRESET, "Timestamps are 64-bit integers."))),
    reported(setting("IntervalStyle", "postgres", Kind::IntervalStyle, LOCALE, "Text form of intervals.")),
    reported(fixed(setting("is_superuser", "on", ON_OFF, PRESET, "Whether the session's user is a superuser."))),
    setting("jit", "off", ON_OFF, PLANNER, "Accepted for clients; has no effect."),
    fixed(setting("lc_collate", "C", Kind::Text, PRESET, "Order of text: by code point.")),
    fixed(setting("lc_ctype", "C.UTF-8", Kind::Text, PRESET, "Character classes of text.")),
    setting("lc_messages", "C", Kind::Text, LOCALE, "Language of messages; only English."),
    setting("lc_monetary", "C", Kind::Text, LOCALE, "Accepted for clients; has no effect."),
    setting("lc_numeric", "C", Kind::Text, LOCALE, "Accepted for clients; has no effect."),
    setting("lc_time", "C", Kind::Text, LOCALE, "Accepted for clients; has no effect."),
    setting("lo_compat_privileges", "off", ON_OFF, COMPATIBILITY, "Accepted for clients; there are no large objects."),
    setting("lock_timeout", "0", Kind::Milliseconds, STATEMENT, "Ends a statement that waits longer for another one."),
    fixed(setting(
        "max_connections",
        "1000",
        Kind::Integer { min: 1, max: 262_143 },
        "Connections and Authentication",
        "Most sessions at a time.",
    )),
    fixed(setting(
        "max_identifier_length",
        "63",
        Kind::Integer { min: 63, max: 63 },
        PRESET,
        "Longest identifier in bytes.",
    )),
    fixed(setting("max_index_keys", "32", Kind::Integer { min: 32, max: 32 }, PRESET, "Most columns of a key.")),
    setting("quote_all_identifiers", "off", ON_OFF, COMPATIBILITY, "Accepted for dumps; has no effect."),
    setting(
        "read_durability",
        "visible",
        Kind::Enum(&["visible", "durable"]),
        STREAMING,
        "Whether a read waits until a checkpoint holds what it shows.",
    ),
    setting("row_security", "on", ON_OFF, STATEMENT, "Accepted for dumps; there are no row policies."),
    setting(
        "search_path",
        "\"$user\", public",
        Kind::NameList,
        STATEMENT,
        "Schemas in which unqualified names are looked up.",
    ),
    setting(
        "select_on_workers",
        "on",
        ON_OFF,
        STREAMING,
        "Whether the workers of a cluster filter and aggregate rows before they send them.",
    ),
    reported(fixed(setting("server_encoding", "UTF8", Kind::Encoding, PRESET, "Character set of stored text."))),
    reported(fixed(setting(
        "server_version",
        SERVER_VERSION,
        Kind::Text,
        PRESET,
        "The PostgreSQL version whose protocol and dialect the server speaks.",
    ))),
    fixed(setting(
        "server_version_num",
        SERVER_VERSION_NUM,
        Kind::Integer { min: 0, max: 990_000 },
        PRESET,
        "The same as a number.",
    )),
    reported(fixed(setting("session_authorization", "", Kind::Text, PRESET, "The session's user."))),
    setting(
        "session_replication_role",
        "origin",
        Kind::Enum(&["origin", "replica", "local"]),
        STATEMENT,
        "Accepted for clients; has no effect.",
    ),
    fixed(setting("ssl", "off", ON_OFF, "Connections and Authentication / SSL", "Whether TLS connections are taken.")),
    reported(setting(
        "standard_conforming_strings",
        "on",
        Kind::Enum(&["on"]),
        COMPATIBILITY,
        "Backslashes in '...' strings are ordinary; always on.",
    )),
    setting("statement_timeout", "0", Kind::Milliseconds, STATEMENT, "Cancels a statement that runs longer."),
    setting("synchronize_seqscans", "on", ON_OFF, COMPATIBILITY, "Accepted for dumps; has no effect."),
    setting(
        "synchronous_commit",
        "on",
        Kind::Enum(&["on", "off", "local", "remote_write", "remote_apply"]),
        "Write-Ahead Log / Settings",
        "Accepted for clients; every acknowledged change is durable.",
    ),
    reported(setting("TimeZone", "UTC", Kind::TimeZone, LOCALE, "Time zone in which timestamps are shown and read.")),
    setting("transaction_deferrable", "off", ON_OFF, STATEMENT, "The current transaction's DEFERRABLE."),
    setting(
        "transaction_isolation",
        "serializable",
        ISOLATION,
        STATEMENT,
        "The current transaction's isolation level.",
    ),
    setting("transaction_read_only", "off", ON_OFF, STATEMENT, "Whether the current transaction is read-only."),
    setting(
        "transform_null_equals",
        "off",
        Kind::Enum(&["off"]),
        COMPATIBILITY,
        "Reads x = NULL as x IS NULL; always off.",
    ),
    fixed(setting(
        "wal_level",
        "logical",
        Kind::Text,
        "Write-Ahead Log / Settings",
        "What PostgreSQL clients expect of a server with a change log.",
    )),
    setting(
        "work_mem",
        "4MB",
        Kind::Kilobytes { min: 64 },
        "Resource Usage / Memory",
        "Accepted for clients; memory_limit of the server decides.",
    ),
    setting(
        "xmloption",
        "content",
        Kind::Enum(&["content", "document"]),
        STATEMENT,
        "Accepted for dumps; there is no XML.",
    ),
];

/// The setting with this name in any case.
pub fn find(name: &str) -> Option<&'static Setting> {
    let name = name.to_ascii_lowercase();
    SETTINGS.binary_search_by(|s| s.name.to_ascii_lowercase().as_str().cmp(&name)).ok().map(|i| &SETTINGS[i])
}

/// Maps what a user wrote to the canonical name of a time zone, or none when there is no such zone. The time zone data
/// live in another crate, so the caller brings this.
pub type ZoneLookup = fn(&str) -> Option<String>;

/// Longest text of one setting in bytes.
const MAX_VALUE_BYTES: usize = 64 * 1024;

/// Most settings with a dot in their names (`app.user_id`) that a session may make up.
const MAX_CUSTOM_SETTINGS: usize = 1000;

/// The settings of one session. Cloning is how a transaction remembers what to go back to.
#[derive(Clone, Debug)]
pub struct Settings {
    zone: ZoneLookup,
    /// Values that differ from the defaults, by lower-case name; custom ones (`a.b`) too.
    values: BTreeMap<String, String>,
    /// What RESET goes back to: from the configuration and the start-up message.
    session_defaults: BTreeMap<String, String>,
}

impl Settings {
    /// All defaults.
    pub fn new(zone: ZoneLookup) -> Settings {
        Settings { zone, values: BTreeMap::new(), session_defaults: BTreeMap::new() }
    }

    /// Sets what RESET goes back to, and the value: for the configuration and for start-up options. Also takes read-only
    /// settings, which is how the server fills `session_authorization`.
    pub fn set_default(&mut self, name: &str, value: &str) -> Result<()> {
        let canonical = self.canonical(name, value)?;
        self.session_defaults.insert(name.to_ascii_lowercase(), canonical.clone());
        self.values.insert(name.to_ascii_lowercase(), canonical);
        Ok(())
    }

    /// `SET name = value`. Gives the canonical value that is now in force.
    ///
    /// Errors: `42704` unknown (with the nearest name), `22023` bad value, `55P02` read-only.
    pub fn set(&mut self, name: &str, value: &str) -> Result<&str> {
        if let Some(s) = find(name).filter(|s| s.read_only) {
            let refused =
                Error::new(SqlState::CantChangeRuntimeParam, format!("parameter \"{}\" cannot be changed", s.name));
            return Err(match s.name {
                CHECKPOINT_INTERVAL => refused.with_hint("ALTER SYSTEM SET changes it for the whole server."),
                _ => refused,
            });
        }
        let canonical = self.canonical(name, value)?;
        let key = name.to_ascii_lowercase();
        if !self.values.contains_key(&key) && self.values.len() >= SETTINGS.len() + MAX_CUSTOM_SETTINGS {
            return Err(Error::new(
                SqlState::ProgramLimitExceeded,
                format!("a session can have at most {MAX_CUSTOM_SETTINGS} custom parameters"),
            ));
        }
        let slot = self.values.entry(key).or_default();
        *slot = canonical;
        Ok(slot)
    }

    /// `RESET name` (and `SET name TO DEFAULT`).
    pub fn reset(&mut self, name: &str) -> Result<()> {
        let key = name.to_ascii_lowercase();
        if find(&key).is_none() && !self.values.contains_key(&key) {
            return Err(unknown(name));
        }
        match self.session_defaults.get(&key) {
            Some(value) => self.values.insert(key, value.clone()),
            None => self.values.remove(&key),
        };
        Ok(())
    }

    /// `RESET ALL`.
    pub fn reset_all(&mut self) {
        self.values = self.session_defaults.clone();
    }

    /// The value in force, canonical; `42704` when there is no such setting.
    pub fn get(&self, name: &str) -> Result<&str> {
        let key = name.to_ascii_lowercase();
        match (self.values.get(&key), find(&key)) {
            (Some(value), _) => Ok(value),
            (None, Some(setting)) => Ok(setting.default),
            (None, None) => Err(unknown(name)),
        }
    }

    /// Every known setting with its value in force, by name; custom ones are not shown, as in PostgreSQL.
    pub fn all(&self) -> impl Iterator<Item = (&'static Setting, &str)> {
        SETTINGS.iter().map(|s| (s, self.values.get(&s.name.to_ascii_lowercase()).map_or(s.default, String::as_str)))
    }

    /// What RESET would set, canonical.
    pub fn reset_value(&self, setting: &'static Setting) -> &str {
        self.session_defaults.get(&setting.name.to_ascii_lowercase()).map_or(setting.default, String::as_str)
    }

    /// The settings that the client is told at the start and on change, by name.
    pub fn reported(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.all().filter(|(s, _)| s.report).map(|(s, value)| (s.name, value))
    }

    /// A boolean setting. False when it is not known.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_ok_and(|v| v == "on")
    }

    /// An integer setting.
    pub fn integer(&self, name: &str) -> Option<i64> {
        self.get(name).ok()?.parse().ok()
    }

    /// A time setting in milliseconds; none when it is off.
    pub fn duration_ms(&self, name: &str) -> Option<u64> {
        let ms = parse_milliseconds(self.get(name).ok()?)?;
        (ms > 0).then_some(ms)
    }

    /// The schemas of `search_path`, with `"$user"` replaced by `user`. Schemas that do not exist are still in it.
    pub fn search_path(&self, user: &str) -> Vec<String> {
        let names = self.get("search_path").ok().and_then(|p| split_names(p).ok()).unwrap_or_default();
        names.into_iter().map(|n| if n == "$user" { user.to_string() } else { n }).collect()
    }

    /// `value` as it would be kept for `name`, or why it cannot be.
    fn canonical(&self, name: &str, value: &str) -> Result<String> {
        if value.len() > MAX_VALUE_BYTES || value.contains('\0') {
            return Err(Error::new(SqlState::InvalidParameterValue, format!("invalid value for parameter \"{name}\""))
                .with_detail(format!("Values have at most {MAX_VALUE_BYTES} bytes and no null character.")));
        }
        let Some(setting) = find(name) else {
            return if is_custom_name(name) { Ok(value.to_string()) } else { Err(unknown(name)) };
        };
        canonical_value(setting, value, self.zone)
    }
}

/// `class.name`: an application's own setting, which PostgreSQL takes without asking.
fn is_custom_name(name: &str) -> bool {
    let word = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
    };
    name.contains('.') && name.len() <= names::MAX_IDENTIFIER_BYTES * 2 && name.split('.').all(word)
}

pub(crate) fn unknown(name: &str) -> Error {
    let error = Error::new(
        SqlState::UndefinedObject,
        format!("unrecognized configuration parameter \"{}\"", names::truncate_identifier(name)),
    );
    match names::nearest(name, SETTINGS.iter().map(|s| s.name)) {
        Some(near) => error.with_hint(format!("Perhaps you meant \"{near}\".")),
        None => error,
    }
}

fn invalid(setting: &Setting, value: &str) -> Error {
    Error::new(
        SqlState::InvalidParameterValue,
        format!("invalid value for parameter \"{}\": \"{value}\"", setting.name),
    )
}

fn canonical_value(setting: &Setting, value: &str, zone: ZoneLookup) -> Result<String> {
    let value_trimmed = value.trim();
    match setting.kind {
        Kind::Bool => match parse_bool(value_trimmed) {
            Some(true) => Ok("on".to_string()),
            Some(false) => Ok("off".to_string()),
            None => Err(Error::new(
                SqlState::InvalidParameterValue,
                format!("parameter \"{}\" requires a Boolean value", setting.name),
            )),
        },
        Kind::Integer { min, max } => match value_trimmed.parse::<i64>() {
            Ok(n) if (min..=max).contains(&n) => Ok(n.to_string()),
            Ok(n) => Err(Error::new(
                SqlState::InvalidParameterValue,
                format!("{n} is outside the valid range for parameter \"{}\" ({min} .. {max})", setting.name),
            )),
            Err(_) => Err(invalid(setting, value)),
        },
        Kind::Real { min, max } => match value_trimmed.parse::<f64>() {
            Ok(n) if n >= min && n <= max => Ok(n.to_string()),
            Ok(n) => Err(Error::new(
                SqlState::InvalidParameterValue,
                format!("{n} is outside the valid range for parameter \"{}\" ({min} .. {max})", setting.name),
            )),
            Err(_) => Err(invalid(setting, value)),
        },
        Kind::Milliseconds => match parse_milliseconds(value_trimmed) {
            Some(ms) if ms <= i32::MAX as u64 => Ok(show_milliseconds(ms)),
            Some(ms) => Err(Error::new(
                SqlState::InvalidParameterValue,
                format!("{ms} ms is outside the valid range for parameter \"{}\" (0 .. {})", setting.name, i32::MAX),
            )),
            None => Err(invalid(setting, value)
                .with_hint("Valid units for this parameter are \"us\", \"ms\", \"s\", \"min\", \"h\", and \"d\".")),
        },
        Kind::Kilobytes { min } => match parse_kilobytes(value_trimmed) {
            Some(kb) if kb >= min && kb <= i32::MAX as i64 => Ok(show_kilobytes(kb)),
            Some(kb) => Err(Error::new(
                SqlState::InvalidParameterValue,
                format!(
                    "{kb} kB is outside the valid range for parameter \"{}\" ({min} .. {})",
                    setting.name,
                    i32::MAX
                ),
            )),
            None => Err(invalid(setting, value)
                .with_hint("Valid units for this parameter are \"B\", \"kB\", \"MB\", \"GB\", and \"TB\".")),
        },
        Kind::Enum(words) => match words.iter().find(|w| w.eq_ignore_ascii_case(value_trimmed)) {
            Some(word) => Ok(word.to_string()),
            None if words.contains(&"on") && parse_bool(value_trimmed) == Some(true) => Ok("on".to_string()),
            None if words.contains(&"off") && parse_bool(value_trimmed) == Some(false) => Ok("off".to_string()),
            None => Err(invalid(setting, value).with_hint(format!("Available values: {}.", words.join(", ")))),
        },
        Kind::Text => Ok(value.to_string()),
        Kind::NameList => {
            let names = split_names(value).map_err(|why| invalid(setting, value).with_detail(why))?;
            // An empty element is a legal, never matching name: SET search_path = ''.
            Ok(names.iter().map(|n| flow::identifier::quote(n).into_owned()).collect::<Vec<_>>().join(", "))
        }
        Kind::TimeZone => {
            let unquoted = value_trimmed.trim_matches('\'');
            match unquoted.to_ascii_uppercase().as_str() {
                "UTC" | "Z" | "ZULU" => return Ok("UTC".to_string()),
                "GMT" => return Ok("GMT".to_string()),
                "DEFAULT" | "LOCAL" => return Ok(setting.default.to_string()),
                _ => {}
            }
            zone(unquoted).ok_or_else(|| {
                invalid(setting, value).with_hint("Use a name of the IANA time zone database, such as 'Europe/Berlin'.")
            })
        }
        Kind::DateStyle => date_style(value).ok_or_else(|| {
            invalid(setting, value)
                .with_hint("Only the ISO style is available, with DMY, MDY or YMD as the order of input.")
        }),
        Kind::IntervalStyle => match value_trimmed.to_ascii_lowercase().as_str() {
            style @ ("postgres" | "iso_8601") => Ok(style.to_string()),
            "postgres_verbose" | "sql_standard" => {
                Err(Error::unsupported(format!("IntervalStyle \"{value_trimmed}\" is not supported"))
                    .with_hint("Available values: postgres, iso_8601."))
            }
            _ => Err(invalid(setting, value).with_hint("Available values: postgres, iso_8601.")),
        },
        Kind::Encoding => {
            let folded: String = value_trimmed.chars().filter(char::is_ascii_alphanumeric).collect();
            match folded.to_ascii_uppercase().as_str() {
                "UTF8" | "UNICODE" => Ok("UTF8".to_string()),
                _ => Err(Error::unsupported(format!("conversion between {value_trimmed} and UTF8 is not supported"))
                    .with_hint("Set client_encoding to UTF8.")),
            }
        }
    }
}

/// `on`, `yes`, `true`, `1` and their unique prefixes; likewise for false.
pub fn parse_bool(text: &str) -> Option<bool> {
    let t = text.to_ascii_lowercase();
    let prefix = |word: &str, at_least: usize| t.len() >= at_least && word.starts_with(&t);
    if prefix("true", 1) || prefix("yes", 1) || t == "on" || t == "1" {
        Some(true)
    } else if prefix("false", 1) || prefix("no", 1) || prefix("off", 2) || t == "0" {
        Some(false)
    } else {
        None
    }
}

/// Milliseconds from `1500`, `1.5s`, `2 min`; rounded to the nearest.
fn parse_milliseconds(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let factor = match unit {
        "us" => 0.001,
        "" | "ms" => 1.0,
        "s" => 1e3,
        "min" => 60e3,
        "h" => 3_600e3,
        "d" => 86_400e3,
        _ => return None,
    };
    let ms = (number * factor).round();
    (0.0..=1e15).contains(&ms).then_some(ms as u64)
}

fn show_milliseconds(ms: u64) -> String {
    if ms == 0 {
        return "0".to_string();
    }
    for (factor, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")] {
        if ms.is_multiple_of(factor) {
            return format!("{}{unit}", ms / factor);
        }
    }
    format!("{ms}ms")
}

fn parse_kilobytes(text: &str) -> Option<i64> {
    let (number, unit) = split_unit(text)?;
    let factor = match unit {
        "B" => 1.0 / 1024.0,
        "" | "kB" => 1.0,
        "MB" => 1024.0,
        "GB" => 1_048_576.0,
        "TB" => 1_073_741_824.0,
        _ => return None,
    };
    let kb = (number * factor).round();
    (0.0..=1e15).contains(&kb).then_some(kb as i64)
}

fn show_kilobytes(kb: i64) -> String {
    for (factor, unit) in [(1_073_741_824, "TB"), (1_048_576, "GB"), (1024, "MB")] {
        if kb != 0 && kb % factor == 0 {
            return format!("{}{unit}", kb / factor);
        }
    }
    format!("{kb}kB")
}

fn split_unit(text: &str) -> Option<(f64, &str)> {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let number: f64 = text[..at].trim().parse().ok()?;
    number.is_finite().then_some((number, text[at..].trim()))
}

/// `ISO, DMY` from any order of style and field order.
fn date_style(value: &str) -> Option<String> {
    let mut order = "MDY";
    for word in value.split(',') {
        match word.trim().to_ascii_uppercase().as_str() {
            "ISO" | "DEFAULT" => {}
            "MDY" | "US" | "NONEURO" | "NONEUROPEAN" => order = "MDY",
            "DMY" | "EURO" | "EUROPEAN" => order = "DMY",
            "YMD" => order = "YMD",
            _ => return None,
        }
    }
    Some(format!("ISO, {order}"))
}

/// The names of a comma-separated identifier list: folded where unquoted, `""` for an empty quoted one.
fn split_names(text: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut name = String::new();
            let mut chars = quoted.char_indices().peekable();
            let end = loop {
                match chars.next() {
                    Some((_, '"')) if chars.peek().is_some_and(|(_, c)| *c == '"') => {
                        chars.next();
                        name.push('"');
                    }
                    Some((at, '"')) => break at + 1,
                    Some((_, c)) => name.push(c),
                    None => return Err("A quoted name is not closed.".to_string()),
                }
            };
            names.push(names::truncate_identifier(&name).to_string());
            rest = quoted[end..].trim_start();
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let name = rest[..end].trim();
            if name.is_empty() {
                return Err("List syntax is invalid.".to_string());
            }
            if name.contains('"') {
                return Err("List syntax is invalid.".to_string());
            }
            names.push(names::truncate_identifier(&name.to_lowercase()).to_string());
            rest = &rest[end..];
        }
        match rest.strip_prefix(',') {
            Some(after) if after.trim().is_empty() => return Err("List syntax is invalid.".to_string()),
            Some(after) => rest = after.trim_start(),
            None if rest.is_empty() => {}
            None => return Err("List syntax is invalid.".to_string()),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new(|name| name.eq_ignore_ascii_case("europe/berlin").then(|| "Europe/Berlin".to_string()))
    }

    #[test]
    fn every_default_is_its_own_canonical_form() {
        let names: Vec<String> = SETTINGS.iter().map(|s| s.name.to_ascii_lowercase()).collect();
        assert!(names.is_sorted());
        for s in SETTINGS {
            assert_eq!(canonical_value(s, s.default, |_| None).unwrap(), s.default, "{}", s.name);
        }
    }

    #[test]
    fn values_read_back_in_canonical_form() {
        for (name, value, expected) in [
            ("statement_timeout", "5000", "5s"),
            ("statement_timeout", "1.5 min", "90s"),
            ("STATEMENT_TIMEOUT", "1h", "1h"),
            ("lock_timeout", "0", "0"),
            ("timezone", "europe/berlin", "Europe/Berlin"),
            ("TimeZone", "utc", "UTC"),
            ("datestyle", "dmy", "ISO, DMY"),
            ("DateStyle", "ISO", "ISO, MDY"),
            ("background_ddl", "TRUE", "on"),
            ("client_encoding", "utf-8", "UTF8"),
            ("search_path", "Sales, \"Odd Name\", $user", "sales, \"Odd Name\", \"$user\""),
            ("search_path", "", ""),
            ("work_mem", "65536", "64MB"),
            ("extra_float_digits", " 3 ", "3"),
            ("default_transaction_isolation", "REPEATABLE READ", "repeatable read"),
            ("app.user_id", "7", "7"),
        ] {
            assert_eq!(settings().set(name, value).unwrap(), expected, "{name} = {value}");
        }
    }

    #[test]
    fn bad_values_and_names_are_refused_with_their_state() {
        for (name, value, code) in [
            ("statement_timeout", "soon", "22023"),
            ("statement_timeout", "-1", "22023"),
            ("statement_timeout", "1 fortnight", "22023"),
            ("extra_float_digits", "4", "22023"),
            ("timezone", "Mars/Olympus", "22023"),
            ("client_encoding", "LATIN1", "0A000"),
            ("bytea_output", "base64", "22023"),
            ("search_path", "a,,b", "22023"),
            ("search_path", "\"a", "22023"),
            ("standard_conforming_strings", "off", "22023"),
            ("server_version", "16", "55P02"),
            ("serch_path", "a", "42704"),
        ] {
            let error = settings().set(name, value).unwrap_err();
            assert_eq!(error.state().code(), code, "{name} = {value}: {error}");
        }
        let error = settings().get("serch_path").unwrap_err();
        assert_eq!(error.hint(), Some("Perhaps you meant \"search_path\"."));
    }

    #[test]
    fn reset_goes_back_to_what_the_session_started_with() {
        let mut s = settings();
        s.set_default("application_name", "psql").unwrap();
        s.set("application_name", "other").unwrap();
        s.set("statement_timeout", "1s").unwrap();
        assert_eq!(s.duration_ms("statement_timeout"), Some(1000));
        s.reset("application_name").unwrap();
        assert_eq!(s.get("application_name").unwrap(), "psql");
        s.reset_all();
        assert_eq!(s.duration_ms("statement_timeout"), None);
        assert_eq!(s.search_path("ann"), ["ann", "public"]);
    }
}
