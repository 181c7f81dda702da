//! Frames as bytes, made once and shared by all who receive them. The sender decides which of them a client understands.

use bytes::Bytes;

use crate::model::close;
use crate::protocol::Frame;
use crate::protocol::wire::websocket::deflate;
use crate::protocol::wire::websocket::header::{self, COMPRESSED, CONTROL_BYTES_MAX, FIN, Opcode};

/// A message as one frame, for every client.
pub fn message(frame: &Frame) -> Bytes {
    whole(FIN | opcode(frame).bits(), payload(frame))
}

/// Writes a message as one frame behind what is there: for one client that gets several messages at once.
pub fn append(out: &mut Vec<u8>, frame: &Frame) {
    let payload = payload(frame);
    header::write(out, FIN | opcode(frame).bits(), payload.len());
    out.extend_from_slice(payload);
}

/// A message as one compressed frame, for clients that agreed to it. One that would be no shorter for it is left as it is, which
/// those clients understand too.
pub fn compressed(frame: &Frame) -> Bytes {
    let plain = payload(frame);
    deflate::compress(plain, |packed| {
        let packed = packed.filter(|packed| packed.len() < plain.len());
        packed.map_or_else(|| message(frame), |packed| whole(FIN | COMPRESSED | opcode(frame).bits(), packed))
    })
}

/// A ping without payload.
pub fn ping() -> Bytes {
    const PING: [u8; 2] = [FIN | Opcode::Ping.bits(), 0];
    Bytes::from_static(&PING)
}

/// The answer to a ping that held `payload`, of which the first 125 bytes count.
pub fn pong(payload: &[u8]) -> Bytes {
    whole(FIN | Opcode::Pong.bits(), &payload[..payload.len().min(CONTROL_BYTES_MAX)])
}

/// A close frame. The reason is cut to what fits. A code that may not be sent, such as 1005 for a close without one, is left out,
/// and the reason with it.
pub fn close(code: u16, reason: &str) -> Bytes {
    let first = FIN | Opcode::Close.bits();
    if !close::may_send(code) {
        return whole(first, &[]);
    }
    let reason = close::cut(reason).as_bytes();
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(reason);
    whole(first, &payload)
}

fn opcode(frame: &Frame) -> Opcode {
    match frame {
        Frame::Text(_) => Opcode::Text,
        Frame::Binary(_) => Opcode::Binary,
    }
}

fn payload(frame: &Frame) -> &[u8] {
    match frame {
        Frame::Text(text) => text.as_bytes(),
        Frame::Binary(bytes) => bytes,
    }
}

/// A frame of exactly the room it needs, so that nothing is allocated but its bytes.
#[inline]
fn whole(first: u8, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(header::size(payload.len()) + payload.len());
    header::write(&mut out, first, payload.len());
    out.extend_from_slice(payload);
    out.into()
}
