//! Scripts that attack the router, one for every row of the table of what each limit holds. Each must fail its own message, in
//! bounded time and memory, and the next call on the same thread must be served.

use std::sync::Arc;
use std::time::Duration;

use super::super::{ScriptError, Scripts, budget};
use super::{message, plugins, used};
use crate::config::plan::Role;
use crate::telemetry::memory::thread_live_bytes;

/// The stack a worker thread has.
const STACK_BYTES: usize = 8 << 20;
/// CPU time a hostile call may take: its own, one long operation, and a debug build.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What an attack is called, its body, and a part of the message it must end with. `*`: it may end well, as long as it ends.
type Attack = (&'static str, &'static str, &'static str);

const ATTACKS: &[Attack] = &[
    ("endless loop", "loop { }", "more than"),
    ("endless while with work", "let x = 0; while true { x += 1; }", "more than"),
    ("huge range", "let n = 0; for i in 0..9000000000000000000 { n = i; }", "more than"),
    ("huge range, mapped", "let n = 0; for i in range(0, 9000000000000000000, 1) { n += i; }", "more than"),
    ("endless keys", "let m = #{}; let i = 0; loop { m[`k${i}`] = i; i += 1; }", ""),
    ("recursion", "deep(0)", "too deeply"),
    ("recursion through a closure", "let g = |h| h.call(h); g.call(g)", "too deeply"),
    ("mutual recursion", "ping(0)", "too deeply"),
    ("doubling text", "let s = \"ab\"; loop { s += s; }", "too large"),
    ("doubling text in a template", "let s = \"ab\"; loop { s = `${s}${s}`; }", "too large"),
    ("doubling list", "let a = [1]; loop { a += a; }", "too large"),
    ("doubling list by append", "let a = [1]; loop { a.append(a); }", "too large"),
    ("list in lists", "let a = [1, 2]; loop { a = [a, a]; }", "too large"),
    ("map in maps", "let m = #{ a: 1 }; loop { m = #{ a: m, b: m }; }", ""),
    ("list padded", "let a = []; a.pad(1000000000, 0);", "too large"),
    ("replace by itself", "let s = \"a\"; s.pad(60000, \"a\"); s.replace(\"a\", s);", "too large"),
    ("replace a character by much", "let s = \"a\"; s.pad(60000, 'a'); s.replace('a', s);", "too large"),
    ("replace nothing by much", "let s = \"a\"; s.pad(60000, 'a'); s.replace(\"\", s);", "too large"),
    ("pad far", "let s = \"\"; s.pad(9000000000000000000, \"x\");", "too large"),
    ("pad with nothing", "let s = \"\"; s.pad(64, \"\"); s", "*"),
    ("split into letters", "let s = \"\"; s.pad(30000, \"x\"); s.split(\"\")", "too large"),
    ("letters", "let s = \"\"; s.pad(30000, \"x\"); s.to_chars()", "too large"),
    ("sleep by pointer", "Fn(\"sleep\").call(5)", "not available"),
    ("sleep a fraction", "Fn(\"sleep\").call(5.0)", "not available"),
    ("eval by pointer", "Fn(\"eval\").call(\"1\")", ""),
    ("loop within map", "let a = []; a.pad(1000, 0); a.map(|x| { let n = 0; loop { n += 1; } })", "more than"),
    ("loops within for_each", "let a = []; a.pad(2000, 0); a.for_each(|| { for i in 0..40000 { i += 1; } })", "more than"),
    (
        "loops within sort",
        "let a = []; for i in 0..200 { a.push(200 - i); } a.sort(|x, y| { for i in 0..40000 { i += 1; } x - y }); ",
        "more than",
    ),
    ("loops within filter", "let a = []; a.pad(2000, 0); a.filter(|x| { for i in 0..40000 { i += 1; } true })", "more than"),
    ("loops within reduce", "let a = []; a.pad(2000, 0); a.reduce(|sum, x| { for i in 0..40000 { i += 1; } 0 }, 0)", "more than"),
    ("lists nested deeply", "let a = []; for i in 0..9000 { a = [a]; } a", ""),
    ("lists nested deeply, in a map", "let a = #{}; for i in 0..9000 { a = #{ a: a }; } a", ""),
    ("big list in big list", "let a = []; a.pad(9000, 0); let n = 0; loop { if a in [a, a] { n += 1; } }", ""),
    ("big list compared", "let a = []; a.pad(9000, 0); let b = a; loop { if a != b { break; } }", ""),
    ("chain of closures", "let g = || 1; for i in 0..40000 { let h = g; g = || h.call(); } g.call()", ""),
    ("value stored into itself", "let m = #{}; let g = || m; m.x = m; m.x.x = m; let h = || m.x; h.call()", "*"),
    ("closure stored into what it holds", "let m = #{}; let g = || m; m.g = g; let n = 0; loop { n += 1; }", "more than"),
    ("regular expression that grows", "regex::is_match(\"(a{1000}){1000}\", \"a\")", "regex"),
    ("many regular expressions", "let i = 0; loop { regex::is_match(`[a-z]{${i % 50}}x${i}`, \"abc\"); i += 1; }", ""),
    (
        "regex replacement that grows",
        "let s = \"\"; s.pad(60000, \"x\"); regex::replace(\".+\", s, \"$0$0$0$0$0$0$0$0$0$0$0$0$0$0$0$0$0$0$0$0\")",
        "too long",
    ),
    ("JSON bomb", "let s = \"\"; s.pad(100000, \"[\"); json::parse(s)", "json::parse"),
    ("JSON of many values", "let s = \"[0\"; s.pad(200000, \",0\"); json::parse(s + \"]\")", "json::parse"),
    ("too many effects", "loop { publish(\"x\", #{ type: \"t\" }); }", "at most 64"),
    ("too much output", "let s = \"\"; s.pad(1000000, \"x\"); for i in 0..60 { conn.send(s); }", ""),
    ("value too large to return", "let s = \"\"; s.pad(900000, \"\\u0001\"); s", "KiB of JSON"),
    ("many frames of big variables", "frame(0)", ""),
    ("memory in many variables", "let a = []; a.pad(20000, 0); hold(a, 0)", ""),
    ("many large texts", "fill()", "held more than 32 MiB"),
    ("many variables", "let f = 0; many()", "too many variables"),
    ("try and try again", "loop { try { loop { } } catch { } }", "more than"),
    ("try to survive recursion", "try { deep(0) } catch { } loop { }", ""),
    ("text of a list of closures", "let s = \"\"; s.pad(900000, \"x\"); let g = || s.len(); let a = []; a.pad(9000, g); a.to_string()", ""),
    ("text of a closure", "let s = \"\"; s.pad(900000, \"x\"); let g = || s.len(); let t = \"\"; loop { t += debug_text(g); }", ""),
    ("history of everything", "let n = 0; loop { n += history(\"x\", 1000).len(); }", ""),
    ("a log flood", "loop { log::info(\"x\"); }", "more than"),
    ("own deep argument", "let a = msg; for i in 0..200 { a = [a]; } conn.send(a)", "nested deeper"),
];

/// Helpers the attacks share.
const HELPERS: &str = r#"
fn deep(n) { deep(n + 1) }
fn ping(n) { pong(n + 1) }
fn pong(n) { ping(n + 1) }
fn frame(n) { let a = []; a.pad(20000, n); let b = a; let c = a; let d = a; let e = a; let g = a; let h = a; let r = frame(n + 1); a.len() + b.len() + r }
fn hold(a, n) { let b = a + []; b[0] = n; let c = b; c[0] = 1; let r = hold(b, n + 1); c.len() + b.len() + r }
fn debug_text(g) { g.to_debug() }
fn fine(msg) { msg.n + 1 }
"#;

fn hostile(body: &str) -> Arc<Scripts> {
    let many: String = (0..300).map(|i| format!("let v{i} = {i}; ")).collect();
    let fill: String = (0..100).map(|i| format!("let w{i} = s + {i}; ")).collect();
    let fill = format!("let s = \"x\"; for i in 0..19 {{ s += s; }} {fill}");
    let text = format!("{HELPERS}\nfn many() {{ {many} 1 }}\nfn fill() {{ {fill} 1 }}\nfn f(conn, msg) {{ {body} }}");
    let uses = [used("f", Role::Handler), used("fine", Role::Handler)];
    let (scripts, diagnostics) = Scripts::build(&plugins(&[("p", &text)]), &uses, &[], None);
    assert!(diagnostics.is_empty(), "{body}: {:?}", super::lines(&diagnostics));
    scripts
}

fn on_a_worker<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, f).unwrap().join().unwrap())
}

