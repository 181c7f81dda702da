//! Patterns over names: channel patterns with captures (`session:{id}`), globs (`file:*`), URL paths (`/app/{key}`).

use std::fmt;

/// A pattern of literal text and captures. A capture matches one or more characters, never the separator;
/// a last capture written `{name*}` matches whatever is left, separators too.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: Box<str>,
    separator: char,
    parts: Box<[Part]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Part {
    Literal(Box<str>),
    Capture(Box<str>),
    Rest(Box<str>),
}

/// How many captures a pattern may have. Parsing compares their names, and matching recurses.
pub const CAPTURES_MAX: usize = 32;

/// Why a text is not a valid pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `{` without `}` or the other way round.
    #[error("unbalanced brace")]
    Unbalanced,
    /// A capture needs a name of letters, digits and underscores.
    #[error("`{{{0}}}` is not a valid capture: write a name of letters, digits and `_` between the braces")]
    BadCapture(String),
    /// Two captures side by side cannot be told apart.
    #[error("two captures need literal text between them")]
    Adjacent,
    /// The same name twice.
    #[error("the capture `{0}` appears twice")]
    Twice(String),
    /// More than [`CAPTURES_MAX`].
    #[error("more than {CAPTURES_MAX} captures")]
    TooMany,
    /// `{name*}` before the end.
    #[error("`{{{0}*}}` matches all that is left, so it must come last")]
    RestNotLast(String),
    /// The text is empty.
    #[error("empty")]
    Empty,
}

impl Pattern {
    /// A channel pattern; its separator is `:`.
    pub fn channel(text: &str) -> Result<Self, Error> {
        Self::parse(text, ':')
    }

    /// A URL path pattern; its separator is `/`.
    pub fn path(text: &str) -> Result<Self, Error> {
        Self::parse(text, '/')
    }

    fn parse(text: &str, separator: char) -> Result<Self, Error> {
        let (mut parts, mut rest) = (Vec::new(), text);
        let mut names: Vec<&str> = Vec::new();
        while !rest.is_empty() {
            if matches!(parts.last(), Some(Part::Rest(_))) {
                return Err(Error::RestNotLast(names.last().copied().unwrap_or_default().into()));
            }
            if let Some(inner) = rest.strip_prefix('{') {
                let end = inner.find('}').ok_or(Error::Unbalanced)?;
                let (written, takes_rest) = (&inner[..end], inner[..end].ends_with('*'));
                let name = written.trim_end_matches('*');
                if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                    return Err(Error::BadCapture(written.into()));
                }
                if names.contains(&name) {
                    return Err(Error::Twice(name.into()));
                }
                if matches!(parts.last(), Some(Part::Capture(_))) {
                    return Err(Error::Adjacent);
                }
                if names.len() == CAPTURES_MAX {
                    return Err(Error::TooMany);
                }
                names.push(name);
                parts.push(if takes_rest { Part::Rest(name.into()) } else { Part::Capture(name.into()) });
                rest = &inner[end + 1..];
            } else {
                let end = rest.find('{').unwrap_or(rest.len());
                if rest[..end].contains('}') {
                    return Err(Error::Unbalanced);
                }
                parts.push(Part::Literal(rest[..end].into()));
                rest = &rest[end..];
            }
        }
        if parts.is_empty() {
            return Err(Error::Empty);
        }
        Ok(Self { text: text.into(), separator, parts: parts.into() })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it has no captures, so that it matches one name only.
    pub fn is_exact(&self) -> bool {
        self.parts.iter().all(|p| matches!(p, Part::Literal(_)))
    }

    /// How many characters of it are literal: of two patterns that match, the one with more is the more specific.
    pub fn literal_len(&self) -> usize {
        self.parts.iter().map(|p| if let Part::Literal(text) = p { text.len() } else { 0 }).sum()
    }

    /// The names of its captures, in order.
    pub fn captures(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|p| match p {
            Part::Literal(_) => None,
            Part::Capture(name) | Part::Rest(name) => Some(&**name),
        })
    }

    /// Matches a whole name. The captured texts come in order; `None` when it does not match.
    pub fn matches<'n>(&self, name: &'n str) -> Option<Vec<&'n str>> {
        let mut found = Vec::new();
        match_parts(&self.parts, name, self.separator, &mut |captured| found.push(captured)).then_some(found)
    }

    /// Whether it matches a whole name.
    pub fn is_match(&self, name: &str) -> bool {
        match_parts(&self.parts, name, self.separator, &mut |_| ())
    }

    /// The text before the first separator, if it is literal and so the same in every name that matches.
    pub fn first_segment(&self) -> Option<&str> {
        match self.parts.first() {
            Some(Part::Literal(text)) => text.split_once(self.separator).map(|(first, _)| first),
            _ => None,
        }
    }

    /// The name that results from putting one text into every capture.
    pub fn fill(&self, value: &str) -> String {
        self.parts.iter().map(|p| if let Part::Literal(text) = p { text } else { value }).collect()
    }
}

