//! The bounded queue from publishers to the writer. Room is reserved before anything is decided and filled under the channel's
//! lock, so that publishing never fails half way and rows of one channel stand in the order of their offsets.
//! What the writer has taken counts until it is committed.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::record::{ConnectionEnd, ConnectionRecord, Point, SessionRecord};
use super::{Shared, StoreState, StoreStats, Unavailable};
use crate::model::Event;

/// A connection record's share of the queue's bytes.
const RECORD_BYTES: usize = 512;

/// Records that wait before the writer is woken for them alone: nobody waits for most, and together they cost less.
const RECORDS_HELD: usize = 512;

/// Points that wait, at most: what is counted is counted in few series, and in minutes.
const POINTS_KEPT: usize = 100_000;

/// How much may wait for the writer.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Rows.
    pub rows: usize,
    /// Bytes. More than the largest message a protocol may take, which else could never be stored.
    pub bytes: usize,
    /// Rows of one transaction.
    pub batch_rows: usize,
    /// Bytes of one transaction, unless one row alone has more.
    pub batch_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { rows: 65_536, bytes: 128 << 20, batch_rows: 4096, batch_bytes: 8 << 20 }
    }
}

/// A place in the order of everything that was appended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub(super) u64);

impl Ticket {
    /// This one and those after it.
    pub fn on(self) -> impl Iterator<Item = Ticket> {
        (self.0..).map(Ticket)
    }
}

/// What waits to be written.
#[derive(Debug, Clone)]
pub(super) enum Item {
    Event(Arc<Event>),
    Opened(Box<ConnectionRecord>),
    Closed(Box<(ConnectionRecord, ConnectionEnd)>),
    Session(Box<SessionRecord>),
    SessionEnd(Arc<str>),
}

impl Item {
    fn bytes(&self) -> usize {
        match self {
            Item::Event(event) => event.cost_bytes(),
            Item::Session(session) => RECORD_BYTES + session.meta.as_ref().map_or(0, |meta| meta.as_str().len()),
            Item::Opened(_) | Item::Closed(_) | Item::SessionEnd(_) => RECORD_BYTES,
        }
    }
}

/// What the writer takes at once. Its items have tickets `first`, `first + 1`, and so on.
pub(super) struct Batch {
    pub(super) first: u64,
    pub(super) items: Vec<Item>,
    /// Where each transaction ends; its items are refused together.
    ends: Vec<usize>,
    bytes: usize,
}

impl Batch {
    /// How many transactions.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The places of the items of some of its transactions.
    pub(super) fn places(&self, transactions: &Range<usize>) -> Range<usize> {
        let end_of = |count: usize| count.checked_sub(1).map_or(0, |last| self.ends[last]);
        end_of(transactions.start)..end_of(transactions.end)
    }
}

struct Waiting {
    item: Item,
    since: Instant,
    /// What follows is of the same transaction: both are written together.
    more: bool,
}

pub(super) struct Queue {
    bounds: Bounds,
    /// Held for a push, a look, or while one batch is moved out.
    inner: Mutex<Inner>,
    wake: Notify,
}

struct Inner {
    waiting: VecDeque<Waiting>,
    /// How many of the newest of them the writer was not woken for: records only, fewer than [`RECORDS_HELD`].
    held: usize,
    /// What was counted and is not written yet: by kind, name, metric and minute.
    points: HashMap<(&'static str, Arc<str>, &'static str, i64), u64>,
    /// The ticket of the last push.
    appended: u64,
    /// The place in the log of the last event.
    seq: u64,
    /// Waiting, taken but not committed, and reserved.
    rows: usize,
    bytes: usize,
    reserved_rows: usize,
    reserved_bytes: usize,
    taken_rows: usize,
    /// When the oldest of what was taken had been pushed.
    taken_since: Option<Instant>,
    dropped_records: u64,
    /// Between the writer's begin and the stop.
    open: bool,
    state: StoreState,
}

impl Queue {
    /// `seq` is the newest place in the log.
    pub(super) fn new(bounds: Bounds, seq: u64) -> Self {
        let inner = Inner {
            waiting: VecDeque::new(),
            held: 0,
            points: HashMap::new(),
            appended: 0,
            seq,
            rows: 0,
            bytes: 0,
            reserved_rows: 0,
            reserved_bytes: 0,
            taken_rows: 0,
            taken_since: None,
            dropped_records: 0,
            open: false,
            state: StoreState::Ok,
        };
        Self { bounds, inner: Mutex::new(inner), wake: Notify::new() }
    }

