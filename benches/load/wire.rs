//! WebSocket frames, as little of RFC 6455 as a load generator and its floor need: messages in one frame, close, ping and pong.
//! It knows nothing of sockets or of what the text says.

use anyhow::{Context, Result, ensure};

/// Opcodes.
pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// What clients mask with. One key will do: the server undoes it all the same.
pub const MASK: [u8; 4] = [0x5a, 0xc3, 0x17, 0xee];

/// The key that every client offers, and what must come back: both are RFC 6455's own example.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPTED: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Where the head of a request or an answer ends, once all of it is there.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Appends a frame. A client masks, a server does not.
pub fn encode(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    out.push(0x80 | opcode);
    match payload.len() {
        short @ 0..126 => out.push(masked | short as u8),
        medium @ 126..0x1_0000 => {
            out.push(masked | 126);
            out.extend((medium as u16).to_be_bytes());
        }
        long => {
            out.push(masked | 127);
            out.extend((long as u64).to_be_bytes());
        }
    }
    out.extend(mask.into_iter().flatten());
    let begin = out.len();
    out.extend(payload);
    if let Some(mask) = mask {
        exchange(&mut out[begin..], mask);
    }
}

/// Masks, or undoes it.
fn exchange(payload: &mut [u8], mask: [u8; 4]) {
    for four in payload.chunks_mut(4) {
        for (byte, key) in four.iter_mut().zip(mask) {
            *byte ^= key;
        }
    }
}

/// Hands over every frame that is complete and says how many bytes they took. Masks are undone in place.
/// Compressed frames and messages in pieces are errors: nobody here asks for them.
pub fn each_frame(bytes: &mut [u8], mut take: impl FnMut(u8, &mut [u8]) -> Result<()>) -> Result<usize> {
    let mut used = 0;
    while let Some(Frame { begin, end, mask }) = frame(&bytes[used..])? {
        let (opcode, payload) = (bytes[used] & 0x0f, &mut bytes[used + begin..used + end]);
        if let Some(mask) = mask {
            exchange(payload, mask);
        }
        take(opcode, payload)?;
        used += end;
    }
    Ok(used)
}

/// Where the payload of a frame begins and ends, and its mask.
struct Frame {
    begin: usize,
    end: usize,
    mask: Option<[u8; 4]>,
}

/// The first frame, if it is complete.
fn frame(bytes: &[u8]) -> Result<Option<Frame>> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    ensure!(first & 0xf0 == 0x80, "a frame begins with {first:#x}: compressed, or a message in pieces");
    let extra = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let masked = second & 0x80 != 0;
    let begin = 2 + extra + if masked { 4 } else { 0 };
    if bytes.len() < begin {
        return Ok(None);
    }
    let length = match extra {
        0 => usize::from(second & 0x7f),
        _ => rest[..extra]
            .iter()
            .try_fold(0usize, |sum, byte| Some(sum.checked_mul(256)? + usize::from(*byte)))
            .context("a frame's length")?,
    };
    let end = begin.checked_add(length).context("a frame's length")?;
    let mask = masked.then(|| [bytes[begin - 4], bytes[begin - 3], bytes[begin - 2], bytes[begin - 1]]);
    Ok((bytes.len() >= end).then_some(Frame { begin, end, mask }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_come_back_as_they_went() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            for mask in [None, Some(MASK)] {
                let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
                let mut bytes = Vec::new();
                encode(&mut bytes, TEXT, &payload, mask);
                encode(&mut bytes, PING, b"", mask);
                let whole = bytes.len();
                bytes.extend([0x81]);
                let mut got = Vec::new();
                let used = each_frame(&mut bytes, |opcode, payload| {
                    got.push((opcode, payload.to_vec()));
                    Ok(())
                });
                assert_eq!(used.unwrap(), whole);
                assert_eq!(got, [(TEXT, payload), (PING, Vec::new())]);
            }
        }
    }

    #[test]
    fn a_frame_that_is_not_all_there_waits_for_the_rest() {
        let mut whole = Vec::new();
        encode(&mut whole, TEXT, &[7; 300], Some(MASK));
        for length in 0..whole.len() {
            assert_eq!(each_frame(&mut whole[..length].to_vec(), |_, _| panic!("{length} bytes are no frame")).unwrap(), 0);
        }
    }

    #[test]
    fn what_nobody_asked_for_is_an_error() {
        let begins = [&[0xc1, 0][..], &[0x01, 0], &[0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255]];
        for begin in begins {
            assert!(each_frame(&mut begin.to_vec(), |_, _| Ok(())).is_err(), "{begin:?}");
        }
    }
}
