//! A walk along one index of the log, in windows that are bounded in rows and in time, so that no filter can hold up the
//! database. The index that promises the fewest rows leads; what it does not decide is compared row by row inside the window.
//!
//! A single channel is walked along its offsets, everything else along the positions in the log, which grow with time.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::StoreError;
use super::cursor::{self, Order};
use super::db::Pool;
use super::filter::Filter;
use super::names::{ChannelSet, resolve};
use super::read::{Columns, Query, Value};
use super::row::{COLUMNS, event, name};
use crate::model::Event;

/// A page ends early once its events have this many bytes.
const PAGE_BYTES_MAX: usize = 16 << 20;
/// Times do not always grow with positions, because clocks are adjusted. They may differ by this much.
const CLOCK_SLACK_MS: i64 = 60_000;

/// The largest key; one more is still a valid number.
const LAST_KEY: i64 = i64::MAX - 1;

/// How much one page may look at before it returns what it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Rows in total, approximately.
    pub(super) rows: i64,
    /// Rows of the first window. Each following one is ten times as large, as far as the time seems to allow.
    pub(super) first: i64,
    pub(super) time: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { rows: 200_000, first: 2000, time: Duration::from_millis(250) }
    }
}

/// The index that leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lead {
    Session,
    User,
    Channel(i64),
    Kind,
    Source,
    Position,
}

/// A walk, and its state: what is left has keys from `low` to `high`, both included.
#[derive(Debug)]
pub(super) struct Scan {
    filter: Filter,
    order: Order,
    channels: ChannelSet,
    lead: Lead,
    low: i64,
    high: i64,
}

/// What one step of a walk found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) events: Vec<Event>,
    /// Where the next step begins. `None`: nothing follows.
    pub(super) next: Option<String>,
    /// More may follow although the limit is not reached, because enough rows were looked at.
    pub(super) truncated: bool,
}

/// Why reading a window ended.
enum End {
    Through,
    Full,
    Late,
}

impl Scan {
    /// Begins a walk, or continues where a cursor says. `None` if nothing can be found.
    pub(super) async fn begin(pool: &Pool, filter: &Filter, order: Order, cursor: Option<&str>) -> Result<Option<Self>, StoreError> {
        let key = cursor.map(|text| cursor::read(text, order, filter.fingerprint())).transpose()?;
        // Read before the channels are: newer events may be of a channel that is not among them yet, and must not be skipped for
        // even newer ones.
        let newest = newest(pool).await?;
        let Some(channels) = resolve(pool, filter).await? else { return Ok(None) };
        let lead = lead(filter, &channels);
        let (mut low, mut high) = positions(pool, filter).await?;
        if let ChannelSet::Some(_) = channels {
            high = high.min(newest);
        }
        if let Lead::Channel(channel) = lead {
            // Most queries have no time bounds and need no search.
            low = if low > 0 { offset_from(pool, channel, low).await? } else { 0 };
            high = if high < LAST_KEY { offset_from(pool, channel, high + 1).await? - 1 } else { LAST_KEY };
        }
        let mut scan = Self { filter: filter.clone(), order, channels, lead, low, high };
        if let Some(key) = key {
            scan.pass(key);
        }
        Ok(Some(scan))
    }

    /// A walk over what follows a position in the log, oldest first.
    pub(super) async fn after(pool: &Pool, filter: &Filter, place: i64) -> Result<Option<Self>, StoreError> {
        let Some(mut scan) = Self::begin(pool, filter, Order::Ascending, None).await? else { return Ok(None) };
        let next = place.saturating_add(1);
        let next = if let Lead::Channel(channel) = scan.lead { offset_from(pool, channel, next).await? } else { next };
        scan.low = scan.low.max(next);
        Ok(Some(scan))
    }

    /// The next events, at most `limit`.
    pub(super) async fn step(&mut self, pool: &Pool, limit: usize, budget: Budget) -> Result<Found, StoreError> {
        let begun = Instant::now();
        let (mut found, mut bytes) = (Found::default(), 0);
        let (mut window, mut looked) = (budget.first, 0);
        while self.low <= self.high {
            let Some((low, high)) = self.window(pool, window).await? else { break };
            let end = self.read(pool, (low, high), limit, &mut found, &mut bytes, begun + budget.time).await?;
            looked += window;
            let spent = begun.elapsed();
            match end {
                End::Full => {}
                End::Through if self.is_decided() => break,
                End::Through => {
                    self.pass(if self.order == Order::Descending { low } else { high });
                    if self.low > self.high {
                        break;
                    }
                    if looked < budget.rows && spent < budget.time {
                        window = next_window(window, looked, spent, budget);
                        continue;
                    }
                    found.truncated = true;
                }
                End::Late => found.truncated = true,
            }
            found.next = Some(self.cursor());
            return Ok(found);
        }
        self.low = 1;
        self.high = 0;
        Ok(found)
    }

    /// Whether a page may still follow.
    pub(super) fn is_done(&self) -> bool {
        self.low > self.high
    }

