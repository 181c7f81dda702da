//! Events that no client sent. A source produces events and hands them to `live`; the configuration decides what they do.
//! Each runs as a task of its own, by name, and is started again where it fails. An HTTP endpoint is a route, not a task: it
//! shares the rows and has no file here.

mod every;
mod supervisor;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::apply::in_time;
use crate::config::plan::SourcePlan;
use crate::live::Live;
use crate::model::id::SourceId;
use crate::model::{Code, Fault, Json, Now};

pub use every::Every;
pub use supervisor::{SourceReport, Supervisor};

/// What makes events.
pub trait Source: Send + 'static {
    /// What a person reads of it: `every 30s`.
    fn describe(&self) -> String;

    /// Produces events until `stop` fires. If it fails, or ends before that, it is started again after a pause.
    fn run(&mut self, out: &Emitter, stop: &CancellationToken) -> impl Future<Output = Result<(), SourceError>> + Send;
}

/// Why a source ended, for the log and REST.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub Arc<str>);

/// Where a source's events go.
#[derive(Clone)]
pub struct Emitter {
    live: Arc<Live>,
    source: SourceId,
    report: Arc<Mutex<SourceReport>>,
}

impl Emitter {
    /// Hands over one event. Resolves when what the source's rows published for it is as durable as their channels promise:
    /// a source that waits for this slows down with the store. A failure is told in the source's report until an event succeeds.
    pub async fn emit(&self, event: Json) {
        let outcome = self.hand_over(event).await;
        let failed = outcome.err().map(|fault| {
            let why = fault.detail.as_deref().unwrap_or(&fault.message);
            // What scripts do wrong is logged where it happens.
            if fault.code != Code::ScriptFailed {
                tracing::warn!(source = %self.name(), code = fault.code.as_str(), why, "an event of a source was refused");
            }
            (Arc::from(why), self.now().wall_ms)
        });
        self.report.lock().last_error = failed;
    }

    async fn hand_over(&self, event: Json) -> Result<(), Fault> {
        let snapshot = self.live.current();
        let Some(plan) = snapshot.runtime.source(self.source) else {
            return Err(Fault::with(Code::NotFound, "the configuration no longer has this source"));
        };
        let accepted = self.live.source(&snapshot, plan, &event, None, self.live.now())?;
        in_time(accepted.settled(&self.live.store)).await.map(drop)
    }

    /// The current configuration of the source; none if it no longer has the source.
    pub fn plan(&self) -> Option<Arc<SourcePlan>> {
        self.live.snapshot().runtime.source(self.source).cloned()
    }

    /// This moment.
    pub fn now(&self) -> Now {
        self.live.now()
    }

    /// The source's name.
    pub fn name(&self) -> Arc<str> {
        self.source.name()
    }
}
