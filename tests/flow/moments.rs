//! Rows without a message: when a connection opens, ends, is silent, and now and then. And sources that a timer drives.

use serde_json::json;

use crate::support::{Client, SOME_TIME, Setup};

const MOMENTS: &str = r#"
channels: { lobby: { history: true }, beat: {} }
protocols:
  visitors:
    listen: 127.0.0.1:0/
    open:
      - { when: "$conn.query.banned != ()", close: [4003, banned] }
      - { set: { state.name: $query.name }, to: { channel: lobby, as: came, data: { name: $query.name } }, join: lobby, send: { hello: $query.name } }
    close: { to: lobby, as: went, data: { name: $conn.state.name } }
    messages: { ping: { reply: { type: pong } } }
    deliver: { event: $event.type, name: $event.data.name }
  quiet:
    listen: 127.0.0.1:0/quiet
    idle: { after: 300ms, send: { still: there }, grace: 600ms }
    messages: { ping: { reply: { type: pong } } }
  ended:
    listen: 127.0.0.1:0/ended
    idle: { after: 200ms, close: [4008, too quiet] }
  clock:
    listen: 127.0.0.1:0/clock
    every:
      - { every: 100ms, send: { tick: $now, for: $query.me } }
      - { every: 150ms, to: beat, as: beat, data: { me: $query.me } }
  listener:
    listen: 127.0.0.1:0/listener
    open: { join: beat }
    deliver: { event: $event.type, data: $event.data }
sources:
  metronome: { every: 100ms, emit: { type: tock, data: { at: $now } }, to: beat }
"#;

#[tokio::test]
async fn coming_and_going_are_rows_too() {
    let server = Setup::own(MOMENTS).embed();
    let come = async |name: &str| Client::connect(&format!("{}?name={name}", server.url("visitors"))).await;
    let mut ann = come("ann").await;
    assert_eq!(ann.next().await, json!({ "event": "came", "name": "ann" }));
    assert_eq!(ann.next().await, json!({ "hello": "ann" }));
    let bob = come("bob").await;
    assert_eq!(ann.next().await, json!({ "event": "came", "name": "bob" }));
    drop(bob);
    assert_eq!(ann.next().await, json!({ "event": "went", "name": "bob" }));
    let mut banned = Client::connect(&format!("{}?banned=1", server.url("visitors"))).await;
    assert_eq!(banned.closed().await, (4003, "banned".into()));
}

#[tokio::test]
async fn a_silent_client_is_asked_and_then_closed() {
    let server = Setup::own(MOMENTS).embed();
    let mut client = server.client("quiet").await;
    for _ in 0..2 {
        assert_eq!(client.next().await, json!({ "still": "there" }));
        assert_eq!(client.ask(&json!({ "type": "ping" })).await["type"], "pong");
    }
    assert_eq!(client.next().await, json!({ "still": "there" }));
    assert_eq!(client.closed().await, (1000, "idle".into()));
    assert_eq!(server.client("ended").await.closed().await, (4008, "too quiet".into()));
}

#[tokio::test]
async fn timers_of_connections_and_of_sources() {
    let server = Setup::own(MOMENTS).embed();
    let mut clock = Client::connect(&format!("{}?me=ann", server.url("clock"))).await;
    let mut listener = server.client("listener").await;
    for _ in 0..3 {
        assert_eq!(clock.next().await, json!({ "tick": SOME_TIME, "for": "ann" }));
    }
    let (mut beats, mut tocks) = (0, 0);
    while beats < 2 || tocks < 2 {
        let event = listener.next().await;
        match event["event"].as_str().unwrap() {
            "beat" => assert_eq!(event, json!({ "event": "beat", "data": { "me": "ann" } })),
            _ => assert_eq!(event, json!({ "event": "tock", "data": { "at": SOME_TIME } })),
        }
        beats += u32::from(event["event"] == "beat");
        tocks += u32::from(event["event"] == "tock");
    }
}
