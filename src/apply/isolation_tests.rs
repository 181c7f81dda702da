//! A decision is applied only to what it has read: it waits for what it read uncommitted, is refused together with that, and is
//! made again if something has changed. The writer runs when the test lets it. Where something must change between a decision
//! and its application, the world changes it while a script asks.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures_util::poll;
use parking_lot::Mutex;
use tokio::task::yield_now;

use crate::live::{Live, Promised};
use crate::model::event::{Event, NewEvent};
use crate::model::{ChannelName, Code, Fault, Json, Now};
use crate::pipeline::Snapshot;
use crate::pipeline::publish::{Destination, Proposal};
use crate::script::World;
use crate::store::Writer;
use crate::testing::{Client, paused};

const YAML: &str = r#"
version: 1
channels:
  doc: { history: true }
  other: { history: true }
  early: { history: { deliver: early } }
  relaxed: { history: { durability: relaxed } }
  "room:{id}": { history: true }
  lobby: {}
protocols:
  p:
    listen: localhost:1/
    plugin: s
    messages:
      watch: { join: $.channel }
      say: { to: $.channel, data: $.n }
      ping: { reply: { pong: $.n } }
      edit: { validate: fresh, to: $.channel, data: $.n, reply: { saved: $.n } }
      look: { reply: count }
      enter: { join: $.channel, reply: count }
      peer: { join: $.channel, reply: peer }
      recover: { call: count, join: { channel: $.channel, recover: { since: $result.seen } }, reply: $result }
      twice: { transform: both, join: { channel: "room:t", key: $.key, recover: { since: 0 } }, reply: { recovered: $recovery.recovered } }
      seat: { validate: free, join: lobby, reply: { seated: true } }
      sit: { validate: free, join: lobby, to: $.channel, data: 0, reply: { seated: true } }
      rise: { leave: lobby, to: doc, data: 0, reply: { left: true } }
      lead: { validate: vacant, set: { user: leader }, reply: { leads: true } }
      resign: { set: { user: $.nobody } }
      few: { validate: few, to: lobby, data: 0, reply: { few: true } }
    http:
      POST /edit: { validate: fresh, to: $.channel, data: $.n, reply: { saved: $.n } }
      POST /look: { call: count, reply: $result }
    deliver: { got: $event.data, o: $event.offset }
    error: { error: $error.code, message: $error.message }
"#;

