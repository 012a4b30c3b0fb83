//! `millstream history`: the jobs that have ended, as the archive beside the checkpoints holds them, over HTTP and read-only.
//!
//! | path | answers with |
//! |---|---|
//! | `/` | a page of the newest jobs; `?state=finished\|cancelled\|failed`, `?before=ID` for older ones |
//! | `/jobs/ID` | a page about one |
//! | `/api/jobs` | the same list as JSON, newest first: `{"jobs": [{"id": …, "name": …, …}], "older": ID or null}` |
//! | `/api/jobs/ID` | one record as JSON |
//! | `/live` | 200 |
//! | `/health` | 200 while the store answers, else 503 |
//!
//! It takes no lock of the data directory, so it works beside a server and without one.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::extract::{self, Query, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use checkpoint::local::LocalStore;
use chrono::DateTime;
use coord::history::{Archive, EndState, EndedJob};
use flow::{Error, Result, SqlState};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;

use crate::HistoryArgs;
use crate::config::Config;

/// Jobs on one page.
const PAGE: usize = 100;
/// Records that are looked at for one page: a state may be rare.
const LOOK_MAX: usize = 10_000;
/// Records that are kept in memory; they never change.
const CACHED_MAX: usize = 10_000;

/// Serves until SIGTERM or SIGINT.
pub fn run(args: &HistoryArgs) -> Result<()> {
    let config = args.data.config()?;
    let addr = args.history_addr.unwrap_or(config.history_addr);
    crate::logging::install(&config.log_format, &config.log_level);
    let archive = open(&config)?;
    crate::serve::runtime()?.block_on(async {
        let stop = crate::serve::signals()?;
        let listener = crate::serve::bind("the history", addr).await?;
        let addr = listener.local_addr().unwrap_or(addr);
        info!(%addr, place = archive.door.place(), "the history of jobs is ready");
        serve(listener, archive, stop).await
    })
}

/// The archive of a data directory, which a server may be using, or of the store that the configuration names. Errors: `58P01`
/// there are no checkpoints.
fn open(config: &Config) -> Result<Archive> {
    let shared = |folder: &Path| {
        LocalStore::share(folder).map_err(|error| {
            error.with_hint("Give the data directory of a server that takes checkpoints, or its checkpoint_url.")
        })
    };
    Ok(Archive { door: Arc::new(config.door(shared)?) })
}

#[derive(Clone)]
struct Web {
    archive: Archive,
    /// Of records that were read, by id.
    cached: Arc<Mutex<HashMap<String, Arc<EndedJob>>>>,
}

async fn serve(listener: TcpListener, archive: Archive, mut stop: watch::Receiver<bool>) -> Result<()> {
    let app = Router::new()
        .route("/", get(list_page))
        .route("/jobs/{id}", get(job_page))
        .route("/api/jobs", get(list))
        .route("/api/jobs/{id}", get(job))
        .route("/live", get(crate::http::live))
        .route("/health", get(health))
        .with_state(Web { archive, cached: Arc::default() });
    let stopped = async move {
        let _ = stop.wait_for(|s| *s).await;
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(stopped)
        .await
        .map_err(|e| Error::new(SqlState::ConnectionFailure, format!("HTTP: {e}")))
}

/// What of the list is wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    state: Option<EndState>,
    before: Option<String>,
}

/// A part of the list, newest first, and the id from which the next one goes on.
struct Listed {
    jobs: Vec<(String, Arc<EndedJob>)>,
    older: Option<String>,
}

impl Web {
    /// Asks the store on a thread that may block.
    async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(&Web) -> Result<T> + Send + 'static) -> Result<T> {
        let web = self.clone();
        tokio::task::spawn_blocking(move || ask(&web))
            .await
            .map_err(|e| Error::internal(format!("reading the archive: {e}")))?
    }

    fn read(&self, id: &str) -> Result<Option<Arc<EndedJob>>> {
        let cached = || self.cached.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(job) = cached().get(id) {
            return Ok(Some(Arc::clone(job)));
        }
        let Some(job) = self.archive.read(id)?.map(Arc::new) else { return Ok(None) };
        let mut cached = cached();
        if cached.len() >= CACHED_MAX {
            cached.clear();
        }
        cached.insert(id.to_string(), Arc::clone(&job));
        Ok(Some(job))
    }

    fn list(&self, wanted: &Wanted) -> Result<Listed> {
        let mut listed = Listed { jobs: Vec::new(), older: None };
        let ids = self.archive.ids()?;
        let older = ids.into_iter().filter(|id| wanted.before.as_ref().is_none_or(|before| id < before));
        for (n, id) in older.enumerate() {
            if listed.jobs.len() == PAGE || n == LOOK_MAX {
                break;
            }
            listed.older = Some(id.clone());
            // It may have been cleared away since the list was made.
            let Some(job) = self.read(&id)? else { continue };
            if wanted.state.is_none_or(|state| state == job.state) {
                listed.jobs.push((id, job));
            }
        }
        listed.older = listed.older.filter(|_| listed.jobs.len() == PAGE);
        Ok(listed)
    }
}

