//! What waits to be written to one client: bounded in bytes, closed at most once, filled by any thread, written by whoever
//! comes by. Filling fixes the order; writing only moves what is there on to the socket, so it can be done at any time.
//!
//! A socket that takes everything is written to at once by the one who flushes. One that does not is left alone until its
//! task hears that there is room again: meanwhile what is pushed waits here.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use super::Socket;
use crate::model::Close;
use crate::protocol::websocket;

/// Bytes that every waiting frame counts for besides its own.
const FRAME_OVERHEAD: usize = 64;

/// Frames given to the system with one call.
const SLICES_MAX: usize = 64;

/// A message ready for the wire, shared by all who get the same.
#[derive(Clone, Debug)]
pub struct Packet {
    /// What is written.
    pub wire: Bytes,
    /// Bytes of the message itself.
    pub payload: usize,
}

/// Messages that follow each other for everybody who gets them.
#[derive(Debug)]
pub struct Run {
    packets: Vec<Packet>,
    /// All of them, one after the other.
    joined: Bytes,
    payload: usize,
}

impl Run {
    /// Copies the packets together, where there are several.
    pub fn new(packets: Vec<Packet>) -> Self {
        let joined = match &packets[..] {
            [one] => one.wire.clone(),
            many => {
                let mut joined = Vec::with_capacity(many.iter().map(|packet| packet.wire.len()).sum());
                many.iter().for_each(|packet| joined.extend_from_slice(&packet.wire));
                joined.into()
            }
        };
        Self { joined, payload: packets.iter().map(|packet| packet.payload).sum(), packets }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Bytes of the messages themselves.
    pub fn payload(&self) -> usize {
        self.payload
    }

    fn weight(&self) -> usize {
        self.joined.len() + FRAME_OVERHEAD * self.packets.len()
    }
}

/// A bounded queue of frames with an end, and the socket they go to.
#[derive(Debug)]
pub struct Outbox {
    // Protects order and wholeness: frames leave as they came, and nothing follows the close. Held for a push, or for the
    // socket's own calls while it is written to.
    queue: Mutex<Queue>,
    waker: AtomicWaker,
    bytes_max: usize,
    socket: OnceLock<Box<dyn Socket>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    bytes_peak: usize,
    /// The first one is written in part: it cannot be taken back.
    begun: bool,
    /// The socket took less than it was given. Its task tries again.
    blocked: bool,
    /// Somebody who flushes knows of it.
    listed: bool,
    end: End,
    messages: u64,
    payload: u64,
    dropped: u64,
}

#[derive(Debug)]
enum Waiting {
    Frame(Bytes),
    Run(Arc<Run>),
}

impl Waiting {
    fn bytes(&self) -> &Bytes {
        match self {
            Waiting::Frame(bytes) => bytes,
            Waiting::Run(run) => &run.joined,
        }
    }

    fn weight(&self) -> usize {
        match self {
            Waiting::Frame(bytes) => bytes.len() + FRAME_OVERHEAD,
            Waiting::Run(run) => run.weight(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Waiting::Frame(_) => 1,
            Waiting::Run(run) => run.len(),
        }
    }
}

#[derive(Debug, Default)]
enum End {
    #[default]
    Open,
    /// The close frame is the last that waits, or it is written.
    Closing(Close),
    /// Nothing can be written any more.
    Shut,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It will be written, unless the connection breaks.
    Queued,
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
}

impl Outbox {
    /// An outbox that holds at most this many bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { queue: Mutex::default(), waker: AtomicWaker::new(), bytes_max, socket: OnceLock::new() }
    }

    /// Gives it the socket. What waits already is written by the next flush.
    pub fn attach(&self, socket: Box<dyn Socket>) {
        let first = self.socket.set(socket).is_ok();
        debug_assert!(first, "an outbox has one socket");
    }

    /// The socket, once there is one.
    pub fn socket(&self) -> Option<&dyn Socket> {
        self.socket.get().map(|socket| &**socket)
    }

    /// Queues a message. Never waits. `slow` is how the connection ends when it does not fit.
    /// Somebody must flush afterwards.
    pub fn push(&self, packet: Packet, slow: impl FnOnce() -> Close) -> Sent {
        let Packet { wire, payload } = packet;
        self.add(Waiting::Frame(wire), payload, slow)
    }

    /// Queues several messages as [`Outbox::push`] does: all of them or, where they do not fit, none.
    pub fn push_run(&self, run: &Arc<Run>, slow: impl FnOnce() -> Close) -> Sent {
        match &run.packets[..] {
            [one] => self.push(one.clone(), slow),
            _ => self.add(Waiting::Run(run.clone()), run.payload, slow),
        }
    }

    fn add(&self, waiting: Waiting, payload: usize, slow: impl FnOnce() -> Close) -> Sent {
        let mut queue = self.queue.lock();
        let messages = waiting.len() as u64;
        if !matches!(queue.end, End::Open) {
            queue.dropped += messages;
            return Sent::Gone;
        }
        if queue.bytes + waiting.weight() > self.bytes_max {
            queue.dropped += messages;
            queue.finish(slow());
            drop(queue);
            self.waker.wake();
            return Sent::Full;
        }
        queue.put(waiting);
        queue.messages += messages;
        queue.payload += payload as u64;
        Sent::Queued
    }

