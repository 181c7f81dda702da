//! Reads a query string part by part. Every mistake is named, not only the first.
//! Also defines how filters of events and times are written; the store defines what they mean.

use std::time::Duration;

use axum::http::{StatusCode, Uri};

use crate::http::problem::Problem;
use crate::model::Now;
use crate::model::fault::Flaw;
use crate::model::json::DEPTH_MAX;
use crate::routing::paths::{Parameters, parse_query};
use crate::store::{DATA_CONDITIONS_MAX, DataIs, Filter, Moment, Needle, TEXT_BYTES_MAX};

/// The parameters of a filter, which applies to new events and to stored ones.
pub(super) const FILTER: [&str; 8] = ["channel", "type", "user", "session", "client", "source", "since", "q"];
/// The prefix of a condition on the data.
const DATA: &str = "data.";
/// The longest value of a filter, in bytes: no name is longer.
const VALUE_BYTES_MAX: usize = 256;
/// The longest value that is compared with the data, in bytes.
const DATA_BYTES_MAX: usize = 1024;
/// The most channels of one filter.
const CHANNELS_MAX: usize = 100;

/// A query string and what is wrong with it so far.
pub(super) struct Query {
    all: Parameters,
    flaws: Vec<Flaw>,
}

/// The parameters of a call.
pub(super) struct Known<'a> {
    /// By name.
    pub(super) names: &'a [&'a str],
    /// Those of them that may be given more than once.
    pub(super) repeated: &'a [&'a str],
    /// Whether there are conditions on the data.
    pub(super) data: bool,
}

impl Query {
    /// Reads a query string. An unknown parameter is an error: a misspelt filter must not return everything.
    pub(super) fn of(uri: &Uri, known: &Known<'_>) -> Self {
        let all = uri.query().map(parse_query).unwrap_or_default();
        let mut flaws = Vec::new();
        for (i, (name, value)) in all.iter().enumerate() {
            let shown: String = name.chars().take(100).collect();
            let mut wrong = |message: String| flaws.push(Flaw { path: shown.clone(), message });
            if !(known.names.contains(&&**name) || known.data && name.starts_with(DATA)) {
                let data = if known.data { ", data.<path>" } else { "" };
                let there = format!("known here: {}{data}", known.names.join(", "));
                wrong(format!("unknown parameter; {}", if known.names.is_empty() { "this call takes no parameters" } else { &there }));
            } else if value.contains('\0') {
                wrong("must not contain the character NUL".into());
            } else if !known.repeated.contains(&&**name) && all[..i].iter().any(|(earlier, _)| earlier == name) {
                wrong("appears twice".into());
            }
        }
        Self { all, flaws }
    }

    /// Refuses every parameter: the call has none.
    pub(super) fn nothing(uri: &Uri) -> Result<(), Problem> {
        Self::of(uri, &Known { names: &[], repeated: &[], data: false }).done()
    }

    /// The value of a parameter, parsed by `read`. The error of `read` is reported.
    pub(super) fn take<T>(&mut self, name: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let read = read(self.find(name)?);
        read.map_err(|message| self.flaws.push(Flaw { path: name.into(), message })).ok()
    }

    /// The first value of a name.
    fn find(&self, name: &str) -> Option<&str> {
        self.all.iter().find(|(key, _)| **key == *name).map(|(_, value)| &**value)
    }

    /// Whether a parameter is given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// As [`Query::take`], of a parameter that must be given.
    pub(super) fn need<T>(&mut self, name: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        if !self.has(name) {
            self.flaw(name, "is required");
        }
        self.take(name, read)
    }

    /// Reports what is wrong with a parameter.
    pub(super) fn flaw(&mut self, name: &str, message: &str) {
        self.flaws.push(Flaw { path: name.into(), message: message.into() });
    }

    /// A whole number from `least` to `most`.
    pub(super) fn number(&mut self, name: &str, least: u64, most: u64) -> Option<u64> {
        let read = |text: &str| {
            let number = text.parse().ok().filter(|n| text.bytes().all(|b| b.is_ascii_digit()) && (least..=most).contains(n));
            number.ok_or_else(|| format!("must be a whole number from {least} to {most}"))
        };
        self.take(name, read)
    }

