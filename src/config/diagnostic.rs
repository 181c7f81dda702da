//! What a person reads if a file is not valid: what is wrong, where, why, and what to do. Only renders; checks nothing.

use std::collections::HashMap;
use std::sync::Arc;

use super::plan::SourceSpan;

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable code: `R012` for routes files, `S003` for scripts. The README lists them.
    pub code: &'static str,
    /// Where. None: the file as a whole, or no file at all.
    pub at: Option<SourceSpan>,
    /// What happened.
    pub message: String,
    /// What to do, or a similar name. Shown after the caret.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// A diagnostic at a place.
    pub fn new(code: &'static str, at: SourceSpan, message: impl Into<String>) -> Self {
        Self { code, at: Some(at), message: message.into(), hint: None }
    }

    /// A diagnostic about no place in particular.
    pub fn placeless(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, at: None, message: message.into(), hint: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// One line, for logs: `routes.yaml:14:9 error[R012] unknown channel …`.
    pub fn line(&self) -> String {
        let at = self.at.as_ref().map_or_else(|| "tramline".to_owned(), |span| span.location.to_string());
        format!("{at} error[{}] {}", self.code, self.message)
    }
}

/// The texts diagnostics point into, by file name.
pub type Files = HashMap<Arc<str>, Arc<str>>;

/// All diagnostics as text, in the order of their places, with the line each is about.
pub fn render(diagnostics: &[Diagnostic], files: &Files) -> String {
    let mut out = String::new();
    for diagnostic in sorted(diagnostics) {
        render_one(diagnostic, files, &mut out);
    }
    out
}

/// How many different diagnostics [`render`] shows.
pub fn distinct(diagnostics: &[Diagnostic]) -> usize {
    sorted(diagnostics).len()
}

fn sorted(diagnostics: &[Diagnostic]) -> Vec<&Diagnostic> {
    let mut sorted: Vec<&Diagnostic> = diagnostics.iter().collect();
    sorted.sort_by(|a, b| (a.at.as_ref().map(|s| &s.location), a.code).cmp(&(b.at.as_ref().map(|s| &s.location), b.code)));
    sorted.dedup();
    sorted
}

fn render_one(diagnostic: &Diagnostic, files: &Files, out: &mut String) {
    out.push_str(&format!("{}\n", diagnostic.line()));
    let Some(span) = &diagnostic.at else {
        if let Some(hint) = &diagnostic.hint {
            out.push_str(&format!("  = {hint}\n"));
        }
        return;
    };
    let number = span.location.line.to_string();
    let line =
        files.get(&span.location.file).and_then(|text| text.lines().nth((span.location.line as usize).saturating_sub(1))).unwrap_or("");
    // A long line is cut around the place, so that the caret stays under it.
    const WIDTH: usize = 120;
    let column = (span.location.column as usize).saturating_sub(1);
    let skip = if column > WIDTH - 40 { column - 40 } else { 0 };
    let shown: String = line.chars().skip(skip).take(WIDTH).map(|c| if c == '\t' { ' ' } else { c }).collect();
    let carets = (span.len as usize).min(shown.chars().count().saturating_sub(column - skip)).max(1);
    out.push_str(&format!("  {number} | {shown}\n"));
    let hint = diagnostic.hint.as_deref().map_or_else(String::new, |hint| format!(" {hint}"));
    let (margin, indent) = (" ".repeat(number.len()), " ".repeat(column - skip));
    out.push_str(&format!("  {margin} | {indent}{}{hint}\n", "^".repeat(carets)));
}
