//! The one task that writes. It takes what is queued, commits it as one transaction, then lets those know who wait: while one
//! commit is on its way to the disk the next batch gathers, so batches grow with the load and no timer delays anyone.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::channels::Channels;
use super::fault::Fault;
use super::link::Link;
use super::queue::{Batch, Item};
use super::record::Point;
use super::work::{Work, begin, perform, say_clean};
use super::{Shared, StoreError, StoreState};
use crate::model::Now;
use crate::model::event::fresh_epoch;

/// The first wait after a failed write; doubled up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(1);
/// How long a stop goes on trying to write what is queued.
const STOP_WAIT: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5000 });
/// How many runs of refused tickets are remembered for those who wait for them.
const REFUSED_KEPT: usize = 65_536;

/// The writing side of a store. There is one; it holds the lock on the database.
pub struct Writer {
    shared: Arc<Shared>,
    pub(super) link: Link,
    /// None before it began.
    channels: Option<Arc<dyn Channels>>,
}

/// The stop that was asked for, and until when the writer goes on trying.
struct Stop<'a> {
    asked: Pin<&'a mut (dyn Future<Output = ()> + Send)>,
    until: Option<Instant>,
}

/// The time of a stop ran out with rows unwritten.
struct GaveUp;

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, link: Link) -> Self {
        Self { shared, link, channels: None }
    }

    /// Notes in the database that it is in use and which channels promise what, and takes reservations from now on. Last step
    /// of a start: what fails before it leaves no trace.
    pub async fn begin(&mut self, channels: Arc<dyn Channels>) -> Result<(), StoreError> {
        begin(&mut self.link, &*channels).await?;
        self.channels = Some(channels);
        self.shared.queue.begin();
        Ok(())
    }

    /// Writes until `stop` resolves, then what is still queued, and that this was an orderly end. Nothing to do for one that
    /// has not begun.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) {
        let Some(channels) = self.channels.clone() else { return };
        let mut stop = Stop { asked: pin!(stop), until: None };
        let mut gave_up = false;
        while !gave_up {
            tokio::select! {
                () = self.shared.queue.woken() => {}
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

    fn begin_stop(&self, stop: &mut Stop<'_>) {
        self.shared.queue.stop();
        stop.until = Some(Instant::now() + STOP_WAIT);
    }

    /// Writes the next batch and what was counted. One only, so that a stop is seen while publishers keep the queue filled.
    async fn step(&mut self, channels: &dyn Channels, stop: &mut Stop<'_>) -> Result<(), GaveUp> {
        let batch = self.shared.queue.take();
        if !batch.items.is_empty() {
            let refused = self.write(&batch, channels, stop).await?;
            self.shared.queue.release(&batch);
            self.tell(&batch, refused);
        }
        let points = self.shared.queue.take_points();
        if !points.is_empty() {
            self.write_points(&points, channels, stop).await?;
        }
        Ok(())
    }

    /// Writes one batch, however long the database cannot. Where it refuses the batch for what is in it, halves are tried, then
    /// single transactions. Gives the tickets of what was refused.
    async fn write(&mut self, batch: &Batch, channels: &dyn Channels, stop: &mut Stop<'_>) -> Result<Vec<Range<u64>>, GaveUp> {
        let all = 0..batch.len();
        let mut pieces = VecDeque::from([all.clone()]);
        let mut refused = Vec::new();
        while let Some(piece) = pieces.pop_front() {
            let places = batch.places(&piece);
            let items = &batch.items[places.clone()];
            match self.attempt(&Work::Items(items), channels, stop).await? {
                Ok(()) => {}
                Err(error) if piece.len() == 1 => {
                    let tickets = batch.first + places.start as u64..batch.first + places.end as u64;
                    let what = items.first().map(describe);
                    tracing::error!(ticket = tickets.start, rows = items.len(), %error, what, "the store refused a transaction; it is lost");
                    // Its offsets were given, and may have been seen: they count as used.
                    if let Err(error) = self.attempt(&Work::Refused(items), channels, stop).await? {
                        tracing::error!(%error, "the store refused the offsets of a refused transaction too");
                    }
                    refused.push(tickets);
                }
                Err(_) => split(piece, &all).into_iter().rev().for_each(|p| pieces.push_front(p)),
            }
        }
        Ok(refused)
    }

    async fn write_points(&mut self, points: &[Point], channels: &dyn Channels, stop: &mut Stop<'_>) -> Result<(), GaveUp> {
        if let Err(error) = self.attempt(&Work::Points(points), channels, stop).await? {
            tracing::error!(series = points.len(), %error, "the store refused what was counted; it is lost");
        }
        Ok(())
    }

    /// One transaction, tried until the database took or refused it. After a failure nobody knows whether the commit had come
    /// through, so the next try looks first.
    async fn attempt(&mut self, work: &Work<'_>, channels: &dyn Channels, stop: &mut Stop<'_>) -> Result<Result<(), sqlx::Error>, GaveUp> {
        let (mark, mut again) = (fresh_epoch(), false);
        let mut wait = RETRY_FIRST;
        loop {
            match perform(&mut self.link, work, channels, again, mark).await {
                Ok(()) => {
                    self.recovered();
                    return Ok(Ok(()));
                }
                Err(Fault::Row(error)) => return Ok(Err(error)),
                Err(Fault::Unable(reason)) => {
                    self.degraded(&reason);
                    self.pause(wait, stop).await?;
                    wait = (wait * 2).min(RETRY_LAST);
                    again = true;
                }
            }
        }
    }

    async fn pause(&self, wait: Duration, stop: &mut Stop<'_>) -> Result<(), GaveUp> {
        tokio::select! {
            () = sleep(wait) => {}
            () = &mut stop.asked, if stop.until.is_none() => self.begin_stop(stop),
        }
        if stop.until.is_some_and(|until| Instant::now() >= until) { Err(GaveUp) } else { Ok(()) }
    }

    fn tell(&self, batch: &Batch, refused: Vec<Range<u64>>) {
        self.shared.progress.send_modify(|progress| {
            let lost: u64 = refused.iter().map(|tickets| tickets.end - tickets.start).sum();
            progress.committed = batch.first + batch.items.len() as u64 - 1;
            progress.rows += batch.items.len() as u64 - lost;
            progress.rows_refused += lost;
            progress.batches += 1;
            for tickets in refused {
                match progress.refused.back_mut().filter(|last| last.end == tickets.start) {
                    Some(last) => last.end = tickets.end,
                    None => progress.refused.push_back(tickets),
                }
            }
            let excess = progress.refused.len().saturating_sub(REFUSED_KEPT);
            progress.refused.drain(..excess);
        });
    }

    fn degraded(&self, reason: &Arc<str>) {
        let since_ms = match self.shared.queue.state() {
            StoreState::Ok => {
                tracing::error!(%reason, "the store cannot be written to; publishing to channels with history is refused until it can");
                Now::read().wall_ms
            }
            StoreState::Degraded { since_ms, reason: before } => {
                if before != *reason {
                    tracing::warn!(%reason, "the store still cannot be written to");
                }
                since_ms
            }
        };
        self.shared.queue.set_state(StoreState::Degraded { since_ms, reason: reason.clone() });
    }

    fn recovered(&self) {
        if let StoreState::Degraded { since_ms, .. } = self.shared.queue.state() {
            self.shared.queue.set_state(StoreState::Ok);
            tracing::info!(after_ms = Now::read().wall_ms - since_ms, "the store can be written to again");
        }
    }

    async fn end(mut self, gave_up: bool) {
        if gave_up {
            let rows = self.shared.queue.stats().queued_rows;
            tracing::error!(rows, "the store could not be written to before the stop; what was queued is lost");
        } else if let Err(error) = say_clean(&mut self.link, self.shared.queue.seq()).await {
            tracing::error!(%error, "the store could not be closed in order; channels with an early promise get new epochs at the next start");
        }
        self.shared.readers().close().await;
        if let Err(error) = self.link.close().await {
            tracing::debug!(%error, "the store's connection did not close in order");
        }
    }
}

/// However the writer ends, nobody waits for it in vain.
impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.stop();
        self.shared.progress.send_modify(|progress| progress.ended = true);
    }
}

/// The whole into halves, a half into single transactions.
fn split(piece: Range<usize>, all: &Range<usize>) -> Vec<Range<usize>> {
    if piece == *all {
        let middle = piece.start + piece.len() / 2;
        vec![piece.start..middle, middle..piece.end]
    } else {
        piece.map(|one| one..one + 1).collect()
    }
}

/// Which row it was, without its content.
fn describe(item: &Item) -> String {
    match item {
        Item::Event(event) => format!("event {} of {:?} at offset {}", event.new.id, event.channel, event.offset),
        Item::Opened(record) => format!("connection {} opened", record.client),
        Item::Closed(both) => format!("connection {} closed", both.0.client),
        Item::Session(session) => format!("session {} put", session.id),
        Item::SessionEnd(id) => format!("session {id} ended"),
    }
}
