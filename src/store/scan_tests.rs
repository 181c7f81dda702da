//! Which index is used for which query, on both databases.

use super::*;
use crate::store::filter::{DataIs, Moment, Needle};
use crate::store::tests::{Base, Rig, on_both};

/// Enough rows to make PostgreSQL use an index.
const ROWS: i64 = 30_000;

/// Rows with realistic values: a client has few, a source has many.
async fn fill(base: &Base) {
    let numbers = if base.is_postgres() {
        format!("generate_series(1, {ROWS}) AS g(n)")
    } else {
        format!("(WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < {ROWS}) SELECT n FROM g)")
    };
    let uuid = if base.is_postgres() { "'\\x00112233445566778899aabbccddeeff'::bytea" } else { "x'00112233445566778899aabbccddeeff'" };
    let mut db = base.stranger().await;
    db.run(&format!(
        "INSERT INTO events (id, channel, \"offset\", epoch, uuid, type, data, time_ms, source, client, \"user\", session) \
         SELECT n, n % 50 + 1, n / 50 + 1, 1, {uuid}, 't' || n % 20, '{{}}', 1700000000000 + n * 100, 's' || n % 10, \
         CASE n % 3 WHEN 0 THEN 'c' || n % 500 END, CASE n % 3 WHEN 0 THEN 'u' || n % 100 END, \
         CASE n % 3 WHEN 0 THEN 's' || n % 200 END FROM {numbers}"
    ))
    .await;
    for channel in 1..=50 {
        db.run(&format!("INSERT INTO channels (name, epoch, top, first) VALUES ('room:{channel}', 1, {}, 1)", ROWS / 50)).await;
    }
    db.run("ANALYZE").await;
}

fn some(text: &str) -> Option<Box<str>> {
    Some(text.into())
}

on_both! {
    async fn the_index_that_is_meant_for_a_filter_serves_it(base) {
        let rig = Rig::of(base).await;
        fill(base).await;
        let pool = rig.store.shared.readers();
        let at = |ms: i64| Some(Moment { ms: 1_700_000_000_000 + ms, said: "then".into() });
        let everything = Filter {
            channels: vec!["room:1".into()],
            kind: some("t1"),
            user: some("u3"),
            session: some("s3"),
            client: some("c3"),
            source: some("s1"),
            since: at(0),
            until: at(2_000_000),
            text: Needle::new("x"),
            data: vec![DataIs { path: vec!["a".into()], value: "1".into() }],
        };
        let place = if base.is_postgres() { "events_pkey" } else { "INTEGER PRIMARY KEY (rowid>? AND rowid<?)" };
        let key = |name: &str, column: &str| {
            if base.is_postgres() { name.to_owned() } else { format!("INDEX {name} ({column}=? AND rowid>? AND rowid<?)") }
        };
        let offsets =
            if base.is_postgres() { "events_by_channel" } else { "INDEX events_by_channel (channel=? AND offset>? AND offset<?)" };
        let cases = [
            (Filter::default(), place.to_owned()),
            (Filter { since: at(1_000_000), ..Filter::default() }, place.to_owned()),
            (Filter { channels: vec!["room:*".into()], ..Filter::default() }, place.to_owned()),
            (Filter { text: Needle::new("x"), ..Filter::default() }, place.to_owned()),
            (Filter { channels: vec!["room:1".into()], ..Filter::default() }, offsets.to_owned()),
            (Filter { channels: vec!["room:1".into()], kind: some("t1"), since: at(0), ..Filter::default() }, offsets.to_owned()),
            (Filter { kind: some("t1"), source: some("s1"), ..Filter::default() }, key("events_by_type", "type")),
            (Filter { source: some("s1"), ..Filter::default() }, key("events_by_source", "source")),
            (Filter { user: some("u3"), channels: vec!["room:1".into()], ..Filter::default() }, key("events_by_user", "user")),
            (Filter { session: some("s3"), user: some("u3"), ..Filter::default() }, key("events_by_session", "session")),
            (Filter { client: some("c3"), ..Filter::default() }, place.to_owned()),
            (everything, key("events_by_session", "session")),
        ];
        for (filter, index) in cases {
            for order in [Order::Ascending, Order::Descending] {
                let scan = Scan::begin(&pool, &filter, order, None).await.unwrap().unwrap();
                // The window of a page after it has been narrowed to a few thousand rows, or the whole of an index.
                let (low, high) = if let Lead::Channel(_) = scan.lead { (1, 300) } else { (10_000, 12_000) };
                let (low, high) = if scan.is_decided() || !index.contains("rowid") && index.contains("_by_") { (1, LAST_KEY) } else { (low, high) };
                let plan = scan.statement(&pool, low, high, 100).plan().await;
                assert!(plan.iter().any(|line| line.contains(&index)), "{filter:?}: {index} does not serve {plan:#?}");
                if !base.is_postgres() {
                    assert!(!plan.iter().any(|line| line.contains("TEMP B-TREE")), "{filter:?}: {plan:#?}");
                }
            }
        }
        for sql in ["SELECT id FROM events WHERE time_ms < ", "SELECT id FROM events WHERE time_ms > "] {
            let mut query = Query::new(&pool, sql);
            query.value(1_700_000_000_000).push(if sql.ends_with("< ") { " ORDER BY time_ms DESC LIMIT 1" } else { " ORDER BY time_ms LIMIT 1" });
            let plan = query.plan().await;
            assert!(plan.iter().any(|line| line.contains("events_by_time")), "{plan:#?}");
        }
        rig.stop().await;
    }

    async fn bounds_of_time_are_found_by_place_and_by_offset(base) {
        let rig = Rig::of(base).await;
        fill(base).await;
        let pool = rig.store.shared.readers();
        let at = |ms: i64| Some(Moment { ms: 1_700_000_000_000 + ms, said: "then".into() });
        // 100 ms apart: 60 s of slack are 600 rows.
        let filter = Filter { since: at(1_000_000), until: at(2_000_000), ..Filter::default() };
        let scan = Scan::begin(&pool, &filter, Order::Descending, None).await.unwrap().unwrap();
        assert_eq!((scan.low, scan.high), (10_000 - 600, 20_000 + 600));
        let one = Filter { channels: vec!["room:2".into()], ..filter };
        let scan = Scan::begin(&pool, &one, Order::Descending, None).await.unwrap().unwrap();
        // The second channel has the rows 1, 51, 101 and so on.
        assert_eq!((scan.low, scan.high), (9401 / 50 + 1, 20_600 / 50));
        for order in [Order::Ascending, Order::Descending] {
            let mut scan = Scan::begin(&pool, &one, order, None).await.unwrap().unwrap();
            let found = scan.step(&pool, 1000, Budget::default()).await.unwrap();
            let offsets: Vec<u64> = found.events.iter().map(|event| event.seq).collect();
            let meant: Vec<u64> = (10_000..20_000).filter(|n| n % 50 == 1).collect();
            assert_eq!(offsets.iter().rev().min().copied(), meant.first().copied());
            assert_eq!(offsets.len(), meant.len());
        }
        rig.stop().await;
    }
}
