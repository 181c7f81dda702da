//! Transactions that wait for their commit, in the order in which they will be seen. One task takes them from the front.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Release};

use parking_lot::Mutex;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, oneshot};

use super::steps::{EventStep, Step};
use super::{Applied, Apply, Batch, refused, stopped};
use crate::hub::{Connection, LockedChannels, MemberChange};
use crate::model::event::Epoch;
use crate::model::{ChannelName, Clock, Fault, Now};
use crate::pipeline::effect::ConnectionEffect;
use crate::pipeline::{Snapshot, fault_reply};
use crate::store::{Store, Ticket};

/// Transactions after which other tasks get their turn.
const TURN: usize = 64;

/// The queue. Bounded by the store's, and by what one connection may have waiting.
#[derive(Debug, Default)]
pub struct CommitQueue {
    // Protects the order. Held for a push or a pop; taken inside channels.
    queue: Mutex<Queue>,
    wake: Notify,
    /// Notified after each turn; nearly free if nobody waits.
    finished: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<PendingTransaction>,
    /// How far the store was when somebody last looked for transactions that can be finished.
    settled: Ticket,
}

/// The second half of a transaction.
pub(super) struct PendingTransaction {
    /// The configuration it was decided under, and is finished under.
    pub(super) snapshot: Arc<Snapshot>,
    /// The tickets of its own events; the default if it has none.
    pub(super) first: Ticket,
    pub(super) last: Ticket,
    /// The tickets of what it has read uncommitted: if one of them is refused, so is it.
    pub(super) after: Vec<Ticket>,
    /// It can be finished once this ticket is settled.
    pub(super) ready: Ticket,
    /// What is still to be done.
    pub(super) work: Work,
}

impl std::fmt::Debug for PendingTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingTransaction").field("ready", &self.ready).field("work", &self.work).finish_non_exhaustive()
    }
}

/// What is still to be done, and for whom.
#[derive(Debug)]
pub(super) enum Work {
    /// For a connection, which gets its replies from the steps themselves.
    Connection(Arc<Connection>, Vec<Step>),
    /// For an input without a connection, whose sender waits.
    Door {
        steps: Vec<EventStep>,
        /// What was done before the commit.
        applied: Applied,
        done: oneshot::Sender<Result<Applied, Fault>>,
    },
}

impl Work {
    /// The channels it needs, and the epochs it relies on, if any.
    fn channels(&self) -> Vec<(ChannelName, Option<Epoch>)> {
        let epoch = |step: &Step| match step {
            Step::Connection(ConnectionEffect::Join { recover: Some(recover), .. }) => Some(recover.epoch),
            _ => None,
        };
        match self {
            Self::Connection(_, steps) => steps.iter().filter_map(|step| Some((step.channel()?.clone(), epoch(step)))).collect(),
            Self::Door { steps, .. } => steps.iter().filter_map(|step| Some((step.channel()?.clone(), None))).collect(),
        }
    }

    /// How it changes the members of channels.
    pub(super) fn changes(&self) -> impl Iterator<Item = (ChannelName, MemberChange)> {
        let (actor, steps) = match self {
            Self::Connection(actor, steps) => (Some(actor), &steps[..]),
            Self::Door { .. } => (None, &[][..]),
        };
        steps.iter().zip(std::iter::repeat(actor)).filter_map(|(step, actor)| match step {
            Step::Connection(ConnectionEffect::Join { view, .. }) => {
                Some((view.channel.clone(), MemberChange::Joins(actor?.clone(), view.clone())))
            }
            Step::Connection(ConnectionEffect::Leave { channel, key, .. }) => {
                Some((channel.clone(), MemberChange::Leaves(actor?.clone(), key.clone())))
            }
            Step::Connection(_) | Step::Event(_) => None,
        })
    }

    /// Its events that are not stored will get their offsets when it is finished.
    pub(super) fn promise_offsets(&mut self, held: &mut LockedChannels<'_>) {
        let promise = |step: &mut EventStep| step.promise_offset(held);
        match self {
            Self::Connection(_, steps) => {
                let events = steps.iter_mut().filter_map(|step| if let Step::Event(event) = step { Some(event) } else { None });
                events.for_each(promise);
            }
            Self::Door { steps, .. } => steps.iter_mut().for_each(promise),
        }
    }

