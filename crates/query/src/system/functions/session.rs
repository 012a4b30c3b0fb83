//! Functions about the session and the server.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, TimestampMicrosecondArray};
use catalog::settings::SERVER_VERSION;
use catalog::types::oid;
use flow::{Error, Result, SqlState};

use super::{
    Arguments, BOOL, Definition, INT4, INT8, NAME, OID, TEXT, bools, ints, stable, text_lists, texts, volatile,
};
use crate::system::Snapshot;

pub(super) const FUNCTIONS: &[Definition] = &[
    stable("version", TEXT, version),
    stable("current_database", NAME, current_database),
    stable("current_catalog", NAME, current_database),
    stable("current_schema", NAME, current_schema),
    stable("current_schemas", 1003, current_schemas),
    stable("current_user", NAME, current_user),
    stable("current_role", NAME, current_user),
    stable("session_user", NAME, current_user),
    stable("user", NAME, current_user),
    stable("pg_backend_pid", INT4, backend_pid),
    stable("current_setting", TEXT, current_setting),
    volatile("set_config", TEXT, set_config),
    stable("inet_client_addr", TEXT, client_address),
    stable("inet_client_port", INT4, client_port),
    stable("inet_server_addr", TEXT, nothing),
    stable("inet_server_port", INT4, no_number),
    stable("pg_postmaster_start_time", oid::TIMESTAMPTZ, start_time),
    stable("pg_conf_load_time", oid::TIMESTAMPTZ, start_time),
    stable("pg_is_in_recovery", BOOL, no),
    stable("pg_is_wal_replay_paused", BOOL, no),
    stable("pg_in_recovery", BOOL, no),
    stable("pg_my_temp_schema", OID, zero),
    stable("pg_is_other_temp_schema", BOOL, no),
    stable("row_security_active", BOOL, no),
    stable("txid_current", INT8, epoch),
    stable("txid_current_if_assigned", INT8, no_number),
    stable("pg_current_xact_id", INT8, epoch),
    stable("pg_current_xact_id_if_assigned", INT8, no_number),
    stable("pg_current_wal_lsn", TEXT, wal_position),
    stable("pg_last_wal_receive_lsn", TEXT, nothing),
    stable("pg_last_wal_replay_lsn", TEXT, nothing),
    stable("pg_blocking_pids", 1007, no_pids),
    volatile("pg_advisory_unlock_all", TEXT, void),
    volatile("pg_cancel_backend", BOOL, cancel_backend),
    volatile("pg_terminate_backend", BOOL, terminate_backend),
    stable("pg_encoding_to_char", NAME, encoding_to_char),
    stable("pg_char_to_encoding", INT4, char_to_encoding),
    stable("getdatabaseencoding", NAME, database_encoding),
    stable("pg_client_encoding", NAME, database_encoding),
    stable("has_table_privilege", BOOL, allowed),
    stable("has_any_column_privilege", BOOL, allowed),
    stable("has_column_privilege", BOOL, allowed),
    stable("has_schema_privilege", BOOL, allowed),
    stable("has_database_privilege", BOOL, allowed),
    stable("has_function_privilege", BOOL, allowed),
    stable("has_sequence_privilege", BOOL, allowed),
    stable("has_type_privilege", BOOL, allowed),
    stable("has_language_privilege", BOOL, allowed),
    stable("has_tablespace_privilege", BOOL, allowed),
    stable("has_server_privilege", BOOL, allowed),
    stable("has_foreign_data_wrapper_privilege", BOOL, allowed),
    stable("has_parameter_privilege", BOOL, allowed),
    stable("pg_has_role", BOOL, allowed),
];

/// Number of UTF8 among PostgreSQL's encodings.
const UTF8: i64 = 6;

fn version(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    // Clients read the second word as the server's version.
    let text = format!("PostgreSQL {SERVER_VERSION} (Millstream {})", env!("CARGO_PKG_VERSION"));
    Ok(a.constant_text(Some(&text)))
}

fn current_database(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_text(Some(&s.session.database)))
}

/// The first schema of the path that exists; NULL when none does.
fn current_schema(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_text(s.session.existing_path(&s.catalog).next()))
}

