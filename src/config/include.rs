//! The files of a configuration: the main one and what it includes, each read once into a tree. Knows `include`, nothing else.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::codes;
use super::diagnostic::{Diagnostic, Files};
use super::env::Env;
use super::fields::Collected;
use super::files;
use super::node::{Node, Yaml};
use super::positions::Cost;
use super::values;

/// The largest file.
const BYTES_MAX: usize = 1 << 20;
/// How many files one configuration may include.
const FILES_MAX: usize = 64;
/// How deep files may include files.
const DEPTH_MAX: usize = 8;

/// Reads a configuration's files. The main one comes first; what could not be read is reported and left out.
pub(super) struct Reader<'a> {
    pub(super) all: &'a Collected,
    pub(super) env: Env<'a>,
    /// The folder of the main file.
    pub(super) folder: &'a Path,
    pub(super) texts: &'a mut Files,
    cost: Cost,
    seen: HashSet<PathBuf>,
    open: Vec<PathBuf>,
    trees: Vec<Node>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(all: &'a Collected, env: Env<'a>, folder: &'a Path, texts: &'a mut Files) -> Self {
        Self { all, env, folder, texts, cost: Cost::default(), seen: HashSet::new(), open: Vec::new(), trees: Vec::new() }
    }

    /// Reads the main file and what it includes.
    pub(super) fn read(mut self, main: &Path) -> Vec<Node> {
        let shown: Arc<str> = main.to_string_lossy().into();
        let read = files::read(main, BYTES_MAX);
        self.all.inputs.borrow_mut().keep(main, &read);
        match read {
            Ok(text) => {
                let path = main.canonicalize().unwrap_or_else(|_| main.to_owned());
                self.seen.insert(path.clone());
                self.tree(path, Path::new(""), shown, text);
            }
            Err(why) => {
                let diagnostic = Diagnostic::placeless(codes::FILE, format!("{shown}: {why}"));
                self.all.report(match why {
                    files::Error::Io(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        diagnostic.hint("run tramline in the folder of the routes file, or name the file: `--config FILE`")
                    }
                    _ => diagnostic,
                });
            }
        }
        self.trees
    }

    fn tree(&mut self, path: PathBuf, relative: &Path, shown: Arc<str>, text: String) {
        let read = Node::read(&text, &shown, self.env, &mut self.cost);
        self.texts.insert(shown, text.into());
        let tree = match read {
            Ok((tree, flaws)) => {
                flaws.into_iter().for_each(|flaw| self.all.report(flaw));
                tree
            }
            Err(flaws) => {
                flaws.into_iter().for_each(|flaw| self.all.report(flaw));
                self.incomplete();
                return;
            }
        };
        let include = match &tree.value {
            Yaml::Map(entries) => entries.iter().find(|entry| &*entry.key == "include").map(|entry| entry.value.clone()),
            _ => None,
        };
        self.trees.push(tree);
        self.open.push(path);
        let names = include.map_or(Some(Vec::new()), |node| values::list(self.all, &node));
        if names.is_none() {
            self.incomplete();
        }
        for (name, at) in names.unwrap_or_default() {
            if let Err(why) = self.include(relative, &name) {
                self.incomplete();
                self.all.report(Diagnostic::new(codes::INCLUDE, at, format!("`{name}` cannot be included: {why}")));
            }
        }
        self.open.pop();
    }

    /// A file that was not read may have declared anything.
    fn incomplete(&self) {
        self.all.channels_uncertain.set(true);
        self.all.names_uncertain.set(true);
    }

    fn include(&mut self, from: &Path, name: &str) -> Result<(), String> {
        let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !plain {
            return Err("it must be a path below the folder of the main file, without `..`".into());
        }
        let relative: PathBuf =
            from.parent().unwrap_or(Path::new("")).join(name).components().filter(|c| *c != Component::CurDir).collect();
        let named = self.folder.join(&relative);
        self.all.inputs.borrow_mut().look(&named);
        let path =
            files::below(if self.folder == Path::new("") { Path::new(".") } else { self.folder }, &relative).map_err(|e| e.to_string())?;
        if self.open.contains(&path) {
            return Err("it includes itself".into());
        }
        if self.open.len() >= DEPTH_MAX || self.seen.len() > FILES_MAX {
            return Err(format!("at most {FILES_MAX} files can be included, at most {DEPTH_MAX} deep"));
        }
        if !self.seen.insert(path.clone()) {
            return Err("it is already included".into());
        }
        let text = files::read(&path, BYTES_MAX).map_err(|e| e.to_string())?;
        let shown = named.to_string_lossy().into();
        self.tree(path, &relative, shown, text);
        Ok(())
    }
}
