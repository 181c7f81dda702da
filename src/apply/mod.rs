//! Does what a decision says, as one transaction: all of it, or, where the store has no room, nothing.
//!
//! A transaction that publishes to a channel with a history has two halves. At first its events get their places and go to the
//! store, under the locks of their channels. Everything that anyone could see of it, in its order, happens once they are
//! committed: nobody ever saw what the log lost, and an answer means that it is stored. In between it stands in the [`line`].
//! What a channel's promise allows to be seen before the commit is not held back.

mod batch;
pub mod line;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering::Release;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config::plan::{ChannelPlan, Promise};
use crate::hub::{CatchUp, Connection, Held, Joined, Packet, Published, Render};
use crate::model::event::NewEvent;
use crate::model::{ChannelName, Close, Code, Event, Fault, Now};
use crate::pipeline::Context;
use crate::pipeline::effect::{Effect, Receivers};
use crate::store::{Permit, Store, StoreError, Ticket};
use crate::telemetry::metrics::DropReason;
pub use batch::Batch;
use line::{Line, Transaction};

/// How long a door waits for the store before it says that it does not know.
const SETTLE_WAIT: Duration = Duration::from_secs(10);

/// What came of a transaction.
#[derive(Debug, Default)]
pub struct Applied {
    /// The events that were published, in order.
    pub published: Vec<Published>,
    /// What to wait for before saying that they are stored. None: nothing is to be waited for.
    pub ticket: Option<Ticket>,
}

/// A transaction that was accepted.
#[derive(Debug)]
pub enum Accepted {
    /// It has happened.
    Done(Applied),
    /// It happens once it is stored.
    Waiting(oneshot::Receiver<Result<Applied, Fault>>),
}

impl Accepted {
    /// Resolves when it has happened and is as durable as its channels promise, however long that takes.
    pub async fn settled(self, store: &Store) -> Result<Applied, Fault> {
        match self {
            Accepted::Waiting(settled) => settled.await.unwrap_or_else(|_| Err(stopped())),
            Accepted::Done(applied) => {
                let Some(ticket) = applied.ticket else { return Ok(applied) };
                loop {
                    match store.committed(ticket).await {
                        Ok(()) => return Ok(applied),
                        Err(StoreError::Slow) => {}
                        Err(StoreError::RowRefused) => return Err(refused()),
                        Err(_) => return Err(stopped()),
                    }
                }
            }
        }
    }
}

/// Waits for the store as long as someone who waits for an answer will.
pub async fn in_time<T>(settled: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let late = |_| unavailable("the store did not confirm in time; the events may still be written");
    tokio::time::timeout(SETTLE_WAIT, settled).await.map_err(late)?
}

fn unavailable(why: &str) -> Fault {
    Fault::new(Code::Unavailable).detail(why)
}

fn stopped() -> Fault {
    unavailable("the server stopped before the store confirmed")
}

fn refused() -> Fault {
    unavailable("the store refused the events")
}

/// Something to be done, once its event has its place.
#[derive(Debug)]
pub(crate) enum Step {
    /// What was decided.
    Do(Effect),
    /// Members see an event, all but one.
    Show(Arc<Event>, Option<u64>),
}

/// What transactions are applied to.
#[derive(Clone, Copy)]
pub struct Apply<'a> {
    /// Channels and connections.
    pub context: &'a Context,
    /// The log.
    pub store: &'a Store,
    /// What waits for its commit.
    pub line: &'a Line,
}

