//! JSON as text that is known to be valid, and looking into it without building a tree.
//!
//! A message is checked once, when it arrives, which also notes the positions of its members. Deeper values are found by skipping
//! their neighbours: no allocation, no recursion. If a key appears twice the last one counts, as in JavaScript's `JSON.parse`.

mod check;
mod object;

use std::borrow::Cow;
use std::ops::Range;

use bytestring::ByteString;

pub use check::Index;
use check::{skip_plain, skip_space};
pub use object::ObjectWriter;

/// How deep arrays and objects may nest in any JSON that comes from outside.
pub const DEPTH_MAX: usize = 64;

/// JSON text that has been checked. Cheap to clone and to share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Json(ByteString);

/// Why a text was not taken as JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The grammar is broken.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
}

impl Json {
    /// Checks a whole text: grammar and depth.
    pub fn parse(text: ByteString) -> Result<Self, Error> {
        if !check::is_json(&text) {
            slow_check(&text)?;
        }
        Ok(Self(text))
    }

    /// The same, and notes where the members of the object stand, where it is one.
    pub fn parse_indexed(text: ByteString) -> Result<(Self, Index), Error> {
        let index = match check::indexed(&text) {
            Some(index) => index,
            None => slow_check(&text).map(|()| Index::default())?,
        };
        Ok((Self(text), index))
    }

    /// For text that this crate or serde_json wrote.
    pub fn trusted(text: impl Into<ByteString>) -> Self {
        Self(text.into())
    }

    /// Any serialisable value.
    pub fn of(value: &impl serde::Serialize) -> Self {
        Self(serde_json::to_string(value).unwrap_or_else(|_| "null".into()).into())
    }

    /// A JSON string.
    pub fn string(text: &str) -> Self {
        let mut out = String::with_capacity(text.len() + 2);
        push_string(&mut out, text);
        Self(out.into())
    }

    /// `null`.
    pub fn null() -> Self {
        Self(ByteString::from_static("null"))
    }

    /// `{}`.
    pub fn empty_object() -> Self {
        Self(ByteString::from_static("{}"))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, shared.
    pub fn shared(&self) -> ByteString {
        self.0.clone()
    }

    /// A part of this text, sharing its bytes. `part` must be a slice of [`Json::as_str`].
    pub fn slice(&self, part: &str) -> Json {
        Json(self.0.slice_ref(part))
    }

    /// Where a part of this text stands in it. `part` must be a slice of [`Json::as_str`].
    pub fn range_of(&self, part: &str) -> Range<usize> {
        let from = part.as_ptr().addr() - self.0.as_ptr().addr();
        from..from + part.len()
    }

    /// The text, taken out.
    pub fn into_shared(self) -> ByteString {
        self.0
    }

    /// The same text in a buffer of its own, of exactly its size. For values that are kept: a part of a message would keep alive
    /// the buffer it was read into, which may be many times larger.
    #[must_use]
    pub fn detached(&self) -> Json {
        Json(ByteString::from(&*self.0))
    }

    /// The value as a tree. Not every JSON text has one: half a surrogate pair is not valid text, and `1e999` is not a finite
    /// number.
    pub fn to_value(&self) -> Result<serde_json::Value, Error> {
        serde_json::from_str(&self.0).map_err(|e| Error::Syntax(e.to_string()))
    }
}

/// Whether brackets nest deeper than [`DEPTH_MAX`], looking at brackets outside strings only.
fn too_deep(text: &str) -> bool {
    let (mut depth, mut i, bytes) = (0usize, 0, text.as_bytes());
    while i < bytes.len() {
        match bytes[i] {
            b'"' => i = skip_string(bytes, i),
            b'[' | b'{' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return true;
                }
                i += 1;
            }
            b']' | b'}' => {
                depth = depth.saturating_sub(1);
                i += 1;
            }
            _ => i += 1,
        }
    }
    false
}

/// Says what is wrong with a text, grammar and depth.
fn slow_check(text: &str) -> Result<(), Error> {
    if too_deep(text) {
        return Err(Error::TooDeep);
    }
    // RawValue checks the grammar without building anything and without recursion.
    serde_json::from_str::<&serde_json::value::RawValue>(text).map_err(|e| Error::Syntax(e.to_string()))?;
    Ok(())
}

/// The index after the string that starts at `i`; the end of the text where it is not closed.
fn skip_string(bytes: &[u8], mut i: usize) -> usize {
    i += 1;
    loop {
        i = skip_plain(bytes, i);
        match bytes.get(i) {
            None => return bytes.len(),
            Some(b'"') => return i + 1,
            Some(b'\\') => i += 2,
            Some(_) => i += 1,
        }
    }
}

