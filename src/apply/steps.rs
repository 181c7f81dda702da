//! What a transaction does, step by step: what members see, what a connection is sent, how it changes. Each step is written
//! once, both for what happens now and for what happens after the commit.

use std::sync::Arc;

use super::{Applied, Apply, Batch};
use crate::hub::{CatchUp, Connection, Joined, LockedChannels, Packet, Published, Recipient, Render, Rendering, rendering};
use crate::model::event::NewEvent;
use crate::model::{ChannelName, Close, Event, Now};
use crate::pipeline::effect::{ConnectionEffect, Effect, EventEffect, Receivers};

/// Something about events.
#[derive(Debug)]
pub(super) enum EventStep {
    /// Members see an event that has its offset; all but one of them.
    Show(Arc<Event>, Option<u64>),
    /// An event that is not kept gets its offset and is seen. `promised`: it was queued, and its channel has promised it an offset.
    Publish { channel: ChannelName, event: NewEvent, except: Option<u64>, promised: bool },
    /// An event goes directly to connections.
    Direct { receivers: Receivers, event: NewEvent, except: Option<u64> },
}

/// Something that a connection does, or that happens to it.
#[derive(Debug)]
pub(super) enum Step {
    Event(EventStep),
    Connection(ConnectionEffect),
}

impl From<EventEffect> for EventStep {
    fn from(effect: EventEffect) -> Self {
        match effect {
            EventEffect::Publish { channel, event, except, .. } => Self::Publish { channel, event, except, promised: false },
            EventEffect::Direct { receivers, event, except } => Self::Direct { receivers, event, except },
        }
    }
}

impl EventStep {
    /// It goes into the queue: its channel must be able to show it in order.
    pub(super) fn promise_offset(&mut self, held: &mut LockedChannels<'_>) {
        if let Self::Publish { channel, promised, .. } = self {
            held.promise_offset(channel);
            *promised = true;
        }
    }

    /// The channel it needs.
    pub(super) fn channel(&self) -> Option<&ChannelName> {
        match self {
            Self::Show(event, _) => event.channel.as_ref(),
            Self::Publish { channel, .. } => Some(channel),
            Self::Direct { .. } => None,
        }
    }

    /// Bytes it counts towards its connection's bound.
    pub(super) fn cost_bytes(&self) -> usize {
        match self {
            Self::Show(event, _) => event.cost_bytes(),
            Self::Publish { event, .. } | Self::Direct { event, .. } => event.cost_bytes(),
        }
    }
}

impl Step {
    /// The channel it needs.
    pub(super) fn channel(&self) -> Option<&ChannelName> {
        match self {
            Self::Event(step) => step.channel(),
            Self::Connection(effect) => effect.channel().map(|(name, _)| name),
        }
    }
}

