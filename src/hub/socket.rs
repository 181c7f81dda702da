//! What is wanted of a socket: reads and writes that never wait, and word of when there is more to do. The hub writes, the
//! connection's task does both. TCP, TLS over it and doubles in tests are sockets.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

/// A byte stream in both directions. All calls return at once. One task reads and waits; whoever holds the outbox writes.
pub trait Socket: Debug + Send + Sync {
    /// Reads what is there: 0 bytes at its end, [`io::ErrorKind::WouldBlock`] where nothing is there now.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes these one after the other, as much of them as fits, and says how many bytes that were.
    /// [`io::ErrorKind::WouldBlock`]: none.
    fn try_write(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Hands on what was taken by [`Socket::try_write`] and is not with the system yet. [`io::ErrorKind::WouldBlock`]: some of
    /// it still is not.
    fn try_flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Wakes this task once there may be something to read. Ready also when the other side is gone: reading tells.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Wakes this task once there may be room to write.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Ends our side: what was written arrives, and then the end.
    fn close(&self);
}
