//! The checked plan: what a routes file says, after everything in it was found to be sound. Data only; names are resolved,
//! templates, patterns and schemas compiled. What is a script is named here and compiled elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::model::Place;
use crate::model::fault::Code;
use crate::model::pattern::{Glob, Pattern};
use crate::model::template::{Template, Text};

use crate::model::schema::Schema;

/// A whole configuration.
#[derive(Debug)]
pub struct Plan {
    /// Where sessions, statistics and history live.
    pub store: StorePlan,
    /// The REST interface.
    pub api: ApiPlan,
    /// In the order of the file.
    pub channels: Vec<Arc<ChannelPlan>>,
    /// In the order of the file.
    pub protocols: Vec<Arc<ProtocolPlan>>,
    /// In the order of the file.
    pub sources: Vec<Arc<SourcePlan>>,
    /// How long a stop may take before what still runs is named and left.
    pub stop_within: Duration,
    /// Sockets that one address may have at a listener. None: the usual, and any number for loopback addresses.
    pub sockets_per_address: Option<usize>,
}

/// `store:`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorePlan {
    /// Which database.
    pub database: DatabasePlan,
    /// Bytes the database may have before the oldest events go; none: no bound.
    pub size: Option<u64>,
}

/// `store: url`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabasePlan {
    /// `sqlite://path`: a file, made if it is not there. Relative paths start at the folder of the routes file.
    Sqlite(PathBuf),
    /// `sqlite::memory:`: gone with the process.
    Memory,
    /// `postgres://…`. Secret, because a password may stand in it.
    Postgres(Secret),
}

impl From<DatabasePlan> for StorePlan {
    fn from(database: DatabasePlan) -> Self {
        Self { database, size: None }
    }
}

/// `api:`
#[derive(Debug)]
pub struct ApiPlan {
    /// Where it listens.
    pub listen: Listen,
    /// None: plain HTTP.
    pub tls: Option<TlsPlan>,
    /// The bearer token every call but health needs. None: open, which needs a loopback address.
    pub token: Option<Secret>,
    /// Origins let in besides none, the same and loopback ones.
    pub origins: Vec<String>,
}

/// A value that never shows in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Arc<str>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// An address to listen on. `localhost` means both loopback addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listen {
    /// `localhost`, or an IP address without brackets.
    pub host: Arc<str>,
    /// 0: the system chooses.
    pub port: u16,
}

impl Listen {
    /// Whether only this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        &*self.host == "localhost" || self.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

/// `tls:` The files of a listener's certificate. Both were sound when the plan was made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TlsPlan {
    /// The certificate and those between it and the root, as PEM.
    pub cert: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
}

/// One entry of `channels:`.
#[derive(Debug)]
pub struct ChannelPlan {
    /// Its place among the plan's channels.
    pub place: usize,
    /// Its name or pattern.
    pub pattern: Pattern,
    /// Where it stands.
    pub at: Place,
    /// Whether and how its events are kept.
    pub history: Option<HistoryPlan>,
    /// Publishing to this user or session (the one capture of the pattern) is publishing here.
    pub audience: Option<Audience>,
    /// `data:` gives what is published its final shape, before the schema looks at it.
    pub data: Option<Template>,
    /// The schema of the data by event type; the first glob that matches decides; none: anything goes.
    pub schemas: Vec<(Glob, Arc<Schema>)>,
    /// The protocols whose clients may join; none named: all.
    pub join: Option<Vec<Arc<str>>>,
    /// Protocols, sources and `api` that may publish; none named: all.
    pub publish: Option<Vec<Arc<str>>>,
    /// What becomes of its messages for a client that does not read.
    pub on_slow: OnSlow,
}

/// `on_slow:` What becomes of a channel's messages for a client whose socket takes nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum OnSlow {
    /// They wait, and once the outbox is full the connection ends.
    #[default]
    Disconnect,
    /// Once the outbox is full, the oldest that waits makes room.
    DropOldest,
    /// Once the outbox is full, nothing new is taken.
    DropNewest,
    /// A newer one takes the place of one that waits and has the same key. References are to the event.
    LatestBy(Text),
    /// The text at this path of the data is joined with that of the neighbour, where all else is equal.
    Concat(Box<[Box<str>]>),
}

/// `history:`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryPlan {
    /// Events kept in memory.
    pub tail: usize,
    /// Bytes of them kept in memory.
    pub tail_bytes: usize,
    /// How long events stay in the log.
    pub keep: Keep,
    /// When subscribers and publishers hear of an event.
    pub promise: Promise,
}

