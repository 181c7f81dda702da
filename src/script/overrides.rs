//! Built-in functions of the engine that would escape its limits: rewritten or removed.
//!
//! The engine looks at sizes after a function has built its result. That is too late where a small argument makes a large result
//! (`replace`, `split`, printing a value) and never where a function does not come back (`pad` with an empty text, `sleep`).

use rhai::{Array, Dynamic, Engine, EvalAltResult, FnPtr, ImmutableString, Map, NativeCallContext, Position};

use super::convert;
use super::engine::{ITEMS_MAX, TEXT_BYTES_MAX};
use super::host::failure;

/// Names of the engine's library that scripts do not get, and what to use instead. Reported when a plugin is loaded.
pub(super) const HIDDEN: &[(&str, &str)] = &[
    ("sleep", "scripts never wait"),
    ("parse_json", "use json::parse(text)"),
    ("to_json", "use json::stringify(value)"),
    ("get_fn_metadata_list", "not available"),
    ("eval", "not available"),
];

type Result<T> = std::result::Result<T, Box<EvalAltResult>>;

fn too_large(what: &str) -> Box<EvalAltResult> {
    EvalAltResult::ErrorDataTooLarge(what.into(), Position::NONE).into()
}

pub(super) fn register(engine: &mut Engine) {
    for &(name, instead) in HIDDEN.iter().filter(|(name, _)| *name != "eval") {
        let refuse = move || -> Result<Dynamic> { Err(failure(format!("`{name}` is not available: {instead}"))) };
        engine.register_fn(name, refuse);
        engine.register_fn(name, move |_: Dynamic| refuse());
        engine.register_fn(name, move |_: Dynamic, _: Dynamic| refuse());
        // An exact type wins over any: the library's own overloads are these.
        engine.register_fn(name, move |_: i64| refuse());
        engine.register_fn(name, move |_: f64| refuse());
        engine.register_fn(name, move |_: &str| refuse());
        engine.register_fn(name, move |_: &mut Map| refuse());
        engine.register_fn(name, move |_: &str, _: i64| refuse());
    }

    engine.register_fn("replace", |text: &mut ImmutableString, find: &str, with: &str| replace(text, find, with));
    engine.register_fn("replace", |text: &mut ImmutableString, find: &str, with: char| replace(text, find, with.encode_utf8(&mut [0; 4])));
    engine.register_fn("replace", |text: &mut ImmutableString, find: char, with: &str| replace(text, find.encode_utf8(&mut [0; 4]), with));
    engine.register_fn("replace", |text: &mut ImmutableString, find: char, with: char| {
        replace(text, find.encode_utf8(&mut [0; 4]), with.encode_utf8(&mut [0; 4]))
    });
    engine.register_fn("pad", |text: &mut ImmutableString, len: i64, with: &str| pad(text, len, with));
    engine.register_fn("pad", |text: &mut ImmutableString, len: i64, with: char| pad(text, len, with.encode_utf8(&mut [0; 4])));

    engine.register_fn("split", |text: &mut ImmutableString| list(text.split_whitespace()));
    engine.register_fn("split", |text: &mut ImmutableString, at: &str| list(text.split(at)));
    engine.register_fn("split", |text: &mut ImmutableString, at: char| list(text.split(at)));
    engine.register_fn("split", |text: &mut ImmutableString, at: &str, n: i64| list(text.splitn(count(n), at)));
    engine.register_fn("split", |text: &mut ImmutableString, at: char, n: i64| list(text.splitn(count(n), at)));
    engine.register_fn("split_rev", |text: &mut ImmutableString, at: &str| list(text.rsplit(at)));
    engine.register_fn("split_rev", |text: &mut ImmutableString, at: char| list(text.rsplit(at)));
    engine.register_fn("split_rev", |text: &mut ImmutableString, at: &str, n: i64| list(text.rsplitn(count(n), at)));
    engine.register_fn("split_rev", |text: &mut ImmutableString, at: char, n: i64| list(text.rsplitn(count(n), at)));
    engine.register_fn("to_chars", |text: &str| -> Result<Array> {
        let chars: Array = text.chars().take(ITEMS_MAX + 1).map(Dynamic::from).collect();
        if chars.len() > ITEMS_MAX { Err(too_large("Size of array")) } else { Ok(chars) }
    });

    // Lists, maps and functions as text. The library writes what a closure has captured, over and over, before it looks at the
    // size.
    for name in ["print", "to_string", "debug", "to_debug"] {
        engine.register_fn(name, |array: &mut Array| shown(Dynamic::from(array.clone())));
        engine.register_fn(name, |map: &mut Map| shown(Dynamic::from(map.clone())));
        engine.register_fn(name, |f: &mut FnPtr| ImmutableString::from(format!("Fn({})", f.fn_name())));
    }

    // Equal capacity for what grows in one step by its own size.
    engine.register_fn("append", |_: NativeCallContext, array: &mut Array, more: Array| -> Result<()> {
        if array.len() + more.len() > ITEMS_MAX {
            return Err(too_large("Size of array"));
        }
        array.extend(more);
        Ok(())
    });
}

fn count(n: i64) -> usize {
    usize::try_from(n).unwrap_or(0).min(ITEMS_MAX + 1)
}

fn replace(text: &mut ImmutableString, find: &str, with: &str) -> Result<()> {
    let found = text.matches(find).count();
    let bytes = (text.len() - found * find.len()).saturating_add(found.saturating_mul(with.len()));
    if bytes > TEXT_BYTES_MAX {
        return Err(too_large("Length of string"));
    }
    if found > 0 {
        *text = text.replace(find, with).into();
    }
    Ok(())
}

fn pad(text: &mut ImmutableString, len: i64, with: &str) -> Result<()> {
    let missing = usize::try_from(len).unwrap_or(0).saturating_sub(text.chars().count());
    if missing == 0 || with.is_empty() {
        return Ok(());
    }
    if missing > TEXT_BYTES_MAX {
        return Err(too_large("Length of string"));
    }
    let padding: String = with.chars().cycle().take(missing).collect();
    if text.len() + padding.len() > TEXT_BYTES_MAX {
        return Err(too_large("Length of string"));
    }
    *text += padding.as_str();
    Ok(())
}

fn list<'a>(parts: impl Iterator<Item = &'a str>) -> Result<Array> {
    let parts: Array = parts.take(ITEMS_MAX + 1).map(Into::into).collect();
    if parts.len() > ITEMS_MAX { Err(too_large("Size of array")) } else { Ok(parts) }
}

/// A list or map as text is its JSON.
fn shown(value: Dynamic) -> Result<ImmutableString> {
    convert::to_json(&value, TEXT_BYTES_MAX).map(|json| json.as_str().into()).map_err(failure)
}
