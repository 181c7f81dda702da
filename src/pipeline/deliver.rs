//! How an event is written for those who get it: once per distinct output, not once per receiver.

use std::sync::Arc;

use crate::config::plan::{BatchPlan, DeliverForm, DeliverRow, FnRef, OnSlow};
use crate::hub::delivery_policy::{Counting, DeliveryPolicy, Overflow};
use crate::hub::{Channel, Connection, Packet, Recipient, Render, Rendering};
use crate::model::id::{Id as _, ProtocolId};
use crate::model::view::{ConnView, SubView};
use crate::model::{ChannelName, Codec, Event, Json, Now, Origin, Priority, json};
use crate::pipeline::NO_MESSAGE;
use crate::pipeline::scope::Bindings;
use crate::pipeline::snapshot::{NO_WORLD, Snapshot};
use crate::protocol::Frame;
use crate::protocol::wire::WireFormat;
use crate::runtime::{Protocol, Runtime};
use crate::script::{Arguments, Call, ScriptError, Sender};
use crate::telemetry::metrics::DropReason;

/// Writes the events of one batch. What is the same for all receivers of a protocol is written once and kept here.
pub struct Renderer<'a> {
    pub(super) snapshot: &'a Arc<Snapshot>,
    pub(super) now: Now,
    /// For the current event.
    pub(super) shared: Vec<Shared>,
    pub(super) failure: Option<Failure>,
    /// What scripts write, once no channel is locked.
    pub(super) deferred: Vec<Rendering>,
    /// The calls that went over their budgets: which function, why, and who caused it.
    tripped: Vec<(FnRef, String, Cause)>,
}

/// Who a call over its budget counts against: of those whose data it sees, the one with more of them.
enum Cause {
    Publisher(Arc<Origin>),
    Receiver(Arc<ConnView>),
}

impl Cause {
    /// `sees_receiver`: what was called may depend on the receiver, too.
    fn of(receiver: &Receiver<'_>, sees_receiver: bool) -> Self {
        let event = &receiver.event.new;
        if sees_receiver {
            let (view, sub) = receiver.views();
            let meta = sub.meta.as_ref().map_or(0, |meta| meta.as_str().len());
            let metadata = event.metadata.as_ref().map_or(0, |metadata| metadata.as_str().len());
            if view.state.as_str().len() + meta > event.data.as_str().len() + metadata {
                return Self::Receiver(view);
            }
        }
        Self::Publisher(event.origin.clone())
    }

    fn sender(&self) -> Sender<'_> {
        match self {
            Self::Publisher(origin) => Sender::of_event(origin),
            Self::Receiver(view) => Sender::of_connection(view),
        }
    }
}

/// The protocol whose script failed first, the channel of the event, and why.
pub(super) type Failure = (Arc<str>, ChannelName, String);

/// The result of one `deliver` row for the current event.
pub(super) struct Shared {
    protocol: ProtocolId,
    row: usize,
    /// Whether it is for those who know their position. Always `false` if the row does not use it.
    positioned: bool,
    format: WireFormat,
    holds: Option<bool>,
    frame: Option<Option<Frame>>,
    packet: Option<Option<Packet>>,
}

impl<'a> Renderer<'a> {
    /// A renderer for one batch.
    pub fn new(snapshot: &'a Arc<Snapshot>, now: Now) -> Self {
        Self { snapshot, now, shared: Vec::new(), failure: None, deferred: Vec::new(), tripped: Vec::new() }
    }

