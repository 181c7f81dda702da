//! Channels that are locked together: what a transaction does to them. The holder of a channel's lock decides the order of its
//! events.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::RawMutex;
use parking_lot::lock_api::ArcMutexGuard;

use super::fanout::Render;
use super::rendering::Outcome;
use super::{Channel, ChannelVersion, Connection, Hub, MemberChange, MembersVersion, Packet, Sent, State};
use crate::model::event::{Epoch, Event, NewEvent};
use crate::model::view::SubView;
use crate::model::{ChannelName, Now};
use crate::store::Ticket;

/// The most events that a subscription gets in one go while its channel is locked.
const CATCH_UP_EVENTS_MAX: usize = 256;

/// Some channels, locked. See [`Hub::hold`].
pub struct LockedChannels<'h> {
    pub(super) hub: &'h Hub,
    pub(super) channels: Vec<(Arc<Channel>, ArcMutexGuard<RawMutex, State>)>,
}

/// What became of an event.
#[derive(Clone, Debug)]
pub struct Published {
    /// With its offset.
    pub event: Arc<Event>,
    /// Subscriptions it was queued for.
    pub delivered: usize,
    /// Subscriptions whose outbox was full.
    pub overflowed: usize,
    /// Subscriptions whose connection was already ending.
    pub gone: usize,
    /// If a script writes it, the outcome is not known yet and will be here.
    pub later: Option<Arc<Outcome>>,
}

impl Published {
    /// For nobody yet.
    pub fn new(event: Arc<Event>) -> Self {
        Self { event, delivered: 0, overflowed: 0, gone: 0, later: None }
    }

    /// Resolves when all receivers are counted, including those for whom a script writes it.
    pub async fn counted(&mut self) {
        let Some(later) = &self.later else { return };
        later.done().await;
        let [delivered, overflowed, gone] = later.counted();
        self.delivered += delivered;
        self.overflowed += overflowed;
        self.gone += gone;
        self.later = None;
    }

    /// Counts one more receiver.
    pub fn note(&mut self, sent: Sent) {
        match sent {
            Sent::Queued => self.delivered += 1,
            Sent::Full => self.overflowed += 1,
            Sent::Gone => self.gone += 1,
            // Either counted where it was decided, or given later.
            Sent::Dropped | Sent::Behind => {}
        }
    }
}