impl Apply<'_> {
    /// Applies effects in order. `actor` is the connection they are about; what happened is told where there is none.
    /// Fails as a whole, before anything happened.
    pub fn apply(self, actor: Option<&Arc<Connection>>, effects: Vec<Effect>, batch: &mut Batch<'_>, now: Now) -> Result<Accepted, Fault> {
        let accepted = self.begin(actor, effects, batch, now);
        batch.end();
        accepted
    }

    fn begin(self, actor: Option<&Arc<Connection>>, effects: Vec<Effect>, batch: &mut Batch<'_>, now: Now) -> Result<Accepted, Fault> {
        batch.before(effects.iter().filter_map(channel_of));
        // What a connection does stays in order: behind what waits of it, all else waits too.
        let follows = actor.is_some_and(|actor| actor.is_waiting());
        let permit = self.reserve(&effects)?;
        let mut held = self.hold(effects.iter().filter_map(touched))?;
        let at_once = if follows { 0 } else { at_once(&effects, held.as_mut()) };
        let (mut steps, tickets) = place(effects, permit, held.as_mut());
        let rest = steps.split_off(at_once);
        let mut applied = self.run(held.as_mut(), actor, steps, batch, actor.is_none(), now);
        if rest.is_empty() {
            applied.ticket = tickets.filter(|(_, _, relaxed)| !relaxed).map(|(_, last, _)| last);
            return Ok(Accepted::Done(applied));
        }
        let (first, last) = tickets.map_or((Ticket::default(), Ticket::default()), |(first, last, _)| (first, last));
        let (done, accepted) = match actor {
            // A connection is told by the transaction itself.
            Some(_) => (None, Accepted::Done(Applied::default())),
            None => {
                let (done, settled) = oneshot::channel();
                (Some(done), Accepted::Waiting(settled))
            }
        };
        // Under the locks, so that the line has the order of the offsets.
        self.line.push(Transaction { first, last, actor: actor.cloned(), steps: rest, applied, done });
        Ok(accepted)
    }

    fn reserve(self, effects: &[Effect]) -> Result<Option<Permit>, Fault> {
        let (mut rows, mut bytes) = (0, 0);
        for effect in effects {
            if let Effect::Publish { plan, event, .. } = effect
                && plan.history.is_some()
            {
                rows += 1;
                bytes += event.weight();
            }
        }
        if rows == 0 {
            return Ok(None);
        }
        let permit = self.store.reserve(rows, bytes).map_err(|why| {
            self.context.runtime.counters.drop_many(DropReason::StoreUnavailable, rows as u64);
            unavailable(&why.to_string())
        })?;
        Ok(Some(permit))
    }

    fn hold<'h>(&'h self, channels: impl Iterator<Item = (ChannelName, Arc<ChannelPlan>)>) -> Result<Option<Held<'h>>, Fault> {
        let channels: Vec<_> = channels.collect();
        if channels.is_empty() { Ok(None) } else { self.context.hub.hold(channels).map(Some) }
    }

    /// The second half of a transaction: its events are stored, or were refused.
    pub(crate) fn finish(self, transaction: Transaction, batch: &mut Batch<'_>, now: Now) {
        let Transaction { first, last, actor, mut steps, mut applied, done } = transaction;
        // However this ends, the connection goes on.
        let released = actor.clone().map(|actor| Released { actor, weight: line::weight(&steps) });
        batch.released.extend(released);
        let mut result = Ok(());
        if last > Ticket::default() && self.store.refused(first, last) {
            result = Err(refused());
        }
        batch.before(steps.iter().filter_map(|step| match step {
            Step::Show(event, _) => event.channel.as_ref(),
            Step::Do(effect) => channel_of(effect),
        }));
        let channels = |steps: &[Step]| steps.iter().filter_map(|step| touched_by(self.context, step)).collect::<Vec<_>>();
        let mut held = match self.hold(channels(&steps).into_iter()) {
            Ok(held) => held,
            Err(fault) => {
                // What is stored is shown in any case; its channels are there.
                steps.retain(|step| matches!(step, Step::Show(..)));
                result = Err(fault);
                self.hold(channels(&steps).into_iter()).ok().flatten()
            }
        };
        if result.is_ok() || !self.store.refused(first, last) {
            let later = self.run(held.as_mut(), actor.as_ref(), steps, batch, done.is_some(), now);
            applied.published.extend(later.published);
        } else if let Some(held) = held.as_mut() {
            for step in &steps {
                if let Step::Show(event, _) = step {
                    held.skip(event);
                }
            }
        }
        drop(held);
        batch.end();
        if let (Some(actor), Err(fault)) = (&actor, &result)
            && let Some(frame) =
                crate::pipeline::tell(&self.context.runtime.protocols[actor.protocol].plan, fault, None, &actor.view(), now)
        {
            batch.send(None, actor, &frame);
        }
        if let Some(done) = done {
            // Whoever asked may have gone.
            done.send(result.map(|()| applied)).ok();
        }
    }

    /// `told`: somebody wants to know what became of what is published.
    fn run(
        self,
        mut held: Option<&mut Held<'_>>,
        actor: Option<&Arc<Connection>>,
        steps: Vec<Step>,
        batch: &mut Batch<'_>,
        told: bool,
        now: Now,
    ) -> Applied {
        let mut applied = Applied::default();
        let mut recovering = Vec::new();
        for step in steps {
            match (step, held.as_deref_mut()) {
                (Step::Show(event, except), Some(held)) => self.show(held, event, except, batch, told.then_some(&mut applied)),
                (Step::Do(Effect::Publish { channel, event, except, .. }), Some(held)) => {
                    if let Some(event) = held.place(&channel, event).map(Arc::new) {
                        self.context.hub.feed.passing(&event);
                        self.show(held, event, except, batch, told.then_some(&mut applied));
                    }
                }
                (Step::Do(Effect::Send(frame)), held) => {
                    // Where it is over for the connection, what waits is written and nothing more.
                    if let Some(actor) = actor.filter(|actor| !batch.is_ending(actor)) {
                        batch.send(held, actor, &frame);
                    }
                }
                (Step::Do(effect), mut held) => {
                    batch.only(held.as_deref_mut(), None);
                    match (effect, actor) {
                        (Effect::Direct { receivers, event, except }, _) => {
                            applied.published.push(self.direct(&receivers, event, except, batch));
                        }
                        (effect, Some(actor)) => recovering.extend(self.on(actor, effect, held, batch, now)),
                        // Effects on a connection, where there is none: the pipeline makes no such decision.
                        (_, None) => {}
                    }
                }
                (Step::Show(..), None) => {}
            }
        }
        if held.is_some() {
            // Before the locks are let go: nothing published elsewhere slips between a join and its answer.
            batch.give_told();
        }
        // What was missed comes behind the answer that says so, and before anything new.
        if let (Some(actor), Some(held), false) = (actor, held, recovering.is_empty()) {
            batch.only(Some(held), None);
            for (name, key) in recovering {
                match held.catch_up(&name, actor, &key, &mut batch.renderer) {
                    CatchUp::Done => {}
                    CatchUp::Room | CatchUp::Read { .. } => actor.push_behind(name, key),
                    CatchUp::Lost => batch.ends(actor, Close::PositionLost),
                }
            }
            batch.given(actor);
        }
        applied
    }

    /// What concerns a connection itself. Gives back the subscription that wants what it missed.
    fn on(
        self,
        actor: &Arc<Connection>,
        effect: Effect,
        held: Option<&mut Held<'_>>,
        batch: &mut Batch<'_>,
        now: Now,
    ) -> Option<(ChannelName, Arc<str>)> {
        match (effect, held) {
            (Effect::View { view, gathers }, _) => {
                self.context.hub.set_view(actor, view);
                if actor.set_gathers(gathers) {
                    batch.switches(actor);
                }
            }
            (Effect::Leave { channel, key, .. }, Some(held)) => held.leave(actor, &channel, &key, &mut batch.renderer),
            (Effect::Join { view, recover, .. }, Some(held)) => {
                let place = (view.channel.clone(), view.key.clone());
                match held.join(actor, view, recover, now) {
                    Joined::In if recover.is_some() => return Some(place),
                    Joined::In | Joined::Gone => {}
                    Joined::Lost => batch.ends(actor, Close::PositionLost),
                }
            }
            (Effect::Close(close), _) => batch.ends(actor, close),
            (Effect::Send(_) | Effect::Leave { .. } | Effect::Join { .. } | Effect::Publish { .. } | Effect::Direct { .. }, _) => {}
        }
        None
    }

    fn show(self, held: &mut Held<'_>, event: Arc<Event>, except: Option<u64>, batch: &mut Batch<'_>, told: Option<&mut Applied>) {
        let Some(name) = event.channel.clone() else { return };
        match told {
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
                // The last: what came before it was somebody else's.
                applied.published.extend(published.pop());
            }
        }
    }

    fn direct(self, receivers: &Receivers, event: NewEvent, except: Option<u64>, batch: &mut Batch<'_>) -> Published {
        let hub = &self.context.hub;
        let event = Arc::new(Event { new: event, channel: None, offset: 0, epoch: 0, seq: 0 });
        let connections = match receivers {
            Receivers::Client(id) => hub.connection(id).into_iter().collect(),
            Receivers::User(user) => hub.of_user(user),
            Receivers::Session(session) => hub.of_session(session),
        };
        batch.renderer.begin();
        let mut published = Published::new(event);
        let traits = batch.renderer.traits(&published.event, None);
        for connection in connections.iter().filter(|c| except != Some(c.key)) {
            if let Some(packet) = batch.renderer.render(&published.event, connection, None) {
                let packet = Packet { traits: traits.clone(), ..packet };
                published.note(connection.deliver(packet, None));
                batch.given(connection);
            }
        }
        hub.feed.passing(&published.event);
        self.context.runtime.published(None, &published);
        published
    }
}

