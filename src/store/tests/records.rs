//! Connections, sessions and counters.

use super::*;

fn record(client: &str) -> ConnectionRecord {
    ConnectionRecord {
        client: client.into(),
        protocol: "p".into(),
        user: None,
        session: Some("s".into()),
        address: "127.0.0.1".into(),
        opened_ms: 5,
    }
}

fn session(id: &str) -> SessionRecord {
    SessionRecord {
        id: id.into(),
        user: Some("u".into()),
        name: None,
        meta: Some(crate::model::Json::trusted("{}")),
        created_ms: 1,
        expires_ms: i64::MAX,
        seen_ms: None,
    }
}

on_both! {
    async fn connections_are_one_row_each_and_those_a_crash_left_open_are_closed(base) {
        let rig = Rig::of(base).await;
        let end =
            ConnectionEnd { closed_ms: Now::read().wall_ms, seen_ms: 8, code: 1001, reason: "server is stopping".into(), messages_in: 3, ..Default::default() };
        rig.store.append_connection_opened(record("left"));
        rig.store.append_connection_opened(record("ended"));
        rig.store.append_connection_closed(ConnectionRecord { user: Some("u".into()), ..record("ended") }, end.clone());
        rig.store.append_connection_closed(record("unseen"), end);
        rig.store.settled().await;
        rig.crash().await;
        let rig = Rig::of(base).await;
        type Line = (String, Option<String>, i64, i64, i64, String, i64);
        let sql = "SELECT client, \"user\", opened_ms, seen_ms, code, reason, messages_in FROM connections ORDER BY id";
        let lines: Vec<Line> = base.stranger().await.rows(sql).await;
        let line = |client: &str, user: Option<&str>, seen, code, reason: &str, messages| {
            (client.to_owned(), user.map(str::to_owned), 5, seen, code, reason.to_owned(), messages)
        };
        assert_eq!(
            lines,
            [
                line("left", None, 5, 1006, "server lost", 0),
                line("ended", Some("u"), 8, 1001, "server is stopping", 3),
                line("unseen", None, 8, 1001, "server is stopping", 3),
            ]
        );
        rig.stop().await;
    }

    async fn sessions_are_put_replaced_seen_and_ended(base) {
        let rig = Rig::of(base).await;
        rig.store.put_session(session("s")).unwrap();
        let ticket = rig.store.put_session(session("t")).unwrap();
        rig.store.append_connection_opened(record("c"));
        rig.store.append_connection_closed(record("c"), ConnectionEnd { closed_ms: 9, seen_ms: 7, ..Default::default() });
        rig.store.append_connection_opened(record("d"));
        rig.store.committed(ticket).await.unwrap();
        rig.store.put_session(SessionRecord { name: Some("n".into()), ..session("s") }).unwrap();
        rig.store.end_session("t".into()).unwrap();
        rig.store.settled().await;
        type Line = (String, Option<String>, Option<String>, Option<String>, i64, i64, Option<i64>);
        let sql = "SELECT id, \"user\", name, meta, created_ms, expires_ms, seen_ms FROM sessions ORDER BY id";
        let lines: Vec<Line> = base.stranger().await.rows(sql).await;
        assert_eq!(lines, [("s".into(), Some("u".into()), Some("n".into()), Some("{}".into()), 1, i64::MAX, Some(7))]);
        rig.stop().await;
    }

    async fn what_is_counted_goes_on_over_restarts(base) {
        let hour_s = Now::read().wall_ms / 3_600_000 * 3600;
        let point = |minute_s: i64, delta| Point { kind: "k", name: "n".into(), metric: "m", minute_s: hour_s + minute_s, delta };
        let rig = Rig::of(base).await;
        rig.store.append_points(vec![point(60, 40), point(60, 1), Point { name: "other".into(), ..point(60, 5) }]);
        rig.write([event("a", 1, 1, "x")]).await;
        rig.store.append_points(vec![point(60, 1), point(120, 8)]);
        rig.stop().await;
        let rig = Rig::of(base).await;
        let total = |name: &str, total| Total { kind: "k".into(), name: name.into(), metric: "m".into(), total };
        let mut totals = rig.recovered.totals.clone();
        totals.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(totals, [total("n", 50), total("other", 5)]);
        let sql = "SELECT s.name, p.step, p.at, p.value FROM points p JOIN series s ON s.id = p.series ORDER BY s.name, p.at";
        let points: Vec<(String, i64, i64, i64)> = base.stranger().await.rows(sql).await;
        assert_eq!(points, [("n".into(), 60, hour_s + 60, 42), ("n".into(), 60, hour_s + 120, 8), ("other".into(), 60, hour_s + 60, 5)]);
        rig.stop().await;
    }
}
