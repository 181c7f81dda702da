//! What the store does while its database cannot, and afterwards.

use super::*;
use crate::config::plan::DatabasePlan;
use crate::model::Json;

#[tokio::test]
async fn a_folder_that_cannot_be_made_and_a_file_that_is_no_database_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = |path| DatabasePlan::Sqlite(path).into();
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "x").unwrap();
    let error = Store::open(&sqlite(blocked.join("x.db")), Now::read()).await.err().unwrap();
    assert!(matches!(error, StoreError::Folder { .. }), "{error}");
    let other = folder.path().join("other.db");
    std::fs::write(&other, "not a database, but long enough to be read as the header of one".repeat(20)).unwrap();
    for _ in 0..2 {
        let error = Store::open(&sqlite(other.clone()), Now::read()).await.err().unwrap();
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
        let writing = rig.writing.clone().unwrap();
        sqlx::query("PRAGMA max_page_count = 1").execute(&writing).await.unwrap();
        let mut large = event("a", 2, 1, "x");
        large.new.data = Json::string(&"x".repeat(1 << 20));
        let ticket = append(&rig.store, large).unwrap();
        assert_eq!(&*rig.degraded().await, "the disk is full");
        assert!(matches!(rig.store.reserve(1, 1), Err(Unavailable::Degraded(reason)) if reason.contains("full")));
        assert_eq!(all(&rig.store).await.len(), 1);
        sqlx::query("PRAGMA max_page_count = 100000").execute(&writing).await.unwrap();
        rig.store.committed(ticket).await.unwrap();
        assert_eq!(rig.store.state(), StoreState::Ok);
        rig.write([event("a", 3, 1, "x")]).await;
        assert_eq!(all(&rig.store).await.len(), 3);
        rig.stop().await;
    }
}
