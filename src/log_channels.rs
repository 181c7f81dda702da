//! What the log asks about channels, answered by the configuration, and what it tells of them, passed on to the hub.

use std::sync::Arc;

use crate::hub::Hub;
use crate::model::{ChannelName, Event};
use crate::runtime::Runtime;
use crate::store::{Channels, Policy};

/// The running channels, as the log sees them.
pub struct LogChannels {
    /// What the configuration says.
    pub runtime: Arc<Runtime>,
    /// What is live.
    pub hub: Arc<Hub>,
}

impl Channels for LogChannels {
    fn policy(&self, channel: &str) -> Policy {
        let history = self.runtime.channels.resolve(channel).and_then(|(_, plan)| plan.history.clone());
        history.map_or_else(Policy::default, |history| Policy { keep: history.keep, early: history.promise.is_early() })
    }

    fn trimmed(&self, channel: &ChannelName, first: u64) {
        self.hub.trimmed(channel, first);
    }

    fn committed(&self, events: &mut dyn Iterator<Item = &Arc<Event>>) {
        self.hub.feed.committed(events);
    }
}
