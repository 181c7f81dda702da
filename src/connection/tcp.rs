//! A plain TCP socket. Knows nothing of what travels over it.

use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::hub::socket::Socket;

impl Socket for TcpStream {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut short = None;
        let read = self.try_io(Interest::READABLE, || {
            let read = (&*SockRef::from(self)).read(buffer)?;
            if read == 0 || read == buffer.len() {
                return Ok(read);
            }
            // Less than was asked for: that was all, and the next call need not ask the system to learn so. Word of more is an
            // event of its own. The end, where it came along, stays known to tokio and is read next.
            short = Some(read);
            Err(io::ErrorKind::WouldBlock.into())
        });
        short.map_or(read, Ok)
    }

    fn try_write(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let system = SockRef::from(self);
        let written = match buffers {
            [one] => system.send(one),
            several => system.send_vectored(several),
        };
        match written {
            // Asked through tokio once more, which then hears of the room to come.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.try_write_vectored(buffers),
            written => written,
        }
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        // The read that follows reports an error.
        self.poll_read_ready(cx).map(drop)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_write_ready(cx).map(drop)
    }

    fn close(&self) {
        // Fails only where the other side is gone already.
        SockRef::from(self).shutdown(Shutdown::Write).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (near, far) = tokio::join!(listener.accept(), TcpStream::connect(listener.local_addr().unwrap()));
        (near.unwrap().0, far.unwrap())
    }

    fn is_readable(socket: &TcpStream) -> bool {
        socket.poll_readable(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[tokio::test]
    async fn a_short_read_is_all_there_is() {
        let (near, mut far) = pair().await;
        let mut buffer = [0; 8];
        assert_eq!(Socket::try_read(&near, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        for round in 0..3 {
            far.write_all(&[round; 11]).await.unwrap();
            poll_fn(|cx| near.poll_readable(cx)).await;
            assert_eq!((Socket::try_read(&near, &mut buffer).unwrap(), buffer), (8, [round; 8]));
            assert!(is_readable(&near), "a full buffer says nothing of what is left");
            assert_eq!((Socket::try_read(&near, &mut buffer).unwrap(), &buffer[..3]), (3, &[round; 3][..]));
            assert!(!is_readable(&near), "asked the system once more than it had to");
            assert_eq!(Socket::try_read(&near, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[tokio::test]
    async fn an_end_that_comes_with_the_last_bytes_is_seen() {
        let (near, mut far) = pair().await;
        far.write_all(b"bye").await.unwrap();
        far.shutdown().await.unwrap();
        let mut buffer = [0; 8];
        let mut got = Vec::new();
        loop {
            poll_fn(|cx| near.poll_readable(cx)).await;
            match Socket::try_read(&near, &mut buffer) {
                Ok(0) => break,
                Ok(read) => got.extend_from_slice(&buffer[..read]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(got, b"bye");
    }

    #[tokio::test]
    async fn several_buffers_go_out_in_order_and_then_the_end() {
        let (near, mut far) = pair().await;
        let parts = [IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"two")];
        poll_fn(|cx| near.poll_writable(cx)).await;
        assert_eq!(Socket::try_write(&near, &parts).unwrap(), 7);
        assert_eq!(Socket::try_write(&near, &parts[..1]).unwrap(), 4);
        near.close();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"one twoone ");
    }
}
