//! `sql-tests/**/*.slt`: each file as batch, then its queries as standing views fed in a seeded order, then the same with a
//! checkpoint every few steps, views that move to another parallelism, and restarts with other slots that lose everything since the
//! last one.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::SchemaRef;
use catalog::{OnConflict, Relation, RelationKind};
use coord::execution::{Execution, Threads};
use coord::job::Phase;
use coord::session::Session;
use coord::session::show::create_statement;
use coord::table::WriteSet;
use futures::StreamExt;
use sqllogictest::{DBOutput, DefaultColumnType, Record};

use crate::harness::{Answer, Instance, Rng, config, keeping, ok, render, rows, run, scratch, seed};
use crate::slt_files::{LABEL, Standing, files, known_differences, name_of, normal, standing_queries};

/// Most files take less than a second; one that waits for ever is a failure, not a hang.
const FILE_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(120);

/// Files that are checked side by side: planning, which takes most of the time, is the work of one thread.
const FILES_AT_ONCE: usize = 2;

/// A session as sqllogictest drives it.
struct Db(Session);

#[async_trait::async_trait]
impl sqllogictest::AsyncDB for Db {
    type Error = flow::Error;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, flow::Error> {
        match run(&mut self.0, sql).await? {
            Answer::Tag(tag) => {
                let count = tag.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
                Ok(DBOutput::StatementComplete(count))
            }
            Answer::Rows(schema, batches) => {
                let types = column_types(&schema);
                Ok(DBOutput::Rows { types, rows: batches.iter().flat_map(render).collect() })
            }
        }
    }

    fn engine_name(&self) -> &str {
        LABEL
    }

    async fn shutdown(&mut self) {}
}

fn column_types(schema: &SchemaRef) -> Vec<DefaultColumnType> {
    use arrow::datatypes::DataType as T;
    schema
        .fields()
        .iter()
        .map(|f| match f.data_type() {
            T::Int16 | T::Int32 | T::Int64 => DefaultColumnType::Integer,
            T::Float32 | T::Float64 | T::Decimal128(_, _) => DefaultColumnType::FloatingPoint,
            _ => DefaultColumnType::Text,
        })
        .collect()
}

/// The final contents of a file's tables, and its views.
struct Contents {
    tables: Vec<(Arc<Relation>, RecordBatch)>,
    views: Vec<String>,
}

async fn contents(instance: &Instance) -> Contents {
    let catalog = instance.engine.catalog();
    let mut session = instance.session();
    let mut tables = Vec::new();
    let mut views = Vec::new();
    let mut relations: Vec<_> = catalog.relations().cloned().collect();
    relations.sort_by_key(|r| r.oid);
    for relation in relations {
        match relation.kind() {
            RelationKind::Table => {
                let name = relation.qualified_name();
                let Ok(Answer::Rows(_, batches)) = run(&mut session, &format!("SELECT * FROM {name}")).await else {
                    panic!("cannot read {name}")
                };
                let schema = Arc::new(arrow::datatypes::Schema::new(
                    relation.columns.iter().map(|c| c.field().with_nullable(true)).collect::<Vec<_>>(),
                ));
                let columns =
                    batches.iter().map(|b| RecordBatch::try_new(Arc::clone(&schema), b.columns().to_vec()).unwrap());
                let columns: Vec<_> = columns.collect();
                tables.push((Arc::clone(&relation), arrow::compute::concat_batches(&schema, &columns).unwrap()));
            }
            RelationKind::View | RelationKind::MaterializedView => {
                let name_of = |oid| catalog.relation(oid).map(|r| sql::Name::qualified(&r.schema, &r.name));
                views.push(create_statement(&relation, &name_of).unwrap());
            }
            _ => {}
        }
    }
    Contents { tables, views }
}

/// One step of a feed.
enum Step {
    /// Adds rows (by index into the table's final contents).
    Insert {
        table: usize,
        rows: Vec<u32>,
    },
    /// Adds a row that will be taken away: the key of `row`, everything else of `other`.
    Decoy {
        table: usize,
        row: u32,
        other: u32,
    },
    /// Takes the decoy away and adds the true row.
    Correct {
        table: usize,
        row: u32,
        other: u32,
    },
    View(usize),
}

