//! Batches: events that wait a little for others, so that a protocol can write several as one message. They are collected per
//! channel and protocol, and written once for all members who get the same. Only the channel's own lock is held for any of it.
//!
//! Each subscription knows whether its events are batched, so a fan-out need not look elsewhere; this changes under the
//! channel's lock. Batches have no timers: everything that is due is in one list, which one task looks at.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::fanout::{Render, enqueue, is_for};
use super::locked_channels::Published;
use super::members::{Member, Members};
use super::outbox::Packet;
use super::rendering::Rendering;
use super::{Channel, Connection, Hub, Sent, State};
use crate::model::id::ProtocolId;
use crate::model::{ChannelName, Close, Event};
use crate::protocol::Frame;
use crate::protocol::wire::WireFormat;

/// What waits on one channel for the members of one protocol.
#[derive(Debug)]
pub(super) struct PendingBatch {
    protocol: ProtocolId,
    /// With the key of a connection that must not get it.
    events: Vec<(Arc<Event>, Option<u64>)>,
    bytes: usize,
    due: Instant,
}

/// Where batches are due, the earliest first.
#[derive(Debug, Default)]
pub struct Due {
    // Protects the list. Held for a look-up or a change.
    list: Mutex<BTreeMap<(Instant, u64), (ChannelName, ProtocolId)>>,
    next: AtomicU64,
    earlier: Notify,
}

impl Due {
    fn add(&self, at: Instant, channel: ChannelName, protocol: ProtocolId) {
        let place = (at, self.next.fetch_add(1, Relaxed));
        let mut list = self.list.lock();
        list.insert(place, (channel, protocol));
        let is_first = list.first_key_value().is_some_and(|(first, _)| *first == place);
        drop(list);
        if is_first {
            self.earlier.notify_one();
        }
    }

    /// Returns the next channel and protocol, once it is due.
    pub async fn next(&self) -> (ChannelName, ProtocolId) {
        loop {
            let first = self.list.lock().first_key_value().map(|((at, _), _)| *at);
            match first {
                None => self.earlier.notified().await,
                Some(at) if at <= Instant::now() => {
                    if let Some((_, due)) = self.list.lock().pop_first() {
                        return due;
                    }
                }
                Some(at) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = self.earlier.notified() => {}
                },
            }
        }
    }
}

/// What became of batched events, counted in subscriptions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Those whose outbox was full.
    pub overflowed: usize,
    /// Those whose connection was already ending.
    pub gone: usize,
}

impl Written {
    fn note(&mut self, sent: Sent) {
        match sent {
            Sent::Full => self.overflowed += 1,
            Sent::Gone => self.gone += 1,
            Sent::Queued | Sent::Dropped | Sent::Behind => {}
        }
    }
}

/// A live member that batches gets these events later: notes its protocol.
pub(super) fn note(member: &Member, batched: &mut Vec<ProtocolId>, published: &mut [Published], except: &[Option<u64>]) {
    if !batched.contains(&member.connection.protocol) {
        batched.push(member.connection.protocol);
    }
    for (published, except) in published.iter_mut().zip(except) {
        published.delivered += usize::from(is_for(member, &published.event, *except));
    }
}

impl Hub {
    /// Keeps the events for the members of a protocol, until the batch is due or full.
    pub(super) fn add_to_batches(
        &self,
        channel: &Arc<Channel>,
        state: &mut State,
        protocol: ProtocolId,
        published: &[Published],
        except: &[Option<u64>],
        render: &mut dyn Render,
    ) -> Written {
        let mut written = Written::default();
        // A reload may have taken `batch` away while these members still expect it: then nothing waits.
        let (every, events_max, bytes_max) =
            render.batch(protocol).map_or((Duration::ZERO, 1, 0), |batch| (batch.every, batch.events, batch.bytes));
        for (published, except) in published.iter().zip(except) {
            let at = state.pending_batches.iter().position(|pending| pending.protocol == protocol).unwrap_or_else(|| {
                let due = Instant::now() + every;
                self.due.add(due, channel.name.clone(), protocol);
                state.pending_batches.push(PendingBatch { protocol, events: Vec::new(), bytes: 0, due });
                state.pending_batches.len() - 1
            });
            let pending = &mut state.pending_batches[at];
            pending.bytes += published.event.cost_bytes();
            pending.events.push((published.event.clone(), *except));
            if pending.events.len() >= events_max || pending.bytes >= bytes_max {
                let pending = state.pending_batches.swap_remove(at);
                let more = self.write(channel, state, &pending, render);
                written = Written { overflowed: written.overflowed + more.overflowed, gone: written.gone + more.gone };
            }
        }
        written
    }

