//! What people read when a script is wrong: when it is loaded, and when it runs.

use std::sync::Arc;

use super::super::{Arguments, CODES, Call, ScriptError, Scripts, World};
use super::{TwoClients, expression, f, lines, message, one, plugins, used, why};
use crate::config::plan::Role;

/// What is found in plugin `p` next to `lib`, whose `f` handles messages.
fn found(text: &str) -> Vec<String> {
    let lib = "fn twice(n) { n * 2 }";
    let back = "import \"p\" as p;\nfn g(n) { n }";
    lines(&Scripts::build(&plugins(&[("p", text), ("lib", lib), ("back", back)]), &[used("f", Role::Handler)], &[], None).1)
}

#[test]
fn every_code_has_its_text() {
    let cases: &[(&str, &str)] = &[
        ("fn f(msg) { let = 1; }", "plugins/p.rhai:1:17 error[S001] expecting name of a variable"),
        ("fn f(msg) {\n  msg.a\n", "plugins/p.rhai:3:1 error[S001] expecting ';' to terminate this statement"),
        ("fn f(msg) {\n  mgs.a }", "plugins/p.rhai:2:3 error[S001] undefined variable: mgs"),
        ("const A = 1 / 0;\nfn f(msg) { A }", "plugins/p.rhai:1:13 error[S001] Division by zero: 1 / 0"),
        ("fn ff(msg) { 1 }", "routes.yaml:3:5 error[S002] plugin `p` has no function `f`"),
        (
            "fn f(a, b, c) { 1 }",
            "routes.yaml:3:5 error[S003] `f` has the parameters (a, b, c) | a function that handles a message is called with (msg), (conn) or (conn, msg)",
        ),
        (
            "fn f(msg, conn) { 1 }",
            "routes.yaml:3:5 error[S003] `f` has the parameters (msg, conn) | a function that handles a message is called with (msg), (conn) or (conn, msg)",
        ),
        ("fn f(msg) { lenght(msg) }", "plugins/p.rhai:1:13 error[S004] there is no function `lenght`"),
        (
            "fn f(msg) { g(1) }\nfn g(a, b) { a }",
            "plugins/p.rhai:1:13 error[S004] `g` is a function of 2 parameters, called with 1 argument",
        ),
        ("fn f(msg) { publsh(\"a\", msg) }", "plugins/p.rhai:1:13 error[S004] there is no function `publsh` | did you mean `publish`?"),
        (
            "fn f(msg) { publish(\"a\") }",
            "plugins/p.rhai:1:13 error[S004] `publish` is `publish(channel, #{ type, data })` or `publish(channel, #{ type, data }, #{ except })`, called with 1 argument",
        ),
        ("fn f(conn, msg) { conn.sned(1) }", "plugins/p.rhai:1:24 error[S004] there is no function `sned` | did you mean `send`?"),
        ("fn f(msg) { blob(1000) }", "plugins/p.rhai:1:13 error[S004] there is no function `blob`"),
        ("fn f(msg) { timestamp() }", "plugins/p.rhai:1:13 error[S004] there is no function `timestamp`"),
        ("fn f(msg) { parse_json(msg) }", "plugins/p.rhai:1:13 error[S004] `parse_json` is not available | use json::parse(text)"),
        (
            "const A = 1;\nconst A = 2;\nfn f(msg) { A }",
            "plugins/p.rhai:1:1 error[S006] the constant `A` is defined in plugins/p.rhai and in plugins/p.rhai | give one of them another name",
        ),
        ("fn f(msg) { sleep(5) }", "plugins/p.rhai:1:13 error[S004] `sleep` is not available | scripts never wait"),
        (
            "fn f(msg) { json::pars(\"\") }",
            "plugins/p.rhai:1:19 error[S004] there is no `json::pars` | known here: json::parse(text), json::stringify(value)",
        ),
        (
            "import \"../secret\" as s;\nfn f(msg) { 1 }",
            "plugins/p.rhai:1:8 error[S006] `../secret`: only other plugins can be imported, by their plain names",
        ),
        (
            "import \"/etc/passwd\" as s;\nfn f(msg) { 1 }",
            "plugins/p.rhai:1:8 error[S006] `/etc/passwd`: only other plugins can be imported, by their plain names",
        ),
        ("import \"lbi\" as s;\nfn f(msg) { 1 }", "plugins/p.rhai:1:8 error[S006] there is no plugin `lbi` to import, did you mean `lib`?"),
        (
            "import \"lib\" + \"\" as s;\nfn f(msg) { 1 }",
            "plugins/p.rhai:1:1 error[S006] the import must name a plugin as a text in quotes, not as an expression",
        ),
        (
            "import \"lib\" as json;\nfn f(msg) { 1 }",
            "plugins/p.rhai:1:8 error[S006] `json` is a module of the host: import it under another name",
        ),
        (
            "fn f(msg) { import \"lib\" as l; l::twice(2) }",
            "plugins/p.rhai:1:13 error[S006] an import must be at the top of the file, not in a function",
        ),
        (
            "fn f(msg) { 1 }\nfn members(channel) { [] }",
            "plugins/p.rhai:2:1 error[S007] `members` with 1 parameters is a function of the host: members(channel) | give yours another name",
        ),
        (
            "fn f(msg) { 1 }\nfn join(conn, msg) { 1 }",
            "plugins/p.rhai:2:1 error[S007] `join` with 2 parameters is a function of the host: conn.join(channel) | give yours another name",
        ),
        (
            "fn f(msg) { 1 }\nlet x = 1;",
            "plugins/p.rhai:2:1 error[S008] only functions, constants and imports may be at the top of a script | put it into a function",
        ),
    ];
    let long = format!("fn f(msg) {{ {}1{} }}", "(1 + ".repeat(100), ")".repeat(100));
    let many: String = (0..=200).map(|i| format!("fn f{i}(msg) {{ 1 }}\n")).collect();
    assert!(found(&long).iter().any(|line| line.contains("S001] expression exceeds maximum complexity")));
    assert!(found(&many).iter().any(|line| line.contains("S001] number of functions defined exceeds maximum limit")));
    // Which of the two it is depends on how busy the machine is.
    let endless = found("const A = { let n = 0; loop { n += 1; } };\nfn f(msg) { A }");
    assert!(endless.iter().any(|line| line.starts_with("plugins/p.rhai:1:3") && line.contains("error[S001] the constants at the top: ")));
    let mut wrong = Vec::new();
    for (text, wanted) in cases {
        let found = found(text);
        if !found.iter().any(|line| line == wanted) {
            wrong.push(format!("wanted {wanted}\n   got {}", found.join("\n       ")));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(
        found("import \"back\" as b;\nfn f(msg) { 1 }").iter().any(|line| line.contains("S006] `p` imports itself through its imports"))
    );
    assert!(found("fn f(msg) { let g = Fn(\"eval\"); eval(\"1\") }")[0].contains("S001"));
}

#[test]
fn a_function_that_is_nearly_there_is_suggested() {
    let (_, diagnostics) = Scripts::build(&plugins(&[("p", "fn handle(msg) { 1 }")]), &[used("p.handel", Role::Handler)], &[], None);
    assert_eq!(lines(&diagnostics), ["routes.yaml:3:5 error[S002] plugin `p` has no function `handel` | did you mean `handle`?"]);
}

#[test]
fn a_plugin_that_is_not_there_is_named() {
    let uses = [used("agnet.f", Role::Handler)];
    let (_, diagnostics) = Scripts::build(&plugins(&[("agent", "fn f(msg) { 1 }")]), &uses, &[], None);
    assert_eq!(lines(&diagnostics), ["routes.yaml:3:5 error[S005] there is no plugin `agnet` | did you mean `agent`?"]);
}

#[test]
fn expressions_are_checked_where_they_stand() {
    let cases = [
        ("msg.a ==", "routes.yaml:9:13 error[S009] "),
        ("mgs.a == 1", "routes.yaml:9:13 error[S009] undefined variable: mgs"),
        ("matchs(msg)", "routes.yaml:9:13 error[S009] there is no function `matchs` | did you mean `matches`?"),
        ("msg.a = 3", "routes.yaml:9:13 error[S009] it assigns a value, and a condition may not change anything | to compare, write `==`"),
        ("true } fn own() { true", "routes.yaml:9:13 error[S009] it must be exactly one expression"),
        ("true } publish(\"x\", #{}); fn own() { true", "routes.yaml:9:13 error[S009] it must be exactly one expression"),
    ];
    for (source, wanted) in cases {
        let (_, diagnostics) =
            Scripts::build(&plugins(&[("p", "fn matches(msg) { true }")]), &[], &[expression("e", source, &["msg"])], None);
        let lines = lines(&diagnostics);
        assert!(lines.len() == 1 && lines[0].starts_with(wanted), "{source}: {lines:?}");
    }
    for (source, hint) in
        [("msg.a == 'abc'", " | texts are written in double quotes: \"abc\""), ("msg.a == null", " | `null` is written `()`")]
    {
        let lines = lines(&Scripts::build(&plugins(&[]), &[], &[expression("e", source, &["msg"])], None).1);
        assert!(lines.len() == 1 && lines[0].ends_with(hint), "{source}: {lines:?}");
    }
    let fine = ["matches(msg) && msg.list.some(|x| x == LIMIT)", "msg?.a?.b == () || msg.a in [1, 2]", "msg.a == \"}\" // {"];
    for source in fine {
        let text = "const LIMIT = 3;\nfn matches(msg) { true }";
        let (_, diagnostics) = Scripts::build(&plugins(&[("p", text)]), &[], &[expression("e", source, &["msg"])], None);
        assert_eq!(lines(&diagnostics), Vec::<String>::new(), "{source}");
    }
}

#[test]
fn every_code_is_in_the_table_once() {
    let codes: Vec<&str> = CODES.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, ["S001", "S002", "S003", "S004", "S005", "S006", "S007", "S008", "S009"]);
}

#[test]
fn failures_say_where_and_why_and_how_it_came_there() {
    let text = "fn f(conn, msg) {\n    helper(msg)\n}\nfn helper(msg) {\n    inner(msg.text)\n}\nfn inner(text) {\n    text.len()\n}";
    assert_eq!(
        why(text, "{}"),
        "plugins/p.rhai:8:10 in fn inner: `text` is missing\n  called from plugins/p.rhai:5:5 in fn helper\n  called from plugins/p.rhai:2:5 in fn f"
    );
    for (body, wanted) in [
        ("msg.text.len()", "plugins/p.rhai:1:28 in fn f: `msg.text` is missing"),
        ("msg.a.b.c", "in fn f: `msg.a` is missing"),
        ("msg.a[0]", "in fn f: `msg.a` is missing"),
        ("msg.a.b = 1;", "in fn f: `msg.a` is missing"),
        ("1 + msg", "in fn f: `+` does not work between (number, object)"),
        ("1 / 0", "in fn f: Division by zero: 1 / 0"),
        ("[1][5]", "in fn f: Array index 5 out of bounds: only 1 element in array"),
        ("members(5)", "in fn f: `members` takes members(channel), got (number)"),
        ("[1].map(|x| x.nothing)", "in a closure"),
        ("json::parse(5)", "`json::parse` takes json::parse(text), got (number)"),
    ] {
        let why = why(&format!("fn f(conn, msg) {{ {body} }}"), "{}");
        assert!(why.contains(wanted), "{body}: {why}");
    }
}

#[test]
fn a_budget_that_is_spent_names_the_line_where() {
    let text = "fn f(conn, msg) {
    let n = 0;
    if msg.at == \"loop\" {
        while true {
            n += 1;
        }
    }
    if msg.at == \"empty\" {
        loop { }
    }
    if msg.at == \"called\" {
        n += endless(n);
    }
    if msg.at == \"closure\" {
        [1].map(|x| { loop { x += 1; } })
    }
    if msg.at == \"deep\" {
        deep(n);
    }
    if msg.at == \"large\" {
        let s = \"x\";
        loop {
            s += s;
        }
    }
}
fn endless(n) { loop { n += 1; } }
fn deep(n) { deep(n + 1) }";
    for (at, lines, wanted) in [
        ("loop", 4..=5, "more than 50000 operations"),
        ("empty", 9..=9, "more than 50000 operations"),
        ("called", 12..=12, "more than 50000 operations"),
        ("closure", 15..=15, "more than 50000 operations"),
        ("deep", 18..=18, "calls itself too deeply"),
        ("large", 23..=23, "too large"),
    ] {
        let why = why(text, &format!(r#"{{"at":"{at}"}}"#));
        let line: usize = why.strip_prefix("plugins/p.rhai:").and_then(|rest| rest.split(':').next()?.parse().ok()).unwrap();
        assert!(lines.contains(&line) && why.contains(" in fn f") && why.contains(wanted), "{at}: {why}");
    }
}

#[test]
fn failures_in_imports_and_expressions_name_their_file() {
    let texts = [("p", "import \"lib\" as lib;\nfn f(conn, msg) { lib::len_of(msg) }"), ("lib", "\n\nfn len_of(msg) { msg.text.len() }")];
    let uses = [used("f", Role::Handler)];
    let (scripts, diagnostics) = Scripts::build(&plugins(&texts), &uses, &[expression("e", "msg.a.b == 1", &["msg"])], None);
    assert_eq!(lines(&diagnostics), Vec::<String>::new());
    let said = message(&scripts, "f", "{}").unwrap_err().to_string();
    assert_eq!(said, "plugins/lib.rhai:3:27 in fn len_of: `msg.text` is missing\n  called from plugins/p.rhai:2:24 in fn f");
    let said = message(&scripts, "e", "{}").unwrap_err().to_string();
    assert_eq!(said, "routes.yaml:9:13 in this expression: `msg.a` is missing");
    let (msg, world): (_, Arc<dyn World>) = (super::json(r#"{"a":{"b":1}}"#), Arc::new(TwoClients));
    for (source, wanted) in [("msg.a.c", "nothing"), ("msg.a.b", "a number"), ("msg.a", "an object")] {
        let (scripts, _) = Scripts::build(&plugins(&[]), &[], &[expression("e", source, &["msg"])], None);
        let arguments = Arguments::Message { msg: Some(&msg), index: None, kind: None, data: None };
        let call = Call { now: super::at(1), conn: Some(&super::conn()), arguments, world: &world, trial: false };
        let said = scripts.test(&f("e"), call).unwrap_err().to_string();
        assert_eq!(said, format!("routes.yaml:9:13 in this expression: the value it returns: must be true or false, is {wanted}"));
    }
}

#[test]
fn throws_say_no_with_more() {
    let failed = |body: &str| {
        message(&one(&format!("fn f(msg) {{ {body} }}\nfn deep(n) {{ if n == 0 {{ throw \"deep\"; }} deep(n - 1) }}")), "f", "{}")
            .unwrap_err()
    };
    let thrown = |body: &str| match failed(body) {
        ScriptError::Thrown { message, data, code, at } => {
            let place = if body.starts_with("deep") { "plugins/p.rhai:2:26 in fn deep" } else { "plugins/p.rhai:1:13 in fn f" };
            assert_eq!(at, place, "{body}");
            (message, data, code)
        }
        other => panic!("{body}: {other}"),
    };
    let wanted =
        |message: &str, data: Option<&str>, code: Option<&str>| (message.to_owned(), data.map(super::json), code.map(str::to_owned));
    assert_eq!(thrown("throw \"no\";"), wanted("no", None, None));
    assert_eq!(thrown("deep(3)"), wanted("deep", None, None));
    assert_eq!(
        thrown("throw #{ code: \"held\", message: \"no\", holder: \"ann\" };"),
        wanted("no", Some(r#"{"holder":"ann"}"#), Some("held"))
    );
    assert_eq!(thrown("throw #{ code: \"held\" };"), wanted("held", None, Some("held")));
    assert_eq!(thrown("throw #{ code: \"held\", data: [1] };"), wanted("held", Some("[1]"), Some("held")));
    assert_eq!(thrown("throw #{ code: \"held\", data: 1, by: 2 };"), wanted("held", Some(r#"{"by":2,"data":1}"#), Some("held")));
    assert_eq!(thrown("throw 5;"), wanted("5", None, None));
    assert_eq!(thrown("throw;"), wanted("rejected", None, None));
}
