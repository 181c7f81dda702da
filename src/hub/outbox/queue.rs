//! What waits in an outbox, and how it goes to the socket: in the order of coming as long as that takes everything, sorted by
//! a [`Backlog`] once it does not.

use std::io::{self, ErrorKind, IoSlice};

use bytes::Buf;

use super::Sent;
use super::backlog::Backlog;
use super::packet::QueuedFrame;
use super::write_queue::{QueuedWrite, WriteQueue};
use crate::hub::Socket;
use crate::model::Close;
use crate::protocol::websocket;

/// Frames given to the system with one call.
const SLICES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct OutboxQueue {
    /// In the order of writing. Where the socket is blocked: what is half written, and pings.
    pub(super) waiting: WriteQueue,
    /// What waits behind that. Nothing, unless the socket is blocked.
    pub(super) backlog: Option<Box<Backlog>>,
    pub(super) bytes: usize,
    pub(super) bytes_peak: usize,
    /// The first one is written in part: it cannot be taken back.
    pub(super) begun: bool,
    /// The socket took less than it was given. Its task tries again.
    pub(super) blocked: bool,
    /// Somebody who flushes knows of it.
    pub(super) listed: bool,
    pub(super) end: End,
    pub(super) messages: u64,
    pub(super) payload: u64,
    pub(super) dropped: u64,
}

#[derive(Debug, Default)]
pub(super) enum End {
    #[default]
    Open,
    /// The close frame is the last that waits, or it is written.
    Closing(Box<Close>),
    /// Nothing can be written any more.
    Shut,
}

impl OutboxQueue {
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

    /// Does something with what waits behind the blocked socket.
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

    pub(super) fn has_fallen(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| backlog.is_behind())
    }

    pub(super) fn put(&mut self, frame: QueuedFrame) {
        if self.blocked {
            self.in_backlog(|backlog| backlog.add(frame));
        } else {
            self.bytes += frame.cost_bytes();
            self.waiting.push_back(frame.into());
        }
        self.bytes_peak = self.bytes_peak.max(self.bytes);
    }

    /// The close frame goes behind what waits.
    pub(super) fn end(&mut self, close: Close) {
        let frame = QueuedFrame::own(websocket::close(close.code(), close.reason()));
        if self.blocked {
            self.in_backlog(|backlog| backlog.add_close(frame));
        } else {
            self.bytes += frame.cost_bytes();
            self.waiting.push_back(frame.into());
        }
        self.end = End::Closing(Box::new(close));
    }

    /// The close frame goes in place of what waits. What is half written is written to its end.
    pub(super) fn finish(&mut self, close: Close) {
        if !matches!(self.end, End::Open) {
            return;
        }
        self.drop_waiting();
        self.end(close);
    }

    fn drop_waiting(&mut self) {
        self.dropped += self.waiting.take(self.begun).map(|waiting| waiting.len() as u64).sum::<u64>();
        if let Some(backlog) = &mut self.backlog {
            self.dropped += backlog.len() as u64;
            backlog.clear();
        }
        self.forget_backlog();
        self.bytes = self.waiting.iter().map(QueuedWrite::cost_bytes).sum();
    }

    pub(super) fn shut(&mut self) {
        self.begun = false;
        self.blocked = false;
        self.drop_waiting();
        self.end = End::Shut;
    }

    /// Gives the socket what it is next, as much of it as one call may hold: how much it took of how much.
    fn offer(&self, socket: &dyn Socket) -> io::Result<(usize, usize)> {
        if let (Some(only), None) = (self.waiting.only(), &self.backlog) {
            let bytes = only.bytes();
            return Ok((socket.try_write(&[IoSlice::new(bytes)])?, bytes.len()));
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let (mut count, mut offered) = (0, 0);
        let waiting = self.waiting.iter().map(QueuedWrite::bytes);
        let behind = self.backlog.iter().flat_map(|backlog| backlog.wires());
        for (slice, bytes) in slices.iter_mut().zip(waiting.chain(behind)) {
            *slice = IoSlice::new(bytes);
            offered += bytes.len();
            count += 1;
        }
        Ok((socket.try_write(&slices[..count])?, offered))
    }

    /// Gives the socket all it takes, and knows afterwards whether that was all there is.
    pub(super) fn write(&mut self, socket: &dyn Socket) {
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
                Err(_) => return self.shut(),
            }
        }
        self.forget_backlog();
        match socket.try_flush() {
            Ok(()) => self.blocked = false,
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.blocked = true,
            Err(_) => self.shut(),
        }
    }

    /// The system took so many bytes from the front.
    fn written(&mut self, mut bytes: usize) {
        loop {
            match self.waiting.first_mut() {
                None => match self.take_behind(bytes) {
                    Some(frame) => self.waiting.push_front(frame.into()),
                    None => return,
                },
                Some(whole) if whole.bytes().len() <= bytes => {
                    bytes -= whole.bytes().len();
                    self.bytes -= whole.cost_bytes();
                    self.waiting.pop_front();
                    self.begun = false;
                }
                Some(QueuedWrite::Frame(_)) if bytes == 0 => return,
                Some(QueuedWrite::Frame(frame)) => {
                    // What becomes of it is settled: it is written.
                    self.bytes -= frame.cost_bytes();
                    frame.wire.advance(bytes);
                    frame.policy = None;
                    self.bytes += frame.cost_bytes();
                    self.begun = true;
                    return;
                }
                Some(QueuedWrite::Run(run, subscription)) => {
                    let (run, subscription) = (run.clone(), *subscription);
                    self.waiting.pop_front();
                    run.frames(subscription).rev().for_each(|frame| self.waiting.push_front(frame.into()));
                }
            }
        }
    }

    /// The next from behind the blocked socket, where some of it was written.
    fn take_behind(&mut self, bytes: usize) -> Option<QueuedFrame> {
        self.backlog.as_mut().filter(|_| bytes > 0)?.pop()
    }

    /// From now on messages wait one by one, sorted. What is half written stays in front.
    fn block(&mut self) {
        if std::mem::replace(&mut self.blocked, true) {
            return;
        }
        let mut rest = self.waiting.take(self.begun);
        self.bytes = self.waiting.iter().map(QueuedWrite::cost_bytes).sum();
        let close = if matches!(self.end, End::Closing(_)) { rest.next_back() } else { None };
        self.in_backlog(|backlog| {
            for frame in rest.flat_map(QueuedWrite::into_frames) {
                backlog.supersede(&frame);
                backlog.add(frame);
            }
            close.into_iter().flat_map(QueuedWrite::into_frames).for_each(|close| backlog.add_close(close));
        });
    }
}
