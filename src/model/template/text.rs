//! Text with references in it: `session:{$query.id}`.

use std::borrow::Cow;

use super::{Error, Reference, Scope};

/// Text with references in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Text(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Literal(Box<str>),
    Value(Reference),
}

impl Text {
    /// Parses text with `{$…}` in it. `{{` and `}}` are literal braces. A text that is one reference (`$.x`) is that value as text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if Reference::is_meant(text) {
            return Ok(Self(vec![Part::Value(Reference::parse(text)?)]));
        }
        // `$$` at the start is a literal dollar.
        let mut rest = if text.starts_with("$$") { &text[1..] } else { text };
        let (mut parts, mut literal) = (Vec::new(), String::new());
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..at + 1];
            let after = &rest[at + 1..];
            if after.starts_with(brace) {
                literal.push_str(brace);
                rest = &after[1..];
            } else if brace == "}" {
                literal.push('}');
                rest = after;
            } else {
                let end = after.find('}').ok_or(Error::OpenBrace)?;
                if !after.starts_with('$') {
                    return Err(Error::NotAReference(after[..end].into()));
                }
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal).into()));
                }
                parts.push(Part::Value(Reference::parse(&after[..end])?));
                rest = &after[end + 1..];
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() || parts.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Self(parts))
    }

    /// A text without references.
    pub fn constant(text: &str) -> Self {
        Self(vec![Part::Literal(text.into())])
    }

    /// The text where it has no references.
    pub fn as_constant(&self) -> Option<&str> {
        match &*self.0 {
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The text as it was written, for people.
    pub fn source(&self) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Literal(text) => text.to_string(),
                Part::Value(reference) if self.0.len() == 1 => reference.to_string(),
                Part::Value(reference) => format!("{{{reference}}}"),
            })
            .collect()
    }

    /// Whether this character was written, rather than put in by a reference.
    pub fn is_written(&self, c: char) -> bool {
        self.0.iter().any(|part| matches!(part, Part::Literal(text) if text.contains(c)))
    }

    /// The text up to its first reference.
    pub fn literal_prefix(&self) -> &str {
        match self.0.first() {
            Some(Part::Literal(text)) => text,
            _ => "",
        }
    }

    /// Its references.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.0.iter().filter_map(|p| if let Part::Value(r) = p { Some(r) } else { None })
    }

    /// The text with its references resolved; `None` where one is missing or `null`.
    pub fn render<'a>(&'a self, scope: &'a dyn Scope) -> Option<Cow<'a, str>> {
        if let [part] = &*self.0 {
            return match part {
                Part::Literal(text) => Some(Cow::Borrowed(text)),
                Part::Value(reference) => scope.resolve(reference).into_text(),
            };
        }
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Value(reference) => out.push_str(&scope.resolve(reference).into_text()?),
            }
        }
        Some(Cow::Owned(out))
    }
}
