//! What the log costs: durable publishes a second and how long each waits, and how long questions take while others write.
//! The release binary is used through its public interfaces. A bare loop of SQLite inserts on the same disk in the same run is the
//! measure: figures of two machines compare only as ratios to it. Client and server share the machine.
//!
//! `make bench-store`, or `cargo bench --bench store -- [publish] [query] [ROWS…]`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    unreachable_pub,
    dead_code,
    unused_imports,
    unused_macros,
    reason = "a program for developers"
)]

#[path = "load/bare.rs"]
mod bare;
#[path = "load/histogram.rs"]
mod histogram;
#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{Connection, Executor, SqliteConnection};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use bare::{DATA_BYTES, open};
use support::{KeptAlive, Server, Setup};

const ROUTES: &str = r#"
channels:
  "c:{n}": { history: true }
  "early:{n}": { history: { deliver: early } }
  "relaxed:{n}": { history: { durability: relaxed } }
"#;

/// How long each figure of the first table is measured.
const MEASURED: Duration = Duration::from_secs(3);
/// Writers beside the questions, and what they write in a second together.
const WRITERS: usize = 8;
const WRITES_PER_SECOND: u64 = 1000;
/// How often each question is asked, and how long at most.
const ASKED: usize = 300;
const ASKED_WITHIN: Duration = Duration::from_secs(20);
/// Channels, types and users of the generated log.
const CHANNELS: u64 = 1000;

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let asks = |word: &str| words.iter().any(|w| w == word) || !words.iter().any(|w| w == "publish" || w == "query");
    let rows: Vec<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let bare = Bare::measure().await;
    if asks("publish") {
        publish(&bare).await;
    }
    if asks("query") {
        for rows in if rows.is_empty() { vec![1_000_000, 10_000_000] } else { rows } {
            query(&bare, rows).await;
        }
    }
}

/// The bare loop.
struct Bare {
    /// Rows a second, each in a transaction of its own.
    single: f64,
    /// The same with 256 in a transaction.
    batched: f64,
    /// How long one transaction of one row takes.
    wait: Duration,
}

impl Bare {
    async fn measure() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut bare = bare::Bare::new(&folder.path().join("bare.db")).await.unwrap();
        let (single, waits) = inserts(&mut bare, 1).await;
        let (batched, _) = inserts(&mut bare, 256).await;
        let wait = waits.at(50);
        println!(
            "bare SQLite inserts, WAL, synchronous FULL: {single:.0}/s one by one (p50 {}), {batched:.0}/s in batches of 256",
            shown(wait)
        );
        Self { single, batched, wait }
    }
}

/// Rows a second, and how long each transaction took.
async fn inserts(bare: &mut bare::Bare, batch: u64) -> (f64, Waits) {
    let (begin, mut rows, mut waits) = (Instant::now(), 0, Waits::default());
    while begin.elapsed() < MEASURED {
        waits.0.push(bare.commit(batch).await.unwrap());
        rows += batch;
    }
    (rows as f64 / begin.elapsed().as_secs_f64(), waits)
}

/// How long things took.
#[derive(Default)]
struct Waits(Vec<Duration>);

impl Waits {
    /// The time that so many of a hundred do not exceed.
    fn at(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

fn shown(wait: Duration) -> String {
    format!("{:.2} ms", wait.as_secs_f64() * 1000.0)
}

fn ratio(wait: Duration, bare: &Bare) -> String {
    format!("{:.1}", wait.as_secs_f64() / bare.wait.as_secs_f64())
}

/// Prints cells in columns, the first to the left.
fn table(rows: &[Vec<String>]) {
    let widths: Vec<usize> = (0..rows[0].len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap()).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells: Vec<String> =
            cells.map(|(i, (cell, width))| if i == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }).collect();
        println!("{}", cells.join("  ").trim_end());
    }
    println!();
}

fn head(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|&cell| cell.to_owned()).collect()
}

