//! What the log's writer and publishers leave for the task that feeds followers. Leaving an event costs one push, however many
//! followers there are.
//!
//! Bounded by bytes. If a commit finds no room, all committed events that wait here are dropped, and every follower must read
//! the log from its position; events that no log keeps then have the room. If one of those finds no room, it is counted, by
//! channel.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::model::{ChannelName, Event};

/// Bytes of events that may wait for the feeding task, or one commit if that is larger. Events that the task has taken are not
/// included, so as many again may be on their way.
pub(super) const HANDED_BYTES_MAX: usize = 8 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Handover {
    // Protects the order of the events. Held for a push, or while all are taken; taken inside channels.
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next event. Numbers only grow.
    next: u64,
    left: Left,
}

/// The events since somebody last took them.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// In order, with their numbers; those of one commit have the same.
    pub(super) events: Vec<(u64, Arc<Event>)>,
    bytes: usize,
    /// A commit had no room: no committed events are here.
    pub(super) lost: bool,
    /// Events that no log keeps and that had no room, by channel.
    pub(super) dropped: HashMap<Option<ChannelName>, Dropped>,
}

/// Events that had no room.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    pub(super) count: u64,
    /// The number that the last would have had.
    pub(super) last: u64,
}

impl Handover {
    /// The number of the next event.
    pub(super) fn next(&self) -> u64 {
        self.state.lock().next
    }

    /// Leaves one commit, in the order of the log.
    pub(super) fn committed(&self, events: Vec<Arc<Event>>) {
        let cost = events.iter().map(|event| event.cost_bytes()).sum();
        let mut state = self.state.lock();
        if state.left.lost {
            return;
        }
        if state.left.has_room(cost) {
            self.push(state, events, cost);
        } else {
            state.left.lose();
        }
    }

    /// Leaves an event that no log keeps.
    pub(super) fn passing(&self, event: &Arc<Event>) {
        let cost = event.cost_bytes();
        let mut state = self.state.lock();
        if state.left.has_room(cost) {
            return self.push(state, [event.clone()], cost);
        }
        let last = state.next;
        state.next += 1;
        let dropped = state.left.dropped.entry(event.channel.clone()).or_default();
        *dropped = Dropped { count: dropped.count + 1, last };
    }

    fn push(&self, mut state: MutexGuard<'_, State>, events: impl IntoIterator<Item = Arc<Event>>, cost: usize) {
        let number = state.next;
        state.next += 1;
        // The task that is woken for the first event takes all.
        let first = state.left.events.is_empty();
        state.left.events.extend(events.into_iter().map(|event| (number, event)));
        state.left.bytes += cost;
        drop(state);
        if first {
            self.wake.notify_one();
        }
    }

    /// Takes all events, without waiting.
    pub(super) fn take(&self) -> Left {
        std::mem::take(&mut self.state.lock().left)
    }

    /// Resolves when there are events.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }
}

impl Left {
    fn has_room(&self, cost: usize) -> bool {
        self.bytes == 0 || self.bytes + cost <= HANDED_BYTES_MAX
    }

    /// Committed events will be read from the log; the rest stays.
    fn lose(&mut self) {
        self.lost = true;
        self.events.retain(|(_, event)| super::passes(event));
        self.events.shrink_to_fit();
        self.bytes = self.events.iter().map(|(_, event)| event.cost_bytes()).sum();
    }
}