impl Apply<'_> {
    /// Runs the steps of an input without a connection, and collects what became of each event.
    pub(super) fn run_events(
        self,
        mut held: Option<&mut LockedChannels<'_>>,
        steps: impl IntoIterator<Item = EventStep>,
        batch: &mut Batch<'_>,
    ) -> Applied {
        let mut applied = Applied::default();
        for step in steps {
            self.event(held.as_deref_mut(), step, batch, Some(&mut applied));
        }
        applied
    }

    /// Runs the steps of a connection, which carry its replies themselves.
    pub(super) fn run(
        self,
        mut held: Option<&mut LockedChannels<'_>>,
        actor: &Arc<Connection>,
        steps: impl IntoIterator<Item = Step>,
        batch: &mut Batch<'_>,
        now: Now,
    ) {
        let mut recovering = Vec::new();
        for step in steps {
            match step {
                Step::Event(step) => self.event(held.as_deref_mut(), step, batch, None),
                Step::Connection(ConnectionEffect::Send(frame)) => {
                    // If the connection ends, what waits is still written, and nothing more.
                    if !batch.is_ending(actor) {
                        batch.send(held.as_deref_mut(), actor, &frame);
                    }
                }
                Step::Connection(effect) => {
                    batch.only(held.as_deref_mut(), None);
                    recovering.extend(self.change(actor, effect, held.as_deref_mut(), batch, now));
                }
            }
        }
        let Some(held) = held else { return };
        // Before the locks are released, so that nothing published elsewhere comes between a join and its answer.
        batch.enqueue_replies();
        if recovering.is_empty() {
            return;
        }
        // Missed events come after the answer that announces them, and before anything new.
        batch.only(Some(held), None);
        for (name, key) in recovering {
            match held.catch_up(&name, actor, &key, &mut batch.renderer) {
                CatchUp::Done => {}
                CatchUp::Room | CatchUp::Read { .. } | CatchUp::Render { .. } => actor.push_behind(name, key),
                CatchUp::Lost => batch.ends(actor, Close::PositionLost),
            }
        }
        batch.enqueued(actor);
    }

    fn event(self, held: Option<&mut LockedChannels<'_>>, step: EventStep, batch: &mut Batch<'_>, applied: Option<&mut Applied>) {
        match (step, held) {
            (EventStep::Show(event, except), Some(held)) => self.show(held, event, except, batch, applied),
            (EventStep::Publish { channel, event, except, promised }, Some(held)) => {
                let event = if promised { held.promised_offset(&channel, Some(event)) } else { held.assign_offset(&channel, event, false) };
                if let Some(event) = event.map(Arc::new) {
                    self.snapshot.hub.feed.passing(&event);
                    self.show(held, event, except, batch, applied);
                }
            }
            (EventStep::Direct { receivers, event, except }, held) => {
                batch.only(held, None);
                let published = self.direct(&receivers, event, except, batch);
                if let Some(applied) = applied {
                    applied.published.push(published);
                }
            }
            // Its channel is locked, as every step's is.
            (EventStep::Show(..) | EventStep::Publish { .. }, None) => debug_assert!(false, "a channel is not locked"),
        }
    }

    /// Changes the connection itself. Returns the subscription whose missed events must follow.
    fn change(
        self,
        actor: &Arc<Connection>,
        effect: ConnectionEffect,
        held: Option<&mut LockedChannels<'_>>,
        batch: &mut Batch<'_>,
        now: Now,
    ) -> Option<(ChannelName, Arc<str>)> {
        match (effect, held) {
            (ConnectionEffect::View { view, batches }, _) => {
                self.snapshot.hub.set_view(actor, view);
                if actor.set_batches(batches) {
                    batch.switches(actor);
                }
            }
            (ConnectionEffect::Leave { channel, key, .. }, Some(held)) => held.leave(actor, &channel, &key, &mut batch.renderer),
            (ConnectionEffect::Join { view, recover, .. }, Some(held)) => {
                let subscription = (view.channel.clone(), view.key.clone());
                match held.join(actor, view, recover, now) {
                    Joined::In if recover.is_some() => return Some(subscription),
                    Joined::In | Joined::Gone => {}
                    Joined::Lost => batch.ends(actor, Close::PositionLost),
                }
            }
            (ConnectionEffect::Close(close), _) => batch.ends(actor, close),
            (ConnectionEffect::Send(frame), held) => batch.send(held, actor, &frame),
            // Its channel is locked, as every step's is.
            (ConnectionEffect::Leave { .. } | ConnectionEffect::Join { .. }, None) => debug_assert!(false, "a channel is not locked"),
        }
        None
    }

    fn show(
        self,
        held: &mut LockedChannels<'_>,
        event: Arc<Event>,
        except: Option<u64>,
        batch: &mut Batch<'_>,
        applied: Option<&mut Applied>,
    ) {
        let Some(name) = event.channel.clone() else { return };
        match applied {
            None => {
                batch.only(Some(held), Some(&name));
                held.show_later(event, except);
                batch.shown(held, &name);
            }
            Some(applied) => {
                batch.only(Some(held), None);
                let Some(channel) = held.channel(&name) else { return };
                let mut published = held.show(event, except, &mut batch.renderer);
                batch.count(&channel, &published);
                // Only the last: the events before it were published by others.
                applied.published.extend(published.pop());
            }
        }
    }

    fn direct(self, receivers: &Receivers, event: NewEvent, except: Option<u64>, batch: &mut Batch<'_>) -> Published {
        let hub = &self.snapshot.hub;
        let event = Arc::new(Event { new: event, channel: None, offset: 0, epoch: 0, seq: 0 });
        let connections = match receivers {
            Receivers::Client(id) => hub.connection(id).into_iter().collect(),
            Receivers::User(user) => hub.of_user(user),
            Receivers::Session(session) => hub.of_session(session),
        };
        batch.renderer.begin();
        let mut published = Published::new(event);
        let policy = batch.renderer.policy(&published.event, None);
        let mut deferred: Vec<Rendering> = Vec::new();
        for connection in connections.iter().filter(|c| except != Some(c.key)) {
            if batch.renderer.defers(connection.protocol) {
                let known = deferred.iter().position(|rendering| rendering.protocol() == connection.protocol);
                let nth = known.unwrap_or_else(|| {
                    deferred.push(Rendering::new(connection.protocol, None, vec![(published.event.clone(), except)], false));
                    deferred.len() - 1
                });
                if let Err(sent) = deferred[nth].add_connection(connection, policy.as_ref()) {
                    published.note(sent);
                }
                continue;
            }
            if let Some(packet) = batch.renderer.render(&published.event, Recipient { connection, subscription: None, view: None }) {
                let packet = Packet { policy: policy.clone(), ..packet };
                published.note(connection.deliver(packet, None));
                batch.enqueued(connection);
            }
        }
        rendering::leave(deferred, std::slice::from_mut(&mut published), &mut batch.renderer);
        hub.feed.passing(&published.event);
        self.snapshot.published(None, &published);
        published
    }
}

impl From<Effect> for Step {
    fn from(effect: Effect) -> Self {
        match effect {
            Effect::Event(event) => Self::Event(event.into()),
            Effect::Connection(effect) => Self::Connection(effect),
        }
    }
}
