//! Puts together what the parts of the router count of themselves, for `GET /api/stats` and `GET /metrics`.

use serde_json::{Value, json as value};

use crate::model::Now;
use crate::model::clock::iso;
use crate::router::Router;
use crate::script::PluginState;
use crate::store::StoreState;
use crate::telemetry::metrics::{Kind, Sample};
use crate::telemetry::{memory, process};

/// The numbers as JSON.
pub fn json(router: &Router, now: Now) -> Value {
    let context = &router.context;
    let mut all = context.runtime.metrics.json(now);
    let stats = router.store.stats();
    let (state, since, reason) = match router.store.state() {
        StoreState::Ok => ("ok", None, None),
        StoreState::Degraded { since_ms, reason } => ("degraded", Some(iso(since_ms)), Some(reason.to_string())),
    };
    all["store"] = value!({
        "state": state,
        "since": since,
        "reason": reason,
        "queue": { "rows": stats.queued_rows, "bytes": stats.queued_bytes },
        "lagMillis": u64::try_from(stats.lag.as_millis()).unwrap_or(u64::MAX),
        "committed": { "rows": stats.committed_rows, "batches": stats.committed_batches },
        "refusedRows": stats.refused_rows,
        "droppedRecords": stats.dropped_records,
    });
    let queues: Vec<_> = context.hub.connections(None).iter().map(|c| c.outbox.measure()).collect();
    all["outboxes"] = value!({
        "frames": queues.iter().map(|q| q.frames).sum::<usize>(),
        "bytes": queues.iter().map(|q| q.bytes).sum::<usize>(),
        "fullest": queues.iter().map(|q| q.bytes).max().unwrap_or(0),
    });
    all["channels"]["live"] = context.hub.channel_count().into();
    let scripts = context.runtime.scripts.report();
    all["scripts"] = scripts
        .iter()
        .map(|plugin| {
            let entry = value!({
                "calls": plugin.calls,
                "failures": plugin.failures,
                "meanMicros": plugin.mean_us,
                "maxMicros": plugin.max_us,
                "inService": plugin.state == PluginState::InService,
            });
            (plugin.name.to_string(), entry)
        })
        .collect::<serde_json::Map<_, _>>()
        .into();
    all["memory"] = value!({ "liveBytes": memory::process_live_bytes(), "residentBytes": process::resident_bytes() });
    all
}

/// The numbers as Prometheus text.
pub fn prometheus(router: &Router, now: Now) -> String {
    let context = &router.context;
    let stats = router.store.stats();
    let up = f64::from(u8::from(router.store.state() == StoreState::Ok));
    let sample = |name, help, kind, value| Sample { name, help, kind, labels: Vec::new(), value };
    let mut more = vec![
        sample("channels_live", "Channels in memory.", Kind::Gauge, context.hub.channel_count() as f64),
        sample("store_up", "Whether the store takes events.", Kind::Gauge, up),
        sample("store_queue_rows", "Rows that wait to be stored.", Kind::Gauge, stats.queued_rows as f64),
        sample("store_queue_bytes", "Bytes that wait to be stored.", Kind::Gauge, stats.queued_bytes as f64),
        sample("store_lag_seconds", "How long the oldest row has waited.", Kind::Gauge, stats.lag.as_secs_f64()),
        sample("store_rows_total", "Rows stored.", Kind::Counter, stats.committed_rows as f64),
        sample("memory_live_bytes", "Memory taken and not given back.", Kind::Gauge, memory::process_live_bytes() as f64),
    ];
    more.extend(process::resident_bytes().map(|n| sample("memory_resident_bytes", "Memory in use.", Kind::Gauge, n as f64)));
    let scripts = context.runtime.scripts.report();
    let mut per_plugin = |name, help, kind, of: &dyn Fn(&crate::script::PluginReport) -> f64| {
        more.extend(scripts.iter().map(|p| Sample { name, help, kind, labels: vec![("plugin", p.name.to_string())], value: of(p) }));
    };
    per_plugin("script_calls_total", "Calls of a plugin.", Kind::Counter, &|p| p.calls as f64);
    per_plugin("script_failures_total", "Calls of a plugin that failed.", Kind::Counter, &|p| p.failures as f64);
    per_plugin("script_in_service", "Whether a plugin is called.", Kind::Gauge, &|p| {
        f64::from(u8::from(p.state == PluginState::InService))
    });
    context.runtime.metrics.prometheus(now, &more)
}
