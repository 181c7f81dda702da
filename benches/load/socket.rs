//! A socket that never waits: what has come and is no whole frame yet, and what has to go. Both sides of the load use it.

use std::io::{ErrorKind, Read, Result, Write};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// Bytes that one read takes at most.
pub const SCRATCH_BYTES: usize = 64 * 1024;

pub struct Socket {
    stream: TcpStream,
    /// The beginning of a frame whose end has not come.
    unread: Vec<u8>,
    /// What is to be sent. Append to it, then flush.
    pub unsent: Vec<u8>,
}

/// What a read brought.
pub struct Filled {
    /// Bytes at the beginning of the scratch, what had been kept among them.
    pub length: usize,
    /// Whether there may be more to read.
    pub more: bool,
    /// Whether the other side may still send.
    pub open: bool,
}

impl Socket {
    pub fn new(mut stream: TcpStream, registry: &Registry, token: usize) -> Result<Self> {
        stream.set_nodelay(true)?;
        registry.register(&mut stream, Token(token), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { stream, unread: Vec::new(), unsent: Vec::new() })
    }

    /// Reads once. A read that does not fill its room has emptied the socket, and the poll tells when more comes.
    pub fn fill(&mut self, scratch: &mut [u8]) -> Result<Filled> {
        let kept = self.unread.len();
        scratch[..kept].copy_from_slice(&self.unread);
        match self.stream.read(&mut scratch[kept..]) {
            Ok(0) => Ok(Filled { length: kept, more: false, open: false }),
            Ok(read) => Ok(Filled { length: kept + read, more: kept + read == scratch.len(), open: true }),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Filled { length: kept, more: false, open: true }),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Filled { length: kept, more: true, open: true }),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(Filled { length: kept, more: false, open: false }),
            Err(error) => Err(error),
        }
    }

    /// Keeps what was not used of what a read brought.
    pub fn keep(&mut self, rest: &[u8]) {
        self.unread.clear();
        self.unread.extend(rest);
    }

    /// Writes what is to be sent, as far as it goes.
    pub fn flush(&mut self) -> Result<()> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        let sent = write(&mut self.stream, &self.unsent)?;
        self.unsent.drain(..sent);
        Ok(())
    }

    /// Sends bytes that others get too: straight from where they are, unless something waits before them.
    pub fn send_shared(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = if self.unsent.is_empty() { write(&mut self.stream, bytes)? } else { 0 };
        self.unsent.extend(&bytes[sent..]);
        Ok(())
    }
}

/// One write: how many bytes it took, none where the socket is full or not connected yet.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> Result<usize> {
    match stream.write(bytes) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NotConnected) => Ok(0),
        other => other,
    }
}
