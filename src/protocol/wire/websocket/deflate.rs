//! Messages through raw deflate (RFC 7692, section 7.2), each for itself: a thread has one compressor and one decompressor for all
//! connections, and starts them anew for each message. Knows no frames.

use std::cell::RefCell;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::protocol::wire::Violation;

/// What ends a flushed stream, and is not sent.
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// [`TAIL`], and an empty last block behind it: a stream that does not end there was cut off.
const END: [u8; 6] = [0x00, 0x00, 0xff, 0xff, 0x03, 0x00];

/// Bytes a buffer has at first, and grows by at least.
const BUFFER_BYTES: usize = 4 * 1024;

/// A buffer that grew larger is given back.
const KEPT_BYTES_MAX: usize = 256 * 1024;

/// Not a stream. It fails the connection as a broken frame does (1002), not as a text that is not UTF-8 (1007) does:
/// what the payload would have been is not known.
const CORRUPT: Violation = Violation::Protocol("a compressed message that is not deflate data");

thread_local! {
    static DEFLATER: RefCell<Deflater> = RefCell::new(Deflater {
        stream: Compress::new(Compression::fast(), false),
        out: Vec::new(),
    });
    static INFLATER: RefCell<Inflater> = RefCell::new(Inflater {
        stream: Decompress::new(false),
        out: Vec::new(),
    });
}

/// Gives `then` the payload of a compressed frame. None: it cannot be compressed.
pub(super) fn compress<R>(payload: &[u8], then: impl FnOnce(Option<&[u8]>) -> R) -> R {
    DEFLATER.with_borrow_mut(|deflater| {
        let result = then(deflater.run(payload));
        if deflater.out.capacity() > KEPT_BYTES_MAX {
            deflater.out = Vec::new();
        }
        result
    })
}

/// Decompresses a payload, unless it becomes longer than `bytes_max` bytes. Never more than one byte beyond that is made.
pub(super) fn inflate(payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, Violation> {
    INFLATER.with_borrow_mut(|inflater| {
        let result = inflater.run(payload, bytes_max).map(<[u8]>::to_vec);
        if inflater.out.len() > KEPT_BYTES_MAX {
            inflater.out = Vec::new();
        }
        result
    })
}

struct Deflater {
    stream: Compress,
    out: Vec<u8>,
}

impl Deflater {
    fn run(&mut self, payload: &[u8]) -> Option<&[u8]> {
        self.stream.reset();
        self.out.clear();
        loop {
            self.out.reserve(BUFFER_BYTES.max(payload.len() / 2));
            let used = usize::try_from(self.stream.total_in()).ok()?;
            self.stream.compress_vec(payload.get(used..)?, &mut self.out, FlushCompress::Sync).ok()?;
            // Room that is left says that all is flushed.
            if self.out.len() < self.out.capacity() {
                return self.out.strip_suffix(&TAIL);
            }
        }
    }
}

struct Inflater {
    stream: Decompress,
    /// All of it may be written to; what is beyond the result is of no meaning.
    out: Vec<u8>,
}

impl Inflater {
    fn run(&mut self, payload: &[u8], bytes_max: usize) -> Result<&[u8], Violation> {
        self.stream.reset(false);
        let mut made = 0;
        let mut ended = self.part(payload, &mut made, bytes_max)?;
        // A payload that ends with a stream's last block had nothing cut off.
        if !ended {
            ended = self.part(&END, &mut made, bytes_max)?;
        }
        if ended { Ok(&self.out[..made]) } else { Err(CORRUPT) }
    }

    /// Inflates all of `input`, and says whether a stream ended with it.
    fn part(&mut self, mut input: &[u8], made: &mut usize, bytes_max: usize) -> Result<bool, Violation> {
        loop {
            if *made == self.out.len() {
                self.out.resize(*made + (*made).max(BUFFER_BYTES), 0);
            }
            // Room for one byte too many tells a message of the largest size from a larger one.
            let end = self.out.len().min(bytes_max.saturating_add(1));
            let room = &mut self.out[*made..end];
            let (used_before, made_before) = (self.stream.total_in(), self.stream.total_out());
            let status = self.stream.decompress(input, room, FlushDecompress::Sync).map_err(|_| CORRUPT)?;
            let used = (self.stream.total_in() - used_before) as usize;
            let filled = (self.stream.total_out() - made_before) as usize;
            let is_full = filled == room.len();
            input = &input[used..];
            *made += filled;
            if *made > bytes_max {
                return Err(Violation::TooLarge);
            }
            match status {
                // A message may hold several streams, one after the other (RFC 7692, section 7.2.1).
                Status::StreamEnd if input.is_empty() => return Ok(true),
                Status::StreamEnd => self.stream.reset(false),
                _ if is_full => {}
                _ if input.is_empty() => return Ok(false),
                _ if used == 0 && filled == 0 => return Err(CORRUPT),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::wire::websocket::tests::noise;

    #[test]
    fn a_bomb_is_inflated_no_further_than_the_limit() {
        let bomb = compress(&vec![0; 1 << 20], |packed| packed.unwrap().to_vec());
        assert!(bomb.len() < 20_000);
        assert_eq!(inflate(&bomb, 100_000), Err(Violation::TooLarge));
        assert_eq!(INFLATER.with_borrow(|inflater| inflater.stream.total_out()), 100_001);
        assert_eq!(inflate(&bomb, 1 << 20), Ok(vec![0; 1 << 20]));
    }

    #[test]
    fn large_buffers_are_given_back() {
        let kept = || (DEFLATER.with_borrow(|d| d.out.capacity()), INFLATER.with_borrow(|i| i.out.len()));
        for (length, gives_back) in [(1 << 10, false), (1 << 20, true)] {
            let payload = noise(length);
            let packed = compress(&payload, |packed| packed.unwrap().to_vec());
            assert_eq!(inflate(&packed, 1 << 20), Ok(payload));
            let (deflater, inflater) = kept();
            assert_eq!((deflater == 0, inflater == 0), (gives_back, gives_back));
        }
    }
}
