//! The database cannot: the server says so, refuses what it could not keep, goes on with all else, and recovers by itself.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rlimit::Resource;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, SqliteConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Entry, log_beyond};
use crate::support::{Backend, Client, KeptAlive, Postgres, Server, Setup, on_both, soon, until};

const ROUTES: &str = r#"
channels:
  kept: { history: true }
  live: {}
protocols:
  p:
    listen: localhost:0/
    codec: json
    type: /op
    messages:
      ping: { reply: { type: pong } }
      hear: { join: "{$.channel}", reply: { hears: $.channel } }
      resume: { join: { channel: kept, recover: { since: $.since, epoch: $.epoch } }, reply: { recovered: $recovery.recovered, missed: $recovery.missed } }
      put: { to: kept, data: { by: $.by, n: $.n }, reply: { stored: $.n } }
    deliver: { heard: $event.data.n }
    error: { error: $error.message, code: $error.code }
"#;

const WRITERS: usize = 3;

/// How long a fault lasts after everything was asked.
const LASTING: Duration = Duration::from_millis(1500);

/// Writers who never stop, and take a no for an answer.
struct Load {
    stop: CancellationToken,
    writers: JoinSet<Vec<Entry>>,
}

impl Load {
    fn begin(server: &Server, by: &str) -> Self {
        let (stop, mut writers) = (CancellationToken::new(), JoinSet::new());
        for writer in 0..WRITERS {
            writers.spawn(write(server.http("api", "/"), format!("{by}-{writer}"), stop.clone()));
        }
        Self { stop, writers }
    }

    /// What was acknowledged.
    async fn end(self) -> Vec<Entry> {
        self.stop.cancel();
        soon("the writers", self.writers.join_all()).await.into_iter().flatten().collect()
    }
}

