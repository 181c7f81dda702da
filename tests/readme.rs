//! Keeps the README's reference true: what it lists is compared with what the code says, both ways.
//!
//! Tables between `<!-- generated: NAME -->` and `<!-- /generated -->` are written by `UPDATE=1 cargo test --test main readme`.
//! Tables behind `<!-- keys: WHAT -->`, `<!-- calls -->`, `<!-- rest -->`, `<!-- change -->`, `<!-- why -->` and `<!-- bounds -->`
//! are written by hand, because only a person can say what a thing is for; their first column must name everything there is, and nothing else.
//! Whether the examples run is `tests/clients/readme.test.js`'s business.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use regex::Regex;
use tramline::model::close::{BY_OPERATOR, SESSION_ENDED};
use tramline::model::template::Root;
use tramline::model::{Close, Code, Now};
use tramline::telemetry::metrics::Metrics;

const README: &str = "README.md";
/// A key that nothing knows and that is near to none.
const UNKNOWN: &str = "qqqqqqqqqqqqqqqq";

/// One test at a time reads or writes the file.
fn readme() -> (MutexGuard<'static, ()>, String) {
    static FILE: Mutex<()> = Mutex::new(());
    let guard = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    (guard, fs::read_to_string(README).unwrap())
}

fn updating() -> bool {
    std::env::var_os("UPDATE").is_some_and(|value| value == "1")
}

/// Compares a generated table, or writes it.
fn generated(name: &str, table: &str) {
    let (_held, text) = readme();
    let (begin, end) = (format!("<!-- generated: {name} -->\n"), "<!-- /generated -->");
    let from = text.find(&begin).unwrap_or_else(|| panic!("README.md has no `{}`", begin.trim())) + begin.len();
    let to = from + text[from..].find(end).unwrap_or_else(|| panic!("`{}` has no end", begin.trim()));
    let wanted = format!("\n{table}\n");
    if updating() {
        fs::write(README, format!("{}{wanted}{}", &text[..from], &text[to..])).unwrap();
    } else {
        assert_eq!(text[from..to], wanted, "`{name}` in README.md is out of date: UPDATE=1 cargo test --test main readme");
    }
}

fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.iter().map(|c| c.replace('|', "\\|")).collect::<Vec<_>>().join(" | "));
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    let rule = format!("|{}\n", " --- |".repeat(head.len()));
    let lines: String = rows.into_iter().map(|row| line(&row)).collect();
    format!("{}{rule}{lines}", line(&head))
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

/// The rows of the table behind a marker, as cells.
fn rows_behind(text: &str, marker: &str) -> Vec<Vec<String>> {
    let at = text.find(marker).unwrap_or_else(|| panic!("README.md has no `{marker}`")) + marker.len();
    let lines = text[at..].lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells =
        |line: &str| line.trim().trim_matches('|').replace("\\|", "\u{1}").split('|').map(|c| c.trim().replace('\u{1}', "|")).collect();
    lines.skip(2).map(cells).collect()
}

/// All words in backticks in the first column of the table behind a marker.
fn listed(text: &str, marker: &str) -> BTreeSet<String> {
    let quoted = Regex::new("`([^`]+)`").unwrap();
    let rows = rows_behind(text, marker);
    rows.iter().flat_map(|row| quoted.captures_iter(&row[0]).map(|found| found[1].to_owned()).collect::<Vec<_>>()).collect()
}

