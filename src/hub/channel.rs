//! One channel: its members, its position in the log, and its newest events in memory. The holder of its lock decides the order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::config::plan::ChannelPlan;
use crate::hub::batching::PendingBatch;
use crate::hub::connection::Connection;
use crate::hub::locked_channels::Published;
use crate::hub::members::{Member, Members};
use crate::model::event::{Epoch, Event, NewEvent};
use crate::model::view::SubView;
use crate::model::{ChannelName, Json, Position, chance};
use crate::store::Ticket;
use crate::telemetry::conflation::{ConflationCounters, Conflations};

/// How long a channel without members stays in memory after its last event if there are many channels.
pub(super) const IDLE_MS: i64 = 10_000;

/// How many events a tail may hold beyond its bound while somebody catches up, and how many bytes of them.
const BEHIND_EVENTS_MAX: usize = 4096;
const BEHIND_BYTES_MAX: usize = 4 << 20;

/// A live channel.
#[derive(Debug)]
pub struct Channel {
    /// Channels are locked in this order.
    pub(super) order: u64,
    /// Its name.
    pub name: ChannelName,
    /// Its current configuration.
    pub(super) plan: ArcSwap<ChannelPlan>,
    /// Whether it shows events before they are committed, or did so under an earlier configuration. Set before it does.
    pub(super) early: AtomicBool,
    /// What slow clients did not get as it was published.
    pub conflations: Arc<ConflationCounters>,
    // Protects members, offsets and tail together: this makes the order the same for all. Held while one transaction is applied.
    pub(super) state: Arc<Mutex<State>>,
}

impl Channel {
    /// Its current configuration.
    pub fn plan(&self) -> Arc<ChannelPlan> {
        self.plan.load_full()
    }
}

/// Whether events of a channel may be seen before they are committed.
pub(super) fn is_early(plan: &ChannelPlan) -> bool {
    plan.history.as_ref().is_some_and(|history| history.promise.is_early())
}

/// Up to where events of a channel have their offsets, visible or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelVersion {
    /// The stream.
    pub epoch: Epoch,
    /// The last offset that was assigned.
    pub offset: u64,
}

/// How many waiting events a channel keeps room for when none are waiting.
const WAITING_KEPT: usize = 64;

/// Distinguishes the states of a channel's members. Two states without members are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MembersVersion(Option<(u64, u64)>);

impl MembersVersion {
    /// No members.
    pub const NOBODY: Self = Self(None);
}

/// What a decision sees of a channel's past events.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The version that was read.
    pub at: ChannelVersion,
    /// The newest events, oldest first.
    pub events: Vec<Arc<Event>>,
    /// The tickets of those that nobody else sees before they are committed.
    pub uncommitted: Vec<Ticket>,
    /// The tickets of those that were visible before their commit; some may be committed by now.
    pub shown_early: Vec<Ticket>,
}

/// What a decision sees of a channel's members.
#[derive(Clone, Debug)]
pub struct MembersSeen {
    /// The version that was read.
    pub at: MembersVersion,
    /// The members, as JSON.
    pub members: Vec<Json>,
    /// The tickets of the commits that members who are about to join or leave wait for.
    pub uncommitted: Vec<Ticket>,
}

/// A change of the members that a transaction makes once it is committed.
#[derive(Clone, Debug)]
pub enum MemberChange {
    /// A subscription begins.
    Joins(Arc<Connection>, SubView),
    /// A subscription with this key ends.
    Leaves(Arc<Connection>, Arc<str>),
}

/// The part of a channel that changes.
#[derive(Debug)]
pub struct State {
    pub(super) epoch: Epoch,
    /// The last offset that was assigned.
    pub(super) offset: u64,
    /// The last offset that was shown to members. Events between the two wait for their commit.
    pub(super) shown: u64,
    /// The oldest offset that the log still has.
    pub(super) first: u64,
    /// Events that have an offset and are not shown yet, by offset, with the tickets of their commits.
    uncommitted: VecDeque<(Arc<Event>, Ticket)>,
    /// How many events of queued transactions get their offset only when they are shown, because they are not stored.
    unassigned: usize,
    /// The positions of those that a later stored event must not overtake.
    reserved: VecDeque<(Epoch, u64)>,
    /// The tickets of shown events that were not known to be committed when the next event got its offset.
    shown_early: VecDeque<Ticket>,
    /// Grows with each change of the members, including those that wait for a commit.
    members_changed: u64,
    /// Changes of the members that wait for a commit, with its ticket. Decisions see them.
    pending_members: VecDeque<(MemberChange, Ticket)>,
    /// The newest events that were shown, by offset.
    pub(super) tail: VecDeque<Arc<Event>>,
    pub(super) tail_bytes: usize,
    pub(super) members: Members,
    /// How many of them are catching up.
    behind: usize,
    /// Events that were shown and are not queued for the members yet, each with the key of a connection that must not get it.
    pub(super) burst: Vec<(Published, Option<u64>)>,
    /// Events that were shown and wait for more, for members of protocols with batches.
    pub(super) pending_batches: Vec<PendingBatch>,
    /// Whether the log may have events that were stored under an older configuration.
    epoch_is_stored: bool,
    /// Whether the log may have events of any epoch.
    is_stored: bool,
    /// Removed from the hub: those who still hold it must look it up again.
    pub(super) dead: bool,
    pub(super) last_ms: i64,
}

