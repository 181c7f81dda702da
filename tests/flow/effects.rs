//! What a row does: in which order, all of it or nothing, and nothing of others in between.

use serde_json::{Value, json};

use crate::support::raw::{CLOSE, FIN, Raw, TEXT};
use crate::support::{Server, Setup};

const ROOMS: &str = r#"
channels:
  "room:{name}": { history: true }
  strict: { history: true, schema: { required: [fine] } }
protocols:
  p:
    listen: 127.0.0.1:0/
    messages:
      enter:
        set: { user: $.name, state.room: $.room }
        leave: "room:*"
        join: "room:{$.room}"
        to: { channel: "room:{$.room}", as: entered, data: { name: $conn.user } }
        reply: { ack: $conn.state.room }
      farewell: { to: "room:{$conn.state.room}", reply: { ack: bye }, close: [4001, "as {$.why}"] }
      in: { join: "room:x", reply: { ack: in } }
      in slowly: enters
      out: { leave: "room:x", reply: { ack: out } }
      say: { to: "room:x" }
      broken: { set: { user: mallory, state.room: cellar }, leave: "room:*", join: "room:cellar", to: ["room:cellar", strict], reply: { ack: never } }
      nowhere: { set: { state.room: cellar }, to: ["room:cellar", "room:{$.missing}"], reply: { ack: never } }
      script: { call: half, reply: { ack: never } }
      late: { call: does, reply: fails }
      me: { reply: { user: $conn.user, room: $conn.state.room } }
      ping: { reply: { type: pong } }
    deliver: { event: $event.type, data: $event.data, number: $event.offset }
    error: { error: $error.message }
  flood:
    listen: 127.0.0.1:0/flood
    every: { every: 1ms, to: "room:x", as: said, data: {} }
"#;

const SCRIPT: &str = r#"
fn half(conn, msg) {
    conn.state.room = "cellar";
    conn.user = "mallory";
    conn.join("room:cellar");
    conn.reply(#{ ack: "never" });
    publish("room:cellar", #{ type: "x", data: #{} });
    throw "no";
}
fn enters(conn, msg) {
    conn.join("room:x");
    for n in 0..50 { conn.reply(#{ ack: n }); }
}
fn does(conn, msg) { publish("room:cellar", #{ type: "x", data: #{} }); }
fn fails(conn, msg) { throw "no"; }
"#;

fn server() -> Server {
    Setup::own(ROOMS).plugin("p", SCRIPT).embed()
}

async fn delivered(server: &Server, room: &str) -> Value {
    server.publish(&json!({ "channel": room, "data": {} })).await["delivered"].clone()
}

#[tokio::test]
async fn effects_come_in_the_written_order() {
    let server = server();
    let mut client = server.client("p").await;
    client.send(&json!({ "type": "enter", "name": "ann", "room": "a" })).await;
    assert_eq!(client.next().await, json!({ "event": "entered", "data": { "name": "ann" }, "number": 1 }));
    assert_eq!(client.next().await, json!({ "ack": "a" }));
    // Leaving comes before joining: one room at a time, and the same room again is no second subscription.
    client.send(&json!({ "type": "enter", "name": "ann", "room": "b" })).await;
    assert_eq!(client.next().await["number"], 1);
    assert_eq!(client.next().await, json!({ "ack": "b" }));
    assert_eq!(delivered(&server, "room:a").await, 0);
    client.send(&json!({ "type": "farewell", "why": "agreed", "x": 1 })).await;
    assert_eq!(client.next().await, json!({ "event": "farewell", "data": { "why": "agreed", "x": 1 }, "number": 2 }));
    assert_eq!(client.next().await, json!({ "ack": "bye" }));
    assert_eq!(client.closed().await, (4001, "as agreed".into()));
    assert_eq!(delivered(&server, "room:b").await, 0);
}

#[tokio::test]
async fn what_comes_after_the_close_is_not_handled() {
    let server = server();
    let mut raw = Raw::open(server.url("p")).await;
    raw.send(FIN | TEXT, br#"{"type":"enter","name":"ann","room":"x"}"#).await;
    raw.next().await.unwrap();
    raw.next().await.unwrap();
    raw.send(FIN | TEXT, br#"{"type":"farewell","why":"x"}"#).await;
    raw.send(FIN | TEXT, br#"{"type":"say"}"#).await;
    raw.next().await.unwrap();
    raw.next().await.unwrap();
    assert_eq!(raw.next().await.unwrap().0, FIN | CLOSE);
    raw.send(FIN | CLOSE, &[0x0f, 0xa1]).await;
    assert_eq!(raw.next().await, None);
    let history = server.get("/api/history?channel=room:x&type=say").await.json();
    assert_eq!(history["events"], json!([]));
}

#[tokio::test]
async fn a_row_that_fails_has_done_nothing() {
    let server = server();
    let mut client = server.client("p").await;
    client.send(&json!({ "type": "enter", "name": "ann", "room": "a" })).await;
    client.next().await;
    client.next().await;
    for kind in ["broken", "nowhere", "script", "late"] {
        let answer = client.ask(&json!({ "type": kind })).await;
        assert!(answer["error"].is_string(), "{kind} {answer}");
        assert_eq!(client.ask(&json!({ "type": "me" })).await, json!({ "user": "ann", "room": "a" }), "{kind}");
        assert_eq!(delivered(&server, "room:a").await, 1, "{kind}");
        assert_eq!(client.next().await["event"], "event");
        client.expect_nothing().await;
    }
    let history = server.get("/api/history?channel=room:cellar").await.json();
    assert_eq!(history["events"], json!([]));
    assert_eq!(delivered(&server, "room:cellar").await, 0);
}

#[tokio::test]
async fn nothing_slips_between_a_join_and_its_acknowledgement() {
    let server = server();
    // As fast as the server itself can: each of these publishes every millisecond.
    let _floods = server.clients::<30>("flood").await;
    let mut client = server.client("p").await;
    let (mut last, mut between) = (0, 0);
    for _ in 0..500 {
        client.send(&json!({ "type": "in slowly" })).await;
        client.send(&json!({ "type": "out" })).await;
        for n in 0..50 {
            assert_eq!(client.next().await, json!({ "ack": n }));
        }
        let mut first = true;
        loop {
            let message = client.next().await;
            if message["ack"] == "out" {
                break;
            }
            let number = message["number"].as_u64().unwrap();
            assert!(if first { number > last } else { number == last + 1 }, "{last} {number}");
            (last, first) = (number, false);
            between += 1;
        }
    }
    assert!(between > 0, "nothing was published meanwhile");
    client.expect_nothing().await;
}

#[tokio::test]
async fn all_subscribers_see_the_same_order() {
    let server = server();
    let mut readers: [crate::support::Client; 3] = server.clients("p").await;
    for reader in &mut readers {
        reader.ask(&json!({ "type": "in" })).await;
    }
    let writers: [crate::support::Client; 4] = server.clients("p").await;
    let tasks = writers.map(|mut writer| {
        tokio::spawn(async move {
            for n in 0..50 {
                writer.send(&json!({ "type": "say", "n": n })).await;
            }
            writer
        })
    });
    let mut orders = Vec::new();
    for reader in &mut readers {
        let mut order = Vec::new();
        for number in 1..=200 {
            let event = reader.next().await;
            assert_eq!(event["number"], number);
            order.push(event["data"].clone());
        }
        orders.push(order);
    }
    assert!(orders.windows(2).all(|pair| pair[0] == pair[1]));
    for task in tasks {
        task.await.unwrap().expect_nothing().await;
    }
}
