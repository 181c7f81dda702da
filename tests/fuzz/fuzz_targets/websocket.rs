//! What a client sends over WebSocket: however it is cut into reads, it says the same, in bounded memory, and what it says can be
//! said back. Input: one byte whose lowest bit turns compression on, one that says how many bytes of reads' lengths follow, those
//! lengths, and what the client sends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tramline::protocol::wire::websocket::{Decoder, close, compressed, message, negotiate, pong};
use tramline::protocol::wire::{Received, Violation};

const BYTES_MAX: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    let &[flags, count, ref rest @ ..] = bytes else { return };
    let (lengths, sent) = rest.split_at(rest.len().min(usize::from(count % 32)));
    let inflates = flags & 1 != 0;
    let whole = decode(inflates, [sent].into_iter());
    assert_eq!(decode(inflates, reads(lengths, sent)), whole);
    assert_eq!(decode(inflates, sent.chunks(1)), whole);
    for received in whole.0 {
        say_back(received);
    }
    if let Ok(offers) = str::from_utf8(rest) {
        assert!(negotiate(offers.lines()).is_none_or(|_| offers.contains("permessage-deflate")));
    }
});

/// `sent` in reads of these lengths, over and over.
fn reads<'a>(lengths: &'a [u8], mut sent: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut lengths = lengths.iter().cycle();
    std::iter::from_fn(move || {
        let length = lengths.next().map_or(sent.len(), |&length| usize::from(length).max(1));
        let (read, rest) = sent.split_at(length.min(sent.len()));
        sent = rest;
        (!read.is_empty()).then_some(read)
    })
}

fn decode<'a>(inflates: bool, reads: impl Iterator<Item = &'a [u8]>) -> (Vec<Received>, Option<Violation>) {
    let mut decoder = Decoder::new(BYTES_MAX, inflates);
    let (mut received, mut came) = (Vec::new(), 0);
    for mut input in reads {
        came += input.len();
        loop {
            let next = decoder.next(&mut input);
            // Twice what came, for a message grows by doubling; and no more than twice the largest, be it compressed.
            assert!(decoder.held_bytes() <= (2 * came).max(8) && decoder.held_bytes() <= 3 * BYTES_MAX);
            match next {
                Ok(None) => break,
                Ok(Some(next)) => {
                    if let Received::Message(frame) = &next {
                        assert!(frame.len() <= BYTES_MAX);
                    }
                    received.push(next);
                }
                Err(violation) => {
                    let mut more = &b"\x81\x80\0\0\0\0"[..];
                    assert_eq!(decoder.next(&mut more), Ok(None));
                    assert!(more.is_empty() && decoder.held_bytes() == 0);
                    return (received, Some(violation));
                }
            }
        }
        assert!(input.is_empty());
    }
    (received, None)
}

/// What we make of it, as a client would send it: with a mask of zeros.
fn say_back(received: Received) {
    let (frames, expected) = match &received {
        Received::Message(frame) => (vec![message(frame), compressed(frame)], received.clone()),
        Received::Ping(payload) => (vec![pong(payload)], Received::Pong),
        Received::Pong => return,
        Received::Close(None) => (vec![close(1005, "")], received),
        Received::Close(Some((code, reason))) => (vec![close(*code, reason)], received.clone()),
    };
    for frame in frames {
        let header = match frame[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let (header, payload) = frame.split_at(header);
        let mut masked = [header, &[0; 4], payload].concat();
        masked[1] |= 0x80;
        let mut input = &masked[..];
        assert_eq!(Decoder::new(BYTES_MAX, true).next(&mut input).as_ref(), Ok(&Some(expected.clone())));
    }
}