/// In some tests the world changes when `statistics` is called: after the read, before the decision is applied.
const PLUGIN: &str = r#"
fn fresh(msg) { let seen = history(msg.channel, 100).len(); statistics("p"); if msg.n != seen + 1 { throw "stale at " + seen; } true }
fn count(msg) { let seen = history(msg.channel, 100).len(); statistics("p"); #{ seen: seen } }
fn peer(msg) { let seen = [history(msg.channel, 100).len()]; statistics("p"); seen.push(history(msg.channel, 100).len()); seen }
fn both(msg) { [#{ key: "a" }, #{ key: "b" }] }
fn free(msg) { let there = members("lobby").len(); statistics("p"); there < 2 }
fn vacant(msg) { connections("p").filter(|c| c.user == "leader").is_empty() }
fn few(msg) { let all = connections("p").len(); statistics("p"); all <= msg.n }
"#;

async fn start() -> (Arc<Live>, Writer) {
    paused(YAML, &[("s", PLUGIN)]).await
}

fn run(writer: Writer) {
    tokio::spawn(writer.run(std::future::pending()));
}

/// Resolves when nothing of these connections waits any more.
async fn settled(clients: &[&Client]) {
    let all = async {
        while clients.iter().any(|client| client.connection.is_waiting()) {
            yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), all).await.unwrap();
}

fn message(kind: &str, channel: &str, n: u64) -> String {
    format!(r#"{{"type":"{kind}","channel":"{channel}","n":{n}}}"#)
}

fn publish(live: &Arc<Live>, channel: &str) {
    let proposal = Proposal { kind: "e".into(), data: Json::null(), metadata: None, origin: Arc::default(), id: None, except: None };
    live.publish(&live.current(), &[Destination::Channel(channel.into())], &proposal, Now::read()).unwrap();
}

/// A message that comes by HTTP.
fn post(live: &Arc<Live>, path: &str, channel: &str, n: u64) -> Result<Promised, Fault> {
    let snapshot = live.current();
    let protocol = &snapshot.runtime.plan.protocols[0];
    let row = protocol.http.iter().find(|row| row.path.to_string() == path).unwrap();
    let body = Json::parse(message("", channel, n).into()).unwrap();
    live.http(&snapshot, protocol, row, &body, &Default::default(), Now::read())
}

/// A world in which something happens whenever a script asks for statistics.
struct Meddling {
    world: Arc<dyn World>,
    asked: AtomicUsize,
    // Protects what happens, so that it happens once at a time.
    meddle: Mutex<Box<dyn FnMut(usize) + Send>>,
}

impl World for Meddling {
    fn members(&self, channel: &str) -> Vec<Json> {
        self.world.members(channel)
    }

    fn history(&self, channel: &str, count: usize) -> Vec<Arc<Event>> {
        self.world.history(channel, count)
    }

    fn connections(&self, protocol: &str) -> Vec<Json> {
        self.world.connections(protocol)
    }

    fn statistics(&self, protocol: &str, now: Now) -> Option<Json> {
        self.meddle.lock()(self.asked.fetch_add(1, Relaxed));
        self.world.statistics(protocol, now)
    }
}

/// The current snapshot with such a world. `meddle` gets the number of earlier calls.
fn meddling(live: &Arc<Live>, meddle: impl FnMut(usize) + Send + 'static) -> (Arc<Snapshot>, Arc<Meddling>) {
    let Snapshot { runtime, limits, counters, hub, world } = &*live.current();
    let world = Arc::new(Meddling { world: world.clone(), asked: AtomicUsize::new(0), meddle: Mutex::new(Box::new(meddle)) });
    let snapshot =
        Snapshot { runtime: runtime.clone(), limits: limits.clone(), counters: counters.clone(), hub: hub.clone(), world: world.clone() };
    (Arc::new(snapshot), world)
}

/// Publishes to a channel, at the first call only.
fn publish_once(live: &Arc<Live>, channel: &'static str) -> impl FnMut(usize) + Send + 'static {
    let live = live.clone();
    move |nth| {
        if nth == 0 {
            publish(&live, channel);
        }
    }
}

#[tokio::test]
async fn who_has_seen_what_is_not_committed_is_answered_once_it_is_and_nobody_else_waits() {
    let (live, writer) = start().await;
    let [mut first, mut second, mut reader, mut other] = ["a", "b", "c", "d"].map(|id| Client::open(&live, id));
    first.say(&message("edit", "doc", 1));
    second.say(&message("edit", "doc", 1));
    reader.say(&message("look", "doc", 0));
    other.say(r#"{"type":"ping","n":1}"#);
    other.say(&message("look", "other", 0));
    for _ in 0..100 {
        yield_now().await;
    }
    assert_eq!(other.received(), [r#"{"pong":1}"#, r#"{"seen":0}"#]);
    assert_eq!([first.received(), second.received(), reader.received()], [[""; 0]; 3]);
    run(writer);
    settled(&[&first, &second, &reader]).await;
    assert_eq!(first.received(), [r#"{"saved":1}"#]);
    assert_eq!(second.received(), [r#"{"error":"rejected","message":"stale at 1"}"#]);
    assert_eq!(reader.received(), [r#"{"seen":1}"#]);
}

#[tokio::test]
async fn what_everybody_may_see_before_the_commit_holds_nobody_back() {
    let (live, writer) = start().await;
    let [mut first, mut second, mut reader] = ["a", "b", "c"].map(|id| Client::open(&live, id));
    reader.say(&message("watch", "early", 0));
    first.say(&message("edit", "early", 1));
    reader.say(&message("look", "early", 0));
    second.say(&message("edit", "early", 2));
    assert_eq!(reader.received(), [r#"{"got":1,"o":1}"#, r#"{"seen":1}"#, r#"{"got":2,"o":2}"#]);
    assert_eq!([first.received(), second.received()], [[""; 0]; 2], "what is stored is answered when it is");
    reader.say(&message("edit", "relaxed", 1));
    reader.say(&message("edit", "relaxed", 1));
    reader.say(&message("edit", "relaxed", 2));
    assert_eq!(reader.received(), [r#"{"saved":1}"#, r#"{"error":"rejected","message":"stale at 1"}"#, r#"{"saved":2}"#]);
    run(writer);
    settled(&[&first, &second]).await;
    assert_eq!(first.received(), [r#"{"saved":1}"#]);
    assert_eq!(second.received(), [r#"{"saved":2}"#]);
}

#[tokio::test]
async fn an_answer_by_http_waits_likewise() {
    let (live, writer) = start().await;
    let mut first = Client::open(&live, "a");
    assert_eq!(post(&live, "/edit", "doc", 7).unwrap_err().message, "stale at 0");
    first.say(&message("edit", "doc", 1));
    let answers = [post(&live, "/look", "doc", 0), post(&live, "/edit", "doc", 1), post(&live, "/edit", "doc", 2)];
    let [mut look, mut stale, mut edit] = answers.map(|promised| Box::pin(promised.unwrap().settled(&live.store)));
    for _ in 0..100 {
        yield_now().await;
    }
    assert!(poll!(&mut look).is_pending() && poll!(&mut stale).is_pending() && poll!(&mut edit).is_pending());
    run(writer);
    assert_eq!(look.await.unwrap().reply.unwrap().as_str(), r#"{"seen":1}"#);
    assert_eq!(stale.await.unwrap_err().message, "stale at 1");
    assert_eq!(edit.await.unwrap().reply.unwrap().as_str(), r#"{"saved":2}"#);
}

#[tokio::test]
async fn what_is_decided_on_what_the_store_refuses_is_refused_with_it() {
    let (live, writer) = start().await;
    let [mut first, mut second, mut reader] = ["a", "b", "c"].map(|id| Client::open(&live, id));
    reader.say(&message("watch", "doc", 0));
    // The log already has an event at the offset that the first edit will get.
    let epoch = live.hub.position("doc").unwrap().epoch;
    let new =
        NewEvent { id: uuid::Uuid::from_u128(1), kind: "e".into(), data: Json::null(), time_ms: 1, origin: Arc::default(), metadata: None };
    let taken = Event { new, channel: ChannelName::parse("doc"), offset: 1, epoch, seq: 0 };
    live.store.reserve(1, 100).unwrap().append(vec![taken], &[]);
    first.say(&message("edit", "doc", 1));
    second.say(&message("edit", "doc", 2));
    reader.say(&message("look", "doc", 0));
    let mut door = pin!(post(&live, "/edit", "doc", 1).unwrap().settled(&live.store));
    assert!(poll!(&mut door).is_pending());
    run(writer);
    settled(&[&first, &second, &reader]).await;
    let refused = r#"{"error":"unavailable","message":"#;
    for client in [&first, &second, &reader] {
        let told = client.received();
        assert!(told.len() == 1 && told[0].starts_with(refused), "{told:?}");
    }
    assert_eq!(door.await.unwrap_err().code, Code::Unavailable);
    // What comes after it is decided on the current state.
    reader.say(&message("edit", "doc", 1));
    settled(&[&reader]).await;
    assert_eq!(reader.received().last().map(String::as_str), Some(r#"{"saved":1}"#));
}

#[tokio::test]
async fn a_row_is_decided_again_where_what_it_read_has_changed() {
    let (live, writer) = start().await;
    run(writer);
    let mut client = Client::open(&live, "a");
    let (snapshot, world) = meddling(&live, publish_once(&live, "doc"));
    client.say_under(&snapshot, &message("edit", "doc", 1));
    settled(&[&client]).await;
    assert_eq!(client.received(), [r#"{"error":"rejected","message":"stale at 1"}"#]);
    assert_eq!(world.asked.load(Relaxed), 2);
    // What changes elsewhere does not matter.
    let (snapshot, world) = meddling(&live, publish_once(&live, "other"));
    client.say_under(&snapshot, &message("edit", "doc", 2));
    settled(&[&client]).await;
    assert_eq!((client.received(), world.asked.load(Relaxed)), (vec![r#"{"saved":2}"#.to_owned()], 1));
    // Neither does what is only sent back.
    let (snapshot, world) = meddling(&live, publish_once(&live, "doc"));
    client.say_under(&snapshot, &message("look", "doc", 0));
    settled(&[&client]).await;
    assert_eq!((client.received(), world.asked.load(Relaxed)), (vec![r#"{"seen":2}"#.to_owned()], 1));
}

#[tokio::test]
async fn what_changes_each_time_is_a_conflict_in_the_end() {
    let (live, _writer) = start().await;
    let mut client = Client::open(&live, "a");
    let opening = live.clone();
    let (snapshot, world) = meddling(&live, move |nth| drop(Client::open(&opening, &nth.to_string())));
    client.say_under(&snapshot, r#"{"type":"few","n":1000}"#);
    assert_eq!(client.received(), [r#"{"error":"conflict","message":"others changed the same data at the same time; try again"}"#]);
    assert_eq!(world.asked.load(Relaxed), 64);
    // Such a message has done nothing, and does not hold up the next.
    client.say(r#"{"type":"few","n":1000}"#);
    assert_eq!(client.received(), [r#"{"few":true}"#]);
}

#[tokio::test]
async fn members_and_connections_are_what_a_row_read_them_to_be() {
    let (live, _writer) = start().await;
    let [mut first, mut second, mut third] = ["a", "b", "c"].map(|id| Client::open(&live, id));
    first.say(&message("watch", "lobby", 0));
    let (snapshot, world) = meddling(&live, move |nth| {
        if nth == 0 {
            second.say(&message("watch", "lobby", 0));
        }
    });
    third.say_under(&snapshot, r#"{"type":"seat"}"#);
    assert_eq!((third.received().len(), world.asked.load(Relaxed)), (1, 2));
    assert_eq!(live.hub.channel_report("lobby").unwrap().subscribers, 2);
    let opening = live.clone();
    let (snapshot, world) = meddling(&live, move |nth| {
        if nth == 0 {
            Client::open(&opening, "late");
        }
    });
    third.say_under(&snapshot, r#"{"type":"few","n":3}"#);
    assert_eq!((third.received(), world.asked.load(Relaxed)), (vec![r#"{"error":"rejected","message":"rejected"}"#.to_owned()], 2));
}

#[tokio::test]
async fn of_those_who_want_to_be_the_only_one_one_succeeds() {
    const ROUNDS: usize = 2000;
    let (live, _writer) = start().await;
    let start = std::sync::Barrier::new(2);
    let succeeded: Vec<Vec<bool>> = std::thread::scope(|threads| {
        let rounds = |mut client: Client| {
            let start = &start;
            move || {
                let round = |_| {
                    start.wait();
                    client.say(r#"{"type":"lead"}"#);
                    let leads = client.received() == [r#"{"leads":true}"#];
                    start.wait();
                    client.say(r#"{"type":"resign"}"#);
                    leads
                };
                (0..ROUNDS).map(round).collect()
            }
        };
        let running = ["a", "b"].map(|id| threads.spawn(rounds(Client::open(&live, id))));
        running.map(|thread| thread.join().unwrap()).into()
    });
    let wrong = succeeded[0].iter().zip(&succeeded[1]).filter(|(one, other)| one == other).count();
    assert_eq!(wrong, 0, "of {ROUNDS}");
}

#[tokio::test]
async fn who_is_to_join_once_something_is_committed_counts_already() {
    let (live, writer) = start().await;
    let [mut first, mut second, mut third, mut fourth] = ["a", "b", "c", "d"].map(|id| Client::open(&live, id));
    let sit = r#"{"type":"sit","channel":"doc"}"#;
    first.say(&message("watch", "lobby", 0));
    second.say(sit);
    third.say(sit);
    fourth.say(r#"{"type":"seat"}"#);
    assert_eq!([second.received(), third.received(), fourth.received()], [[""; 0]; 3], "all wait for the one who is to join");
    first.say(r#"{"type":"rise"}"#);
    let mut fifth = Client::open(&live, "e");
    fifth.say(r#"{"type":"seat"}"#);
    assert_eq!(live.hub.channel_report("lobby").unwrap().subscribers, 1);
    run(writer);
    settled(&[&first, &second, &third, &fourth, &fifth]).await;
    let rejected = r#"{"error":"rejected","message":"rejected"}"#;
    assert_eq!(
        (second.received(), third.received(), fourth.received()),
        (vec![seated()], vec![rejected.to_owned()], vec![rejected.to_owned()])
    );
    assert_eq!((first.received(), fifth.received()), (vec![r#"{"left":true}"#.to_owned()], vec![seated()]));
    assert_eq!(live.hub.channel_report("lobby").unwrap().subscribers, 2);
}

fn seated() -> String {
    r#"{"seated":true}"#.to_owned()
}

#[tokio::test]
async fn a_channel_that_has_no_past_yet_is_read_as_such() {
    let (live, writer) = start().await;
    run(writer);
    let mut client = Client::open(&live, "a");
    client.say(&message("edit", "room:1", 1));
    settled(&[&client]).await;
    assert_eq!(client.received(), [r#"{"saved":1}"#]);
    // Nothing comes in between …
    client.say(&message("enter", "room:2", 0));
    publish(&live, "room:2");
    crate::testing::shown(&live, "room:2", 1).await;
    assert_eq!(client.received(), [r#"{"seen":0}"#, r#"{"got":null,"o":1}"#]);
    // … or it is seen.
    let (snapshot, world) = meddling(&live, publish_once(&live, "room:3"));
    client.say_under(&snapshot, &message("enter", "room:3", 0));
    settled(&[&client]).await;
    publish(&live, "room:3");
    crate::testing::shown(&live, "room:3", 2).await;
    assert_eq!((client.received(), world.asked.load(Relaxed)), (vec![r#"{"seen":1}"#.to_owned(), r#"{"got":null,"o":2}"#.to_owned()], 2));
    client.say(r#"{"type":"twice"}"#);
    assert_eq!(client.received(), [r#"{"recovered":true}"#; 2]);
}

#[tokio::test]
async fn what_changes_between_two_looks_is_no_snapshot() {
    let (live, writer) = start().await;
    run(writer);
    let mut client = Client::open(&live, "a");
    publish(&live, "doc");
    let (snapshot, world) = meddling(&live, publish_once(&live, "doc"));
    client.say_under(&snapshot, &message("peer", "doc", 0));
    settled(&[&client]).await;
    assert_eq!((client.received(), world.asked.load(Relaxed)), (vec!["[2,2]".to_owned()], 2));
}

#[tokio::test]
async fn a_subscription_begins_behind_what_was_read() {
    for kind in ["enter", "recover"] {
        let (live, writer) = start().await;
        let mut client = Client::open(&live, "a");
        publish(&live, "doc");
        // One more event comes between the read and the join.
        let (snapshot, world) = meddling(&live, publish_once(&live, "doc"));
        client.say_under(&snapshot, &message(kind, "doc", 0));
        assert_eq!((client.received(), world.asked.load(Relaxed)), (vec![], 1), "{kind}");
        publish(&live, "doc");
        run(writer);
        crate::testing::shown(&live, "doc", 3).await;
        settled(&[&client]).await;
        assert_eq!(client.received(), [r#"{"seen":1}"#, r#"{"got":null,"o":2}"#, r#"{"got":null,"o":3}"#], "{kind}");
    }
}
