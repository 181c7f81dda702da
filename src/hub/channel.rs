//! One channel: its members, its place in the log, and its newest events in memory. Whoever holds its lock decides the order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::plan::ChannelPlan;
use crate::hub::connection::Connection;
use crate::model::event::{Epoch, Event, NewEvent};
use crate::model::view::SubView;
use crate::model::{ChannelName, Json};

/// A live channel.
#[derive(Debug)]
pub struct Channel {
    /// The order in which locks are taken.
    pub(super) order: u64,
    /// Its name.
    pub name: ChannelName,
    /// What the configuration says of it.
    pub plan: Arc<ChannelPlan>,
    // Protects members, offsets and tail together: that is what makes the order the same for all. Held while one transaction is applied.
    pub(super) state: Arc<Mutex<State>>,
}

/// What changes about a channel.
#[derive(Debug)]
pub struct State {
    pub(super) epoch: Epoch,
    pub(super) offset: u64,
    pub(super) tail: VecDeque<Arc<Event>>,
    pub(super) tail_bytes: usize,
    pub(super) members: Vec<Member>,
    by_member: HashMap<(u64, Arc<str>), usize>,
    /// Taken out of the hub: whoever still holds it must look it up again.
    pub(super) dead: bool,
    pub(super) last_ms: i64,
}

/// One subscription, from the channel's side.
#[derive(Clone, Debug)]
pub struct Member {
    /// Whose.
    pub connection: Arc<Connection>,
    /// What templates see of it.
    pub view: SubView,
    /// When it began, in milliseconds since the epoch.
    pub since_ms: i64,
}

impl State {
    pub(super) fn new(epoch: Epoch, offset: u64) -> Self {
        Self {
            epoch,
            offset,
            tail: VecDeque::new(),
            tail_bytes: 0,
            members: Vec::new(),
            by_member: HashMap::new(),
            dead: false,
            last_ms: 0,
        }
    }

    /// Adds a subscription. One with the same key is replaced; `false` then.
    pub(super) fn join(&mut self, connection: &Arc<Connection>, view: SubView, now_ms: i64) -> bool {
        let key = (connection.key, view.key.clone());
        if let Some(&at) = self.by_member.get(&key) {
            self.members[at].view = view;
            return false;
        }
        self.by_member.insert(key, self.members.len());
        self.members.push(Member { connection: connection.clone(), view, since_ms: now_ms });
        true
    }

    /// Removes a subscription; `false` where there was none.
    pub(super) fn leave(&mut self, connection: u64, key: &Arc<str>) -> bool {
        let Some(at) = self.by_member.remove(&(connection, key.clone())) else { return false };
        self.members.swap_remove(at);
        if let Some(moved) = self.members.get(at) {
            self.by_member.insert((moved.connection.key, moved.view.key.clone()), at);
        }
        if self.members.is_empty() {
            self.members = Vec::new();
            self.by_member = HashMap::new();
        }
        true
    }

    /// Gives an event its place and keeps it, where the channel has a history.
    pub(super) fn append(&mut self, channel: &Channel, new: NewEvent) -> Arc<Event> {
        self.offset += 1;
        self.last_ms = new.time_ms;
        let event = Arc::new(Event { new, channel: Some(channel.name.clone()), offset: self.offset, epoch: self.epoch, seq: 0 });
        if let Some(history) = &channel.plan.history {
            self.tail_bytes += event.weight();
            self.tail.push_back(event.clone());
            while self.tail.len() > history.tail || self.tail_bytes > history.tail_bytes {
                match self.tail.pop_front() {
                    Some(old) => self.tail_bytes -= old.weight(),
                    None => break,
                }
            }
        }
        event
    }

    pub(super) fn forget_tail(&mut self) {
        self.tail = VecDeque::new();
        self.tail_bytes = 0;
    }
}

impl Member {
    /// Presence as scripts and REST see it.
    pub fn to_json(&self) -> Json {
        let view = self.connection.view();
        let key = (!self.view.key.is_empty()).then(|| &*self.view.key);
        let meta: Option<Box<serde_json::value::RawValue>> = self.view.meta.as_ref().and_then(|m| serde_json::from_str(m.as_str()).ok());
        #[derive(serde::Serialize)]
        struct Shape<'a> {
            client: &'a str,
            protocol: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            user: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            session: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            key: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            meta: Option<Box<serde_json::value::RawValue>>,
            since: String,
        }
        Json::of(&Shape {
            client: &view.id,
            protocol: &view.protocol,
            user: view.user.as_deref(),
            session: view.session.as_deref(),
            key,
            meta,
            since: crate::model::clock::iso(self.since_ms),
        })
    }
}
