//! Whether what a decision has read still holds when it is applied.
//!
//! A decision that only joins channels and answers is valid as of the moment it read: the subscription begins there, and what
//! came since follows the answer. A decision that changes anything for others must find everything unchanged.

use super::{Apply, Effects};
use crate::hub::LockedChannels;
use crate::model::ChannelName;
use crate::pipeline::Read;
use crate::pipeline::effect::{ConnectionEffect, Effect};
use crate::store::Ticket;

/// What must still hold of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Nothing: it was only sent back.
    Nothing,
    /// What came since must be available, to follow the answer.
    Since,
    /// Nothing may have changed.
    Unchanged,
}

/// What a transaction has read of others that are not committed yet: if one of them is refused, so is it.
#[derive(Debug, Default)]
pub(super) struct Uncommitted {
    pub(super) tickets: Vec<Ticket>,
    /// Some of it is hidden until it is committed: then everything that was decided on it must be hidden too.
    pub(super) is_hidden: bool,
}

/// What a transaction was decided on.
pub(super) struct Basis {
    reads: Vec<(Read, Wanted)>,
}

impl Basis {
    pub(super) fn new(reads: Vec<Read>, effects: &Effects<'_>) -> Self {
        if reads.is_empty() {
            return Self { reads: Vec::new() };
        }
        let (mut joined, mut changes) = (Vec::new(), false);
        match effects {
            Effects::Door(events) => changes = !events.is_empty(),
            Effects::Connection(_, effects) => {
                for effect in effects {
                    match effect {
                        Effect::Event(_) | Effect::Connection(ConnectionEffect::View { .. } | ConnectionEffect::Close(_)) => changes = true,
                        Effect::Connection(ConnectionEffect::Join { view, .. }) => joined.push(view.channel.clone()),
                        Effect::Connection(ConnectionEffect::Send(_) | ConnectionEffect::Leave { .. }) => {}
                    }
                }
            }
        }
        let looks = |of: &ChannelName| {
            let is_look = |read: &&Read| matches!(read, Read::History { channel, .. } | Read::Nothing { channel, .. } if channel == of);
            reads.iter().filter(is_look).count()
        };
        let wanted = |read: &Read| match read {
            // If it was read in two states, it was not a snapshot.
            Read::History { channel, .. } if !changes && joined.contains(channel) && looks(channel) == 1 => Wanted::Since,
            _ if changes || !joined.is_empty() => Wanted::Unchanged,
            _ => Wanted::Nothing,
        };
        let wanted: Vec<Wanted> = reads.iter().map(wanted).collect();
        Self { reads: reads.into_iter().zip(wanted).collect() }
    }

    /// Whether nothing was read.
    pub(super) fn is_empty(&self) -> bool {
        self.reads.is_empty()
    }

    /// The channels that must be locked to compare.
    pub(super) fn channels(&self) -> impl Iterator<Item = &ChannelName> {
        self.reads.iter().filter(|(_, wanted)| *wanted != Wanted::Nothing).filter_map(|(read, _)| match read {
            Read::History { channel, .. } | Read::Nothing { channel, .. } | Read::Members { channel, .. } => Some(channel),
            Read::Connections { .. } => None,
        })
    }

    /// Whether the set of connections must be unchanged.
    pub(super) fn needs_connections(&self) -> bool {
        self.reads.iter().any(|(read, wanted)| matches!(read, Read::Connections { .. }) && *wanted != Wanted::Nothing)
    }

    /// The epoch that a channel gets if it has none yet.
    pub(super) fn epoch_for(&self, name: &ChannelName) -> Option<u64> {
        self.reads.iter().find_map(|(read, _)| match read {
            Read::Nothing { channel, epoch } if channel == name => Some(*epoch),
            _ => None,
        })
    }

    /// What it has read that is not committed yet. `None`: some of that has been refused already.
    pub(super) fn uncommitted(&self, apply: Apply<'_>) -> Option<Uncommitted> {
        let mut found = Uncommitted::default();
        let is_open = |ticket: &&Ticket| !apply.store.is_settled(**ticket);
        for (read, _) in &self.reads {
            let (uncommitted, shown_early) = match read {
                Read::History { uncommitted, shown_early, .. } => (uncommitted, &shown_early[..]),
                Read::Members { uncommitted, .. } => (uncommitted, &[][..]),
                Read::Nothing { .. } | Read::Connections { .. } => continue,
            };
            if uncommitted.iter().any(|ticket| apply.store.refused(*ticket, *ticket)) {
                return None;
            }
            // It may be settled by now and still wait for its turn.
            found.is_hidden |= !uncommitted.is_empty();
            found.tickets.extend(uncommitted.iter().chain(shown_early).filter(is_open));
        }
        Some(found)
    }

    /// Whether it still holds. `held`: the locks of [`Basis::channels`].
    pub(super) fn holds(&self, apply: Apply<'_>, mut held: Option<&mut LockedChannels<'_>>) -> bool {
        let hub = &apply.snapshot.hub;
        self.reads.iter().all(|(read, wanted)| match (read, wanted, held.as_deref_mut()) {
            (_, Wanted::Nothing, _) => true,
            (Read::Connections { protocol, at }, ..) => hub.connections_version(*protocol) == *at,
            (_, _, None) => false,
            (Read::History { channel, at, .. }, Wanted::Since, Some(held)) => held.can_give_since(channel, *at),
            (Read::History { channel, at, .. }, Wanted::Unchanged, Some(held)) => held.version(channel) == Some(*at),
            (Read::Nothing { channel, epoch }, _, Some(held)) => held.version(channel).is_some_and(|now| now.epoch == *epoch),
            (Read::Members { channel, at, .. }, _, Some(held)) => held.members_version(channel) == *at,
        })
    }
}
