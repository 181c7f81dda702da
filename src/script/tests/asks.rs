//! Which functions are known to ask about the world.

use super::*;

/// Those of a plugin's functions `a` to `d` that may ask, beside a plugin that asks and one that does not.
fn asking(text: &str) -> String {
    let all = ["a", "b", "c", "d"].into_iter().filter(|name| text.contains(&format!("fn {name}(msg)"))).collect::<Vec<_>>();
    let uses: Vec<FunctionUse> = all.iter().map(|name| used(name, Role::Handler)).collect();
    let (asks, quiet) = ("fn last(channel) { history(channel, 1) }\nfn one() { 1 }", "fn two() { 2 }");
    let (scripts, diagnostics) = Scripts::build(&plugins(&[("p", text), ("asks", asks), ("quiet", quiet)]), &uses, &[], None);
    assert_eq!(lines(&diagnostics), Vec::<String>::new(), "{text}");
    let asks = |name: &str| scripts.asks(&FnRef { plugin: "p".into(), name: name.into() });
    all.into_iter().filter(|name| asks(name)).collect()
}

#[test]
fn a_function_asks_if_it_names_one_that_looks_or_leads_to_it() {
    for (text, wanted) in [
        (r#"fn a(msg) { 1 }  fn b(msg) { msg.history + msg["members"] }  fn c(msg) { let members = 1; members }"#, ""),
        (
            r#"fn a(msg) { history("x", 1) }  fn b(msg) { members("x") }  fn c(msg) { connections("x") }  fn d(msg) { statistics("x") }"#,
            "abcd",
        ),
        (r#"fn a(msg) { 1 }  fn b(msg) { if msg.x { for e in history("x", 1) { } } }  // history"#, "b"),
        // By way of others, in a circle too.
        (
            r#"fn a(msg) { one(msg) }  fn one(msg) { two(msg) }  fn two(msg) { if msg.n > 0 { one(msg) } members("x") }  fn b(msg) { 1 }"#,
            "a",
        ),
        (r#"fn a(msg) { msg.look() }  fn look(x) { members("x") }  fn b(msg) { three(msg) }  fn three(msg) { three(msg) }"#, "a"),
        (r#"fn a(msg) { pick2(1) }  fn pick2(n) { n }  fn pick2(n, m) { members("x") }"#, "a"),
        // Functions as values.
        (r#"fn a(msg) { let f = |x| x + 1; f.call(1) }  fn b(msg) { let f = |c| members(c); f.call("x") }"#, "b"),
        (r#"fn a(msg) { [1].map(|x| x + msg.n) }  fn b(msg) { ["x"].map(|c| members(c + msg.n)) }"#, "b"),
        (r#"fn a(msg) { Fn("two").call() }  fn two() { 2 }  fn b(msg) { Fn("look").call() }  fn look() { members("x") }"#, "b"),
        (r#"fn a(msg) { Fn("members").call("x") }  fn b(msg) { Fn(msg.f).call("x") }  fn c(msg) { ["x"].map(msg.f) }"#, "abc"),
        (r#"fn a(msg) { ["x"].map("members") }  fn b(msg) { ["x"].map("look") }  fn look(x) { members(x) }"#, "ab"),
        (r#"const F = |x| x;  fn a(msg) { F.call(1) }"#, ""),
        (r#"const F = |x| members(x);  fn a(msg) { F.call("x") }  fn b(msg) { 1 }"#, "ab"),
        (r#"fn a(msg) { loop { break members("x"); } }"#, "a"),
        (r#"fn a(msg) { `${members("x").len()}` }  fn b(msg) { switch msg.n { 1 => members("x"), _ => () } }"#, "ab"),
        // Of what is imported it is known whether any of it asks.
        (r#"import "asks" as asks;  fn a(msg) { asks::one() }  fn b(msg) { json::stringify(msg) }"#, "a"),
        (r#"import "quiet" as quiet;  fn a(msg) { quiet::two() }  fn b(msg) { members("x") }"#, "b"),
    ] {
        assert_eq!(asking(text), wanted, "{text}");
    }
}

#[test]
fn an_expression_asks_if_what_it_calls_does() {
    let expressions =
        ["msg.n == 1", "look(msg)", r#"members("x").len() == 0"#, "plain(msg)"].map(|source| expression(source, source, &["msg"]));
    let text = "fn look(msg) { members(msg.c) }  fn plain(msg) { true }";
    let (scripts, diagnostics) = Scripts::build(&plugins(&[("p", text)]), &[], &expressions, None);
    assert_eq!(lines(&diagnostics), Vec::<String>::new());
    assert_eq!(expressions.each_ref().map(|expression| scripts.asks(&expression.function)), [false, true, true, false]);
}
