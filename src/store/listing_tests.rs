//! Connections and sessions are found by each filter, each once, page by page.

use super::*;
use crate::store::tests::{Base, Rig, on_both};
use crate::store::{ConnectionEnd, ConnectionRecord};

/// The times are never long ago, because retention removes old records.
fn record(n: i64) -> ConnectionRecord {
    ConnectionRecord {
        client: format!("c{n}").into(),
        protocol: if n % 2 == 0 { "board" } else { "tool" }.into(),
        user: (n % 3 == 0).then(|| "ann".into()),
        session: (n % 5 == 0).then(|| "s".into()),
        address: "127.0.0.1".into(),
        opened_ms: 4_102_444_800_000 + n,
    }
}

fn closed() -> ConnectionQuery {
    ConnectionQuery { protocol: None, user: None, session: None, client: None, closed: true, limit: 3, cursor: None }
}

async fn ids(rig: &Rig, mut asked: ConnectionQuery) -> Vec<String> {
    let mut found = Vec::new();
    loop {
        let page = rig.store.connections(&asked).await.unwrap();
        assert!(page.entries.len() <= 3);
        let id = |text: &String| serde_json::from_str::<serde_json::Value>(text).unwrap()["id"].as_str().unwrap().to_owned();
        found.extend(page.entries.iter().map(id));
        match page.next {
            Some(next) => asked.cursor = Some(next),
            None => return found,
        }
    }
}

on_both! {
    async fn connections_are_listed_newest_first(base) {
        let rig = Rig::of(base).await;
        for n in 0..12 {
            rig.store.append_connection_opened(record(n));
        }
        for n in 0..10 {
            let end = ConnectionEnd { closed_ms: 4_102_444_801_000, seen_ms: 4_102_444_800_500, code: 1000, reason: "bye".into(), messages_in: 1, ..ConnectionEnd::default() };
            rig.store.append_connection_closed(record(n), end);
        }
        rig.store.settled().await;
        let named = |numbers: &[i64]| numbers.iter().map(|n| format!("c{n}")).collect::<Vec<_>>();
        let some = |text: &str| Some(text.into());
        assert_eq!(ids(&rig, closed()).await, named(&[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]));
        assert_eq!(ids(&rig, ConnectionQuery { closed: false, ..closed() }).await, named(&[11, 10]));
        assert_eq!(ids(&rig, ConnectionQuery { user: some("ann"), ..closed() }).await, named(&[9, 6, 3, 0]));
        assert_eq!(ids(&rig, ConnectionQuery { user: some("ann"), protocol: some("tool"), ..closed() }).await, named(&[9, 3]));
        assert_eq!(ids(&rig, ConnectionQuery { session: some("s"), ..closed() }).await, named(&[5, 0]));
        assert_eq!(ids(&rig, ConnectionQuery { protocol: some("board"), ..closed() }).await, named(&[8, 6, 4, 2, 0]));
        assert_eq!(ids(&rig, ConnectionQuery { client: some("c7"), ..closed() }).await, named(&[7]));
        let one = rig.store.connections(&ConnectionQuery { client: some("c0"), ..closed() }).await.unwrap().entries;
        let wanted = "{\"id\":\"c0\",\"protocol\":\"board\",\"user\":\"ann\",\"session\":\"s\",\"address\":\"127.0.0.1\",\
            \"opened\":\"2100-01-01T00:00:00.000Z\",\"seen\":\"2100-01-01T00:00:00.500Z\",\"closed\":\"2100-01-01T00:00:01.000Z\",\
            \"code\":1000,\"reason\":\"bye\",\"messages\":{\"in\":1,\"out\":0},\"bytes\":{\"in\":0,\"out\":0},\"dropped\":0}";
        assert_eq!(one, [wanted]);
        let first = rig.store.connections(&closed()).await.unwrap();
        let foreign = ConnectionQuery { cursor: first.next, user: some("ann"), ..closed() };
        assert!(matches!(rig.store.connections(&foreign).await, Err(StoreError::Cursor(_))));
        assert!(matches!(rig.store.connections(&ConnectionQuery { limit: 0, ..closed() }).await, Err(StoreError::Limit)));
        rig.stop().await;
    }

    async fn sessions_are_listed_by_their_ids(base) {
        let rig = Rig::of(base).await;
        let session = |n: i64| SessionRecord {
            id: format!("s{n}").into(),
            user: (n % 2 == 0).then(|| "ann".into()),
            name: Some("phone".into()),
            meta: Some(Json::trusted("{\"a\":1}")),
            created_ms: n,
            // Retention removes those that have expired.
            expires_ms: i64::MAX - n,
            seen_ms: None,
        };
        for n in 0..5 {
            rig.store.put_session(session(n)).unwrap();
        }
        rig.store.committed(rig.store.ticket()).await.unwrap();
        assert_eq!(rig.store.session("s3").await.unwrap(), Some(session(3)));
        assert_eq!(rig.store.session("s9").await.unwrap(), None);
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = rig.store.sessions(None, 2, cursor.as_deref()).await.unwrap();
            found.extend(page.entries);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(found, (0..5).map(session).collect::<Vec<_>>());
        let of_ann = rig.store.sessions(Some("ann"), 3, None).await.unwrap();
        assert_eq!((of_ann.entries, of_ann.next), (vec![session(0), session(2), session(4)], None));
        rig.stop().await;
    }
}
