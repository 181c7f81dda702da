//! The current state: channels, routes, plugins, sources, and the health of the server.

use std::sync::Arc;

use arc_swap::Guard;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{Response, StatusCode, Uri};
use serde::Serialize;
use utoipa::ToSchema;

use crate::config::plan::SourceKind;
use crate::http::api::openapi::{BadQuery, NotThere};
use crate::http::api::query::Query;
use crate::http::api::{Answer, Api, Part, ok};
use crate::http::measure;
use crate::http::problem::Problem;
use crate::http::routes::json;
use crate::hub::ChannelReport;
use crate::model::clock::iso;
use crate::model::event::epoch_text;
use crate::model::{ChannelName, Json};
use crate::routing::table;
use crate::script::{FunctionOut, PluginReport};
use crate::store::StoreState;
use crate::telemetry::report::SlowCounted;

/// Live channels.
#[derive(Serialize, ToSchema)]
struct Channels {
    /// By name.
    channels: Vec<Channel>,
}

/// A live channel.
#[derive(Serialize, ToSchema)]
struct Channel {
    /// Its name.
    #[schema(value_type = String, example = "session:42")]
    name: ChannelName,
    /// The pattern that allows it.
    #[schema(example = "session:{id}")]
    pattern: Arc<str>,
    /// Subscriptions.
    subscribers: usize,
    /// The last offset; 0 before the first event.
    offset: u64,
    /// Its epoch, which names the stream that its offsets belong to.
    #[schema(example = "1tckq9vz2m")]
    epoch: String,
    /// Whether its events are stored.
    history: bool,
    /// Events in memory.
    events: usize,
    /// Bytes of them.
    bytes: usize,
    /// Messages that slow clients did not get as they were published, since the channel is in memory.
    slow: SlowCounted,
}

impl Channel {
    fn of(report: ChannelReport) -> Self {
        Self {
            name: report.name,
            pattern: report.pattern,
            subscribers: report.subscribers,
            offset: report.offset,
            epoch: epoch_text(report.epoch),
            history: report.history,
            events: report.tail,
            bytes: report.tail_bytes,
            slow: report.conflations.into(),
        }
    }
}

/// List the live channels
#[utoipa::path(get, path = "/api/channels", tag = "log", responses((status = 200, description = "All of them.", body = Channels), BadQuery))]
pub(super) async fn channels(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    Query::nothing(&uri)?;
    ok(&Channels { channels: api.live.hub.channels().into_iter().map(Channel::of).collect() })
}

/// Show a live channel
#[utoipa::path(get, path = "/api/channels/{name}", tag = "log",
    params(("name" = String, Path, description = "The channel's name.", min_length = 1, example = "session:42")),
    responses((status = 200, description = "The channel.", body = Channel), BadQuery, NotThere))]
pub(super) async fn one_channel(State(api): State<Arc<Api>>, Part(name): Part, uri: Uri) -> Answer {
    Query::nothing(&uri)?;
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("no channel `{name}` is live"));
    ok(&Channel::of(api.live.hub.channel_report(&name).ok_or_else(missing)?))
}

/// The running table.
#[derive(Serialize, ToSchema)]
struct Routes {
    /// In the order of the file.
    routes: Vec<Route>,
}

/// One row of the table.
#[derive(Serialize, ToSchema)]
struct Route {
    /// Protocol and message type, HTTP row, or source.
    #[schema(example = "chat say")]
    from: String,
    /// Its limits.
    #[schema(example = "100/1m")]
    limit: String,
    /// The functions it runs.
    #[schema(example = "chat.say")]
    script: String,
    /// The channels it publishes to, or what happens instead.
    #[schema(example = "room:{$.room}")]
    to: String,
    /// Its place in the routes file.
    #[schema(example = "routes.yaml:14")]
    at: String,
}

/// Show the running routes
#[utoipa::path(get, path = "/api/routes", tag = "state", responses((status = 200, description = "The table that `tramline routes` prints.", body = Routes), BadQuery))]
pub(super) async fn routes(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    Query::nothing(&uri)?;
    let route = |table::RouteEntry { from, limit, script, to, at }| Route { from, limit, script, to, at };
    ok(&Routes { routes: table::table(&api.live.snapshot().runtime.plan).into_iter().map(route).collect() })
}

