//! Renderings that publishers left to the rendering task: a little for each protocol in turn.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::hub::Flush;
use crate::model::id::ProtocolId;

/// Receivers that may wait for the task. Beyond that publishers render themselves.
const RECEIVERS_MAX: usize = 100_000;

/// A rendering with everything that it needs.
pub trait Work: Send {
    /// The protocol of the receivers that wait.
    fn protocol(&self) -> ProtocolId;
    /// How many of them wait.
    fn receivers(&self) -> usize;
    /// Continues for a moment. `false`: it is done.
    fn go_on(&mut self, flush: &Flush) -> bool;
}

/// What waits for the rendering task, by protocol.
#[derive(Default)]
pub struct Renderings {
    // Protects what waits. Held for a push or a pop.
    waiting: Mutex<Waiting>,
    added: Notify,
}

#[derive(Default)]
struct Waiting {
    /// In turn. A lane whose work is being done may be empty.
    lanes: VecDeque<Lane>,
    receivers: usize,
}

struct Lane {
    protocol: ProtocolId,
    work: VecDeque<Box<dyn Work>>,
}

impl std::fmt::Debug for Renderings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renderings").field("receivers", &self.waiting.lock().receivers).finish_non_exhaustive()
    }
}

impl Renderings {
    /// Whether work of a protocol waits: new work would have to wait for it anyway.
    pub fn is_busy(&self, protocol: ProtocolId) -> bool {
        self.waiting.lock().lanes.iter().any(|lane| lane.protocol == protocol)
    }

    /// Leaves work to the task. Returns it if too much waits.
    pub fn push(&self, work: Box<dyn Work>) -> Result<(), Box<dyn Work>> {
        let mut waiting = self.waiting.lock();
        if waiting.receivers + work.receivers() > RECEIVERS_MAX {
            return Err(work);
        }
        waiting.receivers += work.receivers();
        let protocol = work.protocol();
        match waiting.lanes.iter_mut().find(|lane| lane.protocol == protocol) {
            Some(lane) => lane.work.push_back(work),
            None => waiting.lanes.push_back(Lane { protocol, work: [work].into() }),
        }
        drop(waiting);
        self.added.notify_one();
        Ok(())
    }

    /// Work of the protocol that is next.
    fn pop(&self) -> Option<Box<dyn Work>> {
        let mut waiting = self.waiting.lock();
        let mut lane = waiting.lanes.pop_front()?;
        let work = lane.work.pop_front();
        waiting.lanes.push_back(lane);
        waiting.receivers -= work.as_ref().map_or(0, |work| work.receivers());
        work
    }

    /// Puts unfinished work back at the front, or removes a protocol without work.
    fn put_back(&self, protocol: ProtocolId, work: Option<Box<dyn Work>>) {
        let mut waiting = self.waiting.lock();
        waiting.receivers += work.as_ref().map_or(0, |work| work.receivers());
        if let Some(lane) = waiting.lanes.iter_mut().find(|lane| lane.protocol == protocol) {
            work.into_iter().for_each(|work| lane.work.push_front(work));
        }
        waiting.lanes.retain(|lane| !lane.work.is_empty());
    }

    /// Renders what waits, as long as it is polled.
    pub async fn run(&self, flush: &Flush) {
        loop {
            let Some(mut work) = self.pop() else {
                self.added.notified().await;
                continue;
            };
            let protocol = work.protocol();
            // A bug that one rendering runs into must not keep all others from being seen: its slots are left empty.
            let more = std::panic::catch_unwind(AssertUnwindSafe(|| work.go_on(flush)));
            if more.is_err() {
                tracing::error!("events were not written for all receivers, because of a bug in Tramline");
            }
            let left = if let Ok(true) = more { Some(work) } else { None };
            self.put_back(protocol, left);
            // Other ready tasks run in between.
            yield_now().await;
        }
    }
}
