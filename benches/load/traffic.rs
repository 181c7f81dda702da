//! Who publishes what to whom, how fast, and whether all of it arrives: every delivery is checked for its text, its number and its turn.
//! A request with its reply is a publication whose one member is the publisher.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::clients::{Clients, Watcher};
use super::dialect::{DIGITS, Dialect, Numbered};
use super::histogram::Histogram;

/// A number says who published it and which of the publisher's it is.
const SPAN: u64 = 10u64.pow(DIGITS as u32 - 4);
/// The first publisher, so that numbers begin with no 0.
const FIRST: u64 = 1000;
/// Publishers that numbers have room for.
const PUBLISHERS_MAX: usize = 9000;
/// From one publisher to the one that has the next turn. A prime, so that all have theirs.
const STRIDE: usize = 397;
/// How long what is on its way may take to arrive.
pub const ARRIVES_WITHIN: Duration = Duration::from_secs(10);
/// How often is looked whether something has, once time is up.
pub const MOMENT: Duration = Duration::from_millis(1);

/// When publishers publish.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// So many publications of each are on their way at any time.
    InFlight(usize),
    /// All publishers by turns publish so often in a second together, whether or not what went before has arrived.
    Rate(u32),
}

/// Where traffic goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// One connection, which is no member, publishes to so many.
    FanOut { members: usize, history: bool },
    /// So many channels of so many members each, all of which publish.
    Channels { channels: usize, members: usize, history: bool },
    /// So many connections ask and are answered.
    Requests { connections: usize },
}

struct Publisher {
    connection: usize,
    text: Numbered,
    /// Deliveries of each publication.
    members: usize,
    /// The number of the next publication.
    next: u64,
    /// Publications on their way, oldest first: when they went, and how many members have not got them.
    on_way: VecDeque<(Instant, usize)>,
}

/// What a connection gets.
struct Listener {
    text: usize,
    /// The first publisher it hears, and from each the number that comes next.
    first: usize,
    next: Vec<u64>,
}

pub struct Traffic {
    publishers: Vec<Publisher>,
    listeners: Vec<Listener>,
    /// Deliveries, but for their numbers: one for each channel.
    texts: Vec<Numbered>,
    pace: Pace,
    /// Publishers that have one fewer on its way than they should.
    due: Vec<usize>,
    /// When the next is published, where that goes by the clock, and by whom.
    tick: Instant,
    turn: usize,
    /// Deliveries so far.
    pub delivered: u64,
    /// How long they took. Begin anew after the warm-up.
    pub latency: Histogram,
}

impl Traffic {
    /// Connects whoever is needed.
    pub fn open(shape: Shape, pace: Pace, dialect: Dialect, clients: &mut Clients) -> Result<Self> {
        let new = |connection, text: &Numbered, members| {
            let text = text.clone();
            Publisher { connection, text, members, next: 0, on_way: VecDeque::new() }
        };
        let (mut publishers, mut listeners, mut texts) = (Vec::new(), Vec::new(), Vec::new());
        match shape {
            Shape::FanOut { members, history } => {
                let channel = if history { "log:c0" } else { "c0" };
                clients.open(members, |_| Some(channel.to_owned()))?;
                clients.open(members + 1, |_| None)?;
                texts.push(dialect.event(channel));
                publishers.push(new(members, &dialect.publish(channel), members));
                listeners.extend((0..members).map(|_| Listener { text: 0, first: 0, next: vec![0] }));
                listeners.push(Listener { text: 0, first: 0, next: Vec::new() });
            }
            Shape::Channels { channels, members, history } => {
                let name = |channel: usize| format!("{}c{channel}", if history { "log:" } else { "" });
                clients.open(channels * members, |who| Some(name(who / members)))?;
                for channel in 0..channels {
                    let (name, first) = (name(channel), channel * members);
                    texts.push(dialect.event(&name));
                    let text = dialect.publish(&name);
                    publishers.extend((first..first + members).map(|who| new(who, &text, members)));
                    listeners.extend((0..members).map(|_| Listener { text: channel, first, next: vec![0; members] }));
                }
            }
            Shape::Requests { connections } => {
                clients.open(connections, |_| None)?;
                texts.push(dialect.reply());
                publishers.extend((0..connections).map(|who| new(who, &dialect.request(), 1)));
                listeners.extend((0..connections).map(|who| Listener { text: 0, first: who, next: vec![0] }));
            }
        }
        ensure!(publishers.len() <= PUBLISHERS_MAX, "{} publishers are too many", publishers.len());
        let due = match pace {
            Pace::InFlight(many) => (0..publishers.len()).flat_map(|who| std::iter::repeat_n(who, many)).collect(),
            Pace::Rate(_) => Vec::new(),
        };
        let (delivered, latency, tick) = (0, Histogram::default(), Instant::now());
        Ok(Self { publishers, listeners, texts, pace, due, tick, turn: 0, delivered, latency })
    }

