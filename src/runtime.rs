//! A configuration made ready to run: names indexed, scripts compiled, the reads of each row determined. Built beside the running
//! one and never changed. What changes under it lives elsewhere: in the hub, the store, the limiters and the counters.

use std::sync::Arc;

use crate::config::Loaded;
use crate::config::diagnostic::Diagnostic;
use crate::config::plan::{ChannelPlan, DeliverForm, DeliverRow, FnRef, Plan, ProtocolPlan, Reply, Row, SourcePlan};
use crate::hub::Published;
use crate::model::Now;
use crate::model::id::{IdMap, PatternId, ProtocolId, RowId, SourceId};
use crate::routing::ChannelTable;
use crate::routing::listeners::{self, Listener};
use crate::script::Scripts;
use crate::telemetry::metrics::{ChannelMetrics, DropReason, Metrics, PatternMetrics, ProtocolMetrics, RouteMetrics};

/// What a decision reads of the configuration.
pub struct Runtime {
    /// The configuration.
    pub plan: Plan,
    /// Channels by name.
    pub channels: ChannelTable,
    /// Compiled scripts.
    pub scripts: Arc<Scripts>,
    /// What is served at which address.
    pub listeners: Vec<Listener>,
    protocols: IdMap<ProtocolId, Protocol>,
    sources: IdMap<SourceId, Arc<SourcePlan>>,
    reads: IdMap<RowId, Reads>,
}

/// A protocol made ready to run.
pub struct Protocol {
    /// Its configuration.
    pub plan: Arc<ProtocolPlan>,
    /// What the function reads that is called for every message.
    pub reads: Reads,
    /// Whether a script may run for what its clients are written of events.
    pub delivers_by_script: bool,
}

/// What a row reads besides its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// The position of a channel: `recover`.
    pub positions: bool,
    /// What its scripts ask: `history`, `members`, `connections`, `statistics`.
    pub world: bool,
}

impl Reads {
    fn of(row: &Row, scripts: &Scripts) -> Self {
        let answer = match &row.reply {
            Some(Reply::Call(function)) => Some(function),
            _ => None,
        };
        let functions = [&row.when, &row.validate, &row.transform, &row.call].into_iter().flatten().chain(answer);
        Self { positions: row.join.iter().any(|join| join.recover.is_some()), world: functions.into_iter().any(|f| scripts.asks(f)) }
    }

    fn of_function(function: Option<&FnRef>, scripts: &Scripts) -> Self {
        Self { positions: false, world: function.is_some_and(|function| scripts.asks(function)) }
    }

    /// Whether anything is read.
    pub fn any(self) -> bool {
        self.positions || self.world
    }
}

/// Compiles what was loaded. All mistakes, in the configuration and in the scripts, are reported together. Plugins that
/// are the same as in `previous` keep their health.
pub fn build(loaded: Loaded, previous: Option<&Runtime>) -> Result<Runtime, Vec<Diagnostic>> {
    let (scripts, found) = Scripts::build(&loaded.plugins, &loaded.functions, &loaded.expressions, previous.map(|before| &*before.scripts));
    let mut diagnostics = loaded.diagnostics;
    diagnostics.extend(found);
    let plan = match loaded.plan {
        Some(plan) if diagnostics.is_empty() => plan,
        _ => return Err(diagnostics),
    };
    let protocol = |plan: &Arc<ProtocolPlan>| {
        let reads = Reads::of_function(plan.validate.as_ref(), &scripts);
        let by_script = |row: &DeliverRow| row.when.is_some() || matches!(row.form, Some(DeliverForm::Call(_)));
        (plan.id, Protocol { plan: plan.clone(), reads, delivers_by_script: plan.deliver.iter().any(by_script) })
    };
    Ok(Runtime {
        channels: ChannelTable::new(&plan.channels),
        listeners: listeners::listeners(&plan),
        protocols: plan.protocols.iter().map(protocol).collect(),
        sources: plan.sources.iter().map(|source| (source.id, source.clone())).collect(),
        reads: plan.rows().map(|row| (row.id, Reads::of(row, &scripts))).collect(),
        plan,
        scripts,
    })
}

