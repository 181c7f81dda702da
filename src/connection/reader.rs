//! The bytes that come on a connection: what a read brings, message by message. What is written waits in the outbox. An idle connection holds no buffer: reads go through one that its thread keeps.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};

use crate::hub::{Lifecycle, Outbox, Progress, Socket, Transition};
use crate::model::Close;
use crate::protocol::wire::{Decoder, Received, Violation, Wire};

/// Bytes read with one call.
const READ_BYTES: usize = 64 << 10;

/// Bytes read and thrown away after a fault, so that the close frame arrives.
const DRAIN_BYTES_MAX: usize = 64 << 20;

thread_local! {
    /// What this thread reads into.
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// The reading side of a connection. How far its life has come is the outbox's to know.
pub struct Reader {
    decoder: Decoder,
    /// What was read and is not looked at yet.
    unread: Bytes,
    /// Bytes thrown away since the client broke the rules.
    drained: usize,
}

/// Whether the receiver of messages wants more.
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
    /// The other side asks to close, or broke the protocol: the outbox must close the connection, after the answers to earlier messages.
    Last(Transition, Close),
    /// The other side is gone.
    Ended,
}

impl Reader {
    /// `early`: what came with the handshake.
    pub fn new(early: Bytes, wire: Wire, message_bytes_max: usize) -> Self {
        Self { decoder: wire.decoder(message_bytes_max), unread: early, drained: 0 }
    }

    /// Messages that begin from now on may have so many bytes.
    pub fn set_message_bytes_max(&mut self, bytes: usize) {
        self.decoder.set_message_bytes_max(bytes);
    }

    /// The socket, once there is something to [`Reader::read`]. `progress`: what the last look at the outbox came to.
    pub fn poll_ready(&self, cx: &mut Context<'_>, outbox: &Outbox, progress: &Progress) -> Poll<Arc<dyn Socket>> {
        let lifecycle = progress.lifecycle;
        let Some(socket) = outbox.socket() else { return Poll::Pending };
        if matches!(lifecycle, Lifecycle::Answering | Lifecycle::Ended) {
            return Poll::Pending;
        }
        if !self.unread.is_empty() {
            return Poll::Ready(socket);
        }
        if lifecycle == Lifecycle::Draining {
            if !progress.written {
                return Poll::Pending;
            }
            outbox.hang_up();
        }
        socket.poll_readable(cx).map(|()| socket)
    }

    /// Reads once.
    pub fn read(&mut self, socket: &dyn Socket, lifecycle: Lifecycle, take: &mut dyn FnMut(Received) -> Taken) -> Read {
        if !self.unread.is_empty() {
            let mut unread = std::mem::take(&mut self.unread);
            let mut input = &unread[..];
            let read = self.decode(&mut input, lifecycle, take);
            let used = unread.len() - input.len();
            unread.advance(used);
            self.unread = unread;
            return read;
        }
        let mut scratch = SCRATCH.take().unwrap_or_else(|| vec![0; READ_BYTES].into());
        let read = self.read_from(socket, &mut scratch, lifecycle, take);
        SCRATCH.set(Some(scratch));
        read
    }

    fn read_from(
        &mut self,
        socket: &dyn Socket,
        scratch: &mut [u8],
        lifecycle: Lifecycle,
        take: &mut dyn FnMut(Received) -> Taken,
    ) -> Read {
        match socket.try_read(scratch) {
            Ok(0) => Read::Ended,
            Ok(count) if matches!(lifecycle, Lifecycle::Draining | Lifecycle::HungUp) => {
                self.drained += count;
                if self.drained > DRAIN_BYTES_MAX { Read::Ended } else { Read::Some }
            }
            Ok(count) => {
                let mut input = &scratch[..count];
                let read = self.decode(&mut input, lifecycle, take);
                if !input.is_empty() {
                    self.unread = Bytes::copy_from_slice(input);
                }
                read
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Read::Some,
            Err(_) => Read::Ended,
        }
    }

    fn decode(&mut self, input: &mut &[u8], lifecycle: Lifecycle, take: &mut dyn FnMut(Received) -> Taken) -> Read {
        loop {
            match self.decoder.next(input) {
                Ok(None) => return Read::Some,
                Ok(Some(Received::Close(told))) => {
                    let (code, reason) = told.unwrap_or((1005, String::new()));
                    *input = &[];
                    return Read::Last(Transition::Answer, Close::ByClient(code, reason));
                }
                Ok(Some(Received::Message(_))) if lifecycle == Lifecycle::Closing => {}
                Ok(Some(received)) => {
                    if let Taken::Enough = take(received) {
                        return Read::Enough;
                    }
                }
                Err(violation) => {
                    *input = &[];
                    return Read::Last(Transition::Fail, fault(violation));
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
