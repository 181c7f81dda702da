//! Channels and connections: who is subscribed to what, the order of events, and what is kept in memory.
//!
//! A transaction takes the locks of all channels it touches together, always in the same order, and then does its work. So
//! nothing published elsewhere comes between a join and its acknowledgement, and two transactions never wait for each other in a
//! circle. Outboxes are locked inside channels, for one push; nothing is locked inside an outbox. What was pushed is written
//! afterwards by [`Flush`], with no lock held but the outbox's own.
//!
//! Knows no HTTP, no transport, no script. How an event is written for a member is the caller's business.

mod batching;
pub mod channel;
pub mod connection;
pub mod directory;
mod fanout;
pub mod feed;
mod flush;
mod locked_channels;
mod members;
pub mod outbox;
pub mod rendering;
pub mod socket;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::config::plan::ChannelPlan;
use crate::model::chance;
use crate::model::event::Epoch;
use crate::model::event::Event;
use crate::model::id::ProtocolId;
use crate::model::name::ClientId;
use crate::model::view::{ConnView, SubView};
use crate::model::{ChannelName, Close, Code, Fault, Json, Now, Position};
use crate::store::StoredChannel;

pub use batching::Due;
pub use channel::{Channel, ChannelReport, State};
pub use channel::{ChannelVersion, History, MemberChange, MembersSeen, MembersVersion};
pub use connection::Connection;
pub use directory::{Admission, Bounds};
pub use fanout::{Recipient, Render};
pub use feed::Feed;
pub use flush::Flush;
pub use locked_channels::{CatchUp, Joined, LockedChannels, Published, Recover};
pub use members::Member;
use members::Piece;
pub use outbox::delivery_policy::{self, DeliveryPolicy, SubscriptionId};
pub use outbox::{Lifecycle, Measure, Outbox, Packet, Progress, Sent, Transition};
pub use rendering::{Rendering, Renderings};
pub use socket::Socket;

use directory::Directory;

const SHARDS: usize = 16;

/// The most live channels. Channels made from a pattern and without a past are removed with their last member.
const CHANNELS_MAX: usize = 100_000;

/// The most bytes that all tails may hold together. Beyond that the least recently used are forgotten.
const TAIL_BYTES_MAX: usize = 256 << 20;

/// All live channels and connections.
#[derive(Debug)]
pub struct Hub {
    // Each shard protects which channels are in its map, not what is in them. Held for one look-up or change.
    channels: [RwLock<HashMap<ChannelName, Arc<Channel>>>; SHARDS],
    /// Chooses the shard, and nothing else: within it, names are hashed so that no client can make them collide.
    hasher: foldhash::fast::RandomState,
    channels_live: AtomicUsize,
    next_order: AtomicU64,
    // The positions of channels that have a past and are not live. An entry moves into its channel at the next use.
    positions: Mutex<HashMap<ChannelName, Position>>,
    // Protects who is connected. Taken alone or inside channels; only a view is taken inside it.
    directory: RwLock<Directory>,
    // Held while a transaction that depends on who is connected is compared and applied, so that they come one after the other.
    // Taken before channels.
    dependents: Mutex<()>,
    next_key: AtomicU64,
    next_subscription: AtomicU64,
    /// The followers of the whole log.
    pub feed: Arc<Feed>,
    /// The connections that have something to write.
    pub flush: Flush,
    /// What is still to be rendered, with no channel locked.
    pub renderings: Renderings,
    // Channels that showed events before they were committed and are not live, as many as have a past. Held for one look-up.
    early_gone: Mutex<HashSet<ChannelName>>,
    /// Channels with batches to be written.
    pub due: Due,
}

impl Hub {
    /// An empty hub. `positions`: the positions of channels with a history.
    pub fn new(positions: impl IntoIterator<Item = StoredChannel>) -> Self {
        Self {
            channels: std::array::from_fn(|_| RwLock::default()),
            hasher: foldhash::fast::RandomState::default(),
            channels_live: AtomicUsize::new(0),
            next_order: AtomicU64::new(0),
            positions: Mutex::new(positions.into_iter().map(position_of).collect()),
            directory: RwLock::default(),
            dependents: Mutex::default(),
            next_key: AtomicU64::new(1),
            next_subscription: AtomicU64::new(1),
            feed: Arc::default(),
            due: Due::default(),
            renderings: Renderings::default(),
            early_gone: Mutex::default(),
            flush: Flush::new(std::thread::available_parallelism().map_or(1, usize::from)),
        }
    }

