//! Events that a slow script writes: whom they delay, whom they do not, and what is reported of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::yield_now;

use crate::apply::Accepted;
use crate::live::Live;
use crate::model::{Close, Json, Now, Origin};
use crate::pipeline::publish::{Destination, Proposal};
use crate::testing::{Client, live, rendered, shown};

/// Subscribers of the slow protocol: more than can be written for in the moment that a publisher spends on them.
const MANY: usize = 500;

const YAML: &str = r#"
version: 1
channels:
  "live:{id}": {}
  "kept:{id}": { history: true }
protocols:
  slow:
    listen: localhost:1/
    limits: { outbox: 64KiB }
    messages:
      join: { join: $.channel, reply: { joined: true } }
      leave: { leave: $.channel, reply: { left: true } }
      turn: { set: { state.on: $.on } }
      say: { to: $.channel, data: $.n, reply: { said: true } }
      back: { join: { channel: kept:a, recover: { since: $.since, epoch: $.epoch } }, reply: { back: true } }
    deliver: written
  fast:
    listen: localhost:2/
    messages:
      join: { join: $.channel }
    deliver: { o: $event.offset }
  batching:
    listen: localhost:3/
    messages:
      join: { join: $.channel }
      leave: { leave: $.channel, reply: { left: true } }
    deliver:
      - { when: $event.offset > 0, send: { o: $event.offset } }
    batch: { every: 60s, events: 3, as: { all: $messages } }
"#;

