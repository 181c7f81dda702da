//! TLS at every listener, and addresses with too many sockets.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use crate::support::http::split;
use crate::support::raw::handshake;
use crate::support::{Authority, Client, Server, Setup, request, soon, until};

/// A protocol, a source and the REST interface, all with the same certificate.
const ALL: &str = r#"version: 1
store: "sqlite::memory:"
api: { listen: "localhost:0", tls: &pair { cert: tls/tls.crt, key: tls/tls.key } }
channels:
  "room:{name}": { history: true }
protocols:
  chat:
    listen: localhost:0/chat
    tls: *pair
    limits: { message: 4MiB, outbox: 16MiB }
    messages:
      join: { join: "room:{$.room}", reply: { type: joined } }
      say: { to: "room:{$.room}", data: { text: $.text } }
      echo: { reply: { type: echo, text: $.text } }
      ping: { reply: { type: pong } }
    http: { GET /state: { reply: { fine: true } } }
sources:
  door: { http: POST /door, on: "localhost:0", tls: *pair, to: "room:{$.room}" }
"#;

fn start(authority: &Authority) -> Server {
    authority.in_folder(Setup::own("").file("routes.yaml", ALL)).start()
}

/// A text without repetitions that compression or luck could hide behind.
fn text(bytes: usize) -> String {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + (state >> 60) as u8)
    };
    (0..bytes).map(|_| next()).collect()
}

#[tokio::test]
async fn every_door_speaks_tls() {
    let authority = Authority::new();
    let server = start(&authority);
    let schemes = |name: &str| server.url(name).split(':').next().unwrap().to_owned();
    assert_eq!(["chat", "door", "api"].map(schemes), ["wss", "https", "https"]);
    let mut reader = authority.client(server.url("chat")).await;
    assert_eq!(reader.ask(&json!({ "type": "join", "room": "a" })).await["type"], "joined");
    let mut writer = authority.client(server.url("chat")).await;
    writer.send(&json!({ "type": "say", "room": "a", "text": "hello" })).await;
    assert_eq!(reader.next().await["data"], json!({ "text": "hello" }));
    let event = json!({ "type": "notice", "room": "a", "data": { "text": "from the source" } });
    assert_eq!(authority.request("POST", server.url("door"), Some(&event)).await.status, 202);
    assert_eq!(reader.next().await["data"], json!({ "text": "from the source" }));
    let api = server.url("api");
    let event = json!({ "type": "notice", "channel": "room:a", "data": { "text": "from the API" } });
    assert_eq!(authority.request("POST", &format!("{api}/api/publish"), Some(&event)).await.status, 202);
    assert_eq!(reader.next().await["data"], json!({ "text": "from the API" }));
    let state = server.url("chat").replace("wss://", "https://").replace("/chat", "/state");
    assert_eq!(authority.request("GET", &state, None).await.json(), json!({ "fine": true }));
    reader.close().await;
    assert_eq!(writer.ask(&json!({ "type": "ping" })).await["type"], "pong");
    assert_eq!(server.stop().code, Some(0));
    assert_eq!(writer.closed().await.0, 1001, "a client over TLS is told of a stop");
}

#[tokio::test]
async fn the_example_of_the_readme_runs() {
    let readme = std::fs::read_to_string("README.md").unwrap();
    let example = readme.split_once("<!-- test: none: run by tests/flow/tls.rs -->\n```yaml\n").unwrap().1.split_once("```").unwrap().0;
    let authority = Authority::new();
    // The ports of the example may be taken here.
    let yaml = example.replace(":4000", ":0").replace(":3000", ":0");
    let setup = Setup::own("").file("routes.yaml", &yaml).file("tls/tls.crt", &authority.cert).file("tls/tls.key", &authority.key);
    let server = setup.env("API_CERT", "").env("API_KEY", "").start();
    assert!(server.url("api").starts_with("http://"), "empty names are no TLS");
    let mut client = authority.client(server.url("chat")).await;
    assert_eq!(client.ask(&json!({ "type": "ping" })).await["type"], "pong");
}

