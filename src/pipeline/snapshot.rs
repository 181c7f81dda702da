//! What one input is decided and applied on: one version of the configuration, and the state in memory.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};

use crate::hub::{Hub, Published};
use crate::limits::SharedLimits;
use crate::model::id::ProtocolId;
use crate::model::{Clock, Event, Json, Now, clock};
use crate::runtime::{Counters, Runtime};
use crate::script::World;

/// The most items of any answer: the bound on a script's arrays.
pub(super) const ITEMS_MAX: usize = 10_000;

/// One version of the configuration, with its counters and limiters, and the world. Made once for each version. Each input takes
/// one and is handled entirely under it.
pub struct Snapshot {
    /// The configuration, compiled.
    pub runtime: Arc<Runtime>,
    /// The limiters that senders share.
    pub limits: Arc<SharedLimits>,
    /// What is counted, by the configuration's names.
    pub counters: Arc<Counters>,
    /// Channels and connections.
    pub hub: Arc<Hub>,
    /// The same, as scripts may ask about it.
    pub world: Arc<dyn World>,
}

impl Snapshot {
    /// The world under this configuration.
    pub fn new(runtime: Arc<Runtime>, limits: Arc<SharedLimits>, counters: Arc<Counters>, hub: Arc<Hub>, clock: Clock) -> Self {
        let world = Arc::new(HubWorld { counters: counters.clone(), hub: hub.clone(), clock });
        Self { runtime, limits, counters, hub, world }
    }

    /// Counts an event with what became of it.
    pub fn published(&self, channel: Option<&crate::config::plan::ChannelPlan>, published: &Published) {
        self.counters.published(channel, published);
    }
}

/// The hub and the counters, as scripts see them.
struct HubWorld {
    counters: Arc<Counters>,
    hub: Arc<Hub>,
    clock: Clock,
}

impl World for HubWorld {
    fn members(&self, channel: &str) -> Vec<Json> {
        self.hub.members_seen(channel, ITEMS_MAX, self.clock.now()).members
    }

    fn history(&self, channel: &str, count: usize) -> Vec<Arc<Event>> {
        self.hub.history(channel, count.min(ITEMS_MAX)).map(|seen| seen.events).unwrap_or_default()
    }

    fn connections(&self, protocol: &str) -> Vec<Json> {
        let Some(id) = ProtocolId::known(protocol) else { return Vec::new() };
        self.hub.connections(Some(id)).iter().take(ITEMS_MAX).map(|c| Json::of(&crate::hub::connection::report(c))).collect()
    }

    fn statistics(&self, protocol: &str, now: Now) -> Option<Json> {
        let id = ProtocolId::known(protocol)?;
        let metrics = self.counters.protocol(id)?;
        let (started, last_ms) = (self.counters.started, metrics.last_activity_ms.load(Relaxed));
        Some(Json::of(&serde_json::json!({
            "connections": self.hub.connection_count(Some(id)),
            "connections_total": metrics.connections_total.get(),
            "messages_in": metrics.messages_in.get(),
            "messages_out": metrics.messages_out.get(),
            "last_activity": clock::iso(if last_ms == 0 { started.wall_ms } else { last_ms }),
            "uptime_s": now.instant.saturating_duration_since(started.instant).as_secs(),
        })))
    }
}

/// See [`NoWorld`].
pub static NO_WORLD: LazyLock<Arc<dyn World>> = LazyLock::new(|| Arc::new(NoWorld));

/// The world while an event is being written for its receivers: scripts cannot ask anything, because each receiver gets the
/// event as it was published.
pub struct NoWorld;

impl World for NoWorld {
    fn may_be_asked(&self) -> bool {
        false
    }

    fn members(&self, _: &str) -> Vec<Json> {
        Vec::new()
    }

    fn history(&self, _: &str, _: usize) -> Vec<Arc<Event>> {
        Vec::new()
    }

    fn connections(&self, _: &str) -> Vec<Json> {
        Vec::new()
    }

    fn statistics(&self, _: &str, _: Now) -> Option<Json> {
        None
    }
}