#[test]
fn every_attack_fails_its_own_message_and_the_next_is_served() {
    let mut wrong = Vec::new();
    for &(name, body, wanted) in ATTACKS {
        on_a_worker(|| {
            let scripts = hostile(body);
            assert!(message(&scripts, "fine", r#"{"n":1}"#).is_ok());
            let (began, before) = (budget::cpu_time(), thread_live_bytes());
            let outcome = message(&scripts, "f", r#"{"n":1}"#);
            let (took, left) = (budget::cpu_time() - began, thread_live_bytes() - before);
            let next = message(&scripts, "fine", r#"{"n":1}"#).map(|r| r.value.map(|v| v.as_str().to_owned()));
            let said = match outcome {
                Err(ScriptError::Failed(why) | ScriptError::Tripped { why, .. }) => why,
                _ if wanted == "*" => "*".to_owned(),
                other => format!("NOT A FAILURE: {other:?}"),
            };
            let wanted = format!("{wanted}|took more"); // On a slow machine the clock comes before other limits.
            if !wanted.split('|').any(|wanted| said.contains(wanted))
                || said.starts_with("NOT")
                || took > PATIENCE
                || left > 40 << 20
                || next != Ok(Some("2".to_owned()))
            {
                let said: String = said.chars().take(200).collect();
                wrong.push(format!("{name}: {said} (wanted `{wanted}`), {took:?}, {left} bytes left, next {next:?}"));
            }
        });
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
