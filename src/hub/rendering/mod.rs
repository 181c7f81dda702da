//! Events that are written for their receivers after the channels are released, because a script may run for that: under the
//! lock a slot is reserved in each receiver's outbox, and a [`Rendering`] fills the slots one after the other, at the pace of
//! the one who runs it.
//!
//! A slow script delays only those who wait for it. What takes longer than a moment is done by a thread that does nothing else, a
//! little for each protocol in turn, while publishers and all other receivers go on.

mod outcome;
mod queue;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use outcome::Outcome;
use outcome::counted_at;
pub use queue::{Renderings, Work};

use crate::hub::batching::Together;
use crate::hub::delivery_policy::{DeliveryPolicy, Overflow};
use crate::hub::fanout::{Recipient, Render, is_for};
use crate::hub::members::{Member, Piece};
use crate::hub::outbox::{Packet, Slot};
use crate::hub::{Channel, Connection, Flush, Hub, Published, Sent, SubscriptionId};
use crate::model::Event;
use crate::model::id::ProtocolId;
use crate::model::view::ConnView;
use crate::protocol::Frame;

/// How long one protocol is rendered for before the next gets its turn.
pub const TURN: Duration = Duration::from_millis(1);

#[derive(Debug)]
enum Who {
    Member(Piece, usize),
    Direct(Arc<Connection>),
}

impl Who {
    fn member(&self) -> Option<&Member> {
        match self {
            Who::Member(piece, at) => piece.get(*at),
            Who::Direct(_) => None,
        }
    }

    fn connection(&self) -> Option<&Arc<Connection>> {
        match self {
            Who::Member(..) => self.member().map(|member| &member.connection),
            Who::Direct(connection) => Some(connection),
        }
    }

    fn recipient<'r>(&'r self, view: &'r Arc<ConnView>) -> Option<Recipient<'r>> {
        let subscription = self.member().map(|member| &member.view);
        Some(Recipient { connection: self.connection()?, subscription, view: Some(view) })
    }

    fn subscription(&self) -> Option<SubscriptionId> {
        self.member().map(Member::subscription)
    }
}

/// A receiver with a reserved slot.
#[derive(Debug)]
struct Receiver {
    who: Who,
    /// The connection as it was when the events were published.
    view: Arc<ConnView>,
    slot: Slot,
    /// What was written for it so far: indexes of the events, and the messages.
    places: Vec<usize>,
    written: Written,
}

#[derive(Debug)]
enum Written {
    Packets(Vec<Packet>),
    /// They are joined into one once all are there.
    Frames(Vec<Frame>),
}

/// Consecutive events and the receivers of one protocol that get them, each with a reserved slot. If it is dropped before its
/// end, it leaves those slots empty.
#[derive(Debug)]
pub struct Rendering {
    protocol: ProtocolId,
    /// `None`: they were sent directly.
    channel: Option<Arc<Channel>>,
    events: Vec<(Arc<Event>, Option<u64>)>,
    policies: Vec<Option<Arc<DeliveryPolicy>>>,
    outcomes: Vec<Arc<Outcome>>,
    /// What became of all messages: see [`Outcome::counted`].
    counted: [usize; 3],
    receivers: Vec<Receiver>,
    /// Set if several events are written as one.
    together: Option<Together>,
    /// The next event and receiver.
    event: usize,
    next: usize,
    /// Receivers whose slots are filled, all before the others.
    filled: usize,
}

impl Rendering {
    /// For nobody yet. `together`: several events are written as one.
    pub fn new(protocol: ProtocolId, channel: Option<Arc<Channel>>, events: Vec<(Arc<Event>, Option<u64>)>, together: bool) -> Self {
        let together = together.then(Together::default);
        let (policies, outcomes, receivers) = (Vec::new(), Vec::new(), Vec::new());
        Self { protocol, channel, events, policies, outcomes, counted: [0; 3], receivers, together, event: 0, next: 0, filled: 0 }
    }

    /// Reserves a slot for a member. Its channel must be locked. An error is what became of the events.
    pub(super) fn add_member(&mut self, piece: &Piece, at: usize, policy: Option<&Arc<DeliveryPolicy>>) -> Result<(), Sent> {
        self.add(Who::Member(piece.clone(), at), policy)
    }

