//! `every: 30s`: a timer. Knows no channel and no row.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::{Emitter, Source, SourceError};
use crate::config::plan::SourceKind;
use crate::model::{Json, json};
use crate::pipeline::scope::Bindings;

/// A timer. Missed ticks are skipped, never made up for.
pub struct Every {
    /// Between two events.
    pub period: Duration,
}

impl Source for Every {
    fn describe(&self) -> String {
        format!("every {}", humantime::format_duration(self.period))
    }

    async fn run(&mut self, out: &Emitter, stop: &CancellationToken) -> Result<(), SourceError> {
        let mut ticks = interval_at(Instant::now() + self.period, self.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            // The event is built from the current configuration.
            let Some(event) = event(out) else { return Ok(()) };
            out.emit(event).await;
        }
    }
}

/// `emit:`, at this moment.
fn event(out: &Emitter) -> Option<Json> {
    let plan = out.plan()?;
    let SourceKind::Every { kind, data, .. } = &plan.kind else { return None };
    let bindings = Bindings::at(out.now());
    let mut body = String::from("{\"type\":");
    json::push_string(&mut body, &kind.render(&bindings).unwrap_or_default());
    body.push_str(",\"data\":");
    body.push_str(data.render(&bindings).as_deref().unwrap_or("null"));
    body.push('}');
    Some(Json::trusted(body))
}
