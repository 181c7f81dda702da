//! Bytes on a connection and the messages in them. Pure: never waits, knows no socket and no routing.

pub mod codec;
pub mod wire;

use std::borrow::Cow;

use bytes::Bytes;
use bytestring::ByteString;

use crate::model::Json;
use crate::model::json::{self, Index};

/// One whole message as a transport carries it. Cheap to clone: receivers share the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Text.
    Text(ByteString),
    /// Bytes.
    Binary(Bytes),
}

impl Default for Frame {
    /// An empty text.
    fn default() -> Self {
        Self::Text(ByteString::new())
    }
}

impl Frame {
    /// Payload bytes.
    pub fn len(&self) -> usize {
        match self {
            Frame::Text(text) => text.len(),
            Frame::Binary(bytes) => bytes.len(),
        }
    }

    /// The payload as text; none where it is not UTF-8.
    pub fn text(&self) -> Option<&str> {
        match self {
            Frame::Text(text) => Some(text),
            Frame::Binary(bytes) => std::str::from_utf8(bytes).ok(),
        }
    }

    /// Whether there is no payload.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What selects a message's row: a string as it is, an integer as its digits.
pub fn message_kind<'m>(message: &'m Json, index: &Index, path: &[Box<str>]) -> Option<Cow<'m, str>> {
    let found = json::get_indexed(message.as_str(), index, path)?;
    json::as_text(found).or_else(|| found.parse::<i64>().ok().map(|n| n.to_string().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Codec;

    #[test]
    fn a_type_is_text_or_an_integer() {
        let kind = |text: &str, path: &[Box<str>]| {
            let (json, index) = Codec::default().decode(Frame::Text(text.into())).unwrap();
            let searched = message_kind(&json, &Index::default(), path);
            assert_eq!(message_kind(&json, &index, path), searched);
            searched.map(Cow::into_owned)
        };
        let path = ["type".into()];
        assert_eq!(kind(r#"{"type":"a\"b"}"#, &path).as_deref(), Some("a\"b"));
        assert_eq!(kind(r#"{"type":"x","type":"ab"}"#, &path).as_deref(), Some("ab"));
        assert_eq!(kind(r#"{"type":-3}"#, &path).as_deref(), Some("-3"));
        for text in [r#"{"type":1.5}"#, r#"{"type":null}"#, r#"{"type":{}}"#, "{}", "[1]", "3"] {
            assert_eq!(kind(text, &path), None, "{text}");
        }
        assert_eq!(kind("[0,\"x\"]", &["1".into()]).as_deref(), Some("x"));
    }
}
