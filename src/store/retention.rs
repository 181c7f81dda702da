//! Removes what is too old or too much: events by their channel's count and age, the oldest of all if the database is too large,
//! connections and sessions that ended long ago; and turns minutes into hours.
//!
//! The writer does it between batches, one small transaction at a time, so that no batch waits for more than one.
//!
//! It knows without a query which channels are due: by count from what was appended, by age from the time of the oldest event.
//! For age all channels are walked over, a few in each tick.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use futures_util::FutureExt;

use super::channels::Channels;
use super::fault::Fault;
use super::known::{Known, cutoff};
use super::link::Link;
use super::size::Size;
use super::trim::{self, Trimmed};
use crate::model::ChannelName;

/// Rows of one transaction.
pub(super) const CHUNK: usize = 2000;
/// Channels that one transaction looks at.
const CHANNELS_AT_ONCE: usize = 50;
/// Channels that are walked over in one tick.
const WALKED: usize = 500;
/// Ticks between two rounds over what is not an event.
const ROUND: u64 = 60;
/// Ticks between two checks of the size.
const SIZE_EVERY: u64 = if cfg!(test) { 1 } else { 5 };

/// How long a connection is remembered after it ended.
const CONNECTIONS_KEPT: Duration = Duration::from_hours(30 * 24);
/// How long minutes are kept before they become hours.
const MINUTES_KEPT: Duration = Duration::from_hours(48);
/// How long hours are kept before they become days.
const HOURS_KEPT: Duration = Duration::from_hours(90 * 24);

/// What is not an event, and what must be done with it.
#[derive(Debug, Clone, Copy)]
enum Round {
    Connections,
    Sessions,
    Minutes,
    Hours,
}

const ROUNDS: [Round; 4] = [Round::Connections, Round::Sessions, Round::Minutes, Round::Hours];

/// What must be removed.
pub(super) struct Retention {
    /// Channels of which something must be removed, or may have to be.
    due: VecDeque<ChannelName>,
    listed: HashSet<ChannelName>,
    rounds: VecDeque<Round>,
    size: Option<Size>,
    /// How far the walk has come.
    walked: usize,
    ticks: u64,
}

impl Retention {
    /// `size`: how large the database may become.
    pub(super) fn new(size: Option<u64>) -> Self {
        let (due, listed, rounds) = Default::default();
        Self { due, listed, rounds, size: size.map(Size::new), walked: 0, ticks: 0 }
    }

    /// Something was appended to a channel.
    pub(super) fn note(&mut self, name: &ChannelName, known: &Known, channels: &dyn Channels) {
        let Some(channel) = known.get(name) else { return };
        let most = channels.policy(name.as_str()).keep.events;
        if most.is_some_and(|most| channel.top + 1 > channel.first.saturating_add(most)) {
            self.list(name);
        }
    }

    fn list(&mut self, name: &ChannelName) {
        if self.listed.insert(name.clone()) {
            self.due.push_back(name.clone());
        }
    }

    /// Looks for what has become due.
    pub(super) fn tick(&mut self, known: &Known, channels: &dyn Channels, now_ms: i64) {
        for _ in 0..WALKED.min(known.len()) {
            self.walked = if self.walked + 1 < known.len() { self.walked + 1 } else { 0 };
            if let Some((name, channel)) = known.nth(self.walked)
                && channel.is_due(&channels.policy(name.as_str()).keep, now_ms)
            {
                self.list(name);
            }
        }
        if self.ticks.is_multiple_of(ROUND) && self.rounds.is_empty() {
            self.rounds.extend(ROUNDS);
        }
        if let Some(size) = &mut self.size
            && self.ticks.is_multiple_of(SIZE_EVERY)
        {
            size.measure = true;
        }
        self.ticks += 1;
    }

    pub(super) fn has_work(&self) -> bool {
        !self.due.is_empty() || !self.rounds.is_empty() || self.size.as_ref().is_some_and(|size| size.measure)
    }

    /// Does one transaction of it. Returns the channels that have lost events, with their first offset now.
    pub(super) async fn chunk(
        &mut self,
        link: &mut Link,
        known: &mut Known,
        channels: &dyn Channels,
        now_ms: i64,
    ) -> Result<Vec<(ChannelName, u64)>, Fault> {
        let is_remote = link.is_remote();
        let work = async {
            if !self.due.is_empty() {
                self.events(link, known, channels, now_ms).await
            } else if let Some(size) = self.size.as_mut().filter(|size| size.measure) {
                let trimmed = size.chunk(link, known.rows()).await?;
                Ok(apply(known, trimmed))
            } else {
                self.round(link, now_ms).await?;
                Ok(Vec::new())
            }
        };
        Link::in_time(is_remote, work.boxed()).await
    }

    async fn events(
        &mut self,
        link: &mut Link,
        known: &mut Known,
        channels: &dyn Channels,
        now_ms: i64,
    ) -> Result<Vec<(ChannelName, u64)>, Fault> {
        let mut held = link.begin(0).await?;
        let mut done = Vec::new();
        let mut left = CHUNK;
        let work = async {
            for name in self.due.iter().take(CHANNELS_AT_ONCE) {
                let Some(channel) = known.get(name).filter(|_| left > 0) else { continue };
                let keep = channels.policy(name.as_str()).keep;
                let below = keep.events.map_or(0, |most| (channel.top + 1).saturating_sub(most));
                let before_ms = keep.age.map_or(i64::MIN, |age| cutoff(now_ms, age));
                let trimmed = trim::channel(&mut held, name, &channel, below, before_ms, left).await?;
                left = left.saturating_sub(trimmed.rows);
                done.push(trimmed);
            }
            Ok(())
        };
        let worked = work.await;
        link.end(held, worked).await?;
        // Unfinished channels go back to the front.
        let looked_at = self.due.len().min(CHANNELS_AT_ONCE);
        let finished: HashSet<&ChannelName> = done.iter().filter(|trimmed| !trimmed.more).map(|trimmed| &trimmed.name).collect();
        let rest: Vec<ChannelName> = self.due.drain(..looked_at).collect();
        for name in rest.into_iter().rev() {
            if finished.contains(&name) || known.get(&name).is_none() {
                self.listed.remove(&name);
            } else {
                self.due.push_front(name);
            }
        }
        Ok(apply(known, done))
    }

    async fn round(&mut self, link: &mut Link, now_ms: i64) -> Result<(), Fault> {
        let Some(round) = self.rounds.front().copied() else { return Ok(()) };
        let mut held = link.begin(0).await?;
        let before = |kept| cutoff(now_ms, kept);
        let done = match round {
            Round::Connections => trim::connections(&mut held, before(CONNECTIONS_KEPT)).await,
            Round::Sessions => trim::sessions(&mut held, now_ms).await,
            Round::Minutes => trim::points(&mut held, 60, 3600, before(MINUTES_KEPT) / 1000).await,
            Round::Hours => trim::points(&mut held, 3600, 86_400, before(HOURS_KEPT) / 1000).await,
        };
        if !link.end(held, done).await? {
            self.rounds.pop_front();
        }
        Ok(())
    }
}

/// Takes over what was removed, once that is committed.
fn apply(known: &mut Known, trimmed: Vec<Trimmed>) -> Vec<(ChannelName, u64)> {
    let mut lost = Vec::new();
    for Trimmed { name, first, oldest_ms, rows, .. } in trimmed {
        known.change(&name, |channel| {
            channel.first = channel.first.max(first);
            channel.oldest_ms = oldest_ms;
            if rows > 0 {
                lost.push((name.clone(), channel.first));
            }
        });
    }
    lost
}
