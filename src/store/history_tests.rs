//! Pages: what they contain, where they continue, and that the database query means what the filter means.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::model::Json;
use crate::store::read::Query;
use crate::store::tests::{Rig, event, memory};
use crate::store::{Bounds, CursorError, Store};

fn query(channel: Option<&str>, kind: Option<&str>, limit: usize) -> HistoryQuery {
    let filter = Filter { channels: channel.map(Into::into).into_iter().collect(), kind: kind.map(Into::into), ..Filter::default() };
    HistoryQuery { filter, order: Order::Descending, limit, cursor: None }
}

fn small(rows: i64) -> Budget {
    Budget { rows, first: rows, time: Duration::from_secs(10) }
}

/// (channel, offset) of each event of a page.
fn places(page: &Page) -> Vec<(String, u64)> {
    let place = |text: &String| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        (value["channel"].as_str().unwrap().to_owned(), value["offset"].as_u64().unwrap())
    };
    page.events.iter().map(place).collect()
}

async fn rig() -> Rig {
    let rig = Rig::open(&memory()).await;
    for n in 1..=4 {
        let kind = if n % 2 == 0 { "even" } else { "odd" };
        rig.write(
            ["room:a", "room:b", "rooms", "r?om:a"].map(|channel| event(if channel == "r?om:a" { "other" } else { channel }, n, 1, kind)),
        )
        .await;
    }
    rig
}

async fn found(store: &Store, channel: Option<&str>, kind: Option<&str>) -> Vec<(String, u64)> {
    places(&store.history(&query(channel, kind, 1000)).await.unwrap())
}