    /// Keeps traffic up for so long, or until something has arrived. Says how much did.
    pub fn run(&mut self, clients: &mut Clients, lasts: Duration) -> Result<u64> {
        let (begun, before) = (Instant::now(), self.delivered);
        // What was not published since the last time is not made up for.
        self.tick = self.tick.max(begun);
        loop {
            let now = Instant::now();
            let passed = now - begun;
            if passed >= lasts && self.delivered > before {
                return Ok(self.delivered - before);
            }
            ensure!(passed < lasts + ARRIVES_WITHIN, "nothing arrived in {passed:?}");
            if let Pace::Rate(rate) = self.pace {
                while self.tick <= now {
                    // Neighbours are on one channel: those who follow each other are on different ones.
                    self.turn = (self.turn + STRIDE) % self.publishers.len();
                    self.due.push(self.turn);
                    self.tick += Duration::from_secs(1) / rate;
                }
            }
            self.publish(clients, now);
            let mut wait = lasts.saturating_sub(passed).max(MOMENT);
            if matches!(self.pace, Pace::Rate(_)) {
                wait = wait.min(self.tick.saturating_duration_since(now));
            }
            clients.turn(wait, self)?;
        }
    }

    /// Publishes nothing more and waits for what is on its way.
    pub fn finish(&mut self, clients: &mut Clients) -> Result<()> {
        let begun = Instant::now();
        loop {
            let missing: usize = self.publishers.iter().flat_map(|publisher| &publisher.on_way).map(|(_, missing)| missing).sum();
            if missing == 0 {
                return Ok(());
            }
            ensure!(begun.elapsed() < ARRIVES_WITHIN, "{missing} of {} deliveries were lost", self.delivered as usize + missing);
            clients.turn(Duration::from_millis(100), self)?;
        }
    }

    fn publish(&mut self, clients: &mut Clients, now: Instant) {
        for who in self.due.drain(..) {
            let publisher = &mut self.publishers[who];
            clients.send(publisher.connection, &mut publisher.text, (FIRST + who as u64) * SPAN + publisher.next);
            publisher.next += 1;
            publisher.on_way.push_back((now, publisher.members));
        }
    }
}

impl Watcher for Traffic {
    fn text(&mut self, who: usize, text: &[u8], now: Instant) -> Result<()> {
        let listener = &mut self.listeners[who];
        let Some(number) = self.texts[listener.text].number(text) else {
            bail!("got what nobody published: {}", String::from_utf8_lossy(text))
        };
        let (by, number) = ((number / SPAN).wrapping_sub(FIRST) as usize, number % SPAN);
        let expected = listener.next.get_mut(by.wrapping_sub(listener.first)).with_context(|| format!("publisher {by} is none of its"))?;
        ensure!(*expected == number, "publication {number} of publisher {by} came when {expected} was next");
        *expected += 1;

        let publisher = &mut self.publishers[by];
        let oldest = publisher.next - publisher.on_way.len() as u64;
        let found = number.checked_sub(oldest).and_then(|at| publisher.on_way.get_mut(at as usize));
        let (sent, missing) = found.with_context(|| format!("publication {number} of publisher {by} has not been published"))?;
        self.latency.add(now.saturating_duration_since(*sent));
        *missing -= 1;
        self.delivered += 1;
        while publisher.on_way.front().is_some_and(|(_, missing)| *missing == 0) {
            publisher.on_way.pop_front();
            if matches!(self.pace, Pace::InFlight(_)) {
                self.due.push(by);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One publisher, whose three publications are on their way to one member.
    fn three_on_way() -> (Traffic, impl FnMut(u64) -> Vec<u8>) {
        let (mut published, event) = (Dialect::Json.event("c0"), Dialect::Json.event("c0"));
        let on_way = (0..3).map(|_| (Instant::now(), 1)).collect();
        let traffic = Traffic {
            publishers: vec![Publisher { connection: 1, text: Dialect::Json.publish("c0"), members: 1, next: 3, on_way }],
            listeners: vec![Listener { text: 0, first: 0, next: vec![0] }],
            texts: vec![event],
            pace: Pace::InFlight(3),
            due: Vec::new(),
            tick: Instant::now(),
            turn: 0,
            delivered: 0,
            latency: Histogram::default(),
        };
        (traffic, move |number| published.with(FIRST * SPAN + number).to_vec())
    }

    #[test]
    fn what_arrives_in_turn_makes_room_for_more() {
        let (mut traffic, mut event) = three_on_way();
        (0..3).for_each(|number| traffic.text(0, &event(number), Instant::now()).unwrap());
        assert_eq!((traffic.delivered, traffic.due.len(), traffic.publishers[0].on_way.len()), (3, 3, 0));
    }

    #[test]
    fn what_is_lost_doubled_altered_or_made_up_is_an_error() {
        let error = |traffic: &mut Traffic, text: &[u8]| traffic.text(0, text, Instant::now()).unwrap_err().to_string();
        let (mut traffic, mut event) = three_on_way();
        traffic.text(0, &event(0), Instant::now()).unwrap();
        assert_eq!(error(&mut traffic, &event(0)), "publication 0 of publisher 0 came when 1 was next");
        assert_eq!(error(&mut traffic, &event(2)), "publication 2 of publisher 0 came when 1 was next");
        assert_eq!(error(&mut traffic, &event(SPAN)), "publisher 1 is none of its");
        assert!(error(&mut traffic, b"{}").contains("nobody published: {}"));
        (1..3).for_each(|number| traffic.text(0, &event(number), Instant::now()).unwrap());
        assert_eq!(error(&mut traffic, &event(3)), "publication 3 of publisher 0 has not been published");
    }
}
