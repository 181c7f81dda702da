//! What waits for a client whose socket accepts nothing, in the order in which it will be written, and what happens to it while
//! it waits: higher priorities go first, superseded messages are removed, and messages that may be dropped make room.
//!
//! Only a blocked socket has a backlog. A message costs a few steps in trees, however many wait. Knows nothing of sockets and of
//! partly written frames, which are taken out before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::delivery_policy::{DeliveryPolicy, Overflow, SubscriptionId};
use super::packet::{DropRank, QueuedFrame};
use crate::model::Priority;
use crate::telemetry::conflation::{Conflation, Conflations};

/// The order of writing. A reply is written after everything that came before it and before everything that comes later,
/// whatever the priority, except for low priority. So a reply begins a new section, and low priority comes after all sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    section: u64,
    lane: Lane,
    number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    High,
    Medium,
    Own,
    Low,
    Close,
}

/// The waiting messages of one subscription, by priority.
#[derive(Debug, Default)]
struct Waits {
    ranks: [BTreeSet<Rank>; Priority::ALL.len()],
    bytes: [usize; Priority::ALL.len()],
}

impl Waits {
    fn last(&self) -> Option<Rank> {
        self.ranks.iter().filter_map(|ranks| ranks.last()).max().copied()
    }

    fn is_empty(&self) -> bool {
        self.ranks.iter().all(BTreeSet::is_empty)
    }
}

/// The result of making room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There is some now.
    Made,
    /// The message itself must be dropped.
    Dropped,
    /// Its subscription continues from the log.
    Behind,
    /// There is no room, and nothing may be dropped.
    None,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    frames: BTreeMap<Rank, QueuedFrame>,
    bytes: usize,
    section: u64,
    next: u64,
    subscriptions: HashMap<u64, Waits>,
    latest: HashMap<(u64, Box<str>), Rank>,
    droppable: BTreeSet<(DropRank, Rank)>,
    /// By priority.
    droppable_bytes: [usize; Priority::ALL.len()],
    /// Subscriptions that get nothing more before they have continued from the log, each after an offset.
    fallen: HashMap<u64, u64>,
    /// What happened to the connection's messages so far.
    pub(super) conflations: Conflations,
    /// Messages that were dropped to make room so far.
    pub(super) dropped: u64,
}

impl Backlog {
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Bytes of everything that waits.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it can be removed.
    pub(super) fn is_over(&self) -> bool {
        self.frames.is_empty() && self.fallen.is_empty() && self.conflations.is_empty()
    }

    /// What is written next, in order.
    pub(super) fn wires(&self) -> impl Iterator<Item = &Bytes> {
        self.frames.values().map(|frame| &frame.wire)
    }

    /// Takes the first frame.
    pub(super) fn pop(&mut self) -> Option<QueuedFrame> {
        let rank = *self.frames.first_key_value()?.0;
        self.remove(rank)
    }

    pub(super) fn clear(&mut self) {
        let (fallen, conflations, dropped) = (std::mem::take(&mut self.fallen), self.conflations, self.dropped);
        *self = Self { fallen, conflations, dropped, ..Self::default() };
    }

    /// Inserts a message in its place. A waiting one with the same key must have been removed before.
    pub(super) fn add(&mut self, frame: QueuedFrame) {
        let rank = self.rank(&frame);
        let cost = frame.cost_bytes();
        self.bytes += cost;
        if let Some(subscription) = frame.indexed() {
            let waits = self.subscriptions.entry(subscription.number).or_default();
            waits.ranks[frame.priority() as usize].insert(rank);
            waits.bytes[frame.priority() as usize] += cost;
            if let Some(Overflow::Latest(key)) = frame.policy.as_ref().map(|policy| &policy.overflow) {
                self.latest.insert((subscription.number, key.clone()), rank);
            }
        }
        if let Some(drop_rank) = frame.drop_rank(rank.number) {
            self.droppable.insert((drop_rank, rank));
            self.droppable_bytes[frame.priority() as usize] += cost;
        }
        self.frames.insert(rank, frame);
    }

