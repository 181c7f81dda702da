//! Many clients at once, and one that does not read beside many that do.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{Client, Server, Setup, soon, until};

/// Two channels' worth of nothing but routing: what is measured is the router.
const PLAIN: &str = r#"
channels: { "c:{n}": {} }
protocols:
  plain:
    listen: localhost:0/
    codec: json
    type: /op
    limits: { outbox: 256KiB, slow: [4008, read faster] }
    messages:
      ping: { reply: { type: pong } }
      sub: { join: "c:{$.n}", reply: { ok: $.n, id: $conn.id } }
    deliver: { channel: $event.channel, offset: $event.offset, by: $event.data.by, n: $event.data.n }
"#;

const CLIENTS: usize = 1000;
const CHANNELS: usize = 100;
const PUBLISHERS: usize = 4;
const EACH: usize = 25;

/// Bytes by which two looks at an idle server may differ: counts of threads that were not added up yet, and buffers.
const MARGIN: u64 = 1 << 20;

async fn subscribed(server: &Server, channel: usize) -> Client {
    let mut client = server.client("plain").await.fenced_by(json!({ "op": "ping" }));
    assert_eq!(client.ask(&json!({ "op": "sub", "n": channel })).await["ok"], channel);
    client
}

/// What a server holds: bytes in use, and those the system counts.
async fn memory(server: &Server) -> (u64, u64) {
    let stats = server.get("/api/stats").await.json();
    let bytes = |name: &str| stats["memory"][name].as_u64().unwrap();
    (bytes("liveBytes"), bytes("residentBytes"))
}

/// Everybody connects, gets everything, compares notes and goes. Gives the bytes in use while all were there.
async fn round(server: &Arc<Server>) -> u64 {
    let mut clients = Vec::new();
    for i in 0..CLIENTS {
        clients.push(subscribed(server, i % CHANNELS).await);
    }
    let full = memory(server).await.0;
    let mut publishers = JoinSet::new();
    for by in 0..PUBLISHERS {
        let server = server.clone();
        publishers.spawn(async move {
            let channels: Vec<String> = (0..CHANNELS).map(|n| format!("c:{n}")).collect();
            for n in 0..EACH {
                server.publish(&json!({ "channel": channels, "type": "e", "data": { "by": by, "n": n } })).await;
            }
        });
    }
    let mut readers = JoinSet::new();
    for (i, mut client) in clients.into_iter().enumerate() {
        readers.spawn(async move {
            let mut got = Vec::new();
            for _ in 0..PUBLISHERS * EACH {
                got.push(client.next_exact().await);
            }
            client.close().await;
            (i % CHANNELS, got)
        });
    }
    publishers.join_all().await;
    let mut seen: Vec<Option<Vec<Value>>> = vec![None; CHANNELS];
    for (channel, got) in readers.join_all().await {
        match &seen[channel] {
            Some(others) => assert_eq!(got, *others, "two clients of one channel saw different things"),
            None => {
                check(channel, &got);
                seen[channel] = Some(got);
            }
        }
    }
    let gone = |stats: &Value| stats["connections"] == 0 && stats["channels"]["live"] == 0;
    until("all are gone", async || server.get("/api/stats").await.json(), gone).await;
    full
}

/// No offset is missing or twice, and what one publisher published came in the order it published.
fn check(channel: usize, got: &[Value]) {
    let mut next = [0; PUBLISHERS];
    for (i, event) in got.iter().enumerate() {
        assert_eq!((&event["channel"], &event["offset"]), (&json!(format!("c:{channel}")), &json!(i + 1)));
        let by = usize::try_from(event["by"].as_u64().unwrap()).unwrap();
        assert_eq!(event["n"], next[by]);
        next[by] += 1;
    }
    assert_eq!(next, [EACH; PUBLISHERS]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_get_everything_once_and_in_order_and_leave_nothing_behind() {
    rlimit::increase_nofile_limit(8192).unwrap();
    let server = Arc::new(Setup::own(PLAIN).start());
    // Once for what is made at the first use and then kept: tables, statements, threads.
    drop(subscribed(&server, 0).await);
    let mut seen = vec![memory(&server).await];
    for _ in 0..3 {
        let full = round(&server).await;
        assert!(full > seen[0].0 + 2 * MARGIN, "{full} bytes with all there prove nothing: {seen:?}");
        // What a task held is given back a moment after the connection is out of the books.
        let back = |now: &(u64, u64)| now.0 < seen[0].0 + MARGIN;
        let now = until("memory is back where it was", async || memory(&server).await, back).await;
        seen.push(now);
    }
    // The system's count has what the allocator keeps for the next time: after the first round it must not grow.
    assert!(seen[3].1 < seen[1].1 + seen[1].1 / 10, "live and resident bytes before and after each round: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_disturbs_nobody_and_ends_as_its_protocol_says() {
    const HEALTHY: usize = 100;
    const EVENTS: usize = 400;
    rlimit::increase_nofile_limit(8192).unwrap();
    let server = Arc::new(Setup::own(PLAIN).env("RUST_LOG", "tramline=debug").start());
    let mut stalled = Client::connect_narrow(server.url("plain")).await;
    let id = stalled.ask(&json!({ "op": "sub", "n": 0 })).await["id"].as_str().unwrap().to_owned();
    assert_eq!(stalled.ask(&json!({ "op": "sub", "n": 1 })).await["ok"], 1);
    let mut readers = JoinSet::new();
    for _ in 0..HEALTHY {
        let mut client = subscribed(&server, 0).await;
        readers.spawn(async move {
            for n in 0..EVENTS {
                assert_eq!(client.next_exact().await["n"], n);
            }
            client.expect_nothing().await;
        });
    }
    // Everybody gets the small events; the stalled one gets large ones besides, which nobody takes from it.
    let large = "x".repeat(32 << 10);
    let mut peak = 0;
    for n in 0..EVENTS {
        server.publish(&json!({ "channel": "c:0", "data": { "n": n } })).await;
        server.publish(&json!({ "channel": "c:1", "data": { "n": large } })).await;
        if let Some(queue) = server.get(&format!("/api/connections/{id}")).await.json().get("queue") {
            assert_eq!(queue["max"], 256 << 10);
            peak = peak.max(queue["peak"].as_u64().unwrap());
        }
    }
    readers.join_all().await;
    assert!(peak > 0 && peak <= 256 << 10, "{peak}");
    let closed = loop {
        let line = server.logged("connection closed");
        if line["client"] == id.as_str() {
            break line;
        }
    };
    assert_eq!((&closed["code"], &closed["reason"]), (&json!(4008), &json!("read faster")));
    let dropped = server.get("/api/stats").await.json()["channels"]["dropped"]["outbox_full"].as_u64().unwrap();
    assert!(dropped > 0);
    soon("the stalled client's end", stalled.drained()).await;
}
