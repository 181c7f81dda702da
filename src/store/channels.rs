//! What the store asks about channels and reports about them. Those who know the answers pass this to the writer.

use std::sync::Arc;

use crate::config::plan::Keep;
use crate::model::{ChannelName, Event};

/// What is known of channels outside the store. Called by the writer between transactions; must not block.
pub trait Channels: Send + Sync {
    /// How a channel's events are kept. Also called for channels that the configuration no longer has.
    fn policy(&self, channel: &str) -> Policy;

    /// Events of the channel before this offset have been removed from the log.
    fn trimmed(&self, channel: &ChannelName, first: u64);

    /// These events are committed. They come in the order of the log, each once, before anyone learns of their commit.
    fn committed(&self, events: &mut dyn Iterator<Item = &Arc<Event>>);
}

/// How a channel's events are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// How long they stay.
    pub keep: Keep,
    /// Delivered events may not be committed yet, so an unclean stop costs the channel its epoch.
    pub early: bool,
}
