//! The relations that the tests plan over, and the way from SQL to each layer.

use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::execution::SessionState;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use flow::{JobId, RelationId, Result};
use plan::stream::{ChangeKind, Distribution, StreamNode};
use plan::table::{RelationProvider, RelationReader, RelationSource};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Rows held in memory.
#[derive(Debug)]
struct Rows(MemTable);

#[async_trait]
impl RelationReader for Rows {
    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> datafusion::common::Result<Arc<dyn ExecutionPlan>> {
        self.0.scan(state, projection, filters, limit).await
    }
}

pub struct Relations {
    pub context: SessionContext,
    runtime: tokio::runtime::Runtime,
    pub rows: Vec<(RelationId, RecordBatch)>,
}

fn accounts() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("owner", DataType::Utf8View, true),
        Field::new("region", DataType::Int32, true),
    ]))
}

fn orders() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("order_id", DataType::Int64, false),
        Field::new("account", DataType::Int64, true),
        Field::new("amount", DataType::Int64, true),
        Field::new("kind", DataType::Utf8View, true),
        Field::new("price", DataType::Decimal128(10, 2), true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), true),
    ]))
}

fn events() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("account", DataType::Int64, true),
        Field::new("kind", DataType::Utf8View, true),
        Field::new("value", DataType::Float64, true),
    ]))
}

/// The session state that statements are planned with: our functions, our analyser.
fn state() -> SessionState {
    let config = SessionConfig::new()
        .with_target_partitions(1)
        .set_bool("datafusion.sql_parser.parse_float_as_decimal", true)
        .set_str("datafusion.sql_parser.dialect", "PostgreSQL");
    let mut builder = SessionStateBuilder::new()
        .with_config(config)
        .with_scalar_functions(plan::functions::scalars())
        .with_aggregate_functions(plan::functions::aggregates())
        .with_window_functions(plan::functions::windows())
        .with_expr_planners(plan::functions::expr_planners());
    *builder.analyzer() = Some(plan::functions::rules::analyzer());
    builder.build()
}

fn maybe<T>(rng: &mut SmallRng, value: T) -> Option<T> {
    if rng.random_ratio(1, 8) { None } else { Some(value) }
}

const KINDS: [&str; 4] = ["buy", "sell", "hold", "a kind longer than twelve bytes"];

impl Relations {
    /// `accounts` and `orders` are tables with a primary key, `events` is an append-only source without a key; filled with
    /// rows drawn from `seed`.
    pub fn new(seed: u64, rows: usize) -> Relations {
        let mut rng = SmallRng::seed_from_u64(seed);
        let r = &mut rng;
        let people = rows / 3 + 1;
        let account_rows = RecordBatch::try_new(
            accounts(),
            vec![
                Arc::new(Int64Array::from_iter_values(0..people as i64)),
                Arc::new(StringViewArray::from_iter((0..people).map(|i| maybe(r, format!("owner {}", i % 5))))),
                Arc::new(Int32Array::from_iter((0..people).map(|_| {
                    let v = r.random_range(0..4);
                    maybe(r, v)
                }))),
            ],
        );
        let ids = |r: &mut SmallRng| {
            Int64Array::from_iter((0..rows).map(|_| {
                let v = r.random_range(0..people as i64 + 2);
                maybe(r, v)
            }))
        };
        let kinds = |r: &mut SmallRng| {
            StringViewArray::from_iter((0..rows).map(|_| {
                let v = KINDS[r.random_range(0..4)];
                maybe(r, v)
            }))
        };
        let order_rows = RecordBatch::try_new(
            orders(),
            vec![
                Arc::new(Int64Array::from_iter_values(100..100 + rows as i64)),
                Arc::new(ids(r)),
                Arc::new(Int64Array::from_iter((0..rows).map(|_| {
                    let v = r.random_range(-5..6);
                    maybe(r, v)
                }))),
                Arc::new(kinds(r)),
                Arc::new(
                    Decimal128Array::from_iter((0..rows).map(|_| {
                        let v = r.random_range(-500i128..500);
                        maybe(r, v)
                    }))
                    .with_precision_and_scale(10, 2)
                    .unwrap(),
                ),
                Arc::new(TimestampMicrosecondArray::from_iter((0..rows).map(|_| {
                    let v = r.random_range(0..3) * 86_400_000_000;
                    maybe(r, v)
                }))),
            ],
        );
        let event_rows = RecordBatch::try_new(
            events(),
            vec![
                Arc::new(ids(r)),
                Arc::new(kinds(r)),
                Arc::new(Float64Array::from_iter((0..rows).map(|_| {
                    let v = r.random_range(0..4) as f64 * 0.5;
                    maybe(r, v)
                }))),
            ],
        );
        let context = SessionContext::new_with_state(state());
        let mut all = Vec::new();
        for (id, name, batch, change_kind, keys, distribution) in [
            (1, "accounts", account_rows, ChangeKind::Retract, vec![vec![0]], Distribution::Hash(vec![0])),
            (2, "orders", order_rows, ChangeKind::Retract, vec![vec![0]], Distribution::Hash(vec![0])),
            (3, "events", event_rows, ChangeKind::AppendOnly, vec![], Distribution::Arbitrary),
        ] {
            let batch = batch.unwrap();
            let table = MemTable::try_new(batch.schema(), vec![vec![batch.clone()]]).unwrap();
            let source =
                RelationSource::new(RelationId(id), name, batch.schema(), change_kind, keys, distribution, false);
            let provider = RelationProvider { source, reader: Arc::new(Rows(table)) };
            context.register_table(name, Arc::new(provider)).unwrap();
            all.push((RelationId(id), batch));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Relations { context, runtime, rows: all }
    }

    /// The analysed table plan of `sql`.
    pub fn analysed(&self, sql: &str) -> Result<LogicalPlan> {
        let state = self.context.state();
        let plan = self
            .runtime
            .block_on(state.create_logical_plan(sql))
            .map_err(|e| plan::error::from_datafusion_error_in(sql, e))?;
        state
            .analyzer()
            .execute_and_check(plan, state.config_options(), |_, _| {})
            .map_err(|e| plan::error::from_datafusion_error_in(sql, e))
    }

    pub fn optimized(&self, sql: &str) -> Result<LogicalPlan> {
        plan::table::optimize(self.analysed(sql)?, self.context.state().config_options())
    }

    pub fn stream(&self, sql: &str) -> Result<StreamNode> {
        plan::stream::lower(&self.optimized(sql)?)
    }

    pub fn explain_stream(&self, sql: &str) -> String {
        match self.stream(sql) {
            Ok(node) => plan::explain::stream(&node),
            Err(e) => panic!("{sql}: {e}"),
        }
    }

    pub fn explain_process(&self, sql: &str) -> String {
        let node = self.stream(sql).unwrap();
        let terminal = plan::process::Terminal::Materialize { relation: RelationId(9) };
        let lowered = plan::process::lower(&node, JobId(9), terminal).unwrap();
        let text = serde_json::to_string(&lowered).unwrap();
        assert_eq!(serde_json::from_str::<plan::ProcessPlan>(&text).unwrap(), lowered, "{sql}");
        plan::explain::process(&lowered)
    }

    /// What DataFusion answers over the same rows.
    pub fn batch(&self, sql: &str) -> Vec<RecordBatch> {
        self.runtime.block_on(async { self.context.sql(sql).await.unwrap().collect().await.unwrap() })
    }
}
