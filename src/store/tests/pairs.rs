//! Connections that come and go in batches: the tables are the same as if each record had been written separately.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;
use crate::model::{ClientId, SessionId};

/// Client, protocol, user, session, opened, seen, closed, code, reason, messages in, dropped.
type Line = (String, String, Option<String>, Option<String>, i64, i64, Option<i64>, Option<i64>, Option<String>, i64, i64);

/// The two tables.
#[derive(Default)]
struct Model {
    lines: Vec<Line>,
    seen: BTreeMap<String, Option<i64>>,
}

impl Model {
    fn is_open(&self, client: &str) -> bool {
        self.lines.iter().any(|line| line.0 == client && line.6.is_none())
    }

    fn open(&mut self, record: &ConnectionRecord) {
        let (client, protocol) = (record.client.to_string(), record.protocol.to_string());
        let (user, session) = (record.user.as_deref().map(str::to_owned), record.session.as_deref().map(str::to_owned));
        self.lines.push((client, protocol, user, session, record.opened_ms, record.opened_ms, None, None, None, 0, 0));
    }

    fn see(&mut self, session: Option<&str>, at_ms: i64) {
        if let Some(seen) = session.and_then(|session| self.seen.get_mut(session)) {
            *seen = (*seen).max(Some(at_ms));
        }
    }

    fn apply(&mut self, item: &queue::Item) {
        match item {
            queue::Item::Event(_) => {}
            queue::Item::Opened(record) => {
                self.open(record);
                self.see(record.session.as_deref(), record.opened_ms);
            }
            queue::Item::Closed(both) => {
                let (record, end) = &**both;
                if !self.is_open(&record.client) {
                    self.open(record);
                }
                let line = self.lines.iter_mut().find(|line| line.0 == *record.client && line.6.is_none()).unwrap();
                (line.2, line.3) = (record.user.as_deref().map(Into::into), record.session.as_deref().map(Into::into));
                (line.5, line.6, line.7) = (end.seen_ms, Some(end.closed_ms), Some(end.code.into()));
                (line.8, line.9, line.10) = (Some(end.reason.clone()), end.messages_in as i64, end.dropped as i64);
                self.see(record.session.as_deref(), end.seen_ms);
            }
            queue::Item::Session(session) => {
                let seen = self.seen.entry(session.id.to_string()).or_default();
                *seen = session.seen_ms.or(*seen);
            }
            queue::Item::SessionEnd(id) => drop(self.seen.remove(&**id)),
        }
    }
}

/// One step: which client, what, which session, and a number for everything else.
type Step = (u8, u8, Option<u8>, u16);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = |clients: u8| (0..clients, 0..8u8, proptest::option::of(0..3u8), 1..1000u16);
    prop_oneof![3 => proptest::collection::vec(step(4), 1..12), 1 => proptest::collection::vec(step(200), 1..300)]
}

/// The item of a step. No connection opens with the id of one that is open.
fn item(model: &Model, (client, what, session, number): Step) -> queue::Item {
    let client: ClientId = format!("c{client}").into();
    let name = |n: u8| SessionId::from(format!("s{n}"));
    let ms = i64::from(number);
    let user = (number % 2 == 0).then(|| format!("u{number}").into());
    let record = ConnectionRecord {
        client: client.clone(),
        protocol: format!("p{number}").into(),
        user,
        session: session.map(name),
        address: "::1".into(),
        opened_ms: ms,
    };
    let id = name(session.unwrap_or(0));
    match what {
        0..=4 if !model.is_open(&client) => queue::Item::Opened(record.into()),
        0..=5 => {
            let number = u64::from(number);
            let (messages_in, dropped) = (number * 2, number * 3);
            let end = ConnectionEnd {
                closed_ms: ms + 1,
                seen_ms: ms,
                code: 1000,
                reason: format!("r{number}"),
                messages_in,
                dropped,
                ..Default::default()
            };
            queue::Item::Closed(Box::new((record, end)))
        }
        6 => {
            let seen_ms = (number % 3 == 0).then_some(ms);
            let session = SessionRecord { id, user: None, name: None, meta: None, created_ms: 1, expires_ms: i64::MAX, seen_ms };
            queue::Item::Session(session.into())
        }
        _ => queue::Item::SessionEnd(id),
    }
}

