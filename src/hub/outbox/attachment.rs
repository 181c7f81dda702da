//! Attaches a socket to an outbox, detaches it, and attaches another. Without a socket, what is queued waits within its bound,
//! sorted as if the socket accepted nothing, until the next socket takes it or somebody drains it.

use std::sync::Arc;

use bytes::Bytes;

use super::Outbox;
use crate::hub::Socket;
use crate::model::Close;

impl Outbox {
    /// Attaches a socket, if there is none. What waits is written by the next flush, or by the connection's task.
    pub fn attach(&self, socket: Box<dyn Socket>) {
        let mut queue = self.queue.lock();
        debug_assert!(queue.socket.is_none(), "an outbox has one socket at a time");
        queue.socket = Some(socket.into());
        drop(queue);
        self.waker.wake();
    }

    /// Detaches the socket. A packet that it took only in part does not count as written: the next one gets all of it. `slow`:
    /// how the connection ends if there is no room for that.
    pub fn detach(&self, slow: impl FnOnce() -> Close) -> Option<Arc<dyn Socket>> {
        let mut queue = self.queue.lock();
        let socket = queue.socket.take()?;
        if !queue.take_back(self.bytes_max()) {
            queue.finish(self.wire, slow());
        }
        drop(queue);
        self.waker.wake();
        Some(socket)
    }

    /// Takes what waits, in the order of writing: whole packets of at most this many bytes together, but always one if any
    /// waits. For transports that ask for what there is. There must be no socket.
    pub fn drain(&self, bytes_max: usize) -> Vec<Bytes> {
        let mut queue = self.queue.lock();
        debug_assert!(queue.socket.is_none(), "what waits belongs to the socket");
        let taken = queue.drain(bytes_max);
        drop(queue);
        // There is room again.
        self.waker.wake();
        taken
    }

    /// The socket, while there is one.
    pub fn socket(&self) -> Option<Arc<dyn Socket>> {
        self.queue.lock().socket.clone()
    }
}
