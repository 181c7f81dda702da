//! Starts everything that runs, watches it, and stops it in order. The only owner of tasks. Embeddable: a test or a command
//! starts an engine as the server does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::plan::{Listen, SourceKind, TlsPlan};
use crate::http::api::Api;
use crate::http::listeners::{Listeners, Name, Prepared};
use crate::http::sessions::Sessions;
use crate::http::upgrade::Upgrader;
use crate::hub::Hub;
use crate::live::Live;
use crate::live::statistics::Statistics;
use crate::model::{Clock, Close};
use crate::reload::{Asked, Configuration, Parts, Ready, Reloader, Watcher};
use crate::runtime::Runtime;
use crate::sources::Supervisor;
use crate::store::{Recovered, Store, Writer};
use crate::tasks::{Core, Ends};
use crate::telemetry::memory;
use crate::telemetry::metrics::Metrics;

/// How often limiters forget keys that would pass anyway.
const SWEEP_SECONDS: u64 = 30;

/// How many of each kind the log names that did not end in time.
const NAMED: usize = 20;

/// How often the log says that a certificate expires soon, and files are looked at that nothing tells of.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A running server.
pub struct Engine {
    live: Arc<Live>,
    statistics: Arc<Statistics>,
    listeners: Arc<Listeners>,
    sources: Arc<Supervisor>,
    reloader: Arc<Reloader>,
    core: Core,
    ends: Ends,
    /// Connections, requests and sources; not the tasks they depend on.
    tasks: TaskTracker,
    stop: CancellationToken,
    write_until: CancellationToken,
    written: JoinHandle<()>,
}

/// An opened log.
pub type Log = (Store, Writer, Recovered);

/// Why a server has ended.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It could not start.
    #[error("{}", causes(.0))]
    Start(#[from] anyhow::Error),
    /// A task that the server cannot run without ended.
    #[error("the task `{0}` ended, but the server cannot run without it; the server was stopped")]
    Task(Arc<str>),
}

/// An error with its causes, each once: some tell theirs themselves.
fn causes(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told.push_str(": ");
            told.push_str(&cause);
        }
    }
    told
}

impl Engine {
    /// Starts the essential tasks, binds every address and serves. If an address cannot be bound nothing is started, and the log
    /// is unchanged.
    pub async fn start(configuration: Configuration, log: Log, clock: Clock) -> anyhow::Result<Self> {
        let Configuration { runtime, outline, inputs, read } = configuration;
        let (store, mut writer, recovered) = log;
        if !recovered.clean {
            tracing::warn!("the last run did not stop cleanly: channels that deliver early begin new epochs");
        }
        let hub = Arc::new(Hub::new(recovered.channels));
        let totals = recovered.totals.into_iter().map(|total| (total.kind, total.name, total.metric, total.total));
        let metrics = Arc::new(Metrics::resume(clock.now(), totals));
        let live = Arc::new(Live::new(Arc::new(runtime), hub.clone(), store.clone(), &metrics, clock));
        let statistics = Arc::new(Statistics::new(&metrics, store.clone(), live.now()));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (core, ends) = Core::new(stop.clone());
        let sessions = Arc::new(Sessions::new(store));
        let sources = Arc::new(Supervisor::new(live.clone(), tasks.clone(), stop.clone()));
        let reloader = Arc::new(Reloader::new(live.clone(), read, outline, inputs));
        let api = Api::new(live.clone(), sessions.clone(), sources.clone(), reloader.clone(), stop.clone());
        let upgrader = Upgrader { tasks: tasks.clone(), stop: stop.clone(), sessions };
        let listeners = Arc::new(Listeners::new(live.clone(), upgrader, api, core.clone()));
        let snapshot = live.current();
        let prepared = listeners.prepare(&snapshot.runtime).await?;
        // Only now, so that a start that fails for an address leaves the store as it was.
        writer.begin(Arc::new(live.log_channels())).await.context("cannot start the log")?;
        let write_until = CancellationToken::new();
        let written = core.spawn("store writer", writer.run(write_until.clone().cancelled_owned()));
        let own = live.clone();
        let stopping = stop.clone();
        core.spawn("commit queue", async move {
            // It ends with the store, and then the writer's end is the one to report.
            own.finish_commits().await;
            stopping.cancelled().await;
        });
        for nth in 0..hub.flush.tasks() {
            let hub = hub.clone();
            core.spawn(format!("flush {nth}"), async move { hub.flush.run(nth).await });
        }
        let own = live.clone();
        core.spawn("batches", async move { own.write_due_batches().await });
        core.spawn("feed", async move { hub.feed.run().await });
        let [hub, closing] = [live.hub.clone(), live.hub.clone()];
        let render = move || {
            hub.renderings.run();
            memory::thread_ends();
        };
        core.spawn_thread("renderings", render, move || closing.renderings.close())?;
        core.spawn("housekeeping", housekeep(live.clone(), statistics.clone(), stop.clone()));
        listeners.apply(&snapshot.runtime, prepared);
        sources.sync();
        reloader.begin(Arc::new(Wired { listeners: listeners.clone(), sources: sources.clone() }));
        core.spawn("reload", follow(reloader.clone(), listeners.clone(), live.clone(), stop.clone()));
        Ok(Self { live, statistics, listeners, sources, reloader, core, ends, tasks, stop, write_until, written })
    }

