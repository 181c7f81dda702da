//! Reports when the files of a configuration are no longer what was read. It watches the folder of every name on the way to each
//! file, following links, so that it sees a changed link, a file renamed over another, and a folder that comes back. It knows
//! nothing of what is in the files.
//!
//! An event only means "look": whether anything is different is found by comparing the files with what was read. So neither a
//! lost event nor a superfluous one does harm, as long as there is one after the last change.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use crate::config::Inputs;
use crate::telemetry::memory;

/// Changes that follow each other this closely count as one.
const QUIET: Duration = Duration::from_millis(100);
/// The files are looked at after this even if they still change.
const UNREST_MAX: Duration = Duration::from_millis(500);
/// How many links a path may lead through, as on Linux.
const LINKS_MAX: usize = 40;

/// The files of the configuration in use, watched.
pub struct Watcher {
    inputs: Arc<Inputs>,
    kernel: Option<RecommendedWatcher>,
    /// One is enough: it says that something happened, not what.
    signal: Sender<()>,
    signals: Receiver<()>,
    /// Whether something may have changed since the files were last compared.
    stirred: bool,
}

impl Default for Watcher {
    fn default() -> Self {
        let (signal, signals) = channel(1);
        Self { inputs: Arc::default(), kernel: None, signal, signals, stirred: false }
    }
}

impl Watcher {
    /// Watches what a configuration was read from, instead of what was watched before. Changes between the reading and now are
    /// found too. On an error, what was watched before is still watched.
    pub async fn follow(&mut self, inputs: Inputs) -> notify::Result<()> {
        let inputs = Arc::new(inputs);
        if inputs.is_empty() {
            (self.kernel, self.inputs, self.stirred) = (None, inputs, false);
            return Ok(());
        }
        let (kernel, changed) = look(inputs.clone(), self.signal.clone()).await;
        self.kernel = Some(kernel?);
        self.inputs = inputs;
        self.stirred = changed;
        Ok(())
    }

    /// Waits until something is different from what was read, and no longer changes. Can be dropped and called again.
    pub async fn changed(&mut self) {
        loop {
            if !self.stirred {
                // It is never closed: a sender is in `self`.
                self.signals.recv().await;
                self.stirred = true;
            }
            settle(&mut self.signals).await;
            // Watched again, because the system forgets folders that are removed, and links may lead elsewhere now.
            let (kernel, changed) = look(self.inputs.clone(), self.signal.clone()).await;
            match kernel {
                Ok(kernel) => self.kernel = Some(kernel),
                Err(error) => {
                    tracing::warn!(%error, "cannot watch the configuration's files: changes may be missed until a reload is requested");
                }
            }
            self.stirred = false;
            if changed {
                return;
            }
        }
    }
}

/// Begins to watch, then says whether anything is different: in this order nothing is missed.
async fn look(inputs: Arc<Inputs>, signal: Sender<()>) -> (notify::Result<RecommendedWatcher>, bool) {
    let looked = spawn_blocking(move || (watch(&inputs, signal), inputs.changed().is_some())).await;
    looked.unwrap_or_else(|panic| (Err(notify::Error::generic(&panic.to_string())), true))
}

/// Waits until there have been no signals for a while, but no longer than `UNREST_MAX`.
async fn settle(signals: &mut Receiver<()>) {
    let end = Instant::now() + UNREST_MAX;
    while Instant::now() < end && timeout_at((Instant::now() + QUIET).min(end), signals.recv()).await.is_ok() {}
}

/// Begins to watch.
fn watch(inputs: &Inputs, signal: Sender<()>) -> notify::Result<RecommendedWatcher> {
    let trail = Trail::of(inputs);
    let folders: BTreeSet<PathBuf> = trail.folders();
    let (needed, names, plugins) = (trail.last, trail.names, trail.plugins);
    let ends = ThreadEnds;
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        let _dropped_with_the_thread = &ends;
        let about_us = event.map_or_else(
            |error| {
                tracing::warn!(%error, "a change of files may have been missed: comparing all of them");
                true
            },
            |event| concerns(&event, &names, plugins.as_deref()),
        );
        if about_us {
            // If it is full, a signal is waiting already.
            signal.try_send(()).ok();
        }
    })?;
    for folder in folders {
        match watcher.watch(&folder, RecursiveMode::NonRecursive) {
            // The folder is missing or unreadable: the one above it reports when that changes.
            Err(error) if needed.contains(&folder) && folder.is_dir() => return Err(error),
            _ => {}
        }
    }
    Ok(watcher)
}

/// Whether an event may mean that a file is different. Reading a file causes events too.
struct ThreadEnds;

impl Drop for ThreadEnds {
    fn drop(&mut self) {
        memory::thread_ends();
    }
}

/// Whether an event may mean that a file is different. That the files are read is an event too.
fn concerns(event: &Event, names: &HashSet<PathBuf>, plugins: Option<&Path>) -> bool {
    let read = matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
    let plugin = |path: &Path| path.parent() == plugins && path.extension().is_some_and(|ext| ext == "rhai");
    event.need_rescan() || (!read && event.paths.iter().any(|path| names.contains(path) || plugin(path)))
}

/// Every name on the way to some files.
#[derive(Debug, Default)]
struct Trail {
    /// Names of files, folders and links, each in a folder that has no link in its own path.
    names: HashSet<PathBuf>,
    /// The folders that hold the files.
    last: HashSet<PathBuf>,
    /// The folder of the plugins, where every name that looks like a plugin counts.
    plugins: Option<PathBuf>,
}

impl Trail {
    fn of(inputs: &Inputs) -> Self {
        let mut trail = Self::default();
        for file in inputs.files() {
            trail.walk(file);
        }
        trail.plugins = inputs.plugin_folder().and_then(|folder| trail.walk(folder));
        trail.last.extend(trail.plugins.clone());
        trail
    }

    /// Follows a path step by step, and returns where it leads. A name that does not exist is taken as it is.
    fn walk(&mut self, path: &Path) -> Option<PathBuf> {
        let mut here = std::path::absolute(".").ok()?.ancestors().last()?.to_owned();
        let mut steps: VecDeque<Step> = steps(&std::path::absolute(path).ok()?).collect();
        let mut links = 0;
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Root => here = here.ancestors().last()?.to_owned(),
                Step::Up => drop(here.pop()),
                Step::To(name) => {
                    let named = here.join(name);
                    self.names.insert(named.clone());
                    match std::fs::read_link(&named) {
                        Ok(target) if links < LINKS_MAX => {
                            links += 1;
                            steps = self::steps(&target).chain(steps).collect();
                        }
                        _ => here = named,
                    }
                }
            }
        }
        self.last.extend(here.parent().map(Path::to_owned));
        Some(here)
    }

    fn folders(&self) -> BTreeSet<PathBuf> {
        self.names.iter().filter_map(|name| name.parent()).chain(self.plugins.as_deref()).map(Path::to_owned).collect()
    }
}

enum Step {
    Root,
    Up,
    To(OsString),
}

fn steps(path: &Path) -> impl Iterator<Item = Step> + use<> {
    let steps: Vec<Step> = path
        .components()
        .filter_map(|part| match part {
            Component::RootDir => Some(Step::Root),
            Component::ParentDir => Some(Step::Up),
            Component::Normal(name) => Some(Step::To(name.to_owned())),
            Component::CurDir | Component::Prefix(_) => None,
        })
        .collect();
    steps.into_iter()
}

#[cfg(test)]
mod tests;
