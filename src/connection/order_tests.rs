//! Whatever sockets take and whoever publishes: every member gets every event once, in the order of offsets, and a client sees
//! what it caused before the answer. A hundred runs, with several publishers at once on several threads.

use std::collections::HashMap;
use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::yield_now;

use super::run;
use crate::config::plan::ProtocolPlan;
use crate::connection::Admitted;
use crate::hub::{Connection, Socket};
use crate::live::Live;
use crate::model::{Close, Json, Now};
use crate::pipeline::publish::{Destination, Proposal};
use crate::testing::{Client, live, received};

const RUNS: u64 = 100;
const MEMBERS: usize = 5;
const PUBLISHERS: usize = 3;
const EACH: usize = 24;

const YAML: &str = r#"
version: 1
channels:
  "live:{n}": {}
  "kept:{n}": { history: true }
protocols:
  p:
    listen: localhost:1/
    messages:
      on: { join: $.channel }
      say: { to: $.channel, data: $.n, reply: { said: $.n } }
    deliver: { in: $event.channel, o: $event.offset, d: $event.data }
"#;

/// The same, where scripts write the events: a condition for all, and a function for each receiver.
const SCRIPTED: &str = r#"
version: 1
channels:
  "live:{n}": {}
  "kept:{n}": { history: true }
protocols:
  p:
    listen: localhost:1/
    messages:
      on: { join: $.channel }
      say: { to: $.channel, data: $.n, reply: { said: $.n } }
    deliver:
      - { when: $event.data % 3 == 0, send: { in: $event.channel, o: $event.offset, d: $event.data } }
      - written
"#;

