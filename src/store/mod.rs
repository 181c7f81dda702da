//! The log behind the channels: every event of a channel with history, one row per connection, sessions, and totals, in one
//! database: an SQLite file, or PostgreSQL.
//!
//! Publishers put rows into a bounded [`queue`] and never wait; one [`writer`] takes what is queued, commits it as one
//! transaction and reports that. Readers have their own connections and are not slowed down by it.
//! The store is given offsets and epochs; it knows no subscriber, no socket and no permission.
//!
//! In reading order:
//! - input: `record`, `queue`, `channels`;
//! - writing: `writer`, `pace`, `attempt` (how it copes with its database), `work`, `whole`, `insert`, `aside`, `connections`,
//!   `known`, `link`, `slow`, `fault`;
//! - removal: `retention`, `trim`, `size`;
//! - start and repair: `open`, `sqlite`, `postgres`, `db`, `recover`, `check`, `replace`, `salvage`;
//! - queries: `filter`, `scan`, `history`, `after`, `listing`, `series`, using `read`, `row`, `names` and `cursor`.

mod after;
mod aside;
mod attempt;
mod channels;
mod check;
mod connections;
mod cursor;
mod db;
mod error;
mod fault;
mod filter;
mod history;
mod insert;
mod known;
mod link;
mod listing;
mod names;
mod open;
mod pace;
mod postgres;
mod queue;
mod read;
mod record;
mod recover;
mod replace;
mod retention;
mod row;
mod salvage;
mod scan;
mod series;
mod size;
mod slow;
mod sqlite;
mod trim;
mod whole;
mod work;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{oneshot, watch};

pub use after::{LogPosition, Piece, Walk};
pub use channels::{Channels, Policy};
pub use cursor::{Order, check_cursor};
pub use error::{CursorError, StoreError, Unavailable};
pub use filter::{DATA_CONDITIONS_MAX, DataIs, Filter, Moment, Needle, TEXT_BYTES_MAX};
pub use history::{Export, HISTORY_LIMIT_DEFAULT, HISTORY_LIMIT_MAX, HistoryQuery, Page};
pub use listing::{ConnectionQuery, LISTING_LIMIT_MAX, Listing};
pub use queue::{Appended, Bounds, Permit, Ticket};
pub use record::{ConnectionEnd, ConnectionRecord, Point, SessionRecord};
pub use recover::{Recovered, StoredChannel, Total};
pub use series::{STEPS_MAX, Series};
pub use writer::Writer;

use crate::config::plan::StorePlan;
use crate::model::{ChannelName, Clock, SessionId};
use crate::telemetry::durations::{Durations, DurationsNow};

/// How long [`Store::committed`] waits before it reports that the outcome is unknown.
const COMMIT_WAIT: Duration = Duration::from_secs(10);
/// How long a query waits for what was appended just before it.
const SETTLE_WAIT: Duration = Duration::from_secs(1);

/// A handle to the store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What the handles and the writer share.
struct Shared {
    queue: queue::Queue,
    /// Replaced if the writer opens another file.
    readers: RwLock<db::Pool>,
    progress: watch::Sender<Progress>,
    /// Channels that will show events before they are committed, if that must be recorded.
    early: parking_lot::Mutex<Option<EarlyChannels>>,
    /// How long transactions took.
    commits: Durations,
    clock: Clock,
}

/// Channels that will show events before they are committed, and who waits until that is recorded.
struct EarlyChannels {
    names: Vec<ChannelName>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Shared {
    /// Where a query gets its connection.
    fn readers(&self) -> db::Pool {
        self.readers.read().clone()
    }
}

/// How far the log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// Everything up to here is in the database, or was refused by it.
    pub up_to: Ticket,
    /// The writer has ended: nothing more will be settled.
    pub ended: bool,
}

/// How far the writer has come.
#[derive(Debug, Default)]
struct Progress {
    /// Everything appended up to this ticket is in the database or was refused by it.
    committed: u64,
    /// This many records of connections are in the database or were refused by it.
    records: u64,
    /// Runs of tickets whose rows the database refused, oldest first.
    refused: std::collections::VecDeque<std::ops::Range<u64>>,
    /// The writer has ended.
    ended: bool,
    rows: u64,
    batches: u64,
    rows_refused: u64,
}

impl Progress {
    fn has_refused(&self, first: Ticket, last: Ticket) -> bool {
        // There are few, and the newest are asked for most.
        self.refused.iter().rev().take_while(|run| run.end > first.0).any(|run| run.start <= last.0)
    }
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
        /// The database's message.
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
    /// Transactions that were used for them.
    pub committed_batches: u64,
    /// Rows the database refused because of their content.
    pub refused_rows: u64,
    /// Connection records dropped because the queue was full.
    pub dropped_records: u64,
    /// How long transactions took.
    pub commits: DurationsNow,
}

impl Store {
    /// Opens the database: creates the folder, keeps a second process out, runs migrations, reads the state. No event is
    /// accepted until [`Writer::begin`].
    pub async fn open(plan: &StorePlan, clock: &Clock) -> Result<(Store, Writer, Recovered), StoreError> {
        Self::open_with(plan, clock, Bounds::default()).await
    }