/// A seeded order of inserts, decoys (if wanted), corrections and view creations that ends in `contents`.
fn feed(contents: &Contents, views: usize, decoys: bool, rng: &mut Rng) -> Vec<Step> {
    let mut early = Vec::new();
    let mut late = Vec::new();
    for (table, (relation, rows)) in contents.tables.iter().enumerate() {
        let count = rows.num_rows() as u32;
        let mut open: Vec<u32> = (0..count).collect();
        let append_only = relation.table().is_some_and(|t| t.append_only);
        while !open.is_empty() {
            let row = open.swap_remove(rng.below(open.len()));
            if decoys && !append_only && rng.below(4) == 0 {
                let other = rng.below(count as usize) as u32;
                early.push(Step::Decoy { table, row, other });
                late.push(Step::Correct { table, row, other });
                continue;
            }
            let mut batch = vec![row];
            while !open.is_empty() && rng.below(3) > 0 {
                batch.push(open.swap_remove(rng.below(open.len())));
            }
            let step = Step::Insert { table, rows: batch };
            if rng.below(3) == 0 { late.push(step) } else { early.push(step) }
        }
    }
    let mut steps = Vec::new();
    for part in [&mut early, &mut late] {
        while !part.is_empty() {
            steps.push(part.swap_remove(rng.below(part.len())));
        }
    }
    // Before, during and after the rows.
    for view in 0..views {
        let at = match rng.below(3) {
            0 => 0,
            1 => steps.len(),
            _ => rng.below(steps.len() + 1),
        };
        steps.insert(at, Step::View(view));
    }
    steps
}

fn mixed(relation: &Relation, rows: &RecordBatch, row: u32, other: u32) -> RecordBatch {
    let key = relation.primary_key();
    let columns = rows
        .columns()
        .iter()
        .enumerate()
        .map(|(i, c)| {
            let from = if key.contains(&i) { row } else { other };
            arrow::compute::take(c.as_ref(), &UInt32Array::from(vec![from]), None).unwrap()
        })
        .collect();
    RecordBatch::try_new(rows.schema(), columns).unwrap()
}

async fn write(
    instance: &Instance,
    relation: &Arc<Relation>,
    delete: Option<RecordBatch>,
    insert: Option<RecordBatch>,
) {
    let engine = &instance.engine;
    let table = engine.table(relation.oid).unwrap();
    let mut set = WriteSet::default();
    set.open(&table, relation).unwrap();
    if let Some(rows) = delete {
        set.delete(relation.oid, rows).unwrap();
    }
    if let Some(rows) = insert {
        set.insert(relation.oid, rows, OnConflict::Error).unwrap();
    }
    set.commit(&engine.clock, &engine.log, &engine.budget, engine.floor(), None).await.unwrap();
}

/// How an engine that is fed comes through it.
#[derive(Clone)]
pub enum Life {
    /// In one piece, run in this way.
    Whole(Arc<dyn Execution>),
    /// With checkpoints and restarts, each start run in a way of its own.
    Restarts(Executions),
}

/// Makes the way in which a start runs.
pub type Executions = Arc<dyn Fn() -> Arc<dyn Execution> + Send + Sync>;

/// With a thread for each part.
fn restarts() -> Life {
    Life::Restarts(Arc::new(|| Arc::new(Threads::default()) as Arc<dyn Execution>))
}

/// The relations of `contents` in an engine.
fn found(instance: &Instance, contents: &Contents) -> Vec<Arc<Relation>> {
    let catalog = instance.engine.catalog();
    let named = |r: &Relation| Arc::clone(catalog.relation_named("dev", &r.schema, &r.name).unwrap());
    contents.tables.iter().map(|(r, _)| named(r)).collect()
}

/// Moves one of the views to another parallelism, unless it has stopped.
async fn rescale(instance: &Instance, session: &mut Session, slots: usize, rng: &mut Rng) -> Option<String> {
    let catalog = instance.engine.catalog();
    let views: Vec<_> = catalog.relations().filter(|r| r.kind() == RelationKind::MaterializedView).collect();
    let view = views.get(rng.below(views.len()))?;
    instance.engine.wait_ready(view.oid).await.ok()?;
    let alter = format!(
        "ALTER MATERIALIZED VIEW \"{}\".\"{}\" SET PARALLELISM {}",
        view.schema,
        view.name,
        1 + rng.below(slots)
    );
    let error = run(session, &alter).await.err()?;
    // It may stop meanwhile, or a view that reads it.
    let stopped = instance.engine.clock.board.all().iter().any(|(_, job)| matches!(job.phase, Phase::Failed(_)));
    (!stopped).then(|| format!("{alter}: {error} {:?}", error.detail()))
}