impl LockedChannels<'_> {
    fn find(&mut self, name: &ChannelName) -> Option<&mut (Arc<Channel>, ArcMutexGuard<RawMutex, State>)> {
        self.channels.iter_mut().find(|(channel, _)| channel.name == *name)
    }

    /// Subscribes a connection, unless it has ended. The channel must be locked. With `recover` the subscription is behind and
    /// gets what it missed through [`LockedChannels::catch_up`].
    pub fn join(&mut self, connection: &Arc<Connection>, mut view: SubView, recover: Option<Recover>, now: Now) -> Joined {
        let subscription = self.hub.next_subscription.fetch_add(1, Relaxed);
        let Some((channel, state)) = self.find(&view.channel) else { return Joined::Gone };
        // One text for all members.
        view.channel = channel.name.clone();
        if view.key.is_empty() {
            view.key = Arc::default();
        }
        let (name, key) = (view.channel.clone(), view.key.clone());
        let mut subscriptions = connection.subscriptions.lock();
        let Some(subscriptions) = subscriptions.as_mut() else { return Joined::Gone };
        if recover.is_some_and(|recover| recover.epoch != state.epoch) {
            return Joined::Lost;
        }
        if state.join(connection, subscription, view, recover.map(|recover| recover.after), now.wall_ms) {
            // Most connections have one.
            subscriptions.reserve_exact(usize::from(subscriptions.is_empty()));
            subscriptions.push((name, key));
        }
        Joined::In
    }

    /// Ends a subscription. What was batched for it is queued first. The channel must be locked.
    pub fn leave(&mut self, connection: &Arc<Connection>, name: &ChannelName, key: &Arc<str>, render: &mut dyn Render) {
        if let Some((channel, state)) = self.find(name) {
            state.enqueue_batched(channel, connection.key, key, render);
            if !state.leave(connection.key, key) {
                return;
            }
            let mut subscriptions = connection.subscriptions.lock();
            subscriptions.iter_mut().for_each(|all| all.retain(|(n, k)| (n, k) != (name, key)));
        }
    }

    /// An event that has its offset waits for the commit of this ticket. `is_settled`: whether a ticket no longer waits. Its
    /// channel must be locked.
    pub fn uncommitted(&mut self, event: &Arc<Event>, ticket: Ticket, is_settled: impl Fn(Ticket) -> bool) {
        if let Some((_, state)) = event.channel.as_ref().and_then(|name| self.find(name)) {
            state.wait_for_commit(event, ticket, is_settled);
        }
    }

    /// Up to where events of a channel have their offsets. `None` if it is not locked.
    pub fn version(&mut self, name: &ChannelName) -> Option<ChannelVersion> {
        self.find(name).map(|(_, state)| state.version())
    }

    /// Distinguishes the states of a channel's members. The channel must be locked.
    pub fn members_version(&mut self, name: &ChannelName) -> MembersVersion {
        self.find(name).map_or(MembersVersion::NOBODY, |(channel, state)| state.members_version(channel))
    }

    /// Changes the members of a channel once this ticket is settled. The channel must be locked.
    pub fn change_later(&mut self, name: &ChannelName, change: MemberChange, ticket: Ticket) {
        if let Some((_, state)) = self.find(name) {
            state.change_later(change, ticket);
        }
    }

    /// The first waiting change of a channel's members is made now, or never. The channel must be locked.
    pub fn change_now(&mut self, name: &ChannelName) {
        if let Some((_, state)) = self.find(name) {
            state.change_now();
        }
    }

    /// Whether the events after a version of a channel can still be given. The channel must be locked.
    pub fn can_give_since(&mut self, name: &ChannelName, at: ChannelVersion) -> bool {
        self.find(name).is_some_and(|(channel, state)| {
            let now = state.position(channel);
            at.epoch == now.epoch && at.offset + 1 >= now.first
        })
    }

    /// Whether an event would overtake others that are not shown yet. `is_stored`: whether it goes to the log. The channel must be
    /// locked.
    pub fn is_behind(&mut self, name: &ChannelName, is_stored: bool) -> bool {
        self.find(name).is_some_and(|(_, state)| if is_stored { state.is_needed() } else { state.is_waiting() })
    }

    /// Assigns an offset to an event, which nobody sees before [`LockedChannels::show`]. `is_stored`: whether it goes to the log. The channel
    /// must be locked.
    pub fn assign_offset(&mut self, name: &ChannelName, new: NewEvent, is_stored: bool) -> Option<Event> {
        let (channel, state) = self.find(name)?;
        Some(state.assign_offset(channel, new, is_stored))
    }

    /// Promises an offset to an event that is not stored and that a transaction in the queue shows. The channel must be locked.
    pub fn promise_offset(&mut self, name: &ChannelName) {
        if let Some((_, state)) = self.find(name) {
            state.promise_offset();
        }
    }

    /// Gives an event the offset that was promised to it. `None`: it is never shown. The channel must be locked.
    pub fn promised_offset(&mut self, name: &ChannelName, new: Option<NewEvent>) -> Option<Event> {
        let (channel, state) = self.find(name)?;
        state.promised_offset(channel, new)
    }

    /// Queues an event for all members but `except`, in the order of offsets, after what waits for [`LockedChannels::settle`].
    /// Its channel must be locked.
    pub fn show(&mut self, event: Arc<Event>, except: Option<u64>, render: &mut dyn Render) -> Vec<Published> {
        self.show_later(event.clone(), except);
        event.channel.as_ref().map(|name| self.settle(name, render)).unwrap_or_default()
    }

    /// Like [`LockedChannels::show`], but only [`LockedChannels::settle`] queues it, together with others of its channel. The
    /// caller must settle before it does anything else that anyone could see, and before it returns to the runtime.
    pub fn show_later(&mut self, event: Arc<Event>, except: Option<u64>) {
        if let Some((channel, state)) = event.channel.as_ref().and_then(|name| self.find(name)) {
            state.show(channel, &event);
            state.burst.push((Published::new(event), except));
        }
    }

    /// Queues for the members what was shown to them. The channel must be locked.
    pub fn settle(&mut self, name: &ChannelName, render: &mut dyn Render) -> Vec<Published> {
        let hub = self.hub;
        self.find(name).map(|(channel, state)| hub.fan_out(channel, state, render)).unwrap_or_default()
    }

    /// A channel that is locked.
    pub fn channel(&mut self, name: &ChannelName) -> Option<Arc<Channel>> {
        self.find(name).map(|(channel, _)| channel.clone())
    }

    /// An event that has its offset will never be shown: the log refused it.
    pub fn skip(&mut self, event: &Event) {
        if let Some((_, state)) = event.channel.as_ref().and_then(|name| self.find(name)) {
            state.shown = event.offset;
            state.settle(event.offset);
        }
    }

    /// Gives a subscription that is behind what memory has for it, as far as its outbox has room. Its channel must be locked. If
    /// a script writes the events, they are returned instead.
    pub fn catch_up(&mut self, name: &ChannelName, connection: &Connection, key: &Arc<str>, render: &mut dyn Render) -> CatchUp {
        let Some((channel, state)) = self.find(name) else { return CatchUp::Done };
        let Some((at, member)) = state.member(connection.key, key) else { return CatchUp::Done };
        let Some(after) = member.behind else { return CatchUp::Done };
        let position = state.position(channel);
        if after + 1 < position.first {
            return CatchUp::Lost;
        }
        let Some(mut events) = state.tail_after(after) else {
            return CatchUp::Read { after, up_to: state.shown, epoch: state.epoch };
        };
        if render.defers(connection.protocol) {
            let events: Vec<Arc<Event>> = events.take(CATCH_UP_EVENTS_MAX).cloned().collect();
            let seen = if events.len() < CATCH_UP_EVENTS_MAX { state.shown } else { events.last().map_or(after, |last| last.offset) };
            return CatchUp::Render { events, after, seen };
        }
        let mut seen = after;
        let mut full = false;
        for (count, event) in events.by_ref().enumerate() {
            if count >= CATCH_UP_EVENTS_MAX || !connection.outbox.has_room() {
                full = true;
                break;
            }
            seen = event.offset;
            render.begin();
            if let Some(packet) = render.render(event, member.recipient()) {
                let packet = Packet { policy: render.policy(event, Some(channel)), ..packet };
                connection.deliver(packet, Some(member.subscription()));
            }
        }
        drop(events);
        let seen = if full { seen } else { state.shown };
        state.advance(at, seen);
        if full { CatchUp::Room } else { CatchUp::Done }
    }
}

