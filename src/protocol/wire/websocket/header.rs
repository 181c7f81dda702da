//! The header of a frame (RFC 6455, section 5.2), read and written. Says what it contains, not whether that is allowed.

/// The most bytes a header has: two, a length of eight, a mask of four.
pub(super) const HEADER_BYTES: usize = 14;

/// The most payload a control frame has (RFC 6455, section 5.5).
pub(super) const CONTROL_BYTES_MAX: usize = 125;

/// In a header's first byte: the message ends with this frame.
pub(super) const FIN: u8 = 0x80;

/// In a header's first byte: the message is compressed (RFC 7692, section 6).
pub(super) const COMPRESSED: u8 = 0x40;

/// In a header's first byte: bits to which no extension that we know gives a meaning.
pub(super) const RESERVED: u8 = 0x30;

/// In a header's second byte: a mask follows the length.
const MASKED: u8 = 0x80;

/// What a frame holds, in the low half of a header's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn of(first: u8) -> Option<Self> {
        Some(match first & 0x0f {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xa => Opcode::Pong,
            _ => return None,
        })
    }

    /// The bits of it in a header's first byte.
    pub(super) const fn bits(self) -> u8 {
        match self {
            Opcode::Continuation => 0x0,
            Opcode::Text => 0x1,
            Opcode::Binary => 0x2,
            Opcode::Close => 0x8,
            Opcode::Ping => 0x9,
            Opcode::Pong => 0xa,
        }
    }

    pub(super) fn is_control(self) -> bool {
        matches!(self, Opcode::Close | Opcode::Ping | Opcode::Pong)
    }
}

/// A header as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) first: u8,
    /// None: one that is not assigned.
    pub(super) opcode: Option<Opcode>,
    pub(super) mask: Option<[u8; 4]>,
    /// Bytes of payload. None: not written in the fewest bytes, or more than 63 bits.
    pub(super) payload: Option<u64>,
    /// Bytes of the header itself.
    pub(super) size: usize,
}

impl Header {
    /// Reads the header `bytes` begin with. None: it is not all there, which 14 bytes always are.
    #[inline]
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let &[first, second, ref rest @ ..] = bytes else { return None };
        let (payload, rest) = match second & !MASKED {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                let length = u64::from(u16::from_be_bytes(*length));
                ((length > 125).then_some(length), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                let length = u64::from_be_bytes(*length);
                ((length > 0xffff && length >> 63 == 0).then_some(length), rest)
            }
            length => (Some(u64::from(length)), rest),
        };
        let (mask, rest) = match second & MASKED {
            0 => (None, rest),
            _ => {
                let (mask, rest) = rest.split_first_chunk()?;
                (Some(*mask), rest)
            }
        };
        Some(Self { first, opcode: Opcode::of(first), mask, payload, size: bytes.len() - rest.len() })
    }
}

/// Appends the header of a frame that has no mask.
#[inline]
pub(super) fn write(out: &mut Vec<u8>, first: u8, payload: usize) {
    match payload {
        0..=125 => out.extend_from_slice(&[first, payload as u8]),
        126..=0xffff => {
            let [high, low] = (payload as u16).to_be_bytes();
            out.extend_from_slice(&[first, 126, high, low]);
        }
        _ => {
            out.extend_from_slice(&[first, 127]);
            out.extend_from_slice(&(payload as u64).to_be_bytes());
        }
    }
}

/// Bytes [`write`] appends.
pub(super) fn size(payload: usize) -> usize {
    match payload {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}
