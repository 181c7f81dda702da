//! One transaction: what must hold before anything of it happens, and the order in which it happens.

use std::sync::Arc;

use parking_lot::MutexGuard;
use tokio::sync::oneshot;

use super::commit_queue::{PendingTransaction, Work};
use super::reads::{Basis, Uncommitted};
use super::steps::{EventStep, Step};
use super::{Accepted, Applied, Apply, Batch, Effects, Refusal, unavailable};
use crate::config::plan::{ChannelPlan, Promise};
use crate::hub::LockedChannels;
use crate::model::{ChannelName, Event, Fault, Now};
use crate::pipeline::Read;
use crate::pipeline::effect::{Effect, EventEffect};
use crate::store::{Permit, Ticket};
use crate::telemetry::metrics::DropReason;

/// A transaction that will happen: there is room for it, its channels are locked, and what it was decided on still holds.
pub(super) struct Transaction<'t> {
    apply: Apply<'t>,
    effects: Effects<'t>,
    permit: Option<Permit>,
    held: Option<LockedChannels<'t>>,
    /// Held if it depends on who is connected: no other transaction that depends on it may change that meanwhile.
    alone: Option<MutexGuard<'t, ()>>,
    /// What it has read of transactions that are not committed yet.
    after: Uncommitted,
}

/// The tickets of a transaction's events.
struct Tickets {
    first: Ticket,
    last: Ticket,
    /// Nobody needs to wait for them.
    relaxed: bool,
}

impl<'t> Transaction<'t> {
    /// Makes sure that it can happen. If this fails, nothing has happened.
    pub(super) fn prepare(apply: Apply<'t>, effects: Effects<'t>, reads: Vec<Read>, batch: &mut Batch<'_>) -> Result<Self, Refusal> {
        let basis = Basis::new(reads, &effects);
        batch.before(effects.channels().chain(basis.channels()));
        if basis.is_empty() && effects.channels().next().is_none() {
            return Ok(Self { apply, effects, permit: None, held: None, alone: None, after: Uncommitted::default() });
        }
        let permit = reserve(apply, &effects)?;
        let channels = &apply.snapshot.runtime.channels;
        let read = basis.channels().filter_map(|name| channels.resolve(name.as_str()));
        let wanted: Vec<_> = effects
            .touched()
            .map(|(name, plan)| (name.clone(), plan.clone()))
            .chain(read)
            .map(|(name, plan)| {
                let epoch = basis.epoch_for(&name);
                (name, plan, epoch)
            })
            .collect();
        let alone = basis.needs_connections().then(|| apply.snapshot.hub.alone_with_connections());
        let mut held = if wanted.is_empty() { None } else { Some(apply.snapshot.hub.hold(wanted)?) };
        let after = basis.uncommitted(apply).filter(|_| basis.holds(apply, held.as_mut()));
        Ok(Self { apply, effects, permit, held, alone, after: after.ok_or(Refusal::Changed)? })
    }

    /// Does it:
    ///
    /// 1. Events of channels with a history get their offsets and go to the store's queue, all of them together.
    /// 2. What may be seen before they are committed happens, effect by effect.
    /// 3. The rest goes into the commit queue and happens in the same way once they are committed.
    ///
    /// All of this happens under the locks of the channels, so that offsets, the store's queue, the commit queue and what
    /// members see have the same order. What concerns a connection on other channels follows once the locks are released:
    /// [`Batch::end`].
    pub(super) fn commit(self, batch: &mut Batch<'_>, now: Now) -> Accepted {
        let Self { apply, effects, permit, mut held, alone: _alone, after } = self;
        // What a connection does stays in order: if something of it waits, everything after it waits too.
        let follows = matches!(&effects, Effects::Connection(actor, _) if actor.is_waiting());
        let waits = follows || after.is_hidden || permit.is_none() && is_behind(&effects, held.as_mut());
        if !waits && permit.is_none() {
            return Accepted::Done(match effects {
                Effects::Connection(actor, effects) => {
                    apply.run(held.as_mut(), actor, effects.into_iter().map(Step::from), batch, now);
                    Applied::default()
                }
                Effects::Door(effects) => apply.run_events(held.as_mut(), effects.into_iter().map(EventStep::from), batch),
            });
        }
        let at_once = if waits { 0 } else { at_once(&effects, held.as_mut()) };
        match effects {
            Effects::Connection(actor, effects) => {
                let (mut steps, tickets) = assign_offsets(apply, effects, permit, held.as_mut(), &after.tickets);
                let rest = steps.split_off(at_once.min(steps.len()));
                apply.run(held.as_mut(), actor, steps, batch, now);
                if !rest.is_empty() {
                    push(apply, tickets, after.tickets, Work::Connection(actor.clone(), rest), held.as_mut());
                }
                // The steps of the transaction carry the connection's replies.
                Accepted::Done(Applied::default())
            }
            Effects::Door(effects) => {
                let (mut steps, tickets) = assign_offsets(apply, effects, permit, held.as_mut(), &after.tickets);
                let rest = steps.split_off(at_once.min(steps.len()));
                let mut applied = apply.run_events(held.as_mut(), steps, batch);
                // An answer also waits for what nobody has seen yet.
                if rest.is_empty() && !after.is_hidden {
                    applied.ticket = tickets.filter(|tickets| !tickets.relaxed).map(|tickets| tickets.last);
                    return Accepted::Done(applied);
                }
                let (done, settled) = oneshot::channel();
                push(apply, tickets, after.tickets, Work::Door { steps: rest, applied, done }, held.as_mut());
                Accepted::Waiting(settled)
            }
        }
    }
}

