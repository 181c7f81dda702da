//! What a decision has read, noted while it is made, so that it is applied only to the same state. What a row may read
//! at all is known when the configuration is built.

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
    /// The events of a channel, what waits for its commit included.
    History {
        /// The channel.
        channel: ChannelName,
        /// Up to where.
        at: ChannelVersion,
        /// The tickets of the events that were read and are not committed yet: the decision waits for them, and is refused if one
        /// of them is.
        uncommitted: Vec<Ticket>,
        /// The tickets of what everybody could see of it before it is committed, by the channel's promise: what is decided does
        /// not wait for them, but is stored only where they are.
        shown_early: Vec<Ticket>,
    },
    /// A channel that has no stream yet, and the name that its stream is to get.
    Nothing {
        /// The channel.
        channel: ChannelName,
        /// The name.
        epoch: Epoch,
    },
    /// The members of a channel.
    Members {
        /// The channel.
        channel: ChannelName,
        /// As of when.
        at: MembersVersion,
        /// The tickets of what some wait for that are to come or go: what is decided waits for it too.
        uncommitted: Vec<Ticket>,
    },
    /// The connections of a protocol.
    Connections {
        /// The protocol.
        protocol: ProtocolId,
        /// As of when.
        at: u64,
    },
}

/// The world of one decision: answers as usual, and notes what was read.
pub(super) struct Recorder {
    runtime: Arc<Runtime>,
    hub: Arc<Hub>,
    world: Arc<dyn World>,
    now: Now,
    // Protects the notes. A decision runs on one thread, so it is never contended.
    reads: Mutex<Vec<Read>>,
}

impl Recorder {
    /// Nothing was asked yet.
    pub(super) fn new(runtime: Arc<Runtime>, hub: Arc<Hub>, world: Arc<dyn World>, now: Now) -> Arc<Self> {
        Arc::new(Self { runtime, hub, world, now, reads: Mutex::default() })
    }

    /// What was read so far.
    pub(super) fn take(&self) -> Vec<Read> {
        std::mem::take(&mut self.reads.lock())
    }

    /// The name that the stream of a channel is to get which has none yet: noted once.
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

    /// What changes between two reads of one decision is noted twice: only one of them can hold.
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
        // Counters of all traffic change all the time, so they are not noted.
        self.world.statistics(protocol, now)
    }
}