/// What a subscription still needs to be live.
#[derive(Clone, Debug)]
pub enum CatchUp {
    /// Nothing: it is live, or it has ended.
    Done,
    /// Its outbox has no room, or others should have their turn.
    Room,
    /// The log must be read after `after`, but not beyond `up_to`: nobody has seen the events that follow.
    Read {
        /// What it has seen.
        after: u64,
        /// What others have seen.
        up_to: u64,
        /// The channel's stream.
        epoch: Epoch,
    },
    /// These must be rendered and given to it by [`Hub::replay`], which then notes that it has seen everything up to `seen`.
    Render {
        /// In order.
        events: Vec<Arc<Event>>,
        /// What it has seen.
        after: u64,
        /// What it has seen with them.
        seen: u64,
    },
    /// The events it needs are gone.
    Lost,
}

/// Where a subscription continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recover {
    /// It has seen everything up to here.
    pub after: u64,
    /// Of this stream.
    pub epoch: Epoch,
}

/// The result of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It has begun.
    In,
    /// Its stream no longer exists.
    Lost,
    /// The connection has ended.
    Gone,
}

impl Drop for LockedChannels<'_> {
    fn drop(&mut self) {
        for (channel, state) in &mut self.channels {
            // A channel that the file names stays, and so does one with a past. Others are removed with their last member:
            // otherwise clients could fill the memory with names.
            let plan = channel.plan.load();
            let passing = !state.has_past() && !plan.pattern.is_exact();
            if passing && state.is_deserted() && !state.is_needed() && !state.dead {
                state.dead = true;
                self.hub.shard(channel.name.as_str()).write().remove(&channel.name);
                self.hub.channels_live.fetch_sub(1, Relaxed);
            }
        }
    }
}