const PLUGIN: &str = r#"
fn written(event, sub, conn) {
    if event.data == "nobody" { return (); }
    if event.data == "fails" { throw "no"; }
    if event.data == "slow" { let sum = 0; for n in 0..1000 { sum += n; } }
    if conn.state.on == true { return #{ o: "on" }; }
    #{ o: event.offset }
}
"#;

async fn start() -> Arc<Live> {
    live(YAML, &[("slow", PLUGIN)]).await
}

fn joined(live: &Arc<Live>, protocol: usize, id: &str, channel: &str) -> Client {
    let mut client = Client::open_by(live, protocol, id);
    client.say(&json!({ "type": "join", "channel": channel }).to_string());
    client.received();
    client
}

fn publish(live: &Live, to: Destination, data: &str) -> Accepted {
    let origin = Arc::new(Origin { source: "api".into(), ..Origin::default() });
    let proposal = Proposal { kind: "e".into(), data: Json::of(&data), metadata: None, origin, id: None, except: None };
    live.publish(&live.current(), &[to], &proposal, Now::read()).unwrap()
}

fn channel(name: &str) -> Destination {
    Destination::Channel(name.into())
}

/// What it was sent: offsets, lists of them, and answers.
fn received(client: &Client) -> Value {
    let short = |message: &String| {
        let message: Value = serde_json::from_str(message).unwrap_or_else(|_| panic!("{message}"));
        match message["all"].as_array() {
            Some(all) => all.iter().map(|one| one["o"].clone()).collect(),
            None => message.get("o").cloned().unwrap_or(message),
        }
    };
    client.received().iter().map(short).collect()
}

fn waits(clients: &[Client]) -> usize {
    clients.iter().filter(|client| client.connection.outbox.has_places()).count()
}

#[tokio::test]
async fn a_slow_script_holds_up_its_own_receivers_and_nobody_else() {
    let live = start().await;
    let mut slow: Vec<Client> = (0..MANY).map(|n| joined(&live, 0, &format!("slow{n}"), "live:a")).collect();
    let (beside, elsewhere) = (joined(&live, 1, "beside", "live:a"), joined(&live, 1, "elsewhere", "live:b"));
    let script = joined(&live, 2, "script", "live:b");
    // On one thread: nothing else happens before this returns.
    drop(publish(&live, channel("live:a"), "slow"));
    assert!(waits(&slow) > 0, "nobody waits until all are written to");
    assert_eq!(received(&beside), json!([1]), "another protocol on the same channel has it");
    for (n, client) in (1..=20).zip(&mut slow[1..]) {
        drop(publish(&live, channel("live:b"), "slow"));
        assert_eq!(received(&elsewhere), json!([n]));
        client.say(r#"{"type":"say","channel":"live:a","n":"quick"}"#);
        assert_eq!(received(&beside), json!([1 + n]));
    }
    assert!(waits(&slow) > 0);

    // Between two receivers all others get their turn, including another protocol's scripts.
    let (turns, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, ends) = (turns.clone(), over.clone());
    let others = tokio::spawn(async move {
        while !ends.load(Relaxed) {
            counted.fetch_add(1, Relaxed);
            yield_now().await;
        }
    });
    let left = waits(&slow);
    rendered(std::slice::from_ref(&script)).await;
    assert!(waits(&slow) > left / 2, "it is not behind all the others");
    rendered(&slow).await;
    over.store(true, Relaxed);
    others.await.unwrap();
    assert!(turns.load(Relaxed) > 20);
    for (n, client) in slow.iter().enumerate() {
        let mut all: Vec<Value> = (1..=21).map(Value::from).collect();
        if (1..=20).contains(&n) {
            all.insert(n + 1, json!({ "said": true }));
        }
        assert_eq!(received(client), Value::from(all), "{n}");
    }
}

#[tokio::test]
async fn what_is_told_of_an_event_counts_those_whom_scripts_write_for() {
    let live = start().await;
    let slow: Vec<Client> = (0..MANY).map(|n| joined(&live, 0, &format!("slow{n}"), "kept:a")).collect();
    let _fast = joined(&live, 1, "fast", "kept:a");
    for (data, delivered) in [("slow", MANY + 1), ("nobody", 1), ("fails", 1)] {
        let applied = publish(&live, channel("kept:a"), data).settled(&live.store).await.unwrap();
        assert_eq!(applied.published.iter().map(|published| published.delivered).collect::<Vec<_>>(), [delivered], "{data}");
        assert_eq!(waits(&slow), 0);
    }
    let applied = publish(&live, Destination::Client("slow7".into()), "slow").settled(&live.store).await.unwrap();
    assert_eq!(applied.published[0].delivered, 1);
    assert_eq!(received(&slow[7]), json!([1, null]));
    let counters = &live.current().counters.channels;
    assert_eq!((counters.published.get(), counters.delivered.get()), (4, MANY as u64 + 4));
}

#[tokio::test]
async fn whoever_leaves_or_ends_gets_first_what_was_published_before() {
    let live = start().await;
    let mut slow: Vec<Client> = (0..MANY).map(|n| joined(&live, 0, &format!("slow{n}"), "live:a")).collect();
    drop(publish(&live, channel("live:a"), "slow"));
    let last = MANY - 1;
    assert!(slow[last].connection.outbox.has_places());
    slow[last].say(r#"{"type":"turn","on":true}"#);
    slow[last].say(r#"{"type":"leave","channel":"live:a"}"#);
    live.end(&slow[last - 1].connection, Close::GoingAway);
    drop(publish(&live, channel("live:a"), "quick"));
    live.hub.close(&slow[last - 2].connection);
    rendered(&slow).await;
    assert_eq!(received(&slow[last]), json!([1, { "left": true }]), "as it was when the event was published");
    assert_eq!(slow[last - 1].received(), [r#"{"o":1}"#, "close 1001 server is stopping"]);
    assert_eq!(received(&slow[last - 2]), json!([]));
    assert_eq!(received(&slow[0]), json!([1, 2]));
}

#[tokio::test]
async fn what_scripts_write_is_batched_as_all_else() {
    let live = start().await;
    let mut clients = [joined(&live, 2, "c0", "live:a"), joined(&live, 2, "c1", "live:a")];
    for _ in 0..4 {
        drop(publish(&live, channel("live:a"), "x"));
    }
    clients[1].say(r#"{"type":"leave","channel":"live:a"}"#);
    rendered(&clients).await;
    assert_eq!(clients.each_ref().map(received), [json!([[1, 2, 3]]), json!([[1, 2, 3], 4, { "left": true }])]);
    live.end(&clients[0].connection, Close::Idle);
    rendered(&clients).await;
    assert_eq!(clients[0].received(), [r#"{"o":4}"#, "close 1000 idle"]);
}

#[tokio::test]
async fn what_was_missed_is_written_by_scripts_and_then_what_is_new() {
    let live = start().await;
    for _ in 0..300 {
        drop(publish(&live, channel("kept:a"), "slow"));
    }
    shown(&live, "kept:a", 300).await;
    let mut client = Client::open(&live, "late");
    tokio::spawn(crate::connection::run(
        crate::connection::Admitted { live: live.clone(), connection: client.connection.clone() },
        live.current().runtime.plan.protocols[0].clone(),
        bytes::Bytes::new(),
        None,
        (),
    ));
    let epoch = crate::model::event::epoch_text(live.hub.position("kept:a").unwrap().epoch);
    client.say(&json!({ "type": "back", "since": 0, "epoch": epoch }).to_string());
    drop(publish(&live, channel("kept:a"), "quick"));
    let mut all = Vec::new();
    let there = async {
        while all.len() < 302 {
            yield_now().await;
            all.extend(received(&client).as_array().unwrap().clone());
        }
    };
    tokio::time::timeout(Duration::from_secs(60), there).await.unwrap();
    assert_eq!(all, [vec![json!({ "back": true })], (1..=301).map(Value::from).collect()].concat());
}
