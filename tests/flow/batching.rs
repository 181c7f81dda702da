//! Several events as one message: what is batched, in which order it comes, and that nothing of it is lost. Most of these
//! protocols wait so long for more events that nothing is ever due by time: what is written is written for another reason.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, SOME_TIME, Server, Setup};

const BATCHES: &str = r#"
channels: { room: {}, other: {}, kept: { history: true }, state: { on_slow: { latest_by: $event.data.id } } }
protocols:
  slowly:
    listen: 127.0.0.1:0/
    client: $query.me
    messages: &messages
      join: { join: { channel: $.channel, key: $.key }, reply: { joined: $.channel } }
      leave: { leave: $.channel, reply: { left: $.channel } }
      say: { to: room, except: sender }
      bye: { close: [4001, bye] }
      ping: { reply: { type: pong } }
    deliver: { n: $event.data.n, text: $event.data.text }
    batch: { every: 60s, events: 4, as: { all: $messages } }
  alone:
    listen: 127.0.0.1:0/alone
    client: $query.me
    messages: *messages
    deliver:
      - { when: "$event.data.n != 13 || $conn.id == \"brave\"", send: { n: $event.data.n, key: $sub.key } }
    batch: { every: 60s, bytes: 1200, as: { all: $messages } }
  soon:
    listen: 127.0.0.1:0/soon
    messages: *messages
    deliver: { n: $event.data.n }
    batch: { every: 50ms, as: $messages }
  never:
    listen: 127.0.0.1:0/never
    messages: *messages
    deliver: { n: $event.data.n }
    batch: { every: "${NO_BATCH:-}", as: $messages }
  asked:
    listen: 127.0.0.1:0/asked
    client: $query.me
    messages:
      <<: *messages
      turn: { set: { state.batch: $.batch }, reply: { turned: $conn.state.batch } }
    deliver: { n: $event.data.n }
    batch: { when: $conn.state.batch ?? wants($query.batch), every: 60s, events: 3, as: { all: $messages } }
"#;

/// The plugin of the protocol `asked`: a word that it does not know is an error.
const ASKED: &str = r#"
fn wants(word) {
    if word == "maybe" { throw "make up your mind"; }
    word == "yes"
}
"#;

fn setup() -> Setup {
    Setup::own(BATCHES).plugin("asked", ASKED)
}

async fn joined(server: &Server, protocol: &str, me: &str, channels: &[&str]) -> Client {
    let mut client = Client::connect(&format!("{}?me={me}", server.url(protocol))).await;
    for channel in channels {
        client.ask(&json!({ "type": "join", "channel": channel })).await;
    }
    client
}

async fn publish(server: &Server, channel: &str, numbers: impl IntoIterator<Item = u64>) {
    for n in numbers {
        server.publish(&json!({ "channel": channel, "data": { "n": n } })).await;
    }
}

fn all(numbers: impl IntoIterator<Item = u64>) -> Value {
    json!({ "all": numbers.into_iter().map(|n| json!({ "n": n })).collect::<Vec<_>>() })
}