/// Creates the tables and views of `contents` in a new engine and feeds it; returns what went wrong.
async fn check_standing(contents: &Contents, queries: &[Standing], decoys: bool, seed: u64, life: Life) -> Vec<String> {
    let mut rng = Rng::new(seed);
    let folder = scratch();
    let mut slots = 1 + rng.below(4);
    let restarts = matches!(life, Life::Restarts(_));
    let executions: Executions = match life {
        Life::Whole(execution) => Arc::new(move || Arc::clone(&execution)),
        Life::Restarts(executions) => executions,
    };
    let batch_rows = rng.pick(&[1, 32, 8192]);
    let how = |slots| match restarts {
        true => keeping(folder.path(), slots, batch_rows),
        false => config(folder.path(), slots, batch_rows),
    };
    let mut instance = Instance::with(how(slots), executions());
    let mut session = instance.session();
    let mut schemas: Vec<&str> = contents.tables.iter().map(|(r, _)| r.schema.as_str()).collect();
    schemas.dedup();
    for schema in schemas.into_iter().filter(|s| *s != "public") {
        ok(&mut session, &format!("CREATE SCHEMA IF NOT EXISTS {schema}")).await;
    }
    for (relation, _) in &contents.tables {
        ok(&mut session, &create_statement(relation, &|_| None).unwrap()).await;
    }
    let mut problems = Vec::new();
    for view in &contents.views {
        if let Err(e) = run(&mut session, view).await {
            problems.push(format!("{view}: {e}"));
        }
    }
    let mut relations = found(&instance, contents);
    for step in feed(contents, queries.len(), decoys, &mut rng) {
        if restarts && rng.below(4) == 0 {
            ok(&mut session, "CHECKPOINT").await;
        }
        if restarts && rng.below(6) == 0 {
            drop(session);
            instance.close().await;
            slots = 1 + rng.below(4);
            instance = Instance::with(how(slots), executions());
            session = instance.session();
            relations = found(&instance, contents);
        }
        if restarts && rng.below(5) == 0 {
            problems.extend(rescale(&instance, &mut session, slots, &mut rng).await);
        }
        match step {
            Step::Insert { table, rows } => {
                let batch = take_record_batch(&contents.tables[table].1, &UInt32Array::from(rows)).unwrap();
                write(&instance, &relations[table], None, Some(batch)).await;
            }
            Step::Decoy { table, row, other } => {
                let decoy = mixed(&relations[table], &contents.tables[table].1, row, other);
                write(&instance, &relations[table], None, Some(decoy)).await;
            }
            Step::Correct { table, row, other } => {
                let all = &contents.tables[table].1;
                let decoy = mixed(&relations[table], all, row, other);
                let row = take_record_batch(all, &UInt32Array::from(vec![row])).unwrap();
                write(&instance, &relations[table], Some(decoy), Some(row)).await;
            }
            Step::View(view) => {
                let query = &queries[view];
                let create = format!("CREATE MATERIALIZED VIEW standing_{view} AS {}", query.sql);
                if let Err(e) = run(&mut session, &create).await {
                    // It may stop while it starts.
                    let what = if e.message().contains("has stopped") { STOPPED } else { "not created" };
                    problems.push(format!("line {}: {what}: {e} {:?}\n  {}", query.line, e.hint(), query.sql));
                }
            }
        }
    }
    instance.engine.flush().await.unwrap();
    for (view, query) in queries.iter().enumerate() {
        if instance.engine.catalog().relation_named("dev", "public", &format!("standing_{view}")).is_none() {
            continue;
        }
        match run(&mut session, &format!("SELECT * FROM standing_{view}")).await {
            Ok(Answer::Rows(_, batches)) => {
                let found = normal(batches.iter().flat_map(render).map(|r| r.join(" ")));
                let expected = normal(query.expected.iter().cloned());
                if found != expected {
                    problems.push(format!(
                        "line {}: as a view ({slots} slots)\n  {}\n  expected {expected:?}\n  found    {found:?}",
                        query.line, query.sql
                    ));
                }
            }
            Ok(Answer::Tag(_)) => problems.push(format!("line {}: no rows", query.line)),
            Err(e) => problems.push(format!("line {}: {STOPPED}: {e}\n  {}", query.line, query.sql)),
        }
    }
    instance.close().await;
    problems
}

