//! What is seen before the commit, and what waits for it. The writer runs when the test lets it.

use std::sync::Arc;

use tokio::task::yield_now;

use crate::live::Live;
use crate::model::{Close, Code, Now};
use crate::pipeline::publish::{Destination, Proposal};
use crate::store::Writer;
use crate::testing::{Client, paused, shown};

const YAML: &str = r#"
version: 1
channels:
  sure: { history: true }
  early: { history: { deliver: early } }
  relaxed: { history: { durability: relaxed } }
  live: {}
protocols:
  p:
    listen: localhost:1/
    messages:
      ping: { reply: { pong: $.n } }
      say: { to: $.channel, data: $.n, reply: { said: $.n } }
      both: { to: [sure, live], data: $.n }
      mixed: { to: [live, sure], data: $.n }
      soon: { to: [live, early], data: $.n }
      join: { join: $.channel, to: sure, data: 0, reply: { joined: $.channel } }
      on: { join: $.channel }
      who: { set: { user: $.user }, to: sure, data: 0 }
    deliver: { got: $event.data, o: $event.offset }
    error: { error: $error.message }
"#;

/// A running server without the log's writer.
async fn start() -> (Arc<Live>, Writer) {
    paused(YAML, &[]).await
}

fn run(writer: Writer) {
    tokio::spawn(writer.run(std::future::pending()));
}

/// Resolves when nothing of a connection waits any more.
async fn settled(client: &Client) {
    while client.connection.is_waiting() {
        yield_now().await;
    }
}

