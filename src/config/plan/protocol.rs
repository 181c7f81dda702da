//! Protocols in the plan: who may connect, within which bounds, and how events are written for them.

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
    /// Its place in the routes file.
    pub at: SourceLocation,
    /// Address.
    pub listen: Listen,
    /// None: plain HTTP. All listeners on one address have the same.
    pub tls: Option<TlsPlan>,
    /// Path, with parameters.
    pub path: Pattern,
    /// How its messages are written.
    pub codec: Codec,
    /// Allowed origins, besides no origin, the same origin and loopback ones.
    pub origins: Vec<String>,
    /// Path to what selects the row.
    pub kind: Vec<Box<str>>,
    /// Path to `$data`; none: the message without its type.
    pub data: Option<Vec<Box<str>>>,
    /// The id a new connection gets.
    pub client: Text,
    /// The user of a connection without a token.
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
    /// Every message must match it, before a row is chosen.
    pub schema: Option<Arc<Schema>>,
    /// A function that is called for every message, before a row is chosen.
    pub validate: Option<FnRef>,
    /// When a connection opens.
    pub open: Vec<Row>,
    /// When a connection has ended. Nothing can be sent to it any more.
    pub close: Vec<Row>,
    /// What each message type does.
    pub messages: Table,
    /// How an event is written to this protocol's clients: the first row whose `when` holds. None: `{"type","data"}` and the
    /// channel.
    pub deliver: Vec<DeliverRow>,
    /// Events that follow each other are written as one message, for connections that want it.
    pub batch: Option<BatchPlan>,
    /// How a fault is written for its sender. None: nothing is sent.
    pub error: Option<Template>,
    /// Messages of faults, by code.
    pub errors: HashMap<Code, Text>,
    /// HTTP rows on the same address.
    pub http: Vec<HttpRow>,
}

/// `batch:`, where it says how long.
#[derive(Debug, Clone)]
pub struct BatchPlan {
    /// It applies to connections for which this expression over `$conn` holds; none: to all.
    pub when: Option<FnRef>,
    /// How long the first event of a channel waits for others.
    pub every: Duration,
    /// Events that do not wait for that.
    pub events: usize,
    /// Bytes of events at which a batch is written without waiting longer.
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

/// Where a token may be in a request.
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

/// What happens to a new connection when the limit is reached.
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
    /// The row applies only if this expression over `$event`, `$sub` and `$conn` holds.
    pub when: Option<FnRef>,
    /// Whether `when` reads the subscription or connection, so that it must be evaluated for each.
    pub when_per_subscription: bool,
    /// How it is written. None: `ignore`, this event is not for this subscription.
    pub form: Option<DeliverForm>,
    /// Whether `form` reads the subscription or connection. If not, the event is written once for all.
    pub per_subscription: bool,
    /// Whether `form` reads the position: then the event is written once for subscriptions with a position and once for the
    /// others.
    pub positioned: bool,
}

/// How an event is written.
#[derive(Debug)]
pub enum DeliverForm {
    /// A template.
    Template(Template),
    /// A function `(event, sub, conn)`; `()` sends nothing.
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
