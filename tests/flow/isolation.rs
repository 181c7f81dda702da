//! What a row reads is what it is applied to, through real sockets: of those who change the same only one succeeds, and a snapshot
//! beside a subscription has neither a gap nor anything twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::{Barrier, Semaphore};

use crate::support::{Client, Server, Setup, soon};

const DOCUMENTS: &str = r#"
channels:
  sure: { history: true }
  early: { history: { deliver: early } }
  relaxed: { history: { durability: relaxed } }
protocols:
  p:
    listen: 127.0.0.1:0/
    plugin: doc
    limits: { rate: none }
    messages:
      watch: { join: $.channel, reply: { watching: $.channel } }
      edit: { validate: fresh, to: $.channel, data: { version: $.version, by: $.by }, reply: { saved: $.version } }
      ping: { reply: { type: pong } }
    deliver: { edited: $event.data.version, by: $event.data.by }
    error: { error: $error.code, message: $error.message }
"#;

const FRESH: &str = r#"
fn fresh(msg) {
    let last = history(msg.channel, 1);
    let version = if last.is_empty() { 0 } else { last[0].data.version };
    if msg.version != version + 1 { throw "it is at version " + version; }
    true
}
"#;

/// Rounds on each of the channels.
const ROUNDS: u64 = 700;

/// What one of those who edit the same saw of a round.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    accepted: bool,
    by: u64,
}

async fn edit(client: &mut Client, channel: &str, version: u64, by: u64) -> Seen {
    client.send(&json!({ "type": "edit", "channel": channel, "version": version, "by": by })).await;
    let (mut accepted, mut winner) = (None, None);
    for _ in 0..2 {
        let told = client.next_exact().await;
        if told["edited"] == version {
            winner = told["by"].as_u64();
        } else if told["saved"] == version {
            accepted = Some(true);
        } else {
            assert_eq!(told, json!({ "error": "rejected", "message": format!("it is at version {version}") }));
            accepted = Some(false);
        }
    }
    Seen { accepted: accepted.expect("an answer"), by: winner.expect("the event of who succeeded") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_four_who_edit_one_version_one_succeeds_whatever_the_channel_promises() {
    let server = Setup::own(DOCUMENTS).plugin("doc", FRESH).embed();
    for channel in ["sure", "early", "relaxed"] {
        let mut clients: [Client; 4] = server.clients("p").await;
        for client in &mut clients {
            client.ask(&json!({ "type": "watch", "channel": channel })).await;
        }
        let together = Arc::new(Barrier::new(4));
        let editing = clients.into_iter().zip(0..).map(|(mut client, by)| {
            let together = together.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                for version in 1..=ROUNDS {
                    soon("the others", together.wait()).await;
                    seen.push(edit(&mut client, channel, version, by).await);
                }
                client.expect_nothing().await;
                seen
            })
        });
        let seen: Vec<Vec<Seen>> = join_all(editing).await.into_iter().map(Result::unwrap).collect();
        for round in 0..ROUNDS as usize {
            let winner = seen[0][round].by;
            let right = (0..).zip(&seen).all(|(by, seen)| seen[round] == Seen { accepted: by == winner, by: winner });
            assert!(right, "{channel}, round {round}: {:?}", seen.iter().map(|seen| &seen[round]).collect::<Vec<_>>());
        }
    }
}

const FEED: &str = r#"
channels:
  feed: { history: { tail: 1000 } }
protocols:
  opened:
    listen: 127.0.0.1:0/
    plugin: feed
    open: { join: feed, reply: snapshot }
    messages: {}
    deliver: &deliver { o: $event.offset, end: $event.data.end }
  asked:
    listen: 127.0.0.1:0/
    plugin: feed
    messages: { get: { join: feed, reply: snapshot } }
    deliver: *deliver
  called:
    listen: 127.0.0.1:0/
    plugin: feed
    messages: { get: { call: snapshot, join: { channel: feed, recover: { since: $result.offset } }, reply: $result } }
    deliver: *deliver
  publisher:
    listen: 127.0.0.1:0/
    limits: { rate: none }
    messages: { say: { to: feed, data: { end: $.end }, reply: { ok: true } } }
