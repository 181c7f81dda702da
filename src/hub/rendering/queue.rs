//! Renderings that publishers left to the rendering thread: a little for each protocol in turn, and within it for each channel.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::hub::Rendering;
use crate::model::id::ProtocolId;

/// Receivers of one protocol that may wait for the thread, unless it is for a single event. Those beyond that are closed as too slow.
const RECEIVERS_MAX: usize = 100_000;

/// Bytes of the events of one protocol that may wait for the thread, likewise.
const BYTES_MAX: usize = 64 << 20;

/// A rendering with everything that it needs.
pub trait Work: Send {
    /// The protocol of the receivers that wait.
    fn protocol(&self) -> ProtocolId;
    /// Distinguishes its channel from others.
    fn channel(&self) -> u64;
    /// How many of them wait.
    fn receivers(&self) -> usize;
    /// Bytes of its events.
    fn bytes(&self) -> usize;
    /// Continues for a moment. `false`: it is done.
    fn go_on(&mut self) -> bool;
    /// Closes the receivers that still wait: scripts cannot keep up.
    fn give_up(&mut self);
}

/// What waits for the rendering thread, by protocol and channel.
#[derive(Default)]
pub struct Renderings {
    // Protects what waits. Held for a push or a pop.
    waiting: Mutex<Waiting>,
    added: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// In turn.
    lanes: VecDeque<Lane>,
    /// The protocol and channel whose work is being done.
    doing: Option<(ProtocolId, u64)>,
    /// How long a script takes to write one event for one receiver, lately.
    paces: HashMap<ProtocolId, Duration>,
    closed: bool,
}

/// What waits for the receivers of one protocol.
struct Lane {
    protocol: ProtocolId,
    receivers: usize,
    bytes: usize,
    /// In turn.
    channels: VecDeque<(u64, VecDeque<Box<dyn Work>>)>,
}

impl Lane {
    fn new(protocol: ProtocolId) -> Self {
        Self { protocol, receivers: 0, bytes: 0, channels: VecDeque::new() }
    }

    fn count(&mut self, work: &dyn Work) {
        self.receivers += work.receivers();
        self.bytes += work.bytes();
    }
}

impl std::fmt::Debug for Renderings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renderings").field("lanes", &self.waiting.lock().lanes.len()).finish_non_exhaustive()
    }
}

impl Renderings {
    /// Whether a rendering should be left to the thread: work of its protocol and channel waits, behind which it would have to wait
    /// anyway, or it will probably take longer than this.
    pub fn should_leave(&self, rendering: &Rendering, longer_than: Duration) -> bool {
        let waiting = self.waiting.lock();
        let (protocol, channel) = (rendering.protocol(), rendering.channel_order());
        let pace = waiting.paces.get(&protocol).copied().unwrap_or_default();
        let takes = pace.saturating_mul(u32::try_from(rendering.steps()).unwrap_or(u32::MAX));
        let waits = |lane: &Lane| lane.protocol == protocol && lane.channels.iter().any(|(other, _)| *other == channel);
        takes > longer_than || waiting.doing == Some((protocol, channel)) || waiting.lanes.iter().any(waits)
    }

    /// Learns how long some steps of a protocol took.
    pub fn learn(&self, protocol: ProtocolId, steps: u32, took: Duration) {
        if steps > 0 {
            let mut waiting = self.waiting.lock();
            let pace = waiting.paces.entry(protocol).or_default();
            *pace = (*pace * 3 + took / steps) / 4;
        }
    }

    /// Leaves work to the thread. If too much waits already, its receivers are closed.
    pub fn push(&self, mut work: Box<dyn Work>) {
        let mut waiting = self.waiting.lock();
        let protocol = work.protocol();
        let known = waiting.lanes.iter().position(|lane| lane.protocol == protocol);
        let at = known.unwrap_or_else(|| {
            waiting.lanes.push_back(Lane::new(protocol));
            waiting.lanes.len() - 1
        });
        let lane = &mut waiting.lanes[at];
        let is_full = lane.receivers + work.receivers() > RECEIVERS_MAX || lane.bytes + work.bytes() > BYTES_MAX;
        if is_full && !lane.channels.is_empty() {
            drop(waiting);
            work.give_up();
            return;
        }
        lane.count(&*work);
        let channel = work.channel();
        match lane.channels.iter_mut().find(|(other, _)| *other == channel) {
            Some((_, all)) => all.push_back(work),
            None => lane.channels.push_back((channel, [work].into())),
        }
        drop(waiting);
        self.added.notify_one();
    }

