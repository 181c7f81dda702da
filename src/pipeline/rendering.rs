//! What a renderer could not do while channels were locked. It is done afterwards, for a short time here, and after that by the
//! hub's task.

use std::sync::Arc;
use std::time::Instant;

use super::Snapshot;
use super::deliver::{Failure, Renderer, Shared};
use crate::hub::rendering::{TURN, Work, take_turn};
use crate::hub::{Flush, Rendering};
use crate::model::Now;
use crate::model::id::ProtocolId;

/// A rendering with the configuration its events were published under, under which they are also written.
struct Later {
    snapshot: Arc<Snapshot>,
    now: Now,
    rendering: Rendering,
    /// What was written for several receivers.
    shared: Vec<Shared>,
    failure: Option<Failure>,
}

impl Work for Later {
    fn protocol(&self) -> ProtocolId {
        self.rendering.protocol()
    }

    fn receivers(&self) -> usize {
        self.rendering.left()
    }

    fn go_on(&mut self, flush: &Flush) -> bool {
        let mut renderer = Renderer::new(&self.snapshot, self.now);
        renderer.shared = std::mem::take(&mut self.shared);
        renderer.failure = self.failure.take();
        let more = take_turn(&mut self.rendering, &mut renderer, flush, Instant::now() + TURN);
        if more {
            // A script that fails for all receivers is logged once.
            self.failure = renderer.failure.take();
            self.shared = std::mem::take(&mut renderer.shared);
        } else {
            count(&self.snapshot, &self.rendering);
        }
        renderer.report();
        more
    }
}

impl Renderer<'_> {
    /// Renders what had to wait, and reports what went wrong. Called when no channel is locked any more.
    pub fn finish(&mut self) {
        let deferred = std::mem::take(&mut self.deferred);
        if !deferred.is_empty() {
            let until = Instant::now() + TURN;
            deferred.into_iter().for_each(|rendering| self.render_later(rendering, until));
        }
        self.report();
    }

    fn render_later(&mut self, mut rendering: Rendering, until: Instant) {
        let hub = &self.snapshot.hub;
        // It would wait behind other work of the same protocol in any case, as the receivers are the same.
        let now = Instant::now() < until && !hub.renderings.is_busy(rendering.protocol());
        if now && !take_turn(&mut rendering, self, &hub.flush, until) {
            return count(self.snapshot, &rendering);
        }
        let shared = std::mem::take(&mut self.shared);
        let later = Later { snapshot: self.snapshot.clone(), now: self.now, rendering, shared, failure: None };
        if let Err(mut refused) = hub.renderings.push(Box::new(later)) {
            while refused.go_on(&hub.flush) {}
        }
    }
}

fn count(snapshot: &Snapshot, rendering: &Rendering) {
    let plan = rendering.channel().map(|channel| channel.plan());
    snapshot.counters.rendered(plan.as_deref(), rendering.counted());
}
