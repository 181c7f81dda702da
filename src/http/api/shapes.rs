//! The shapes of bodies that are read and written by hand, because parts of them are passed on as they came. For the description
//! only: a test compares them with the answers, and schemathesis with what is accepted.
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
    /// A user, or several: the user's channel if there is one, else all connections of the user.
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
    /// The event's data: any JSON, passed on unchanged.
    #[schema(required = false, default = json!({}), example = json!({ "text": "hello" }))]
    data: Value,
    /// Metadata: passed on beside the data.
    #[schema(required = false)]
    metadata: Map<String, Value>,
    /// Two calls with the same id within five minutes publish once. If it is a UUID, it becomes the event's id.
    #[schema(required = false, min_length = 1, max_length = 128)]
    id: String,
    /// The id of a connection that must not get the event.
    #[schema(required = false, min_length = 1)]
    except: String,
}

/// One target, or 1 to 1000 of them. For a list the answer is a list, and the event is published to all of them or to none.
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

/// The published event; for a list of targets, a list.
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
    /// Its channel; absent if it went to connections directly.
    #[schema(required = false, example = "session:42")]
    channel: String,
    /// Its offset in the channel.
    #[schema(required = false, minimum = 1)]
    offset: u64,
    /// The channel's epoch, which names the stream that the offset belongs to.
    #[schema(required = false, example = "1tckq9vz2m")]
    epoch: String,
    /// The number of connections it was queued for.
    delivered: u64,
}

/// An event for a source.
#[derive(ToSchema)]
pub(super) struct SourceEvent {
    /// The type, which selects the row. A number counts as its digits.
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
    /// In the requested order.
    events: Vec<Event>,
    /// `cursor` of the next page; null on the last.
    #[schema(required)]
    next: Option<String>,
    /// Whether the search stopped before the page was full because it had looked at many events. Continue with `next`.
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
    /// Its offset in the channel.
    #[schema(minimum = 1)]
    offset: u64,
    /// The channel's epoch, which names the stream that the offset belongs to.
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
    /// Metadata: passed on beside the data.
    #[schema(required = false)]
    metadata: Map<String, Value>,
}

/// A closed connection.
#[derive(ToSchema)]
pub(super) struct PastConnection {
    /// Its public id.
    id: String,
    /// The protocol it spoke.
    #[schema(example = "chat")]
    protocol: String,
    /// Its user.
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
    /// When it last sent something.
    #[schema(required = false, format = DateTime)]
    seen: String,
    /// When it closed.
    #[schema(format = DateTime)]
    closed: String,
    /// The close code: 1005 if the close frame had none, 1006 if there was no close frame.
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

/// A filter of events.
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
    /// Only events from this time on: `2024-01-31T10:00:00Z`, `2024-01-31`, or `-15m` for 15 minutes ago.
    #[param(example = "-15m")]
    since: Option<String>,
    /// A text that the data contains.
    #[param(min_length = 1, max_length = 256)]
    q: Option<String>,
    /// `data.<path>=<value>`: the data has this value at this path, as in `data.sessionId=42` or `data.author.name=me`. Of
    /// several all must hold.
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

/// A page of the matching events.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct HistoryPage {
    /// Only events before this time.
    until: Option<String>,
    /// Newest first, or oldest first.
    #[param(inline)]
    order: Option<Order>,
    /// The most events in a page; 100 by default. Without it, lines have no limit.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// `next` of the previous page; the other parameters must be the same.
    cursor: Option<String>,
}

/// A sort order.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(default = "desc")]
enum Order {
    Desc,
    Asc,
}

/// A session to create. Everything has a default.
#[derive(ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NewSession {
    /// Its user, at most 200 bytes. Without it the session has no user.
    #[schema(required = false, min_length = 1, max_length = 200, pattern = "^[^*\\x00-\\x1f\\x7f-\\x9f]+$", example = "42")]
    user_id: String,
    /// A name for people to read.
    #[schema(required = false, min_length = 1, max_length = 200, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$", example = "Ada's phone")]
    name: String,
    /// How long it lasts: a text with a unit such as `24h` or `1h30m`, or a number of seconds. From one second to 366 days.
    #[schema(required = false, default = "24h")]
    ttl: Ttl,
    /// Metadata: any JSON of at most 16 KiB.
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
#[schema(pattern = "^([0-9]+(ms|s|m|h|d|w))+$", example = "24h")]
struct TtlText(String);

/// In seconds.
#[derive(ToSchema)]
#[schema(minimum = 1, maximum = 31622400)]
struct TtlSeconds(u64);

/// The position from which to read a channel.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ChannelPosition {
    /// The last offset that was seen; 0 by default.
    since: Option<u64>,
    /// The epoch it was seen in; the current one by default.
    #[param(pattern = "^[0-9a-f]{1,16}$", example = "1f3a9c")]
    epoch: Option<String>,
    /// The most events; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
    /// How long to wait if there is nothing yet, such as `30s`; at most a minute.
    #[param(example = "1s")]
    wait: Option<String>,
}

/// The events after a position.
#[derive(ToSchema)]
pub(super) struct ChannelHistory {
    /// Oldest first.
    events: Vec<Event>,
    /// Use this as `since` of the next call.
    offset: u64,
    /// Use this as `epoch` of the next call; null if the channel never had an event.
    #[schema(required)]
    epoch: Option<String>,
    /// Whether no event is missing between the position and the first event here.
    recovered: bool,
    /// How many events are missing; null if that is not known, because the position is of another epoch or does not exist yet.
    #[schema(required)]
    missed: Option<u64>,
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
    /// Its key, which distinguishes it from other subscriptions of that connection to the channel.
    #[schema(required = false)]
    key: String,
    /// Its metadata.
    #[schema(required = false)]
    meta: Value,
    /// When it began.
    #[schema(format = DateTime)]
    since: String,
}

/// The position at which a stream continues.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsAfter {
    /// The `id` of the last event that was received, for clients that cannot send `Last-Event-ID`.
    after: Option<String>,
}
