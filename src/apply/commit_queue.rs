//! Transactions that wait for their commit, in the order in which they are seen. One task takes them from the front.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering::AcqRel;

use parking_lot::Mutex;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, oneshot};

use super::{Applied, Apply, Batch, Step, stopped};
use crate::hub::Connection;
use crate::model::{Fault, Now};
use crate::pipeline::Effect;
use crate::store::Ticket;

/// Transactions after which other tasks have their turn.
const TURN: usize = 64;

/// The queue. Bounded by the store's queue, and by what one connection may have waiting.
#[derive(Debug, Default)]
pub struct CommitQueue {
    // Protects the order. Held for a push or a pop; taken inside channels.
    queue: Mutex<Inner>,
    wake: Notify,
    /// Told after each turn, at the cost of a look where nobody waits.
    finished: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<PendingTransaction>,
    /// How far the store was when somebody last looked for what can be finished.
    settled: Ticket,
}

/// The second half of a transaction.
#[derive(Debug)]
pub(crate) struct PendingTransaction {
    /// The tickets of its events; the default where it has none and only follows others.
    pub(super) first: Ticket,
    pub(super) last: Ticket,
    /// The connection it is about.
    pub(super) actor: Option<Arc<Connection>>,
    /// What is still to be done.
    pub(super) steps: Vec<Step>,
    /// What was done before the commit.
    pub(super) applied: Applied,
    /// Who waits for it, where that is no connection.
    pub(super) done: Option<oneshot::Sender<Result<Applied, Fault>>>,
}

/// What a transaction counts for in its connection's bound.
pub(super) struct Cost {
    pub(super) bytes: usize,
    pub(super) changes: usize,
}

pub(super) fn cost(steps: &[Step]) -> Cost {
    let mut cost = Cost { bytes: 0, changes: 0 };
    for step in steps {
        match step {
            Step::Show(event, _) => cost.bytes += event.cost_bytes(),
            Step::Do(Effect::Send(frame)) => cost.bytes += frame.len(),
            Step::Do(Effect::Publish { event, .. } | Effect::Direct { event, .. }) => cost.bytes += event.cost_bytes(),
            Step::Do(Effect::View { .. } | Effect::Leave { .. } | Effect::Join { .. }) => cost.changes = 1,
            Step::Do(Effect::Close(_)) => {}
        }
    }
    cost
}

impl CommitQueue {
    pub(super) fn push(&self, transaction: PendingTransaction) {
        if let Some(actor) = &transaction.actor {
            let cost = cost(&transaction.steps);
            actor.pending_commits.count.fetch_add(1, AcqRel);
            actor.pending_commits.bytes.fetch_add(cost.bytes, AcqRel);
            actor.pending_commits.changes.fetch_add(cost.changes, AcqRel);
        }
        let mut queue = self.queue.lock();
        // No commit will make anyone look for one that has no events of its own, or whose commit was faster than this.
        let is_settled = transaction.last <= queue.settled;
        queue.waiting.push_back(transaction);
        drop(queue);
        if is_settled {
            self.wake.notify_one();
        }
    }

    fn pop(&self, settled: Ticket) -> Option<PendingTransaction> {
        let mut queue = self.queue.lock();
        queue.settled = settled;
        if queue.waiting.front()?.last <= settled { queue.waiting.pop_front() } else { None }
    }

    /// Resolves when transactions were finished after this call, polled or not.
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

    /// Finishes some of what can be finished. Says whether there may be more.
    fn turn(&self, apply: Apply<'_>, settled: Ticket) -> bool {
        let now = Now::read();
        let mut batch = Batch::new(apply.context, None, now);
        for _ in 0..TURN {
            let Some(transaction) = self.pop(settled) else { return false };
            // An error of ours in one transaction must not keep all others from being seen.
            let finished = std::panic::catch_unwind(AssertUnwindSafe(|| apply.finish(transaction, &mut batch, now)));
            if finished.is_err() {
                tracing::error!("a transaction that is stored was not shown to all: an error of ours");
            }
        }
        true
    }

    /// Finishes transactions as the store settles them, until it has ended.
    pub async fn run(&self, apply: Apply<'_>) {
        let mut settled = Ticket::default();
        let mut ended = false;
        while !ended {
            tokio::select! {
                now = apply.store.settled_beyond(settled) => (settled, ended) = (now.up_to, now.ended),
                () = self.wake.notified() => {}
            }
            while self.turn(apply, settled) {
                self.finished.notify_waiters();
                tokio::task::yield_now().await;
            }
            self.finished.notify_waiters();
        }
        let left = std::mem::take(&mut self.queue.lock().waiting);
        for transaction in left {
            if let Some(done) = transaction.done {
                done.send(Err(stopped())).ok();
            }
        }
    }
}