    /// Reduces the work to showing what has an offset or was promised one; nothing else can be done.
    fn only_show(&mut self) {
        let shows = |step: &EventStep| matches!(step, EventStep::Show(..) | EventStep::Publish { .. });
        match self {
            Self::Connection(_, steps) => steps.retain(|step| matches!(step, Step::Event(step) if shows(step))),
            Self::Door { steps, .. } => steps.retain(shows),
        }
    }

    /// None of its events will ever be seen.
    fn skip(&self, held: &mut LockedChannels<'_>) {
        let skip = |step: &EventStep| match step {
            EventStep::Show(event, _) => held.skip(event),
            EventStep::Publish { channel, .. } => drop(held.promised_offset(channel, None)),
            EventStep::Direct { .. } => {}
        };
        match self {
            Self::Connection(_, steps) => {
                let events = steps.iter().filter_map(|step| if let Step::Event(event) = step { Some(event) } else { None });
                events.for_each(skip);
            }
            Self::Door { steps, .. } => steps.iter().for_each(skip),
        }
    }
}

/// How much a transaction counts towards its connection's bound.
struct Cost {
    bytes: usize,
    changes: usize,
}

fn cost(steps: &[Step]) -> Cost {
    let mut cost = Cost { bytes: 0, changes: 0 };
    for step in steps {
        match step {
            Step::Event(event) => cost.bytes += event.cost_bytes(),
            Step::Connection(ConnectionEffect::Send(frame)) => cost.bytes += frame.len(),
            // Once the connection has ended, nothing more of it is handled.
            Step::Connection(
                ConnectionEffect::View { .. } | ConnectionEffect::Leave { .. } | ConnectionEffect::Join { .. } | ConnectionEffect::Close(_),
            ) => cost.changes = 1,
        }
    }
    cost
}

/// When this is dropped, a transaction of a connection no longer waits.
pub(super) struct Released {
    actor: Arc<Connection>,
    cost: Cost,
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

impl CommitQueue {
    pub(super) fn push(&self, transaction: PendingTransaction) {
        if let Work::Connection(actor, steps) = &transaction.work {
            let cost = cost(steps);
            actor.pending_commits.count.fetch_add(1, AcqRel);
            actor.pending_commits.bytes.fetch_add(cost.bytes, AcqRel);
            actor.pending_commits.changes.fetch_add(cost.changes, AcqRel);
        }
        let mut queue = self.queue.lock();
        // If it has no events of its own, or its commit was faster than this, no commit will make anyone look at it.
        let is_settled = transaction.ready <= queue.settled;
        queue.waiting.push_back(transaction);
        drop(queue);
        if is_settled {
            self.wake.notify_one();
        }
    }

    /// The first, if it can be finished and, where `under` is given, was decided under that snapshot.
    fn pop(&self, settled: Ticket, under: Option<&Arc<Snapshot>>) -> Option<PendingTransaction> {
        let mut queue = self.queue.lock();
        queue.settled = settled;
        let first = queue.waiting.front()?;
        let fits = first.ready <= settled && under.is_none_or(|snapshot| Arc::ptr_eq(snapshot, &first.snapshot));
        if fits { queue.waiting.pop_front() } else { None }
    }

    /// Resolves when transactions were finished after this call, even if it was not polled before.
    pub fn finished(&self) -> Notified<'_> {
        self.finished.notified()
    }