/// A transaction of a connection waits no more, once this is dropped.
struct Released {
    actor: Arc<Connection>,
    weight: line::Weight,
}

impl Drop for Released {
    fn drop(&mut self) {
        let waiting = &self.actor.waiting;
        waiting.bytes.fetch_sub(self.weight.bytes, Release);
        waiting.changes.fetch_sub(self.weight.changes, Release);
        waiting.count.fetch_sub(1, Release);
        self.actor.outbox.wake();
    }
}

/// How many of these effects may be seen before anything is committed: all, where no channel asks for more; else the
/// publishes that come first, to channels that deliver early and hold nothing back.
fn at_once(effects: &[Effect], mut held: Option<&mut Held<'_>>) -> usize {
    if !effects.iter().any(|effect| matches!(effect, Effect::Publish { plan, .. } if plan.history.is_some())) {
        return effects.len();
    }
    let mut promises = Vec::with_capacity(effects.len());
    for effect in effects {
        promises.push(match effect {
            Effect::Publish { plan, channel, .. } => plan.history.as_ref().map(|history| {
                let waits = held.as_mut().is_some_and(|held| held.is_waiting(channel));
                if waits { Promise::Committed } else { history.promise }
            }),
            _ => None,
        });
    }
    if promises.iter().flatten().all(|promise| *promise == Promise::Relaxed) {
        return effects.len();
    }
    let may_show =
        |(effect, promise): &(&Effect, &Option<Promise>)| matches!(effect, Effect::Publish { .. }) && promise.is_none_or(Promise::is_early);
    effects.iter().zip(&promises).take_while(may_show).count()
}

