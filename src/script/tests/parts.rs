//! A script that gets only the members it wants comes to the same as one that gets the whole message.

use proptest::prelude::*;

use super::super::wanted::{Member, Part, Wanted, wanted};
use super::super::{Returned, ScriptError};
use super::{message, one, value};

/// What a function with this body wants of `msg`, in short: `a` read, `a(b)` only its member, `a()` only its type, `=b` only
/// replaced, `c!` may be changed, `^` given back.
fn wants(body: &str) -> String {
    wants_of(&format!("fn f(msg) {{ {body} }}\nfn len(text) {{ text }}\nfn other(x) {{ x }}"), "f")
}

/// What a function of a plugin wants of its one parameter, likewise.
pub(super) fn wants_of(text: &str, function: &str) -> String {
    let mut engine = rhai::Engine::new_raw();
    engine.set_max_expr_depths(32, 32);
    let ast = engine.compile(text).unwrap();
    match &wanted(&ast, function, 1)[..] {
        [Wanted::All] => "all".to_owned(),
        [Wanted::Members { members, returned }] => {
            format!("{}{}", named(members), if *returned { " ^" } else { "" })
        }
        other => panic!("{other:?}"),
    }
}

fn named(members: &[Member]) -> String {
    let one = |m: &Member| {
        let part = match &m.read {
            Some(Part::Members(inner)) => format!("({})", named(inner)),
            _ => String::new(),
        };
        let (replaced, changed) = (m.read.is_none(), m.read.is_some() && m.changed);
        format!("{}{}{part}{}", if replaced { "=" } else { "" }, m.name, if changed { "!" } else { "" })
    };
    members.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_function_wants_the_members_it_names() {
    for (body, wanted) in [
        ("1", ""),
        ("msg", " ^"),
        ("return msg;", " ^"),
        ("if msg.a { msg } else { return msg; }", "a ^"),
        ("msg.a + msg[\"b c\"]", "a b c"),
        ("msg.a?.b.c[0]", "a(b(c))"),
        ("msg.a.b + msg.a[\"c d\"].e + msg[\"f\"].g", "a(b c d(e)) f(g)"),
        ("msg.a.b + msg.a", "a"),
        ("type_of(msg)", ""),
        ("type_of(msg.a) + type_of(msg.b.c) + msg.d.e + type_of(msg.d)", "a() b(c()) d(e)"),
        ("type_of(msg.a) + msg.a", "a"),
        ("type_of(msg.a[0]) + type_of(msg.b.keys())", "a b"),
        ("type_of(msg.a) + msg.a.b.c.d", "a(b(c(d)))"),
        ("msg.a = 1; msg", "=a ^"),
        ("msg.a = msg.a; msg", "a! ^"),
        ("msg.a += 1;", "a!"),
        ("msg.a.b = 1;", "a!"),
        ("msg.a[0] = 1;", "a!"),
        ("msg.a.push(1)", "a!"),
        ("msg.a.b.c.starts_with(\"x\")", "a(b(c))"),
        ("msg.a.b.push(1)", "a!"),
        // The plugin has a function of this name, and that may do anything.
        ("msg.a.len()", "a!"),
        ("msg.remove(\"a\"); msg.has(\"b\") || \"c\" in msg", "a! b() c()"),
        ("other(msg.a)", "a"),
        ("let x = msg.a; x.b = 1; `${msg.c}`", "a c"),
        ("for x in msg.list { x }", "list"),
        ("switch msg.a { 1 => msg.b, _ => 2 }", "a b"),
        ("while msg.a < 3 { msg.a += 1; }", "a!"),
        ("try { msg.a.b.c } catch (e) { msg.d }", "a(b(c)) d"),
    ] {
        assert_eq!(wants(body), wanted, "{body}");
    }
}

#[test]
fn what_goes_anywhere_else_is_wanted_whole() {
    for body in [
        "other(msg)",
        "msg.other()",
        "msg.keys()",
        "let m = msg; m.a",
        "let m = if other(1) { msg } else { 1 }; m",
        "let m = { msg }; m",
        "[msg]",
        "#{ a: msg }",
        "`${msg}`",
        "msg == 1",
        "msg[msg.a]",
        "[1, 2][msg.a]",
        "let list = [#{}]; list[msg].a",
        "let k = \"a\"; msg[k]",
        "msg.remove(msg.a)",
        "msg.remove(\"a\").b",
        "msg = 1;",
        "msg += #{};",
        "let msg = 1; msg",
        "for msg in 0..3 { msg.a }",
        "for (x, msg) in [1] { msg.a }",
        "try { other(1) } catch (msg) { msg.a }",
        "let g = |x| x + msg.a; g.call(1)",
        "let g = || msg; g.call()",
        "for x in msg { x }",
        "loop { break msg; }",
        "throw msg;",
        "switch msg.a { 1 => msg, _ => 2 }",
        "other!(1)",
        "msg.has = |x| 1; msg.has(\"a\")",
    ] {
        assert_eq!(wants(body), "all", "{body}");
    }
}

#[test]
fn what_a_script_does_not_touch_stays_as_it_was() {
    let msg = r#" { "z" : 18446744073709551615, "a":1.50, "n" : {"y":1, "x":[ 2 ]}, "a":2, "u":"\u0041\ud800" } "#;
    let f = |body: &str| value(&format!("fn f(msg) {{ {body} }}"), msg);
    assert_eq!(f("msg.more = 1; msg"), r#"{"z":18446744073709551615,"a":1.50,"n":{"y":1, "x":[ 2 ]},"a":2,"u":"\u0041\ud800","more":1}"#);
    assert_eq!(f("msg.a += 1; msg"), r#"{"z":18446744073709551615,"a":3,"n":{"y":1, "x":[ 2 ]},"u":"\u0041\ud800"}"#);
    assert_eq!(f("msg.a = 9; msg"), r#"{"z":18446744073709551615,"a":9,"n":{"y":1, "x":[ 2 ]},"u":"\u0041\ud800"}"#);
    assert_eq!(
        f("if msg.q == 1 { msg.a = 9; } msg"),
        r#"{"z":18446744073709551615,"a":1.50,"n":{"y":1, "x":[ 2 ]},"a":2,"u":"\u0041\ud800"}"#
    );
    assert_eq!(f("msg.remove(\"a\"); msg.remove(\"n\"); msg"), r#"{"z":18446744073709551615,"u":"\u0041\ud800"}"#);
    assert_eq!(f("#{ a: msg.a }"), r#"{"a":2}"#);
    assert_eq!(value("fn f(msg) { msg.a = 1; msg }", "{}"), r#"{"a":1}"#);
    // The members that the script uses must be within its bounds, and the text names the place in the whole message if they are not.
    let thrown = message(&one("fn f(msg) { msg.u }"), "f", msg);
    assert!(matches!(&thrown, Err(ScriptError::NotForScripts(why)) if why.contains("cannot be given to a script")), "{thrown:?}");
}

/// A function that gives back the message with this put in for `a` fails where the value cannot be given.
#[test]
fn what_cannot_be_given_back_is_named() {
    let why = |body: &str| super::why(&format!("fn f(msg) {{ {body} msg }}"), r#"{"b":1}"#);
    assert!(why("msg.a = [|x| x];").ends_with("the value it returns: `a[0]`: a function is not JSON"));
    let large = why("let t = \"\\u0001\"; for i in 0..19 { t += t; } msg.a = [t, t];");
    assert!(large.contains("KiB of JSON"), "{large}");
}

fn key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "c", "d"])
}

fn json_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        prop::sample::select(vec!["null", "true", "0", "-7", "2.5", "1e3", "\"\"", "\"text\"", "\"a\\n\\u00e9\"", "[]", "{}"])
            .prop_map(str::to_owned),
        (0..100i64).prop_map(|n| n.to_string()),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(|items| format!("[{}]", items.join(" , "))),
            prop::collection::vec((key(), inner), 0..3).prop_map(|members| object(&members)),
        ]
    })
}

fn object(members: &[(&str, String)]) -> String {
    let members: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
    format!("{{{}}}", members.join(","))
}

fn json_message() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => prop::collection::vec((key(), json_value()), 0..7).prop_map(|members| object(&members)),
        1 => prop::collection::vec((0..20u32, json_value()), 17..24)
            .prop_map(|members| object(&members.iter().map(|(n, value)| (["a", "b", "e", "f", "g"][*n as usize % 5], value.clone())).collect::<Vec<_>>())),
        1 => json_value(),
    ]
}

fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        4 => key().prop_map(|k| format!("msg.{k}")),
        1 => key().prop_map(|k| format!("msg[\"{k}\"]")),
        2 => (key(), key()).prop_map(|(k, l)| format!("msg.{k}.{l}")),
        2 => (key(), key()).prop_map(|(k, l)| format!("msg.{k}?.{l}")),
        1 => key().prop_map(|k| format!("msg.{k}[0]")),
        1 => key().prop_map(|k| format!("msg.{k}.len()")),
        2 => key().prop_map(|k| format!("type_of(msg.{k})")),
        1 => (key(), key()).prop_map(|(k, l)| format!("type_of(msg.{k}[\"{l}\"])")),
        1 => (key(), key(), key()).prop_map(|(k, l, m)| format!("msg.{k}?[\"{l}\"]?.{m}")),
        1 => key().prop_map(|k| format!("\"{k}\" in msg")),
        1 => key().prop_map(|k| format!("msg.has(\"{k}\")")),
        1 => key().prop_map(|k| format!("msg.remove(\"{k}\")")),
        1 => key().prop_map(|k| format!("helper(msg.{k})")),
        3 => prop::sample::select(vec!["1", "\"x\"", "()", "true", "#{ a: 1 }", "[1, 2]", "2.5", "conn.id"]).prop_map(str::to_owned),
        1 => prop::sample::select(vec!["msg", "msg.keys()", "msg.len()", "type_of(msg)", "helper(msg)", "`${msg}`"]).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            (inner.clone(), prop::sample::select(vec!["+", "==", "!=", "<", "??"]), inner.clone())
                .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            (key(), inner.clone()).prop_map(|(k, e)| format!("#{{ {k}: {e} }}")),
            inner.prop_map(|e| format!("[{e}]")),
        ]
    })
}

