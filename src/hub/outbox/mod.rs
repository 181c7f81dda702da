//! What waits to be written to one client: bounded in bytes, closed at most once, filled by any thread, written by anyone who
//! flushes. Filling fixes the order; writing only moves what is there to the socket, so it can be done at any time.
//!
//! A socket that accepts everything is written to directly by the one who flushes. One that does not is left alone until its
//! task learns that there is room again. Meanwhile messages wait in a [`backlog::Backlog`], which sorts them by priority and
//! treats them as their channel says.

mod attachment;
mod backlog;
pub mod delivery_policy;
mod lifecycle;
mod packet;
mod queue;
mod slots;
#[cfg(test)]
mod tests;
mod write_queue;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::model::Close;
use crate::protocol::wire::Wire;
use crate::telemetry::conflation::Conflations;
use backlog::Room;
use delivery_policy::{DeliveryPolicy, SubscriptionId};
pub use lifecycle::{Lifecycle, Transition};
use packet::QueuedFrame;
pub use packet::{Packet, PacketRun};
use queue::OutboxQueue;
use slots::Message;
pub use slots::Slot;
use write_queue::QueuedWrite;

/// A bounded queue of frames that can be closed, and the socket they go to.
#[derive(Debug)]
pub struct Outbox {
    // Protects the order of frames, and that nothing follows the close. Held for a push, or for the socket's own calls while it
    // is written to.
    queue: Mutex<OutboxQueue>,
    waker: AtomicWaker,
    wire: Wire,
    bytes_max: AtomicUsize,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It will be written, unless the connection breaks.
    Queued,
    /// The outbox is full, and the channel allows the message to be dropped.
    Dropped,
    /// The outbox is full: the subscription gets the message from the log once there is room.
    Behind,
    /// The outbox was full: this message and all that waited are dropped, and the connection ends as too slow.
    Full,
    /// The connection is ending. The message is dropped.
    Gone,
}

/// The state of an outbox after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The state of the connection.
    pub lifecycle: Lifecycle,
    /// Since when it is known that it ends.
    pub ends_since: Option<Instant>,
    /// The system has everything.
    pub written: bool,
    /// Subscriptions must continue from the log.
    pub fallen: bool,
}

impl Outbox {
    /// An outbox of packets for this wire, which holds at most `bytes_max` bytes.
    pub fn new(wire: Wire, bytes_max: usize) -> Self {
        Self { queue: Mutex::default(), waker: AtomicWaker::new(), wire, bytes_max: AtomicUsize::new(bytes_max) }
    }

    /// The wire its packets are written for.
    pub fn wire(&self) -> Wire {
        self.wire
    }

    /// Touches its memory, so that it is in the cache by the time it is needed.
    pub(in crate::hub) fn touch(&self) -> (bool, usize) {
        (self.queue.is_locked(), self.bytes_max())
    }

    /// Queues a message, of a subscription or none. Never waits. `slow`: how the connection ends if there is no room for it. The
    /// caller must flush afterwards.
    pub fn push(&self, packet: Packet, subscription: Option<SubscriptionId>, slow: impl FnOnce() -> Close) -> Sent {
        let payload = packet.payload as u64;
        self.put(Message { frame: packet.into_frame(subscription), count: 1, payload }, slow)
    }

    /// Queues several messages for this client alone, which follow each other in `wire`: all of them, or none if there is no
    /// room. `payload`: bytes of the messages themselves.
    pub fn push_joint(&self, wire: Bytes, messages: u64, payload: u64, slow: impl FnOnce() -> Close) -> Sent {
        self.put(Message { frame: QueuedFrame::own(wire), count: messages, payload }, slow)
    }

    fn put(&self, message: Message, slow: impl FnOnce() -> Close) -> Sent {
        let mut queue = self.queue.lock();
        if queue.is_open() && queue.is_staging() {
            return self.stage(queue, message, slow);
        }
        let Message { frame, count, payload } = message;
        let sent = self.enter(&mut queue, frame, slow);
        queue.note(sent, count, payload);
        self.after(queue, sent)
    }

    /// Queues several messages of a subscription together. `None`: the socket accepts nothing, or they do not fit, and they must
    /// be queued one by one.
    pub(in crate::hub) fn push_run(&self, run: &Arc<PacketRun>, subscription: SubscriptionId) -> Option<Sent> {
        let mut queue = self.queue.lock();
        if !queue.is_open() {
            queue.note(Sent::Gone, run.len() as u64, 0);
            return Some(Sent::Gone);
        }
        let fallen = queue.backlog.as_ref().is_some_and(|backlog| backlog.has_fallen(subscription));
        if queue.blocked || queue.is_staging() || fallen || queue.bytes + run.cost_bytes > self.bytes_max() {
            return None;
        }
        queue.bytes += run.cost_bytes;
        queue.bytes_peak = queue.bytes_peak.max(queue.total_bytes());
        queue.waiting.push_back(QueuedWrite::Run(run.clone(), subscription));
        queue.note(Sent::Queued, run.len() as u64, run.payload() as u64);
        Some(Sent::Queued)
    }

