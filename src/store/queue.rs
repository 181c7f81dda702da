//! The bounded queue from publishers to the writer. Room is reserved before anything is decided and filled under the channel's
//! lock, so that publishing never fails half way and rows of one channel are in the order of their offsets. Rows that the writer
//! has taken count until they are committed.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout_at;

use super::record::{ConnectionEnd, ConnectionRecord, Point, SessionRecord};
use super::{Shared, StoreState, StoreStats, Unavailable};
use crate::model::{Event, SessionId};

/// A connection record's share of the queue's bytes.
const RECORD_BYTES: usize = 512;

/// Records of connections that may wait before the writer is woken for them: nobody waits for most of them, and together they
/// cost less.
const RECORDS_HELD: usize = 512;

/// The most points that wait: there are few counters, and points are kept by the minute.
const POINTS_KEPT: usize = 100_000;

/// How much may wait for the writer.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Rows.
    pub rows: usize,
    /// Bytes. More than the largest message a protocol may accept, which could otherwise never be stored.
    pub bytes: usize,
    /// Rows of one transaction.
    pub batch_rows: usize,
    /// Bytes of one transaction, unless a single row has more.
    pub batch_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { rows: 65_536, bytes: 128 << 20, batch_rows: 4096, batch_bytes: 8 << 20 }
    }
}

/// A position in the order of everything that was appended.
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
    SessionEnd(SessionId),
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

/// What the writer takes in one go. Its items have tickets `first`, `first + 1`, and so on.
pub(super) struct Batch {
    pub(super) first: u64,
    pub(super) items: Vec<Item>,
    /// These are records of connections, which have their own numbers instead of tickets.
    pub(super) records: bool,
    /// When the last of them was pushed.
    pub(super) newest: Option<Instant>,
    /// Where each transaction ends; its items are refused together.
    ends: Vec<usize>,
    /// What transactions depend on, in their order; most depend on nothing.
    after: Vec<(usize, Box<[Ticket]>)>,
    bytes: usize,
}

impl Batch {
    /// How many transactions.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The indexes of the items of these transactions.
    pub(super) fn places(&self, transactions: &Range<usize>) -> Range<usize> {
        let end_of = |count: usize| count.checked_sub(1).map_or(0, |last| self.ends[last]);
        end_of(transactions.start)..end_of(transactions.end)
    }

    /// The first of these transactions that depends on one that `was_refused`.
    pub(super) fn misled(&self, transactions: &Range<usize>, was_refused: impl Fn(Ticket) -> bool) -> Option<usize> {
        let from = self.after.partition_point(|(at, _)| *at < transactions.start);
        let some = self.after[from..].iter().take_while(|(at, _)| *at < transactions.end);
        some.into_iter().find_map(|(at, after)| after.iter().any(|ticket| was_refused(*ticket)).then_some(*at))
    }
}

struct Waiting {
    item: Item,
    since: Instant,
    /// The next item belongs to the same transaction: both are written together.
    more: bool,
    /// What the transaction depends on; given with its last item.
    after: Box<[Ticket]>,
}

pub(super) struct Queue {
    bounds: Bounds,
    /// Held for a push, a look-up, or while one batch is moved out.
    inner: Mutex<Inner>,
    wake: Notify,
}

struct Inner {
    waiting: VecDeque<Waiting>,
    /// How many must wait before the writer is woken.
    wanted: usize,
    /// Records of connections.
    records: VecDeque<Item>,
    /// How many there have been in total.
    records_appended: u64,
    /// They must be written, however few they are.
    records_due: bool,
    /// Counts that are not written yet: by kind, name, metric and minute.
    points: HashMap<(&'static str, Arc<str>, &'static str, i64), u64>,
    /// The ticket of the last push.
    appended: u64,
    /// The position in the log of the last event.
    seq: u64,
    /// Waiting, taken but not committed, and reserved.
    rows: usize,
    bytes: usize,
    reserved_rows: usize,
    reserved_bytes: usize,
    taken_rows: usize,
    /// When the oldest of the taken rows had been pushed.
    taken_since: Option<Instant>,
    dropped_records: u64,
    /// Between the writer's begin and the stop.
    open: bool,
    state: StoreState,
}

