//! From a request's path to what is served there. Exact paths by hash, patterns in order.

use std::collections::HashMap;

use crate::model::pattern::Pattern;

/// Path parameters by name.
pub type Parameters = Vec<(Box<str>, Box<str>)>;

/// What is served on one listener.
#[derive(Debug)]
pub struct PathTable<T> {
    exact: HashMap<Box<str>, T>,
    patterns: Vec<(Pattern, T)>,
}

impl<T: Default> PathTable<T> {
    /// Nothing is served.
    pub fn new() -> Self {
        Self { exact: HashMap::new(), patterns: Vec::new() }
    }

    /// The entry of this path, made if it is not there. Patterns that differ only in their parameters' names are two entries;
    /// the configuration refuses them.
    pub fn entry(&mut self, path: &Pattern) -> &mut T {
        if path.is_exact() {
            return self.exact.entry(path.as_str().into()).or_default();
        }
        let at = self.patterns.iter().position(|(pattern, _)| pattern == path).unwrap_or_else(|| {
            self.patterns.push((path.clone(), T::default()));
            self.patterns.len() - 1
        });
        &mut self.patterns[at].1
    }

    /// What is served at a path, and its parameters, percent-decoded.
    pub fn find(&self, path: &str) -> Option<(&T, Parameters)> {
        if let Some(found) = self.exact.get(path) {
            return Some((found, Vec::new()));
        }
        self.patterns.iter().find_map(|(pattern, found)| {
            let values = pattern.matches(path)?;
            let decoded = pattern.captures().zip(values).map(|(name, value)| (name.into(), percent_decode(value).into())).collect();
            Some((found, decoded))
        })
    }
}

impl<T: Default> Default for PathTable<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Decodes `%XX`. Bytes that are not UTF-8 then become the replacement character; a broken escape stays as it is.
pub fn percent_decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The parameters of a query string: `a=1&b=x%20y+z`.
pub fn parse_query(query: &str) -> Parameters {
    form_urlencoded::parse(query.as_bytes()).map(|(name, value)| (name.into(), value.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_paths_come_before_patterns_and_parameters_are_decoded() {
        let mut table: PathTable<Vec<&str>> = PathTable::new();
        table.entry(&Pattern::path("/app/{key}").unwrap()).push("pattern");
        table.entry(&Pattern::path("/app/fixed").unwrap()).push("exact");
        assert_eq!(table.find("/app/fixed"), Some((&vec!["exact"], vec![])));
        assert_eq!(table.find("/app/a%2Fb"), Some((&vec!["pattern"], vec![("key".into(), "a/b".into())])));
        assert_eq!(table.find("/app"), None);
    }

    #[test]
    fn queries_are_decoded() {
        assert_eq!(
            parse_query("a=1&b=x%20y+z&c&=&%zz=%ff"),
            [("a", "1"), ("b", "x y z"), ("c", ""), ("", ""), ("%zz", "\u{fffd}")].map(|(a, b)| (a.into(), b.into()))
        );
    }
}
