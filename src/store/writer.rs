//! The only task that writes. It takes what is queued, commits it as one transaction, then notifies those who wait. While one
//! commit is on its way to the disk the next batch collects rows, so batches grow with the load, and the [pace](super::pace)
//! makes sure that they are worth their commit. Records of connections, for which nobody waits, are left to the next tick.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::channels::Channels;
use super::known::Known;
use super::link::Link;
use super::pace::Pace;
use super::queue::{Batch, Item};
use super::record::Point;
use super::retention::Retention;
use super::work::{Work, begin, note_early, say_clean};
use super::{EarlyChannels, Recovered, Shared, StoreError, StoreState, check};
use crate::config::plan::StorePlan;
use crate::model::Event;
use crate::model::chance;

/// Between two checks of the database, and of what is too old.
const TICK: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 1000 });
/// How long a stop keeps trying to write what is queued.
const STOP_WAIT: Duration = Duration::from_millis(if cfg!(test) { 1000 } else { 5000 });
/// How many runs of refused tickets are remembered for those who wait for them.
const REFUSED_KEPT: usize = 65_536;

/// The writing side of a store. There is one; it holds the lock on the database.
pub struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Link,
    pub(super) known: Known,
    pub(super) retention: Retention,
    /// `None` before it has begun.
    pub(super) channels: Option<Arc<dyn Channels>>,
    pace: Pace,
    /// The ids of the log and of this run.
    pub(super) log: u64,
    pub(super) run: String,
    /// Something was committed since the last check of the database.
    pub(super) proven: bool,
    /// Checks the file after a crash.
    pub(super) check: Option<JoinHandle<()>>,
}

/// A stop, and how long the writer keeps trying.
pub(super) struct Stop<'a> {
    pub(super) asked: Pin<&'a mut (dyn Future<Output = ()> + Send)>,
    pub(super) until: Option<Instant>,
}

