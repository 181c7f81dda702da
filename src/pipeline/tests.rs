//! Rows as function calls: transactions, the order of effects, and the order that all subscribers see while several threads
//! publish.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::live::Live;
use crate::model::{Json, Now, Origin};
use crate::pipeline::publish::{Destination, Proposal};
use crate::testing::{Client, shown};

const YAML: &str = r#"
version: 1
channels:
  log: { history: true }
  "room:{id}": {}
  "kept:{id}": { history: true }
  strict: { schema: { required: [n] } }
  closed: { publish: [] , join: [] }
protocols:
  p:
    listen: localhost:1/
    codec: json
    type: /type
    limits: { outbox: 64MiB, subscriptions: 3 }
    messages:
      join: { join: $.channel, reply: { joined: $.channel } }
      leave: { leave: $.channel, reply: { left: $.channel } }
      state: { reply: { user: $conn.user, state: $conn.state.x, channels: $conn.state.none } }
      whole: { set: { user: $.user, state.x: $.x }, leave: "room:*", join: "room:{$.room}", to: "room:{$.room}", reply: { ok: true } }
      broken: { set: { user: $.user }, join: "room:b", to: ["room:b", strict], reply: { ok: true } }
      forbidden: { to: $.channel }
      renamed: { set: { user: $.user }, join: "room:n", to: "room:n", reply: { user: $conn.user } }
      keyed: { join: { channel: "room:k", key: $.key, meta: { n: $.n } } }
      others: { to: "room:k", data: { by: $conn.id }, except: sender }
      twice: { transform: twice, to: "room:t", reply: { did: $.n } }
      none: { transform: none, reply: never }
    deliver: { c: $event.channel, o: $event.offset, k: $sub.key, m: $sub.meta.n, d: $event.data, u: $event.user }
    error: { error: $error.code, message: $error.message }
"#;

