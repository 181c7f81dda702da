//! Carries out a decision as one transaction: all of it, or nothing if the store has no room or what the decision was based on
//! has changed.
//!
//! A transaction that publishes to a channel with a history has two halves. First its events get their offsets and go to the
//! store, under the locks of their channels. Everything that anyone can see of it happens in its order once they are committed:
//! nobody ever sees what the log could lose, and an answer means that the events are stored. In between it waits in the
//! [`commit_queue`]. What a channel allows to be seen before the commit is not held back.

mod batch;
pub mod commit_queue;
#[cfg(test)]
mod isolation_tests;
#[cfg(test)]
mod promise_tests;
mod reads;
mod steps;
#[cfg(test)]
mod tests;
mod transaction;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::hub::{Connection, Published};
use crate::model::{Code, Fault, Now};
use crate::pipeline::effect::{Effect, EventEffect};
use crate::pipeline::{Read, Snapshot};
use crate::store::{Store, StoreError, Ticket};
pub use batch::Batch;
use commit_queue::CommitQueue;
use transaction::Transaction;

/// How long a sender waits until scripts have written its events for their receivers; then it gets the counts known so far.
const COUNTED_WITHIN: Duration = Duration::from_secs(5);

/// How long a sender waits for the store before it is told that the outcome is unknown.
const SETTLE_WAIT: Duration = Duration::from_secs(10);

/// The result of a transaction.
#[derive(Debug, Default)]
pub struct Applied {
    /// The events that were published, in order.
    pub published: Vec<Published>,
    /// What to wait for before reporting them as stored. `None`: there is nothing to wait for.
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

/// Why nothing of a transaction happened.
#[derive(Debug)]
pub enum Refusal {
    /// It is not possible.
    Fault(Fault),
    /// What it was decided on has changed: the input must be decided again.
    Changed,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What is to be done, in order, and for whom.
#[derive(Debug)]
pub enum Effects<'a> {
    /// What a connection does, and what happens to it. The effects themselves carry its replies.
    Connection(&'a Arc<Connection>, Vec<Effect>),
    /// What an input without a connection does. Its sender gets the result.
    Door(Vec<EventEffect>),
}

impl Accepted {
    /// Resolves when it has happened and is as durable as its channels promise, however long that takes.
    pub async fn settled(self, store: &Store) -> Result<Applied, Fault> {
        let mut applied = self.kept(store).await?;
        let counted = async {
            for published in &mut applied.published {
                published.counted().await;
            }
        };
        tokio::time::timeout(COUNTED_WITHIN, counted).await.ok();
        Ok(applied)
    }

    async fn kept(self, store: &Store) -> Result<Applied, Fault> {
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

/// Waits for the store, but no longer than a sender waits for an answer.
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

/// What transactions are applied to.
#[derive(Clone, Copy)]
pub struct Apply<'a> {
    /// The configuration they were decided under, channels and connections.
    pub snapshot: &'a Arc<Snapshot>,
    /// The log.
    pub store: &'a Store,
    /// The transactions that wait for their commit.
    pub commits: &'a CommitQueue,
}

impl Apply<'_> {
    /// Applies effects in order. `reads`: what they were decided on. Either succeeds as a whole or fails before anything has
    /// happened.
    pub fn apply(self, effects: Effects<'_>, reads: Vec<Read>, batch: &mut Batch<'_>, now: Now) -> Result<Accepted, Refusal> {
        let accepted = Transaction::prepare(self, effects, reads, batch).map(|transaction| transaction.commit(batch, now));
        batch.end();
        accepted
    }
}
