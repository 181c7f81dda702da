//! Differences as people read them, and that there is one exactly where two configurations differ.

use proptest::prelude::*;

use super::*;
use crate::config::load;
use crate::config::outline::At;
use crate::config::plan::Secret;

/// The outline of a configuration with a file more.
fn outline(text: &str, more: &str) -> Outline {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("routes.yaml");
    std::fs::write(&path, text).unwrap();
    std::fs::write(folder.path().join("more.yaml"), more).unwrap();
    let loaded = load(&path, &|name| (name == "TOKEN").then(|| "from the environment".into()));
    assert_eq!(loaded.diagnostics, []);
    loaded.outline
}

/// What is told of two, with the folder's name left out.
fn told(old: &Outline, new: &Outline) -> String {
    let name = regex::Regex::new(r"[^ ]*/routes\.yaml").unwrap();
    let name = |text: &str| name.replace_all(text, "routes.yaml").into_owned();
    name(&render(&diff(old, new)))
}

const BEFORE: &str = r#"version: 1
api: { token: one, listen: "localhost:4000" }
channels:
  agent: {}
  "agent:ide": { history: true }
protocols:
  agent:
    listen: localhost:3000/
    limits: { rate: 100/60s, message: 1MiB }
    errors: { rate_limited: "one text so long that nobody would read all of it on one line of a terminal: slow down" }
    messages:
      ping: { reply: { type: pong, at: $now } }
      test: [{ when: $.a == 1, reply: one }, { when: $.a == 2, reply: two }, { reply: other }]
      say: { to: agent }
sources:
  tick: { every: 5s, emit: { type: tick }, to: agent }
"#;

const AFTER: &str = r#"# A comment moves everything down.
version: 1
stop_within: 5s
api: { token: "${TOKEN}", listen: "localhost:4000" }
channels:
  agent: {}
protocols:
  agent:
    limits: { message: 1MiB, rate: 50/60s }
    listen: localhost:3000/
    errors: { rate_limited: "one text so long that nobody would read all of it on one line of a terminal: calm down" }
    messages:
      cancel: { leave: agent }
      ping: { reply: { type: pong, at: $now_ms, "a b": 1 } }
      test: [{ when: $.a == 1, reply: one }, { when: $.a == 2, reply: zwei }, { when: $.a == 3, reply: three }, { reply: other }]
      say: { to: [agent] }
sources:
  tick: { every: 5s, emit: { type: tick }, to: agent }
"#;

#[test]
fn differences_are_one_line_each() {
    let (before, after) = (outline(BEFORE, ""), outline(AFTER, ""));
    assert_eq!(
        told(&before, &after),
        r#"~ api.token                                   changed, not shown
- channels.agent:ide
~ protocols.agent.limits.rate                 100/60s → 50/60s
~ protocols.agent.limits                      in another order
~ protocols.agent.errors.rate_limited         …d all of it on one line of a terminal: slow down → …d all of it on one line of a terminal: calm down
+ protocols.agent.messages.cancel             routes.yaml:13:7
~ protocols.agent.messages.ping.reply.at      $now → $now_ms
+ protocols.agent.messages.ping.reply."a b"   routes.yaml:14:49
~ protocols.agent.messages.test[1].reply      two → zwei
+ protocols.agent.messages.test[2]            routes.yaml:15:79
~ protocols.agent.messages.say.to             agent → ["agent"]
~ protocols.agent                             in another order
+ stop_within                                 routes.yaml:3:1
"#
    );
    assert_eq!(told(&after, &after.clone()), "");
}

#[test]
fn a_value_that_moves_to_another_file_stays_the_same() {
    let main = "version: 1\ninclude: more.yaml\nchannels: { a: {} }\n";
    let one = outline(main, "channels: { b: { history: true } }\n");
    let other = outline("version: 1\nchannels: { a: {}, b: { history: true } }\n", "");
    assert_eq!(diff(&one, &other), []);
    assert_eq!(one.hash(), other.hash());
}