impl State {
    pub(super) fn new(at: Position) -> Self {
        Self {
            epoch_is_stored: at.offset > 0,
            is_stored: at.offset > 0,
            epoch: at.epoch,
            offset: at.offset,
            shown: at.offset,
            first: at.first,
            uncommitted: VecDeque::new(),
            unassigned: 0,
            reserved: VecDeque::new(),
            shown_early: VecDeque::new(),
            members_changed: 0,
            pending_members: VecDeque::new(),
            behind: 0,
            tail: VecDeque::new(),
            tail_bytes: 0,
            members: Members::default(),
            burst: Vec::new(),
            pending_batches: Vec::new(),
            dead: false,
            last_ms: 0,
        }
    }

    /// Its position.
    pub(super) fn position(&self, channel: &Channel) -> Position {
        let nothing = self.shown + 1;
        let is_there = self.epoch_is_stored && channel.plan.load().history.is_some();
        let first = if is_there { self.first.min(nothing) } else { nothing };
        let first = self.tail.front().map_or(first, |oldest| oldest.offset.min(first));
        Position { epoch: self.epoch, first, offset: self.shown }
    }

    /// Adds a subscription with its number. Returns `false` if it replaces one with the same key. `behind`: it has seen the
    /// channel only up to there.
    pub(super) fn join(
        &mut self,
        connection: &Arc<Connection>,
        subscription: u64,
        view: SubView,
        behind: Option<u64>,
        now_ms: i64,
    ) -> bool {
        let behind = behind.filter(|&seen| seen < self.shown);
        self.members_changed += 1;
        let live_after = self.shown;
        if let Some(at) = self.members.find(connection.key, &view.key) {
            if let Some(member) = self.members.get_mut(at) {
                member.view = view;
                member.subscription = subscription;
            }
            self.set_behind(at, behind);
            return false;
        }
        let at = self.members.push(Member::new(connection, subscription, view, now_ms, live_after));
        self.set_behind(at, behind);
        true
    }

    fn set_behind(&mut self, at: usize, behind: Option<u64>) {
        let Some(member) = self.members.get(at) else { return };
        if member.behind == behind {
            return;
        }
        self.behind = self.behind + usize::from(behind.is_some()) - usize::from(member.behind.is_some());
        let live_after = self.shown;
        if let Some(member) = self.members.get_mut(at) {
            member.behind = behind;
            member.live_after = live_after;
        }
    }

    /// Removes a subscription. Returns `false` if there was none.
    pub(super) fn leave(&mut self, connection: u64, key: &Arc<str>) -> bool {
        let Some(member) = self.members.remove(connection, key) else { return false };
        self.behind -= usize::from(member.behind.is_some());
        self.members_changed += 1;
        true
    }

    /// Assigns an offset to an event. Nobody sees it before it is shown. `is_stored`: whether it goes to the log.
    ///
    /// After a restart the log would assign again what it did not store. So events that are not stored never follow stored ones in
    /// the same epoch.
    pub(super) fn assign_offset(&mut self, channel: &Channel, new: NewEvent, is_stored: bool) -> Event {
        if is_stored {
            // What is queued before it is also shown before it.
            while self.reserved.len() < self.unassigned {
                let position = self.next_position(false);
                self.reserved.push_back(position);
            }
        }
        let position = self.next_position(is_stored);
        self.event(channel, new, position)
    }

    /// Promises an offset to an event that is not stored and that a transaction in the queue shows.
    pub(super) fn promise_offset(&mut self) {
        self.unassigned += 1;
    }

    /// Gives an event the offset that was promised to it. `None`: it is never shown, and needs none.
    pub(super) fn promised_offset(&mut self, channel: &Channel, new: Option<NewEvent>) -> Option<Event> {
        self.unassigned = self.unassigned.saturating_sub(1);
        let reserved = self.reserved.pop_front();
        let Some(new) = new else {
            if let Some((_, offset)) = reserved {
                self.shown = offset;
            }
            return None;
        };
        let position = reserved.unwrap_or_else(|| self.next_position(false));
        Some(self.event(channel, new, position))
    }

