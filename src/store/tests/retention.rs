//! What is removed, when, and what is reported of it.

use std::collections::HashMap;

use super::*;
use crate::config::plan::{Keep, StorePlan};

fn kept(name: &str, events: Option<u64>, age: Option<Duration>) -> (String, Policy) {
    (name.to_owned(), Policy { keep: Keep { events, age }, early: false })
}

fn policies(list: Vec<(String, Policy)>) -> Arc<Policies> {
    let policies = Policies::default();
    policies.by_name.lock().extend(list);
    policies.into()
}

/// Waits until the database has this many events.
async fn until_left(base: &Base, count: usize) -> Vec<(String, i64)> {
    let mut db = base.stranger().await;
    loop {
        let rows: Vec<(i64,)> = db.rows("SELECT count(*) FROM events").await;
        if rows[0].0 <= count as i64 {
            return places(base).await;
        }
        tokio::task::yield_now().await;
    }
}

on_both! {
    async fn by_count_the_newest_stay(base) {
        let policies = policies(vec![kept("a", Some(3), None), kept("c", Some(0), None)]);
        let rig = Rig::open_with(&base.plan, Bounds::default(), policies.clone()).await;
        for n in 1..=5000 {
            append(&rig.store, event("a", n, 1, "x")).unwrap();
        }
        rig.write([event("b", 1, 1, "x"), event("c", 1, 1, "x"), event("c", 2, 1, "x")]).await;
        let left = until_left(base, 4).await;
        let place = |name: &str, offset| (name.to_owned(), offset);
        assert_eq!(left, [place("a", 4998), place("a", 4999), place("a", 5000), place("b", 1)]);
        rig.write([event("a", 5001, 1, "x")]).await;
        until_left(base, 4).await;
        let rows: Vec<(String, i64, i64, i64)> = base.stranger().await.rows("SELECT name, top, first, gone FROM channels ORDER BY name").await;
        let line = |name: &str, top, first, gone| (name.to_owned(), top, first, gone);
        assert_eq!(rows, [line("a", 5001, 4999, 4998), line("b", 1, 1, 0), line("c", 2, 3, 5003)]);
        rig.stop().await;
        let told = policies.trimmed.lock().clone();
        assert_eq!(told.iter().rfind(|(name, _)| name == "a"), Some(&("a".into(), 4999)));
        assert_eq!(told.iter().rfind(|(name, _)| name == "c"), Some(&("c".into(), 3)));
        assert!(told.iter().all(|(name, _)| name != "b"));
        // Positions in the log are not assigned again, even if the newest event was removed.
        policies.by_name.lock().extend([kept("a", Some(0), None)]);
        let rig = Rig::open_with(&base.plan, Bounds::default(), policies.clone()).await;
        assert_eq!(rig.recovered.last_seq, 5004);
        until_left(base, 1).await;
        rig.crash().await;
        let rig = Rig::open_with(&base.plan, Bounds::default(), policies).await;
        assert!(rig.recovered.last_seq >= 5004);
        let at: Vec<_> = rig.recovered.channels.iter().map(|c| (c.name.as_str(), c.top, c.first)).collect();
        assert_eq!(at, [("a", 5001, 5002), ("b", 1, 1), ("c", 2, 3)]);
        rig.write([event("a", 5002, 1, "x"), event("c", 3, 1, "x")]).await;
        rig.stop().await;
    }

    async fn by_age_the_young_stay(base) {
        let policies = policies(vec![kept("a", None, Some(Duration::from_secs(3600)))]);
        let rig = Rig::open_with(&base.plan, Bounds::default(), policies.clone()).await;
        let now_ms = Now::read().wall_ms;
        let aged = |channel: &str, offset, age_ms| {
            let mut event = event(channel, offset, 1, "x");
            event.new.time_ms = now_ms - age_ms;
            event
        };
        rig.write([aged("a", 1, 9_000_000), aged("b", 1, 9_000_000), aged("a", 2, 4_000_000), aged("a", 3, 1000), aged("a", 4, 500)]).await;
        let place = |name: &str, offset| (name.to_owned(), offset);
        assert_eq!(until_left(base, 3).await, [place("b", 1), place("a", 3), place("a", 4)]);
        // Even if nothing was left, and if one becomes old later.
        rig.write([aged("a", 5, 3_599_800)]).await;
        rig.write([aged("c", 1, 9_000_000)]).await;
        assert_eq!(policies.trimmed.lock().clone(), [("a".to_owned(), 3)]);
        policies.by_name.lock().extend([kept("c", None, Some(Duration::from_secs(1)))]);
        assert_eq!(until_left(base, 4).await.len(), 4);
        rig.write([aged("c", 2, 9_000_000), aged("c", 3, 0)]).await;
        until_left(base, 5).await;
        until_left(base, 4).await;
        rig.stop().await;
    }

    async fn what_is_no_event_goes_too(base) {
        let rig = Rig::of(base).await;
        let now_ms = Now::read().wall_ms;
        let (day_ms, hour_s, day_s) = (86_400_000, 3600, 86_400);
        let record = |client: &str| ConnectionRecord {
            client: client.into(),
            protocol: "p".into(),
            user: None,
            session: None,
            address: "::1".into(),
            opened_ms: 1,
        };
        rig.store.append_connection_opened(record("open"));
        for (client, days) in [("old", 31), ("young", 29)] {
            rig.store.append_connection_closed(record(client), ConnectionEnd { closed_ms: now_ms - days * day_ms, ..Default::default() });
        }
        for (id, expires_ms) in [("over", now_ms - 1), ("on", now_ms + day_ms)] {
            let (user, name, meta, seen_ms) = Default::default();
            rig.store.put_session(SessionRecord { id: id.into(), user, name, meta, created_ms: 1, expires_ms, seen_ms }).unwrap();
        }
        let hour = (now_ms / 1000 - 100 * hour_s) / hour_s * hour_s;
        let day = (now_ms / 1000 - 100 * day_s) / day_s * day_s;
        let point = |minute_s, delta| Point { kind: "k", name: "n".into(), metric: "m", minute_s, delta };
        let young = now_ms / 60_000 * 60;
        rig.store.append_points(vec![point(hour, 1), point(hour + 60, 2), point(hour + 3540, 4), point(hour + hour_s, 8)]);
        rig.store.append_points(vec![point(day + 60, 16), point(day + 7200, 32), point(young, 64)]);
        rig.store.settled().await;
        rig.stop().await;
        // The round runs at the start.
        let rig = Rig::of(base).await;
        let mut db = base.stranger().await;
        let expected = [(60, young, 64), (3600, hour, 7), (3600, hour + hour_s, 8), (86_400, day, 48)];
        while db.rows::<(i64, i64, i64)>("SELECT step, at, value FROM points ORDER BY step, at").await != expected {
            tokio::task::yield_now().await;
        }
        let names: Vec<(String,)> = db.rows("SELECT client FROM connections ORDER BY client").await;
        assert_eq!(names, [("open".to_owned(),), ("young".to_owned(),)]);
        assert_eq!(db.rows::<(String,)>("SELECT id FROM sessions").await, [("on".to_owned(),)]);
        rig.stop().await;
    }

    async fn a_database_that_is_too_large_loses_the_oldest_of_all(base) {
        let mib = 1 << 20;
        let plan = StorePlan { size: Some(if base.is_postgres() { 11 * mib } else { 3 * mib }), ..base.plan.clone() };
        let policies = policies(Vec::new());
        let rig = Rig::open_with(&plan, Bounds::default(), policies.clone()).await;
        let large = |channel: &str, offset| {
            let mut event = event(channel, offset, 1, "x");
            // Data that does not get smaller when compressed.
            let noise: String = (0..64).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
            event.new.data = crate::model::Json::string(&noise);
            event
        };
        let total = 4000;
        for n in 1..=total / 2 {
            rig.write([large("a", n), large("b", n)]).await;
        }
        let mut db = base.stranger().await;
        while policies.trimmed.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        // Until it no longer changes.
        let mut left = db.rows::<(i64,)>("SELECT count(*) FROM events").await[0].0;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = db.rows::<(i64,)>("SELECT count(*) FROM events").await[0].0;
            if now == left {
                break;
            }
            left = now;
        }
        // Most of what fits is there.
        assert!(left > 600 && left < total as i64, "{left}");
        let places = places(base).await;
        let mut first: HashMap<&str, i64> = HashMap::new();
        for (name, offset) in &places {
            first.entry(name).or_insert(*offset);
        }
        assert!((first["a"] - first["b"]).abs() <= 1, "{first:?}");
        assert_eq!(places.last().unwrap().1, total as i64 / 2);
        let rows: Vec<(String, i64, i64)> = db.rows("SELECT name, top, first FROM channels ORDER BY name").await;
        assert_eq!(rows[0], ("a".to_owned(), total as i64 / 2, first["a"]));
        rig.stop().await;
    }
}