const PLUGIN: &str = r#"
fn twice(msg) { [#{ type: "a", n: 1 }, #{ type: "b", n: 2 }] }
fn none(msg) { () }
fn never(msg) { "never" }
"#;

async fn start() -> Arc<Live> {
    crate::testing::live(YAML, &[("p", PLUGIN)]).await
}

fn publish(live: &Live, channel: &str, data: &str) {
    publish_as(live, channel, "e", data);
}

fn publish_as(live: &Live, channel: &str, kind: &'static str, data: &str) {
    let proposal = Proposal {
        kind: kind.into(),
        data: Json::parse(data.to_owned().into()).unwrap(),
        metadata: None,
        origin: Arc::new(Origin { source: "api".into(), ..Origin::default() }),
        id: None,
        except: None,
    };
    live.publish(&live.current(), &[Destination::Channel(channel.into())], &proposal, Now::read()).unwrap();
}

#[tokio::test]
async fn effects_happen_in_the_order_that_is_promised() {
    let live = start().await;
    let mut client = Client::open(&live, "c");
    client.say(r#"{"type":"whole","user":"u","x":[1],"room":"a"}"#);
    assert_eq!(client.received(), [r#"{"c":"room:a","o":1,"k":"","d":{"user":"u","x":[1],"room":"a"}}"#, r#"{"ok":true}"#]);
    client.say(r#"{"type":"state"}"#);
    assert_eq!(client.received(), [r#"{"user":"u","state":[1]}"#]);
    assert_eq!(live.hub.of_user("u").len(), 1);
    client.say(r#"{"type":"whole","user":"v","room":"b"}"#);
    let names: Vec<String> = client.connection.subscriptions().iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["room:b"]);
    assert!(live.hub.of_user("u").is_empty() && live.hub.channel("room:a").is_none());
}

#[tokio::test]
async fn of_a_row_that_fails_nothing_has_happened() {
    let live = start().await;
    let mut client = Client::open(&live, "c");
    client.say(r#"{"type":"broken","user":"u"}"#);
    assert_eq!(client.received(), [r#"{"error":"invalid","message":"/data/n: is missing"}"#]);
    assert!(client.connection.subscriptions().is_empty() && client.connection.view().user.is_none());
    assert!(live.hub.channel("room:b").is_none());
    client.say(r#"{"type":"forbidden","channel":"closed"}"#);
    assert_eq!(client.received(), [r#"{"error":"forbidden","message":"p may not publish to closed"}"#]);
    for channel in ["closed", "nowhere", "room:a\\u0001b", "room:*", ""] {
        client.say(&format!(r#"{{"type":"join","channel":"{channel}"}}"#));
        assert_eq!(client.received(), [r#"{"error":"unknown_channel","message":"unknown channel"}"#], "{channel}");
    }
}

#[tokio::test]
async fn an_event_is_of_whom_its_sender_was_when_the_message_came() {
    let live = start().await;
    let mut client = Client::open(&live, "c");
    client.say(r#"{"type":"renamed","user":"a"}"#);
    client.say(r#"{"type":"renamed","user":"b"}"#);
    client.say(r#"{"type":"renamed","user":"b"}"#);
    let told: Vec<_> = client.received().iter().map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap()["u"].clone()).collect();
    let users = [None, None, Some("a"), None, Some("b"), None].map(serde_json::Value::from);
    assert_eq!(told, users, "events and answers in turn");
}

#[tokio::test]
async fn a_client_leaves_what_it_names_and_nothing_else() {
    let live = start().await;
    let mut client = Client::open(&live, "c");
    client.say(r#"{"type":"join","channel":"room:1 2"}"#);
    client.say(r#"{"type":"leave","channel":"*"}"#);
    client.say(r#"{"type":"leave","channel":"closed"}"#);
    let unknown = r#"{"error":"unknown_channel","message":"unknown channel"}"#;
    assert_eq!(client.received(), [r#"{"joined":"room:1 2"}"#, unknown, unknown]);
    assert_eq!(client.connection.subscriptions().len(), 1);
    client.say(r#"{"type":"leave","channel":"room:1 2"}"#);
    client.say(r#"{"type":"leave","channel":"room:1 2"}"#);
    assert!(client.connection.subscriptions().is_empty());
}

#[tokio::test]
async fn several_subscriptions_to_one_channel_are_told_apart_and_bounded() {
    let live = start().await;
    let (mut client, mut other) = (Client::open(&live, "c"), Client::open(&live, "d"));
    client.say(r#"{"type":"keyed","key":"x","n":1}"#);
    client.say(r#"{"type":"keyed","key":"y","n":2}"#);
    client.say(r#"{"type":"keyed","key":"x","n":3}"#);
    other.say(r#"{"type":"keyed","key":"z"}"#);
    client.say(r#"{"type":"others"}"#);
    assert!(client.received().is_empty());
    assert_eq!(other.received(), [r#"{"c":"room:k","o":1,"k":"z","d":{"by":"c"}}"#]);
    other.say(r#"{"type":"others"}"#);
    assert_eq!(
        client.received(),
        [r#"{"c":"room:k","o":2,"k":"x","m":3,"d":{"by":"d"}}"#, r#"{"c":"room:k","o":2,"k":"y","m":2,"d":{"by":"d"}}"#]
    );
    client.say(r#"{"type":"join","channel":"log"}"#);
    client.say(r#"{"type":"join","channel":"strict"}"#);
    assert_eq!(client.received(), [r#"{"joined":"log"}"#, r#"{"error":"limit_reached","message":"more than 3 subscriptions"}"#]);
}

#[tokio::test]
async fn names_that_nobody_published_to_leave_nothing_behind() {
    let live = start().await;
    let mut client = Client::open(&live, "c");
    client.say(r#"{"type":"join","channel":"kept:1"}"#);
    client.say(r#"{"type":"join","channel":"kept:2"}"#);
    publish(&live, "kept:2", "1");
    live.closed(&client.connection, &crate::model::Close::Lost, Now::read());
    let live: Vec<String> = live.hub.channels().iter().map(|channel| channel.name.to_string()).collect();
    assert_eq!(live, ["kept:2"]);
}

#[tokio::test]
async fn a_transform_makes_several_messages_or_none() {
    let live = start().await;
    let mut client = Client::open(&live, "c");
    client.say(r#"{"type":"twice"}"#);
    assert_eq!(client.received(), [r#"{"did":1}"#, r#"{"did":2}"#]);
    client.say(r#"{"type":"none"}"#);
    assert!(client.received().is_empty());
}

#[tokio::test]
async fn an_event_is_written_once_for_all_who_get_the_same() {
    let yaml = r#"
version: 1
channels: { room: {} }
protocols:
  p:
    listen: localhost:1/
    codec: json
    type: /type
    open: { join: room }
    messages: {}
    deliver:
      - { when: $event.type == "own", send: { for: $conn.id } }
      - { send: { d: $event.data, at: $now_ms } }
"#;
    let live = crate::testing::live(yaml, &[]).await;
    let clients: Vec<Client> = (0..3).map(|i| Client::open(&live, &format!("c{i}"))).collect();
    publish(&live, "room", "1");
    crate::testing::rendered(&clients).await;
    let places: Vec<_> = clients.iter().flat_map(|client| client.connection.outbox.places()).collect();
    assert_eq!(places.len(), clients.len());
    clients.iter().for_each(|client| drop(client.received()));
    assert!(places.iter().all(|place| *place == places[0]), "one text, shared by all");
    publish_as(&live, "room", "own", "1");
    crate::testing::rendered(&clients).await;
    let told: Vec<_> = clients.iter().flat_map(Client::received).collect();
    assert_eq!(told, [r#"{"for":"c0"}"#, r#"{"for":"c1"}"#, r#"{"for":"c2"}"#]);
}

/// Offsets in the frames a client got, in order.
fn offsets(frames: &[String]) -> Vec<u64> {
    frames.iter().filter_map(|frame| serde_json::from_str::<serde_json::Value>(frame).unwrap()["o"].as_u64()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_subscribers_see_one_order_and_nothing_slips_between_a_join_and_its_answer() {
    const EACH: u64 = 500;
    let live = start().await;
    let done = Arc::new(AtomicBool::new(false));
    let mut early: Vec<Client> = (0..5).map(|i| Client::open(&live, &format!("early{i}"))).collect();
    early.iter_mut().for_each(|client| client.say(r#"{"type":"join","channel":"log"}"#));
    std::thread::scope(|threads| {
        let publishers: Vec<_> = (0..4).map(|_| threads.spawn(|| (0..EACH).for_each(|n| publish(&live, "log", &n.to_string())))).collect();
        // Clients come and go meanwhile. Each gets its answer before the first event, and no gap after it.
        let joiner = threads.spawn(|| {
            let mut visits = 0;
            while !done.load(Relaxed) {
                let mut client = Client::open(&live, "late");
                client.say(r#"{"type":"join","channel":"log"}"#);
                std::thread::yield_now();
                client.say(r#"{"type":"leave","channel":"log"}"#);
                let frames = client.received();
                assert_eq!(frames.first().map(String::as_str), Some(r#"{"joined":"log"}"#));
                assert_eq!(frames.last().map(String::as_str), Some(r#"{"left":"log"}"#));
                let seen = offsets(&frames);
                assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1), "{seen:?}");
                live.closed(&client.connection, &crate::model::Close::Lost, Now::read());
                visits += 1;
            }
            visits
        });
        publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
        done.store(true, Relaxed);
        assert!(joiner.join().unwrap() > 0);
    });
    shown(&live, "log", 4 * EACH).await;
    let all: Vec<Vec<String>> = early.iter().map(|client| client.received().split_off(1)).collect();
    assert_eq!(offsets(&all[0]), (1..=4 * EACH).collect::<Vec<_>>());
    assert!(all.iter().all(|frames| *frames == all[0]));
    assert_eq!(live.hub.connection_count(None), 5);
}

#[tokio::test]
async fn transactions_over_the_same_channels_never_wait_in_a_circle() {
    let live = start().await;
    let client = || Json::parse("0".into()).unwrap();
    let proposal = |origin: &str| Proposal {
        kind: "e".into(),
        data: client(),
        metadata: None,
        origin: Arc::new(Origin { source: origin.into(), ..Origin::default() }),
        id: None,
        except: None,
    };
    let there: Vec<Destination> = ["room:1", "room:2", "log"].map(|name| Destination::Channel(name.into())).into();
    let back: Vec<Destination> = there.iter().rev().cloned().collect();
    std::thread::scope(|threads| {
        for targets in [&there, &back, &there, &back] {
            threads.spawn(|| (0..500).for_each(|_| drop(live.publish(&live.current(), targets, &proposal("api"), Now::read()).unwrap())));
        }
    });
    shown(&live, "log", 2000).await;
}
