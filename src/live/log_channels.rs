//! Answers the log's questions about channels from the current configuration, and passes on what the log reports about them to
//! the hub.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::model::{ChannelName, Event};
use crate::pipeline::Snapshot;
use crate::runtime::Runtime;
use crate::store::{Channels, Policy};

/// The running channels, as the log sees them.
pub struct LogChannels {
    current: Arc<ArcSwap<Snapshot>>,
}

impl LogChannels {
    pub(super) fn new(current: Arc<ArcSwap<Snapshot>>) -> Self {
        Self { current }
    }
}

/// How a configuration wants a channel's events to be kept.
pub fn policy(runtime: &Runtime, channel: &str) -> Policy {
    let history = runtime.channels.resolve(channel).and_then(|(_, plan)| plan.history.clone());
    history.map_or_else(Policy::default, |history| Policy { keep: history.keep, early: history.promise.is_early() })
}

impl Channels for LogChannels {
    fn policy(&self, channel: &str) -> Policy {
        let current = self.current.load();
        let policy = policy(&current.runtime, channel);
        Policy { early: policy.early || current.hub.was_early(channel), ..policy }
    }

    fn trimmed(&self, channel: &ChannelName, first: u64) {
        self.current.load().hub.trimmed(channel, first);
    }

    fn committed(&self, events: &mut dyn Iterator<Item = &Arc<Event>>) {
        self.current.load().hub.feed.committed(events);
    }
}
