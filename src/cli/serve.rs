//! `tramline serve`: starts an engine as the command line says and runs it until a signal stops it.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use super::{Cli, LogFormat, complain, faults, say};
use crate::engine::{self, Engine, Failure, Shutdown};
use crate::model::Clock;
use crate::reload::load::from_disk;
use crate::reload::{Asked, Configuration, Reloader};
use crate::store::Store;
use crate::tasks::STACK_BYTES;
use crate::telemetry::log::{self, Format};
use crate::telemetry::memory;

/// How many tasks run before sockets are polled again and published messages are written. With tokio's 61, a round of a few
/// hundred busy clients takes several polls, and each client is written to after each of them.
const ROUND_TASKS: u32 = 512;

/// The number of open files the server asks the system for: enough for one listener's sockets and some more.
const FILES_WANTED: u64 = 65_536;

pub(super) fn run(cli: &Cli) -> ExitCode {
    log::init(match cli.log {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    });
    // A panic is a bug and is logged as one line. The code that catches it cleans up.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    threads.enable_all().thread_stack_size(STACK_BYTES).event_interval(ROUND_TASKS).on_thread_stop(memory::thread_ends);
    let built = threads.build();
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start the runtime: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(serve(cli));
    // Tasks that did not end in time have been logged; they are not waited for again.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("tramline: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

async fn serve(cli: &Cli) -> Result<(), Failure> {
    let clock = Clock::default();
    let read = from_disk(&cli.config);
    let configuration = Configuration::load(Arc::new(read))
        .map_err(|(found, files)| anyhow::anyhow!("{} cannot be used:\n{}", cli.config.display(), faults(&found, &files)))?;
    // A socket counts as a file, and the usual soft limit of 1024 is less than the number of clients of one protocol.
    match rlimit::increase_nofile_limit(FILES_WANTED) {
        Ok(files) if files < FILES_WANTED => {
            tracing::info!(files, "the system allows only this many open files, which also limits the sockets");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
    // Signals are caught before anything is open, so that a stop during the start is orderly.
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let log = Store::open(&configuration.runtime.plan.store, &clock).await.map_err(anyhow::Error::from)?;
    let engine = Engine::start(configuration, log, clock).await?;
    announce(cli, &engine);
    reload_on_signal(engine.reloader().clone())?;
    #[cfg(debug_assertions)]
    break_on_signal(engine.core().clone())?;
    engine::serve(engine, &mut signals).await
}

/// Prints what is served at which address: as a table for people, as log lines for programs.
fn announce(cli: &Cli, engine: &Engine) {
    let lines = engine.served();
    match cli.log {
        LogFormat::Json => lines.iter().for_each(|(name, url)| tracing::info!(name = &**name, url, "serving")),
        LogFormat::Text => {
            let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            let text: String = lines.iter().map(|(name, url)| format!("  {name:<width$}  {url}\n")).collect();
            say(&format!("tramline {} serves {}\n{text}", env!("CARGO_PKG_VERSION"), cli.config.display()));
        }
    }
    let plan = &engine.live().current().runtime.plan;
    tracing::info!(protocols = plan.protocols.len(), sources = plan.sources.len(), channels = plan.channels.len(), "ready");
}

/// SIGINT and SIGTERM, caught from the start.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Caught so that a write beyond the file size limit fails like one on a full disk, instead of ending the process.
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
}

impl Shutdown for Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// SIGHUP reloads. It is caught from here on; before, it ends the process, as usual.
fn reload_on_signal(reloader: Arc<Reloader>) -> anyhow::Result<()> {
    let mut told = signal(SignalKind::hangup()).context("cannot catch signals")?;
    tokio::spawn(async move {
        while told.recv().await.is_some() {
            // A refusal has been logged already.
            reloader.reload(Asked::default(), Instant::now()).await.ok();
        }
    });
    Ok(())
}

/// SIGUSR2 makes the task that `TRAMLINE_BREAK_DOWN` names panic. For tests, only in debug builds.
#[cfg(debug_assertions)]
fn break_on_signal(core: crate::tasks::Core) -> anyhow::Result<()> {
    let mut told = signal(SignalKind::user_defined2()).context("cannot catch signals")?;
    tokio::spawn(async move {
        while told.recv().await.is_some() {
            if let Ok(task) = std::env::var("TRAMLINE_BREAK_DOWN") {
                core.break_down(&task);
            }
        }
    });
    Ok(())
}