    /// The last message of a subscription that waits because the socket accepts nothing.
    pub(in crate::hub) fn last(&self, subscription: SubscriptionId) -> Option<Arc<DeliveryPolicy>> {
        let queue = self.queue.lock();
        queue.backlog.as_ref().filter(|_| queue.blocked && !queue.is_staging())?.last(subscription).cloned()
    }

    /// Queues a message that includes the last of its subscription, in place of that. `None`: that one no longer waits.
    pub(in crate::hub) fn push_joined(
        &self,
        packet: Packet,
        subscription: SubscriptionId,
        last: &Arc<DeliveryPolicy>,
        slow: impl FnOnce() -> Close,
    ) -> Option<Sent> {
        let payload = packet.payload as u64;
        let mut queue = self.queue.lock();
        let taken = queue.is_open() && !queue.is_staging() && queue.in_backlog(|backlog| backlog.take_last(subscription, last));
        if !taken {
            return None;
        }
        let sent = self.enter(&mut queue, packet.into_frame(Some(subscription)), slow);
        queue.note(sent, 1, payload);
        Some(self.after(queue, sent))
    }

    /// Queues the answer to a ping. If the client does not read it, the connection ends as with any other message.
    pub fn pong(&self, payload: &[u8], slow: impl FnOnce() -> Close) {
        let mut queue = self.queue.lock();
        self.enter(&mut queue, QueuedFrame::own(self.wire.pong(payload)), slow);
    }

    fn enter(&self, queue: &mut OutboxQueue, frame: QueuedFrame, slow: impl FnOnce() -> Close) -> Sent {
        if queue.is_open() { self.admit(queue, frame, slow) } else { Sent::Gone }
    }

    /// Queues a message, if there is room or room can be made.
    fn admit(&self, queue: &mut OutboxQueue, frame: QueuedFrame, slow: impl FnOnce() -> Close) -> Sent {
        if let Some(subscription) = frame.subscription
            && queue.fall_back(subscription, frame.policy.as_ref())
        {
            return Sent::Behind;
        }
        let cost = frame.cost_bytes();
        if !queue.blocked && queue.total_bytes() + cost > self.bytes_max() {
            // Perhaps nobody has written yet. Only a socket that accepts nothing is slow.
            if queue.write() {
                self.waker.wake();
            }
            if queue.lifecycle == Lifecycle::Ended {
                return Sent::Gone;
            }
        }
        if queue.blocked && frame.policy.is_some() {
            queue.in_backlog(|backlog| backlog.supersede(&frame));
        }
        let excess = (queue.total_bytes() + cost).saturating_sub(self.bytes_max());
        let room = if excess > 0 { queue.in_backlog(|backlog| backlog.make_room(excess, &frame)) } else { Room::Made };
        match room {
            Room::Made => {
                queue.put(frame);
                Sent::Queued
            }
            Room::Dropped => Sent::Dropped,
            Room::Behind => Sent::Behind,
            Room::None => {
                queue.finish(self.wire, slow());
                Sent::Full
            }
        }
    }

    /// Wakes the connection's task if it must know.
    fn after(&self, queue: MutexGuard<'_, OutboxQueue>, sent: Sent) -> Sent {
        let fallen = queue.has_fallen();
        drop(queue);
        if fallen || sent == Sent::Full {
            self.waker.wake();
        }
        sent
    }

    /// Subscriptions that must continue from the log, by their numbers.
    pub(in crate::hub) fn fallen(&self) -> Vec<u64> {
        let queue = self.queue.lock();
        queue.backlog.as_ref().filter(|_| queue.has_fallen()).map(|backlog| backlog.fallen()).unwrap_or_default()
    }

    /// The offset after which a subscription continues from the log. From now on it may get messages again.
    pub(in crate::hub) fn take_fallen(&self, number: u64) -> Option<u64> {
        self.queue.lock().backlog.as_mut()?.take_fallen(number)
    }

    /// Ends the connection after what waits. Only the first reason counts.
    pub fn close(&self, close: Close) {
        self.advance(Transition::Close, close);
    }

    /// Moves the connection towards its end. If that begins the end, `close` is the reason, and the close packet is queued after
    /// what waits.
    pub fn advance(&self, transition: Transition, close: Close) {
        debug_assert!(transition != Transition::End, "use `Outbox::end` to end what waits");
        if self.queue.lock().advance(self.wire, transition, close) {
            self.waker.wake();
        }
    }

