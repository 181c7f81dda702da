//! A client that reads nothing, beside others that do, and what its channels say should become of its messages.

use serde_json::{Value, json};

use crate::support::raw::{FIN, Raw, TEXT};
use crate::support::{Client, Server, Setup, until};

const OUTBOX: u64 = 256 * 1024;

#[tokio::test]
async fn a_client_that_reads_nothing_disturbs_nobody_and_ends_as_its_protocol_says() {
    let server = Setup::shipped().env("WORKSPACE_OUTBOX", &OUTBOX.to_string()).start();
    let subscribe = json!({ "type": "subscribe", "channel": "custom:x" });
    let mut stalled = Raw::open(server.url("workspace")).await;
    stalled.send(FIN | TEXT, subscribe.to_string().as_bytes()).await;
    stalled.next().await.unwrap();
    let connections =
        || async { server.get("/api/connections?protocol=workspace").await.json()["connections"].as_array().unwrap().clone() };
    let stalled_id = connections().await[0]["id"].clone();

    let mut healthy: [Client; 20] = server.clients("workspace").await;
    for client in &mut healthy {
        client.ask(&subscribe).await;
    }
    // More than the sockets of a stalled client and its outbox can hold together.
    let text = "x".repeat(64 * 1024);
    let (mut published, mut peak) = (0, 0);
    while let Some(found) = connections().await.iter().find(|c| c["id"] == stalled_id).filter(|c| c["readyState"] == 1) {
        peak = peak.max(found["queue"]["peak"].as_u64().unwrap());
        server.publish(&json!({ "channel": "custom:x", "data": { "n": published, "text": text } })).await;
        for client in &mut healthy {
            assert_eq!(client.next().await["data"]["n"], published);
        }
        published += 1;
        assert!(published < 2000, "it is never closed");
    }
    assert!((1..=OUTBOX).contains(&peak), "{peak}");
    assert_eq!(stalled.close_code().await, 1013);
    until("it is gone", connections, |all| all.len() == 20).await;
    for client in &mut healthy {
        client.expect_nothing().await;
    }
}

const SLOW: &str = r#"
channels:
  filler: { on_slow: drop_newest }
  plain: {}
  oldest: { on_slow: drop_oldest }
  newest: { on_slow: drop_newest }
  "state:{id}": { on_slow: { latest_by: $event.data.id } }
  tokens: { on_slow: { concat: delta } }
  kept: { history: { tail: 10 }, on_slow: drop_oldest }
protocols:
  p:
    listen: 127.0.0.1:0/
    client: $query.me
    limits: { outbox: 100KiB, subscriptions: 20 }
    messages:
      join: { join: { channel: $.channel, recover: { since: $.since } }, reply: { joined: $.channel } }
      ping: { reply: { type: pong } }
      say: { to: { channel: plain, priority: low, metadata: { priority: high, by: row } }, data: { n: $.n }, priority: high }
    deliver: { to: $conn.id, type: $event.type, data: $event.data, offset: $event.offset, by: $event.metadata.by }
  shared:
    listen: 127.0.0.1:0/shared
    messages:
      join: { join: $.channel, reply: { joined: $.channel } }
      ping: { reply: { type: pong } }
    deliver: { type: $event.type, data: $event.data }
"#;

/// A client whose socket takes nothing any more, and what fills its socket is not told.
struct Stalled {
    client: Client,
    id: &'static str,
}

impl Stalled {
    async fn connect(server: &Server, channels: &[Value]) -> Self {
        let mut client = Client::connect_narrow(&format!("{}?me=slow", server.url("p"))).await;
        for channel in channels.iter().chain([&json!("filler")]) {
            let join = channel.as_str().map_or_else(|| channel.clone(), |name| json!({ "channel": name }));
            let mut join = join.as_object().unwrap().clone();
            join.insert("type".into(), "join".into());
            client.ask(&join.into()).await;
        }
        let stalled = Self { client, id: "slow" };
        let text = "x".repeat(16 * 1024);
        // More than its sockets hold: what comes from now on waits.
        while stalled.report(server).await["slow"]["droppedNewest"] == 0 {
            server.publish(&json!({ "channel": "filler", "data": text })).await;
        }
        stalled
    }

    async fn report(&self, server: &Server) -> Value {
        server.get(&format!("/api/connections/{}", self.id)).await.json()
    }

    /// Reads everything but what filled the socket, up to the answer to what is asked now.
    async fn told(&mut self) -> Vec<Value> {
        self.client.send(&json!({ "type": "ping" })).await;
        let mut told = Vec::new();
        loop {
            let next = self.client.next_exact().await;
            if next["type"] == "pong" {
                return told;
            }
            if !next["data"].as_str().is_some_and(|text| text.starts_with("xxx")) {
                told.push(next);
            }
        }
    }
}

fn numbers(told: &[Value]) -> Vec<u64> {
    told.iter().map(|message| message["data"]["n"].as_u64().unwrap()).collect()
}

async fn publish(server: &Server, channel: &str, data: Value) {
    server.publish(&json!({ "channel": channel, "type": "e", "data": data })).await;
}