/// The index after the value that starts at `i`, in valid JSON.
fn skip_value(bytes: &[u8], mut i: usize) -> usize {
    match bytes.get(i) {
        Some(b'"') => skip_string(bytes, i),
        Some(b'[' | b'{') => {
            let mut depth = 0usize;
            while i < bytes.len() {
                match bytes[i] {
                    b'"' => {
                        i = skip_string(bytes, i);
                        continue;
                    }
                    b'[' | b'{' => depth += 1,
                    b']' | b'}' => {
                        depth -= 1;
                        if depth == 0 {
                            return i + 1;
                        }
                    }
                    _ => {}
                }
                i += 1;
            }
            i
        }
        _ => {
            while i < bytes.len() && !matches!(bytes[i], b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r') {
                i += 1;
            }
            i
        }
    }
}

/// The members of an object, in order. `text` must be valid JSON; anything but an object has none.
pub fn members(text: &str) -> Members<'_> {
    let start = skip_space(text.as_bytes(), 0);
    let at = if text.as_bytes().get(start) == Some(&b'{') { start + 1 } else { text.len() };
    Members { text, at }
}

/// See [`members`].
pub struct Members<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Members<'a> {
    /// The key with its quotes as written in the text, and the value's text.
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.text.as_bytes();
        let key_at = skip_space(bytes, self.at);
        if bytes.get(key_at) != Some(&b'"') {
            return None;
        }
        let key_end = skip_string(bytes, key_at);
        let value_at = skip_space(bytes, skip_space(bytes, key_end) + 1);
        let value_end = skip_value(bytes, value_at);
        self.at = skip_space(bytes, value_end) + 1;
        Some((self.text.get(key_at..key_end)?, self.text.get(value_at..value_end)?))
    }
}

/// The same with the index of this text, which saves the walk over it.
pub fn members_indexed<'a>(text: &'a str, index: &'a Index) -> impl Iterator<Item = (&'a str, &'a str)> {
    let known = index.members(text);
    let searched = if known.is_none() { Some(members(text)) } else { None };
    known.into_iter().flatten().chain(searched.into_iter().flatten())
}

/// The items of an array, in order. `text` must be valid JSON; anything but an array has none.
pub fn items(text: &str) -> Items<'_> {
    let start = skip_space(text.as_bytes(), 0);
    let at = if text.as_bytes().get(start) == Some(&b'[') { start + 1 } else { text.len() };
    Items { text, at }
}

/// See [`items`].
pub struct Items<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Items<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.text.as_bytes();
        let at = skip_space(bytes, self.at);
        if at >= bytes.len() || bytes[at] == b']' {
            return None;
        }
        let end = skip_value(bytes, at);
        self.at = skip_space(bytes, end) + 1;
        self.text.get(at..end)
    }
}

/// Whether a key as written in a text (with quotes, perhaps with escapes) is this key.
pub fn key_is(quoted: &str, key: &str) -> bool {
    let inner = &quoted[1..quoted.len() - 1];
    // A key with an escape differs from its written form, and so does its length.
    if inner == key { !inner.contains('\\') } else { inner.contains('\\') && unquote(quoted) == key }
}

/// One member of an object; the last if the key appears twice.
pub fn member<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    members(text).filter(|(k, _)| key_is(k, key)).last().map(|(_, v)| v)
}

/// Without white space around it.
fn trim(text: &str) -> &str {
    let bytes = text.as_bytes();
    let from = skip_space(bytes, 0);
    let to = bytes.iter().rposition(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).map_or(0, |last| last + 1);
    text.get(from..to).unwrap_or_default()
}

/// The value at the end of a path of keys and indexes.
pub fn get<'a, S: AsRef<str>>(text: &'a str, path: &[S]) -> Option<&'a str> {
    let mut at = trim(text);
    for step in path {
        let step = step.as_ref();
        at = match at.as_bytes().first()? {
            b'{' => member(at, step)?,
            b'[' => items(at).nth(step.parse().ok()?)?,
            _ => return None,
        };
    }
    Some(at)
}

/// The same with the index of this text, which saves the search for the first key.
pub fn get_indexed<'a, S: AsRef<str>>(text: &'a str, index: &Index, path: &[S]) -> Option<&'a str> {
    let Some((first, rest)) = path.split_first() else { return get(text, path) };
    match index.member(text, first.as_ref()) {
        Ok(found) => get(found?, rest),
        Err(_) => get(text, path),
    }
}

/// The text of a JSON string. `quoted` must be one; anything else is given back as it is.
pub fn unquote(quoted: &str) -> Cow<'_, str> {
    if !quoted.starts_with('"') {
        return Cow::Borrowed(quoted);
    }
    let inner = &quoted[1..quoted.len() - 1];
    if inner.contains('\\') {
        // A lone surrogate is legal JSON but not valid text; it becomes the replacement character.
        serde_json::from_str::<String>(quoted)
            .map_or_else(|_| Cow::Owned(String::from_utf8_lossy(inner.as_bytes()).replace('\\', "\u{fffd}")), Cow::Owned)
    } else {
        Cow::Borrowed(inner)
    }
}

