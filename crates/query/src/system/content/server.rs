//! The running server: settings and sessions.

use catalog::settings::Kind;

use super::Fill;
use crate::system::Snapshot;
use crate::system::rows::{Cell, Rows};
use crate::system::source::ActivityInfo;

pub fn filler(name: &str) -> Option<Fill> {
    Some(match name {
        "pg_settings" => pg_settings,
        "pg_stat_activity" => pg_stat_activity,
        "pg_stat_database" => pg_stat_database,
        "pg_stat_ssl" => pg_stat_ssl,
        "pg_timezone_names" => pg_timezone_names,
        _ => return None,
    })
}

fn pg_settings(s: &Snapshot, rows: &mut Rows) {
    for (setting, value) in s.session.settings.all() {
        let (kind, unit) = match setting.kind {
            Kind::Bool => ("bool", None),
            Kind::Integer { .. } => ("integer", None),
            Kind::Real { .. } => ("real", None),
            Kind::Milliseconds => ("integer", Some("ms")),
            Kind::Kilobytes { .. } => ("integer", Some("kB")),
            Kind::Enum(_) | Kind::IntervalStyle => ("enum", None),
            _ => ("string", None),
        };
        let (low, high) = match setting.kind {
            Kind::Integer { min, max } => (Some(min.to_string()), Some(max.to_string())),
            Kind::Real { min, max } => (Some(min.to_string()), Some(max.to_string())),
            _ => (None, None),
        };
        let words = match setting.kind {
            Kind::Enum(words) => Some(words.iter().map(|w| w.to_string()).collect::<Vec<_>>()),
            _ => None,
        };
        // Numbers with a unit are shown in the base unit here, and with a readable one by SHOW.
        let raw = match setting.kind {
            Kind::Milliseconds => s.session.settings.duration_ms(setting.name).unwrap_or(0).to_string(),
            _ => value.to_string(),
        };
        rows.push([
            ("name", setting.name.into()),
            ("setting", raw.into()),
            ("unit", unit.into()),
            ("category", setting.category.into()),
            ("short_desc", setting.description.into()),
            ("context", if setting.read_only { "internal" } else { "user" }.into()),
            ("vartype", kind.into()),
            ("source", if value == setting.default { "default" } else { "session" }.into()),
            ("min_val", low.into()),
            ("max_val", high.into()),
            ("enumvals", words.into()),
            ("boot_val", setting.default.into()),
            ("reset_val", s.session.settings.reset_value(setting).into()),
            ("pending_restart", false.into()),
        ]);
    }
}

/// The sessions that the server tells of, and in any case the one that asks.
pub fn sessions(s: &Snapshot) -> Vec<ActivityInfo> {
    let mut sessions = s.source.sessions();
    if !sessions.iter().any(|a| a.pid == s.session.pid) {
        sessions.push(ActivityInfo {
            pid: s.session.pid,
            database: s.session.database.clone(),
            user: s.session.user.clone(),
            application_name: s.session.settings.get("application_name").unwrap_or_default().to_string(),
            client: s.session.client.clone(),
            state: "active".to_string(),
            query_started_at_us: Some(s.session.now_us),
            ..ActivityInfo::default()
        });
    }
    sessions
}

fn pg_stat_activity(s: &Snapshot, rows: &mut Rows) {
    for a in sessions(s) {
        let time = |t: Option<i64>| t.map_or(Cell::Null, Cell::Timestamp);
        let (address, port) = a.client.unzip();
        rows.push([
            ("datid", s.catalog.database(&a.database).map(|d| d.oid).into()),
            ("datname", a.database.into()),
            ("pid", a.pid.into()),
            ("usesysid", s.role_oid(&a.user).into()),
            ("usename", a.user.into()),
            ("application_name", a.application_name.into()),
            ("client_addr", address.into()),
            ("client_port", port.map(i32::from).into()),
            ("backend_start", time(a.started_at_us)),
            ("xact_start", time(a.transaction_started_at_us)),
            ("query_start", time(a.query_started_at_us)),
            ("state_change", time(a.state_changed_at_us)),
            ("state", a.state.into()),
            ("query", a.query.into()),
            ("backend_type", "client backend".into()),
        ]);
    }
}

fn pg_stat_database(s: &Snapshot, rows: &mut Rows) {
    let sessions = sessions(s);
    for d in s.catalog.databases() {
        rows.push([
            ("datid", d.oid.into()),
            ("datname", (&d.name).into()),
            ("numbackends", sessions.iter().filter(|a| a.database == d.name).count().into()),
        ]);
    }
}

fn pg_stat_ssl(s: &Snapshot, rows: &mut Rows) {
    for a in sessions(s) {
        rows.push([("pid", a.pid.into()), ("ssl", false.into())]);
    }
}

/// Only the zones that need no database of zones; SET TimeZone takes every IANA name.
fn pg_timezone_names(_: &Snapshot, rows: &mut Rows) {
    for name in ["GMT", "UTC"] {
        rows.push([("name", name.into()), ("abbrev", name.into()), ("is_dst", false.into())]);
    }
}