#[test]
fn merges_and_aliases_are_what_they_stand_for() {
    let one = "version: 1\nchannels:\n  a: &a { history: true, join: [] }\n  b: *a\n  c: { <<: *a, history: { tail: 5 } }\n";
    let two = one.replacen("true", "{ tail: 7 }", 1);
    assert_eq!(
        told(&outline(one, ""), &outline(&two, "")),
        "~ channels.a.history   true → {\"tail\":7}\n~ channels.b.history   true → {\"tail\":7}\n"
    );
}

#[test]
fn secrets_are_told_to_nobody() {
    let text = |url: &str, secret: &str| {
        format!(
            "version: 1\nstore: {{ url: \"{url}\" }}\napi: {{ token: \"{secret}\" }}\nprotocols:\n  p: {{ listen: localhost:1/, auth: {{ jwt: {{ secret: \"{secret}\", \
             keys: {{ keys: [{{ kty: oct, k: {secret} }}] }} }} }}, messages: {{ m: {{ reply: 1 }} }} }}\nsources: {{ s: {{ http: POST /s, on: localhost:1, \
             token: \"{secret}\", to: a }} }}\nchannels: {{ a: {{}} }}\n"
        )
    };
    let (one, other) =
        (outline(&text("postgres://u:hunter1@h/d", "hunter2"), ""), outline(&text("postgres://u:hunter3@h/d", "hunter4"), ""));
    let changes = diff(&one, &other);
    let paths: Vec<&str> = changes.iter().map(|change| &*change.path).collect();
    assert_eq!(paths, ["api.token", "protocols.p.auth.jwt.secret", "protocols.p.auth.jwt.keys", "sources.s.token", "store.url"]);
    assert!(changes.iter().all(|change| change.what == What::Secret), "{changes:?}");
    let local = outline(&text("sqlite://t.db", "hunter2"), "");
    for (old, new) in [(&one, &other), (&one, &local), (&local, &one), (&outline("version: 1\n", ""), &one), (&one, &Outline::default())] {
        let changes = diff(old, new);
        let all = format!("{}{}{changes:?}{one:?}", render(&changes), serde_json::to_string(&changes).unwrap());
        assert!(!all.contains("hunter"), "{all}");
    }
    assert_eq!(one.hash(), other.hash(), "a hash is shown, and tells nothing of a secret");
}

fn plugin(hash: &str, functions: &[(&str, &str)]) -> PluginOutline {
    let functions = functions.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
    PluginOutline { name: "agent".into(), file: "plugins/agent.rhai".into(), hash: hash.repeat(16), functions }
}

#[test]
fn plugins_are_compared_by_function_and_what_ends_is_told() {
    let base = || outline("version: 1\n", "");
    let old = base().with_plugins([plugin("3f9a", &[("matches", "1"), ("envelope", "1"), ("same", "1"), ("gone", "1")])]);
    let new = base().with_plugins([plugin("c17e", &[("matches", "2"), ("envelope", "2"), ("same", "1")])]);
    assert_eq!(render(&diff(&old, &new)), "~ plugins.agent   3f9a… → c17e…  envelope, matches, gone\n");
    assert_eq!(render(&diff(&base(), &new)), "+ plugins.agent   plugins/agent.rhai\n");
    assert_ne!(old.hash(), new.hash());
    let mut changes = diff(&outline(BEFORE, ""), &outline(AFTER, ""));
    changes.truncate(3);
    changes[1].ends.subscriptions = 41;
    changes[2].ends = Ended { connections: 1, listeners: 2, ..Ended::default() };
    assert_eq!(
        render(&changes),
        "~ api.token                     changed, not shown\n- channels.agent:ide            ends 41 subscriptions\n\
         ~ protocols.agent.limits.rate   100/60s → 50/60s  ends 1 connection, 2 listeners\n"
    );
}

#[test]
fn as_json_a_change_is_one_object() {
    let changes = diff(&outline(BEFORE, ""), &outline(AFTER, ""));
    let json = serde_json::to_value(&changes).unwrap();
    assert_eq!(json[0], serde_json::json!({ "path": "api.token", "change": "secret" }));
    assert_eq!(
        json[2],
        serde_json::json!({ "path": "protocols.agent.limits.rate", "change": "changed", "from": "100/60s", "to": "50/60s" })
    );
    assert_eq!(serde_json::from_value::<Vec<Change>>(json).unwrap(), changes);
}

