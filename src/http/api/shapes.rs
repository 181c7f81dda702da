//! The shapes of bodies that are read and written by hand, because parts of them are passed on as they came. For the description
//! only: a test holds them to what is answered, and schemathesis to what is accepted.
#![expect(dead_code, reason = "described, never built")]

use serde_json::{Map, Value};
use utoipa::openapi::schema::SchemaType;
use utoipa::openapi::{AllOfBuilder, ObjectBuilder, OneOfBuilder, RefOr, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use crate::http::api::connections::InOut;

/// What to publish and where to.
pub(super) enum Publish {}

impl PartialSchema for Publish {
    fn schema() -> RefOr<Schema> {
        let only = |target: &str| ObjectBuilder::new().schema_type(SchemaType::AnyValue).required(target);
        let one_target = ["channel", "user", "session", "client"].into_iter().fold(OneOfBuilder::new(), |one, name| one.item(only(name)));
        AllOfBuilder::new()
            .item(PublishParts::schema())
            .item(one_target)
            .description(Some("An event and where it goes: exactly one of `channel`, `user`, `session` and `client`."))
            .into()
    }
}

impl ToSchema for Publish {
    fn name() -> std::borrow::Cow<'static, str> {
        "Publish".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        PublishParts::schemas(schemas);
        schemas.push((Targets::name().into(), Targets::schema()));
    }
}

#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
struct PublishParts {
    /// A channel, or several.
    #[schema(required = false)]
    channel: Targets,
    /// A user, or several: the user's channel where there is one, else all connections of the user.
    #[schema(required = false)]
    user: Targets,
    /// A session, or several, likewise.
    #[schema(required = false)]
    session: Targets,
    /// A connection's id, or several.
    #[schema(required = false)]
    client: Targets,
    /// The event's type.
    #[schema(required = false, min_length = 1, max_length = 256, default = "event", example = "note")]
    r#type: String,
    /// The event's data: any JSON, passed on as it came.
    #[schema(required = false, default = json!({}), example = json!({ "text": "hello" }))]
    data: Value,
    /// What travels beside the data.
    #[schema(required = false)]
    metadata: Map<String, Value>,
    /// The same id within five minutes publishes once. One that is a UUID is the event's own.
    #[schema(required = false, min_length = 1, max_length = 128)]
    id: String,
    /// The id of a connection that is not to get it.
    #[schema(required = false, min_length = 1)]
    except: String,
}

/// One target, or 1 to 1000 of them. With a list the answer is a list, and either all are published to or none.
#[derive(ToSchema)]
#[serde(untagged)]
enum Targets {
    One(Target),
    Many(SeveralTargets),
}

/// Several names or ids.
#[derive(ToSchema)]
#[schema(min_items = 1, max_items = 1000)]
struct SeveralTargets(Vec<Target>);

/// A name or an id.
#[derive(ToSchema)]
#[schema(min_length = 1)]
struct Target(String);

/// What was published: for a list of targets, a list.
#[derive(ToSchema)]
#[serde(untagged)]
pub(super) enum PublishedAnswer {
    One(Published),
    Many(Vec<Published>),
}

/// A published event.
#[derive(ToSchema)]
pub(super) struct Published {
    /// Its id.
    #[schema(format = "uuid")]
    id: String,
    /// Its channel; nothing where it went to connections directly.
    #[schema(required = false, example = "session:42")]
    channel: String,
    /// Its place in the channel.
    #[schema(required = false, minimum = 1)]
    offset: u64,
    /// The name of the channel's stream.
    #[schema(required = false, example = "1tckq9vz2m")]
    epoch: String,
    /// Connections it was queued for.
    delivered: u64,
}

/// What a source produces.
#[derive(ToSchema)]
pub(super) struct SourceEvent {
    /// The type, which chooses the row. A number is taken as its digits.
    #[schema(example = "tick")]
    r#type: TextOrNumber,
    /// The data.
    #[schema(required = false)]
    data: Value,
}

/// A text or a whole number.
#[derive(ToSchema)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Number(i64),
}