    fn event(&mut self, channel: &Channel, new: NewEvent, (epoch, offset): (Epoch, u64)) -> Event {
        self.last_ms = new.time_ms;
        Event { new, channel: Some(channel.name.clone()), offset, epoch, seq: 0 }
    }

    fn next_position(&mut self, is_stored: bool) -> (Epoch, u64) {
        self.offset += 1;
        if is_stored != self.epoch_is_stored {
            if self.epoch_is_stored {
                self.epoch = chance::epoch();
                self.forget_tail();
            }
            self.first = self.offset;
            self.epoch_is_stored = is_stored;
            self.is_stored |= is_stored;
        }
        (self.epoch, self.offset)
    }

    /// Makes an event visible, and keeps it if the channel has a history.
    pub(super) fn show(&mut self, channel: &Channel, event: &Arc<Event>) {
        debug_assert!(event.offset > self.shown, "{} of {} is shown after {}", event.offset, channel.name, self.shown);
        self.shown = event.offset;
        self.settle(event.offset);
        let plan = channel.plan.load();
        let Some(history) = plan.history.as_ref().filter(|_| event.epoch == self.epoch) else { return };
        self.tail_bytes += event.cost_bytes();
        self.tail.push_back(event.clone());
        // A subscription that catches up must reach the tail at some point, however fast others publish.
        let (events, bytes) = if self.behind == 0 { (0, 0) } else { (BEHIND_EVENTS_MAX, BEHIND_BYTES_MAX) };
        while self.tail.len() > history.tail + events || self.tail_bytes > history.tail_bytes + bytes {
            match self.tail.pop_front() {
                Some(old) => self.tail_bytes -= old.cost_bytes(),
                None => break,
            }
        }
    }

