//! A configuration made ready to run: names indexed, scripts compiled, limiters and counters in place. Built beside the
//! running one and never changed; what changes lives in the hub, the store and the counters.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::Loaded;
use crate::config::diagnostic::Diagnostic;
use crate::config::plan::{ChannelPlan, Plan, ProtocolPlan, Row};
use crate::hub::Published;
use crate::limits::{KeyedLimiter, Limiter};
use crate::model::Now;
use crate::routing::{ChannelTable, table};
use crate::script::Scripts;
use crate::telemetry::metrics::{ChannelMetrics, DropReason, Metrics, PatternMetrics, ProtocolMetrics, RouteMetrics};

/// Users or addresses a limit remembers at once.
const LIMITED_KEYS_MAX: usize = 100_000;

/// What a decision reads.
pub struct Runtime {
    /// The configuration.
    pub plan: Plan,
    /// Channels by name.
    pub channels: ChannelTable,
    /// In the order of the configuration.
    pub protocols: Vec<Protocol>,
    /// Compiled scripts.
    pub scripts: Arc<Scripts>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is counted of all channels together.
    pub counters: Arc<ChannelMetrics>,
    /// Limits of rows that no connection speaks through: HTTP rows and sources.
    row_limits: HashMap<usize, Limiter>,
    /// By the ids of rows.
    routes: Vec<Arc<RouteMetrics>>,
    /// In the order of the configuration.
    patterns: Vec<Arc<PatternMetrics>>,
    /// When the server started.
    pub started: Now,
}

/// A protocol made ready to run.
pub struct Protocol {
    /// Its configuration.
    pub plan: Arc<ProtocolPlan>,
    /// Messages per user.
    pub user_limit: Option<KeyedLimiter>,
    /// Messages per address.
    pub address_limit: Option<KeyedLimiter>,
    /// New connections per address.
    pub connect_limit: Option<KeyedLimiter>,
    /// What is counted of it.
    pub metrics: Arc<ProtocolMetrics>,
}

/// Compiles what was loaded. Everything that is wrong, with the configuration or the scripts, is told together.
pub fn build(loaded: Loaded, metrics: &Arc<Metrics>, now: Now) -> Result<Runtime, Vec<Diagnostic>> {
    let (scripts, found) = Scripts::build(&loaded.plugins, &loaded.functions, &loaded.expressions, None);
    let mut diagnostics = loaded.diagnostics;
    diagnostics.extend(found);
    let plan = match loaded.plan {
        Some(plan) if diagnostics.is_empty() => plan,
        _ => return Err(diagnostics),
    };
    let protocols = plan
        .protocols
        .iter()
        .map(|protocol| {
            let limits = &protocol.limits;
            let keyed = |rate: &Option<_>| rate.as_ref().map(|rate| KeyedLimiter::new(rate, LIMITED_KEYS_MAX, now));
            Protocol {
                user_limit: keyed(&limits.user_rate),
                address_limit: keyed(&limits.address_rate),
                connect_limit: keyed(&limits.connect_rate),
                metrics: metrics.protocol(&protocol.name),
                plan: protocol.clone(),
            }
        })
        .collect();
    let http = plan.protocols.iter().flat_map(|p| &p.http).flat_map(|http| &http.rows);
    let sources = plan.sources.iter().flat_map(|source| source.messages.all());
    let row_limits = http.chain(sources).filter_map(|row| Some((row.id, Limiter::new(row.limit.as_ref()?, now)))).collect();
    let mut routes = Vec::new();
    for row in table::rows(&plan) {
        routes.resize_with(routes.len().max(row.id + 1), Arc::default);
        routes[row.id] = metrics.route(&row.name);
    }
    let patterns = plan.channels.iter().map(|c| metrics.pattern(c.pattern.as_str())).collect();
    for source in &plan.sources {
        metrics.source(&source.name);
    }
    Ok(Runtime {
        channels: ChannelTable::new(&plan.channels),
        plan,
        protocols,
        scripts,
        counters: metrics.channels(),
        metrics: metrics.clone(),
        row_limits,
        routes,
        patterns,
        started: now,
    })
}

impl Runtime {
    /// The place of a protocol.
    pub fn protocol_index(&self, name: &str) -> Option<usize> {
        self.protocols.iter().position(|p| *p.plan.name == *name)
    }

    /// The counters of a row, by its id.
    pub fn route_metrics(&self, row: usize) -> Option<&RouteMetrics> {
        self.routes.get(row).map(|counted| &**counted)
    }

    /// The limit of a row that no connection speaks through, where it has one.
    pub fn row_limit(&self, row: &Row) -> Option<&Limiter> {
        self.row_limits.get(&row.id)
    }

    /// The counters of a channel's pattern.
    pub fn pattern_metrics(&self, channel: &ChannelPlan) -> Arc<PatternMetrics> {
        self.patterns.get(channel.place).cloned().unwrap_or_else(|| self.metrics.pattern(channel.pattern.as_str()))
    }

    /// Counts an event with what became of it. `channel`: what the configuration says of its channel; none: it went to
    /// connections directly.
    pub fn published(&self, channel: Option<&ChannelPlan>, published: &Published) {
        self.counters.published.inc();
        self.counters.delivered.add(published.delivered as u64);
        self.counters.drop_many(DropReason::OutboxFull, published.overflowed as u64);
        self.counters.drop_many(DropReason::Gone, published.gone as u64);
        if let Some(pattern) = channel.and_then(|plan| self.patterns.get(plan.place)) {
            pattern.published.inc();
            pattern.delivered.add(published.delivered as u64);
            pattern.bytes.add(published.event.new.data.as_str().len() as u64);
        }
    }

    /// Forgets the limiters' keys that would pass anyway. Called now and then.
    pub fn sweep(&self, now: Now) {
        self.scripts.sweep(now);
        for protocol in &self.protocols {
            for limiter in [&protocol.user_limit, &protocol.address_limit, &protocol.connect_limit].into_iter().flatten() {
                limiter.sweep(now);
            }
        }
    }
}