impl Runtime {
    /// A protocol, where this configuration has it.
    pub fn protocol(&self, id: ProtocolId) -> Option<&Protocol> {
        self.protocols.get(id)
    }

    /// A source, where this configuration has it.
    pub fn source(&self, id: SourceId) -> Option<&Arc<SourcePlan>> {
        self.sources.get(id)
    }

    /// What a row reads.
    pub fn reads(&self, id: RowId) -> Reads {
        self.reads.get(id).copied().unwrap_or_default()
    }
}

/// The counters of a configuration, by its names. The objects themselves live as long as the process, so counts continue over
/// reloads.
pub struct Counters {
    /// All there is.
    pub metrics: Arc<Metrics>,
    /// Of all channels together.
    pub channels: Arc<ChannelMetrics>,
    /// When the server started.
    pub started: Now,
    protocols: IdMap<ProtocolId, Arc<ProtocolMetrics>>,
    rows: IdMap<RowId, Arc<RouteMetrics>>,
    patterns: IdMap<PatternId, Arc<PatternMetrics>>,
}

impl Counters {
    /// Those of a plan.
    pub fn new(plan: &Plan, metrics: &Arc<Metrics>, started: Now) -> Self {
        for source in &plan.sources {
            metrics.source(&source.name);
        }
        Self {
            channels: metrics.channels(),
            started,
            protocols: plan.protocols.iter().map(|protocol| (protocol.id, metrics.protocol(&protocol.name))).collect(),
            rows: plan.rows().map(|row| (row.id, metrics.route(&row.name))).collect(),
            patterns: plan.channels.iter().map(|channel| (channel.id, metrics.pattern(channel.pattern.as_str()))).collect(),
            metrics: metrics.clone(),
        }
    }

    /// Of a protocol.
    pub fn protocol(&self, id: ProtocolId) -> Option<&Arc<ProtocolMetrics>> {
        self.protocols.get(id)
    }

    /// Of a row.
    pub fn row(&self, id: RowId) -> Option<&RouteMetrics> {
        self.rows.get(id).map(|counted| &**counted)
    }

    /// Of a channel's pattern.
    pub fn pattern(&self, channel: &ChannelPlan) -> Arc<PatternMetrics> {
        self.patterns.get(channel.id).cloned().unwrap_or_else(|| self.metrics.pattern(channel.pattern.as_str()))
    }

    /// Counts what became of events for receivers that scripts write for, which are counted already: see
    /// [`crate::hub::Rendering::counted`].
    pub fn rendered(&self, channel: Option<&ChannelPlan>, [delivered, overflowed, gone]: [usize; 3]) {
        self.channels.delivered.add(delivered as u64);
        self.channels.drop_many(DropReason::OutboxFull, overflowed as u64);
        self.channels.drop_many(DropReason::Gone, gone as u64);
        if let Some(pattern) = channel.and_then(|plan| self.patterns.get(plan.id)) {
            pattern.delivered.add(delivered as u64);
        }
    }

    /// Counts an event and its deliveries. `channel`: the configuration of its channel; none if it went to connections
    /// directly.
    pub fn published(&self, channel: Option<&ChannelPlan>, published: &Published) {
        self.channels.published.inc();
        self.channels.delivered.add(published.delivered as u64);
        self.channels.drop_many(DropReason::OutboxFull, published.overflowed as u64);
        self.channels.drop_many(DropReason::Gone, published.gone as u64);
        if let Some(pattern) = channel.and_then(|plan| self.patterns.get(plan.id)) {
            pattern.published.inc();
            pattern.delivered.add(published.delivered as u64);
            pattern.bytes.add(published.event.new.data.as_str().len() as u64);
        }
    }
}
