//! The store on real databases: what is appended is there, in order, whatever happens in between.

mod base;
mod faults;
mod pairs;
mod records;
mod retention;
mod rig;

use std::time::Duration;

use super::*;
use crate::model::chance;
use crate::model::event::Epoch;
use crate::model::{ChannelName, Clock, Event, Now};

pub(super) use base::{Base, memory, on_both};
pub(super) use rig::{Policies, Rig, append, event, places};

async fn all(store: &Store) -> Vec<String> {
    let query = HistoryQuery { limit: 1000, ..HistoryQuery::default() };
    store.history(&query).await.unwrap().events
}

#[tokio::test]
async fn what_was_appended_is_read_back_as_it_was() {
    let base = Base::sqlite();
    for plan in [base.plan.clone(), memory()] {
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

on_both! {
    async fn a_row_has_what_its_event_has(base) {
        let rig = Rig::of(base).await;
        let mut bare = event("b", 1, 7, "y");
        bare.new.origin = crate::model::event::Origin { source: "s".into(), ..Default::default() }.into();
        bare.new.metadata = None;
        let whole = event("a", 1, u64::MAX - 1, "x");
        let ids = [whole.new.id.as_bytes().to_vec(), bare.new.id.as_bytes().to_vec()];
        rig.write([whole, bare]).await;
        type Line = (i64, String, i64, i64, Vec<u8>, String, String, i64);
        let mut db = base.stranger().await;
        let lines: Vec<Line> = db
            .rows("SELECT e.id, c.name, e.\"offset\", e.epoch, e.uuid, e.type, e.data, e.time_ms FROM events e JOIN channels c ON c.id = e.channel ORDER BY e.id")
            .await;
        let data = "{\"n\":1,\"text\":\"ü\\u0000\"}".to_owned();
        let line = |id, name: &str, epoch, uuid: &Vec<u8>, kind: &str| (id, name.to_owned(), 1, epoch, uuid.clone(), kind.to_owned(), data.clone(), 1_700_000_000_001);
        assert_eq!(lines, [line(1, "a", -2, &ids[0], "x"), line(2, "b", 7, &ids[1], "y")]);
        type Rest = (String, Option<String>, Option<String>, Option<String>, Option<String>);
        let rest: Vec<Rest> = db.rows("SELECT source, client, \"user\", session, metadata FROM events ORDER BY id").await;
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(rest, [("api".into(), text("c1"), None, text("s"), text("{\"where\":null}")), ("s".into(), None, None, None, None)]);
        rig.stop().await;
    }

    async fn only_a_crash_and_an_early_promise_together_cost_an_epoch(base) {
        let policies = Policies::early(&["a", "c"]);
        let open = async || Rig::open_with(&base.plan, Bounds::default(), policies.clone()).await;
        let rig = open().await;
        assert!(rig.recovered.clean && rig.recovered.channels.is_empty());
        rig.write((1..=5).map(|n| event("a", n, 7, "x"))).await;
        rig.write([event("b", 1, 9, "x"), event("c", 1, 9, "x")]).await;
        let log = rig.recovered.log;
        rig.stop().await;

        // In the next run another channel delivers early; that counts for its crash, even if nothing happens.
        *policies.by_name.lock() = Policies::early(&["b", "a"]).by_name.lock().clone();
        let rig = open().await;
        assert!(rig.recovered.clean);
        let standing = |name, epoch, top| StoredChannel { name: ChannelName::parse(name).unwrap(), epoch, top, first: 1 };
        assert_eq!(rig.recovered.channels, [standing("a", 7, 5), standing("b", 9, 1), standing("c", 9, 1)]);
        assert_eq!((rig.recovered.last_seq, rig.recovered.log), (7, log));
        rig.write([event("a", 6, 7, "x")]).await;
        rig.crash().await;

        let rig = open().await;
        assert!(!rig.recovered.clean);
        let channels = rig.recovered.channels.clone();
        assert_eq!(channels.iter().map(|c| (c.name.as_str(), c.top)).collect::<Vec<_>>(), [("a", 6), ("b", 1), ("c", 1)]);
        assert!(channels[..2].iter().all(|c| ![7, 9].contains(&c.epoch)), "{channels:?}");
        assert_eq!(channels[2].epoch, 9, "nobody saw what it lost");
        assert!(rig.recovered.last_seq > 8 + 65_536, "places that were given, but not committed, are not given again");
        rig.stop().await;
        let rig = open().await;
        assert!(rig.recovered.clean);
        assert_eq!(rig.recovered.channels, channels, "the new epochs stay");
        assert_eq!(rig.recovered.log, log);
        rig.stop().await;
    }

    async fn a_channel_that_was_early_in_a_run_counts_as_early_until_it_ends(base) {
        let policies = Policies::early(&["a"]);
        let rig = Rig::open_with(&base.plan, Bounds::default(), policies.clone()).await;
        rig.write(["a", "b", "c"].map(|name| event(name, 1, 7, "x"))).await;
        // One is no longer early, but what it has shown may not be committed yet; another will be, once that is recorded.
        policies.by_name.lock().clear();
        rig.store.note_early(vec![ChannelName::parse("b").unwrap()]).await.unwrap();
        rig.write(["a", "b", "c"].map(|name| event(name, 2, 7, "x"))).await;
        rig.crash().await;
        let rig = Rig::open_with(&base.plan, Bounds::default(), policies.clone()).await;
        assert_eq!(rig.recovered.channels.iter().map(|channel| channel.epoch == 7).collect::<Vec<_>>(), [false, false, true]);
        // Nobody is early in this run.
        let epochs: Vec<u64> = rig.recovered.channels.iter().map(|channel| channel.epoch).collect();
        rig.write([event("a", 3, epochs[0], "x")]).await;
        rig.crash().await;
        let rig = Rig::open_with(&base.plan, Bounds::default(), policies).await;
        assert_eq!(rig.recovered.channels.iter().map(|channel| channel.epoch).collect::<Vec<_>>(), epochs);
        rig.stop().await;
    }

    async fn an_epoch_that_begins_within_a_batch_has_nothing_before_it(base) {
        let rig = Rig::of(base).await;
        rig.write((1..=3).map(|n| event("a", n, 7, "x"))).await;
        // In between two events were not stored.
        let events = vec![event("a", 4, 7, "x"), event("a", 7, 8, "x"), event("a", 8, 8, "x")];
        let bytes = events.iter().map(Event::cost_bytes).sum();
        let ticket = rig.store.reserve(3, bytes).unwrap().append(events, &[]).last;
        rig.store.committed(ticket).await.unwrap();
        rig.stop().await;
        let rig = Rig::of(base).await;
        let all: Vec<_> = rig.recovered.channels.iter().map(|channel| (channel.epoch, channel.top, channel.first)).collect();
        assert_eq!(all, [(8, 8, 7)]);
        rig.stop().await;
    }

    async fn a_start_that_goes_no_further_costs_no_epoch(base) {
        let policies = Policies::early(&["a"]);
        let rig = Rig::open_with(&base.plan, Bounds::default(), policies.clone()).await;
        rig.write([event("a", 1, 7, "x")]).await;
        rig.stop().await;
        drop(Store::open(&base.plan, &Clock::default()).await.unwrap());
        let rig = Rig::open_with(&base.plan, Bounds::default(), policies).await;
        assert!(rig.recovered.clean);
        assert_eq!(rig.recovered.channels[0].epoch, 7);
        rig.stop().await;
    }

    async fn a_stop_writes_what_is_queued_and_waits_for_reservations(base) {
        let rig = Rig::of(base).await;
        let held = rig.store.reserve(1, 10).unwrap();
        for n in 1..=500 {
            append(&rig.store, event("a", n, 1, "x")).unwrap();
        }
        let store = rig.store.clone();
        rig.stop.send(()).unwrap();
        while store.reserve(1, 1).err() != Some(Unavailable::Stopped) {
            tokio::task::yield_now().await;
        }
        // Enough time for a writer that ignores reservations to end.
        while store.stats().queued_rows > 0 {
            tokio::task::yield_now().await;
        }
        assert!(tokio::time::timeout(Duration::from_millis(50), store.committed(Ticket(501))).await.is_err());
        let ticket = held.append(vec![event("a", 501, 1, "x")], &[]).last;
        rig.task.await.unwrap();
        store.committed(ticket).await.unwrap();
        assert!(matches!(store.committed(Ticket(ticket.0 + 1)).await, Err(StoreError::Ended)));
        let rig = Rig::of(base).await;
        assert!(rig.recovered.clean);
        assert_eq!(rig.recovered.channels[0].top, 501);
        rig.stop().await;
    }

    async fn a_second_server_is_kept_out(base) {
        let rig = Rig::of(base).await;
        let error = Store::open(&base.plan, &Clock::default()).await.err().unwrap();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("in use by another process"));
        rig.stop().await;
        Rig::of(base).await.stop().await;
    }

    async fn one_bad_row_costs_only_itself(base) {
        let rig = Rig::of(base).await;
        rig.write([event("a", 1, 1, "x")]).await;
        // Offset 1 is taken. All of these are one batch, because nothing yields in between.
        let tickets: Vec<Ticket> = (1..=100).map(|n| append(&rig.store, event("a", n, 1, "x")).unwrap()).collect();
        assert!(matches!(rig.store.committed(tickets[0]).await, Err(StoreError::RowRefused)));
        for ticket in &tickets[1..] {
            rig.store.committed(*ticket).await.unwrap();
        }
        rig.store.settled().await;
        assert_eq!(places(base).await.len(), 100);
        let stats = rig.store.stats();
        assert_eq!((stats.refused_rows, stats.committed_rows, stats.queued_rows), (1, 100, 0));
        rig.stop().await;
    }

    async fn a_transaction_is_refused_as_a_whole_and_its_offsets_count_as_used(base) {
        let rig = Rig::of(base).await;
        rig.write([event("a", 1, 1, "x")]).await;
        let bad = [event("a", 2, 1, "x"), event("b", 1, 1, "x"), event("a", 1, 1, "taken"), event("a", 3, 1, "x")];
        let before = append(&rig.store, event("c", 1, 1, "x")).unwrap();
        let refused = rig.store.reserve(4, 0).unwrap().append(bad.into(), &[]);
        let after = rig.store.reserve(2, 0).unwrap().append(vec![event("a", 4, 1, "x"), event("c", 2, 1, "x")], &[]);
        rig.store.committed(after.last).await.unwrap();
        assert!(!rig.store.refused(before, before) && !rig.store.refused(after.first, after.last));
        assert!(rig.store.refused(refused.first, refused.last) && rig.store.refused(refused.last, refused.last));
        for ticket in refused.first.0..=refused.last.0 {
            assert!(matches!(rig.store.committed(Ticket(ticket)).await, Err(StoreError::RowRefused)));
        }
        let place = |name: &str, offset| (name.to_owned(), offset);
        assert_eq!(places(base).await, [place("a", 1), place("c", 1), place("a", 4), place("c", 2)]);
        rig.stop().await;
        let rig = Rig::of(base).await;
        let at: Vec<_> = rig.recovered.channels.iter().map(|c| (c.name.as_str(), c.top, c.first)).collect();
        assert_eq!(at.iter().find(|c| c.0 == "a"), Some(&("a", 4, 1)), "what was refused makes no hole");
        assert_eq!(at.iter().find(|c| c.0 == "b"), Some(&("b", 1, 1)), "an offset is not given twice");
        assert_eq!(rig.recovered.last_seq, 8);
        rig.stop().await;
    }

    async fn what_rests_on_a_refused_transaction_is_refused_with_it(base) {
        let rig = Rig::of(base).await;
        rig.write([event("a", 1, 1, "x"), event("b", 1, 1, "x")]).await;
        let append = |events: Vec<Event>, after: &[Ticket]| rig.store.reserve(events.len(), 0).unwrap().append(events, after).last;
        // All of these are one batch, because nothing yields in between; offset 1 of `a` is taken.
        let valid = append(vec![event("b", 2, 1, "x")], &[]);
        let bad = append(vec![event("a", 2, 1, "x"), event("a", 1, 1, "taken")], &[]);
        let misled = append(vec![event("b", 3, 1, "x"), event("a", 3, 1, "x")], &[valid, bad]);
        let of_misled = append(vec![event("c", 1, 1, "x")], &[misled]);
        let apart = append(vec![event("a", 4, 1, "x"), event("b", 4, 1, "x")], &[valid]);
        for ticket in [bad, misled, of_misled] {
            assert!(matches!(rig.store.committed(ticket).await, Err(StoreError::RowRefused)));
        }
        rig.store.committed(valid).await.unwrap();
        rig.store.committed(apart).await.unwrap();
        // In a separate batch, between two that are valid.
        let before = append(vec![event("a", 5, 1, "x")], &[apart]);
        let late = append(vec![event("b", 5, 1, "x")], &[apart, of_misled]);
        let after = append(vec![event("a", 6, 1, "x"), event("d", 1, 1, "x")], &[before]);
        assert!(matches!(rig.store.committed(late).await, Err(StoreError::RowRefused)));
        rig.store.committed(before).await.unwrap();
        rig.store.committed(after).await.unwrap();
        let place = |name: &str, offset| (name.to_owned(), offset);
        let there = [("a", 1), ("b", 1), ("b", 2), ("a", 4), ("b", 4), ("a", 5), ("a", 6), ("d", 1)];
        assert_eq!(places(base).await, there.map(|(name, offset)| place(name, offset)));
        assert_eq!(rig.store.stats().refused_rows, 6);
        rig.stop().await;
        let rig = Rig::of(base).await;
        let mut tops: Vec<_> = rig.recovered.channels.iter().map(|c| (c.name.as_str().to_owned(), c.top as i64)).collect();
        tops.sort();
        assert_eq!(tops, [("a", 6), ("b", 5), ("c", 1), ("d", 1)].map(|(name, top)| place(name, top)), "no offset is given twice");
        rig.stop().await;
    }

    async fn batches_of_any_size_over_many_channels_are_there_in_order(base) {
        let rig = Rig::of(base).await;
        let (mut tops, mut expected) = ([0u64; 70], Vec::new());
        // First the channels become known; then sizes around those of the statements.
        for size in [70, 1, 2, 31, 32, 33, 64, 65, 97, 512, 513, 700] {
            let events: Vec<Event> = (0..size)
                .map(|n| {
                    let channel = (n * 7 + size) % tops.len();
                    tops[channel] += 1;
                    expected.push((format!("c{channel}"), tops[channel] as i64));
                    event(&format!("c{channel}"), tops[channel], 1, "x")
                })
                .collect();
            let appended = rig.store.reserve(size, 0).unwrap().append(events, &[]);
            rig.store.committed(appended.last).await.unwrap();
        }
        assert_eq!(places(base).await, expected);
        let stats = rig.store.stats();
        assert_eq!((stats.commits.count(), stats.committed_rows), (12, expected.len() as u64));
        assert!(stats.commits.longest >= stats.commits.mean() && stats.commits.mean() > Duration::ZERO);
        rig.stop().await;
        let rig = Rig::of(base).await;
        for channel in &rig.recovered.channels {
            let index: usize = channel.name.as_str()[1..].parse().unwrap();
            assert_eq!((channel.top, channel.first), (tops[index], 1), "{channel:?}");
        }
        assert_eq!(rig.recovered.channels.len(), tops.len());
        rig.stop().await;
    }

    async fn the_older_part_of_a_channel_with_a_hole_counts_as_gone(base) {
        let rig = Rig::of(base).await;
        rig.write([event("a", 1, 1, "x"), event("a", 2, 1, "x"), event("b", 1, 1, "x")]).await;
        rig.write([event("a", 6, 1, "x"), event("a", 7, 1, "x"), event("b", 2, 1, "x")]).await;
        rig.stop().await;
        let rig = Rig::of(base).await;
        let at: Vec<_> = rig.recovered.channels.iter().map(|c| (c.name.as_str(), c.top, c.first)).collect();
        assert_eq!(at, [("a", 7, 6), ("b", 2, 1)]);
        rig.stop().await;
    }

    async fn what_was_committed_already_is_not_written_twice(base) {
        let (store, mut writer, _) = Store::open(&base.plan, &Clock::default()).await.unwrap();
        let policies = Policies::early(&[]);
        writer.begin(policies.clone()).await.unwrap();
        let appended = store.reserve(3, 0).unwrap().append(vec![event("a", 1, 1, "x"), event("b", 1, 1, "x"), event("a", 2, 1, "x")], &[]);
        let items: Vec<queue::Item> = appended.events.iter().cloned().map(queue::Item::Event).collect();
        let points = [Point { kind: "k", name: "n".into(), metric: "m", minute_s: 60, delta: 2 }];
        for again in [false, true, true] {
            work::perform(&mut writer.link, &work::Work::Items(&items), &*policies, &writer.known, again, 1).await.unwrap();
            work::perform(&mut writer.link, &work::Work::Points(&points), &*policies, &writer.known, again, 2).await.unwrap();
        }
        assert_eq!(places(base).await.len(), 3);
        let mut db = base.stranger().await;
        assert_eq!(db.rows::<(i64, i64)>("SELECT top, first FROM channels ORDER BY name").await, [(2, 1), (1, 1)]);
        assert_eq!(db.rows::<(i64,)>("SELECT total FROM series").await, [(2,)]);
        // Another event at the same position is not a repetition.
        let mut other = (*appended.events[0]).clone();
        other.new.id = uuid::Uuid::now_v7();
        let other = [queue::Item::Event(other.into())];
        let done = work::perform(&mut writer.link, &work::Work::Items(&other), &*policies, &writer.known, true, 3).await;
        assert!(matches!(done, Err(fault::Fault::Row(_))), "{done:?}");
    }
}

#[tokio::test]
async fn a_file_by_another_name_is_the_same_file() {
    let base = Base::sqlite();
    let rig = Rig::of(&base).await;
    let alias = base.folder().join("alias.db");
    std::os::unix::fs::symlink(base.path(), &alias).unwrap();
    let plan = crate::config::plan::DatabasePlan::Sqlite(alias).into();
    let error = Store::open(&plan, &Clock::default()).await.err().unwrap();
    assert!(matches!(error, StoreError::InUse { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    rig.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_gives_back_what_was_not_used() {
    let bounds = Bounds { rows: 10, bytes: 10_000, ..Bounds::default() };
    let (store, mut writer, _) = Store::open_with(&memory(), &Clock::default(), bounds).await.unwrap();
    assert_eq!(store.reserve(1, 1).err(), Some(Unavailable::Stopped));
    writer.begin(Policies::early(&[])).await.unwrap();
    let permit = store.reserve(10, 100).unwrap();
    assert_eq!(store.reserve(1, 1).err(), Some(Unavailable::Full));
    drop(permit);
    assert_eq!(store.reserve(1, 10_001).err(), Some(Unavailable::Full));
    assert_eq!(store.reserve(usize::MAX, usize::MAX).err(), Some(Unavailable::Full));
    // Nobody writes: what is appended stays, even if it is more than was reserved.
    for n in 1..=9 {
        store.reserve(1, 0).unwrap().append(vec![event("a", n, 1, "x")], &[]);
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

on_both! {
    async fn ten_thousand_events_of_several_threads_are_all_there_in_order_and_grouped(base) {
        let rig = Rig::of(base).await;
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
        tokio::task::spawn_blocking(|| threads.into_iter().for_each(|thread| thread.join().unwrap())).await.unwrap();
        rig.store.committed(rig.store.ticket()).await.unwrap();
        let stats = rig.store.stats();
        assert_eq!(stats.committed_rows, 10_000);
        assert!(stats.committed_batches < 1000, "{} transactions", stats.committed_batches);
        let rows = places(base).await;
        for t in 0..5 {
            let offsets: Vec<i64> = rows.iter().filter(|(name, _)| *name == format!("room:{t}")).map(|(_, offset)| *offset).collect();
            assert_eq!(offsets, (1..=2000).collect::<Vec<i64>>());
        }
        rig.stop().await;
    }
}

#[test]
fn a_fresh_epoch_fits_the_database_and_differs() {
    let epochs: std::collections::HashSet<Epoch> = (0..50).map(|_| chance::epoch()).collect();
    assert!(epochs.len() >= 49 && epochs.iter().all(|epoch| *epoch > 0 && epoch.cast_signed() > 0));
}
