//! Collects the counters of all parts of the server for `GET /api/stats` and `GET /metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::live::Live;
use crate::model::clock::iso;
use crate::model::{Now, PluginName};
use crate::reload::Status;
use crate::script::PluginReport;
use crate::store::StoreState;
use crate::telemetry::metrics::{Kind, Sample, Timed};
use crate::telemetry::report::{ChannelRates, Counted, PatternCounted, ProtocolCounted, RouteCounted, SourceCounted, Tally};
use crate::telemetry::{memory, process};

/// What the server counts and holds, now.
#[derive(Serialize, ToSchema)]
pub struct Stats {
    /// When the server started.
    #[schema(format = DateTime)]
    started: String,
    /// Whole seconds since then.
    uptime: u64,
    /// Open connections.
    connections: u64,
    /// All channels together.
    channels: ChannelNumbers,
    /// By name.
    #[schema(value_type = BTreeMap<String, ProtocolCounted>)]
    protocols: BTreeMap<Arc<str>, ProtocolCounted>,
    /// By name: `chat.messages.say`.
    #[schema(value_type = BTreeMap<String, RouteCounted>)]
    routes: BTreeMap<Arc<str>, RouteCounted>,
    /// By name.
    #[schema(value_type = BTreeMap<String, SourceCounted>)]
    sources: BTreeMap<Arc<str>, SourceCounted>,
    /// The store.
    store: StoreNow,
    /// What waits to be written to all clients.
    outboxes: Outboxes,
    /// Plugins, by name.
    #[schema(value_type = BTreeMap<String, ScriptNow>)]
    scripts: BTreeMap<PluginName, ScriptNow>,
    /// Memory.
    memory: Memory,
}

/// All channels together.
#[derive(Serialize, ToSchema)]
struct ChannelNumbers {
    /// Channels in memory.
    live: usize,
    /// Events published.
    published: u64,
    /// Deliveries: events times receivers.
    delivered: u64,
    /// Events that did not reach their receivers, by reason.
    #[schema(example = json!({ "outbox_full": 0, "gone": 2 }))]
    dropped: Tally,
    /// Per second, over the last ten.
    rates: ChannelRates,
    /// By the channel's pattern, as the configuration writes it.
    #[schema(value_type = BTreeMap<String, PatternCounted>)]
    patterns: BTreeMap<Arc<str>, PatternCounted>,
}

/// The store.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct StoreNow {
    /// Whether it takes events.
    state: StoreWord,
    /// Since when it does not.
    #[schema(required, format = DateTime)]
    since: Option<String>,
    /// Why it does not.
    #[schema(required)]
    reason: Option<Arc<str>>,
    /// What waits to be stored.
    queue: StoreQueue,
    /// How long the oldest of it has waited.
    lag_millis: u64,
    /// What was stored since the start.
    committed: Committed,
    /// Rows that the database refused because of their content.
    refused_rows: u64,
    /// Records of connections for which there was no room.
    dropped_records: u64,
}

/// Whether the store takes events.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum StoreWord {
    Ok,
    Degraded,
}

/// What waits to be stored.
#[derive(Serialize, ToSchema)]
struct StoreQueue {
    /// Rows.
    rows: usize,
    /// Bytes of them.
    bytes: usize,
}

/// What was stored since the start.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Committed {
    /// Rows.
    rows: u64,
    /// Transactions they took.
    batches: u64,
    /// Mean time of a transaction until it was on the disk, in microseconds.
    mean_micros: f64,
    /// Longest time of a transaction until it was on the disk, in microseconds.
    max_micros: u64,
}

/// What waits to be written to all clients.
#[derive(Serialize, ToSchema)]
struct Outboxes {
    /// Frames.
    frames: usize,
    /// Bytes of them.
    bytes: usize,
    /// Bytes of the fullest.
    fullest: usize,
}

/// The numbers of a plugin.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ScriptNow {
    /// Calls since the server started.
    calls: u64,
    /// Calls that failed.
    failures: u64,
    /// Mean time of a call, in microseconds.
    mean_micros: f64,
    /// Longest time of a call, in microseconds.
    max_micros: u64,
    /// Whether all its functions are called.
    in_service: bool,
}

/// Memory, in bytes.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Memory {
    /// Taken and not given back.
    live_bytes: u64,
    /// As the system counts it; missing if the system does not say.
    #[schema(required)]
    resident_bytes: Option<u64>,
}