    fn cursor(&self) -> String {
        let last = if self.order == Order::Descending { self.high.saturating_add(1) } else { self.low.saturating_sub(1) };
        cursor::write(self.order, last, self.filter.fingerprint())
    }

    /// This key, and those before it, are done.
    fn pass(&mut self, key: i64) {
        match self.order {
            Order::Descending => self.high = self.high.min(key.saturating_sub(1)),
            Order::Ascending => self.low = self.low.max(key.saturating_add(1)),
        }
    }

    fn key(&self) -> &'static str {
        if let Lead::Channel(_) = self.lead { "e.\"offset\"" } else { "e.id" }
    }

    /// Whether the index decides everything: then every row it returns belongs to the page.
    fn is_decided(&self) -> bool {
        let filter = &self.filter;
        let conditions =
            [&filter.kind, &filter.user, &filter.session, &filter.client, &filter.source].iter().filter(|c| c.is_some()).count()
                + usize::from(!matches!(self.channels, ChannelSet::All))
                + usize::from(filter.since.is_some() || filter.until.is_some())
                + usize::from(filter.text.is_some())
                + filter.data.len();
        conditions == usize::from(self.lead != Lead::Position)
    }

    /// The keys of the next window. `None` if nothing is left.
    async fn window(&self, pool: &Pool, rows: i64) -> Result<Option<(i64, i64)>, StoreError> {
        if self.is_decided() {
            return Ok(Some((self.low, self.high)));
        }
        let dense = matches!(self.lead, Lead::Channel(_) | Lead::Position);
        let mut query = Query::new(pool, "SELECT ");
        query.push(self.key()).push(" FROM events e WHERE ");
        self.push_range(&mut query, self.low, self.high);
        self.push_order(&mut query);
        query.push(" LIMIT 1");
        if !dense {
            query.push(" OFFSET ").value(rows - 1);
        }
        let found = query.number().await?;
        Ok(match (self.order, dense) {
            // If keys are consecutive, a window of this many keys has about this many rows; gaps are skipped.
            (Order::Descending, true) => found.map(|newest| (self.low.max(newest.saturating_sub(rows - 1)), newest)),
            (Order::Ascending, true) => found.map(|oldest| (oldest, self.high.min(oldest.saturating_add(rows - 1)))),
            (Order::Descending, false) => Some((found.unwrap_or(self.low), self.high)),
            (Order::Ascending, false) => Some((self.low, found.unwrap_or(self.high))),
        })
    }

    /// The column that the leading index begins with.
    fn leads(&self) -> Option<(&'static str, Value)> {
        let filter = &self.filter;
        let (column, value) = match self.lead {
            Lead::Session => ("e.session", &filter.session),
            Lead::User => ("e.\"user\"", &filter.user),
            Lead::Kind => ("e.type", &filter.kind),
            Lead::Source => ("e.source", &filter.source),
            Lead::Channel(id) => return Some(("e.channel", id.into())),
            Lead::Position => return None,
        };
        value.as_deref().map(|value| (column, value.into()))
    }

    /// The range to look up in the leading index.
    fn push_range(&self, query: &mut Query<'_>, low: i64, high: i64) {
        match self.leads() {
            Some((column, value)) => query.within(column, value, self.key(), low, high),
            None => query.between(self.key(), low, high),
        };
    }

    /// In the order of the leading index.
    fn push_order(&self, query: &mut Query<'_>) {
        let direction = if self.order == Order::Descending { " DESC" } else { "" };
        query.push(" ORDER BY ");
        if let Some((column, _)) = self.leads() {
            query.push(column).push(direction).push(", ");
        }
        query.push(self.key()).push(direction);
    }

    /// The rows of one window. One row more than needed shows whether there are more.
    fn statement<'p>(&self, pool: &'p Pool, low: i64, high: i64, limit: usize) -> Query<'p> {
        let filter = &self.filter;
        let mut query = Query::new(pool, "SELECT ");
        query.push(COLUMNS).push(" FROM events e WHERE ");
        self.push_range(&mut query, low, high);
        let leads = self.leads().map(|(column, _)| column);
        for (column, value) in [
            ("e.client", &filter.client),
            ("e.session", &filter.session),
            ("e.\"user\"", &filter.user),
            ("e.type", &filter.kind),
            ("e.source", &filter.source),
        ] {
            if let Some(value) = value.as_deref().filter(|_| leads != Some(column)) {
                query.push(" AND ").aside(column).push(" = ").value(value);
            }
        }
        if !matches!(self.lead, Lead::Channel(_)) {
            self.channels.push(&mut query);
        }
        for (comparison, moment) in [(" >= ", &filter.since), (" < ", &filter.until)] {
            if let Some(moment) = moment {
                query.push(" AND ").aside_number("e.time_ms").push(comparison).value(moment.ms);
            }
        }
        if let Some(text) = &filter.text {
            query.push(" AND ").holds_lower("e.data", text.lower());
        }
        // A necessary condition: every matching row passes, and most of the others do not. A value is in the data as it is,
        // unless it is a string with escapes.
        for condition in filter.data.iter().take(4) {
            query.push(" AND (").holds("e.data", &condition.value).push(" OR ").holds("e.data", "\\").push(")");
        }
        self.push_order(&mut query);
        if !self.is_checked_here() {
            query.push(" LIMIT ").value(i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1));
        }
        query
    }

    /// Whether rows that the database returns must still be checked.
    fn is_checked_here(&self) -> bool {
        !self.filter.data.is_empty() || matches!(self.channels, ChannelSet::Many)
    }

    async fn read(
        &mut self,
        pool: &Pool,
        (low, high): (i64, i64),
        limit: usize,
        found: &mut Found,
        bytes: &mut usize,
        until: Instant,
    ) -> Result<End, StoreError> {
        let query = self.statement(pool, low, high, limit);
        let checked = self.is_checked_here();
        let by_offset = matches!(self.lead, Lead::Channel(_));
        let mut end = End::Through;
        let mut row = |row: &dyn Columns| {
            let key = row.number(if by_offset { 1 } else { 0 })?;
            let name = name(row)?;
            let fits = !checked || (self.filter.takes_channel(Some(name.as_str())) && self.filter.data_holds(row.word(5)?));
            if fits && (found.events.len() == limit || *bytes > PAGE_BYTES_MAX) {
                end = End::Full;
                return Ok(ControlFlow::Break(()));
            }
            if fits {
                let event = event(row, name)?;
                *bytes += event.cost_bytes();
                found.events.push(event);
            }
            self.pass(key);
            if checked && Instant::now() > until {
                end = End::Late;
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        };
        query.each(&mut row).await?;
        Ok(end)
    }
}

