//! The bytes of a connection: what a read brings, message by message, and how far the end has come. What is written waits in
//! the outbox. An idle connection holds no buffer: reads go through one that its thread keeps.

use std::cell::Cell;
use std::io;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};

use crate::hub::{Outbox, Socket};
use crate::model::Close;
use crate::protocol::websocket::{Decoder, Received, Violation};

/// Bytes read with one call.
const READ_BYTES: usize = 64 << 10;

/// Bytes read and thrown away after a fault, so that the close frame arrives.
const DRAIN_BYTES_MAX: usize = 64 << 20;

thread_local! {
    /// What this thread reads into.
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// The reading side of a connection.
pub struct Wire {
    decoder: Decoder,
    /// What was read and is not looked at yet.
    unread: Bytes,
    phase: Phase,
}

enum Phase {
    Open,
    /// The close frame waits or is written; what still comes in is thrown away.
    Closing(Box<Close>),
    /// The other side asked for the end: it is answered behind what waits, and nothing of it is read any more.
    Answering(Box<Close>),
    /// Not even frames can be read any more. Once all is written our side ends, and what comes is thrown away.
    Draining(Box<Draining>),
}

struct Draining {
    close: Close,
    ended: bool,
    drained: usize,
}

/// Whether whoever takes messages wants more.
pub enum Taken {
    /// Go on.
    More,
    /// Not now: what was read and not looked at is kept.
    Enough,
}

/// What a look at the socket came to.
pub enum Read {
    /// What was read is dealt with.
    Some,
    /// There is more, which is not wanted now.
    Enough,
    /// The other side asks for the end, or broke the protocol: the outbox is to be given this end, behind the answers to what came
    /// before.
    Last(Close),
    /// The other side ended it, or the close handshake is complete.
    Ended(Close),
}

impl Wire {
    /// `early`: what came with the handshake.
    pub fn new(early: Bytes, message_bytes_max: usize, inflates: bool) -> Self {
        Self { decoder: Decoder::new(message_bytes_max, inflates), unread: early, phase: Phase::Open }
    }

    /// Messages that begin from now on may have so many bytes.
    pub fn set_message_bytes_max(&mut self, bytes: usize) {
        self.decoder.set_message_bytes_max(bytes);
    }

    /// How it ends, once that is decided.
    pub fn closing(&self) -> Option<&Close> {
        match &self.phase {
            Phase::Open => None,
            Phase::Closing(close) | Phase::Answering(close) => Some(close),
            Phase::Draining(draining) => Some(&draining.close),
        }
    }

    /// Whether the other side asked for the end: once its answer is written there is nothing to wait for.
    pub fn is_asked(&self) -> bool {
        matches!(self.phase, Phase::Answering(_))
    }

    /// The outbox has been given its end.
    pub fn close(&mut self, close: Close) {
        if matches!(self.phase, Phase::Open) {
            self.phase = Phase::Closing(Box::new(close));
        }
    }

    /// Reads once. `written`: whether everything was written. Pending where nothing is there.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        outbox: &Outbox,
        written: bool,
        take: &mut dyn FnMut(Received) -> Taken,
    ) -> Poll<Read> {
        let Some(socket) = outbox.socket() else { return Poll::Pending };
        if self.is_asked() {
            return Poll::Pending;
        }
        if !self.unread.is_empty() {
            let mut unread = std::mem::take(&mut self.unread);
            let mut input = &unread[..];
            let read = self.decode(&mut input, take);
            let used = unread.len() - input.len();
            unread.advance(used);
            self.unread = unread;
            return Poll::Ready(read);
        }
        if let Phase::Draining(draining) = &mut self.phase {
            if !written {
                return Poll::Pending;
            }
            // A client that waits for the end before it goes must see it.
            if !std::mem::replace(&mut draining.ended, true) {
                socket.close();
            }
        }
        if socket.poll_readable(cx).is_pending() {
            return Poll::Pending;
        }
        let mut scratch = SCRATCH.take().unwrap_or_else(|| vec![0; READ_BYTES].into());
        let read = self.read(socket, &mut scratch, take);
        SCRATCH.set(Some(scratch));
        Poll::Ready(read)
    }

    fn read(&mut self, socket: &dyn Socket, scratch: &mut [u8], take: &mut dyn FnMut(Received) -> Taken) -> Read {
        match socket.try_read(scratch) {
            Ok(0) => Read::Ended(self.closing().cloned().unwrap_or(Close::Lost)),
            Ok(count) => {
                if let Phase::Draining(draining) = &mut self.phase {
                    draining.drained += count;
                    return if draining.drained > DRAIN_BYTES_MAX { Read::Ended(draining.close.clone()) } else { Read::Some };
                }
                let mut input = &scratch[..count];
                let read = self.decode(&mut input, take);
                if !input.is_empty() {
                    self.unread = Bytes::copy_from_slice(input);
                }
                read
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Read::Some,
            Err(_) => Read::Ended(self.closing().cloned().unwrap_or(Close::Lost)),
        }
    }

    fn decode(&mut self, input: &mut &[u8], take: &mut dyn FnMut(Received) -> Taken) -> Read {
        loop {
            match (self.decoder.next(input), &self.phase) {
                (Ok(None), _) => return Read::Some,
                (Ok(Some(Received::Close(_))), Phase::Closing(close)) => return Read::Ended((**close).clone()),
                (Ok(Some(Received::Close(told))), _) => {
                    let (code, reason) = told.unwrap_or((1005, String::new()));
                    let close = Close::ByClient(code, reason);
                    self.phase = Phase::Answering(Box::new(close.clone()));
                    *input = &[];
                    return Read::Last(close);
                }
                (Ok(Some(Received::Message(_))), Phase::Closing(_)) => {}
                (Ok(Some(received)), _) => {
                    if let Taken::Enough = take(received) {
                        return Read::Enough;
                    }
                }
                (Err(violation), _) => {
                    let close = self.closing().cloned().unwrap_or_else(|| fault(violation));
                    self.phase = Phase::Draining(Box::new(Draining { close: close.clone(), ended: false, drained: 0 }));
                    *input = &[];
                    return Read::Last(close);
                }
            }
        }
    }
}

fn fault(violation: Violation) -> Close {
    match violation {
        Violation::Protocol(_) => Close::ProtocolError,
        Violation::Utf8 => Close::InvalidUtf8,
        Violation::TooLarge => Close::TooLarge,
    }
}
