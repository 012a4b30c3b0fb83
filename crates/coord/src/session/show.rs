//! SHOW and EXPLAIN.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, RecordBatch, StringViewArray};
use arrow::datatypes::SchemaRef;
use catalog::{Catalog, Definition, Relation, RelationKind, SinkInput};
use datafusion::logical_expr::LogicalPlan;
use flow::{Error, Result, SqlState};
use plan::process::Terminal;
use runtime::WorkerStatus;
use sql::QueryPlan;
use sql::planner::Settings;
use sql::statement::{Explain, ExplainFormat, ExplainLayer, ObjectKind, Parsed, Query, Show, ShowKind, Statement};

use super::names::scanned;
use super::replan::{STANDING_ZONE, standing};
use super::{Outcome, Session, planning, rows_outcome, text_columns};
use checkpoint::fsck::CheckpointLine;

use crate::checkpoints::CheckpointStatus;
use crate::subscriptions::Reader;

/// Rows of text cells.
pub(super) type Cells = Vec<Vec<Option<String>>>;

fn text_rows(schema: &SchemaRef, rows: &Cells) -> Result<RecordBatch> {
    let columns = (0..schema.fields().len())
        .map(|c| {
            let values = rows.iter().map(|r| r.get(c).and_then(|v| v.as_deref()));
            Arc::new(values.collect::<StringViewArray>()) as ArrayRef
        })
        .collect();
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

impl Session {
    pub(super) fn show_columns(&self, show: &Show) -> SchemaRef {
        match show {
            Show::Setting(name) => {
                let known = catalog::settings::find(name).map_or(name.as_str(), |s| s.name);
                text_columns(&[known])
            }
            Show::All => text_columns(&["name", "setting", "description"]),
            Show::Objects { kind: ShowKind::Schemas, .. } => text_columns(&["schema"]),
            Show::Objects { kind: ShowKind::Databases, .. } => text_columns(&["database"]),
            Show::Objects { kind: ShowKind::Sources, .. } => {
                text_columns(&["schema", "name", "connector", "status", "rows", "malformed", "progress", "error"])
            }
            Show::Objects { kind: ShowKind::Sinks, .. } => {
                text_columns(&["schema", "name", "connector", "status", "rows", "epoch", "error"])
            }
            Show::Objects { .. } => text_columns(&["schema", "name", "owner"]),
            Show::Columns(_) => text_columns(&["name", "type", "nullable", "default"]),
            Show::Create { .. } => text_columns(&["name", "statement"]),
            Show::Watermarks => text_columns(&super::watermarks::COLUMNS),
            Show::Checkpoints => {
                text_columns(&["epoch", "created", "duration", "pause", "jobs", "bytes", "state_bytes"])
            }
            Show::Savepoints => text_columns(&["name", "epoch", "created", "jobs", "state_bytes"]),
            Show::Subscriptions => {
                text_columns(&["pid", "user", "relation", "since", "epoch", "rows", "waiting_bytes"])
            }
            Show::Workers => text_columns(&["id", "address", "slots", "state", "last_heartbeat", "started"]),
            Show::Coordinators => text_columns(&["address", "state", "generation", "since"]),
            Show::WatermarkOf(_) => text_columns(&["QUERY PLAN"]),
            Show::Jobs => text_columns(&[
                "id",
                "name",
                "kind",
                "status",
                "progress",
                "epoch",
                "lag",
                "sqlstate",
                "error",
                "parallelism",
            ]),
        }
    }

    pub(super) async fn show(&mut self, show: &Show) -> Result<Outcome> {
        let schema = self.show_columns(show);
        let rows = self.show_rows(show).await?;
        let batch = text_rows(&schema, &rows)?;
        Ok(rows_outcome(schema, vec![batch], "SHOW", false))
    }

    async fn show_rows(&self, show: &Show) -> Result<Cells> {
        let catalog = self.catalog();
        let scope = self.scope();
        let text = |s: &str| Some(s.to_string());
        match show {
            Show::Setting(name) => Ok(vec![vec![text(self.shown_settings().get(name)?)]]),
            Show::All => Ok(self
                .shown_settings()
                .all()
                .map(|(s, value)| vec![text(s.name), text(value), text(s.description)])
                .collect()),
            Show::Objects { kind, schema, like } => {
                let matches = |name: &str| like.as_deref().is_none_or(|pattern| is_like(name, pattern));
                let kind = match kind {
                    ShowKind::Schemas => {
                        let names = catalog.schemas(&self.database).map(|s| s.name.as_str());
                        return Ok(names.filter(|n| matches(n)).map(|n| vec![text(n)]).collect());
                    }
                    ShowKind::Databases => {
                        let names = catalog.databases().map(|d| d.name.as_str());
                        return Ok(names.filter(|n| matches(n)).map(|n| vec![text(n)]).collect());
                    }
                    ShowKind::Tables => RelationKind::Table,
                    ShowKind::Sources => RelationKind::Source,
                    ShowKind::Sinks => RelationKind::Sink,
                    ShowKind::Views => RelationKind::View,
                    ShowKind::MaterializedViews => RelationKind::MaterializedView,
                };
                let mut found: Vec<&Arc<Relation>> = catalog
                    .relations()
                    .filter(|r| r.kind() == kind && r.database == self.database && matches(&r.name))
                    .filter(|r| match schema {
                        Some(schema) => &r.schema == schema,
                        None => scope.search_path.contains(&r.schema),
                    })
                    .collect();
                found.sort_by_key(|r| (&r.schema, &r.name));
                Ok(found.into_iter().map(|r| self.object_row(r)).collect())
            }
            Show::Columns(name) => {
                let relation = catalog.resolve(&scope.database, &scope.search_path, &super::define::parts(name))?;
                Ok(relation
                    .columns
                    .iter()
                    .map(|c| {
                        let nullable = if c.nullable { "yes" } else { "no" };
                        vec![text(&c.name), text(&c.sql_type), text(nullable), c.default.clone()]
                    })
                    .collect())
            }
            Show::Create { kind, name } => {
                let relation = catalog.resolve(&scope.database, &scope.search_path, &super::define::parts(name))?;
                let wanted = match kind {
                    ObjectKind::Table => RelationKind::Table,
                    ObjectKind::Source => RelationKind::Source,
                    ObjectKind::Sink => RelationKind::Sink,
                    ObjectKind::View => RelationKind::View,
                    _ => RelationKind::MaterializedView,
                };
                if relation.kind() != wanted {
                    return Err(Error::new(
                        SqlState::WrongObjectType,
                        format!("\"{}\" is a {}", relation.name, relation.kind().noun()),
                    )
                    .with_hint(format!("Use SHOW CREATE {}.", relation.kind().keyword())));
                }
                let name_of = |oid| catalog.relation(oid).map(|r| sql::Name::qualified(&r.schema, &r.name));
                let create = create_statement(relation, &name_of)?;
                Ok(vec![vec![Some(relation.qualified_name()), Some(create)]])
            }
            Show::Watermarks => Ok(self.show_watermarks(&catalog)),
            Show::Checkpoints => Ok(self.show_checkpoints()),
            Show::Savepoints => self.show_savepoints().await,
            Show::Subscriptions => Ok(self.show_subscriptions(&catalog)),
            Show::Workers => Ok(self.show_workers()),
            Show::Coordinators => Ok(self.show_coordinators()),
            Show::WatermarkOf(name) => {
                let relation = catalog.resolve(&scope.database, &scope.search_path, &super::define::parts(name))?;
                self.explain_watermark(&catalog, relation)
            }
            Show::Jobs => {
                let completed = self.engine.clock.completed();
                let mut jobs = self.engine.clock.board.all();
                jobs.retain(|(oid, _)| catalog.relation(*oid).is_some_and(|r| r.database == self.database));
                Ok(jobs
                    .into_iter()
                    .filter_map(|(oid, job)| Some((catalog.relation(oid)?, job)))
                    .map(|(relation, job)| {
                        let oid = relation.oid;
                        let failed = match &job.phase {
                            crate::job::Phase::Failed(e) => Some(e.clone()),
                            _ => None,
                        };
                        let cause = failed.clone().or_else(|| self.engine.stalled(oid, &job));
                        let done = job.finished.filter(|t| t.is_end()).map(|t| t.epoch);
                        let progress = match (&job.phase, job.backfill) {
                            (crate::job::Phase::Backfilling, Some((done, total))) => {
                                Some(format!("{done} of {total} rows ({} %)", done * 100 / total.max(1)))
                            }
                            _ => None,
                        };
                        vec![
                            Some(oid.to_string()),
                            Some(relation.qualified_name()),
                            text(relation.kind().noun()),
                            Some(self.engine.job_state(oid, &job)),
                            progress,
                            done.map(|e| e.to_string()),
                            done.filter(|_| failed.is_none()).map(|e| completed.0.saturating_sub(e.0).to_string()),
                            cause.as_ref().map(|e| e.state().code().to_string()),
                            cause.map(|e| match e.detail() {
                                Some(detail) => format!("{} ({detail})", e.message()),
                                None => e.message().to_string(),
                            }),
                            job.parallelism.map(|n| match relation.parallelism() {
                                // There are fewer slots than when it was asked for.
                                Some(wanted) if wanted as usize > n => format!("{n} of {wanted}"),
                                _ => n.to_string(),
                            }),
                        ]
                    })
                    .collect())
            }
        }
    }

    /// The checkpoints that are kept, the newest first.
    fn show_checkpoints(&self) -> Cells {
        let kept = self.engine.keeper().map(|keeper| keeper.all()).unwrap_or_default();
        let shown = |c: &CheckpointStatus| {
            vec![
                Some(c.epoch.to_string()),
                Some(super::watermarks::timestamp(c.created_us)),
                c.duration_us.map(|us| format!("{:.1} ms", us as f64 / 1e3)),
                c.pause_us.map(|us| format!("{:.1} ms", us as f64 / 1e3)),
                Some(c.jobs.to_string()),
                c.bytes.map(|bytes| bytes.to_string()),
                Some(c.state_bytes.to_string()),
            ]
        };
        kept.iter().rev().map(shown).collect()
    }

    async fn show_savepoints(&self) -> Result<Cells> {
        let Some(keeper) = self.engine.keeper() else { return Ok(Vec::new()) };
        let shown = |line: CheckpointLine| {
            vec![
                line.savepoint,
                Some(line.epoch.to_string()),
                Some(super::watermarks::timestamp(line.created_us)),
                Some(line.jobs.len().to_string()),
                Some(line.bytes.to_string()),
            ]
        };
        Ok(keeper.savepoints().await?.into_iter().map(shown).collect())
    }

    fn show_workers(&self) -> Cells {
        let row = |worker: WorkerStatus| {
            vec![
                Some(worker.id.to_string()),
                Some(worker.address),
                Some(worker.slots.to_string()),
                Some(worker.state.name().to_string()),
                worker.heard_us.map(super::watermarks::timestamp),
                Some(super::watermarks::timestamp(worker.started_us.unwrap_or(self.engine.started_us))),
            ]
        };
        self.engine.worker.processes().into_iter().map(row).collect()
    }

    /// The one that answers; those that stand by are not known to it.
    fn show_coordinators(&self) -> Cells {
        vec![vec![
            Some(self.engine.address().to_string()),
            Some("leader".into()),
            self.engine.generation().map(|generation| generation.0.to_string()),
            Some(super::watermarks::timestamp(self.engine.started_us)),
        ]]
    }

    fn show_subscriptions(&self, catalog: &Catalog) -> Cells {
        let shown = |reader: &Arc<Reader>| {
            let relation = catalog.relation(reader.relation).filter(|r| r.database == self.database)?;
            Some(vec![
                Some(reader.pid.to_string()),
                Some(reader.user.clone()),
                Some(relation.qualified_name()),
                Some(super::watermarks::timestamp(reader.started_us)),
                Some(reader.epoch.load(Ordering::Relaxed).to_string()),
                Some(reader.rows.load(Ordering::Relaxed).to_string()),
                Some(reader.follower.backlog().to_string()),
            ])
        };
        self.engine.clock.feeds.readers().iter().filter_map(shown).collect()
    }

    fn object_row(&self, relation: &Relation) -> Vec<Option<String>> {
        let mut row = vec![Some(relation.schema.clone()), Some(relation.name.clone())];
        let connector = relation.definition.connector().and_then(|c| c.name()).map(str::to_string);
        let failure = self.engine.clock.board.failure(relation.oid);
        match relation.kind() {
            RelationKind::Source => {
                let mut status = self.engine.sources.get(relation.oid).map(|s| s.status()).unwrap_or_default();
                status.failed = status.failed.or(failure);
                row.extend([
                    connector,
                    Some(status.word().into()),
                    Some(status.rows.to_string()),
                    Some(status.skipped.to_string()),
                    Some(format!("{} of {} {}", status.progress.done, status.progress.total, status.unit)),
                    status.failed.map(|e| e.message().to_string()),
                ]);
            }
            RelationKind::Sink => {
                let status = self.engine.sinks.status(relation.oid);
                row.extend([
                    connector,
                    Some(if failure.is_some() { "failed" } else { "running" }.into()),
                    status.map(|s| s.rows.to_string()),
                    status.map(|s| s.published.to_string()),
                    failure.map(|e| e.message().to_string()),
                ]);
            }
            _ => row.push(Some(relation.owner.clone())),
        }
        row
    }

    pub(super) async fn explain(&mut self, explain: &Explain, parsed: &Arc<Parsed>) -> Result<Outcome> {
        if explain.analyze && (explain.layer != ExplainLayer::Table || explain.format != ExplainFormat::Text) {
            return Err(Error::unsupported("EXPLAIN ANALYZE is supported for the table layer, as text")
                .with_hint("Leave LAYER and FORMAT out; SHOW JOBS tells of running views."));
        }
        let (query, ad_hoc, emit_on_close): (&Query, bool, bool) = match &explain.statement {
            Statement::Query(query) => (query, true, false),
            Statement::CreateView(view) => (&view.query, false, view.emit_on_close),
            Statement::CreateSink(sink) => match &sink.from {
                sql::statement::SinkFrom::Query { query, emit_on_close, .. } => (query, false, *emit_on_close),
                sql::statement::SinkFrom::Relation(_) => {
                    return Err(Error::unsupported("EXPLAIN of a sink needs its query")
                        .with_hint("Explain the relation that it reads."));
                }
            },
            other => return Err(Error::unsupported(format!("EXPLAIN of {} is not supported", other.tag()))),
        };
        let catalog = self.catalog();
        let table_layer = explain.layer == ExplainLayer::Table;
        let planned = if ad_hoc && table_layer {
            self.plan_query(query, &parsed.source, &[], &catalog)?
        } else {
            let names = self.names(&catalog, None);
            sql::Planner::new(&names, Settings::standing(STANDING_ZONE))?.query(query, &parsed.source, &[])?
        };
        use plan::explain as layers;
        let pretty = |json: serde_json::Value| format!("{json:#}");
        let mut optimized = None;
        let mut text = planning::compute(planning::is_long(&parsed.source), || -> Result<String> {
            if table_layer {
                let plan =
                    self.statement_state().optimize(&planned.plan).map_err(plan::error::from_datafusion_error)?;
                let text = match explain.format {
                    ExplainFormat::Text => layers::table(&plan),
                    ExplainFormat::Json => layers::table_json(&plan),
                    ExplainFormat::Dot => layers::table_dot(&plan),
                };
                optimized = Some(plan);
                return Ok(text);
            }
            let standing = standing(planned.plan.clone(), emit_on_close)?;
            if explain.layer == ExplainLayer::Process {
                let terminal = Terminal::Materialize { relation: flow::RelationId(0) };
                let process = plan::process::lower(&standing.node, flow::JobId(0), terminal)?;
                return Ok(match explain.format {
                    ExplainFormat::Text => layers::process(&process),
                    ExplainFormat::Json => pretty(layers::process_json(&process)?),
                    ExplainFormat::Dot => layers::process_dot(&process),
                });
            }
            Ok(match explain.format {
                ExplainFormat::Text => layers::stream(&standing.node),
                ExplainFormat::Json => pretty(layers::stream_json(&standing.node)),
                ExplainFormat::Dot => layers::stream_dot(&standing.node),
            })
        })?;
        if ad_hoc
            && explain.format == ExplainFormat::Text
            && let Some(plan) = optimized
        {
            for line in self.explain_run(&planned, &plan, explain.analyze).await? {
                text.push('\n');
                text.push_str(&line);
            }
        }
        let schema = text_columns(&["QUERY PLAN"]);
        let rows: Cells = text.lines().map(|l| vec![Some(l.to_string())]).collect();
        let batch = text_rows(&schema, &rows)?;
        Ok(rows_outcome(schema, vec![batch], "EXPLAIN", false))
    }

    /// What the workers of a cluster do for a query, whose optimised plan is `plan`. With `analyze` it is run: also what they
    /// have read and sent, and what came of it.
    async fn explain_run(&mut self, planned: &QueryPlan, plan: &LogicalPlan, analyze: bool) -> Result<Vec<String>> {
        if analyze && !planned.parameters.is_empty() {
            return Err(Error::unsupported("EXPLAIN ANALYZE of a query with parameters is not supported")
                .with_hint("Write the values in their places."));
        }
        let elsewhere = self.engine.worker.shared().is_none();
        if !analyze && (!elsewhere || !planned.parameters.is_empty()) {
            return Ok(Vec::new());
        }
        let begun_us = self.engine.config.time.now_us();
        let view = Arc::new(self.view(&scanned(plan)?, None).await?);
        let state = self.statement_state();
        if !analyze {
            return query::explain_elsewhere(&state, plan, view).await;
        }
        let (rows, mut lines) = query::measure(&state, plan, view).await?;
        let took_us = self.engine.config.time.now_us().saturating_sub(begun_us);
        lines.push(format!("Rows: {rows}"));
        lines.push(format!("Time: {}.{:03} ms", took_us / 1000, took_us % 1000));
        Ok(lines)
    }
}

/// SQL's LIKE over names: `%` and `_`.
fn is_like(name: &str, pattern: &str) -> bool {
    fn go(name: &[char], pattern: &[char]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some(('%', rest)) => (0..=name.len()).any(|skip| go(&name[skip..], rest)),
            Some(('_', rest)) => name.split_first().is_some_and(|(_, n)| go(n, rest)),
            Some((c, rest)) => name.split_first().is_some_and(|(n, more)| n == c && go(more, rest)),
        }
    }
    go(&name.chars().collect::<Vec<_>>(), &pattern.chars().collect::<Vec<_>>())
}

