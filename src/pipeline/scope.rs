//! What references mean while a message or an event passes: one scope for all templates of the pipeline.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::ops::Range;

use bytestring::ByteString;

use crate::model::event::{Event, epoch_text};
use crate::model::json::Index;
use crate::model::pattern::Pattern;
use crate::model::template::{Reference, Root, Scope, Value};
use crate::model::view::{ConnView, Pairs, RequestView, SubView};
use crate::model::{ChannelName, Fault, Json, Now, Position, RecoveryVerdict, chance, clock, json};
use crate::pipeline::NO_MESSAGE;
use crate::protocol;
use crate::script::{Arguments, HasData};

/// The largest buffer that is reserved for a template before anything is written.
const BUFFER_BYTES: usize = 4096;

/// A message on its way through a row.
#[derive(Debug)]
pub struct Message<'p> {
    /// The message, perhaps transformed.
    pub json: Json,
    kind: Option<Kind>,
    /// The frame as it came, if that is not `json`.
    raw: Option<Json>,
    index: Index,
    data_at: Option<&'p [Box<str>]>,
    kind_at: &'p [Box<str>],
    data: OnceCell<Option<Json>>,
}

/// The type of a message.
#[derive(Clone, Debug)]
enum Kind {
    /// At this place in the message.
    At(Range<usize>),
    Other(ByteString),
}

impl<'p> Message<'p> {
    /// A message with its type and data at these paths. Without a path to the data, the data is everything but the type.
    pub fn new(json: Json, index: Index, kind_at: &'p [Box<str>], data_at: Option<&'p [Box<str>]>) -> Self {
        let kind = protocol::message_kind(&json, &index, kind_at).map(|kind| match kind {
            Cow::Borrowed(kind) => Kind::At(json.range_of(kind)),
            Cow::Owned(kind) => Kind::Other(kind.into()),
        });
        Self { json, kind, raw: None, index, data_at, kind_at, data: OnceCell::new() }
    }

    /// An event that no client sent: it has this type, and all of it is data.
    pub fn made(json: Json, kind: &'static str) -> Self {
        let (index, kind) = (Index::of(json.as_str()), Some(Kind::Other(ByteString::from_static(kind))));
        Self { json, kind, raw: None, index, data_at: Some(&[]), kind_at: &[], data: OnceCell::new() }
    }

    /// The result of a script for this message, with its index if that is known.
    pub fn transformed(&self, json: Json, index: Option<Index>) -> Self {
        let index = index.unwrap_or_else(|| Index::of(json.as_str()));
        let made = Self::new(json, index, self.kind_at, self.data_at);
        let kind = made.kind.or_else(|| self.kind().map(|kind| Kind::Other(kind.into())));
        Self { raw: Some(self.raw().clone()), kind, ..made }
    }

    /// Its type, if it has one.
    pub fn kind(&self) -> Option<&str> {
        self.kind.as_ref().map(|kind| match kind {
            Kind::At(range) => &self.json.as_str()[range.clone()],
            Kind::Other(kind) => kind,
        })
    }

    /// `$raw`
    fn raw(&self) -> &Json {
        self.raw.as_ref().unwrap_or(&self.json)
    }

    /// `$.x`
    pub fn get(&self, path: &[Box<str>]) -> Option<&str> {
        json::get_indexed(self.json.as_str(), &self.index, path)
    }

    /// A part of the message that outlives it. A small part is copied, because otherwise it would keep the whole message alive.
    pub fn kept(&self, part: &str) -> Json {
        let part = self.json.slice(part);
        if self.is_mostly(&part) { part } else { part.detached() }
    }

    /// The type for an event with this data. It is copied in the same way.
    pub fn kind_beside(&self, data: &Json) -> ByteString {
        match &self.kind {
            None => ByteString::new(),
            Some(Kind::Other(kind)) => kind.clone(),
            Some(Kind::At(range)) => {
                let kind = &self.json.as_str()[range.clone()];
                if self.is_mostly(data) { self.json.slice(kind).into_shared() } else { kind.into() }
            }
        }
    }

    /// Whether a part is so large that it may keep the whole message alive.
    fn is_mostly(&self, part: &Json) -> bool {
        part.as_str().len() >= self.json.as_str().len() / 2
    }

    /// `$data`
    pub fn data(&self) -> Option<&Json> {
        let find = || match self.data_at {
            Some(path) => self.get(path).map(|text| self.kept(text)),
            None => Some(without(&self.json, self.kind_at.first().map_or("", |k| k))),
        };
        self.data.get_or_init(find).as_ref()
    }
}

impl HasData for Message<'_> {
    fn data(&self) -> Option<&Json> {
        self.data()
    }
}

/// A message as scripts get it.
pub(super) fn arguments<'m>(message: Option<&'m Message<'_>>) -> Arguments<'m> {
    match message {
        None => NO_MESSAGE,
        Some(message) => {
            let kind = Some(message.kind().unwrap_or_default());
            Arguments::Message { msg: Some(&message.json), index: Some(&message.index), kind, data: Some(message) }
        }
    }
}

