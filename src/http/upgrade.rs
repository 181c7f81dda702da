//! From an HTTP request to a WebSocket connection: handshake, identity, admission. The connection's task gets nothing of the
//! request but a snapshot.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use base64::Engine as _;
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::plan::ProtocolPlan;
use crate::connection::{self, Admitted};
use crate::http::addresses;
use crate::http::auth::{self, Identity};
use crate::http::body::request_view;
use crate::http::listen::{Served, TakenOver, Takeover};
use crate::http::problem::Problem;
use crate::http::sessions::Sessions;
use crate::hub::Connection;
use crate::limits::LimitVerdict;
use crate::live::Live;
use crate::model::name::{PRINCIPAL_BYTES_MAX, is_principal};
use crate::model::view::{ConnView, RequestView};
use crate::model::{ClientId, Close, Code, Fault, Json, Now, SessionId, UserId, chance};
use crate::pipeline::Snapshot;
use crate::pipeline::scope::Bindings;
use crate::protocol::wire::{Wire, websocket};
use crate::routing::paths::Parameters;
use crate::runtime::Protocol;

/// Turns requests into connections, each a task of its own.
#[derive(Clone)]
pub struct Upgrader {
    /// Tracks the tasks of connections.
    pub tasks: TaskTracker,
    /// Fires when connections must close.
    pub stop: CancellationToken,
    /// Finds the user of a session.
    pub sessions: Arc<Sessions>,
}

/// Whether a request asks for a WebSocket.
pub fn is_wanted<B>(request: &Request<B>) -> bool {
    has_token(request.headers(), &UPGRADE, "websocket")
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case(token))
}