const PLUGIN: &str = r#"
fn written(event, sub, conn) { #{ "in": event.channel, o: event.offset, d: event.data } }
"#;

/// A socket that takes all, a little, or nothing, as its numbers come.
#[derive(Clone, Debug)]
struct Choking(Arc<(AtomicU64, Mutex<Vec<u8>>)>);

impl Choking {
    fn new(seed: u64) -> Self {
        Self(Arc::new((AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1), Mutex::default())))
    }

    /// Marsaglia's xorshift.
    fn next(&self) -> u64 {
        let mut x = self.0.0.load(Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.0.store(x, Relaxed);
        x
    }
}

impl Socket for Choking {
    fn try_read(&self, _: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn try_write(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let all: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect();
        let number = self.next();
        let takes = match number % 4 {
            0 => return Err(ErrorKind::WouldBlock.into()),
            1 => all.len().min(1 + (number >> 8) as usize % 90),
            _ => all.len(),
        };
        self.0.1.lock().extend_from_slice(&all[..takes]);
        Ok(takes)
    }

    fn poll_readable(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.next().is_multiple_of(3) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn close(&self) {}
}

/// A client that is on both channels and whose socket chokes.
struct Member {
    client: Client,
    socket: Choking,
}

impl Member {
    fn open(live: &Arc<Live>, id: &str, seed: u64, channels: &[String]) -> Self {
        let socket = Choking::new(seed);
        let mut client = Client::open(live, id);
        client.connection.outbox.attach(Box::new(socket.clone()));
        channels.iter().for_each(|channel| client.say(&format!(r#"{{"type":"on","channel":"{channel}"}}"#)));
        tokio::spawn(run(Admitted { live: live.clone(), connection: client.connection.clone() }, plan(live), Bytes::new(), None, ()));
        Self { client, socket }
    }

    fn has_all(&self) -> bool {
        self.client.connection.outbox.measure().frames == 0
    }

    fn received(&self) -> Vec<serde_json::Value> {
        received(&self.socket.0.1.lock()).iter().map(|text| serde_json::from_str(text).unwrap()).collect()
    }
}

/// Says numbers, now on one channel, now on the other; one publisher comes through another door.
fn plan(live: &Live) -> Arc<ProtocolPlan> {
    live.current().runtime.plan.protocols[0].clone()
}

async fn publish(live: Arc<Live>, mut member: Option<Member>, publisher: usize, channels: [String; 2]) -> Option<Member> {
    for n in 0..EACH {
        let (channel, n) = (&channels[n % 2], publisher * 1000 + n);
        match &mut member {
            Some(member) => member.client.say(&format!(r#"{{"type":"say","channel":"{channel}","n":{n}}}"#)),
            None => {
                let data = Json::of(&n);
                let proposal = Proposal { kind: "say".into(), data, metadata: None, origin: Arc::default(), id: None, except: None };
                let accepted =
                    live.publish(&live.current(), &[Destination::Channel(channel.as_str().into())], &proposal, Now::read()).unwrap();
                accepted.settled(&live.store).await.unwrap();
            }
        }
        if n % 5 == 0 {
            yield_now().await;
        }
    }
    member
}

fn check(run: u64, told: &[serde_json::Value], own: Option<usize>) {
    let mut next: HashMap<&str, u64> = HashMap::new();
    let mut last: HashMap<(&str, u64), u64> = HashMap::new();
    let mut seen = Vec::new();
    for one in told {
        if let Some(said) = one["said"].as_u64() {
            assert!(seen.contains(&said), "run {run}: the answer for {said} came before what it answers");
            continue;
        }
        let (channel, offset, n) = (one["in"].as_str().unwrap(), one["o"].as_u64().unwrap(), one["d"].as_u64().unwrap());
        let expected = next.entry(channel).or_insert(1);
        assert_eq!(offset, *expected, "run {run}: {channel}");
        *expected += 1;
        let before = last.insert((channel, n / 1000), n);
        assert!(before.is_none_or(|before| before < n), "run {run}: {channel} turned {n} round");
        seen.push(n);
    }
    assert_eq!(seen.len(), (PUBLISHERS + 1) * EACH, "run {run}");
    let answers = told.iter().filter(|one| one.get("said").is_some()).count();
    assert_eq!(answers, own.map_or(0, |_| EACH), "run {run}");
}

async fn drained(connections: impl Fn() -> Vec<Arc<Connection>>, done: impl Fn() -> bool) {
    let all = async {
        // In this order: what no longer waits for its commit is in the outboxes.
        while connections().iter().any(|connection| connection.is_waiting()) || !done() {
            yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn everyone_gets_everything_once_and_in_order() {
    all_runs(live(YAML, &[]).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn scripts_that_write_events_change_nothing_about_their_order() {
    all_runs(live(SCRIPTED, &[("p", PLUGIN)]).await).await;
}

async fn all_runs(live: Arc<Live>) {
    for nth in 0..RUNS {
        let channels = [format!("live:{nth}"), format!("kept:{nth}")];
        let member = |name: &str, who: usize| Member::open(&live, &format!("{name}-{nth}-{who}"), nth * 100 + who as u64, &channels);
        let listeners: Vec<Member> = (0..MEMBERS).map(|who| member("listener", who)).collect();
        // All are there before anyone says anything.
        let publishers: Vec<_> = (0..=PUBLISHERS).map(|who| (who < PUBLISHERS).then(|| member("publisher", MEMBERS + who))).collect();
        let mut publishing = tokio::task::JoinSet::new();
        for (who, member) in publishers.into_iter().enumerate() {
            publishing.spawn(publish(live.clone(), member, who, channels.clone()));
        }
        let mut members: Vec<(Option<usize>, Member)> = listeners.into_iter().map(|member| (None, member)).collect();
        while let Some(published) = publishing.join_next().await {
            members.extend(published.unwrap().map(|member| (Some(0), member)));
        }
        let connections = || members.iter().map(|(_, member)| member.client.connection.clone()).collect();
        drained(connections, || members.iter().all(|(_, member)| member.has_all())).await;
        for (own, member) in &members {
            check(nth, &member.received(), *own);
            member.client.connection.outbox.close(Close::GoingAway);
        }
    }
}
