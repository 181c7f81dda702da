//! What a renderer could not do while channels were locked. It is done afterwards: here if that takes a moment, otherwise by the
//! hub's thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Snapshot;
use super::deliver::{Failure, Renderer, Shared};
use crate::hub::Rendering;
use crate::hub::rendering::{TURN, Work, take_turn};
use crate::model::Now;
use crate::model::id::ProtocolId;

/// What takes longer is left to the thread, as nothing else happens on a publisher's meanwhile.
const MOMENT: Duration = Duration::from_micros(250);

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

    fn channel(&self) -> u64 {
        self.rendering.channel_order()
    }

    fn receivers(&self) -> usize {
        self.rendering.left()
    }

    fn bytes(&self) -> usize {
        self.rendering.bytes()
    }

    fn give_up(&mut self) {
        self.rendering.give_up();
        count(&self.snapshot, &self.rendering);
    }

    fn go_on(&mut self) -> bool {
        let mut renderer = Renderer::new(&self.snapshot, self.now);
        renderer.shared = std::mem::take(&mut self.shared);
        renderer.failure = self.failure.take();
        let more = take_turn(&mut self.rendering, &mut renderer, &self.snapshot.hub, TURN);
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
            let until = Instant::now() + MOMENT;
            deferred.into_iter().for_each(|rendering| self.render_later(rendering, until));
        }
        self.report();
    }

    fn render_later(&mut self, mut rendering: Rendering, until: Instant) {
        let hub = &self.snapshot.hub;
        let left = until.saturating_duration_since(Instant::now());
        let now = !left.is_zero() && !hub.renderings.should_leave(&rendering, left);
        if now && !take_turn(&mut rendering, self, hub, left) {
            return count(self.snapshot, &rendering);
        }
        let shared = std::mem::take(&mut self.shared);
        let later = Later { snapshot: self.snapshot.clone(), now: self.now, rendering, shared, failure: None };
        hub.renderings.push(Box::new(later));
    }
}

fn count(snapshot: &Snapshot, rendering: &Rendering) {
    let plan = rendering.channel().map(|channel| channel.plan());
    snapshot.counters.rendered(plan.as_deref(), rendering.counted());
}
