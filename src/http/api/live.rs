//! What is there now: channels, connections, routes, plugins, sources, statistics, and how the server does.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{Response, StatusCode, Uri};
use serde_json::{Value, json as value};

use crate::config::plan::SourceKind;
use crate::http::api::{Api, Parameters};
use crate::http::measure;
use crate::http::problem::Problem;
use crate::http::site::json;
use crate::hub::ChannelReport;
use crate::hub::connection::report;
use crate::model::Now;
use crate::model::clock::iso;
use crate::model::event::epoch_text;
use crate::script::PluginState;
use crate::store::StoreState;

type Answer = Result<Response<Body>, Problem>;

fn ok(value: &Value) -> Answer {
    Ok(json(StatusCode::OK, value.to_string()))
}

fn channel(report: &ChannelReport) -> Value {
    value!({
        "name": report.name,
        "pattern": report.pattern,
        "subscribers": report.subscribers,
        "offset": report.offset,
        "epoch": epoch_text(report.epoch),
        "history": report.history,
        "events": report.tail,
        "bytes": report.tail_bytes,
    })
}

/// `GET /api/channels`
pub(super) async fn channels(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    Parameters::of(&uri, &[])?;
    ok(&value!({ "channels": api.router.context.hub.channels().iter().map(channel).collect::<Vec<_>>() }))
}

/// `GET /api/channels/{name}`
pub(super) async fn one_channel(State(api): State<Arc<Api>>, Path(name): Path<String>, uri: Uri) -> Answer {
    Parameters::of(&uri, &[])?;
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("no channel `{name}` is live"));
    ok(&channel(&api.router.context.hub.channel_report(&name).ok_or_else(missing)?))
}

/// `GET /api/connections`
pub(super) async fn connections(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    let parameters = Parameters::of(&uri, &["protocol"])?;
    let context = &api.router.context;
    let protocol = match parameters.get("protocol") {
        None => None,
        Some(name) => Some(context.runtime.protocol_index(name).ok_or_else(|| Parameters::wrong("protocol", "no protocol has this name"))?),
    };
    let all: Vec<_> = context.hub.connections(protocol).iter().map(|c| report(c)).collect();
    ok(&value!({ "connections": all }))
}

/// `GET /api/connections/{id}`
pub(super) async fn one_connection(State(api): State<Arc<Api>>, Path(id): Path<String>, uri: Uri) -> Answer {
    Parameters::of(&uri, &[])?;
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("no connection `{id}` is open"));
    ok(&value!(report(&*api.router.context.hub.connection(&id).ok_or_else(missing)?)))
}

/// `GET /api/routes`
pub(super) async fn routes(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    Parameters::of(&uri, &[])?;
    ok(&value!({ "routes": crate::routing::table::table(&api.router.context.runtime.plan) }))
}

/// `GET /api/plugins`
pub(super) async fn plugins(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    Parameters::of(&uri, &[])?;
    let all: Vec<Value> = api
        .router
        .context
        .runtime
        .scripts
        .report()
        .into_iter()
        .map(|plugin| {
            let (state, since, why) = match &plugin.state {
                PluginState::InService => ("in service", None, None),
                PluginState::OutOfService { since_ms, why } => ("out of service", Some(iso(*since_ms)), Some(why.clone())),
            };
            value!({
                "name": plugin.name,
                "file": plugin.file,
                "hash": plugin.hash,
                "functions": plugin.functions,
                "state": state,
                "since": since,
                "why": why,
                "calls": plugin.calls,
                "failures": plugin.failures,
                "meanMicros": plugin.mean_us,
                "maxMicros": plugin.max_us,
                "lastError": plugin.last_error.as_ref().map(|(error, at)| value!({ "error": error, "time": iso(*at) })),
                "logLinesDropped": plugin.log_lines_dropped,
            })
        })
        .collect();
    ok(&value!({ "plugins": all }))
}

/// `GET /api/sources`
pub(super) async fn sources(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    Parameters::of(&uri, &[])?;
    let runtime = &api.router.context.runtime;
    let all: Vec<Value> = runtime
        .plan
        .sources
        .iter()
        .map(|source| {
            let from = match &source.kind {
                SourceKind::Every { period, .. } => format!("every {}", humantime::format_duration(*period)),
                SourceKind::Http { method, path, listen, .. } => format!("{method} {listen}{path}"),
            };
            value!({ "name": source.name, "from": from, "events": runtime.metrics.source(&source.name).events.get(), "state": "running" })
        })
        .collect();
    ok(&value!({ "sources": all }))
}

/// `GET /api/stats`
pub(super) async fn stats(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    Parameters::of(&uri, &[])?;
    ok(&measure::json(&api.router, Now::read()))
}

/// `GET /metrics`
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Answer {
    let mut response = json(StatusCode::OK, measure::prometheus(&api.router, Now::read()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    Ok(response)
}

/// `GET /healthz`: the process answers.
pub(super) async fn healthz() -> Answer {
    ok(&value!({ "status": "ok" }))
}

/// `GET /readyz`: it can do its work, or why not.
pub(super) async fn readyz(State(api): State<Arc<Api>>) -> Answer {
    let mut reasons = Vec::new();
    if let StoreState::Degraded { since_ms, reason } = api.router.store.state() {
        reasons.push(value!({ "part": "store", "reason": &*reason, "since": iso(since_ms) }));
    }
    if api.stop.is_cancelled() {
        reasons.push(value!({ "part": "server", "reason": "stopping" }));
    }
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if reasons.is_empty() { "ready" } else { "not ready" };
    Ok(json(status, value!({ "status": word, "reasons": reasons }).to_string()))
}
