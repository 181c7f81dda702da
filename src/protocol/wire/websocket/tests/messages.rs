//! Whole messages in and out: the examples of RFC 6455, section 5.7, and what is kept meanwhile.

use super::*;
use crate::protocol::wire::websocket::{close, message, ping, pong};

#[test]
fn the_examples_of_the_rfc() {
    let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(decode(&hello), (vec![text("Hello")], None));
    let pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(decode(&pong), (vec![Received::Pong], None));
    let pieces = [client(TEXT, b"Hel"), client(FIN | CONTINUATION, b"lo")].concat();
    assert_eq!(decode(&pieces), (vec![text("Hello")], None));
    assert_eq!(*message(&Frame::Text("Hello".into())), [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
    assert_eq!(message(&Frame::Binary(vec![0; 256].into()))[..4], [0x82, 0x7e, 0x01, 0x00]);
    assert_eq!(message(&Frame::Binary(vec![0; 65536].into()))[..10], [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
}

#[test]
fn each_length_is_written_in_its_shortest_form() {
    for (length, header) in [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)] {
        let frame = Frame::Binary(vec![7; length].into());
        let bytes = message(&frame);
        assert_eq!(bytes.len(), header + length);
        let read = crate::protocol::wire::websocket::header::Header::read(&bytes).unwrap();
        assert_eq!((read.payload, read.size), (Some(length as u64), header));
    }
}

#[test]
fn control_frames() {
    assert_eq!(*ping(), [0x89, 0]);
    assert_eq!(*pong(b"ab"), [0x8a, 2, b'a', b'b']);
    assert_eq!(pong(&[1; 200]).len(), 2 + 125);
    assert_eq!(*close(1000, "by"), [0x88, 4, 0x03, 0xe8, b'b', b'y']);
    assert_eq!(close(4000, &"ü".repeat(100)).len(), 2 + 2 + 122);
    for code in [0, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
        assert_eq!(*close(code, "why"), [0x88, 0], "{code}");
    }
}

#[test]
fn control_frames_come_between_the_frames_of_a_message() {
    let bytes = [
        client(TEXT, "f\u{fc}".as_bytes().split_last().unwrap().1),
        client(FIN | PING, b"one"),
        client(CONTINUATION, b""),
        client(FIN | PONG, b"two"),
        client(FIN | PING, b""),
        client(FIN | CONTINUATION, &[0xbc, b'r']),
        client(FIN | BINARY, &[0xff]),
    ];
    let expected =
        vec![Received::Ping(Bytes::from_static(b"one")), Received::Pong, Received::Ping(Bytes::new()), text("f\u{fc}r"), binary(&[0xff])];
    assert_eq!(decode(&bytes.concat()), (expected, None));
}

#[test]
fn messages_without_payload() {
    let bytes = [client(FIN | TEXT, b""), client(BINARY, b""), client(FIN | CONTINUATION, b"")].concat();
    assert_eq!(decode(&bytes), (vec![text(""), binary(b"")], None));
}

#[test]
fn nothing_after_a_close_is_decoded() {
    let bytes = [client(FIN | CLOSE, b"\x0f\xa0bye"), client(FIN | TEXT, b"more"), vec![0xff; 100]].concat();
    assert_eq!(decode(&bytes), (vec![Received::Close(Some((4000, "bye".into())))], None));
    assert_eq!(decode(&client(FIN | CLOSE, b"")), (vec![Received::Close(None)], None));
}

#[test]
fn nothing_after_a_violation_is_decoded() {
    let mut decoder = Decoder::new(LIMIT, false);
    let (bad, good) = (client(FIN | 3, b""), client(FIN | TEXT, b"more"));
    assert!(is_protocol(decode_reads(&mut decoder, [&*bad]).1));
    assert_eq!(decode_reads(&mut decoder, [&*good]), (vec![], None));
}

#[test]
fn a_connection_that_says_nothing_keeps_nothing() {
    assert!(size_of::<Decoder>() <= 64, "{}", size_of::<Decoder>());
    let mut decoder = Decoder::new(LIMIT, true);
    for frame in [client(FIN | TEXT, b"abc"), client(FIN | PING, b"abc"), client(FIN | PONG, b"abc"), client(FIN | CLOSE, b"")] {
        let (most, last) = frame.split_at(frame.len() - 1);
        decode_reads(&mut decoder, [most]);
        assert!(decoder.held_bytes() <= 3);
        assert_eq!(decode_reads(&mut decoder, [last]).0.len(), 1);
        assert_eq!(decoder.held_bytes(), 0);
    }
}

#[test]
fn memory_grows_with_what_came_not_with_what_was_said() {
    let mut decoder = Decoder::new(1 << 20, false);
    let frame = client(FIN | BINARY, &vec![1; 1 << 20]);
    let (mut came, mut whole) = (0, vec![]);
    for read in frame.chunks(1000) {
        came += read.len();
        whole.extend(decode_reads(&mut decoder, [read]).0);
        assert!(decoder.held_bytes() <= 2 * came, "{} for {came}", decoder.held_bytes());
    }
    assert_eq!(whole, [binary(&vec![1; 1 << 20])]);
}

#[test]
fn any_number_of_empty_frames_takes_no_memory() {
    let mut decoder = Decoder::new(LIMIT, false);
    decode_reads(&mut decoder, [&*client(TEXT, b"a")]);
    let held = decoder.held_bytes();
    let (empty, ping) = (client(CONTINUATION, b""), client(FIN | PING, b""));
    for _ in 0..10_000 {
        decode_reads(&mut decoder, [&*empty, &*ping]);
    }
    assert_eq!(decoder.held_bytes(), held);
    assert_eq!(decode_reads(&mut decoder, [&*client(FIN | CONTINUATION, b"b")]), (vec![text("ab")], None));
}
