//! What waits in an outbox, and how it gets to the socket: in the order of arrival as long as the socket accepts everything,
//! otherwise sorted by a [`Backlog`].

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::Sent;
use super::backlog::{Backlog, Room};
use super::delivery_policy::{DeliveryPolicy, SubscriptionId};
use super::lifecycle::{Ending, Lifecycle, Transition};
use super::packet::QueuedFrame;
use super::slots::Staged;
use super::write_queue::{QueuedWrite, WriteQueue};
use crate::hub::Socket;
use crate::model::Close;
use crate::protocol::wire::Wire;

/// Frames passed to the system with one call.
const SLICES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct OutboxQueue {
    pub(super) socket: Option<Arc<dyn Socket>>,
    /// In the order of writing. If the socket is blocked: what is partly written, and pings.
    pub(super) waiting: WriteQueue,
    /// What waits after that. Empty unless the socket is blocked.
    pub(super) backlog: Option<Box<Backlog>>,
    /// What waits behind reserved slots. `None` if there never were any.
    pub(super) staged: Option<Box<Staged>>,
    /// Bytes of everything except what is staged.
    pub(super) bytes: usize,
    pub(super) bytes_peak: usize,
    /// Bytes of the first that the socket has: it cannot be taken back.
    pub(super) written: usize,
    /// The socket took less than it was given, and its task tries again; or there is no socket any more.
    pub(super) blocked: bool,
    /// It is listed for a flush.
    pub(super) listed: bool,
    pub(super) lifecycle: Lifecycle,
    /// Set once the end has been decided.
    pub(super) ending: Option<Box<Ending>>,
    pub(super) messages: u64,
    pub(super) payload: u64,
    pub(super) dropped: u64,
}

impl OutboxQueue {
    pub(super) fn is_open(&self) -> bool {
        self.lifecycle == Lifecycle::Open
    }

    /// How the connection ends, once that is known.
    pub(super) fn ending(&self) -> Option<Close> {
        self.ending.as_ref().map(|ending| ending.close.clone())
    }

    /// Changes the state. Returns whether that began the end.
    pub(super) fn turn(&mut self, transition: Transition, close: Close) -> bool {
        let was_open = self.is_open();
        self.lifecycle = self.lifecycle.after(transition);
        let begins = was_open && !self.is_open();
        if begins {
            self.ending = Some(Box::new(Ending { close, since: Instant::now() }));
        }
        begins
    }

    /// If this begins the end, queues the close packet after what waits and returns `true`.
    pub(super) fn advance(&mut self, wire: Wire, transition: Transition, close: Close) -> bool {
        if !self.turn(transition, close) {
            return false;
        }
        if !self.stage_close() {
            self.put_close(wire);
        }
        true
    }

    /// Counts what became of messages.
    pub(super) fn note(&mut self, sent: Sent, messages: u64, payload: u64) {
        match sent {
            Sent::Queued => {
                self.messages += messages;
                self.payload += payload;
            }
            Sent::Dropped | Sent::Full | Sent::Gone => self.dropped += messages,
            Sent::Behind => {}
        }
    }

    /// Works on what waits behind the blocked socket.
    pub(super) fn in_backlog<T>(&mut self, act: impl FnOnce(&mut Backlog) -> T) -> T {
        let backlog = self.backlog.get_or_insert_default();
        let (bytes, dropped) = (backlog.bytes(), backlog.dropped);
        let result = act(backlog);
        self.bytes = self.bytes + backlog.bytes() - bytes;
        self.dropped += backlog.dropped - dropped;
        self.forget_backlog();
        result
    }

    fn forget_backlog(&mut self) {
        if self.backlog.as_ref().is_some_and(|backlog| backlog.is_over()) {
            self.backlog = None;
        }
    }

