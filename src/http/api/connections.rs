//! `GET /api/connections`, `GET` and `DELETE /api/connections/{id}`: lists, shows and closes connections.

use std::sync::Arc;

use arc_swap::Guard;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode, Uri};
use axum::response::IntoResponse;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use crate::http::api::history::problem;
use crate::http::api::openapi::{BadQuery, NotJson, NotThere, Unavailable};
use crate::http::api::query::{Known, Query};
use crate::http::api::shapes::{CloseCode, PastConnection};
use crate::http::api::{Answer, Api, LIMIT_DEFAULT, Part, ok};
use crate::http::problem::Problem;
use crate::hub::connection::report;
use crate::hub::{self, Hub};
use crate::model::close::{BY_OPERATOR, REASON_BYTES_MAX, may_send};
use crate::model::id::ProtocolId;
use crate::model::name::{ClientId, SessionId, UserId};
use crate::model::{ChannelName, Close};
use crate::store::{ConnectionQuery, LISTING_LIMIT_MAX};
use crate::telemetry::report::SlowCounted;

/// The prefix of a cursor over open connections.
const LIVE: &str = "live-";

/// A page of connections.
#[derive(Serialize, ToSchema)]
struct Connections {
    /// Open connections: the oldest first. Closed ones: the newest first.
    connections: Vec<Entry>,
    /// `cursor` of the next page; null on the last.
    #[schema(required)]
    next: Option<String>,
}

/// An open or a closed connection.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = AnyConnection)]
enum Entry {
    /// It is open.
    Live(Box<Connection>),
    /// It is closed.
    #[schema(value_type = PastConnection)]
    Past(Box<RawValue>),
}

impl Entry {
    /// A connection as the store has it.
    fn past(text: String) -> Result<Self, Problem> {
        let unreadable = |_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "a stored connection cannot be read");
        RawValue::from_string(text).map(Self::Past).map_err(unreadable)
    }
}

/// An open connection.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Connection {
    /// The public id.
    #[schema(value_type = String, example = "8f14e45f-ceea-467f-a0e6-b7d3c1b1c6c5")]
    id: ClientId,
    /// The protocol it speaks.
    #[schema(example = "chat")]
    protocol: Arc<str>,
    /// Its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    user: Option<UserId>,
    /// Its session.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    session: Option<SessionId>,
    /// The address it comes from.
    #[schema(example = "127.0.0.1")]
    address: Arc<str>,
    /// When it opened.
    #[schema(format = DateTime)]
    opened: String,
    /// When it last sent something.
    #[schema(format = DateTime)]
    seen: String,
    /// Whether the last ping was answered.
    alive: bool,
    /// The WebSocket state number: 1 open, 2 closing.
    #[schema(minimum = 1, maximum = 2)]
    ready_state: u8,
    /// Messages received and queued.
    messages: InOut,
    /// Payload bytes received and queued.
    bytes: InOut,
    /// Messages that were never written.
    dropped: u64,
    /// Messages that were not written as they were published, because the client was slow.
    slow: SlowCounted,
    /// The frames that wait to be written.
    queue: Queue,
    /// The channels it has joined.
    #[schema(value_type = Vec<String>)]
    channels: Vec<ChannelName>,
}

/// Two directions.
#[derive(Serialize, ToSchema)]
pub(super) struct InOut {
    /// From the client.
    r#in: u64,
    /// To the client.
    out: u64,
}

/// The frames that wait to be written.
#[derive(Serialize, ToSchema)]
struct Queue {
    /// Frames.
    frames: usize,
    /// Bytes.
    bytes: usize,
    /// The most bytes that have ever waited.
    peak: usize,
    /// The limit.
    max: usize,
}

impl Connection {
    fn live(connection: &hub::Connection) -> Self {
        let report = report(connection);
        let both = |flow: hub::connection::InOut| InOut { r#in: flow.received, out: flow.sent };
        let queue = report.queue;
        Self {
            id: report.id,
            protocol: report.protocol,
            user: report.user,
            session: report.session,
            address: report.address,
            opened: report.opened,
            seen: report.seen,
            alive: report.alive,
            ready_state: report.ready_state,
            messages: both(report.messages),
            bytes: both(report.bytes),
            dropped: report.dropped,
            slow: report.slow,
            queue: Queue { frames: queue.frames, bytes: queue.bytes, peak: queue.peak, max: queue.max },
            channels: report.channels,
        }
    }
}

/// Which connections.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "described; read by `Query`")]
pub(super) struct Which {
    /// List closed connections instead of open ones.
    closed: Option<bool>,
    /// Only those of this user.
    #[param(min_length = 1, max_length = 256)]
    user: Option<String>,
    /// Only those of this session.
    #[param(min_length = 1, max_length = 256)]
    session: Option<String>,
    /// Only those of this protocol.
    #[param(min_length = 1, max_length = 256, example = "chat")]
    protocol: Option<String>,
    /// The most connections in a page; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// `next` of the previous page; the other parameters must be the same.
    cursor: Option<String>,
}

/// List connections
///
/// Open connections, the oldest first, or with `closed=true` closed ones, the newest first.
#[utoipa::path(get, path = "/api/connections", tag = "connections", params(Which),
    responses((status = 200, description = "A page.", body = Connections), BadQuery, Unavailable))]