    /// Adds the close frame, after everything else.
    pub(super) fn add_close(&mut self, frame: QueuedFrame) {
        self.bytes += frame.cost_bytes();
        self.frames.insert(Rank { section: u64::MAX, lane: Lane::Close, number: 0 }, frame);
    }

    fn rank(&mut self, frame: &QueuedFrame) -> Rank {
        self.next += 1;
        let number = self.next;
        if frame.subscription.is_none() && frame.policy.is_none() {
            self.section += 1;
            return Rank { section: self.section - 1, lane: Lane::Own, number };
        }
        let lane = match frame.priority() {
            Priority::High => Lane::High,
            Priority::Medium => Lane::Medium,
            Priority::Low => Lane::Low,
        };
        // A client that counts offsets asks for what comes after the last event it got, so its events keep their order.
        let before = frame
            .subscription
            .filter(|subscription| subscription.positioned)
            .and_then(|subscription| self.subscriptions.get(&subscription.number));
        let lane = before.and_then(Waits::last).map_or(lane, |last| lane.max(last.lane));
        Rank { section: if lane == Lane::Low { u64::MAX } else { self.section }, lane, number }
    }

    fn remove(&mut self, rank: Rank) -> Option<QueuedFrame> {
        let frame = self.frames.remove(&rank)?;
        let (cost, priority) = (frame.cost_bytes(), frame.priority() as usize);
        self.bytes -= cost;
        if let Some(subscription) = frame.indexed() {
            if let Some(Overflow::Latest(key)) = frame.policy.as_ref().map(|policy| &policy.overflow) {
                self.latest.remove(&(subscription.number, key.clone()));
            }
            if let Some(waits) = self.subscriptions.get_mut(&subscription.number) {
                waits.ranks[priority].remove(&rank);
                waits.bytes[priority] -= cost;
                if waits.is_empty() {
                    self.subscriptions.remove(&subscription.number);
                }
            }
        }
        if let Some(drop_rank) = frame.drop_rank(rank.number) {
            self.droppable.remove(&(drop_rank, rank));
            self.droppable_bytes[priority] -= cost;
        }
        Some(frame)
    }

    fn count(&mut self, policy: &DeliveryPolicy, conflation: Conflation) {
        policy.count(conflation);
        self.conflations.count(conflation);
    }

    /// Removes the waiting message with the same key as this one.
    pub(super) fn supersede(&mut self, frame: &QueuedFrame) {
        let (Some(subscription), Some(policy)) = (frame.subscription, &frame.policy) else { return };
        let Overflow::Latest(key) = &policy.overflow else { return };
        if let Some(rank) = self.latest.get(&(subscription.number, key.clone())).copied()
            && self.remove(rank).is_some()
        {
            self.count(policy, Conflation::Superseded);
        }
    }

    /// The last waiting message of a subscription.
    pub(super) fn last(&self, subscription: SubscriptionId) -> Option<&Arc<DeliveryPolicy>> {
        let rank = self.subscriptions.get(&subscription.number)?.last()?;
        self.frames.get(&rank)?.policy.as_ref()
    }

    /// Removes the last waiting message of a subscription, if it is still this one: it is now part of another.
    pub(super) fn take_last(&mut self, subscription: SubscriptionId, expected: &Arc<DeliveryPolicy>) -> bool {
        let Some(rank) = self.subscriptions.get(&subscription.number).and_then(Waits::last) else { return false };
        let is_it = self.frames.get(&rank).and_then(|frame| frame.policy.as_ref()).is_some_and(|last| Arc::ptr_eq(last, expected));
        if is_it && self.remove(rank).is_some() {
            self.count(expected, Conflation::Merged);
        }
        is_it
    }