    /// Whether an event has an offset and is not shown yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.offset > self.shown
    }

    /// Whether a transaction in the queue will show an event.
    pub(super) fn is_needed(&self) -> bool {
        self.is_waiting() || self.unassigned > 0
    }

    /// Applies a new configuration of the channel.
    pub(super) fn replan(&mut self, channel: &Channel, plan: &Arc<ChannelPlan>) {
        channel.early.fetch_or(is_early(plan), Relaxed);
        channel.plan.store(plan.clone());
        if plan.history.is_none() {
            self.forget_tail();
        }
    }

    /// The subscriptions that a configuration does not allow. `None`: it does not allow the channel.
    pub(super) fn not_allowed(&self, plan: Option<&ChannelPlan>) -> Vec<(Arc<Connection>, Arc<str>)> {
        let join = plan.map(|plan| plan.join.as_ref());
        let allowed = |member: &&Member| match join {
            None => false,
            Some(None) => true,
            Some(Some(protocols)) => protocols.contains(&member.connection.view().protocol),
        };
        if matches!(join, Some(None)) {
            return Vec::new();
        }
        self.members.iter().filter(|member| !allowed(member)).map(|member| (member.connection.clone(), member.view.key.clone())).collect()
    }

    /// An event has its offset and waits for its commit. `is_settled`: whether a ticket no longer waits.
    pub(super) fn wait_for_commit(&mut self, event: &Arc<Event>, ticket: Ticket, is_settled: impl Fn(Ticket) -> bool) {
        while self.shown_early.front().is_some_and(|ticket| is_settled(*ticket)) {
            self.shown_early.pop_front();
        }
        if self.shown_early.is_empty() {
            self.shown_early.shrink_to(WAITING_KEPT);
        }
        self.uncommitted.push_back((event.clone(), ticket));
    }

    /// Everything up to this offset was shown, or never will be.
    pub(super) fn settle(&mut self, offset: u64) {
        while let Some((_, ticket)) = self.uncommitted.pop_front_if(|(event, _)| event.offset <= offset) {
            self.shown_early.push_back(ticket);
        }
        if self.uncommitted.is_empty() {
            self.uncommitted.shrink_to(WAITING_KEPT);
        }
    }

    /// Up to where events have their offsets.
    pub(super) fn version(&self) -> ChannelVersion {
        ChannelVersion { epoch: self.epoch, offset: self.offset }
    }

    /// The newest events, at most `most`.
    pub(super) fn history(&self, most: usize) -> History {
        let waiting = self.uncommitted.iter();
        let all = self.tail.len() + waiting.len();
        let events = self.tail.iter().chain(waiting.clone().map(|(event, _)| event)).skip(all.saturating_sub(most)).cloned();
        History {
            at: self.version(),
            events: events.collect(),
            uncommitted: waiting.map(|(_, ticket)| *ticket).collect(),
            shown_early: self.shown_early.iter().copied().collect(),
        }
    }

    pub(super) fn members_version(&self, channel: &Channel) -> MembersVersion {
        MembersVersion((!self.is_deserted()).then_some((channel.order, self.members_changed)))
    }

    /// Whether it has no members and nobody is about to join, as if it did not exist.
    pub(super) fn is_deserted(&self) -> bool {
        self.members.is_empty() && self.pending_members.is_empty()
    }

    /// Changes the members once this ticket is settled.
    pub(super) fn change_later(&mut self, change: MemberChange, ticket: Ticket) {
        self.members_changed += 1;
        self.pending_members.push_back((change, ticket));
    }

    /// The first of these changes no longer waits: it is made now, or never.
    pub(super) fn change_now(&mut self) {
        self.members_changed += 1;
        self.pending_members.pop_front();
    }

    /// The members as they will be once nothing waits, at most `most`, and the tickets they wait for.
    pub(super) fn members_to_be(&self, most: usize, now_ms: i64) -> (Vec<Member>, Vec<Ticket>) {
        if self.pending_members.is_empty() {
            return (self.members.iter().take(most).cloned().collect(), Vec::new());
        }
        let mut members: Vec<Member> = self.members.iter().cloned().collect();
        for (change, _) in &self.pending_members {
            let (MemberChange::Joins(connection, SubView { key, .. }) | MemberChange::Leaves(connection, key)) = change;
            let known = members.iter().position(|member| member.connection.key == connection.key && member.view.key == *key);
            match (change, known) {
                (MemberChange::Joins(_, view), Some(at)) => members[at].view = view.clone(),
                (MemberChange::Joins(connection, view), None) => members.push(Member::new(connection, 0, view.clone(), now_ms, self.shown)),
                (MemberChange::Leaves(..), Some(at)) => drop(members.remove(at)),
                (MemberChange::Leaves(..), None) => {}
            }
        }
        members.truncate(most);
        (members, self.pending_members.iter().map(|(_, ticket)| *ticket).collect())
    }

    /// The events after an offset that are in memory, oldest first. `None` if memory does not reach back that far.
    pub(super) fn tail_after(&self, seen: u64) -> Option<impl Iterator<Item = &Arc<Event>>> {
        let reaches = seen >= self.shown || self.tail.front().is_some_and(|oldest| oldest.offset <= seen + 1);
        reaches.then(|| self.tail.range(self.tail.partition_point(|event| event.offset <= seen)..))
    }

    /// A subscription and its index among the members.
    pub(super) fn member(&self, connection: u64, key: &Arc<str>) -> Option<(usize, &Member)> {
        let at = self.members.find(connection, key)?;
        Some((at, self.members.get(at)?))
    }

    /// A member was given everything up to `seen`. It is live if that is everything there is.
    pub(super) fn advance(&mut self, at: usize, seen: u64) {
        let behind = (seen < self.shown).then_some(seen);
        self.set_behind(at, behind);
    }

    /// A member was not given the events after an offset: it has seen the channel only up to there.
    pub(super) fn fall_behind(&mut self, at: usize, after: u64) {
        let behind = self.members.get(at).and_then(|member| member.behind).map_or(after, |behind| behind.min(after));
        self.set_behind(at, Some(behind));
    }

    /// Whether its position must be kept when it is removed from memory: the log may have events of it.
    pub(super) fn has_past(&self) -> bool {
        self.is_stored
    }

    /// Where it goes on once it is needed again.
    pub(super) fn past(&self) -> Position {
        let first = if self.epoch_is_stored { self.first } else { self.offset + 1 };
        Position { epoch: self.epoch, first, offset: self.offset }
    }

    /// Whether it has no members, nothing waits, and nothing was published for a while.
    pub(super) fn is_idle(&self, now_ms: i64) -> bool {
        self.is_deserted() && !self.is_needed() && now_ms - self.last_ms > IDLE_MS
    }

    pub(super) fn forget_tail(&mut self) {
        self.tail = VecDeque::new();
        self.tail_bytes = 0;
    }
}

/// A channel at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelReport {
    /// Its name.
    pub name: ChannelName,
    /// The pattern that allows it.
    pub pattern: Arc<str>,
    /// Subscriptions.
    pub subscribers: usize,
    /// The last offset.
    pub offset: u64,
    /// Its stream.
    pub epoch: Epoch,
    /// Events in memory.
    pub tail: usize,
    /// Bytes of them.
    pub tail_bytes: usize,
    /// Whether events are kept.
    pub history: bool,
    /// What slow clients did not get as it was published.
    pub conflations: Conflations,
}

impl ChannelReport {
    pub(super) fn of(channel: &Channel) -> Self {
        let plan = channel.plan.load();
        let state = channel.state.lock();
        Self {
            name: channel.name.clone(),
            pattern: plan.pattern.as_str().into(),
            subscribers: state.members.len(),
            offset: state.shown,
            epoch: state.epoch,
            tail: state.tail.len(),
            tail_bytes: state.tail_bytes,
            history: plan.history.is_some(),
            conflations: channel.conflations.get(),
        }
    }
}