/// Checks the handshake (RFC 6455, section 4.2.1) and gives the answer to its key.
fn accept_key<B>(request: &Request<B>) -> Result<HeaderValue, Problem> {
    let bad = |why: &str| Problem::new(StatusCode::BAD_REQUEST, format!("not a WebSocket handshake: {why}"));
    let headers = request.headers();
    if request.method() != Method::GET {
        return Err(bad("the method must be GET"));
    }
    if request.version() != Version::HTTP_11 {
        return Err(bad("the version of HTTP must be 1.1"));
    }
    if !has_token(headers, &CONNECTION, "upgrade") {
        return Err(bad("`Connection` must name `Upgrade`"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
        return Err(Problem::new(StatusCode::UPGRADE_REQUIRED, "only version 13 of WebSocket is served"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| bad("`Sec-WebSocket-Key` is missing"))?;
    if !base64::engine::general_purpose::STANDARD.decode_slice(key.as_bytes(), &mut [0; 18]).is_ok_and(|length| length == 16) {
        return Err(bad("`Sec-WebSocket-Key` must be 16 bytes in base64"));
    }
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| bad("`Sec-WebSocket-Key` is not text"))
}

impl Upgrader {
    /// Answers a handshake. The connection's task starts once the answer is written.
    pub async fn upgrade(
        &self,
        live: &Arc<Live>,
        snapshot: &Arc<Snapshot>,
        protocol: &Protocol,
        request: Request<Incoming>,
        parameters: Parameters,
        peer: SocketAddr,
    ) -> Result<Served, Problem> {
        let accept = accept_key(&request)?;
        if self.stop.is_cancelled() {
            return Err(Fault::with(Code::Unavailable, "the server is stopping").into());
        }
        let now = live.now();
        let (parts, _) = request.into_parts();
        let metrics = snapshot.counters.protocol(protocol.plan.id).ok_or_else(|| Problem::from(Fault::new(Code::NotFound)))?;
        let ip = addresses::text(peer.ip());
        if let Some(limit) = snapshot.limits.protocol(protocol.plan.id).and_then(|limits| limits.connect.as_ref()) {
            let wait = match limit.check(&ip, now) {
                LimitVerdict::Pass => None,
                LimitVerdict::Over { retry_after } => Some(retry_after),
                LimitVerdict::Flooding => Some(Duration::from_secs(60)),
            };
            if wait.is_some() {
                let mut fault = Fault::with(Code::RateLimited, "too many new connections from this address");
                fault.retry_after = wait;
                return Err(fault.into());
            }
        }
        let offers = parts.headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter().filter_map(|offer| offer.to_str().ok());
        let extensions = protocol.plan.compress.and_then(|_| websocket::negotiate(offers));
        let view = Arc::new(request_view(&parts, parameters));
        let takeover: Takeover = match identify(&protocol.plan, view, ip, now)? {
            Ok((mut view, expires)) => {
                if let (None, Some(session)) = (&view.user, &view.session) {
                    view.user = self.sessions.user(session, now).await;
                }
                let wire = Wire::WebSocket { compress: protocol.plan.compress.filter(|_| extensions.is_some()) };
                let connection =
                    Connection::new(live.hub.next_key(), protocol.plan.id, now, view, &protocol.plan.limits, wire, metrics.clone());
                let connection = Arc::new(connection);
                live.admit(snapshot, &connection).inspect_err(|_| metrics.refused.inc())?;
                let admitted = Admitted { live: live.clone(), connection };
                // A stop closes all connections that are in the hub by then.
                if self.stop.is_cancelled() {
                    admitted.connection.outbox.close(Close::GoingAway);
                }
                let (plan, tasks) = (protocol.plan.clone(), self.tasks.clone());
                Box::new(move |TakenOver { stream, early, permit }| {
                    admitted.connection.outbox.attach(stream.into_socket());
                    // A new task, so that nothing of the handshake lives as long as the connection.
                    tasks.spawn(connection::run(admitted, plan, early, expires, permit));
                })
            }
            Err(why) => {
                tracing::debug!(protocol = %protocol.plan.name, %why, "a connection without a valid token was closed");
                metrics.refused.inc();
                let tasks = self.tasks.clone();
                // Accepted and closed at once, so that a browser's client can read why.
                Box::new(move |TakenOver { stream, early, permit }| {
                    tasks.spawn(async move {
                        connection::refuse(stream.into_socket(), early, Close::Unauthorized).await;
                        drop(permit);
                    });
                })
            }
        };
        Ok(Served { response: switching(accept, extensions), takeover: Some(takeover) })
    }
}

fn switching(accept: HeaderValue, extensions: Option<&'static str>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(extensions) = extensions {
        headers.insert(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(extensions));
    }
    response
}

/// The identity of a request's connection, and when its token expires. The inner error says why its token is not valid.
fn identify(
    plan: &ProtocolPlan,
    request: Arc<RequestView>,
    ip: Arc<str>,
    now: Now,
) -> Result<Result<(ConnView, Option<Instant>), String>, Problem> {
    let identity = match plan.auth.as_ref().map(|auth| auth::check(auth, &request)).transpose() {
        Ok(identity) => identity,
        Err(why) => return Ok(Err(why)),
    };
    let bindings = Bindings { request: Some(&request), ..Bindings::at(now) };
    let text = |template: &Option<crate::model::template::Text>| {
        let text = template.as_ref().and_then(|t| t.render(&bindings)).filter(|text| !text.is_empty());
        text.map(|text| if is_principal(&text) { Ok(Arc::<str>::from(&*text)) } else { Err(nameless()) }).transpose()
    };
    // Where tokens are asked for, a token's subject is the user, whatever the request states.
    let user = match &identity {
        Some(Identity { user: Some(user), .. }) if !is_principal(user) => return Ok(Err("the token's subject is not a valid name".into())),
        Some(identity) => identity.user.clone(),
        None => text(&plan.user)?.map(UserId::from),
    };
    let id = plan.client.render(&bindings).filter(|text| is_principal(text));
    let id = id.map_or_else(|| chance::uuid().to_string().into(), |text| ClientId::from(&*text));
    let expires = identity.and_then(|identity| identity.expires_s).map(|at_s| {
        let left_ms = (at_s.saturating_mul(1000)).saturating_sub(u64::try_from(now.wall_ms).unwrap_or(0));
        // A token may run for longer than a timer can hold.
        Instant::now() + Duration::from_millis(left_ms.min(365 * 24 * 3600 * 1000))
    });
    let session = text(&plan.session)?.map(SessionId::from);
    let view = ConnView {
        id,
        protocol: plan.name.clone(),
        user,
        session,
        ip,
        opened_ms: now.wall_ms,
        state: Json::empty_object(),
        request: request.clone(),
        origin: Default::default(),
    };
    Ok(Ok((view, expires)))
}

fn nameless() -> Problem {
    let detail = format!("the name of a user or session must have 1 to {PRINCIPAL_BYTES_MAX} bytes, without control characters and `*`");
    Problem::new(StatusCode::BAD_REQUEST, detail)
}
