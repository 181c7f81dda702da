//! What the store asks about channels, and tells about them. Who knows the answers gives them to the writer.

use std::sync::Arc;

use crate::config::plan::Keep;
use crate::model::{ChannelName, Event};

/// What is known of channels outside the store. Called by the writer between transactions; must not block.
pub trait Channels: Send + Sync {
    /// How a channel's events are kept. Also asked of channels that the configuration does not know any more.
    fn policy(&self, channel: &str) -> Policy;

    /// Events of the channel before this offset are gone from the log.
    fn trimmed(&self, channel: &ChannelName, first: u64);

    /// These events are committed. They come in the order of the log, each once, before anyone is told of their commit.
    fn committed(&self, events: &mut dyn Iterator<Item = &Arc<Event>>);
}

/// How a channel's events are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// How long they stay.
    pub keep: Keep,
    /// What is delivered may not be committed, so an unclean stop costs the channel its epoch.
    pub early: bool,
}
