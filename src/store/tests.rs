//! The store on real files: what is appended is there, in order, after whatever happens in between.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::*;
use crate::config::plan::DatabasePlan;
use crate::model::event::fresh_epoch;
use crate::model::event::{Epoch, NewEvent, Origin};
use crate::model::{ChannelName, Event, Json};

pub(super) struct Rig {
    pub(super) store: Store,
    pub(super) recovered: Recovered,
    /// The writer's own connection.
    writing: sqlx::SqlitePool,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Rig {
    pub(super) async fn open(plan: &StorePlan) -> Self {
        Self::open_with(plan, Bounds::default()).await
    }

    pub(super) async fn open_with(plan: &StorePlan, bounds: Bounds) -> Self {
        let (store, mut writer, recovered) = Store::open_with(plan, Now::read(), bounds).await.unwrap();
        writer.begin().await.unwrap();
        let writing = writer.database.writer.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(writer.run(async { drop(stopped.await) }));
        Self { store, recovered, writing, stop, task }
    }

    /// Ends in order.
    pub(super) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }

    /// Ends as a crash does: the writer is gone where it stood.
    async fn crash(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    pub(super) async fn write(&self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            append(&self.store, event).unwrap();
        }
        self.store.committed(self.store.ticket()).await.unwrap();
    }
}

pub(super) fn event(channel: &str, offset: u64, epoch: Epoch, kind: &str) -> Event {
    let origin = Origin { source: "api".into(), client: Some("c1".into()), user: None, session: Some("s".into()) };
    let new = NewEvent {
        id: Uuid::now_v7(),
        kind: kind.to_owned().into(),
        data: Json::trusted(format!("{{\"n\":{offset},\"text\":\"ü\\u0000\"}}")),
        time_ms: 1_700_000_000_000 + offset as i64,
        origin: origin.into(),
        metadata: Some(Json::trusted("{\"where\":null}")),
    };
    Event { new, channel: ChannelName::parse(channel), offset, epoch, seq: 0 }
}

fn append(store: &Store, event: Event) -> Result<Ticket, Unavailable> {
    Ok(store.reserve(1, event.weight())?.append(vec![event]).last)
}

pub(super) fn memory() -> StorePlan {
    DatabasePlan::Memory.into()
}

fn sqlite(path: PathBuf) -> StorePlan {
    DatabasePlan::Sqlite(path).into()
}

fn file(folder: &tempfile::TempDir) -> (PathBuf, StorePlan) {
    let path = folder.path().join("data/deep/tramline.db");
    (path.clone(), sqlite(path))
}

/// Another program's connection to the file.
async fn stranger(path: &PathBuf) -> sqlx::SqliteConnection {
    use sqlx::ConnectOptions;
    sqlx::sqlite::SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

async fn all(store: &Store) -> Vec<String> {
    let query = HistoryQuery { limit: 1000, ..HistoryQuery::default() };
    store.history(&query).await.unwrap().events
}

#[tokio::test]
async fn what_was_appended_is_read_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    for plan in [file(&folder).1, memory()] {
        let rig = Rig::open(&plan).await;
        let events: Vec<Event> = (1..=3).map(|n| event("room:1", n, u64::MAX - 1, "message")).collect();
        let expected: Vec<String> = events.iter().rev().map(Event::to_json).collect();
        rig.write(events).await;
        assert_eq!(all(&rig.store).await, expected);
        assert_eq!(rig.store.stats().queued_rows, 0);
        assert_eq!(rig.store.stats().queued_bytes, 0);
        rig.stop().await;
    }
}

