//! The built-in modules of scripts: `json`, `crypto`, `log`, `regex`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use regex::{Regex, RegexBuilder};
use rhai::{Array, Dynamic, Engine, EvalAltResult, ImmutableString, Map, Module};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::engine::{ITEMS_MAX, LOG_LINE_BYTES_MAX, REGEX_BYTES_MAX, REGEX_CACHE_MAX, TEXT_BYTES_MAX};
use super::host::failure;
use super::{budget, convert, current};
use crate::telemetry::memory::thread_live_bytes;

type Result<T> = std::result::Result<T, Box<EvalAltResult>>;

/// A function's name, how many arguments it takes, and how a call of it looks.
pub(super) type Form = (&'static str, usize, &'static str);

/// The modules' functions: for checks when a plugin is loaded. A plugin cannot import anything under these names.
pub(super) const MODULES: &[(&str, &[Form])] = &[
    ("json", &[("parse", 1, "json::parse(text)"), ("stringify", 1, "json::stringify(value)")]),
    (
        "crypto",
        &[
            ("sha256", 1, "crypto::sha256(text)"),
            ("hmac_sha256", 2, "crypto::hmac_sha256(key, text)"),
            ("base64", 1, "crypto::base64(text)"),
            ("base64_decode", 1, "crypto::base64_decode(text)"),
            ("hex", 1, "crypto::hex(text)"),
            ("equal", 2, "crypto::equal(a, b)"),
        ],
    ),
    ("log", &[("debug", 1, "log::debug(value)"), ("info", 1, "log::info(value)"), ("warn", 1, "log::warn(value)")]),
    (
        "regex",
        &[
            ("is_match", 2, "regex::is_match(pattern, text)"),
            ("find", 2, "regex::find(pattern, text)"),
            ("find_all", 2, "regex::find_all(pattern, text)"),
            ("captures", 2, "regex::captures(pattern, text)"),
            ("replace", 3, "regex::replace(pattern, text, with)"),
        ],
    ),
];

pub(super) fn register(engine: &mut Engine) {
    engine.register_static_module("json", json().into());
    engine.register_static_module("crypto", crypto().into());
    engine.register_static_module("log", logging().into());
    engine.register_static_module("regex", regexes().into());
}

fn json() -> Module {
    let mut module = Module::new();
    module.set_native_fn("parse", |text: &str| -> Result<Dynamic> {
        convert::parse(text).map_err(|why| failure(format!("json::parse: {why}")))
    });
    module.set_native_fn("stringify", |value: Dynamic| -> Result<ImmutableString> {
        let json = convert::to_json(&value, TEXT_BYTES_MAX).map_err(|why| failure(format!("json::stringify: {why}")))?;
        Ok(json.as_str().into())
    });
    module
}

fn crypto() -> Module {
    let mut module = Module::new();
    module.set_native_fn("sha256", |text: &str| -> Result<String> { Ok(hex(&Sha256::digest(text))) });
    module.set_native_fn("hmac_sha256", |key: &str, text: &str| -> Result<String> {
        let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).map_err(|e| failure(format!("crypto::hmac_sha256: {e}")))?;
        mac.update(text.as_bytes());
        Ok(hex(&mac.finalize().into_bytes()))
    });
    module.set_native_fn("base64", |text: &str| -> Result<String> { Ok(STANDARD.encode(text)) });
    module.set_native_fn("base64_decode", |text: &str| -> Result<String> {
        let bytes = STANDARD.decode(text).map_err(|e| failure(format!("crypto::base64_decode: {e}")))?;
        String::from_utf8(bytes).map_err(|_| failure("crypto::base64_decode: the result is not valid UTF-8"))
    });
    module.set_native_fn("hex", |text: &str| -> Result<String> { Ok(hex(text.as_bytes())) });
    module.set_native_fn("equal", |a: &str, b: &str| -> Result<bool> { Ok(a.as_bytes().ct_eq(b.as_bytes()).into()) });
    module
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn logging() -> Module {
    let mut module = Module::new();
    for (name, level) in [("debug", tracing::Level::DEBUG), ("info", tracing::Level::INFO), ("warn", tracing::Level::WARN)] {
        module.set_native_fn(name, move |value: Dynamic| -> Result<()> {
            if let Ok(text) = value.as_immutable_string_ref() {
                return log(level, &text);
            }
            let json = convert::to_json(&value, LOG_LINE_BYTES_MAX * 4).map_err(|why| failure(format!("log::{name}: {why}")))?;
            log(level, json.as_str())
        });
    }
    module
}