pub(super) async fn connections(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    let names = ["closed", "user", "session", "protocol", "limit", "cursor"];
    let mut query = Query::of(&uri, &Known { names: &names, repeated: &[], data: false });
    let closed = query.take("closed", |text| text.parse().map_err(|_| "must be `true` or `false`".into())).unwrap_or(false);
    let (user, session) = (query.word("user"), query.word("session"));
    let snapshot = Guard::into_inner(api.live.snapshot());
    let protocol = query.take("protocol", |name| match ProtocolId::known(name).filter(|id| snapshot.runtime.protocol(*id).is_some()) {
        // A protocol that is no longer declared may have had connections.
        None if !closed => Err("no protocol has this name".into()),
        id => Ok((Box::<str>::from(name), id)),
    });
    let limit = query.number("limit", 1, LISTING_LIMIT_MAX as u64).and_then(|n| usize::try_from(n).ok()).unwrap_or(LIMIT_DEFAULT);
    if closed {
        let cursor = query.take("cursor", |text| Ok(text.to_owned()));
        query.done()?;
        let protocol = protocol.map(|(name, _)| name);
        let query = ConnectionQuery { protocol, user, session, client: None, closed: true, limit, cursor };
        let page = api.live.store.connections(&query).await.map_err(problem)?;
        let connections = page.entries.into_iter().map(Entry::past).collect::<Result<_, _>>()?;
        return ok(&Connections { connections, next: page.next });
    }
    let read = |text: &str| text.strip_prefix(LIVE).and_then(|key| key.parse::<u64>().ok());
    let after = query.take("cursor", |text| read(text).ok_or_else(|| "must be a cursor of this query".into()));
    query.done()?;
    let mut found = live(&snapshot.hub, protocol.and_then(|(_, id)| id), user.as_deref(), session.as_deref());
    found.retain(|connection| after.is_none_or(|after| connection.key > after));
    found.sort_unstable_by_key(|connection| connection.key);
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|last| format!("{LIVE}{}", last.key));
    ok(&Connections { connections: found.iter().map(|c| Entry::Live(Box::new(Connection::live(c)))).collect(), next })
}

/// Open connections for which all of this holds.
fn live(hub: &Hub, protocol: Option<ProtocolId>, user: Option<&str>, session: Option<&str>) -> Vec<Arc<hub::Connection>> {
    let mut found = match (user, session) {
        (Some(user), _) => hub.of_user(user),
        (None, Some(session)) => hub.of_session(session),
        (None, None) => hub.connections(protocol),
    };
    found.retain(|connection| {
        protocol.is_none_or(|index| connection.protocol == index)
            && session.is_none_or(|session| connection.view().session.as_deref() == Some(session))
    });
    found
}

/// Show a connection
///
/// The open connection with this id, or else the last closed one.
#[utoipa::path(get, path = "/api/connections/{id}", tag = "connections",
    params(("id" = String, Path, description = "The connection's public id.", min_length = 1)),
    responses((status = 200, description = "The connection, open or closed.", body = Entry), BadQuery, NotThere, Unavailable))]
pub(super) async fn one_connection(State(api): State<Arc<Api>>, Part(id): Part, uri: Uri) -> Answer {
    Query::nothing(&uri)?;
    if let Some(connection) = api.live.hub.connection(&id) {
        return ok(&Entry::Live(Box::new(Connection::live(&connection))));
    }
    let client = Some(id.as_str().into());
    let query = ConnectionQuery { protocol: None, user: None, session: None, client, closed: true, limit: 1, cursor: None };
    let page = api.live.store.connections(&query).await.map_err(problem)?;
    let found = page.entries.into_iter().next();
    ok(&Entry::past(found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("there is no record of a connection `{id}`")))?)?)
}

/// How to end a connection.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "described; read by `Query`")]
pub(super) struct How {
    /// The close code that its client gets: 1000 to 1003, 1007 to 1014, or 3000 to 4999. 1008 by default.
    #[param(inline, example = 1008)]
    code: Option<CloseCode>,
    /// The reason that its client gets, at most 123 bytes; `closed by the operator` by default.
    #[param(max_length = 123)]
    reason: Option<String>,
}

/// Close a connection
///
/// What already waits for it is written first. The answer comes at once; the client may get the close frame a little later.
#[utoipa::path(delete, path = "/api/connections/{id}", tag = "connections", operation_id = "close_connection",
    params(("id" = String, Path, description = "The connection's public id.", min_length = 1), How),
    responses((status = 204, description = "The connection will be closed."), BadQuery, NotThere, NotJson))]
pub(super) async fn close(State(api): State<Arc<Api>>, Part(id): Part, uri: Uri) -> Result<Response<Body>, Problem> {
    let mut query = Query::of(&uri, &Known { names: &["code", "reason"], repeated: &[], data: false });
    let code = query.take("code", |text| {
        let code = text.parse().ok().filter(|code| may_send(*code));
        code.ok_or_else(|| "must be a close code that may be sent: 1000 to 1003, 1007 to 1014, or 3000 to 4999".into())
    });
    let reason = query.take("reason", |text| match text.len() <= REASON_BYTES_MAX {
        true => Ok(text.to_owned()),
        false => Err(format!("must be at most {REASON_BYTES_MAX} bytes")),
    });
    query.done()?;
    let (code, reason) = (code.unwrap_or(BY_OPERATOR.0), reason.unwrap_or_else(|| BY_OPERATOR.1.into()));
    let connection = api.live.hub.connection(&id);
    let connection = connection.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("no connection `{id}` is open")))?;
    tracing::info!(client = %connection.id, code, reason, "a connection is closed by the operator");
    api.live.end(&connection, Close::Asked(code, reason.into()));
    Ok(StatusCode::NO_CONTENT.into_response())
}