fn say(channel: &str, n: u32) -> String {
    format!(r#"{{"type":"say","channel":"{channel}","n":{n}}}"#)
}

fn on(live: &Arc<Live>, id: &str, channels: &[&str]) -> Client {
    let mut client = Client::open(live, id);
    channels.iter().for_each(|channel| client.say(&format!(r#"{{"type":"on","channel":"{channel}"}}"#)));
    client
}

#[tokio::test]
async fn nobody_sees_what_is_not_committed_and_the_answer_waits_too() {
    let (live, writer) = start().await;
    let reader = on(&live, "reader", &["sure"]);
    let mut sender = on(&live, "sender", &["sure"]);
    sender.say(&say("sure", 1));
    sender.say(r#"{"type":"ping","n":2}"#);
    sender.say(&say("sure", 3));
    for _ in 0..100 {
        yield_now().await;
    }
    assert_eq!((reader.received(), sender.received()), (vec![], vec![]));
    assert!(sender.connection.is_waiting() && sender.connection.may_go_on());
    run(writer);
    settled(&sender).await;
    assert_eq!(reader.received(), [r#"{"got":1,"o":1}"#, r#"{"got":3,"o":2}"#]);
    let all = [r#"{"got":1,"o":1}"#, r#"{"said":1}"#, r#"{"pong":2}"#, r#"{"got":3,"o":2}"#, r#"{"said":3}"#];
    assert_eq!(sender.received(), all, "in the order in which it was asked");
}

#[tokio::test]
async fn early_is_seen_at_once_and_answered_after_the_commit_and_relaxed_waits_for_nothing() {
    let (live, writer) = start().await;
    let reader = on(&live, "reader", &["early", "relaxed"]);
    let mut sender = Client::open(&live, "sender");
    sender.say(&say("relaxed", 1));
    assert_eq!(sender.received(), [r#"{"said":1}"#]);
    sender.say(&say("early", 2));
    assert_eq!(reader.received(), [r#"{"got":1,"o":1}"#, r#"{"got":2,"o":1}"#]);
    assert_eq!(sender.received(), [""; 0]);
    run(writer);
    settled(&sender).await;
    assert_eq!(sender.received(), [r#"{"said":2}"#]);
}

#[tokio::test]
async fn a_transaction_is_seen_as_a_whole_though_a_part_of_it_needed_no_commit() {
    let (live, writer) = start().await;
    let reader = on(&live, "reader", &["sure", "live"]);
    let mut sender = Client::open(&live, "sender");
    sender.say(r#"{"type":"both","n":1}"#);
    assert_eq!(reader.received(), [""; 0]);
    // Others publish to channels without a history meanwhile; that does not wait.
    let mut other = Client::open(&live, "other");
    other.say(&say("live", 2));
    assert_eq!(reader.received(), [r#"{"got":2,"o":1}"#]);
    run(writer);
    settled(&sender).await;
    assert_eq!(reader.received(), [r#"{"got":1,"o":1}"#, r#"{"got":1,"o":2}"#]);
}

#[tokio::test]
async fn what_is_not_stored_is_not_seen_before_what_may_be_refused_beside_it() {
    let (live, writer) = start().await;
    let reader = on(&live, "reader", &["sure", "live", "early"]);
    let [mut sender, mut other] = ["sender", "other"].map(|id| Client::open(&live, id));
    sender.say(r#"{"type":"mixed","n":1}"#);
    assert_eq!(reader.received(), [""; 0]);
    other.say(r#"{"type":"soon","n":2}"#);
    assert_eq!(reader.received(), [r#"{"got":2,"o":1}"#, r#"{"got":2,"o":1}"#]);
    run(writer);
    settled(&sender).await;
    assert_eq!(reader.received(), [r#"{"got":1,"o":2}"#, r#"{"got":1,"o":1}"#]);
}

#[tokio::test]
async fn what_changes_the_connection_holds_back_its_next_message() {
    let (live, writer) = start().await;
    let mut client = Client::open(&live, "c");
    client.say(r#"{"type":"join","channel":"live"}"#);
    assert!(!client.connection.may_go_on());
    assert_eq!(live.hub.channel_report("live").map_or(0, |report| report.subscribers), 0);
    run(writer);
    settled(&client).await;
    assert!(client.connection.may_go_on());
    assert_eq!(client.received(), [r#"{"joined":"live"}"#]);
    assert_eq!(live.hub.channel_report("live").unwrap().subscribers, 1);
}

#[tokio::test]
async fn a_connection_that_has_ended_joins_nothing_afterwards() {
    let (live, writer) = start().await;
    let mut client = Client::open(&live, "c");
    client.say(r#"{"type":"join","channel":"live"}"#);
    client.say(r#"{"type":"who","user":"u"}"#);
    live.closed(&client.connection, &Close::Lost, Now::read());
    run(writer);
    shown(&live, "sure", 2).await;
    settled(&client).await;
    assert_eq!(live.hub.channel_report("live").map_or(0, |report| report.subscribers), 0);
    assert!(live.hub.of_user("u").is_empty());
    assert_eq!(live.hub.connection_count(None), 0);
}

#[tokio::test]
async fn a_connection_has_so_much_waiting_and_no_more() {
    let (live, writer) = start().await;
    let mut client = Client::open(&live, "c");
    let mut count = 0;
    while client.connection.may_go_on() {
        client.say(&say("sure", count));
        count += 1;
    }
    assert_eq!(count, 256);
    run(writer);
    settled(&client).await;
    assert_eq!(client.received().len(), 256);
}

#[tokio::test]
async fn a_door_hears_when_it_is_stored_or_that_it_never_will_be() {
    let (live, writer) = start().await;
    let proposal =
        Proposal { kind: "e".into(), data: crate::model::Json::null(), metadata: None, origin: Arc::default(), id: None, except: None };
    let publish = |channel: &str| live.publish(&live.current(), &[Destination::Channel(channel.into())], &proposal, Now::read()).unwrap();
    let (sure, early, relaxed) = (publish("sure"), publish("early"), publish("relaxed"));
    assert_eq!(relaxed.settled(&live.store).await.unwrap().published[0].event.offset, 1);
    drop(writer);
    for accepted in [sure, early] {
        assert_eq!(accepted.settled(&live.store).await.unwrap_err().code, Code::Unavailable);
    }
}

#[tokio::test]
async fn who_waits_for_what_is_stored_to_be_shown_is_told() {
    let (live, writer) = start().await;
    let mut sender = Client::open(&live, "sender");
    sender.say(&say("sure", 1));
    let finished = live.commits.finished();
    assert_eq!(live.hub.position("sure").map(|at| at.offset), Some(0));
    run(writer);
    finished.await;
    assert_eq!(live.hub.position("sure").map(|at| at.offset), Some(1));
}
