//! WebSocket itself (RFC 6455): frames, handshakes and ends, with bits that a well-behaved client would not send.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::raw::{CLOSE, FIN, MORE, PING, PONG, Raw, TEXT, frame, handshake};
use crate::support::{Client, Server, Setup, request, until};

const ASK: &[u8] = br#"{"type":"ping"}"#;

/// The next frame must be the answer to [`ASK`].
async fn expect_pong_message(raw: &mut Raw) {
    let (first, payload) = raw.next().await.expect("an answer");
    let answer: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!((first, &answer["type"]), (FIN | TEXT, &json!("pong")));
}

#[tokio::test]
async fn a_message_in_pieces_is_one_message_and_pings_may_come_between() {
    let server = Server::shipped();
    let mut raw = Raw::open(server.url("workspace")).await;
    raw.send(TEXT, &ASK[..5]).await;
    raw.send(MORE, b"").await;
    raw.send(FIN | PING, b"between").await;
    raw.send(MORE, &ASK[5..9]).await;
    raw.send(FIN | MORE, &ASK[9..]).await;
    assert_eq!(raw.next().await, Some((FIN | PONG, b"between".to_vec())));
    expect_pong_message(&mut raw).await;
}

#[tokio::test]
async fn a_message_byte_by_byte_is_a_message() {
    let server = Server::shipped();
    let mut raw = Raw::open(server.url("workspace")).await;
    for byte in frame(FIN | TEXT, ASK) {
        raw.write(&[byte]).await;
    }
    expect_pong_message(&mut raw).await;
}

#[tokio::test]
async fn many_messages_in_one_write_are_answered_in_order() {
    let server = Server::shipped();
    let mut client = Client::connect(server.url("agent")).await;
    for n in 0..50 {
        client.send(&json!({ "type": "test", "data": { "n": n } })).await;
    }
    for n in 0..50 {
        assert_eq!(client.next().await["data"]["n"], n);
    }
}

#[tokio::test]
async fn json_in_a_binary_frame_is_a_message() {
    let server = Server::shipped();
    let mut client = server.client("workspace").await;
    client.send_frame(Message::binary(ASK)).await;
    assert_eq!(client.next().await["type"], "pong");
    client.send_frame(Message::binary(vec![0xff, 0xfe])).await;
    assert_eq!(client.next().await["error"], "invalid JSON");
    client.expect_nothing().await;
}

#[tokio::test]
async fn a_ping_is_answered_with_its_payload() {
    let server = Server::shipped();
    let mut raw = Raw::open(server.url("workspace")).await;
    for payload in [&b""[..], b"hello", &[0xff; 125]] {
        raw.send(FIN | PING, payload).await;
        assert_eq!(raw.next().await, Some((FIN | PONG, payload.to_vec())));
    }
    // A pong that nobody asked for is no fault.
    raw.send(FIN | PONG, b"x").await;
    raw.send(FIN | TEXT, ASK).await;
    expect_pong_message(&mut raw).await;
}

#[tokio::test]
async fn a_close_is_answered_with_its_code() {
    let server = Server::shipped();
    for (payload, answer) in [(&[][..], &[][..]), (&[0x03, 0xe8], &[0x03, 0xe8]), (&[0x0f, 0xa0, b'b', b'y', b'e'], &[0x0f, 0xa0])] {
        let mut raw = Raw::open(server.url("workspace")).await;
        raw.send(FIN | CLOSE, payload).await;
        let (first, echoed) = raw.next().await.expect("the answer to the close");
        assert_eq!((first, &echoed[..echoed.len().min(2)]), (FIN | CLOSE, answer));
        assert_eq!(raw.next().await, None);
    }
}

#[tokio::test]
async fn what_was_sent_before_a_close_is_answered_before_it() {
    let server = Server::shipped();
    let mut raw = Raw::open(server.url("workspace")).await;
    let close = frame(FIN | CLOSE, &1000u16.to_be_bytes());
    // What stands behind a close is not for anybody.
    raw.write(&[frame(FIN | TEXT, ASK), frame(FIN | TEXT, ASK), close, frame(FIN | TEXT, ASK)].concat()).await;
    expect_pong_message(&mut raw).await;
    expect_pong_message(&mut raw).await;
    assert_eq!(raw.next().await, Some((FIN | CLOSE, 1000u16.to_be_bytes().to_vec())));
    assert_eq!(raw.next().await, None);
}

