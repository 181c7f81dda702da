//! Counters over time. Minutes become hours after days, and hours become days after months; each count is in exactly one of
//! them.

use std::ops::ControlFlow;

use super::read::{Columns, Query};
use super::{Store, StoreError};

/// The most steps of one query.
pub const STEPS_MAX: i64 = 11_000;
/// The most series of an answer.
const SERIES_MAX: usize = 10_000;

/// One counter over time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// What kind of thing was counted.
    pub kind: String,
    /// Which one.
    pub name: String,
    /// What of it.
    pub metric: String,
    /// The beginning of each step that has a count, in seconds since the Unix epoch, and the count.
    pub points: Vec<(i64, u64)>,
}

impl Store {
    /// Sums of the counts from `from_s` up to, but not including, `to_s`, in steps of `step_s`, all in seconds; steps begin at
    /// multiples of their length. Of one kind if `kind` is given. If a step is shorter than what was kept, it holds all of that.
    pub async fn series(&self, kind: Option<&str>, from_s: i64, to_s: i64, step_s: i64) -> Result<Vec<Series>, StoreError> {
        if step_s < 1 || to_s.saturating_sub(from_s) / step_s > STEPS_MAX {
            return Err(StoreError::Limit);
        }
        let pool = self.shared.readers();
        let mut query = Query::new(&pool, "SELECT s.kind, s.name, s.metric, p.at - p.at % ");
        query.value(step_s).push(" AS bucket, CAST(sum(p.value) AS BIGINT) FROM points p JOIN series s ON s.id = p.series");
        query.push(" WHERE p.step IN (60, 3600, 86400) AND p.at >= ").value(from_s).push(" AND p.at < ").value(to_s);
        if let Some(kind) = kind {
            query.push(" AND s.kind = ").value(kind);
        }
        query.push(" GROUP BY s.kind, s.name, s.metric, bucket ORDER BY s.kind, s.name, s.metric, bucket");
        let mut found: Vec<Series> = Vec::new();
        let read = |row: &dyn Columns| {
            let (kind, name, metric) = (row.word(0)?, row.word(1)?, row.word(2)?);
            if found.last().is_none_or(|last| (&*last.kind, &*last.name, &*last.metric) != (kind, name, metric)) {
                if found.len() == SERIES_MAX {
                    return Ok(ControlFlow::Break(()));
                }
                found.push(Series { kind: kind.to_owned(), name: name.to_owned(), metric: metric.to_owned(), points: Vec::new() });
            }
            if let Some(last) = found.last_mut() {
                last.points.push((row.number(3)?, row.number(4)?.cast_unsigned()));
            }
            Ok(ControlFlow::Continue(()))
        };
        query.each(read).await?;
        Ok(found)
    }
}

#[cfg(test)]
#[path = "series_tests.rs"]
mod tests;
