//! However readers come and go, and whatever happens to the server meanwhile: through every endpoint each gets all of it, once,
//! in order, and is told so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinSet, block_in_place};

use super::Entry;
use crate::support::{Backend, Client, KeptAlive, Server, Setup, Sse, on_both, soon};

/// `few` has next to nothing in memory: what was missed is read from the database.
const ROUTES: &str = r#"
channels:
  many: { history: { tail: 100000, tail_bytes: 64MiB } }
  few: { history: { tail: 2 } }
protocols:
  p:
    listen: localhost:0/
    codec: json
    type: /op
    limits: { rate: none }
    messages:
      join:
        join: { channel: $.channel, recover: { since: $.since, epoch: $.epoch } }
        reply: { joined: $.channel, recovered: $recovery.recovered, missed: $recovery.missed }
    deliver: { channel: $event.channel, offset: $event.offset, epoch: $event.epoch, by: $event.data.by, n: $event.data.n }
    error: { error: $error.message }
"#;

const CHANNELS: [&str; 2] = ["many", "few"];
const WRITERS: usize = 3;
const EACH: u64 = 150;
/// Who writes the last event of a channel.
const LAST: &str = "the last";

/// Where the server is; another address after each start.
#[derive(Clone)]
struct Address {
    api: String,
    socket: String,
}

/// What a reader has got so far.
#[derive(Default)]
struct Reader {
    name: String,
    /// Offset and epoch of the newest event, by channel.
    at: HashMap<String, (u64, String)>,
    /// The last `id` of a stream.
    id: Option<String>,
    /// Channels whose last event has come.
    ended: usize,
}

impl Reader {
    /// Takes the next event of a channel, which it must be.
    fn take(&mut self, channel: &str, event: &Entry) {
        let (offset, epoch) = self.at.entry(channel.into()).or_insert_with(|| (0, event.epoch.clone()));
        assert_eq!((event.offset, &event.epoch), (*offset + 1, &*epoch), "{}: {channel}: {event:?}", self.name);
        *offset += 1;
        self.ended += usize::from(event.by == LAST);
    }

    fn is_done(&self) -> bool {
        self.ended == CHANNELS.len()
    }

    fn since(&self, channel: &str) -> (u64, Option<&str>) {
        self.at.get(channel).map_or((0, None), |(offset, epoch)| (*offset, Some(epoch)))
    }

    /// What every endpoint says of a position that it can serve.
    fn is_told(&self, told: &Value) {
        assert_eq!((&told["recovered"], &told["missed"]), (&json!(true), &json!(0)), "{}: {told}", self.name);
    }
}

/// How a reader reads until it has had so many events, has all, or nobody is there any more.
#[derive(Debug, Clone, Copy)]
enum Endpoint {
    Socket,
    Stream,
    Poll,
    LongPoll,
}

const ENDPOINTS: [Endpoint; 4] = [Endpoint::Socket, Endpoint::Stream, Endpoint::Poll, Endpoint::LongPoll];

async fn visit(endpoint: Endpoint, at: &Address, reader: &mut Reader, events: usize) -> Option<()> {
    match endpoint {
        Endpoint::Socket => socket(at, reader, events).await,
        Endpoint::Stream => stream(at, reader, events).await,
        Endpoint::Poll => poll(at, reader, events, "").await,
        Endpoint::LongPoll => poll(at, reader, events, "&wait=500ms").await,
    }
}

async fn socket(at: &Address, reader: &mut Reader, events: usize) -> Option<()> {
    let mut client = Client::connect_or_end(&at.socket).await?;
    for channel in CHANNELS {
        let (since, epoch) = reader.since(channel);
        let join = json!({ "op": "join", "channel": channel, "since": since, "epoch": epoch });
        client.send_or_end(&join).await?;
    }
    let mut left = events;
    while left > 0 && !reader.is_done() {
        let message = client.next_or_end().await?;
        if message["joined"].is_string() {
            reader.is_told(&message);
        } else {
            reader.take(message["channel"].as_str().unwrap(), &Entry::read(&message));
            left -= 1;
        }
    }
    Some(())
}

async fn stream(at: &Address, reader: &mut Reader, events: usize) -> Option<()> {
    let url = format!("{}/api/events?channel=many&channel=few&since=-15m", at.api);
    let mut stream = Sse::open(&url, reader.id.as_deref()).await?;
    let came_back = reader.id.is_some();
    let mut left = events;
    while left > 0 && !reader.is_done() {
        let told = stream.next().await?;
        reader.id = Some(told.id);
        let data: Value = serde_json::from_str(&told.data).unwrap();
        match told.name.as_str() {
            "position" if came_back => reader.is_told(&data),
            "position" => {}
            "message" => {
                reader.take(data["channel"].as_str().unwrap(), &Entry::read(&data));
                left -= 1;
            }
            other => panic!("{other}: {data}"),
        }
    }
    Some(())
}