#[tokio::test]
async fn an_orderly_end_keeps_epochs_and_a_crash_gives_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (_, plan) = file(&folder);
    let rig = Rig::open(&plan).await;
    assert!(rig.recovered.clean && rig.recovered.channels.is_empty());
    rig.write((1..=5).map(|n| event("a", n, 7, "x"))).await;
    rig.write([event("b", 1, 9, "x")]).await;
    rig.store.count("messages", 41);
    rig.store.count("messages", 1);
    rig.stop().await;

    let rig = Rig::open(&plan).await;
    assert!(rig.recovered.clean);
    let standing = |name, epoch, top| Standing { name: ChannelName::parse(name).unwrap(), epoch, top, first: 1 };
    assert_eq!(rig.recovered.channels, [standing("a", 7, 5), standing("b", 9, 1)]);
    assert_eq!(rig.recovered.counters["messages"], 42);
    rig.store.count("messages", 8);
    rig.write([event("a", 6, 7, "x")]).await;
    rig.crash().await;

    let rig = Rig::open(&plan).await;
    assert!(!rig.recovered.clean);
    let channels = rig.recovered.channels.clone();
    assert_eq!(channels.iter().map(|c| (c.name.as_str(), c.top)).collect::<Vec<_>>(), [("a", 6), ("b", 1)]);
    assert!(channels.iter().all(|c| ![7, 9].contains(&c.epoch)));
    rig.stop().await;
    let rig = Rig::open(&plan).await;
    assert!(rig.recovered.clean);
    assert_eq!(rig.recovered.channels, channels, "the new epochs stay");
    rig.stop().await;
}