/// What a problem says when a view has stopped with an error.
const STOPPED: &str = "view stopped";

/// Runs a file as batch and its standing queries on engines that live as `lives` says; returns what went wrong.
pub async fn check_file(path: &Path, seed: u64, lives: impl Fn() -> Vec<Life> + Send) -> Vec<String> {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 2, 8192);
    let mut runner = sqllogictest::Runner::new(|| async { Ok(Db(instance.session())) });
    runner.with_column_validator(sqllogictest::strict_column_validator);
    let records: Vec<Record<DefaultColumnType>> = sqllogictest::parse_file(path).unwrap();
    let mut problems = Vec::new();
    for record in records {
        if let Err(e) = runner.run_async(record).await {
            problems.push(format!("as batch: {}", e.display(false)));
        }
    }
    let queries = standing_queries(path);
    let contents = contents(&instance).await;
    drop(runner);
    instance.close().await;
    if !queries.is_empty() {
        for life in lives() {
            let mut found = check_standing(&contents, &queries, true, seed, life.clone()).await;
            // A row put together from two may rightly stop a view, where a filter is there to keep an error away.
            if found.iter().any(|problem| problem.contains(STOPPED)) {
                let again = if let Life::Whole(_) = life { lives().remove(0) } else { life.clone() };
                found = check_standing(&contents, &queries, false, seed, again).await;
            }
            if let Life::Restarts(_) = life {
                found.iter_mut().for_each(|problem| problem.insert_str(0, "with restarts: "));
            }
            problems.extend(found);
        }
    }
    problems
}

#[test]
fn sql_tests_give_the_same_rows_as_batch_and_as_standing_views() {
    let files = files();
    assert!(files.len() >= 120 || std::env::var("MILLSTREAM_SLT").is_ok(), "only {} files", files.len());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .thread_stack_size(16 << 20)
        .build()
        .unwrap();
    let verbose = std::env::var("MILLSTREAM_SLT_VERBOSE").is_ok();
    let known = known_differences();
    let mut failed = 0;
    let mut solved = Vec::new();
    let mut report = String::new();
    let checks = futures::stream::iter(files.iter().zip(seed()..).map(|(path, seed)| async move {
        let file = path.clone();
        // On a thread of the runtime, whose stack is large.
        let check = tokio::spawn(async move {
            check_file(&file, seed, || vec![Life::Whole(Arc::new(Threads::default())), restarts()]).await
        });
        (path, seed, tokio::time::timeout(FILE_TIME_MAX, check).await)
    }));
    let checked: Vec<_> = runtime.block_on(checks.buffered(FILES_AT_ONCE).collect());
    for (path, seed, checked) in checked {
        let name = name_of(path);
        let problems = match checked {
            Ok(Ok(problems)) => problems,
            Ok(Err(e)) => vec![format!("panicked: {e}")],
            Err(_) => vec!["did not end in time".to_string()],
        };
        if verbose {
            eprintln!("{name}: {} problems", problems.len());
        }
        if known.contains(&name) {
            if problems.is_empty() {
                solved.push(name.clone());
            }
            if !verbose {
                continue;
            }
        }
        if !problems.is_empty() {
            failed += usize::from(!known.contains(&name));
            report.push_str(&format!("== {name} (seed {seed})\n"));
            problems.iter().for_each(|p| report.push_str(&format!("{p}\n")));
        }
    }
    // A statement that was given up may still be planned; its end is not waited for.
    runtime.shutdown_background();
    if verbose {
        eprintln!("{report}");
    }
    assert!(failed == 0, "{report}{failed} of {} files failed", files.len());
    // Which file passes may depend on the seed, so this is told rather than demanded.
    if !solved.is_empty() {
        eprintln!("take these out of known_differences.txt: {solved:?}");
    }
}

/// `rows` is used by other tests of this binary; here it proves that rendering follows PostgreSQL.
#[tokio::test(flavor = "multi_thread")]
async fn values_are_rendered_as_postgres_does() {
    let folder = scratch();
    let instance = Instance::open(folder.path(), 1, 8192);
    let mut session = instance.session();
    let found =
        rows(&mut session, "SELECT true, '' AS e, NULL::int AS n, 1.50::numeric(10,2) AS d, DATE '2024-02-29' AS x")
            .await;
    assert_eq!(found, [["t", "(empty)", "NULL", "1.50", "2024-02-29"]]);
    instance.close().await;
}
