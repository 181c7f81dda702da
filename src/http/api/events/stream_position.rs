//! The position in the log of a stream over several channels, and what a stream that resumes with one gets.

use std::fmt;

use serde_json::json;

use crate::model::Event;
use crate::store::{Filter, LogPosition, Store, StoreError};

/// Where a stream stands. As text: the log's name, the place in it, and how many events its channels had up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StreamPosition {
    pub(super) log: u64,
    pub(super) seq: u64,
    /// None where that is not known: then nobody can say later how many were lost.
    pub(super) count: Option<u64>,
}

/// Where a stream begins, and what is sent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) position: StreamPosition,
    /// Whether everything it missed will come; none where it had no place.
    recovered: Option<bool>,
    /// How many events are gone; none where that is not known.
    missed: Option<u64>,
    /// It begins at the end of the log.
    at_end: bool,
}

impl fmt::Display for StreamPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{}", self.log, self.seq)?;
        self.count.map_or(Ok(()), |count| write!(f, "-{count}"))
    }
}

impl StreamPosition {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '-');
        let log = u64::from_str_radix(parts.next()?, 16).ok()?;
        let seq = parts.next()?.parse().ok()?;
        let count = parts.next().map(str::parse).transpose().ok()?;
        Some(Self { log, seq, count })
    }
}

impl Start {
    /// Whether it begins now, so that almost nothing has to be read.
    pub(super) fn is_now(&self) -> bool {
        self.at_end
    }

    /// Whether the number of missing events is known.
    pub(super) fn is_counted(&self) -> bool {
        self.missed.is_some()
    }

    /// The event `position`.
    pub(super) fn written(&self) -> String {
        let id = self.position.to_string();
        let said = match self.recovered {
            None => json!({ "id": id }),
            Some(recovered) => json!({ "recovered": recovered, "missed": self.missed, "id": id }),
        };
        format!("event: position\nid: {id}\ndata: {said}\n\n")
    }
}

/// Where a stream begins. `given`: the position that the client sent; `Some(None)` if that is not a position of this server.
pub(super) async fn start(store: &Store, filter: &Filter, given: Option<Option<StreamPosition>>) -> Result<Start, StoreError> {
    let now = store.log_position(filter).await?;
    let known = given.flatten().filter(|position| position.log == now.log && position.seq <= now.seq);
    let Some(position) = known else {
        let recovered = given.map(|_| false);
        let position = first(store, filter, &now).await?;
        return Ok(Start { position, recovered, missed: None, at_end: position.seq == now.seq });
    };
    resume(store, filter, &now, position, &[], u64::MAX).await
}

/// What a stream at a position has to say before it gives the events that were just read after it. `None`: it missed nothing.
pub(super) async fn gap(
    store: &Store,
    filter: &Filter,
    position: StreamPosition,
    read: &[Event],
    count_max: u64,
) -> Result<Option<Start>, StoreError> {
    // Positions in the log are consecutive: where none is left out, nothing can be missing.
    if read.last().is_some_and(|last| last.seq.saturating_sub(position.seq) == read.len() as u64) {
        return Ok(None);
    }
    let now = store.log_position(filter).await?;
    let start = resume(store, filter, &now, position, read, count_max).await?;
    Ok((start.recovered == Some(false)).then_some(start))
}

/// How a stream goes on after a position: with the events that were `read` after it, then with those that were in the log later,
/// at `now`. All others that its channels had since the position are gone. More than `count_max` are not counted.
async fn resume(
    store: &Store,
    filter: &Filter,
    now: &LogPosition,
    position: StreamPosition,
    read: &[Event],
    count_max: u64,
) -> Result<Start, StoreError> {
    let at_end = position.seq == now.seq;
    if now.gone <= position.seq {
        return Ok(Start { position, recovered: Some(true), missed: Some(0), at_end });
    }
    let missed = match position.count {
        None => None,
        Some(count) => {
            let after = read.last().map_or(position.seq, |last| last.seq);
            let there = store.count_between(filter, after, now.seq, count_max).await?;
            there.map(|there| now.tops.saturating_sub(count).saturating_sub(there).saturating_sub(read.len() as u64))
        }
    };
    // Missing events are older than the available ones, so they are counted first.
    let count = position.count.zip(missed).map(|(count, missed)| count.saturating_add(missed));
    Ok(Start { position: StreamPosition { count, ..position }, recovered: Some(missed == Some(0)), missed, at_end })
}

/// Where a stream without a place begins: now, or where the log was at its `since`.
async fn first(store: &Store, filter: &Filter, now: &LogPosition) -> Result<StreamPosition, StoreError> {
    let Some(since) = &filter.since else { return Ok(StreamPosition { log: now.log, seq: now.seq, count: Some(now.tops) }) };
    let seq = store.position_before(since.ms).await?.min(now.seq);
    let there = store.count_between(filter, seq, now.seq, u64::MAX).await?;
    Ok(StreamPosition { log: now.log, seq, count: there.map(|there| now.tops.saturating_sub(there)) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_place_is_read_as_it_was_written(log in any::<u64>(), seq in any::<u64>(), count in any::<Option<u64>>()) {
            let position = StreamPosition { log, seq, count };
            prop_assert_eq!(StreamPosition::parse(&position.to_string()), Some(position));
        }

        #[test]
        fn no_place_panics(text in "[0-9a-f-]{0,40}|.{0,20}") {
            prop_assert!(StreamPosition::parse(&text).is_none_or(|position| position.to_string().len() <= 60));
        }
    }

    #[test]
    fn what_is_no_place_is_none() {
        for text in ["", "-", "1", "1-", "g-1-1", "1-1-", "1-1-1-1", "1--1", "1-1-x", "11111111111111111-1-1"] {
            assert_eq!(StreamPosition::parse(text), None, "{text}");
        }
    }
}
