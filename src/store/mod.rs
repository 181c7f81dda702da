//! The log behind the channels: every event of a channel with history, one row per connection, and totals, in one SQLite file.
//!
//! Publishers put rows into a bounded [`queue`] and never wait; one [`writer`] takes what is queued, commits it as one
//! transaction and says so. Readers have connections of their own and are not slowed by it.
//! The store is given offsets and epochs; it knows no subscriber, no socket and no permission.

mod after;
mod error;
mod history;
mod insert;
mod open;
mod queue;
mod record;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

pub use error::{CursorError, StoreError, Unavailable};
pub use history::{HISTORY_LIMIT_DEFAULT, HISTORY_LIMIT_MAX, HistoryQuery, Page};
pub use open::{Recovered, Standing};
pub use queue::{Appended, Bounds, Permit, Ticket};
pub use record::{ConnectionEnd, ConnectionRecord};
pub use writer::Writer;

use crate::config::plan::StorePlan;
use crate::model::event::Epoch;
use crate::model::{Event, Now};

/// How long [`Store::committed`] waits before it says that it does not know.
const COMMIT_WAIT: Duration = Duration::from_secs(10);
/// How long a query waits for what was appended just before it.
const SETTLE_WAIT: Duration = Duration::from_secs(1);

/// A handle to the store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What handles and the writer share.
struct Shared {
    queue: queue::Queue,
    readers: sqlx::SqlitePool,
    progress: watch::Sender<Progress>,
    /// Totals by name. Held for one addition, or while the writer copies what changed.
    counters: Mutex<Counters>,
}

/// How far the log is, for those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Everything up to here is in the database, or was refused by it.
    pub up_to: Ticket,
    /// The writer has ended: nothing more will be settled.
    pub ended: bool,
}

/// How far the writer is.
#[derive(Debug, Default)]
struct Progress {
    /// Everything appended up to this ticket is in the database or was refused by it.
    committed: u64,
    /// The last tickets whose rows the database refused, oldest first.
    refused: std::collections::VecDeque<u64>,
    /// The writer has ended.
    ended: bool,
    rows: u64,
    batches: u64,
    rows_refused: u64,
}

#[derive(Default)]
struct Counters {
    totals: HashMap<String, u64>,
    changed: std::collections::HashSet<String>,
}

/// Whether events are being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreState {
    /// They are.
    Ok,
    /// They are not; the writer keeps what it has and tries again.
    Degraded {
        /// Since when, milliseconds since the Unix epoch.
        since_ms: i64,
        /// What the database said.
        reason: Arc<str>,
    },
}

/// The store in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Rows that wait or are being written.
    pub queued_rows: usize,
    /// Bytes of them.
    pub queued_bytes: usize,
    /// How long the oldest of them has waited.
    pub lag: Duration,
    /// Rows committed since the start.
    pub committed_rows: u64,
    /// Transactions they took.
    pub committed_batches: u64,
    /// Rows the database refused for what they are.
    pub refused_rows: u64,
    /// Connection records dropped because the queue was full.
    pub dropped_records: u64,
}

impl Store {
    /// Opens the database: makes the folder, keeps a second process out, runs migrations, reads what is known.
    /// No event is taken until [`Writer::begin`].
    pub async fn open(plan: &StorePlan, now: Now) -> Result<(Store, Writer, Recovered), StoreError> {
        Self::open_with(plan, now, Bounds::default()).await
    }

    /// [`Store::open`] with other bounds for the queue.
    pub async fn open_with(plan: &StorePlan, now: Now, bounds: Bounds) -> Result<(Store, Writer, Recovered), StoreError> {
        let (database, recovered) = open::open(plan, now).await?;
        let shared = Arc::new(Shared {
            queue: queue::Queue::new(bounds, recovered.last_seq),
            readers: database.readers.clone(),
            progress: watch::Sender::default(),
            counters: Mutex::new(Counters { totals: recovered.counters.clone(), ..Counters::default() }),
        });
        Ok((Store { shared: shared.clone() }, Writer::new(shared, database), recovered))
    }

    /// Room for events that are about to be published. Never waits. `bytes` is the sum of their weights.
    pub fn reserve(&self, events: usize, bytes: usize) -> Result<Permit, Unavailable> {
        queue::reserve(&self.shared, events, bytes)
    }