async fn write(api: String, by: String, stop: CancellationToken) -> Vec<Entry> {
    let mut http = KeptAlive::connect(&api).await;
    let mut acknowledged = Vec::new();
    for n in 0.. {
        if stop.is_cancelled() {
            break;
        }
        let body = json!({ "channel": "kept", "data": { "by": by, "n": n, "more": "x".repeat(1000) } });
        let answer = http.ask("POST", "/api/publish", Some(&body)).await.expect("the server lives");
        match answer.status {
            202 => {
                let place: Value = serde_json::from_str(&answer.body).unwrap();
                let (offset, epoch) = (place["offset"].as_u64().unwrap(), place["epoch"].as_str().unwrap().to_owned());
                acknowledged.push(Entry { offset, epoch, by: by.clone(), n });
            }
            503 => {
                assert_eq!(answer.header("retry-after"), "1", "{answer:?}");
                // As a client that was told to wait, only sooner.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            _ => panic!("{answer:?}"),
        }
    }
    acknowledged
}

/// Every promise of a store that cannot, from before the cause to after it. `words` are what the reason must tell a person.
async fn survives<T>(setup: Setup, words: &str, begin: impl AsyncFnOnce(&Server) -> T, end: impl AsyncFnOnce(&Server, T)) -> Survivor {
    let server = setup.start();
    let mut listener = server.client("p").await;
    assert_eq!(listener.ask(&json!({ "op": "hear", "channel": "live" })).await["hears"], "live");
    let mut talker = server.client("p").await;
    for n in 0..20 {
        assert_eq!(talker.ask(&json!({ "op": "put", "by": "before", "n": n })).await, json!({ "stored": n }));
    }
    let load = Load::begin(&server, "during");
    let cause = begin(&server).await;

    let said = until("not ready", async || server.get("/readyz").await, |answer| answer.status == 503).await.json();
    let reason = said["reasons"][0]["reason"].as_str().unwrap().to_owned();
    assert!(said["reasons"][0]["part"] == "store" && reason.contains(words), "{said}");
    let line = server.logged_when(|line| line["level"] == "ERROR");
    assert!(line["message"].as_str().unwrap().starts_with("the store cannot be written to"), "{line}");
    assert!(line.to_string().contains(words), "{line}");
    assert_eq!(up(&server).await, 0);
    let refused = server.post("/api/publish", &json!({ "channel": "kept", "data": {} })).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"), "{refused:?}");
    assert!(refused.json()["detail"].as_str().unwrap().contains("the store cannot be written to: "), "{refused:?}");
    let told = talker.ask(&json!({ "op": "put", "by": "refused", "n": 0 })).await;
    assert_eq!(told["code"], "unavailable", "{told}");
    assert_eq!(server.get("/healthz").await.status, 200);
    for n in 0..3 {
        live(&server, &mut listener, n).await;
    }

    // Not to wait for anything: a fault that lasts is looked at more than once, and stays one.
    let lasting = Instant::now() + LASTING;
    while Instant::now() < lasting {
        assert_eq!(server.get("/readyz").await.status, 503);
        tokio::time::sleep(LASTING / 20).await;
    }

    end(&server, cause).await;
    until("ready again", async || server.get("/readyz").await.status, |status| *status == 200).await;
    server.logged("the store can be written to again");
    assert_eq!(up(&server).await, 1);
    live(&server, &mut listener, 3).await;
    for n in 0..20 {
        assert_eq!(talker.ask(&json!({ "op": "put", "by": "after", "n": n })).await, json!({ "stored": n }));
    }
    let acknowledged = load.end().await;
    let log = log_beyond(&server, "kept", 0).await;
    hold(&log, &acknowledged);
    Survivor { server, log }
}

/// A server after a fault, and its log.
struct Survivor {
    server: Server,
    log: Vec<Entry>,
}

impl Survivor {
    /// The next start finds what this one wrote.
    async fn starts_again(self) {
        let ended = tokio::task::spawn_blocking(|| self.server.stop()).await.unwrap();
        assert_eq!(ended.code, Some(0), "{:?}", ended.log);
        let server = ended.setup.start();
        assert!(log_beyond(&server, "kept", 0).await == self.log, "the log is another one after the stop");
    }
}

/// Nothing acknowledged is lost or elsewhere, nothing stands twice, there is no gap, and the stream is the same.
fn hold(log: &[Entry], acknowledged: &[Entry]) {
    for (i, entry) in log.iter().enumerate() {
        assert_eq!((entry.offset, &entry.epoch), (i as u64 + 1, &log[0].epoch));
    }
    assert!(acknowledged.iter().any(|one| one.by.starts_with("during")), "nobody wrote");
    for entry in acknowledged {
        assert_eq!(Some(entry), log.get(usize::try_from(entry.offset - 1).unwrap()));
    }
    for (by, wanted) in [("before", 20), ("after", 20)] {
        assert_eq!(log.iter().filter(|entry| entry.by == by).count(), wanted, "{by}");
    }
}

/// A channel without history is served as ever.
async fn live(server: &Server, listener: &mut Client, n: u64) {
    let answer = server.publish(&json!({ "channel": "live", "data": { "n": n } })).await;
    assert_eq!(answer["delivered"], 1);
    assert_eq!(listener.next().await, json!({ "heard": n }));
}

/// What the metric says of the store.
async fn up(server: &Server) -> u64 {
    let text = server.get("/metrics").await.body;
    let line = text.lines().find_map(|line| line.strip_prefix("tramline_store_up "));
    line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

/// Writes to a file until the disk takes no more.
fn fill(ballast: &Path) {
    let mut file = std::fs::File::create(ballast).unwrap();
    for piece in [vec![0; 4096], vec![0; 1]] {
        while file.write_all(&piece).is_ok() {}
    }
}

/// What starts a program with a disk of 4 MiB at `disk`, which nobody else sees and which ends with it. None where the system
/// lets nobody make one.
fn with_small_disk() -> Option<Vec<&'static str>> {
    const MOUNT: &str = r#"mount -t tmpfs -o size=4m tmpfs disk && exec "$@""#;
    let ways: [&[&str]; 2] = [&["unshare", "-m"], &["unshare", "-rm"]];
    let works = |way: &&&[&str]| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("disk")).unwrap();
        let tried = Command::new(way[0]).args(&way[1..]).args(["sh", "-c", MOUNT, "sh", "true"]).current_dir(folder.path()).output();
        tried.is_ok_and(|tried| tried.status.success())
    };
    ways.iter().find(works).map(|way| [*way, &["sh", "-c", MOUNT, "sh"]].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk() {
    let Some(command) = with_small_disk() else {
        eprintln!("left out: nobody here may mount a small disk; the limit of a file's size stands for it");
        return;
    };
    let setup = Setup::stored("\"sqlite://disk/t.db\"", ROUTES).file("disk/there", "").within(&command);
    let begin = async |server: &Server| {
        let ballast = server.seen_from_inside("disk/ballast");
        fill(&ballast);
        ballast
    };
    // The disk ends with the server: nothing can start again on it.
    survives(setup, "disk is full", begin, async |_, ballast| std::fs::remove_file(ballast).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_may_not_grow() {
    let setup = Setup::own(ROUTES);
    let limit = |server: &Server, bytes| {
        let pid = server.pid().try_into().unwrap();
        rlimit::prlimit(pid, Resource::FSIZE, Some((bytes, rlimit::INFINITY)), None).unwrap();
    };
    let begin = async |server: &Server| {
        let size = |name| std::fs::metadata(server.setup().path(name)).unwrap().len();
        limit(server, size("t.db").max(size("t.db-wal")));
    };
    survives(setup, "disk", begin, async |server, ()| limit(server, rlimit::INFINITY)).await.starts_again().await;
}

/// Another program that keeps everybody from writing.
enum Holder {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Holder {
    async fn hold(server: &Server, backend: Backend) -> Self {
        match backend {
            Backend::Sqlite => {
                let file = server.setup().path("t.db");
                let options = SqliteConnectOptions::new().filename(file).busy_timeout(Duration::from_secs(20));
                let mut db = options.connect().await.unwrap();
                db.execute("BEGIN EXCLUSIVE").await.unwrap();
                Self::Sqlite(db)
            }
            Backend::Postgres => {
                let mut db = PgConnection::connect(&server.setup().database_url()).await.unwrap();
                db.execute("BEGIN; LOCK TABLE events IN EXCLUSIVE MODE").await.unwrap();
                Self::Postgres(db)
            }
        }
    }

    async fn release(self) {
        match self {
            Self::Sqlite(db) => db.close().await.unwrap(),
            Self::Postgres(db) => db.close().await.unwrap(),
        }
    }
}

on_both! {
    async fn a_database_that_another_program_has_locked(backend) {
        let begin = async |server: &Server| {
            let holder = Holder::hold(server, backend).await;
            // Reading goes on.
            assert_eq!(server.get("/api/history?channel=kept&limit=1").await.status, 200);
            holder
        };
        survives(Setup::own(ROUTES).backend(backend), "locked", begin, async |_, holder| holder.release().await).await.starts_again().await;
    }
}

/// A file that is lost takes its events along, and nothing else: the log goes on in another one by itself, and what is gone is
/// told as gone.
async fn goes_on(words: &str, lose: impl Fn(&Path), end: impl Fn(&Path)) {
    let server = Setup::own(ROUTES).start();
    for n in 0..20 {
        server.publish(&json!({ "channel": "kept", "data": { "by": "before", "n": n } })).await;
    }
    // Started again, it holds nothing of the file in memory.
    let server = tokio::task::spawn_blocking(|| server.stop()).await.unwrap().setup.start();
    let load = Load::begin(&server, "during");
    lose(&server.setup().path("t.db"));
    // Asked for, what is lost is noticed if it was not before.
    drop(server.get("/api/history?channel=kept").await);
    let line = server.logged_when(|line| line["level"] == "ERROR");
    assert!(line.to_string().contains(words), "{line}");
    end(&server.setup().path("t.db"));
    server.logged("the store can be written to again");
    until("ready again", async || server.get("/readyz").await.status, |status| *status == 200).await;
    let place = server.publish(&json!({ "channel": "kept", "data": { "by": "after", "n": 0 } })).await;
    let acknowledged = load.end().await;
    let log = log_beyond(&server, "kept", 0).await;
    assert!(log[0].offset > 20, "what was lost is there");
    for (entry, offset) in log.iter().zip(log[0].offset..) {
        assert_eq!((entry.offset, &json!(entry.epoch)), (offset, &place["epoch"]));
    }
    // Acknowledged before the file was lost, and lost with it: that is the end of what an acknowledgement is worth.
    let kept: Vec<&Entry> = acknowledged.iter().filter(|one| one.offset >= log[0].offset).collect();
    assert!(!kept.is_empty(), "nobody wrote");
    assert!(kept.iter().all(|one| log.contains(one)), "acknowledged after it was lost, and not in the log");
    let mut late = server.client("p").await;
    let told = late.ask(&json!({ "op": "resume", "since": 5, "epoch": log[0].epoch })).await;
    assert_eq!(told, json!({ "recovered": false, "missed": log[0].offset - 1 - 5 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_removed() {
    let lose = |file: &Path| {
        for end in ["", "-wal", "-shm"] {
            std::fs::remove_file(format!("{}{end}", file.display())).unwrap();
        }
    };
    goes_on("gone", lose, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_replaced_by_what_is_no_database() {
    let lose = |file: &Path| {
        let other = file.with_extension("new");
        std::fs::write(&other, garbage()).unwrap();
        std::fs::rename(&other, file).unwrap();
    };
    // Whoever put it there may want it: it is left alone, and until it has gone there is nowhere to write to.
    let end = |file: &Path| {
        assert!(std::fs::read(file).unwrap() == garbage());
        std::fs::remove_file(file).unwrap();
    };
    goes_on("another one is in its place", lose, end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_overwritten() {
    let lose = |file: &Path| {
        let mut open = std::fs::OpenOptions::new().write(true).open(file).unwrap();
        open.write_all(&garbage()).unwrap();
        open.set_len(garbage().len() as u64).unwrap();
    };
    goes_on("corrupt", lose, |_| {}).await;
}

fn garbage() -> Vec<u8> {
    b"no database ".repeat(10_000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn a_postgres_that_stops_and_starts_again() {
    let postgres = Postgres::start();
    let setup = Setup::own(ROUTES).env("DATABASE_URL", &postgres.url());
    let begin = async |_: &Server| postgres.stop();
    survives(setup, "no connection to", begin, async |_, ()| postgres.resume()).await.starts_again().await;
}

/// A start that cannot be: it ends, says why and where, and changes nothing.
fn refuses(setup: Setup, words: &[&str]) {
    let ended = setup.start_in_vain();
    assert_eq!(ended.code, Some(1));
    let said = format!("{:?}", ended.log);
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
}

#[tokio::test]
async fn a_start_on_a_database_that_is_broken_sets_it_aside() {
    let setup = Setup::own(ROUTES);
    let server = setup.start();
    let before = server.publish(&json!({ "channel": "kept", "data": { "by": "a", "n": 1 } })).await;
    let setup = server.stop().setup;
    let file = setup.path("t.db");
    // All of it, and a page in the middle.
    let mut holed = std::fs::read(&file).unwrap();
    holed[4096..8192].fill(0xA5);
    for broken in [garbage(), holed] {
        std::fs::write(&file, &broken).unwrap();
        let server = setup.clone().start();
        let after = server.publish(&json!({ "channel": "kept", "data": { "by": "a", "n": 2 } })).await;
        assert!(after["epoch"] != before["epoch"] && after["offset"] == 1, "{before} {after}");
        assert_eq!(server.get("/readyz").await.status, 200);
        drop(server.stop());
        let aside = std::fs::read_dir(file.parent().unwrap()).unwrap().flatten().map(|entry| entry.path());
        let mut aside: Vec<_> = aside.filter(|path| path.display().to_string().contains("t.db.corrupt-")).collect();
        // The database comes before what belongs to it.
        aside.sort();
        assert!(std::fs::read(&aside[0]).unwrap() == broken, "what was set aside was changed: {aside:?}");
        aside.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
}

#[tokio::test]
async fn a_start_on_what_never_was_a_database_is_refused_and_leaves_it_as_it_is() {
    let text = "a letter to somebody\n".repeat(1000);
    let setup = Setup::own(ROUTES).file("t.db", &text);
    refuses(setup.clone(), &["t.db", "not a database"]);
    assert_eq!(std::fs::read_to_string(setup.path("t.db")).unwrap(), text);
}

#[tokio::test]
async fn a_start_in_a_folder_that_is_read_only_is_refused() {
    let (link, command) = match with_small_disk() {
        // Root may write everywhere but where nobody may.
        Some(mut command) => {
            let script = r#"mount -t tmpfs tmpfs disk && mount -o remount,ro disk && exec "$@""#;
            let at = command.iter().position(|word| word.starts_with("mount")).unwrap();
            command[at] = script;
            ("disk", command)
        }
        None => ("closed", vec!["sh", "-c", r#"mkdir -m 555 closed && exec "$@""#, "sh"]),
    };
    let setup = Setup::stored(&format!("\"sqlite://{link}/t.db\""), ROUTES).file("disk/there", "").within(&command);
    refuses(setup, &[link, "t.db"]);
}
