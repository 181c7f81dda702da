//! Killed at any moment, the log has everything it acknowledged, where it acknowledged it, and nobody ever saw more.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Entry, log_beyond};
use crate::support::{Client, KeptAlive, Server, Setup, on_both};

const ROUTES: &str = r#"
channels:
  "log:{n}": { history: true }
  "early:{n}": { history: { deliver: early } }
  "relaxed:{n}": { history: { durability: relaxed } }
protocols:
  p:
    listen: localhost:0/
    codec: json
    type: /op
    messages:
      hear: { join: "{$.channel}", reply: { hears: $.channel } }
      put: { to: "{$.channel}", data: { by: $.by, n: $.n }, reply: { stored: $.n } }
    deliver: { channel: $event.channel, offset: $event.offset, epoch: $event.epoch, by: $event.data.by, n: $event.data.n }
    error: { error: $error.message }
"#;

const WRITERS: usize = 8;
const SUBSCRIBERS: usize = 2;

/// What a writer was told is stored.
struct Acknowledged {
    channel: String,
    by: String,
    n: u64,
    /// Offset and epoch, if the endpoint reports them.
    place: Option<(u64, String)>,
}

/// What was known outside when the server died.
#[derive(Default)]
struct Known {
    acknowledged: Vec<Acknowledged>,
    /// What subscribers were sent, by channel.
    seen: HashMap<String, Vec<Entry>>,
}

/// What the log of each channel held when it was last read.
#[derive(Default)]
struct Ledger(HashMap<String, Vec<Entry>>);

/// Publishes over HTTP until the connection ends. Every fourth time to two channels at once.
async fn publish_by_http(api: String, channels: Vec<String>, by: String) -> Vec<Acknowledged> {
    let mut http = KeptAlive::connect(&api).await;
    let mut acknowledged = Vec::new();
    for n in 0.. {
        let one = &channels[n as usize % channels.len()];
        let target = if n % 4 == 3 { json!(channels[..2]) } else { json!(one) };
        let body = json!({ "channel": target, "data": { "by": by, "n": n } });
        let Some(answer) = http.ask("POST", "/api/publish", Some(&body)).await else { break };
        // If the disk stalls for seconds nothing is acknowledged; that is not a failure of the server.
        if answer.status == 503 {
            continue;
        }
        assert_eq!(answer.status, 202, "{answer:?}");
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        for one in answer.as_array().unwrap_or(&vec![answer.clone()]) {
            let place = (one["offset"].as_u64().unwrap(), one["epoch"].as_str().unwrap().to_owned());
            acknowledged.push(Acknowledged { channel: one["channel"].as_str().unwrap().into(), by: by.clone(), n, place: Some(place) });
        }
    }
    acknowledged
}

/// Publishes over a WebSocket until it ends. The reply is the acknowledgement.
async fn publish_by_socket(mut client: Client, channels: Vec<String>, by: String) -> Vec<Acknowledged> {
    let mut acknowledged = Vec::new();
    for n in 0.. {
        let channel = &channels[n as usize % channels.len()];
        let Some(answer) = client.ask_or_end(&json!({ "op": "put", "channel": channel, "by": by, "n": n })).await else { break };
        assert_eq!(answer, json!({ "stored": n }));
        acknowledged.push(Acknowledged { channel: channel.clone(), by: by.clone(), n, place: None });
    }
    acknowledged
}

/// Hears channels until the connection ends.
async fn listen(mut client: Client) -> HashMap<String, Vec<Entry>> {
    let mut seen: HashMap<String, Vec<Entry>> = HashMap::new();
    while let Some(event) = client.next_or_end().await {
        seen.entry(event["channel"].as_str().unwrap().into()).or_default().push(Entry::read(&event));
    }
    seen
}

/// Writers write and subscribers listen until the server is killed, which it is at a moment nobody knows before.
async fn disturb(server: Server, round: usize, channels: &[String]) -> (Known, Setup) {
    let (mut writers, mut listeners) = (JoinSet::new(), JoinSet::new());
    for _ in 0..SUBSCRIBERS {
        let mut client = server.client("p").await;
        for channel in channels {
            assert_eq!(client.ask(&json!({ "op": "hear", "channel": channel })).await["hears"], *channel);
        }
        listeners.spawn(listen(client));
    }
    for writer in 0..WRITERS {
        let (channels, by) = (channels.to_vec(), format!("{round}-{writer}"));
        if writer % 2 == 0 {
            writers.spawn(publish_by_http(server.http("api", "/"), channels, by));
        } else {
            writers.spawn(publish_by_socket(server.client("p").await, channels, by));
        }
    }
    // Not to wait for anything: the moment is the test.
    tokio::time::sleep(Duration::from_millis(50 + u64::from(Uuid::new_v4().as_fields().0 % 450))).await;
    let ended = tokio::task::spawn_blocking(move || server.kill()).await.unwrap();
    let mut known = Known { acknowledged: writers.join_all().await.into_iter().flatten().collect(), ..Known::default() };
    for seen in listeners.join_all().await {
        for (channel, entries) in seen {
            known.seen.entry(channel).or_default().extend(entries);
        }
    }
    (known, ended.setup)
}

impl Ledger {
    /// Reads what the log has beyond what is known of it. There is no gap and no double.
    async fn read_on(&mut self, server: &Server, channels: &[String]) {
        for channel in channels {
            let entries = self.0.entry(channel.clone()).or_default();
            entries.extend(log_beyond(server, channel, entries.len() as u64).await);
            for (i, entry) in entries.iter().enumerate() {
                assert_eq!(entry.offset, i as u64 + 1, "a gap or a double in {channel}");
            }
            let names: HashSet<_> = entries.iter().map(Entry::name).collect();
            assert_eq!(names.len(), entries.len(), "an event stands twice in {channel}");
        }
    }

