//! What the log's writer and those who publish leave for the task that feeds followers. Leaving an event costs a push,
//! however many follow.
//!
//! Bounded by bytes. Where a commit finds no room, all that is committed and waits here goes, and every follower is to read
//! the log from where it is; what no log keeps has the room then. Where that finds none it is counted, by channel.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::model::{ChannelName, Event};

/// Bytes of events that may wait for the feeding task, or one commit where that is larger. What it took is not among them: as
/// much again may be on its way.
pub(super) const HANDED_BYTES_MAX: usize = 8 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Handover {
    // Protects the order of what is left. Held for a push, or while all of it is taken; taken inside channels.
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The number of what is left next. Numbers only grow.
    next: u64,
    left: Left,
}

/// What was left since somebody last took it.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// In order, with their numbers: those of one commit have the same.
    pub(super) events: Vec<(u64, Arc<Event>)>,
    bytes: usize,
    /// A commit had no room: nothing that is committed is here.
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
    /// The number of what is left next.
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
        // Whoever is woken for the first takes all.
        let first = state.left.events.is_empty();
        state.left.events.extend(events.into_iter().map(|event| (number, event)));
        state.left.bytes += cost;
        drop(state);
        if first {
            self.wake.notify_one();
        }
    }

    /// Takes what is left, without waiting.
    pub(super) fn take(&self) -> Left {
        std::mem::take(&mut self.state.lock().left)
    }

    /// Resolves when something was left.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }
}

impl Left {
    fn has_room(&self, cost: usize) -> bool {
        self.bytes == 0 || self.bytes + cost <= HANDED_BYTES_MAX
    }

    /// What is committed will be read from the log; the rest stays.
    fn lose(&mut self) {
        self.lost = true;
        self.events.retain(|(_, event)| super::passes(event));
        self.events.shrink_to_fit();
        self.bytes = self.events.iter().map(|(_, event)| event.cost_bytes()).sum();
    }
}
