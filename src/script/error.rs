//! What went wrong in a script, for the person who wrote it: where, in which function, why, and through which calls.

use rhai::{Dynamic, EvalAltResult, LexError, ParseErrorType, Position};

use super::budget::Trip;
use super::call::ScriptError;
use super::convert;
use super::engine::OUTPUT_BYTES_MAX;
use super::host::{FUNCTIONS, HostError};
use super::library::MODULES;
use super::program::{EXPRESSION_PREFIX, Program};
use super::walk::definition;

/// Why a call gave nothing.
pub(super) enum Failure {
    /// It was refused, by the script or before it.
    Refused(ScriptError),
    /// A mistake was made.
    Broke(String),
    /// A limit was hit.
    Tripped(String),
}

/// One level of the call stack.
struct Frame {
    function: String,
    file: String,
    at: Position,
}

/// Reads the engine's error of a call of `function`.
pub(super) fn explain(program: &Program, function: &str, error: EvalAltResult, trip: Option<Trip>) -> Failure {
    let (frames, error) = unwind(program, function, error);
    if let EvalAltResult::ErrorRuntime(value, _) = &error
        && !value.is::<HostError>()
        && trip.is_none()
    {
        let at = frames.last().map(|frame| format!("{} in {}", place(program, &frame.file, frame.at), named(&frame.function)));
        return Failure::Refused(thrown(value, at.unwrap_or_default()));
    }
    let tripped = trip.is_some()
        || matches!(
            error,
            EvalAltResult::ErrorTooManyOperations(..)
                | EvalAltResult::ErrorTooManyVariables(..)
                | EvalAltResult::ErrorTooManyModules(..)
                | EvalAltResult::ErrorStackOverflow(..)
                | EvalAltResult::ErrorDataTooLarge(..)
                | EvalAltResult::ErrorTerminated(..)
        );
    let why = trip.map_or_else(|| why(program, &frames, &error), Trip::why);
    let mut text = String::new();
    for (i, frame) in frames.iter().rev().enumerate() {
        // If a plugin imports others the engine loses the position at which a limit was hit. Then the function is the place.
        let at = if frame.at.is_none() { definition(text_of(program, &frame.file), &frame.function) } else { frame.at };
        let place = place(program, &frame.file, at);
        let function = named(&frame.function);
        text.push_str(&if i == 0 { format!("{place} in {function}: {why}") } else { format!("\n  called from {place} in {function}") });
        if i == 8 {
            text.push_str("\n  …");
            break;
        }
    }
    if tripped { Failure::Tripped(text) } else { Failure::Broke(text) }
}

/// Unwraps an error of the engine: one layer for each call. Outermost frame first.
fn unwind(program: &Program, function: &str, mut error: EvalAltResult) -> (Vec<Frame>, EvalAltResult) {
    let mut frames = Vec::new();
    let (mut function, mut file) = (function.to_owned(), program.file.to_string());
    loop {
        match error {
            EvalAltResult::ErrorInFunctionCall(inner_function, inner_file, inner, at) => {
                let inner_file = if inner_file.is_empty() { file.clone() } else { inner_file };
                frames.push(Frame {
                    function: std::mem::replace(&mut function, inner_function),
                    file: std::mem::replace(&mut file, inner_file),
                    at,
                });
                error = *inner;
            }
            EvalAltResult::ErrorInModule(_, inner, _) => error = *inner,
            _ => break,
        }
    }
    frames.push(Frame { function, file, at: error.position() });
    (frames, error)
}

/// `plugins/x.rhai:12:9`, or a place in the routes file for an expression.
fn place(program: &Program, file: &str, at: Position) -> String {
    let Some(line) = at.line() else { return file.to_owned() };
    if *file == *program.file
        && let Some(expression) = program.expressions.iter().find(|e| e.lines.contains(&line))
    {
        return expression.at.location.to_string();
    }
    format!("{file}:{line}:{}", at.position().unwrap_or(1))
}

/// Where a function is and what it is called, for a failure that has no line of its own.
pub(super) fn of_function(program: &Program, function: &str) -> String {
    let at = definition(&program.text, function);
    format!("{} in {}", place(program, &program.file, at), named(function))
}

/// What people call a kind of value. The engine names some as its own language does.
fn kind(name: &str) -> &str {
    match name {
        "i64" | "f64" => "number",
        "map" => "object",
        "array" => "list",
        "string" | "&str | ImmutableString | string" => "text",
        "char" => "character",
        "()" => "nothing",
        other => other,
    }
}

/// The same in a sentence: `a number`.
pub(super) fn a_kind(name: &str) -> String {
    match kind(name) {
        "nothing" => "nothing".to_owned(),
        "bool" => "true or false".to_owned(),
        "object" => "an object".to_owned(),
        kind => format!("a {kind}"),
    }
}

fn named(function: &str) -> String {
    if function.starts_with(EXPRESSION_PREFIX) {
        "this expression".to_owned()
    } else if function.starts_with("anon$") {
        "a closure".to_owned()
    } else {
        format!("fn {function}")
    }
}

/// What a script threw.
fn thrown(value: &Dynamic, at: String) -> ScriptError {
    let Ok(map) = value.as_map_ref() else {
        let message = if value.is_unit() { "rejected".to_owned() } else { value.to_string() };
        return ScriptError::Thrown { message, data: None, code: None, at };
    };
    let text = |name: &str| map.get(name).and_then(|v| v.as_immutable_string_ref().ok().map(|text| text.to_string()));
    let (message, code) = (text("message"), text("code"));
    let mut rest = map.clone();
    rest.retain(|name, _| !(name == "message" && message.is_some() || name == "code" && code.is_some()));
    // A lone `data` is the data; otherwise all other members are.
    let data = match rest.remove("data") {
        Some(data) if rest.is_empty() => Some(data),
        Some(data) => {
            rest.insert("data".into(), data);
            Some(rest.into())
        }
        None => (!rest.is_empty()).then(|| rest.into()),
    };
    let data = data.and_then(|data: Dynamic| convert::to_json(&data, OUTPUT_BYTES_MAX).ok());
    ScriptError::Thrown { message: message.or_else(|| code.clone()).unwrap_or_else(|| "rejected".to_owned()), data, code, at }
}