/// Captures stop at the separator and at the first place where the literal behind them fits, so this never backtracks more than
/// once per part.
fn match_parts<'n>(parts: &[Part], name: &'n str, separator: char, found: &mut impl FnMut(&'n str)) -> bool {
    let Some((part, after)) = parts.split_first() else { return name.is_empty() };
    match part {
        Part::Literal(text) => name.strip_prefix(&**text).is_some_and(|rest| match_parts(after, rest, separator, found)),
        Part::Rest(_) => {
            found(name);
            !name.is_empty()
        }
        Part::Capture(_) => {
            let reach = name.find(separator).unwrap_or(name.len());
            let end = match after.first() {
                None => reach,
                Some(Part::Literal(next)) => {
                    // One character at least is captured: the literal is looked for behind it.
                    let first = name.chars().next().map_or(0, char::len_utf8);
                    match name[first..].find(&**next) {
                        Some(i) if first + i <= reach => first + i,
                        _ => return false,
                    }
                }
                Some(_) => return false,
            };
            if end == 0 {
                return false;
            }
            found(&name[..end]);
            match_parts(after, &name[end..], separator, found)
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A glob: `*` matches any run of characters, everything else matches itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Glob(Box<str>);

impl Glob {
    /// Any text is a glob.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The glob as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a text holds a `*`.
    pub fn is_glob(text: &str) -> bool {
        text.contains('*')
    }

    /// Matches a whole name, in time proportional to both lengths multiplied at worst.
    pub fn matches(&self, name: &str) -> bool {
        let (glob, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut g, mut n, mut star) = (0, 0, None);
        while n < name.len() {
            if g < glob.len() && glob[g] == b'*' {
                star = Some((g, n));
                g += 1;
            } else if g < glob.len() && glob[g] == name[n] {
                g += 1;
                n += 1;
            } else if let Some((at, from)) = star {
                star = Some((at, from + 1));
                g = at + 1;
                n = from + 1;
            } else {
                return false;
            }
        }
        glob[g..].iter().all(|&b| b == b'*')
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn captures_stop_at_the_separator() {
        let pattern = Pattern::channel("room:{a}:{b}").unwrap();
        assert_eq!(pattern.matches("room:x:y"), Some(vec!["x", "y"]));
        assert_eq!(pattern.matches("room:x:y:z"), None);
        assert_eq!(pattern.matches("room::y"), None);
        assert_eq!(Pattern::channel("custom:{name*}").unwrap().matches("custom:a:b"), Some(vec!["a:b"]));
        assert_eq!(Pattern::path("/app/{key}/ws").unwrap().matches("/app/k1/ws"), Some(vec!["k1"]));
        assert_eq!(Pattern::path("/app/{key}").unwrap().matches("/app/a/b"), None);
        assert_eq!(Pattern::channel("v{n}-x").unwrap().matches("v12-x"), Some(vec!["12"]));
    }

    #[test]
    fn a_literal_that_overlaps_itself_is_found_behind_its_capture() {
        assert_eq!(Pattern::channel("{a}xx").unwrap().matches("xxx"), Some(vec!["x"]));
        assert_eq!(Pattern::channel("{a}-").unwrap().matches("--"), Some(vec!["-"]));
        assert_eq!(Pattern::channel("{a}ü").unwrap().matches("üü"), Some(vec!["ü"]));
    }

    #[test]
    fn bad_patterns_say_why() {
        assert_eq!(Pattern::channel(""), Err(Error::Empty));
        assert_eq!(Pattern::channel("a:{b"), Err(Error::Unbalanced));
        assert_eq!(Pattern::channel("a:b}"), Err(Error::Unbalanced));
        assert_eq!(Pattern::channel("a:{b}{c}"), Err(Error::Adjacent));
        assert_eq!(Pattern::channel("a:{b}:{b}"), Err(Error::Twice("b".into())));
        assert_eq!(Pattern::channel("a:{b*}:c"), Err(Error::RestNotLast("b".into())));
        assert_eq!(Pattern::channel("a:{b c}"), Err(Error::BadCapture("b c".into())));
    }

    #[test]
    fn a_hundred_thousand_captures_are_refused_at_once() {
        let text: String = (0..100_000).map(|i| format!("/{{a{i}}}")).collect();
        let start = std::time::Instant::now();
        assert_eq!(Pattern::path(&text), Err(Error::TooMany));
        assert!(start.elapsed() < std::time::Duration::from_secs(1));
    }

    #[test]
    fn globs() {
        for (glob, name, fits) in [
            ("session:*", "session:1", true),
            ("*", "", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b", "axc", false),
            ("file:*", "fil", false),
            ("ab", "ab", true),
        ] {
            assert_eq!(Glob::new(glob).matches(name), fits, "{glob} {name}");
        }
    }

    proptest! {
        #[test]
        fn names_begin_with_the_first_segment(text in "[ab:{}]{1,12}", name in "[ab:]{1,8}") {
            if let Ok(pattern) = Pattern::channel(&text) {
                prop_assert_eq!(pattern.is_match(&name), pattern.matches(&name).is_some());
                if let Some(first) = pattern.first_segment().filter(|_| pattern.is_match(&name)) {
                    prop_assert_eq!(name.split(':').next(), Some(first));
                }
            }
        }

        #[test]
        fn what_is_filled_in_comes_back(value in "[a-z0-9]{1,12}") {
            let pattern = Pattern::channel("x:{a}:y").unwrap();
            let name = pattern.fill(&value);
            prop_assert_eq!(pattern.matches(&name), Some(vec![&*value]));
        }

        #[test]
        fn a_glob_agrees_with_a_regular_expression(glob in "[ab*]{0,8}", name in "[ab]{0,10}") {
            let regex = regex::Regex::new(&format!("^{}$", glob.replace('*', ".*"))).unwrap();
            prop_assert_eq!(Glob::new(&glob).matches(&name), regex.is_match(&name));
        }

        #[test]
        fn no_pattern_panics(text in "[a{}:*_ ü]{0,20}", name in ".{0,20}") {
            if let Ok(pattern) = Pattern::channel(&text) { let _ = pattern.matches(&name); }
        }
    }
}
