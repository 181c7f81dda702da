//! What scripts may ask about the world, answered from memory.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};

use crate::hub::Hub;
use crate::model::{Event, Json, Now, clock};
use crate::runtime::Runtime;
use crate::script::World;

/// The most items any question is answered with: the bound on a script's arrays.
const ITEMS_MAX: usize = 10_000;

/// What decisions read: the configuration, and the world as it is in memory.
#[derive(Clone)]
pub struct Context {
    /// The running configuration.
    pub runtime: Arc<Runtime>,
    /// Channels and connections.
    pub hub: Arc<Hub>,
    /// The same, as scripts may ask about it.
    pub world: Arc<dyn World>,
}

impl Context {
    /// A context over these.
    pub fn new(runtime: Arc<Runtime>, hub: Arc<Hub>) -> Self {
        let world = Arc::new(HubWorld { runtime: runtime.clone(), hub: hub.clone() });
        Self { runtime, hub, world }
    }
}

/// The hub and the counters, as scripts see them.
struct HubWorld {
    runtime: Arc<Runtime>,
    hub: Arc<Hub>,
}

impl World for HubWorld {
    fn members(&self, channel: &str) -> Vec<Json> {
        self.hub.members(channel, ITEMS_MAX)
    }

    fn history(&self, channel: &str, count: usize) -> Vec<Arc<Event>> {
        self.hub.tail(channel, count.min(ITEMS_MAX))
    }

    fn connections(&self, protocol: &str) -> Vec<Json> {
        let Some(index) = self.runtime.protocol_index(protocol) else { return Vec::new() };
        self.hub.connections(Some(index)).iter().take(ITEMS_MAX).map(|c| Json::of(&crate::hub::connection::report(c))).collect()
    }

    fn statistics(&self, protocol: &str) -> Option<Json> {
        let index = self.runtime.protocol_index(protocol)?;
        let metrics = &self.runtime.protocols[index].metrics;
        let (started, last_ms) = (self.runtime.started, metrics.last_activity_ms.load(Relaxed));
        Some(Json::of(&serde_json::json!({
            "connections": self.hub.connection_count(Some(index)),
            "connections_total": metrics.connections_total.get(),
            "messages_in": metrics.messages_in.get(),
            "messages_out": metrics.messages_out.get(),
            "last_activity": clock::iso(if last_ms == 0 { started.wall_ms } else { last_ms }),
            "uptime_s": Now::read().instant.saturating_duration_since(started.instant).as_secs(),
        })))
    }
}

/// See [`NoWorld`].
pub static NO_WORLD: LazyLock<Arc<dyn World>> = LazyLock::new(|| Arc::new(NoWorld));

/// The world while an event is being written for its receivers: their channel is locked, so there is nothing to ask.
pub struct NoWorld;

impl World for NoWorld {
    fn members(&self, _: &str) -> Vec<Json> {
        Vec::new()
    }

    fn history(&self, _: &str, _: usize) -> Vec<Arc<Event>> {
        Vec::new()
    }

    fn connections(&self, _: &str) -> Vec<Json> {
        Vec::new()
    }

    fn statistics(&self, _: &str) -> Option<Json> {
        None
    }
}