    /// A text that is not empty and not too long to be anybody's name.
    pub(super) fn word(&mut self, name: &str) -> Option<Box<str>> {
        self.take(name, word)
    }

    /// A time: absolute, or relative to now.
    pub(super) fn moment(&mut self, name: &str, now: Now) -> Option<Moment> {
        self.take(name, |text| Ok(Moment { ms: moment(text, now.wall_ms)?, said: text.into() }))
    }

    /// The filter, without `until`.
    pub(super) fn filter(&mut self, now: Now) -> Filter {
        let mut filter = Filter {
            kind: self.word("type"),
            user: self.word("user"),
            session: self.word("session"),
            client: self.word("client"),
            source: self.word("source"),
            since: self.moment("since", now),
            text: self.take("q", |text| Needle::new(text).ok_or_else(|| format!("must be a text of 1 to {TEXT_BYTES_MAX} bytes"))),
            ..Filter::default()
        };
        for (name, value) in &self.all {
            let read = if &**name == "channel" {
                word(value).map(|channel| filter.channels.push(channel))
            } else if let Some(path) = name.strip_prefix(DATA) {
                condition(path, value).map(|condition| filter.data.push(condition))
            } else {
                Ok(())
            };
            if let Err(message) = read {
                self.flaws.push(Flaw { path: name.chars().take(100).collect(), message });
            }
        }
        if filter.channels.len() > CHANNELS_MAX {
            self.flaws.push(Flaw { path: "channel".into(), message: format!("at most {CHANNELS_MAX} of them") });
        }
        if filter.data.len() > DATA_CONDITIONS_MAX {
            self.flaws.push(Flaw { path: "data".into(), message: format!("at most {DATA_CONDITIONS_MAX} conditions on the data") });
        }
        filter
    }

    /// Fails if anything in the query is wrong.
    pub(super) fn done(self) -> Result<(), Problem> {
        if self.flaws.is_empty() {
            return Ok(());
        }
        Err(Problem::new(StatusCode::BAD_REQUEST, "the query is not valid for this call").errors(self.flaws))
    }
}

/// One parameter is wrong, as it turned out later.
pub(super) fn wrong(name: &str, message: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, format!("{name}: {message}")).errors(vec![Flaw { path: name.into(), message: message.into() }])
}

/// A length of time: `90s`, `24h`, `1h30m`. As in a routes file, a number needs a unit.
pub(super) fn duration(text: &str) -> Option<Duration> {
    // humantime also reads months and years; here there is no calendar.
    let plain = text.chars().all(|c| c.is_ascii_digit() || "mshdw".contains(c));
    humantime::parse_duration(text).ok().filter(|_| plain)
}

fn word(text: &str) -> Result<Box<str>, String> {
    let fits = (1..=VALUE_BYTES_MAX).contains(&text.len());
    if fits { Ok(text.into()) } else { Err(format!("must be a text of 1 to {VALUE_BYTES_MAX} bytes")) }
}

fn condition(path: &str, value: &str) -> Result<DataIs, String> {
    let path: Vec<Box<str>> = path.split('.').map(Into::into).collect();
    if path.len() > DEPTH_MAX || path.iter().any(|key| key.is_empty()) {
        return Err(format!("must be `data.` and 1 to {DEPTH_MAX} keys, with dots between them"));
    }
    if value.len() > DATA_BYTES_MAX {
        return Err(format!("must be at most {DATA_BYTES_MAX} bytes"));
    }
    Ok(DataIs { path, value: value.into() })
}

/// `2024-01-01`, `2024-01-01T10:00:00.5+02:00` (without a zone: UTC), or `-15m`, `-1h30m` before now. Milliseconds since the
/// Unix epoch.
pub(super) fn moment(text: &str, now_ms: i64) -> Result<i64, String> {
    let hint = "must be a time such as `2024-01-31T10:00:00Z` or `2024-01-31`, or `-15m` for so long ago";
    let read = match text.strip_prefix('-') {
        Some(ago) => before(ago, now_ms),
        None => absolute(text),
    };
    read.ok_or_else(|| hint.to_owned())
}