/// An object without one of its members.
fn without(object: &Json, key: &str) -> Json {
    if !object.as_str().trim_start().starts_with('{') {
        return object.clone();
    }
    let mut out = String::with_capacity(object.as_str().len());
    out.push('{');
    for (quoted, value) in json::members(object.as_str()).filter(|(quoted, _)| !json::key_is(quoted, key)) {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(quoted);
        out.push(':');
        out.push_str(value);
    }
    out.push('}');
    Json::trusted(out)
}

/// The position of a channel when a subscriber sent its own, and what the subscriber has missed.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// The channel.
    pub position: Position,
    /// What happens to the missed events. `None` if the subscriber wants no past events.
    pub verdict: Option<RecoveryVerdict>,
}

impl Recovery {
    fn resolve(&self, field: &str) -> Value<'static> {
        let number = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        match (field, self.verdict) {
            ("offset", _) => number(self.position.offset),
            ("epoch", _) => Value::Text(Cow::Owned(epoch_text(self.position.epoch))),
            ("recovered", Some(verdict)) => Value::Json(Cow::Borrowed(if verdict.recovered { "true" } else { "false" })),
            ("missed", Some(verdict)) => verdict.missed.map_or(Value::Json(Cow::Borrowed("null")), number),
            _ => Value::Missing,
        }
    }
}

/// Everything a reference can refer to. `None` means missing.
#[derive(Clone, Copy)]
pub struct Bindings<'a> {
    /// The time of the decision.
    pub now: Now,
    /// The message.
    pub message: Option<&'a Message<'a>>,
    /// The connection.
    pub view: Option<&'a ConnView>,
    /// The request, if there is no connection.
    pub request: Option<&'a RequestView>,
    /// A handler's result.
    pub result: Option<&'a Json>,
    /// The result of a subscription that gave its position.
    pub recovery: Option<&'a Recovery>,
    /// The messages of a batch: the text of a list.
    pub messages: Option<&'a str>,
    /// A fault, and the protocol's message for it.
    pub fault: Option<(&'a Fault, &'a str)>,
    /// An event on its way to a subscriber.
    pub event: Option<&'a Event>,
    /// That subscription.
    pub subscription: Option<&'a SubView>,
    /// A channel and its pattern.
    pub channel: Option<(&'a ChannelName, &'a Pattern)>,
    /// Data that replaces the message's.
    pub data: Option<&'a Json>,
    /// A type that replaces the message's.
    pub kind: Option<&'a str>,
}

impl<'a> Bindings<'a> {
    /// Nothing but the time.
    pub fn at(now: Now) -> Self {
        Self {
            now,
            message: None,
            view: None,
            request: None,
            result: None,
            recovery: None,
            messages: None,
            fault: None,
            event: None,
            subscription: None,
            channel: None,
            data: None,
            kind: None,
        }
    }

    fn requested(&self) -> Option<&'a RequestView> {
        self.view.map(|view| &*view.request).or(self.request)
    }
}

impl Scope for Bindings<'_> {
    fn resolve<'a>(&'a self, reference: &'a Reference) -> Value<'a> {
        let path = &*reference.path;
        let first = path.first().map_or("", |step| step);
        let pair = |pairs: Option<&'a Pairs>| Value::text(pairs.and_then(|pairs| pairs.get(first)));
        match reference.root {
            Root::Message => Value::json(self.message.and_then(|message| message.get(path))),
            Root::Raw => Value::below(self.message.map(|m| m.raw().as_str()), &[]),
            Root::Type => Value::text(self.kind.or(self.message.map(|message| message.kind().unwrap_or_default()))),
            Root::Data => Value::below(self.data.or_else(|| self.message.and_then(Message::data)).map(Json::as_str), path),
            Root::Conn => self.view.map_or(Value::Missing, |view| connection(view, first, path)),
            Root::Query if path.is_empty() => {
                self.requested().map_or(Value::Missing, |request| Value::Json(Cow::Owned(query_object(request))))
            }
            Root::Query => pair(self.requested().map(|r| &r.query)),
            Root::Path => pair(self.requested().map(|r| &r.path)),
            Root::Header => pair(self.requested().map(|r| &r.header)),
            Root::Cookie => pair(self.requested().map(|r| &r.cookie)),
            Root::Event => self.event.map_or(Value::Missing, |e| event(e, first, path)),
            Root::Channel => channel(self.channel, first),
            Root::Sub => self.subscription.map_or(Value::Missing, |sub| match first {
                "channel" => Value::text(Some(sub.channel.as_str())),
                "key" => Value::text(Some(&sub.key)),
                "offset" | "epoch" if sub.positioned => self.event.map_or(Value::Missing, |e| event(e, first, path)),
                "offset" | "epoch" => Value::Missing,
                _ => Value::below(sub.meta.as_ref().map(Json::as_str), &path[1..]),
            }),
            Root::Messages => Value::below(self.messages, path),
            Root::Recovery => self.recovery.map_or(Value::Missing, |recovery| recovery.resolve(first)),
            Root::Result => Value::below(self.result.map(Json::as_str), path),
            Root::Error => self.fault.map_or(Value::Missing, |(fault, message)| match first {
                "code" => Value::text(Some(fault.code_text())),
                "message" => Value::text(Some(message)),
                "retry_after" => fault.retry_after_s().map_or(Value::Missing, |s| Value::Int(i64::try_from(s).unwrap_or(i64::MAX))),
                _ => Value::below(fault.data.as_ref().map(Json::as_str), &path[1..]),
            }),
            Root::Now => Value::Text(Cow::Owned(self.now.iso())),
            Root::NowMs => Value::Int(self.now.wall_ms),
            Root::Uuid => Value::Text(Cow::Owned(chance::uuid().to_string())),
            Root::Random => Value::Text(Cow::Owned(chance::text())),
        }
    }

    fn bytes_likely(&self) -> usize {
        let message = self.message.map_or(0, |message| message.json.as_str().len());
        let event = self.event.map_or(0, |event| event.new.data.as_str().len());
        // Room for a copy, up to a bound; larger values make the buffer grow.
        message.max(event).min(BUFFER_BYTES) + 128
    }
}

