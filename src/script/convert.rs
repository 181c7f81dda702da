//! JSON text to script values and back, without a tree in between. Knows neither engine nor host API.
//!
//! Integers stay integers (beyond 64 bits signed they become floats, as in JavaScript), the last of two equal keys counts, and
//! both ways are bounded in depth and size.

use std::cell::Cell;
use std::fmt;

use rhai::{Array, Dynamic, ImmutableString, Map};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::engine::{ARGUMENT_BYTES_MAX, ITEMS_MAX, MEMBERS_MAX, TEXT_BYTES_MAX};
use crate::model::Json;
use crate::model::json::{DEPTH_MAX, push_string};
use crate::telemetry::memory::thread_live_bytes;

/// Script values of a JSON text. The error says which bound of scripts the text exceeds.
pub(super) fn to_dynamic(json: &Json) -> Result<Dynamic, String> {
    parse(json.as_str())
}

/// Like [`to_dynamic`], for text nobody has checked.
pub(super) fn parse(text: &str) -> Result<Dynamic, String> {
    // Texts within a value add up for the engine's limit. A text with no more bytes than that needs no count of its own.
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!("larger than the {} KiB a script may hold", TEXT_BYTES_MAX / 1024));
    }
    read(text, DEPTH_MAX, &Room::new()).map_err(|e| e.to_string())
}

/// The value of one member of a checked object. `None`: it exceeds the bounds of scripts.
pub(super) fn member(text: &str, room: &Room) -> Option<Dynamic> {
    match text.as_bytes() {
        [b'"', plain @ .., b'"'] if !plain.contains(&b'\\') => Some(ImmutableString::from(&text[1..text.len() - 1]).into()),
        _ => read(text, DEPTH_MAX - 1, room).ok(),
    }
}

fn read(text: &str, depth: usize, room: &Room) -> serde_json::Result<Dynamic> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Seed { depth, room }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// How many more array items and object members one text may bring, and how much memory they may take.
pub(super) struct Room {
    items: Cell<usize>,
    members: Cell<usize>,
    /// Live bytes of the thread that must not be exceeded.
    bytes_end: isize,
}

impl Room {
    pub(super) fn new() -> Self {
        let bytes_end = thread_live_bytes() + ARGUMENT_BYTES_MAX;
        Self { items: Cell::new(ITEMS_MAX), members: Cell::new(MEMBERS_MAX), bytes_end }
    }

    fn take<E: Error>(&self, left: &Cell<usize>, max: usize, what: &str) -> Result<(), E> {
        if thread_live_bytes() > self.bytes_end {
            return Err(E::custom(too_much_memory()));
        }
        let Some(rest) = left.get().checked_sub(1) else {
            return Err(E::custom(format!("more than the {max} {what} a script may hold")));
        };
        left.set(rest);
        Ok(())
    }
}

/// The message for values that take too much memory.
pub(super) fn too_much_memory() -> String {
    format!("more than the {} MiB of memory that a script's arguments may take", ARGUMENT_BYTES_MAX >> 20)
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    depth: usize,
    room: &'a Room,
}