    /// Work of the channel that is next, of the protocol that is next, once there is some. `None`: it is closed.
    fn pop(&self) -> Option<Box<dyn Work>> {
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(work) = waiting.next() {
                waiting.doing = Some((work.protocol(), work.channel()));
                return Some(work);
            }
            self.added.wait(&mut waiting);
        }
    }

    /// Puts unfinished work back: the first of its channel, which is the last in turn.
    fn put_back(&self, work: Option<Box<dyn Work>>) {
        let mut waiting = self.waiting.lock();
        waiting.doing = None;
        let Some(work) = work else { return };
        let (protocol, channel) = (work.protocol(), work.channel());
        let known = waiting.lanes.iter().position(|lane| lane.protocol == protocol);
        let mut lane = known.and_then(|at| waiting.lanes.remove(at)).unwrap_or_else(|| Lane::new(protocol));
        lane.count(&*work);
        let known = lane.channels.iter().position(|(other, _)| *other == channel);
        let mut all = known.and_then(|at| lane.channels.remove(at)).map(|(_, all)| all).unwrap_or_default();
        all.push_front(work);
        lane.channels.push_back((channel, all));
        waiting.lanes.push_back(lane);
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
            // A bug that one rendering runs into must not keep all others from being seen: its slots are left empty.
            let more = std::panic::catch_unwind(AssertUnwindSafe(|| work.go_on()));
            if more.is_err() {
                tracing::error!("events were not written for all receivers, because of a bug in Tramline");
            }
            let left = matches!(more, Ok(true)).then_some(work);
            self.put_back(left);
        }
    }
}

impl Waiting {
    fn next(&mut self) -> Option<Box<dyn Work>> {
        loop {
            let mut lane = self.lanes.pop_front()?;
            let Some((channel, mut all)) = lane.channels.pop_front() else { continue };
            let work = all.pop_front();
            if !all.is_empty() {
                lane.channels.push_back((channel, all));
            }
            if let Some(work) = &work {
                lane.receivers = lane.receivers.saturating_sub(work.receivers());
                lane.bytes = lane.bytes.saturating_sub(work.bytes());
            }
            if !lane.channels.is_empty() {
                self.lanes.push_back(lane);
            }
            if work.is_some() {
                return work;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Work that writes down when it is done, and when it is given up.
    struct Noting {
        protocol: ProtocolId,
        channel: u64,
        receivers: usize,
        bytes: usize,
        turns: usize,
        notes: Arc<Mutex<Vec<(u64, bool)>>>,
    }

    impl Work for Noting {
        fn protocol(&self) -> ProtocolId {
            self.protocol
        }

        fn channel(&self) -> u64 {
            self.channel
        }

        fn receivers(&self) -> usize {
            self.receivers
        }

        fn bytes(&self) -> usize {
            self.bytes
        }

        fn go_on(&mut self) -> bool {
            self.turns -= 1;
            self.notes.lock().push((self.channel, true));
            self.turns > 0
        }

        fn give_up(&mut self) {
            self.notes.lock().push((self.channel, false));
        }
    }

    /// Runs until nothing waits.
    fn run(queue: &Renderings) {
        while !queue.waiting.lock().lanes.is_empty() {
            let mut work = queue.pop().unwrap();
            let left = work.go_on().then_some(work);
            queue.put_back(left);
        }
    }

    fn with(each: impl Fn(&Renderings, &dyn Fn(&str, u64, usize, usize, usize) -> Box<dyn Work>)) -> Vec<(u64, bool)> {
        let (queue, notes) = (Renderings::default(), Arc::default());
        each(&queue, &|protocol, channel, receivers, bytes, turns| {
            let protocol = ProtocolId::of(protocol);
            Box::new(Noting { protocol, channel, receivers, bytes, turns, notes: Arc::clone(&notes) })
        });
        run(&queue);
        let notes = notes.lock();
        notes.clone()
    }

    #[test]
    fn protocols_take_turns_and_so_do_their_channels() {
        let done = with(|queue, work| {
            [("a", 1), ("a", 1), ("a", 2), ("b", 3)]
                .into_iter()
                .for_each(|(protocol, channel)| queue.push(work(protocol, channel, 1, 1, 2)));
        });
        let order: Vec<u64> = done.iter().map(|(channel, _)| *channel).collect();
        assert_eq!(order, [1, 3, 2, 3, 1, 2, 1, 1]);
    }

    #[test]
    fn too_much_for_one_protocol_is_given_up_and_others_are_not() {
        let done = with(|queue, work| {
            queue.push(work("a", 1, RECEIVERS_MAX + 1, 1, 1));
            queue.push(work("a", 2, 1, 1, 1));
            queue.push(work("b", 3, 1, BYTES_MAX, 1));
            queue.push(work("b", 4, 1, 1, 1));
            queue.push(work("c", 5, 1, 1, 1));
        });
        assert_eq!(done, [(2, false), (4, false), (1, true), (3, true), (5, true)]);
    }
}
