//! What channels promise changes while transactions wait for their commit: the order of a channel stays, and a position is given
//! once.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use tokio::task::yield_now;

use crate::live::Live;
use crate::model::{Json, Now};
use crate::pipeline::publish::{Destination, Proposal};
use crate::testing::{Client, paused, runtime};

const STORED: &str = "{ history: true }";
const PROMISES: [&str; 4] = [STORED, "{}", "{ history: { deliver: early } }", "{ history: { durability: relaxed, tail: 2 } }"];

/// A routes file with these promises of its two channels.
fn yaml(a: &str, b: &str) -> String {
    format!(
        r#"
version: 1
channels:
  a: {a}
  b: {b}
protocols:
  p:
    listen: localhost:1/
    messages:
      say: {{ to: $.channel, data: $.n }}
      both: {{ to: [a, b], data: $.n }}
      on: {{ join: $.channel }}
    deliver: {{ channel: $event.channel, epoch: $event.epoch, offset: $event.offset, n: $event.data }}
"#
    )
}

async fn become_(live: &Live, a: &str, b: &str) {
    let before = live.swap(runtime(&yaml(a, b), &[]), Now::read());
    live.retire(&before).await;
}

fn publish(live: &Live, channel: &str, n: usize) {
    let data = Json::parse(n.to_string().into()).unwrap();
    let proposal = Proposal { kind: "e".into(), data, metadata: None, origin: Arc::default(), id: None, except: None };
    live.publish(&live.current(), &[Destination::Channel(channel.into())], &proposal, Now::read()).unwrap();
}

/// An event as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
struct Seen {
    channel: String,
    epoch: String,
    offset: u64,
    n: usize,
}

fn seen(client: &Client) -> Vec<Seen> {
    let read = |text: String| serde_json::from_str(&text).unwrap();
    client.received().into_iter().map(read).collect()
}

/// Resolves when so many events have been seen.
async fn gather(reader: &Client, all: &mut Vec<Seen>, wanted: usize) {
    let there = async {
        while all.len() < wanted {
            yield_now().await;
            all.extend(seen(reader));
        }
    };
    let in_time = tokio::time::timeout(std::time::Duration::from_secs(10), there).await;
    assert!(in_time.is_ok(), "{} of {wanted}: {all:?}", all.len());
}

fn reader(live: &Arc<Live>) -> Client {
    let mut reader = Client::open(live, "reader");
    reader.say(r#"{"type":"on","channel":"a"}"#);
    reader.say(r#"{"type":"on","channel":"b"}"#);
    reader
}

#[tokio::test]
async fn what_is_not_stored_waits_behind_what_is() {
    let (live, writer) = paused(&yaml(STORED, "{}"), &[]).await;
    let reader = reader(&live);
    publish(&live, "a", 1);
    become_(&live, "{}", "{}").await;
    publish(&live, "a", 2);
    publish(&live, "b", 3);
    let others = seen(&reader);
    assert_eq!(others.iter().map(|event| event.n).collect::<Vec<_>>(), [3], "only the channel itself waits");
    become_(&live, STORED, "{}").await;
    publish(&live, "a", 4);
    assert_eq!(seen(&reader), []);
    tokio::spawn(writer.run(std::future::pending()));
    let mut all = Vec::new();
    gather(&reader, &mut all, 3).await;
    assert_eq!(all.iter().map(|event| (event.n, event.offset)).collect::<Vec<_>>(), [(1, 1), (2, 2), (4, 3)]);
    assert_ne!(all[0].epoch, all[1].epoch, "a restart would go on after the first");
    assert_eq!(all[1].epoch, all[2].epoch);
    let at = live.hub.position("a").unwrap();
    assert_eq!((at.first, at.offset), (2, 3));
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Happens {
    Says(usize, &'static str),
    SaysToBoth(usize),
    Publish(&'static str),
    Reload(usize, usize),
    Pause(usize),
}

fn happens() -> impl Strategy<Value = Happens> {
    let channel = || prop_oneof![Just("a"), Just("b")];
    let promise = || 0..PROMISES.len();
    prop_oneof![
        4 => (0..2_usize, channel()).prop_map(|(who, channel)| Happens::Says(who, channel)),
        4 => (0..2_usize).prop_map(Happens::SaysToBoth),
        4 => channel().prop_map(Happens::Publish),
        3 => (promise(), promise()).prop_map(|(a, b)| Happens::Reload(a, b)),
        2 => (0..20_usize).prop_map(Happens::Pause),
    ]
}

async fn holds(steps: Vec<Happens>) {
    let (live, writer) = paused(&yaml(STORED, "{}"), &[]).await;
    let reader = reader(&live);
    let mut senders = [Client::open(&live, "s0"), Client::open(&live, "s1")];
    tokio::spawn(writer.run(std::future::pending()));
    let mut all = Vec::new();
    // What each sender sent to each channel.
    let mut sent: HashMap<(&str, Option<usize>), Vec<usize>> = HashMap::new();
    for (n, step) in steps.into_iter().enumerate() {
        let mut note = |channel, who| sent.entry((channel, who)).or_default().push(n);
        match step {
            Happens::Says(who, channel) => {
                note(channel, Some(who));
                senders[who].say(&format!(r#"{{"type":"say","channel":"{channel}","n":{n}}}"#));
            }
            Happens::SaysToBoth(who) => {
                note("a", Some(who));
                note("b", Some(who));
                senders[who].say(&format!(r#"{{"type":"both","n":{n}}}"#));
            }
            Happens::Publish(channel) => {
                note(channel, None);
                publish(&live, channel, n);
            }
            Happens::Reload(a, b) => become_(&live, PROMISES[a], PROMISES[b]).await,
            Happens::Pause(turns) => {
                for _ in 0..turns {
                    yield_now().await;
                }
            }
        }
        all.extend(seen(&reader));
    }
    let wanted: usize = sent.values().map(Vec::len).sum();
    gather(&reader, &mut all, wanted).await;
    for channel in ["a", "b"] {
        let events: Vec<&Seen> = all.iter().filter(|event| event.channel == channel).collect();
        assert!(events.windows(2).all(|pair| pair[0].offset < pair[1].offset), "{events:?}");
        let at = live.hub.position(channel).unwrap();
        assert_eq!(at.offset, events.last().map_or(0, |event| event.offset));
        // What can be recovered is what there was.
        if let Some(tail) = live.hub.tail_after(channel, at.first.max(1) - 1, usize::MAX) {
            let since = events.iter().filter(|event| event.offset >= at.first).map(|event| event.offset);
            assert_eq!(tail.iter().map(|event| event.offset).collect::<Vec<_>>(), since.collect::<Vec<_>>());
            assert!(tail.iter().all(|event| event.epoch == at.epoch));
        }
    }
    for ((channel, who), mut order) in sent {
        let of_one = all.iter().filter(|event| event.channel == channel && order.contains(&event.n)).map(|event| event.n);
        let of_one: Vec<usize> = of_one.collect();
        if who.is_none() {
            // Requests have no order among each other.
            order = of_one.clone();
        }
        assert_eq!(of_one, order, "{who:?} on {channel}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn the_order_holds_whatever_is_promised_when(steps in proptest::collection::vec(happens(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(holds(steps));
    }
}
