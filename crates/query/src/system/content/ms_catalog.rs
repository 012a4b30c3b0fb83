//! Millstream's own views: jobs, sources, sinks, sessions, dependencies.

use catalog::{Definition, RelationKind, Sink, SinkInput};

use super::{Fill, option_texts};
use crate::system::Snapshot;
use crate::system::rows::{Cell, Rows};

pub fn filler(name: &str) -> Option<Fill> {
    Some(match name {
        "jobs" => jobs,
        "relations" => relations,
        "sources" => sources,
        "sinks" => sinks,
        "sessions" => sessions,
        "workers" => workers,
        "coordinators" => coordinators,
        "settings" => settings,
        "dependencies" => dependencies,
        "keywords" => keywords,
        _ => return None,
    })
}

fn time(us: Option<i64>) -> Cell {
    us.map_or(Cell::Null, Cell::Timestamp)
}

fn jobs(s: &Snapshot, rows: &mut Rows) {
    for job in s.source.jobs() {
        // A job whose relation was dropped after this snapshot's catalog is not of this snapshot.
        let Some(r) = s.catalog.relation(job.relation).filter(|r| r.database == s.session.database) else { continue };
        rows.push([
            ("id", job.relation.0.into()),
            ("name", (&r.name).into()),
            ("kind", r.kind().noun().into()),
            ("schema", (&r.schema).into()),
            ("state", job.state.into()),
            ("error", job.error.into()),
            ("progress", job.progress.into()),
            ("rows_in", job.rows_in.into()),
            ("rows_out", job.rows_out.into()),
            ("state_bytes", job.state_bytes.into()),
            ("lag_ms", job.lag_ms.into()),
            ("epoch", job.epoch.into()),
            ("created_at", time(job.created_at_us)),
        ]);
    }
}

fn relations(s: &Snapshot, rows: &mut Rows) {
    for r in s.catalog.relations() {
        rows.push([
            ("id", r.oid.0.into()),
            ("database", (&r.database).into()),
            ("schema", (&r.schema).into()),
            ("name", (&r.name).into()),
            ("kind", r.kind().noun().into()),
            ("owner", (&r.owner).into()),
            ("definition", s.query_text(r).into()),
        ]);
    }
}

fn sources(s: &Snapshot, rows: &mut Rows) {
    let running = s.source.sources();
    for r in s.readable().filter(|r| r.kind() == RelationKind::Source) {
        let Some(connector) = r.definition.connector() else { continue };
        let info = running.iter().find(|i| i.relation == r.oid);
        rows.push([
            ("id", r.oid.0.into()),
            ("schema", (&r.schema).into()),
            ("name", (&r.name).into()),
            ("connector", connector.name().into()),
            ("format", connector.format.as_ref().map(|f| f.format.as_str()).into()),
            ("encode", connector.format.as_ref().map(|f| f.encode.as_str()).into()),
            ("options", option_texts(&connector.options).into()),
            ("state", info.map(|i| i.state.as_str()).into()),
            ("rows_read", info.map(|i| i.rows_read).into()),
            ("progress", info.map(|i| i.progress).into()),
            ("total", info.map(|i| i.total).into()),
            ("unit", info.map(|i| i.unit.as_str()).into()),
            ("error", info.and_then(|i| i.error.as_deref()).into()),
        ]);
    }
}

fn sinks(s: &Snapshot, rows: &mut Rows) {
    for r in s.catalog.relations().filter(|r| r.database == s.session.database) {
        let Definition::Sink(sink) = &r.definition else { continue };
        let into = sink.into.and_then(|oid| s.catalog.relation(oid)).map(|t| t.qualified_name());
        rows.push([
            ("id", r.oid.0.into()),
            ("schema", (&r.schema).into()),
            ("name", (&r.name).into()),
            ("connector", sink.connector.name().into()),
            ("into_table", into.into()),
            ("format", sink.connector.format.as_ref().map(|f| f.format.as_str()).into()),
            ("encode", sink.connector.format.as_ref().map(|f| f.encode.as_str()).into()),
            ("options", option_texts(&sink.connector.options).into()),
        ]);
    }
}

fn sessions(s: &Snapshot, rows: &mut Rows) {
    for a in super::server::sessions(s) {
        rows.push([
            ("pid", a.pid.into()),
            ("database", a.database.into()),
            ("user_name", a.user.into()),
            ("application_name", a.application_name.into()),
            ("client_address", a.client.map(|(address, port)| format!("{address}:{port}")).into()),
            ("state", a.state.into()),
            ("query", a.query.into()),
            ("started_at", time(a.started_at_us)),
            ("query_started_at", time(a.query_started_at_us)),
        ]);
    }
}

fn workers(s: &Snapshot, rows: &mut Rows) {
    for worker in s.source.workers() {
        rows.push([
            ("id", worker.id.into()),
            ("address", worker.address.into()),
            ("slots", worker.slots.into()),
            ("state", worker.state.into()),
            ("last_heartbeat", time(worker.last_heartbeat_us)),
            ("started_at", time(worker.started_at_us)),
        ]);
    }
}

fn coordinators(s: &Snapshot, rows: &mut Rows) {
    for coordinator in s.source.coordinators() {
        rows.push([
            ("address", coordinator.address.into()),
            ("state", coordinator.state.into()),
            ("generation", coordinator.generation.into()),
            ("started_at", time(coordinator.started_at_us)),
        ]);
    }
}

fn settings(s: &Snapshot, rows: &mut Rows) {
    for (setting, value) in s.session.settings.all() {
        rows.push([
            ("name", setting.name.into()),
            ("setting", value.into()),
            ("default", setting.default.into()),
            ("description", setting.description.into()),
        ]);
    }
}

/// What `pg_get_keywords()` lists: the words that the parser knows, reserved or not.
fn keywords(_: &Snapshot, rows: &mut Rows) {
    let reserved = flow::identifier::RESERVED_WORDS;
    for keyword in datafusion::sql::sqlparser::keywords::ALL_KEYWORDS {
        let word = keyword.to_ascii_lowercase();
        let (code, description) =
            if reserved.binary_search(&word.as_str()).is_ok() { ("R", "reserved") } else { ("U", "unreserved") };
        rows.push([
            ("word", word.into()),
            ("catcode", code.into()),
            ("barelabel", (code == "U").into()),
            ("catdesc", description.into()),
            ("baredesc", if code == "U" { "can be bare label" } else { "requires AS" }.into()),
        ]);
    }
}

fn dependencies(s: &Snapshot, rows: &mut Rows) {
    for r in s.catalog.relations().filter(|r| r.database == s.session.database) {
        let mut inputs = r.depends_on.clone();
        if let Definition::Sink(Sink { input: SinkInput::Relation(input), .. }) = &r.definition {
            inputs.push(*input);
        }
        inputs.sort();
        inputs.dedup();
        for input in inputs.iter().filter_map(|oid| s.catalog.relation(*oid)) {
            rows.push([
                ("id", r.oid.0.into()),
                ("name", r.qualified_name().into()),
                ("depends_on", input.oid.0.into()),
                ("depends_on_name", input.qualified_name().into()),
            ]);
        }
    }
}
