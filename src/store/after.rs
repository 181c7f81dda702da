//! What came after a position: in one channel after an offset, and over the channels of a filter after a position in the log.

use std::ops::ControlFlow;

use super::filter::Filter;
use super::names::{ChannelSet, push_names, resolve};
use super::read::{Columns, Query};
use super::row::{EVENT_COLUMNS, event};
use super::scan::{Budget, Scan, position_before};
use super::{Store, StoreError, StoredChannel};
use crate::model::event::Epoch;
use crate::model::{ChannelName, Event};

/// Events that a walk over the log reads in one query.
const WALK_ROWS: usize = 256;

/// The position of the log for the channels of a filter, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogPosition {
    /// The log's id: a position means nothing in another log.
    pub log: u64,
    /// The newest position in the log, in any channel.
    pub seq: u64,
    /// The sum of the newest offsets of the filter's channels: the number of events they ever had.
    pub tops: u64,
    /// The newest position at which one of these channels lost an event.
    pub gone: u64,
}

/// The events of a channel after an offset, as they were in the log.
#[derive(Debug, Default)]
pub struct Piece {
    /// Oldest first.
    pub events: Vec<Event>,
    /// From this offset on no event has been removed; those between the asked offset and this one are gone. `None`: the log has
    /// nothing of this epoch.
    pub whole_from: Option<u64>,
}

/// A walk along the log, oldest first, over every event of a filter's channels.
pub struct Walk {
    store: Store,
    scan: Option<Scan>,
}

impl Store {
    /// The events of one channel after an offset, oldest first, of this epoch only: at most `events_max`, and no more once they
    /// have `bytes_max` bytes, but at least one if there is one.
    pub async fn after(&self, channel: &str, epoch: Epoch, since: u64, events_max: usize, bytes_max: usize) -> Result<Piece, StoreError> {
        let Some(name) = ChannelName::parse(channel) else { return Ok(Piece::default()) };
        let pool = self.shared.readers();
        let mut query = Query::new(&pool, "SELECT ");
        query.push(EVENT_COLUMNS).push(" FROM events e WHERE e.channel = (SELECT c.id FROM channels c WHERE c.name = ").value(channel);
        query.push(") AND e.\"offset\" > ").value(i64::try_from(since).unwrap_or(i64::MAX));
        query.push(" AND ").aside_number("e.epoch").push(" = ").value(epoch.cast_signed());
        query.push(" ORDER BY e.\"offset\" LIMIT ").value(i64::try_from(events_max).unwrap_or(i64::MAX));
        let (mut events, mut bytes) = (Vec::new(), 0);
        let read = |row: &dyn Columns| {
            let event = event(row, name.clone())?;
            bytes += event.cost_bytes();
            if bytes > bytes_max && !events.is_empty() {
                return Ok(ControlFlow::Break(()));
            }
            events.push(event);
            Ok(ControlFlow::Continue(()))
        };
        query.each(read).await?;
        let first = events.first().map(|event| event.offset);
        if first == Some(since.saturating_add(1)) {
            return Ok(Piece { events, whole_from: first });
        }
        // Offsets are also missing where the database refused an event. Only the oldest events are ever removed, so nothing is
        // removed between two that are there. If more was removed since they were read, the first of them counts.
        let stored = self.stored_channel(&name).await?.filter(|stored| stored.epoch == epoch).map(|stored| stored.first);
        let whole_from = match (stored, first) {
            (Some(stored), Some(first)) => Some(stored.min(first)),
            (stored, first) => stored.or(first),
        };
        Ok(Piece { events, whole_from })
    }

    /// The position of a channel in the log. `None` if it never had a stored event.
    pub async fn stored_channel(&self, channel: &ChannelName) -> Result<Option<StoredChannel>, StoreError> {
        let pool = self.shared.readers();
        let mut query = Query::new(&pool, "SELECT epoch, top, first FROM channels WHERE name = ");
        let number = |number: i64| number.cast_unsigned();
        query
            .value(channel.as_str())
            .first(|row| {
                let (epoch, top, first) = (number(row.number(0)?), number(row.number(1)?), number(row.number(2)?));
                Ok(StoredChannel { name: channel.clone(), epoch, top, first })
            })
            .await
    }

    /// The position of the log, all of it read at one moment.
    pub async fn log_position(&self, filter: &Filter) -> Result<LogPosition, StoreError> {
        let pool = self.shared.readers();
        let mut query = Query::new(
            &pool,
            "SELECT m.seq, c.name, c.top, c.gone, (SELECT value FROM meta WHERE key = 'log') FROM (SELECT max(id) AS seq FROM events) m ",
        );
        let all = filter.channels.is_empty();
        if all {
            query.push("CROSS JOIN (SELECT '' AS name, CAST(sum(top) AS BIGINT) AS top, max(gone) AS gone FROM channels) c");
        } else {
            query.push("LEFT JOIN channels c ON ");
            push_names(&mut query, "c.name", &filter.channels);
        }
        let mut position = LogPosition::default();
        let read = |row: &dyn Columns| {
            position.seq = row.number(0)?.cast_unsigned();
            position.log = row.word(4)?.parse().unwrap_or_default();
            if all || row.text(1)?.is_some_and(|name| filter.takes_channel(Some(name))) {
                position.tops = position.tops.saturating_add(row.number(2)?.cast_unsigned());
                position.gone = position.gone.max(row.number(3)?.cast_unsigned());
            }
            Ok(ControlFlow::Continue(()))
        };
        query.each(read).await?;
        position.seq = position.seq.max(position.gone);
        Ok(position)
    }

    /// A position in the log before everything of this time and later; 0 if everything may be.
    pub async fn position_before(&self, ms: i64) -> Result<u64, StoreError> {
        Ok(position_before(&self.shared.readers(), ms).await?.cast_unsigned())
    }

    /// The events of a filter's channels after a position in the log. The filter's other conditions do not count here, because
    /// the caller needs to know how many events there were.
    pub async fn walk(&self, filter: &Filter, seq: u64) -> Result<Walk, StoreError> {
        let channels = Filter { channels: filter.channels.clone(), ..Filter::default() };
        let scan = Scan::after(&self.shared.readers(), &channels, i64::try_from(seq).unwrap_or(i64::MAX)).await?;
        Ok(Walk { store: self.clone(), scan })
    }

    /// How many events of a filter's channels are in the log after `after`, up to and including `up_to`. `None` if there are too
    /// many channels to be named, or more than `most` events.
    pub async fn count_between(&self, filter: &Filter, after: u64, up_to: u64, most: u64) -> Result<Option<u64>, StoreError> {
        let place = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
        let pool = self.shared.readers();
        let mut query = Query::new(&pool, "SELECT count(*) FROM (SELECT 1 FROM events e WHERE e.id > ");
        query.value(place(after)).push(" AND e.id <= ").value(place(up_to));
        match resolve(&pool, filter).await? {
            None => return Ok(Some(0)),
            Some(ChannelSet::Many) => return Ok(None),
            Some(set) => set.push(&mut query),
        }
        query.push(" LIMIT ").value(place(most.saturating_add(1))).push(") counted");
        Ok(query.number().await?.map(i64::cast_unsigned).filter(|count| *count <= most))
    }
}

impl Walk {
    /// The next events; perhaps none, although many rows were looked at. `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Event>>, StoreError> {
        let Some(scan) = self.scan.as_mut().filter(|scan| !scan.is_done()) else { return Ok(None) };
        Ok(Some(scan.step(&self.store.shared.readers(), WALK_ROWS, Budget::default()).await?.events))
    }
}

#[cfg(test)]
#[path = "after_tests.rs"]
mod tests;
