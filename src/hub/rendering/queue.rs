//! Renderings that publishers left to the rendering thread: a little for each protocol in turn.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::hub::Rendering;
use crate::model::id::ProtocolId;

/// Receivers that may wait for the thread. Beyond that publishers render themselves.
const RECEIVERS_MAX: usize = 100_000;

/// A rendering with everything that it needs.
pub trait Work: Send {
    /// The protocol of the receivers that wait.
    fn protocol(&self) -> ProtocolId;
    /// How many of them wait.
    fn receivers(&self) -> usize;
    /// Continues for a moment. `false`: it is done.
    fn go_on(&mut self) -> bool;
}

/// What waits for the rendering thread, by protocol.
#[derive(Default)]
pub struct Renderings {
    // Protects what waits. Held for a push or a pop.
    waiting: Mutex<Waiting>,
    added: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// In turn. A lane whose work is being done may be empty.
    lanes: VecDeque<Lane>,
    receivers: usize,
    /// How long a script takes to write one event for one receiver, lately.
    paces: HashMap<ProtocolId, Duration>,
    closed: bool,
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
    /// Whether a rendering should be left to the thread: work of its protocol waits, behind which it would have to wait anyway, or
    /// it will probably take longer than this.
    pub fn should_leave(&self, rendering: &Rendering, longer_than: Duration) -> bool {
        let waiting = self.waiting.lock();
        let pace = waiting.paces.get(&rendering.protocol()).copied().unwrap_or_default();
        let takes = pace.saturating_mul(u32::try_from(rendering.steps()).unwrap_or(u32::MAX));
        takes > longer_than || waiting.lanes.iter().any(|lane| lane.protocol == rendering.protocol())
    }

    /// Learns how long some steps of a protocol took.
    pub fn learn(&self, protocol: ProtocolId, steps: u32, took: Duration) {
        if steps > 0 {
            let mut waiting = self.waiting.lock();
            let pace = waiting.paces.entry(protocol).or_default();
            *pace = (*pace * 3 + took / steps) / 4;
        }
    }

    /// Leaves work to the thread. Returns it if too much waits.
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

    /// Work of the protocol that is next, once there is some. `None`: it is closed.
    fn pop(&self) -> Option<Box<dyn Work>> {
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(mut lane) = waiting.lanes.pop_front() {
                let work = lane.work.pop_front();
                waiting.lanes.push_back(lane);
                waiting.receivers -= work.as_ref().map_or(0, |work| work.receivers());
                return work;
            }
            self.added.wait(&mut waiting);
        }
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

    /// Ends [`Renderings::run`] after what it is doing.
    pub fn close(&self) {
        self.waiting.lock().closed = true;
        self.added.notify_one();
    }

    /// Renders what waits, until it is closed. It blocks: a script may take its time, and the thread that it takes is not one that
    /// reads or writes sockets.
    pub fn run(&self) {
        while let Some(mut work) = self.pop() {
            let protocol = work.protocol();
            // A bug that one rendering runs into must not keep all others from being seen: its slots are left empty.
            let more = std::panic::catch_unwind(AssertUnwindSafe(|| work.go_on()));
            if more.is_err() {
                tracing::error!("events were not written for all receivers, because of a bug in Tramline");
            }
            let left = if let Ok(true) = more { Some(work) } else { None };
            self.put_back(protocol, left);
        }
    }
}
