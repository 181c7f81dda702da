//! What waits to be written to one client: bounded in bytes, closed at most once, filled by any thread, written by whoever
//! comes by. Filling fixes the order; writing only moves what is there on to the socket, so it can be done at any time.
//!
//! A socket that takes everything is written to at once by the one who flushes. One that does not is left alone until its
//! task hears that there is room again: meanwhile what is pushed waits in a [`backlog::Backlog`], which sorts it by priority and does
//! with it what its channel says.

mod backlog;
pub mod delivery_policy;
mod packet;
mod queue;
#[cfg(test)]
mod tests;
mod write_queue;

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};

use super::Socket;
use crate::model::Close;
use crate::protocol::websocket;
use crate::telemetry::conflation::Conflations;
use backlog::Room;
use delivery_policy::{DeliveryPolicy, SubscriptionId};
use packet::QueuedFrame;
pub use packet::{Packet, PacketRun};
use queue::{End, OutboxQueue};
use write_queue::QueuedWrite;

/// A bounded queue of frames with an end, and the socket they go to.
#[derive(Debug)]
pub struct Outbox {
    // Protects order and wholeness: frames leave as they came, and nothing follows the close. Held for a push, or for the
    // socket's own calls while it is written to.
    queue: Mutex<OutboxQueue>,
    waker: AtomicWaker,
    bytes_max: AtomicUsize,
    socket: OnceLock<Box<dyn Socket>>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It will be written, unless the connection breaks.
    Queued,
    /// The outbox is full, and its channel says that it need not be written.
    Dropped,
    /// The outbox is full: the subscription gets it from the log, once there is room.
    Behind,
    /// The outbox was full: this message and all that waited are gone, and the connection ends as too slow.
    Full,
    /// The connection is ending. The message is dropped.
    Gone,
}

/// How far the end of an outbox has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// No end was decided yet.
    pub open: bool,
    /// Everything is with the system.
    pub written: bool,
    /// The socket has no room: somebody must wait for it.
    pub blocked: bool,
    /// The socket is broken, or nothing may be written any more.
    pub shut: bool,
    /// Subscriptions must be told to go on from the log.
    pub fallen: bool,
}

