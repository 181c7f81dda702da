//! Many WebSocket clients on one thread: they connect, say what their dialect says first, subscribe, and hand on what comes.
//! Nothing waits but the poll. What the texts mean is the watcher's business.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Poll};

use super::dialect::{Dialect, Numbered};
use super::socket::{SCRATCH_BYTES, Socket};
use super::wire;

/// Connections that open at a time. Every server's queue for them is longer.
const OPENING: usize = 50;
/// How long all of them may take to open.
const OPEN_WITHIN: Duration = Duration::from_secs(60);

/// Where a server listens.
#[derive(Clone, Debug)]
pub struct Address {
    socket: SocketAddr,
    /// What follows the host.
    target: String,
}

impl Address {
    /// Of `ws://127.0.0.1:PORT/…`.
    pub fn parse(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("ws://").with_context(|| format!("{url} is not a valid address of a WebSocket"))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        Ok(Self { socket: host.parse().with_context(|| format!("in {url}"))?, target: format!("/{path}") })
    }
}

/// Who is told what happens. Sending is for later: everybody's frames are read first.
pub trait Watcher {
    /// A client got a text.
    fn text(&mut self, who: usize, text: &[u8], now: Instant) -> Result<()> {
        let _ = now;
        bail!("connection {who} got {} unasked", String::from_utf8_lossy(text))
    }

    /// A client is connected, and has subscribed if it was to.
    fn ready(&mut self, _who: usize, _took: Duration) {}

    /// A connection that the client wanted to close is closed.
    fn closed(&mut self, _who: usize) {}
}

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    /// Waits for the answer to its upgrade.
    Upgrading,
    /// Waits for this one of the dialect's greetings.
    Greeting(usize),
    Subscribing,
    Ready,
    Closing,
    Closed,
}

struct Client {
    socket: Socket,
    stage: Stage,
    /// The channel it subscribes to.
    channel: Option<String>,
    begun: Instant,
    /// Whether something is to be sent once everybody's frames are read.
    waits: bool,
}

pub struct Clients {
    poll: Poll,
    events: Events,
    scratch: Vec<u8>,
    clients: Vec<Client>,
    /// Those with something to send.
    waiting: Vec<usize>,
    dialect: Dialect,
    address: Address,
}

impl Clients {
    pub fn new(dialect: Dialect, address: Address) -> Result<Self> {
        let (poll, events, scratch) = (Poll::new()?, Events::with_capacity(1024), vec![0; SCRATCH_BYTES]);
        Ok(Self { poll, events, scratch, clients: Vec::new(), waiting: Vec::new(), dialect, address })
    }

    /// Connects until there are so many, each subscribed to what `channel` says, and returns when all are ready.
    pub fn open(&mut self, count: usize, channel: impl Fn(usize) -> Option<String>) -> Result<()> {
        let (begun, mut seen, before) = (Instant::now(), Seen::default(), self.clients.len());
        while seen.ready < count - before {
            while self.clients.len() < count && self.clients.len() - before - seen.ready < OPENING {
                let who = self.clients.len();
                self.connect(who, channel(who))?;
            }
            self.turn(Duration::from_secs(1), &mut seen)?;
            ensure!(begun.elapsed() < OPEN_WITHIN, "{} of {count} connections opened in {OPEN_WITHIN:?}", seen.ready);
        }
        Ok(())
    }

    /// Opens a connection in a place that is new or whose connection is closed.
    pub fn connect(&mut self, who: usize, channel: Option<String>) -> Result<()> {
        let mut socket = Socket::new(TcpStream::connect(self.address.socket)?, self.poll.registry(), who)?;
        let Address { socket: host, target } = &self.address;
        socket.unsent.extend(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n").bytes());
        socket.unsent.extend(b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n");
        socket.unsent.extend(format!("Sec-WebSocket-Key: {}\r\n\r\n", wire::KEY).bytes());
        let client = Client { socket, stage: Stage::Upgrading, channel, begun: Instant::now(), waits: false };
        match self.clients.get_mut(who) {
            Some(place) => *place = client,
            None => self.clients.push(client),
        }
        Ok(())
    }

    /// Sends a text at the end of this turn, or of the next.
    pub fn send(&mut self, who: usize, text: &mut Numbered, number: u64) {
        wire::encode(&mut self.clients[who].socket.unsent, wire::TEXT, text.with(number), Some(wire::MASK));
        self.wait(who);
    }

    /// Begins the closing handshake.
    pub fn close(&mut self, who: usize) {
        self.clients[who].stage = Stage::Closing;
        wire::encode(&mut self.clients[who].socket.unsent, wire::CLOSE, &1000u16.to_be_bytes(), Some(wire::MASK));
        self.wait(who);
    }

    fn wait(&mut self, who: usize) {
        if !self.clients[who].waits {
            self.clients[who].waits = true;
            self.waiting.push(who);
        }
    }

    /// Sends what is to be sent, each client's with one write.
    pub fn flush(&mut self) -> Result<()> {
        for who in self.waiting.drain(..) {
            self.clients[who].waits = false;
            self.clients[who].socket.flush().with_context(|| format!("connection {who}"))?;
        }
        Ok(())
    }

    /// Lets the watcher know all that happens until a moment.
    pub fn run(&mut self, watcher: &mut impl Watcher, until: Instant) -> Result<()> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.turn(left, watcher)?;
        }
    }

