//! What holds for any bytes in any reads, and what another client (tungstenite's) makes of our frames.

use std::io::{self, Cursor, Read, Write};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};
use tokio_tungstenite::tungstenite::{Bytes as TheirBytes, Message};

use super::*;
use crate::protocol::wire::websocket::{close, compressed, message, ping, pong};

/// A client's two directions, in memory.
struct Memory {
    input: Cursor<Vec<u8>>,
    output: Vec<u8>,
}

impl Read for Memory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tungstenite(input: &[u8]) -> WebSocket<Memory> {
    WebSocket::from_raw_socket(Memory { input: Cursor::new(input.to_vec()), output: Vec::new() }, Role::Client, None)
}

/// Payloads of every length that has a form of its own, text or not, compressible or not.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..200),
        4 => "\\PC{0,60}".prop_map(String::into_bytes),
        1 => (any::<u8>(), 0usize..1100).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

/// Bytes of a client that mostly keeps the rules.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        6 => prop::sample::select(&[FIN | TEXT, FIN | BINARY, TEXT, BINARY, CONTINUATION, FIN | CONTINUATION, FIN | PING, FIN | PONG][..]),
        3 => prop::sample::select(&[FIN | RSV1 | TEXT, FIN | RSV1 | BINARY, RSV1 | TEXT][..]),
        1 => Just(FIN | CLOSE),
        1 => any::<u8>(),
    ];
    let frame = (first, payload(), any::<bool>()).prop_map(|(first, payload, deflates)| {
        let deflates = deflates && first & RSV1 != 0;
        let packed = deflates.then(|| super::super::deflate::compress(&payload, |packed| packed.unwrap().to_vec()));
        client(first, &packed.unwrap_or(payload))
    });
    let damage = proptest::option::weighted(0.2, (any::<Index>(), any::<u8>()));
    (vec(frame, 1..8), damage).prop_map(|(frames, damage)| {
        let mut bytes = frames.concat();
        if let Some((at, byte)) = damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn any_reads_give_the_same(bytes in frames(), cuts in vec(any::<Index>(), 0..20), inflates: bool) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        let mut decoder = Decoder::new(LIMIT, inflates);
        let outcome = decode_reads(&mut decoder, cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]));
        prop_assert_eq!(outcome, decode_with(inflates, &bytes));
        prop_assert!(decoder.held_bytes() <= 4 * LIMIT);
    }

    #[test]
    fn any_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..300), inflates: bool) {
        decode_with(inflates, &bytes);
    }

    #[test]
    fn another_client_reads_what_we_write(text in "\\PC{0,300}", bytes in vec(any::<u8>(), 0..300), more in 0usize..70_000, code in 3000u16..5000) {
        let large = vec![7; more];
        let out = [
            message(&Frame::Text(text.clone().into())),
            ping(),
            message(&Frame::Binary(bytes.clone().into())),
            pong(&bytes[..bytes.len().min(125)]),
            message(&Frame::Binary(large.clone().into())),
            close(code, &text),
        ];
        let mut client = tungstenite(&out.concat());
        prop_assert_eq!(client.read().unwrap(), Message::text(&*text));
        prop_assert_eq!(client.read().unwrap(), Message::Ping(TheirBytes::new()));
        prop_assert_eq!(client.read().unwrap(), Message::binary(bytes.clone()));
        prop_assert_eq!(client.read().unwrap(), Message::Pong(bytes[..bytes.len().min(125)].to_vec().into()));
        prop_assert_eq!(client.read().unwrap(), Message::binary(large));
        let Message::Close(Some(frame)) = client.read().unwrap() else { panic!("no close") };
        prop_assert_eq!(u16::from(frame.code), code);
        prop_assert_eq!(&*frame.reason, crate::model::close::cut(&text));
    }

    #[test]
    fn we_read_what_another_client_writes(text in "\\PC{0,300}", bytes in vec(any::<u8>(), 0..300)) {
        let mut client = tungstenite(&[]);
        client.send(Message::text(&*text)).unwrap();
        client.send(Message::binary(bytes.clone())).unwrap();
        client.send(Message::Ping(bytes[..bytes.len().min(125)].to_vec().into())).unwrap();
        client.close(None).unwrap();
        let expected = vec![
            super::text(&text),
            binary(&bytes),
            Received::Ping(bytes[..bytes.len().min(125)].to_vec().into()),
            Received::Close(None),
        ];
        prop_assert_eq!(decode(&client.get_ref().output), (expected, None));
    }

    /// What we compress, as a client would send it back.
    #[test]
    fn what_we_compress_is_what_we_inflate(payload in payload()) {
        let frame = match String::from_utf8(payload) {
            Ok(text) => Frame::Text(text.into()),
            Err(error) => Frame::Binary(error.into_bytes().into()),
        };
        let bytes = compressed(&frame);
        let header = crate::protocol::wire::websocket::header::Header::read(&bytes).unwrap();
        let outcome = decode_reads(&mut Decoder::new(2000, true), [&*client(header.first, &bytes[header.size..])]);
        prop_assert_eq!(outcome, (vec![Received::Message(frame)], None));
    }
}
