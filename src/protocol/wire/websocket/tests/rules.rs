//! What a client may not do, rule by rule.

use super::*;

/// A masked header with this length, written out in full, and nothing behind it.
fn header(first: u8, length: &[u8]) -> Vec<u8> {
    let mut out = vec![first, 0x80 | length[0]];
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[0; 4]);
    out
}

#[test]
fn frames_are_masked() {
    assert_eq!(violation(&[0x81, 0]), Some(Violation::Protocol("a frame without a mask")));
    assert_eq!(violation(&[0x81, 5, b'H', b'e', b'l', b'l', b'o']), Some(Violation::Protocol("a frame without a mask")));
}

#[test]
fn reserved_bits_are_clear() {
    for bit in [0x40, 0x20, 0x10] {
        for opcode in [TEXT, BINARY, PING, CLOSE] {
            assert_eq!(violation(&client(FIN | bit | opcode, b"")), Some(Violation::Protocol("a reserved bit is set")));
        }
    }
    for (bit, opcode) in [(0x40, PING), (0x40, CLOSE), (0x20, TEXT), (0x10, TEXT), (0x60, TEXT)] {
        let (_, violation) = decode_with(true, &client(FIN | bit | opcode, &[0]));
        assert_eq!(violation, Some(Violation::Protocol("a reserved bit is set")));
    }
    let (_, violation) = decode_with(true, &[client(RSV1 | TEXT, &[0]), client(FIN | RSV1 | CONTINUATION, b"")].concat());
    assert_eq!(violation, Some(Violation::Protocol("a reserved bit is set")));
}

#[test]
fn opcodes_are_known() {
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        assert_eq!(violation(&client(FIN | opcode, b"")), Some(Violation::Protocol("an unknown opcode")));
    }
}

#[test]
fn control_frames_are_whole_and_short() {
    for opcode in [CLOSE, PING, PONG] {
        assert_eq!(violation(&client(opcode, b"")), Some(Violation::Protocol("a control frame in fragments")));
        assert_eq!(violation(&client(FIN | opcode, &[0; 126])), Some(Violation::Protocol("a control frame that is too long")));
    }
    assert_eq!(decode(&client(FIN | PING, &[1; 125])), (vec![Received::Ping(vec![1; 125].into())], None));
}

#[test]
fn lengths_are_in_their_shortest_form() {
    for length in [
        &[126, 0, 125][..],
        &[126, 0, 0],
        &[127, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
        &[127, 0, 0, 0, 0, 0, 0, 0, 1],
        &[127, 0x80, 0, 0, 0, 0, 1, 0, 0],
        &[127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ] {
        assert_eq!(violation(&header(FIN | BINARY, length)), Some(Violation::Protocol("a length that is not in its shortest form")));
    }
}

#[test]
fn a_message_that_is_too_large_is_refused_before_it_comes() {
    assert_eq!(decode(&client(FIN | BINARY, &[1; LIMIT])), (vec![binary(&[1; LIMIT])], None));
    for length in [&[126, 0x03, 0xe9][..], &[127, 0, 0, 0, 1, 0, 0, 0, 0], &[127, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]] {
        assert_eq!(violation(&header(FIN | BINARY, length)), Some(Violation::TooLarge));
    }
    let whole = [client(BINARY, &[1; 600]), client(FIN | PING, &[1; 100]), client(FIN | CONTINUATION, &[1; 400])].concat();
    assert_eq!(decode(&whole).0.last(), Some(&binary(&[1; LIMIT])));
    let more = [client(BINARY, &[1; 600]), client(CONTINUATION, &[1; 400]), header(CONTINUATION, &[1])].concat();
    assert_eq!(violation(&more), Some(Violation::TooLarge));
    assert_eq!(decode_reads(&mut Decoder::new(0, false), [&*client(FIN | TEXT, b"")]), (vec![text("")], None));
    assert_eq!(decode_reads(&mut Decoder::new(usize::MAX, false), [&*client(FIN | TEXT, b"a")]), (vec![text("a")], None));
}

#[test]
fn a_message_ends_before_the_next_begins() {
    assert_eq!(violation(&client(FIN | CONTINUATION, b"a")), Some(Violation::Protocol("a continuation of nothing")));
    assert_eq!(violation(&client(CONTINUATION, b"")), Some(Violation::Protocol("a continuation of nothing")));
    let twice = [client(TEXT, b"a"), client(FIN | TEXT, b"b")].concat();
    assert_eq!(violation(&twice), Some(Violation::Protocol("a new message before the last one ended")));
    let after = [client(TEXT, b"a"), client(FIN | CONTINUATION, b"b"), client(FIN | CONTINUATION, b"c")].concat();
    assert_eq!(decode(&after), (vec![text("ab")], Some(Violation::Protocol("a continuation of nothing"))));
}

#[test]
fn text_is_utf8() {
    for bad in [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"ab\xe2\x82"] {
        assert_eq!(violation(&client(FIN | TEXT, bad)), Some(Violation::Utf8), "{bad:x?}");
        assert_eq!(violation(&[client(TEXT, bad), client(FIN | CONTINUATION, b"")].concat()), Some(Violation::Utf8), "{bad:x?}");
    }
    let kisses = "κόσμε\u{10ffff}";
    for at in 0..=kisses.len() {
        let (one, two) = kisses.as_bytes().split_at(at);
        assert_eq!(decode(&[client(TEXT, one), client(FIN | CONTINUATION, two)].concat()), (vec![text(kisses)], None));
    }
}

#[test]
fn a_text_that_cannot_become_utf8_ends_at_once() {
    // After a frame that is not the last.
    assert_eq!(violation(&client(TEXT, b"ab\xf4\x90")), Some(Violation::Utf8));
    // In the middle of a frame, one byte after the other.
    let frame = client(FIN | TEXT, "κόσμε\u{fffd}".as_bytes());
    assert_eq!(violation(&frame[..frame.len() - 1]), None);
    let frame = client(FIN | TEXT, b"ab\xf4\x90more that nobody waits for");
    assert_eq!(violation(&frame[..6 + 3]), None);
    assert_eq!(violation(&frame[..6 + 4]), Some(Violation::Utf8));
}

#[test]
fn close_frames_have_a_code_that_may_be_sent_and_a_reason_that_is_text() {
    assert_eq!(violation(&client(FIN | CLOSE, b"\x03")), Some(Violation::Protocol("half a close code")));
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535u16] {
        let outcome = violation(&client(FIN | CLOSE, &code.to_be_bytes()));
        assert_eq!(outcome, Some(Violation::Protocol("a close code that may not be sent")), "{code}");
    }
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999u16] {
        assert_eq!(decode(&client(FIN | CLOSE, &code.to_be_bytes())).0, [Received::Close(Some((code, String::new())))]);
    }
    assert_eq!(violation(&client(FIN | CLOSE, b"\x03\xe8\xff")), Some(Violation::Utf8));
    let longest = [&b"\x03\xe8"[..], &[b'r'; 123]].concat();
    assert_eq!(decode(&client(FIN | CLOSE, &longest)).0, [Received::Close(Some((1000, "r".repeat(123))))]);
}
