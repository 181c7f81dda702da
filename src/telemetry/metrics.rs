//! What the router counts. Each user of a counter gets the counter object once, when it is built; counting is one relaxed
//! addition.
//!
//! Objects live by name from first use on, so totals go on over reloads. Names come from the configuration, so there are few.
//! Depths and times that other modules know (queues, scripts, the store) are passed in when the numbers are shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::conflation::ConflationCounters;
pub use super::prometheus::{Kind, Sample, Timed};
pub use super::rates::Flow;
use super::rates::Window;
use super::series::{Counted, Totals};
use crate::model::fault::Code;
use crate::model::{Close, Now};

/// A total that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The total.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// The number, at least 0.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed).max(0).cast_unsigned()
    }
}

/// A counter for each of a few fixed names.
#[derive(Debug)]
pub struct Counters<const N: usize>(pub(super) [Counter; N]);

impl<const N: usize> Default for Counters<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

/// Why an event did not reach its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// The receiver's outbox was full.
    OutboxFull,
    /// The receiver had gone.
    Gone,
    /// The sender was over its rate.
    RateLimited,
    /// The store could not take it.
    StoreUnavailable,
    /// A script dropped it.
    ByScript,
    /// The receiver did not read, and the channel allows events to be dropped.
    SlowClient,
}

impl DropReason {
    /// Every reason, in the order of the enum.
    pub const ALL: [DropReason; 6] = [
        DropReason::OutboxFull,
        DropReason::Gone,
        DropReason::RateLimited,
        DropReason::StoreUnavailable,
        DropReason::ByScript,
        DropReason::SlowClient,
    ];

    /// Its name in statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            DropReason::OutboxFull => "outbox_full",
            DropReason::Gone => "gone",
            DropReason::RateLimited => "rate_limited",
            DropReason::StoreUnavailable => "store_unavailable",
            DropReason::ByScript => "by_script",
            DropReason::SlowClient => "slow_client",
        }
    }
}

/// The names of the causes of a close, in the order of [`cause`].
pub(super) const CAUSES: [&str; 17] = [
    "going_away",
    "protocol_error",
    "invalid_utf8",
    "too_large",
    "flooding",
    "unauthorized",
    "expired",
    "slow",
    "displaced",
    "idle",
    "ping_timeout",
    "internal",
    "asked",
    "by_client",
    "lost",
    "position_lost",
    "retired",
];

fn cause(close: &Close) -> usize {
    match close {
        Close::GoingAway => 0,
        Close::ProtocolError => 1,
        Close::InvalidUtf8 => 2,
        Close::TooLarge => 3,
        Close::Flooding => 4,
        Close::Unauthorized => 5,
        Close::Expired => 6,
        Close::Slow(..) => 7,
        Close::Displaced(..) => 8,
        Close::Idle => 9,
        Close::PingTimeout => 10,
        Close::Internal => 11,
        Close::Asked(..) => 12,
        Close::ByClient(..) => 13,
        Close::Lost => 14,
        Close::PositionLost => 15,
        Close::Retired => 16,
    }
}

/// What passes through one protocol.
#[derive(Debug, Default)]
pub struct ProtocolMetrics {
    /// Open connections.
    pub connections: Gauge,
    /// Connections opened.
    pub connections_total: Counter,
    /// Connections refused.
    pub refused: Counter,
    /// Messages received.
    pub messages_in: Counter,
    /// Messages sent.
    pub messages_out: Counter,
    /// Bytes received.
    pub bytes_in: Counter,
    /// Bytes sent.
    pub bytes_out: Counter,
    /// When the last message went either way, in milliseconds since the epoch; 0 before any.
    pub last_activity_ms: AtomicI64,
    faults: Counters<{ Code::ALL.len() }>,
    closes: Counters<{ CAUSES.len() }>,
    window: Mutex<Window>,
}

impl ProtocolMetrics {
    /// A connection opened.
    pub fn opened(&self) {
        self.connections.inc();
        self.connections_total.inc();
    }

    /// A message came in.
    pub fn message_in(&self, bytes: u64, now_ms: i64) {
        self.messages_in.inc();
        self.bytes_in.add(bytes);
        self.last_activity_ms.store(now_ms, std::sync::atomic::Ordering::Relaxed);
    }

