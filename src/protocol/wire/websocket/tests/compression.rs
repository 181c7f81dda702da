//! Compressed messages: the examples of RFC 7692, section 7.2.3, streams of every make, and bombs.

use flate2::{Compress, Compression, FlushCompress};
use std::cell::Cell;

use super::*;
use crate::protocol::wire::websocket::compressed;

/// Feeds a payload as one compressed text.
fn inflated(payload: &[u8]) -> Outcome {
    decode_with(true, &client(FIN | RSV1 | TEXT, payload))
}

/// Deflates as a client may: in these parts, flushed or ended after each.
fn deflate(parts: &[&[u8]], flush: FlushCompress) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    let mut stream = Compress::new(Compression::best(), false);
    for part in parts {
        stream.compress_vec(part, &mut out, flush).unwrap();
        if matches!(flush, FlushCompress::Finish) {
            stream.reset();
        }
    }
    match flush {
        FlushCompress::Finish => out.push(0),
        _ => out.truncate(out.len() - 4),
    }
    out
}

#[test]
fn the_examples_of_the_rfc() {
    let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    assert_eq!(inflated(&hello), (vec![text("Hello")], None));
    let pieces = [client(RSV1 | TEXT, &hello[..3]), client(FIN | PING, b""), client(FIN | CONTINUATION, &hello[3..])].concat();
    assert_eq!(decode_with(true, &pieces).0[1], text("Hello"));
    let stored = [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
    assert_eq!(inflated(&stored), (vec![text("Hello")], None));
    let last = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00];
    assert_eq!(inflated(&last), (vec![text("Hello")], None));
    let blocks = [0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00];
    assert_eq!(inflated(&blocks), (vec![text("Hello")], None));
    assert_eq!(inflated(&[0x00]), (vec![text("")], None));
    assert_eq!(inflated(&[0x02, 0x00]), (vec![text("")], None));
}

#[test]
fn what_was_agreed_is_a_choice_for_each_message() {
    let bytes = [client(FIN | TEXT, b"plain"), client(FIN | RSV1 | TEXT, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00])].concat();
    assert_eq!(decode_with(true, &bytes), (vec![text("plain"), text("Hello")], None));
}

#[test]
fn several_blocks_and_several_streams() {
    let parts: [&[u8]; 3] = [b"one one one one", b"two two two two", b"one one two two"];
    let whole = text(&String::from_utf8(parts.concat()).unwrap());
    for flush in [FlushCompress::Sync, FlushCompress::Full, FlushCompress::Finish] {
        assert_eq!(inflated(&deflate(&parts, flush)), (vec![whole.clone()], None), "{flush:?}");
    }
    // Without the empty block behind the last one, nothing is missing either.
    let mut ended = deflate(&parts, FlushCompress::Finish);
    ended.pop();
    assert_eq!(inflated(&ended), (vec![whole], None));
}

#[test]
fn what_is_not_deflate_data_is_a_violation() {
    let sound = deflate(&[b"A text of some length, so that there are many places to cut it off."], FlushCompress::Sync);
    let cut = (1..sound.len() - 1).filter(|&at| inflated(&sound[..at]).1.is_some()).count();
    assert_eq!(cut, sound.len() - 2, "a message that was cut off is taken for whole");
    for bad in [&b""[..], b"\xff", b"\x07", b"\x00\x05\x00\x05\x00Hello\x00", b"\xf2\x48\xcd\xc9\xc9\x07\x00\xff"] {
        assert_eq!(inflated(bad).1, Some(Violation::Protocol("a compressed message that is not deflate data")), "{bad:x?}");
    }
    // The next message is not touched by it.
    assert_eq!(inflated(&sound).1, None);
}

#[test]
fn inflated_text_is_utf8() {
    assert_eq!(inflated(&deflate(&[b"ab\xff"], FlushCompress::Sync)), (vec![], Some(Violation::Utf8)));
    let bytes = client(FIN | RSV1 | BINARY, &deflate(&[b"ab\xff"], FlushCompress::Sync));
    assert_eq!(decode_with(true, &bytes), (vec![binary(b"ab\xff")], None));
}

#[test]
fn the_inflated_size_counts() {
    let fits = deflate(&[&[b'a'; LIMIT]], FlushCompress::Sync);
    assert_eq!(inflated(&fits), (vec![text(&"a".repeat(LIMIT))], None));
    assert_eq!(inflated(&deflate(&[&[b'a'; LIMIT + 1]], FlushCompress::Sync)).1, Some(Violation::TooLarge));
    // What does not get shorter may be a little longer than the largest message.
    let noise = noise(LIMIT);
    let longer = deflate(&[&noise], FlushCompress::Sync);
    assert!(longer.len() > LIMIT);
    assert_eq!(decode_with(true, &client(FIN | RSV1 | BINARY, &longer)), (vec![binary(&noise)], None));
    assert_eq!(inflated(&[0; 2 * LIMIT]).1, Some(Violation::TooLarge));
}

#[test]
fn what_we_compress_is_read_by_another_inflater() {
    let before = Cell::new(None);
    for text in ["", "a", "Hello", &"one message of many; ".repeat(10), &"x".repeat(100_000)] {
        let frame = Frame::Text(text.to_owned().into());
        let bytes = compressed(&frame);
        assert_eq!(bytes, compressed(&frame), "something of one message is in the next");
        let header = crate::protocol::wire::websocket::header::Header::read(&bytes).unwrap();
        let payload = &bytes[header.size..];
        if header.first & RSV1 == 0 {
            assert_eq!((header.first, payload), (FIN | TEXT, text.as_bytes()));
            continue;
        }
        before.set(Some(text.len()));
        assert_eq!(header.first, FIN | RSV1 | TEXT);
        assert!(payload.len() < text.len());
        let mut stream = flate2::Decompress::new(false);
        let mut out = Vec::with_capacity(200_000);
        stream.decompress_vec(&[payload, &[0, 0, 0xff, 0xff]].concat(), &mut out, flate2::FlushDecompress::Sync).unwrap();
        assert_eq!(out, text.as_bytes());
        if text.len() <= LIMIT {
            assert_eq!(inflated(payload), (vec![super::text(text)], None));
        }
    }
    assert_eq!(before.get(), Some(100_000), "nothing was compressed");
}
