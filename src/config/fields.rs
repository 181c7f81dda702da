//! Reads a map key by key: the keys that are asked for are the keys that are allowed. Collects every mistake and never stops
//! early.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::certificate;
use super::codes;
use super::diagnostic::Diagnostic;
use super::inputs::Inputs;
use super::node::{Entry, Node, Yaml};
use super::plan::{ExpressionUse, FnRef, FunctionUse, Role, SourceSpan};
use crate::model::id::RowId;
use crate::model::{PluginName, SourceLocation};

/// More mistakes than this in the files of a configuration are not reported.
pub const DIAGNOSTICS_MAX: usize = 200;

/// Keys that are easily written in the wrong map, and whose they are.
const ELSEWHERE: [(&str, &str); 12] = [
    ("on_slow", "a channel"),
    ("history", "a channel"),
    ("audience", "a channel"),
    ("keep", "`history`"),
    ("tail", "`history`"),
    ("rate", "`limits`"),
    ("user_rate", "`limits`"),
    ("address_rate", "`limits`"),
    ("connect_rate", "`limits`"),
    ("outbox", "`limits`"),
    ("slow", "`limits`"),
    ("subscriptions", "`limits`"),
];

/// What reading collects besides the plan.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) diagnostics: RefCell<Vec<Diagnostic>>,
    pub(super) functions: RefCell<Vec<FunctionUse>>,
    pub(super) expressions: RefCell<Vec<ExpressionUse>>,
    /// The files that were read, or should have been.
    pub(super) inputs: RefCell<Inputs>,
    /// The certificates that were read, by their files and those of their keys.
    pub(super) certificates: RefCell<HashMap<(PathBuf, PathBuf), certificate::Read>>,
    /// Where secrets stand: they are shown to nobody.
    pub(super) secrets: RefCell<HashSet<SourceLocation>>,
    /// The plugins that were found: an expression is compiled along with its protocol's, or with none.
    pub(super) plugins: RefCell<HashSet<PluginName>>,
    /// The ids that rows have.
    pub(super) rows: RefCell<HashSet<RowId>>,
    /// Set when a mistake may hide channels, so that looking for one would only add noise.
    pub(super) channels_uncertain: Cell<bool>,
    /// Likewise for protocols and sources.
    pub(super) names_uncertain: Cell<bool>,
}

impl Collected {
    /// Keeps a diagnostic. With aliases one mistake can appear at several places of the plan; it is reported once.
    pub(super) fn report(&self, diagnostic: Diagnostic) {
        let mut all = self.diagnostics.borrow_mut();
        if all.len() < DIAGNOSTICS_MAX && !all.contains(&diagnostic) {
            all.push(diagnostic);
        }
    }

    /// An id that no other row of this configuration has: the text, numbered if it is taken.
    pub(super) fn row_id(&self, text: &str) -> RowId {
        let mut taken = self.rows.borrow_mut();
        let mut id = RowId::of(text);
        let mut number = 1;
        while !taken.insert(id) {
            number += 1;
            id = RowId::of(&format!("{text} #{number}"));
        }
        id
    }

    /// Reports and gives nothing, for readers.
    pub(super) fn fail<T>(&self, code: &'static str, at: &SourceSpan, message: impl Into<String>) -> Option<T> {
        self.report(Diagnostic::new(code, at.clone(), message));
        None
    }

    /// Reports a value of the wrong type.
    pub(super) fn wrong_type<T>(&self, node: &Node, wanted: &str) -> Option<T> {
        if matches!(node.value, Yaml::Broken) {
            return None;
        }
        self.fail(codes::TYPE, &node.span, format!("expected {wanted}, found {}", node.kind()))
    }

    /// Keeps that a value is a secret.
    pub(super) fn secret(&self, node: &Node) {
        self.secrets.borrow_mut().insert(node.span.location.clone());
    }

    /// Keeps that a function is used.
    pub(super) fn function(&self, function: FnRef, role: Role, at: &SourceSpan) -> FnRef {
        self.functions.borrow_mut().push(FunctionUse { function: function.clone(), role, at: at.clone() });
        function
    }

    /// Keeps an expression under a name that no plugin can write.
    pub(super) fn expression(&self, plugin: &PluginName, source: String, parameters: &'static [&'static str], at: &SourceSpan) -> FnRef {
        let mut all = self.expressions.borrow_mut();
        let plugin = if self.plugins.borrow().contains(plugin) { plugin.clone() } else { "".into() };
        let function = FnRef { plugin, name: format!("when#{}", all.len() + 1).into() };
        all.push(ExpressionUse { function: function.clone(), source: source.into(), parameters, at: at.clone() });
        function
    }
}

