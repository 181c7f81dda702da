//! What a reference comes to, and how that reads as text and as JSON. Knows no scope.

use std::borrow::Cow;

use crate::model::json;

/// Something a reference resolved to.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Nothing there.
    Missing,
    /// JSON text.
    Json(Cow<'a, str>),
    /// Text, not yet encoded.
    Text(Cow<'a, str>),
    /// A whole number.
    Int(i64),
}

impl<'a> Value<'a> {
    /// Text that may not be there.
    pub fn text(value: Option<&'a str>) -> Self {
        value.map_or(Value::Missing, |text| Value::Text(Cow::Borrowed(text)))
    }

    /// JSON text that may not be there.
    pub fn json(value: Option<&'a str>) -> Self {
        value.map_or(Value::Missing, |text| Value::Json(Cow::Borrowed(text)))
    }

    /// The value at a path below JSON text that may not be there.
    pub fn below(value: Option<&'a str>, path: &[Box<str>]) -> Self {
        Self::json(value.and_then(|text| json::get(text, path)))
    }

    pub(super) fn into_text(self) -> Option<Cow<'a, str>> {
        match self {
            Value::Missing => None,
            Value::Json(text) if text == "null" => None,
            Value::Json(Cow::Borrowed(text)) if text.starts_with('"') => json::as_text(text),
            Value::Json(Cow::Owned(text)) if text.starts_with('"') => json::as_text(&text).map(|text| Cow::Owned(text.into_owned())),
            Value::Json(text) | Value::Text(text) => Some(text),
            Value::Int(n) => Some(Cow::Owned(n.to_string())),
        }
    }

    /// The value as JSON text; `None` where it is missing.
    pub fn into_json(self) -> Option<Cow<'a, str>> {
        match self {
            Value::Missing => None,
            Value::Json(text) => Some(text),
            Value::Text(text) => {
                let mut out = String::with_capacity(text.len() + 2);
                json::push_string(&mut out, &text);
                Some(Cow::Owned(out))
            }
            Value::Int(n) => Some(Cow::Owned(n.to_string())),
        }
    }
}
