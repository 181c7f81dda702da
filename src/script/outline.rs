//! Plugins as people compare them: their hashes, and the texts of their functions. Knows nothing of the routes file.

use std::collections::BTreeMap;

use rhai::{AST, Position};

use super::program::Program;
use super::run::Scripts;
use crate::config::PluginOutline;

impl Scripts {
    /// Every plugin that has a file.
    pub fn outlines(&self) -> Vec<PluginOutline> {
        self.programs().filter_map(outline).collect()
    }
}

fn outline(program: &Program) -> Option<PluginOutline> {
    program.sources.contains_key(&program.name).then(|| PluginOutline {
        name: program.name.clone(),
        file: program.file.clone(),
        hash: program.hash.clone(),
        functions: program.definitions.clone(),
    })
}

/// The parameters and the body of each function. Those that have one name and differ in their parameters stand behind each other.
pub(super) fn definitions(ast: &AST, text: &str) -> BTreeMap<Box<str>, Box<str>> {
    let mut found: BTreeMap<Box<str>, String> = BTreeMap::new();
    let mut definitions: Vec<_> = ast.iter_fn_def().filter(|function| !function.name.starts_with("anon$")).collect();
    definitions.sort_by_key(|function| function.body.start_position());
    let starts = starts(text);
    for function in definitions {
        let place = |position| place(text, &starts, position);
        let Some((from, to)) = place(function.body.start_position()).zip(place(function.body.end_position())) else { continue };
        let body = text.get(from..to).unwrap_or_default();
        let private = if function.access.is_private() { "private " } else { "" };
        let one = format!("{private}({}) {body}\n", function.params.join(", "));
        found.entry(function.name.as_str().into()).or_default().push_str(&one);
    }
    found.into_iter().map(|(name, text)| (name, text.into())).collect()
}

/// Where lines begin, in bytes.
fn starts(text: &str) -> Vec<usize> {
    std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect()
}

/// The place of a position in a text: its bytes before the character there.
fn place(text: &str, starts: &[usize], position: Position) -> Option<usize> {
    let start = *starts.get(position.line()?.checked_sub(1)?)?;
    let column = position.position()?.checked_sub(1)?;
    Some(start + text[start..].chars().take(column).map(char::len_utf8).sum::<usize>())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::engine;
    use super::super::program::{Imports, parse};
    use super::*;

    #[test]
    fn a_function_is_what_stands_in_its_braces() {
        let text = "const A = 1; // ä\nfn f(a) { a + 1 }\n\n// About g.\nprivate fn g() {\n  let x = [1].map(|n| n);\n  `ü${x}}`\n}\nfn f(a, b) { \"ö\" }\nfn none() {}";
        let engine = engine::new(Imports::new(Arc::default()));
        let functions = |text: &str| definitions(&parse(&engine, text).unwrap(), text);
        let found = functions(text);
        let found: Vec<(&str, &str)> = found.iter().map(|(name, text)| (&**name, &**text)).collect();
        assert_eq!(
            found,
            [
                ("f", "(a) { a + 1 \n(a, b) { \"ö\" \n"),
                ("g", "private () {\n  let x = [1].map(|n| n);\n  `ü${x}}`\n\n"),
                ("none", "() {\n"),
            ]
        );
        let moved = functions(&text.replace("About g.", "About\n// g, that is."));
        assert_eq!(moved["g"], functions(text)["g"]);
    }
}