/// A page of stored events.
#[derive(ToSchema)]
pub(super) struct History {
    /// In the order that was asked for.
    events: Vec<Event>,
    /// `cursor` of the next page; null on the last.
    #[schema(required)]
    next: Option<String>,
    /// The search stopped before it had a full page, because it had looked at many events: go on with `next`.
    #[schema(required = false)]
    truncated: bool,
}

/// An event.
#[derive(ToSchema)]
pub(super) struct Event {
    /// Its id, a UUID.
    #[schema(format = "uuid")]
    id: String,
    /// Its channel.
    #[schema(example = "session:42")]
    channel: String,
    /// Its place in the channel.
    #[schema(minimum = 1)]
    offset: u64,
    /// The name of the channel's stream.
    #[schema(example = "1tckq9vz2m")]
    epoch: String,
    /// Its type.
    #[schema(example = "note")]
    r#type: String,
    /// Its data.
    data: Value,
    /// When it was published.
    #[schema(format = DateTime)]
    time: String,
    /// The protocol or source it came through, or `api`.
    #[schema(example = "api")]
    source: String,
    /// The connection it came from.
    #[schema(required = false)]
    client: String,
    /// The user it came from.
    #[schema(required = false)]
    user: String,
    /// The session it came from.
    #[schema(required = false)]
    session: String,
    /// What travels beside the data.
    #[schema(required = false)]
    metadata: Map<String, Value>,
}

/// A connection that was.
#[derive(ToSchema)]
pub(super) struct PastConnection {
    /// The public id it had.
    id: String,
    /// The protocol it spoke.
    #[schema(example = "chat")]
    protocol: String,
    /// Who it was.
    #[schema(required = false)]
    user: String,
    /// Its session.
    #[schema(required = false)]
    session: String,
    /// The address it came from.
    #[schema(example = "127.0.0.1")]
    address: String,
    /// When it opened.
    #[schema(format = DateTime)]
    opened: String,
    /// When something last came from it.
    #[schema(required = false, format = DateTime)]
    seen: String,
    /// When it ended.
    #[schema(format = DateTime)]
    closed: String,
    /// The close code: 1005 for a close without one, 1006 for none at all.
    #[schema(example = 1000)]
    code: u16,
    /// The reason.
    reason: String,
    /// Messages received and queued.
    messages: InOut,
    /// Payload bytes received and queued.
    bytes: InOut,
    /// Messages that were never written.
    dropped: u64,
}

/// A close code that a program may send.
pub(super) enum CloseCode {}

impl PartialSchema for CloseCode {
    fn schema() -> RefOr<Schema> {
        let range = |from: u16, to: u16| {
            ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(i64::from(from))).maximum(Some(i64::from(to)))
        };
        OneOfBuilder::new().item(range(1000, 1003)).item(range(1007, 1014)).item(range(3000, 4999)).into()
    }
}

impl ToSchema for CloseCode {}

/// Which events.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventFilter {
    /// A channel's name, or a glob such as `session:*`.
    #[param(min_length = 1, max_length = 256, example = "session:*")]
    channel: Option<String>,
    /// The event's type.
    #[param(min_length = 1, max_length = 256, example = "note")]
    r#type: Option<String>,
    /// The user it came from.
    #[param(min_length = 1, max_length = 256)]
    user: Option<String>,
    /// The session it came from.
    #[param(min_length = 1, max_length = 256)]
    session: Option<String>,
    /// The connection it came from.
    #[param(min_length = 1, max_length = 256)]
    client: Option<String>,
    /// The protocol or source it came through, or `api`.
    #[param(min_length = 1, max_length = 256)]
    source: Option<String>,
    /// Not before this moment: a time such as `2024-01-31T10:00:00Z` or `2024-01-31`, or `-15m` for so long ago.
    #[param(example = "-15m")]
    since: Option<String>,
    /// Text that stands in the data.
    #[param(min_length = 1, max_length = 256)]
    q: Option<String>,
    /// `data.<path>=<value>`: the data has this value at this path, as in `data.sessionId=42` or `data.author.name=me`. Of several
    /// all must hold.
    #[param(style = Form, explode = true, inline)]
    data: Option<DataConditions>,
}

