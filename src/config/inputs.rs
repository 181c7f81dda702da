//! The files that a configuration was read from, and their content: enough to see whether anything is different now. Knows
//! neither what the files mean nor when to look again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{files, plugins};

/// The largest file that is compared completely; no reader accepts a larger one. Of a longer file only the beginning counts.
const COMPARED_BYTES: u64 = 2 << 20;

/// SHA-256.
pub(super) type Hash = [u8; 32];

/// The files of a configuration, including those that were looked for and did not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs {
    /// The routes file, with its whole path.
    main: PathBuf,
    files: BTreeMap<PathBuf, Content>,
    /// The folder of the plugins and the names of those in it. `None`: it cannot be read.
    plugins: Option<(PathBuf, Option<Vec<String>>)>,
}

/// The content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Hash(Hash),
    /// It does not exist or cannot be read.
    Unreadable,
    /// A pipe or a device, which cannot be read twice, or a folder.
    NotAFile,
}

impl Content {
    /// What is in a file now.
    pub(super) fn of(path: &Path) -> Self {
        let read = || -> io::Result<Self> {
            // Before it is opened: opening a pipe waits.
            if !std::fs::metadata(path)?.is_file() {
                return Ok(Self::NotAFile);
            }
            let mut bytes = Vec::new();
            File::open(path)?.take(COMPARED_BYTES).read_to_end(&mut bytes)?;
            Ok(Self::Hash(Sha256::digest(&bytes).into()))
        };
        read().unwrap_or(Self::Unreadable)
    }
}

impl Inputs {
    /// Stores which file is the routes file.
    pub(super) fn begin(&mut self, main: &Path) {
        self.main = std::path::absolute(main).unwrap_or_else(|_| main.to_owned());
    }

    /// The routes file, with its whole path; links are not followed.
    pub fn main(&self) -> &Path {
        &self.main
    }

    /// Stores what was read from a file.
    pub(super) fn keep(&mut self, path: &Path, read: &Result<String, files::Error>) {
        let content = match read {
            Ok(text) if path.is_file() => Content::Hash(Sha256::digest(text).into()),
            _ => Content::of(path),
        };
        self.files.insert(path.to_owned(), content);
    }

    /// Stores what is in a file that is about to be read.
    pub fn look(&mut self, path: &Path) {
        self.files.entry(path.to_owned()).or_insert_with(|| Content::of(path));
    }

    /// Stores which plugins a folder has.
    pub(super) fn folder(&mut self, folder: &Path, names: Option<Vec<String>>) {
        self.plugins = Some((folder.to_owned(), names));
    }

    pub(super) fn content(&self, path: &Path) -> Option<Content> {
        self.files.get(path).copied()
    }

    /// The files, as the configuration names them, in order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// The folder in which each `NAME.rhai` is one of the files.
    pub fn plugin_folder(&self) -> Option<&Path> {
        self.plugins.as_ref().map(|(folder, _)| folder.as_path())
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.plugins.is_none()
    }

    /// Some of them.
    #[must_use]
    pub fn only<'a>(&self, paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let files = paths.into_iter().filter_map(|path| Some((path.to_owned(), self.content(path)?))).collect();
        Self { main: self.main.clone(), files, plugins: None }
    }

    /// All of them and others. Of a file that both have, what these say of it counts.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        for (path, content) in others.files {
            self.files.entry(path).or_insert(content);
        }
        self
    }

    /// Reads everything again and returns the first file that is different, if any is.
    pub fn changed(&self) -> Option<&Path> {
        let listed = |(folder, names): &(PathBuf, Option<Vec<String>>)| plugins::names(folder).ok() == *names;
        let folder = self.plugins.as_ref().filter(|folder| !listed(folder)).map(|(folder, _)| folder);
        folder
            .or_else(|| self.files.iter().find(|(path, content)| Content::of(path) != **content).map(|(path, _)| path))
            .map(|path| &**path)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Loaded, load};
    use super::*;

    fn read(folder: &Path) -> Loaded {
        load(&folder.join("routes.yaml"), &|_| None)
    }

    #[test]
    fn whatever_was_read_or_missed_is_compared() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        write("routes.yaml", "version: 1\ninclude: [more.yaml, missing.yaml]\napi: { tls: { cert: a.crt, key: a.key } }\n");
        write("more.yaml", "channels: { a: {} }\n");
        let same = |loaded: &Loaded| loaded.inputs.changed().is_none();
        let must_change = |what: &str, change: &dyn Fn()| {
            let before = read(folder);
            assert!(same(&before), "before {what}");
            change();
            assert!(!same(&before), "{what}");
        };
        must_change("the file itself", &|| write("routes.yaml", &(fs::read_to_string(folder.join("routes.yaml")).unwrap() + "# more\n")));
        must_change("an included file", &|| write("more.yaml", "channels: { b: {} }\n"));
        must_change("an included file that was not there", &|| write("missing.yaml", ""));
        must_change("a certificate that was not there", &|| write("a.crt", "x"));
        must_change("a key that was not there", &|| write("a.key", "x"));
        must_change("the folder of plugins", &|| fs::create_dir(folder.join("plugins")).unwrap());
        must_change("a plugin more", &|| write("plugins/a.rhai", "fn a() {}"));
        must_change("another text of a plugin", &|| write("plugins/a.rhai", "fn b() {}"));
        must_change("a plugin less", &|| fs::remove_file(folder.join("plugins/a.rhai")).unwrap());
        let before = read(folder);
        write("plugins/notes.txt", "no plugin");
        write("more.yaml", "channels: { b: {} }\n");
        assert!(same(&before), "neither is a change");
        must_change("the file itself away", &|| fs::remove_file(folder.join("routes.yaml")).unwrap());
        assert_eq!(read(folder).inputs.files().collect::<Vec<_>>(), [folder.join("routes.yaml")]);
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(Content::of(&pipe), Content::NotAFile);
        assert_eq!(Content::of(folder.path()), Content::NotAFile);
    }
}
