//! What `tramline check` says of valid and of broken files: every file in `check/cases` has a snapshot, every code a case.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tramline::config::diagnostic::render;
use tramline::config::plan::{DatabasePlan, FnRef, Reply, WhenFull};
use tramline::config::{CODES, Loaded, load};
use tramline::model::Code;
use tramline::model::template::{Entry, Template};

const CASES: &str = "tests/check/cases";

fn nothing(_: &str) -> Option<String> {
    None
}

/// What is told, with paths as they are seen from the folder of the cases.
fn told(loaded: &Loaded) -> String {
    let mut out = String::new();
    for line in render(&loaded.diagnostics, &loaded.files).lines() {
        out.push_str(&line.replace(&format!("{CASES}/"), ""));
        out.push('\n');
    }
    out
}

/// Runs the binary.
fn tramline(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tramline")).args(arguments).env_remove("RUST_LOG").output().unwrap()
}

/// Each case's name and routes file: `NAME.yaml`, or `NAME/routes.yaml` where it takes several files.
fn cases() -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(CASES).unwrap().map(|entry| entry.unwrap().path());
    let case = |path: PathBuf| {
        let name = path.file_stem()?.to_str()?.to_owned();
        let file = if path.is_dir() { path.join("routes.yaml") } else { path };
        Some((name, file))
    };
    let mut cases: Vec<_> = entries.filter_map(case).collect();
    cases.sort();
    cases
}

#[test]
fn the_shipped_file_is_valid() {
    let loaded = load(Path::new("routes.yaml"), &nothing);
    assert_eq!(told(&loaded), "");
    let plan = loaded.plan.unwrap();
    assert_eq!(plan.protocols.iter().map(|p| &*p.name).collect::<Vec<_>>(), ["workspace", "canvas", "agent"]);
    assert_eq!(loaded.plugins.sources.keys().map(|name| &**name).collect::<Vec<_>>(), ["agent", "canvas"]);
}

#[test]
fn what_is_told_of_each_broken_file() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("check/snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for (name, file) in cases() {
            let run = tramline(&["check", "--config", file.to_str().unwrap()]);
            assert_eq!(run.status.code(), Some(1), "{name} is meant to be broken");
            insta::assert_snapshot!(name, String::from_utf8(run.stdout).unwrap().replace(&format!("{CASES}/"), ""));
        }
    });
}

#[test]
fn every_code_has_a_case() {
    let mut unseen: BTreeSet<&str> = CODES.iter().map(|(code, _)| *code).collect();
    let missing = load(Path::new("tests/check/no_such_file.yaml"), &nothing);
    let cases = cases();
    for loaded in cases.iter().map(|(_, file)| load(file, &nothing)).chain([missing]) {
        for diagnostic in &loaded.diagnostics {
            assert!(CODES.iter().any(|(code, _)| *code == diagnostic.code), "{} is not in the table", diagnostic.code);
            unseen.remove(diagnostic.code);
        }
    }
    assert!(unseen.is_empty(), "no case for {unseen:?}");
}

/// Loads a text as a routes file of its own, in a folder of its own.
fn load_bytes(bytes: &[u8]) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes.yaml");
    std::fs::write(&path, bytes).unwrap();
    load(&path, &|name| (name == "SET").then(|| "value".to_owned()))
}

fn load_text(text: &str) -> Loaded {
    load_bytes(text.as_bytes())
}

