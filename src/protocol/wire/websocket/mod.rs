//! WebSocket at the server's end: frames to messages and back (RFC 6455), compressed where both sides agreed (RFC 7692).
//! Takes bytes and gives bytes; knows no socket, no time and no handshake but its extensions.

mod decode;
mod deflate;
mod encode;
mod header;
mod negotiate;
#[cfg(test)]
mod tests;

pub use decode::Decoder;
pub use encode::{append, close, compressed, message, ping, pong};
pub use negotiate::negotiate;
