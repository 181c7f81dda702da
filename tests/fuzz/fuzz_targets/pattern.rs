//! Patterns and globs agree with matchers that are as plain as can be. Input: pattern, name and glob, one a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tramline::model::pattern::{Glob, Pattern};

fuzz_target!(|text: &str| {
    let mut lines = text.splitn(3, '\n');
    let (written, name, glob) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    for (pattern, separator) in [(Pattern::channel(written), ':'), (Pattern::path(written), '/')] {
        if let Ok(pattern) = pattern {
            check(&pattern, name, separator);
        }
    }
    let (glob_bytes, name_bytes) = (&glob.as_bytes()[..glob.len().min(60)], &name.as_bytes()[..name.len().min(60)]);
    if let (Ok(glob), Ok(name)) = (std::str::from_utf8(glob_bytes), std::str::from_utf8(name_bytes)) {
        assert_eq!(Glob::new(glob).matches(name), glob_matches(glob_bytes, name_bytes));
        assert_eq!(Glob::is_glob(glob), glob.contains('*'));
    }
});

fn check(pattern: &Pattern, name: &str, separator: char) {
    let parts = parts(pattern.as_str());
    assert_eq!(pattern.captures().count(), parts.iter().filter(|part| !matches!(part, Part::Literal(_))).count());
    assert_eq!(pattern.is_exact(), pattern.captures().next().is_none());
    let found = pattern.matches(name);
    assert_eq!(found, naive(&parts, name, separator));
    if pattern.is_exact() {
        assert_eq!(found.is_some(), name == pattern.as_str());
    }
    if let Some(values) = found {
        // What was captured, put back, is the name.
        let mut values = values.into_iter();
        let back: String =
            parts.iter().map(|part| if let Part::Literal(text) = part { text } else { values.next().unwrap_or("") }).collect();
        assert_eq!(back, name);
    }
    // A name without anything that stands in the pattern is captured as it is.
    if !name.is_empty() && !name.contains(separator) && name.chars().all(|c| !pattern.as_str().contains(c)) {
        assert!(pattern.matches(&pattern.fill(name)).is_some_and(|values| values.iter().all(|value| *value == name)));
    }
}

enum Part<'a> {
    Literal(&'a str),
    Capture,
    Rest,
}

/// The parts of a pattern that was taken.
fn parts(mut text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    while !text.is_empty() {
        let end =
            if text.starts_with('{') { text.find('}').map_or(text.len(), |end| end + 1) } else { text.find('{').unwrap_or(text.len()) };
        let (part, rest) = text.split_at(end);
        parts.push(if !part.starts_with('{') {
            Part::Literal(part)
        } else if part.ends_with("*}") {
            Part::Rest
        } else {
            Part::Capture
        });
        text = rest;
    }
    parts
}

/// A capture ends at the first place where what follows it stands.
fn naive<'n>(parts: &[Part<'_>], name: &'n str, separator: char) -> Option<Vec<&'n str>> {
    let (mut found, mut rest) = (Vec::new(), name);
    for (i, part) in parts.iter().enumerate() {
        let end = match (part, parts.get(i + 1)) {
            (Part::Literal(text), _) if rest.starts_with(text) => text.len(),
            (Part::Literal(_), _) => return None,
            (Part::Rest, _) | (Part::Capture, None) => rest.len(),
            (Part::Capture, Some(Part::Literal(next))) => {
                (1..rest.len()).find(|&end| rest.is_char_boundary(end) && rest[end..].starts_with(next))?
            }
            (Part::Capture, Some(_)) => return None,
        };
        if !matches!(part, Part::Literal(_)) {
            if end == 0 || (matches!(part, Part::Capture) && rest[..end].contains(separator)) {
                return None;
            }
            found.push(&rest[..end]);
        }
        rest = &rest[end..];
    }
    rest.is_empty().then_some(found)
}

/// `fits[g][n]`: the glob from `g` on matches the name from `n` on.
fn glob_matches(glob: &[u8], name: &[u8]) -> bool {
    let mut fits = vec![vec![false; name.len() + 2]; glob.len() + 1];
    fits[glob.len()][name.len()] = true;
    for g in (0..glob.len()).rev() {
        for n in (0..=name.len()).rev() {
            fits[g][n] =
                if glob[g] == b'*' { fits[g + 1][n] || fits[g][n + 1] } else { name.get(n) == Some(&glob[g]) && fits[g + 1][n + 1] };
        }
    }
    fits[0][0]
}
