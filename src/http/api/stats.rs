//! `GET /api/stats`: the numbers, now or over time.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::http::api::history::problem;
use crate::http::api::openapi::{BadQuery, Unavailable};
use crate::http::api::query::{Known, Query, duration, moment, wrong};
use crate::http::api::{Answer, Api, ok};
use crate::http::measure::{self, Stats};
use crate::model::Now;
use crate::model::clock::iso;
use crate::telemetry::series::KINDS;

/// The most steps of an answer.
const STEPS_MAX: i64 = 2000;

/// The default for the most steps of an answer.
const STEPS_USUAL: i64 = 500;

/// The most points of an answer.
const POINTS_MAX: usize = 200_000;

const MINUTE: i64 = 60;
const DAY: i64 = 86_400;

/// Round lengths of steps, in seconds.
const STEPS: [i64; 7] = [MINUTE, 5 * MINUTE, 15 * MINUTE, 3600, 6 * 3600, DAY, 7 * DAY];

/// The counters over time.
#[derive(Serialize, ToSchema)]
struct StatsOverTime {
    /// The beginning, inclusive.
    #[schema(format = DateTime)]
    from: String,
    /// The end, exclusive.
    #[schema(format = DateTime)]
    to: String,
    /// The length of a step, in seconds.
    #[schema(minimum = 60, example = 60)]
    step: i64,
    /// One series for each counter that counted something.
    series: Vec<Series>,
}

/// One counter over time.
#[derive(Serialize, ToSchema)]
#[schema(as = StatsSeries)]
struct Series {
    /// The kind of thing: `total`, `channel`, `drop`, `protocol`, `fault`, `close`, `route` or `source`.
    #[schema(example = "protocol")]
    kind: String,
    /// Its name: a channel's pattern, a reason, or the name of a protocol, row or source.
    #[schema(example = "chat")]
    name: String,
    /// The metric: what is counted.
    #[schema(example = "messagesIn")]
    metric: String,
    /// The beginning of each step that counted something, and the count.
    points: Vec<(String, u64)>,
}

/// The numbers, now or over time.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum AnyStats {
    /// Now.
    Now(Box<Stats>),
    /// Over time.
    OverTime(StatsOverTime),
}

/// Which part of the past.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "described; read by `Query`")]
pub(super) struct When {
    /// From this time on: `2024-01-31T10:00:00Z`, `2024-01-31`, or `-1h` for an hour ago. Without it the answer has the current
    /// numbers.
    #[param(example = "-1h")]
    from: Option<String>,
    /// Up to this time; now by default.
    to: Option<String>,
    /// The length of a step, a multiple of a minute: `1m`, `1h`, `1d`. At most 2000 steps. By default the server chooses it.
    #[param(example = "1m")]
    step: Option<String>,
    /// Only counters of this kind.
    #[param(inline)]
    kind: Option<Kind>,
}

/// A kind of counter.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "described; read by `Query`")]
enum Kind {
    Total,
    Channel,
    Drop,
    Protocol,
    Fault,
    Close,
    Route,
    Source,
}

/// Read the numbers
///
/// The current numbers, or with `from` series of them. Counters are stored every ten seconds: minutes are kept for days, hours
/// for months, days for ever.
#[utoipa::path(get, path = "/api/stats", tag = "state", params(When),
    responses((status = 200, description = "Now, or over time.", body = AnyStats), BadQuery, Unavailable))]
pub(super) async fn stats(State(api): State<Arc<Api>>, uri: Uri) -> Answer {
    let now = api.live.now();
    let names = ["from", "to", "step", "kind"];
    let mut query = Query::of(&uri, &Known { names: &names, repeated: &[], data: false });
    if !names.iter().any(|name| query.has(name)) {
        query.done()?;
        return ok(&AnyStats::Now(Box::new(measure::now(&api.live, now))));
    }
    let from = query.need("from", |text| seconds(text, now));
    let to = query.take("to", |text| seconds(text, now)).unwrap_or(now.wall_ms.div_euclid(1000) + 1);
    if from.is_some_and(|from| from >= to) {
        query.flaw("from", "must be before `to`");
    }
    let length = to.saturating_sub(from.unwrap_or(to));
    let step = query.take("step", |text| step(text, length)).unwrap_or_else(|| usual(length));
    let kind = query.take("kind", kind);
    query.done()?;
    let from = from.unwrap_or(to);
    let found = api.live.store.series(kind, from, to, step).await.map_err(problem)?;
    if found.iter().map(|series| series.points.len()).sum::<usize>() > POINTS_MAX {
        return Err(wrong("step", &format!("more than {POINTS_MAX} points: use a longer step, a shorter time, or one kind")));
    }
    let at = |s: i64| iso(s.saturating_mul(1000));
    let series = found.into_iter().map(|series| Series {
        kind: series.kind,
        name: series.name,
        metric: series.metric,
        points: series.points.into_iter().map(|(s, value)| (at(s), value)).collect(),
    });
    ok(&AnyStats::OverTime(StatsOverTime { from: at(from), to: at(to), step, series: series.collect() }))
}

fn seconds(text: &str, now: Now) -> Result<i64, String> {
    Ok(moment(text, now.wall_ms)?.max(0).div_euclid(1000))
}

/// A kind of counter. One that is misspelt must not give an empty answer.
fn kind(text: &str) -> Result<&'static str, String> {
    KINDS.into_iter().find(|kind| *kind == text).ok_or_else(|| format!("must be one of {}", KINDS.join(", ")))
}

/// A step for so many seconds.
fn step(text: &str, length: i64) -> Result<i64, String> {
    let step = duration(text).filter(|step| step.subsec_nanos() == 0).and_then(|step| i64::try_from(step.as_secs()).ok());
    let step = step.filter(|step| *step >= MINUTE && step % MINUTE == 0).ok_or("must be a multiple of a minute: `1m`, `1h`, `1d`")?;
    if length / step > STEPS_MAX { Err(format!("would make more than {STEPS_MAX} steps")) } else { Ok(step) }
}

/// A step that suits so many seconds.
fn usual(length: i64) -> i64 {
    let fits = |step: &i64| length / step <= STEPS_USUAL;
    STEPS.into_iter().find(fits).unwrap_or_else(|| (length / STEPS_USUAL).div_euclid(DAY).saturating_add(1).saturating_mul(DAY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_minutes_and_not_too_many_of_them() {
        for (text, length, expected) in [
            ("1m", 3600, Some(60)),
            ("60", 3600, None),
            ("1h30m", 86_400, Some(5400)),
            ("60000ms", 3600, Some(60)),
            ("30s", 3600, None),
            ("90s", 3600, None),
            ("0", 3600, None),
            ("1M", 3600, None),
            ("", 3600, None),
            ("-1m", 3600, None),
            ("1m", 2000 * 60, Some(60)),
            ("1m", 2001 * 60, None),
            ("99999999999999999w", 3600, None),
        ] {
            assert_eq!(step(text, length).ok(), expected, "{text} {length}");
        }
    }

    #[test]
    fn the_usual_step_suits_any_length() {
        for (length, expected) in [(0, 60), (3600, 60), (86_400, 300), (7 * 86_400, 3600), (60 * 86_400, 6 * 3600), (366 * 86_400, 86_400)]
        {
            assert_eq!(usual(length), expected, "{length}");
        }
        for length in [100 * 365 * 86_400, i64::MAX] {
            assert!(usual(length) >= 60 && length / usual(length) <= STEPS_MAX, "{length}");
        }
    }
}