/// The numbers, now.
pub fn now(live: &Live, now: Now) -> Stats {
    let snapshot = live.snapshot();
    let metrics = &live.metrics;
    let Counted { channels, patterns, protocols, routes, sources } = metrics.counted();
    let queues: Vec<_> = snapshot.hub.connections(None).iter().map(|c| c.outbox.measure()).collect();
    let script = |plugin: PluginReport| {
        let in_service = plugin.out.is_empty();
        let (calls, failures) = (plugin.calls, plugin.failures);
        (plugin.name, ScriptNow { calls, failures, mean_micros: plugin.mean_us, max_micros: plugin.max_us, in_service })
    };
    Stats {
        started: metrics.started().iso(),
        uptime: metrics.uptime_s(now),
        connections: protocols.values().map(|p| p.connections).sum(),
        channels: ChannelNumbers {
            live: snapshot.hub.channel_count(),
            published: channels.published,
            delivered: channels.delivered,
            dropped: channels.dropped,
            rates: channels.rates,
            patterns,
        },
        protocols,
        routes,
        sources,
        store: store(live),
        outboxes: Outboxes {
            frames: queues.iter().map(|q| q.frames).sum(),
            bytes: queues.iter().map(|q| q.bytes).sum(),
            fullest: queues.iter().map(|q| q.bytes).max().unwrap_or(0),
        },
        scripts: snapshot.runtime.scripts.report().into_iter().map(script).collect(),
        memory: Memory { live_bytes: memory::process_live_bytes(), resident_bytes: process::resident_bytes() },
    }
}

fn store(live: &Live) -> StoreNow {
    let stats = live.store.stats();
    let (state, since, reason) = match live.store.state() {
        StoreState::Ok => (StoreWord::Ok, None, None),
        StoreState::Degraded { since_ms, reason } => (StoreWord::Degraded, Some(iso(since_ms)), Some(reason)),
    };
    StoreNow {
        state,
        since,
        reason,
        queue: StoreQueue { rows: stats.queued_rows, bytes: stats.queued_bytes },
        lag_millis: u64::try_from(stats.lag.as_millis()).unwrap_or(u64::MAX),
        committed: Committed {
            rows: stats.committed_rows,
            batches: stats.committed_batches,
            mean_micros: stats.commits.mean().as_secs_f64() * 1e6,
            max_micros: u64::try_from(stats.commits.longest.as_micros()).unwrap_or(u64::MAX),
        },
        refused_rows: stats.refused_rows,
        dropped_records: stats.dropped_records,
    }
}

/// The numbers as Prometheus text.
pub fn prometheus(live: &Live, reload: &Status, now: Now) -> String {
    let snapshot = live.snapshot();
    let stats = live.store.stats();
    let up = f64::from(u8::from(live.store.state() == StoreState::Ok));
    let sample = |name, help, kind, value| Sample { name, help, kind, labels: Vec::new(), value };
    let in_use = f64::from(u8::from(reload.refused.is_none()));
    let mut more = vec![
        sample("config_generation", "Which configuration is in use, from 1.", Kind::Gauge, reload.current.generation as f64),
        sample("config_last_reload_successful", "Whether the last reload was not refused.", Kind::Gauge, in_use),
        sample("log_followers", "Streams and requests that follow the log.", Kind::Gauge, snapshot.hub.feed.len() as f64),
        sample("channels_live", "Channels in memory.", Kind::Gauge, snapshot.hub.channel_count() as f64),
        sample("store_up", "Whether the store takes events.", Kind::Gauge, up),
        sample("store_queue_rows", "Rows that wait to be stored.", Kind::Gauge, stats.queued_rows as f64),
        sample("store_queue_bytes", "Bytes that wait to be stored.", Kind::Gauge, stats.queued_bytes as f64),
        sample("store_lag_seconds", "How long the oldest row has waited.", Kind::Gauge, stats.lag.as_secs_f64()),
        sample("store_rows_total", "Rows stored.", Kind::Counter, stats.committed_rows as f64),
        sample("memory_live_bytes", "Memory allocated and not freed.", Kind::Gauge, memory::process_live_bytes() as f64),
    ];
    more.extend(process::resident_bytes().map(|n| sample("memory_resident_bytes", "Memory in use.", Kind::Gauge, n as f64)));
    let scripts = snapshot.runtime.scripts.report();
    let mut per_plugin = |name, help, kind, of: &dyn Fn(&PluginReport) -> f64| {
        more.extend(scripts.iter().map(|p| Sample { name, help, kind, labels: vec![("plugin", p.name.to_string())], value: of(p) }));
    };
    per_plugin("script_calls_total", "Calls of a plugin.", Kind::Counter, &|p| p.calls as f64);
    per_plugin("script_failures_total", "Calls of a plugin that failed.", Kind::Counter, &|p| p.failures as f64);
    per_plugin("script_in_service", "Whether all functions of a plugin are called.", Kind::Gauge, &|p| {
        f64::from(u8::from(p.out.is_empty()))
    });
    let mut per_function = |name, help, kind, of: &dyn Fn(&PluginReport, &str) -> f64| {
        for plugin in &scripts {
            let labels = |function: &str| vec![("plugin", plugin.name.to_string()), ("function", function.to_owned())];
            let sample = |function: &Arc<str>| Sample { name, help, kind, labels: labels(function), value: of(plugin, function) };
            more.extend(plugin.called.iter().map(sample));
        }
    };
    per_function("script_function_in_service", "Whether a function of a plugin is called.", Kind::Gauge, &|plugin, function| {
        f64::from(u8::from(!plugin.out.iter().any(|out| out.function == function)))
    });
    let commits =
        Timed { name: "store_commit_seconds", help: "Transactions of the store, until they were on the disk.", took: stats.commits };
    live.metrics.prometheus(now, &more, &[commits])
}