/// The loaded plugins.
#[derive(Serialize, ToSchema)]
struct Plugins {
    /// By name.
    plugins: Vec<Plugin>,
}

/// A plugin and its state.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Plugin {
    /// Its name.
    #[schema(example = "chat")]
    name: Arc<str>,
    /// Its file.
    #[schema(example = "plugins/chat.rhai")]
    file: Arc<str>,
    /// SHA-256 of its text and of all it imports, in hexadecimal.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    hash: String,
    /// The functions that may be called, with their parameters.
    functions: Vec<String>,
    /// Whether all its functions are in service.
    state: PluginService,
    /// The functions that are out of service.
    out: Vec<FunctionOutOfService>,
    /// Calls since the server started.
    calls: u64,
    /// Calls that failed.
    failures: u64,
    /// Mean time of a call, in microseconds.
    mean_micros: f64,
    /// Longest time of a call, in microseconds.
    max_micros: u64,
    /// The last failure.
    #[schema(required)]
    last_error: Option<PluginError>,
    /// Log lines that exceeded the limit and were left out.
    log_lines_dropped: u64,
}

/// Whether all functions of a plugin are in service.
#[derive(Serialize, ToSchema)]
enum PluginService {
    #[serde(rename = "in service")]
    In,
    #[serde(rename = "partly out of service")]
    PartlyOut,
}

/// A function that is out of service. After a pause one call is tried.
#[derive(Serialize, ToSchema)]
struct FunctionOutOfService {
    /// Its name, or for an expression its place in the routes file.
    #[schema(example = "say")]
    function: String,
    /// Since when it has been so.
    #[schema(format = DateTime)]
    since: String,
    /// What went wrong in the last call.
    why: String,
}

/// A failure of a plugin.
#[derive(Serialize, ToSchema)]
struct PluginError {
    /// What went wrong, and where.
    error: String,
    /// When.
    #[schema(format = DateTime)]
    time: String,
}

impl Plugin {
    fn of(plugin: PluginReport) -> Self {
        let state = if plugin.out.is_empty() { PluginService::In } else { PluginService::PartlyOut };
        let out = |out: FunctionOut| FunctionOutOfService { function: out.function, since: iso(out.since_ms), why: out.why };
        Self {
            name: plugin.name.shared(),
            file: plugin.file,
            hash: plugin.hash,
            functions: plugin.functions,
            state,
            out: plugin.out.into_iter().map(out).collect(),
            calls: plugin.calls,
            failures: plugin.failures,
            mean_micros: plugin.mean_us,
            max_micros: plugin.max_us,
            last_error: plugin.last_error.map(|(error, at)| PluginError { error, time: iso(at) }),
            log_lines_dropped: plugin.log_lines_dropped,
        }
    }
}

/// List the plugins
#[utoipa::path(get, path = "/api/plugins", tag = "state", responses((status = 200, description = "All of them.", body = Plugins), BadQuery))]
pub(super) async fn plugins(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    Query::nothing(&uri)?;
    ok(&Plugins { plugins: api.live.snapshot().runtime.scripts.report().into_iter().map(Plugin::of).collect() })
}

/// The sources.
#[derive(Serialize, ToSchema)]
struct Sources {
    /// In the order of the file.
    sources: Vec<Source>,
}

/// A source: produces events that no client sent.
#[derive(Serialize, ToSchema)]
struct Source {
    /// Its name.
    #[schema(example = "clock")]
    name: Arc<str>,
    /// What makes it produce events.
    #[schema(example = "every 30s")]
    from: String,
    /// Events that it made since the start, whether its rows took or refused them.
    events: u64,
    /// `running`, `waiting` before it is started again after a failure, or `stopped`.
    #[schema(example = "running")]
    state: &'static str,
    /// Why its last event failed, or it ended; null once an event succeeds, and for HTTP sources, whose callers are told.
    #[schema(required)]
    #[serde(rename = "lastError")]
    last_error: Option<SourceFailure>,
}

