//! `GET /api/connections` and `/api/connections/{id}`: who is connected.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::api::openapi::{BadQuery, NotThere};
use crate::http::api::{Answer, Api, Parameters, Part, ok};
use crate::http::problem::Problem;
use crate::hub;
use crate::hub::connection::report;
use crate::model::ChannelName;
use crate::model::name::ClientId;

/// Connections.
#[derive(Serialize, ToSchema)]
struct Connections {
    /// Oldest first.
    connections: Vec<Connection>,
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
    /// Who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Arc<str>>,
    /// Its session.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<Arc<str>>,
    /// The address it comes from.
    #[schema(example = "127.0.0.1")]
    address: Arc<str>,
    /// When it opened.
    #[schema(format = DateTime)]
    opened: String,
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
    /// What waits to be written.
    queue: Queue,
    /// The channels it is on.
    #[schema(value_type = Vec<String>)]
    channels: Vec<ChannelName>,
}

/// Two directions.
#[derive(Serialize, ToSchema)]
struct InOut {
    /// From the client.
    r#in: u64,
    /// To the client.
    out: u64,
}

/// What waits to be written.
#[derive(Serialize, ToSchema)]
struct Queue {
    /// Frames.
    frames: usize,
    /// Bytes.
    bytes: usize,
    /// The most bytes that ever waited.
    peak: usize,
    /// The bound.
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
            alive: report.alive,
            ready_state: report.ready_state,
            messages: both(report.messages),
            bytes: both(report.bytes),
            dropped: report.dropped,
            queue: Queue { frames: queue.frames, bytes: queue.bytes, peak: queue.peak, max: queue.max },
            channels: report.channels,
        }
    }
}

/// List connections
#[utoipa::path(get, path = "/api/connections", tag = "connections",
    params(("protocol" = Option<String>, Query, description = "Only those of this protocol.", min_length = 1)),
    responses((status = 200, description = "All of them.", body = Connections), BadQuery))]
pub(super) async fn connections(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    let parameters = Parameters::of(&uri, &["protocol"])?;
    let context = &api.router.context;
    let protocol = match parameters.get("protocol") {
        None => None,
        Some(name) => Some(context.runtime.protocol_index(name).ok_or_else(|| Parameters::wrong("protocol", "no protocol has this name"))?),
    };
    ok(&Connections { connections: context.hub.connections(protocol).iter().map(|c| Connection::live(c)).collect() })
}

/// Show a connection
#[utoipa::path(get, path = "/api/connections/{id}", tag = "connections",
    params(("id" = String, Path, description = "The connection's public id.", min_length = 1)),
    responses((status = 200, description = "It is open.", body = Connection), BadQuery, NotThere))]
pub(super) async fn one_connection(State(api): State<Arc<Api>>, Part(id): Part, uri: Uri) -> Answer {
    Parameters::of(&uri, &[])?;
    let missing = || Problem::new(StatusCode::NOT_FOUND, format!("no connection `{id}` is open"));
    ok(&Connection::live(&*api.router.context.hub.connection(&id).ok_or_else(missing)?))
}
