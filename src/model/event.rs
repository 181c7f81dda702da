//! An event: what travels through channels, independent of any protocol's format.

use std::sync::Arc;

use bytestring::ByteString;
use uuid::Uuid;

use crate::model::json::{self, Json};
use crate::model::name::{ChannelName, ClientId, SessionId, UserId};

/// Names a channel's stream. It changes only when the channel's history was lost.
pub type Epoch = u64;

/// Who caused an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The protocol or source it came through, or `api`: `canvas`, `heartbeat`, `api`.
    pub source: Arc<str>,
    /// The connection it came from.
    pub client: Option<ClientId>,
    /// That connection's user.
    pub user: Option<UserId>,
    /// That connection's session.
    pub session: Option<SessionId>,
    /// Its address, as long as the event is in memory: it is not stored, and nobody is told.
    pub address: Option<Arc<str>>,
}

impl Origin {
    /// The connection, the user and the session, as REST calls them.
    pub fn who(&self) -> [(&'static str, Option<&str>); 3] {
        [("client", self.client.as_deref()), ("user", self.user.as_deref()), ("session", self.session.as_deref())]
    }
}

/// An event before a channel gave it an offset.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Version 7, so ids grow with time.
    pub id: Uuid,
    /// The event's type.
    pub kind: ByteString,
    /// The payload, as JSON text.
    pub data: Json,
    /// Milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// Who caused it.
    pub origin: Arc<Origin>,
    /// Metadata: passed on beside the payload.
    pub metadata: Option<Json>,
}

/// An event with its offset. Shared by all its receivers.
#[derive(Clone, Debug)]
pub struct Event {
    /// What was published.
    pub new: NewEvent,
    /// The channel; none for what was sent to a client, user or session directly.
    pub channel: Option<ChannelName>,
    /// Grows by one per channel from 1; 0 outside channels.
    pub offset: u64,
    /// The channel's stream; 0 outside channels.
    pub epoch: Epoch,
    /// Its position in the log of all channels, which grows with time; 0 if it is not in the log.
    pub seq: u64,
}

impl Event {
    /// The event as REST shows it everywhere.
    pub fn to_json(&self) -> String {
        let new = &self.new;
        let mut out = String::with_capacity(new.data.as_str().len() + 256);
        out.push_str("{\"id\":\"");
        out.push_str(new.id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
        out.push('"');
        let mut text = |key: &str, value: &str| {
            out.push_str(",\"");
            out.push_str(key);
            out.push_str("\":");
            json::push_string(&mut out, value);
        };
        if let Some(channel) = &self.channel {
            text("channel", channel.as_str());
            text("epoch", &epoch_text(self.epoch));
        }
        text("type", &new.kind);
        text("time", &crate::model::clock::iso(new.time_ms));
        text("source", &new.origin.source);
        for (key, value) in new.origin.who() {
            if let Some(value) = value {
                text(key, value);
            }
        }
        if self.channel.is_some() {
            out.push_str(&format!(",\"offset\":{}", self.offset));
        }
        out.push_str(",\"data\":");
        out.push_str(new.data.as_str());
        if let Some(metadata) = &new.metadata {
            out.push_str(",\"metadata\":");
            out.push_str(metadata.as_str());
        }
        out.push('}');
        out
    }

    /// Bytes this event counts for in bounded queues and tails: its text and a flat share for the rest.
    pub fn cost_bytes(&self) -> usize {
        self.new.cost_bytes()
    }
}

impl NewEvent {
    /// See [`Event::cost_bytes`].
    pub fn cost_bytes(&self) -> usize {
        200 + self.kind.len() + self.data.as_str().len() + self.metadata.as_ref().map_or(0, |m| m.as_str().len())
    }
}

/// An epoch as clients see it: text, because JavaScript's numbers do not hold 64 bits.
pub fn epoch_text(epoch: Epoch) -> String {
    format!("{epoch:x}")
}
