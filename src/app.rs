//! Puts the parts together, runs them, and takes them down in order. The only place that owns tasks.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::{Cli, Command, LogFormat};
use crate::config::diagnostic;
use crate::config::plan::{Listen, SourceKind, TlsPlan};
use crate::http::api::ApiRoutes;
use crate::http::certificate::Certificate;
use crate::http::listen::{Bound, HANDSHAKES_MAX, ListenerOptions, bind, serve};
use crate::http::routes::Routes;
use crate::http::sessions::Sessions;
use crate::http::upgrade::Upgrader;
use crate::hub::Hub;
use crate::log_channels::LogChannels;
use crate::model::{Close, Now};
use crate::pipeline::Context;
use crate::router::Router;
use crate::routing::listeners::{self, Listener};
use crate::routing::table;
use crate::runtime::{self, Runtime};
use crate::statistics::Statistics;
use crate::store::{Store, Writer};
use crate::telemetry::log::{self, Format};
use crate::telemetry::memory;
use crate::telemetry::metrics::Metrics;
use crate::{config, sources};

/// Threads run scripts, whose nesting needs more than the usual 2 MiB.
const STACK_BYTES: usize = 16 << 20;

/// Tasks that have their turn before sockets are looked at again and what they published is written. With tokio's 61, one
/// round of a few hundred busy clients is several, and each client is written to in each of them.
const ROUND_TASKS: u32 = 512;

/// Files the server asks the system for: one listener's sockets and some.
const FILES_WANTED: u64 = 65_536;

/// How often limiters forget keys that would pass anyway.
const SWEEP_SECONDS: u64 = 30;

/// Runs a command.
pub fn main(cli: Cli) -> ExitCode {
    // On a thread of its own: loading compiles scripts, and the first thread's stack is the system's choice.
    let run = move || match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => start(&cli),
        Command::Check => check(&cli.config),
        Command::Routes => routes(&cli.config),
    };
    let spawned = std::thread::Builder::new().name("main".into()).stack_size(STACK_BYTES).spawn(run);
    match spawned.map(std::thread::JoinHandle::join) {
        Ok(Ok(code)) => code,
        _ => ExitCode::FAILURE,
    }
}

/// Loads and compiles a configuration, or says everything that is wrong with it, ready to be shown.
fn load(path: &Path, metrics: &Arc<Metrics>, now: Now) -> Result<Runtime, String> {
    let loaded = config::load(path, &|name| std::env::var(name).ok());
    let files = loaded.files.clone();
    runtime::build(loaded, metrics, now).map_err(|diagnostics| {
        let count = diagnostic::distinct(&diagnostics);
        let noun = if count == 1 { "error" } else { "errors" };
        format!("{}{} {noun}\n", diagnostic::render(&diagnostics, &files), count)
    })
}

fn load_alone(path: &Path) -> Result<Runtime, String> {
    let now = Now::read();
    load(path, &Arc::new(Metrics::new(now)), now)
}

fn check(path: &Path) -> ExitCode {
    match load_alone(path) {
        Ok(runtime) => {
            let plan = &runtime.plan;
            say(&format!(
                "{} is sound: {}, {}, {}\n",
                path.display(),
                count(plan.protocols.len(), "protocol"),
                count(plan.channels.len(), "channel"),
                count(plan.sources.len(), "source")
            ));
            ExitCode::SUCCESS
        }
        Err(text) => {
            say(&text);
            ExitCode::FAILURE
        }
    }
}

fn routes(path: &Path) -> ExitCode {
    match load_alone(path) {
        Ok(runtime) => {
            say(&in_columns(&table::table(&runtime.plan)));
            ExitCode::SUCCESS
        }
        Err(text) => {
            complain(&text);
            ExitCode::FAILURE
        }
    }
}

