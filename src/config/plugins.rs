//! Finds and reads plugin files. `script` checks their contents.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::codes;
use super::diagnostic::{Diagnostic, Files};
use super::fields::Collected;
use super::files;
use super::plan::{PluginSource, Plugins};
use crate::model::PluginName;

/// The largest plugin.
const BYTES_MAX: usize = 256 << 10;
/// The most plugins.
const FILES_MAX: usize = 256;

/// Whether a text is a plugin's name.
pub(super) fn is_plugin(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Reads every `NAME.rhai` in a folder that need not be there. `shown` is how the folder is called in diagnostics.
pub(super) fn read(all: &Collected, folder: &Path, shown: &str, texts: &mut Files) -> Plugins {
    let mut plugins = Plugins { folder: folder.to_owned(), ..Plugins::default() };
    let names = names(folder);
    all.inputs.borrow_mut().folder(folder, names.as_ref().ok().cloned());
    let mut names = match names {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return plugins,
        Err(e) => {
            all.report(Diagnostic::placeless(codes::PLUGIN, format!("cannot read the folder {shown}: {e}")));
            return plugins;
        }
    };
    if names.len() > FILES_MAX {
        all.report(Diagnostic::placeless(codes::PLUGIN, format!("{} plugins in {shown}; at most {FILES_MAX} are allowed", names.len())));
        names.truncate(FILES_MAX);
    }
    for file_name in names {
        let file: Arc<str> = format!("{shown}/{file_name}").into();
        match one(all, folder, &file_name) {
            Ok((name, text)) => {
                let text: Arc<str> = text.into();
                texts.insert(file.clone(), text.clone());
                plugins.sources.insert(name.clone(), PluginSource { name, file, text });
            }
            Err(why) => all.report(Diagnostic::placeless(codes::PLUGIN, format!("{file}: {why}"))),
        }
    }
    plugins
}

/// The names of the plugin files in a folder, in order.
pub(super) fn names(folder: &Path) -> io::Result<Vec<String>> {
    let names = std::fs::read_dir(folder)?.filter_map(|file| file.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".rhai") && !name.starts_with('.')).collect();
    names.sort();
    Ok(names)
}

fn one(all: &Collected, folder: &Path, file_name: &str) -> Result<(PluginName, String), String> {
    let name = file_name.trim_end_matches(".rhai");
    if !is_plugin(name) {
        return Err(format!("`{name}` is not a valid plugin name: lower-case letters, digits and `_`, at most 64"));
    }
    all.inputs.borrow_mut().look(&folder.join(file_name));
    let path = files::below(folder, Path::new(file_name)).map_err(|e| e.to_string())?;
    let text = files::read(&path, BYTES_MAX).map_err(|e| e.to_string())?;
    Ok((name.into(), text))
}
