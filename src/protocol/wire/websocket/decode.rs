//! Bytes from a client to what they say, however they were cut on their way. Keeps nothing but what is half-read.

use std::mem;
use std::str;

use bytes::Bytes;

use crate::model::close;
use crate::protocol::Frame;
use crate::protocol::wire::websocket::deflate;
use crate::protocol::wire::websocket::header::{COMPRESSED, CONTROL_BYTES_MAX, FIN, HEADER_BYTES, Header, Opcode, RESERVED};
use crate::protocol::wire::{Received, Violation};

/// The largest message, whatever is asked for: lengths are kept in 32 bits, and a compressed message may be longer than it
/// is once decompressed.
const MESSAGE_BYTES_MAX: u32 = 1 << 30;

/// Reads what one client sends.
#[derive(Debug)]
pub struct Decoder {
    /// Payload that came: that of the message, and behind it that of a control frame in its midst.
    gathered: Vec<u8>,
    message_bytes_max: u32,
    inflates: bool,
    /// The message that is half-read.
    message: Option<Message>,
    stage: Stage,
}

/// A message of which a frame has begun and the last has not ended.
#[derive(Clone, Copy, Debug)]
struct Message {
    is_text: bool,
    is_compressed: bool,
    /// Bytes of a text that are known to be UTF-8.
    checked: u32,
}

/// What comes next.
#[derive(Debug)]
enum Stage {
    /// A header, of which these bytes came.
    Header { bytes: [u8; HEADER_BYTES], came: u8 },
    /// A frame's payload.
    Payload(Payload),
    /// Nothing that matters.
    Ended,
}

#[derive(Clone, Copy, Debug)]
struct Payload {
    opcode: Opcode,
    is_last: bool,
    /// Begins with the byte of it that is due.
    mask: [u8; 4],
    /// Bytes that are still to come.
    left: u32,
    /// Where in what was gathered it begins.
    start: u32,
}

impl Stage {
    const START: Stage = Stage::Header { bytes: [0; HEADER_BYTES], came: 0 };
}

fn bounded(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).min(MESSAGE_BYTES_MAX)
}

impl Decoder {
    /// A decoder of messages of at most `message_bytes_max` bytes (and 1 GiB), counted over all frames and when inflated.
    /// `inflates`: whether compression was agreed.
    pub fn new(message_bytes_max: usize, inflates: bool) -> Self {
        Self { gathered: Vec::new(), message_bytes_max: bounded(message_bytes_max), inflates, message: None, stage: Stage::START }
    }

    /// Messages may have so many bytes from now on.
    pub fn set_message_bytes_max(&mut self, bytes: usize) {
        self.message_bytes_max = bounded(bytes);
    }