    /// Records may fill half of the rows: a storm of connections must not keep events out. They are written with the next
    /// events, at the writer's next look, when somebody [waits](Self::hasten) for them, or when there are many.
    pub(super) fn push_record(&self, item: Item) {
        let mut inner = self.inner.lock();
        if !inner.open || inner.rows >= self.bounds.rows / 2 || inner.bytes + RECORD_BYTES > self.bounds.bytes {
            inner.dropped_records += 1;
            return;
        }
        inner.rows += 1;
        inner.bytes += RECORD_BYTES;
        let held = inner.held + 1;
        inner.push(item, false);
        if held < RECORDS_HELD {
            inner.held = held;
        } else {
            self.wake.notify_one();
        }
    }

    /// Somebody waits for what was appended up to the ticket: wakes the writer where it was not yet.
    pub(super) fn hasten(&self, ticket: Ticket) {
        let mut inner = self.inner.lock();
        if inner.held > 0 && ticket.0 > inner.appended - inner.held as u64 {
            inner.held = 0;
            self.wake.notify_one();
        }
    }

    /// Adds to what waits to be written. Never refused; what is counted for the same minute is one.
    pub(super) fn push_points(&self, points: Vec<Point>) {
        let mut inner = self.inner.lock();
        for point in points {
            let key = (point.kind, point.name, point.metric, point.minute_s);
            if inner.points.len() >= POINTS_KEPT && !inner.points.contains_key(&key) {
                inner.dropped_records += 1;
                continue;
            }
            let value = inner.points.entry(key).or_default();
            *value = value.saturating_add(point.delta);
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// What was counted since it was last taken.
    pub(super) fn take_points(&self) -> Vec<Point> {
        let points = std::mem::take(&mut self.inner.lock().points);
        points.into_iter().map(|((kind, name, metric, minute_s), delta)| Point { kind, name, metric, minute_s, delta }).collect()
    }

    /// The newest place in the log that was given.
    pub(super) fn seq(&self) -> u64 {
        self.inner.lock().seq
    }

    pub(super) fn last(&self) -> Ticket {
        Ticket(self.inner.lock().appended)
    }

    /// Resolves when something may be waiting.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The next batch, oldest first; empty where nothing waits.
    pub(super) fn take(&self) -> Batch {
        let mut inner = self.inner.lock();
        let first = inner.appended + 1 - inner.waiting.len() as u64;
        let (rows, bytes) = inner.whole_transactions(&self.bounds);
        inner.taken_rows = rows;
        inner.taken_since = inner.waiting.front().map(|waiting| waiting.since);
        let mut items = Vec::with_capacity(rows);
        let mut ends = Vec::with_capacity(rows);
        for waiting in inner.waiting.drain(..rows) {
            items.push(waiting.item);
            if !waiting.more {
                ends.push(items.len());
            }
        }
        inner.held = inner.held.min(inner.waiting.len());
        Batch { first, items, ends, bytes }
    }

    /// The batch is done with: its room is free again. Wakes the writer where more waits that it was woken for.
    pub(super) fn release(&self, batch: &Batch) {
        let mut inner = self.inner.lock();
        inner.rows -= batch.items.len();
        inner.bytes -= batch.bytes;
        inner.taken_rows = 0;
        inner.taken_since = None;
        if inner.waiting.len() > inner.held {
            self.wake.notify_one();
        }
    }

    /// There is something to do that is not in the queue.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Takes reservations from now on.
    pub(super) fn begin(&self) {
        self.inner.lock().open = true;
    }

    /// Takes no more reservations.
    pub(super) fn stop(&self) {
        let mut inner = self.inner.lock();
        (inner.open, inner.held) = (false, 0);
        drop(inner);
        self.wake.notify_one();
    }

    /// Whether nothing waits and nobody holds a reservation any more.
    pub(super) fn is_done(&self) -> bool {
        let inner = self.inner.lock();
        inner.waiting.is_empty() && inner.points.is_empty() && inner.reserved_rows == 0
    }

    pub(super) fn state(&self) -> StoreState {
        self.inner.lock().state.clone()
    }

    pub(super) fn set_state(&self, state: StoreState) {
        self.inner.lock().state = state;
    }

    pub(super) fn stats(&self) -> StoreStats {
        let inner = self.inner.lock();
        let oldest = inner.taken_since.or_else(|| inner.waiting.front().map(|waiting| waiting.since));
        StoreStats {
            queued_rows: inner.waiting.len() + inner.taken_rows,
            queued_bytes: inner.bytes - inner.reserved_bytes,
            lag: oldest.map_or_else(Default::default, |since| since.elapsed()),
            dropped_records: inner.dropped_records,
            ..StoreStats::default()
        }
    }
}

impl Inner {
    fn push(&mut self, item: Item, more: bool) {
        self.appended += 1;
        self.held = 0;
        self.waiting.push_back(Waiting { item, since: Instant::now(), more });
    }

    fn give_back(&mut self, rows: &mut usize, bytes: &mut usize) {
        let (rows, bytes) = (std::mem::take(rows), std::mem::take(bytes));
        self.rows -= rows;
        self.bytes -= bytes;
        self.reserved_rows -= rows;
        self.reserved_bytes -= bytes;
    }

    /// How many rows and bytes from the front make up one batch. It ends between two transactions, never within one.
    fn whole_transactions(&self, bounds: &Bounds) -> (usize, usize) {
        let (mut rows, mut bytes) = (0, 0);
        let (mut rows_so_far, mut bytes_so_far) = (0, 0);
        for waiting in &self.waiting {
            rows_so_far += 1;
            bytes_so_far += waiting.item.bytes();
            if waiting.more {
                continue;
            }
            if rows > 0 && (rows_so_far > bounds.batch_rows || bytes_so_far > bounds.batch_bytes) {
                break;
            }
            (rows, bytes) = (rows_so_far, bytes_so_far);
        }
        (rows, bytes)
    }
}

pub(super) fn reserve(shared: &Arc<Shared>, rows: usize, bytes: usize) -> Result<Permit, Unavailable> {
    let queue = &shared.queue;
    let mut inner = queue.inner.lock();
    if let StoreState::Degraded { reason, .. } = &inner.state {
        return Err(Unavailable::Degraded(reason.clone()));
    }
    if !inner.open {
        return Err(Unavailable::Stopped);
    }
    if inner.rows.saturating_add(rows) > queue.bounds.rows || inner.bytes.saturating_add(bytes) > queue.bounds.bytes {
        return Err(Unavailable::Full);
    }
    inner.rows += rows;
    inner.bytes += bytes;
    inner.reserved_rows += rows;
    inner.reserved_bytes += bytes;
    Ok(Permit { shared: shared.clone(), rows, bytes })
}

/// Room in the queue for the events of one transaction. Given back where it is dropped unused.
pub struct Permit {
    shared: Arc<Shared>,
    rows: usize,
    bytes: usize,
}

/// What was appended.
#[derive(Debug)]
pub struct Appended {
    /// The events with their place in the log.
    pub events: Vec<Arc<Event>>,
    /// The ticket of the first.
    pub first: Ticket,
    /// The ticket of the last: all are stored when it is.
    pub last: Ticket,
}

impl Permit {
    /// Appends the events of one transaction, which are written together or not at all. Call it under the locks of their
    /// channels, so that those of one channel stand in the order of their offsets. It never fails: what exceeds the reservation
    /// is taken all the same.
    pub fn append(mut self, events: Vec<Event>, _after: &[Ticket]) -> Appended {
        let queue = &self.shared.queue;
        let mut inner = queue.inner.lock();
        let first = inner.appended + 1;
        let count = events.len();
        let mut shared = Vec::with_capacity(count);
        let mut bytes = 0;
        for (index, mut event) in events.into_iter().enumerate() {
            inner.seq += 1;
            event.seq = inner.seq;
            bytes += event.cost_bytes();
            let event = Arc::new(event);
            shared.push(event.clone());
            inner.push(Item::Event(event), index + 1 < count);
        }
        inner.rows += count;
        inner.bytes += bytes;
        let last = inner.appended;
        inner.give_back(&mut self.rows, &mut self.bytes);
        drop(inner);
        queue.wake.notify_one();
        Appended { events: shared, first: Ticket(first), last: Ticket(last) }
    }
}

/// Appends one item that is no event, where there is room for it now.
pub(super) fn append_one(shared: &Arc<Shared>, item: Item) -> Result<Ticket, Unavailable> {
    let mut permit = reserve(shared, 1, item.bytes())?;
    let mut inner = shared.queue.inner.lock();
    inner.rows += 1;
    inner.bytes += item.bytes();
    inner.push(item, false);
    inner.give_back(&mut permit.rows, &mut permit.bytes);
    let ticket = Ticket(inner.appended);
    drop(inner);
    shared.queue.wake.notify_one();
    Ok(ticket)
}

impl Drop for Permit {
    fn drop(&mut self) {
        let queue = &self.shared.queue;
        let mut inner = queue.inner.lock();
        inner.give_back(&mut self.rows, &mut self.bytes);
        if !inner.open {
            queue.wake.notify_one();
        }
    }
}