impl Outbox {
    /// An outbox that holds at most this many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { queue: Mutex::default(), waker: AtomicWaker::new(), bytes_max: AtomicUsize::new(bytes_max), socket: OnceLock::new() }
    }

    /// Gives it the socket. What waits already is written by the next flush.
    pub fn attach(&self, socket: Box<dyn Socket>) {
        let first = self.socket.set(socket).is_ok();
        debug_assert!(first, "an outbox has one socket");
    }

    /// Looks at it, without waiting for it.
    pub(in crate::hub) fn touch(&self) -> (bool, bool) {
        (self.queue.is_locked(), self.socket.get().is_some())
    }

    /// The socket, once there is one.
    pub fn socket(&self) -> Option<&dyn Socket> {
        self.socket.get().map(|socket| &**socket)
    }

    /// Queues a message, of a subscription or none. Never waits. `slow` is how the connection ends when there is no room for it.
    /// Somebody must flush afterwards.
    pub fn push(&self, packet: Packet, subscription: Option<SubscriptionId>, slow: impl FnOnce() -> Close) -> Sent {
        let payload = packet.payload as u64;
        let mut queue = self.queue.lock();
        let sent = self.enter(&mut queue, packet.into_frame(subscription), slow);
        queue.note(sent, 1, payload);
        self.after(queue, sent)
    }

    /// Queues several messages for this client alone, which follow each other in `wire`: all of them or, where there is no room,
    /// none. `payload`: bytes of the messages themselves.
    pub fn push_joint(&self, wire: Bytes, messages: u64, payload: u64, slow: impl FnOnce() -> Close) -> Sent {
        let mut queue = self.queue.lock();
        let sent = self.enter(&mut queue, QueuedFrame::own(wire), slow);
        queue.note(sent, messages, payload);
        self.after(queue, sent)
    }

    /// Queues several messages of a subscription at once. None: its socket takes nothing, or they do not fit, and they must be
    /// given one by one.
    pub(in crate::hub) fn push_run(&self, run: &Arc<PacketRun>, subscription: SubscriptionId) -> Option<Sent> {
        let mut queue = self.queue.lock();
        if !matches!(queue.end, End::Open) {
            queue.note(Sent::Gone, run.len() as u64, 0);
            return Some(Sent::Gone);
        }
        let fallen = queue.backlog.as_ref().is_some_and(|backlog| backlog.has_fallen(subscription));
        if queue.blocked || fallen || queue.bytes + run.cost_bytes > self.bytes_max() {
            return None;
        }
        queue.bytes += run.cost_bytes;
        queue.bytes_peak = queue.bytes_peak.max(queue.bytes);
        queue.waiting.push_back(QueuedWrite::Run(run.clone(), subscription));
        queue.note(Sent::Queued, run.len() as u64, run.payload() as u64);
        Some(Sent::Queued)
    }

    /// The last message of a subscription that waits because the socket takes nothing.
    pub(in crate::hub) fn last(&self, subscription: SubscriptionId) -> Option<Arc<DeliveryPolicy>> {
        let queue = self.queue.lock();
        queue.backlog.as_ref().filter(|_| queue.blocked)?.last(subscription).cloned()
    }

    /// Queues a message that has the last of its subscription in it, in place of that. None: that one waits no more.
    pub(in crate::hub) fn push_joined(
        &self,
        packet: Packet,
        subscription: SubscriptionId,
        last: &Arc<DeliveryPolicy>,
        slow: impl FnOnce() -> Close,
    ) -> Option<Sent> {
        let payload = packet.payload as u64;
        let mut queue = self.queue.lock();
        let taken = matches!(queue.end, End::Open) && queue.in_backlog(|backlog| backlog.take_last(subscription, last));
        if !taken {
            return None;
        }
        let sent = self.enter(&mut queue, packet.into_frame(Some(subscription)), slow);
        queue.note(sent, 1, payload);
        Some(self.after(queue, sent))
    }

    /// Queues the answer to a ping. One that a client does not read ends the connection as any other message.
    pub fn pong(&self, payload: &[u8], slow: impl FnOnce() -> Close) {
        let mut queue = self.queue.lock();
        self.enter(&mut queue, QueuedFrame::own(websocket::pong(payload)), slow);
    }

    /// Puts a message where it belongs, if there is room or room can be made.
    fn enter(&self, queue: &mut OutboxQueue, frame: QueuedFrame, slow: impl FnOnce() -> Close) -> Sent {
        if !matches!(queue.end, End::Open) {
            return Sent::Gone;
        }
        if let (Some(subscription), Some(backlog)) = (frame.subscription, &queue.backlog)
            && backlog.has_fallen(subscription)
        {
            return Sent::Behind;
        }
        let cost = frame.cost_bytes();
        if !queue.blocked && queue.bytes + cost > self.bytes_max() {
            // Perhaps nobody came by yet. Only a socket that takes nothing is slow.
            if let Some(socket) = self.socket.get() {
                queue.write(&**socket);
                self.waker.wake();
            }
            if !matches!(queue.end, End::Open) {
                return Sent::Gone;
            }
        }
        if queue.blocked && frame.policy.is_some() {
            queue.in_backlog(|backlog| backlog.supersede(&frame));
        }
        let excess = (queue.bytes + cost).saturating_sub(self.bytes_max());
        let room = if excess > 0 { queue.in_backlog(|backlog| backlog.make_room(excess, &frame)) } else { Room::Made };
        match room {
            Room::Made => {
                queue.put(frame);
                Sent::Queued
            }
            Room::Dropped => Sent::Dropped,
            Room::Behind => Sent::Behind,
            Room::None => {
                queue.finish(slow());
                Sent::Full
            }
        }
    }

    /// Wakes the connection's task where it must know.
    fn after(&self, queue: MutexGuard<'_, OutboxQueue>, sent: Sent) -> Sent {
        let fallen = queue.has_fallen();
        drop(queue);
        if fallen || sent == Sent::Full {
            self.waker.wake();
        }
        sent
    }

    /// Subscriptions that have to go on from the log, by their numbers.
    pub(in crate::hub) fn fallen(&self) -> Vec<u64> {
        self.queue.lock().backlog.as_ref().map(|backlog| backlog.fallen()).unwrap_or_default()
    }

    /// The offset behind which a subscription goes on from the log. From now on it may be given messages again.
    pub(in crate::hub) fn take_fallen(&self, number: u64) -> Option<u64> {
        self.queue.lock().backlog.as_mut()?.take_fallen(number)
    }

    /// Ends the connection after what waits. The first end counts.
    pub fn close(&self, close: Close) {
        let mut queue = self.queue.lock();
        if matches!(queue.end, End::Open) {
            queue.end(close);
            drop(queue);
            self.waker.wake();
        }
    }

    /// Asks for a ping, which goes before what waits.
    pub fn ping(&self) {
        let mut queue = self.queue.lock();
        if matches!(queue.end, End::Open) {
            let frame = QueuedFrame::own(websocket::ping());
            queue.bytes += frame.cost_bytes();
            let begun = queue.begun;
            queue.waiting.push_next(frame.into(), begun);
        }
    }

    /// The end that was decided, as long as it can still be told.
    pub fn end(&self) -> Option<Close> {
        match &self.queue.lock().end {
            End::Closing(close) => Some((**close).clone()),
            End::Open | End::Shut => None,
        }
    }

    /// Nothing more can be written: drops what waits and refuses the rest.
    pub fn shut(&self) {
        self.queue.lock().shut();
    }

    /// Whether it must be given to somebody who flushes: something waits, could be written, and nobody knows of it yet.
    pub fn list(&self) -> bool {
        let mut queue = self.queue.lock();
        !queue.waiting.is_empty() && !queue.blocked && !std::mem::replace(&mut queue.listed, true)
    }

    /// Writes what waits, as far as the system takes it. Where it does not take all, the connection's task goes on.
    pub fn flush(&self) {
        let Some(socket) = self.socket.get() else { return };
        let mut queue = self.queue.lock();
        queue.listed = false;
        if queue.blocked || queue.waiting.is_empty() {
            return;
        }
        queue.write(&**socket);
        if queue.blocked || matches!(queue.end, End::Shut) {
            drop(queue);
            self.waker.wake();
        }
    }

    /// By the connection's task: goes on where the socket had no room and now has. `cx` is woken when there is room again.
    /// `flush`: writes what waits in any case, as it does at the end of a connection.
    pub fn poll_write(&self, cx: &mut std::task::Context<'_>, flush: bool) -> Progress {
        let mut queue = self.queue.lock();
        if let Some(socket) = self.socket.get()
            && (flush || queue.blocked || !matches!(queue.end, End::Open))
        {
            loop {
                if queue.blocked && socket.poll_writable(cx).is_pending() {
                    break;
                }
                queue.write(&**socket);
                if !queue.blocked {
                    break;
                }
            }
        }
        Progress {
            open: matches!(queue.end, End::Open),
            written: queue.waiting.is_empty() && !queue.blocked,
            blocked: queue.blocked,
            shut: matches!(queue.end, End::Shut),
            fallen: queue.has_fallen(),
        }
    }

    /// Whether something waits that could be written.
    pub fn can_write(&self) -> bool {
        let queue = self.queue.lock();
        !queue.waiting.is_empty() && !queue.blocked
    }

    /// Whether the socket takes nothing.
    pub fn is_blocked(&self) -> bool {
        self.queue.lock().blocked
    }

    /// Whether a replay may go on: half of it is kept for what is live.
    pub fn has_room(&self) -> bool {
        let queue = self.queue.lock();
        queue.bytes < self.bytes_max() / 2 && matches!(queue.end, End::Open)
    }

    /// Wakes the connection's task, which flushes.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Wakes this task at the next [`Outbox::wake`], close or full socket.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// The most bytes it holds.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max.load(Relaxed)
    }

    /// It holds at most so many bytes from now on. What waits already stays.
    pub fn set_bytes_max(&self, bytes: usize) {
        self.bytes_max.store(bytes, Relaxed);
    }

    /// Whether no end was decided yet.
    pub fn is_open(&self) -> bool {
        matches!(self.queue.lock().end, End::Open)
    }

    /// What waits and what passed.
    pub fn measure(&self) -> Measure {
        let queue = self.queue.lock();
        Measure {
            frames: queue.waiting.iter().map(QueuedWrite::len).sum::<usize>() + queue.backlog.as_ref().map_or(0, |backlog| backlog.len()),
            bytes: queue.bytes,
            bytes_peak: queue.bytes_peak,
            bytes_max: self.bytes_max(),
            messages: queue.messages,
            payload: queue.payload,
            dropped: queue.dropped,
            conflations: queue.backlog.as_ref().map(|backlog| backlog.conflations).unwrap_or_default(),
        }
    }

    /// Where the bytes lie that wait.
    #[cfg(test)]
    pub(crate) fn places(&self) -> Vec<*const u8> {
        self.queue.lock().waiting.iter().map(|waiting| waiting.bytes().as_ptr()).collect()
    }

    /// Everything that waits, as it would be written.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Vec<u8> {
        let mut queue = self.queue.lock();
        queue.bytes = 0;
        queue.begun = false;
        let mut taken: Vec<u8> = queue.waiting.take(false).flat_map(|waiting| waiting.bytes().to_vec()).collect();
        while let Some(frame) = queue.backlog.as_mut().and_then(|backlog| backlog.pop()) {
            taken.extend_from_slice(&frame.wire);
        }
        taken
    }
}

/// See [`Outbox::measure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Frames waiting.
    pub frames: usize,
    /// Bytes waiting.
    pub bytes: usize,
    /// The most bytes that ever waited.
    pub bytes_peak: usize,
    /// The bound.
    pub bytes_max: usize,
    /// Messages queued so far.
    pub messages: u64,
    /// Bytes of them.
    pub payload: u64,
    /// Messages that were never written.
    pub dropped: u64,
    /// What became of messages that were not written as they came.
    pub conflations: Conflations,
}