    fn at(&self, channel: &str, offset: u64) -> Option<&Entry> {
        self.0[channel].get(usize::try_from(offset - 1).unwrap())
    }

    /// Everything that was acknowledged is there, where it was said to be.
    fn has_acknowledged(&self, known: &Known) {
        let names: HashMap<&str, HashSet<_>> =
            self.0.iter().map(|(channel, entries)| (&**channel, entries.iter().map(Entry::name).collect())).collect();
        for Acknowledged { channel, by, n, place } in &known.acknowledged {
            assert!(names[&**channel].contains(&(&**by, *n)), "{channel}: {by} {n} was acknowledged at {place:?} and is lost");
            if let Some((offset, epoch)) = place {
                let wanted = Entry { offset: *offset, epoch: epoch.clone(), by: by.clone(), n: *n };
                assert_eq!(self.at(channel, *offset), Some(&wanted), "{channel}");
            }
        }
    }

    /// Nobody saw what is not there.
    fn has_seen(&self, known: &Known) {
        for (channel, seen) in &known.seen {
            for entry in seen {
                assert_eq!(self.at(channel, entry.offset), Some(entry), "{channel}: seen, and not in the log");
            }
        }
    }

    /// What was published together is there together.
    fn holds_pairs(&self, channels: &[String]) {
        let pairs = |channel: &String| -> HashSet<(String, u64)> {
            let of_http = |entry: &&Entry| entry.n % 4 == 3 && entry.by.ends_with(['0', '2', '4', '6']);
            self.0[channel].iter().filter(of_http).map(|entry| (entry.by.clone(), entry.n)).collect()
        };
        assert_eq!(pairs(&channels[0]), pairs(&channels[1]));
    }
}

fn named(kind: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{kind}:{n}")).collect()
}

on_both! {
    async fn a_kill_at_any_moment_loses_nothing_acknowledged_and_shows_nobody_more(backend) {
        const ROUNDS: usize = 20;
        let channels = named("log", 3);
        let mut ledger = Ledger::default();
        let mut server = Setup::own(ROUTES).backend(backend).start();
        let mut acknowledged = 0;
        for round in 0..ROUNDS {
            let (known, setup) = disturb(server, round, &channels).await;
            server = setup.start();
            ledger.read_on(&server, &channels).await;
            ledger.has_acknowledged(&known);
            ledger.has_seen(&known);
            ledger.holds_pairs(&channels);
            acknowledged += known.acknowledged.len();
            for channel in &channels {
                let entries = &ledger.0[channel];
                let epochs: HashSet<&String> = entries.iter().map(|entry| &entry.epoch).collect();
                assert_eq!(epochs.len(), 1, "{channel} has a new epoch in round {round}");
                let next = server.publish(&json!({ "channel": channel, "data": { "by": format!("next-{round}"), "n": 0 } })).await;
                let wanted = (entries.len() + 1, entries.first().map(|entry| &*entry.epoch));
                assert_eq!((next["offset"].as_u64().unwrap() as usize, next["epoch"].as_str()), wanted, "{channel} goes on");
            }
        }
        assert!(acknowledged > ROUNDS * WRITERS, "{acknowledged} acknowledgements prove nothing");
        // Read again from the beginning, the log is what it was after each round.
        let mut whole = Ledger::default();
        whole.read_on(&server, &channels).await;
        ledger.read_on(&server, &channels).await;
        assert_eq!(whole.0, ledger.0);
    }

    async fn what_was_delivered_early_may_be_lost_and_its_place_is_never_given_again(backend) {
        const ROUNDS: usize = 6;
        let channels = [named("early", 2), named("relaxed", 2)].concat();
        let mut ledger = Ledger::default();
        let mut server = Setup::own(ROUTES).backend(backend).start();
        // Who has a place, by channel, epoch and offset.
        let mut places: HashMap<(String, String, u64), (String, u64)> = HashMap::new();
        let mut take = |channel: &str, entry: &Entry| {
            let place = (channel.to_owned(), entry.epoch.clone(), entry.offset);
            let name = (entry.by.clone(), entry.n);
            assert_eq!(*places.entry(place.clone()).or_insert(name.clone()), name, "{place:?} names two events");
        };
        let mut epochs: HashSet<(String, String)> = HashSet::new();
        for round in 0..ROUNDS {
            let (mut known, setup) = disturb(server, round, &channels).await;
            for (channel, seen) in &known.seen {
                seen.iter().for_each(|entry| take(channel, entry));
            }
            for Acknowledged { channel, by, n, place } in &known.acknowledged {
                if let Some((offset, epoch)) = place {
                    take(channel, &Entry { offset: *offset, epoch: epoch.clone(), by: by.clone(), n: *n });
                }
            }
            server = setup.start();
            ledger.read_on(&server, &channels).await;
            ledger.0.iter().flat_map(|(channel, entries)| entries.iter().map(move |e| (channel, e))).for_each(|(c, e)| take(c, e));
            // Delivered early is still acknowledged late.
            known.acknowledged.retain(|one| one.channel.starts_with("early"));
            ledger.has_acknowledged(&known);
            for channel in &channels {
                let next = server.publish(&json!({ "channel": channel, "data": { "by": format!("next-{round}"), "n": 0 } })).await;
                let epoch = next["epoch"].as_str().unwrap().to_owned();
                assert!(epochs.insert((channel.clone(), epoch)), "{channel} has an epoch again in round {round}");
            }
        }
    }
}
