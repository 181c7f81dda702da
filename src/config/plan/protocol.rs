//! What the file says of protocols: who may connect, within which bounds, and how events are written for them.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::{FnRef, Listen, Row, Secret, Table, TlsPlan};
use crate::model::fault::Code;
use crate::model::id::ProtocolId;
use crate::model::pattern::Pattern;
use crate::model::schema::Schema;
use crate::model::template::Template;
use crate::model::template::Text;
use crate::model::{Codec, SourceLocation};

/// One entry of `protocols:`.
#[derive(Debug)]
pub struct ProtocolPlan {
    /// Stands for its name.
    pub id: ProtocolId,
    /// Its name.
    pub name: Arc<str>,
    /// Where it stands.
    pub at: SourceLocation,
    /// Address.
    pub listen: Listen,
    /// None: plain HTTP. All on one address have the same.
    pub tls: Option<TlsPlan>,
    /// Path, with parameters.
    pub path: Pattern,
    /// How its messages are written.
    pub codec: Codec,
    /// Origins let in besides none, the same and loopback ones.
    pub origins: Vec<String>,
    /// Path to what selects the row.
    pub kind: Vec<Box<str>>,
    /// Path to `$data`; none: the message without its type.
    pub data: Option<Vec<Box<str>>>,
    /// The id a new connection gets.
    pub client: Text,
    /// The user of a connection that no token speaks for.
    pub user: Option<Text>,
    /// The session a connection begins with.
    pub session: Option<Text>,
    /// Token checks.
    pub auth: Option<AuthPlan>,
    /// Bounds.
    pub limits: LimitsPlan,
    /// Ping frames.
    pub heartbeat: Option<HeartbeatPlan>,
    /// The size in bytes from which messages are compressed for clients that ask for it; none: never.
    pub compress: Option<usize>,
    /// What happens when a client sends nothing for long.
    pub idle: Option<IdlePlan>,
    /// Rows run by a timer on each connection.
    pub every: Vec<(Duration, Row)>,
    /// Every message must hold to it, before a row is chosen.
    pub schema: Option<Arc<Schema>>,
    /// A function every message passes, before a row is chosen.
    pub validate: Option<FnRef>,
    /// When a connection opens.
    pub open: Vec<Row>,
    /// When a connection has ended. Nothing can be sent to it any more.
    pub close: Vec<Row>,
    /// What each message type does.
    pub messages: Table,
    /// How an event is written to this protocol's clients: the first row that holds. None: `{"type","data"}` and the channel.
    pub deliver: Vec<DeliverRow>,
    /// Events in a row are written as one message, to those who want it.
    pub batch: Option<BatchPlan>,
    /// How a fault is told. None: on the wire nothing.
    pub error: Option<Template>,
    /// Messages of faults, by code.
    pub errors: HashMap<Code, Text>,
    /// HTTP rows on the same address.
    pub http: Vec<HttpRow>,
}

/// `batch:`, where it says how long.
#[derive(Debug, Clone)]
pub struct BatchPlan {
    /// It is for connections of which this expression over `$conn` holds; none: for all.
    pub when: Option<FnRef>,
    /// How long after the first event of a channel others are waited for.
    pub every: Duration,
    /// Events that do not wait for that.
    pub events: usize,
    /// Bytes of events that do not wait for it.
    pub bytes: usize,
    /// How several messages are written as one, over `$messages`.
    pub form: Template,
}

/// `auth:`, where it is not empty.
#[derive(Debug, Clone)]
pub struct AuthPlan {
    /// HMAC secret (HS256, HS384, HS512).
    pub secret: Option<Secret>,
    /// A JSON Web Key Set, as its text.
    pub keys: Option<Arc<str>>,
    /// Where the token is looked for, in order.
    pub from: Vec<TokenFrom>,
    /// The audience a token must name, if any.
    pub audience: Option<String>,
    /// The issuer a token must name, if any.
    pub issuer: Option<String>,
}

/// Where a token may stand in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenFrom {
    /// `query.NAME`
    Query(Box<str>),
    /// `header.NAME`; a leading `Bearer ` is taken off.
    Header(Box<str>),
    /// `cookie.NAME`
    Cookie(Box<str>),
}

/// `limits:`
#[derive(Debug, Clone)]
pub struct LimitsPlan {
    /// The largest message, in bytes. More closes with 1009.
    pub message: usize,
    /// Messages per connection. More is answered, ten times as many closes with 1008.
    pub rate: Option<Rate>,
    /// Messages per user, over all of that user's connections of this protocol.
    pub user_rate: Option<Rate>,
    /// Messages per address.
    pub address_rate: Option<Rate>,
    /// New connections per address.
    pub connect_rate: Option<Rate>,
    /// Open connections of this protocol.
    pub connections: usize,
    /// Open connections of this protocol from one address; no bound unless said.
    pub connections_per_address: usize,
    /// What happens at the limit.
    pub full: WhenFull,
    /// Bytes that may wait for one client. More closes with the code of `slow`.
    pub outbox: usize,
    /// How a client that lets its outbox overflow is closed.
    pub slow: (u16, Arc<str>),
    /// Subscriptions of one connection.
    pub subscriptions: usize,
}

/// What happens to a connection that is one too many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhenFull {
    /// It is refused with 503.
    Refuse,
    /// The oldest is closed, with this code and reason, and the new one let in.
    CloseOldest(u16, Arc<str>),
}

/// A rate: `100/60s`, `20/s burst 40`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// In which time.
    pub per: Duration,
    /// How many at once; `count` unless said.
    pub burst: NonZeroU32,
}

/// `heartbeat:`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatPlan {
    /// Between ping frames.
    pub every: Duration,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// `idle:`
#[derive(Debug)]
pub struct IdlePlan {
    /// How long a client may send nothing.
    pub after: Duration,
    /// What happens then: `send`, and with `close`, the end.
    pub row: Row,
    /// How long after that it is closed, unless it sends something; none: `row` alone decides.
    pub grace: Option<Duration>,
}

/// One row of `deliver:`.
#[derive(Debug)]
pub struct DeliverRow {
    /// The row counts only where this expression over `$event`, `$sub` and `$conn` holds.
    pub when: Option<FnRef>,
    /// Whether `when` looks at the subscription or connection, so that it must be asked for each.
    pub when_per_subscription: bool,
    /// How it is written. None: `ignore`, this event is not for this subscription.
    pub form: Option<DeliverForm>,
    /// Whether `form` looks at the subscription or connection. If not, it is written once for all.
    pub per_subscription: bool,
    /// Whether `form` looks at the position: then it is written once for those who know it and once for the others.
    pub positioned: bool,
}

/// How an event is written.
#[derive(Debug)]
pub enum DeliverForm {
    /// A template.
    Template(Template),
    /// A function `(event, sub, conn)`; `()` is nothing.
    Call(FnRef),
}

/// One row of `http:` in a protocol.
#[derive(Debug)]
pub struct HttpRow {
    /// `GET`, `POST`, `PUT`, `PATCH` or `DELETE`.
    pub method: Arc<str>,
    /// The path.
    pub path: Pattern,
    /// The first that holds.
    pub rows: Vec<Row>,
}