#[tokio::test]
async fn what_was_sent_before_the_protocol_is_broken_is_answered_before_that() {
    let server = Server::shipped();
    let mut raw = Raw::open(server.url("workspace")).await;
    raw.write(&[frame(FIN | TEXT, ASK), frame(FIN | 0x20 | TEXT, ASK), frame(FIN | TEXT, ASK)].concat()).await;
    expect_pong_message(&mut raw).await;
    assert_eq!(raw.close_code().await, 1002);
}

#[tokio::test]
async fn what_breaks_the_protocol_is_told_with_its_code() {
    let server = Server::shipped();
    let mut unmasked = vec![FIN | TEXT, ASK.len() as u8];
    unmasked.extend(ASK);
    let cases: [(&str, Vec<u8>, u16); 14] = [
        ("an unmasked frame", unmasked, 1002),
        ("a reserved data opcode", frame(FIN | 0x3, b""), 1002),
        ("a reserved control opcode", frame(FIN | 0xb, b""), 1002),
        ("RSV1 without an extension", frame(FIN | 0x40 | TEXT, ASK), 1002),
        ("RSV2", frame(FIN | 0x20 | TEXT, ASK), 1002),
        ("RSV3", frame(FIN | 0x10 | TEXT, ASK), 1002),
        ("a ping in pieces", frame(PING, b""), 1002),
        ("a ping of 126 bytes", frame(FIN | PING, &[0; 126]), 1002),
        ("a continuation of nothing", frame(FIN | MORE, ASK), 1002),
        ("a message inside a message", [frame(TEXT, b"{"), frame(FIN | TEXT, b"{")].concat(), 1002),
        ("a close of one byte", frame(FIN | CLOSE, &[3]), 1002),
        ("a text that is not UTF-8", frame(FIN | TEXT, b"{\"type\":\"\xff\"}"), 1007),
        ("a text cut inside a character", frame(FIN | TEXT, b"\"\xc3"), 1007),
        ("a text in pieces that is not UTF-8", [frame(TEXT, b"\"\xc3"), frame(FIN | MORE, b"\x28\"")].concat(), 1007),
    ];
    for (what, bytes, code) in cases {
        let mut raw = Raw::open(server.url("workspace")).await;
        raw.write(&bytes).await;
        assert_eq!(raw.close_code().await, code, "{what}");
    }
    let listed = || async { server.get("/api/connections").await.json()["connections"].as_array().unwrap().len() };
    until("all are gone", listed, |n| *n == 0).await;
}

#[tokio::test]
async fn a_character_may_be_cut_between_pieces() {
    let server = Server::shipped();
    let mut raw = Raw::open(server.url("workspace")).await;
    raw.send(TEXT, b"{\"type\":\"ping\",\"x\":\"\xc3").await;
    raw.send(FIN | MORE, b"\xbc\"}").await;
    expect_pong_message(&mut raw).await;
}

#[tokio::test]
async fn what_is_too_large_ends_that_connection_with_1009() {
    let server = Setup::shipped().env("WORKSPACE_MESSAGE", "64KiB").embed();
    let url = server.url("workspace");
    let mut other = server.client("workspace").await;

    // The largest that passes.
    let mut raw = Raw::open(url).await;
    let mut fits = ASK.to_vec();
    fits.resize(64 * 1024, b' ');
    raw.send(FIN | TEXT, &fits).await;
    expect_pong_message(&mut raw).await;

    // All of it is written, more than any buffer holds: the close must not be lost to a reset.
    let mut whole = Raw::open(url).await;
    whole.send(FIN | TEXT, &vec![b'x'; 16 << 20]).await;
    assert_eq!(whole.close_code().await, 1009);

    let mut pieces = Raw::open(url).await;
    pieces.send(TEXT, &[b'x'; 60 * 1024]).await;
    pieces.send(FIN | MORE, &[b'x'; 60 * 1024]).await;
    assert_eq!(pieces.close_code().await, 1009);

    // Only announced, never sent.
    let mut announced = Raw::open(url).await;
    announced.write(&[FIN | TEXT, 0xff, 0, 0, 0, 0xff, 0, 0, 0, 0, 1, 2, 3, 4]).await;
    announced.half_close().await;
    assert_eq!(announced.close_code().await, 1009);

    other.expect_nothing().await;
}