/// Publishes until it is told to stop, at a pace or as fast as it is answered.
async fn writer(api: String, channel: String, per_second: Option<u64>, stop: CancellationToken) -> Waits {
    let mut http = KeptAlive::connect(&api).await;
    let mut pace = per_second.map(|n| interval(Duration::from_secs(1) / u32::try_from(n).unwrap()));
    if let Some(pace) = &mut pace {
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    }
    let body = json!({ "channel": channel, "type": "put", "data": { "text": "x".repeat(DATA_BYTES) } });
    let mut waits = Waits::default();
    while !stop.is_cancelled() {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let asked = Instant::now();
        let answer = http.ask("POST", "/api/publish", Some(&body)).await.unwrap();
        // A disk that stands still for longer than the server waits counts as the time it took.
        assert!([202, 503].contains(&answer.status), "{answer:?}");
        waits.0.push(asked.elapsed());
    }
    waits
}

async fn collected(writers: JoinSet<Waits>) -> Waits {
    Waits(writers.join_all().await.into_iter().flat_map(|waits| waits.0).collect())
}

async fn publish(bare: &Bare) {
    println!("\npublishing over HTTP, {DATA_BYTES} bytes each, until acknowledged");
    let mut rows = vec![head(&["promise", "publishers", "a second", "to one by one", "to batches", "p50", "to bare", "p99", "to bare"])];
    for (promise, prefix) in [("committed", "c"), ("deliver: early", "early"), ("durability: relaxed", "relaxed")] {
        for publishers in [1, 8, 64] {
            let server = Setup::own(ROUTES).start();
            let (stop, mut writers, begin) = (CancellationToken::new(), JoinSet::new(), Instant::now());
            for n in 0..publishers {
                writers.spawn(writer(server.http("api", "/"), format!("{prefix}:{}", n % 8), None, stop.clone()));
            }
            tokio::time::sleep(MEASURED).await;
            stop.cancel();
            let waits = collected(writers).await;
            let rate = waits.0.len() as f64 / begin.elapsed().as_secs_f64();
            let (p50, p99) = (waits.at(50), waits.at(99));
            let rates = [format!("{rate:.0}"), format!("{:.2}", rate / bare.single), format!("{:.2}", rate / bare.batched)];
            let waits = [shown(p50), ratio(p50, bare), shown(p99), ratio(p99, bare)];
            rows.push([&[promise.to_owned(), publishers.to_string()], &rates[..], &waits[..]].concat());
        }
    }
    table(&rows);
}

/// A server's database with so many events over the last day, made without the server: it would take its time.
async fn generated(rows: u64) -> Setup {
    let setup = Setup::own(ROUTES);
    let file = setup.path("t.db");
    let setup = setup.start().stop().setup;
    let mut db = open(&file).await.unwrap();
    db.execute("PRAGMA synchronous = OFF; PRAGMA cache_size = -500000; PRAGMA temp_store = MEMORY").await.unwrap();
    let indexes: Vec<(String, String)> =
        sqlx::query_as("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'events' AND sql IS NOT NULL")
            .fetch_all(&mut db)
            .await
            .unwrap();
    let run = async |db: &mut SqliteConnection, sql: String| db.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
    for (name, _) in &indexes {
        run(&mut db, format!("DROP INDEX {name}")).await;
    }
    let counted = |to: u64| format!("WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {to})");
    let channels = "INSERT INTO channels (id, name, epoch, top) SELECT i + 1, 'c:' || i, 77";
    run(&mut db, format!("{} {channels}, {} FROM n", counted(CHANNELS), rows / CHANNELS)).await;
    // One event in a hundred thousand has the rare word.
    let data = "'{\"sessionId\":\"s' || (i % 50021) || '\",\"text\":\"' || CASE i % 100003 WHEN 7 THEN 'needle' ELSE 'straw' END || substr(hex(randomblob(80)), 1, 150) || '\"}'";
    let since = format!("(unixepoch() - 86400) * 1000 + i * 86400000 / {rows}");
    let events = format!(
        "INSERT INTO events (id, channel, \"offset\", epoch, uuid, type, data, time_ms, source, client, user, session, metadata) \
         SELECT i + 1, i % {CHANNELS} + 1, i / {CHANNELS} + 1, 77, randomblob(16), 'type' || (i % 23), {data}, {since}, 'api', NULL, \
         'user' || (i % 10007), NULL, NULL FROM n"
    );
    run(&mut db, format!("{} {events}", counted(rows))).await;
    for (_, sql) in indexes {
        run(&mut db, sql).await;
    }
    run(&mut db, "PRAGMA wal_checkpoint(TRUNCATE)".into()).await;
    db.close().await.unwrap();
    setup
}

