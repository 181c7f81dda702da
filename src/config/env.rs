//! `${NAME}` and `${NAME:-default}` inside one text value. Knows nothing of YAML; what comes out is text and stays text.

/// Reads one variable of the environment.
pub(super) type Env<'e> = &'e dyn Fn(&str) -> Option<String>;

/// A text with its variables filled in, or why not. `$${` is a literal `${`. As in a shell, a default also stands in for an
/// empty variable.
pub(super) fn substitute(text: &str, env: Env<'_>) -> Result<Option<String>, String> {
    if !text.contains("${") {
        return Ok(None);
    }
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at]);
            out.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let inner = &rest[at + 2..];
        let end = inner.find('}').ok_or("`${` without `}`; a literal `${` is written `$${`")?;
        let (name, default) = inner[..end].split_once(":-").map_or((&inner[..end], None), |(name, default)| (name, Some(default)));
        if !is_name(name) {
            return Err(format!("`{name}` is not a valid name of an environment variable; a literal `${{` is written `$${{`"));
        }
        let value = env(name).filter(|value| default.is_none() || !value.is_empty());
        match (value, default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => return Err(format!("the environment variable `{name}` is not set; `${{{name}:-…}}` gives a default")),
        }
        rest = &inner[end + 1..];
    }
    out.push_str(rest);
    Ok(Some(out))
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "A" => Some("a}${B}".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn filled(text: &str) -> String {
        substitute(text, &env).unwrap().unwrap_or_else(|| text.into())
    }

    #[test]
    fn variables_are_filled_in_once() {
        assert_eq!(filled("x${A}y${B:-b}"), "xa}${B}yb");
        assert_eq!(filled("${EMPTY}|${EMPTY:-d}|${B:-}|${B:-:-}"), "|d||:-");
        assert_eq!(filled("$${A} $.x {$now} $"), "${A} $.x {$now} $");
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(substitute("${B}", &env).unwrap_err().contains("`B` is not set"));
        assert!(substitute("${B", &env).unwrap_err().contains("without"));
        assert!(substitute("${a b}", &env).unwrap_err().contains("not a valid name"));
    }

    proptest! {
        #[test]
        fn text_without_variables_is_untouched(text in "[^$]{0,40}") {
            prop_assert_eq!(substitute(&text, &env), Ok(None));
        }

        #[test]
        fn no_text_panics(text in "[${}:\\-A B]{0,30}") {
            drop(substitute(&text, &env));
        }
    }
}