fn set<T: Into<String>>(words: impl IntoIterator<Item = T>) -> BTreeSet<String> {
    words.into_iter().map(Into::into).collect()
}

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                found.push((path.clone(), fs::read_to_string(path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("src"), &mut found);
    found.sort();
    found
}

/// What the reader itself says it knows, section by section: an unknown key in each makes it name the others.
fn keys() -> BTreeMap<String, BTreeSet<String>> {
    let folder = tempfile::tempdir().unwrap();
    let probe = "version: 1
include: more.yaml
Q: 1
api: { Q: 1, tls: { Q: 1, cert: a, key: b } }
store: { Q: 1 }
channels: { c: { Q: 1, history: { Q: 1, keep: { Q: 1 } }, on_slow: { Q: 1 } } }
protocols:
  p:
    Q: 1
    listen: localhost:1/
    auth: { Q: 1, jwt: { Q: 1 } }
    limits: { Q: 1, connections: { Q: 1 } }
    heartbeat: { Q: 1 }
    compress: { Q: 1 }
    idle: { Q: 1, after: 1s }
    every: [{ Q: 1, every: 1s }]
    open: { Q: 1, set: { Q: 1 }, join: [{ Q: 1, channel: c, recover: { Q: 1, since: 1 } }], to: [{ Q: 1, channel: c, as: x }] }
    close: { Q: 1 }
    errors: { Q: 1 }
    messages: { m: { Q: 1, fail: { Q: 1 } }, n: { fail: { Q: 1, code: invalid } } }
    deliver: [{ Q: 1, send: {} }]
    batch: { Q: 1, every: 1s, as: $messages }
    http: { GET /x: { Q: 1 } }
sources:
  timer: { Q: 1, every: 1s, emit: { Q: 1, type: x }, to: c }
  door: { Q: 1, http: POST /y, on: localhost:2, messages: { m: { Q: 1 } } }
  plain: { Q: 1, http: POST /z, on: localhost:2, to: c }
";
    fs::write(folder.path().join("routes.yaml"), probe.replace("Q:", &format!("{UNKNOWN}:"))).unwrap();
    fs::write(folder.path().join("more.yaml"), format!("{UNKNOWN}: 1\n")).unwrap();
    let loaded = tramline::config::load(&folder.path().join("routes.yaml"), &|_| None);
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for diagnostic in loaded.diagnostics {
        let Some(what) = diagnostic.message.strip_suffix(&format!(" has no key `{UNKNOWN}`")) else { continue };
        let hint = diagnostic.hint.unwrap_or_default();
        let known = hint.strip_prefix("known here: ").unwrap_or_else(|| panic!("no list for {what}: {hint}"));
        let words = known.split(", ").map(|word| word.trim_matches('`').to_owned());
        found.entry(what.replace('`', "")).or_default().extend(words);
    }
    found
}

/// The sections with rows, as columns of one table.
const PLACES: [(&str, &str); 7] = [
    ("a row of messages", "messages"),
    ("a row of open", "open"),
    ("a row of close", "close"),
    ("a row of every", "every"),
    ("idle", "idle"),
    ("a row of http", "http"),
    ("a row of a source", "sources"),
];

#[test]
fn every_section_the_reader_knows_is_probed() {
    let section = Regex::new(r#"Fields::of\([^;]*?"([^"]+)"\)|=> "(a row of [^"]+)""#).unwrap();
    let probed = keys();
    for (path, text) in sources().iter().filter(|(path, _)| path.starts_with("src/config")) {
        for found in section.captures_iter(text) {
            let what = found.get(1).or(found.get(2)).unwrap().as_str().replace('`', "");
            assert!(probed.contains_key(&what), "{}: `{what}` is not among the probes of `keys()`", path.display());
        }
    }
}

#[test]
fn every_key_of_the_language_is_explained() {
    let known = keys();
    let rows: BTreeSet<String> = PLACES.iter().flat_map(|(what, _)| known[*what].clone()).collect();
    {
        let (_held, text) = readme();
        for (what, keys) in known.iter().filter(|(what, _)| what.as_str() == "idle" || !PLACES.iter().any(|(place, _)| place == what)) {
            let listed = listed(&text, &format!("<!-- keys: {what} -->"));
            if what == "idle" {
                assert!(listed.is_subset(keys), "keys of `idle`: {listed:?}");
            } else {
                assert_eq!(&listed, keys, "the table of {what}");
            }
        }
        let own = set(["after", "grace", "every"]);
        assert_eq!(listed(&text, "<!-- keys: row -->"), &rows - &own, "the table of rows");
    }
    let head: Vec<&str> = std::iter::once("key").chain(PLACES.iter().map(|(_, column)| *column)).collect();
    // In the order in which they happen, then whatever else there is.
    let order = [
        "when",
        "limit",
        "schema",
        "validate",
        "transform",
        "call",
        "set",
        "leave",
        "join",
        "to",
        "as",
        "data",
        "metadata",
        "priority",
        "except",
    ];
    let last = ["reply", "send", "status", "close", "fail"];
    let rest = rows.iter().map(String::as_str).filter(|key| !order.contains(key) && !last.contains(key));
    let all = order.into_iter().chain(last).filter(|key| rows.contains(*key)).chain(rest);
    let mark = |key: &str, what: &str| if known[what].contains(key) { "yes".to_owned() } else { String::new() };
    let line = |key: &str| std::iter::once(code(key)).chain(PLACES.iter().map(|(what, _)| mark(key, what))).collect();
    generated("row keys", &table(&head, all.map(line)));
}

#[test]
fn every_reference_is_explained() {
    let (_held, text) = readme();
    let listed = listed(&text, "<!-- references -->");
    for (name, root) in Root::ALL {
        let shown = if root == Root::Message { "$.x".to_owned() } else { format!("${name}") };
        assert!(listed.iter().any(|l| *l == shown || l.strip_prefix(&shown).is_some_and(|rest| rest.starts_with('.'))), "{shown}");
        let row = rows_behind(&text, "<!-- references -->")
            .into_iter()
            .find(|row| row[0].contains(&code(&shown)) || row[0].contains(&format!("`{shown}.")));
        for field in root.fields().unwrap_or_default() {
            assert!(
                row.as_ref().is_some_and(|row| row.iter().any(|cell| cell.contains(&code(field)))),
                "`${name}.{field}` is not explained"
            );
        }
    }
}

#[test]
fn every_diagnostic_is_listed() {
    let all = tramline::config::CODES.iter().chain(tramline::script::CODES);
    generated("diagnostics", &table(&["code", "about"], all.map(|(number, about)| vec![code(number), (*about).to_owned()])));
}

#[test]
fn every_fault_is_listed() {
    let row = |fault: Code| vec![code(fault.as_str()), fault.status().to_string(), fault.default_message().to_owned()];
    generated("faults", &table(&["code", "HTTP status", "message unless the protocol says otherwise"], Code::ALL.map(row)));
}

/// What ends a connection like this. No arm for "others": a new way to end does not compile without a line here.
fn when(close: &Close) -> &'static str {
    match close {
        Close::GoingAway => "the server stops",
        Close::ProtocolError => "a frame broke the WebSocket protocol",
        Close::InvalidUtf8 => "a text frame was not UTF-8",
        Close::TooLarge => "a message was larger than `limits.message`",
        Close::Flooding => "ten times over a rate, or it keeps sending messages that exceed the budgets of scripts",
        Close::Unauthorized => "no token, or one that is not valid",
        Close::Expired => "the token expired while the connection was open",
        Close::Slow(..) => "the outbox was full (`limits.slow` sets code and reason)",
        Close::Displaced(..) => "a newer connection took its place (`limits.connections.close` sets code and reason)",
        Close::PositionLost => "events that a subscription had yet to get are gone: subscribe again with the last position",
        Close::Retired => "a reload took the protocol away",
        Close::Idle => "the client sent nothing for longer than `idle` allows",
        Close::PingTimeout => "no answer to a ping; nothing is sent",
        Close::Internal => "an error of the server",
        Close::Asked(_, reason) if reason == SESSION_ENDED.1 => "its session was ended with `DELETE /api/sessions/{id}`",
        Close::Asked(_, reason) if reason == BY_OPERATOR.1 => "`DELETE /api/connections/{id}`, which may give another code and reason",
        Close::Asked(..) => "a row or a script asked for it",
        Close::ByClient(..) => "the client closed; nothing is sent",
        Close::Lost => "the socket ended without a close frame; nothing is sent",
    }
}

#[test]
fn every_close_code_is_listed() {
    let asked = |(code, reason): (u16, &'static str)| Close::Asked(code, reason.into());
    let fixed = [
        Close::Idle,
        Close::GoingAway,
        Close::ProtocolError,
        Close::PingTimeout,
        Close::Lost,
        Close::InvalidUtf8,
        Close::Unauthorized,
        Close::Flooding,
        Close::Expired,
        asked(SESSION_ENDED),
        asked(BY_OPERATOR),
        Close::TooLarge,
        Close::Internal,
        Close::PositionLost,
        Close::Retired,
        Close::slow(),
        Close::displaced(),
    ];
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let row = |close: &Close| vec![close.code().to_string(), close.reason().to_owned(), when(close).to_owned(), yes(close.may_retry())];
    let mut rows: Vec<Vec<String>> = fixed.iter().map(row).collect();
    let no: Vec<u16> = (1000..5000).filter(|code| !asked((*code, "")).may_retry()).collect();
    let ranges = no
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| if run.len() == 1 { run[0].to_string() } else { format!("{}–{}", run[0], run[run.len() - 1]) });
    let retry = format!("yes, except for {}", ranges.collect::<Vec<_>>().join(", "));
    for close in [asked((4000, "")), Close::ByClient(1000, String::new())] {
        rows.push(vec!["any".into(), "its own".into(), when(&close).to_owned(), retry.clone()]);
    }
    generated("close codes", &table(&["code", "reason", "when", "may the client come back"], rows));
}

#[test]
fn every_rest_call_is_listed() {
    // What is described is what is served: flow::openapi holds that.
    let snapshot = fs::read_to_string("tests/flow/openapi.snap").unwrap();
    let document: serde_json::Value = serde_json::from_str(snapshot.splitn(3, "---\n").nth(2).unwrap()).unwrap();
    let paths = document["paths"].as_object().unwrap().iter();
    let served =
        set(paths.flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase()))));
    let (_held, text) = readme();
    assert_eq!(listed(&text, "<!-- rest -->"), served);
}