fn refused(error: &Error) -> Response {
    let body = json!({ "sqlstate": error.state().code(), "message": error.message(), "hint": error.hint() });
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

fn unknown(id: &str) -> Response {
    let message = format!("there is no ended job \"{id}\"");
    (StatusCode::NOT_FOUND, Json(json!({ "message": message }))).into_response()
}

async fn list(State(web): State<Web>, Query(wanted): Query<Wanted>) -> Response {
    match web.ask(move |web| web.list(&wanted)).await {
        Ok(listed) => {
            let short = |(id, job): &(String, Arc<EndedJob>)| {
                json!({
                    "id": id, "name": full_name(job), "kind": job.facts.kind, "database": job.facts.database,
                    "state": job.state, "started_us": job.facts.started_us, "ended_us": job.ended_us,
                    "error": job.error.as_ref().map(|e| &e.message),
                })
            };
            let jobs: Vec<_> = listed.jobs.iter().map(short).collect();
            Json(json!({ "jobs": jobs, "older": listed.older })).into_response()
        }
        Err(error) => refused(&error),
    }
}

async fn job(State(web): State<Web>, extract::Path(id): extract::Path<String>) -> Response {
    let wanted = id.clone();
    match web.ask(move |web| web.read(&wanted)).await {
        Ok(Some(job)) => Json(job.as_ref()).into_response(),
        Ok(None) => unknown(&id),
        // A name that cannot be one of an object.
        Err(error) if error.state() == SqlState::InvalidName => unknown(&id),
        Err(error) => refused(&error),
    }
}

async fn health(State(web): State<Web>) -> Response {
    match web.ask(|web| web.archive.ids()).await {
        Ok(ids) => Json(json!({ "status": "ok", "jobs": ids.len() })).into_response(),
        Err(error) => refused(&error),
    }
}

async fn list_page(State(web): State<Web>, Query(wanted): Query<Wanted>) -> Response {
    let state = wanted.state;
    match web.ask(move |web| web.list(&wanted)).await {
        Ok(listed) => Html(page("Ended jobs", &list_body(&listed, state))).into_response(),
        Err(error) => refused_page(&error),
    }
}

async fn job_page(State(web): State<Web>, extract::Path(id): extract::Path<String>) -> Response {
    let wanted = id.clone();
    match web.ask(move |web| web.read(&wanted)).await {
        Ok(Some(job)) => Html(page(&full_name(&job), &job_body(&id, &job))).into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, Html(page("Not found", "<p>There is no such job.</p>"))).into_response(),
        Err(error) if error.state() == SqlState::InvalidName => {
            (StatusCode::NOT_FOUND, Html(page("Not found", "<p>There is no such job.</p>"))).into_response()
        }
        Err(error) => refused_page(&error),
    }
}

