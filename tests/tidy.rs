//! What `src/` promises of itself: its layers, its headers, and that it knows no protocol's words.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use regex::Regex;
use tramline::config::load;
use tramline::config::plan::{Row, SourceKind, Table, Target};

/// Files that may use `unsafe`: counting allocations cannot be done without.
const MAY_BE_UNSAFE: [&str; 1] = ["src/telemetry/memory.rs"];

/// Words of the shipped protocols that are words of the routing language too.
const OF_THE_LANGUAGE: [&str; 5] = ["user", "session", "heartbeat", "files", "git"];

/// Every Rust file under `src/`, by its path, in order.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.sort();
    let shown = |path: &Path| path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap().to_owned();
    found.iter().map(|path| (shown(path), std::fs::read_to_string(path).unwrap())).collect()
}

/// A file without its comments and without what is compiled for tests only.
fn code(text: &str) -> String {
    let lines = text.split("#[cfg(test)]\nmod tests {").next().unwrap().lines();
    lines.filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Whether a file is for tests only.
fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("_tests.rs") || path.contains("/tests/") || path == "src/testing.rs"
}

/// The module of a file, the first part of its path under `src/`.
fn module(path: &str) -> &str {
    path.trim_start_matches("src/").trim_end_matches(".rs").split('/').next().unwrap()
}

/// The layers as `src/lib.rs` writes them: module to row.
fn layers() -> HashMap<String, usize> {
    let lib = std::fs::read_to_string("src/lib.rs").unwrap();
    let name = Regex::new("`([a-z_]+)`").unwrap();
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | L"));
    let mut layers = HashMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').collect();
        let level: usize = cells[0].trim().parse().unwrap();
        for found in name.captures_iter(cells[1]) {
            assert_eq!(layers.insert(found[1].to_owned(), level), None, "{} stands in two rows", &found[1]);
        }
    }
    layers
}

#[test]
fn modules_use_only_the_rows_above_them() {
    let layers = layers();
    let used = Regex::new(r"crate::(?:([a-z_]+)|\{([^}]*)\})").unwrap();
    let mut broken = Vec::new();
    for (path, text) in sources() {
        let own = module(&path);
        if ["lib", "main"].contains(&own) || is_test(&path) {
            continue;
        }
        let level = *layers.get(own).unwrap_or_else(|| panic!("src/lib.rs gives `{own}` no layer"));
        for found in used.captures_iter(&code(&text)) {
            let names: Vec<&str> = match (found.get(1), found.get(2)) {
                (Some(one), _) => vec![one.as_str()],
                (_, Some(list)) => list.as_str().split(',').map(|part| part.trim().split(':').next().unwrap()).collect(),
                _ => Vec::new(),
            };
            for name in names.into_iter().filter(|name| *name != own) {
                let Some(&other) = layers.get(name) else { continue };
                if other >= level {
                    broken.push(format!("{path}: `{own}` (L{level}) uses `{name}` (L{other})"));
                }
            }
        }
    }
    assert_eq!(broken, Vec::<String>::new());
}

#[test]
fn the_lowest_layer_knows_no_library_of_the_others() {
    let outside = Regex::new(r"\b(tokio|axum|hyper|sqlx|rhai|tungstenite)::").unwrap();
    for (path, text) in sources().iter().filter(|(path, _)| module(path) == "model") {
        assert_eq!(outside.find(&code(text)).map(|found| found.as_str()), None, "{path}");
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for (path, text) in sources() {
        assert!(text.starts_with("//! "), "{path} has no header");
    }
}

#[test]
fn no_file_is_too_long_to_be_read_at_once() {
    for (path, text) in sources() {
        let lines = code(&text).lines().count();
        assert!(lines <= 450, "{path} has {lines} lines without comments and tests");
    }
}

#[test]
fn nothing_is_left_undone_or_unsafe() {
    let undone = Regex::new(r"\b(todo!|unimplemented!|TODO|FIXME|XXX)").unwrap();
    let unsafe_code = Regex::new(r"\bunsafe\b").unwrap();
    for (path, text) in sources() {
        assert_eq!(undone.find(&text).map(|found| found.as_str()), None, "{path}");
        if !MAY_BE_UNSAFE.contains(&&*path) {
            assert!(!text.contains("unsafe_code") && !unsafe_code.is_match(&code(&text)), "{path}");
        }
    }
}

/// Every word of the shipped protocols: names, message types, event types, channels.
fn words() -> BTreeSet<String> {
    let loaded = load(Path::new("routes.yaml"), &|_| None);
    let plan = loaded.plan.expect("the shipped file is valid");
    let mut words = BTreeSet::new();
    let mut table = |table: &Table| {
        words.extend(table.exact.keys().map(|key| key.to_string()));
        let rows = table.exact.values().flatten().chain(table.otherwise.iter().flatten());
        words.extend(rows.flat_map(published));
    };
    plan.protocols.iter().for_each(|protocol| table(&protocol.messages));
    plan.sources.iter().for_each(|source| table(&source.messages));
    words.extend(plan.protocols.iter().map(|p| p.name.to_string()));
    words.extend(plan.sources.iter().map(|s| s.name.to_string()));
    for channel in &plan.channels {
        words.insert(channel.pattern.as_str().split(":{").next().unwrap().to_owned());
        words.extend(channel.schemas.iter().map(|(glob, _)| glob.as_str().to_owned()));
    }
    for source in &plan.sources {
        if let SourceKind::Every { kind, .. } = &source.kind {
            words.extend(kind.as_constant().map(str::to_owned));
        }
    }
    // Types that scripts or pages name and the file does not.
    words.extend(["privateMessage", "batchUpdate", "batch_update", "userAppDetected", "workspaceChanged", "clientId"].map(str::to_owned));
    words.remove("*");
    words
}

fn published(row: &Row) -> Vec<String> {
    let channel = |target: &Target| match target {
        Target::Channel(text) => text.as_constant().map(str::to_owned),
        _ => None,
    };
    row.to
        .iter()
        .flat_map(|to| [to.kind.as_ref().and_then(|kind| kind.as_constant()).map(str::to_owned), channel(&to.target)])
        .flatten()
        .collect()
}

/// Whether a word can be nothing but a protocol's, in a comment too: it has a capital, a dash, a colon or a line inside.
fn is_distinctive(word: &str) -> bool {
    word.chars().any(|c| c.is_uppercase() || matches!(c, '_' | '-' | ':'))
}

#[test]
fn the_source_knows_no_word_of_a_protocol() {
    let words = words();
    for must in [
        "workspace",
        "canvas",
        "agent",
        "ai_start",
        "messageReceived",
        "ideStatusChanged",
        "MessageSent",
        "ai-response",
        "notification",
        "agent:inbox",
        "heartbeat",
    ] {
        assert!(words.contains(must), "{must} is no longer looked for: {words:?}");
    }
    let mut found = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| !is_test(path)) {
        let code = code(text);
        for word in words.iter().filter(|word| !OF_THE_LANGUAGE.contains(&&***word)) {
            let quoted = format!("\"{word}\"");
            if if is_distinctive(word) { text.contains(&**word) } else { code.contains(&quoted) } {
                found.push(format!("{path}: {word}"));
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}
