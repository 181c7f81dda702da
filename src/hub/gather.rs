//! Events that wait a little for others, so that protocols which want it write several as one message: gathered once for each
//! channel and protocol, written once for all who get the same. Only a channel's own lock is held for any of it.
//!
//! Each subscription knows whether it is one of them, so that a fan-out asks nobody; that changes under the channel's lock.
//! Nobody has a timer of its own: what is due when stands in one list, which one task looks at.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::fanout::{Render, give, is_for};
use super::held::Published;
use super::members::Member;
use super::outbox::Packet;
use super::{Channel, Connection, Hub, Sent, State};
use crate::model::{ChannelName, Close, Event};
use crate::protocol::Frame;

/// What waits on one channel for the members of one protocol.
#[derive(Debug)]
pub(super) struct Gathered {
    protocol: usize,
    /// With the key of a connection that is not to get it.
    events: Vec<(Arc<Event>, Option<u64>)>,
    bytes: usize,
    due: Instant,
}

/// Where something is due, the earliest first.
#[derive(Debug, Default)]
pub struct Due {
    // Protects the list. Held for a look or a change.
    list: Mutex<BTreeMap<(Instant, u64), (ChannelName, usize)>>,
    next: AtomicU64,
    earlier: Notify,
}

impl Due {
    fn add(&self, at: Instant, channel: ChannelName, protocol: usize) {
        let place = (at, self.next.fetch_add(1, Relaxed));
        let mut list = self.list.lock();
        list.insert(place, (channel, protocol));
        let is_first = list.first_key_value().is_some_and(|(first, _)| *first == place);
        drop(list);
        if is_first {
            self.earlier.notify_one();
        }
    }

    /// The next channel and protocol, once it is due.
    pub async fn next(&self) -> (ChannelName, usize) {
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

/// What became of what was gathered, in subscriptions.
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

/// A live member gets these later: its protocol is one to gather for.
pub(super) fn note(member: &Member, gathering: &mut Vec<usize>, published: &mut [Published], except: &[Option<u64>]) {
    if !gathering.contains(&member.connection.protocol) {
        gathering.push(member.connection.protocol);
    }
    for (published, except) in published.iter_mut().zip(except) {
        published.delivered += usize::from(is_for(member, &published.event, *except));
    }
}

impl Hub {
    /// Keeps what was shown for the members of a protocol, until it is due or enough.
    pub(super) fn gather(
        &self,
        channel: &Channel,
        state: &mut State,
        protocol: usize,
        published: &[Published],
        except: &[Option<u64>],
        render: &mut dyn Render,
    ) -> Written {
        let mut written = Written::default();
        let Some((every, events_max, bytes_max)) = render.batch(protocol).map(|batch| (batch.every, batch.events, batch.bytes)) else {
            return written;
        };
        for (published, except) in published.iter().zip(except) {
            let at = state.gathered.iter().position(|gathered| gathered.protocol == protocol).unwrap_or_else(|| {
                let due = Instant::now() + every;
                self.due.add(due, channel.name.clone(), protocol);
                state.gathered.push(Gathered { protocol, events: Vec::new(), bytes: 0, due });
                state.gathered.len() - 1
            });
            let gathered = &mut state.gathered[at];
            gathered.bytes += published.event.weight();
            gathered.events.push((published.event.clone(), *except));
            if gathered.events.len() >= events_max || gathered.bytes >= bytes_max {
                let gathered = state.gathered.swap_remove(at);
                let more = self.write(channel, state, &gathered, render);
                written = Written { overflowed: written.overflowed + more.overflowed, gone: written.gone + more.gone };
            }
        }
        written
    }

    /// Queues what is due on a channel for the members of a protocol.
    pub fn write_gathered(&self, name: &ChannelName, protocol: usize, render: &mut dyn Render) -> Written {
        let Some(channel) = self.channel(name.as_str()) else { return Written::default() };
        let mut state = channel.state.lock();
        let now = Instant::now();
        // What was enough before its time has gone already, and what came since is due later.
        let is_due = |gathered: &Gathered| gathered.protocol == protocol && gathered.due <= now;
        let Some(at) = state.gathered.iter().position(is_due) else { return Written::default() };
        let gathered = state.gathered.swap_remove(at);
        self.write(&channel, &state, &gathered, render)
    }

    fn write(&self, channel: &Channel, state: &State, gathered: &Gathered, render: &mut dyn Render) -> Written {
        let mut written = Written::default();
        for (nth, piece) in state.members.pieces().iter().enumerate() {
            if piece.iter().any(|member| gathered.is_for(member)) {
                self.flush.members(nth, piece);
            }
        }
        let members: Vec<&Member> = state.members.iter().filter(|member| gathered.is_for(member)).collect();
        give_all(channel, &members, gathered, render, &mut written);
        written
    }

    /// Events for a connection are gathered from now on, or are not any more, on all its channels. What was gathered until now
    /// comes before what comes alone, and what came alone does not come again. No channel may be held.
    pub fn switch_gathering(&self, connection: &Arc<Connection>, render: &mut dyn Render) {
        for (name, key) in connection.subscriptions() {
            if let Some(channel) = self.channel(name.as_str()) {
                channel.state.lock().switch_gathering(&channel, connection, &key, render);
            }
        }
    }

    /// Ends a connection after all that waits for it, what is gathered included. No channel may be held.
    pub fn end(&self, connection: &Arc<Connection>, close: Close, render: &mut dyn Render) {
        if render.batch(connection.protocol).is_some() {
            for (name, key) in connection.subscriptions() {
                if let Some(channel) = self.channel(name.as_str()) {
                    channel.state.lock().give_gathered(&channel, connection.key, &key, render);
                }
            }
        }
        connection.outbox.close(close);
    }
}

impl State {
    /// Queues what was gathered for one subscription.
    pub(super) fn give_gathered(&mut self, channel: &Channel, connection: u64, key: &Arc<str>, render: &mut dyn Render) {
        let Some((at, member)) = self.member(connection, key) else { return };
        let Some(gathered) = self.gathered.iter().find(|gathered| gathered.is_for(member)) else { return };
        give_all(channel, &[member], gathered, render, &mut Written::default());
        let last = gathered.events.last().map_or(0, |(event, _)| event.offset);
        if let Some(member) = self.members.get_mut(at) {
            member.live_after = member.live_after.max(last);
        }
    }

    fn switch_gathering(&mut self, channel: &Channel, connection: &Connection, key: &Arc<str>, render: &mut dyn Render) {
        self.give_gathered(channel, connection.key, key, render);
        let Some((at, _)) = self.member(connection.key, key) else { return };
        // What others still wait for it has: since just now, or since it came.
        let of_protocol = |gathered: &&Gathered| gathered.protocol == connection.protocol;
        let last = self.gathered.iter().find(of_protocol).and_then(|gathered| gathered.events.last());
        let last = last.map_or(0, |(event, _)| event.offset);
        if let Some(member) = self.members.get_mut(at) {
            member.gathers = connection.gathers();
            member.live_after = member.live_after.max(last);
        }
    }
}

impl Gathered {
    /// Whether a member gets it, as far as it is new to it.
    fn is_for(&self, member: &Member) -> bool {
        member.gathers && member.behind.is_none() && member.connection.protocol == self.protocol
    }
}

/// What some members are written, who get the same.
struct List<'m> {
    /// One of them.
    member: &'m Member,
    /// Which of the events.
    places: Vec<usize>,
    messages: Vec<Frame>,
    joined: Option<Packet>,
}

impl<'m> List<'m> {
    fn new(member: &'m Member) -> Self {
        Self { member, places: Vec::new(), messages: Vec::new(), joined: None }
    }