#[test]
fn hostile_files_are_refused_in_bounded_time() {
    let n = 100_000;
    let laughs: String = (1..30).map(|i| format!("a{i}: &a{i} [{}]\n", format!("*a{}, ", i - 1).repeat(9))).collect();
    let long = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(100_000), "*a, ".repeat(1000));
    for (what, code, text) in [
        ("flow lists", "R003", "[".repeat(n)),
        ("flow maps", "R003", "{a: ".repeat(n)),
        ("block lists", "R003", "- ".repeat(n)),
        ("block maps", "", (0..2000).map(|i| format!("{}a:\n", " ".repeat(i % 400))).collect()),
        ("explicit keys", "", "? ".repeat(n)),
        ("closed lists", "R003", format!("{}{}", "[".repeat(n), "]".repeat(n))),
        ("laughs", "R003", format!("a0: &a0 [x, x, x]\n{laughs}")),
        ("a long text many times", "R003", long),
        ("one long line", "", format!("version: 1\nstore: {}", "x".repeat(n * 9))),
        ("more than a mebibyte", "R001", format!("version: 1\n# {}", "x".repeat(1 << 20))),
        ("many unknown keys", "R005", (0..n / 4).map(|i| format!("k{i}: 1\n")).collect()),
        ("channels without end", "R003", {
            let channels: String = (0..9000).map(|i| format!("  \"c{i}:{{x}}\": {{}}\n")).collect();
            let rows: String = (0..4000).map(|i| format!("      m{i}: {{ to: \"d{i}:1\" }}\n")).collect();
            format!("version: 1\nchannels:\n{channels}protocols:\n  a:\n    listen: localhost:1/\n    messages:\n{rows}")
        }),
        ("many channels and targets", "", {
            let channels: String = (0..2000).map(|i| format!("  \"c{i}:{{x}}\": {{}}\n")).collect();
            let rows: String = (0..2000).map(|i| format!("      m{i}: {{ to: \"c{i}:1\" }}\n")).collect();
            format!("version: 1.5\nchannels:\n{channels}protocols:\n  a:\n    listen: localhost:1/\n    messages:\n{rows}")
        }),
        ("anchors", "R005", (0..n / 10).map(|i| format!("k{i}: &a{i} 1\n")).collect()),
    ] {
        let start = Instant::now();
        let loaded = load_text(&text);
        assert!(loaded.plan.is_none() && !loaded.diagnostics.is_empty(), "{what}");
        assert!(code.is_empty() || loaded.diagnostics[0].code == code, "{what}: {}", told(&loaded));
        told(&loaded);
        assert!(start.elapsed() < Duration::from_secs(30), "{what} took {:?}", start.elapsed());
    }
}

#[test]
fn a_file_that_is_not_text_is_refused() {
    let loaded = load_bytes(&[0xff, 0xfe, 0x00]);
    assert_eq!(loaded.diagnostics[0].code, "R001");
}

/// A protocol that says nearly everything the language has, in the forms that its pages show.
const FULL: &str = r#"
version: 1
store: "sqlite::memory:"
stop_within: "${STOP:-5s}"
channels:
  chat: { history: { tail: 5 }, publish: [full, tick, api] }
  "room:{id}": { audience: session, schemas: { _: false, said: true } }
defaults: &none {}
protocols:
  full:
    listen: "[::1]:${PORT:-3000}/ws/{tenant}"
    origins: "https://a.example, http://b.example"
    type: /kind/name
    client: "u_{$query.u}"
    auth: { jwt: { secret: "${SET}", from: [query.token, header.Authorization, cookie.t] } }
    limits:
      message: 64KB
      rate: 20/s burst 40
      connections: { max: "${MAX:-7}", full: close_oldest, close: [4000, moved], per_address: 2 }
      slow: 4001
    heartbeat: { every: 10s }
    idle: { after: 5m, send: { type: still there }, grace: 30s }
    every: [{ every: 5s, when: $conn.state.on, send: { type: tick, at: $now_ms } }]
    open: [{ when: "$query.role == \"x\"", join: [chat, { channel: "room:{$path.tenant}", key: k, meta: { a: $query.a } }] }, greet]
    close: { to: chat, as: left, data: { who: $conn.id } }
    messages:
      ping: { reply: { type: pong, list: [1, { a: null }], constant: !json { a: [1, 2] }, value: !json { a: $.x } } }
      say:
        limit: 5/s
        to: [chat, { channel: "room:{$.room}", as: whispered, except: sender }, { client: $.id, data: null }]
        as: said
        data: { "...": $data, at: $now }
        reply: locks.answer
      "file:*": ignore
      7: handle
      _: { fail: { code: unknown_type } }
    deliver:
      - { when: "$event.type == 'x'", ignore: true }
      - { when: "$sub.key != ''", send: { k: $sub.key } }
      - form
    error: { why: $error.message }
    errors: { invalid_json: not JSON }
    http:
      POST /ws/{tenant}: { status: 201, schema: { type: object }, reply: { ok: $path.tenant } }
