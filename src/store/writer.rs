//! The one task that writes. It takes what is queued, commits it as one transaction, then lets those know who wait: while one
//! commit is on its way to the disk the next batch gathers, so batches grow with the load and no timer delays anyone.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, SqliteConnection};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::open::Database;
use super::queue::{Batch, Item};
use super::{Shared, StoreError, StoreState, insert};
use crate::model::Now;

/// Between two writes of the totals that changed.
const COUNTERS_EVERY: Duration = Duration::from_secs(10);
/// The first wait after a failed write; doubled up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(1);
/// How long a stop goes on trying to write what is queued.
const STOP_WAIT: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5000 });
/// How many refused tickets are remembered for those who wait for them.
const REFUSED_KEPT: usize = 1024;

/// The writing side of a store. There is one; it holds the lock on the file.
pub struct Writer {
    shared: Arc<Shared>,
    pub(super) database: Database,
    begun: bool,
}

/// The stop that was asked for, and until when the writer goes on trying.
struct Stop<'a> {
    asked: Pin<&'a mut (dyn Future<Output = ()> + Send)>,
    until: Option<Instant>,
}

/// The time of a stop ran out with rows unwritten.
struct GaveUp;

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, database: Database) -> Self {
        Self { shared, database, begun: false }
    }

    /// Notes in the file that it is in use, and takes reservations from now on. Last step of a start: what fails before it
    /// leaves no trace.
    pub async fn begin(&mut self) -> Result<(), StoreError> {
        if !self.begun {
            self.note_running().await?;
            self.begun = true;
            self.shared.queue.begin();
        }
        Ok(())
    }

    /// Writes until `stop` resolves, then what is still queued, the totals, and that this was an orderly end. Begins where
    /// that was not done.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) {
        let mut stop = Stop { asked: pin!(stop), until: None };
        let mut counters = interval(COUNTERS_EVERY);
        counters.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut gave_up = self.begin_at_last(&mut stop).await.is_err();
        while !gave_up {
            let mut totals = Vec::new();
            tokio::select! {
                () = self.shared.queue.woken() => {}
                _ = counters.tick() => totals = self.changed_totals(),
                () = &mut stop.asked, if stop.until.is_none() => self.begin_stop(&mut stop),
                () = sleep_until(stop.until.unwrap_or_else(Instant::now)), if stop.until.is_some() => gave_up = true,
            }
            gave_up |= self.step(totals, &mut stop).await.is_err();
            if stop.until.is_some() && self.shared.queue.is_done() {
                break;
            }
        }
        self.end(gave_up).await;
    }

    async fn begin_at_last(&mut self, stop: &mut Stop<'_>) -> Result<(), GaveUp> {
        while let Err(StoreError::Query(error)) = self.begin().await {
            self.degraded(&error);
            self.pause(RETRY_LAST, stop).await?;
        }
        self.recovered();
        Ok(())
    }

    async fn note_running(&self) -> sqlx::Result<()> {
        sqlx::query("UPDATE meta SET value = '0' WHERE key = 'clean'").execute(&self.database.writer).await?;
        Ok(())
    }

    fn begin_stop(&self, stop: &mut Stop<'_>) {
        self.shared.queue.stop();
        stop.until = Some(Instant::now() + STOP_WAIT);
    }

    /// Writes the next batch and the totals. One only, so that a stop is seen while publishers keep the queue filled.
    async fn step(&self, mut totals: Vec<(String, u64)>, stop: &mut Stop<'_>) -> Result<(), GaveUp> {
        let batch = self.shared.queue.take();
        if batch.items.is_empty() && totals.is_empty() {
            return Ok(());
        }
        let refused = self.write(&batch, &mut totals, stop).await?;
        self.shared.queue.release(&batch);
        self.tell(&batch, &refused);
        Ok(())
    }

    /// Writes one batch, however long the database cannot. Where it refuses the batch for what is in it, halves are tried, then
    /// rows. Gives the tickets of refused rows.
    async fn write(&self, batch: &Batch, totals: &mut Vec<(String, u64)>, stop: &mut Stop<'_>) -> Result<Vec<u64>, GaveUp> {
        let all = 0..batch.items.len();
        let mut pieces = VecDeque::from([all.clone()]);
        let mut refused = Vec::new();
        let mut wait = RETRY_FIRST;
        while let Some(piece) = pieces.pop_front() {
            match self.transaction(&batch.items[piece.clone()], totals).await {
                Ok(()) => {
                    totals.clear();
                    self.recovered();
                }
                Err(error) if is_about_a_row(&error) && piece.len() == 1 => {
                    let ticket = batch.first + piece.start as u64;
                    tracing::error!(ticket, %error, row = describe(&batch.items[piece.start]), "the store refused a row; it is lost");
                    refused.push(ticket);
                }
                Err(error) if is_about_a_row(&error) => split(piece, &all).into_iter().rev().for_each(|p| pieces.push_front(p)),
                Err(error) => {
                    self.degraded(&error);
                    pieces.push_front(piece);
                    self.pause(wait, stop).await?;
                    wait = (wait * 2).min(RETRY_LAST);
                }
            }
        }
        Ok(refused)
    }

    async fn pause(&self, wait: Duration, stop: &mut Stop<'_>) -> Result<(), GaveUp> {
        tokio::select! {
            () = sleep(wait) => {}
            () = &mut stop.asked, if stop.until.is_none() => self.begin_stop(stop),
        }
        if stop.until.is_some_and(|until| Instant::now() >= until) { Err(GaveUp) } else { Ok(()) }
    }

    async fn transaction(&self, items: &[Item], totals: &[(String, u64)]) -> sqlx::Result<()> {
        let mut db = self.database.writer.acquire().await?;
        let done = commit(&mut db, items, totals).await;
        // A connection whose thread has died would fail for ever: after an error the next try has a fresh one. In memory it is
        // the database itself and stays.
        if done.is_err() && self.database.lock.is_some() {
            db.close_on_drop();
        }
        done
    }

    fn tell(&self, batch: &Batch, refused: &[u64]) {
        if batch.items.is_empty() {
            return;
        }
        self.shared.progress.send_modify(|progress| {
            progress.committed = batch.first + batch.items.len() as u64 - 1;
            progress.rows += (batch.items.len() - refused.len()) as u64;
            progress.rows_refused += refused.len() as u64;
            progress.batches += 1;
            progress.refused.extend(refused);
            let excess = progress.refused.len().saturating_sub(REFUSED_KEPT);
            progress.refused.drain(..excess);
        });
    }

    fn degraded(&self, error: &sqlx::Error) {
        if self.shared.queue.state() == StoreState::Ok {
            tracing::error!(%error, "the store cannot be written to; publishing to channels with history is refused until it can");
            let reason = error.to_string().into();
            self.shared.queue.set_state(StoreState::Degraded { since_ms: Now::read().wall_ms, reason });
        }
    }

    fn recovered(&self) {
        if let StoreState::Degraded { since_ms, .. } = self.shared.queue.state() {
            self.shared.queue.set_state(StoreState::Ok);
            tracing::info!(after_ms = Now::read().wall_ms - since_ms, "the store can be written to again");
        }
    }

    /// The totals that changed since they were last asked for. Totals, not differences: writing them twice does no harm.
    fn changed_totals(&self) -> Vec<(String, u64)> {
        let mut counters = self.shared.counters.lock();
        let changed = std::mem::take(&mut counters.changed);
        changed
            .into_iter()
            .map(|name| (counters.totals.get(&name).copied().unwrap_or(0), name))
            .map(|(total, name)| (name, total))
            .collect()
    }

    async fn end(self, gave_up: bool) {
        if gave_up {
            let rows = self.shared.queue.stats().queued_rows;
            tracing::error!(rows, "the store could not be written to before the stop; channels get new epochs at the next start");
        } else if let Err(error) = self.say_clean().await {
            tracing::error!(%error, "the store could not be closed in order; channels get new epochs at the next start");
        }
        self.database.readers.close().await;
        self.database.writer.close().await;
    }

    async fn say_clean(&self) -> sqlx::Result<()> {
        let totals = self.changed_totals();
        let mut db = self.database.writer.acquire().await?;
        let mut tx = db.begin_with("BEGIN IMMEDIATE").await?;
        insert::counters(&mut tx, &totals).await?;
        sqlx::query("UPDATE meta SET value = '1' WHERE key = 'clean'").execute(&mut *tx).await?;
        tx.commit().await?;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *db).await?;
        Ok(())
    }
}