impl Seed<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| E::custom(format!("nested deeper than {DEPTH_MAX} levels")))?;
        Ok(Self { depth, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Dynamic;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Dynamic, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Dynamic;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Dynamic, E> {
        Ok(Dynamic::UNIT)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Dynamic, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Dynamic, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Dynamic, E> {
        Ok(i64::try_from(value).map_or_else(|_| Dynamic::from_float(value as f64), Dynamic::from_int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Dynamic, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Dynamic, E> {
        Ok(ImmutableString::from(value).into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dynamic, A::Error> {
        let seed = self.deeper()?;
        let mut array = Array::new();
        while let Some(item) = seq.next_element_seed(seed)? {
            self.room.take(&self.room.items, ITEMS_MAX, "array items")?;
            array.push(item);
        }
        Ok(Dynamic::from_array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Dynamic, A::Error> {
        let seed = self.deeper()?;
        let mut map = Map::new();
        while let Some(key) = members.next_key_seed(Key)? {
            self.room.take(&self.room.members, MEMBERS_MAX, "object members")?;
            map.insert(key, members.next_value_seed(seed)?);
        }
        // The general way builds a new map.
        Ok(Dynamic::from_map(map))
    }
}

/// A key goes straight into the engine's small string.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = rhai::Identifier;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<rhai::Identifier, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = rhai::Identifier;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, value: &str) -> Result<rhai::Identifier, E> {
        Ok(value.into())
    }
}

/// JSON of a script value, at most `bytes_max` long. The error names the place within the value: `data.when is not JSON: …`.
pub(super) fn to_json(value: &Dynamic, bytes_max: usize) -> Result<Json, String> {
    let mut out = String::new();
    write(&mut out, value, DEPTH_MAX, bytes_max).map_err(Flaw::into_text)?;
    if out.len() > bytes_max {
        return Err(too_large(bytes_max));
    }
    // Kept for long, perhaps, and counted by its length.
    out.shrink_to_fit();
    Ok(Json::trusted(out))
}

/// Appends the value of a member of an object, likewise.
pub(super) fn write_member(out: &mut String, name: &str, value: &Dynamic, bytes_max: usize) -> Result<(), String> {
    write(out, value, DEPTH_MAX - 1, bytes_max).map_err(|flaw| flaw.below(format!(".{name}")).into_text())
}

/// What cannot be written, with the path to it from the inside out.
struct Flaw {
    path: Vec<String>,
    why: String,
}

impl Flaw {
    fn new(why: impl Into<String>) -> Self {
        Self { path: Vec::new(), why: why.into() }
    }

    fn below(mut self, step: String) -> Self {
        self.path.push(step);
        self
    }

    fn into_text(self) -> String {
        let path: String = self.path.iter().rev().map(String::as_str).collect();
        let path = path.strip_prefix('.').unwrap_or(&path);
        if path.is_empty() { self.why } else { format!("`{path}`: {}", self.why) }
    }
}

fn write(out: &mut String, value: &Dynamic, depth: usize, bytes_max: usize) -> Result<(), Flaw> {
    if out.len() > bytes_max {
        return Err(Flaw::new(too_large(bytes_max)));
    }
    if value.is_unit() {
        out.push_str("null");
    } else if let Ok(value) = value.as_bool() {
        out.push_str(if value { "true" } else { "false" });
    } else if let Ok(value) = value.as_int() {
        push_display(out, value);
    } else if let Ok(value) = value.as_float() {
        let number = serde_json::Number::from_f64(value).ok_or_else(|| Flaw::new(format!("{value} is not JSON")))?;
        push_display(out, number);
    } else if let Ok(text) = value.as_immutable_string_ref() {
        push_string(out, &text);
    } else if let Ok(value) = value.as_char() {
        push_string(out, value.encode_utf8(&mut [0; 4]));
    } else if let Ok(array) = value.as_array_ref() {
        let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
        out.push('[');
        for (i, item) in array.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            write(out, item, depth, bytes_max).map_err(|flaw| flaw.below(format!("[{i}]")))?;
        }
        out.push(']');
    } else if let Ok(map) = value.as_map_ref() {
        let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
        out.push('{');
        for (i, (key, item)) in map.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            push_string(out, key);
            out.push(':');
            write(out, item, depth, bytes_max).map_err(|flaw| flaw.below(format!(".{key}")))?;
        }
        out.push('}');
    } else {
        return Err(Flaw::new(format!("{} is not JSON", kind(value))));
    }
    Ok(())
}

/// The message for a value with more JSON than this.
pub(super) fn too_large(bytes_max: usize) -> String {
    format!("more than {} KiB of JSON", bytes_max / 1024)
}

fn too_deep() -> Flaw {
    Flaw::new(format!("nested deeper than {DEPTH_MAX} levels"))
}

fn push_display(out: &mut String, value: impl fmt::Display) {
    use fmt::Write;
    // Writing to a String does not fail.
    write!(out, "{value}").unwrap_or_default();
}

/// The name, for people, of a value that JSON does not have.
fn kind(value: &Dynamic) -> &str {
    match value.type_name() {
        "Fn" => "a function",
        name if name.ends_with("::Conn") => "a connection",
        name if name.ends_with("::HostError") => "an error",
        name if name.contains("Range") => "a range",
        name => name.rsplit("::").next().unwrap_or(name),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            (-1e300..1e300f64).prop_map(Into::into),
            "\\PC{0,30}|[\\x00-\\x7f]{0,8}".prop_map(Into::into),
        ];
        leaf.prop_recursive(5, 60, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::vec((".{0,5}", inner), 0..6).prop_map(|m| m.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(value in any_json()) {
            let json = Json::of(&value);
            let back = to_json(&to_dynamic(&json).unwrap(), usize::MAX).unwrap();
            prop_assert_eq!(back.to_value().unwrap(), value);
        }

        #[test]
        fn no_text_panics(text in "[\\[\\]{}\",:\\\\u0-9eE.a+-]{0,60}") {
            if let Ok(value) = parse(&text) {
                prop_assert!(Json::parse(to_json(&value, usize::MAX).unwrap().shared()).is_ok());
            }
        }
    }

    #[test]
    fn both_ways_are_bounded() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(&nested(DEPTH_MAX)).is_ok());
        assert!(parse(&nested(DEPTH_MAX + 1)).unwrap_err().contains("nested deeper"));
        let deep = (0..DEPTH_MAX + 1).fold(Dynamic::UNIT, |inner, _| Dynamic::from_array(vec![inner]));
        assert!(to_json(&deep, usize::MAX).unwrap_err().contains("nested deeper"));
        let members: Vec<String> = (0..=MEMBERS_MAX).map(|i| format!("\"{i}\":0")).collect();
        assert!(parse(&format!("{{{}}}", members.join(","))).is_err());
        let wide = Dynamic::from_array(vec!["x".repeat(100).into(); 100]);
        assert!(to_json(&wide, 5000).unwrap_err().contains("KiB of JSON"));
        assert!(to_json(&"\u{1}".repeat(1000).into(), 5000).unwrap_err().contains("KiB of JSON"));
        assert!(parse("1 2").is_err());
    }
}
