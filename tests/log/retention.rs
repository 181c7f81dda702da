//! What a channel keeps and what the whole log may take, while writers write: none of them is refused or told a wrong offset.

use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Entry, log_beyond};
use crate::support::{KeptAlive, Server, Setup, on_both, until};

const ROUTES: &str = r#"
channels:
  all: { history: true }
  other: { history: true }
  few: { history: { keep: { events: 100 } } }
  short: { history: { keep: { age: 1s } } }
"#;

/// Each of so many writers publishes so often to each channel, as fast as it is answered. Gives the epoch of each channel.
async fn write(server: &Server, channels: &[&'static str], writers: usize, each: u64, bytes: usize) -> Vec<String> {
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let (api, channels) = (server.http("api", "/"), channels.to_vec());
        tasks.spawn(async move {
            let mut http = KeptAlive::connect(&api).await;
            let (mut tops, mut epochs) = (vec![0; channels.len()], vec![Value::Null; channels.len()]);
            for n in 0..each {
                for (i, channel) in channels.iter().enumerate() {
                    let data = json!({ "by": format!("w-{writer}"), "n": n, "more": noise(bytes) });
                    let answer = http.ask("POST", "/api/publish", Some(&json!({ "channel": channel, "data": data }))).await.unwrap();
                    assert_eq!(answer.status, 202, "{answer:?}");
                    let place: Value = serde_json::from_str(&answer.body).unwrap();
                    let offset = place["offset"].as_u64().unwrap();
                    assert!(offset > tops[i], "{channel}: {offset} after {}", tops[i]);
                    tops[i] = offset;
                    assert!(epochs[i].is_null() || epochs[i] == place["epoch"], "{channel} has a new epoch");
                    epochs[i] = place["epoch"].clone();
                }
            }
            epochs.iter().map(|epoch| epoch.as_str().unwrap().to_owned()).collect::<Vec<_>>()
        });
    }
    let epochs = tasks.join_all().await;
    assert!(epochs.iter().all(|one| *one == epochs[0]));
    epochs[0].clone()
}

/// The newest of a channel without a gap, up to `top`.
fn is_end_of(log: &[Entry], top: u64) {
    let first = top + 1 - log.len() as u64;
    for (entry, offset) in log.iter().zip(first..) {
        assert_eq!(entry.offset, offset);
    }
}

async fn kept(server: &Server, channel: &str, count: usize) -> Vec<Entry> {
    let what = format!("{channel} keeps {count}");
    until(&what, async || log_beyond(server, channel, 0).await, |log| log.len() == count).await
}

/// Text that no database makes smaller.
fn noise(bytes: usize) -> String {
    let mut text = String::new();
    while text.len() < bytes {
        text.push_str(&Uuid::new_v4().simple().to_string());
    }
    text
}

on_both! {
    async fn a_channel_keeps_as_many_and_as_long_as_it_says(backend) {
        const WRITERS: usize = 4;
        const EACH: u64 = 500;
        const TOP: u64 = WRITERS as u64 * EACH;
        let server = Setup::own(ROUTES).backend(backend).start();
        let epochs = write(&server, &["all", "few", "short"], WRITERS, EACH, 10).await;
        is_end_of(&kept(&server, "few", 100).await, TOP);
        kept(&server, "short", 0).await;
        is_end_of(&kept(&server, "all", TOP as usize).await, TOP);
        // What is gone is told as gone, and counting goes on, also after the next start.
        let ended = tokio::task::spawn_blocking(move || server.stop()).await.unwrap();
        assert_eq!(ended.code, Some(0), "{:?}", ended.log);
        let server = ended.setup.start();
        for (channel, epoch) in ["all", "few", "short"].iter().zip(&epochs) {
            let place = server.publish(&json!({ "channel": channel, "data": { "by": "later", "n": 0 } })).await;
            assert_eq!((&place["offset"], &place["epoch"]), (&json!(TOP + 1), &json!(epoch)), "{channel}");
        }
        is_end_of(&kept(&server, "few", 100).await, TOP + 1);
        kept(&server, "short", 0).await;
    }

    async fn the_whole_log_stays_within_its_size_and_the_oldest_goes_first(backend) {
        const BYTES_MAX: usize = 12 << 20;
        const DATA_BYTES: usize = 30_000;
        const EACH: u64 = 300;
        let store = "{ url: \"${DATABASE_URL:-sqlite://t.db}\", size: 12MiB }";
        let server = Setup::stored(store, ROUTES).backend(backend).start();
        write(&server, &["all"], 1, 10, DATA_BYTES).await;
        // Three times what fits, of two channels in turn.
        write(&server, &["all", "other"], 2, EACH, DATA_BYTES).await;
        // The two are read one after the other: only where nothing went in between do they belong together.
        let both = async || {
            let (all, other) = (log_beyond(&server, "all", 0).await, log_beyond(&server, "other", 0).await);
            let together = log_beyond(&server, "all", 0).await.len() == all.len();
            (all, other, together)
        };
        let fits = |(all, other, together): &(Vec<Entry>, Vec<Entry>, bool)| *together && (all.len() + other.len()) * DATA_BYTES <= BYTES_MAX;
        let (all, other, _) = until("the log is within its size", both, fits).await;
        is_end_of(&all, 10 + 2 * EACH);
        is_end_of(&other, 2 * EACH);
        // Not more went than had to, and of both alike: they were written in turn.
        assert!((all.len() + other.len()) * DATA_BYTES > BYTES_MAX / 4, "{} and {}", all.len(), other.len());
        assert!(all.len().abs_diff(other.len()) < 20, "{} and {}", all.len(), other.len());
        write(&server, &["all"], 2, 20, DATA_BYTES).await;
        is_end_of(&log_beyond(&server, "all", 0).await, 10 + 2 * EACH + 40);
    }
}