/// Every text that is the only one a member may have: `"change": { "enum": ["added"] }`.
fn texts_of(value: &serde_json::Value, member: &str, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(members) => {
            let texts = members.get(member).and_then(|of| of["enum"].as_array()).into_iter().flatten();
            found.extend(texts.filter_map(|text| text.as_str()).map(str::to_owned));
            members.values().for_each(|below| texts_of(below, member, found));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| texts_of(item, member, found)),
        _ => {}
    }
}

#[test]
fn every_outcome_of_a_reload_is_listed() {
    let snapshot = fs::read_to_string("tests/flow/openapi.snap").unwrap();
    let document: serde_json::Value = serde_json::from_str(snapshot.splitn(3, "---\n").nth(2).unwrap()).unwrap();
    let schemas = &document["components"]["schemas"];
    let mut changes = BTreeSet::new();
    texts_of(&schemas["Change"], "change", &mut changes);
    let (_held, text) = readme();
    let column = |marker: &str| set(rows_behind(&text, marker).iter().map(|row| row[0].trim_matches('`')));
    assert_eq!(column("<!-- change -->"), changes);
    let whys = schemas["Why"]["enum"].as_array().unwrap().iter().map(|why| why.as_str().unwrap());
    assert_eq!(column("<!-- why -->"), set(whys));
}