    /// Messages were queued for clients.
    pub fn messages_out(&self, messages: u64, bytes: u64) {
        self.messages_out.add(messages);
        self.bytes_out.add(bytes);
    }

    /// A connection ended.
    pub fn closed(&self, close: &Close) {
        self.connections.dec();
        self.closes.0[cause(close)].inc();
    }

    /// A message was a fault.
    pub fn fault(&self, code: Code) {
        self.faults.0[code as usize].inc();
    }

    /// Faults by code.
    pub fn faults(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.fault_counters().map(|(code, counter)| (code, counter.get()))
    }

    pub(super) fn fault_counters(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
        Code::ALL.iter().map(|code| (code.as_str(), &self.faults.0[*code as usize]))
    }

    /// Ends by cause.
    pub fn closes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.close_counters().map(|(cause, counter)| (cause, counter.get()))
    }

    pub(super) fn close_counters(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
        CAUSES.into_iter().zip(&self.closes.0)
    }

    /// Messages per second over the last ten seconds.
    pub fn rate(&self) -> Flow<f64> {
        self.window.lock().rate()
    }
}

/// What passes through one row.
#[derive(Debug, Default)]
pub struct RouteMetrics {
    /// Messages that reached it.
    pub calls: Counter,
    /// Those of them that caused a fault.
    pub faults: Counter,
}

/// What a source made.
#[derive(Debug, Default)]
pub struct SourceMetrics {
    /// Events.
    pub events: Counter,
    /// Those of them that caused a fault.
    pub faults: Counter,
}

/// What passes through all channels.
#[derive(Debug, Default)]
pub struct ChannelMetrics {
    /// Events published.
    pub published: Counter,
    /// Deliveries: events times receivers.
    pub delivered: Counter,
    dropped: Counters<{ DropReason::ALL.len() }>,
    window: Mutex<Window>,
}

impl ChannelMetrics {
    /// Something was dropped.
    pub fn drop_one(&self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    /// So many were dropped.
    pub fn drop_many(&self, reason: DropReason, n: u64) {
        if n > 0 {
            self.dropped.0[reason as usize].add(n);
        }
    }

    /// Drops by reason.
    pub fn dropped(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.drop_counters().map(|(reason, counter)| (reason, counter.get()))
    }

    pub(super) fn drop_counters(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
        DropReason::ALL.iter().map(|reason| (reason.as_str(), &self.dropped.0[*reason as usize]))
    }

    /// Published and delivered per second over the last ten seconds.
    pub fn rate(&self) -> Flow<f64> {
        self.window.lock().rate()
    }
}

/// What passes through the channels of one pattern.
#[derive(Debug, Default)]
pub struct PatternMetrics {
    /// Events published.
    pub published: Counter,
    /// Deliveries: events times receivers.
    pub delivered: Counter,
    /// Bytes of the published data.
    pub bytes: Counter,
    /// Messages that slow clients did not get as they were published.
    pub conflations: ConflationCounters,
}

/// What happens to sockets before they become HTTP connections.
#[derive(Debug, Default)]
pub struct SocketMetrics {
    /// Closed because their address has as many as are allowed.
    pub refused: Counter,
    /// TLS handshakes that failed or took too long, and clients that did not speak TLS.
    pub handshakes_failed: Counter,
    /// TLS handshakes that waited because the maximum was under way.
    pub handshakes_waited: Counter,
    /// Changed certificates that are in use.
    pub certificates_read: Counter,
    /// Changed certificates that could not be used.
    pub certificates_invalid: Counter,
}

pub(super) type Named<T> = Mutex<BTreeMap<Arc<str>, Arc<T>>>;

/// Everything that is counted. The maps are locked when objects are handed out or shown, never to count.
#[derive(Debug)]
pub struct Metrics {
    started: Now,
    pub(super) channels: Arc<ChannelMetrics>,
    pub(super) sockets: Arc<SocketMetrics>,
    pub(super) patterns: Named<PatternMetrics>,
    pub(super) protocols: Named<ProtocolMetrics>,
    pub(super) routes: Named<RouteMetrics>,
    pub(super) sources: Named<SourceMetrics>,
    /// What earlier runs counted.
    pub(super) totals: Totals,
}

/// The objects with their names, so that nothing is locked while they are written out.
pub(super) fn snapshot<T>(map: &Named<T>) -> Vec<(Arc<str>, Arc<T>)> {
    map.lock().iter().map(|(name, object)| (name.clone(), object.clone())).collect()
}

impl Metrics {
    /// Nothing counted yet, by any run.
    pub fn new(started: Now) -> Self {
        Self::with(started, Totals::default())
    }