#[tokio::test]
async fn filters_choose_by_channel_glob_and_type() {
    let rig = rig().await;
    let named = |list: &[(&str, u64)]| list.iter().map(|(c, n)| ((*c).to_owned(), *n)).collect::<Vec<_>>();
    let store = &rig.store;
    assert_eq!(found(store, None, None).await.len(), 16);
    assert_eq!(found(store, Some("**"), None).await.len(), 16);
    assert_eq!(found(store, Some("rooms"), None).await, named(&[("rooms", 4), ("rooms", 3), ("rooms", 2), ("rooms", 1)]));
    assert_eq!(found(store, Some("rooms"), Some("even")).await, named(&[("rooms", 4), ("rooms", 2)]));
    let even = named(&[("room:b", 4), ("room:a", 4), ("room:b", 2), ("room:a", 2)]);
    assert_eq!(found(store, Some("room:*"), Some("even")).await, even);
    assert_eq!(found(store, None, Some("odd")).await.len(), 8);
    assert_eq!(found(store, Some("*:b"), None).await.len(), 4);
    // SQLite's own wildcards have no meaning here.
    for text in ["r?om:*", "room:[ab]*", "room:_", "room:%", "", "nowhere", "nowhere*", "room:a'; --"] {
        assert_eq!(found(store, Some(text), None).await, [], "{text}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_glob_made_to_be_slow_is_not() {
    let rig = Rig::open(&memory()).await;
    rig.write([event(&"a".repeat(250), 1, 1, "x")]).await;
    let glob = format!("{}b", "*a".repeat(60));
    let begin = std::time::Instant::now();
    assert_eq!(found(&rig.store, Some(&glob), None).await, []);
    assert!(begin.elapsed() < std::time::Duration::from_secs(1));
    rig.stop().await;
}

#[tokio::test]
async fn limits_are_held_to() {
    let rig = rig().await;
    for limit in [0, 1001, usize::MAX] {
        assert!(matches!(rig.store.history(&query(None, None, limit)).await, Err(StoreError::Limit)), "{limit}");
    }
    let page = rig.store.history(&query(Some("rooms"), None, 4)).await.unwrap();
    assert_eq!((page.events.len(), page.next), (4, None), "an exact fit has no next page");
    assert!(rig.store.history(&query(Some("rooms"), None, 3)).await.unwrap().next.is_some());
    rig.stop().await;
}

#[tokio::test]
async fn a_cursor_holds_for_its_own_query_only() {
    let rig = rig().await;
    let first = query(Some("room:*"), None, 2);
    let cursor = rig.store.history(&first).await.unwrap().next.unwrap();
    let with = |channel: Option<&str>, kind: Option<&str>, limit, cursor: &str| HistoryQuery {
        cursor: Some(cursor.to_owned()),
        ..query(channel, kind, limit)
    };
    assert_eq!(rig.store.history(&with(Some("room:*"), None, 1000, &cursor)).await.unwrap().events.len(), 6, "the limit may change");
    for (channel, kind) in [(Some("room:a"), None), (None, None), (Some("room:*"), Some("odd"))] {
        let error = rig.store.history(&with(channel, kind, 2, &cursor)).await.unwrap_err();
        assert!(matches!(error, StoreError::Cursor(CursorError::Foreign)), "{error}");
    }
    let upwards = HistoryQuery { order: Order::Ascending, ..with(Some("room:*"), None, 2, &cursor) };
    assert!(matches!(rig.store.history(&upwards).await.unwrap_err(), StoreError::Cursor(CursorError::Foreign)));
    for text in ["", "x", "!!!!", &cursor[1..], &format!("{cursor}AAAA"), &"CQkJ".repeat(6), &"A".repeat(10_000)] {
        let error = rig.store.history(&with(Some("room:*"), None, 2, text)).await.unwrap_err();
        assert!(matches!(error, StoreError::Cursor(CursorError::Malformed)), "{text}: {error}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_filter_without_an_index_looks_at_a_bounded_number_of_rows_and_goes_on() {
    let rig = Rig::open(&memory()).await;
    rig.write([event("rare:1", 1, 1, "x")]).await;
    rig.write((1..=50).map(|n| event("often", n, 1, "x"))).await;
    rig.write([event("rare:2", 1, 1, "x")]).await;
    let mut query = query(Some("rare:*"), None, 10);
    let (mut seen, mut pages) = (Vec::new(), 0);
    loop {
        let page = page(&rig.store.shared.readers(), &query, small(10)).await.unwrap();
        seen.extend(places(&page));
        pages += 1;
        assert_eq!(page.truncated, page.next.is_some());
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => break,
        }
    }
    assert_eq!(seen, [("rare:2".to_owned(), 1), ("rare:1".to_owned(), 1)]);
    assert_eq!(pages, 6);
    let indexed = page(&rig.store.shared.readers(), &super::HistoryQuery::default(), small(10)).await.unwrap();
    assert_eq!((indexed.events.len(), indexed.truncated), (52, false));
    rig.stop().await;
}

#[tokio::test]
async fn a_page_of_large_events_ends_early_and_goes_on() {
    let rig = Rig::open(&memory()).await;
    let large = |n| {
        let mut event = event("a", n, 1, "x");
        event.new.data = Json::string(&"x".repeat(6 << 20));
        event
    };
    rig.write((1..=5).map(large)).await;
    let mut query = query(None, None, 100);
    let first = rig.store.history(&query).await.unwrap();
    assert_eq!(first.events.len(), 3);
    query.cursor = first.next;
    assert_eq!(rig.store.history(&query).await.unwrap().events.len(), 2);
    rig.stop().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Walking through pages returns what was there when the walk began, except what was removed before it came to it: newest
    /// first, nothing twice, nothing left out.
    #[test]
    fn pages_stay_right_while_rows_come_and_go(
        start in prop::collection::vec(0usize..3, 1..40), filter in 0usize..4, limit in 1usize..6,
        steps in prop::collection::vec((prop::collection::vec(0usize..3, 0..4), prop::bool::weighted(0.2)), 0..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let rig = Rig::open_with(&memory(), Bounds { batch_rows: 3, ..Bounds::default() }, Default::default()).await;
            let pool = rig.store.shared.readers();
            let names = ["room:a", "room:b", "c"];
            let mut tops = [0u64; 3];
            let mut next = |channel: usize| { tops[channel] += 1; event(names[channel], tops[channel], 1, "x") };
            rig.write(start.iter().map(|channel| next(*channel))).await;
            let (filter, kind) = [(None, None), (Some("room:*"), None), (Some("c"), None), (None, Some("x"))][filter];
            let all = found(&rig.store, filter, kind).await;
            let (mut query, mut seen, mut removed) = (query(filter, kind, limit), Vec::new(), 0i64);
            for (added, remove) in steps.into_iter().chain(std::iter::repeat((vec![], false))) {
                let page = rig.store.history(&query).await.unwrap();
                seen.extend(places(&page));
                let Some(cursor) = page.next else { break };
                query.cursor = Some(cursor);
                rig.write(added.into_iter().map(&mut next)).await;
                if remove {
                    removed += 2;
                    let mut delete = Query::new(&pool, "DELETE FROM events WHERE id <= ");
                    delete.value(removed).each(|_| unreachable!()).await.unwrap();
                }
            }
            prop_assert!(seen.len() <= all.len());
            prop_assert_eq!(&seen[..], &all[..seen.len()]);
            prop_assert!(all.len() - seen.len() <= usize::try_from(removed).unwrap());
            rig.stop().await;
            Ok(())
        })?;
    }
}