    /// Which messages these are, and in which form: lists of the same are joined once.
    fn same(&self) -> (bool, Vec<*const u8>) {
        let place = |message: &Frame| message.text().map_or(std::ptr::null(), str::as_ptr);
        (self.member.connection.compress.is_some(), self.messages.iter().map(place).collect())
    }
}

/// Queues for members what was gathered. An event that is alone is written as it is, and so is everything for those whose socket
/// takes nothing, where something is to become of events by themselves.
fn give_all(channel: &Channel, members: &[&Member], gathered: &Gathered, render: &mut dyn Render, written: &mut Written) {
    let Some((first, _)) = gathered.events.first() else { return };
    let excepted: Vec<u64> = gathered.events.iter().filter_map(|(_, except)| *except).collect();
    let (mut lists, mut of_group, mut list_of) = (Vec::new(), HashMap::new(), Vec::with_capacity(members.len()));
    for member in members {
        let mut add = || {
            lists.push(List::new(member));
            lists.len() - 1
        };
        let gets_all = member.live_after < first.offset && !excepted.contains(&member.connection.key);
        list_of.push(match render.group(&member.connection, &member.view) {
            Some(group) if gets_all => *of_group.entry(group).or_insert_with(add),
            _ => add(),
        });
    }
    // Event by event: the renderer keeps what is the same for several.
    for (place, (event, except)) in gathered.events.iter().enumerate() {
        render.begin();
        for list in lists.iter_mut().filter(|list| is_for(list.member, event, *except)) {
            if let Some(message) = render.frame(event, &list.member.connection, Some(&list.member.view)) {
                list.places.push(place);
                list.messages.push(message);
            }
        }
    }
    let mut known = HashMap::new();
    for list in lists.iter_mut().filter(|list| list.messages.len() > 1) {
        let join = || render.joined(gathered.protocol, &list.messages).map(|joined| list.member.connection.packet(&joined));
        list.joined = known.entry(list.same()).or_insert_with(join).clone();
    }
    let traits: Vec<_> = gathered.events.iter().map(|(event, _)| render.traits(event, Some(channel))).collect();
    let matter = traits.iter().any(Option::is_some);
    for (member, list) in members.iter().zip(list_of) {
        let List { places, messages, joined, .. } = &lists[list];
        if let Some(joined) = joined.as_ref().filter(|_| !matter || !member.connection.outbox.is_blocked()) {
            written.note(member.connection.deliver(joined.clone(), Some(member.stream())));
            continue;
        }
        for (place, message) in places.iter().zip(messages) {
            let packet = Packet { traits: traits[*place].clone(), ..member.connection.packet(message) };
            written.note(give(member, packet, render));
        }
    }
}