#[tokio::test]
async fn http1_is_agreed_on_and_nothing_else() {
    let authority = Authority::new();
    let server = start(&authority);
    let stream = authority.connect(server.url("api")).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[tokio::test]
async fn large_messages_arrive_as_they_were_sent() {
    let authority = Authority::new();
    let server = start(&authority);
    let mut client = authority.client(server.url("chat")).await;
    for bytes in [1, 16_383, 16_384, 65_536, 3 << 20] {
        let text = text(bytes);
        let answer = client.ask(&json!({ "type": "echo", "text": text })).await;
        assert!(answer["text"] == text, "{bytes} bytes");
    }
}

#[tokio::test]
async fn a_client_that_stalls_gets_every_byte_when_it_reads_again() {
    let authority = Authority::new();
    let server = start(&authority);
    let mut slow = authority.client_narrow(server.url("chat")).await;
    assert_eq!(slow.ask(&json!({ "type": "join", "room": "a" })).await["type"], "joined");
    let mut writer = authority.client(server.url("chat")).await;
    let text = text(1 << 20);
    for n in 0..8 {
        writer.send(&json!({ "type": "say", "room": "a", "text": format!("{n}{text}") })).await;
    }
    // Answered once all of it is published; meanwhile the other one has not read a byte.
    assert_eq!(writer.ask(&json!({ "type": "ping" })).await["type"], "pong");
    for n in 0..8 {
        let got = slow.next_exact().await;
        assert!(got["data"]["text"] == format!("{n}{text}"), "message {n}");
    }
    assert_eq!(slow.ask(&json!({ "type": "ping" })).await["type"], "pong");
}

#[tokio::test]
async fn a_message_in_the_same_piece_as_the_upgrade_is_not_lost() {
    let authority = Authority::new();
    let server = start(&authority);
    let mut stream = authority.connect(server.url("chat")).await.unwrap();
    let mut bytes = handshake(server.url("chat")).into_bytes();
    bytes.extend(crate::support::raw::frame(0x81, br#"{"type":"ping"}"#));
    stream.write_all(&bytes).await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(br#"{"type":"pong"}"#) {
        got.push(soon("a byte", stream.read_u8()).await.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&got))));
    }
}

#[tokio::test]
async fn plain_http_and_foreign_certificates_get_nothing() {
    let authority = Authority::new();
    let server = start(&authority);
    let plain = request("GET", &server.http("api", "/healthz"), &[], None).await;
    assert_eq!((plain.status, &*plain.body), (400, "TLS is served here: connect with https:// or wss://\n"));
    assert!(Authority::new().connect(server.url("api")).await.is_err(), "a client trusts another's certificate");
    let metrics = authority.request("GET", &format!("{}/metrics", server.url("api")), None).await.body;
    assert!(metrics.contains("\ntramline_tls_handshakes_failed_total 2\n"), "{metrics}");
}

#[tokio::test]
async fn an_address_with_too_many_sockets_is_refused_and_others_are_not() {
    let yaml = "sockets_per_address: 3\nprotocols:\n  chat: { listen: \"127.0.0.1:0/\", messages: { ping: { reply: { type: pong } } } }\n";
    let server = Setup::own(yaml).start();
    let url = server.url("chat").to_owned();
    let ping = json!({ "type": "ping" });
    let mut held: Vec<Client> = Vec::new();
    for _ in 0..3 {
        held.push(server.client("chat").await);
    }
    // It may be reset before this side knows that it is connected.
    let refused = async { TcpStream::connect(split(&url).0).await?.read_u8().await };
    assert!(soon("the end", refused).await.is_err(), "a fourth socket is served");
    let elsewhere = TcpSocket::new_v4().unwrap();
    elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = soon("connect", elsewhere.connect(split(&url).0.parse().unwrap())).await.unwrap();
    assert_eq!(Client::over(stream, &url).await.ask(&ping).await["type"], "pong", "another address is not let in");
    for client in &mut held {
        client.send_frame(Message::text(ping.to_string())).await;
        assert_eq!(client.next().await["type"], "pong", "those who were there are not disturbed");
    }
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("\ntramline_sockets_refused_total 1\n"), "{metrics}");
    held.pop().unwrap().close().await;
    let again = until("a socket is free again", || Client::connect_or_end(&url), Option::is_some).await;
    let answer: Option<Value> = again.unwrap().ask_or_end(&ping).await;
    assert_eq!(answer.unwrap()["type"], "pong");
}
