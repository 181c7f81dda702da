//! Everything that runs, started and watched in one place, and taken down in order. The only owner of tasks. Embeddable: a test
//! or a command starts one as the server does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::plan::{Listen, SourceKind, TlsPlan};
use crate::http::api::Api;
use crate::http::listeners::{Listeners, Name};
use crate::http::sessions::Sessions;
use crate::http::upgrade::Upgrader;
use crate::hub::Hub;
use crate::live::Live;
use crate::live::statistics::Statistics;
use crate::model::{Close, Now};
use crate::runtime::Runtime;
use crate::sources::Supervisor;
use crate::store::{Recovered, Store, Writer};
use crate::tasks::{Core, Ends};
use crate::telemetry::memory;
use crate::telemetry::metrics::Metrics;

/// How often limiters forget keys that would pass anyway.
const SWEEP_SECONDS: u64 = 30;

/// The running whole.
pub struct Engine {
    live: Arc<Live>,
    statistics: Arc<Statistics>,
    sources: Arc<Supervisor>,
    listeners: Arc<Listeners>,
    core: Core,
    ends: Ends,
    /// Connections, requests and sources; not what they all stand on.
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
    /// It could not begin.
    #[error("{0:#}")]
    Start(#[from] anyhow::Error),
    /// A task that everything stands on ended.
    #[error("the task `{0}` ended, which it must not; everything was stopped")]
    Task(Arc<str>),
}

impl Engine {
    /// Starts what everything stands on, binds every address and serves. Where an address cannot be bound nothing was begun: the
    /// log is as it was.
    pub async fn start(runtime: Runtime, log: Log, metrics: &Arc<Metrics>, now: Now) -> anyhow::Result<Self> {
        let (store, mut writer, recovered) = log;
        if !recovered.clean {
            tracing::warn!("the last run did not stop in order: channels with an early promise begin new epochs");
        }
        let statistics = Arc::new(Statistics::resume(metrics, store.clone(), &recovered.totals, now));
        let hub = Arc::new(Hub::new(recovered.channels));
        let live = Arc::new(Live::new(Arc::new(runtime), hub.clone(), store.clone(), metrics, now));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (core, ends) = Core::new(stop.clone());
        let sessions = Arc::new(Sessions::new(store));
        let sources = Arc::new(Supervisor::new(live.clone(), tasks.clone(), stop.clone()));
        let api = Api::new(live.clone(), sessions.clone(), sources.clone(), stop.clone());
        let upgrader = Upgrader { tasks: tasks.clone(), stop: stop.clone(), sessions };
        let listeners = Arc::new(Listeners::new(live.clone(), upgrader, api, core.clone()));
        let snapshot = live.current();
        let prepared = listeners.prepare(&snapshot.runtime).await?;
        // Only now, so that a start that fails for an address leaves the store as it was.
        writer.begin(Arc::new(live.log_channels())).await.context("the log cannot be begun")?;
        let write_until = CancellationToken::new();
        let written = core.spawn("store writer", writer.run(write_until.clone().cancelled_owned()));
        let own = live.clone();
        core.spawn("commit queue", async move { own.finish_commits().await });
        for nth in 0..hub.flush.tasks() {
            let hub = hub.clone();
            core.spawn(format!("flush {nth}"), async move { hub.flush.run(nth).await });
        }
        let own = live.clone();
        core.spawn("batches", async move { own.write_due_batches().await });
        core.spawn("feed", async move { hub.feed.run().await });
        let hub = live.hub.clone();
        core.spawn("renderings", async move { hub.renderings.run(&hub.flush).await });
        core.spawn("housekeeping", housekeep(live.clone(), statistics.clone(), stop.clone()));
        listeners.apply(&snapshot.runtime, prepared);
        sources.sync();
        Ok(Self { live, statistics, sources, listeners, core, ends, tasks, stop, write_until, written })
    }

    /// What the doors use.
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// The tasks that must not end.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// What is served where, by the configuration's names, the REST interface last.
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

    /// The name of a task that has ended though everything stands on it; never, where all is well.
    pub async fn ended(&mut self) -> Arc<str> {
        self.ends.next().await
    }

    /// Stops in order: accepts nothing more, closes connections, writes what was accepted. What does not end in time is named and
    /// left. `hurry` resolves where nobody wants to wait for connections any more.
    pub async fn stop(self, hurry: impl Future<Output = &'static str>) {
        let deadline = Instant::now() + self.live.current().runtime.plan.stop_within;
        tokio::select! {
            () = self.close(deadline) => {}
            // What was accepted is written all the same.
            why = hurry => tracing::warn!(why, clients = self.live.hub.connection_count(None), "not waiting for connections to close"),
        }
        self.statistics.collect(Now::read());
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
        for connection in self.live.hub.connections(None) {
            self.live.end(&connection, Close::GoingAway);
        }
        self.tasks.close();
        if timeout_at(deadline, self.tasks.wait()).await.is_err() {
            let clients = self.live.hub.ids();
            tracing::warn!(tasks = self.tasks.len(), clients = ?clients.iter().take(20).collect::<Vec<_>>(), "did not end in time");
        }
    }
}

/// Runs an engine until `shutdown` says why it is to stop, or a task ends that must not. `hurry` is asked for while it stops.
pub async fn serve(mut engine: Engine, shutdown: &mut impl Shutdown) -> Result<(), Failure> {
    let failed = tokio::select! {
        why = shutdown.next() => {
            tracing::info!(signal = why, "stopping");
            None
        }
        task = engine.ended() => {
            tracing::error!(%task, "a task that everything stands on has ended: stopping");
            Some(task)
        }
    };
    engine.stop(shutdown.next()).await;
    failed.map_or(Ok(()), |task| Err(Failure::Task(task)))
}

/// Says when to stop.
pub trait Shutdown: Send {
    /// Why, once it is time; the second time nobody wants to wait any more.
    fn next(&mut self) -> impl Future<Output = &'static str> + Send;
}

/// An address with the port in use.
fn shown(listen: &Listen, address: Option<SocketAddr>) -> Listen {
    Listen { port: address.map_or(listen.port, |address| address.port()), ..listen.clone() }
}

/// What a scheme ends with.
fn secure(tls: Option<&TlsPlan>) -> &'static str {
    if tls.is_some() { "s" } else { "" }
}

/// What is to be done now and then.
async fn housekeep(live: Arc<Live>, statistics: Arc<Statistics>, stop: CancellationToken) {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut seconds = 0u64;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = Now::read();
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
