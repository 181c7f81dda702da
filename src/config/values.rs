//! Readers of single values: each takes a node and gives the typed value, or reports why not.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::codes;
use super::diagnostic::Diagnostic;
use super::fields::{Collected, nearest};
use super::node::{Node, Yaml};
use super::plan::{Rate, Secret, SourceSpan};
use super::units;
use crate::model::close::{REASON_BYTES_MAX, may_send};
use crate::model::schema::Schema;

/// Text. A number is the text it is written as.
pub(super) fn text(all: &Collected, node: &Node) -> Option<String> {
    match &node.value {
        Yaml::Text(text) => Some(text.clone()),
        Yaml::Number(number) => Some(number.to_string()),
        _ => all.wrong_type(node, "text"),
    }
}

/// A secret.
pub(super) fn secret(all: &Collected, node: &Node) -> Option<Secret> {
    all.secret(node);
    text(all, node).map(|text| Secret(text.into()))
}

/// `true` or `false`.
pub(super) fn flag(all: &Collected, node: &Node) -> Option<bool> {
    match &node.value {
        Yaml::Bool(is) => Some(*is),
        Yaml::Text(text) if text == "true" || text == "false" => Some(text == "true"),
        _ => all.wrong_type(node, "true or false"),
    }
}

/// A whole number, at least 1.
pub(super) fn count(all: &Collected, node: &Node) -> Option<usize> {
    let number = match &node.value {
        Yaml::Number(number) => number.to_string(),
        Yaml::Text(text) => text.clone(),
        _ => return all.wrong_type(node, "a number"),
    };
    match number.parse::<usize>() {
        Ok(n) if (1..=1_000_000_000).contains(&n) => Some(n),
        _ => all.fail(codes::VALUE, &node.span, format!("`{number}` is not a whole number from 1 to 1000000000")),
    }
}

/// A duration.
pub(super) fn duration(all: &Collected, node: &Node) -> Option<Duration> {
    measured(all, node, "a duration", units::duration)
}

/// A size in bytes.
pub(super) fn size(all: &Collected, node: &Node) -> Option<usize> {
    measured(all, node, "a size", units::size)
}

/// A size in bytes of what lies on a disk.
pub(super) fn disk_size(all: &Collected, node: &Node) -> Option<u64> {
    measured(all, node, "a size", units::disk_size)
}

/// A rate; `none` is none.
pub(super) fn rate(all: &Collected, node: &Node) -> Option<Rate> {
    if node.as_text() == Some("none") { None } else { measured(all, node, "a rate", units::rate) }
}

fn measured<T>(all: &Collected, node: &Node, what: &str, parse: fn(&str) -> Result<T, String>) -> Option<T> {
    let text = match &node.value {
        Yaml::Text(text) => text.clone(),
        Yaml::Number(number) => number.to_string(),
        _ => return all.wrong_type(node, what),
    };
    parse(text.trim()).map_or_else(|why| all.fail(codes::VALUE, &node.span, why), Some)
}