#[tokio::test]
async fn enough_events_are_one_message_and_what_is_alone_stays_as_it_is() {
    let server = setup().start();
    let mut client = joined(&server, "slowly", "a", &["room", "other"]).await;
    let mut plain = joined(&server, "never", "b", &["room"]).await;
    publish(&server, "room", 0..3).await;
    publish(&server, "other", [100]).await;
    client.expect_nothing().await;
    publish(&server, "room", 3..9).await;
    assert_eq!(client.next_exact().await, all(0..4));
    assert_eq!(client.next_exact().await, all(4..8));
    client.expect_nothing().await;
    assert_eq!(client.ask(&json!({ "type": "leave", "channel": "room" })).await, json!({ "n": 8 }));
    assert_eq!(client.next_exact().await, json!({ "left": "room" }));
    for n in 0..9 {
        assert_eq!(plain.next_exact().await, json!({ "n": n }));
    }
    publish(&server, "room", 9..20).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn each_gets_what_was_shown_while_it_was_there_and_is_for_it() {
    let server = setup().start();
    let mut early = joined(&server, "slowly", "early", &["room"]).await;
    publish(&server, "room", [1]).await;
    let mut late = joined(&server, "slowly", "late", &["room"]).await;
    late.send(&json!({ "type": "say", "n": 2 })).await;
    late.ask(&json!({ "type": "ping" })).await;
    publish(&server, "room", [3]).await;
    early.send(&json!({ "type": "say", "n": 4 })).await;
    assert_eq!(early.next_exact().await, all([1, 2, 3]));
    assert_eq!(late.next_exact().await, all([3, 4]));
    for client in [&mut early, &mut late] {
        client.expect_nothing().await;
    }
}

#[tokio::test]
async fn what_each_is_written_by_itself_is_gathered_too() {
    let server = setup().start();
    let mut brave = joined(&server, "alone", "brave", &["room"]).await;
    let mut other = joined(&server, "alone", "other", &["room"]).await;
    other.ask(&json!({ "type": "join", "channel": "room", "key": "k" })).await;
    publish(&server, "room", [12, 13, 14, 15, 16, 17]).await;
    let with = |key: &str, numbers: &[u64]| json!({ "all": numbers.iter().map(|n| json!({ "n": n, "key": key })).collect::<Vec<_>>() });
    assert_eq!(brave.next_exact().await, with("", &[12, 13, 14, 15, 16, 17]));
    let mut both = [other.next_exact().await, other.next_exact().await];
    both.sort_by_key(|message| message.to_string());
    assert_eq!(both, [with("", &[12, 14, 15, 16, 17]), with("k", &[12, 14, 15, 16, 17])]);
}

#[tokio::test]
async fn nothing_is_lost_at_the_end_of_a_connection() {
    let server = setup().start();
    let mut asks = joined(&server, "slowly", "asks", &["room", "kept"]).await;
    let mut ended = joined(&server, "alone", "ended", &["room"]).await;
    let mut stays = joined(&server, "slowly", "stays", &["kept", "room"]).await;
    publish(&server, "room", [1, 2]).await;
    publish(&server, "kept", [3, 4]).await;
    asks.send(&json!({ "type": "bye" })).await;
    assert_eq!([asks.next_exact().await, asks.next_exact().await], [all([1, 2]), all([3, 4])]);
    assert_eq!(asks.closed().await, (4001, "bye".into()));
    let answer = crate::support::request("DELETE", &server.http("api", "/api/connections/ended"), &[], None).await;
    assert_eq!(answer.status, 204);
    assert_eq!(ended.next_exact().await, json!({ "all": [{ "n": 1, "key": "" }, { "n": 2, "key": "" }] }));
    assert_eq!(ended.closed().await.0, 1008);
    publish(&server, "kept", [5]).await;
    server.signal("TERM");
    assert_eq!([stays.next_exact().await, stays.next_exact().await], [all([3, 4, 5]), all([1, 2])]);
    assert_eq!(stays.closed().await.0, 1001);
    assert_eq!(server.wait().code, Some(0));
}

#[tokio::test]
async fn what_is_due_is_written_in_order() {
    let server = setup().start();
    let mut clients = [joined(&server, "soon", "a", &["room"]).await, joined(&server, "soon", "b", &["room", "kept"]).await];
    publish(&server, "room", 0..500).await;
    for client in &mut clients {
        let (mut seen, mut messages) = (Vec::new(), 0);
        while seen.len() < 500 {
            let message = client.next_exact().await;
            let several = message.as_array().cloned().unwrap_or_else(|| vec![message]);
            seen.extend(several.iter().map(|one| one["n"].as_u64().unwrap()));
            messages += 1;
        }
        assert_eq!(seen, (0..500).collect::<Vec<_>>());
        assert!(messages < 500, "nothing was batched");
    }
    // One alone comes by itself, and not at once.
    let begun = std::time::Instant::now();
    publish(&server, "kept", [7]).await;
    assert_eq!(clients[1].next_exact().await, json!({ "n": 7 }));
    assert!(begun.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn one_who_does_not_keep_up_gets_what_its_channel_says_one_by_one() {
    let server = setup().start();
    let mut slow = Client::connect_narrow(&format!("{}?me=slow", server.url("slowly"))).await;
    for channel in ["state", "other"] {
        slow.ask(&json!({ "type": "join", "channel": channel })).await;
    }
    let report = async || server.get("/api/connections/slow").await.json();
    // An event that is enough by itself is a message by itself. Some that wait mean that the socket takes nothing more.
    let text = "x".repeat(64 * 1024);
    while report().await["queue"]["frames"].as_u64() < Some(4) {
        server.publish(&json!({ "channel": "other", "data": { "n": "filler", "text": text } })).await;
    }
    for (n, id) in ["a", "b", "a", "a"].into_iter().enumerate() {
        server.publish(&json!({ "channel": "state", "data": { "n": n, "id": id } })).await;
    }
    assert_eq!(report().await["slow"]["superseded"], 2);
    let mut told = slow.ask(&json!({ "type": "ping" })).await;
    while told["n"] == "filler" {
        told = slow.next_exact().await;
    }
    assert_eq!([told, slow.next_exact().await], [json!({ "n": 1 }), json!({ "n": 3 })]);
    assert_eq!(slow.next_exact().await["type"], "pong");
}

#[tokio::test]
async fn each_connection_of_a_protocol_says_for_itself_whether_it_wants_batches() {
    let server = setup().start();
    let who = async |me, batch| {
        let mut client = Client::connect(&format!("{}?me={me}&batch={batch}", server.url("asked"))).await;
        client.ask(&json!({ "type": "join", "channel": "room" })).await;
        client
    };
    let [mut yes, mut no, mut maybe] = [who("a", "yes").await, who("b", "no").await, who("c", "maybe").await];
    let told = server.logged("a connection gets its events one by one: a script failed");
    assert!(told["client"] == "c" && told["why"].as_str().unwrap().ends_with("make up your mind"), "{told}");
    publish(&server, "room", 0..2).await;
    for client in [&mut no, &mut maybe] {
        assert_eq!([client.next_exact().await, client.next_exact().await], [json!({ "n": 0 }), json!({ "n": 1 })]);
    }
    yes.expect_nothing().await;
    // Each takes the place of the other; what waits comes before what comes alone.
    assert_eq!(no.ask(&json!({ "type": "turn", "batch": true })).await, json!({ "turned": true }));
    yes.send(&json!({ "type": "turn", "batch": false })).await;
    let mut both = [yes.next_exact().await, yes.next_exact().await];
    both.sort_by_key(|message| message.to_string());
    assert_eq!(both, [all([0, 1]), json!({ "turned": false })]);
    publish(&server, "room", 2..5).await;
    for n in 2..5 {
        assert_eq!(yes.next_exact().await, json!({ "n": n }));
    }
    // Three had been batched with the first of these, which it already had.
    assert_eq!(no.next_exact().await, json!({ "n": 2 }));
    no.expect_nothing().await;
    // Taken back: what the address says counts again.
    no.send(&json!({ "type": "turn" })).await;
    let mut both = [no.next_exact().await, no.next_exact().await];
    both.sort_by_key(|message| message.to_string());
    assert_eq!(both, [all([3, 4]), json!({})]);
    publish(&server, "room", [5]).await;
    assert_eq!(no.next_exact().await, json!({ "n": 5 }));
}

#[tokio::test]
async fn the_shipped_protocols_have_batches_where_they_are_asked_for() {
    let server = Setup::shipped().env("CANVAS_BATCH", "60s").env("AGENT_BATCH", "60s").start();
    let open = async |more| {
        let mut client = Client::connect(&format!("{}?userId=u&sessionId=s{more}", server.url("canvas"))).await;
        assert_eq!(client.next().await["type"], "connection");
        client
    };
    let publish = async |session: &str, numbers: std::ops::Range<u64>| {
        for n in numbers {
            let progress = json!({ "progress": { "chunksReceived": n, "contentLength": n } });
            server.publish(&json!({ "session": session, "type": "ai_progress", "data": progress })).await;
        }
    };
    let one = |n: u64| json!({ "type": "ai_progress", "progress": { "chunksReceived": n, "contentLength": n }, "sessionId": "s", "timestamp": SOME_TIME });
    let several = |messages| json!({ "type": "batch_update", "messages": messages, "timestamp": SOME_TIME });
    let (mut asks, mut plain) = (open("&batch=true").await, open("").await);
    publish("s", 0..2).await;
    assert_eq!([plain.next().await, plain.next().await], [one(0), one(1)]);
    assert_eq!(asks.ask(&json!({ "type": "unsubscribe" })).await, several([one(0), one(1)]));
    assert_eq!(asks.next().await["type"], "unsubscribed");
    // A session that is subscribed to may have it otherwise than the address.
    assert_eq!(asks.ask(&json!({ "type": "subscribe", "sessionId": "s", "batch": false })).await["type"], "subscribed");
    assert_eq!(plain.ask(&json!({ "type": "subscribe", "sessionId": "s", "batch": true })).await["type"], "subscribed");
    assert_eq!(plain.ask(&json!({ "type": "subscribe", "sessionId": "s", "batch": "yes" })).await["type"], "error");
    publish("s", 2..4).await;
    assert_eq!([asks.next().await, asks.next().await], [one(2), one(3)]);
    assert_eq!(plain.ask(&json!({ "type": "unsubscribe" })).await, several([one(2), one(3)]));

    let mut agent = server.client("agent").await;
    for n in 0..2 {
        server.emit("bus", "/events", &json!({ "type": "activeIDEChanged", "data": { "port": n } })).await;
    }
    agent.send(&json!({ "type": "unsubscribe", "data": { "topic": "ide" } })).await;
    let one = |n: u64| json!({ "type": "ideStatusChanged", "data": { "status": "active", "port": n } });
    assert_eq!(agent.next().await, json!({ "type": "batchUpdate", "data": { "messages": [one(0), one(1)] } }));
}