    /// A protocol under this configuration. One that it does not have gets nothing: its connections are closing.
    fn protocol(&self, id: ProtocolId) -> Option<&'a Protocol> {
        self.snapshot.runtime.protocol(id)
    }

    fn shared(&mut self, connection: &Connection, row: usize, positioned: bool) -> &mut Shared {
        let (protocol, format) = (connection.protocol, connection.outbox.wire().format());
        let known = self.shared.iter().position(|s| (s.protocol, s.row, s.positioned, s.format) == (protocol, row, positioned, format));
        let at = known.unwrap_or_else(|| {
            self.shared.push(Shared { protocol, row, positioned, format, holds: None, frame: None, packet: None });
            self.shared.len() - 1
        });
        &mut self.shared[at]
    }

    fn holds(&mut self, index: usize, row: &DeliverRow, receiver: &Receiver<'_>) -> bool {
        let Some(function) = &row.when else { return true };
        if !row.when_per_subscription
            && let Some(known) = self.shared(receiver.connection, index, false).holds
        {
            return known;
        }
        let (view, sub) = receiver.views();
        let call = Call {
            now: self.now,
            conn: Some(&view),
            arguments: Arguments::Deliver { event: receiver.event, sub: &sub },
            world: &NO_WORLD,
            trial: false,
        };
        let holds = self.snapshot.runtime.scripts.test(function, call).unwrap_or_else(|error| {
            self.failed(receiver, error);
            false
        });
        if !row.when_per_subscription {
            self.shared(receiver.connection, index, false).holds = Some(holds);
        }
        holds
    }

    fn packet(&mut self, index: usize, row: &DeliverRow, receiver: &Receiver<'_>) -> Option<Packet> {
        let positioned = row.positioned && receiver.subscription.is_some_and(|sub| sub.positioned);
        if !row.per_subscription
            && let Some(known) = &self.shared(receiver.connection, index, positioned).packet
        {
            return known.clone();
        }
        let packet = self.frame_by(index, row, receiver).map(|frame| receiver.connection.packet(&frame));
        if !row.per_subscription {
            self.shared(receiver.connection, index, positioned).packet = Some(packet.clone());
        }
        packet
    }

    fn frame_by(&mut self, index: usize, row: &DeliverRow, receiver: &Receiver<'_>) -> Option<Frame> {
        let form = row.form.as_ref()?;
        let positioned = row.positioned && receiver.subscription.is_some_and(|sub| sub.positioned);
        if row.per_subscription {
            return self.write(form, receiver);
        }
        if let Some(known) = &self.shared(receiver.connection, index, positioned).frame {
            return known.clone();
        }
        let frame = self.write(form, receiver);
        self.shared(receiver.connection, index, positioned).frame = Some(frame.clone());
        frame
    }

    fn write(&mut self, form: &DeliverForm, receiver: &Receiver<'_>) -> Option<Frame> {
        match form {
            DeliverForm::Template(template) => {
                let view = receiver.view();
                let bindings = Bindings {
                    event: Some(receiver.event),
                    subscription: receiver.subscription,
                    view: Some(&view),
                    ..Bindings::at(self.now)
                };
                template.render(&bindings).map(|text| self.codec(receiver.connection).encode(text))
            }
            DeliverForm::Call(function) => {
                let (view, sub) = receiver.views();
                let arguments = Arguments::Deliver { event: receiver.event, sub: &sub };
                let call = Call { now: self.now, conn: Some(&view), arguments, world: &NO_WORLD, trial: false };
                match self.snapshot.runtime.scripts.call(function, call) {
                    Ok(returned) => returned.value.map(|value| self.codec(receiver.connection).encode(value.shared())),
                    Err(error) => {
                        self.failed(receiver, error);
                        None
                    }
                }
            }
        }
    }

    fn codec(&self, connection: &Connection) -> Codec {
        self.protocol(connection.protocol).map(|protocol| protocol.plan.codec).unwrap_or_default()
    }

    fn failed(&mut self, receiver: &Receiver<'_>, error: ScriptError) {
        self.snapshot.counters.channels.drop_one(DropReason::ByScript);
        let why = match &error {
            ScriptError::Thrown { message, at, .. } => format!("{at}: throws \"{message}\""),
            other => other.to_string(),
        };
        if let ScriptError::Tripped { function, why } = error {
            let cause = Cause::of(receiver, self.snapshot.runtime.scripts.sees_receiver(&function));
            // Charged immediately, so that one event spends no more than its sender has, however many receive it.
            self.snapshot.runtime.scripts.charge(&cause.sender(), self.now);
            self.tripped.push((function, why, cause));
        }
        let channel = || receiver.event.channel.clone().unwrap_or_else(ChannelName::direct);
        self.failure.get_or_insert_with(|| (receiver.connection.protocol.name(), channel(), why));
    }

    /// Counts exceeded budgets against the functions, and logs the first script that failed, once.
    pub(super) fn report(&mut self) {
        for (function, why, cause) in self.tripped.drain(..) {
            self.snapshot.runtime.scripts.tripped(&function, &why, &cause.sender(), self.now);
        }
        if let Some((protocol, channel, why)) = self.failure.take() {
            tracing::warn!(%protocol, channel = channel.as_str(), why, "events were not delivered: a script failed");
        }
    }
}

struct Receiver<'a> {
    event: &'a Event,
    connection: &'a Connection,
    subscription: Option<&'a SubView>,
    view: Option<&'a Arc<ConnView>>,
}

impl<'a> Receiver<'a> {
    fn new(event: &'a Event, to: Recipient<'a>) -> Self {
        Self { event, connection: to.connection, subscription: to.subscription, view: to.view }
    }

    fn view(&self) -> Arc<ConnView> {
        self.view.cloned().unwrap_or_else(|| self.connection.view())
    }

    fn views(&self) -> (Arc<ConnView>, SubView) {
        let direct = || SubView { channel: ChannelName::direct(), key: "".into(), meta: None, positioned: false };
        (self.view(), self.subscription.cloned().unwrap_or_else(direct))
    }
}

