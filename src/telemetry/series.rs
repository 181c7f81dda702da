//! Every counter under three words: the kind of thing, its name, and the metric. Totals are stored under them, so they outlive
//! the process.

use std::collections::HashMap;
use std::sync::Arc;

use super::metrics::{Counter, Metrics, Named, PatternMetrics, ProtocolMetrics, RouteMetrics, SourceMetrics, snapshot};
use crate::model::Now;

/// Every kind of thing.
pub const KINDS: [&str; 8] = ["total", "channel", "drop", "protocol", "fault", "close", "route", "source"];

/// Which counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SeriesKey {
    /// The kind of thing, one of [`KINDS`].
    pub kind: &'static str,
    /// Its name: a channel's pattern, a reason, or the name of a protocol, row or source.
    pub name: Arc<str>,
    /// The metric: what is counted.
    pub metric: &'static str,
}

/// Something with a name that is counted.
pub(super) trait Counted: Default {
    /// Its counters, each with its kind and metric.
    fn counters(&self) -> Vec<(&'static str, &'static str, &Counter)>;
}

impl Counted for PatternMetrics {
    fn counters(&self) -> Vec<(&'static str, &'static str, &Counter)> {
        let own = [("published", &self.published), ("delivered", &self.delivered), ("bytes", &self.bytes)];
        of("channel", own.into_iter().chain(self.conflations.counters()))
    }
}

impl Counted for ProtocolMetrics {
    fn counters(&self) -> Vec<(&'static str, &'static str, &Counter)> {
        let own = [
            ("connections", &self.connections_total),
            ("refused", &self.refused),
            ("messagesIn", &self.messages_in),
            ("messagesOut", &self.messages_out),
            ("bytesIn", &self.bytes_in),
            ("bytesOut", &self.bytes_out),
        ];
        [of("protocol", own), of("fault", self.fault_counters()), of("close", self.close_counters())].concat()
    }
}

impl Counted for RouteMetrics {
    fn counters(&self) -> Vec<(&'static str, &'static str, &Counter)> {
        of("route", [("calls", &self.calls), ("faults", &self.faults)])
    }
}

impl Counted for SourceMetrics {
    fn counters(&self) -> Vec<(&'static str, &'static str, &Counter)> {
        of("source", [("events", &self.events), ("faults", &self.faults)])
    }
}

fn of<'c>(
    kind: &'static str,
    counters: impl IntoIterator<Item = (&'static str, &'c Counter)>,
) -> Vec<(&'static str, &'static str, &'c Counter)> {
    counters.into_iter().map(|(metric, counter)| (kind, metric, counter)).collect()
}

/// The totals of earlier runs, by kind, name and metric.
#[derive(Debug, Default)]
pub(super) struct Totals(HashMap<String, HashMap<(String, String), u64>>);

impl Totals {
    fn get(&self, kind: &str, name: &str, metric: &str) -> u64 {
        let of_name = self.0.get(name);
        of_name.and_then(|all| all.get(&(kind.to_owned(), metric.to_owned()))).copied().unwrap_or(0)
    }

    /// Adds the totals of earlier runs to counters that are new and have this name.
    pub(super) fn restore(&self, name: &str, counted: &impl Counted) {
        if self.0.contains_key(name) {
            counted.counters().into_iter().for_each(|(kind, metric, counter)| counter.add(self.get(kind, name, metric)));
        }
    }
}

impl Metrics {
    /// Nothing is counted yet. A counter with a name that earlier runs knew continues from its total, whenever it is created.
    pub fn resume(started: Now, totals: impl IntoIterator<Item = (String, String, String, u64)>) -> Self {
        let mut all: HashMap<String, HashMap<(String, String), u64>> = HashMap::new();
        for (kind, name, metric, total) in totals {
            all.entry(name).or_default().insert((kind, metric), total);
        }
        let metrics = Self::with(started, Totals(all));
        metrics.each_unnamed(|key, counter| counter.add(metrics.before(&key)));
        metrics
    }

    /// What earlier runs counted.
    pub fn before(&self, key: &SeriesKey) -> u64 {
        self.totals.get(key.kind, &key.name, key.metric)
    }

    /// Shows every counter. What was counted in between may or may not be seen.
    pub fn each(&self, mut see: impl FnMut(SeriesKey, &Counter)) {
        fn all<T: Counted>(map: &Named<T>, see: &mut impl FnMut(SeriesKey, &Counter)) {
            for (name, counted) in snapshot(map) {
                for (kind, metric, counter) in counted.counters() {
                    see(SeriesKey { kind, name: name.clone(), metric }, counter);
                }
            }
        }
        self.each_unnamed(&mut see);
        all(&self.patterns, &mut see);
        all(&self.protocols, &mut see);
        all(&self.routes, &mut see);
        all(&self.sources, &mut see);
    }

    /// The counters that are always there.
    fn each_unnamed(&self, mut see: impl FnMut(SeriesKey, &Counter)) {
        for (metric, counter) in [("published", &self.channels.published), ("delivered", &self.channels.delivered)] {
            see(SeriesKey { kind: "total", name: "channels".into(), metric }, counter);
        }
        for (reason, counter) in self.channels.drop_counters() {
            see(SeriesKey { kind: "drop", name: reason.into(), metric: "events" }, counter);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::model::fault::Code;
    use crate::telemetry::conflation::Conflation;
    use crate::telemetry::metrics::{CAUSES, DropReason};

    #[test]
    fn every_counter_has_a_key_of_its_own_and_goes_on_from_its_total() {
        let totals = [
            ("channel", "a:{b}", "published", 40),
            ("drop", "gone", "events", 3),
            ("fault", "p", "rate_limited", 4),
            ("protocol", "later", "messagesIn", 5),
        ];
        let owned = totals.map(|(kind, name, metric, total)| (kind.to_owned(), name.to_owned(), metric.to_owned(), total));
        let metrics = Metrics::resume(Now::read(), owned);
        metrics.protocol("p");
        metrics.route("r");
        metrics.source("s");
        metrics.pattern("a:{b}").published.add(2);
        let mut seen = HashSet::new();
        metrics.each(|key, _| assert!(seen.insert(key.clone()), "{key:?} stands twice"));
        let kinds: HashSet<&str> = seen.iter().map(|key| key.kind).collect();
        assert_eq!(kinds, HashSet::from(KINDS));
        assert_eq!(seen.len(), 2 + DropReason::ALL.len() + 3 + Conflation::ALL.len() + 6 + Code::ALL.len() + CAUSES.len() + 2 + 2);
        assert_eq!(metrics.pattern("a:{b}").published.get(), 42);
        let json = serde_json::to_value(metrics.counted()).unwrap();
        assert_eq!((&json["channels"]["dropped"]["gone"], &json["protocols"]["p"]["faults"]["rate_limited"]), (&3.into(), &4.into()));
        assert!(json["protocols"]["later"].is_null());
        assert_eq!(metrics.protocol("later").messages_in.get(), 5, "what a reload brings goes on too");
    }
}