fn in_columns(entries: &[table::RouteEntry]) -> String {
    let head = ["FROM", "LIMIT", "SCRIPT", "TO"].map(String::from);
    let rows: Vec<[String; 4]> =
        std::iter::once(head).chain(entries.iter().map(|e| [e.from.clone(), e.limit.clone(), e.script.clone(), e.to.clone()])).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    let line = |row: &[String; 4]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn start(cli: &Cli) -> ExitCode {
    log::init(match cli.log {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    });
    // A panic is a fault of ours: it belongs in the log, as one line. What it broke is cleaned up where it is caught.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK_BYTES).event_interval(ROUND_TASKS).build();
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start the runtime: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run(cli));
    // What did not end in time was named; it is not waited for again.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("tramline: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli) -> anyhow::Result<()> {
    let now = Now::read();
    let metrics = Arc::new(Metrics::new(now));
    let runtime =
        Arc::new(load(&cli.config, &metrics, now).map_err(|text| anyhow::anyhow!("{} is not sound\n{text}", cli.config.display()))?);
    // A socket is a file to the system, and its usual first limit of 1024 is less than one protocol's clients.
    match rlimit::increase_nofile_limit(FILES_WANTED) {
        Ok(files) if files < FILES_WANTED => tracing::info!(files, "the system allows no more open files: that many sockets at most"),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
    // Signals are caught before anything is open, so that a stop during the start is an orderly one.
    let signals = Signals::catch().context("cannot catch signals")?;
    let (store, writer, recovered) = Store::open(&runtime.plan.store, now).await?;
    if !recovered.clean {
        tracing::warn!("the last run did not stop in order: channels with an early promise begin new epochs");
    }
    let statistics = Arc::new(Statistics::resume(&metrics, store.clone(), &recovered.totals, now));
    let hub = Arc::new(Hub::new(runtime.protocols.len(), recovered.channels));
    let router = Arc::new(Router::new(Context::new(runtime, hub), store, now));
    let app = App { router, statistics, tasks: TaskTracker::new(), stop: CancellationToken::new() };
    app.run(cli, writer, signals).await
}

/// The running server.
struct App {
    router: Arc<Router>,
    statistics: Arc<Statistics>,
    /// Everything but the store's writer, which must outlive it.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl App {
    async fn run(self, cli: &Cli, mut writer: Writer, mut signals: Signals) -> anyhow::Result<()> {
        let open = self.bind().await?;
        // Only now, so that a start that fails for an address leaves the store as it was.
        let Context { runtime, hub, .. } = &self.router.context;
        writer.begin(Arc::new(LogChannels { runtime: runtime.clone(), hub: hub.clone() })).await?;
        let write_until = CancellationToken::new();
        let written = tokio::spawn(writer.run(write_until.clone().cancelled_owned()));
        // Ends with the writer: what is stored last is still shown to whoever is there.
        let router = self.router.clone();
        let delivered = tokio::spawn(async move { router.deliver().await });
        // They end with the runtime: what is queued last is written as long as anyone is there.
        let writing: Vec<_> = (0..self.router.context.hub.flush.tasks())
            .map(|nth| {
                let router = self.router.clone();
                tokio::spawn(async move { router.context.hub.flush.run(nth).await })
            })
            .collect();
        let router = self.router.clone();
        let batching = tokio::spawn(async move { router.write_due_batches().await });
        let feed = hub.feed.clone();
        let feeding = tokio::spawn(async move { feed.run().await });
        let ports = self.serve(open);
        announce(cli, &self.router, &ports);
        // Outside the macro, which evaluates nothing where the level is off.
        let signal = signals.next().await;
        tracing::info!(signal, "stopping");
        let deadline = Instant::now() + self.router.context.runtime.plan.stop_within;
        tokio::select! {
            () = self.close(deadline) => {}
            // A person who asks twice does not want to wait; what was accepted is written all the same.
            why = signals.next() => tracing::warn!(signal = why, clients = self.router.context.hub.connection_count(None), "not waiting for connections to close"),
        }
        self.statistics.collect(Now::read());
        write_until.cancel();
        if timeout_at(deadline.max(Instant::now() + Duration::from_secs(1)), written).await.is_err() {
            tracing::error!(still = "store", queued = self.router.store.stats().queued_rows, "did not end in time");
        }
        delivered.abort();
        batching.abort();
        feeding.abort();
        writing.iter().for_each(tokio::task::JoinHandle::abort);
        tracing::info!("stopped");
        Ok(())
    }

    /// Binds every address, so that nothing is served unless everything can be.
    async fn bind(&self) -> anyhow::Result<Open> {
        let open = async |listen: &Listen, tls: Option<&TlsPlan>| -> anyhow::Result<(Bound, Option<Certificate>)> {
            let certificate = tls.cloned().map(Certificate::read).transpose()?;
            Ok((bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?, certificate))
        };
        let plan = &self.router.context.runtime.plan;
        let mut listeners = Vec::new();
        for listener in listeners::listeners(plan) {
            let (bound, certificate) = open(&listener.listen, listener.tls.as_ref()).await?;
            listeners.push((listener, bound, self.listener_options(certificate)?));
        }
        let (bound, certificate) = open(&plan.api.listen, plan.api.tls.as_ref()).await?;
        Ok(Open { listeners, api: (bound, self.listener_options(certificate)?) })
    }

    /// The terms of a listener. Its certificate is watched from now on.
    fn listener_options(&self, certificate: Option<Certificate>) -> anyhow::Result<ListenerOptions> {
        let runtime = &self.router.context.runtime;
        let metrics = runtime.metrics.sockets();
        let tls = certificate.as_ref().map(Certificate::handshakes).transpose().context("cannot serve TLS")?;
        if let Some(certificate) = certificate {
            certificate.warn();
            self.tasks.spawn(certificate.watch(metrics.clone(), self.stop.clone()));
        }
        Ok(ListenerOptions { tls, per_address: runtime.plan.sockets_per_address, handshakes: HANDSHAKES_MAX, metrics })
    }

    /// Serves what is bound, and starts the sources.
    fn serve(&self, open: Open) -> Ports {
        let plan = &self.router.context.runtime.plan;
        let mut ports = Ports { listeners: Vec::new(), api: open.api.0.address.port() };
        let sessions = Arc::new(Sessions::new(self.router.store.clone()));
        for (listener, bound, options) in open.listeners {
            let upgrader = Upgrader { tasks: self.tasks.clone(), stop: self.stop.clone(), sessions: sessions.clone() };
            let port = bound.address.port();
            serve(bound, options, &Arc::new(Routes::new(self.router.clone(), upgrader, &listener)), &self.tasks, &self.stop);
            ports.listeners.push((listener, port));
        }
        let (bound, options) = open.api;
        serve(bound, options, &Arc::new(ApiRoutes::new(self.router.clone(), sessions, self.stop.clone())), &self.tasks, &self.stop);
        for source in &plan.sources {
            if matches!(source.kind, SourceKind::Every { .. }) {
                self.tasks.spawn(sources::every(self.router.clone(), source.clone(), self.stop.clone()));
            }
        }
        self.tasks.spawn(housekeep(self.router.clone(), self.statistics.clone(), self.stop.clone()));
        ports
    }

    /// Stops accepting, closes connections, waits until the deadline, names what is left.
    async fn close(&self, deadline: Instant) {
        self.stop.cancel();
        for connection in self.router.context.hub.connections(None) {
            self.router.end(&connection, Close::GoingAway);
        }
        self.tasks.close();
        if timeout_at(deadline, self.tasks.wait()).await.is_err() {
            let clients = self.router.context.hub.ids();
            tracing::warn!(tasks = self.tasks.len(), clients = ?clients.iter().take(20).collect::<Vec<_>>(), "did not end in time");
        }
    }
}

/// What is bound.
struct Open {
    listeners: Vec<(Listener, Bound, ListenerOptions)>,
    api: (Bound, ListenerOptions),
}

/// The ports in use, also where the system chose them.
struct Ports {
    listeners: Vec<(Listener, u16)>,
    api: u16,
}

impl Ports {
    /// The address of the door that serves this.
    fn at(&self, listen: &Listen, serves: impl Fn(&Listener) -> bool) -> Listen {
        let port = self.listeners.iter().find(|(listener, _)| serves(listener)).map_or(listen.port, |(_, port)| *port);
        Listen { port, ..listen.clone() }
    }
}

/// What a scheme ends with.
fn secure(tls: Option<&TlsPlan>) -> &'static str {
    if tls.is_some() { "s" } else { "" }
}

