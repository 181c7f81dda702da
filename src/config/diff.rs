//! The difference between two configurations: one change for each value that differs, at the deepest path, or for each subtree
//! that only one of them has. Knows names, not meanings; what a change ends is found elsewhere.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::outline::{Is, Outline, Part, PluginOutline};

/// Characters of a value that are shown.
const SHOWN_CHARS: usize = 48;
/// How many of them come before the first that differs.
const SHOWN_BEFORE: usize = 12;
/// Digits of a hash that are shown.
const SHOWN_DIGITS: usize = 4;

/// One difference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// The path of the value: `protocols.agent.limits.rate`, `protocols.agent.messages.subscribe[1]`, `plugins.agent`.
    #[schema(example = "protocols.agent.limits.rate")]
    pub path: String,
    /// How it changed.
    #[serde(flatten)]
    #[schema(inline)]
    pub what: What,
    /// What ends because of it.
    #[serde(default, skip_serializing_if = "Ended::is_nothing")]
    pub ends: Ended,
}

/// How a value changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum What {
    /// It was added.
    Added {
        /// Where it is: file, line and column, or a file.
        #[schema(example = "routes.yaml:203:7")]
        at: String,
    },
    /// It was removed.
    Removed,
    /// It has another value.
    Changed {
        /// The old value.
        from: Value,
        /// The new value.
        to: Value,
    },
    /// It is a secret with another value, which is not shown.
    Secret,
    /// It has the same entries in another order.
    Reordered,
    /// It is a plugin whose text, or that of a plugin it imports, is different.
    Plugin {
        /// The old hash.
        from: String,
        /// The new hash.
        to: String,
        /// Its functions that were added, removed or changed.
        functions: Vec<String>,
    },
    /// It is a file with different content.
    File {
        /// The old hash.
        from: String,
        /// The new hash.
        to: String,
    },
}

/// What a change ends, or all changes together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Ended {
    /// Subscriptions whose channel is no longer allowed.
    pub subscriptions: u64,
    /// Connections whose protocol was removed.
    pub connections: u64,
    /// Sources that were stopped, including those that start again.
    pub sources: u64,
    /// Addresses that are no longer used.
    pub listeners: u64,
}

impl Ended {
    /// Whether nothing ends.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// `41 subscriptions, 1 listener`
impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = [
            (self.connections, "connection"),
            (self.subscriptions, "subscription"),
            (self.sources, "source"),
            (self.listeners, "listener"),
        ];
        let mut separator = "";
        for (count, noun) in counts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{separator}{count} {noun}{}", if count == 1 { "" } else { "s" })?;
            separator = ", ";
        }
        Ok(())
    }
}

/// What is different in `new`, section by section. Empty if and only if both are equal.
pub fn diff(old: &Outline, new: &Outline) -> Vec<Change> {
    let mut found = Vec::new();
    let names: BTreeSet<&str> = old.sections.keys().chain(new.sections.keys()).map(|name| &**name).collect();
    for name in names {
        match (old.sections.get(name), new.sections.get(name)) {
            (Some(old), Some(new)) => values(name, old, new, &mut found),
            // For a whole section people need to know what is in it.
            (None, Some(new)) => match &new.is {
                Is::Map(all) if !all.is_empty() => all.iter().for_each(|(key, part)| add(below(name, key), part, &mut found)),
                _ => add(name.to_owned(), new, &mut found),
            },
            (Some(old), None) => match &old.is {
                Is::Map(all) if !all.is_empty() => all.iter().for_each(|(key, _)| push(below(name, key), What::Removed, &mut found)),
                _ => push(name.to_owned(), What::Removed, &mut found),
            },
            (None, None) => {}
        }
    }
    found
}

/// Compares maps key by key: first the keys of the new one, in its order, then those that were removed.
fn entries(path: &str, old: &[(&str, &Part)], new: &[(&str, &Part)], found: &mut Vec<Change>) {
    let mut left: HashMap<&str, (usize, &Part)> = old.iter().enumerate().map(|(place, (key, part))| (*key, (place, *part))).collect();
    let (mut last, mut moved) = (0, false);
    for (key, part) in new {
        let below = below(path, key);
        match left.remove(key) {
            None => add(below, part, found),
            Some((place, before)) => {
                moved |= place < last;
                last = place;
                values(&below, before, part, found);
            }
        }
    }
    for (key, _) in old.iter().filter(|(key, _)| left.contains_key(key)) {
        push(below(path, key), What::Removed, found);
    }
    if moved {
        push(path.to_owned(), What::Reordered, found);
    }
}