#[tokio::test]
async fn handshakes_that_are_none() {
    let server = Server::shipped();
    let url = server.url("workspace");
    let good = handshake(url);
    let cases = [
        (good.replace("Upgrade: websocket\r\n", ""), 426),
        (good.replace("Connection: Upgrade\r\n", "Connection: keep-alive\r\n"), 400),
        (good.replace("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"), 426),
        (good.replace("Sec-WebSocket-Version: 13\r\n", ""), 426),
        (good.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), 400),
        (good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), 400),
        (good.replace("GET ", "POST ").replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n"), 400),
        (good.replace("/ws ", "/nothing "), 404),
        (good.replace("/ws ", "/ws/ "), 404),
    ];
    for (bytes, status) in cases {
        let raw = Raw::send_first(url, bytes.as_bytes()).await;
        assert_eq!(raw.status(), status, "{bytes}{}", raw.head);
    }
    let raw = Raw::send_first(
        url,
        good.replace("Upgrade: websocket", "upgrade: WebSocket")
            .replace("Connection: Upgrade", "connection: keep-alive, UPGRADE")
            .as_bytes(),
    )
    .await;
    assert_eq!(raw.status(), 101);
    assert!(raw.head.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{}", raw.head);
    assert!(!raw.head.to_lowercase().contains("sec-websocket-extensions"), "{}", raw.head);
}

#[tokio::test]
async fn a_refused_version_names_the_one_that_is_served() {
    let server = Server::shipped();
    let bytes = handshake(server.url("workspace")).replace("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8");
    let raw = Raw::send_first(server.url("workspace"), bytes.as_bytes()).await;
    assert!(raw.head.to_lowercase().contains("sec-websocket-version: 13"), "{}", raw.head);
}

#[tokio::test]
async fn frames_that_come_with_the_handshake_are_not_lost() {
    let server = Server::shipped();
    let url = server.url("workspace");
    let bytes = [handshake(url).into_bytes(), frame(FIN | TEXT, ASK), frame(FIN | TEXT, ASK)].concat();
    let mut raw = Raw::send_first(url, &bytes).await;
    assert_eq!(raw.status(), 101);
    expect_pong_message(&mut raw).await;
    expect_pong_message(&mut raw).await;
}

#[tokio::test]
async fn plain_http_on_these_addresses() {
    let server = Server::shipped();
    let at = |path: &str| server.http("workspace", path);
    let get = async |url: String| request("GET", &url, &[], None).await.status;
    assert_eq!(get(at("/ws")).await, 426);
    assert_eq!(get(at("/nothing")).await, 404);
    assert_eq!(get(at("/events")).await, 405);
    let both = [("upgrade", "websocket"), ("connection", "upgrade")];
    assert_eq!(request("GET", &at("/events"), &both, None).await.status, 404);
}

#[tokio::test]
async fn a_client_that_is_gone_is_gone_at_once() {
    let server = Server::shipped();
    let publish = || async { server.publish(&json!({ "channel": "custom:x", "data": {} })).await["delivered"].clone() };
    for abrupt in [true, false] {
        let mut raw = Raw::open(server.url("workspace")).await;
        raw.send(FIN | TEXT, br#"{"type":"subscribe","channel":"custom:x"}"#).await;
        raw.next().await.unwrap();
        assert_eq!(publish().await, 1);
        if abrupt {
            drop(raw);
        } else {
            raw.half_close().await;
        }
        until("nobody is subscribed", publish, |n| *n == 0).await;
        let connections = server.get("/api/connections").await.json();
        assert_eq!(connections, json!({ "connections": [], "next": null }));
    }
}