fn connection<'a>(view: &'a ConnView, field: &str, path: &[Box<str>]) -> Value<'a> {
    match field {
        "id" => Value::text((!view.id.is_empty()).then_some(&*view.id)),
        "protocol" => Value::text(Some(&view.protocol)),
        "user" => Value::text(view.user.as_deref()),
        "session" => Value::text(view.session.as_deref()),
        "ip" => Value::text(Some(&view.ip)),
        "opened" => Value::Text(Cow::Owned(clock::iso(view.opened_ms))),
        _ => Value::below(Some(view.state.as_str()), &path[1..]),
    }
}

fn event<'a>(event: &'a Event, field: &str, path: &[Box<str>]) -> Value<'a> {
    let new = &event.new;
    match field {
        "id" => Value::Text(Cow::Owned(new.id.to_string())),
        "type" => Value::text(Some(&new.kind)),
        "data" => Value::below(Some(new.data.as_str()), &path[1..]),
        "channel" => Value::text(event.channel.as_ref().map(ChannelName::as_str)),
        "offset" if event.channel.is_some() => Value::Int(i64::try_from(event.offset).unwrap_or(i64::MAX)),
        "epoch" if event.channel.is_some() => Value::Text(Cow::Owned(epoch_text(event.epoch))),
        "time" => Value::Text(Cow::Owned(clock::iso(new.time_ms))),
        "time_ms" => Value::Int(new.time_ms),
        "from" => Value::text(new.origin.client.as_deref()),
        "user" => Value::text(new.origin.user.as_deref()),
        "session" => Value::text(new.origin.session.as_deref()),
        "source" => Value::text(Some(&new.origin.source)),
        "metadata" => Value::below(new.metadata.as_ref().map(Json::as_str), &path[1..]),
        _ => Value::Missing,
    }
}

fn channel<'a>(channel: Option<(&'a ChannelName, &'a Pattern)>, capture: &str) -> Value<'a> {
    let Some((name, pattern)) = channel else { return Value::Missing };
    if capture.is_empty() {
        return Value::text(Some(name.as_str()));
    }
    let values = pattern.matches(name.as_str()).unwrap_or_default();
    Value::text(pattern.captures().position(|c| c == capture).and_then(|at| values.get(at).copied()))
}

fn query_object(request: &RequestView) -> String {
    let map: serde_json::Map<String, serde_json::Value> =
        request.query.iter().map(|(k, v)| (k.to_string(), v.to_string().into())).collect();
    serde_json::Value::Object(map).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_shares_a_messages_bytes_where_it_is_most_of_them() {
        let (kind_at, data_at) = ([Box::from("t")], [Box::from("d")]);
        let shares = |text: String| {
            let (json, index) = Json::parse_indexed(text.into()).unwrap();
            let message = Message::new(json, index, &kind_at, Some(&data_at));
            let data = message.data().unwrap().clone();
            let kind = message.kind_beside(&data);
            assert_eq!((&*kind, data.as_str().trim_matches(['"', 'x'])), ("k", ""));
            let within = message.json.as_str().as_bytes().as_ptr_range();
            [within.contains(&data.as_str().as_ptr()), within.contains(&kind.as_ptr())]
        };
        assert_eq!(shares(format!(r#"{{"t":"k","d":"{}"}}"#, "x".repeat(100))), [true, true]);
        assert_eq!(shares(format!(r#"{{"t":"k","d":"{}","more":"{}"}}"#, "x".repeat(100), "y".repeat(200))), [false, false]);
    }
}
