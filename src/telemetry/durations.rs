//! How long something took, each time: counted in a few fixed buckets, which is one addition and a look at the longest.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The upper bounds of the buckets, in microseconds. What took longer than the last is in a bucket of its own.
const BOUNDS_MICROS: [u64; 13] =
    [500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000];
const BUCKETS: usize = BOUNDS_MICROS.len() + 1;

/// Durations, counted.
#[derive(Debug, Default)]
pub struct Durations {
    counts: [AtomicU64; BUCKETS],
    sum_micros: AtomicU64,
    longest_micros: AtomicU64,
}

/// What was counted so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DurationsNow {
    counts: [u64; BUCKETS],
    /// All of them together.
    pub sum: Duration,
    /// The longest of them.
    pub longest: Duration,
}

impl Durations {
    /// One more.
    pub fn add(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum_micros.fetch_add(micros, Relaxed);
        self.longest_micros.fetch_max(micros, Relaxed);
    }

    /// What was counted so far.
    pub fn get(&self) -> DurationsNow {
        let micros = |number: &AtomicU64| Duration::from_micros(number.load(Relaxed));
        DurationsNow {
            counts: std::array::from_fn(|bucket| self.counts[bucket].load(Relaxed)),
            sum: micros(&self.sum_micros),
            longest: micros(&self.longest_micros),
        }
    }
}

impl DurationsNow {
    /// How many.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The mean; 0 where there were none.
    pub fn mean(&self) -> Duration {
        self.sum.div_f64(self.count().max(1) as f64)
    }

    /// Upper bounds in seconds, and how many took no longer; the last bound is infinite.
    pub(super) fn up_to(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS_MICROS.iter().map(|micros| Duration::from_micros(*micros).as_secs_f64()).chain([f64::INFINITY]);
        let counts = self.counts.into_iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        bounds.zip(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_up_to_the_first_bound_it_does_not_exceed() {
        let durations = Durations::default();
        for micros in [0, 500, 501, 1_000_000, 99_000_000] {
            durations.add(Duration::from_micros(micros));
        }
        let now = durations.get();
        let up_to: Vec<(f64, u64)> = now.up_to().collect();
        assert_eq!(up_to[..2], [(0.0005, 2), (0.001, 3)]);
        assert_eq!(up_to[10..], [(1.0, 4), (2.5, 4), (10.0, 4), (f64::INFINITY, 5)]);
        assert_eq!((now.count(), now.longest, now.mean().as_micros()), (5, Duration::from_secs(99), 20_000_200));
        assert_eq!(Durations::default().get().mean(), Duration::ZERO);
    }
}
