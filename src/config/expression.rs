//! `when:`: Rhai expressions with the references of the language. Here `$.x` becomes `msg.x` and so on; `script` compiles them.

use super::codes;
use super::diagnostic::Diagnostic;
use super::fields::Collected;
use super::node::Node;
use super::plan::FnRef;
use super::template::{AllowedRefs, names, root_hint};
use crate::model::PluginName;
use crate::model::template::Root;

/// What an expression of a row looks at.
pub(super) const ROW: &[&str] = &["conn", "msg", "kind", "data"];
/// What an expression about a connection looks at.
pub(super) const CONNECTION: &[&str] = &["conn"];
/// What an expression of `deliver` looks at.
pub(super) const DELIVER: &[&str] = &["event", "sub", "conn"];

/// The longest expression. Anything longer belongs in a function of a plugin.
const BYTES_MAX: usize = 4096;

/// Reserved words of Rhai, which are not allowed after a dot.
const RESERVED: &str = " as async await break case catch const continue default do else eval exit export false fn for global go goto if import in let loop match module new nil null package private protected public return shared spawn static super switch sync this thread throw true try until use var void while with yield ";

/// An expression that was read.
pub(super) struct When {
    pub(super) function: FnRef,
    /// Whether it looks at the subscription or connection.
    pub(super) per_subscription: bool,
}

/// Reads a `when`.
pub(super) fn when(
    all: &Collected,
    node: &Node,
    plugin: &PluginName,
    allowed: AllowedRefs,
    parameters: &'static [&'static str],
) -> Option<When> {
    let source = match node.as_text() {
        Some(text) => text.to_owned(),
        None => return all.wrong_type(node, "an expression"),
    };
    if source.trim().is_empty() || source.len() > BYTES_MAX {
        return all.fail(codes::EXPRESSION, &node.span, format!("an expression must have 1 to {BYTES_MAX} bytes"));
    }
    match rewrite(&source, allowed) {
        Ok(Rewritten { source, per_subscription }) => {
            Some(When { function: all.expression(plugin, source, parameters, &node.span), per_subscription })
        }
        Err(Wrong { code, message, hint }) => {
            let diagnostic = Diagnostic::new(code, node.span.clone(), message);
            all.report(if hint.is_empty() { diagnostic } else { diagnostic.hint(hint) });
            None
        }
    }
}

#[derive(Debug)]
struct Rewritten {
    source: String,
    per_subscription: bool,
}

#[derive(Debug)]
struct Wrong {
    code: &'static str,
    message: String,
    hint: String,
}

/// Rewrites references outside of strings and comments.
fn rewrite(source: &str, allowed: AllowedRefs) -> Result<Rewritten, Wrong> {
    let (mut out, mut rest, mut per_subscription) = (String::with_capacity(source.len() + 16), source, false);
    while let Some(next) = rest.chars().next() {
        let skipped = opaque(rest);
        if skipped > 0 {
            out.push_str(&rest[..skipped]);
            rest = &rest[skipped..];
        } else if next == '$' {
            let name_end = 1 + rest[1..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len() - 1);
            let name = &rest[1..name_end];
            let root = root(name, allowed)?;
            per_subscription |= matches!(root, Root::Sub | Root::Conn);
            out.push_str(variable(root));
            rest = path(&rest[name_end..], &mut out);
        } else {
            out.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    Ok(Rewritten { source: out, per_subscription })
}

fn root(name: &str, allowed: AllowedRefs) -> Result<Root, Wrong> {
    let Some((_, root)) = Root::ALL.iter().find(|(known, _)| *known == name) else {
        return Err(Wrong {
            code: codes::REFERENCE,
            message: format!("unknown reference `${name}`"),
            hint: root_hint(name, |root| has(root, allowed)),
        });
    };
    if !has(*root, allowed) {
        let written = if name.is_empty() { "$.".to_owned() } else { format!("${name}") };
        let message = format!("`{written}` has no value in a `when` {}", allowed.place);
        return Err(Wrong { code: codes::NOT_HERE, message, hint: format!("known here: {}", names(|root| has(root, allowed))) });
    }
    Ok(*root)
}

/// Whether a root has a value in a `when` here.
fn has(root: Root, allowed: AllowedRefs) -> bool {
    allowed.has(root) && !variable(root).is_empty()
}

/// The name of a root in Rhai; empty if it has none.
fn variable(root: Root) -> &'static str {
    match root {
        Root::Message => "msg",
        Root::Type => "kind",
        Root::Data => "data",
        Root::Conn => "conn",
        Root::Query => "conn.query",
        Root::Path => "conn.path",
        Root::Header => "conn.header",
        Root::Cookie => "conn.cookie",
        Root::Event => "event",
        Root::Sub => "sub",
        Root::Now => "now()",
        Root::NowMs => "now_ms()",
        Root::Uuid => "uuid()",
        Root::Raw | Root::Channel | Root::Recovery | Root::Messages | Root::Result | Root::Error | Root::Random => "",
    }
}

/// Copies the path after a reference. Reserved words and indexes are not allowed after a dot in Rhai; they go into brackets.
fn path<'s>(mut rest: &'s str, out: &mut String) -> &'s str {
    loop {
        let dot = if rest.starts_with("?.") { 2 } else { usize::from(rest.starts_with('.') && !rest.starts_with("..")) };
        let step_len = rest[dot..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len() - dot);
        if dot == 0 || step_len == 0 {
            return rest;
        }
        let step = &rest[dot..dot + step_len];
        let after = &rest[dot + step_len..];
        let is_call = after.trim_start().starts_with('(');
        let question = if dot == 2 { "?" } else { "" };
        if step.bytes().all(|b| b.is_ascii_digit()) {
            out.push_str(&format!("{question}[{step}]"));
        } else if !is_call && RESERVED.contains(&format!(" {step} ")) {
            out.push_str(&format!("{question}[\"{step}\"]"));
        } else {
            out.push_str(&rest[..dot + step_len]);
        }
        rest = after;
    }
}

