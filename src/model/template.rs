//! Templates: JSON with references in it (`$.sessionId`, `"session:{$query.id}"`), compiled when the file is read and
//! written straight to text when a message passes.
//!
//! One rule covers absence everywhere: a missing value drops its key (or its array item); `null` stays `null`; a text with
//! a missing part is missing as a whole. If a spread makes a key appear twice, the later one counts.

mod reference;
mod text;
mod value;

use std::cell::Cell;

use crate::model::{Json, json};

pub use reference::{Error, Reference, Root};
pub use text::Text;
pub use value::Value;

thread_local! {
    /// A buffer for texts whose length is not known before they are written.
    static BUFFER: Cell<String> = const { Cell::new(String::new()) };
}

/// A buffer that has grown larger than this is freed.
const BUFFER_BYTES: usize = 64 << 10;

/// A compiled template.
#[derive(Clone, Debug, PartialEq)]
pub enum Template {
    /// Constant JSON, encoded.
    Constant(Box<str>),
    /// A reference: the value with its JSON type.
    Value(Reference),
    /// Text with references in it: a JSON string.
    Text(Text),
    /// An array. Missing items are left out.
    Array(Vec<Template>),
    /// An object.
    Object(Vec<Entry>),
    /// `!json`: the subtree as a JSON string.
    Encoded(Box<Template>),
}

/// One entry of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A key and its value.
    Field(Key, Template),
    /// `"...": …`: all members of another object.
    Spread(Template),
}

/// A key, encoded once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    text: Box<str>,
    /// With quotes and a colon.
    encoded: Box<str>,
}

impl Key {
    /// With quotes.
    fn quoted(&self) -> &str {
        &self.encoded[..self.encoded.len() - 1]
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        let mut encoded = String::with_capacity(text.len() + 3);
        json::push_string(&mut encoded, text);
        encoded.push(':');
        Self { text: text.into(), encoded: encoded.into() }
    }
}

impl std::ops::Deref for Key {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// What references resolve against.
pub trait Scope {
    /// The value of a reference. It must be [`Value::Missing`] for a root this scope does not have.
    fn resolve<'a>(&'a self, reference: &'a Reference) -> Value<'a>;

    /// An estimate of the bytes that a template over this scope produces.
    fn bytes_likely(&self) -> usize {
        128
    }
}

impl Template {
    /// A constant.
    pub fn constant(value: &serde_json::Value) -> Self {
        Template::Constant(value.to_string().into())
    }

    /// The whole as JSON text; `None` where it is missing.
    pub fn render(&self, scope: &dyn Scope) -> Option<String> {
        let mut out = String::with_capacity(scope.bytes_likely());
        let written = self.write(scope, &mut out);
        // Queued messages are counted by their length.
        if out.capacity() > 2 * out.len() + 128 {
            out.shrink_to_fit();
        }
        written.then_some(out)
    }

    /// The whole as JSON text with no spare room, so that sharing it takes nothing more; `None` where it is missing.
    pub fn json(&self, scope: &dyn Scope) -> Option<Json> {
        let mut out = BUFFER.take();
        let written = self.write(scope, &mut out).then(|| Json::trusted(&*out));
        if out.capacity() <= BUFFER_BYTES {
            out.clear();
            BUFFER.set(out);
        }
        written
    }

    /// Appends the value; `false`, with nothing appended, where it is missing.
    fn write(&self, scope: &dyn Scope, out: &mut String) -> bool {
        match self {
            Template::Constant(text) => out.push_str(text),
            Template::Value(reference) => match scope.resolve(reference) {
                Value::Missing => return false,
                Value::Json(text) => out.push_str(&text),
                Value::Text(text) => json::push_string(out, &text),
                Value::Int(n) => out.push_str(&n.to_string()),
            },
            Template::Text(text) => match text.render(scope) {
                None => return false,
                Some(text) => json::push_string(out, &text),
            },
            Template::Array(items) => {
                out.push('[');
                for item in items {
                    separated(out, '[', |out| item.write(scope, out));
                }
                out.push(']');
            }
            Template::Object(entries) => write_object(entries, scope, out),
            Template::Encoded(inner) => match inner.render(scope) {
                None => return false,
                Some(text) => json::push_string(out, &text),
            },
        }
        true
    }

    /// Every reference in it.
    pub fn references(&self) -> Vec<&Reference> {
        let mut found = Vec::new();
        self.collect(&mut found);
        found
    }

    fn collect<'t>(&'t self, found: &mut Vec<&'t Reference>) {
        match self {
            Template::Constant(_) => {}
            Template::Value(reference) => found.push(reference),
            Template::Text(text) => found.extend(text.references()),
            Template::Array(items) => items.iter().for_each(|item| item.collect(found)),
            Template::Object(entries) => entries.iter().for_each(|entry| match entry {
                Entry::Field(_, value) | Entry::Spread(value) => value.collect(found),
            }),
            Template::Encoded(inner) => inner.collect(found),
        }
    }
}

/// Writes a comma if one is needed, then what `write` writes; removes the comma if that is nothing.
fn separated(out: &mut String, open: char, write: impl FnOnce(&mut String) -> bool) {
    let before = out.len();
    if !out.ends_with(open) {
        out.push(',');
    }
    if !write(out) {
        out.truncate(before);
    }
}

