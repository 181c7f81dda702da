//! WebSocket at the server's end: frames to messages and back (RFC 6455), compressed where both sides agreed (RFC 7692).
//! Takes bytes and gives bytes; knows no socket, no time and no handshake but its extensions.

mod decode;
mod deflate;
mod encode;
mod header;
mod negotiate;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::protocol::Frame;
pub use decode::Decoder;
pub use encode::{append, close, compressed, message, ping, pong};
pub use negotiate::negotiate;

/// What a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A whole message.
    Message(Frame),
    /// A ping. Its payload, at most 125 bytes, is what the pong must hold.
    Ping(Bytes),
    /// A pong. Its payload is not kept: pings of ours have none.
    Pong,
    /// The close frame: its code and reason, if it has them. Nothing after it is decoded.
    Close(Option<(u16, String)>),
}

/// What a client did wrong. Nothing after it is decoded; the connection must be failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// It broke a rule of the protocol. Close code 1002. Says which rule, for the log.
    Protocol(&'static str),
    /// A text that is not UTF-8. Close code 1007.
    Utf8,
    /// A message larger than allowed. Close code 1009.
    TooLarge,
}
