//! Reloads, one after the other: read, compare, prepare, swap, retire, report. A reload does everything or nothing: whatever can
//! fail is done before the swap. What runs is known here only through a trait.

use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::certificates::{self, Looked};
use super::load::{self, Fresh};
use super::report::{Current, Refusal, Report, Why};
use crate::config::diagnostic::{Diagnostic, Files};
use crate::config::diff::{Change, Ended, below, diff};
use crate::config::plan::{HistoryPlan, Plan, TlsPlan};
use crate::config::{Inputs, Loaded, Outline};
use crate::live::{Live, policy};
use crate::model::ChannelName;
use crate::runtime::{self, Runtime};

/// What must be prepared before a configuration is swapped in: mainly listeners.
pub trait Parts: Send + Sync {
    /// Does everything that can fail, without changing anything.
    fn prepare<'a>(&'a self, runtime: &'a Runtime) -> BoxFuture<'a, Result<Box<dyn Ready>, String>>;

    /// The certificates in use, each once.
    fn certificates(&self) -> Vec<TlsPlan>;

    /// Takes a changed certificate into use.
    fn renew(&self, renewed: &TlsPlan) -> Result<(), String>;
}

/// What was prepared.
pub trait Ready: Send {
    /// Puts it in place. By now the configuration is current.
    fn apply(self: Box<Self>, runtime: &Runtime);
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
    configuration: Read,
    parts: OnceLock<Arc<dyn Parts>>,
    /// Held for a whole reload, so that reloads run one after the other.
    in_use: tokio::sync::Mutex<InUse>,
    // Protects what is reported. Held for a copy.
    status: Mutex<Status>,
    /// Gets the files after each reload, successful or not.
    read: watch::Sender<Arc<FilesRead>>,
}

/// What was in the files when they were read last.
#[derive(Clone, Debug, Default)]
pub struct FilesRead {
    /// Those of the configuration in use, or of the one that was refused.
    pub inputs: Inputs,
    /// Those of the certificates in use, which are renewed even if nothing else is.
    pub certificates: Inputs,
}

impl FilesRead {
    fn new(inputs: Inputs, plan: &Plan) -> Self {
        let certificates = inputs.only(plan.tls().flat_map(|tls| [&*tls.cert, &*tls.key]));
        Self { inputs, certificates }
    }