sources:
  tick: { every: 1s, emit: { type: tick }, to: chat }
"#;

#[test]
fn a_file_that_says_nearly_everything() {
    let loaded = load_text(&FULL.replace("defaults: &none {}\n", ""));
    assert_eq!(told(&loaded), "");
    let plan = loaded.plan.unwrap();
    let full = &plan.protocols[0];
    assert_eq!(plan.stop_within, Duration::from_secs(5));
    assert_eq!((full.listen.to_string().as_str(), full.path.as_str()), ("[::1]:3000", "/ws/{tenant}"));
    assert_eq!((full.limits.message, full.limits.connections, full.limits.connections_per_address), (64_000, 7, 2));
    assert_eq!(full.limits.full, WhenFull::CloseOldest(4000, "moved".into()));
    assert_eq!(full.limits.rate.map(|r| (r.count.get(), r.burst.get())), Some((20, 40)));
    assert_eq!(full.auth.as_ref().map(|auth| auth.from.len()), Some(3));
    assert_eq!(full.heartbeat.map(|h| h.timeout), Some(Duration::from_secs(10)));
    assert_eq!(full.idle.as_ref().and_then(|idle| idle.grace), Some(Duration::from_secs(30)));
    let Some(Reply::Template(Template::Object(pong))) = &full.messages.rows("ping").unwrap()[0].reply else { panic!() };
    assert_eq!(pong[1], Entry::Field("list".into(), Template::Constant(r#"[1,{"a":null}]"#.into())));
    assert_eq!(pong[2], Entry::Field("constant".into(), Template::Constant(r#""{\"a\":[1,2]}""#.into())));
    assert!(matches!(&pong[3], Entry::Field(_, Template::Encoded(_))));
    let say = &full.messages.rows("say").unwrap()[0];
    let kinds: Vec<_> = say.to.iter().map(|to| to.kind.as_ref().and_then(|kind| kind.as_constant())).collect();
    assert_eq!(kinds, [Some("said"), Some("whispered"), Some("said")]);
    assert_eq!(say.to.iter().map(|to| to.except_sender).collect::<Vec<_>>(), [false, true, false]);
    assert!(matches!(&say.to[2].data, Some(Template::Constant(null)) if &**null == "null"));
    assert!(matches!(&say.reply, Some(Reply::Call(FnRef { plugin, .. })) if &**plugin == "locks"));
    assert!(full.messages.rows("file:a").unwrap()[0].call.is_none() && full.messages.rows("7").unwrap()[0].call.is_some());
    assert_eq!(full.messages.rows("other").unwrap()[0].fail.as_ref().map(|(code, _)| *code), Some(Code::UnknownType));
    let each: Vec<_> = full.deliver.iter().map(|row| (row.when_per_subscription, row.per_subscription, row.form.is_some())).collect();
    assert_eq!(each, [(false, false, false), (true, true, true), (false, true, true)]);
    assert_eq!(plan.channels[1].schemas.iter().map(|(glob, _)| glob.as_str()).collect::<Vec<_>>(), ["said", "*"]);
    assert_eq!(plan.channels[0].history.as_ref().map(|h| (h.tail, h.tail_bytes)), Some((5, 1 << 20)));
    assert!(loaded.expressions.iter().all(|expression| expression.function.plugin.is_empty()));
}

#[test]
fn what_is_not_said_has_its_default() {
    let plan = load_text("version: 1\nprotocols: { a: { listen: \"localhost:1\" } }\n").plan.unwrap();
    let a = &plan.protocols[0];
    assert_eq!((plan.api.listen.to_string().as_str(), a.path.as_str(), plan.stop_within), ("localhost:4000", "/", Duration::from_secs(10)));
    assert!(matches!(&plan.store.database, DatabasePlan::Sqlite(path) if path.ends_with("data/tramline.db")));
    assert_eq!((a.limits.message, a.limits.outbox, a.limits.connections, a.limits.subscriptions), (1 << 20, 1 << 20, 10_000, 100));
    assert_eq!((a.limits.slow.0, &a.limits.full, &a.kind[..]), (1013, &WhenFull::Refuse, &["type".into()][..]));
    assert_eq!(a.heartbeat.map(|h| (h.every, h.timeout)), Some((Duration::from_secs(30), Duration::from_secs(30))));
}

#[test]
fn files_are_merged_in_order() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("parts")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("routes.yaml", "version: 1\ninclude: parts/a.yaml\nchannels: { chat: }\n");
    write("parts/a.yaml", "include: [b.yaml]\nprotocols: { a: { listen: \"localhost:1\", open: { join: [chat, news] } } }\n");
    write("parts/b.yaml", "channels: { news: }\n");
    let loaded = load(&folder.path().join("routes.yaml"), &nothing);
    assert_eq!(told(&loaded), "");
    assert_eq!(loaded.plan.unwrap().channels.iter().map(|c| c.pattern.as_str().to_owned()).collect::<Vec<_>>(), ["chat", "news"]);
}

#[cfg(unix)]
#[test]
fn links_do_not_lead_out() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(folder.path().join("plugins")).unwrap();
    for name in ["secret.yaml", "secret.rhai"] {
        std::fs::write(outside.path().join(name), "fn a() {}").unwrap();
    }
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(outside.path().join(from), folder.path().join(to)).unwrap();
    link("secret.yaml", "part.yaml");
    link("secret.rhai", "plugins/leak.rhai");
    std::fs::write(folder.path().join("plugins/large.rhai"), " ".repeat((256 << 10) + 1)).unwrap();
    std::fs::write(folder.path().join("routes.yaml"), "version: 1\ninclude: part.yaml\n").unwrap();
    let loaded = load(&folder.path().join("routes.yaml"), &nothing);
    let mut codes: Vec<_> =
        loaded.diagnostics.iter().map(|d| (d.code, d.message.contains("points outside"), d.message.contains("larger"))).collect();
    codes.sort_unstable();
    assert_eq!(codes, [("R023", true, false), ("R031", false, true), ("R031", true, false)]);
    assert!(loaded.plugins.sources.is_empty());
}

#[test]
fn one_mistake_is_told_once() {
    for (text, code) in [
        ("version: 1\nchanels: { chat: }\nprotocols: { a: { listen: \"localhost:1\", open: { join: chat } } }\n", "R005"),
        ("version: 1\nchannels: { \"a:{\": }\nprotocols: { a: { listen: \"localhost:1\", open: { join: \"a:1\" } } }\n", "R013"),
        ("version: 1\nprotocols: { a: { lisen: \"localhost:1\" } }\n", "R005"),
        ("version: 1\nprotocols: { a: { listen: \"${UNSET}\", http: { GET /: ignore } } }\n", "R009"),
        ("version: 1\nprotocolls: { a: { listen: \"localhost:1\" } }\nchannels: { chat: { join: [a] } }\n", "R005"),
        ("version: 1\nprotocols: { a: { listen: \"localhost:1\", messages: { x: { to: &t { chanel: c } }, y: { to: *t } } } }\n", "R005"),
    ] {
        let loaded = load_text(text);
        assert_eq!(loaded.diagnostics.iter().map(|d| d.code).collect::<Vec<_>>(), [code], "{text}{}", told(&loaded));
    }
}

/// Cuts, doubles, swaps and replaces pieces of a valid file.
fn mutated() -> impl Strategy<Value = String> {
    let edit = (any::<prop::sample::Index>(), 0usize..12, "[ \n:{}\\[\\],&*!$?#'\"a-c0-9<|>%@-]{0,6}");
    prop::collection::vec(edit, 1..6).prop_map(|edits| {
        let mut text: Vec<char> = FULL.chars().collect();
        for (at, remove, insert) in edits {
            let at = at.index(text.len());
            let end = (at + remove).min(text.len());
            text.splice(at..end, insert.chars());
        }
        text.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_mutation_of_a_file_panics(text in mutated()) {
        let loaded = load_text(&text);
        told(&loaded);
        prop_assert_eq!(loaded.plan.is_some(), loaded.diagnostics.is_empty());
    }

    #[test]
    fn no_text_panics(text in "[ \n:{}\\[\\],&*!$?#'\"a-c0-9<|>%@\t-]{0,60}|.{0,60}") {
        told(&load_text(&text));
    }
}