#[test]
fn every_environment_variable_is_listed() {
    fn walk(value: &serde_yaml::Value, path: &str, found: &mut Vec<Vec<String>>) {
        let variable = Regex::new(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}").unwrap();
        match value {
            serde_yaml::Value::String(text) => {
                for one in variable.captures_iter(text) {
                    let default =
                        one.get(2).map_or("must be set".to_owned(), |d| if d.is_empty() { "empty".into() } else { code(d.as_str()) });
                    match found.iter_mut().find(|row| row[0] == code(&one[1])) {
                        Some(row) => row[2] += &format!(", {}", code(path)),
                        None => found.push(vec![code(&one[1]), default, code(path)]),
                    }
                }
            }
            serde_yaml::Value::Sequence(items) => items.iter().for_each(|item| walk(item, path, found)),
            serde_yaml::Value::Mapping(entries) => entries.iter().for_each(|(key, value)| {
                let key = key.as_str().unwrap_or_default();
                walk(value, &if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }, found);
            }),
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(&serde_yaml::from_str(&fs::read_to_string("routes.yaml").unwrap()).unwrap(), "", &mut found);
    generated("environment", &table(&["variable", "default", "where"], found));
}

#[test]
fn every_function_for_scripts_is_listed() {
    let form = Regex::new(r#"\("\w+",\s*\d,\s*"([a-z_]+(?:(?:::|\.)[a-z0-9_]+)?\([^"]*(?:\\"[^"]*)*\))"\)"#).unwrap();
    let mut forms = BTreeSet::new();
    for file in ["src/script/host.rs", "src/script/library.rs"] {
        let source = fs::read_to_string(file).unwrap();
        forms.extend(form.captures_iter(&source).map(|found| found[1].replace("\\\"", "\"")));
    }
    assert!(forms.len() > 30, "the functions are not read: {forms:?}");
    let (_held, text) = readme();
    assert_eq!(listed(&text, "<!-- calls -->"), forms);
    let member = Regex::new(r#"register_get\("(\w+)""#).unwrap();
    let source = fs::read_to_string("src/script/conn.rs").unwrap();
    let members = set(member.captures_iter(&source).map(|found| format!("conn.{}", &found[1])));
    assert_eq!(listed(&text, "<!-- conn -->"), members);
}

/// Whether a plugin with this text is valid, beside one named `words`.
fn compiles(text: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("plugins")).unwrap();
    fs::write(folder.path().join("routes.yaml"), "version: 1\n").unwrap();
    fs::write(folder.path().join("plugins/words.rhai"), "fn small(text) { text }\n").unwrap();
    fs::write(folder.path().join("plugins/example.rhai"), text).unwrap();
    let loaded = tramline::config::load(&folder.path().join("routes.yaml"), &|_| None);
    let lines = |found: Vec<tramline::config::diagnostic::Diagnostic>| found.iter().map(|one| one.line()).collect::<Vec<_>>().join("\n");
    tramline::runtime::build(loaded, None).map(|_| ()).map_err(lines)
}

#[test]
fn every_piece_of_script_in_the_text_compiles() {
    let (_held, text) = readme();
    let scripts = text.split("\n## Scripts\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let quoted = Regex::new("`([^`]+)`").unwrap();
    let pieces: Vec<&str> = quoted.captures_iter(scripts).map(|found| found.get(1).unwrap().as_str()).collect();
    let is_statement =
        |piece: &&&str| !piece.contains('…') && ["import ", "throw ", ";", "?.", "[\""].iter().any(|mark| piece.contains(mark));
    let statements: Vec<&&str> = pieces.iter().filter(is_statement).collect();
    assert!(statements.len() >= 4, "the pieces are not found: {statements:?}");
    for piece in statements {
        let plugin = if piece.starts_with("import ") { (*piece).to_owned() } else { format!("fn f(msg, event) {{ {piece} }}") };
        assert_eq!(compiles(&plugin), Ok(()), "{piece}");
    }
    let (_, trap) = scripts.split_once("\n- Reserved words").unwrap();
    let words: Vec<&str> = quoted.captures_iter(trap.lines().next().unwrap()).map(|found| found.get(1).unwrap().as_str()).collect();
    let words: Vec<&&str> = words.iter().filter(|word| word.chars().all(|c| c.is_ascii_lowercase())).collect();
    assert!(words.len() > 20, "{words:?}");
    for word in words {
        assert!(compiles(&format!("fn f(msg) {{ let {word} = 1; {word} }}")).is_err(), "`{word}` is not reserved");
    }
    assert_eq!(compiles("fn f(msg) { let free = 1; free }"), Ok(()));
}

#[test]
fn every_metric_is_listed() {
    let (now, mut rows) = (Now::read(), Vec::new());
    let metrics = Metrics::new(now);
    let _ = (metrics.pattern("c"), metrics.protocol("p"), metrics.route("r"), metrics.source("s"));
    let text = metrics.prometheus(now, &[], &[]);
    let label = Regex::new(r#"([a-z]+)=""#).unwrap();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) else { continue };
        let kind = lines.next().unwrap().rsplit(' ').next().unwrap().to_owned();
        let labels: Vec<String> = label.captures_iter(lines.next().unwrap()).map(|found| code(&found[1])).collect();
        rows.push(vec![code(name), kind, labels.join(", "), help.trim_end_matches('.').to_owned()]);
    }
    let given = Regex::new(r#"(sample|per_plugin|per_function)\("([a-z_]+)", "([^"]+)", Kind::(\w+)"#).unwrap();
    let source = fs::read_to_string("src/http/measure.rs").unwrap();
    for found in given.captures_iter(&source) {
        let labels = match &found[1] {
            "per_plugin" => code("plugin"),
            "per_function" => format!("{}, {}", code("plugin"), code("function")),
            _ => String::new(),
        };
        rows.push(vec![
            code(&format!("tramline_{}", &found[2])),
            found[4].to_lowercase(),
            labels,
            found[3].trim_end_matches('.').to_owned(),
        ]);
    }
    let timed = Regex::new(r#"Timed \{ name: "([a-z_]+)", help: "([^"]+)""#).unwrap();
    for found in timed.captures_iter(&source) {
        let name = code(&format!("tramline_{}", &found[1]));
        rows.push(vec![name, "histogram".to_owned(), code("le"), found[2].trim_end_matches('.').to_owned()]);
    }
    let there = source.matches(", Kind::").count() + source.matches("Timed { name").count();
    assert_eq!(rows.len(), text.matches("# HELP").count() + there, "not every metric is read");
    generated("metrics", &table(&["name", "kind", "labels", "what"], rows));
}

/// The value of a constant's expression, as a person writes it. None where it is no number.
fn shown(name: &str, written: &str) -> Option<String> {
    let number = |text: &str| text.trim().replace('_', "").parse::<u64>().ok();
    let product = |text: &str| text.split('*').map(number).product::<Option<u64>>();
    if let Some((unit, inside)) = written.strip_prefix("Duration::from_").and_then(|rest| rest.trim_end_matches(')').split_once('(')) {
        let n = product(inside)?;
        return Some(match (unit, n) {
            ("secs", n) if n >= 86_400 => format!("{} days", n / 86_400),
            ("secs", n) => format!("{n} s"),
            (_, n) => format!("{n} ms"),
        });
    }
    let value = match written.split_once("<<") {
        Some((n, shift)) => number(n)? << number(shift)?,
        None => product(written)?,
    };
    let is_bytes = name.contains("BYTES") || written.contains("<<");
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.iter().find(|(size, _)| is_bytes && value % size == 0).map(|(size, unit)| format!("{} {unit}", value / size));
    Some(unit.unwrap_or_else(|| if is_bytes { format!("{value} bytes") } else { value.to_string() }))
}

/// Every bound in the source, as `hub::CHANNELS_MAX` and its value.
fn bounds() -> BTreeMap<String, String> {
    let constant = Regex::new(r"(?m)^\s*(?:pub(?:\([a-z]+\))? )?const ([A-Z][A-Z0-9_]*(?:_MAX|_WITHIN)|FLOOD): [\w:]+ = ([^;]+);").unwrap();
    let mut found = BTreeMap::new();
    for (path, text) in sources() {
        let module = path.strip_prefix("src").unwrap().with_extension("").to_string_lossy().replace('/', "::");
        let module = module.strip_suffix("::mod").unwrap_or(&module).to_owned();
        for one in constant.captures_iter(&text) {
            let value = shown(&one[1], &one[2]).unwrap_or_else(|| panic!("{module}::{} = {}: no number", &one[1], &one[2]));
            found.insert(format!("{module}::{}", &one[1]), value);
        }
    }
    found
}

#[test]
fn every_bound_is_listed_with_its_value() {
    let (_held, mut text) = readme();
    let known = bounds();
    assert!(known.len() > 30, "the bounds are not read: {known:?}");
    let constant = Regex::new("`((?:[a-z_]+::)+[A-Z_]+)`").unwrap();
    let parts = text.split("<!-- bounds -->").skip(1);
    let rows = parts.flat_map(|part| rows_behind(part, "")).filter_map(|row| Some((constant.captures(&row[3])?[1].to_owned(), row)));
    let rows: Vec<(String, Vec<String>)> = rows.collect();
    let named = set(rows.iter().map(|(name, _)| name.clone()));
    assert_eq!(named.len(), rows.len(), "a bound has two rows");
    let known_names = set(known.keys().cloned());
    assert_eq!((&known_names - &named, &named - &known_names), Default::default(), "bounds that are missing, and that are none");
    for (name, row) in rows {
        let value = &known[&name];
        if updating() {
            text = text.replace(&format!("| {} |", row.join(" | ")), &format!("| {} | {value} | {} | {} |", row[0], row[2], row[3]));
        } else {
            assert_eq!(&row[1], value, "{name}: UPDATE=1 cargo test --test main readme");
        }
    }
    if updating() {
        fs::write(README, text).unwrap();
    }
}
