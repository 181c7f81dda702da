//! The seam between a connection and whatever carries its messages. One socket engine can take another's place behind it,
//! and tests can do without any.

use std::task::{Context, Poll};

use crate::model::Close;
use crate::protocol::Frame;

/// Something that came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A whole message.
    Frame(Frame),
    /// The answer to a ping.
    Pong,
    /// The other side closed, or answered our close.
    Closed(Close),
    /// The other side broke a rule: say so and end. Nothing more will come.
    Broken(Close),
}

/// Something to write.
#[derive(Debug)]
pub enum Outgoing {
    /// A message.
    Frame(Frame),
    /// A ping.
    Ping,
    /// The close frame; nothing may follow.
    Close(Close),
}

/// The connection is gone; nothing more can be written.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

/// A message transport. All calls are made by the connection's own task, and none of them waits.
pub trait Transport: Send + Unpin {
    /// The next thing that came in. Keeps answering pings by itself.
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Incoming>;
    /// Whether one more thing may be handed over. Ready means that at most one message is buffered beyond what the system took.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>>;
    /// Hands something over. Only after [`Transport::poll_ready`].
    fn start(&mut self, out: Outgoing) -> Result<(), Gone>;
    /// Writes what was handed over.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>>;
    /// Ends our side, then reads and throws away, so that what was written last is not lost to a reset. Ready when the other side is done.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}
