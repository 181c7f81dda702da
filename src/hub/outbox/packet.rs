//! Messages ready for the wire: shared by all receivers who get the same, and waiting for one of them.

use std::cmp::Reverse;
use std::sync::Arc;

use bytes::Bytes;

use super::delivery_policy::{DeliveryPolicy, Overflow, SubscriptionId};
use crate::model::Priority;

/// Bytes that each waiting frame counts for besides its own.
pub(super) const FRAME_OVERHEAD: usize = 128;

/// A message ready for the wire, shared by all receivers who get the same.
#[derive(Clone, Debug)]
pub struct Packet {
    /// What is written.
    pub wire: Bytes,
    /// Bytes of the message itself.
    pub payload: usize,
    /// What may happen to it if the socket accepts nothing. `None`: it waits.
    pub policy: Option<Arc<DeliveryPolicy>>,
}

/// Messages that follow each other for all their receivers.
#[derive(Debug)]
pub struct PacketRun {
    pub(super) packets: Vec<Packet>,
    /// All of them, one after the other.
    pub(super) joined: Bytes,
    payload: usize,
    pub(super) cost_bytes: usize,
}

impl PacketRun {
    /// Copies the packets into one piece, if there are several.
    pub fn new(packets: Vec<Packet>) -> Self {
        let joined = match &packets[..] {
            [one] => one.wire.clone(),
            many => {
                let mut joined = Vec::with_capacity(many.iter().map(|packet| packet.wire.len()).sum());
                many.iter().for_each(|packet| joined.extend_from_slice(&packet.wire));
                joined.into()
            }
        };
        let extra: usize = packets.iter().filter_map(|packet| packet.policy.as_ref()).map(|policy| policy.cost_bytes()).sum();
        let cost_bytes = joined.len() + FRAME_OVERHEAD * packets.len() + extra;
        Self { joined, payload: packets.iter().map(|packet| packet.payload).sum(), cost_bytes, packets }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Bytes of the messages themselves.
    pub fn payload(&self) -> usize {
        self.payload
    }

    pub(super) fn frames(&self, subscription: SubscriptionId) -> impl DoubleEndedIterator<Item = QueuedFrame> {
        self.packets.iter().map(move |packet| packet.clone().into_frame(Some(subscription)))
    }
}

impl Packet {
    pub(super) fn into_frame(self, subscription: Option<SubscriptionId>) -> QueuedFrame {
        QueuedFrame { wire: self.wire, policy: self.policy, subscription }
    }
}

/// The order in which messages are dropped; the lowest first.
pub(super) type DropRank = (Reverse<Priority>, i64);

/// A message that waits.
#[derive(Debug)]
pub(super) struct QueuedFrame {
    pub(super) wire: Bytes,
    pub(super) policy: Option<Arc<DeliveryPolicy>>,
    pub(super) subscription: Option<SubscriptionId>,
}

impl QueuedFrame {
    /// A message of the server itself: a reply, a control frame.
    pub(super) fn own(wire: Bytes) -> Self {
        Self { wire, policy: None, subscription: None }
    }

    pub(super) fn cost_bytes(&self) -> usize {
        self.wire.len() + FRAME_OVERHEAD + self.policy.as_ref().map_or(0, |policy| policy.cost_bytes())
    }

    pub(super) fn priority(&self) -> Priority {
        self.policy.as_ref().map_or(Priority::Medium, |policy| policy.priority)
    }

    /// The subscription, if anything depends on it.
    pub(super) fn indexed(&self) -> Option<SubscriptionId> {
        self.subscription.filter(|subscription| subscription.positioned || self.policy.is_some())
    }

    /// Its rank among those that may be dropped: within a priority, messages that drop the newest come first, newest first, and
    /// then those that drop the oldest, oldest first.
    pub(super) fn drop_rank(&self, number: u64) -> Option<DropRank> {
        let age = i64::try_from(number).unwrap_or(i64::MAX);
        let policy = self.policy.as_ref()?;
        match policy.overflow {
            Overflow::DropOldest => Some((Reverse(policy.priority), age)),
            Overflow::DropNewest => Some((Reverse(policy.priority), -age)),
            _ => None,
        }
    }
}
