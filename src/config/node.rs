//! A value of a file together with its position: serde_yaml gives the value, [`super::positions`] the position.
//! Environment variables are filled in here, and merge keys (`<<`) resolved. Knows nothing of what a file means.

use std::sync::Arc;

use serde_yaml::Value;

use super::codes;
use super::diagnostic::Diagnostic;
use super::env::{self, Env};
use super::plan::SourceSpan;
use super::positions::{Cost, Kind, Positions};
use crate::model::SourceLocation;

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) span: SourceSpan,
    pub(super) value: Yaml,
}

#[derive(Debug, Clone)]
pub(super) enum Yaml {
    Null,
    Bool(bool),
    Number(serde_yaml::Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// `!json`
    Encoded(Box<Node>),
    /// A value that was already reported. Readers treat it as valid.
    Broken,
}

/// One entry of a map.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: Box<str>,
    pub(super) key_span: SourceSpan,
    pub(super) value: Node,
}

impl Node {
    /// Reads a text into a tree, with broken values at the places of reported flaws; or says why there is no tree.
    /// Bounds are checked before serde_yaml builds anything.
    pub(super) fn read(text: &str, file: &Arc<str>, env: Env<'_>, total: &mut Cost) -> Result<(Self, Vec<Diagnostic>), Vec<Diagnostic>> {
        let positions = Positions::of(text, file, total)?;
        let start = SourceSpan { location: SourceLocation { file: file.clone(), line: 1, column: 1 }, len: 1 };
        let Some(root) = positions.root() else { return Ok((Self { span: start, value: Yaml::Null }, Vec::new())) };
        let value: Value = serde_yaml::from_str(text).map_err(|e| {
            let at = e.location().map_or(start.clone(), |at| {
                let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).max(1);
                SourceSpan { location: SourceLocation { file: file.clone(), line: number(at.line()), column: number(at.column()) }, len: 1 }
            });
            vec![Diagnostic::new(codes::SYNTAX, at, format!("not YAML: {e}"))]
        })?;
        let mut join = Join { positions: &positions, env, flaws: Vec::new() };
        let node = join.node(value, root.span.clone(), &root.kind);
        Ok((node, join.flaws))
    }

    /// What a person calls this kind of value.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Yaml::Null => "nothing",
            Yaml::Bool(_) => "true or false",
            Yaml::Number(_) => "a number",
            Yaml::Text(_) => "text",
            Yaml::List(_) => "a list",
            Yaml::Map(_) => "a map",
            Yaml::Encoded(_) => "a value with `!json`",
            Yaml::Broken => "a broken value",
        }
    }

    /// Nothing, or text that is empty (what an unset `${NAME:-}` leaves), or broken.
    pub(super) fn is_empty(&self) -> bool {
        match &self.value {
            Yaml::Null | Yaml::Broken => true,
            Yaml::Text(text) => text.is_empty(),
            _ => false,
        }
    }

    /// The text, if it is one.
    pub(super) fn as_text(&self) -> Option<&str> {
        if let Yaml::Text(text) = &self.value { Some(text) } else { None }
    }

    /// The value as JSON. The error is the place of a `!json` or of a number that JSON cannot represent.
    pub(super) fn to_json(&self) -> Result<serde_json::Value, SourceSpan> {
        use serde_json::Value as Json;
        Ok(match &self.value {
            Yaml::Null | Yaml::Broken => Json::Null,
            Yaml::Bool(is) => Json::Bool(*is),
            Yaml::Number(number) => number_to_json(number).ok_or_else(|| self.span.clone())?,
            Yaml::Text(text) => Json::String(text.clone()),
            Yaml::List(items) => Json::Array(items.iter().map(Node::to_json).collect::<Result<_, _>>()?),
            Yaml::Map(entries) => {
                let entries = entries.iter().map(|entry| Ok((entry.key.to_string(), entry.value.to_json()?)));
                Json::Object(entries.collect::<Result<_, SourceSpan>>()?)
            }
            Yaml::Encoded(_) => return Err(self.span.clone()),
        })
    }

    /// The value at the end of a JSON Pointer, or as far towards it as there is one.
    pub(super) fn at_pointer(&self, pointer: &str) -> &Node {
        let mut node = self;
        for step in pointer.split('/').skip(1) {
            let Some(next) = node.step(&step.replace("~1", "/").replace("~0", "~")) else { break };
            node = next;
        }
        node
    }

    fn step(&self, step: &str) -> Option<&Node> {
        match &self.value {
            Yaml::List(items) => items.get(step.parse::<usize>().ok()?),
            Yaml::Map(entries) => entries.iter().find(|entry| &*entry.key == step).map(|entry| &entry.value),
            _ => None,
        }
    }
}

