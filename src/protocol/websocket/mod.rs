//! WebSocket frames as bytes. Pure: never waits, knows no socket.

pub mod encode;

mod decode;

pub use decode::{Decoder, Received, Violation};