    /// Queues the batch that is due on a channel for the members of a protocol.
    pub fn write_batch(&self, name: &ChannelName, protocol: ProtocolId, render: &mut dyn Render) -> Written {
        let Some(channel) = self.channel(name.as_str()) else { return Written::default() };
        let mut state = channel.state.lock();
        let now = Instant::now();
        // A batch that was full before it was due has been written already, and the next one is due later.
        let is_due = |pending: &PendingBatch| pending.protocol == protocol && pending.due <= now;
        let Some(at) = state.pending_batches.iter().position(is_due) else { return Written::default() };
        let pending = state.pending_batches.swap_remove(at);
        self.write(&channel, &state, &pending, render)
    }

    fn write(&self, channel: &Arc<Channel>, state: &State, pending: &PendingBatch, render: &mut dyn Render) -> Written {
        let mut written = Written::default();
        for (nth, piece) in state.members.pieces().iter().enumerate() {
            if piece.iter().any(|member| pending.is_for(member)) {
                self.flush.members(nth, piece);
            }
        }
        if render.defers(pending.protocol) {
            defer(channel, &state.members, |member| pending.is_for(member), pending, render, &mut written);
        } else {
            let members: Vec<&Member> = state.members.iter().filter(|member| pending.is_for(member)).collect();
            enqueue_all(channel, &members, pending, render, &mut written);
        }
        written
    }

    /// Events for a connection start or stop being batched on all its channels. Events that were batched until now come before
    /// those that are sent one by one, and no event comes twice. No channel may be locked.
    pub fn switch_batching(&self, connection: &Arc<Connection>, render: &mut dyn Render) {
        for (name, key) in connection.subscriptions() {
            if let Some(channel) = self.channel(name.as_str()) {
                channel.state.lock().switch_batching(&channel, connection, &key, render);
            }
        }
    }

    /// Ends a connection after everything that waits for it, including what is batched. No channel may be locked.
    pub fn end(&self, connection: &Arc<Connection>, close: Close, render: &mut dyn Render) {
        if connection.batches() {
            for (name, key) in connection.subscriptions() {
                if let Some(channel) = self.channel(name.as_str()) {
                    channel.state.lock().enqueue_batched(&channel, connection.key, &key, render);
                }
            }
        }
        connection.outbox.close(close);
    }
}

impl State {
    /// Queues what was batched for one subscription.
    pub(super) fn enqueue_batched(&mut self, channel: &Arc<Channel>, connection: u64, key: &Arc<str>, render: &mut dyn Render) {
        let Some((at, member)) = self.member(connection, key) else { return };
        let Some(pending) = self.pending_batches.iter().find(|pending| pending.is_for(member)) else { return };
        if render.defers(pending.protocol) {
            let is_it = |other: &Member| other.subscription() == member.subscription();
            defer(channel, &self.members, is_it, pending, render, &mut Written::default());
        } else {
            enqueue_all(channel, &[member], pending, render, &mut Written::default());
        }
        let last = pending.events.last().map_or(0, |(event, _)| event.offset);
        if let Some(member) = self.members.get_mut(at) {
            member.live_after = member.live_after.max(last);
        }
    }

    fn switch_batching(&mut self, channel: &Arc<Channel>, connection: &Connection, key: &Arc<str>, render: &mut dyn Render) {
        self.enqueue_batched(channel, connection.key, key, render);
        let Some((at, _)) = self.member(connection.key, key) else { return };
        // It already has what still waits for others: it got it just now, or one by one as it came.
        let of_protocol = |pending: &&PendingBatch| pending.protocol == connection.protocol;
        let last = self.pending_batches.iter().find(of_protocol).and_then(|pending| pending.events.last());
        let last = last.map_or(0, |(event, _)| event.offset);
        if let Some(member) = self.members.get_mut(at) {
            member.batches = connection.batches();
            member.live_after = member.live_after.max(last);
        }
    }
}

impl PendingBatch {
    /// Whether a member gets this batch. Events that are not new to it are left out later.
    fn is_for(&self, member: &Member) -> bool {
        member.batches && member.behind.is_none() && member.connection.protocol == self.protocol
    }
}