/// Says what is served where: as a table for people, as log lines for programs.
fn announce(cli: &Cli, router: &Router, ports: &Ports) {
    let plan = &router.context.runtime.plan;
    let mut lines: Vec<(&str, String)> = Vec::new();
    for (index, protocol) in plan.protocols.iter().enumerate() {
        let at = ports.at(&protocol.listen, |listener| listener.protocols.contains(&index));
        let s = secure(protocol.tls.as_ref());
        lines.push((&protocol.name, format!("ws{s}://{at}{}", protocol.path)));
        for row in &protocol.http {
            lines.push((&protocol.name, format!("{} http{s}://{at}{}", row.method, row.path)));
        }
    }
    for (index, source) in plan.sources.iter().enumerate() {
        match &source.kind {
            SourceKind::Http { method, path, listen, tls, .. } => {
                let at = ports.at(listen, |listener| listener.sources.contains(&index));
                lines.push((&source.name, format!("{method} http{}://{at}{path}", secure(tls.as_ref()))));
            }
            SourceKind::Every { period, .. } => lines.push((&source.name, format!("every {}", humantime::format_duration(*period)))),
        }
    }
    lines.push(("api", format!("http{}://{}", secure(plan.api.tls.as_ref()), Listen { port: ports.api, ..plan.api.listen.clone() })));
    match cli.log {
        LogFormat::Json => lines.iter().for_each(|(name, url)| tracing::info!(name, url, "serving")),
        LogFormat::Text => {
            let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            let text: String = lines.iter().map(|(name, url)| format!("  {name:<width$}  {url}\n")).collect();
            say(&format!("tramline {} serves {}\n{text}", env!("CARGO_PKG_VERSION"), cli.config.display()));
        }
    }
    tracing::info!(protocols = plan.protocols.len(), sources = plan.sources.len(), channels = plan.channels.len(), "ready");
}

/// What is to be done now and then.
async fn housekeep(router: Arc<Router>, statistics: Arc<Statistics>, stop: CancellationToken) {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut seconds = 0u64;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = Now::read();
        let context = &router.context;
        context.runtime.metrics.tick(now);
        context.hub.trim_tails();
        context.hub.retire(now);
        memory::give_back();
        statistics.tick(now);
        seconds += 1;
        if seconds.is_multiple_of(SWEEP_SECONDS) {
            context.runtime.sweep(now);
        }
    }
}

/// SIGINT and SIGTERM, caught from the start on.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Caught so that a write beyond a limit of file sizes fails as on a full disk, rather than ending the process.
    _file_size: Signal,
}

/// SIGXFSZ, the same number on Linux and macOS.
const FILE_SIZE_EXCEEDED: i32 = 25;

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            _file_size: signal(SignalKind::from_raw(FILE_SIZE_EXCEEDED))?,
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Writes to standard output. A reader that has gone is no error of ours.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
}

fn complain(text: &str) {
    let mut err = std::io::stderr().lock();
    err.write_all(text.as_bytes()).ok();
}
