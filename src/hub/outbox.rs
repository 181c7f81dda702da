//! What waits to be written to one client: bounded in bytes, closed at most once, filled by any thread, emptied by the
//! connection's task. Knows nothing of sockets.

use std::collections::VecDeque;
use std::task::Waker;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use crate::model::Close;
use crate::protocol::Frame;

/// Bytes that every waiting frame counts for besides its payload.
const FRAME_OVERHEAD: usize = 64;

/// A bounded queue of frames with an end.
#[derive(Debug)]
pub struct Outbox {
    // Protects order: frames leave as they came, and nothing follows the close. Held for a push or a pop, never longer.
    queue: Mutex<Queue>,
    waker: AtomicWaker,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    bytes: usize,
    bytes_peak: usize,
    dropped: u64,
    ping: bool,
    end: End,
}

#[derive(Debug, Default)]
enum End {
    #[default]
    Open,
    /// Decided, and to be written after what waits.
    Pending(Close),
    /// Taken by the connection's task.
    Taken,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It will be written, unless the connection breaks.
    Queued,
    /// The outbox was full: this frame and all that waited are gone, and the connection ends as too slow.
    Full,
    /// The connection is ending. The frame is dropped.
    Gone,
}

/// What the connection's task takes from its outbox.
#[derive(Debug, PartialEq, Eq)]
pub enum Out {
    /// Write this.
    Frame(Frame),
    /// Ask whether the other side is still there.
    Ping,
    /// Then end like this.
    Close(Close),
}

impl Outbox {
    /// An outbox that holds at most this many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { queue: Mutex::default(), waker: AtomicWaker::new(), bytes_max }
    }

    /// Queues a frame. Never waits. `slow` is how the connection ends when this frame does not fit.
    pub fn push(&self, frame: Frame, slow: impl FnOnce() -> Close) -> Sent {
        let mut queue = self.queue.lock();
        if !matches!(queue.end, End::Open) {
            queue.dropped += 1;
            return Sent::Gone;
        }
        let weight = frame.len() + FRAME_OVERHEAD;
        let sent = if queue.bytes + weight > self.bytes_max {
            queue.dropped += queue.frames.len() as u64 + 1;
            queue.frames = VecDeque::new();
            queue.bytes = 0;
            queue.end = End::Pending(slow());
            Sent::Full
        } else {
            queue.bytes += weight;
            queue.bytes_peak = queue.bytes_peak.max(queue.bytes);
            queue.frames.push_back(frame);
            Sent::Queued
        };
        drop(queue);
        self.waker.wake();
        sent
    }

    /// Ends the connection after what waits. The first end counts.
    pub fn close(&self, close: Close) {
        let mut queue = self.queue.lock();
        if matches!(queue.end, End::Open) {
            queue.end = End::Pending(close);
            drop(queue);
            self.waker.wake();
        }
    }

    /// Asks for a ping, which goes before what waits.
    pub fn ping(&self) {
        self.queue.lock().ping = true;
        self.waker.wake();
    }

    /// The end that was decided but could not be written.
    pub fn take_close(&self) -> Option<Close> {
        match std::mem::replace(&mut self.queue.lock().end, End::Taken) {
            End::Pending(close) => Some(close),
            End::Open | End::Taken => None,
        }
    }

    /// Nothing more can be written: drops what waits and refuses the rest.
    pub fn shut(&self) {
        let mut queue = self.queue.lock();
        queue.dropped += queue.frames.len() as u64;
        queue.frames = VecDeque::new();
        queue.bytes = 0;
        queue.end = End::Taken;
    }

    /// The next thing to write.
    pub fn pop(&self) -> Option<Out> {
        let mut queue = self.queue.lock();
        if std::mem::take(&mut queue.ping) {
            return Some(Out::Ping);
        }
        if let Some(frame) = queue.frames.pop_front() {
            queue.bytes -= frame.len() + FRAME_OVERHEAD;
            if queue.frames.is_empty() && queue.frames.capacity() > 64 {
                queue.frames = VecDeque::new();
            }
            return Some(Out::Frame(frame));
        }
        match std::mem::replace(&mut queue.end, End::Taken) {
            End::Pending(close) => Some(Out::Close(close)),
            End::Open => {
                queue.end = End::Open;
                None
            }
            End::Taken => None,
        }
    }

    /// Whether a replay may go on: half of it is kept for what is live.
    pub fn has_room(&self) -> bool {
        let queue = self.queue.lock();
        queue.bytes < self.bytes_max / 2 && matches!(queue.end, End::Open)
    }

    /// Wakes the connection's task although nothing is pushed.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Wakes this task at the next push or close.
    pub fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// The most bytes it holds.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Whether no end was decided yet.
    pub fn is_open(&self) -> bool {
        matches!(self.queue.lock().end, End::Open)
    }

    /// Bytes waiting, the most that ever waited, and frames dropped.
    pub fn measure(&self) -> Measure {
        let queue = self.queue.lock();
        Measure {
            frames: queue.frames.len(),
            bytes: queue.bytes,
            bytes_peak: queue.bytes_peak,
            bytes_max: self.bytes_max,
            dropped: queue.dropped,
        }
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
    /// Frames that were never written.
    pub dropped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(n: usize) -> Frame {
        Frame::Text("x".repeat(n).into())
    }

    #[test]
    fn frames_come_out_in_order_and_the_close_last() {
        let outbox = Outbox::new(10_000);
        outbox.push(text(1), Close::slow);
        outbox.push(text(2), Close::slow);
        outbox.close(Close::GoingAway);
        outbox.close(Close::Internal);
        assert_eq!(outbox.push(text(3), Close::slow), Sent::Gone);
        assert_eq!(outbox.pop(), Some(Out::Frame(text(1))));
        assert_eq!(outbox.pop(), Some(Out::Frame(text(2))));
        assert_eq!(outbox.pop(), Some(Out::Close(Close::GoingAway)));
        assert_eq!(outbox.pop(), None);
        assert_eq!(outbox.measure().dropped, 1);
    }

    #[test]
    fn a_full_outbox_ends_the_connection_and_holds_nothing() {
        let outbox = Outbox::new(1000);
        let fits = (0..).take_while(|_| outbox.push(text(100), Close::slow) == Sent::Queued).count();
        assert_eq!(fits, 1000 / 164);
        let measure = outbox.measure();
        assert_eq!((measure.frames, measure.bytes, measure.dropped), (0, 0, 7));
        assert!(measure.bytes_peak <= 1000);
        assert_eq!(outbox.pop(), Some(Out::Close(Close::slow())));
    }
}
