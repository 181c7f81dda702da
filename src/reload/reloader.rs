//! Reloads, one after the other: read, compare, prepare, swap, retire, report. A reload does everything or nothing: whatever can
//! fail is done before the swap. What runs is known here only through a trait.

use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::load::{self, Fresh};
use super::report::{Current, Refusal, Report, Why};
use crate::config::diagnostic::{Diagnostic, Files};
use crate::config::diff::{Change, Ended, diff};
use crate::config::{Inputs, Loaded, Outline};
use crate::live::{Live, policy};
use crate::model::Now;
use crate::runtime::{self, Runtime};

/// What must be prepared before a configuration is swapped in: mainly listeners.
pub trait Parts: Send + Sync {
    /// Does everything that can fail, without changing anything.
    fn prepare<'a>(&'a self, runtime: &'a Runtime) -> BoxFuture<'a, Result<Box<dyn Ready>, String>>;

    /// What would end: the names of sources and the addresses of listeners.
    fn would_end(&self, runtime: &Runtime) -> Stopped;
}

/// What was prepared.
pub trait Ready: Send {
    /// Puts it in place. By now the configuration is current.
    fn apply(self: Box<Self>, runtime: &Runtime) -> Stopped;
}

/// What a reload stops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Sources, by name, including those that start again.
    pub sources: Vec<Arc<str>>,
    /// Addresses.
    pub listeners: Vec<String>,
}

/// What a reload is asked to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// Only report what would happen.
    pub dry: bool,
    /// The generation that must be in use, so that nobody overwrites somebody else's change.
    pub generation: Option<u64>,
}

/// What is in use, and the last refusal.
#[derive(Clone, Debug)]
pub struct Status {
    /// What is in use.
    pub current: Current,
    /// The last refusal since then.
    pub refused: Option<Refusal>,
}

/// Reads the configuration again.
pub type Read = Arc<dyn Fn() -> Loaded + Send + Sync>;

/// See the module.
pub struct Reloader {
    live: Arc<Live>,
    read: Read,
    parts: OnceLock<Arc<dyn Parts>>,
    /// Held for a whole reload, so that reloads run one after the other.
    in_use: tokio::sync::Mutex<InUse>,
    // Protects what is reported. Held for a copy.
    status: Mutex<Status>,
    /// Gets the files after each reload, successful or not.
    inputs: watch::Sender<Arc<Inputs>>,
}

/// A configuration that can be run.
pub struct Configuration {
    /// Compiled.
    pub runtime: Runtime,
    /// As people compare it.
    pub outline: Outline,
    /// The files it was read from.
    pub inputs: Inputs,
    /// Reads it again.
    pub read: Read,
}

impl Configuration {
    /// Reads and compiles one, or returns everything that is wrong with it, ready to be shown.
    pub fn load(read: Read) -> Result<Self, (Vec<Diagnostic>, Files)> {
        let loaded = read();
        let (inputs, files) = (loaded.inputs.clone(), loaded.files.clone());
        let (runtime, outline) = build(loaded, None).map_err(|found| (found, files))?;
        Ok(Self { runtime, outline, inputs, read })
    }
}

/// What the running configuration was built from.
struct InUse {
    generation: u64,
    outline: Outline,
}

impl Reloader {
    /// With the configuration that is in use at the start.
    pub fn new(live: Arc<Live>, read: Read, outline: Outline, inputs: Inputs, now: Now) -> Self {
        let current = Current::new(1, outline.hash(), now.wall_ms, &inputs);
        Self {
            live,
            read,
            parts: OnceLock::new(),
            in_use: tokio::sync::Mutex::new(InUse { generation: 1, outline }),
            status: Mutex::new(Status { current, refused: None }),
            inputs: watch::channel(Arc::new(inputs)).0,
        }
    }

    /// Sets what runs. Called once; not in `new`, because it may be made of what knows this.
    pub fn begin(&self, parts: Arc<dyn Parts>) {
        self.parts.set(parts).ok();
    }

    /// What is in use, and the last refusal.
    pub fn status(&self) -> Status {
        self.status.lock().clone()
    }

    /// The files to watch; changes with each reload.
    pub fn inputs(&self) -> watch::Receiver<Arc<Inputs>> {
        self.inputs.subscribe()
    }

    /// Reloads. `since`: when the files were last seen to change.
    pub async fn reload(&self, asked: Asked, since: Instant) -> Result<Report, Refusal> {
        let mut in_use = self.in_use.lock().await;
        let mut read = None;
        let done = self.attempt(&mut in_use, asked, since, &mut read).await;
        match &done {
            Ok(report) if !report.dry => {
                *self.status.lock() = Status { current: report.current.clone(), refused: None };
                report.log();
            }
            Ok(_) => {}
            Err(refusal) if asked.dry || refusal.why == Why::Outdated => {}
            Err(refusal) => {
                self.status.lock().refused = Some(refusal.clone());
                refusal.log();
            }
        }
        // Those who watch these files first look at what is in use. A dry run leaves what it has read to be reloaded.
        if let Some(read) = read.filter(|_| !asked.dry) {
            self.inputs.send_replace(Arc::new(read));
        }
        done
    }

