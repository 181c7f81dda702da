//! TLS over TCP as a socket that never waits: after the handshake, until the end. Knows nothing of certificates.
//!
//! Plaintext becomes ciphertext only when all the ciphertext before it is with the system. So a client that does not read
//! costs one piece of ciphertext at most, and everything else waits as plaintext where its bound is kept.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use rustls::ServerConnection;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::hub::socket::Socket;

/// The plaintext that is encrypted at once: four of TLS's largest records.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// Reads from the system in one call of [`Socket::try_read`], so that records without content cannot keep a thread busy.
const READS_MAX: usize = 16;

/// A TLS connection after its handshake.
#[derive(Debug)]
pub struct TlsSocket {
    tcp: TcpStream,
    /// Held for single calls, which do not wait.
    session: Mutex<Session>,
}

#[derive(Debug)]
struct Session {
    tls: ServerConnection,
    /// The end follows what is still to be written.
    ending: bool,
}

impl From<TlsStream<TcpStream>> for TlsSocket {
    /// Takes over after the handshake. What came along with it is read first.
    fn from(stream: TlsStream<TcpStream>) -> Self {
        let (tcp, mut tls) = stream.into_inner();
        tls.set_buffer_limit(Some(PIECE_BYTES_MAX));
        Self { tcp, session: Mutex::new(Session { tls, ending: false }) }
    }
}

impl Session {
    /// Writes ciphertext until there is none left.
    fn flush(&mut self, tcp: &TcpStream) -> io::Result<()> {
        while self.tls.wants_write() {
            if self.tls.write_tls(&mut Wire(tcp))? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        if self.ending {
            self.ending = false;
            // Fails only where the other side is gone already.
            SockRef::from(tcp).shutdown(Shutdown::Write).ok();
        }
        Ok(())
    }

    /// The same, but it is not a fault if the socket takes nothing: what is left goes with the next write.
    fn flush_if_possible(&mut self, tcp: &TcpStream) -> io::Result<()> {
        self.flush(tcp).or_else(|error| if error.kind() == io::ErrorKind::WouldBlock { Ok(()) } else { Err(error) })
    }
}

impl Socket for TlsSocket {
    /// [`io::ErrorKind::UnexpectedEof`]: the connection was cut off, which without TLS would look like its end.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut session = self.session.lock();
        for _ in 0..READS_MAX {
            match session.tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            session.tls.read_tls(&mut Wire(&self.tcp))?;
            let processed = session.tls.process_new_packets();
            // What TLS answers by itself. The other side learns what it did wrong, if it still reads.
            session.flush(&self.tcp).ok();
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        // Nothing of the system's word that there is more was taken back: the next wait ends at once.
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn try_write(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut session = self.session.lock();
        session.flush(&self.tcp)?;
        let taken = session.tls.writer().write_vectored(buffers)?;
        session.flush_if_possible(&self.tcp)?;
        Ok(taken)
    }

    fn try_flush(&self) -> io::Result<()> {
        self.session.lock().flush(&self.tcp)
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Plaintext that is there already, or the end.
        if !self.session.lock().tls.wants_read() {
            return Poll::Ready(());
        }
        self.tcp.poll_readable(cx)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.tcp.poll_writable(cx)
    }

    /// Says farewell as TLS does. Where ciphertext is left, both follow once [`Socket::try_flush`] has written it.
    fn close(&self) {
        let mut session = self.session.lock();
        session.tls.send_close_notify();
        session.ending = true;
        session.flush(&self.tcp).ok();
    }
}

/// The TCP socket below, for rustls.
struct Wire<'a>(&'a TcpStream);

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Socket::try_read(self.0, buffer)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Socket::try_write(self.0, &[IoSlice::new(buffer)])
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        Socket::try_write(self.0, buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