/// The time for a stop ran out with rows unwritten.
pub(super) struct GaveUp;

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, link: Link, known: Known, plan: &StorePlan, recovered: &Recovered) -> Self {
        let check = if recovered.clean { None } else { check::spawn(&link, shared.readers()) };
        let retention = Retention::new(plan.size);
        let run = chance::epoch().to_string();
        Self { shared, link, known, retention, channels: None, pace: Pace::default(), log: recovered.log, run, proven: true, check }
    }

    /// Records in the database that it is in use and what each channel promises, and accepts reservations from now on. This is
    /// the last step of a start: if anything fails before, it leaves no trace.
    pub async fn begin(&mut self, channels: Arc<dyn Channels>) -> Result<(), StoreError> {
        begin(&mut self.link, &*channels, &self.run).await?;
        self.channels = Some(channels);
        self.shared.queue.begin();
        Ok(())
    }

    /// Writes until `stop` resolves, then what is still queued, and that this was an orderly end. Nothing to do for one that
    /// has not begun.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) {
        let Some(channels) = self.channels.clone() else { return };
        let mut stop = Stop { asked: pin!(stop), until: None };
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut gave_up = false;
        while !gave_up {
            tokio::select! {
                () = self.shared.queue.woken() => {}
                _ = ticks.tick() => self.tick(&*channels).await,
                () = std::future::ready(()), if self.may_trim(&stop) => self.trim(&*channels).await,
                () = &mut stop.asked, if stop.until.is_none() => self.begin_stop(&mut stop),
                () = sleep_until(stop.until.unwrap_or_else(Instant::now)), if stop.until.is_some() => gave_up = true,
            }
            gave_up |= self.step(&*channels, &mut stop).await.is_err();
            if stop.until.is_some() && self.shared.queue.is_done() {
                break;
            }
        }
        self.end(gave_up).await;
    }

    /// Checks whether the database can be written to and which events must be removed, and that records do not wait for long.
    async fn tick(&mut self, channels: &dyn Channels) {
        self.probe(channels).await;
        self.shared.queue.write_records();
        self.retention.tick(&self.known, channels, self.shared.clock.now().wall_ms);
    }

    /// Whether old events may be removed now: not while there is something more urgent.
    fn may_trim(&self, stop: &Stop<'_>) -> bool {
        self.retention.has_work() && stop.until.is_none() && self.shared.queue.state() == StoreState::Ok
    }

    /// Removes some old events, in one transaction.
    async fn trim(&mut self, channels: &dyn Channels) {
        match self.retention.chunk(&mut self.link, &mut self.known, channels, self.shared.clock.now().wall_ms).await {
            Ok(trimmed) => trimmed.iter().for_each(|(name, first)| channels.trimmed(name, *first)),
            Err(fault) => self.failed(&fault, channels).await,
        }
    }

    pub(super) fn begin_stop(&self, stop: &mut Stop<'_>) {
        self.shared.queue.stop();
        stop.until = Some(Instant::now() + STOP_WAIT);
    }

    /// Writes the next batch, records that are due, and counts. Only one batch, so that a stop is noticed while publishers keep
    /// the queue filled.
    async fn step(&mut self, channels: &dyn Channels, stop: &mut Stop<'_>) -> Result<(), GaveUp> {
        self.note_early(channels).await;
        if let Some((rows, until)) = self.pace.wanted() {
            self.shared.queue.gathered(rows, until).await;
        }
        let batch = self.shared.queue.take();
        if let Some(newest) = batch.newest {
            self.pace.took(batch.items.len(), newest, std::time::Instant::now());
            let refused = self.write(&batch, channels, stop).await?;
            self.shared.queue.release(&batch);
            channels.committed(&mut stored(&batch, &refused));
            self.tell(&batch, refused);
        }
        let records = self.shared.queue.take_records();
        if !records.items.is_empty() {
            let refused = self.write(&records, channels, stop).await?;
            self.shared.queue.release(&records);
            self.tell(&records, refused);
        }
        let points = self.shared.queue.take_points();
        if !points.is_empty() {
            self.write_points(&points, channels, stop).await?;
        }
        Ok(())
    }

    /// Records which channels will show events before they are committed, if somebody waits for that.
    async fn note_early(&mut self, channels: &dyn Channels) {
        let Some(EarlyChannels { names, done }) = self.shared.early.lock().take() else { return };
        let noted = match note_early(&mut self.link, &names).await {
            Ok(()) => Ok(()),
            Err(fault) => {
                self.failed(&fault, channels).await;
                Err(StoreError::Unable(fault.to_string().into()))
            }
        };
        // The caller may no longer wait.
        done.send(noted).ok();
    }

    /// Writes one batch, however long the database cannot. If the database refuses its content, halves are tried, then single
    /// transactions; whatever depends on a refused one is refused with it. Returns the tickets of refused rows, in order.
    async fn write(&mut self, batch: &Batch, channels: &dyn Channels, stop: &mut Stop<'_>) -> Result<Vec<Range<u64>>, GaveUp> {
        let all = 0..batch.len();
        let mut pieces = VecDeque::from([all.clone()]);
        let mut refused: Vec<Range<u64>> = Vec::new();
        while let Some(piece) = pieces.pop_front() {
            // Everything before this piece is decided.
            let misled = batch.misled(&piece, |ticket| {
                let at = refused.partition_point(|tickets| tickets.end <= ticket.0);
                refused.get(at).is_some_and(|tickets| tickets.contains(&ticket.0))
                    || self.shared.progress.borrow().has_refused(ticket, ticket)
            });
            let error = match misled {
                Some(at) if piece.len() > 1 => {
                    let parts = [piece.start..at, at..at + 1, at + 1..piece.end];
                    parts.into_iter().rev().filter(|part| !part.is_empty()).for_each(|part| pieces.push_front(part));
                    continue;
                }
                Some(_) => None,
                None => match self.attempt(&Work::Items(&batch.items[batch.places(&piece)]), channels, stop).await? {
                    Ok(()) => continue,
                    Err(error) => Some(error),
                },
            };
            if piece.len() > 1 {
                split(piece, &all).into_iter().rev().for_each(|part| pieces.push_front(part));
            } else {
                refused.push(self.refuse(batch, &piece, error, channels, stop).await?);
            }
        }
        Ok(refused)
    }

    /// One transaction is not stored: the database refused it, or one that it depends on. Returns its tickets.
    async fn refuse(
        &mut self,
        batch: &Batch,
        transaction: &Range<usize>,
        error: Option<sqlx::Error>,
        channels: &dyn Channels,
        stop: &mut Stop<'_>,
    ) -> Result<Range<u64>, GaveUp> {
        let places = batch.places(transaction);
        let items = &batch.items[places.clone()];
        let tickets = batch.first + places.start as u64..batch.first + places.end as u64;
        let (rows, what) = (items.len(), items.first().map(describe));
        match error {
            Some(error) => tracing::error!(ticket = tickets.start, rows, %error, what, "the store refused a transaction; it is lost"),
            None => tracing::error!(ticket = tickets.start, rows, what, "a transaction depends on one that the store refused; it is lost"),
        }
        // Its offsets were assigned, and may have been seen: they count as used.
        if let Err(error) = self.attempt(&Work::Refused(items), channels, stop).await? {
            tracing::error!(%error, "the store refused the offsets of a refused transaction too");
        }
        Ok(tickets)
    }

    async fn write_points(&mut self, points: &[Point], channels: &dyn Channels, stop: &mut Stop<'_>) -> Result<(), GaveUp> {
        if let Err(error) = self.attempt(&Work::Points(points), channels, stop).await? {
            tracing::error!(series = points.len(), %error, "the store refused the counters; they are lost");
        }
        Ok(())
    }

    fn tell(&self, batch: &Batch, refused: Vec<Range<u64>>) {
        self.shared.progress.send_modify(|progress| {
            let lost: u64 = refused.iter().map(|tickets| tickets.end - tickets.start).sum();
            let last = batch.first + batch.items.len() as u64 - 1;
            if batch.records {
                progress.records = last;
            } else {
                progress.committed = last;
            }
            progress.rows += batch.items.len() as u64 - lost;
            progress.rows_refused += lost;
            progress.batches += 1;
            for tickets in refused.into_iter().filter(|_| !batch.records) {
                match progress.refused.back_mut().filter(|last| last.end == tickets.start) {
                    Some(last) => last.end = tickets.end,
                    None => progress.refused.push_back(tickets),
                }
            }
            let excess = progress.refused.len().saturating_sub(REFUSED_KEPT);
            progress.refused.drain(..excess);
        });
    }

    async fn end(mut self, gave_up: bool) {
        if gave_up {
            let rows = self.shared.queue.stats().queued_rows;
            tracing::error!(rows, "the store could not be written to before the stop; queued rows are lost");
        } else if let Err(error) = say_clean(&mut self.link, self.shared.queue.seq()).await {
            tracing::error!(%error, "the store could not be closed cleanly; channels that deliver early get new epochs at the next start");
        }
        self.shared.readers().close().await;
        if let Err(error) = self.link.close().await {
            tracing::debug!(%error, "the store's connection did not close cleanly");
        }
    }
}