    pub(super) fn with(started: Now, totals: Totals) -> Self {
        Self {
            started,
            channels: Arc::default(),
            sockets: Arc::default(),
            patterns: Mutex::default(),
            protocols: Mutex::default(),
            routes: Mutex::default(),
            sources: Mutex::default(),
            totals,
        }
    }

    fn named<T: Counted>(&self, map: &Named<T>, name: &str) -> Arc<T> {
        let mut map = map.lock();
        if let Some(known) = map.get(name) {
            return known.clone();
        }
        let new = Arc::new(T::default());
        self.totals.restore(name, &*new);
        map.insert(name.into(), new.clone());
        new
    }

    /// The counters of all channels.
    pub fn channels(&self) -> Arc<ChannelMetrics> {
        self.channels.clone()
    }

    /// The counters of all listeners.
    pub fn sockets(&self) -> Arc<SocketMetrics> {
        self.sockets.clone()
    }

    /// The counters of a channel's pattern, as the configuration writes it.
    pub fn pattern(&self, pattern: &str) -> Arc<PatternMetrics> {
        self.named(&self.patterns, pattern)
    }

    /// The counters of a protocol.
    pub fn protocol(&self, name: &str) -> Arc<ProtocolMetrics> {
        self.named(&self.protocols, name)
    }

    /// The counters of a row, by its name: `canvas.messages.ping`.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        self.named(&self.routes, name)
    }

    /// The counters of a source.
    pub fn source(&self, name: &str) -> Arc<SourceMetrics> {
        self.named(&self.sources, name)
    }

    /// Samples the totals, for the rates. Called once a second.
    pub fn tick(&self, now: Now) {
        let channels = &self.channels;
        channels.window.lock().tick(now, Flow { r#in: channels.published.get(), out: channels.delivered.get() });
        for (_, protocol) in snapshot(&self.protocols) {
            let totals = Flow { r#in: protocol.messages_in.get(), out: protocol.messages_out.get() };
            protocol.window.lock().tick(now, totals);
        }
    }

    /// Whole seconds since the start.
    pub fn uptime_s(&self, now: Now) -> u64 {
        now.instant.saturating_duration_since(self.started.instant).as_secs()
    }

    /// For Prometheus, with further numbers from the caller.
    pub fn prometheus(&self, now: Now, more: &[Sample], timed: &[Timed]) -> String {
        let (patterns, protocols) = (snapshot(&self.patterns), snapshot(&self.protocols));
        let (routes, sources) = (snapshot(&self.routes), snapshot(&self.sources));
        super::prometheus::render(&super::prometheus::Counted {
            uptime_s: self.uptime_s(now),
            channels: &self.channels,
            sockets: &self.sockets,
            patterns: &patterns,
            protocols: &protocols,
            routes: &routes,
            sources: &sources,
            more,
            timed,
        })
    }

    /// When counting began.
    pub fn started(&self) -> Now {
        self.started
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_reasons_and_causes_are_counted_under_their_own_names() {
        let metrics = Metrics::new(Now::read());
        let protocol = metrics.protocol("canvas");
        for code in Code::ALL {
            protocol.fault(code);
            assert_eq!(protocol.faults().filter(|(_, n)| *n > 0).last().unwrap().0, code.as_str());
        }
        assert!(protocol.faults().all(|(_, n)| n == 1));
        let channels = metrics.channels();
        for reason in DropReason::ALL {
            channels.drop_one(reason);
            assert_eq!(channels.dropped().filter(|(_, n)| *n > 0).last().unwrap().0, reason.as_str());
        }
        protocol.opened();
        protocol.closed(&Close::slow());
        protocol.opened();
        protocol.closed(&Close::Lost);
        assert_eq!(protocol.closes().filter(|(_, n)| *n > 0).collect::<Vec<_>>(), [("slow", 1), ("lost", 1)]);
        assert_eq!(protocol.connections.get(), 0);
    }
}
