//! What a decision has read, noted while it is made, so that it is applied only to the same state. What a row can read is known
//! when the configuration is built.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::hub::{ChannelVersion, Hub, MembersVersion};
use crate::model::event::Epoch;
use crate::model::id::ProtocolId;
use crate::model::{ChannelName, Event, Json, Now, chance};
use crate::pipeline::snapshot::ITEMS_MAX;
use crate::runtime::Runtime;
use crate::script::World;
use crate::store::Ticket;

/// Something that a decision has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// The events of a channel, including those that wait for their commit.
    History {
        /// The channel.
        channel: ChannelName,
        /// Up to where.
        at: ChannelVersion,
        /// The tickets of the events that were read and are not committed yet: the decision waits for them, and if one of them
        /// is refused, so is the decision.
        uncommitted: Vec<Ticket>,
        /// The tickets of events that everybody could see before they were committed, as the channel allows: the decision does
        /// not wait for them, but is stored only if they are.
        shown_early: Vec<Ticket>,
    },
    /// A channel that has no stream yet, and the epoch that its stream will get.
    Nothing {
        /// The channel.
        channel: ChannelName,
        /// The epoch.
        epoch: Epoch,
    },
    /// The members of a channel.
    Members {
        /// The channel.
        channel: ChannelName,
        /// The version of the set that was read.
        at: MembersVersion,
        /// The tickets of what members that are about to come or go wait for: the decision waits for it too.
        uncommitted: Vec<Ticket>,
    },
    /// The connections of a protocol.
    Connections {
        /// The protocol.
        protocol: ProtocolId,
        /// The version of the set that was read.
        at: u64,
    },
}

/// The world for one decision: answers as usual, and notes what was read.
pub(super) struct Recorder {
    runtime: Arc<Runtime>,
    hub: Arc<Hub>,
    world: Arc<dyn World>,
    now: Now,
    // Protects the notes. A decision runs on one thread, so it is never contended.
    reads: Mutex<Vec<Read>>,
}

impl Recorder {
    /// Nothing has been read yet.
    pub(super) fn new(runtime: Arc<Runtime>, hub: Arc<Hub>, world: Arc<dyn World>, now: Now) -> Arc<Self> {
        Arc::new(Self { runtime, hub, world, now, reads: Mutex::default() })
    }

    /// What was read so far.
    pub(super) fn take(&self) -> Vec<Read> {
        std::mem::take(&mut self.reads.lock())
    }

    /// The epoch that a channel without a stream will get; the same for the whole decision.
    pub(super) fn nothing(&self, channel: &ChannelName) -> Epoch {
        let mut reads = self.reads.lock();
        let known = reads.iter().find_map(|read| match read {
            Read::Nothing { channel: read, epoch } if read == channel => Some(*epoch),
            _ => None,
        });
        known.unwrap_or_else(|| {
            let epoch = chance::epoch();
            reads.push(Read::Nothing { channel: channel.clone(), epoch });
            epoch
        })
    }

    /// Up to where the events of a channel were read.
    pub(super) fn history_of(&self, channel: &ChannelName) -> Option<ChannelVersion> {
        self.reads.lock().iter().find_map(|read| match read {
            Read::History { channel: read, at, .. } if read == channel => Some(*at),
            _ => None,
        })
    }

    /// If something changes between two reads of one decision, both are noted; only one of them can still hold.
    fn note(&self, read: Read) {
        let mut reads = self.reads.lock();
        let same = |known: &Read| match (known, &read) {
            (Read::History { channel: a, at: then, .. }, Read::History { channel: b, at, .. }) => a == b && then == at,
            (known, read) => known == read,
        };
        if !reads.iter().any(same) {
            reads.push(read);
        }
    }
}

impl World for Recorder {
    fn members(&self, channel: &str) -> Vec<Json> {
        let Some((name, _)) = self.runtime.channels.resolve(channel) else { return Vec::new() };
        let seen = self.hub.members_seen(channel, ITEMS_MAX, self.now);
        self.note(Read::Members { channel: name, at: seen.at, uncommitted: seen.uncommitted });
        seen.members
    }

    fn history(&self, channel: &str, count: usize) -> Vec<Arc<Event>> {
        let Some((name, plan)) = self.runtime.channels.resolve(channel) else { return Vec::new() };
        if plan.history.is_none() {
            return Vec::new();
        }
        let Some(seen) = self.hub.history(channel, count.min(ITEMS_MAX)) else {
            self.nothing(&name);
            return Vec::new();
        };
        self.note(Read::History { channel: name, at: seen.at, uncommitted: seen.uncommitted, shown_early: seen.shown_early });
        seen.events
    }

    fn connections(&self, protocol: &str) -> Vec<Json> {
        if let Some(id) = ProtocolId::known(protocol) {
            self.note(Read::Connections { protocol: id, at: self.hub.connections_version(id) });
        }
        self.world.connections(protocol)
    }

    fn statistics(&self, protocol: &str, now: Now) -> Option<Json> {
        // Counters change all the time, so they are not noted.
        self.world.statistics(protocol, now)
    }
}
