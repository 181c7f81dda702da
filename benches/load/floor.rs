//! The least a server can do: one thread, one poll, one write per socket and round. It undoes masks and puts a new frame around the
//! same bytes; what a message asks for stands at a fixed place, and a channel is the number in its name. It parses nothing, limits
//! nothing, counts nothing, and believes its clients: what others take above it is what they do for their users.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::socket::{SCRATCH_BYTES, Socket};
use super::wire;

/// The token of the listener; connections have their places.
const LISTENER: Token = Token(usize::MAX);
/// Where the first letter of what is asked for stands, and the comma behind a publication's: `{"op":"pub",`.
const ASKED: usize = 7;
const COMMA: usize = 11;
/// Channels are numbered below it.
const CHANNELS_MAX: usize = 100_000;

/// Binds an address of the system's choice.
pub fn listen() -> Result<TcpListener> {
    Ok(TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?)
}

/// Where a listener is reached.
pub fn url(listener: &TcpListener) -> Result<String> {
    Ok(format!("ws://{}/", listener.local_addr()?))
}

/// Serves for ever.
pub fn serve(listener: TcpListener) -> Result<()> {
    Floor::new(listener)?.run()
}

struct Floor {
    poll: Poll,
    listener: TcpListener,
    peers: Vec<Option<Peer>>,
    free: Vec<usize>,
    channels: Vec<Channel>,
    /// Channels that somebody has published to in this round.
    published: Vec<usize>,
}

struct Peer {
    socket: Socket,
    upgraded: bool,
    closing: bool,
    channel: Option<usize>,
}

#[derive(Default)]
struct Channel {
    members: Vec<usize>,
    /// The frames of this round.
    frames: Vec<u8>,
}

/// What a message asks of the others.
enum Asks {
    Join(usize),
    Publish(usize),
}

impl Floor {
    fn new(mut listener: TcpListener) -> Result<Self> {
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self { poll, listener, peers: Vec::new(), free: Vec::new(), channels: Vec::new(), published: Vec::new() })
    }

    fn run(&mut self) -> Result<()> {
        let (mut events, mut scratch) = (Events::with_capacity(1024), vec![0; SCRATCH_BYTES]);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    Token(who) if self.peer(who, &mut scratch).unwrap_or(false) && !event.is_read_closed() => {}
                    Token(who) => self.leave(who),
                }
            }
            self.deliver();
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let who = self.free.pop().unwrap_or(self.peers.len());
            let socket = Socket::new(stream, self.poll.registry(), who)?;
            let peer = Some(Peer { socket, upgraded: false, closing: false, channel: None });
            match self.peers.get_mut(who) {
                Some(place) => *place = peer,
                None => self.peers.push(peer),
            }
        }
    }

    /// Reads what a peer says and answers it; whether it goes on.
    fn peer(&mut self, who: usize, scratch: &mut [u8]) -> Result<bool> {
        let Some(peer) = self.peers.get_mut(who).and_then(Option::as_mut) else { return Ok(true) };
        let mut open = true;
        loop {
            let filled = peer.socket.fill(scratch)?;
            let (channels, published) = (&mut self.channels, &mut self.published);
            let used = peer.take(&mut scratch[..filled.length], |asks, text| {
                let (Asks::Join(at) | Asks::Publish(at)) = asks;
                if channels.len() <= at {
                    channels.resize_with(at + 1, Channel::default);
                }
                let channel = &mut channels[at];
                match asks {
                    Asks::Join(_) => channel.members.push(who),
                    Asks::Publish(_) => {
                        if channel.frames.is_empty() {
                            published.push(at);
                        }
                        wire::encode(&mut channel.frames, wire::TEXT, text, None);
                    }
                }
            })?;
            peer.socket.keep(&scratch[used..filled.length]);
            open &= filled.open;
            if !filled.more {
                break;
            }
        }
        peer.socket.flush()?;
        Ok(open && !peer.closing)
    }

    /// Writes what this round published, once to each member.
    fn deliver(&mut self) {
        for at in self.published.drain(..) {
            let channel = &mut self.channels[at];
            for &member in &channel.members {
                // A socket that has failed says so in the next round.
                let _failed = self.peers[member].as_mut().map(|peer| peer.socket.send_shared(&channel.frames));
            }
            channel.frames.clear();
        }
    }

    fn leave(&mut self, who: usize) {
        let Some(peer) = self.peers[who].take() else { return };
        self.free.push(who);
        if let Some(channel) = peer.channel {
            self.channels[channel].members.retain(|member| *member != who);
        }
    }
}

impl Peer {
    /// Takes what is complete, says how much that was, and lets the caller do what concerns others.
    fn take(&mut self, bytes: &mut [u8], mut others: impl FnMut(Asks, &[u8])) -> Result<usize> {
        if !self.upgraded {
            return self.upgrade(bytes);
        }
        let (channel, closing, unsent) = (&mut self.channel, &mut self.closing, &mut self.socket.unsent);
        wire::each_frame(bytes, |opcode, text| {
            match (opcode, text.get(ASKED)) {
                (wire::TEXT, Some(b'e')) => wire::encode(unsent, wire::TEXT, text, None),
                (wire::TEXT, Some(b's')) => {
                    ensure!(channel.is_none(), "one channel for each connection");
                    *channel = Some(numbered(text)?);
                    others(Asks::Join(numbered(text)?), text);
                    wire::encode(unsent, wire::TEXT, br#"{"op":"ok"}"#, None);
                }
                // `{"op":"pub",…` becomes `{…`.
                (wire::TEXT, Some(b'p')) if text.len() > COMMA => {
                    let at = numbered(text)?;
                    text[COMMA] = b'{';
                    others(Asks::Publish(at), &text[COMMA..]);
                }
                (wire::CLOSE, _) => {
                    *closing = true;
                    wire::encode(unsent, wire::CLOSE, text, None);
                }
                _ => {}
            }
            Ok(())
        })
    }

    /// Answers the upgrade.
    fn upgrade(&mut self, bytes: &[u8]) -> Result<usize> {
        let Some(end) = wire::head_end(bytes) else { return Ok(0) };
        let head = std::str::from_utf8(&bytes[..end])?;
        let key = head.lines().filter_map(|line| line.split_once(": ")).find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"));
        let accept = derive_accept_key(key.context("a request without a key")?.1.as_bytes());
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ";
        self.socket.unsent.extend(format!("{answer}{accept}\r\n\r\n").bytes());
        self.upgraded = true;
        Ok(end)
    }
}

/// The number in the name of the channel, which is the second value of a message: `{"op":"sub","ch":"c12"…`.
fn numbered(text: &[u8]) -> Result<usize> {
    let digits = text.iter().skip(r#"{"op":"sub","ch":""#.len()).skip_while(|byte| !byte.is_ascii_digit());
    let number = digits.take_while(|byte| byte.is_ascii_digit()).try_fold(0usize, |sum, digit| {
        let sum = sum * 10 + usize::from(digit - b'0');
        (sum < CHANNELS_MAX).then_some(sum)
    });
    number.context("a channel's number")
}
