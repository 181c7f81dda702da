//! Does what a decision says, as one transaction: all of it, or, where the store has no room, nothing.
//!
//! A transaction that publishes to a channel with a history has two halves. At first its events get their places and go to the
//! store, under the locks of their channels. Everything that anyone could see of it, in its order, happens once they are
//! committed: nobody ever saw what the log lost, and an answer means that it is stored. In between it stands in the [`commit_queue`].
//! What a channel's promise allows to be seen before the commit is not held back.

mod batch;
pub mod commit_queue;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering::Release;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config::plan::{ChannelPlan, Promise};
use crate::hub::{CatchUp, Connection, Joined, LockedChannels, Packet, Published, Render};
use crate::model::event::NewEvent;
use crate::model::{ChannelName, Close, Code, Event, Fault, Now};
use crate::pipeline::Context;
use crate::pipeline::effect::{Effect, Receivers};
use crate::store::{Permit, Store, StoreError, Ticket};
use crate::telemetry::metrics::DropReason;
pub use batch::Batch;
use commit_queue::{CommitQueue, PendingTransaction};

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
    pub commit_queue: &'a CommitQueue,
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
        let mut locked = self.hold(effects.iter().filter_map(touched))?;
        let at_once = if follows { 0 } else { at_once(&effects, locked.as_mut()) };
        let (mut steps, tickets) = assign_offsets(effects, permit, locked.as_mut());
        let rest = steps.split_off(at_once);
        let mut applied = self.run(locked.as_mut(), actor, steps, batch, actor.is_none(), now);
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
        // Under the locks, so that the queue has the order of the offsets.
        self.commit_queue.push(PendingTransaction { first, last, actor: actor.cloned(), steps: rest, applied, done });
        Ok(accepted)
    }

    fn reserve(self, effects: &[Effect]) -> Result<Option<Permit>, Fault> {
        let (mut rows, mut bytes) = (0, 0);
        for effect in effects {
            if let Effect::Publish { plan, event, .. } = effect
                && plan.history.is_some()
            {
                rows += 1;
                bytes += event.cost_bytes();
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

    fn hold<'h>(&'h self, channels: impl Iterator<Item = (ChannelName, Arc<ChannelPlan>)>) -> Result<Option<LockedChannels<'h>>, Fault> {
        let channels: Vec<_> = channels.collect();
        if channels.is_empty() { Ok(None) } else { self.context.hub.hold(channels).map(Some) }
    }

    /// The second half of a transaction: its events are stored, or were refused.
    pub(crate) fn finish(self, transaction: PendingTransaction, batch: &mut Batch<'_>, now: Now) {
        let PendingTransaction { first, last, actor, mut steps, mut applied, done } = transaction;
        // However this ends, the connection goes on.
        let released = actor.clone().map(|actor| Released { actor, cost: commit_queue::cost(&steps) });
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
        let mut locked = match self.hold(channels(&steps).into_iter()) {
            Ok(locked) => locked,
            Err(fault) => {
                // What is stored is shown in any case; its channels are there.
                steps.retain(|step| matches!(step, Step::Show(..)));
                result = Err(fault);
                self.hold(channels(&steps).into_iter()).ok().flatten()
            }
        };
        if result.is_ok() || !self.store.refused(first, last) {
            let later = self.run(locked.as_mut(), actor.as_ref(), steps, batch, done.is_some(), now);
            applied.published.extend(later.published);
        } else if let Some(locked) = locked.as_mut() {
            for step in &steps {
                if let Step::Show(event, _) = step {
                    locked.skip(event);
                }
            }
        }
        drop(locked);
        batch.end();
        if let (Some(actor), Err(fault)) = (&actor, &result)
            && let Some(frame) =
                crate::pipeline::fault_reply(&self.context.runtime.protocols[actor.protocol].plan, fault, None, &actor.view(), now)
        {
            batch.send(None, actor, &frame);
        }
        if let Some(done) = done {
            // Whoever asked may have gone.
            done.send(result.map(|()| applied)).ok();
        }
    }

    /// `wants_result`: somebody wants to know what became of what is published.
    fn run(
        self,
        mut locked: Option<&mut LockedChannels<'_>>,
        actor: Option<&Arc<Connection>>,
        steps: Vec<Step>,
        batch: &mut Batch<'_>,
        wants_result: bool,
        now: Now,
    ) -> Applied {
        let mut applied = Applied::default();
        let mut recovering = Vec::new();
        for step in steps {
            match (step, locked.as_deref_mut()) {
                (Step::Show(event, except), Some(locked)) => self.show(locked, event, except, batch, wants_result.then_some(&mut applied)),
                (Step::Do(Effect::Publish { channel, event, except, .. }), Some(locked)) => {
                    if let Some(event) = locked.assign_offset(&channel, event).map(Arc::new) {
                        self.context.hub.feed.passing(&event);
                        self.show(locked, event, except, batch, wants_result.then_some(&mut applied));
                    }
                }
                (Step::Do(Effect::Send(frame)), locked) => {
                    // Where it is over for the connection, what waits is written and nothing more.
                    if let Some(actor) = actor.filter(|actor| !batch.is_ending(actor)) {
                        batch.send(locked, actor, &frame);
                    }
                }
                (Step::Do(effect), mut locked) => {
                    batch.only(locked.as_deref_mut(), None);
                    match (effect, actor) {
                        (Effect::Direct { receivers, event, except }, _) => {
                            applied.published.push(self.direct(&receivers, event, except, batch));
                        }
                        (effect, Some(actor)) => recovering.extend(self.on(actor, effect, locked, batch, now)),
                        // Effects on a connection, where there is none: the pipeline makes no such decision.
                        (_, None) => {}
                    }
                }
                (Step::Show(..), None) => {}
            }
        }
        if locked.is_some() {
            // Before the locks are let go: nothing published elsewhere slips between a join and its answer.
            batch.enqueue_replies();
        }
        // What was missed comes behind the answer that says so, and before anything new.
        if let (Some(actor), Some(locked), false) = (actor, locked, recovering.is_empty()) {
            batch.only(Some(locked), None);
            for (name, key) in recovering {
                match locked.catch_up(&name, actor, &key, &mut batch.renderer) {
                    CatchUp::Done => {}
                    CatchUp::Room | CatchUp::Read { .. } => actor.push_behind(name, key),
                    CatchUp::Lost => batch.ends(actor, Close::PositionLost),
                }
            }
            batch.enqueued(actor);
        }
        applied
    }

    /// What concerns a connection itself. Gives back the subscription that wants what it missed.
    fn on(
        self,
        actor: &Arc<Connection>,
        effect: Effect,
        locked: Option<&mut LockedChannels<'_>>,
        batch: &mut Batch<'_>,
        now: Now,
    ) -> Option<(ChannelName, Arc<str>)> {
        match (effect, locked) {
            (Effect::View { view, batches }, _) => {
                self.context.hub.set_view(actor, view);
                if actor.set_batches(batches) {
                    batch.switches(actor);
                }
            }
            (Effect::Leave { channel, key, .. }, Some(locked)) => locked.leave(actor, &channel, &key, &mut batch.renderer),
            (Effect::Join { view, recover, .. }, Some(locked)) => {
                let place = (view.channel.clone(), view.key.clone());
                match locked.join(actor, view, recover, now) {
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

    fn show(
        self,
        locked: &mut LockedChannels<'_>,
        event: Arc<Event>,
        except: Option<u64>,
        batch: &mut Batch<'_>,
        result: Option<&mut Applied>,
    ) {
        let Some(name) = event.channel.clone() else { return };
        match result {
            None => {
                batch.only(Some(locked), Some(&name));
                locked.show_later(event, except);
                batch.shown(locked, &name);
            }
            Some(applied) => {
                batch.only(Some(locked), None);
                let Some(channel) = locked.channel(&name) else { return };
                let mut published = locked.show(event, except, &mut batch.renderer);
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
        let policy = batch.renderer.policy(&published.event, None);
        for connection in connections.iter().filter(|c| except != Some(c.key)) {
            if let Some(packet) = batch.renderer.render(&published.event, connection, None) {
                let packet = Packet { policy: policy.clone(), ..packet };
                published.note(connection.deliver(packet, None));
                batch.enqueued(connection);
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
    cost: commit_queue::Cost,
}

impl Drop for Released {
    fn drop(&mut self) {
        let pending = &self.actor.pending_commits;
        pending.bytes.fetch_sub(self.cost.bytes, Release);
        pending.changes.fetch_sub(self.cost.changes, Release);
        pending.count.fetch_sub(1, Release);
        self.actor.outbox.wake();
    }
}

/// How many of these effects may be seen before anything is committed: all, where no channel asks for more; else the
/// publishes that come first, to channels that deliver early and hold nothing back.
fn at_once(effects: &[Effect], mut locked: Option<&mut LockedChannels<'_>>) -> usize {
    if !effects.iter().any(|effect| matches!(effect, Effect::Publish { plan, .. } if plan.history.is_some())) {
        return effects.len();
    }
    let mut promises = Vec::with_capacity(effects.len());
    for effect in effects {
        promises.push(match effect {
            Effect::Publish { plan, channel, .. } => plan.history.as_ref().map(|history| {
                let waits = locked.as_mut().is_some_and(|locked| locked.is_waiting(channel));
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
fn assign_offsets(effects: Vec<Effect>, permit: Option<Permit>, locked: Option<&mut LockedChannels<'_>>) -> (Vec<Step>, Option<Tickets>) {
    let (Some(permit), Some(locked)) = (permit, locked) else { return (effects.into_iter().map(Step::Do).collect(), None) };
    let (mut events, mut relaxed) = (Vec::new(), true);
    // What stands where, until the store has made the events shared.
    let mut places = Vec::with_capacity(effects.len());
    for effect in effects {
        match effect {
            Effect::Publish { channel, plan, event, except } if plan.history.is_some() => {
                relaxed &= plan.history.as_ref().is_some_and(|history| history.promise == Promise::Relaxed);
                events.extend(locked.assign_offset(&channel, event));
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
