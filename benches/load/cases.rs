//! The loads, and how one server is measured under one of them: warmed up, then its CPU time, what arrived, and how long that took.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::bare;
use super::clients::{Clients, Watcher};
use super::histogram::Histogram;
use super::machine::{CpuClock, resident};
use super::server::{Kind, Running};
use super::traffic::Pace::{InFlight, Rate};
use super::traffic::{self, ARRIVES_WITHIN, MOMENT, Pace, Shape};
use Load::{Connect, Idle, Traffic};

/// Connections that are opened before memory is counted: what the first of them cost is not theirs.
const FIRST_IDLE: usize = 100;
/// Open files that are no connections.
const OTHER_FILES: usize = 200;
/// Publications a second where that goes by the clock: of one publisher, and of many together.
const RATE: u32 = 50;
const RATE_OF_MANY: u32 = 4000;

/// Two cases that differ in the log alone.
pub const RATED: &str = "rated";
pub const DURABLE: &str = "durable";

/// What is done to a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Publications or requests.
    Traffic(Shape, Pace),
    /// Connect, subscribe, close; so many at a time.
    Connect { at_once: usize },
    /// So many connections, joined to a channel, and nothing happens.
    Idle { connections: usize },
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Case {
    /// What `--cases` calls it.
    pub name: &'static str,
    pub title: String,
    pub unit: &'static str,
    pub load: Load,
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Connections are divided by it.
    pub divided_by: usize,
    pub warm_up: Duration,
    pub measured: Duration,
}

impl Case {
    /// Every case there is, where so many files may be open.
    pub fn all(size: Size, files: usize) -> Vec<Self> {
        let many = |count: usize| (count / size.divided_by).max(2);
        let (hundred, thousand, ten, fifty) = (many(100), many(1000), many(10), many(50));
        let idle = many(10_000).min(files.saturating_sub(OTHER_FILES));
        let fan_out = |members, history| Shape::FanOut { members, history };
        let channels = |history| Shape::Channels { channels: hundred, members: ten, history };
        let of_many = many(RATE_OF_MANY as usize) as u32;
        let rated = format!("{hundred} channels of {ten}, {} publications a second", thousands(of_many as usize));
        let requests = Shape::Requests { connections: fifty };
        let rate = format!("1 → {thousand}, {} deliveries a second", thousands(RATE as usize * thousand));
        let (each, asked, opened) = ("CPU-µs per delivery", "CPU-µs per request", "CPU-µs per connection");
        let cases = [
            ("fan-1000-1", format!("1 → {thousand}, one in flight"), each, Traffic(fan_out(thousand, false), InFlight(1))),
            ("fan-100-32", format!("1 → {hundred}, 32 in flight"), each, Traffic(fan_out(hundred, false), InFlight(32))),
            ("fan-1000-32", format!("1 → {thousand}, 32 in flight"), each, Traffic(fan_out(thousand, false), InFlight(32))),
            ("fan-1000-rate", rate, each, Traffic(fan_out(thousand, false), Rate(RATE))),
            ("channels", format!("{hundred} channels of {ten}, all publish"), each, Traffic(channels(false), InFlight(1))),
            (RATED, rated.clone(), each, Traffic(channels(false), Rate(of_many))),
            (DURABLE, format!("{rated}, each stored first"), each, Traffic(channels(true), Rate(of_many))),
            ("echo-50-1", format!("request and reply, {fifty} connections, one each"), asked, Traffic(requests, InFlight(1))),
            ("echo-50-16", format!("request and reply, {fifty} connections, 16 each"), asked, Traffic(requests, InFlight(16))),
            ("connect", format!("connect, subscribe, close, {fifty} at a time"), opened, Connect { at_once: fifty }),
            ("idle", format!("{} idle connections, each in a channel", thousands(idle)), "KiB per connection", Idle { connections: idle }),
            ("history", format!("1 → {hundred}, 32 in flight, each stored first"), each, Traffic(fan_out(hundred, true), InFlight(32))),
        ];
        cases.map(|(name, title, unit, load)| Self { name, title, unit, load }).into()
    }

    /// Whether a case is about a log.
    pub fn with_log(&self) -> bool {
        matches!(self.load, Traffic(Shape::FanOut { history: true, .. } | Shape::Channels { history: true, .. }, _))
    }

    /// Publications a second, where those of many are stored first: a bare loop that stores as often is measured beside it.
    pub fn stored_per_second(&self) -> Option<u32> {
        if let Traffic(Shape::Channels { history: true, .. }, Rate(rate)) = self.load { Some(rate) } else { None }
    }

    /// Whether a server can do it: none of the peers has a log. What the floor does for such a case is to send.
    pub fn suits(&self, kind: Kind) -> bool {
        !self.with_log() || matches!(kind, Kind::Floor | Kind::Tramline)
    }
}