/// The text of a value if it is a string. Half a surrogate pair is legal JSON but not valid text.
pub fn as_text(value: &str) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str::<String>(value).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

/// JSON without line ends. Line ends can only be white space between tokens.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ").into() } else { text.into() }
}

/// Writes a JSON string, with quotes and escapes.
pub fn push_string(out: &mut String, text: &str) {
    out.push('"');
    let mut from = 0;
    loop {
        let at = skip_plain(text.as_bytes(), from);
        out.push_str(&text[from..at]);
        let Some(byte) = text.as_bytes().get(at) else { break };
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            // A control character: two digits are enough.
            _ => {
                out.push_str("\\u00");
                out.extend([byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0')));
            }
        }
        from = at + 1;
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_reach_members_and_items() {
        let text = r#" { "a" : { "b" : [ 1 , {"c\n":"x\"y"} , [] ] } , "n":null, "a\u0062":7 } "#;
        assert_eq!(get(text, &["a", "b", "0"]), Some("1"));
        assert_eq!(get(text, &["a", "b", "1", "c\n"]).map(unquote).as_deref(), Some("x\"y"));
        assert_eq!(get(text, &["a", "b", "3"]), None);
        assert_eq!(get(text, &["n"]), Some("null"));
        assert_eq!(get(text, &["ab"]), Some("7"));
        assert_eq!(get(text, &["n", "x"]), None);
    }

    #[test]
    fn a_key_is_what_it_reads_as() {
        let all = [r#""a""#, r#""\u0061""#, r#""\\""#, r#""\ud8d4""#, r#""a\ud8d4b""#, r#""""#, r#""\n""#];
        for quoted in all {
            assert!(key_is(quoted, &unquote(quoted)), "{quoted}");
            for other in all.iter().filter(|other| unquote(other) != unquote(quoted)) {
                assert!(!key_is(quoted, &unquote(other)), "{quoted} {other}");
            }
            assert_eq!(key_is(quoted, &quoted[1..quoted.len() - 1]), !quoted.contains('\\'), "{quoted}");
        }
    }

    #[test]
    fn half_a_surrogate_pair_is_no_text() {
        assert_eq!(as_text(r#""\ud83d\ude00""#).as_deref(), Some("😀"));
        assert_eq!(as_text(r#""a\ud83d""#), None);
        assert_eq!(as_text("1"), None);
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        assert_eq!(member(r#"{"a":1,"b":2,"a":3}"#, "a"), Some("3"));
    }

    #[test]
    fn deep_nesting_is_refused_before_anything_is_built() {
        let deep = "[".repeat(100_000);
        assert_eq!(Json::parse(deep.into()), Err(Error::TooDeep));
        assert!(Json::parse(format!("{}{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX)).into()).is_ok());
        assert!(Json::parse(format!("\"{}\"", "[".repeat(1000)).into()).is_ok());
    }

    #[test]
    fn broken_text_is_refused() {
        for text in ["", "{", "{\"a\":}", "[1,]", "nul", "\"\u{1}\"", "01", "{} {}", "{\"a\":1,}", "\"\\x\""] {
            assert!(matches!(Json::parse(text.into()), Err(Error::Syntax(_))), "{text}");
        }
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            ".{0,8}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                prop::collection::vec((".{0,4}", inner), 0..5).prop_map(|m| m.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn members_agree_with_a_real_parser(value in any_json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            prop_assert!(Json::parse(text.clone().into()).is_ok());
            if let Some(map) = value.as_object() {
                for (key, expected) in map {
                    let found: serde_json::Value = serde_json::from_str(member(&text, key).unwrap()).unwrap();
                    prop_assert_eq!(&found, expected);
                }
                prop_assert_eq!(members(&text).count(), map.len());
            }
            if let Some(list) = value.as_array() {
                let found: Vec<serde_json::Value> = items(&text).map(|t| serde_json::from_str(t).unwrap()).collect();
                prop_assert_eq!(&found, list);
            }
        }

        #[test]
        fn strings_are_written_as_they_are_read(text in "\\PC{0,40}|[\\x00-\\x7f]{0,40}") {
            let mut out = String::new();
            push_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text.clone());
            prop_assert_eq!(unquote(&out), text);
        }

        #[test]
        fn no_input_panics(text in "[\\[\\]{}\",:\\\\a1 ]{0,60}") {
            if let Ok(json) = Json::parse(text.into()) {
                prop_assert!(members(json.as_str()).count() + items(json.as_str()).count() <= json.as_str().len());
            }
        }
    }
}