fn values(path: &str, old: &Part, new: &Part, found: &mut Vec<Change>) {
    if old == new {
        return;
    }
    match (&old.is, &new.is) {
        (Is::Map(old), Is::Map(new)) => {
            let [old, new] = [old, new].map(|entries| entries.iter().map(|(key, part)| (&**key, part)).collect::<Vec<_>>());
            entries(path, &old, &new, found);
        }
        (Is::List(old), Is::List(new)) if rows(old) && rows(new) => items(path, old, new, found),
        (Is::Secret(_), _) | (_, Is::Secret(_)) => push(path.to_owned(), What::Secret, found),
        (Is::Plugin(old), Is::Plugin(new)) => {
            let functions = functions(old, new);
            push(path.to_owned(), What::Plugin { from: old.hash.clone(), to: new.hash.clone(), functions }, found);
        }
        (Is::File(_), Is::File(_)) => {
            let hash = |part: &Part| part.shown().as_str().unwrap_or_default().to_owned();
            push(path.to_owned(), What::File { from: hash(old), to: hash(new) }, found);
        }
        _ => {
            let (from, to) = (old.shown(), new.shown());
            // Compared as texts, because the order of members counts. If they are equal, a secret inside them is different.
            let [before, after] = [&from, &to].map(Value::to_string);
            let what = if before == after { What::Secret } else { What::Changed { from, to } };
            push(path.to_owned(), what, found);
        }
    }
}

/// Whether a list consists of maps or lists, not of words.
fn rows(items: &[Part]) -> bool {
    items.iter().all(|item| matches!(item.is, Is::Map(_) | Is::List(_)))
}

/// Compares lists of rows: equal rows at both ends are skipped, those between are compared in pairs, and the rest of the longer
/// list was added or removed.
fn items(path: &str, old: &[Part], new: &[Part], found: &mut Vec<Change>) {
    let equal = |(old, new): &(&Part, &Part)| old == new;
    let head = old.iter().zip(new).take_while(equal).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(equal).count();
    let (old, new) = (&old[head..old.len() - tail], &new[head..new.len() - tail]);
    let at = |index: usize| format!("{path}[{}]", head + index);
    old.iter().zip(new).enumerate().for_each(|(index, (old, new))| values(&at(index), old, new, found));
    new.iter().enumerate().skip(old.len()).for_each(|(index, part)| add(at(index), part, found));
    (new.len()..old.len()).for_each(|index| push(at(index), What::Removed, found));
}

fn functions(old: &PluginOutline, new: &PluginOutline) -> Vec<String> {
    let changed = new.functions.iter().filter(|(name, text)| old.functions.get(*name) != Some(*text));
    let gone = old.functions.keys().filter(|name| !new.functions.contains_key(*name));
    changed.map(|(name, _)| name).chain(gone).map(|name| name.to_string()).collect()
}

fn add(path: String, part: &Part, found: &mut Vec<Change>) {
    push(path, What::Added { at: part.at.to_string() }, found);
}

fn push(path: String, what: What, found: &mut Vec<Change>) {
    found.push(Change { path, what, ends: Ended::default() });
}

/// A path and a key below it, quoted if it could be misread.
pub fn below(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && !key.contains(|c: char| matches!(c, '.' | '[' | '"') || c.is_whitespace() || c.is_control());
    let key = if plain { key.to_owned() } else { Value::from(key).to_string() };
    format!("{path}.{key}")
}

/// Changes as lines for people, in columns.
pub fn render(changes: &[Change]) -> String {
    let width = changes.iter().map(|change| change.path.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for Change { path, what, ends } in changes {
        let (sign, mut rest) = match what {
            What::Added { at } => ('+', at.clone()),
            What::Removed => ('-', String::new()),
            What::Changed { from, to } => ('~', arrow(from, to)),
            What::Secret => ('~', "changed, not shown".to_owned()),
            What::Reordered => ('~', "in another order".to_owned()),
            What::Plugin { from, to, functions } => ('~', format!("{}  {}", hashes(from, to), functions.join(", "))),
            What::File { from, to } => ('~', hashes(from, to)),
        };
        if !ends.is_nothing() {
            let separator = if rest.is_empty() { "" } else { "  " };
            rest = format!("{}{separator}ends {ends}", rest.trim_end());
        }
        // Writing to a text cannot fail.
        writeln!(out, "{}", format!("{sign} {path:<width$}   {rest}").trim_end()).ok();
    }
    out
}

fn hashes(from: &str, to: &str) -> String {
    let short = |hash: &str| hash.chars().take(SHOWN_DIGITS).collect::<String>();
    format!("{}… → {}…", short(from), short(to))
}

/// Both values on one line; if they are long, only the part around the difference.
fn arrow(from: &Value, to: &Value) -> String {
    let plain = |value: &Value| match value {
        Value::String(text) if !text.is_empty() && text.trim() == text && !text.contains(char::is_control) => text.clone(),
        other => other.to_string(),
    };
    let (mut old, mut new) = (plain(from), plain(to));
    if old == new {
        // A text and a value that looks the same: "1" and 1.
        (old, new) = (from.to_string(), to.to_string());
    }
    let same = old.chars().zip(new.chars()).take_while(|(a, b)| a == b).count();
    format!("{} → {}", excerpt(&old, same), excerpt(&new, same))
}

/// A part of a text that contains a certain character, if the text reaches that far.
fn excerpt(text: &str, from: usize) -> String {
    let count = text.chars().count();
    if count <= SHOWN_CHARS {
        return text.to_owned();
    }
    let start = from.saturating_sub(SHOWN_BEFORE).min(count - SHOWN_CHARS);
    let shown: String = text.chars().skip(start).take(SHOWN_CHARS).collect();
    let (before, after) = (if start > 0 { "…" } else { "" }, if start + SHOWN_CHARS < count { "…" } else { "" });
    format!("{before}{shown}{after}")
}

#[cfg(test)]
mod tests;