    /// The next thing in `input`, which is advanced past what was used. None: all of it is used and more is needed.
    /// After a violation or a close nothing more is decoded: all that comes is passed over.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Received>, Violation> {
        let next = self.advance(input);
        if matches!(next, Err(_) | Ok(Some(Received::Close(_)))) {
            self.stage = Stage::Ended;
            self.message = None;
            self.gathered = Vec::new();
        }
        next
    }

    /// Bytes of memory that are held for what is half-read.
    pub fn held_bytes(&self) -> usize {
        self.gathered.capacity()
    }

    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Received>, Violation> {
        loop {
            match &mut self.stage {
                Stage::Header { bytes, came } => {
                    let Some(header) = next_header(bytes, came, input) else { return Ok(None) };
                    self.stage = Stage::Payload(self.begin(header)?);
                }
                Stage::Payload(payload) => {
                    let (part, rest) = input.split_at(input.len().min(payload.left as usize));
                    *input = rest;
                    gather(&mut self.gathered, part, payload);
                    let payload = *payload;
                    if payload.left > 0 {
                        return self.check_text(payload.opcode).map(|()| None);
                    }
                    self.stage = Stage::START;
                    if let Some(received) = self.end(payload)? {
                        return Ok(Some(received));
                    }
                }
                Stage::Ended => {
                    *input = &[];
                    return Ok(None);
                }
            }
        }
    }

    /// Whether a frame may come now, and with this header.
    fn begin(&mut self, header: Header) -> Result<Payload, Violation> {
        let refuse = |why| Err(Violation::Protocol(why));
        let Some(opcode) = header.opcode else { return refuse("an unknown opcode") };
        let Some(mask) = header.mask else { return refuse("a frame without a mask") };
        let Some(length) = header.payload else { return refuse("a length that is not in its shortest form") };
        let is_last = header.first & FIN != 0;
        let is_compressed = header.first & COMPRESSED != 0;
        let may_compress = self.inflates && matches!(opcode, Opcode::Text | Opcode::Binary);
        if header.first & RESERVED != 0 || (is_compressed && !may_compress) {
            return refuse("a reserved bit is set");
        }
        let bytes_max = if opcode.is_control() {
            if !is_last {
                return refuse("a control frame in fragments");
            }
            if length > CONTROL_BYTES_MAX as u64 {
                return refuse("a control frame that is too long");
            }
            length
        } else {
            let message = match (opcode, self.message) {
                (Opcode::Continuation, None) => return refuse("a continuation of nothing"),
                (Opcode::Continuation, Some(message)) => message,
                (_, Some(_)) => return refuse("a new message before the last one ended"),
                (_, None) => *self.message.insert(Message { is_text: opcode == Opcode::Text, is_compressed, checked: 0 }),
            };
            self.payload_bytes_max(message) - self.gathered.len() as u64
        };
        // The length is what the client says: nothing is reserved for it until bytes come.
        match u32::try_from(length) {
            Ok(left) if length <= bytes_max => Ok(Payload { opcode, is_last, mask, left, start: self.gathered.len() as u32 }),
            _ => Err(Violation::TooLarge),
        }
    }

    /// The most payload of all frames of a message. Compressed, what does not get shorter gets a little longer.
    fn payload_bytes_max(&self, message: Message) -> u64 {
        let bytes_max = u64::from(self.message_bytes_max);
        if message.is_compressed { bytes_max + bytes_max / 8 + 128 } else { bytes_max }
    }

    /// What a frame that is complete says, if that is something by itself.
    fn end(&mut self, payload: Payload) -> Result<Option<Received>, Violation> {
        if payload.opcode.is_control() {
            let bytes = match self.message {
                None => mem::take(&mut self.gathered),
                Some(_) => self.gathered.split_off(payload.start as usize),
            };
            return Ok(Some(match payload.opcode {
                Opcode::Ping => Received::Ping(bytes.into()),
                Opcode::Close => Received::Close(close_payload(&bytes)?),
                _ => Received::Pong,
            }));
        }
        if !payload.is_last {
            return self.check_text(payload.opcode).map(|()| None);
        }
        let Some(message) = self.message.take() else { return Ok(None) };
        let mut bytes = mem::take(&mut self.gathered);
        if message.is_compressed {
            bytes = deflate::inflate(&bytes, self.message_bytes_max as usize)?;
        }
        // What was read in one piece has no room to spare.
        bytes.shrink_to_fit();
        Ok(Some(Received::Message(if message.is_text {
            Frame::Text(String::from_utf8(bytes).map_err(|_| Violation::Utf8)?.into())
        } else {
            Frame::Binary(Bytes::from(bytes))
        })))
    }

    /// Ends a half-read text that can no longer become UTF-8.
    fn check_text(&mut self, opcode: Opcode) -> Result<(), Violation> {
        let Some(message) = &mut self.message else { return Ok(()) };
        if opcode.is_control() || !message.is_text || message.is_compressed {
            return Ok(());
        }
        let valid = match str::from_utf8(&self.gathered[message.checked as usize..]) {
            Ok(text) => text.len(),
            // The rest of a character may be still to come.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Err(Violation::Utf8),
        };
        message.checked += valid as u32;
        Ok(())
    }
}

/// The next header, of which the first bytes may have come before. None: it is not all there, and `input` is used up.
#[inline]
fn next_header(bytes: &mut [u8; HEADER_BYTES], came: &mut u8, input: &mut &[u8]) -> Option<Header> {
    let before = usize::from(*came);
    if before == 0
        && let Some(header) = Header::read(input)
    {
        *input = &input[header.size..];
        return Some(header);
    }
    let taken = input.len().min(HEADER_BYTES - before);
    bytes[before..before + taken].copy_from_slice(&input[..taken]);
    *came += taken as u8;
    let header = Header::read(&bytes[..before + taken]);
    *input = &input[header.map_or(taken, |header| header.size - before)..];
    header
}

/// Appends a part of a frame's payload without its mask.
#[inline]
fn gather(gathered: &mut Vec<u8>, part: &[u8], payload: &mut Payload) {
    let before = gathered.len();
    if payload.is_last && payload.start == 0 {
        // The end is known, but is not believed: room doubles as bytes come, and is not more than needed.
        if gathered.capacity() - before < part.len() {
            gathered.reserve_exact(part.len().max(before).min(payload.left as usize));
        }
    } else {
        gathered.reserve(part.len());
    }
    gathered.extend_from_slice(part);
    unmask(&mut gathered[before..], payload.mask);
    payload.mask = u32::from_be_bytes(payload.mask).rotate_left(8 * (part.len() % 4) as u32).to_be_bytes();
    payload.left -= part.len() as u32;
}

/// Takes the mask off, eight bytes at a time.
#[inline]
fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

/// The code and reason of a close frame (RFC 6455, section 5.5.1).
fn close_payload(payload: &[u8]) -> Result<Option<(u16, String)>, Violation> {
    match payload {
        [] => Ok(None),
        [_] => Err(Violation::Protocol("half a close code")),
        &[high, low, ref reason @ ..] => {
            let code = u16::from_be_bytes([high, low]);
            if !close::may_send(code) {
                return Err(Violation::Protocol("a close code that may not be sent"));
            }
            let reason = str::from_utf8(reason).map_err(|_| Violation::Utf8)?;
            Ok(Some((code, reason.to_owned())))
        }
    }
}