/// A map being read.
pub(super) struct Fields<'a> {
    all: &'a Collected,
    what: &'a str,
    at: &'a SourceSpan,
    entries: &'a [Entry],
    asked: Vec<&'static str>,
    missing: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Begins to read a map. `what` is what a person calls it: "a protocol".
    pub(super) fn of(all: &'a Collected, node: &'a Node, what: &'a str) -> Option<Self> {
        match &node.value {
            Yaml::Map(entries) => Some(Self { all, what, at: &node.span, entries, asked: Vec::new(), missing: Vec::new() }),
            _ => all.wrong_type(node, &format!("a map for {what}")),
        }
    }

    /// The value of a key, even if it is `null`.
    pub(super) fn raw(&mut self, key: &'static str) -> Option<&'a Node> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.entries.iter().find(|entry| &*entry.key == key).map(|entry| &entry.value)
    }

    /// The value of a key. Nothing and empty text count as absent.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Node> {
        self.raw(key).filter(|node| !node.is_empty())
    }

    /// The value of a key that must be there.
    pub(super) fn need(&mut self, key: &'static str) -> Option<&'a Node> {
        let found = self.get(key);
        if found.is_none() && !self.raw(key).is_some_and(|node| matches!(node.value, Yaml::Broken)) {
            self.missing.push(key);
        }
        found
    }

    /// Reads the value of a key.
    pub(super) fn read<T>(&mut self, key: &'static str, reader: impl FnOnce(&'a Collected, &'a Node) -> Option<T>) -> Option<T> {
        self.get(key).and_then(|node| reader(self.all, node))
    }

    /// Reads the value of a key, even if it is `null` or empty text.
    pub(super) fn read_raw<T>(&mut self, key: &'static str, reader: impl FnOnce(&'a Collected, &'a Node) -> Option<T>) -> Option<T> {
        self.raw(key).filter(|node| !matches!(node.value, Yaml::Broken)).and_then(|node| reader(self.all, node))
    }

    /// Whether the map says anything under a key. Does not count as asking for it.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| &*entry.key == key)
    }

    /// The place of a key.
    pub(super) fn key_span(&self, key: &str) -> Option<&'a SourceSpan> {
        self.entries.iter().find(|entry| &*entry.key == key).map(|entry| &entry.key_span)
    }

    /// Reports keys that exclude each other, if both are present, and nothing else about them.
    pub(super) fn exclude(&mut self, key: &'static str, others: &[&'static str]) {
        for other in others {
            if !self.has(key) {
                continue;
            }
            if let Some(span) = self.key_span(other) {
                self.raw(key);
                self.raw(other);
                self.all.report(Diagnostic::new(codes::CONFLICT, span.clone(), format!("`{other}` cannot be used together with `{key}`")));
            }
        }
    }

    /// Reports unknown keys and missing keys. Returns whether all was well.
    pub(super) fn finish(self) -> bool {
        let unknown = self.entries.iter().filter(|entry| !self.asked.contains(&&*entry.key));
        let (mut well, mut meant) = (true, Vec::new());
        let free: Vec<&'static str> = self.asked.iter().copied().filter(|key| !self.has(key)).collect();
        for entry in unknown {
            let near = nearest(&entry.key, free.iter().copied());
            let hint = match (near, nearest(&entry.key, self.asked.iter().copied())) {
                (Some(near), _) => format!("did you mean `{near}`?"),
                (None, Some(taken)) => format!("did you mean `{taken}`? It is there already; a key may appear once"),
                (None, None) => match ELSEWHERE.iter().find(|(key, _)| **key == *entry.key) {
                    Some((key, home)) => format!("`{key}` is a key of {home}"),
                    None => format!("known here: {}", self.asked.join(", ")),
                },
            };
            meant.extend(near);
            let message = format!("{} has no key `{}`", self.what, entry.key);
            self.all.report(Diagnostic::new(codes::UNKNOWN_KEY, entry.key_span.clone(), message).hint(hint));
            well = false;
        }
        // A misspelt key is one mistake, not two.
        for key in self.missing.iter().filter(|key| !meant.contains(key)) {
            let diagnostic = Diagnostic::new(codes::MISSING, self.at.clone(), format!("{} needs `{key}`", self.what));
            self.all.report(if *key == "version" { diagnostic.hint("write `version: 1`") } else { diagnostic });
            well = false;
        }
        well
    }
}

/// The place of something else as seen from a place: the line, and the file if it is another one.
pub(super) fn elsewhere(other: &SourceLocation, from: &SourceSpan) -> String {
    if other.file == from.location.file { format!("on line {}", other.line) } else { format!("at {other}") }
}

/// The known word that was most likely meant.
pub(super) fn nearest<'w>(written: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    const CHARS_MAX: usize = 64;
    let length = written.chars().count();
    let comparable = |word: &&str| length <= CHARS_MAX && word.len() <= CHARS_MAX;
    let allowed = (length / 3).max(1);
    // Half a word is a mistake like any other.
    let begins = |word: &str| length >= 4 && word.starts_with(written);
    let near = known
        .into_iter()
        .filter(comparable)
        .map(|word| (if begins(word) { 1 } else { strsim::osa_distance(written, word) }, word))
        .filter(|(distance, _)| *distance <= allowed);
    near.min_by_key(|(distance, _)| *distance).map(|(_, word)| word)
}
