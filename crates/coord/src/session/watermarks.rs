//! `SHOW WATERMARKS` and `EXPLAIN WATERMARK`: where event time stands, and what holds it.

use std::collections::BTreeSet;

use arrow::array::TimestampMicrosecondArray;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use catalog::{Catalog, Relation, RelationKind};
use flow::{RelationId, Result};

use super::Session;
use super::show::Cells;
use crate::gate::{Gate, GateStatus, SplitStatus};

/// The columns of `SHOW WATERMARKS`: one row for each split of each relation that declares a watermark.
pub const COLUMNS: [&str; 9] =
    ["schema", "name", "watermark", "late_rows", "split", "newest", "last_row", "status", "holds"];

/// A moment as PostgreSQL writes a timestamp.
pub(super) fn timestamp(us: i64) -> String {
    let array = TimestampMicrosecondArray::from_value(us, 1);
    let options = FormatOptions::default().with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"));
    ArrayFormatter::try_new(&array, &options).map_or_else(|_| us.to_string(), |f| f.value(0).to_string())
}

/// A moment of event time.
fn moment(us: i64) -> String {
    match us {
        Gate::END => "ended".to_string(),
        us => timestamp(us),
    }
}

/// A span of real or event time, as a person would say it.
fn span(us: i64) -> String {
    match us {
        us if us < 1_000_000 => format!("{} ms", us / 1_000),
        us if us < 120_000_000 => format!("{:.1} s", us as f64 / 1e6),
        us if us < 7_200_000_000 => format!("{:.1} min", us as f64 / 6e7),
        us => format!("{:.1} h", us as f64 / 3.6e9),
    }
}

fn split_word(split: &SplitStatus, paused: bool) -> &'static str {
    match (split.ended, split.idle, split.newest_us) {
        (true, _, _) => "ended",
        _ if paused => "paused",
        (_, true, _) => "idle",
        (_, _, None) => "no rows yet",
        _ => "running",
    }
}

impl Session {
    pub(super) fn show_watermarks(&self, catalog: &Catalog) -> Cells {
        let now_us = self.engine.clock.time.now_us();
        let mut rows = Vec::new();
        let declared = catalog.relations().filter(|r| r.database == self.database && r.watermark().is_some());
        for relation in declared {
            let Some(gate) = self.engine.clock.gate(relation.oid) else { continue };
            let status = gate.status();
            let text = |us: Option<i64>| us.map(moment);
            let own = [
                Some(relation.schema.clone()),
                Some(relation.name.clone()),
                text(status.watermark_us),
                Some(status.late_rows.to_string()),
            ];
            if status.splits.is_empty() {
                let nothing = [None, None, None, Some("not read yet".to_string()), None];
                rows.push(own.iter().cloned().chain(nothing).collect());
            }
            for split in &status.splits {
                let more = [
                    Some(self.split_text(relation.oid, split)),
                    text(split.newest_us),
                    split.newest_us.map(|_| format!("{} ago", span(now_us.saturating_sub(split.active_us)))),
                    Some(split_word(split, self.is_paused(relation.oid)).to_string()),
                    Some(if split.holds { "yes" } else { "no" }.to_string()),
                ];
                rows.push(own.iter().cloned().chain(more).collect());
            }
        }
        rows
    }

    /// What the watermark of a relation is, and why. One line a row.
    pub(super) fn explain_watermark(&self, catalog: &Catalog, relation: &Relation) -> Result<Cells> {
        let mut inputs = BTreeSet::new();
        collect_inputs(catalog, relation.oid, &mut inputs);
        let inputs: Vec<&Relation> =
            inputs.iter().filter_map(|oid| catalog.relation(*oid)).map(|r| r.as_ref()).collect();
        let mut lines = Vec::new();
        let gates: Vec<(&Relation, GateStatus)> =
            inputs.iter().filter_map(|input| Some((*input, self.engine.clock.gate(input.oid)?.status()))).collect();
        let (noun, name) = (relation.kind().noun(), relation.qualified_name());
        let silent: Vec<&&Relation> = inputs.iter().filter(|i| !gates.iter().any(|(g, _)| g.oid == i.oid)).collect();
        let least = gates.iter().map(|(_, status)| status.watermark_us).min().flatten();
        lines.push(match (least, silent.is_empty() && !gates.is_empty()) {
            (Some(us), true) => format!("{noun} {name}: watermark {}", moment(us)),
            _ => format!("{noun} {name}: no watermark"),
        });
        for input in silent {
            let (noun, name) = (input.kind().noun(), input.qualified_name());
            lines.push(format!("  {noun} {name} declares no watermark, so no row that depends on it is ever final"));
            let fix = match input.kind() {
                RelationKind::Table => {
                    "create the table with WATERMARK FOR column AS column - INTERVAL '5 seconds' and APPEND ONLY"
                }
                _ => "create the source with WATERMARK FOR column AS column - INTERVAL '5 seconds'",
            };
            lines.push(format!("    fix: {fix}"));
        }
        for (input, status) in gates {
            self.explain_gate(input, &status, least, &mut lines);
        }
        Ok(lines.into_iter().map(|line| vec![Some(line)]).collect())
    }