/// The statement that makes a relation again, with the names of now.
pub fn create_statement(
    relation: &Relation,
    name_of: &dyn Fn(flow::RelationId) -> Option<sql::Name>,
) -> Result<String> {
    use sql::definition::{
        ColumnText, WatermarkText, create_sink_text, create_source_text, create_table_text, create_view_text, display,
    };
    let name = sql::Name::qualified(&relation.schema, &relation.name);
    let columns: Vec<ColumnText> = relation
        .columns
        .iter()
        .map(|c| ColumnText {
            name: c.name.clone(),
            sql_type: c.sql_type.clone(),
            not_null: !c.nullable,
            default: c.default.clone(),
        })
        .collect();
    let column_names: Vec<String> = columns.iter().map(|c| c.name.clone()).collect();
    let options = |connector: &catalog::Connector| -> Vec<(String, String)> {
        catalog::shown_options(&connector.options).map(|(k, v)| (k.to_string(), v.to_string())).collect()
    };
    let format = |connector: &catalog::Connector| {
        connector.format.as_ref().map(|f| sql::statement::Format {
            format: f.format.clone(),
            encode: f.encode.clone(),
            options: catalog::shown_options(&f.options).map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            position: 0,
        })
    };
    let watermark = relation.watermark().map(|w| WatermarkText {
        column: relation.columns.get(w.column).map_or("", |c| c.name.as_str()),
        expression: &w.expression,
    });
    Ok(match &relation.definition {
        Definition::Table(table) => {
            let key: Vec<String> = table.primary_key.iter().map(|i| relation.columns[*i].name.clone()).collect();
            let on_conflict = match table.on_conflict {
                catalog::OnConflict::Error => sql::statement::OnConflict::Error,
                catalog::OnConflict::Overwrite => sql::statement::OnConflict::Overwrite,
                catalog::OnConflict::DoNothing => sql::statement::OnConflict::DoNothing,
            };
            let options = table.watermark.as_ref().map(crate::connectors::watermark_options).unwrap_or_default();
            create_table_text(&name, &columns, &key, watermark, table.append_only, on_conflict, &options)
        }
        Definition::Source(source) => {
            let mut options = options(&source.connector);
            options.extend(source.watermark.iter().flat_map(crate::connectors::watermark_options));
            options.extend(source.rate_limit.map(|rate| (crate::connectors::RATE_LIMIT.into(), rate.to_string())));
            let (own, included) = columns.split_at(columns.len().saturating_sub(source.include.len()));
            let include: Vec<(String, String)> =
                source.include.iter().cloned().zip(included.iter().map(|c| c.name.clone())).collect();
            let format = format(&source.connector);
            create_source_text(&name, own, &[], watermark, &include, &options, format.as_ref())
        }
        Definition::View(query) => create_view_text(&name, false, &column_names, &[], &display(&query.sql, name_of)?),
        Definition::MaterializedView(query) => {
            let emit = if query.emit_on_close { " EMIT ON WINDOW CLOSE" } else { "" };
            let options = crate::connectors::view_option_texts(query);
            create_view_text(&name, true, &column_names, &options, &display(&query.sql, name_of)?) + emit
        }
        Definition::Sink(sink) => {
            let from = match &sink.input {
                SinkInput::Relation(oid) => match name_of(*oid) {
                    Some(input) => format!("FROM {input}"),
                    None => return Err(Error::internal("a sink's input is gone")),
                },
                SinkInput::Query(query) => {
                    let emit = if query.emit_on_close { " EMIT ON WINDOW CLOSE" } else { "" };
                    format!("AS {}{emit}", display(&query.sql, name_of)?)
                }
            };
            let into = sink.into.and_then(name_of);
            let mut options = options(&sink.connector);
            options.extend(crate::connectors::parallelism_text(sink.parallelism));
            create_sink_text(&name, into.as_ref(), &from, &options, format(&sink.connector).as_ref())
        }
    })
}
