//! Which events match: the same filter for stored and for live events. [`Filter::matches`] defines the meaning of every filter;
//! the database query has the same meaning, which a property test checks.

use regex::bytes::{Regex, RegexBuilder};
use sha2::{Digest, Sha256};

use crate::model::Event;
use crate::model::json;
use crate::model::name::ChannelName;
use crate::model::pattern::Glob;

/// The longest text a filter searches for, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;
/// The most conditions on the data.
pub const DATA_CONDITIONS_MAX: usize = 64;

/// Conditions on events. All of them must hold; a missing one always does.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Names of channels, or globs over names: one of them must match. Empty: any channel, and events without a channel.
    pub channels: Vec<Box<str>>,
    /// The type.
    pub kind: Option<Box<str>>,
    /// The user of the connection that caused it.
    pub user: Option<Box<str>>,
    /// The session of that connection.
    pub session: Option<Box<str>>,
    /// The id of that connection.
    pub client: Option<Box<str>>,
    /// The protocol, source or `api` it came through.
    pub source: Option<Box<str>>,
    /// Not before this time.
    pub since: Option<Moment>,
    /// Before this time.
    pub until: Option<Moment>,
    /// A text in the stored data; the case of ASCII letters does not matter.
    pub text: Option<Needle>,
    /// Values in the data.
    pub data: Vec<DataIs>,
}

/// A moment, and its original text: `-15m` is another moment in every request, but the same query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Milliseconds since the Unix epoch.
    pub ms: i64,
    /// Its original text.
    pub said: Box<str>,
}

/// The value at a path of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataIs {
    /// Keys of objects and indexes of arrays.
    pub path: Vec<Box<str>>,
    /// The text of a string, or a number, `true`, `false` or `null` as written in the data.
    pub value: Box<str>,
}

/// A text to search for.
#[derive(Debug, Clone)]
pub struct Needle {
    /// In lower case, as far as it is ASCII.
    lower: Box<str>,
    /// Finds it in linear time, whatever the two texts are.
    finder: Regex,
}

impl Needle {
    /// A text of 1 to [`TEXT_BYTES_MAX`] bytes; otherwise `None`.
    pub fn new(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let finder = RegexBuilder::new(&regex::escape(text)).case_insensitive(true).unicode(false).build().ok()?;
        Some(Self { lower: text.to_ascii_lowercase().into(), finder })
    }

    /// The text with its ASCII letters in lower case.
    pub(super) fn lower(&self) -> &str {
        &self.lower
    }

    fn is_in(&self, text: &str) -> bool {
        self.finder.is_match(text.as_bytes())
    }
}

impl DataIs {
    /// Whether a JSON text has this value at this path.
    pub fn holds(&self, data: &str) -> bool {
        let Some(found) = json::get(data, &self.path) else { return false };
        match found.as_bytes().first() {
            Some(b'"') => json::as_text(found).is_some_and(|text| *text == *self.value),
            Some(b'{' | b'[') | None => false,
            Some(_) => *found == *self.value,
        }
    }
}

impl Filter {
    /// Whether an event matches.
    pub fn matches(&self, event: &Event) -> bool {
        self.takes_channel(event.channel.as_ref().map(ChannelName::as_str)) && self.matches_within(event)
    }

    /// Whether a channel's events may match. `None`: events without a channel.
    pub fn takes_channel(&self, channel: Option<&str>) -> bool {
        self.channels.is_empty() || channel.is_some_and(|name| self.channels.iter().any(|wanted| names(wanted, name)))
    }

    /// [`Filter::matches`] for an event whose channel is known to match.
    pub fn matches_within(&self, event: &Event) -> bool {
        let new = &event.new;
        let is = |wanted: &Option<Box<str>>, found: Option<&str>| wanted.as_deref().is_none_or(|wanted| found == Some(wanted));
        is(&self.kind, Some(&new.kind))
            && is(&self.user, new.origin.user.as_deref())
            && is(&self.session, new.origin.session.as_deref())
            && is(&self.client, new.origin.client.as_deref())
            && is(&self.source, Some(&new.origin.source))
            && self.since.as_ref().is_none_or(|since| new.time_ms >= since.ms)
            && self.until.as_ref().is_none_or(|until| new.time_ms < until.ms)
            && self.text.as_ref().is_none_or(|text| text.is_in(new.data.as_str()))
            && self.data_holds(new.data.as_str())
    }

    /// Only the conditions on the data, which the database cannot decide.
    pub(super) fn data_holds(&self, data: &str) -> bool {
        self.data.iter().all(|condition| condition.holds(data))
    }

    /// Distinguishes this query from others: a cursor belongs to one of them.
    pub(super) fn fingerprint(&self) -> [u8; 8] {
        let said = |moment: &Option<Moment>| moment.as_ref().map(|moment| moment.said.clone());
        let data: Vec<_> = self.data.iter().map(|condition| (&condition.path, &condition.value)).collect();
        let all = serde_json::json!([
            self.channels,
            self.kind,
            self.user,
            self.session,
            self.client,
            self.source,
            said(&self.since),
            said(&self.until),
            self.text.as_ref().map(Needle::lower),
            data,
        ]);
        let hash = Sha256::digest(all.to_string().as_bytes());
        std::array::from_fn(|i| hash[i])
    }
}

/// Whether a name equals this name, or a glob matches it.
pub(super) fn names(wanted: &str, name: &str) -> bool {
    if Glob::is_glob(wanted) { Glob::new(wanted).matches(name) } else { wanted == name }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
