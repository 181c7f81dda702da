//! What waits for a client whose socket takes nothing, in the order in which it will be written, and what becomes of it while
//! it waits: what matters more goes first, what is superseded goes, what may be dropped makes room.
//!
//! Only a blocked socket has one. A message costs a few steps in trees, however many wait. Knows nothing of sockets and of
//! frames that are half written: those are taken out before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::packet::{Frame, Rank};
use super::traits::{Fate, Stream, Traits};
use crate::model::Priority;
use crate::telemetry::relief::{Relief, Reliefs};

/// The order of writing. What the client is told itself is written behind all that came before and in front of all that comes
/// after it, whatever their priority, but for what is low: so it begins a new section, and low is behind all sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
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

/// What waits of one subscription, by priority.
#[derive(Debug, Default)]
struct Waits {
    places: [BTreeSet<Place>; Priority::ALL.len()],
    bytes: [usize; Priority::ALL.len()],
}

impl Waits {
    fn last(&self) -> Option<Place> {
        self.places.iter().filter_map(|places| places.last()).max().copied()
    }

    fn is_empty(&self) -> bool {
        self.places.iter().all(BTreeSet::is_empty)
    }
}

/// What came of looking for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There is some now.
    Made,
    /// The message itself has to go.
    Dropped,
    /// Its subscription goes on from the log.
    Behind,
    /// There is none, and nothing that may be dropped.
    None,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    frames: BTreeMap<Place, Frame>,
    bytes: usize,
    section: u64,
    next: u64,
    streams: HashMap<u64, Waits>,
    latest: HashMap<(u64, Box<str>), Place>,
    droppable: BTreeSet<(Rank, Place)>,
    /// By priority.
    droppable_bytes: [usize; Priority::ALL.len()],
    /// Subscriptions that get nothing more before they went on from the log, behind an offset.
    fallen: HashMap<u64, u64>,
    /// What became of the connection's messages so far.
    pub(super) reliefs: Reliefs,
    /// Messages that waited and made room so far.
    pub(super) dropped: u64,
}

impl Backlog {
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Bytes of all that waits.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it can be forgotten.
    pub(super) fn is_over(&self) -> bool {
        self.frames.is_empty() && self.fallen.is_empty() && self.reliefs.is_empty()
    }

    /// What is written next, in order.
    pub(super) fn wires(&self) -> impl Iterator<Item = &Bytes> {
        self.frames.values().map(|frame| &frame.wire)
    }

    /// Takes the first.
    pub(super) fn pop(&mut self) -> Option<Frame> {
        let place = *self.frames.first_key_value()?.0;
        self.remove(place)
    }

    pub(super) fn clear(&mut self) {
        let (fallen, reliefs, dropped) = (std::mem::take(&mut self.fallen), self.reliefs, self.dropped);
        *self = Self { fallen, reliefs, dropped, ..Self::default() };
    }

    /// Puts a message where it belongs. One with the same key that waits must have been taken out before.
    pub(super) fn add(&mut self, frame: Frame) {
        let place = self.place(&frame);
        let weight = frame.weight();
        self.bytes += weight;
        if let Some(stream) = frame.indexed() {
            let waits = self.streams.entry(stream.number).or_default();
            waits.places[frame.priority() as usize].insert(place);
            waits.bytes[frame.priority() as usize] += weight;
            if let Some(Fate::Latest(key)) = frame.traits.as_ref().map(|traits| &traits.fate) {
                self.latest.insert((stream.number, key.clone()), place);
            }
        }
        if let Some(rank) = frame.rank(place.number) {
            self.droppable.insert((rank, place));
            self.droppable_bytes[frame.priority() as usize] += weight;
        }
        self.frames.insert(place, frame);
    }

    /// The close frame, behind all.
    pub(super) fn add_close(&mut self, frame: Frame) {
        self.bytes += frame.weight();
        self.frames.insert(Place { section: u64::MAX, lane: Lane::Close, number: 0 }, frame);
    }

    fn place(&mut self, frame: &Frame) -> Place {
        self.next += 1;
        let number = self.next;
        if frame.stream.is_none() && frame.traits.is_none() {
            self.section += 1;
            return Place { section: self.section - 1, lane: Lane::Own, number };
        }
        let lane = match frame.priority() {
            Priority::High => Lane::High,
            Priority::Medium => Lane::Medium,
            Priority::Low => Lane::Low,
        };
        // A client that counts offsets takes an event for the last it has to ask for.
        let before = frame.stream.filter(|stream| stream.positioned).and_then(|stream| self.streams.get(&stream.number));
        let lane = before.and_then(Waits::last).map_or(lane, |last| lane.max(last.lane));
        Place { section: if lane == Lane::Low { u64::MAX } else { self.section }, lane, number }
    }

    fn remove(&mut self, place: Place) -> Option<Frame> {
        let frame = self.frames.remove(&place)?;
        let (weight, priority) = (frame.weight(), frame.priority() as usize);
        self.bytes -= weight;
        if let Some(stream) = frame.indexed() {
            if let Some(Fate::Latest(key)) = frame.traits.as_ref().map(|traits| &traits.fate) {
                self.latest.remove(&(stream.number, key.clone()));
            }
            if let Some(waits) = self.streams.get_mut(&stream.number) {
                waits.places[priority].remove(&place);
                waits.bytes[priority] -= weight;
                if waits.is_empty() {
                    self.streams.remove(&stream.number);
                }
            }
        }
        if let Some(rank) = frame.rank(place.number) {
            self.droppable.remove(&(rank, place));
            self.droppable_bytes[priority] -= weight;
        }
        Some(frame)
    }