    /// Puts into `files` what was read, if anything was.
    async fn attempt(&self, in_use: &mut InUse, asked: Asked, since: Instant, files: &mut Option<Inputs>) -> Result<Report, Refusal> {
        let refuse = |why, text: String| Refusal::new(why, Now::read().wall_ms, text);
        if let Some(wanted) = asked.generation.filter(|wanted| *wanted != in_use.generation) {
            let text = format!("generation {wanted} was asked for, but {} is in use\n", in_use.generation);
            return Err(refuse(Why::Outdated, text));
        }
        let before = self.live.current();
        let (read, previous) = (self.read.clone(), before.runtime.clone());
        let loaded = load::load(move || read(), move |loaded| build(loaded, Some(&previous))).await;
        let Fresh { built: (runtime, outline), inputs } = loaded.map_err(|unusable| {
            *files = unusable.inputs().cloned();
            Refusal::of(&unusable, Now::read().wall_ms)
        })?;
        *files = Some(inputs.clone());
        if runtime.plan.store != before.runtime.plan.store {
            return Err(refuse(Why::NeedsRestart, "`store` cannot change while the server runs: restart the server\n".into()));
        }
        let mut changes = diff(&in_use.outline, &outline);
        let parts = self.parts.get().ok_or_else(|| refuse(Why::Internal, "the server is still starting\n".into()))?;
        let ready = parts.prepare(&runtime).await.map_err(|why| refuse(Why::CannotListen, format!("{why}\n")))?;
        if asked.dry {
            let ended = self.foresee(&**parts, &before.runtime, &runtime, &mut changes);
            let current = self.status.lock().current.clone();
            return Ok(Report { dry: true, current, changes, ended, milliseconds: took(since) });
        }
        self.note_promises(&before.runtime, &runtime).await.map_err(|why| refuse(Why::StoreUnavailable, format!("{why}\n")))?;
        self.foresee(&**parts, &before.runtime, &runtime, &mut changes);
        // Even if nothing is different to people: faults name the lines of the files as they are now.
        let before = self.live.swap(runtime, Now::read());
        let milliseconds = took(since);
        let stopped = ready.apply(&self.live.current().runtime);
        let retired = self.live.retire(&before).await;
        let ended = Ended {
            subscriptions: retired.subscriptions as u64,
            connections: retired.connections as u64,
            sources: stopped.sources.len() as u64,
            listeners: stopped.listeners.len() as u64,
        };
        in_use.generation += 1;
        in_use.outline = outline;
        let current = Current::new(in_use.generation, in_use.outline.hash(), Now::read().wall_ms, &inputs);
        Ok(Report { dry: false, current, changes, ended, milliseconds })
    }

    /// What a configuration would end, in total and by each change.
    fn foresee(&self, parts: &dyn Parts, before: &Runtime, runtime: &Runtime, changes: &mut [Change]) -> Ended {
        let stopped = parts.would_end(runtime);
        let mut ended = Ended { sources: stopped.sources.len() as u64, listeners: stopped.listeners.len() as u64, ..Ended::default() };
        let mut note = |path: &str, count: &dyn Fn(&mut Ended)| {
            if let Some(change) = changes.iter_mut().find(|change| is_within(&change.path, path)) {
                count(&mut change.ends);
            }
        };
        for plan in before.plan.protocols.iter().filter(|plan| runtime.protocol(plan.id).is_none()) {
            let connections = self.live.hub.connection_count(Some(plan.id)) as u64;
            ended.connections += connections;
            note(&format!("protocols.{}", plan.name), &|ends| ends.connections += connections);
        }
        let plan = |name: &str| runtime.channels.resolve(name).map(|(_, plan)| plan);
        for (channel, count) in self.live.hub.would_end(plan) {
            ended.subscriptions += count as u64;
            if let Some((_, plan)) = before.channels.resolve(channel.as_str()) {
                note(&format!("channels.{}", plan.pattern.as_str()), &|ends| ends.subscriptions += count as u64);
            }
        }
        for source in &stopped.sources {
            note(&format!("sources.{source}"), &|ends| ends.sources += 1);
        }
        ended
    }

    /// A channel that delivers early from now on must be recorded as such before it does: a crash costs it its epoch.
    async fn note_promises(&self, before: &Runtime, runtime: &Runtime) -> Result<(), String> {
        let early =
            |runtime: &Runtime| runtime.plan.channels.iter().any(|channel| channel.history.as_ref().is_some_and(|h| h.promise.is_early()));
        if !early(runtime) && !early(before) {
            return Ok(());
        }
        let names = self.live.hub.known_channels();
        let changed: Vec<_> =
            names.into_iter().filter(|name| policy(before, name.as_str()).early != policy(runtime, name.as_str()).early).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let early =
            changed.into_iter().map(|name| (policy(runtime, name.as_str()).early, name)).map(|(early, name)| (name, early)).collect();
        self.live.store.note_promises(early).await.map_err(|error| error.to_string())
    }
}

/// Compiles a configuration, and describes what it is made of.
pub fn build(loaded: Loaded, previous: Option<&Runtime>) -> Result<(Runtime, Outline), Vec<Diagnostic>> {
    let outline = loaded.outline.clone();
    let runtime = runtime::build(loaded, previous)?;
    let outline = outline.with_plugins(runtime.scripts.outlines());
    Ok((runtime, outline))
}

fn took(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Whether a path is the same as another or leads to a part of it.
fn is_within(path: &str, whole: &str) -> bool {
    path.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}
