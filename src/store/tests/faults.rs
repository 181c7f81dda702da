//! What the store does while its database cannot be used, and afterwards.

mod on_postgres;

use super::*;
use crate::config::plan::DatabasePlan;
use crate::model::Json;

#[tokio::test]
async fn a_folder_that_cannot_be_made_and_a_file_that_is_no_database_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = |path| DatabasePlan::Sqlite(path).into();
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "x").unwrap();
    let error = Store::open(&sqlite(blocked.join("x.db")), &Clock::default()).await.err().unwrap();
    assert!(matches!(error, StoreError::Folder { .. }), "{error}");
    let other = folder.path().join("other.db");
    std::fs::write(&other, "not a database, but long enough to be read as the header of one".repeat(20)).unwrap();
    for _ in 0..2 {
        let error = Store::open(&sqlite(other.clone()), &Clock::default()).await.err().unwrap();
        assert!(matches!(error, StoreError::Open { .. }), "{error}");
    }
}

on_both! {
    async fn while_another_program_holds_the_lock_it_is_degraded_and_then_recovers(base) {
        let rig = Rig::of(base).await;
        rig.write([event("a", 1, 1, "x")]).await;
        let mut other = base.stranger().await;
        other.run(if base.is_postgres() { "BEGIN; LOCK TABLE events IN EXCLUSIVE MODE" } else { "BEGIN IMMEDIATE" }).await;
        let ticket = append(&rig.store, event("a", 2, 1, "x")).unwrap();
        let reason = rig.degraded().await;
        assert!(reason.contains("locked by another program"), "{reason}");
        assert!(matches!(rig.store.reserve(1, 1), Err(Unavailable::Degraded(_))));
        assert_eq!(places(base).await.len(), 1, "reading goes on");
        assert_eq!(rig.store.stats().queued_rows, 1);
        other.run("ROLLBACK").await;
        rig.store.committed(ticket).await.unwrap();
        assert_eq!(rig.store.state(), StoreState::Ok);
        assert_eq!(places(base).await.len(), 2);
        rig.stop().await;
    }

    async fn a_stop_that_cannot_write_ends_all_the_same_and_is_not_clean(base) {
        let rig = Rig::of(base).await;
        rig.write([event("a", 1, 1, "x")]).await;
        let mut other = base.stranger().await;
        other.run(if base.is_postgres() { "BEGIN; LOCK TABLE events IN EXCLUSIVE MODE" } else { "BEGIN IMMEDIATE" }).await;
        let ticket = append(&rig.store, event("a", 2, 1, "x")).unwrap();
        let store = rig.store.clone();
        rig.stop().await;
        assert!(matches!(store.committed(ticket).await, Err(StoreError::Ended)));
        other.run("ROLLBACK").await;
        let rig = Rig::of(base).await;
        assert!(!rig.recovered.clean);
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_full_disk_degrades_it_and_room_brings_it_back() {
    let base = Base::sqlite();
    for plan in [memory(), base.plan.clone()] {
        let rig = Rig::open(&plan).await;
        rig.write([event("a", 1, 1, "x")]).await;
        let saying = rig.saying.clone().unwrap();
        saying.lock().push("PRAGMA max_page_count = 1");
        let mut large = event("a", 2, 1, "x");
        large.new.data = Json::string(&"x".repeat(1 << 20));
        let ticket = append(&rig.store, large).unwrap();
        assert_eq!(&*rig.degraded().await, "the disk is full");
        assert!(matches!(rig.store.reserve(1, 1), Err(Unavailable::Degraded(reason)) if reason.contains("full")));
        assert_eq!(all(&rig.store).await.len(), 1);
        saying.lock().push("PRAGMA max_page_count = 100000");
        rig.store.committed(ticket).await.unwrap();
        assert_eq!(rig.store.state(), StoreState::Ok);
        rig.write([event("a", 3, 1, "x")]).await;
        assert_eq!(all(&rig.store).await.len(), 3);
        rig.stop().await;
    }
}

/// Removes the database and its other files.
fn remove(base: &Base) {
    for end in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{end}", base.path().display())).ok();
    }
}

fn session(id: &str) -> SessionRecord {
    let (user, name, meta, seen_ms) = Default::default();
    SessionRecord { id: id.into(), user, name, meta, created_ms: 1, expires_ms: i64::MAX, seen_ms }
}

/// Two channels with five events, a session and a total.
async fn filled(base: &Base, policies: &Arc<Policies>) -> Rig {
    let rig = Rig::open_with(&base.plan, Bounds::default(), policies.clone()).await;
    rig.store.append_points(vec![Point { kind: "k", name: "n".into(), metric: "m", minute_s: 60, delta: 7 }]);
    rig.store.put_session(session("s")).unwrap();
    rig.write((1..=3).map(|n| event("a", n, 7, "x"))).await;
    rig.write((1..=2).map(|n| event("b", n, 8, "x"))).await;
    rig
}

async fn taken_over(base: &Base) {
    let mut db = base.stranger().await;
    assert_eq!(db.rows::<(String,)>("SELECT id FROM sessions").await, [("s".to_owned(),)]);
    assert_eq!(db.rows::<(i64,)>("SELECT total FROM series").await, [(7,)]);
}

type Line = (String, i64, i64, i64, i64);

async fn channels(base: &Base) -> Vec<Line> {
    base.stranger().await.rows("SELECT name, epoch, top, first, gone FROM channels ORDER BY name").await
}

fn line(name: &str, epoch: i64, top: i64, first: i64, gone: i64) -> Line {
    (name.to_owned(), epoch, top, first, gone)
}

#[tokio::test]
async fn a_file_that_is_deleted_is_made_anew_and_what_was_accepted_is_in_it() {
    for whole_folder in [false, true] {
        let base = Base::sqlite();
        let policies = Policies::early(&[]);
        let rig = filled(&base, &policies).await;
        if whole_folder {
            std::fs::remove_dir_all(base.folder().join("data")).unwrap();
        } else {
            remove(&base);
        }
        rig.write([event("a", 4, 7, "x")]).await;
        assert_eq!(rig.store.state(), StoreState::Ok);
        assert_eq!(places(&base).await, [("a".to_owned(), 4)]);
        taken_over(&base).await;
        assert_eq!(policies.trimmed.lock().clone(), [("a".to_owned(), 4), ("b".to_owned(), 3)]);
        assert_eq!(all(&rig.store).await.len(), 1, "readers see it too");
        let log = rig.recovered.log;
        rig.stop().await;
        assert_eq!(channels(&base).await, [line("a", 7, 4, 4, 5), line("b", 8, 2, 3, 5)]);
        let rig = Rig::of(&base).await;
        assert!(rig.recovered.clean);
        assert_eq!((rig.recovered.log, rig.recovered.last_seq), (log, 6));
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_file_that_is_gone_is_noticed_while_nothing_is_published() {
    let base = Base::sqlite();
    let rig = filled(&base, &Policies::early(&[])).await;
    remove(&base);
    while !base.path().exists() {
        tokio::task::yield_now().await;
    }
    rig.healthy().await;
    rig.write([event("b", 3, 8, "x")]).await;
    rig.crash().await;
    assert_eq!(channels(&base).await, [line("a", 7, 3, 4, 5), line("b", 8, 3, 3, 5)]);
}

#[tokio::test]
async fn an_older_copy_put_in_its_place_is_gone_on_with() {
    let base = Base::sqlite();
    let policies = Policies::early(&[]);
    let rig = filled(&base, &policies).await;
    rig.stop().await;
    let copy = base.folder().join("copy.db");
    std::fs::copy(base.path(), &copy).unwrap();
    let rig = Rig::open_with(&base.plan, Bounds::default(), policies.clone()).await;
    rig.write([event("a", 4, 7, "x"), event("c", 1, 9, "x")]).await;
    std::fs::rename(&copy, base.path()).unwrap();
    rig.write([event("a", 5, 7, "x"), event("b", 3, 8, "x")]).await;
    assert_eq!(channels(&base).await, [line("a", 7, 5, 5, 7), line("b", 8, 3, 1, 0), line("c", 9, 1, 2, 7)]);
    assert_eq!(policies.trimmed.lock().clone(), [("a".to_owned(), 5), ("c".to_owned(), 2)]);
    rig.stop().await;
}

#[tokio::test]
async fn the_database_of_another_log_is_not_written_to() {
    let (base, other) = (Base::sqlite(), Base::sqlite());
    filled(&other, &Policies::early(&[])).await.stop().await;
    let rig = Rig::of(&base).await;
    rig.write([event("a", 1, 1, "x")]).await;
    std::fs::rename(other.path(), base.path()).unwrap();
    let ticket = append(&rig.store, event("a", 2, 1, "x")).unwrap();
    while !rig.degraded().await.contains("replaced by that of another log") {
        tokio::task::yield_now().await;
    }
    assert!(tokio::time::timeout(Duration::from_millis(300), rig.store.committed(ticket)).await.is_err());
    // Without it the log continues.
    remove(&base);
    rig.store.committed(ticket).await.unwrap();
    rig.stop().await;
}

/// Overwrites most of the file.
fn damage(base: &Base) {
    use std::io::{Seek, SeekFrom, Write};
    let mut file = std::fs::OpenOptions::new().write(true).open(base.path()).unwrap();
    let length = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(2 * 4096)).unwrap();
    file.write_all(&vec![0xa5; length as usize - 3 * 4096]).unwrap();
}

fn set_aside(base: &Base) -> usize {
    let is_aside = |name: &str| name.contains("db.corrupt-") && !name.ends_with("-wal") && !name.ends_with("-shm");
    let folder = std::fs::read_dir(base.path().parent().unwrap()).unwrap();
    folder.filter(|entry| is_aside(entry.as_ref().unwrap().file_name().to_str().unwrap())).count()
}

#[tokio::test]
async fn a_corrupt_file_is_set_aside_at_the_start_and_while_it_runs() {
    let base = Base::sqlite();
    let policies = Policies::early(&[]);
    let rig = filled(&base, &policies).await;
    let log = rig.recovered.log;
    rig.stop().await;
    damage(&base);
    let rig = Rig::open_with(&base.plan, Bounds::default(), policies.clone()).await;
    assert!(rig.recovered.channels.is_empty() && rig.recovered.log != log && rig.recovered.last_seq == 0);
    assert_eq!(set_aside(&base), 1);
    rig.write((1..=300).map(|n| event("a", n, 11, "x"))).await;
    rig.crash().await;

    // Nothing reads the damaged part, but after a crash the file is checked.
    base.stranger().await.run("PRAGMA wal_checkpoint(TRUNCATE)").await;
    damage_event(&base, 100);
    let rig = Rig::open_with(&base.plan, Bounds::default(), policies.clone()).await;
    assert_eq!(rig.recovered.channels[0].top, 300);
    until_set_aside(&base, &rig, 2).await;
    rig.write([event("a", 301, 11, "x")]).await;
    assert_eq!(places(&base).await, [("a".to_owned(), 301)]);
    assert_eq!(policies.trimmed.lock().clone(), [("a".to_owned(), 301)]);

    // A reader finds the damage.
    rig.write((302..=600).map(|n| event("a", n, 11, "x"))).await;
    rig.stop().await;
    let rig = Rig::open_with(&base.plan, Bounds::default(), policies.clone()).await;
    damage_event(&base, 400);
    let query = HistoryQuery { limit: 1000, ..HistoryQuery::default() };
    rig.store.history(&query).await.unwrap_err();
    until_set_aside(&base, &rig, 3).await;
    assert!(all(&rig.store).await.is_empty());
    assert_eq!(policies.trimmed.lock().last(), Some(&("a".to_owned(), 601)));
    rig.stop().await;
}

/// Overwrites the page that contains the first event with this number.
fn damage_event(base: &Base, number: u64) {
    use std::os::unix::fs::FileExt;
    let (bytes, number) = (std::fs::read(base.path()).unwrap(), format!("\"n\":{number},"));
    let at = bytes.windows(number.len()).position(|part| part == number.as_bytes()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(base.path()).unwrap();
    file.write_all_at(&[0xa5; 4096], at as u64 / 4096 * 4096).unwrap();
}

async fn until_set_aside(base: &Base, rig: &Rig, count: usize) {
    while set_aside(base) < count || rig.store.state() != StoreState::Ok {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn garbage_where_the_database_was_is_set_aside() {
    let base = Base::sqlite();
    filled(&base, &Policies::early(&[])).await.stop().await;
    std::fs::write(base.path(), "garbage ".repeat(1000)).unwrap();
    let rig = Rig::of(&base).await;
    assert_eq!(set_aside(&base), 1);
    rig.write([event("a", 1, 1, "x")]).await;
    rig.stop().await;
}
