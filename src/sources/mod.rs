//! Events that no client sent. A source makes events and gives them to the router; what they do is the configuration's business.
//! HTTP sources have their door in `http`; the timers are here.

use std::sync::Arc;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use crate::config::plan::{SourceKind, SourcePlan};
use crate::model::{Json, Now, json};
use crate::pipeline::scope::Bindings;
use crate::router::Router;

/// Runs a timer until `stop` fires. Ticks that could not be kept are left out, never made up for.
pub async fn every(router: Arc<Router>, source: Arc<SourcePlan>, stop: CancellationToken) {
    let SourceKind::Every { period, .. } = &source.kind else { return };
    let mut ticks = interval_at(Instant::now() + *period, *period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => tick(&router, &source, Now::read()),
        }
    }
}

fn tick(router: &Router, source: &SourcePlan, now: Now) {
    let SourceKind::Every { kind, data, .. } = &source.kind else { return };
    let bindings = Bindings::at(now);
    let mut body = String::from("{\"type\":");
    json::push_string(&mut body, &kind.render(&bindings).unwrap_or_default());
    body.push_str(",\"data\":");
    body.push_str(data.render(&bindings).as_deref().unwrap_or("null"));
    body.push('}');
    if let Err(fault) = router.source(source, Json::trusted(body), None, now) {
        let why = fault.detail.as_deref().unwrap_or(&fault.message);
        tracing::warn!(source = %source.name, code = fault.code.as_str(), why, "an event of a source was refused");
    }
}