#[tokio::test]
async fn a_stop_writes_what_is_queued_and_waits_for_reservations() {
    let folder = tempfile::tempdir().unwrap();
    let (_, plan) = file(&folder);
    let rig = Rig::open(&plan).await;
    let held = rig.store.reserve(1, 10).unwrap();
    for n in 1..=500 {
        append(&rig.store, event("a", n, 1, "x")).unwrap();
    }
    let store = rig.store.clone();
    rig.stop.send(()).unwrap();
    while store.reserve(1, 1).err() != Some(Unavailable::Stopped) {
        tokio::task::yield_now().await;
    }
    // Time enough for a writer that does not look at reservations to end.
    while store.stats().queued_rows > 0 {
        tokio::task::yield_now().await;
    }
    assert!(tokio::time::timeout(Duration::from_millis(50), store.committed(Ticket(501))).await.is_err());
    let ticket = held.append(vec![event("a", 501, 1, "x")]).last;
    rig.task.await.unwrap();
    store.committed(ticket).await.unwrap();
    assert!(matches!(store.committed(Ticket(ticket.0 + 1)).await, Err(StoreError::Ended)));
    let rig = Rig::open(&plan).await;
    assert!(rig.recovered.clean);
    assert_eq!(rig.recovered.channels[0].top, 501);
    rig.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_gives_back_what_was_not_used() {
    let bounds = Bounds { rows: 10, bytes: 10_000, ..Bounds::default() };
    let (store, mut writer, _) = Store::open_with(&memory(), Now::read(), bounds).await.unwrap();
    assert_eq!(store.reserve(1, 1).err(), Some(Unavailable::Stopped));
    writer.begin().await.unwrap();
    let permit = store.reserve(10, 100).unwrap();
    assert_eq!(store.reserve(1, 1).err(), Some(Unavailable::Full));
    drop(permit);
    assert_eq!(store.reserve(1, 10_001).err(), Some(Unavailable::Full));
    assert_eq!(store.reserve(usize::MAX, usize::MAX).err(), Some(Unavailable::Full));
    // Nobody writes: what is appended stays, also where it was more than had been reserved.
    for n in 1..=9 {
        store.reserve(1, 0).unwrap().append(vec![event("a", n, 1, "x")]);
    }
    assert_eq!(store.stats().queued_rows, 9);
    assert!(store.stats().queued_bytes >= 9 * 200);
    assert!(store.reserve(1, 0).is_ok());
    assert_eq!(store.reserve(2, 0).err(), Some(Unavailable::Full));
    let record =
        ConnectionRecord { client: "c".into(), protocol: "p".into(), user: None, session: None, address: "::1".into(), opened_ms: 1 };
    store.append_connection_opened(record);
    assert_eq!(store.stats().dropped_records, 1);
    assert_eq!(store.stats().queued_rows, 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_events_of_several_threads_are_all_there_in_order_and_grouped() {
    let folder = tempfile::tempdir().unwrap();
    let (path, plan) = file(&folder);
    let rig = Rig::open(&plan).await;
    let threads: Vec<_> = (0..5)
        .map(|t| {
            let store = rig.store.clone();
            std::thread::spawn(move || {
                for n in 1..=2000 {
                    append(&store, event(&format!("room:{t}"), n, 1, "x")).unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    rig.store.committed(rig.store.ticket()).await.unwrap();
    let stats = rig.store.stats();
    assert_eq!(stats.committed_rows, 10_000);
    assert!(stats.committed_batches < 1000, "{} transactions", stats.committed_batches);
    let mut db = stranger(&path).await;
    let rows: Vec<(i64, i64)> = sqlx::query_as("SELECT channel, \"offset\" FROM events ORDER BY id").fetch_all(&mut db).await.unwrap();
    for channel in 1..=5 {
        let offsets: Vec<i64> = rows.iter().filter(|(c, _)| *c == channel).map(|(_, offset)| *offset).collect();
        assert_eq!(offsets, (1..=2000).collect::<Vec<i64>>());
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let (path, plan) = file(&folder);
    let rig = Rig::open(&plan).await;
    let alias = folder.path().join("alias.db");
    std::os::unix::fs::symlink(&path, &alias).unwrap();
    for plan in [plan.clone(), sqlite(alias)] {
        let error = Store::open(&plan, Now::read()).await.err().unwrap();
        assert!(matches!(error, StoreError::InUse { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
        assert!(error.to_string().contains("in use by another process"));
    }
    rig.stop().await;
    Rig::open(&plan).await.stop().await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_and_a_file_that_is_no_database_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "x").unwrap();
    let error = Store::open(&sqlite(blocked.join("x.db")), Now::read()).await.err().unwrap();
    assert!(matches!(error, StoreError::Folder { .. }), "{error}");
    let other = folder.path().join("other.db");
    std::fs::write(&other, "not a database, but long enough to be read as the header of one".repeat(20)).unwrap();
    let error = Store::open(&sqlite(other), Now::read()).await.err().unwrap();
    assert!(matches!(error, StoreError::Open { .. }), "{error}");
}

#[tokio::test]
async fn while_another_program_holds_the_lock_it_is_degraded_and_then_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let (path, plan) = file(&folder);
    let rig = Rig::open(&plan).await;
    rig.write([event("a", 1, 1, "x")]).await;
    let mut other = stranger(&path).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let ticket = append(&rig.store, event("a", 2, 1, "x")).unwrap();
    while rig.store.state() == StoreState::Ok {
        tokio::task::yield_now().await;
    }
    assert!(matches!(rig.store.reserve(1, 1), Err(Unavailable::Degraded(reason)) if reason.contains("locked")));
    assert_eq!(all(&rig.store).await.len(), 1, "reading goes on");
    assert_eq!(rig.store.stats().queued_rows, 1);
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    rig.store.committed(ticket).await.unwrap();
    assert_eq!(rig.store.state(), StoreState::Ok);
    assert_eq!(all(&rig.store).await.len(), 2);
    rig.stop().await;
}

#[tokio::test]
async fn a_stop_that_cannot_write_ends_all_the_same_and_is_not_clean() {
    let folder = tempfile::tempdir().unwrap();
    let (path, plan) = file(&folder);
    let rig = Rig::open(&plan).await;
    rig.write([event("a", 1, 1, "x")]).await;
    let mut other = stranger(&path).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let ticket = append(&rig.store, event("a", 2, 1, "x")).unwrap();
    let store = rig.store.clone();
    rig.stop().await;
    assert!(matches!(store.committed(ticket).await, Err(StoreError::Ended)));
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    let rig = Rig::open(&plan).await;
    assert!(!rig.recovered.clean);
    rig.stop().await;
}

#[tokio::test]
async fn one_bad_row_costs_only_itself() {
    let rig = Rig::open(&memory()).await;
    rig.write([event("a", 1, 1, "x")]).await;
    // Offset 1 is taken. All of these are one batch, because nothing yields in between.
    let tickets: Vec<Ticket> = (1..=100).map(|n| append(&rig.store, event("a", n, 1, "x")).unwrap()).collect();
    assert!(matches!(rig.store.committed(tickets[0]).await, Err(StoreError::RowRefused)));
    for ticket in &tickets[1..] {
        rig.store.committed(*ticket).await.unwrap();
    }
    rig.store.settled().await;
    assert_eq!(all(&rig.store).await.len(), 100);
    let stats = rig.store.stats();
    assert_eq!((stats.refused_rows, stats.committed_rows, stats.queued_rows), (1, 100, 0));
    rig.stop().await;
}

#[tokio::test]
async fn a_full_disk_degrades_it_and_room_brings_it_back() {
    let folder = tempfile::tempdir().unwrap();
    for plan in [memory(), file(&folder).1] {
        let rig = Rig::open(&plan).await;
        rig.write([event("a", 1, 1, "x")]).await;
        sqlx::query("PRAGMA max_page_count = 1").execute(&rig.writing).await.unwrap();
        let mut large = event("a", 2, 1, "x");
        large.new.data = Json::string(&"x".repeat(1 << 20));
        let ticket = append(&rig.store, large).unwrap();
        while rig.store.state() == StoreState::Ok {
            tokio::task::yield_now().await;
        }
        assert!(matches!(rig.store.reserve(1, 1), Err(Unavailable::Degraded(reason)) if reason.contains("full")));
        assert_eq!(all(&rig.store).await.len(), 1);
        sqlx::query("PRAGMA max_page_count = 100000").execute(&rig.writing).await.unwrap();
        rig.store.committed(ticket).await.unwrap();
        assert_eq!(rig.store.state(), StoreState::Ok);
        rig.write([event("a", 3, 1, "x")]).await;
        assert_eq!(all(&rig.store).await.len(), 3);
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_start_that_goes_no_further_costs_no_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let (_, plan) = file(&folder);
    let rig = Rig::open(&plan).await;
    rig.write([event("a", 1, 7, "x")]).await;
    rig.stop().await;
    drop(Store::open(&plan, Now::read()).await.unwrap());
    let rig = Rig::open(&plan).await;
    assert!(rig.recovered.clean);
    assert_eq!(rig.recovered.channels[0].epoch, 7);
    rig.stop().await;
}

#[tokio::test]
async fn connections_are_one_row_each_and_those_a_crash_left_open_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, plan) = file(&folder);
    let rig = Rig::open(&plan).await;
    let record = |client: &str| ConnectionRecord {
        client: client.into(),
        protocol: "canvas".into(),
        user: None,
        session: None,
        address: "127.0.0.1".into(),
        opened_ms: 5,
    };
    let end = ConnectionEnd { closed_ms: 9, code: 1001, reason: "server is stopping".into(), messages_in: 3, ..Default::default() };
    rig.store.append_connection_opened(record("left"));
    rig.store.append_connection_opened(record("ended"));
    rig.store.append_connection_closed(ConnectionRecord { user: Some("u".into()), ..record("ended") }, end.clone());
    rig.store.append_connection_closed(record("unseen"), end);
    rig.store.committed(rig.store.ticket()).await.unwrap();
    rig.crash().await;
    let rig = Rig::open(&plan).await;
    let mut db = stranger(&path).await;
    type Line = (String, Option<String>, i64, i64, String, i64);
    let lines: Vec<Line> = sqlx::query_as("SELECT client, user, opened_ms, code, reason, messages_in FROM connections ORDER BY id")
        .fetch_all(&mut db)
        .await
        .unwrap();
    let line = |client: &str, user: Option<&str>, code, reason: &str, messages| {
        (client.to_owned(), user.map(str::to_owned), 5, code, reason.to_owned(), messages)
    };
    assert_eq!(
        lines,
        [
            line("left", None, 1006, "server lost", 0),
            line("ended", Some("u"), 1001, "server is stopping", 3),
            line("unseen", None, 1001, "server is stopping", 3),
        ]
    );
    rig.stop().await;
}

#[test]
fn a_fresh_epoch_fits_the_database_and_differs() {
    let epochs: std::collections::HashSet<Epoch> = (0..50).map(|_| fresh_epoch()).collect();
    assert!(epochs.len() >= 49 && epochs.iter().all(|epoch| *epoch > 0 && epoch.cast_signed() > 0));
}