/// Conditions on the data, by `data.` and a path.
enum DataConditions {}

impl PartialSchema for DataConditions {
    fn schema() -> RefOr<Schema> {
        let path = ObjectBuilder::new().schema_type(Type::String).pattern(Some(r"^data(\.[^.&=]+){1,64}$"));
        let value = ObjectBuilder::new().schema_type(Type::String).max_length(Some(1024));
        ObjectBuilder::new().property_names(Some(path)).additional_properties(Some(value)).max_properties(Some(64)).into()
    }
}

impl ToSchema for DataConditions {}

/// Which part of them.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct HistoryPage {
    /// Before this moment.
    until: Option<String>,
    /// Newest first, or oldest first.
    #[param(inline)]
    order: Option<Order>,
    /// The most events of a page; 100 where it is not given. Lines have no bound but this.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// `next` of the page before; the other parameters must be the same.
    cursor: Option<String>,
}

/// An order.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(default = "desc")]
enum Order {
    Desc,
    Asc,
}

/// A session to be made. Everything has a default.
#[derive(ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NewSession {
    /// Its user, at most 200 bytes; without one it is nobody's.
    #[schema(required = false, min_length = 1, max_length = 200, pattern = "^[^*\\x00-\\x1f\\x7f-\\x9f]+$", example = "42")]
    user_id: String,
    /// What it is called, for people.
    #[schema(required = false, min_length = 1, max_length = 200, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$", example = "Ada's phone")]
    name: String,
    /// How long it lasts: seconds, or a text such as `24h` or `1h30m`. From one second to 366 days.
    #[schema(required = false, default = "24h")]
    ttl: Ttl,
    /// What travels with it: any JSON of at most 16 KiB.
    #[schema(required = false)]
    meta: Value,
}

/// A length of time.
#[derive(ToSchema)]
#[serde(untagged)]
enum Ttl {
    Text(TtlText),
    Seconds(TtlSeconds),
}

/// As a text.
#[derive(ToSchema)]
#[schema(pattern = "^([0-9]+(ms|s|m|h|d|w))+$|^[0-9]+$", example = "24h")]
struct TtlText(String);

/// In seconds.
#[derive(ToSchema)]
#[schema(minimum = 1, maximum = 31622400)]
struct TtlSeconds(u64);

/// Where a channel is read on from.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ChannelPosition {
    /// The offset that was seen last; 0 where it is not given.
    since: Option<u64>,
    /// The epoch it was seen in; the present one where it is not given.
    #[param(pattern = "^[0-9a-f]{1,16}$", example = "1f3a9c")]
    epoch: Option<String>,
    /// The most events; 100 where it is not given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// How long to wait where there is nothing yet, such as `30s`; at most a minute.
    #[param(example = "1s")]
    wait: Option<String>,
}

/// What came after a position.
#[derive(ToSchema)]
pub(super) struct ChannelHistory {
    /// Oldest first.
    events: Vec<Event>,
    /// `since` of the next call.
    offset: u64,
    /// `epoch` of the next call; null where the channel never had an event.
    #[schema(required)]
    epoch: Option<String>,
    /// Whether nothing is missing between the position and the events.
    recovered: bool,
    /// How many events are.
    missed: u64,
}

/// Who is on a channel.
#[derive(ToSchema)]
pub(super) struct ChannelMembers {
    members: Vec<Member>,
}

/// A subscription.
#[derive(ToSchema)]
struct Member {
    /// The connection.
    client: String,
    /// Its protocol.
    #[schema(example = "chat")]
    protocol: String,
    /// Its user.
    #[schema(required = false)]
    user: String,
    /// Its session.
    #[schema(required = false)]
    session: String,
    /// What tells it apart from others of that connection on the channel.
    #[schema(required = false)]
    key: String,
    /// What was said of it.
    #[schema(required = false)]
    meta: Value,
    /// When it began.
    #[schema(format = DateTime)]
    since: String,
}

/// Where a stream goes on.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsAfter {
    /// The `id` that came last, for clients that cannot send `Last-Event-ID`.
    after: Option<String>,
}