/// What is asked in the turn of this number.
type Question = Box<dyn Fn(u64) -> String>;

/// The questions by name.
fn questions(rows: u64) -> Vec<(&'static str, Question)> {
    let top = rows / CHANNELS;
    let history = |filter: &'static str| move |n: u64| format!("/api/history?limit=50&{}", filter.replace("{n}", &n.to_string()));
    vec![
        ("newest", Box::new(history("order=desc"))),
        ("channel", Box::new(move |n| history("channel=c:{n}")(n % CHANNELS))),
        ("channel by glob", Box::new(move |n| history("channel=c:{n}*")(n % 100))),
        ("type", Box::new(move |n| history("type=type{n}")(n % 23))),
        ("user", Box::new(move |n| history("user=user{n}")(n % 10_007))),
        ("type and user", Box::new(move |n| format!("/api/history?limit=50&type=type{}&user=user{}", n % 23, n % 10_007))),
        ("time", Box::new(move |n| format!("/api/history?limit=50&since=-{}m&until=-{}m", n % 600 + 11, n % 600 + 10))),
        ("text, common", Box::new(history("q=straw"))),
        ("text, rare", Box::new(history("q=needle"))),
        ("data.sessionId", Box::new(move |n| history("data.sessionId=s{n}")(n % 50_021))),
        ("data.sessionId and channel", Box::new(move |n| format!("/api/history?limit=50&channel=c:{}&data.sessionId=s{n}", n % CHANNELS))),
        ("since, 100 behind", Box::new(move |n| format!("/api/channels/c:{}/history?since={}", n % CHANNELS, top - 100))),
    ]
}

async fn query(bare: &Bare, rows: u64) {
    let begin = Instant::now();
    let setup = generated(rows).await;
    let size = std::fs::metadata(setup.path("t.db")).unwrap().len() >> 20;
    println!(
        "{rows} events ({size} MiB, made in {:.0} s), while {WRITES_PER_SECOND} a second are published",
        begin.elapsed().as_secs_f64()
    );
    let server = Arc::new(setup.start());
    let (stop, mut writers) = (CancellationToken::new(), JoinSet::new());
    for n in 0..WRITERS {
        let pace = WRITES_PER_SECOND / WRITERS as u64;
        writers.spawn(writer(server.http("api", "/"), format!("c:{}", CHANNELS + n as u64), Some(pace), stop.clone()));
    }
    let mut lines = vec![head(&["question", "p50", "to bare", "p99", "to bare", "events", "cut short"])];
    let mut http = KeptAlive::connect(&server.http("api", "/")).await;
    for (name, path) in questions(rows) {
        let (begin, mut waits, mut events, mut cut) = (Instant::now(), Waits::default(), 0, 0);
        let mut refused = None;
        for n in 0..ASKED as u64 {
            let asked = Instant::now();
            let path = path(n * 7919);
            let answer = http.ask("GET", &path, None).await.unwrap_or_else(|| panic!("no answer to {path}"));
            waits.0.push(asked.elapsed());
            if answer.status != 200 {
                refused = Some(answer.status);
                break;
            }
            let page: Value = serde_json::from_str(&answer.body).unwrap();
            events += page["events"].as_array().unwrap().len();
            cut += usize::from(page["truncated"] == true);
            if begin.elapsed() > ASKED_WITHIN {
                break;
            }
        }
        let asked = waits.0.len();
        lines.push(match refused {
            Some(status) => [head(&[name]), vec![format!("{status}")], vec!["-".to_owned(); 5]].concat(),
            None => {
                let (p50, p99) = (waits.at(50), waits.at(99));
                let mean = format!("{:.0}", events as f64 / asked as f64);
                vec![name.to_owned(), shown(p50), ratio(p50, bare), shown(p99), ratio(p99, bare), mean, format!("{} %", cut * 100 / asked)]
            }
        });
    }
    stop.cancel();
    let waits = collected(writers).await;
    let (p50, p99) = (waits.at(50), waits.at(99));
    lines.push(vec!["a publish meanwhile".into(), shown(p50), ratio(p50, bare), shown(p99), ratio(p99, bare), "-".into(), "-".into()]);
    table(&lines);
}