/// One of a few words.
pub(super) fn word<T: Copy>(all: &Collected, node: &Node, words: &[(&'static str, T)]) -> Option<T> {
    let written = text(all, node)?;
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == written) {
        return Some(*value);
    }
    let known: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
    let diagnostic = Diagnostic::new(codes::VALUE, node.span.clone(), format!("`{written}` is not one of {}", known.join(", ")));
    all.report(match nearest(&written, words.iter().map(|(word, _)| *word)) {
        Some(near) => diagnostic.hint(format!("did you mean `{near}`?")),
        None => diagnostic,
    });
    None
}

/// A list of texts with their places: a YAML list, or one text with commas. Empty text is the empty list.
pub(super) fn list(all: &Collected, node: &Node) -> Option<Vec<(Box<str>, SourceSpan)>> {
    match &node.value {
        Yaml::Null => Some(Vec::new()),
        Yaml::Text(words) => {
            let words = words.split(',').map(str::trim).filter(|word| !word.is_empty());
            Some(words.map(|word| (word.into(), node.span.clone())).collect())
        }
        Yaml::List(items) => Some(items.iter().filter_map(|item| Some((text(all, item)?.into(), item.span.clone()))).collect()),
        _ => all.wrong_type(node, "a list"),
    }
}

/// A list of origins: `https://example.org`, without a path.
pub(super) fn origins(all: &Collected, node: &Node) -> Option<Vec<String>> {
    let words = list(all, node)?;
    for (word, span) in &words {
        let rest = word.strip_prefix("http://").or_else(|| word.strip_prefix("https://"));
        if !rest.is_some_and(|host| !host.is_empty() && !host.contains(['/', ' ', '*'])) {
            all.report(
                Diagnostic::new(codes::ADDRESS, span.clone(), format!("`{word}` is not a valid origin"))
                    .hint("write `https://example.org`"),
            );
        }
    }
    Some(words.into_iter().map(|(word, _)| word.trim_end_matches('/').to_lowercase()).collect())
}

/// A JSON Pointer: `/type`, `/data/kind`.
pub(super) fn pointer(all: &Collected, node: &Node) -> Option<Vec<Box<str>>> {
    let written = text(all, node)?;
    let Some(path) = written.strip_prefix('/') else {
        return all.fail(codes::VALUE, &node.span, format!("`{written}` is not a valid JSON Pointer; write `/{written}`"));
    };
    Some(path.split('/').map(|step| step.replace("~1", "/").replace("~0", "~").into()).collect())
}

/// A schema. A mistake is reported at the part that is wrong.
pub(super) fn schema(all: &Collected, node: &Node) -> Option<Arc<Schema>> {
    if !matches!(node.value, Yaml::Map(_) | Yaml::Bool(_)) {
        return all.wrong_type(node, "a JSON Schema: a map, true or false");
    }
    let json = node.to_json().map_err(|span| all.fail::<()>(codes::SCHEMA, &span, "JSON cannot represent this value")).ok()?;
    match Schema::compile(&json) {
        Ok(schema) => Some(Arc::new(schema)),
        Err(flaw) => {
            let path = if flaw.path.is_empty() { String::new() } else { format!(" at `{}`", flaw.path) };
            all.fail(codes::SCHEMA, &node.at_pointer(&flaw.path).span, format!("not a valid JSON Schema{path}: {}", flaw.message))
        }
    }
}

/// A close code and the reason's node: `[4001, "why"]`, or a code alone.
pub(super) fn close<'n>(all: &Collected, node: &'n Node) -> Option<(u16, Option<&'n Node>)> {
    let (code, reason) = match &node.value {
        Yaml::List(items) if (1..=2).contains(&items.len()) => (&items[0], items.get(1)),
        Yaml::Number(_) | Yaml::Text(_) => (node, None),
        _ => return all.wrong_type(node, "a code and a reason: `[4001, \"why\"]`"),
    };
    let written = match &code.value {
        Yaml::Number(number) => number.to_string(),
        Yaml::Text(text) => text.clone(),
        _ => return all.wrong_type(code, "a close code"),
    };
    match written.parse::<u16>() {
        Ok(number) if may_send(number) => Some((number, reason)),
        _ => {
            let hint = "use 1000-1003, 1007-1014 or 3000-4999";
            all.report(Diagnostic::new(codes::CLOSE, code.span.clone(), format!("`{written}` is not a valid close code")).hint(hint));
            None
        }
    }
}

/// A close code with a reason that is known now.
pub(super) fn fixed_close(all: &Collected, node: &Node) -> Option<(u16, Arc<str>)> {
    let (code, reason) = close(all, node)?;
    let reason = reason.map_or(Some(String::new()), |reason| text(all, reason))?;
    check_reason(all, &reason, &node.span)?;
    Some((code, reason.into()))
}

/// Checks that a reason fits into a close frame.
pub(super) fn check_reason(all: &Collected, reason: &str, at: &SourceSpan) -> Option<()> {
    if reason.len() <= REASON_BYTES_MAX {
        return Some(());
    }
    all.fail(codes::CLOSE, at, format!("the reason has {} bytes; at most {REASON_BYTES_MAX} fit into a close frame", reason.len()))
}

/// A name of a protocol or source.
pub(super) fn name(all: &Collected, written: &str, at: &SourceSpan) -> Option<Arc<str>> {
    let fits = written.len() <= 64 && written.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if fits && written != "api" && written.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_')) {
        return Some(written.into());
    }
    let why = if written == "api" {
        "is reserved for the REST interface"
    } else {
        "is not a valid name: lower-case letters, digits, `-` and `_`, at most 64"
    };
    all.fail(codes::NAME, at, format!("`{written}` {why}"))
}

/// Reports names that appear twice in a list.
pub(super) fn no_doubles(all: &Collected, names: &[(Box<str>, SourceSpan)]) {
    let mut seen = HashSet::new();
    for (name, span) in names {
        if !seen.insert(name) {
            all.report(Diagnostic::new(codes::DUPLICATE_NAME, span.clone(), format!("`{name}` appears twice in this list")));
        }
    }
}