/// Why, as a sentence.
fn why(program: &Program, frames: &[Frame], error: &EvalAltResult) -> String {
    let before = || {
        let frame = frames.last()?;
        missing_at(program, &frame.file, frame.at)
    };
    reason(error, before)
}

/// Likewise, without the source text.
pub(super) fn plain(error: &EvalAltResult) -> String {
    match error {
        EvalAltResult::ErrorInFunctionCall(_, _, inner, _) | EvalAltResult::ErrorInModule(_, inner, _) => plain(inner),
        _ => reason(error, || None),
    }
}

fn reason(error: &EvalAltResult, before: impl Fn() -> Option<String>) -> String {
    match error {
        EvalAltResult::ErrorRuntime(value, _) => match value.clone().try_cast::<HostError>() {
            Some(HostError(why)) => why,
            None => value.to_string(),
        },
        EvalAltResult::ErrorFunctionNotFound(signature, _) => function_not_found(signature, before()),
        EvalAltResult::ErrorDotExpr(text, _) if text.contains("'()'") => {
            before().map_or_else(|| "a value before the `.` is missing".to_owned(), |name| format!("`{name}` is missing"))
        }
        EvalAltResult::ErrorIndexingType(kind, _) if kind.starts_with("()") => {
            before().map_or_else(|| "a value before the `[` is missing".to_owned(), |name| format!("`{name}` is missing"))
        }
        EvalAltResult::ErrorTooManyOperations(_) => Trip::Operations.why(),
        EvalAltResult::ErrorStackOverflow(_) => "calls itself too deeply".to_owned(),
        EvalAltResult::ErrorDataTooLarge(what, _) => format!("a value is too large for a script ({})", what.to_lowercase()),
        EvalAltResult::ErrorTooManyVariables(_) => "too many variables".to_owned(),
        EvalAltResult::ErrorModuleNotFound(name, _) => format!("there is no plugin `{name}` to import"),
        EvalAltResult::ErrorParsing(error, _) => parsing(error),
        _ => without_position(error),
    }
}

/// The engine's own text, without the position at its end, because we already gave it.
fn without_position(error: &EvalAltResult) -> String {
    let text = error.to_string();
    match text.rfind(" (line ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// What a parse error says.
pub(super) fn parsing(error: &ParseErrorType) -> String {
    let text = error.to_string();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// What the author of a text that does not parse probably meant.
pub(super) fn meant(error: &ParseErrorType) -> Option<&'static str> {
    match error {
        ParseErrorType::Reserved(word) if word == "null" => Some("`null` is written `()`"),
        ParseErrorType::BadInput(LexError::MalformedChar(_)) => Some("texts are written in double quotes: \"abc\""),
        _ => None,
    }
}

/// For an assignment in a condition.
pub(super) const COMPARE: &str = "to compare, write `==`";

/// A call that matches no function: `len (())`, `publish (string)`.
fn function_not_found(signature: &str, before: Option<String>) -> String {
    let (name, given) = signature.split_once(" (").map_or((signature, ""), |(name, rest)| (name, rest.trim_end_matches(')')));
    let forms: Vec<&str> = FUNCTIONS
        .iter()
        .chain(MODULES.iter().flat_map(|(_, functions)| functions.iter()))
        .filter(|(known, ..)| name.rsplit("::").next() == Some(known))
        .map(|(.., form)| *form)
        .collect();
    // `()` as a type shows as `()`, with its closing bracket trimmed at the end.
    let given = if given.ends_with('(') || given.ends_with("(()") { format!("{given})") } else { given.to_owned() };
    let shown = given.split(", ").map(kind).collect::<Vec<_>>().join(", ");
    if !forms.is_empty() {
        return format!("`{name}` takes {}, got ({shown})", forms.join(" or "));
    }
    if given.starts_with("()") {
        return before.map_or_else(|| format!("`{name}` is called on a missing value"), |text| format!("`{text}` is missing"));
    }
    if name.chars().all(|c| !c.is_alphanumeric()) {
        return format!("`{name}` does not work between ({shown})");
    }
    format!("`{name}` does not take ({shown})")
}

fn text_of<'a>(program: &'a Program, file: &str) -> &'a str {
    if *file == *program.file {
        return &program.text;
    }
    program.sources.values().find(|source| *source.file == *file).map_or("", |source| &source.text)
}

/// The text before the `.` or `[` of a failed access: what was missing.
fn missing_at(program: &Program, file: &str, at: Position) -> Option<String> {
    let line = text_of(program, file).lines().nth(at.line()?.checked_sub(1)?)?;
    let chars: Vec<char> = line.chars().collect();
    let mut end = at.position()?.checked_sub(1)?.min(chars.len());
    // The position is that of the name behind the dot, or of the dot or bracket itself.
    while end > 0 && matches!(chars[end - 1], '.' | '?' | '[' | ' ') {
        end -= 1;
    }
    let mut start = end;
    while start > 0 && (chars[start - 1].is_alphanumeric() || matches!(chars[start - 1], '_' | '.' | '?' | '[' | ']' | '"')) {
        start -= 1;
    }
    let name: String = chars[start..end].iter().collect();
    name.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_').then_some(name)
}