    /// Makes room for a message by removing this many bytes. If that is not enough, nothing is dropped.
    pub(super) fn make_room(&mut self, excess: usize, frame: &QueuedFrame) -> Room {
        let target = self.bytes.saturating_sub(excess);
        let Some(policy) = frame.policy.as_ref().filter(|policy| policy.is_droppable()) else {
            return if self.drop_until(target, excess, None) { Room::Made } else { Room::None };
        };
        let (Some(subscription), priority) = (frame.subscription, policy.priority) else { return Room::None };
        let recoverable = policy.recoverable(subscription);
        let from_own = matches!(policy.overflow, Overflow::DropOldest) && recoverable.is_none();
        let own = self.subscriptions.get(&subscription.number).filter(|_| from_own).map_or(0, |waits| waits.bytes[priority as usize]);
        if !self.drop_until(target, excess.saturating_sub(own), Some(priority)) {
            return self.refuse(policy, subscription, recoverable);
        }
        while self.bytes > target {
            let waits = self.subscriptions.get(&subscription.number);
            let Some(rank) = waits.and_then(|waits| waits.ranks[priority as usize].first().copied()) else {
                return self.refuse(policy, subscription, recoverable);
            };
            self.drop_one(rank);
        }
        // The room may have been made by dropping messages of the same subscription.
        if self.has_fallen(subscription) { Room::Behind } else { Room::Made }
    }

    /// Does not accept a message that may be dropped.
    pub(super) fn refuse(&mut self, policy: &DeliveryPolicy, subscription: SubscriptionId, recoverable: Option<u64>) -> Room {
        match recoverable {
            Some(after) => {
                self.fallen.insert(subscription.number, after);
                Room::Behind
            }
            None => {
                self.count(policy, Conflation::DroppedNewest);
                Room::Dropped
            }
        }
    }

    /// Drops messages that may be dropped, or only those of a lower priority than `than`, lowest priority first, until no more
    /// than `target` bytes wait. Only if they have at least `least` bytes in total.
    fn drop_until(&mut self, target: usize, least: usize, than: Option<Priority>) -> bool {
        let matters_less = |priority: Priority| than.is_none_or(|than| priority > than);
        let there: usize =
            Priority::ALL.iter().filter(|(_, p)| matters_less(*p)).map(|(_, priority)| self.droppable_bytes[*priority as usize]).sum();
        if there < least {
            return false;
        }
        while self.bytes > target {
            let first = self.droppable.first().copied();
            let Some((_, rank)) = first.filter(|((priority, _), _)| matters_less(priority.0)) else { break };
            self.drop_one(rank);
        }
        true
    }

    /// Drops a message. A subscription that can get it from the log gets it, and everything after it, from there.
    fn drop_one(&mut self, rank: Rank) {
        let Some(frame) = self.remove(rank) else { return };
        let (Some(policy), Some(subscription)) = (&frame.policy, frame.subscription) else { return };
        if policy.recoverable(subscription).is_none() {
            let newest = matches!(policy.overflow, Overflow::DropNewest);
            self.dropped += 1;
            return self.count(policy, if newest { Conflation::DroppedNewest } else { Conflation::DroppedOldest });
        }
        // They wait in the order of their offsets, so all that wait come after the first of them.
        let mut after = policy.recoverable(subscription);
        let rest = self.subscriptions.get(&subscription.number).map(|waits| waits.ranks.iter().flatten().copied().collect::<Vec<_>>());
        for rank in rest.unwrap_or_default() {
            let other = self.remove(rank).and_then(|frame| frame.policy?.recoverable(subscription));
            after = after.into_iter().chain(other).min();
        }
        self.fallen.extend(after.map(|after| (subscription.number, after)));
    }

    /// Whether a subscription gets nothing more before it has continued from the log.
    pub(super) fn has_fallen(&self, subscription: SubscriptionId) -> bool {
        self.fallen.contains_key(&subscription.number)
    }

    /// The same. It then continues before this message, which can be read from the log after `after`.
    pub(super) fn fall_back(&mut self, subscription: SubscriptionId, after: Option<u64>) -> bool {
        let Some(fallen) = self.fallen.get_mut(&subscription.number) else { return false };
        *fallen = after.map_or(*fallen, |after| after.min(*fallen));
        true
    }

    /// Whether there is such a subscription.
    pub(super) fn is_behind(&self) -> bool {
        !self.fallen.is_empty()
    }

    /// All subscriptions that must continue from the log.
    pub(super) fn fallen(&self) -> Vec<u64> {
        self.fallen.keys().copied().collect()
    }

    /// The offset after which a subscription continues. Returned once.
    pub(super) fn take_fallen(&mut self, number: u64) -> Option<u64> {
        self.fallen.remove(&number)
    }
}
