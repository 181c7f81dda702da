//! What is kept of a connection.

use std::sync::Arc;

/// A connection as it opened, or as it is known when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionRecord {
    /// Its public id.
    pub client: Arc<str>,
    /// The protocol it speaks.
    pub protocol: Arc<str>,
    /// Its user, if known.
    pub user: Option<Arc<str>>,
    /// Its session, if any.
    pub session: Option<Arc<str>>,
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
    /// Messages meant for it that it did not get.
    pub dropped: u64,
}