impl Effects<'_> {
    fn each(&self) -> (impl Iterator<Item = &Effect>, impl Iterator<Item = &EventEffect>) {
        match self {
            Self::Connection(_, effects) => (effects.iter(), [].iter()),
            Self::Door(events) => ([].iter(), events.iter()),
        }
    }

    fn touched(&self) -> impl Iterator<Item = (&ChannelName, &Arc<ChannelPlan>)> {
        let (effects, events) = self.each();
        effects.filter_map(Effect::channel).chain(events.filter_map(EventEffect::channel))
    }

    fn channels(&self) -> impl Iterator<Item = &ChannelName> {
        self.touched().map(|(name, _)| name)
    }

    fn events(&self) -> impl Iterator<Item = &EventEffect> {
        let (effects, events) = self.each();
        effects.filter_map(Effect::event).chain(events)
    }
}

fn reserve(apply: Apply<'_>, effects: &Effects<'_>) -> Result<Option<Permit>, Fault> {
    let (mut rows, mut bytes) = (0, 0);
    for effect in effects.events() {
        if let EventEffect::Publish { plan, event, .. } = effect
            && plan.history.is_some()
        {
            rows += 1;
            bytes += event.cost_bytes();
        }
    }
    if rows == 0 {
        return Ok(None);
    }
    let permit = apply.store.reserve(rows, bytes).map_err(|why| {
        apply.snapshot.counters.channels.drop_many(DropReason::StoreUnavailable, rows as u64);
        unavailable(&why.to_string())
    })?;
    Ok(Some(permit))
}

/// Queues a transaction, which waits for its own events, if it has any, and for what it has read.
fn push(apply: Apply<'_>, tickets: Option<Tickets>, after: Vec<Ticket>, mut work: Work, held: Option<&mut LockedChannels<'_>>) {
    let (first, last) = tickets.map_or((Ticket::default(), Ticket::default()), |tickets| (tickets.first, tickets.last));
    let ready = after.iter().copied().fold(last, Ticket::max);
    if let Some(held) = held {
        work.changes().for_each(|(channel, change)| held.change_later(&channel, change, ready));
        work.promise_offsets(held);
    }
    apply.commits.push(PendingTransaction { snapshot: apply.snapshot.clone(), first, last, after, ready, work });
}

/// Whether an event goes to a channel where others wait for their commit: it must not be seen before them.
fn is_behind(effects: &Effects<'_>, held: Option<&mut LockedChannels<'_>>) -> bool {
    let Some(held) = held else { return false };
    effects.events().any(|event| matches!(event, EventEffect::Publish { channel, .. } if held.is_behind(channel, false)))
}

