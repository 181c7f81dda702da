//! Brings events that were shown to the outboxes of a channel's members: written once for each group of members who get the
//! same, and consecutive events as one piece.

use std::sync::Arc;

use super::delivery_policy::{DeliveryPolicy, Overflow};
use super::locked_channels::Published;
use super::members::{self, Member};
use super::outbox::{Packet, PacketRun};
use super::rendering::{self, Rendering};
use super::{Channel, Connection, Hub, Piece, Sent, State, batching};
use crate::config::plan::BatchPlan;
use crate::model::Event;
use crate::model::id::ProtocolId;
use crate::model::view::{ConnView, SubView};
use crate::protocol::Frame;
use crate::telemetry::metrics::ProtocolMetrics;

/// Who an event is written for.
#[derive(Clone, Copy, Debug)]
pub struct Recipient<'r> {
    /// Its connection.
    pub connection: &'r Connection,
    /// Its subscription. `None`: the event was sent directly.
    pub subscription: Option<&'r SubView>,
    /// The connection as it was when the event was published. `None`: as it is now.
    pub view: Option<&'r Arc<ConnView>>,
}

/// How an event is written for a connection.
pub trait Render {
    /// Begins the next event: what was kept of the previous one no longer counts.
    fn begin(&mut self);
    /// The message for this receiver. `None`: the event is not for it.
    fn render(&mut self, event: &Event, to: Recipient<'_>) -> Option<Packet>;
    /// The same, before it is prepared for the wire.
    fn frame(&mut self, event: &Event, to: Recipient<'_>) -> Option<Frame>;
    /// How messages of this protocol are batched. `None`: they are not.
    fn batch(&self, protocol: ProtocolId) -> Option<&BatchPlan>;
    /// Several messages of this protocol as one.
    fn joined(&self, protocol: ProtocolId, messages: &[Frame]) -> Option<Frame>;
    /// What may happen to an event for clients that do not read. `None`: it waits like any other. Without a channel the event
    /// was sent directly.
    fn policy(&self, event: &Arc<Event>, channel: Option<&Channel>) -> Option<Arc<DeliveryPolicy>>;
    /// Whether a script may run to write for a protocol's receivers: then it must not happen while a channel is locked.
    fn defers(&self, protocol: ProtocolId) -> bool;
    /// Takes a rendering to be done once no channel is locked any more.
    fn later(&mut self, rendering: Rendering);
    /// Receivers with the same number get the same for every event. `None`: what this one gets may be different.
    fn group(&self, connection: &Connection, subscription: &SubView) -> Option<u64>;
}

/// Members who get the same messages, and what became of them.
struct Group {
    number: u64,
    /// For each event.
    packets: Vec<Option<Packet>>,
    run: Option<Arc<PacketRun>>,
    metrics: Arc<ProtocolMetrics>,
    delivered: usize,
    gone: usize,
}

impl Group {
    fn new(number: u64, member: &Member, channel: &Channel, published: &[Published], render: &mut dyn Render) -> Self {
        let metrics = member.connection.metrics.clone();
        let mut write = |published: &Published| {
            render.begin();
            let packet = render.render(&published.event, member.recipient())?;
            Some(Packet { policy: render.policy(&published.event, Some(channel)), ..packet })
        };
        let packets: Vec<Option<Packet>> = published.iter().map(&mut write).collect();
        let all: Vec<Packet> = packets.iter().flatten().cloned().collect();
        let run = (!all.is_empty()).then(|| Arc::new(PacketRun::new(all)));
        Self { number, packets, run, metrics, delivered: 0, gone: 0 }
    }

    /// Queues all of it for a member. `false`: the messages must be queued one by one.
    fn enqueue(&mut self, member: &Member) -> bool {
        let Some(run) = &self.run else { return true };
        match member.connection.outbox.push_run(run, member.subscription()) {
            Some(Sent::Queued) => self.delivered += 1,
            Some(_) => self.gone += 1,
            None => return false,
        }
        true
    }

    fn count(self, published: &mut [Published]) {
        let Some(run) = &self.run else { return };
        self.metrics.messages_out((self.delivered * run.len()) as u64, (self.delivered * run.payload()) as u64);
        for (published, _) in published.iter_mut().zip(&self.packets).filter(|(_, packet)| packet.is_some()) {
            published.delivered += self.delivered;
            published.gone += self.gone;
        }
    }
}

/// What is rendered once the channel is released, for each protocol.
#[derive(Default)]
struct Deferred {
    renderings: Vec<Rendering>,
    /// The policy of the first event, once it is known.
    policy: Option<Option<Arc<DeliveryPolicy>>>,
}

impl Deferred {
    /// Reserves a slot for a member.
    fn add(
        &mut self,
        channel: &Arc<Channel>,
        piece: &Piece,
        at: usize,
        published: &mut [Published],
        except: &[Option<u64>],
        render: &mut dyn Render,
    ) {
        let member = &piece[at];
        let mut events = published.iter().zip(except).filter(|(published, except)| is_for(member, &published.event, **except));
        let Some((first, _)) = events.next() else { return };
        let policy = self.policy.get_or_insert_with(|| render.policy(&first.event, Some(channel))).clone();
        let protocol = member.connection.protocol;
        let known = self.renderings.iter().position(|rendering| rendering.protocol() == protocol);
        let nth = known.unwrap_or_else(|| {
            let events = published.iter().zip(except).map(|(published, except)| (published.event.clone(), *except)).collect();
            self.renderings.push(Rendering::new(protocol, Some(channel.clone()), events, false));
            self.renderings.len() - 1
        });
        if let Err(sent) = self.renderings[nth].add_member(piece, at, policy.as_ref()) {
            let missed = published.iter_mut().zip(except).filter(|(published, except)| is_for(member, &published.event, **except));
            missed.for_each(|(published, _)| published.note(sent));
        }
    }
}

impl Hub {
    /// Queues for the members what was shown since the last time, and returns what became of each event.
    pub(super) fn fan_out(&self, channel: &Arc<Channel>, state: &mut State, render: &mut dyn Render) -> Vec<Published> {
        let (mut published, except): (Vec<Published>, Vec<Option<u64>>) = std::mem::take(&mut state.burst).into_iter().unzip();
        let Some(first) = published.first().map(|first| first.event.offset) else { return published };
        let mut groups: Vec<Group> = Vec::new();
        let mut alone: Vec<&Member> = Vec::new();
        let mut batched = Vec::new();
        let mut deferred = Deferred::default();
        // Neighbours nearly always have the same protocol.
        let mut defers = (None, false);
        for (nth, piece) in state.members.pieces().iter().enumerate() {
            // Those who only wait for a script are flushed when it has written: others must not wait behind them.
            let mut has_packets = false;
            for (at, member) in members::ahead(piece).enumerate().filter(|(_, member)| member.behind.is_none()) {
                if member.batches {
                    batching::note(member, &mut batched, &mut published, &except);
                    continue;
                }
                let protocol = Some(member.connection.protocol);
                if defers.0 != protocol {
                    defers = (protocol, render.defers(member.connection.protocol));
                }
                if defers.1 {
                    deferred.add(channel, piece, at, &mut published, &except, render);
                    continue;
                }
                has_packets = true;
                let Some(number) = render.group(&member.connection, &member.view) else {
                    alone.push(member);
                    continue;
                };
                let at = groups.iter().position(|group| group.number == number).unwrap_or_else(|| {
                    groups.push(Group::new(number, member, channel, &published, render));
                    groups.len() - 1
                });
                let group = &mut groups[at];
                if member.live_after < first && !except.contains(&Some(member.connection.key)) && group.enqueue(member) {
                    continue;
                }
                for ((published, packet), except) in published.iter_mut().zip(&group.packets).zip(&except) {
                    if let Some(packet) = packet
                        && is_for(member, &published.event, *except)
                    {
                        published.note(enqueue(member, packet.clone(), render));
                    }
                }
            }
            if has_packets {
                self.flush.members(nth, piece);
            }
        }
        if !alone.is_empty() {
            for (published, except) in published.iter_mut().zip(&except) {
                let policy = render.policy(&published.event, Some(channel));
                render.begin();
                for member in &alone {
                    if is_for(member, &published.event, *except)
                        && let Some(packet) = render.render(&published.event, member.recipient())
                    {
                        published.note(enqueue(member, Packet { policy: policy.clone(), ..packet }, render));
                    }
                }
            }
        }
        groups.into_iter().for_each(|group| group.count(&mut published));
        rendering::leave(deferred.renderings, &mut published, render);
        for protocol in batched {
            let written = self.add_to_batches(channel, state, protocol, &published, &except, render);
            if let Some(last) = published.last_mut() {
                last.overflowed += written.overflowed;
                last.gone += written.gone;
            }
        }
        published
    }
}

/// Queues one message for a member, joined with the one before it if that still waits and its channel says so.
pub(super) fn enqueue(member: &Member, packet: Packet, render: &mut dyn Render) -> Sent {
    let (connection, subscription) = (&member.connection, member.subscription());
    let joins = |policy: &&Arc<DeliveryPolicy>| matches!(policy.overflow, Overflow::Joined(..));
    if let Some(policy) = packet.policy.as_ref().filter(joins)
        && let Some(last) = connection.outbox.last(subscription)
        && let Some(joined) = last.joined_with(policy)
        && let Overflow::Joined(event, _) = &joined.overflow
    {
        // Only the channel is locked here, so what waits may be written meanwhile.
        render.begin();
        let written = render.render(event, member.recipient());
        render.begin();
        let joined = written.map(|packet| Packet { policy: Some(Arc::new(joined)), ..packet });
        if let Some(sent) = joined.and_then(|joined| connection.deliver_joined(joined, subscription, &last)) {
            return sent;
        }
    }
    connection.deliver(packet, Some(subscription))
}

/// Whether a live member should see an event.
pub(super) fn is_for(member: &Member, event: &Event, except: Option<u64>) -> bool {
    event.offset > member.live_after && except != Some(member.connection.key)
}