    /// Waits for something to happen, for so long at most, and lets the watcher know all of it.
    pub fn turn(&mut self, timeout: Duration, watcher: &mut impl Watcher) -> Result<()> {
        self.flush()?;
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &self.events {
            let who = event.token().0;
            let client = &mut self.clients[who];
            let happened = client.happened(who, event, &mut self.scratch, self.dialect, watcher);
            happened.with_context(|| format!("connection {who}"))?;
        }
        Ok(())
    }
}

impl Client {
    fn happened(
        &mut self,
        who: usize,
        event: &mio::event::Event,
        scratch: &mut [u8],
        dialect: Dialect,
        watcher: &mut impl Watcher,
    ) -> Result<()> {
        if event.is_writable() && self.stage != Stage::Closed {
            self.socket.flush()?;
        }
        if !event.is_readable() && !event.is_read_closed() && !event.is_error() {
            return Ok(());
        }
        let now = Instant::now();
        while self.stage != Stage::Closed {
            let filled = self.socket.fill(scratch)?;
            let used = self.take(who, &mut scratch[..filled.length], now, dialect, watcher)?;
            self.socket.keep(&scratch[used..filled.length]);
            if !filled.open {
                ensure!(self.stage == Stage::Closing, "the server hung up");
                self.stage = Stage::Closed;
                watcher.closed(who);
            }
            // An end that has come is told once.
            if !filled.more && !event.is_read_closed() {
                break;
            }
        }
        Ok(())
    }

    /// Takes what is complete, and says how much that was.
    fn take(&mut self, who: usize, bytes: &mut [u8], now: Instant, dialect: Dialect, watcher: &mut impl Watcher) -> Result<usize> {
        let mut head = 0;
        if self.stage == Stage::Upgrading {
            let Some(end) = wire::head_end(bytes) else { return Ok(0) };
            let text = String::from_utf8_lossy(&bytes[..end]);
            ensure!(text.starts_with("HTTP/1.1 101 ") && text.contains(wire::ACCEPTED), "the upgrade was answered with {text}");
            self.greeted(0, who, dialect, watcher)?;
            head = end;
        }
        let frames = wire::each_frame(&mut bytes[head..], |opcode, text| match (opcode, self.stage) {
            (wire::TEXT, Stage::Ready) if dialect.heartbeat().is_none_or(|(asks, _)| asks != text) => watcher.text(who, text, now),
            (wire::TEXT, _) => self.opening(who, text, dialect, watcher),
            (wire::PING, _) => self.answer(wire::PONG, text),
            (wire::PONG, _) | (wire::CLOSE, Stage::Closing) => Ok(()),
            (wire::CLOSE, _) => bail!("the server closed: {}", String::from_utf8_lossy(text)),
            _ => bail!("a frame with opcode {opcode}"),
        })?;
        Ok(head + frames)
    }

    /// A text that is about the connection.
    fn opening(&mut self, who: usize, text: &[u8], dialect: Dialect, watcher: &mut impl Watcher) -> Result<()> {
        let expected = match self.stage {
            Stage::Greeting(at) if text.starts_with(dialect.greetings()[at].0.as_bytes()) => {
                let answer = dialect.greetings()[at].1;
                if !answer.is_empty() {
                    self.answer(wire::TEXT, answer.as_bytes())?;
                }
                return self.greeted(at + 1, who, dialect, watcher);
            }
            Stage::Subscribing if text == dialect.subscribed().as_bytes() => {
                self.ready(who, watcher);
                return Ok(());
            }
            _ => match dialect.heartbeat() {
                Some((asks, answer)) if asks == text => return self.answer(wire::TEXT, answer),
                _ if self.stage == Stage::Closing => return Ok(()),
                _ => self.stage,
            },
        };
        bail!("{expected:?}, and got {}", String::from_utf8_lossy(text))
    }

    /// So many greetings are over: what comes next.
    fn greeted(&mut self, greetings: usize, who: usize, dialect: Dialect, watcher: &mut impl Watcher) -> Result<()> {
        if greetings < dialect.greetings().len() {
            self.stage = Stage::Greeting(greetings);
        } else if let Some(channel) = &self.channel {
            self.stage = Stage::Subscribing;
            let text = dialect.subscribe(channel);
            self.answer(wire::TEXT, text.as_bytes())?;
        } else {
            self.ready(who, watcher);
        }
        Ok(())
    }

    fn ready(&mut self, who: usize, watcher: &mut impl Watcher) {
        self.stage = Stage::Ready;
        watcher.ready(who, self.begun.elapsed());
    }

    fn answer(&mut self, opcode: u8, payload: &[u8]) -> Result<()> {
        wire::encode(&mut self.socket.unsent, opcode, payload, Some(wire::MASK));
        Ok(self.socket.flush()?)
    }
}

/// Counts those that are ready.
#[derive(Default)]
struct Seen {
    ready: usize,
}

impl Watcher for Seen {
    fn ready(&mut self, _who: usize, _took: Duration) {
        self.ready += 1;
    }
}