    /// Everything is written to a client that broke the rules. A client that waits for the end of the stream must see it.
    pub fn hang_up(&self) {
        let mut queue = self.queue.lock();
        queue.turn(Transition::HangUp, Close::Lost);
        let socket = queue.socket.clone();
        drop(queue);
        if let Some(socket) = socket {
            socket.close();
        }
    }

    /// The connection is over: drops what waits, refuses the rest, and closes the socket immediately, even if somebody still
    /// holds the connection. Returns how it ended, which is `close` if no end was decided before.
    pub fn end(&self, close: Close) -> Close {
        let mut queue = self.queue.lock();
        queue.shut(close);
        let (close, socket) = (queue.ending().unwrap_or(Close::Lost), queue.socket.take());
        drop(queue);
        if let Some(socket) = socket {
            socket.close();
        }
        close
    }

    /// How the connection ended, once it has.
    pub fn ended(&self) -> Option<Close> {
        let queue = self.queue.lock();
        queue.ending().filter(|_| queue.lifecycle == Lifecycle::Ended)
    }

    /// Asks for a ping, which is written before what waits.
    pub fn ping(&self) {
        let mut queue = self.queue.lock();
        if queue.is_open() {
            let frame = QueuedFrame::own(self.wire.ping());
            queue.bytes += frame.cost_bytes();
            let begun = queue.written > 0;
            queue.waiting.push_next(frame.into(), begun);
        }
    }

    /// Whether it must be listed for a flush: something waits, could be written, and is not listed yet.
    pub fn list(&self) -> bool {
        let mut queue = self.queue.lock();
        !queue.waiting.is_empty() && !queue.blocked && !std::mem::replace(&mut queue.listed, true)
    }

    /// Writes what waits, as much as the system accepts. If that is not everything, the connection's task continues.
    pub fn flush(&self) {
        let mut queue = self.queue.lock();
        queue.listed = false;
        if queue.blocked || queue.waiting.is_empty() || !queue.write() {
            return;
        }
        if queue.blocked || queue.lifecycle == Lifecycle::Ended {
            drop(queue);
            self.waker.wake();
        }
    }

    /// Called by the connection's task: continues if the socket had no room and has some now. `cx` is woken when there is room
    /// again. `flush`: also writes if the socket had room, as at the end of a connection.
    pub fn poll_write(&self, cx: &mut std::task::Context<'_>, flush: bool) -> Progress {
        let mut queue = self.queue.lock();
        if flush || queue.blocked || !queue.is_open() {
            while !queue.blocked || queue.socket.as_ref().is_some_and(|socket| socket.poll_writable(cx).is_ready()) {
                if !queue.write() || !queue.blocked {
                    break;
                }
            }
        }
        Progress {
            lifecycle: queue.lifecycle,
            ends_since: queue.ending.as_ref().map(|ending| ending.since),
            written: queue.waiting.is_empty() && !queue.blocked && !queue.is_staging(),
            fallen: queue.has_fallen(),
        }
    }

    /// Whether something waits that could be written.
    pub fn can_write(&self) -> bool {
        let queue = self.queue.lock();
        !queue.waiting.is_empty() && !queue.blocked && queue.socket.is_some()
    }

    /// Whether the socket accepts nothing.
    pub fn is_blocked(&self) -> bool {
        self.queue.lock().blocked
    }

    /// Whether a replay may continue: half of the room is kept for live events.
    pub fn has_room(&self) -> bool {
        let queue = self.queue.lock();
        queue.total_bytes() < self.bytes_max() / 2 && queue.is_open()
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

    /// Sets the most bytes it holds. What waits already stays.
    pub fn set_bytes_max(&self, bytes: usize) {
        self.bytes_max.store(bytes, Relaxed);
    }

    /// Whether no end has been decided yet.
    pub fn is_open(&self) -> bool {
        self.queue.lock().is_open()
    }

    /// What waits, and the totals so far.
    pub fn measure(&self) -> Measure {
        let queue = self.queue.lock();
        Measure {
            frames: queue.waiting.iter().map(QueuedWrite::len).sum::<usize>()
                + queue.backlog.as_ref().map_or(0, |backlog| backlog.len())
                + queue.staged.as_ref().map_or(0, |staged| staged.len()),
            bytes: queue.total_bytes(),
            bytes_peak: queue.bytes_peak,
            bytes_max: self.bytes_max(),
            messages: queue.messages,
            payload: queue.payload,
            dropped: queue.dropped,
            conflations: queue.backlog.as_ref().map(|backlog| backlog.conflations).unwrap_or_default(),
        }
    }

    /// The addresses of the bytes that wait.
    #[cfg(test)]
    pub(crate) fn places(&self) -> Vec<*const u8> {
        self.queue.lock().waiting.iter().map(|waiting| waiting.bytes().as_ptr()).collect()
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
    /// What became of messages that were not written as they were published.
    pub conflations: Conflations,
}
