//! What is served on one listener: WebSocket protocols, their HTTP rows, HTTP sources. The path chooses, then the method.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::Guard;
use axum::body::Body;
use axum::http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE, HeaderValue, VARY, X_CONTENT_TYPE_OPTIONS};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use axum::response::IntoResponse;
use hyper::body::Incoming;

use crate::apply::{Applied, in_time};
use crate::config::plan::{HttpRow, ProtocolPlan, SourceKind, SourcePlan};
use crate::http::listen::{Serve, Served};
use crate::http::problem::Problem;
use crate::http::upgrade::{self, Upgrader};
use crate::http::{addresses, body, guard};
use crate::limits::LimitVerdict;
use crate::live::{Live, Promised};
use crate::model::event::epoch_text;
use crate::model::id::ProtocolId;
use crate::model::{Code, Fault, Json, Now};
use crate::pipeline::Snapshot;
use crate::routing::listeners::{Answers, Endpoint, ListenerKey};
use crate::routing::paths::Parameters;

/// The largest body of a source's request.
const SOURCE_BODY_BYTES_MAX: usize = 1 << 20;

/// How long a client far over its rate should wait.
const FLOODING_RETRY: Duration = Duration::from_secs(60);

/// The routes of one listener, by the configuration at the time of each request.
pub struct Routes {
    live: Arc<Live>,
    upgrader: Upgrader,
    key: ListenerKey,
}

impl Routes {
    /// All that is served at this listener.
    pub fn new(live: Arc<Live>, upgrader: Upgrader, key: ListenerKey) -> Self {
        Self { live, upgrader, key }
    }

    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Result<Served, Problem> {
        guard::check_host(request.headers(), self.key.listen.is_loopback())?;
        let snapshot = Guard::into_inner(self.live.snapshot());
        let nothing = || Problem::new(StatusCode::NOT_FOUND, format!("nothing is served at {}", request.uri().path()));
        let listener = snapshot.runtime.listeners.iter().find(|listener| listener.key == self.key);
        let found = listener.and_then(|listener| listener.paths.find(request.uri().path()));
        let (endpoint, parameters) = found.ok_or_else(nothing)?;
        if upgrade::is_wanted(&request) {
            let protocol = endpoint.websocket.and_then(|id| snapshot.runtime.protocol(id)).ok_or_else(nothing)?;
            guard::check_origin(request.method(), request.headers(), &protocol.plan.origins)?;
            return self.upgrader.upgrade(&self.live, &snapshot, protocol, request, parameters, peer).await;
        }
        let answers = self.answers(endpoint, request.method(), request.headers()).and_then(|answers| Target::of(&snapshot, answers));
        let Some(target) = answers else { return Err(unmet(endpoint)) };
        let preflight = request.method() == Method::OPTIONS;
        let origin = guard::check_origin(request.method(), request.headers(), target.origins())?;
        let (parts, incoming) = request.into_parts();
        let answered = if preflight {
            Ok(preflight_answer(endpoint))
        } else {
            // Boxed, so that the future of opening a connection is not as large as that of answering a request.
            Box::pin(self.run(&snapshot, &target, parts, Body::new(incoming), parameters, peer)).await
        };
        let mut response = answered.unwrap_or_else(IntoResponse::into_response);
        if let Some(origin) = origin {
            name_origin(response.headers_mut(), origin);
        }
        Ok(response.into())
    }

    /// The handler of a method; for a preflight request that of the method it asks for.
    fn answers(&self, endpoint: &Endpoint, method: &Method, headers: &HeaderMap) -> Option<Answers> {
        let method = match (method, headers.get("access-control-request-method").and_then(|v| v.to_str().ok())) {
            (&Method::OPTIONS, Some(asked)) => asked,
            (&Method::HEAD, _) => "GET",
            (method, _) => method.as_str(),
        };
        endpoint.methods.get(method).copied()
    }

    async fn run(
        &self,
        snapshot: &Arc<Snapshot>,
        target: &Target<'_>,
        parts: Parts,
        body: Body,
        parameters: Parameters,
        peer: SocketAddr,
    ) -> Result<Response<Body>, Problem> {
        let view = body::request_view(&parts, parameters);
        let (outcome, row_answers) = match target {
            Target::Row { protocol, row } => {
                check_rate(snapshot, protocol.id, peer, self.live.now())?;
                let json = body::read_json(&parts, body, protocol.limits.message).await?.unwrap_or_else(Json::null);
                (self.live.http(snapshot, protocol, row, &json, &view, self.live.now())?, true)
            }
            Target::Source(source) => {
                if let SourceKind::Http { token, .. } = &source.kind {
                    guard::check_token(&parts.headers, token.as_ref())?;
                }
                let missing = || Problem::new(StatusCode::BAD_REQUEST, "the body must be JSON: {\"type\": …, \"data\": …}");
                let json = body::read_json(&parts, body, SOURCE_BODY_BYTES_MAX).await?.ok_or_else(missing)?;
                (self.live.source(snapshot, source, &json, Some(&view), self.live.now())?, false)
            }
        };
        Ok(conclude(&self.live, outcome, row_answers).await?)
    }
}