    /// The split as users know it.
    fn split_text(&self, oid: RelationId, split: &SplitStatus) -> String {
        let source = self.engine.sources.get(oid);
        source.map_or_else(|| split.split.clone(), |s| s.source.split_text(&connect::Split(split.split.clone())))
    }

    fn is_paused(&self, oid: RelationId) -> bool {
        self.engine.sources.get(oid).is_some_and(|source| source.status().held)
    }

    fn explain_gate(&self, input: &Relation, status: &GateStatus, least: Option<i64>, lines: &mut Vec<String>) {
        let now_us = self.engine.clock.time.now_us();
        let Some(declared) = input.watermark() else { return };
        let column = input.columns.get(declared.column).map_or("", |c| c.name.as_str());
        let holds = if status.watermark_us == least { ": holds it" } else { "" };
        lines.push(format!(
            "  {} {}: watermark {} by {column} AS {}{holds}",
            input.kind().noun(),
            input.qualified_name(),
            status.watermark_us.map_or_else(|| "not set yet".to_string(), moment),
            declared.expression,
        ));
        lines.push(format!(
            "    it last moved {} ago; {} late rows",
            span(now_us.saturating_sub(status.moved_us)),
            status.late_rows
        ));
        if declared.allowed_lateness_us > 0 {
            lines.push(format!(
                "    rows are late, and windows close, {} behind it",
                span(declared.allowed_lateness_us)
            ));
        }
        let paused = self.is_paused(input.oid);
        if paused {
            lines.push("    the source is paused: no row comes and its watermark stands still".to_string());
            lines.push(format!("    fix: ALTER SOURCE {} RESUME", input.qualified_name()));
        }
        if status.splits.is_empty() && !paused {
            lines.push("    nothing reads the source yet".to_string());
            lines.push("    fix: create a materialized view or a sink that reads it".to_string());
        }
        for split in &status.splits {
            let silent = span(now_us.saturating_sub(split.active_us));
            let seen = match split.newest_us {
                Some(us) => format!("newest event {}, last row {silent} ago", moment(us)),
                None => format!("no row for {silent}"),
            };
            let holds = if split.holds { ": holds it" } else { "" };
            let text = self.split_text(input.oid, split);
            lines.push(format!("    split {text}: {}, {seen}{holds}", split_word(split, paused)));
            let stuck = split.holds && now_us.saturating_sub(split.active_us) > STUCK_US;
            if stuck && !paused {
                lines.push(match declared.idle_timeout_us {
                    None => "      fix: send a newer row, or create the source with idle_timeout = '10 s' in WITH (…), so that a silent split does not hold the watermark".to_string(),
                    Some(us) => format!("      it holds the watermark until it has been silent for {}", span(us)),
                });
            } else if split.holds && declared.delay_us > 0 {
                lines.push(format!("      the watermark stays {} behind its newest event", span(declared.delay_us)));
            }
        }
    }
}

/// A split that holds the watermark and has been silent for so long is a matter for its owner.
const STUCK_US: i64 = 1_000_000;

/// The tables and sources under a relation, itself if it is one.
fn collect_inputs(catalog: &Catalog, oid: RelationId, found: &mut BTreeSet<RelationId>) {
    let mut pending = vec![oid];
    let mut seen = BTreeSet::new();
    while let Some(oid) = pending.pop() {
        let Some(relation) = catalog.relation(oid).filter(|_| seen.insert(oid)) else { continue };
        match relation.kind() {
            RelationKind::Table | RelationKind::Source => {
                found.insert(oid);
            }
            _ => pending.extend(relation.depends_on.iter().copied()),
        }
    }
}