impl Render for Renderer<'_> {
    fn begin(&mut self) {
        self.shared.clear();
    }

    fn render(&mut self, event: &Event, to: Recipient<'_>) -> Option<Packet> {
        let receiver = Receiver::new(event, to);
        let connection = to.connection;
        let rows = &self.protocol(connection.protocol)?.plan.deliver;
        if rows.is_empty() {
            let codec = self.codec(connection);
            let plain = self.shared(connection, usize::MAX, false);
            return plain.packet.get_or_insert_with(|| Some(connection.packet(&plain_frame(event, codec)))).clone();
        }
        let (index, row) = rows.iter().enumerate().find(|(index, row)| self.holds(*index, row, &receiver))?;
        self.packet(index, row, &receiver)
    }

    fn frame(&mut self, event: &Event, to: Recipient<'_>) -> Option<Frame> {
        let receiver = Receiver::new(event, to);
        let connection = to.connection;
        let rows = &self.protocol(connection.protocol)?.plan.deliver;
        if rows.is_empty() {
            let codec = self.codec(connection);
            let plain = self.shared(connection, usize::MAX, false);
            return plain.frame.get_or_insert_with(|| Some(plain_frame(event, codec))).clone();
        }
        let (index, row) = rows.iter().enumerate().find(|(index, row)| self.holds(*index, row, &receiver))?;
        self.frame_by(index, row, &receiver)
    }

    fn batch(&self, protocol: ProtocolId) -> Option<&BatchPlan> {
        self.protocol(protocol)?.plan.batch.as_ref()
    }

    fn joined(&self, protocol: ProtocolId, messages: &[Frame]) -> Option<Frame> {
        let batch = self.batch(protocol)?;
        let mut list = String::with_capacity(messages.iter().map(|message| message.len() + 1).sum::<usize>() + 1);
        for message in messages {
            list.push(if list.is_empty() { '[' } else { ',' });
            list.push_str(message.text()?);
        }
        list.push(']');
        let codec = self.protocol(protocol)?.plan.codec;
        batch.form.render(&Bindings { messages: Some(&list), ..Bindings::at(self.now) }).map(|text| codec.encode(text))
    }

    fn policy(&self, event: &Arc<Event>, channel: Option<&Channel>) -> Option<Arc<DeliveryPolicy>> {
        let priority = Priority::of(event.new.metadata.as_ref());
        let plan = channel.map(Channel::plan);
        let on_slow = plan.as_ref().map_or(&OnSlow::Disconnect, |plan| &plan.on_slow);
        let overflow = match on_slow {
            OnSlow::Disconnect => Overflow::Kept,
            OnSlow::DropOldest => Overflow::DropOldest,
            OnSlow::DropNewest => Overflow::DropNewest,
            OnSlow::LatestBy(key) => {
                let bindings = Bindings { event: Some(event), ..Bindings::at(self.now) };
                key.render(&bindings).map_or(Overflow::Kept, |key| Overflow::Latest(key.into()))
            }
            OnSlow::Concat(path) => Overflow::Joined(event.clone(), path.clone()),
        };
        if priority == Priority::Medium && matches!(overflow, Overflow::Kept) {
            return None;
        }
        let counting = channel.zip(plan.as_deref()).map(|(channel, plan)| Counting {
            channel: channel.conflations.clone(),
            pattern: self.snapshot.counters.pattern(plan),
            all: self.snapshot.counters.channels.clone(),
        });
        let kept_at = plan.as_ref().filter(|plan| plan.history.is_some()).map(|_| event.offset);
        Some(Arc::new(DeliveryPolicy { priority, overflow, kept_at, counting }))
    }

    fn defers(&self, protocol: ProtocolId) -> bool {
        self.protocol(protocol).is_some_and(|protocol| protocol.delivers_by_script)
    }

    fn later(&mut self, rendering: Rendering) {
        self.deferred.push(rendering);
    }

    fn group(&self, connection: &Connection, subscription: &SubView) -> Option<u64> {
        let plan = &self.protocol(connection.protocol)?.plan;
        let shared = plan.deliver.iter().all(|row| !row.per_subscription && !row.when_per_subscription);
        shared.then(|| {
            let (protocol, format) = (connection.protocol.index() as u64, connection.outbox.wire().format() as u64);
            protocol << 8 | format << 1 | u64::from(subscription.positioned)
        })
    }
}

/// Whether events for a connection are batched, according to `batch` of its protocol. If its script fails, which `failed` then
/// says, events are written one by one.
pub fn batches(runtime: &Runtime, protocol: ProtocolId, view: &Arc<ConnView>, now: Now, failed: &mut Option<Box<ScriptError>>) -> bool {
    let Some(batch) = runtime.protocol(protocol).and_then(|protocol| protocol.plan.batch.as_ref()) else { return false };
    let Some(function) = &batch.when else { return true };
    let call = Call { now, conn: Some(view), arguments: NO_MESSAGE, world: &NO_WORLD, trial: false };
    runtime.scripts.test(function, call).unwrap_or_else(|error| {
        *failed = Some(Box::new(error));
        false
    })
}

/// How an event is written if the protocol has no `deliver`: `{"type","channel","data"}`.
fn plain_frame(event: &Event, codec: Codec) -> Frame {
    let mut out = String::from("{\"type\":");
    json::push_string(&mut out, &event.new.kind);
    if let Some(channel) = &event.channel {
        out.push_str(",\"channel\":");
        json::push_string(&mut out, channel.as_str());
    }
    out.push_str(",\"data\":");
    out.push_str(Json::as_str(&event.new.data));
    out.push('}');
    codec.encode(out)
}
