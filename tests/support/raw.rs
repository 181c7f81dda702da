//! A WebSocket made by hand: every bit of a frame can be wrong, and nothing is answered by itself.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::http::split;
use super::soon;

/// The final bit. The rest are opcodes.
pub const FIN: u8 = 0x80;
/// More of a message.
pub const MORE: u8 = 0x0;
/// Text.
pub const TEXT: u8 = 0x1;
/// The close frame.
pub const CLOSE: u8 = 0x8;
/// A ping.
pub const PING: u8 = 0x9;
/// A pong.
pub const PONG: u8 = 0xA;

/// A socket, and the head of the answer to what was sent on it.
pub struct Raw {
    stream: TcpStream,
    /// The answer's head.
    pub head: String,
}

/// A good handshake for an URL.
pub fn handshake(url: &str) -> String {
    let (authority, path) = split(url);
    format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// A frame of a client, masked, with the length in the shortest form.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
    let mut out = vec![first];
    match payload.len() {
        n @ 0..=125 => out.push(0x80 | n as u8),
        n @ 126..=65535 => {
            out.push(0x80 | 126);
            out.extend((n as u16).to_be_bytes());
        }
        n => {
            out.push(0x80 | 127);
            out.extend((n as u64).to_be_bytes());
        }
    }
    out.extend(MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

impl Raw {
    /// Connects to the address of an URL, sends bytes and reads the head of the answer.
    pub async fn send_first(url: &str, bytes: &[u8]) -> Self {
        let stream = soon("connect", TcpStream::connect(split(url).0)).await.unwrap();
        let mut raw = Self { stream, head: String::new() };
        raw.write(bytes).await;
        while !raw.head.ends_with("\r\n\r\n") {
            let byte = soon("the head", raw.stream.read_u8()).await.unwrap();
            raw.head.push(byte.into());
        }
        raw
    }

    /// A connection after a good handshake.
    pub async fn open(url: &str) -> Self {
        let raw = Self::send_first(url, handshake(url).as_bytes()).await;
        assert_eq!(raw.status(), 101, "{}", raw.head);
        raw
    }

    /// The status of the answer.
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Writes bytes as they are. A server that has closed is no fault of ours.
    pub async fn write(&mut self, bytes: &[u8]) {
        drop(soon("write", self.stream.write_all(bytes)).await);
    }

    /// Writes a good frame.
    pub async fn send(&mut self, first: u8, payload: &[u8]) {
        self.write(&frame(first, payload)).await;
    }

    /// The next frame: its first byte and its payload. None at the end.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let first = soon("a frame", self.stream.read_u8()).await.ok()?;
        let length = match self.stream.read_u8().await.ok()? {
            126 => u64::from(self.stream.read_u16().await.ok()?),
            127 => self.stream.read_u64().await.ok()?,
            n => u64::from(n),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some((first, payload))
    }

    /// The code of the close frame that comes next, messages before it skipped, and nothing after it.
    pub async fn close_code(&mut self) -> u16 {
        loop {
            let (first, payload) = self.next().await.expect("a close frame before the end");
            if first == FIN | CLOSE {
                assert_eq!(self.next().await, None, "something follows the close frame");
                return u16::from_be_bytes([payload[0], payload[1]]);
            }
        }
    }

    /// Ends the sending half.
    pub async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }
}