#[tokio::test]
async fn what_is_dropped_is_what_its_channel_says_and_is_counted() {
    let server = Setup::own(SLOW).start();
    let mut healthy = server.client("shared").await;
    for channel in ["oldest", "newest", "plain"] {
        healthy.ask(&json!({ "type": "join", "channel": channel })).await;
    }
    let mut slow = Stalled::connect(&server, &[json!("oldest"), json!("newest"), json!("plain")]).await;
    // What fills the socket waits in its outbox, too: it is of a channel that gives way to those that must not lose anything.
    let text = "y".repeat(1000);
    for n in 0..40 {
        publish(&server, "plain", json!({ "n": n, "channel": "plain", "text": text })).await;
    }
    for n in 0..200 {
        for channel in ["oldest", "newest"] {
            publish(&server, channel, json!({ "n": n, "channel": channel, "text": text })).await;
        }
    }
    let report = slow.report(&server).await;
    assert!(report["queue"]["peak"].as_u64() <= report["queue"]["max"].as_u64());
    let told = slow.told().await;
    // The answer that ends what was told wanted room, too.
    let report = slow.report(&server).await;
    let of = |channel: &str| numbers(&told.iter().filter(|m| m["data"]["channel"] == channel).cloned().collect::<Vec<_>>());
    assert_eq!(of("plain"), (0..40).collect::<Vec<_>>());
    let (oldest, newest) = (of("oldest"), of("newest"));
    assert_eq!(oldest, (200 - oldest.len() as u64..200).collect::<Vec<_>>(), "the newest are there");
    assert_eq!(newest, (0..newest.len() as u64).collect::<Vec<_>>(), "the oldest are there");
    assert!(!oldest.is_empty() && oldest.len() < 200 && newest.len() < 200);

    for n in 0..40 {
        assert_eq!(healthy.next_exact().await["data"]["n"], n);
    }
    for n in 0..400 {
        assert_eq!(healthy.next_exact().await["data"]["n"], n / 2, "others get everything");
    }
    healthy.expect_nothing().await;

    let slow_of = async |channel: &str| server.get(&format!("/api/channels/{channel}")).await.json()["slow"].clone();
    let lost = |dropped_oldest: usize, dropped_newest: usize| json!({ "droppedOldest": dropped_oldest, "droppedNewest": dropped_newest, "superseded": 0, "merged": 0 });
    assert_eq!(slow_of("oldest").await, lost(200 - oldest.len(), 0));
    assert_eq!(slow_of("newest").await, lost(0, 200 - newest.len()));
    assert_eq!(slow_of("plain").await, lost(0, 0));
    let stats = server.get("/api/stats").await.json();
    assert_eq!(stats["channels"]["patterns"]["oldest"]["slow"], lost(200 - oldest.len(), 0));
    let all: u64 = ["oldest", "newest", "filler"]
        .iter()
        .map(|name| {
            let slow = &stats["channels"]["patterns"][name]["slow"];
            slow["droppedOldest"].as_u64().unwrap() + slow["droppedNewest"].as_u64().unwrap()
        })
        .sum();
    assert_eq!(stats["channels"]["dropped"]["slow_client"], all);
    assert_eq!(report["slow"]["droppedOldest"], 200 - oldest.len());
    assert_eq!(report["dropped"], all);
    let metrics = server.get("/metrics").await.body;
    let line = format!("tramline_channel_slow_total{{pattern=\"newest\",outcome=\"dropped_newest\"}} {}\n", 200 - newest.len());
    assert!(metrics.contains(&line), "{metrics}");
}

#[tokio::test]
async fn of_a_state_only_the_latest_waits() {
    let server = Setup::own(SLOW).start();
    let mut slow = Stalled::connect(&server, &[json!("state:x"), json!("state:y")]).await;
    for (n, (channel, id)) in [("x", "a"), ("x", "b"), ("y", "a"), ("x", "a"), ("x", "c"), ("x", "a"), ("y", "b")].into_iter().enumerate() {
        publish(&server, &format!("state:{channel}"), json!({ "n": n, "id": id })).await;
    }
    publish(&server, "state:x", json!({ "n": 7 })).await;
    publish(&server, "state:x", json!({ "n": 8 })).await;
    assert_eq!(slow.report(&server).await["slow"]["superseded"], 2);
    assert_eq!(numbers(&slow.told().await), [1, 2, 4, 5, 6, 7, 8]);
    let stats = server.get("/api/stats").await.json();
    assert_eq!(stats["channels"]["patterns"]["state:{id}"]["slow"]["superseded"], 2);
}

