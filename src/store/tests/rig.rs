//! A store with a running writer.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::super::*;
use super::base::Base;
use crate::model::event::{Epoch, NewEvent, Origin};
use crate::model::{ChannelName, Event, Json};

/// The channels' policies in a test, and what the writer reports.
#[derive(Default)]
pub(in crate::store) struct Policies {
    pub(in crate::store) by_name: Mutex<HashMap<String, Policy>>,
    pub(in crate::store) trimmed: Mutex<Vec<(String, u64)>>,
    pub(in crate::store) committed: Mutex<Vec<u64>>,
}

impl Channels for Policies {
    fn policy(&self, channel: &str) -> Policy {
        self.by_name.lock().get(channel).copied().unwrap_or_default()
    }

    fn trimmed(&self, channel: &ChannelName, first: u64) {
        self.trimmed.lock().push((channel.as_str().to_owned(), first));
    }

    fn committed(&self, events: &mut dyn Iterator<Item = &Arc<Event>>) {
        self.committed.lock().extend(events.map(|event| event.seq));
    }
}

impl Policies {
    pub(in crate::store) fn early(names: &[&str]) -> Arc<Self> {
        let policies = Self::default();
        policies.by_name.lock().extend(names.iter().map(|name| ((*name).to_owned(), Policy { early: true, ..Policy::default() })));
        Arc::new(policies)
    }
}

pub(in crate::store) struct Rig {
    pub(in crate::store) store: Store,
    pub(in crate::store) recovered: Recovered,
    pub(in crate::store) stop: oneshot::Sender<()>,
    pub(in crate::store) task: JoinHandle<()>,
    /// SQLite: statements that the writer's connection runs before its next transaction.
    pub(in crate::store) saying: Option<Arc<Mutex<Vec<&'static str>>>>,
}

impl Rig {
    pub(in crate::store) async fn open(plan: &StorePlan) -> Self {
        Self::open_with(plan, Bounds::default(), Arc::default()).await
    }

    pub(in crate::store) async fn open_with(plan: &StorePlan, bounds: Bounds, policies: Arc<Policies>) -> Self {
        let (store, mut writer, recovered) = Store::open_with(plan, &Clock::default(), bounds).await.unwrap();
        writer.begin(policies).await.unwrap();
        let saying = if let db::Either::Sqlite(link) = &writer.link { Some(link.said.clone()) } else { None };
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(writer.run(async { drop(stopped.await) }));
        Self { store, recovered, stop, task, saying }
    }

    pub(in crate::store) async fn of(base: &Base) -> Self {
        Self::open(&base.plan).await
    }

    /// Ends in an orderly way.
    pub(in crate::store) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
    }

    /// Ends like a crash: the writer stops where it is.
    pub(in crate::store) async fn crash(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
        self.store.shared.readers().close().await;
    }

    pub(in crate::store) async fn write(&self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            append(&self.store, event).unwrap();
        }
        self.store.committed(self.store.ticket()).await.unwrap();
    }

    /// Resolves when the writer reports that it cannot write, with the reason.
    pub(in crate::store) async fn degraded(&self) -> Arc<str> {
        loop {
            if let StoreState::Degraded { reason, .. } = self.store.state() {
                return reason;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Resolves when it can write.
    pub(in crate::store) async fn healthy(&self) {
        while self.store.state() != StoreState::Ok {
            tokio::task::yield_now().await;
        }
    }
}

pub(in crate::store) fn event(channel: &str, offset: u64, epoch: Epoch, kind: &str) -> Event {
    let origin = Origin { source: "api".into(), client: Some("c1".into()), user: None, session: Some("s".into()), address: None };
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

pub(in crate::store) fn append(store: &Store, event: Event) -> Result<Ticket, Unavailable> {
    Ok(store.reserve(1, event.cost_bytes())?.append(vec![event], &[]).last)
}

/// The channel and offset of every event, oldest first.
pub(in crate::store) async fn places(base: &Base) -> Vec<(String, i64)> {
    let sql = "SELECT c.name, e.\"offset\" FROM events e JOIN channels c ON c.id = e.channel ORDER BY e.id";
    base.stranger().await.rows(sql).await
}
