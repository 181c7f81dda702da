//! How long things took, in buckets that are at most a sixteenth wide: cheap enough for millions a second.

use std::time::Duration;

/// Buckets of each power of two.
const PARTS: usize = 16;
const PARTS_LOG: u32 = PARTS.trailing_zeros();

pub struct Histogram {
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; bucket(u64::MAX) + 1] }
    }
}

/// The bucket of so many microseconds. Below 16 each has its own.
fn bucket(micros: u64) -> usize {
    let power = micros.max(1).ilog2();
    if power < PARTS_LOG {
        return micros as usize;
    }
    let shift = power - PARTS_LOG;
    (shift as usize + 1) * PARTS + ((micros >> shift) as usize - PARTS)
}

/// The lowest value of a bucket.
fn begin(bucket: usize) -> u64 {
    match (bucket / PARTS, bucket % PARTS) {
        (0, part) => part as u64,
        (row, part) => ((PARTS + part) as u64) << (row - 1),
    }
}

impl Histogram {
    pub fn add(&mut self, took: Duration) {
        self.counts[bucket(took.as_micros() as u64)] += 1;
    }

    /// What so many of a hundred did not exceed by more than a bucket; nothing was 0.
    pub fn percentile(&self, percent: u64) -> Duration {
        let wanted = (self.counts.iter().sum::<u64>() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        Duration::from_micros(found.map_or(0, begin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_its_bucket_which_is_a_sixteenth_wide() {
        for micros in (0..5000).chain([123_456, 999_999_999, u64::MAX / 3]) {
            let at = bucket(micros);
            assert!(begin(at) <= micros && micros < begin(at + 1), "{micros}");
            assert!(begin(at + 1) - begin(at) <= (micros / 16).max(1), "{micros}");
        }
    }

    #[test]
    fn percentiles_are_found() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(50), Duration::ZERO);
        (1..=100).for_each(|ms| histogram.add(Duration::from_millis(ms)));
        for percent in [1, 50, 99] {
            let got = histogram.percentile(percent).as_secs_f64() * 1000.0;
            assert!(got <= percent as f64 && got > percent as f64 * 0.93, "{percent}: {got}");
        }
    }
}