/// What answers an HTTP request.
enum Target<'s> {
    Row { protocol: &'s ProtocolPlan, row: &'s HttpRow },
    Source(&'s SourcePlan),
}

impl<'s> Target<'s> {
    fn of(snapshot: &'s Snapshot, answers: Answers) -> Option<Self> {
        match answers {
            Answers::Row { protocol, row } => {
                let protocol = &snapshot.runtime.protocol(protocol)?.plan;
                Some(Target::Row { protocol, row: protocol.http.get(row)? })
            }
            Answers::Source(id) => Some(Target::Source(snapshot.runtime.source(id)?)),
        }
    }

    fn origins(&self) -> &'s [String] {
        match self {
            Target::Row { protocol, .. } => &protocol.origins,
            Target::Source(source) => match &source.kind {
                SourceKind::Http { origins, .. } => origins,
                SourceKind::Every { .. } => &[],
            },
        }
    }
}

/// Requests count towards the limit of their address, as messages do.
fn check_rate(snapshot: &Snapshot, protocol: ProtocolId, peer: SocketAddr, now: Now) -> Result<(), Problem> {
    let Some(limit) = snapshot.limits.protocol(protocol).and_then(|limits| limits.address.as_ref()) else { return Ok(()) };
    let retry_after = match limit.check(&addresses::text(peer.ip()), now) {
        LimitVerdict::Pass => return Ok(()),
        LimitVerdict::Over { retry_after } => retry_after,
        LimitVerdict::Flooding => FLOODING_RETRY,
    };
    let mut fault = Fault::new(Code::RateLimited);
    fault.retry_after = Some(retry_after);
    Err(fault.into())
}

/// The answer to what a row did: its reply, or what was published.
pub async fn conclude(live: &Live, promised: Promised, row_answers: bool) -> Result<Response<Body>, Fault> {
    let outcome = in_time(promised.settled(&live.store)).await?;
    let status = outcome.status.and_then(|status| StatusCode::from_u16(status).ok());
    match outcome.reply {
        Some(reply) => Ok(json(status.unwrap_or(StatusCode::OK), reply.as_str().to_owned())),
        None if row_answers && outcome.applied.published.is_empty() => Ok(status.unwrap_or(StatusCode::NO_CONTENT).into_response()),
        None => Ok(json(status.unwrap_or(StatusCode::ACCEPTED), published(&outcome.applied).to_string())),
    }
}

/// `{"id","channel","offset","epoch","delivered"}`: one object for one event, a list for several.
pub fn published(applied: &Applied) -> serde_json::Value {
    let mut answers: Vec<serde_json::Value> = applied
        .published
        .iter()
        .map(|published| {
            let event = &published.event;
            let mut answer = serde_json::json!({ "id": event.new.id.to_string() });
            if let Some(channel) = &event.channel {
                answer["channel"] = channel.as_str().into();
                answer["offset"] = event.offset.into();
                answer["epoch"] = epoch_text(event.epoch).into();
            }
            answer["delivered"] = published.delivered.into();
            answer
        })
        .collect();
    if answers.len() == 1 { answers.remove(0) } else { answers.into() }
}

/// A JSON answer.
pub fn json(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Allows a page of an allowed origin to read the answer.
pub fn name_origin(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(VARY, HeaderValue::from_static("Origin"));
}

/// The answer to a preflight for one of these methods.
pub fn allow_methods(methods: &str) -> Response<Body> {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(methods) {
        headers.insert("access-control-allow-methods", value);
    }
    headers.insert("access-control-allow-headers", HeaderValue::from_static("content-type, authorization, last-event-id"));
    headers.insert("access-control-max-age", HeaderValue::from_static("600"));
    response
}

fn preflight_answer(endpoint: &Endpoint) -> Response<Body> {
    allow_methods(&methods(endpoint))
}

fn methods(endpoint: &Endpoint) -> String {
    endpoint.methods.keys().map(|m| &**m).collect::<Vec<_>>().join(", ")
}

fn unmet(endpoint: &Endpoint) -> Problem {
    if endpoint.methods.is_empty() {
        return Problem::new(
            StatusCode::UPGRADE_REQUIRED,
            "a WebSocket is served here: connect with ws:// or wss://, not http:// or https://",
        );
    }
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not allow that method").allow(methods(endpoint))
}

impl Serve for Routes {
    async fn serve(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> Served {
        let mut answer = self.answer(request, peer).await.unwrap_or_else(|problem| problem.into_response().into());
        answer.response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        answer
    }
}