/// A failure of a source.
#[derive(Serialize, ToSchema)]
struct SourceFailure {
    /// What went wrong.
    error: Arc<str>,
    /// When.
    #[schema(format = DateTime)]
    time: String,
}

/// List the sources
#[utoipa::path(get, path = "/api/sources", tag = "state", responses((status = 200, description = "All of them.", body = Sources), BadQuery))]
pub(super) async fn sources(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    Query::nothing(&uri)?;
    let snapshot = Guard::into_inner(api.live.snapshot());
    let runtime = &snapshot.runtime;
    let sources = runtime
        .plan
        .sources
        .iter()
        .map(|source| {
            let from = match &source.kind {
                SourceKind::Every { period, .. } => format!("every {}", humantime::format_duration(*period)),
                SourceKind::Http { method, path, listen, .. } => format!("{method} {listen}{path}"),
            };
            let events = api.live.metrics.source(&source.name).events.get();
            let report = api.sources.report(&source.name);
            // A source without a task is a route, which is served as long as the configuration has it.
            let state = report.as_ref().map_or("running", |report| report.state);
            let last_error = report.and_then(|report| report.last_error).map(|(error, at_ms)| SourceFailure { error, time: iso(at_ms) });
            Source { name: source.name.clone(), from, events, state, last_error }
        })
        .collect();
    ok(&Sources { sources })
}

/// Read the numbers for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "state",
    responses((status = 200, description = "Prometheus' text format, version 0.0.4.", body = String, content_type = "text/plain; version=0.0.4; charset=utf-8")))]
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response<Body> {
    let mut response = json(StatusCode::OK, measure::prometheus(&api.live, &api.reloader.status(), api.live.now()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}

/// The process answers.
#[derive(Serialize, ToSchema)]
struct Health {
    /// Always `ok`.
    #[schema(example = "ok")]
    status: &'static str,
}

/// Ask whether the process answers
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, description = "The process answers.", body = Health)))]
pub(super) async fn healthz() -> Answer {
    ok(&Health { status: "ok" })
}

/// Whether the server can do its work.
#[derive(Serialize, ToSchema)]
struct Readiness {
    /// The state, in one or two words.
    status: Ready,
    /// Why not, or what works only in part.
    reasons: Vec<Hindrance>,
}

/// Whether the server can do its work.
#[derive(Serialize, ToSchema)]
enum Ready {
    #[serde(rename = "ready")]
    Yes,
    #[serde(rename = "not ready")]
    No,
}

/// What keeps the server from its work.
#[derive(Serialize, ToSchema)]
struct Hindrance {
    /// `store`; `server` when it is stopping; `plugin` when functions are out of service, which affects only the messages that
    /// call them.
    #[schema(example = "store")]
    part: &'static str,
    /// What is wrong.
    #[schema(example = "database is locked")]
    reason: Arc<str>,
    /// Since when it has been so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    since: Option<String>,
}

/// Ask whether the server can do its work
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, description = "The server can do its work, except for the plugins that the reasons name.", body = Readiness),
    (status = 503, description = "The server cannot do its work. The reasons say why, part by part.", body = Readiness)))]
pub(super) async fn readyz(State(api): State<Arc<Api>>) -> Answer {
    let mut reasons = Vec::new();
    if let StoreState::Degraded { since_ms, reason } = api.live.store.state() {
        reasons.push(Hindrance { part: "store", reason, since: Some(iso(since_ms)) });
    }
    if api.stop.is_cancelled() {
        reasons.push(Hindrance { part: "server", reason: "stopping".into(), since: None });
    }
    let can_work = reasons.is_empty();
    for plugin in api.live.current().runtime.scripts.report() {
        let reason = |out: FunctionOut| Hindrance {
            part: "plugin",
            reason: format!("`{}` of plugin `{}` is out of service: {}", out.function, plugin.name, out.why).into(),
            since: Some(iso(out.since_ms)),
        };
        reasons.extend(plugin.out.into_iter().map(reason));
    }
    let (code, status) = if can_work { (StatusCode::OK, Ready::Yes) } else { (StatusCode::SERVICE_UNAVAILABLE, Ready::No) };
    Ok(json(code, Json::of(&Readiness { status, reasons }).as_str().to_owned()))
}