    /// Queues the answer to a ping. One that a client does not read ends the connection as any other message.
    pub fn pong(&self, payload: &[u8], slow: impl FnOnce() -> Close) {
        let mut queue = self.queue.lock();
        let frame = Waiting::Frame(websocket::pong(payload));
        if !matches!(queue.end, End::Open) {
            return;
        }
        if queue.bytes + frame.weight() > self.bytes_max {
            queue.finish(slow());
        } else {
            queue.put(frame);
        }
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

    /// Ends the connection at once: what waits is dropped, only the close frame is still written.
    pub fn fail(&self, close: Close) {
        let mut queue = self.queue.lock();
        if !matches!(queue.end, End::Shut) {
            queue.finish(close);
        }
    }

    /// Asks for a ping, which goes before what waits.
    pub fn ping(&self) {
        let mut queue = self.queue.lock();
        if matches!(queue.end, End::Open) {
            let frame = Waiting::Frame(websocket::ping());
            queue.bytes += frame.weight();
            let at = usize::from(queue.begun);
            queue.waiting.insert(at, frame);
        }
    }

    /// The end that was decided, as long as it can still be told.
    pub fn end(&self) -> Option<Close> {
        match &self.queue.lock().end {
            End::Closing(close) => Some(close.clone()),
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
                queue.blocked = false;
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
        }
    }

    /// Whether something waits that could be written.
    pub fn can_write(&self) -> bool {
        let queue = self.queue.lock();
        !queue.waiting.is_empty() && !queue.blocked
    }

    /// Whether a replay may go on: half of it is kept for what is live.
    pub fn has_room(&self) -> bool {
        let queue = self.queue.lock();
        queue.bytes < self.bytes_max / 2 && matches!(queue.end, End::Open)
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
        self.bytes_max
    }

    /// Whether no end was decided yet.
    pub fn is_open(&self) -> bool {
        matches!(self.queue.lock().end, End::Open)
    }

    /// What waits and what passed.
    pub fn measure(&self) -> Measure {
        let queue = self.queue.lock();
        Measure {
            frames: queue.waiting.iter().map(Waiting::len).sum(),
            bytes: queue.bytes,
            bytes_peak: queue.bytes_peak,
            bytes_max: self.bytes_max,
            messages: queue.messages,
            payload: queue.payload,
            dropped: queue.dropped,
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
        queue.waiting.drain(..).flat_map(|waiting| waiting.bytes().to_vec()).collect()
    }
}

impl Queue {
    fn put(&mut self, waiting: Waiting) {
        self.bytes += waiting.weight();
        self.bytes_peak = self.bytes_peak.max(self.bytes);
        if self.blocked { self.put_apart(waiting) } else { self.waiting.push_back(waiting) }
    }

    /// What has to wait waits message by message.
    fn put_apart(&mut self, waiting: Waiting) {
        match waiting {
            Waiting::Frame(bytes) => self.waiting.push_back(Waiting::Frame(bytes)),
            Waiting::Run(run) => self.waiting.extend(run.packets.iter().map(|packet| Waiting::Frame(packet.wire.clone()))),
        }
    }

    /// The close frame goes behind what waits.
    fn end(&mut self, close: Close) {
        let frame = Waiting::Frame(websocket::close(close.code(), close.reason()));
        self.bytes += frame.weight();
        self.waiting.push_back(frame);
        self.end = End::Closing(close);
    }

    /// The close frame goes in place of what waits. What is half written is written to its end.
    fn finish(&mut self, close: Close) {
        if !matches!(self.end, End::Open) {
            return;
        }
        self.drop_waiting();
        self.end(close);
    }

    fn drop_waiting(&mut self) {
        let keep = usize::from(self.begun);
        self.dropped += self.waiting.iter().skip(keep).map(|waiting| waiting.len() as u64).sum::<u64>();
        self.waiting.truncate(keep);
        self.waiting.shrink_to_fit();
        self.bytes = self.waiting.iter().map(Waiting::weight).sum();
    }

    fn shut(&mut self) {
        self.begun = false;
        self.drop_waiting();
        self.end = End::Shut;
    }

    fn write(&mut self, socket: &dyn Socket) {
        while !self.waiting.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.waiting.len().min(SLICES_MAX);
            let mut offered = 0;
            for (slice, waiting) in slices.iter_mut().zip(&self.waiting) {
                *slice = IoSlice::new(waiting.bytes());
                offered += waiting.bytes().len();
            }
            match socket.try_write(&slices[..count]) {
                Ok(written) => {
                    self.written(written);
                    if written < offered {
                        return self.block();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.block(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.shut(),
            }
        }
        if self.waiting.capacity() > 0 {
            self.waiting = VecDeque::new();
        }
        match socket.try_flush() {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.blocked = true,
            Err(_) => self.shut(),
        }
    }

    /// The system took so many bytes from the front.
    fn written(&mut self, mut bytes: usize) {
        while let Some(first) = self.waiting.front_mut() {
            match first {
                whole if whole.bytes().len() <= bytes => {
                    bytes -= whole.bytes().len();
                    self.bytes -= whole.weight();
                    self.waiting.pop_front();
                    self.begun = false;
                }
                Waiting::Frame(frame) => {
                    frame.advance(bytes);
                    self.bytes -= bytes;
                    self.begun |= bytes > 0;
                    return;
                }
                Waiting::Run(run) => {
                    let run = run.clone();
                    self.waiting.pop_front();
                    for packet in run.packets.iter().rev() {
                        self.waiting.push_front(Waiting::Frame(packet.wire.clone()));
                    }
                }
            }
        }
    }

    fn block(&mut self) {
        self.blocked = true;
        if self.waiting.iter().any(|waiting| matches!(waiting, Waiting::Run(_))) {
            for waiting in std::mem::take(&mut self.waiting) {
                self.put_apart(waiting);
            }
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
    /// Messages queued so far.
    pub messages: u64,
    /// Bytes of them.
    pub payload: u64,
    /// Messages that were never written.
    pub dropped: u64,
}