fn statement() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        4 => (key(), expression()).prop_map(|(k, e)| format!("msg.{k} = {e};")),
        1 => (key(), expression()).prop_map(|(k, e)| format!("msg[\"{k}\"] = {e};")),
        2 => (key(), expression()).prop_map(|(k, e)| format!("msg.{k} += {e};")),
        2 => (key(), key(), expression()).prop_map(|(k, l, e)| format!("msg.{k}.{l} = {e};")),
        1 => (key(), expression()).prop_map(|(k, e)| format!("msg.{k}.push({e});")),
        2 => key().prop_map(|k| format!("msg.remove(\"{k}\");")),
        1 => expression().prop_map(|e| format!("let y = {e}; msg.d = y;")),
        1 => expression().prop_map(|e| format!("conn.send({e});")),
        1 => expression().prop_map(|e| format!("publish(\"room\", #{{ type: \"t\", data: {e} }});")),
        1 => (key(), expression()).prop_map(|(k, e)| format!("for x in msg.{k} {{ msg.c = {e}; }}")),
        1 => expression().prop_map(|e| format!("throw {e};")),
        1 => Just("return msg;".to_owned()),
        1 => Just("return;".to_owned()),
    ];
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            (expression(), inner.clone(), inner.clone()).prop_map(|(c, a, b)| format!("if {c} == 1 {{ {a} }} else {{ {b} }}")),
            (inner.clone(), inner).prop_map(|(a, b)| format!("try {{ {a} }} catch (e) {{ {b} }}")),
        ]
    })
}

fn script() -> impl Strategy<Value = String> {
    let last = prop_oneof![
        3 => Just("msg".to_owned()),
        1 => expression(),
        1 => (expression(), expression()).prop_map(|(c, e)| format!("if {c} == 1 {{ msg }} else {{ {e} }}")),
    ];
    (prop::collection::vec(statement(), 0..4), last)
        .prop_map(|(statements, last)| format!("fn f(conn, msg) {{ {} {last} }} fn helper(x) {{ x }}", statements.join(" ")))
}

/// What can be compared: the order of members does not count, nor how a number is written.
fn received(outcome: Result<Returned, ScriptError>) -> Result<(Option<serde_json::Value>, Returned), ScriptError> {
    let mut returned = outcome?;
    returned.index = None;
    Ok((returned.value.take().map(|value| value.to_value().unwrap()), returned))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 400 } else { 20_000 }))]

    #[test]
    fn a_part_comes_to_the_same_as_the_whole(script in script(), msg in json_message()) {
        // A script that names this function gets everything.
        let whole = format!("{script} // set_tag");
        let (part, whole) = (received(message(&one(&script), "f", &msg)), received(message(&one(&whole), "f", &msg)));
        // The clock may stop either of them on a busy machine.
        prop_assume!(![&part, &whole].iter().any(|told| matches!(told, Err(ScriptError::Tripped { .. }))));
        prop_assert_eq!(part, whole, "{}", script);
    }

    #[test]
    fn an_index_that_comes_with_a_value_is_its_own(script in script(), msg in json_message()) {
        if let Ok(Returned { value: Some(value), index: Some(index), .. }) = message(&one(&script), "f", &msg) {
            prop_assert_eq!(crate::model::json::Index::of(value.as_str()), index);
        }
    }
}