    /// [`Store::open`] with other bounds for the queue.
    pub async fn open_with(plan: &StorePlan, clock: &Clock, bounds: Bounds) -> Result<(Store, Writer, Recovered), StoreError> {
        let (database, mut recovered) = open::open(plan, clock.now()).await?;
        if !recovered.clean {
            // Events that the crash lost had positions, and with an early promise somebody may have seen them.
            recovered.last_seq += 2 * bounds.rows as u64;
        }
        let shared = Arc::new(Shared {
            queue: queue::Queue::new(bounds, recovered.last_seq),
            readers: RwLock::new(database.readers),
            progress: watch::Sender::default(),
            early: parking_lot::Mutex::default(),
            commits: Durations::default(),
            clock: clock.clone(),
        });
        let writer = Writer::new(shared.clone(), database.link, database.known, plan, &recovered);
        Ok((Store { shared }, writer, recovered))
    }

    /// Room for events that are about to be published. Never waits. `bytes` is the sum of their costs.
    pub fn reserve(&self, events: usize, bytes: usize) -> Result<Permit, Unavailable> {
        queue::reserve(&self.shared, events, bytes)
    }

    /// Records that a connection opened. Never waits; if there is no room, the record is dropped and counted. It is written
    /// within a second, or earlier if somebody waits for it.
    pub fn append_connection_opened(&self, record: ConnectionRecord) {
        self.shared.queue.push_record(queue::Item::Opened(Box::new(record)));
    }

    /// Records that a connection ended, with what is known of it by then. Never waits, as above.
    pub fn append_connection_closed(&self, record: ConnectionRecord, end: ConnectionEnd) {
        self.shared.queue.push_record(queue::Item::Closed(Box::new((record, end))));
    }

    /// The ticket of the last item that anyone appended and somebody may wait for.
    pub fn ticket(&self) -> Ticket {
        self.shared.queue.last()
    }

    /// Resolves when everything appended up to the ticket is committed: what an acknowledgement waits for. Returns an error if
    /// the ticket's own row was refused, the writer has ended, or it takes too long; then the row may still be written.
    pub async fn committed(&self, ticket: Ticket) -> Result<(), StoreError> {
        let mut progress = self.shared.progress.subscribe();
        let reached = progress.wait_for(|p| p.committed >= ticket.0 || p.ended);
        let seen = tokio::time::timeout(COMMIT_WAIT, reached).await.map_err(|_| StoreError::Slow)?.map_err(|_| StoreError::Ended)?;
        if seen.committed < ticket.0 {
            Err(StoreError::Ended)
        } else if seen.has_refused(ticket, ticket) {
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

    /// Whether a row is in the database, or was refused by it.
    pub fn is_settled(&self, ticket: Ticket) -> bool {
        self.shared.progress.borrow().committed >= ticket.0
    }

    /// Whether the database refused any of these rows, all of which are settled.
    pub fn refused(&self, first: Ticket, last: Ticket) -> bool {
        self.shared.progress.borrow().has_refused(first, last)
    }

    /// Resolves when everything appended so far is settled, so that a query sees it. Does not wait for a store that cannot
    /// write: the query then returns what there is.
    pub async fn settled(&self) {
        let (last, records) = self.shared.queue.hasten();
        let mut progress = self.shared.progress.subscribe();
        let reached = progress.wait_for(|p| (p.committed >= last.0 && p.records >= records) || p.ended);
        if self.state() == StoreState::Ok && tokio::time::timeout(SETTLE_WAIT, reached).await.is_err() {
            tracing::debug!("a query stopped waiting for the store");
        }
    }

    /// Creates a session, or replaces it. Never waits; it is stored when the ticket is.
    pub fn put_session(&self, record: SessionRecord) -> Result<Ticket, Unavailable> {
        queue::append_one(&self.shared, queue::Item::Session(Box::new(record)))
    }

    /// Removes a session. Never waits, as above.
    pub fn end_session(&self, id: SessionId) -> Result<Ticket, Unavailable> {
        queue::append_one(&self.shared, queue::Item::SessionEnd(id))
    }

    /// Adds to counters. Never waits and is never refused: it is kept until it can be written.
    pub fn append_points(&self, points: Vec<Point>) {
        self.shared.queue.push_points(points);
    }

    /// Records in the database that these channels may show events before they are committed, until the next start. Once this
    /// resolves without an error, a crash is handled accordingly; if it fails, they must not begin to. Those that the database
    /// does not know yet are recorded with their first event.
    pub async fn note_early(&self, names: Vec<ChannelName>) -> Result<(), StoreError> {
        let (done, noted) = oneshot::channel();
        *self.shared.early.lock() = Some(EarlyChannels { names, done });
        self.shared.queue.wake();
        tokio::time::timeout(COMMIT_WAIT, noted).await.map_err(|_| StoreError::Slow)?.map_err(|_| StoreError::Ended)?
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
            commits: self.shared.commits.get(),
            ..self.shared.queue.stats()
        }
    }
}