    fn shard(&self, name: &str) -> &RwLock<HashMap<ChannelName, Arc<Channel>>> {
        &self.channels[self.hasher.hash_one(name) as usize % SHARDS]
    }

    /// A live channel.
    pub fn channel(&self, name: &str) -> Option<Arc<Channel>> {
        self.shard(name).read().get(name).cloned()
    }

    /// `epoch`: the name of its stream, if it has none yet.
    fn channel_or_new(&self, name: &ChannelName, plan: &Arc<ChannelPlan>, epoch: Option<Epoch>) -> Result<Arc<Channel>, Fault> {
        if let Some(found) = self.channel(name.as_str()) {
            return Ok(found);
        }
        let mut shard = self.shard(name.as_str()).write();
        if let Some(found) = shard.get(name) {
            return Ok(found.clone());
        }
        if self.channels_live.fetch_add(1, Relaxed) >= CHANNELS_MAX {
            self.channels_live.fetch_sub(1, Relaxed);
            return Err(Fault::with(Code::LimitReached, "too many channels"));
        }
        let position = self.positions.lock().remove(name.as_str());
        let position = position.unwrap_or_else(|| Position { epoch: epoch.unwrap_or_else(chance::epoch), first: 1, offset: 0 });
        let channel = Arc::new(Channel {
            order: self.next_order.fetch_add(1, Relaxed),
            name: name.clone(),
            plan: ArcSwap::new(plan.clone()),
            early: AtomicBool::new(channel::is_early(plan)),
            conflations: Arc::default(),
            state: Arc::new(Mutex::new(State::new(position))),
        });
        shard.insert(name.clone(), channel.clone());
        Ok(channel)
    }

