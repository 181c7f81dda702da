//! Runs the sources of the configuration, each by its name: starts those that are new, ends those that are gone, and starts
//! again those that failed, after a pause that grows. Knows the state and the last failure of each.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Emitter, Every, Source, SourceError};
use crate::config::plan::{SourceKind, SourcePlan};
use crate::live::Live;
use crate::model::id::SourceId;

/// The pause after a failure, doubled with each that follows …
const PAUSE: Duration = Duration::from_millis(500);
/// … up to this. A source that ran for as long begins with the first again.
const PAUSE_LONGEST: Duration = Duration::from_secs(30);

/// The state of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceReport {
    /// `running`, `waiting` before it is started again, or `stopped`.
    pub state: &'static str,
    /// What it produces events from: `every 30s`.
    pub from: String,
    /// What went wrong with its last event or made it end, and when, in milliseconds since the Unix epoch. None once an event
    /// succeeds.
    pub last_error: Option<(Arc<str>, i64)>,
}

/// A source that runs.
struct Running {
    plan: Arc<SourcePlan>,
    report: Arc<Mutex<SourceReport>>,
    stop: CancellationToken,
}

/// See the module.
pub struct Supervisor {
    live: Arc<Live>,
    tasks: TaskTracker,
    stop: CancellationToken,
    // Protects which sources run. Held to change that, or for a report.
    running: Mutex<BTreeMap<Arc<str>, Running>>,
}

impl Supervisor {
    /// Nothing runs yet. Sources are tasks of `tasks`, and end with `stop`.
    pub fn new(live: Arc<Live>, tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { live, tasks, stop, running: Mutex::default() }
    }

    /// Runs the sources of the current configuration: one of the same kind keeps running.
    pub fn sync(&self) {
        let snapshot = self.live.snapshot();
        let mut running = self.running.lock();
        running.retain(|_, source| {
            let stays = source.plan.goes_on(&snapshot.runtime.plan.sources);
            if !stays {
                source.stop.cancel();
            }
            stays
        });
        for plan in &snapshot.runtime.plan.sources {
            if !running.contains_key(&plan.name)
                && let Some(source) = self.start(plan)
            {
                running.insert(plan.name.clone(), source);
            }
        }
    }

    /// The names of those that have not stopped.
    pub fn running(&self) -> Vec<Arc<str>> {
        let running = self.running.lock();
        running.iter().filter(|(_, source)| source.report.lock().state != "stopped").map(|(name, _)| name.clone()).collect()
    }

    /// The state of a source that runs as a task.
    pub fn report(&self, name: &str) -> Option<SourceReport> {
        self.running.lock().get(name).map(|source| source.report.lock().clone())
    }

    fn start(&self, plan: &Arc<SourcePlan>) -> Option<Running> {
        match &plan.kind {
            SourceKind::Every { period, .. } => Some(self.supervise(plan, Every { period: *period })),
            SourceKind::Http { .. } => None,
        }
    }

    fn supervise(&self, plan: &Arc<SourcePlan>, source: impl Source) -> Running {
        let report = Arc::new(Mutex::new(SourceReport { state: "running", from: source.describe(), last_error: None }));
        let stop = self.stop.child_token();
        let out = Emitter { live: self.live.clone(), source: SourceId::of(&plan.name), report: report.clone() };
        self.tasks.spawn(keep_running(source, out, stop.clone()));
        Running { plan: plan.clone(), report, stop }
    }
}

/// Runs a source until `stop` fires, however often it fails.
async fn keep_running(mut source: impl Source, out: Emitter, stop: CancellationToken) {
    let report = &out.report;
    let mut pause = PAUSE;
    loop {
        report.lock().state = "running";
        let began = tokio::time::Instant::now();
        let ended = AssertUnwindSafe(source.run(&out, &stop)).catch_unwind().await;
        if stop.is_cancelled() {
            report.lock().state = "stopped";
            return;
        }
        let error = match ended {
            Ok(Ok(())) => SourceError("it ended".into()),
            Ok(Err(error)) => error,
            Err(_) => SourceError("it panicked, which is a bug in Tramline".into()),
        };
        if began.elapsed() >= PAUSE_LONGEST {
            pause = PAUSE;
        }
        tracing::warn!(source = %out.name(), %error, again_in = ?pause, "a source failed");
        {
            let mut report = report.lock();
            report.state = "waiting";
            report.last_error = Some((error.0, out.now().wall_ms));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(pause) => pause = (pause * 2).min(PAUSE_LONGEST),
        }
        if stop.is_cancelled() {
            report.lock().state = "stopped";
            return;
        }
    }
}