/// A YAML number as JSON; infinities and NaN have none.
pub(super) fn number_to_json(number: &serde_yaml::Number) -> Option<serde_json::Value> {
    let whole = number.as_i64().map(serde_json::Value::from).or_else(|| number.as_u64().map(serde_json::Value::from));
    whole.or_else(|| serde_json::Number::from_f64(number.as_f64()?).map(serde_json::Value::Number))
}

struct Join<'a> {
    positions: &'a Positions,
    env: Env<'a>,
    flaws: Vec<Diagnostic>,
}

impl Join<'_> {
    fn node(&mut self, value: Value, span: SourceSpan, kind: &Kind) -> Node {
        let value = match (value, kind) {
            (Value::Null, Kind::Scalar) => Yaml::Null,
            (Value::Bool(is), Kind::Scalar) => Yaml::Bool(is),
            (Value::Number(number), Kind::Scalar) => Yaml::Number(number),
            (Value::String(text), Kind::Scalar) => self.text(text, &span),
            (Value::Sequence(items), Kind::List(spots)) if items.len() == spots.len() => {
                Yaml::List(items.into_iter().zip(spots).map(|(item, spot)| self.at(item, *spot)).collect())
            }
            (Value::Mapping(entries), Kind::Map(spots)) if entries.len() == spots.len() => {
                let entries = entries.into_iter().zip(spots).map(|((_, value), (key, key_span, spot))| Entry {
                    key: key.clone(),
                    key_span: key_span.clone(),
                    value: self.at(value, *spot),
                });
                let entries = entries.collect();
                Yaml::Map(self.merged(entries))
            }
            (Value::Tagged(tagged), kind) if tagged.tag == "json" => Yaml::Encoded(Box::new(self.node(tagged.value, span.clone(), kind))),
            (Value::Tagged(tagged), _) => {
                self.flaw(codes::TYPE, &span, format!("the tag `{}` is not known; the only tag is `!json`", tagged.tag));
                Yaml::Broken
            }
            // The two parsers follow different versions of YAML. Where they disagree, so would people.
            _ => {
                self.flaw(codes::SYNTAX, &span, "this can be read in two ways; put quotes around it");
                Yaml::Broken
            }
        };
        Node { span, value }
    }

    fn at(&mut self, value: Value, spot: usize) -> Node {
        let positions = self.positions;
        let (span, kind) = positions.get(spot);
        self.node(value, span.clone(), kind)
    }

    fn text(&mut self, text: String, span: &SourceSpan) -> Yaml {
        match env::substitute(&text, self.env) {
            Ok(filled) => Yaml::Text(filled.unwrap_or(text)),
            Err(why) => {
                self.flaw(codes::ENVIRONMENT, span, why);
                Yaml::Broken
            }
        }
    }

    /// Resolves `<<: *map` and `<<: [*one, *two]`: keys of the map itself win, then those of the first merged map.
    fn merged(&mut self, mut entries: Vec<Entry>) -> Vec<Entry> {
        let Some(at) = entries.iter().position(|entry| &*entry.key == "<<") else { return entries };
        let merge = entries.remove(at);
        let sources = match merge.value.value {
            Yaml::List(items) => items,
            _ => vec![merge.value],
        };
        for source in sources {
            match source.value {
                Yaml::Map(more) => {
                    for entry in more {
                        if !entries.iter().any(|own| own.key == entry.key) {
                            entries.push(entry);
                        }
                    }
                }
                _ => self.flaw(codes::TYPE, &source.span, "`<<` must be a map or a list of maps"),
            }
        }
        entries
    }

    fn flaw(&mut self, code: &'static str, span: &SourceSpan, message: impl Into<String>) {
        self.flaws.push(Diagnostic::new(code, span.clone(), message));
    }
}