    fn relieved(&mut self, traits: &Traits, relief: Relief) {
        traits.count(relief);
        self.reliefs.count(relief);
    }

    /// Takes out what waits with the same key as this one.
    pub(super) fn supersede(&mut self, frame: &Frame) {
        let (Some(stream), Some(traits)) = (frame.stream, &frame.traits) else { return };
        let Fate::Latest(key) = &traits.fate else { return };
        if let Some(place) = self.latest.get(&(stream.number, key.clone())).copied()
            && self.remove(place).is_some()
        {
            self.relieved(traits, Relief::Superseded);
        }
    }

    /// The last that waits of a subscription.
    pub(super) fn last(&self, stream: Stream) -> Option<&Arc<Traits>> {
        let place = self.streams.get(&stream.number)?.last()?;
        self.frames.get(&place)?.traits.as_ref()
    }

    /// Takes out the last that waits of a subscription, if it is still this one: it is part of another now.
    pub(super) fn take_last(&mut self, stream: Stream, expected: &Arc<Traits>) -> bool {
        let Some(place) = self.streams.get(&stream.number).and_then(Waits::last) else { return false };
        let is_it = self.frames.get(&place).and_then(|frame| frame.traits.as_ref()).is_some_and(|last| Arc::ptr_eq(last, expected));
        if is_it && self.remove(place).is_some() {
            self.relieved(expected, Relief::Merged);
        }
        is_it
    }

    /// Makes room for a message: so many bytes must go. Nothing is dropped in vain.
    pub(super) fn make_room(&mut self, excess: usize, frame: &Frame) -> Room {
        let target = self.bytes.saturating_sub(excess);
        let Some(traits) = frame.traits.as_ref().filter(|traits| traits.is_droppable()) else {
            return if self.drop_until(target, excess, None) { Room::Made } else { Room::None };
        };
        let (Some(stream), priority) = (frame.stream, traits.priority) else { return Room::None };
        let recoverable = traits.recoverable(stream);
        let from_own = matches!(traits.fate, Fate::DropOldest) && recoverable.is_none();
        let own = self.streams.get(&stream.number).filter(|_| from_own).map_or(0, |waits| waits.bytes[priority as usize]);
        if !self.drop_until(target, excess.saturating_sub(own), Some(priority)) {
            return self.refuse(traits, stream, recoverable);
        }
        while self.bytes > target {
            let waits = self.streams.get(&stream.number);
            let Some(place) = waits.and_then(|waits| waits.places[priority as usize].first().copied()) else {
                return self.refuse(traits, stream, recoverable);
            };
            self.drop_one(place);
        }
        // Room may have been made by what waited of the very same subscription.
        if self.has_fallen(stream) { Room::Behind } else { Room::Made }
    }

    fn refuse(&mut self, traits: &Traits, stream: Stream, recoverable: Option<u64>) -> Room {
        match recoverable {
            Some(after) => {
                self.fallen.insert(stream.number, after);
                Room::Behind
            }
            None => {
                self.relieved(traits, Relief::DroppedNewest);
                Room::Dropped
            }
        }
    }

    /// Drops what may be dropped and matters less than `than`, or all that may be dropped, what matters least first, until no
    /// more than `target` bytes wait. Only where it is `least` bytes in all.
    fn drop_until(&mut self, target: usize, least: usize, than: Option<Priority>) -> bool {
        let matters_less = |priority: Priority| than.is_none_or(|than| priority > than);
        let there: usize =
            Priority::ALL.iter().filter(|(_, p)| matters_less(*p)).map(|(_, priority)| self.droppable_bytes[*priority as usize]).sum();
        if there < least {
            return false;
        }
        while self.bytes > target {
            let first = self.droppable.first().copied();
            let Some((_, place)) = first.filter(|((priority, _), _)| matters_less(priority.0)) else { break };
            self.drop_one(place);
        }
        true
    }

    /// Drops a message. A subscription that can have it from the log gets it, and all behind it, from there.
    fn drop_one(&mut self, place: Place) {
        let Some(frame) = self.remove(place) else { return };
        let (Some(traits), Some(stream)) = (&frame.traits, frame.stream) else { return };
        if traits.recoverable(stream).is_none() {
            let newest = matches!(traits.fate, Fate::DropNewest);
            self.dropped += 1;
            return self.relieved(traits, if newest { Relief::DroppedNewest } else { Relief::DroppedOldest });
        }
        // They wait in the order of their offsets: what waits is all behind the first of them.
        let mut after = traits.recoverable(stream);
        let rest = self.streams.get(&stream.number).map(|waits| waits.places.iter().flatten().copied().collect::<Vec<_>>());
        for place in rest.unwrap_or_default() {
            let other = self.remove(place).and_then(|frame| frame.traits?.recoverable(stream));
            after = after.into_iter().chain(other).min();
        }
        self.fallen.extend(after.map(|after| (stream.number, after)));
    }

    /// Whether a subscription gets nothing more before it went on from the log.
    pub(super) fn has_fallen(&self, stream: Stream) -> bool {
        self.fallen.contains_key(&stream.number)
    }

    /// Whether there is such a subscription.
    pub(super) fn is_behind(&self) -> bool {
        !self.fallen.is_empty()
    }

    /// All subscriptions that are to go on from the log.
    pub(super) fn fallen(&self) -> Vec<u64> {
        self.fallen.keys().copied().collect()
    }

    /// The offset behind which a subscription goes on. It is told once.
    pub(super) fn take_fallen(&mut self, number: u64) -> Option<u64> {
        self.fallen.remove(&number)
    }
}
