//! Puts a new configuration in place of the current one, and ends what it no longer has.

use std::sync::Arc;

use super::Live;
use crate::hub::Connection;
use crate::limits::SharedLimits;
use crate::model::{ChannelName, Close, Now};
use crate::pipeline::publish::unknown;
use crate::pipeline::{Snapshot, fault_reply};
use crate::runtime::{Counters, Runtime};

/// How many connections are handled before other tasks get their turn.
const TURN: usize = 256;

/// What ended with a configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Connections whose protocol is gone.
    pub connections: usize,
    /// Subscriptions that are no longer allowed.
    pub subscriptions: usize,
    turns: usize,
}

/// Lets other tasks have their turn every now and then.
async fn turn(turns: &mut usize) {
    *turns += 1;
    if turns.is_multiple_of(TURN) {
        tokio::task::yield_now().await;
    }
}

impl Live {
    /// Installs a configuration for every input from now on, and returns the previous one.
    pub fn swap(&self, runtime: Runtime, now: Now) -> Arc<Snapshot> {
        let before = self.current.load_full();
        let limits = SharedLimits::new(&runtime.plan, Some(&before.limits), now);
        let counters = Counters::new(&runtime.plan, &self.metrics, before.counters.started);
        let mut retired = self.retired.lock();
        // A protocol that is back is no longer retired, and one without connections needs nothing.
        retired.retain(|(id, _)| runtime.protocol(*id).is_none() && self.hub.connection_count(Some(*id)) > 0);
        for plan in &before.runtime.plan.protocols {
            if runtime.protocol(plan.id).is_none() {
                retired.push((plan.id, before.clone()));
            }
        }
        let next = Snapshot::new(Arc::new(runtime), limits.into(), counters.into(), self.hub.clone(), self.clock.clone());
        self.current.store(Arc::new(next));
        self.before.lock().push(Arc::downgrade(&before));
        before
    }

    /// Ends what the previous configuration had and the current one does not, and brings everything else up to date. Other tasks
    /// get their turn in between.
    pub async fn retire(&self, before: &Snapshot) -> Retired {
        let current = self.current();
        let mut retired = Retired::default();
        // First, so that those of connections that end are counted, as when it was asked what would end.
        let plan = |name: &str| current.runtime.channels.resolve(name).map(|(_, plan)| plan);
        for (connection, channel) in self.hub.replan(plan) {
            self.tell_gone(&current, &connection, &channel);
            retired.subscriptions += 1;
            turn(&mut retired.turns).await;
        }
        for plan in &before.runtime.plan.protocols {
            let is_same = current.runtime.protocol(plan.id).map(|protocol| Arc::ptr_eq(&protocol.plan, plan));
            for connection in self.hub.connections(Some(plan.id)) {
                match is_same {
                    None => {
                        self.end(&connection, Close::Retired);
                        retired.connections += 1;
                    }
                    // Its task notices the change.
                    Some(false) => connection.outbox.wake(),
                    Some(true) => break,
                }
                turn(&mut retired.turns).await;
            }
        }
        retired
    }

    /// Ends what was begun under an older configuration just before the swap. Called every now and then.
    pub fn sweep(&self) {
        {
            let mut before = self.before.lock();
            if before.is_empty() {
                return;
            }
            // Checked first: nothing can begin any more under a snapshot that nobody holds.
            before.retain(|snapshot| snapshot.strong_count() > 0);
        }
        let current = self.current();
        for (connection, channel) in self.hub.replan(|name| current.runtime.channels.resolve(name).map(|(_, plan)| plan)) {
            self.tell_gone(&current, &connection, &channel);
        }
        for connection in self.hub.connections(None) {
            if current.runtime.protocol(connection.protocol).is_none() {
                self.end(&connection, Close::Retired);
            }
        }
        self.retired.lock().retain(|(id, _)| self.hub.connection_count(Some(*id)) > 0);
    }

    /// Tells a client that its subscription has ended because the configuration no longer allows it, by the `error` of its
    /// protocol.
    fn tell_gone(&self, snapshot: &Snapshot, connection: &Arc<Connection>, channel: &ChannelName) {
        let Some(protocol) = snapshot.runtime.protocol(connection.protocol) else { return };
        let fault = unknown(channel.as_str());
        if let Some(frame) = fault_reply(&protocol.plan, &fault, None, &connection.view(), self.now()) {
            connection.send(&frame);
            self.hub.flush.one(connection);
        }
    }
}