fn write_object(entries: &[Entry], scope: &dyn Scope, out: &mut String) {
    // Without a spread no key appears twice, and every value goes straight to the output.
    if !entries.iter().any(|e| matches!(e, Entry::Spread(_))) {
        let start = out.len();
        out.push('{');
        for entry in entries {
            if let Entry::Field(key, value) = entry {
                let before = out.len();
                if before > start + 1 {
                    out.push(',');
                }
                out.push_str(&key.encoded);
                if !value.write(scope, out) {
                    out.truncate(before);
                }
            }
        }
        out.push('}');
        return;
    }
    let rendered: Vec<Option<String>> = entries
        .iter()
        .map(|entry| match entry {
            Entry::Field(_, value) | Entry::Spread(value) => value.render(scope),
        })
        .collect();
    let stands_later = |from: usize, quoted: &str| {
        entries.iter().zip(&rendered).skip(from + 1).any(|(entry, text)| match (entry, text) {
            (Entry::Field(key, _), Some(_)) => json::key_is(quoted, key),
            (Entry::Spread(_), Some(text)) => json::members(text).any(|(k, _)| k == quoted || json::unquote(k) == json::unquote(quoted)),
            (_, None) => false,
        })
    };
    let start = out.len();
    out.push('{');
    let mut push = |quoted: &str, value: &str| {
        if out.len() > start + 1 {
            out.push(',');
        }
        out.push_str(quoted);
        out.push(':');
        out.push_str(value);
    };
    for (i, (entry, text)) in entries.iter().zip(&rendered).enumerate() {
        match (entry, text) {
            (_, None) => {}
            (Entry::Field(key, _), Some(text)) => {
                if !stands_later(i, key.quoted()) {
                    push(key.quoted(), text);
                }
            }
            (Entry::Spread(_), Some(text)) => {
                for (quoted, value) in json::members(text) {
                    if !stands_later(i, quoted) {
                        push(quoted, value);
                    }
                }
            }
        }
    }
    out.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Message(&'static str);

    impl Scope for Message {
        fn resolve<'a>(&'a self, reference: &'a Reference) -> Value<'a> {
            match reference.root {
                Root::Message => Value::below(Some(self.0), &reference.path),
                Root::NowMs => Value::Int(7),
                Root::Type => Value::Text("a\"b".into()),
                _ => Value::Missing,
            }
        }
    }

    fn field(key: &str, value: Template) -> Entry {
        Entry::Field(key.into(), value)
    }

    fn value(text: &str) -> Template {
        Template::Value(Reference::parse(text).unwrap())
    }

    fn text(text: &str) -> Template {
        Template::Text(Text::parse(text).unwrap())
    }

    #[test]
    fn values_keep_their_type_and_missing_ones_drop_their_key() {
        let template = Template::Object(vec![
            field("a", value("$.n")),
            field("gone", value("$.x.y")),
            field("null", value("$.null")),
            field("t", value("$type")),
            field("ms", value("$now_ms")),
            field("list", Template::Array(vec![value("$.x"), value("$.n"), value("$.x"), value("$.o")])),
        ]);
        assert_eq!(
            template.render(&Message(r#"{"n":1.50,"null":null,"o":{"k":[1]}}"#)).unwrap(),
            r#"{"a":1.50,"null":null,"t":"a\"b","ms":7,"list":[1.50,{"k":[1]}]}"#
        );
    }

    #[test]
    fn a_text_with_a_missing_part_is_missing() {
        assert_eq!(text("session:{$.id}").render(&Message(r#"{"id":"s 1"}"#)).unwrap(), r#""session:s 1""#);
        assert_eq!(text("session:{$.id}").render(&Message("{}")), None);
        assert_eq!(text("session:{$.id}").render(&Message(r#"{"id":null}"#)), None);
        assert_eq!(text("{{{$.id}}}").render(&Message(r#"{"id":5}"#)).unwrap(), r#""{5}""#);
        assert_eq!(text("$$now").render(&Message("{}")).unwrap(), r#""$now""#);
    }

    #[test]
    fn of_equal_keys_the_later_one_counts() {
        let spread = || Entry::Spread(value("$.d"));
        let message = Message(r#"{"d":{"a":1,"t":2}}"#);
        let constant = || Template::Constant("9".into());
        assert_eq!(Template::Object(vec![field("t", constant()), spread()]).render(&message).unwrap(), r#"{"a":1,"t":2}"#);
        assert_eq!(Template::Object(vec![spread(), field("t", constant())]).render(&message).unwrap(), r#"{"a":1,"t":9}"#);
        assert_eq!(Template::Object(vec![spread(), field("t", value("$.none"))]).render(&message).unwrap(), r#"{"a":1,"t":2}"#);
        assert_eq!(Template::Object(vec![spread(), spread()]).render(&message).unwrap(), r#"{"a":1,"t":2}"#);
        assert_eq!(Template::Object(vec![Entry::Spread(value("$.none")), field("k", constant())]).render(&message).unwrap(), r#"{"k":9}"#);
    }

    #[test]
    fn encoded_is_a_string_of_json() {
        let template = Template::Encoded(Box::new(Template::Object(vec![field("a", value("$.d"))])));
        assert_eq!(template.render(&Message(r#"{"d":"x"}"#)).unwrap(), r#""{\"a\":\"x\"}""#);
    }

    #[test]
    fn wrong_references_say_why() {
        assert_eq!(Reference::parse("$nmae"), Err(Error::UnknownRoot("nmae".into())));
        assert!(matches!(Reference::parse("$conn.nmae"), Err(Error::UnknownField { .. })));
        assert!(matches!(Reference::parse("$now.x"), Err(Error::Shape(_))));
        assert!(matches!(Reference::parse("$conn"), Err(Error::Shape(_))));
        assert!(matches!(Reference::parse("$.a..b"), Err(Error::Shape(_))));
        assert_eq!(Text::parse("a {b} c"), Err(Error::NotAReference("b".into())));
        assert_eq!(Text::parse("a {$.b"), Err(Error::OpenBrace));
        assert!(Reference::parse("$").unwrap().path.is_empty());
    }
}
