//! The socket of an outbox: given, taken away, and another one given. Without one, what is queued waits within its bound, sorted
//! as behind a socket that takes nothing, until the next socket takes it or somebody carries it away.

use std::sync::Arc;

use bytes::Bytes;

use super::Outbox;
use crate::hub::Socket;
use crate::model::Close;

impl Outbox {
    /// Gives it the socket, where it has none. What waits is written by the next flush, or by the connection's task.
    pub fn attach(&self, socket: Box<dyn Socket>) {
        let mut queue = self.queue.lock();
        debug_assert!(queue.socket.is_none(), "an outbox has one socket at a time");
        queue.socket = Some(socket.into());
        drop(queue);
        self.waker.wake();
    }

    /// Takes the socket away. What it took of a packet without its end counts for nothing: the next one is given the whole.
    /// `slow` is how the connection ends where there is no room for that.
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

    /// Carries away what waits, in the order of writing: whole packets of at most so many bytes together, but always one, where
    /// any waits. For transports that ask for what there is. There must be no socket.
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