    /// Records that a connection opened. Never waits; dropped and counted where there is no room.
    pub fn append_connection_opened(&self, record: ConnectionRecord) {
        self.shared.queue.push_record(queue::Item::Opened(Box::new(record)));
    }

    /// Records that a connection ended, with what is known of it by then. Never waits, as above.
    pub fn append_connection_closed(&self, record: ConnectionRecord, end: ConnectionEnd) {
        self.shared.queue.push_record(queue::Item::Closed(Box::new((record, end))));
    }

    /// The ticket of what was appended last, by anyone.
    pub fn ticket(&self) -> Ticket {
        self.shared.queue.last()
    }

    /// Resolves when everything appended up to the ticket is committed: what an acknowledgement waits for. An error where the
    /// ticket's own row was refused, the writer has ended, or it takes too long; then the row may still be written.
    pub async fn committed(&self, ticket: Ticket) -> Result<(), StoreError> {
        let mut progress = self.shared.progress.subscribe();
        let reached = progress.wait_for(|p| p.committed >= ticket.0 || p.ended);
        let seen = tokio::time::timeout(COMMIT_WAIT, reached).await.map_err(|_| StoreError::Slow)?.map_err(|_| StoreError::Ended)?;
        if seen.committed < ticket.0 {
            Err(StoreError::Ended)
        } else if seen.refused.contains(&ticket.0) {
            Err(StoreError::RowRefused)
        } else {
            Ok(())
        }
    }

    /// Resolves when something after the ticket is settled, or nothing will be any more.
    pub async fn settled_beyond(&self, seen: Ticket) -> Settled {
        let mut progress = self.shared.progress.subscribe();
        match progress.wait_for(|p| p.committed > seen.0 || p.ended).await {
            Ok(now) => Settled { up_to: Ticket(now.committed), ended: now.ended },
            Err(_) => Settled { up_to: seen, ended: true },
        }
    }

    /// Whether the database refused any of these rows, all of which are settled.
    pub fn refused(&self, first: Ticket, last: Ticket) -> bool {
        self.shared.progress.borrow().refused.iter().any(|ticket| (first.0..=last.0).contains(ticket))
    }

    /// Resolves when everything appended so far is settled, so that a query sees it. Does not wait for a store that cannot
    /// write: the query then shows what there is.
    pub async fn settled(&self) {
        let last = self.ticket().0;
        let mut progress = self.shared.progress.subscribe();
        let reached = progress.wait_for(|p| p.committed >= last || p.ended);
        if self.state() == StoreState::Ok && tokio::time::timeout(SETTLE_WAIT, reached).await.is_err() {
            tracing::debug!("a query did not wait for the store any longer");
        }
    }

    /// Adds to a total that goes on over restarts. Names come from our own code, so there are few.
    pub fn count(&self, name: &str, delta: u64) {
        let mut counters = self.shared.counters.lock();
        match counters.totals.get_mut(name) {
            Some(total) => *total = total.saturating_add(delta),
            None => {
                counters.totals.insert(name.to_owned(), delta);
            }
        }
        if !counters.changed.contains(name) {
            counters.changed.insert(name.to_owned());
        }
    }

    /// Stored events, newest first. Sees what is committed; call [`Store::settled`] first to see what was just appended.
    pub async fn history(&self, query: &HistoryQuery) -> Result<Page, StoreError> {
        history::page(&self.shared.readers, query, history::SCAN_ROWS_MAX).await
    }

    /// Events of one channel and stream behind an offset, oldest first, bounded in number and bytes.
    pub async fn after(
        &self,
        channel: &str,
        epoch: Epoch,
        since: u64,
        events_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Event>, StoreError> {
        after::after(&self.shared.readers, channel, epoch, since, events_max, bytes_max).await
    }

    /// Whether events are being written.
    pub fn state(&self) -> StoreState {
        self.shared.queue.state()
    }

    /// Queue, lag and totals.
    pub fn stats(&self) -> StoreStats {
        let progress = self.shared.progress.borrow();
        StoreStats {
            committed_rows: progress.rows,
            committed_batches: progress.batches,
            refused_rows: progress.rows_refused,
            ..self.shared.queue.stats()
        }
    }
}