    /// Reserves a slot for a single connection.
    pub fn add_connection(&mut self, connection: &Arc<Connection>, policy: Option<&Arc<DeliveryPolicy>>) -> Result<(), Sent> {
        self.add(Who::Direct(connection.clone()), policy)
    }

    fn add(&mut self, who: Who, policy: Option<&Arc<DeliveryPolicy>>) -> Result<(), Sent> {
        let connection = who.connection().ok_or(Sent::Gone)?;
        let slot = connection.outbox.reserve(who.subscription(), policy, || connection.slow())?;
        let written = if self.together.is_some() { Written::Frames(Vec::new()) } else { Written::Packets(Vec::new()) };
        let view = connection.view();
        self.receivers.push(Receiver { who, view, slot, places: Vec::new(), written });
        Ok(())
    }

    /// Whether there is nobody to render for.
    pub fn is_empty(&self) -> bool {
        self.receivers.is_empty()
    }

    /// What became of its messages so far, like [`Outcome::counted`]. What was batched counts as queued from the beginning.
    pub fn counted(&self) -> [usize; 3] {
        let [queued, full, gone] = self.counted;
        [if self.together.is_some() { 0 } else { queued }, full, gone]
    }

    /// The protocol of the receivers.
    pub fn protocol(&self) -> ProtocolId {
        self.protocol
    }

    /// Receivers whose slots are not filled yet.
    pub fn left(&self) -> usize {
        self.receivers.len() - self.filled
    }

    /// Distinguishes its channel from others. What is sent directly counts as one.
    pub fn channel_order(&self) -> u64 {
        self.channel.as_ref().map_or(u64::MAX, |channel| channel.order)
    }

    /// Bytes of its events.
    pub fn bytes(&self) -> usize {
        self.events.iter().map(|(event, _)| event.cost_bytes()).sum()
    }

    /// Closes the receivers whose slots are not filled: scripts cannot keep up with what is published to them.
    pub fn give_up(&mut self) {
        for receiver in self.receivers.iter().skip(self.filled) {
            if let Some(connection) = receiver.who.connection() {
                self.outcomes.iter().for_each(|outcome| outcome.note(Sent::Full));
                self.counted[1] += self.events.len();
                connection.fill(receiver.slot, Vec::new(), receiver.who.subscription(), None);
                connection.outbox.close(connection.slow());
            }
        }
        self.filled = self.receivers.len();
    }

    /// Steps that are left, at most.
    pub fn steps(&self) -> usize {
        (self.events.len() - self.event) * self.receivers.len() - self.next.min(self.receivers.len())
    }

    /// The channel, for its counters.
    pub fn channel(&self) -> Option<&Arc<Channel>> {
        self.channel.as_ref()
    }

    /// Renders one event for one receiver. `false`: there is nothing more to do. No channel may be locked.
    pub fn step(&mut self, render: &mut dyn Render, flush: &Flush) -> bool {
        let Some((event, except)) = self.events.get(self.event) else { return false };
        if self.next == 0 {
            render.begin();
            self.policies.push(render.policy(event, self.channel.as_deref()));
        }
        let Some(receiver) = self.receivers.get_mut(self.next) else {
            (self.event, self.next) = (self.event + 1, 0);
            return self.event < self.events.len();
        };
        receiver.write(self.event, event, *except, &self.policies[self.event], render);
        self.next += 1;
        if self.event + 1 == self.events.len() {
            self.fill(self.next - 1, render, flush);
            self.filled = self.next;
        }
        true
    }

    fn fill(&mut self, at: usize, render: &mut dyn Render, flush: &Flush) {
        let receiver = &mut self.receivers[at];
        let Some(connection) = receiver.who.connection().cloned() else { return };
        let packets = match &mut receiver.written {
            Written::Packets(packets) => std::mem::take(packets),
            Written::Frames(frames) => {
                let frames = std::mem::take(frames);
                let joined = self.together.as_mut().and_then(|together| together.joined(self.protocol, &frames, &connection, render));
                let matter = self.policies.iter().any(Option::is_some) && connection.outbox.is_blocked();
                match joined.filter(|_| !matter) {
                    Some(joined) => vec![joined],
                    None => {
                        let of =
                            |(place, frame): (&usize, &Frame)| Packet { policy: self.policies[*place].clone(), ..connection.packet(frame) };
                        receiver.places.iter().zip(&frames).map(of).collect()
                    }
                }
            }
        };
        let sent = fill_place(&connection, receiver, packets, render);
        for (place, sent) in receiver.places.iter().zip(sent) {
            if let Some(at) = counted_at(sent) {
                self.counted[at] += 1;
            }
            if let Some(outcome) = self.outcomes.get(*place) {
                outcome.note(sent);
            }
        }
        flush.one(&connection);
    }
}