impl Queue {
    /// `seq` is the newest position in the log.
    pub(super) fn new(bounds: Bounds, seq: u64) -> Self {
        let inner = Inner {
            waiting: VecDeque::new(),
            wanted: 0,
            records: VecDeque::new(),
            records_appended: 0,
            records_due: false,
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

    /// Records may fill half of the rows: many connections at a time must not keep events out. They are written separately, at
    /// the writer's next tick, when somebody [waits](Self::hasten) for them, or when there are many.
    pub(super) fn push_record(&self, item: Item) {
        let mut inner = self.inner.lock();
        if !inner.open || inner.rows >= self.bounds.rows / 2 || inner.bytes + RECORD_BYTES > self.bounds.bytes {
            inner.dropped_records += 1;
            return;
        }
        inner.rows += 1;
        inner.bytes += RECORD_BYTES;
        inner.records.push_back(item);
        inner.records_appended += 1;
        if inner.records.len() == RECORDS_HELD {
            self.wake.notify_one();
        }
    }

    /// Called by somebody who waits for everything appended so far. Returns the last ticket, and how many records there were.
    pub(super) fn hasten(&self) -> (Ticket, u64) {
        let mut inner = self.inner.lock();
        inner.wanted = 0;
        inner.records_due = !inner.records.is_empty();
        self.wake.notify_one();
        (Ticket(inner.appended), inner.records_appended)
    }

    /// The waiting records must be written.
    pub(super) fn write_records(&self) {
        let mut inner = self.inner.lock();
        inner.records_due = !inner.records.is_empty();
    }

    /// Adds counts that wait to be written. Never refused; counts of the same minute are added up.
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

    /// The counts since they were last taken.
    pub(super) fn take_points(&self) -> Vec<Point> {
        let points = std::mem::take(&mut self.inner.lock().points);
        points.into_iter().map(|((kind, name, metric, minute_s), delta)| Point { kind, name, metric, minute_s, delta }).collect()
    }

    /// The newest position in the log that was assigned.
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

    /// Called when something waits: resolves when this many rows wait, somebody asks for them to be written, or the time is up.
    pub(super) async fn gathered(&self, rows: usize, until: Instant) {
        let ready = |wanted: Option<usize>| {
            let mut inner = self.inner.lock();
            inner.wanted = wanted.unwrap_or(inner.wanted);
            inner.waiting.is_empty() || inner.waiting.len() >= inner.wanted || !inner.open
        };
        let gathered = async {
            let mut is_ready = ready(Some(rows));
            while !is_ready {
                self.wake.notified().await;
                is_ready = ready(None);
            }
        };
        // Running out of time is not an error.
        drop(timeout_at(until.into(), gathered).await);
        ready(Some(0));
    }

    /// The next batch, oldest first; empty if nothing waits.
    pub(super) fn take(&self) -> Batch {
        let mut inner = self.inner.lock();
        let first = inner.appended + 1 - inner.waiting.len() as u64;
        let (rows, bytes) = inner.whole_transactions(&self.bounds);
        inner.taken_rows = rows;
        inner.taken_since = inner.waiting.front().map(|waiting| waiting.since);
        let (mut ends, mut after, mut newest) = (Vec::with_capacity(rows), Vec::new(), None);
        let mut items = Vec::with_capacity(rows);
        for waiting in inner.waiting.drain(..rows) {
            items.push(waiting.item);
            newest = Some(waiting.since);
            if !waiting.more {
                if !waiting.after.is_empty() {
                    after.push((ends.len(), waiting.after));
                }
                ends.push(items.len());
            }
        }
        Batch { first, items, records: false, newest, ends, after, bytes }
    }

    /// The next records of connections, if it is time to write them.
    pub(super) fn take_records(&self) -> Batch {
        let mut inner = self.inner.lock();
        let is_time = inner.records_due || !inner.open || inner.records.len() >= RECORDS_HELD;
        let rows = if is_time { inner.records.len().min(self.bounds.batch_rows) } else { 0 };
        let first = inner.records_appended + 1 - inner.records.len() as u64;
        let items: Vec<Item> = inner.records.drain(..rows).collect();
        inner.records_due &= !inner.records.is_empty();
        inner.taken_rows = rows;
        Batch { first, items, records: true, newest: None, ends: (1..=rows).collect(), after: Vec::new(), bytes: rows * RECORD_BYTES }
    }

    /// The batch is done: its room is free again. Wakes the writer if there is more to write.
    pub(super) fn release(&self, batch: &Batch) {
        let mut inner = self.inner.lock();
        inner.rows -= batch.items.len();
        inner.bytes -= batch.bytes;
        inner.taken_rows = 0;
        inner.taken_since = None;
        if !inner.waiting.is_empty() || inner.records_due || inner.records.len() >= RECORDS_HELD {
            self.wake.notify_one();
        }
    }

    /// Wakes the writer for work that is not in the queue.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Accepts reservations from now on.
    pub(super) fn begin(&self) {
        self.inner.lock().open = true;
    }

    /// Accepts no more reservations.
    pub(super) fn stop(&self) {
        let mut inner = self.inner.lock();
        inner.open = false;
        drop(inner);
        self.wake.notify_one();
    }

    /// Whether nothing waits and nobody holds a reservation any more.
    pub(super) fn is_done(&self) -> bool {
        let inner = self.inner.lock();
        inner.waiting.is_empty() && inner.records.is_empty() && inner.points.is_empty() && inner.reserved_rows == 0
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
            queued_rows: inner.waiting.len() + inner.records.len() + inner.taken_rows,
            queued_bytes: inner.bytes - inner.reserved_bytes,
            lag: oldest.map_or_else(Default::default, |since| since.elapsed()),
            dropped_records: inner.dropped_records,
            ..StoreStats::default()
        }
    }
}

impl Inner {
    fn push(&mut self, item: Item, more: bool, after: &[Ticket]) {
        self.appended += 1;
        self.waiting.push_back(Waiting { item, since: Instant::now(), more, after: after.into() });
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

/// Room in the queue for the events of one transaction. Returned if it is dropped unused.
pub struct Permit {
    shared: Arc<Shared>,
    rows: usize,
    bytes: usize,
}

/// What was appended.
#[derive(Debug)]
pub struct Appended {
    /// The events with their positions in the log.
    pub events: Vec<Arc<Event>>,
    /// The ticket of the first.
    pub first: Ticket,
    /// The ticket of the last: all are stored when it is.
    pub last: Ticket,
}

impl Permit {
    /// Appends the events of one transaction, which are written together or not at all. Must be called under the locks of their
    /// channels, so that the events of one channel are in the order of their offsets. It never fails: what exceeds the
    /// reservation is accepted too.
    ///
    /// `after` are tickets of earlier transactions that this one depends on, because it read their events before they were
    /// stored: one ticket of each is enough. If one of them is refused, so is this one, without being tried.
    pub fn append(mut self, events: Vec<Event>, after: &[Ticket]) -> Appended {
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
            let more = index + 1 < count;
            inner.push(Item::Event(event), more, if more { &[] } else { after });
        }
        inner.rows += count;
        inner.bytes += bytes;
        let last = inner.appended;
        inner.give_back(&mut self.rows, &mut self.bytes);
        let is_enough = inner.waiting.len() >= inner.wanted;
        drop(inner);
        if is_enough {
            queue.wake.notify_one();
        }
        Appended { events: shared, first: Ticket(first), last: Ticket(last) }
    }
}

/// Appends one item that is not an event, if there is room for it now.
pub(super) fn append_one(shared: &Arc<Shared>, item: Item) -> Result<Ticket, Unavailable> {
    let mut permit = reserve(shared, 1, item.bytes())?;
    let mut inner = shared.queue.inner.lock();
    inner.rows += 1;
    inner.bytes += item.bytes();
    inner.push(item, false, &[]);
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