type Tickets = (Ticket, Ticket, bool);

/// Gives the events of channels with a history their places, and hands them to the store: the tickets of the first and the
/// last, and whether nobody needs to wait for them.
fn place(effects: Vec<Effect>, permit: Option<Permit>, held: Option<&mut Held<'_>>) -> (Vec<Step>, Option<Tickets>) {
    let (Some(permit), Some(held)) = (permit, held) else { return (effects.into_iter().map(Step::Do).collect(), None) };
    let (mut events, mut relaxed) = (Vec::new(), true);
    // What stands where, until the store has made the events shared.
    let mut places = Vec::with_capacity(effects.len());
    for effect in effects {
        match effect {
            Effect::Publish { channel, plan, event, except } if plan.history.is_some() => {
                relaxed &= plan.history.as_ref().is_some_and(|history| history.promise == Promise::Relaxed);
                events.extend(held.place(&channel, event));
                places.push(Err(except));
            }
            other => places.push(Ok(other)),
        }
    }
    let appended = permit.append(events, &[]);
    let mut events = appended.events.into_iter();
    let steps = places.into_iter().filter_map(|place| match place {
        Ok(effect) => Some(Step::Do(effect)),
        Err(except) => events.next().map(|event| Step::Show(event, except)),
    });
    (steps.collect(), Some((appended.first, appended.last, relaxed)))
}

/// The name of the channel an effect touches.
fn channel_of(effect: &Effect) -> Option<&ChannelName> {
    match effect {
        Effect::Leave { channel, .. } | Effect::Publish { channel, .. } => Some(channel),
        Effect::Join { view, .. } => Some(&view.channel),
        Effect::View { .. } | Effect::Direct { .. } | Effect::Send(_) | Effect::Close(_) => None,
    }
}

/// The channel an effect touches.
fn touched(effect: &Effect) -> Option<(ChannelName, Arc<ChannelPlan>)> {
    match effect {
        Effect::Leave { channel, plan, .. } | Effect::Publish { channel, plan, .. } => Some((channel.clone(), plan.clone())),
        Effect::Join { plan, view, .. } => Some((view.channel.clone(), plan.clone())),
        Effect::View { .. } | Effect::Direct { .. } | Effect::Send(_) | Effect::Close(_) => None,
    }
}

fn touched_by(context: &Context, step: &Step) -> Option<(ChannelName, Arc<ChannelPlan>)> {
    match step {
        Step::Do(effect) => touched(effect),
        Step::Show(event, _) => context.hub.channel(event.channel.as_ref()?.as_str()).map(|c| (c.name.clone(), c.plan.clone())),
    }
}