    /// Whether subscriptions must continue from the log. What is staged for them is dropped first.
    pub(super) fn has_fallen(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| backlog.is_behind()) && !self.is_staging()
    }

    /// Whether a subscription gets nothing more before it has continued from the log. It then continues before this message, if
    /// the log has it.
    pub(super) fn fall_back(&mut self, subscription: SubscriptionId, policy: Option<&Arc<DeliveryPolicy>>) -> bool {
        let after = policy.and_then(|policy| policy.recoverable(subscription));
        self.backlog.as_mut().is_some_and(|backlog| backlog.fall_back(subscription, after))
    }

    /// Drops a message that may be dropped, and returns how.
    pub(super) fn refuse(&mut self, policy: &Arc<DeliveryPolicy>, subscription: SubscriptionId) -> Sent {
        match self.in_backlog(|backlog| backlog.refuse(policy, subscription, policy.recoverable(subscription))) {
            Room::Behind => Sent::Behind,
            Room::Made | Room::Dropped | Room::None => Sent::Dropped,
        }
    }

    /// Bytes that wait in total.
    pub(super) fn total_bytes(&self) -> usize {
        self.bytes + self.staged.as_ref().map_or(0, |staged| staged.bytes)
    }

    pub(super) fn put(&mut self, frame: QueuedFrame) {
        if self.blocked {
            self.in_backlog(|backlog| backlog.add(frame));
        } else {
            self.bytes += frame.cost_bytes();
            self.waiting.push_back(frame.into());
        }
        self.bytes_peak = self.bytes_peak.max(self.total_bytes());
    }

    /// Queues the close packet of the end that was decided.
    pub(super) fn put_close(&mut self, wire: Wire) {
        let Some(ending) = &self.ending else { return };
        let frame = QueuedFrame::own(wire.close(&ending.close));
        if self.blocked {
            self.in_backlog(|backlog| backlog.add_close(frame));
        } else {
            self.bytes += frame.cost_bytes();
            self.waiting.push_back(frame.into());
        }
    }

    /// The close packet replaces what waits. What is partly written is still written completely.
    pub(super) fn finish(&mut self, wire: Wire, close: Close) {
        let staged = self.take_staged_close();
        if staged || self.is_open() {
            self.drop_waiting();
            self.turn(Transition::Close, close);
            self.put_close(wire);
        }
    }

    fn drop_waiting(&mut self) {
        self.dropped += self.waiting.take(self.written > 0).map(|waiting| waiting.len() as u64).sum::<u64>();
        if let Some(backlog) = &mut self.backlog {
            self.dropped += backlog.len() as u64;
            backlog.clear();
        }
        self.forget_backlog();
        self.dropped += self.staged.as_mut().map_or(0, |staged| staged.clear());
        self.bytes = self.left_bytes();
    }

    /// Bytes before the backlog.
    fn left_bytes(&self) -> usize {
        self.waiting.iter().map(QueuedWrite::cost_bytes).sum::<usize>() - self.written
    }

    /// Nothing can be written any more. `close`: the reason, if no end was decided before.
    pub(super) fn shut(&mut self, close: Close) {
        self.turn(Transition::End, close);
        self.written = 0;
        self.blocked = false;
        self.drop_waiting();
    }

    /// There is no socket any more: what it took in part waits again as a whole, at the front. `false`: there is no room for
    /// that.
    pub(super) fn take_back(&mut self, bytes_max: usize) -> bool {
        self.bytes += std::mem::take(&mut self.written);
        self.block();
        let excess = self.total_bytes().saturating_sub(bytes_max);
        excess == 0 || self.in_backlog(|backlog| backlog.make_room(excess, &QueuedFrame::own(Bytes::new()))) == Room::Made
    }

    /// Takes whole packets from the front, at most `bytes_max` bytes but always one.
    pub(super) fn drain(&mut self, bytes_max: usize) -> Vec<Bytes> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(next) = self.next_len() {
            if !taken.is_empty() && bytes + next > bytes_max {
                break;
            }
            let Some(frame) = self.pop() else { break };
            bytes += frame.wire.len();
            taken.push(frame.wire);
        }
        taken
    }

    /// Bytes of the first packet.
    fn next_len(&mut self) -> Option<usize> {
        self.split_first();
        match self.waiting.first_mut() {
            Some(first) => Some(first.bytes().len()),
            None => self.backlog.as_ref()?.wires().next().map(Bytes::len),
        }
    }

    fn pop(&mut self) -> Option<QueuedFrame> {
        match self.waiting.pop_front() {
            Some(first) => {
                self.bytes -= first.cost_bytes();
                first.into_frames().pop()
            }
            None => self.in_backlog(Backlog::pop),
        }
    }

    /// Splits a run at the front into its packets.
    fn split_first(&mut self) {
        if let Some(QueuedWrite::Run(run, subscription)) = self.waiting.first_mut() {
            let (run, subscription) = (run.clone(), *subscription);
            self.waiting.pop_front();
            run.frames(subscription).rev().for_each(|frame| self.waiting.push_front(frame.into()));
        }
    }

    /// Offers the socket what comes next, as much as one call may hold. Returns how much it took of how much.
    fn offer(&self, socket: &dyn Socket) -> io::Result<(usize, usize)> {
        if let (Some(only), None) = (self.waiting.only(), &self.backlog) {
            let bytes = &only.bytes()[self.written..];
            return Ok((socket.try_write(&[IoSlice::new(bytes)])?, bytes.len()));
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let (mut count, mut offered) = (0, 0);
        let waiting = self.waiting.iter().map(QueuedWrite::bytes);
        let behind = self.backlog.iter().flat_map(|backlog| backlog.wires());
        let mut written = self.written;
        for (slice, bytes) in slices.iter_mut().zip(waiting.chain(behind)) {
            let left = &bytes[std::mem::take(&mut written)..];
            *slice = IoSlice::new(left);
            offered += left.len();
            count += 1;
        }
        Ok((socket.try_write(&slices[..count])?, offered))
    }

    /// Writes until everything is written or the socket accepts no more. `false`: there is no socket.
    pub(super) fn write(&mut self) -> bool {
        let Some(socket) = self.socket.take() else { return false };
        self.write_to(&*socket);
        self.socket = Some(socket);
        true
    }

    fn write_to(&mut self, socket: &dyn Socket) {
        while !self.waiting.is_empty() || self.backlog.as_ref().is_some_and(|backlog| backlog.wires().next().is_some()) {
            match self.offer(socket) {
                Ok((written, offered)) => {
                    self.written(written);
                    if written < offered {
                        return self.block();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.block(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.shut(Close::Lost),
            }
        }
        self.forget_backlog();
        match socket.try_flush() {
            Ok(()) => self.blocked = false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.blocked = true,
            Err(_) => self.shut(Close::Lost),
        }
    }

    /// The system took this many bytes from the front.
    fn written(&mut self, mut bytes: usize) {
        loop {
            match self.waiting.first_mut() {
                None => match self.take_behind(bytes) {
                    Some(frame) => self.waiting.push_front(frame.into()),
                    None => return,
                },
                Some(whole) if whole.bytes().len() - self.written <= bytes => {
                    let before = std::mem::take(&mut self.written);
                    bytes -= whole.bytes().len() - before;
                    self.bytes -= whole.cost_bytes() - before;
                    self.waiting.pop_front();
                }
                Some(QueuedWrite::Frame(_)) if bytes == 0 => return,
                Some(QueuedWrite::Frame(frame)) => {
                    // It is being written, so nothing else can happen to it.
                    let cost = frame.cost_bytes();
                    frame.policy = None;
                    self.bytes -= cost - frame.cost_bytes() + bytes;
                    self.written += bytes;
                    return;
                }
                Some(QueuedWrite::Run(..)) => self.split_first(),
            }
        }
    }

    /// Takes the next from behind the blocked socket, if some of it was written.
    fn take_behind(&mut self, bytes: usize) -> Option<QueuedFrame> {
        self.backlog.as_mut().filter(|_| bytes > 0)?.pop()
    }

    /// From now on messages wait one by one, sorted. What is partly written stays at the front.
    fn block(&mut self) {
        if std::mem::replace(&mut self.blocked, true) {
            return;
        }
        let mut rest = self.waiting.take(self.written > 0);
        self.bytes = self.left_bytes();
        let close = if self.is_open() { None } else { rest.next_back() };
        self.in_backlog(|backlog| {
            for frame in rest.flat_map(QueuedWrite::into_frames) {
                backlog.supersede(&frame);
                backlog.add(frame);
            }
            close.into_iter().flat_map(QueuedWrite::into_frames).for_each(|close| backlog.add_close(close));
        });
    }
}