#[tokio::test]
async fn pieces_of_a_text_become_one_where_they_wait() {
    let server = Setup::own(SLOW).start();
    let mut healthy = server.client("shared").await;
    healthy.ask(&json!({ "type": "join", "channel": "tokens" })).await;
    let mut slow = Stalled::connect(&server, &[json!("tokens"), json!("plain")]).await;
    let pieces = [(1, "Hel"), (1, "lo"), (1, ", \u{1F980}"), (2, "an"), (2, "other"), (1, "!")];
    for (run, delta) in pieces {
        publish(&server, "tokens", json!({ "run": run, "delta": delta })).await;
        publish(&server, "plain", json!({ "n": run })).await;
    }
    assert_eq!(slow.report(&server).await["slow"]["merged"], 3);
    let told = slow.told().await;
    let texts: Vec<Value> = told.into_iter().filter(|message| message["data"]["delta"].is_string()).collect();
    let event =
        |offset: u64, run: u64, delta: &str| json!({ "to": "slow", "type": "e", "data": { "run": run, "delta": delta }, "offset": offset });
    assert_eq!(texts, [event(3, 1, "Hello, \u{1F980}"), event(5, 2, "another"), event(6, 1, "!")]);
    for (run, delta) in pieces {
        assert_eq!(healthy.next_exact().await["data"], json!({ "run": run, "delta": delta }));
    }
}

#[tokio::test]
async fn a_long_text_stays_in_pieces_of_a_bounded_size() {
    let server = Setup::own(SLOW).start();
    let mut slow = Stalled::connect(&server, &[json!("tokens")]).await;
    let piece = "0123456789".repeat(10);
    for _ in 0..200 {
        publish(&server, "tokens", json!({ "delta": piece })).await;
    }
    let told = slow.told().await;
    let texts: Vec<&str> = told.iter().map(|message| message["data"]["delta"].as_str().unwrap()).collect();
    assert!(texts.iter().all(|text| text.len() <= 8 << 10) && texts.len() <= 4, "{}", texts.len());
    assert_eq!(texts.concat(), piece.repeat(200));
}

#[tokio::test]
async fn who_knows_a_position_gets_from_the_log_what_has_no_room() {
    let server = Setup::own(SLOW).start();
    let mut slow = Stalled::connect(&server, &[json!({ "channel": "kept", "since": 0 })]).await;
    let text = "y".repeat(1000);
    for n in 0..300 {
        publish(&server, "kept", json!({ "n": n, "text": text })).await;
    }
    let report = slow.report(&server).await;
    assert_eq!((&report["readyState"], &report["slow"]["droppedOldest"]), (&json!(1), &json!(0)));
    let mut told = Vec::new();
    while told.len() < 300 {
        let next = slow.client.next_exact().await;
        if next["data"]["n"].is_u64() {
            told.push(next);
        }
    }
    assert_eq!(numbers(&told), (0..300).collect::<Vec<_>>());
    publish(&server, "kept", json!({ "n": 300 })).await;
    assert_eq!(slow.client.next_exact().await["data"]["n"], 300);
    assert_eq!(slow.told().await, Vec::<Value>::new());
}

#[tokio::test]
async fn what_matters_more_is_written_first_and_dropped_last() {
    let server = Setup::own(SLOW).start();
    let mut other = server.client("p").await;
    let mut slow = Stalled::connect(&server, &[json!("plain"), json!("oldest"), json!({ "channel": "kept", "since": 0 })]).await;
    let given = async |channel: &str, n: u64, priority: &str| {
        let data = json!({ "n": n, "text": "y".repeat(800) });
        server.publish(&json!({ "channel": channel, "type": "e", "data": data, "metadata": { "priority": priority } })).await;
    };
    for n in 0..30 {
        given("oldest", n, "low").await;
        given("plain", 100 + n, "medium").await;
        given("plain", 200 + n, "high").await;
    }
    // The row's word counts, and the target's more than the row's.
    other.send(&json!({ "type": "say", "n": 90 })).await;
    other.ask(&json!({ "type": "ping" })).await;
    // More than there is room for: what is low makes room.
    for n in 0..25 {
        given("oldest", 300 + n, "high").await;
    }
    let told = slow.told().await;
    let expected: Vec<u64> = (200..230).chain(300..325).chain(100..130).collect();
    // The answer that ends what was told is written in front of what is low.
    assert_eq!(numbers(&told), expected);
    let mut late = Vec::new();
    while late.last() != Some(&90) {
        late.push(slow.client.next_exact().await["data"]["n"].as_u64().unwrap());
    }
    assert_eq!(late.pop(), Some(90));
    assert!(late.len() < 30, "{late:?}");
    assert_eq!(late, (30 - late.len() as u64..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_knows_a_position_gets_events_in_order_whatever_their_priority() {
    let server = Setup::own(SLOW).start();
    let mut slow = Stalled::connect(&server, &[json!({ "channel": "kept", "since": 0 }), json!("plain")]).await;
    for (n, priority) in [(1, "low"), (2, "high"), (3, "medium"), (4, "high")] {
        let body = json!({ "channel": "kept", "type": "e", "data": { "n": n }, "metadata": { "priority": priority } });
        server.publish(&body).await;
    }
    publish(&server, "plain", json!({ "n": 5 })).await;
    assert_eq!(numbers(&slow.told().await), [5]);
    for n in 1..=4 {
        assert_eq!(slow.client.next_exact().await["data"]["n"], n);
    }
}
