//! Messages ready for the wire: shared by all who get the same, and one that waits for one of them.

use std::cmp::Reverse;
use std::sync::Arc;

use bytes::Bytes;

use super::traits::{Fate, Stream, Traits};
use crate::model::Priority;

/// Bytes that every waiting frame counts for besides its own.
pub(super) const FRAME_OVERHEAD: usize = 128;

/// A message ready for the wire, shared by all who get the same.
#[derive(Clone, Debug)]
pub struct Packet {
    /// What is written.
    pub wire: Bytes,
    /// Bytes of the message itself.
    pub payload: usize,
    /// What becomes of it where the socket takes nothing; none: nothing but waiting.
    pub traits: Option<Arc<Traits>>,
}

/// Messages that follow each other for everybody who gets them.
#[derive(Debug)]
pub struct Run {
    pub(super) packets: Vec<Packet>,
    /// All of them, one after the other.
    pub(super) joined: Bytes,
    payload: usize,
    pub(super) weight: usize,
}

impl Run {
    /// Copies the packets together, where there are several.
    pub fn new(packets: Vec<Packet>) -> Self {
        let joined = match &packets[..] {
            [one] => one.wire.clone(),
            many => {
                let mut joined = Vec::with_capacity(many.iter().map(|packet| packet.wire.len()).sum());
                many.iter().for_each(|packet| joined.extend_from_slice(&packet.wire));
                joined.into()
            }
        };
        let extra: usize = packets.iter().filter_map(|packet| packet.traits.as_ref()).map(|traits| traits.weight()).sum();
        let weight = joined.len() + FRAME_OVERHEAD * packets.len() + extra;
        Self { joined, payload: packets.iter().map(|packet| packet.payload).sum(), weight, packets }
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

    pub(super) fn frames(&self, stream: Stream) -> impl DoubleEndedIterator<Item = Frame> {
        self.packets.iter().map(move |packet| packet.clone().into_frame(Some(stream)))
    }
}

impl Packet {
    pub(super) fn into_frame(self, stream: Option<Stream>) -> Frame {
        Frame { wire: self.wire, traits: self.traits, stream }
    }
}

/// Where a message stands among those that may be dropped, the first to go first.
pub(super) type Rank = (Reverse<Priority>, i64);

/// A message that waits.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) wire: Bytes,
    pub(super) traits: Option<Arc<Traits>>,
    pub(super) stream: Option<Stream>,
}

impl Frame {
    /// What the server itself says to this client: a reply, a control frame.
    pub(super) fn own(wire: Bytes) -> Self {
        Self { wire, traits: None, stream: None }
    }

    pub(super) fn weight(&self) -> usize {
        self.wire.len() + FRAME_OVERHEAD + self.traits.as_ref().map_or(0, |traits| traits.weight())
    }

    pub(super) fn priority(&self) -> Priority {
        self.traits.as_ref().map_or(Priority::Medium, |traits| traits.priority)
    }

    /// The subscription, where anything depends on it.
    pub(super) fn indexed(&self) -> Option<Stream> {
        self.stream.filter(|stream| stream.positioned || self.traits.is_some())
    }

    /// Where it stands among those that may be dropped: of equal priority the newest of those that are dropped from that end,
    /// then the oldest.
    pub(super) fn rank(&self, number: u64) -> Option<Rank> {
        let age = i64::try_from(number).unwrap_or(i64::MAX);
        let traits = self.traits.as_ref()?;
        match traits.fate {
            Fate::DropOldest => Some((Reverse(traits.priority), age)),
            Fate::DropNewest => Some((Reverse(traits.priority), -age)),
            _ => None,
        }
    }
}