/// However the writer ends, nobody waits for it in vain.
impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.stop();
        self.shared.progress.send_modify(|progress| progress.ended = true);
    }
}

/// By hand rather than as a transaction of sqlx's: a full disk ends a transaction on its own, which that one never learns.
async fn commit(db: &mut SqliteConnection, items: &[Item], totals: &[(String, u64)]) -> sqlx::Result<()> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *db).await?;
    let done = fill(db, items, totals).await;
    if done.is_err()
        && let Err(error) = sqlx::query("ROLLBACK").execute(db).await
    {
        tracing::debug!(%error, "the database had rolled back by itself");
    }
    done
}

async fn fill(db: &mut SqliteConnection, items: &[Item], totals: &[(String, u64)]) -> sqlx::Result<()> {
    insert::items(db, items).await?;
    insert::counters(db, totals).await?;
    sqlx::query("COMMIT").execute(db).await?;
    Ok(())
}

/// The whole into halves, a half into rows.
fn split(piece: Range<usize>, all: &Range<usize>) -> Vec<Range<usize>> {
    if piece == *all {
        let middle = piece.start + piece.len() / 2;
        vec![piece.start..middle, middle..piece.end]
    } else {
        piece.map(|row| row..row + 1).collect()
    }
}

/// Whether the database took offence at a row rather than being unable to write: too large, a broken constraint, a wrong type.
fn is_about_a_row(error: &sqlx::Error) -> bool {
    const TOO_BIG: u32 = 18;
    const CONSTRAINT: u32 = 19;
    const MISMATCH: u32 = 20;
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().and_then(|code| code.parse::<u32>().ok());
            // The low byte is the primary code; the rest says more.
            code.is_some_and(|code| matches!(code & 0xff, TOO_BIG | CONSTRAINT | MISMATCH))
        }
        sqlx::Error::Encode(_) => true,
        _ => false,
    }
}

/// Which row it was, without its content.
fn describe(item: &Item) -> String {
    match item {
        Item::Event(event) => format!("event {} of {:?} at offset {}", event.new.id, event.channel, event.offset),
        Item::Opened(record) => format!("connection {} opened", record.client),
        Item::Closed(both) => format!("connection {} closed", both.0.client),
    }
}
