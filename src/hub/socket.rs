//! What a connection needs of a socket: reads and writes that never wait, and notice of when there is more to do. The hub
//! writes, the connection's task does both. TCP, TLS and test doubles are sockets.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

/// A byte stream in both directions. All calls return immediately. One task reads and waits; the holder of the outbox writes.
pub trait Socket: Debug + Send + Sync {
    /// Reads what is there: 0 bytes at its end, [`io::ErrorKind::WouldBlock`] if nothing is there now.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes these buffers one after the other, as much as fits, and returns the number of bytes.
    /// [`io::ErrorKind::WouldBlock`]: none.
    fn try_write(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Passes on what [`Socket::try_write`] took and the system does not have yet. [`io::ErrorKind::WouldBlock`]: some of it is
    /// left.
    fn try_flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Wakes this task once there may be something to read. Also ready when the other side is gone, which reading shows.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Wakes this task once there may be room to write.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// Ends our side: what was written arrives, followed by the end of the stream.
    fn close(&self);
}