"#;

const SNAPSHOT: &str = r#"
fn snapshot(conn) {
    let offsets = [];
    for event in history("feed", 20) { offsets.push(event.offset); }
    #{ offsets: offsets, offset: if offsets.is_empty() { 0 } else { offsets[offsets.len() - 1] } }
}
"#;

const PUBLISHERS: usize = 8;

/// Connections that begin at the same time, at most.
const AT_ONCE: usize = 16;

/// Live events after which most leave.
const LIVE: u64 = 100;

/// One in so many stays until nobody publishes any more.
const STAYS: usize = 20;

/// How many connections there are, over the three ways. `TRAMLINE_TEST_CONNECTIONS` asks for more.
fn connections() -> usize {
    std::env::var("TRAMLINE_TEST_CONNECTIONS").map_or(600, |count| count.parse().expect("a number"))
}

/// Takes a snapshot and follows what comes live: every offset once, in order. Gives the last, and how many came live.
async fn follow(server: &Server, protocol: &str, stays: bool) -> (u64, u64) {
    let mut client = server.client(protocol).await;
    if protocol != "opened" {
        client.send(&json!({ "type": "get" })).await;
    }
    let snapshot = client.next_exact().await;
    let offsets: Vec<u64> = snapshot["offsets"].as_array().unwrap().iter().map(|offset| offset.as_u64().unwrap()).collect();
    let mut last = snapshot["offset"].as_u64().unwrap();
    assert!((1..=last).rev().zip(offsets.iter().rev()).all(|(wanted, offset)| wanted == *offset), "{protocol}: {snapshot}");
    let mut live = 0;
    loop {
        let event = client.next_exact().await;
        assert_eq!(event["o"], last + 1, "{protocol}, behind {snapshot}: {event}");
        (last, live) = (last + 1, live + 1);
        if event["end"] == true || !stays && live == LIVE {
            return (last, live);
        }
    }
}

async fn publish(mut client: Client, enough: Arc<AtomicBool>, published: Arc<AtomicU64>) {
    while !enough.load(Relaxed) {
        assert_eq!(client.ask(&json!({ "type": "say", "end": Value::Null })).await, json!({ "ok": true }));
        published.fetch_add(1, Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_beside_a_subscription_has_no_gap_and_nothing_twice() {
    let server = Arc::new(Setup::own(FEED).plugin("feed", SNAPSHOT).embed());
    let (enough, published) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut publishing = Vec::new();
    for _ in 0..PUBLISHERS {
        publishing.push(tokio::spawn(publish(server.client("publisher").await, enough.clone(), published.clone())));
    }
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let (mut leaving, mut staying) = (Vec::new(), Vec::new());
    for n in 0..connections() {
        let (server, turns) = (server.clone(), turns.clone());
        let protocol = ["opened", "asked", "called"][n % 3];
        if n % STAYS == 0 {
            staying.push(tokio::spawn(async move { follow(&server, protocol, true).await }));
        } else {
            leaving.push(tokio::spawn(async move {
                let _turn = turns.acquire().await.unwrap();
                follow(&server, protocol, false).await
            }));
        }
    }
    for followed in join_all(leaving).await {
        assert_eq!(followed.unwrap().1, LIVE);
    }
    enough.store(true, Relaxed);
    for publisher in join_all(publishing).await {
        publisher.unwrap();
    }
    let end = published.load(Relaxed) + 1;
    server.client("publisher").await.ask(&json!({ "type": "say", "end": true })).await;
    for followed in join_all(staying).await {
        assert_eq!(followed.unwrap().0, end, "nothing is missing at the end");
    }
}
