//! Every counter under three words: the kind of thing, its name, and the metric. Totals are stored under them, so they outlive
//! the process.

use std::collections::HashMap;
use std::sync::Arc;

use super::metrics::{Counter, Metrics, snapshot};

/// Which counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SeriesKey {
    /// The kind of thing: `total`, `channel`, `drop`, `protocol`, `fault`, `close`, `route` or `source`.
    pub kind: &'static str,
    /// Its name: a channel's pattern, a reason, or the name of a protocol, row or source.
    pub name: Arc<str>,
    /// The metric: what is counted.
    pub metric: &'static str,
}

impl Metrics {
    /// Shows every counter. What was counted in between may or may not be seen.
    pub fn each(&self, mut see: impl FnMut(SeriesKey, &Counter)) {
        let mut all = |kind, name: &Arc<str>, counters: &[(&'static str, &Counter)]| {
            for (metric, counter) in counters {
                see(SeriesKey { kind, name: name.clone(), metric }, counter);
            }
        };
        all("total", &"channels".into(), &[("published", &self.channels.published), ("delivered", &self.channels.delivered)]);
        for (reason, counter) in self.channels.drop_counters() {
            all("drop", &reason.into(), &[("events", counter)]);
        }
        for (name, pattern) in snapshot(&self.patterns) {
            all("channel", &name, &[("published", &pattern.published), ("delivered", &pattern.delivered), ("bytes", &pattern.bytes)]);
            all("channel", &name, &pattern.conflations.counters().collect::<Vec<_>>());
        }
        for (name, protocol) in snapshot(&self.protocols) {
            let counters = [
                ("connections", &protocol.connections_total),
                ("refused", &protocol.refused),
                ("messagesIn", &protocol.messages_in),
                ("messagesOut", &protocol.messages_out),
                ("bytesIn", &protocol.bytes_in),
                ("bytesOut", &protocol.bytes_out),
            ];
            all("protocol", &name, &counters);
            all("fault", &name, &protocol.fault_counters().collect::<Vec<_>>());
            all("close", &name, &protocol.close_counters().collect::<Vec<_>>());
        }
        for (name, route) in snapshot(&self.routes) {
            all("route", &name, &[("calls", &route.calls), ("faults", &route.faults)]);
        }
        for (name, source) in snapshot(&self.sources) {
            all("source", &name, &[("events", &source.events), ("faults", &source.faults)]);
        }
    }

    /// Continues from the totals of earlier runs, by kind, name and metric. Totals of unknown things are ignored.
    pub fn restore(&self, totals: &HashMap<(&str, &str, &str), u64>) {
        self.each(|key, counter| {
            if let Some(total) = totals.get(&(key.kind, &*key.name, key.metric)) {
                counter.add(*total);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::model::Now;
    use crate::model::fault::Code;
    use crate::telemetry::conflation::Conflation;
    use crate::telemetry::metrics::{CAUSES, DropReason};

    #[test]
    fn every_counter_has_a_key_of_its_own_and_goes_on_from_its_total() {
        let metrics = Metrics::new(Now::read());
        metrics.protocol("p");
        metrics.route("r");
        metrics.source("s");
        metrics.pattern("a:{b}").published.add(2);
        let mut seen = HashSet::new();
        metrics.each(|key, _| assert!(seen.insert(key.clone()), "{key:?} stands twice"));
        assert_eq!(seen.len(), 2 + DropReason::ALL.len() + 3 + Conflation::ALL.len() + 6 + Code::ALL.len() + CAUSES.len() + 2 + 2);
        let totals = HashMap::from([
            (("channel", "a:{b}", "published"), 40),
            (("drop", "gone", "events"), 3),
            (("fault", "p", "rate_limited"), 4),
            (("protocol", "elsewhere", "messagesIn"), 5),
        ]);
        metrics.restore(&totals);
        assert_eq!(metrics.pattern("a:{b}").published.get(), 42);
        let json = serde_json::to_value(metrics.counted()).unwrap();
        assert_eq!((&json["channels"]["dropped"]["gone"], &json["protocols"]["p"]["faults"]["rate_limited"]), (&3.into(), &4.into()));
        assert!(json["protocols"]["elsewhere"].is_null());
    }
}