/// Ten times as many rows, but no more than the time and the rows that are left seem to allow.
fn next_window(window: i64, looked: i64, spent: Duration, budget: Budget) -> i64 {
    let left = budget.time.saturating_sub(spent).as_micros();
    let affordable = i64::try_from(u128::from(looked.unsigned_abs()) * left / spent.as_micros().max(1)).unwrap_or(i64::MAX);
    (window * 10).min(affordable).min(budget.rows - looked).max(budget.first)
}

/// The index that promises the fewest rows. It depends only on the query, so that a cursor finds the same one.
fn lead(filter: &Filter, channels: &ChannelSet) -> Lead {
    match (filter, channels) {
        (Filter { session: Some(_), .. }, _) => Lead::Session,
        (Filter { user: Some(_), .. }, _) => Lead::User,
        (_, ChannelSet::One(id)) => Lead::Channel(*id),
        (Filter { kind: Some(_), .. }, _) => Lead::Kind,
        (Filter { source: Some(_), .. }, _) => Lead::Source,
        _ => Lead::Position,
    }
}

/// The range of positions in the log that contains everything within the time bounds.
async fn positions(pool: &Pool, filter: &Filter) -> Result<(i64, i64), StoreError> {
    let (mut low, mut high) = (0, LAST_KEY);
    if let Some(since) = &filter.since {
        low = position_before(pool, since.ms).await?.saturating_add(1);
    }
    if let Some(until) = &filter.until {
        let mut query = Query::new(pool, "SELECT id FROM events WHERE time_ms > ");
        query.value(until.ms.saturating_add(CLOCK_SLACK_MS)).push(" ORDER BY time_ms LIMIT 1");
        high = query.number().await?.map_or(LAST_KEY, |after| after - 1);
    }
    Ok((low, high))
}

/// The newest position in the log that still has an event.
async fn newest(pool: &Pool) -> Result<i64, StoreError> {
    Ok(Query::new(pool, "SELECT max(id) FROM events").number().await?.unwrap_or(0))
}

/// A position in the log before everything of this time and later; 0 if everything may be.
pub(super) async fn position_before(pool: &Pool, ms: i64) -> Result<i64, StoreError> {
    let mut query = Query::new(pool, "SELECT id FROM events WHERE time_ms < ");
    query.value(ms.saturating_sub(CLOCK_SLACK_MS)).push(" ORDER BY time_ms DESC LIMIT 1");
    Ok(query.number().await?.unwrap_or(0))
}

/// The first offset of a channel whose event has this position in the log or a later one. Both grow together, so a binary search
/// finds it in some twenty look-ups.
async fn offset_from(pool: &Pool, channel: i64, place: i64) -> Result<i64, StoreError> {
    let mut ends = Query::new(pool, "SELECT min(e.\"offset\"), max(e.\"offset\") FROM events e WHERE e.channel = ");
    ends.value(channel);
    let found = ends.first(|row| Ok((row.number(0)?, row.number(1)?))).await?;
    let Some((mut from, newest)) = found else { return Ok(0) };
    let mut to = newest.saturating_add(1);
    while from < to {
        let middle = from + (to - from) / 2;
        let mut next = Query::new(pool, "SELECT e.id FROM events e WHERE e.channel = ");
        next.value(channel).push(" AND e.\"offset\" >= ").value(middle).push(" ORDER BY e.\"offset\" LIMIT 1");
        match next.number().await? {
            Some(found) if found < place => from = middle + 1,
            Some(_) | None => to = middle,
        }
    }
    Ok(from)
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
