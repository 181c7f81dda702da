//! Whether what a decision has read is still so when it is applied.
//!
//! What only joins and answers is right as of the moment at which it read: a subscription begins there, and what came since is
//! given behind the answer. What changes anything for others must find everything as it was.

use super::{Apply, Effects};
use crate::hub::LockedChannels;
use crate::model::ChannelName;
use crate::pipeline::Read;
use crate::pipeline::effect::{ConnectionEffect, Effect};
use crate::store::Ticket;

/// What is asked of what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Nothing: it was only told.
    Nothing,
    /// That what came since can be given behind it.
    Since,
    /// That nothing has changed.
    Unchanged,
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
        let wanted = |read: &Read| match read {
            Read::Nothing { .. } => Wanted::Unchanged,
            Read::History { channel, .. } if !changes && joined.contains(channel) => Wanted::Since,
            _ if changes || !joined.is_empty() => Wanted::Unchanged,
            _ => Wanted::Nothing,
        };
        Self { reads: reads.into_iter().map(|read| (wanted(&read), read)).map(|(wanted, read)| (read, wanted)).collect() }
    }

    /// The channels that must be locked to compare.
    pub(super) fn channels(&self) -> impl Iterator<Item = &ChannelName> {
        self.reads.iter().filter(|(_, wanted)| *wanted != Wanted::Nothing).filter_map(|(read, _)| match read {
            Read::History { channel, .. } | Read::Nothing { channel, .. } | Read::Members { channel, .. } => Some(channel),
            Read::Connections { .. } => None,
        })
    }

    /// The name that the stream of a channel gets, if it has none yet.
    pub(super) fn epoch_for(&self, name: &ChannelName) -> Option<u64> {
        self.reads.iter().find_map(|(read, _)| match read {
            Read::Nothing { channel, epoch } if channel == name => Some(*epoch),
            _ => None,
        })
    }

    /// What was seen of it that is not committed yet: the transaction waits for that, and is refused with it. None: some of it was
    /// refused already.
    pub(super) fn uncommitted(&self, apply: Apply<'_>) -> Option<Vec<Ticket>> {
        let mut after = Vec::new();
        for (read, _) in &self.reads {
            let Read::History { uncommitted, .. } = read else { continue };
            for ticket in uncommitted {
                if apply.store.refused(*ticket, *ticket) {
                    return None;
                }
                if !apply.store.is_settled(*ticket) {
                    after.push(*ticket);
                }
            }
        }
        Some(after)
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
            (Read::Members { channel, at }, _, Some(held)) => held.members_version(channel) == *at,
        })
    }
}