/// The events of a batch, except those that were refused.
fn stored<'b>(batch: &'b Batch, refused: &'b [Range<u64>]) -> impl Iterator<Item = &'b Arc<Event>> {
    (batch.first..).zip(&batch.items).filter_map(|(ticket, item)| match item {
        Item::Event(event) if !refused.iter().any(|tickets| tickets.contains(&ticket)) => Some(event),
        _ => None,
    })
}

/// However the writer ends, nobody keeps waiting for it.
impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(check) = &self.check {
            check.abort();
        }
        self.shared.queue.stop();
        self.shared.progress.send_modify(|progress| progress.ended = true);
    }
}

/// Splits the whole into halves, and a half into single transactions.
fn split(piece: Range<usize>, all: &Range<usize>) -> Vec<Range<usize>> {
    if piece == *all {
        let middle = piece.start + piece.len() / 2;
        vec![piece.start..middle, middle..piece.end]
    } else {
        piece.map(|one| one..one + 1).collect()
    }
}

/// Describes a row without its content.
fn describe(item: &Item) -> String {
    match item {
        Item::Event(event) => format!("event {} of {:?} at offset {}", event.new.id, event.channel, event.offset),
        Item::Opened(record) => format!("connection {} opened", record.client),
        Item::Closed(both) => format!("connection {} closed", both.0.client),
        Item::Session(session) => format!("session {} put", session.id),
        Item::SessionEnd(id) => format!("session {id} ended"),
    }
}