    /// What listeners, connections and sources use.
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Puts other configurations in place of the one in use.
    pub fn reloader(&self) -> &Arc<Reloader> {
        &self.reloader
    }

    /// The tasks that must not end.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// The name and address of everything that is served, the REST interface last.
    pub fn served(&self) -> Vec<(Arc<str>, String)> {
        let snapshot = self.live.current();
        let plan = &snapshot.runtime.plan;
        let mut lines: Vec<(Arc<str>, String)> = Vec::new();
        let listener = |serves: &dyn Fn(&crate::routing::listeners::Listener) -> bool| {
            let found = snapshot.runtime.listeners.iter().find(|listener| serves(listener))?;
            self.listeners.address(&Name::Serving(found.key.clone()))
        };
        for protocol in &plan.protocols {
            let at = shown(&protocol.listen, listener(&|listener| listener.protocols.contains(&protocol.id)));
            let s = secure(protocol.tls.as_ref());
            lines.push((protocol.name.clone(), format!("ws{s}://{at}{}", protocol.path)));
            for row in &protocol.http {
                lines.push((protocol.name.clone(), format!("{} http{s}://{at}{}", row.method, row.path)));
            }
        }
        for source in &plan.sources {
            let from = match &source.kind {
                SourceKind::Http { method, path, listen, tls, .. } => {
                    let at = shown(listen, listener(&|listener| listener.sources.contains(&source.id)));
                    format!("{method} http{}://{at}{path}", secure(tls.as_ref()))
                }
                SourceKind::Every { period, .. } => format!("every {}", humantime::format_duration(*period)),
            };
            lines.push((source.name.clone(), from));
        }
        let at = shown(&plan.api.listen, self.listeners.address(&Name::Api(plan.api.listen.clone())));
        lines.push(("api".into(), format!("http{}://{at}", secure(plan.api.tls.as_ref()))));
        lines
    }

    /// The name of an essential task that has ended; never resolves if all is well.
    pub async fn ended(&mut self) -> Arc<str> {
        self.ends.next().await
    }

    /// Stops in order: accepts nothing more, closes connections, writes accepted events. Tasks that do not end in time are logged
    /// and left. `hurry` resolves when connections should not be waited for any longer.
    pub async fn stop(self, hurry: impl Future<Output = &'static str>) {
        let deadline = Instant::now() + self.live.current().runtime.plan.stop_within;
        tokio::select! {
            () = self.close(deadline) => {}
            // Accepted events are still written.
            why = hurry => tracing::warn!(why, clients = self.live.hub.connection_count(None), "not waiting for connections to close"),
        }
        self.statistics.collect(self.live.now());
        self.write_until.cancel();
        if timeout_at(deadline.max(Instant::now() + Duration::from_secs(1)), self.written).await.is_err() {
            tracing::error!(still = "store", queued = self.live.store.stats().queued_rows, "did not end in time");
        }
        self.core.abort();
        tracing::info!("stopped");
    }

    /// Stops accepting, closes connections, waits until the deadline, names what is left.
    async fn close(&self, deadline: Instant) {
        self.stop.cancel();
        self.listeners.close();
        for connection in self.live.hub.connections(None) {
            self.live.end(&connection, Close::GoingAway);
        }
        self.tasks.close();
        if timeout_at(deadline, self.tasks.wait()).await.is_err() {
            let (clients, requests, sources) = (self.live.hub.ids(), self.listeners.waited(), self.sources.running());
            tracing::warn!(
                tasks = self.tasks.len(),
                clients = ?clients.iter().take(NAMED).collect::<Vec<_>>(),
                requests = ?requests.iter().take(NAMED).collect::<Vec<_>>(),
                sources = ?sources.iter().take(NAMED).collect::<Vec<_>>(),
                "did not end in time"
            );
        }
    }
}