/// `keep:` How long a channel's events stay in the log. What exceeds either bound goes, oldest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// At most so many; none: no bound.
    pub events: Option<u64>,
    /// At most so old; none: no bound.
    pub age: Option<Duration>,
}

/// What a channel promises about an event that is not in the database yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Promise {
    /// Nobody hears of it: delivered and acknowledged once it is committed.
    #[default]
    Committed,
    /// `deliver: early`: delivered at once, acknowledged once it is committed.
    Early,
    /// `durability: relaxed`: delivered and acknowledged at once.
    Relaxed,
}

impl Promise {
    /// Whether a crash may lose what was delivered, so that the channel needs a new epoch after one.
    pub fn is_early(self) -> bool {
        self != Promise::Committed
    }
}

/// `audience:`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// `{"user": …}`
    User,
    /// `{"session": …}`
    Session,
}

/// One entry of `protocols:`.
#[derive(Debug)]
pub struct ProtocolPlan {
    /// Its name.
    pub name: Arc<str>,
    /// Where it stands.
    pub at: Place,
    /// Address.
    pub listen: Listen,
    /// None: plain HTTP. All on one address have the same.
    pub tls: Option<TlsPlan>,
    /// Path, with parameters.
    pub path: Pattern,
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
    /// Events in a row are written as one message.
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

/// `messages:` of a protocol or source: the rows of each message type. Looked up once per message.
#[derive(Debug, Default)]
pub struct Table {
    /// By exact type.
    pub exact: HashMap<Box<str>, Vec<Row>, foldhash::fast::RandomState>,
    /// By glob, in the order of the file.
    pub globs: Vec<(Glob, Vec<Row>)>,
    /// `_`
    pub otherwise: Option<Vec<Row>>,
}

impl Table {
    /// Every row.
    pub fn all(&self) -> impl Iterator<Item = &Row> {
        let globs = self.globs.iter().map(|(_, rows)| rows);
        self.exact.values().chain(globs).chain(&self.otherwise).flatten()
    }

    /// The rows of a type: exact before globs before `_`.
    pub fn rows(&self, kind: &str) -> Option<&[Row]> {
        let by_glob = || self.globs.iter().find(|(glob, _)| glob.matches(kind)).map(|(_, rows)| rows);
        self.exact.get(kind).or_else(by_glob).or(self.otherwise.as_ref()).map(Vec::as_slice)
    }
}

/// A row: what happens, in the order of these fields, as one transaction. The default row does nothing.
#[derive(Debug)]
pub struct Row {
    /// Tells it apart from all other rows of the plan: a number that is less than there are rows.
    pub id: usize,
    /// `canvas.messages.ping`: for the log, statistics and the table of routes.
    pub name: Arc<str>,
    /// Where it stands.
    pub at: Place,
    /// The row counts only where this expression holds.
    pub when: Option<FnRef>,
    /// Messages of one connection through this row.
    pub limit: Option<Rate>,
    /// What the message must look like.
    pub schema: Option<Arc<Schema>>,
    /// A function that says true, false, or throws why.
    pub validate: Option<FnRef>,
    /// A function that gives the new message, a list of them, or `()` to drop it.
    pub transform: Option<FnRef>,
    /// A function that does what it does; its value is `$result`.
    pub call: Option<FnRef>,
    /// Connection state.
    pub set: Vec<(SetTarget, Template)>,
    /// Subscriptions of this connection to end: names or globs.
    pub leave: Vec<Text>,
    /// Channels to join. A name with a missing part is skipped in `open`, and a fault elsewhere.
    pub join: Vec<Join>,
    /// What is published where.
    pub to: Vec<Publish>,
    /// What goes back to the sender.
    pub reply: Option<Reply>,
    /// HTTP status of the reply (HTTP rows only).
    pub status: Option<u16>,
    /// The connection ends after this row.
    pub close: Option<(u16, Text)>,
    /// The message is a fault, with this message. Nothing else of the row happens.
    pub fail: Option<(Code, Text)>,
}

/// `set:`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetTarget {
    /// `user`
    User,
    /// `session`
    Session,
    /// `state.NAME`
    State(Box<str>),
}

/// One subscription of `join:`.
#[derive(Debug)]
pub struct Join {
    /// The channel's name.
    pub channel: Text,
    /// Tells several subscriptions of one connection to one channel apart. Default: the empty text.
    pub key: Option<Text>,
    /// What `$sub.meta` is.
    pub meta: Option<Template>,
    /// Where the client says it stands.
    pub recover: Option<RecoverPlan>,
}