impl Receiver {
    fn write(
        &mut self,
        place: usize,
        event: &Arc<Event>,
        except: Option<u64>,
        policy: &Option<Arc<DeliveryPolicy>>,
        render: &mut dyn Render,
    ) {
        let Some(to) = self.who.recipient(&self.view) else { return };
        if self.who.member().is_some_and(|member| !is_for(member, event, except)) {
            return;
        }
        match &mut self.written {
            Written::Packets(packets) => {
                let Some(packet) = render.render(event, to) else { return };
                packets.push(Packet { policy: policy.clone(), ..packet });
            }
            Written::Frames(frames) => {
                let Some(frame) = render.frame(event, to) else { return };
                frames.push(frame);
            }
        }
        self.places.push(place);
    }
}

/// Fills a slot, with one message joined with the one before it if that still waits and its channel says so.
fn fill_place(connection: &Connection, receiver: &Receiver, packets: Vec<Packet>, render: &mut dyn Render) -> Vec<Sent> {
    let (outbox, slot, subscription) = (&connection.outbox, receiver.slot, receiver.who.subscription());
    let fill = |packets, instead_of: Option<&Arc<DeliveryPolicy>>| connection.fill(slot, packets, subscription, instead_of);
    if let ([packet], Some(number)) = (&packets[..], subscription)
        && let Some(policy) = packet.policy.as_ref().filter(|policy| matches!(policy.overflow, Overflow::Joined(..)))
        && let Some(last) = outbox.last_before(slot, number)
        && let Some(joined) = last.joined_with(policy)
        && let Overflow::Joined(event, _) = &joined.overflow
        && let Some(to) = receiver.who.recipient(&receiver.view)
    {
        render.begin();
        let written = render.render(event, to);
        render.begin();
        let joined = written.map(|packet| Packet { policy: Some(Arc::new(joined)), ..packet });
        if let Some(sent) = joined.and_then(|joined| fill(vec![joined], Some(&last))) {
            return sent;
        }
    }
    fill(packets, None).unwrap_or_default()
}

impl Drop for Rendering {
    fn drop(&mut self) {
        for receiver in self.receivers.iter().skip(self.filled) {
            if let Some(connection) = receiver.who.connection() {
                connection.fill(receiver.slot, Vec::new(), receiver.who.subscription(), None);
            }
        }
        self.outcomes.iter().for_each(|outcome| outcome.end());
    }
}

/// Leaves renderings of these events to the renderer. The events report later what became of them.
pub fn leave(renderings: Vec<Rendering>, published: &mut [Published], render: &mut dyn Render) {
    let renderings: Vec<_> = renderings.into_iter().filter(|rendering| !rendering.receivers.is_empty()).collect();
    if renderings.is_empty() {
        return;
    }
    let outcomes: Vec<Arc<Outcome>> = published.iter().map(|_| Arc::default()).collect();
    for (published, outcome) in published.iter_mut().zip(&outcomes) {
        outcome.begin(renderings.len());
        published.later = Some(outcome.clone());
    }
    for mut rendering in renderings {
        rendering.outcomes.clone_from(&outcomes);
        render.later(rendering);
    }
}

/// Continues a rendering for about as long as this, at least one step. `false`: it is done.
pub fn take_turn(rendering: &mut Rendering, render: &mut dyn Render, hub: &Hub, turn: Duration) -> bool {
    let begun = Instant::now();
    let (mut steps, mut more, mut took) = (0, true, Duration::ZERO);
    while more && took < turn {
        more = rendering.step(render, &hub.flush);
        steps += 1;
        took = begun.elapsed();
    }
    hub.renderings.learn(rendering.protocol(), steps, took);
    more
}