/// What members who get the same are written.
struct Receivers<'m> {
    /// One of these members.
    member: &'m Member,
    /// Indexes of the events they get.
    places: Vec<usize>,
    messages: Vec<Frame>,
    joined: Option<Packet>,
}

impl<'m> Receivers<'m> {
    fn new(member: &'m Member) -> Self {
        Self { member, places: Vec::new(), messages: Vec::new(), joined: None }
    }
}

/// Lists of messages that were joined into one, each once for all who get the same.
#[derive(Debug, Default)]
pub(super) struct Together(HashMap<SameMessages, (Vec<Frame>, Option<Packet>)>);

/// The format, and the addresses of their texts.
type SameMessages = (WireFormat, Vec<usize>);

impl Together {
    /// These messages as one, as it is written to this client. `None` if there are fewer than two.
    pub(super) fn joined(&mut self, protocol: ProtocolId, messages: &[Frame], to: &Connection, render: &dyn Render) -> Option<Packet> {
        if messages.len() < 2 {
            return None;
        }
        // Identifies the messages by the addresses of their texts. The messages are kept, so that no address is used again.
        let place = |message: &Frame| message.text().map_or(0, |text| text.as_ptr().addr());
        let same = (to.outbox.wire().format(), messages.iter().map(place).collect());
        let join = || (messages.to_vec(), render.joined(protocol, messages).map(|joined| to.packet(&joined)));
        self.0.entry(same).or_insert_with(join).1.clone()
    }
}

/// Reserves slots for batched events, which are rendered once the channel is released.
fn defer(
    channel: &Arc<Channel>,
    members: &Members,
    is_for: impl Fn(&Member) -> bool,
    pending: &PendingBatch,
    render: &mut dyn Render,
    written: &mut Written,
) {
    let Some((first, _)) = pending.events.first() else { return };
    let policy = render.policy(first, Some(channel));
    let mut rendering = Rendering::new(pending.protocol, Some(channel.clone()), pending.events.clone(), true);
    for piece in members.pieces() {
        for (at, _) in piece.iter().enumerate().filter(|(_, member)| is_for(member)) {
            if let Err(sent) = rendering.add_member(piece, at, policy.as_ref()) {
                written.note(sent);
            }
        }
    }
    if !rendering.is_empty() {
        render.later(rendering);
    }
}

/// Queues batched events for members. A single event is written as it is. If events have a delivery policy and the member's
/// socket accepts nothing, events are queued one by one.
fn enqueue_all(channel: &Channel, members: &[&Member], pending: &PendingBatch, render: &mut dyn Render, written: &mut Written) {
    let Some((first, _)) = pending.events.first() else { return };
    let excepted: Vec<u64> = pending.events.iter().filter_map(|(_, except)| *except).collect();
    let (mut lists, mut of_group, mut list_of) = (Vec::new(), HashMap::new(), Vec::with_capacity(members.len()));
    for member in members {
        let mut add = || {
            lists.push(Receivers::new(member));
            lists.len() - 1
        };
        let gets_all = member.live_after < first.offset && !excepted.contains(&member.connection.key);
        list_of.push(match render.group(&member.connection, &member.view) {
            Some(group) if gets_all => *of_group.entry(group).or_insert_with(add),
            _ => add(),
        });
    }
    // Event by event, so that the renderer can keep what is the same for several.
    for (place, (event, except)) in pending.events.iter().enumerate() {
        render.begin();
        for list in lists.iter_mut().filter(|list| is_for(list.member, event, *except)) {
            if let Some(message) = render.frame(event, list.member.recipient()) {
                list.places.push(place);
                list.messages.push(message);
            }
        }
    }
    let mut together = Together::default();
    for list in &mut lists {
        list.joined = together.joined(pending.protocol, &list.messages, &list.member.connection, render);
    }
    let policy: Vec<_> = pending.events.iter().map(|(event, _)| render.policy(event, Some(channel))).collect();
    let matter = policy.iter().any(Option::is_some);
    for (member, list) in members.iter().zip(list_of) {
        let Receivers { places, messages, joined, .. } = &lists[list];
        if let Some(joined) = joined.as_ref().filter(|_| !matter || !member.connection.outbox.is_blocked()) {
            written.note(member.connection.deliver(joined.clone(), Some(member.subscription())));
            continue;
        }
        for (place, message) in places.iter().zip(messages) {
            let packet = Packet { policy: policy[*place].clone(), ..member.connection.packet(message) };
            written.note(enqueue(member, packet, render));
        }
    }
}