/// Writes a log line of a plugin. Lines over the limit are counted and left out.
pub(super) fn log(level: tracing::Level, text: &str) -> Result<()> {
    current::with(|call| {
        let Some(health) = &call.health else { return Ok(()) };
        let plugin = &*call.plugin;
        let left_out = health.left_out(call.now.wall_ms);
        if health.may_log(call.now.wall_ms) {
            let before = thread_live_bytes();
            if let Some(left_out) = left_out {
                tell_left_out(plugin, left_out);
            }
            let text = &text[..text.floor_char_boundary(LOG_LINE_BYTES_MAX)];
            match level {
                tracing::Level::WARN => tracing::warn!(plugin, "{text}"),
                tracing::Level::INFO => tracing::info!(plugin, "{text}"),
                _ => tracing::debug!(plugin, "{text}"),
            }
            // The log writer may keep the line for another thread.
            budget::excuse(thread_live_bytes() - before);
        }
        Ok(())
    })
}

/// Logs how many lines were left out.
pub(super) fn tell_left_out(plugin: &str, left_out: u64) {
    tracing::warn!(plugin, left_out, "lines of the plugin were left out of the log: it writes too many");
}

thread_local! {
    static COMPILED: RefCell<HashMap<Box<str>, Rc<Regex>>> = RefCell::default();
}

/// A compiled expression, kept on this thread. The crate matches in linear time.
fn compiled(pattern: &str) -> Result<Rc<Regex>> {
    budget::look_soon();
    let before = thread_live_bytes();
    let regex = COMPILED.with_borrow_mut(|cache| {
        if let Some(regex) = cache.get(pattern) {
            return Ok(regex.clone());
        }
        if pattern.len() > 1024 {
            return Err(failure("regex: the expression is longer than 1024 bytes"));
        }
        let regex = RegexBuilder::new(pattern).size_limit(REGEX_BYTES_MAX).dfa_size_limit(REGEX_BYTES_MAX).nest_limit(32).build();
        let regex = Rc::new(regex.map_err(|e| failure(format!("regex: {e}")))?);
        if cache.len() >= REGEX_CACHE_MAX {
            cache.clear();
        }
        cache.insert(pattern.into(), regex.clone());
        Ok(regex)
    });
    // The cache outlives the call.
    budget::excuse(thread_live_bytes() - before);
    regex
}

fn regexes() -> Module {
    let mut module = Module::new();
    module.set_native_fn("is_match", |pattern: &str, text: &str| -> Result<bool> { Ok(compiled(pattern)?.is_match(text)) });
    module.set_native_fn("find", |pattern: &str, text: &str| -> Result<Dynamic> {
        Ok(compiled(pattern)?.find(text).map_or(Dynamic::UNIT, |found| found.as_str().into()))
    });
    module.set_native_fn("find_all", |pattern: &str, text: &str| -> Result<Array> {
        Ok(compiled(pattern)?.find_iter(text).take(ITEMS_MAX).map(|found| found.as_str().into()).collect())
    });
    module.set_native_fn("captures", |pattern: &str, text: &str| -> Result<Dynamic> {
        let regex = compiled(pattern)?;
        let Some(captures) = regex.captures(text) else { return Ok(Dynamic::UNIT) };
        let mut map = Map::new();
        for (i, name) in regex.capture_names().enumerate() {
            if let Some(group) = captures.get(i) {
                let name = name.map_or_else(|| i.to_string(), str::to_owned);
                map.insert(name.into(), group.as_str().into());
            }
        }
        Ok(map.into())
    });
    module.set_native_fn("replace", |pattern: &str, text: &str, with: &str| -> Result<String> {
        let regex = compiled(pattern)?;
        let mut out = String::new();
        let mut from = 0;
        for captures in regex.captures_iter(text) {
            let Some(whole) = captures.get(0) else { continue };
            out.push_str(&text[from..whole.start()]);
            // No group is longer than the whole, so this is the most that expanding can add.
            let most = with.len() + with.matches('$').count() * whole.len();
            if out.len() + most > TEXT_BYTES_MAX {
                return Err(failure("regex::replace: the result is too long"));
            }
            captures.expand(with, &mut out);
            from = whole.end();
        }
        out.push_str(&text[from..]);
        Ok(out)
    });
    module
}