#[test]
fn values_that_look_alike_are_told_apart() {
    let text = |value: &str| {
        format!(
            "version: 1\nchannels: {{ a: {{}} }}\nprotocols:\n  p: {{ listen: localhost:1/, messages: {{ m: {{ reply: {value} }} }} }}\n"
        )
    };
    let told = |one: &str, other: &str| told(&outline(&text(one), ""), &outline(&text(other), ""));
    assert_eq!(told("{ a: 1 }", "{ a: \"1\" }"), "~ protocols.p.messages.m.reply.a   1 → \"1\"\n");
    assert_eq!(told("{ a: \"\\u001b[2J\" }", "{ a: ~ }"), "~ protocols.p.messages.m.reply.a   \"\\u001b[2J\" → null\n");
    assert_eq!(told("{ a: [1, 2] }", "{ a: [1, 3] }"), "~ protocols.p.messages.m.reply.a   [1,2] → [1,3]\n");
    assert_eq!(
        told("{ a: { x: 1 } }", "!json { a: { x: 1 } }"),
        "+ protocols.p.messages.m.reply.!json   routes.yaml:4:54\n- protocols.p.messages.m.reply.a\n"
    );
}

fn parts() -> impl Strategy<Value = Part> {
    fn part(is: Is) -> Part {
        Part { at: At::File("x".into()), is }
    }
    let leaf = prop_oneof![
        (0..3u8).prop_map(|n| part(Is::Value(n.into()))),
        "[ab]{0,1}".prop_map(|text| part(Is::Value(text.into()))),
        "[ab]".prop_map(|text| part(Is::Secret(Secret(text.into())))),
        "[ab]".prop_map(|hash| part(Is::Plugin(PluginOutline { name: "p".into(), file: "p".into(), hash, functions: Default::default() }))),
        (0..2u8).prop_map(|n| part(Is::File([n; 32]))),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| part(Is::List(items))),
            (prop::collection::btree_map("[ab.]", inner, 0..4), any::<bool>()).prop_map(|(map, turned)| {
                let mut entries: Vec<(Box<str>, Part)> = map.into_iter().map(|(key, part)| (key.into(), part)).collect();
                if turned {
                    entries.reverse();
                }
                part(Is::Map(entries))
            }),
        ]
    })
}

fn outlines() -> impl Strategy<Value = Outline> {
    prop::collection::btree_map("[ab]", parts(), 0..3)
        .prop_map(|sections| Outline { sections: sections.into_iter().map(|(key, part)| (key.into(), part)).collect() })
}

proptest! {
    #[test]
    fn there_is_a_difference_exactly_where_two_are_not_equal(one in outlines(), other in outlines()) {
        prop_assert_eq!(diff(&one, &one.clone()), []);
        prop_assert_eq!(diff(&one, &other).is_empty(), one == other);
        if one == other {
            prop_assert_eq!(one.hash(), other.hash());
        }
    }

    /// Likely to be nearly equal, as files are that people edit.
    #[test]
    fn a_small_edit_is_found(one in outlines(), part in parts(), at in 0..8usize) {
        let mut other = one.clone();
        if let Some(place) = other.sections.values_mut().nth(at % 3).and_then(|section| inside(section, at)) {
            *place = part;
        }
        let changes = diff(&one, &other);
        prop_assert_eq!(changes.is_empty(), one == other);
        prop_assert_eq!(render(&changes).lines().count(), changes.len());
        let again: Vec<Change> = serde_json::from_str(&serde_json::to_string(&changes).unwrap()).unwrap();
        prop_assert_eq!(again, changes);
    }
}

/// Some value inside of another.
fn inside(part: &mut Part, at: usize) -> Option<&mut Part> {
    match &mut part.is {
        Is::List(items) => items.get_mut(at % 3),
        Is::Map(entries) => entries.get_mut(at % 3).map(|(_, part)| part),
        _ => None,
    }
}