/// `recover:` of a `join:`. Where `since` is there, even as `null`, the subscription knows its position.
#[derive(Debug)]
pub struct RecoverPlan {
    /// The offset up to which the client has seen the channel; `null`: it wants no past.
    pub since: Template,
    /// The stream it has seen; none, missing or `null`: the present one.
    pub epoch: Option<Template>,
}

/// One target of `to:`.
#[derive(Debug)]
pub struct Publish {
    /// Where to.
    pub target: Target,
    /// The event's type; none: the message's type.
    pub kind: Option<Text>,
    /// The event's data; none: `$data`.
    pub data: Option<Template>,
    /// What travels beside it.
    pub metadata: Option<Template>,
    /// `except: sender`
    pub except_sender: bool,
}

/// Where an event goes.
#[derive(Debug)]
pub enum Target {
    /// To all who are on a channel.
    Channel(Text),
    /// To one connection, by its public id.
    Client(Text),
    /// To a user: the channel with `audience: user`, else all of that user's connections.
    User(Text),
    /// To a session, likewise.
    Session(Text),
}

/// `reply:` or `send:`
#[derive(Debug)]
pub enum Reply {
    /// A template.
    Template(Template),
    /// A function; its value is the reply, `()` is none.
    Call(FnRef),
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

/// One entry of `sources:`.
#[derive(Debug)]
pub struct SourcePlan {
    /// Its name.
    pub name: Arc<str>,
    /// Where it stands.
    pub at: Place,
    /// Where its events come from.
    pub kind: SourceKind,
    /// What each event type does. A source with `to:` alone has one row for all.
    pub messages: Table,
}

/// Where a source's events come from.
#[derive(Debug)]
pub enum SourceKind {
    /// A timer. Nothing is made while the server stops.
    Every {
        /// Between two events.
        period: Duration,
        /// The event's type.
        kind: Text,
        /// The event's data.
        data: Template,
    },
    /// `http: "POST /path"`: a JSON body `{"type", "data"}`.
    Http {
        /// The method.
        method: Arc<str>,
        /// The path.
        path: Pattern,
        /// Address.
        listen: Listen,
        /// None: plain HTTP. All on one address have the same.
        tls: Option<TlsPlan>,
        /// Origins let in besides none, the same and loopback ones.
        origins: Vec<String>,
        /// A bearer token it wants, if any.
        token: Option<Secret>,
    },
}

/// A function of a plugin, or a compiled expression.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FnRef {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// The function's name. Expressions get a name that no plugin can write.
    pub name: Arc<str>,
}

/// What a function is for, which says how it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// `(msg)` or `(conn, msg)`: true, false, or a throw.
    Validate,
    /// `(msg)` or `(conn, msg)`: the new message, a list, or `()`.
    Transform,
    /// `(conn)` or `(conn, msg)`: handlers, and replies by function.
    Handler,
    /// `(event)`, `(event, sub)` or `(event, sub, conn)`
    Deliver,
    /// An expression of `when:`; never named by a plugin.
    Expression,
}

/// A place in the file that names a function of a plugin: checked once scripts are compiled.
#[derive(Debug, Clone)]
pub struct FunctionUse {
    /// The function.
    pub function: FnRef,
    /// How it will be called.
    pub role: Role,
    /// Where it is named.
    pub at: Span,
}

/// An expression of the file, to be compiled along with its plugin.
#[derive(Debug, Clone)]
pub struct ExpressionUse {
    /// What it is called by.
    pub function: FnRef,
    /// Rhai source over `msg`, `type`, `data`, `conn`, `event`, `sub`: references already rewritten (`$.x` to `msg.x`).
    pub source: Arc<str>,
    /// The parameters, in order: what the expression may look at.
    pub parameters: &'static [&'static str],
    /// Where it stands.
    pub at: Span,
}

/// A stretch of one line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub place: Place,
    /// How many characters it has, at least 1.
    pub len: u32,
}

/// A plugin's source text.
#[derive(Debug, Clone)]
pub struct PluginSource {
    /// `agent` for `plugins/agent.rhai`.
    pub name: Arc<str>,
    /// The file as users see it.
    pub file: Arc<str>,
    /// Its text.
    pub text: Arc<str>,
}

/// All plugins that were found, by name, and the folder they came from.
#[derive(Debug, Clone, Default)]
pub struct Plugins {
    /// `plugins/`, next to the routes file.
    pub folder: PathBuf,
    /// By name.
    pub sources: BTreeMap<Arc<str>, PluginSource>,
}