on_both! {
    async fn any_batches_of_records_leave_what_single_ones_would(base) {
        let (_store, mut writer, _) = Store::open(&base.plan, &Clock::default()).await.unwrap();
        let policies = Policies::early(&[]);
        writer.begin(policies.clone()).await.unwrap();
        let (mut runner, mut model) = (TestRunner::deterministic(), Model::default());
        let mut db = base.stranger().await;
        for mark in 0..if base.is_postgres() { 40 } else { 120 } {
            let mut items = Vec::new();
            for step in steps().new_tree(&mut runner).unwrap().current() {
                items.push(item(&model, step));
                model.apply(&items[items.len() - 1]);
            }
            for again in [false, true] {
                work::perform(&mut writer.link, &work::Work::Items(&items), &*policies, &writer.known, again, mark).await.unwrap();
            }
            let sql = "SELECT client, protocol, \"user\", session, opened_ms, seen_ms, closed_ms, code, reason, messages_in, dropped \
                       FROM connections ORDER BY id";
            assert_eq!(db.rows::<Line>(sql).await, model.lines, "{items:?}");
            let seen: Vec<(String, Option<i64>)> = db.rows("SELECT id, seen_ms FROM sessions ORDER BY id").await;
            assert_eq!(seen, model.seen.clone().into_iter().collect::<Vec<_>>(), "{items:?}");
        }
        let count = |closed| model.lines.iter().filter(|line| line.6.is_some() == closed).count();
        assert!(count(true) > 300 && count(false) > 10, "{} closed, {} open", count(true), count(false));
    }

    async fn records_wait_until_somebody_asks_or_many_wait(base) {
        let (store, mut writer, _) = Store::open(&base.plan, &Clock::default()).await.unwrap();
        writer.begin(Policies::early(&[])).await.unwrap();
        let queue = &store.shared.queue;
        let woken = || futures_util::FutureExt::now_or_never(queue.woken()).is_some();
        let taken = || {
            let batch = queue.take_records();
            queue.release(&batch);
            (batch.first, batch.items.len())
        };
        let opened = |n: usize| {
            let client = format!("c{n}").into();
            store.append_connection_opened(ConnectionRecord { client, protocol: "p".into(), user: None, session: None, address: "::1".into(), opened_ms: 1 });
        };
        (0..511).for_each(opened);
        assert!(!woken() && taken().1 == 0, "nobody waits");
        append(&store, event("a", 1, 1, "x")).unwrap();
        assert!(woken() && taken().1 == 0, "an event waits for nothing, and they not for it");
        assert_eq!(queue.take().items.len(), 1);
        opened(511);
        assert!(woken(), "many wait");
        assert_eq!(taken(), (1, 512));
        assert!(!woken() && taken().1 == 0);
        opened(512);
        assert_eq!(queue.hasten(), (Ticket(1), 513));
        assert!(woken(), "somebody waits");
        assert_eq!(taken(), (513, 1));
        opened(513);
        queue.write_records();
        assert_eq!(taken(), (514, 1), "the writer looks");
        opened(514);
        queue.stop();
        assert!(woken() && taken() == (515, 1), "a stop writes all");
    }

    async fn a_batch_is_let_gather_until_enough_wait_or_it_is_time_or_somebody_asks(base) {
        let (store, mut writer, _) = Store::open(&base.plan, &Clock::default()).await.unwrap();
        writer.begin(Policies::early(&[])).await.unwrap();
        let queue = &store.shared.queue;
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(1));
        let gathered = |within: Duration| queue.gathered(3, std::time::Instant::now() + within);
        // If this times out, it was not woken.
        let in_time = |gathered| tokio::time::timeout(Duration::from_secs(30), gathered);
        in_time(gathered(long)).await.expect("nothing waits");
        append(&store, event("a", 1, 1, "x")).unwrap();
        gathered(short).await;
        let (_, two) = tokio::join!(in_time(gathered(long)), async {
            append(&store, event("a", 2, 1, "x")).unwrap();
            tokio::task::yield_now().await;
            let two = store.stats().queued_rows;
            append(&store, event("a", 3, 1, "x")).unwrap();
            two
        });
        assert_eq!((two, queue.take().items.len()), (2, 3), "three are enough");
        append(&store, event("a", 4, 1, "x")).unwrap();
        let (gathering, ()) = tokio::join!(in_time(gathered(long)), async {
            tokio::task::yield_now().await;
            queue.hasten();
        });
        gathering.expect("somebody asks");
        let (gathering, ()) = tokio::join!(in_time(gathered(long)), async {
            tokio::task::yield_now().await;
            queue.stop();
        });
        gathering.expect("it is to stop");
    }
}