async fn poll(at: &Address, reader: &mut Reader, events: usize, wait: &str) -> Option<()> {
    let mut http = KeptAlive::try_connect(&at.api).await?;
    let mut left = events;
    while left > 0 && !reader.is_done() {
        let left_before = left;
        for channel in CHANNELS {
            let (since, epoch) = reader.since(channel);
            let epoch = epoch.map(|epoch| format!("&epoch={epoch}")).unwrap_or_default();
            let path = format!("/api/channels/{channel}/history?since={since}{epoch}&limit={}{wait}", left.clamp(1, 100));
            let answer = http.ask("GET", &path, None).await?;
            if answer.status == 503 {
                return None;
            }
            assert_eq!(answer.status, 200, "{answer:?}");
            let page: Value = serde_json::from_str(&answer.body).unwrap();
            reader.is_told(&page);
            for event in page["events"].as_array().unwrap() {
                reader.take(channel, &Entry::read(event));
                left = left.saturating_sub(1);
            }
            assert_eq!(page["offset"], reader.since(channel).0);
        }
        if left == left_before {
            // As who asks now and then, only more often.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Some(())
}

/// Comes and goes as planned, then stays until it has all.
async fn read(endpoint: Endpoint, visits: Vec<usize>, address: watch::Receiver<Address>) {
    let mut reader = Reader { name: format!("{endpoint:?} {visits:?}"), ..Reader::default() };
    let mut visits = visits.into_iter();
    while !reader.is_done() {
        let at = address.borrow().clone();
        if visit(endpoint, &at, &mut reader, visits.next().unwrap_or(usize::MAX)).await.is_none() {
            // As a client that was cut off, only sooner.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Publishes to both channels, starting over where the server went away. What was not acknowledged is written or not.
async fn write(by: usize, address: watch::Receiver<Address>, acknowledged: Arc<watch::Sender<usize>>) {
    let mut n = 0;
    while n < EACH {
        let at = address.borrow().clone();
        let Some(mut http) = KeptAlive::try_connect(&at.api).await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        while n < EACH {
            n += 1;
            // To one, to the other, and to both at once.
            let channels = [json!("many"), json!("few"), json!(CHANNELS)];
            let body = json!({ "channel": channels[n as usize % 3], "data": { "by": by.to_string(), "n": n } });
            let Some(answer) = http.ask("POST", "/api/publish", Some(&body)).await else { break };
            // A disk that stalls for seconds is not a failure of the server.
            assert!([202, 503].contains(&answer.status), "{answer:?}");
            acknowledged.send_modify(|count| *count += 1);
        }
    }
}

fn address(server: &Server) -> Address {
    Address { api: server.http("api", ""), socket: server.url("p").to_owned() }
}

/// One round: readers at every endpoint, each with its plan, and a server that is killed after so many acknowledgements.
async fn round(backend: Backend, visits: Vec<Vec<usize>>, killed_after: Option<usize>) {
    let mut server = Setup::own(ROUTES).backend(backend).start();
    let (moved, here) = watch::channel(address(&server));
    let acknowledged = Arc::new(watch::Sender::new(0));
    let (mut readers, mut writers) = (JoinSet::new(), JoinSet::new());
    for (i, visits) in visits.into_iter().enumerate() {
        readers.spawn(read(ENDPOINTS[i % ENDPOINTS.len()], visits, here.clone()));
    }
    for by in 0..WRITERS {
        writers.spawn(write(by, here.clone(), acknowledged.clone()));
    }
    if let Some(enough) = killed_after {
        let mut counted = acknowledged.subscribe();
        soon("enough acknowledgements", counted.wait_for(|count| *count >= enough)).await.unwrap();
        server = block_in_place(|| server.kill().setup.start());
        moved.send(address(&server)).unwrap();
    }
    while let Some(done) = soon("the writers", writers.join_next()).await {
        done.unwrap();
    }
    for channel in CHANNELS {
        server.publish(&json!({ "channel": channel, "data": { "by": LAST, "n": 0 } })).await;
    }
    while let Some(done) = soon("every reader has all", readers.join_next()).await {
        done.unwrap();
    }
}

on_both! {
    async fn through_every_endpoint_all_comes_once_and_in_order(backend) {
        let config = ProptestConfig { cases: 6, failure_persistence: None, max_shrink_iters: 0, ..ProptestConfig::default() };
        let plan = (
            prop::collection::vec(prop::collection::vec(0..200usize, 1..10), 2 * ENDPOINTS.len()),
            prop::option::of(1..WRITERS * EACH as usize / 2),
        );
        let held = TestRunner::new(config).run(&plan, |(visits, killed_after)| {
            block_in_place(|| Handle::current().block_on(round(backend, visits, killed_after)));
            Ok(())
        });
        held.unwrap();
    }
}
