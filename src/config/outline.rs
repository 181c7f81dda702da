//! A configuration as people compare it: every value by its path, with its place in the files, after environment variables and
//! merges have been applied. Knows which values are secret, because the readers said so, and nothing else of their meaning.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::inputs::{Content, Hash, Inputs};
use super::node::{Node, Yaml, number_to_json};
use super::plan::Secret;
use crate::model::{PluginName, SourceLocation};

/// Keys of the main file that say how it is read, not what it sets.
const OF_THE_READER: [&str; 2] = ["version", "include"];

/// A whole configuration, by the names of its sections.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outline {
    pub(super) sections: BTreeMap<Box<str>, Part>,
}

/// One value.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) at: At,
    pub(super) is: Is,
}

/// The place of a value is not part of the value.
impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        self.is == other.is
    }
}

/// The place of something.
#[derive(Debug, Clone)]
pub(super) enum At {
    Location(SourceLocation),
    /// A file as a whole.
    File(Arc<str>),
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Location(location) => location.fmt(f),
            Self::File(file) => file.fmt(f),
        }
    }
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Is {
    /// Neither a list nor a map.
    Value(Value),
    List(Vec<Part>),
    /// In the order of the file, which counts: it is the order of members in what is sent.
    Map(Vec<(Box<str>, Part)>),
    /// As JSON.
    Secret(Secret),
    Plugin(PluginOutline),
    /// What is in a file.
    File(Hash),
}

/// A plugin, as the scripts know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginOutline {
    /// Its name.
    pub name: PluginName,
    /// Its file as users see it.
    pub file: Arc<str>,
    /// The hash of its text and of everything it imports, in hexadecimal.
    pub hash: String,
    /// The texts of its functions, by name; those with the same name are joined.
    pub functions: BTreeMap<Box<str>, Box<str>>,
}

impl Outline {
    /// Adds the sections of a file. If an earlier file has the same section, its entries come first.
    pub(super) fn add(&mut self, tree: &Node, secrets: &HashSet<SourceLocation>) {
        let Yaml::Map(entries) = &tree.value else { return };
        for entry in entries.iter().filter(|entry| !OF_THE_READER.contains(&&*entry.key)) {
            let part = Part { at: At::Location(entry.key_span.location.clone()), is: is(&entry.value, secrets) };
            match (self.sections.get_mut(&entry.key).map(|part| &mut part.is), part.is) {
                (Some(Is::Map(all)), Is::Map(more)) => all.extend(more),
                (_, is) => {
                    self.sections.insert(entry.key.clone(), Part { at: part.at, is });
                }
            }
        }
    }

    /// Adds files whose content counts but is not text of the configuration: certificates and keys.
    pub(super) fn add_files<'a>(&mut self, files: impl IntoIterator<Item = (&'a Path, Option<Content>)>) {
        let parts = files.into_iter().filter_map(|(path, content)| {
            let name = path.to_string_lossy();
            let Some(Content::Hash(hash)) = content else { return None };
            Some((name.as_ref().into(), Part { at: At::File(name.as_ref().into()), is: Is::File(hash) }))
        });
        let parts: BTreeMap<Box<str>, Part> = parts.collect();
        self.put("files", parts.into_iter().collect());
    }

    /// The same with its plugins.
    #[must_use]
    pub fn with_plugins(mut self, plugins: impl IntoIterator<Item = PluginOutline>) -> Self {
        let part = |plugin: PluginOutline| Part { at: At::File(plugin.file.clone()), is: Is::Plugin(plugin) };
        self.put("plugins", plugins.into_iter().map(|plugin| ((*plugin.name).into(), part(plugin))).collect());
        self
    }

    /// The same with what is in files now, of those that it has.
    pub fn renew_files(&mut self, inputs: &Inputs) {
        let Some(Is::Map(files)) = self.sections.get_mut("files").map(|part| &mut part.is) else { return };
        for (name, part) in files {
            if let Some(Content::Hash(hash)) = inputs.content(Path::new(&**name)) {
                part.is = Is::File(hash);
            }
        }
    }

    fn put(&mut self, section: &str, parts: Vec<(Box<str>, Part)>) {
        if !parts.is_empty() {
            self.sections.insert(section.into(), Part { at: At::File(section.into()), is: Is::Map(parts) });
        }
    }

    /// SHA-256 of everything, in hexadecimal. Secrets are left out: the hash is shown, and a short secret could be found from
    /// it.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for (name, part) in &self.sections {
            text(name, &mut hash);
            add(part, &mut hash);
        }
        format!("{:x}", hash.finalize())
    }
}

impl Part {
    /// As JSON for people, without secrets.
    pub(super) fn shown(&self) -> Value {
        match &self.is {
            Is::Value(value) => value.clone(),
            Is::List(items) => items.iter().map(Self::shown).collect(),
            Is::Map(entries) => entries.iter().map(|(key, part)| (key.to_string(), part.shown())).collect::<Map<_, _>>().into(),
            Is::Secret(_) => json!("(secret)"),
            Is::Plugin(plugin) => json!(plugin.hash),
            Is::File(hash) => json!(hex(hash)),
        }
    }
}

pub(super) fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is(node: &Node, secrets: &HashSet<SourceLocation>) -> Is {
    if secrets.contains(&node.span.location) {
        return Is::Secret(Secret(plain(node).shown().to_string().into()));
    }
    match &node.value {
        Yaml::List(items) => Is::List(items.iter().map(|item| part(item, secrets)).collect()),
        Yaml::Map(entries) => Is::Map(
            entries
                .iter()
                .map(|entry| (entry.key.clone(), Part { at: At::Location(entry.key_span.location.clone()), is: is(&entry.value, secrets) }))
                .collect(),
        ),
        Yaml::Encoded(node) => Is::Map(vec![("!json".into(), part(node, secrets))]),
        Yaml::Null | Yaml::Broken => Is::Value(Value::Null),
        Yaml::Bool(is) => Is::Value((*is).into()),
        Yaml::Number(number) => Is::Value(number_to_json(number).unwrap_or_else(|| number.to_string().into())),
        Yaml::Text(text) => Is::Value(text.as_str().into()),
    }
}

fn part(node: &Node, secrets: &HashSet<SourceLocation>) -> Part {
    Part { at: At::Location(node.span.location.clone()), is: is(node, secrets) }
}

/// The value itself, although it may be a secret.
fn plain(node: &Node) -> Part {
    part(node, &HashSet::new())
}

/// Adds a text with its length, so that different lists of texts never look the same.
fn text(text: &str, hash: &mut Sha256) {
    hash.update((text.len() as u64).to_be_bytes());
    hash.update(text);
}

fn add(part: &Part, hash: &mut Sha256) {
    let mut begin = |kind: u8, count: usize| {
        hash.update([kind]);
        hash.update((count as u64).to_be_bytes());
    };
    match &part.is {
        Is::Value(value) => {
            begin(0, 1);
            text(&value.to_string(), hash);
        }
        Is::List(items) => {
            begin(1, items.len());
            items.iter().for_each(|item| add(item, hash));
        }
        Is::Map(entries) => {
            begin(2, entries.len());
            for (key, part) in entries {
                text(key, hash);
                add(part, hash);
            }
        }
        Is::Secret(_) => begin(3, 0),
        Is::Plugin(plugin) => {
            begin(4, 1);
            text(&plugin.hash, hash);
        }
        Is::File(content) => {
            begin(5, 1);
            hash.update(content);
        }
    }
}