fn current_schemas(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let implicit = a.bools(0)?.iter().next().flatten().unwrap_or(false);
    let mut path: Vec<String> = s.session.existing_path(&s.catalog).map(str::to_string).collect();
    if implicit && !path.iter().any(|p| p == "pg_catalog") {
        path.insert(0, "pg_catalog".to_string());
    }
    Ok(text_lists(a.rows, &path))
}

fn current_user(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_text(Some(&s.session.user)))
}

fn backend_pid(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_int(Some(s.session.pid.into())))
}

/// `current_setting(name [, missing_ok])`.
fn current_setting(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let (names, missing_ok) = (a.texts(0)?, a.bools(1)?);
    let mut values = Vec::with_capacity(a.rows);
    for (name, missing_ok) in names.iter().zip(missing_ok.iter()) {
        values.push(match name.map(|n| s.session.settings.get(n)) {
            None => None,
            Some(Ok(value)) => Some(value),
            Some(Err(_)) if missing_ok == Some(true) => None,
            Some(Err(error)) => return Err(error),
        });
    }
    Ok(texts(values))
}

/// `set_config(name, value, is_local)`.
fn set_config(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let (names, values, locals) = (a.texts(0)?, a.texts(1)?, a.bools(2)?);
    let mut new = Vec::with_capacity(a.rows);
    for i in 0..a.rows {
        if names.is_null(i) {
            return Err(Error::new(SqlState::NullValueNotAllowed, "SET requires parameter name"));
        }
        let value = values.is_valid(i).then(|| values.value(i));
        let local = locals.is_valid(i) && locals.value(i);
        new.push(Some(s.source.set_config(names.value(i), value, local)?));
    }
    Ok(texts(new))
}

fn client_address(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_text(s.session.client.as_ref().map(|c| c.0.as_str())))
}

fn client_port(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_int(s.session.client.as_ref().map(|c| c.1.into())))
}

fn nothing(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_text(None))
}

fn no_number(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_int(None))
}

fn zero(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_int(Some(0)))
}

fn no(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_bool(false))
}

/// What a function that returns `void` gives: an empty text.
fn void(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_text(Some("")))
}

fn no_pids(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(text_lists(a.rows, &[]))
}

/// Until roles have privileges, everyone may do everything; NULL stays NULL.
fn allowed(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let last = match a.count() {
        0 => return Ok(a.constant_bool(true)),
        n => a.column(n - 1),
    };
    Ok(bools((0..a.rows).map(|i| last.is_some_and(|c| c.is_valid(i)).then_some(true))))
}

fn start_time(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(Arc::new(TimestampMicrosecondArray::from_value(s.session.server_start_us, a.rows).with_timezone("UTC")))
}

fn epoch(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_int(i64::try_from(s.source.epoch()).ok()))
}

/// The last epoch in the form of a log position.
fn wal_position(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    let epoch = s.source.epoch();
    Ok(a.constant_text(Some(&format!("{:X}/{:X}", epoch >> 32, epoch & 0xffff_ffff))))
}

fn cancel(s: &Snapshot, a: &Arguments, terminate: bool) -> Result<ArrayRef> {
    Ok(bools(a.ints(0)?.iter().map(|pid| {
        let pid = i32::try_from(pid?).ok();
        Some(pid.is_some_and(|pid| s.source.cancel(pid, terminate)))
    })))
}

fn cancel_backend(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    cancel(s, a, false)
}

fn terminate_backend(s: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    cancel(s, a, true)
}

fn encoding_to_char(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    a.text_of_oid(|number| Some(if number == UTF8 { "UTF8" } else { "" }.to_string()))
}

fn char_to_encoding(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(ints(a.texts(0)?.iter().map(|name| {
        let folded: String = name?.chars().filter(char::is_ascii_alphanumeric).collect();
        Some(if matches!(folded.to_ascii_uppercase().as_str(), "UTF8" | "UNICODE") { UTF8 } else { -1 })
    })))
}

fn database_encoding(_: &Snapshot, a: &Arguments) -> Result<ArrayRef> {
    Ok(a.constant_text(Some("UTF8")))
}