/// `12345` as `12,345`.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// What one run gave.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// In the case's unit.
    pub cost: f64,
    /// Deliveries, requests or connections in a second; 0 where nothing is to happen.
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
    /// How much of a CPU the load generator used while it measured.
    pub load: f64,
    /// What 99 of 100 transactions of a bare loop did not exceed, where that is the measure.
    pub bare_p99: Duration,
}

/// Puts a server under a load. An error says what did not arrive as it should have.
pub fn measure(case: &Case, kind: Kind, server: &Running, size: Size, clock: &CpuClock) -> Result<Figures> {
    let mut clients = Clients::new(kind.dialect(), server.address.clone())?;
    match case.load {
        Traffic(shape, pace) => {
            let mut traffic = traffic::Traffic::open(shape, pace, kind.dialect(), &mut clients)?;
            traffic.run(&mut clients, size.warm_up)?;
            traffic.latency = Histogram::default();
            let span = Span::begin(server.pid, clock)?;
            let delivered = traffic.run(&mut clients, size.measured)?;
            let figures = span.end(delivered, &traffic.latency)?;
            traffic.finish(&mut clients)?;
            let bare_p99 = match case.stored_per_second().filter(|_| kind == Kind::Tramline) {
                Some(rate) => bare::p99(rate, size.measured)?,
                None => Duration::ZERO,
            };
            Ok(Figures { bare_p99, ..figures })
        }
        Connect { at_once } => {
            let mut churn = Churn::default();
            (0..at_once).try_for_each(|who| clients.connect(who, Some("c0".to_owned())))?;
            churn.run(&mut clients, size.warm_up)?;
            churn.took = Histogram::default();
            let span = Span::begin(server.pid, clock)?;
            let count = churn.run(&mut clients, size.measured)?;
            span.end(count, &churn.took)
        }
        Idle { connections } => {
            let first = FIRST_IDLE.min(connections / 2);
            let mut nothing = Churn::default();
            clients.open(first, |_| Some("c0".to_owned()))?;
            clients.run(&mut nothing, Instant::now() + size.warm_up)?;
            let (before, span) = (resident(server.pid)?, Span::begin(server.pid, clock)?);
            clients.open(connections, |_| Some("c0".to_owned()))?;
            clients.run(&mut nothing, Instant::now() + size.warm_up)?;
            let figures = span.end((connections - first) as u64, &nothing.took)?;
            let bytes = resident(server.pid)?.saturating_sub(before);
            Ok(Figures { cost: bytes as f64 / 1024.0 / (connections - first) as f64, per_second: 0.0, ..figures })
        }
    }
}

/// A stretch of time in which a server is measured.
struct Span<'a> {
    clock: &'a CpuClock,
    server: u32,
    begun: Instant,
    server_cpu: Duration,
    own_cpu: Duration,
}

impl<'a> Span<'a> {
    fn begin(server: u32, clock: &'a CpuClock) -> Result<Self> {
        let (server_cpu, own_cpu) = (clock.used(server)?, clock.used(std::process::id())?);
        Ok(Self { clock, server, begun: Instant::now(), server_cpu, own_cpu })
    }

    /// What so many of something cost.
    fn end(self, count: u64, took: &Histogram) -> Result<Figures> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let server = self.clock.used(self.server)?.saturating_sub(self.server_cpu).as_secs_f64();
        let own = self.clock.used(std::process::id())?.saturating_sub(self.own_cpu).as_secs_f64();
        Ok(Figures {
            cost: server * 1e6 / count as f64,
            per_second: count as f64 / seconds,
            p50: took.percentile(50),
            p99: took.percentile(99),
            load: own / seconds,
            bare_p99: Duration::ZERO,
        })
    }
}

/// Connections that close as soon as they are ready, and open again.
#[derive(Default)]
struct Churn {
    ready: Vec<usize>,
    closed: Vec<usize>,
    /// From the connect to the answer to the subscription.
    took: Histogram,
}

impl Churn {
    /// Opens and closes for so long, or until something has been closed. Says how many were.
    fn run(&mut self, clients: &mut Clients, lasts: Duration) -> Result<u64> {
        let (begun, mut count) = (Instant::now(), 0);
        loop {
            for who in self.ready.drain(..) {
                clients.close(who);
            }
            for who in self.closed.drain(..) {
                count += 1;
                clients.connect(who, Some("c0".to_owned()))?;
            }
            let passed = begun.elapsed();
            if passed >= lasts && count > 0 {
                return Ok(count);
            }
            ensure!(passed < lasts + ARRIVES_WITHIN, "nothing was closed in {passed:?}");
            clients.turn(lasts.saturating_sub(passed).max(MOMENT), self)?;
        }
    }
}

impl Watcher for Churn {
    fn ready(&mut self, who: usize, took: Duration) {
        self.ready.push(who);
        self.took.add(took);
    }

    fn closed(&mut self, who: usize) {
        self.closed.push(who);
    }
}
