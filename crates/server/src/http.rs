//! Health and Prometheus metrics over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use coord::Engine;
use coord::job::Phase;
use flow::{Error, Result};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use runtime::WorkerState;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::adapter::Server;

/// Installs the recorder of metrics.
pub fn install_metrics() -> Result<PrometheusHandle> {
    PrometheusBuilder::new().install_recorder().map_err(|e| Error::internal(format!("cannot record metrics: {e}")))
}

#[derive(Clone)]
struct Web {
    server: Arc<Server>,
    metrics: PrometheusHandle,
}

/// Serves until `stop` turns true.
pub async fn serve(
    listener: TcpListener,
    server: Arc<Server>,
    metrics: PrometheusHandle,
    mut stop: watch::Receiver<bool>,
) {
    let app = Router::new()
        .route("/live", get(live))
        .route("/health", get(health))
        .route("/metrics", get(render_metrics))
        .with_state(Web { server, metrics });
    let stopped = async move {
        let _ = stop.wait_for(|s| *s).await;
    };
    if let Err(e) = axum::serve(listener, app).with_graceful_shutdown(stopped).await {
        tracing::error!(error = %e, "HTTP server failed");
    }
}

/// 200 while the process answers at all, a standby or a coordinator without workers too: nothing is gained by starting it anew.
pub async fn live() -> impl IntoResponse {
    axum::Json(serde_json::json!({ "status": "live" }))
}

/// 200 while writes are possible, 503 with the cause otherwise; a standby says so.
async fn health(State(web): State<Web>) -> impl IntoResponse {
    let engine = match web.server.engines().running() {
        Ok(engine) => engine,
        Err(cause) => {
            let status = if web.server.engines().is_standby() { "standby" } else { "waiting" };
            let body = serde_json::json!({ "status": status, "cause": cause.to_string() });
            return (StatusCode::SERVICE_UNAVAILABLE, axum::Json(body));
        }
    };
    let durable = engine.durable();
    let jobs = engine.clock.board.all();
    let failed = jobs.iter().filter(|(_, j)| matches!(j.phase, Phase::Failed(_))).count();
    let body = serde_json::json!({
        "status": if durable.failed.is_some() { "read-only" } else { "ok" },
        "cause": durable.failed.as_ref().map(|e| e.to_string()),
        "epoch": engine.clock.completed().0,
        "jobs": jobs.len(),
        "jobs_failed": failed,
        "workers": workers(&engine),
    });
    let status = if durable.failed.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, axum::Json(body))
}

/// On how many workers the jobs run, and on how many they are to; fewer than that is no reason to send clients elsewhere.
fn workers(engine: &Engine) -> serde_json::Value {
    let (all, wanted) = (engine.worker.processes(), engine.worker.processes_wanted());
    let count = |state| all.iter().filter(|worker| worker.state == state).count();
    serde_json::json!({
        "wanted": wanted,
        "running": count(WorkerState::Running),
        "joining": count(WorkerState::Joining),
        "leaving": count(WorkerState::Leaving),
        "away": count(WorkerState::Away),
        "spare": count(WorkerState::Spare),
    })
}

async fn render_metrics(State(web): State<Web>) -> impl IntoResponse {
    if let Some(engine) = web.server.engines().last() {
        note(&engine);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], web.metrics.render())
}

/// Brings the gauges up to date.
fn note(engine: &Engine) {
    metrics::gauge!("millstream_epoch").set(engine.clock.completed().0 as f64);
    metrics::gauge!("millstream_memory_used_bytes").set(engine.budget.used() as f64);
    metrics::gauge!("millstream_memory_limit_bytes").set(engine.budget.limit() as f64);
    metrics::gauge!("millstream_pending_input_bytes").set(engine.clock.pending_bytes() as f64);
    metrics::gauge!("millstream_log_bytes").set(engine.log.len() as f64);
    let mut phases = [("running", 0), ("back-filling", 0), ("catching up", 0), ("failed", 0)];
    for (_, job) in engine.clock.board.all() {
        if let Some(entry) = phases.iter_mut().find(|(name, _)| *name == job.phase.name()) {
            entry.1 += 1;
        }
    }
    for (phase, count) in phases {
        metrics::gauge!("millstream_jobs", "status" => phase).set(f64::from(count));
    }
    metrics::gauge!("millstream_workers_wanted").set(engine.worker.processes_wanted() as f64);
    for worker in engine.worker.processes() {
        let up = if worker.state == WorkerState::Away { 0.0 } else { 1.0 };
        metrics::gauge!("millstream_worker_up", "worker" => worker.id.to_string()).set(up);
    }
}
