//! Tests of the codec as a whole: the rules one by one, compression, and what must hold for any bytes.

mod compression;
mod messages;
mod offers;
mod properties;
mod rules;

use bytes::Bytes;

use super::Decoder;
use crate::protocol::Frame;
use crate::protocol::wire::{Received, Violation};

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The largest message of these tests' decoders.
const LIMIT: usize = 1000;

/// Bytes that do not get shorter.
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// What a client's bytes say, up to its first violation.
type Outcome = (Vec<Received>, Option<Violation>);

/// A frame as a client writes it.
fn client(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    super::header::write(&mut out, first, payload.len());
    out[1] |= 0x80;
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

fn text(text: &str) -> Received {
    Received::Message(Frame::Text(text.to_owned().into()))
}

fn binary(bytes: &[u8]) -> Received {
    Received::Message(Frame::Binary(Bytes::copy_from_slice(bytes)))
}

/// Feeds one read after the other.
fn decode_reads<'a>(decoder: &mut Decoder, reads: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut received = Vec::new();
    for mut input in reads {
        loop {
            match decoder.next(&mut input) {
                Ok(Some(next)) => received.push(next),
                Ok(None) => break,
                Err(violation) => return (received, Some(violation)),
            }
        }
        assert!(input.is_empty(), "more is asked for while there is some");
    }
    (received, None)
}

/// What bytes say in one read, having checked that they say the same byte by byte.
fn decode_with(inflates: bool, bytes: &[u8]) -> Outcome {
    let outcome = decode_reads(&mut Decoder::new(LIMIT, inflates), [bytes]);
    assert_eq!(decode_reads(&mut Decoder::new(LIMIT, inflates), bytes.chunks(1)), outcome);
    outcome
}

fn decode(bytes: &[u8]) -> Outcome {
    decode_with(false, bytes)
}

fn violation(bytes: &[u8]) -> Option<Violation> {
    decode(bytes).1
}

fn is_protocol(violation: Option<Violation>) -> bool {
    matches!(violation, Some(Violation::Protocol(_)))
}
