//! The engine in the test's own process, on threads of its own: what `tramline serve` runs, but for the log and the signals.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;
use tramline::config;
use tramline::engine::{Engine, Failure, Shutdown, serve};
use tramline::model::Clock;
use tramline::reload::Configuration;
use tramline::store::Store;
use tramline::tasks::STACK_BYTES;

/// An engine that runs. Taken down without ceremony when dropped.
pub struct Embedded {
    stop: UnboundedSender<&'static str>,
    abandon: CancellationToken,
    clock: Clock,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

/// What is served under which name.
pub type Served = Vec<(Arc<str>, String)>;

struct Told(UnboundedReceiver<&'static str>);

impl Shutdown for Told {
    async fn next(&mut self) -> &'static str {
        match self.0.recv().await {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }
}

impl Embedded {
    /// Starts one on a routes file and waits until it serves.
    pub fn start(routes: PathBuf, env: Vec<(String, String)>) -> (Self, Served) {
        let (stop, told) = unbounded_channel();
        let abandon = CancellationToken::new();
        let abandoned = abandon.clone();
        let (say, served) = std::sync::mpsc::channel();
        let clock = Clock::movable();
        let read = clock.clone();
        let run = move || {
            let threads = tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(STACK_BYTES).build().unwrap();
            let ended = threads.block_on(async {
                let engine = start(routes, env, read).await;
                say.send(engine.served()).unwrap();
                let mut told = Told(told);
                tokio::select! {
                    ended = serve(engine, &mut told) => ended,
                    () = abandoned.cancelled() => Ok(()),
                }
            });
            threads.shutdown_background();
            ended
        };
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(run).unwrap();
        let served = served.recv().expect("it starts");
        (Self { stop, abandon, clock, thread: Some(thread) }, served)
    }

    /// Its clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Asks it to stop and waits until it has: in order, or not.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.stop.send("the test").ok();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.abandon.cancel();
        if let Some(thread) = self.thread.take() {
            // Its panic is what the test fails with, or of no matter.
            thread.join().ok();
        }
    }
}

async fn start(routes: PathBuf, env: Vec<(String, String)>, clock: Clock) -> Engine {
    let read = move || config::load(&routes, &|name| env.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone()));
    let configuration =
        Configuration::load(Arc::new(read)).unwrap_or_else(|(found, files)| panic!("{}", config::diagnostic::render(&found, &files)));
    let log = Store::open(&configuration.runtime.plan.store, &clock).await.unwrap();
    Engine::start(configuration, log, clock).await.unwrap()
}
