//! The report of a reload: the same in the log, over REST and on the command line.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::load::{self, Unusable};
use crate::config::Inputs;
use crate::config::diff::{Change, Ended, What};
use crate::model::clock;

/// A reload that took effect, or would take effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// Whether it was a dry run. Then `generation` to `files` describe what is in use, and `ended` what would end.
    pub dry: bool,
    /// What is in use now.
    #[serde(flatten)]
    #[schema(inline)]
    pub current: Current,
    /// What is different from what was in use before.
    pub changes: Vec<Change>,
    /// What ended.
    pub ended: Ended,
    /// How long it took, from when the files were last seen to change.
    pub milliseconds: u64,
}

/// The configuration in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Current {
    /// Counts from 1, the start. A reload that changes nothing does not count.
    pub generation: u64,
    /// SHA-256 of its content, plugins and certificates, without secrets: where only a secret is different, the generation is
    /// another and the hash is the same.
    pub hash: String,
    /// When it came into use.
    #[schema(format = DateTime)]
    pub since: String,
    /// The routes file, with its whole path.
    #[serde(rename = "routesFile")]
    #[schema(example = "/srv/app/routes.yaml")]
    pub routes_file: String,
    /// The files it was read from.
    pub files: Vec<String>,
}

impl Current {
    /// A configuration with its time in milliseconds since the Unix epoch.
    pub fn new(generation: u64, hash: String, since_ms: i64, inputs: &Inputs) -> Self {
        let files = inputs.files().map(|path| path.display().to_string()).collect();
        Self { generation, hash, since: clock::iso(since_ms), routes_file: inputs.main().display().to_string(), files }
    }
}

/// The most paths of changes that a line of the log names.
const PATHS_MAX: usize = 5;

/// How many changes there are of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Added.
    pub added: usize,
    /// Changed.
    pub changed: usize,
    /// Removed.
    pub removed: usize,
}

impl Counts {
    /// Counts changes.
    pub fn of(changes: &[Change]) -> Self {
        let mut counts = Self::default();
        for change in changes {
            match change.what {
                What::Added { .. } => counts.added += 1,
                What::Removed => counts.removed += 1,
                _ => counts.changed += 1,
            }
        }
        counts
    }
}

impl Report {
    /// What changed, as far as a line of the log has room for it.
    fn paths(&self) -> String {
        let mut paths: Vec<&str> = self.changes.iter().take(PATHS_MAX).map(|change| &*change.path).collect();
        let more = self.changes.len().saturating_sub(PATHS_MAX);
        let more = format!("and {more} more");
        if self.changes.len() > PATHS_MAX {
            paths.push(&more);
        }
        paths.join(", ")
    }

    /// Says it in the log.
    pub fn log(&self) {
        let Counts { added, changed, removed } = Counts::of(&self.changes);
        let Current { generation, hash, .. } = &self.current;
        let Ended { connections, subscriptions, sources, listeners } = self.ended;
        let ms = self.milliseconds;
        let message = if self.changes.is_empty() { "reloaded: nothing is different" } else { "reloaded" };
        tracing::info!(
            generation,
            hash,
            added,
            changed,
            removed,
            ended_connections = connections,
            ended_subscriptions = subscriptions,
            ended_sources = sources,
            ended_listeners = listeners,
            ms,
            paths = self.paths(),
            "{message}"
        );
    }
}

/// Why a reload changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// The kind of reason.
    pub why: Why,
    /// When.
    #[schema(format = DateTime)]
    pub when: String,
    /// What is wrong and where, as `tramline check` prints it.
    pub diagnostics: String,
}

/// The kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The files have errors.
    Invalid,
    /// The files changed every time they were read.
    Unstable,
    /// The files could not be read and checked in time.
    TooSlow,
    /// Something differs that cannot change while the server runs.
    NeedsRestart,
    /// The store cannot record what the channels promise from now on.
    StoreUnavailable,
    /// An address cannot be bound, or its certificate cannot be used.
    CannotListen,
    /// Another generation is in use than the one that was asked for.
    Outdated,
    /// An error of the server; the log has the details.
    Internal,
}

impl Refusal {
    /// A refusal for a reason, in milliseconds since the Unix epoch.
    pub fn new(why: Why, when_ms: i64, diagnostics: impl Into<String>) -> Self {
        Self { why, when: clock::iso(when_ms), diagnostics: diagnostics.into() }
    }

    /// The refusal for files that cannot be used.
    pub fn of(unusable: &Unusable, when_ms: i64) -> Self {
        match unusable {
            Unusable::Invalid { diagnostics, .. } => Self::new(Why::Invalid, when_ms, diagnostics.as_str()),
            Unusable::Unstable { file, .. } => {
                Self::new(Why::Unstable, when_ms, format!("{file} changed every time it was read; it is read again when it changes next\n"))
            }
            Unusable::TooSlow => {
                let seconds = load::LOAD_WITHIN.as_secs();
                Self::new(Why::TooSlow, when_ms, format!("the files could not be read and checked within {seconds} s\n"))
            }
            Unusable::Panicked => Self::new(Why::Internal, when_ms, "loading ended in a panic; the log has the details\n"),
        }
    }

    /// Says it in the log, each diagnostic as it was rendered.
    pub fn log(&self) {
        // A field would stand at the end of the last diagnostic.
        tracing::error!("the reload is refused, the configuration in use stays in use:\n{}", self.diagnostics.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_one_object_and_can_be_read_again() {
        let current = Current::new(4, "3f9a".into(), 0, &Inputs::default());
        let change = Change { path: "channels.a".into(), what: What::Removed, ends: Ended { subscriptions: 41, ..Ended::default() } };
        let report = Report { dry: true, current, changes: vec![change], ended: Ended::default(), milliseconds: 12 };
        let written = serde_json::to_value(&report).unwrap();
        assert_eq!(
            written,
            json!({
                "dry": true, "generation": 4, "hash": "3f9a", "since": "1970-01-01T00:00:00.000Z", "routesFile": "", "files": [],
                "changes": [{ "path": "channels.a", "change": "removed", "ends": { "subscriptions": 41, "connections": 0, "sources": 0, "listeners": 0 } }],
                "ended": { "subscriptions": 0, "connections": 0, "sources": 0, "listeners": 0 },
                "milliseconds": 12,
            })
        );
        assert_eq!(serde_json::from_value::<Report>(written).unwrap(), report);
        assert_eq!(report.paths(), "channels.a");
        let many = Report { changes: vec![report.changes[0].clone(); 7], ..report.clone() };
        assert_eq!(many.paths(), "channels.a, channels.a, channels.a, channels.a, channels.a, and 2 more");
        assert_eq!(Counts::of(&report.changes), Counts { removed: 1, ..Counts::default() });
    }

    #[test]
    fn a_refusal_says_why_and_when() {
        let unstable = Unusable::Unstable { file: "routes.yaml".into(), inputs: Inputs::default() };
        let written = serde_json::to_value(Refusal::of(&unstable, 0)).unwrap();
        let told = "routes.yaml changed every time it was read; it is read again when it changes next\n";
        assert_eq!(written, json!({ "why": "unstable", "when": "1970-01-01T00:00:00.000Z", "diagnostics": told }));
    }
}
