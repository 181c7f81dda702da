//! Writes the counters to the store every few seconds; the next run continues from them. Counting itself is an addition to an atomic
//! and knows nothing of this.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::model::Now;
use crate::store::{Point, Store};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::series::SeriesKey;

/// How often the counters are written to the store, in seconds. A crash loses at most this much.
const COLLECT_SECONDS: i64 = 10;

/// The length of a step, in milliseconds.
const MINUTE_MS: i64 = 60_000;

/// The counters on their way to the store.
pub struct Statistics {
    metrics: Arc<Metrics>,
    store: Store,
    // Protects the totals that are already in the store. Held while the counters are read, never to count.
    stored: Mutex<Stored>,
}

/// The totals that are already in the store.
struct Stored {
    totals: HashMap<SeriesKey, u64>,
    at_ms: i64,
}

impl Statistics {
    /// Of what is counted from now on; the store has what the metrics began with.
    pub fn new(metrics: &Arc<Metrics>, store: Store, now: Now) -> Self {
        Self { metrics: metrics.clone(), store, stored: Mutex::new(Stored { totals: HashMap::new(), at_ms: now.wall_ms }) }
    }

    /// Collects if it is time to, which is every tenth second of the clock. Called once a second.
    pub fn tick(&self, now: Now) {
        let last_ms = self.stored.lock().at_ms;
        let beat = |ms: i64| ms.div_euclid(COLLECT_SECONDS * 1000);
        if beat(now.wall_ms) != beat(last_ms) {
            self.collect(now);
        }
    }

    /// Gives the store the counts since the last time.
    pub fn collect(&self, now: Now) {
        let mut stored = self.stored.lock();
        let minute_s = minute_s(stored.at_ms, now.wall_ms);
        let mut points = Vec::new();
        self.metrics.each(|key, counter| {
            let total = counter.get();
            let before = stored.totals.get(&key).copied().unwrap_or_else(|| self.metrics.before(&key));
            if total > before {
                points.push(Point { kind: key.kind, name: key.name.clone(), metric: key.metric, minute_s, delta: total - before });
                stored.totals.insert(key, total);
            }
        });
        stored.at_ms = now.wall_ms;
        if !points.is_empty() {
            self.store.append_points(points);
        }
    }
}

/// The minute to which counts between two moments belong: that of the later moment, unless the earlier one is just before the
/// boundary, because then most was counted in its minute.
fn minute_s(from_ms: i64, to_ms: i64) -> i64 {
    let border_ms = to_ms.div_euclid(MINUTE_MS) * MINUTE_MS;
    let mostly_before = from_ms < border_ms && to_ms - border_ms < border_ms - from_ms;
    let minute_ms = if mostly_before { border_ms - MINUTE_MS } else { border_ms };
    minute_ms / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_belongs_to_the_minute_most_of_it_fell_into() {
        for (from_s, to_s, minute) in
            [(0, 10, 0), (50, 60, 0), (52, 62, 0), (55, 65, 60), (58, 68, 60), (60, 70, 60), (10, 300, 240), (70, 65, 60)]
        {
            assert_eq!(minute_s(from_s * 1000, to_s * 1000), minute, "{from_s} to {to_s}");
        }
    }
}