    /// Takes the locks of these channels, and makes those that are not live. They are released when the result is dropped. Each
    /// comes with its configuration and, if its stream must have a certain name, that epoch.
    pub fn hold(&self, mut wanted: Vec<(ChannelName, Arc<ChannelPlan>, Option<Epoch>)>) -> Result<LockedChannels<'_>, Fault> {
        wanted.sort_by(|a, b| a.0.cmp(&b.0).then(b.2.cmp(&a.2)));
        wanted.dedup_by(|a, b| a.0 == b.0);
        'again: loop {
            let mut channels =
                wanted.iter().map(|(name, plan, epoch)| self.channel_or_new(name, plan, *epoch)).collect::<Result<Vec<_>, _>>()?;
            channels.sort_by_key(|channel| channel.order);
            let mut locked = LockedChannels { hub: self, channels: Vec::with_capacity(channels.len()) };
            for channel in channels {
                let state = channel.state.lock_arc();
                let dead = state.dead;
                locked.channels.push((channel, state));
                if dead {
                    continue 'again;
                }
            }
            return Ok(locked);
        }
    }

    /// A key for a new connection.
    pub fn next_key(&self) -> u64 {
        self.next_key.fetch_add(1, Relaxed)
    }

    /// Lets a connection in, or returns why not.
    pub fn open(&self, connection: &Arc<Connection>, bounds: Bounds) -> Admission {
        self.directory.write().open(connection, bounds)
    }

    /// Ends all subscriptions of a connection and forgets it.
    pub fn close(&self, connection: &Arc<Connection>) {
        connection.outbox.end(Close::Lost);
        // Taken out first: a channel's lock comes before that of a connection's list. From now on the connection joins nothing.
        let subscriptions = connection.subscriptions.lock().take().unwrap_or_default();
        for (name, key) in subscriptions {
            if let Some(channel) = self.channel(name.as_str()) {
                let state = channel.state.lock_arc();
                let mut locked = LockedChannels { hub: self, channels: vec![(channel, state)] };
                locked.channels[0].1.leave(connection.key, &key);
            }
        }
        self.directory.write().close(connection);
    }

    /// Changes a connection's identity and state.
    pub fn set_view(&self, connection: &Arc<Connection>, view: Arc<ConnView>) {
        let before = connection.view();
        if before.user == view.user && before.session == view.session {
            connection.set_view(view);
            return;
        }
        let mut directory = self.directory.write();
        if directory.holds(connection) {
            directory.forget(connection, &before);
            directory.remember(connection, &view);
            directory.touch(connection.protocol);
        }
        connection.set_view(view);
    }

    /// The connection with this public id.
    pub fn connection(&self, id: &str) -> Option<Arc<Connection>> {
        self.directory.read().by_id(id)
    }

    /// All open connections of a user.
    pub fn of_user(&self, user: &str) -> Vec<Arc<Connection>> {
        self.directory.read().of_user(user)
    }

    /// All open connections of a session.
    pub fn of_session(&self, session: &str) -> Vec<Arc<Connection>> {
        self.directory.read().of_session(session)
    }

    /// All open connections, oldest first, or those of one protocol.
    pub fn connections(&self, protocol: Option<ProtocolId>) -> Vec<Arc<Connection>> {
        self.directory.read().all(protocol)
    }

    /// The ids of all open connections, to be logged at the end of a stop.
    pub fn ids(&self) -> Vec<ClientId> {
        self.connections(None).iter().map(|c| c.id.clone()).collect()
    }

    /// Presence of a channel, at most `most` members.
    pub fn members(&self, name: &str, most: usize) -> Vec<Json> {
        let Some(channel) = self.channel(name) else { return Vec::new() };
        // Copied under the lock, serialized after it: a reader must not hold up publishers.
        let members: Vec<Member> = channel.state.lock().members.iter().take(most).cloned().collect();
        members.iter().map(Member::to_json).collect()
    }

    /// The members of a channel as a decision sees them, at most `most`. Those who will join once something is committed are
    /// included, because the decision is applied after them.
    pub fn members_seen(&self, name: &str, most: usize, now: Now) -> MembersSeen {
        let Some(channel) = self.channel(name) else {
            return MembersSeen { at: MembersVersion::NOBODY, members: Vec::new(), uncommitted: Vec::new() };
        };
        let state = channel.state.lock();
        let (at, (members, uncommitted)) = (state.members_version(&channel), state.members_to_be(most, now.wall_ms));
        drop(state);
        MembersSeen { at, members: members.iter().map(Member::to_json).collect(), uncommitted }
    }

    /// The position of a channel that is live or has a past.
    pub fn position(&self, name: &str) -> Option<Position> {
        match self.live_or_past(name, |position| *position) {
            Ok(channel) => Some(channel.state.lock().position(&channel)),
            Err(position) => position,
        }
    }

    /// Uses a live channel, or the position of one that is not. A channel's own lock is taken after its shard's.
    fn live_or_past<T>(&self, name: &str, past: impl FnOnce(&mut Position) -> T) -> Result<Arc<Channel>, Option<T>> {
        // While its shard is locked, a channel that is becoming live, or ceasing to be, is in one of the two maps.
        let shard = self.shard(name).read();
        match shard.get(name) {
            Some(channel) => Ok(channel.clone()),
            None => Err(self.positions.lock().get_mut(name).map(past)),
        }
    }

    /// The newest events of a channel that are in memory, oldest first. Those that wait for their commit are included, because
    /// the decision is applied after them. `None`: it has no stream yet.
    pub fn history(&self, name: &str, most: usize) -> Option<History> {
        match self.live_or_past(name, |position| *position) {
            Ok(channel) => Some(channel.state.lock().history(most)),
            Err(past) => past.map(|at| History { at: ChannelVersion { epoch: at.epoch, offset: at.offset }, ..History::default() }),
        }
    }

    /// While this is held, no other transaction that depends on who is connected is compared or applied. Taken before any
    /// channel.
    pub fn alone_with_connections(&self) -> MutexGuard<'_, ()> {
        self.dependents.lock()
    }

    /// Grows whenever a connection of a protocol comes, goes, or changes its identity.
    pub fn connections_version(&self, protocol: ProtocolId) -> u64 {
        self.directory.read().version(protocol)
    }

    /// The events of a channel after an offset, oldest first, at most `most`. `None` if memory does not reach back that far.
    pub fn tail_after(&self, name: &str, seen: u64, most: usize) -> Option<Vec<Arc<Event>>> {
        let channel = self.channel(name)?;
        let state = channel.state.lock();
        state.tail_after(seen).map(|events| events.take(most).cloned().collect())
    }

    /// The log has removed the events of a channel before `first`.
    pub fn trimmed(&self, name: &ChannelName, first: u64) {
        while let Ok(channel) = self.live_or_past(name.as_str(), |position| position.first = position.first.max(first)) {
            let mut state = channel.state.lock();
            if !state.dead {
                // A new epoch may have begun since the log said so.
                state.first = state.first.max(first);
                return;
            }
        }
    }

    /// These channels will show events before they are committed.
    pub fn note_early(&self, names: &[ChannelName]) {
        names.iter().filter_map(|name| self.channel(name.as_str())).for_each(|channel| channel.early.store(true, Relaxed));
    }

    /// Whether a channel shows events before they are committed, or did so under an earlier configuration.
    pub fn was_early(&self, name: &str) -> bool {
        self.channel(name).is_some_and(|channel| channel.early.load(Relaxed)) || self.early_gone.lock().contains(name)
    }

    /// Applies a new configuration: `plan` returns that of a channel. Ends the subscriptions that it no longer allows and
    /// returns them, so that their clients get an error. A channel that it does not have is removed, unless something of it
    /// waits for a commit.
    pub fn replan(&self, plan: impl Fn(&str) -> Option<Arc<ChannelPlan>>) -> Vec<(Arc<Connection>, ChannelName)> {
        let mut ended = Vec::new();
        for channel in self.all_channels() {
            let plan = plan(channel.name.as_str());
            let mut state = channel.state.lock();
            if state.dead {
                continue;
            }
            if let Some(plan) = &plan {
                state.replan(&channel, plan);
            }
            for (connection, key) in state.not_allowed(plan.as_deref()) {
                state.leave(connection.key, &key);
                let mut subscriptions = connection.subscriptions.lock();
                subscriptions.iter_mut().for_each(|all| all.retain(|(n, k)| (n, k) != (&channel.name, &key)));
                drop(subscriptions);
                ended.push((connection, channel.name.clone()));
            }
            if plan.is_none() && !state.is_needed() {
                self.take_out(&channel, &mut state);
            }
        }
        ended
    }

    /// How many subscriptions [`Hub::replan`] would end.
    pub fn would_end(&self, plan: impl Fn(&str) -> Option<Arc<ChannelPlan>>) -> Vec<(ChannelName, usize)> {
        let count = |channel: &Arc<Channel>| {
            let ended = channel.state.lock().not_allowed(plan(channel.name.as_str()).as_deref()).len();
            (ended > 0).then(|| (channel.name.clone(), ended))
        };
        self.all_channels().iter().filter_map(count).collect()
    }

    /// The names of all channels that are live or have a past.
    pub fn known_channels(&self) -> Vec<ChannelName> {
        let past: Vec<ChannelName> = self.positions.lock().keys().cloned().collect();
        self.all_channels().iter().map(|channel| channel.name.clone()).chain(past).collect()
    }

    fn all_channels(&self) -> Vec<Arc<Channel>> {
        self.channels.iter().flat_map(|shard| shard.read().values().cloned().collect::<Vec<_>>()).collect()
    }

    /// Removes a channel from memory. If it has a past, its position is kept. Its lock is held and comes before its shard's.
    fn take_out(&self, channel: &Channel, state: &mut State) {
        state.dead = true;
        let mut shard = self.shard(channel.name.as_str()).write();
        shard.remove(&channel.name);
        self.channels_live.fetch_sub(1, Relaxed);
        if state.has_past() {
            if channel.early.load(Relaxed) {
                self.early_gone.lock().insert(channel.name.clone());
            }
            self.positions.lock().insert(channel.name.clone(), state.past());
        }
    }

    /// Removes channels from memory that have no members and nothing to wait for; the positions of those with a past are kept.
    /// Only if there are many channels: one that is used every now and then should stay live. Called once a second.
    pub fn retire(&self, now: Now) {
        if self.channels_live.load(Relaxed) < CHANNELS_MAX / 2 {
            return;
        }
        for shard in &self.channels {
            let idle = |channel: &Channel| channel.state.try_lock().is_some_and(|state| state.is_idle(now.wall_ms));
            let found: Vec<Arc<Channel>> = shard.read().values().filter(|channel| idle(channel)).cloned().collect();
            for channel in found {
                let mut state = channel.state.lock();
                if !state.dead && state.is_idle(now.wall_ms) {
                    self.take_out(&channel, &mut state);
                }
            }
        }
    }

    /// All live channels as they are now, by name.
    pub fn channels(&self) -> Vec<ChannelReport> {
        let mut reports: Vec<ChannelReport> = self.all_channels().iter().map(|channel| ChannelReport::of(channel)).collect();
        reports.sort_by(|a, b| a.name.cmp(&b.name));
        reports
    }

    /// One live channel as it is now.
    pub fn channel_report(&self, name: &str) -> Option<ChannelReport> {
        self.channel(name).map(|channel| ChannelReport::of(&channel))
    }

    /// How many channels are live.
    pub fn channel_count(&self) -> usize {
        self.channels_live.load(Relaxed)
    }

    /// How many connections are open, in total or of one protocol.
    pub fn connection_count(&self, protocol: Option<ProtocolId>) -> usize {
        self.directory.read().count(protocol)
    }

    /// Like [`LockedChannels::catch_up`], for a single subscription.
    pub fn catch_up(&self, name: &ChannelName, connection: &Connection, key: &Arc<str>, render: &mut dyn Render) -> CatchUp {
        let Some(channel) = self.channel(name.as_str()) else { return CatchUp::Done };
        let state = channel.state.lock_arc();
        let mut locked = LockedChannels { hub: self, channels: vec![(channel, state)] };
        locked.catch_up(name, connection, key, render)
    }

    /// Gives a subscription that has seen everything up to `after` the events that were read from the log, up to `seen`. Returns
    /// `false` if it no longer exists or is at another position; then nothing was given.
    pub fn replay(&self, name: &ChannelName, connection: &Connection, key: &Arc<str>, packets: Vec<Packet>, after: u64, seen: u64) -> bool {
        let Some(channel) = self.channel(name.as_str()) else { return false };
        let mut state = channel.state.lock();
        let (at, subscription) = match state.member(connection.key, key) {
            Some((at, member)) if member.behind == Some(after) => (at, member.subscription()),
            _ => return false,
        };
        for packet in packets {
            connection.deliver(packet, Some(subscription));
        }
        state.advance(at, seen);
        true
    }

    /// Queues for the members of a channel what was shown to them. See [`LockedChannels::settle`].
    pub fn settle(&self, channel: &Arc<Channel>, render: &mut dyn Render) -> Vec<Published> {
        self.fan_out(channel, &mut channel.state.lock(), render)
    }

    /// Subscriptions whose messages found no room continue from the log.
    pub fn fall_behind(&self, connection: &Connection) {
        let mut fallen = connection.outbox.fallen();
        if fallen.is_empty() {
            return;
        }
        for (name, key) in connection.subscriptions() {
            let Some(channel) = self.channel(name.as_str()) else { continue };
            let mut state = channel.state.lock();
            let Some((at, subscription)) = state.member(connection.key, &key).map(|(at, member)| (at, member.subscription().number)) else {
                continue;
            };
            // Under the channel's lock, so that it gets nothing in between.
            if let Some(after) = connection.outbox.take_fallen(subscription) {
                state.fall_behind(at, after);
                connection.push_behind(name, key);
                fallen.retain(|number| *number != subscription);
            }
        }
        // The subscriptions that are left have ended.
        for number in fallen {
            connection.outbox.take_fallen(number);
        }
    }

    /// The view of a subscription, to write what it missed.
    pub fn subscription(&self, name: &ChannelName, connection: &Connection, key: &Arc<str>) -> Option<SubView> {
        let channel = self.channel(name.as_str())?;
        let state = channel.state.lock();
        state.member(connection.key, key).map(|(_, member)| member.view.clone())
    }

    /// Keeps all tails together within their bound by forgetting those that were published to least recently. Forgotten events
    /// are still in the store. Called once a second.
    pub fn trim_tails(&self) {
        let mut tails: Vec<(i64, usize, Arc<Channel>)> = Vec::new();
        for shard in &self.channels {
            for channel in shard.read().values() {
                if let Some(state) = channel.state.try_lock()
                    && state.tail_bytes > 0
                {
                    tails.push((state.last_ms, state.tail_bytes, channel.clone()));
                }
            }
        }
        let mut total: usize = tails.iter().map(|(_, bytes, _)| bytes).sum();
        if total <= TAIL_BYTES_MAX {
            return;
        }
        tails.sort_by_key(|(last_ms, _, _)| *last_ms);
        for (_, bytes, channel) in tails {
            if total <= TAIL_BYTES_MAX / 10 * 9 {
                break;
            }
            channel.state.lock().forget_tail();
            total -= bytes;
        }
    }
}

fn position_of(at: StoredChannel) -> (ChannelName, Position) {
    (at.name, Position { epoch: at.epoch, first: at.first, offset: at.top })
}