/// How many bytes at the beginning are a string or comment, if one begins here. What is never closed goes to the end;
/// the compiler will say so.
fn opaque(text: &str) -> usize {
    let to = |from: usize, end: &str| text[from..].find(end).map_or(text.len(), |i| from + i + end.len());
    let bytes = text.as_bytes();
    match bytes {
        [b'/', b'/', ..] => text.find('\n').unwrap_or(text.len()),
        [b'/', b'*', ..] => {
            // Comments nest.
            let (mut depth, mut i) = (0usize, 0);
            while i < bytes.len() {
                match &bytes[i..] {
                    [b'/', b'*', ..] => (depth, i) = (depth + 1, i + 2),
                    [b'*', b'/', ..] => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 {
                    break;
                }
            }
            i
        }
        [quote @ (b'"' | b'\'' | b'`'), ..] => {
            let mut i = 1;
            while i < bytes.len() && bytes[i] != *quote {
                i += if bytes[i] == b'\\' && *quote != b'`' { 2 } else { 1 };
            }
            // An escape may have been the last byte of the text, or the first of a character.
            let mut end = (i + 1).min(bytes.len());
            while !text.is_char_boundary(end) {
                end += 1;
            }
            end
        }
        [b'#', ..] => {
            let hashes = bytes.iter().take_while(|&&b| b == b'#').count();
            if bytes.get(hashes) == Some(&b'"') { to(hashes + 1, &format!("\"{}", "#".repeat(hashes))) } else { 0 }
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(source: &str) -> String {
        rewrite(source, AllowedRefs::MESSAGE).unwrap().source
    }

    #[test]
    fn references_become_variables() {
        for (written, rewritten) in [
            ("$.data.topic == \"ide\"", "msg.data.topic == \"ide\""),
            ("$ != () && $type == \"$.x\"", "msg != () && kind == \"$.x\""),
            ("f($conn, $.a?.b)", "f(conn, msg.a?.b)"),
            ("$now_ms - $.t > 5", "now_ms() - msg.t > 5"),
            ("$.new == $.list.0", "msg[\"new\"] == msg.list[0]"),
            ("$.a?.default", "msg.a?[\"default\"]"),
            ("$query.role == 'x'", "conn.query.role == 'x'"),
            ("1 /* $x /* $y */ $z */ + $.a // $w", "1 /* $x /* $y */ $z */ + msg.a // $w"),
            ("`a ${$b}` + #\"$c \" d\"# + $.e", "`a ${$b}` + #\"$c \" d\"# + msg.e"),
            ("\"\\\"$x\" + $.y.len()", "\"\\\"$x\" + msg.y.len()"),
            ("#{a: $.b}.a", "#{a: msg.b}.a"),
        ] {
            assert_eq!(row(written), rewritten);
        }
    }

    #[test]
    fn only_what_looks_at_the_receiver_is_asked_for_each() {
        let deliver = |source| rewrite(source, AllowedRefs::DELIVER).unwrap().per_subscription;
        assert!(!deliver("$event.metadata == ()"));
        assert!(deliver("matches($conn, $event)"));
        assert!(deliver("$sub.key == \"a\""));
    }

    #[test]
    fn what_has_no_value_is_refused() {
        for (source, allowed) in [
            ("$event.id == 1", AllowedRefs::MESSAGE),
            ("$nmae", AllowedRefs::MESSAGE),
            ("$result", AllowedRefs::MESSAGE.with_result(true)),
            ("$query.x", AllowedRefs::SOURCE),
            ("$conn.id", AllowedRefs::SOURCE),
            ("$random", AllowedRefs::MESSAGE),
            ("$.x", AllowedRefs::DELIVER),
        ] {
            assert!(rewrite(source, allowed).is_err(), "{source}");
        }
        assert!(rewrite("$dtaa.x", AllowedRefs::MESSAGE).unwrap_err().hint.contains("`$data`"));
    }

    proptest! {
        #[test]
        fn no_text_panics(source in "[$.a-c#\"'`/*\\\\ü?0( \n]{0,40}|.{0,30}") {
            drop(rewrite(&source, AllowedRefs::MESSAGE));
        }

        #[test]
        fn text_without_references_is_untouched(source in "[^$]{0,60}") {
            prop_assert_eq!(row(&source), source);
        }
    }
}