    /// How many transactions wait.
    pub fn len(&self) -> usize {
        self.queue.lock().waiting.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Finishes some of the transactions that can be finished. Returns whether there may be more.
    fn turn(&self, store: &Store, settled: Ticket, now: Now) -> bool {
        let mut finished = 0;
        while finished < TURN {
            let Some(first) = self.pop(settled, None) else { return false };
            let snapshot = first.snapshot.clone();
            let apply = Apply { snapshot: &snapshot, store, commits: self };
            let mut batch = Batch::new(&snapshot, None, now);
            let mut next = Some(first);
            while let Some(transaction) = next {
                // A bug that one transaction runs into must not keep all others from being seen.
                let done = std::panic::catch_unwind(AssertUnwindSafe(|| finish(apply, transaction, &mut batch, now)));
                if done.is_err() {
                    tracing::error!("a stored transaction was not shown to everybody, because of a bug in Tramline");
                }
                finished += 1;
                next = if finished < TURN { self.pop(settled, Some(&snapshot)) } else { None };
            }
        }
        true
    }

    /// Finishes transactions as the store settles them, until the store has ended.
    pub async fn run(&self, store: &Store, clock: &Clock) {
        let mut settled = Ticket::default();
        let mut ended = false;
        while !ended {
            tokio::select! {
                now = store.settled_beyond(settled) => (settled, ended) = (now.up_to, now.ended),
                () = self.wake.notified() => {}
            }
            while self.turn(store, settled, clock.now()) {
                self.finished.notify_waiters();
                tokio::task::yield_now().await;
            }
            self.finished.notify_waiters();
        }
        let left = std::mem::take(&mut self.queue.lock().waiting);
        for transaction in left {
            if let Work::Door { done, .. } = transaction.work {
                done.send(Err(stopped())).ok();
            }
        }
    }
}

/// The second half of a transaction: its events are stored, or were refused.
fn finish(apply: Apply<'_>, transaction: PendingTransaction, batch: &mut Batch<'_>, now: Now) {
    let PendingTransaction { first, last, after, mut work, .. } = transaction;
    if let Work::Connection(actor, steps) = &work {
        // However this ends, the connection goes on.
        batch.released.push(Released { actor: actor.clone(), cost: cost(steps) });
    }
    let is_refused = last > Ticket::default() && apply.store.refused(first, last) || after.iter().any(|t| apply.store.refused(*t, *t));
    let mut result = if is_refused { Err(refused()) } else { Ok(()) };
    let changed: Vec<ChannelName> = work.changes().map(|(channel, _)| channel).collect();
    let channels = work.channels();
    batch.before(channels.iter().map(|(name, _)| name));
    let mut held = match lock(apply, channels) {
        Ok(held) => held,
        Err(fault) => {
            // What is stored is always shown. Its channels exist, and so do those where an offset was promised.
            work.only_show();
            result = Err(fault);
            let changed = changed.iter().map(|channel| (channel.clone(), None));
            lock(apply, work.channels().into_iter().chain(changed).collect()).ok().flatten()
        }
    };
    if let Some(held) = held.as_mut() {
        changed.iter().for_each(|channel| held.change_now(channel));
    }
    if is_refused && let Some(held) = held.as_mut() {
        work.skip(held);
    }
    let actor = if let Work::Connection(actor, _) = &work { Some(actor.clone()) } else { None };
    match work {
        Work::Connection(actor, steps) => {
            if !is_refused {
                apply.run(held.as_mut(), &actor, steps, batch, now);
            }
            drop(held);
        }
        Work::Door { steps, mut applied, done } => {
            if !is_refused {
                applied.published.extend(apply.run_events(held.as_mut(), steps, batch).published);
            }
            drop(held);
            // The sender may no longer wait.
            done.send(result.clone().map(|()| applied)).ok();
        }
    }
    batch.end();
    if let (Some(actor), Err(fault)) = (actor, &result)
        && let Some(protocol) = apply.snapshot.runtime.protocol(actor.protocol)
        && let Some(frame) = fault_reply(&protocol.plan, fault, None, &actor.view(), now)
    {
        batch.send(None, &actor, &frame);
    }
}

/// Locks channels by the configuration that the transaction was decided under. A channel that it does not have is locked as it
/// is.
fn lock(apply: Apply<'_>, channels: Vec<(ChannelName, Option<Epoch>)>) -> Result<Option<LockedChannels<'_>>, Fault> {
    let Snapshot { hub, runtime, .. } = &**apply.snapshot;
    let plan = |(name, epoch): (ChannelName, Option<Epoch>)| {
        let live = hub.channel(name.as_str()).map(|channel| channel.plan());
        let plan = live.or_else(|| runtime.channels.resolve(name.as_str()).map(|(_, plan)| plan))?;
        Some((name, plan, epoch))
    };
    let wanted: Vec<_> = channels.into_iter().filter_map(plan).collect();
    if wanted.is_empty() { Ok(None) } else { hub.hold(wanted).map(Some) }
}