    /// Both. For a file that is in both, `inputs` counts: a configuration that was refused for its certificate is read again when
    /// that changes.
    pub fn all(self) -> Inputs {
        self.inputs.and(self.certificates)
    }
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
    pub fn new(live: Arc<Live>, read: Read, outline: Outline, inputs: Inputs) -> Self {
        let current = Current::new(1, outline.hash(), live.now().wall_ms, &inputs);
        let files = FilesRead::new(inputs, &live.current().runtime.plan);
        Self {
            live,
            configuration: read,
            parts: OnceLock::new(),
            in_use: tokio::sync::Mutex::new(InUse { generation: 1, outline }),
            status: Mutex::new(Status { current, refused: None }),
            read: watch::channel(Arc::new(files)).0,
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
    pub fn read(&self) -> watch::Receiver<Arc<FilesRead>> {
        self.read.subscribe()
    }

    /// Reloads. `since`: when the files were last seen to change. If it is refused, changed certificates are renewed all the same.
    pub async fn reload(&self, asked: Asked, since: Instant) -> Result<Report, Refusal> {
        let mut in_use = self.in_use.lock().await;
        let mut inputs = None;
        let done = self.attempt(&mut in_use, asked, since, &mut inputs).await;
        let mut files = (**self.read.borrow()).clone();
        match &done {
            // What was only asked about is still to be reloaded.
            Ok(report) if report.dry => return done,
            Err(refusal) if asked.dry || refusal.why == Why::Outdated => return done,
            Ok(report) => {
                *self.status.lock() = Status { current: report.current.clone(), refused: None };
                report.log();
                files = FilesRead::new(inputs.unwrap_or_default(), &self.live.current().runtime.plan);
            }
            Err(refusal) => {
                self.status.lock().refused = Some(refusal.clone());
                refusal.log();
                files.inputs = inputs.unwrap_or(files.inputs);
                let looked = match self.parts.get() {
                    Some(parts) => certificates::look(parts.certificates()).await,
                    None => return done,
                };
                if let Ok(looked) = looked {
                    files.certificates = self.take(&mut in_use, looked, &refusal.diagnostics);
                }
            }
        }
        // Those who watch these files first look at what is in use. A dry run leaves what it has read to be reloaded.
        self.read.send_replace(Arc::new(files));
        done
    }

    /// Takes changed certificates into use, and nothing else.
    pub async fn renew(&self) {
        let mut in_use = self.in_use.lock().await;
        let Some(parts) = self.parts.get() else { return };
        match certificates::look_twice(parts.certificates()).await {
            Ok(looked) => {
                let certificates = self.take(&mut in_use, looked, "");
                let inputs = self.read.borrow().inputs.clone();
                self.read.send_replace(Arc::new(FilesRead { inputs, certificates }));
            }
            Err(unusable) => {
                tracing::error!(
                    error = Refusal::of(&unusable, self.live.now().wall_ms).diagnostics.trim_end(),
                    "certificates cannot be read"
                );
            }
        }
    }

    /// Takes renewed certificates into use. `logged`: what was logged already.
    fn take(&self, in_use: &mut InUse, looked: Looked, logged: &str) -> Inputs {
        let metrics = self.live.metrics.sockets();
        for renewed in looked.renewed {
            let (cert, key) = (renewed.cert.display(), renewed.key.display());
            match self.parts.get().map(|parts| parts.renew(&renewed)) {
                Some(Ok(())) => {
                    metrics.certificates_read.inc();
                    tracing::info!(%cert, %key, "a changed certificate is in use");
                    in_use.outline.renew_files(&looked.inputs.only([&*renewed.cert, &*renewed.key]));
                }
                Some(Err(error)) => {
                    tracing::error!(%cert, %key, error, "a changed certificate cannot be used: the one before stays in use");
                }
                None => {}
            }
        }
        self.status.lock().current.hash = in_use.outline.hash();
        for (plan, error) in looked.invalid {
            metrics.certificates_invalid.inc();
            if !logged.contains(&error.why) {
                // Where it is named now: a comment before it may be new.
                let snapshot = self.live.snapshot();
                let named = snapshot.runtime.plan.tls().find(|tls| tls.is_from_files_of(&plan)).unwrap_or(&plan);
                let at = &named.at[error.which as usize];
                let (cert, key) = (plan.cert.display(), plan.key.display());
                tracing::error!(%at, %cert, %key, %error, hint = error.hint, "a changed certificate cannot be used: the one before stays in use");
            }
        }
        looked.inputs
    }

    /// `files`: what was read, where anything was.
    async fn attempt(&self, in_use: &mut InUse, asked: Asked, since: Instant, files: &mut Option<Inputs>) -> Result<Report, Refusal> {
        let refuse = |why, text: String| Refusal::new(why, self.live.now().wall_ms, text);
        if let Some(wanted) = asked.generation.filter(|wanted| *wanted != in_use.generation) {
            let text = format!("generation {wanted} was asked for, but {} is in use\n", in_use.generation);
            return Err(refuse(Why::Outdated, text));
        }
        let before = self.live.current();
        let (read, previous) = (self.configuration.clone(), before.runtime.clone());
        let loaded = load::load(move || read(), move |loaded| build(loaded, Some(&previous))).await;
        let Fresh { built: (runtime, outline), inputs } = loaded.map_err(|unusable| {
            *files = unusable.inputs().cloned();
            Refusal::of(&unusable, self.live.now().wall_ms)
        })?;
        *files = Some(inputs.clone());
        if let Some(why) = needs_restart(&before.runtime, &runtime) {
            return Err(refuse(Why::NeedsRestart, why.into()));
        }
        let mut changes = diff(&in_use.outline, &outline);
        let parts = self.parts.get().ok_or_else(|| refuse(Why::Internal, "the server is still starting\n".into()))?;
        let ready = parts.prepare(&runtime).await.map_err(|why| refuse(Why::CannotListen, format!("{why}\n")))?;
        let foreseen = self.foresee(&before.runtime, &runtime, &mut changes);
        if asked.dry {
            let current = self.status.lock().current.clone();
            return Ok(Report { dry: true, current, changes, ended: foreseen, milliseconds: took(since) });
        }
        self.note_early(&before.runtime, &runtime).await.map_err(|why| refuse(Why::StoreUnavailable, format!("{why}\n")))?;
        // Also where nothing is different to people: faults name the lines of the files as they are now.
        let before = self.live.swap(runtime, self.live.now());
        let milliseconds = took(since);
        ready.apply(&self.live.current().runtime);
        let retired = self.live.retire(&before).await;
        let ended = Ended { subscriptions: retired.subscriptions as u64, connections: retired.connections as u64, ..foreseen };
        let mut current = Current::new(in_use.generation + 1, outline.hash(), self.live.now().wall_ms, &inputs);
        if changes.is_empty() {
            let Current { generation, since, .. } = self.status.lock().current.clone();
            current = Current { generation, since, ..current };
        }
        *in_use = InUse { generation: current.generation, outline };
        Ok(Report { dry: false, current, changes, ended, milliseconds })
    }

    /// What a configuration would end, in total and by each change.
    fn foresee(&self, before: &Runtime, runtime: &Runtime, changes: &mut [Change]) -> Ended {
        let mut ended = Ended::default();
        for plan in before.plan.protocols.iter().filter(|plan| runtime.protocol(plan.id).is_none()) {
            let connections = self.live.hub.connection_count(Some(plan.id)) as u64;
            ended.connections += connections;
            note(changes, [below("protocols", &plan.name)], |ends| ends.connections += connections);
        }
        let plan = |name: &str| runtime.channels.resolve(name).map(|(_, plan)| plan);
        for (channel, count) in self.live.hub.would_end(plan) {
            ended.subscriptions += count as u64;
            if let Some((_, plan)) = before.channels.resolve(channel.as_str()) {
                note(changes, [below("channels", plan.pattern.as_str())], |ends| ends.subscriptions += count as u64);
            }
        }
        for source in before.plan.sources.iter().filter(|source| !source.goes_on(&runtime.plan.sources)) {
            ended.sources += 1;
            note(changes, [below("sources", &source.name)], |ends| ends.sources += 1);
        }
        for listener in before.listeners.iter().filter(|listener| !runtime.listeners.iter().any(|other| other.key == listener.key)) {
            ended.listeners += 1;
            // Where several have left it, the first of them is named.
            let protocols = listener.protocols.iter().map(|id| (below("protocols", &id.name()), "listen"));
            let sources = listener.sources.iter().map(|id| (below("sources", &id.name()), "on"));
            let users: Vec<(String, &str)> = protocols.chain(sources).collect();
            let addresses = users.iter().map(|(path, key)| below(path, key));
            note(changes, addresses.chain(users.iter().map(|(path, _)| path.clone())), |ends| ends.listeners += 1);
        }
        if before.plan.api.listen != runtime.plan.api.listen {
            ended.listeners += 1;
            note(changes, ["api.listen".to_owned(), "api".to_owned()], |ends| ends.listeners += 1);
        }
        ended
    }

    /// A channel that delivers early from now on must be recorded as such before it does: a crash costs it its epoch. One that no
    /// longer does stays recorded until the next start, because what it has delivered may not be committed yet.
    async fn note_early(&self, before: &Runtime, runtime: &Runtime) -> Result<(), String> {
        let is_early = |history: &HistoryPlan| history.promise.is_early();
        if !runtime.plan.channels.iter().any(|channel| channel.history.as_ref().is_some_and(is_early)) {
            return Ok(());
        }
        let becomes = |name: &ChannelName| policy(runtime, name.as_str()).early && !policy(before, name.as_str()).early;
        let early: Vec<ChannelName> = self.live.hub.known_channels().into_iter().filter(becomes).collect();
        if early.is_empty() {
            return Ok(());
        }
        self.live.hub.note_early(&early);
        self.live.store.note_early(early).await.map_err(|error| error.to_string())
    }
}

/// Compiles a configuration, and describes what it is made of.
pub fn build(loaded: Loaded, previous: Option<&Runtime>) -> Result<(Runtime, Outline), Vec<Diagnostic>> {
    let outline = loaded.outline.clone();
    let runtime = runtime::build(loaded, previous)?;
    let outline = outline.with_plugins(runtime.scripts.outlines());
    Ok((runtime, outline))
}

/// Why a configuration cannot replace another while the server runs, if it cannot.
pub fn needs_restart(before: &Runtime, next: &Runtime) -> Option<&'static str> {
    (before.plan.store != next.plan.store).then_some("`store` cannot change while the server runs: restart the server\n")
}

fn took(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Counts what ends with the first change that is at one of these paths or below it.
fn note(changes: &mut [Change], paths: impl IntoIterator<Item = String>, count: impl FnOnce(&mut Ended)) {
    let at = paths.into_iter().find_map(|path| changes.iter().position(|change| is_within(&change.path, &path)));
    if let Some(change) = at.and_then(|at| changes.get_mut(at)) {
        count(&mut change.ends);
    }
}

/// Whether a path leads to a part of what another leads to, or to the same.
pub fn is_within(path: &str, whole: &str) -> bool {
    path.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}