fn before(ago: &str, now_ms: i64) -> Option<i64> {
    let ago = duration(ago).filter(|_| !ago.bytes().all(|b| b.is_ascii_digit()))?;
    now_ms.checked_sub(i64::try_from(ago.as_millis()).ok()?)
}

fn absolute(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10)?;
    let Some(time) = rest.strip_prefix(['T', 't', ' ']) else {
        return if rest.is_empty() { utc(&format!("{date}T00:00:00Z")) } else { None };
    };
    // A `+` that was not escaped is a space by the time it is here.
    let (time, east) = if let Some(time) = time.strip_suffix(['Z', 'z']) {
        (time, 0)
    } else if let Some(at) = time.rfind(['+', ' ', '-']) {
        let sign = if time[at..].starts_with('-') { -1 } else { 1 };
        (&time[..at], sign * minutes(&time[at + 1..])?)
    } else {
        (time, 0)
    };
    let seconds = if time.len() == 5 { ":00" } else { "" };
    utc(&format!("{date}T{time}{seconds}Z"))?.checked_sub(east * 60_000)
}

/// `02:00`, `0200` or `02`.
fn minutes(zone: &str) -> Option<i64> {
    let digits: String = zone.chars().filter(|c| *c != ':').collect();
    let fits = digits.bytes().all(|b| b.is_ascii_digit()) && matches!(digits.len(), 2 | 4) && zone.len() <= 5;
    let number = |text: &str| text.parse::<i64>().ok();
    let (hours, minutes) = (number(digits.get(..2)?)?, if digits.len() == 4 { number(digits.get(2..)?)? } else { 0 });
    (fits && hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

fn utc(text: &str) -> Option<i64> {
    let since = humantime::parse_rfc3339(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_700_000_000_000;

    #[test]
    fn moments_are_read_as_people_write_them() {
        let at = 1_704_103_200_000; // 2024-01-01T10:00:00Z
        for (text, ms) in [
            ("2024-01-01T10:00:00Z", at),
            ("2024-01-01T10:00:00", at),
            ("2024-01-01 10:00", at),
            ("2024-01-01t10:00z", at),
            ("2024-01-01T10:00:00.250Z", at + 250),
            ("2024-01-01T12:00:00+02:00", at),
            ("2024-01-01T12:00:00 02:00", at),
            ("2024-01-01T04:30:00-0530", at),
            ("2024-01-01T12+02", i64::MIN),
            ("2024-01-01T11:00+01", at),
            ("2024-01-01", at - 36_000_000),
            ("-15m", NOW - 900_000),
            ("-1h30m", NOW - 5_400_000),
            ("-0s", NOW),
            ("-500ms", NOW - 500),
            ("-2w", NOW - 14 * 86_400_000),
        ] {
            let expected = if ms == i64::MIN { None } else { Some(ms) };
            assert_eq!(moment(text, NOW).ok(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "-",
            "now",
            "15m",
            "--15m",
            "-1y",
            "-2M",
            "1700000000",
            "2024-13-01",
            "2024-02-31",
            "1969-12-31",
            "2024-01-01X10:00",
            "2024-01-01T25:00:00Z",
            "2024-01-01T10:00:00+25:00",
            "2024-01-01T10:00:00+2",
            "-99999999999999999999d",
            "2024-01-0é",
        ] {
            assert!(moment(text, NOW).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_moment_panics(text in "[0-9TZ:+. -]{0,30}|.{0,20}") {
            prop_assert!(moment(&text, NOW).is_err() || text.len() >= 3);
        }

        #[test]
        fn no_query_panics(text in "[a-z.=&%0-9+*-]{0,60}") {
            let uri: Uri = format!("/api/history?{text}&data.a.b=1").parse().unwrap();
            let mut query = Query::of(&uri, &Known { names: &FILTER, repeated: &[], data: true });
            let filter = query.filter(Now::read());
            prop_assert!(query.done().is_err() || filter.data.len() == 1);
        }
    }
}
