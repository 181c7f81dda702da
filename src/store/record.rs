//! What is kept besides events: connections, sessions, and counters.

use std::sync::Arc;

use crate::model::{ClientId, Json, SessionId, UserId};

/// A connection as it opened, or as it is known when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionRecord {
    /// Its public id.
    pub client: ClientId,
    /// The protocol it speaks.
    pub protocol: Arc<str>,
    /// Its user, if known.
    pub user: Option<UserId>,
    /// Its session, if any. That one is seen when the connection opens and when it ends.
    pub session: Option<SessionId>,
    /// The address it came from.
    pub address: Arc<str>,
    /// When it opened.
    pub opened_ms: i64,
}

/// How a connection ended, and what passed through it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionEnd {
    /// When.
    pub closed_ms: i64,
    /// When something last came from it.
    pub seen_ms: i64,
    /// The close code.
    pub code: u16,
    /// The reason.
    pub reason: String,
    /// Messages received.
    pub messages_in: u64,
    /// Messages sent.
    pub messages_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Messages for it that it did not get.
    pub dropped: u64,
}

/// An identity that outlives a connection. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// The id by which connections refer to it.
    pub id: SessionId,
    /// Its user, if known.
    pub user: Option<UserId>,
    /// What it is called, for people.
    pub name: Option<Arc<str>>,
    /// Data that is kept with it.
    pub meta: Option<Json>,
    /// When it was created.
    pub created_ms: i64,
    /// When it expires, unless it is put again with a later time.
    pub expires_ms: i64,
    /// When a connection of it was last seen, if ever.
    pub seen_ms: Option<i64>,
}

/// A count. The names come from our own code and configuration, so there are few.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// What kind of thing: a protocol, a route.
    pub kind: &'static str,
    /// Which one.
    pub name: Arc<str>,
    /// What of it.
    pub metric: &'static str,
    /// The beginning of the minute it happened in, in seconds since the Unix epoch.
    pub minute_s: i64,
    /// How much was added.
    pub delta: u64,
}
