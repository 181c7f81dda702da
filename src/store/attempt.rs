//! How the writer copes with its database. The state is `ok` until a transaction or a check fails; then `degraded`, with the
//! reason, while the writer tries again; and `ok` with the first transaction that succeeds. A file that is gone or corrupt is
//! replaced.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::StoreState;
use super::channels::Channels;
use super::fault::Fault;
use super::replace::{Identity, replace};
use super::work::{Work, perform, probe};
use super::writer::{GaveUp, Stop, Writer};
use crate::model::chance;

/// The first pause after a failed write; doubled up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(1);

impl Writer {
    /// Tries one transaction until the database has accepted or refused it. After a failure nobody knows whether the commit
    /// succeeded, so the next try checks that first.
    pub(super) async fn attempt(
        &mut self,
        work: &Work<'_>,
        channels: &dyn Channels,
        stop: &mut Stop<'_>,
    ) -> Result<Result<(), sqlx::Error>, GaveUp> {
        let (mark, mut again) = (chance::epoch(), false);
        let mut wait = RETRY_FIRST;
        loop {
            self.heed_readers(channels).await;
            let begun = Instant::now();
            match perform(&mut self.link, work, channels, &self.known, again, mark).await {
                Ok(noted) => {
                    self.shared.commits.add(begun.elapsed());
                    self.recovered();
                    for channel in &noted {
                        if self.known.note(channel) {
                            channels.trimmed(&channel.name, channel.first);
                        }
                        self.retention.note(&channel.name, &self.known, channels);
                    }
                    self.known.seq = self.known.seq.max(work.last_seq());
                    return Ok(Ok(()));
                }
                Err(Fault::Row(error)) => return Ok(Err(error)),
                Err(fault) => {
                    again = true;
                    self.failed(&fault, channels).await;
                    if self.shared.queue.state() != StoreState::Ok {
                        self.pause(wait, stop).await?;
                        wait = (wait * 2).min(RETRY_LAST);
                    }
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

    /// Checks whether the database can be written to, if nothing else has shown it recently.
    pub(super) async fn probe(&mut self, channels: &dyn Channels) {
        self.heed_readers(channels).await;
        let is_ok = self.shared.queue.state() == StoreState::Ok;
        if is_ok && std::mem::take(&mut self.proven) {
            return;
        }
        match probe(&mut self.link, !is_ok).await {
            Ok(()) => self.recovered(),
            Err(fault) => self.failed(&fault, channels).await,
        }
        self.proven = false;
    }

    /// Reports what is wrong, and does something about it if possible.
    pub(super) async fn failed(&mut self, fault: &Fault, channels: &dyn Channels) {
        let gone = Fault::Gone;
        let fault = if self.link.is_there() { fault } else { &gone };
        self.degraded(&fault.to_string().into());
        if !matches!(fault, Fault::Gone | Fault::Corrupt(_)) {
            return;
        }
        let identity = Identity { log: self.log, run: &self.run, channels };
        match replace(&self.shared, &mut self.link, &mut self.known, fault, &identity).await {
            Ok(trimmed) => {
                trimmed.iter().for_each(|channel| channels.trimmed(&channel.name, channel.first));
                tracing::error!(channels = trimmed.len(), "the log continues in another file; the older events of these channels are gone");
                self.recovered();
            }
            Err(why) => self.degraded(&format!("{fault}; {why}").into()),
        }
    }

    /// Replaces the file if a reader, or the check after a crash, found it corrupt.
    async fn heed_readers(&mut self, channels: &dyn Channels) {
        let found = self.shared.readers.read().corruption();
        if let Some(reason) = found {
            self.failed(&Fault::Corrupt(reason), channels).await;
        }
    }

    fn degraded(&self, reason: &Arc<str>) {
        let since_ms = match self.shared.queue.state() {
            StoreState::Ok => {
                tracing::error!(%reason, "the store cannot be written to; publishing to channels with history is refused until that works again");
                self.shared.clock.now().wall_ms
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

    fn recovered(&mut self) {
        self.proven = true;
        if let StoreState::Degraded { since_ms, .. } = self.shared.queue.state() {
            self.shared.queue.set_state(StoreState::Ok);
            tracing::info!(after_ms = self.shared.clock.now().wall_ms - since_ms, "the store can be written to again");
        }
    }
}
