//! From packets to the bytes on a connection and back: messages, and what a transport says besides them. Knows no socket.
//!
//! A connection has one wire. What is written for several clients is made once for each [`WireFormat`].

pub mod websocket;

use bytes::Bytes;

use crate::model::Close;
use crate::protocol::Frame;

/// How a connection carries packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Frames of RFC 6455.
    WebSocket {
        /// The size in bytes from which messages are compressed; none: the client did not agree to that.
        compress: Option<usize>,
    },
}

/// Which bytes a message of one protocol becomes: clients with the same get the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WireFormat {
    /// A WebSocket frame.
    WebSocket,
    /// A WebSocket frame, compressed where that is worth it.
    WebSocketDeflate,
}

/// What a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A whole message.
    Message(Frame),
    /// A ping. Its payload, at most 125 bytes, is what the pong must hold.
    Ping(Bytes),
    /// A pong. Its payload is not kept: our pings have none.
    Pong,
    /// It asks for the end: its code and reason, if it has them. Nothing after it is decoded.
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

impl Wire {
    /// Which bytes its messages become.
    pub fn format(self) -> WireFormat {
        match self {
            Wire::WebSocket { compress: None } => WireFormat::WebSocket,
            Wire::WebSocket { compress: Some(_) } => WireFormat::WebSocketDeflate,
        }
    }

    /// A message.
    pub fn message(self, frame: &Frame) -> Bytes {
        if self.appends(frame) { websocket::message(frame) } else { websocket::compressed(frame) }
    }

    /// Whether [`Wire::append`] can write this message.
    pub fn appends(self, frame: &Frame) -> bool {
        let Wire::WebSocket { compress } = self;
        compress.is_none_or(|above| frame.len() < above)
    }

    /// Writes a message behind what is there: for one client that gets several messages at once.
    pub fn append(self, out: &mut Vec<u8>, frame: &Frame) {
        let Wire::WebSocket { .. } = self;
        websocket::append(out, frame);
    }

    /// A ping without payload.
    pub fn ping(self) -> Bytes {
        let Wire::WebSocket { .. } = self;
        websocket::ping()
    }

    /// The answer to a ping that held `payload`.
    pub fn pong(self, payload: &[u8]) -> Bytes {
        let Wire::WebSocket { .. } = self;
        websocket::pong(payload)
    }

    /// The last packet: why it ends.
    pub fn close(self, close: &Close) -> Bytes {
        let Wire::WebSocket { .. } = self;
        websocket::close(close.code(), close.reason())
    }

    /// Reads what a client sends: messages of at most so many bytes.
    pub fn decoder(self, message_bytes_max: usize) -> Decoder {
        let Wire::WebSocket { compress } = self;
        Decoder::WebSocket(websocket::Decoder::new(message_bytes_max, compress.is_some()))
    }
}

/// Reads what one client sends.
#[derive(Debug)]
pub enum Decoder {
    /// Frames of RFC 6455.
    WebSocket(websocket::Decoder),
}

impl Decoder {
    /// Messages may have so many bytes from now on.
    pub fn set_message_bytes_max(&mut self, bytes: usize) {
        let Decoder::WebSocket(decoder) = self;
        decoder.set_message_bytes_max(bytes);
    }

    /// The next thing in `input`, which is advanced past what was used. None: all of it is used and more is needed.
    /// After a violation or a close nothing more is decoded: all that comes is passed over.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Received>, Violation> {
        let Decoder::WebSocket(decoder) = self;
        decoder.next(input)
    }
}
