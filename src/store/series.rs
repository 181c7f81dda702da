//! What was counted, over time. Minutes are kept for days, hours for months, days for ever; a question is answered from the
//! finest that is still there, and nothing is counted twice where they overlap.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use super::db::Pool;
use super::read::Query;
use super::{Store, StoreError};

/// The most steps of one question.
pub const STEPS_MAX: i64 = 11_000;
/// The most series of an answer.
const SERIES_MAX: usize = 10_000;

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;
const DAY: i64 = 86_400;

/// One counter over time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// What kind of thing was counted.
    pub kind: String,
    /// Which one.
    pub name: String,
    /// What of it.
    pub metric: String,
    /// The beginning of each step in which there was anything, in seconds since the Unix epoch, and how much.
    pub points: Vec<(i64, u64)>,
}

impl Store {
    /// Sums of what was counted from `from_s` up to, not including, `to_s`, in steps of `step_s`, all in seconds; steps begin at
    /// multiples of themselves. Of one kind where one is named. A step shorter than what is still there holds all of that.
    pub async fn series(&self, kind: Option<&str>, from_s: i64, to_s: i64, step_s: i64) -> Result<Vec<Series>, StoreError> {
        if step_s < 1 || to_s.saturating_sub(from_s) / step_s > STEPS_MAX {
            return Err(StoreError::Limit);
        }
        let pool = self.shared.readers();
        let minutes_from = whole_from(&pool, MINUTE, HOUR).await?;
        let hours_from = whole_from(&pool, HOUR, DAY).await?.min(minutes_from);
        let mut found: BTreeMap<(String, String, String), BTreeMap<i64, u64>> = BTreeMap::new();
        for (step, range) in [(DAY, i64::MIN..hours_from), (HOUR, hours_from..minutes_from), (MINUTE, minutes_from..i64::MAX)] {
            let range = range.start.max(from_s)..range.end.min(to_s);
            if !range.is_empty() {
                sums(&pool, kind, step, range, step_s, &mut found).await?;
            }
        }
        let series =
            |((kind, name, metric), points): (_, BTreeMap<i64, u64>)| Series { kind, name, metric, points: points.into_iter().collect() };
        Ok(found.into_iter().map(series).collect())
    }
}

/// From when on points of this step tell everything. The first of them may be what is left of a longer step, which then has a
/// point of its own.
async fn whole_from(pool: &Pool, step: i64, longer: i64) -> Result<i64, StoreError> {
    let mut oldest = Query::new(pool, "SELECT min(at) FROM points WHERE step = ");
    let Some(oldest) = oldest.value(step).number().await? else { return Ok(i64::MAX) };
    let begin = oldest - oldest.rem_euclid(longer);
    let mut rolled = Query::new(pool, "SELECT 1 AS one FROM points WHERE step = ");
    rolled.value(longer).push(" AND at = ").value(begin).push(" LIMIT 1");
    Ok(if rolled.first(|_| Ok(())).await?.is_some() { begin + longer } else { begin })
}

async fn sums(
    pool: &Pool,
    kind: Option<&str>,
    step: i64,
    range: Range<i64>,
    wanted: i64,
    found: &mut BTreeMap<(String, String, String), BTreeMap<i64, u64>>,
) -> Result<(), StoreError> {
    let mut query = Query::new(pool, "SELECT s.kind, s.name, s.metric, p.at - p.at % ");
    query.value(wanted).push(" AS bucket, CAST(sum(p.value) AS BIGINT) FROM points p JOIN series s ON s.id = p.series WHERE p.step = ");
    query.value(step).push(" AND p.at >= ").value(range.start).push(" AND p.at < ").value(range.end);
    if let Some(kind) = kind {
        query.push(" AND s.kind = ").value(kind);
    }
    query.push(" GROUP BY s.kind, s.name, s.metric, bucket");
    let read = |row: &dyn super::read::Columns| {
        let key = (row.word(0)?.to_owned(), row.word(1)?.to_owned(), row.word(2)?.to_owned());
        if found.len() >= SERIES_MAX && !found.contains_key(&key) {
            return Ok(ControlFlow::Continue(()));
        }
        let sum = found.entry(key).or_default().entry(row.number(3)?).or_default();
        *sum = sum.saturating_add(row.number(4)?.cast_unsigned());
        Ok(ControlFlow::Continue(()))
    };
    query.each(read).await
}

#[cfg(test)]
#[path = "series_tests.rs"]
mod tests;
