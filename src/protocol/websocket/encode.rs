//! Frames a server writes: never masked, never in pieces. Made once and shared by all who receive them.

use bytes::Bytes;

use crate::protocol::Frame;

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PONG: u8 = 0x8a;

/// A whole message as one frame.
pub fn message(frame: &Frame) -> Bytes {
    match frame {
        Frame::Text(text) => framed(TEXT, text.as_bytes()),
        Frame::Binary(bytes) => framed(BINARY, bytes),
    }
}

/// A ping without a payload.
pub fn ping() -> Bytes {
    Bytes::from_static(&[0x89, 0])
}

/// The answer to a ping.
pub fn pong(payload: &[u8]) -> Bytes {
    framed(PONG, payload)
}

/// The end.
pub fn close(code: u16, reason: &str) -> Bytes {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(&reason.as_bytes()[..reason.floor_char_boundary(123)]);
    framed(CLOSE, &payload)
}

fn framed(first: u8, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(payload.len() + 10);
    out.push(first);
    match payload.len() {
        n @ 0..=125 => out.push(n as u8),
        n @ 126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(127);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
    out.into()
}