/// How many of these effects may be seen before anything is committed: all, if no channel requires a commit; otherwise the
/// publishes at the beginning that go to channels which deliver early without holding anything back.
fn at_once(effects: &Effects<'_>, mut held: Option<&mut LockedChannels<'_>>) -> usize {
    let mut promise = |effect: &EventEffect| match effect {
        EventEffect::Publish { channel, plan, .. } => {
            let is_behind = held.as_mut().is_some_and(|held| held.is_behind(channel, plan.history.is_some()));
            if is_behind { Some(Promise::Committed) } else { plan.history.as_ref().map(|history| history.promise) }
        }
        EventEffect::Direct { .. } => None,
    };
    // `None`: not a publish.
    let published: Vec<Option<Option<Promise>>> = match effects {
        Effects::Door(events) => {
            let published = |event: &EventEffect| matches!(event, EventEffect::Publish { .. }).then(|| promise(event));
            events.iter().map(published).collect()
        }
        Effects::Connection(_, effects) => {
            let published = |effect: &Effect| match effect {
                Effect::Event(event @ EventEffect::Publish { .. }) => Some(promise(event)),
                Effect::Event(EventEffect::Direct { .. }) | Effect::Connection(_) => None,
            };
            effects.iter().map(published).collect()
        }
    };
    if published.iter().flatten().flatten().all(|promise| *promise == Promise::Relaxed) {
        return usize::MAX;
    }
    // What is not stored could not be taken back if what is stored beside it is refused.
    let none_waits = published.iter().flatten().flatten().all(|promise| promise.is_early());
    let may_show = |promise: &&Option<Option<Promise>>| promise.is_some_and(|promise| promise.map_or(none_waits, Promise::is_early));
    published.iter().take_while(may_show).count()
}

/// Separates publishes from everything else.
trait Publishes: Sized {
    type Step;
    /// The publish to a channel with a history, or the step for anything else.
    fn durable(self) -> Result<EventEffect, Self::Step>;
    fn show(event: Arc<Event>, except: Option<u64>) -> Self::Step;
}

impl Publishes for EventEffect {
    type Step = EventStep;

    fn durable(self) -> Result<EventEffect, EventStep> {
        let is_durable = matches!(&self, Self::Publish { plan, .. } if plan.history.is_some());
        if is_durable { Ok(self) } else { Err(self.into()) }
    }

    fn show(event: Arc<Event>, except: Option<u64>) -> EventStep {
        EventStep::Show(event, except)
    }
}

impl Publishes for Effect {
    type Step = Step;

    fn durable(self) -> Result<EventEffect, Step> {
        match self {
            Self::Event(event) => event.durable().map_err(Step::Event),
            Self::Connection(effect) => Err(Step::Connection(effect)),
        }
    }

    fn show(event: Arc<Event>, except: Option<u64>) -> Step {
        Step::Event(EventStep::Show(event, except))
    }
}

/// Gives the events of channels with a history their offsets, and hands them to the store, which refuses them if any ticket in
/// `after` is refused.
fn assign_offsets<E: Publishes>(
    apply: Apply<'_>,
    effects: Vec<E>,
    permit: Option<Permit>,
    held: Option<&mut LockedChannels<'_>>,
    after: &[Ticket],
) -> (Vec<E::Step>, Option<Tickets>) {
    let (Some(permit), Some(held)) = (permit, held) else {
        let step = |effect: E| match effect.durable() {
            Ok(event) => unreachable!("room is reserved for every event that is kept: {event:?}"),
            Err(step) => step,
        };
        return (effects.into_iter().map(step).collect(), None);
    };
    let (mut events, mut relaxed) = (Vec::new(), true);
    // Where each event goes in the steps, until the store has made the events shared.
    let mut steps = Vec::with_capacity(effects.len());
    for effect in effects {
        match effect.durable() {
            Ok(EventEffect::Publish { channel, plan, event, except }) => {
                relaxed &= plan.history.as_ref().is_some_and(|history| history.promise == Promise::Relaxed);
                events.extend(held.assign_offset(&channel, event, true));
                steps.push(Err(except));
            }
            Ok(EventEffect::Direct { .. }) => {}
            Err(step) => steps.push(Ok(step)),
        }
    }
    let appended = permit.append(events, after);
    for (event, ticket) in appended.events.iter().zip(appended.first.on()) {
        held.uncommitted(event, ticket, |other| apply.store.is_settled(other));
    }
    let mut events = appended.events.into_iter();
    let steps = steps.into_iter().filter_map(|step| match step {
        Ok(step) => Some(step),
        Err(except) => events.next().map(|event| E::show(event, except)),
    });
    (steps.collect(), Some(Tickets { first: appended.first, last: appended.last, relaxed }))
}
