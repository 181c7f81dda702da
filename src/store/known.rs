//! The log's channels as the writer knows them: the state of each after the last commit. It tells how to continue whatever
//! happens to the database, and, without a query, which channels retention must look at.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::config::plan::Keep;
use crate::model::ChannelName;
use crate::model::event::Epoch;

/// Every channel with stored events.
#[derive(Default)]
pub(super) struct Known {
    by_name: HashMap<ChannelName, Channel>,
    /// In the order in which they became known, for walks over all of them.
    order: Vec<ChannelName>,
    /// The newest committed position in the log.
    pub(super) seq: u64,
}

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channel {
    pub(super) id: i64,
    pub(super) epoch: Epoch,
    pub(super) top: u64,
    pub(super) first: u64,
    /// The time of its oldest event, if it has been read.
    pub(super) oldest_ms: Option<i64>,
}

/// The state of a channel after a transaction.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) name: ChannelName,
    pub(super) id: i64,
    pub(super) epoch: Epoch,
    pub(super) top: u64,
    pub(super) first: u64,
}

impl Channel {
    /// Whether events of it must be removed, or may have to be.
    pub(super) fn is_due(&self, keep: &Keep, now_ms: i64) -> bool {
        let held = (self.top + 1).saturating_sub(self.first);
        let many = keep.events.is_some_and(|most| held > most);
        let old = keep.age.is_some_and(|age| self.oldest_ms.is_none_or(|oldest| oldest < cutoff(now_ms, age)));
        many || (held > 0 && old)
    }
}

/// Events before this time are too old.
pub(super) fn cutoff(now_ms: i64, age: std::time::Duration) -> i64 {
    now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

impl Known {
    pub(super) fn get(&self, name: &ChannelName) -> Option<Channel> {
        self.by_name.get(name).copied()
    }

    pub(super) fn change(&mut self, name: &ChannelName, change: impl FnOnce(&mut Channel)) {
        if let Some(channel) = self.by_name.get_mut(name) {
            change(channel);
        }
    }

    /// How many events there are; refused ones may be counted.
    pub(super) fn rows(&self) -> u64 {
        self.by_name.values().map(|channel| (channel.top + 1).saturating_sub(channel.first)).sum()
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// By its index in the order.
    pub(super) fn nth(&self, at: usize) -> Option<(&ChannelName, &Channel)> {
        let name = self.order.get(at)?;
        Some((name, self.by_name.get(name)?))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ChannelName, &Channel)> {
        self.order.iter().filter_map(|name| Some((name, self.by_name.get(name)?)))
    }

    /// Takes over the state of a channel. `true`: older events of it that existed before are gone.
    pub(super) fn note(&mut self, noted: &Noted) -> bool {
        let Noted { id, epoch, top, first, .. } = *noted;
        match self.by_name.entry(noted.name.clone()) {
            Entry::Vacant(entry) => {
                self.order.push(noted.name.clone());
                entry.insert(Channel { id, epoch, top, first, oldest_ms: None });
                false
            }
            Entry::Occupied(mut entry) => {
                let channel = entry.get_mut();
                let trimmed = first > channel.first;
                // The event that was read was the oldest; if nothing was left, the newest is.
                let oldest_ms = channel.oldest_ms.filter(|_| !trimmed && channel.first <= channel.top);
                *channel = Channel { id, epoch, top, first, oldest_ms };
                trimmed
            }
        }
    }
}