/// What is made ready and put in place besides what decisions read.
struct Wired {
    listeners: Arc<Listeners>,
    sources: Arc<Supervisor>,
}

impl Parts for Wired {
    fn prepare<'a>(&'a self, runtime: &'a Runtime) -> BoxFuture<'a, Result<Box<dyn Ready>, String>> {
        let prepare = async {
            let prepared = self.listeners.prepare(runtime).await.map_err(|error| error.to_string())?;
            let ready = ReadyParts { listeners: self.listeners.clone(), sources: self.sources.clone(), prepared };
            Ok(Box::new(ready) as Box<dyn Ready>)
        };
        prepare.boxed()
    }

    fn certificates(&self) -> Vec<TlsPlan> {
        self.listeners.certificates()
    }

    fn renew(&self, renewed: &TlsPlan) -> Result<(), String> {
        self.listeners.renew(renewed).map_err(|error| error.to_string())
    }
}

/// What is ready to be put in place.
struct ReadyParts {
    listeners: Arc<Listeners>,
    sources: Arc<Supervisor>,
    prepared: Prepared,
}

impl Ready for ReadyParts {
    fn apply(self: Box<Self>, runtime: &Runtime) {
        self.listeners.apply(runtime, self.prepared);
        self.sources.sync();
    }
}

/// Reloads when the files have changed. With `reload: false` it only renews certificates.
async fn follow(reloader: Arc<Reloader>, listeners: Arc<Listeners>, live: Arc<Live>, stop: CancellationToken) {
    let (mut read, mut watcher) = (reloader.read(), Watcher::default());
    let mut days = interval_at(Instant::now() + DAY, DAY);
    loop {
        let files = (**read.borrow_and_update()).clone();
        let wanted = live.snapshot().runtime.plan.reload;
        // Each round compares the files: at least once a day, for file systems that do not report changes.
        if let Err(error) = watcher.follow(if wanted { files.all() } else { files.certificates }).await {
            tracing::warn!(%error, "cannot watch the configuration's files: a change may go unseen until a reload is asked for");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = watcher.changed() => if wanted {
                // A refusal has been logged; the next change is another try.
                reloader.reload(Asked::default(), Instant::now()).await.ok();
            } else {
                reloader.renew().await;
            },
            // Somebody else has asked for it.
            is_open = read.changed() => if is_open.is_err() { return },
            _ = days.tick() => listeners.warn(),
        }
    }
}

/// Runs an engine until `shutdown` says why to stop, or an essential task ends. `hurry` is awaited while it stops.
pub async fn serve(mut engine: Engine, shutdown: &mut impl Shutdown) -> Result<(), Failure> {
    let failed = tokio::select! {
        why = shutdown.next() => {
            tracing::info!(signal = why, "stopping");
            None
        }
        task = engine.ended() => {
            tracing::error!(%task, "a task that the server cannot run without has ended: stopping");
            Some(task)
        }
    };
    engine.stop(shutdown.next()).await;
    failed.map_or(Ok(()), |task| Err(Failure::Task(task)))
}

/// Says when to stop.
pub trait Shutdown: Send {
    /// Resolves with the reason to stop; the second time it means not to wait any longer.
    fn next(&mut self) -> impl Future<Output = &'static str> + Send;
}

/// An address with the port in use.
fn shown(listen: &Listen, address: Option<SocketAddr>) -> Listen {
    Listen { port: address.map_or(listen.port, |address| address.port()), ..listen.clone() }
}

/// The `s` of `https` and `wss`.
fn secure(tls: Option<&TlsPlan>) -> &'static str {
    if tls.is_some() { "s" } else { "" }
}

/// Regular maintenance.
async fn housekeep(live: Arc<Live>, statistics: Arc<Statistics>, stop: CancellationToken) {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut seconds = 0u64;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = live.now();
        live.metrics.tick(now);
        live.hub.trim_tails();
        live.hub.retire(now);
        memory::give_back();
        statistics.tick(now);
        live.sweep();
        seconds += 1;
        if seconds.is_multiple_of(SWEEP_SECONDS) {
            let snapshot = live.current();
            snapshot.limits.sweep(now);
            snapshot.runtime.scripts.sweep(now);
            live.tell_left_out();
        }
    }
}