fn refused_page(error: &Error) -> Response {
    let body =
        format!("<p class=failed>{}</p><p>{}</p>", escaped(error.message()), escaped(error.hint().unwrap_or("")));
    (StatusCode::SERVICE_UNAVAILABLE, Html(page("The store does not answer", &body))).into_response()
}

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1f24}\
a{color:#0b62a8;text-decoration:none}a:hover{text-decoration:underline}h1{font-size:1.4rem}h2{font-size:1.05rem;margin-top:1.6rem}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .7rem;border-bottom:1px solid #e2e6ea;vertical-align:top}\
th{font-weight:600;color:#57606a}td.n{text-align:right;font-variant-numeric:tabular-nums}\
pre{background:#f6f8fa;padding:.8rem;overflow-x:auto;border-radius:4px}nav a{margin-right:1rem}\
.finished{color:#1a7f37}.cancelled{color:#8a6d00}.failed{color:#c0242b}\
@media(prefers-color-scheme:dark){body{background:#14171a;color:#dfe3e8}pre{background:#1d2126}th,td{border-color:#2b3036}a{color:#6cb2ff}}";

fn page(title: &str, body: &str) -> String {
    let title = escaped(title);
    format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title} – Millstream history</title><style>{STYLE}</style></head><body>\
         <nav><a href=\"/\">Millstream history</a></nav><h1>{title}</h1>{body}</body></html>"
    )
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn full_name(job: &EndedJob) -> String {
    format!("{}.{}", flow::identifier::quote(&job.facts.schema), flow::identifier::quote(&job.facts.name))
}

fn time(us: i64) -> String {
    DateTime::from_timestamp_micros(us).map_or_else(String::new, |at| at.format("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// `3 d 4 h`, `5 min 2 s`, `1.3 s`.
fn span(us: i64) -> String {
    let s = us.max(0) / 1_000_000;
    match s {
        0..10 => format!("{:.1} s", us.max(0) as f64 / 1e6),
        10..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

fn list_body(listed: &Listed, state: Option<EndState>) -> String {
    let mut body = String::from("<p>");
    let link = |name: &str, href: String, here: bool| match here {
        true => format!("<b>{name}</b> &nbsp; "),
        false => format!("<a href=\"{href}\">{name}</a> &nbsp; "),
    };
    body += &link("all", "/".into(), state.is_none());
    for each in [EndState::Finished, EndState::Cancelled, EndState::Failed] {
        body += &link(each.name(), format!("/?state={}", each.name()), state == Some(each));
    }
    body += "</p>";
    if listed.jobs.is_empty() {
        return body + "<p>No job has ended yet.</p>";
    }
    body += "<table><tr><th>name<th>kind<th>state<th>ended<th>ran for<th>error</tr>";
    for (id, job) in &listed.jobs {
        let error = job.error.as_ref().map_or("", |e| e.message.as_str());
        let _ = write!(
            body,
            "<tr><td><a href=\"/jobs/{}\">{}</a><td>{}<td class={state}>{state}<td>{}<td>{}<td>{}</tr>",
            escaped(id),
            escaped(&full_name(job)),
            escaped(&job.facts.kind),
            time(job.ended_us),
            span(job.ended_us - job.facts.started_us),
            escaped(error),
            state = job.state.name(),
        );
    }
    body += "</table>";
    if let Some(older) = &listed.older {
        let state = state.map_or_else(String::new, |state| format!("state={}&amp;", state.name()));
        let _ = write!(body, "<p><a href=\"/?{state}before={}\">older</a></p>", escaped(older));
    }
    body
}

fn job_body(id: &str, job: &EndedJob) -> String {
    let mut body = String::from("<table>");
    let mut line = |name: &str, value: String| {
        let _ = write!(body, "<tr><th>{name}<td>{value}</tr>");
    };
    let number = |n: Option<u64>| n.map_or_else(|| "–".to_string(), |n| n.to_string());
    line("state", format!("<span class={0}>{0}</span>", job.state.name()));
    line("kind", escaped(&job.facts.kind));
    line("database", escaped(&job.facts.database));
    line("owner", escaped(&job.facts.owner));
    line("reads", escaped(&job.facts.inputs.join(", ")));
    line("started", time(job.facts.started_us));
    line("ended", format!("{}, after {}", time(job.ended_us), span(job.ended_us - job.facts.started_us)));
    line("parallelism", job.parallelism.to_string());
    line("epochs", format!("{} to {}", job.first_epoch, number(job.last_epoch)));
    line("rows of the view", number(job.rows));
    line("bytes of the view", number(job.state_bytes));
    line("rows of state touched", number(job.rows_touched));
    line("version", escaped(&job.server_version));
    line("record", format!("<a href=\"/api/jobs/{0}\">{0}</a>", escaped(id)));
    body += "</table>";
    if let Some(error) = &job.error {
        let _ = write!(body, "<h2>Error</h2><p class=failed>{}: {}</p>", error.sqlstate, escaped(&error.message));
        for more in [&error.detail, &error.hint].into_iter().flatten() {
            let _ = write!(body, "<p>{}</p>", escaped(more));
        }
    }
    let _ = write!(body, "<h2>Statement</h2><pre>{}</pre>", escaped(&job.facts.statement));
    let _ = write!(body, "<h2>Plan</h2><pre>{}</pre>", escaped(&job.plan));
    body += "<h2>Checkpoints kept at its end</h2>";
    if job.checkpoints.is_empty() {
        return body + "<p>None.</p>";
    }
    body += "<table><tr><th>epoch<th>taken<th>until durable<th>pause<th>bytes written</tr>";
    for c in &job.checkpoints {
        let ms = |us: Option<i64>| us.map_or_else(|| "–".to_string(), |us| format!("{:.1} ms", us as f64 / 1e3));
        let _ = write!(
            body,
            "<tr><td class=n>{}<td>{}<td class=n>{}<td class=n>{}<td class=n>{}</tr>",
            c.epoch,
            time(c.created_us),
            ms(c.duration_us),
            ms(c.pause_us),
            number(c.bytes)
        );
    }
    body + "</table>"
}

#[cfg(test)]
mod tests {
    use super::{escaped, span};

    #[test]
    fn what_users_wrote_is_text_on_the_page() {
        assert_eq!(escaped("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
    }

    #[test]
    fn spans_are_told_in_two_units() {
        let s = 1_000_000;
        let told: Vec<String> =
            [-1, 1_300_000, 59 * s, 302 * s, 3_660 * s, 273_600 * s].into_iter().map(span).collect();
        assert_eq!(told, ["0.0 s", "1.3 s", "59 s", "5 min 2 s", "1 h 1 min", "3 d 4 h"]);
    }
}
