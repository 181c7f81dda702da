//! Rates over the last seconds, from totals that are looked at once a second.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::model::Now;

/// The time that a rate covers.
const WINDOW: Duration = Duration::from_secs(10);

/// Things in and out, as totals or per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Flow<T> {
    /// Received.
    pub r#in: T,
    /// Sent.
    pub out: T,
}

/// The totals of the last seconds.
#[derive(Debug, Default)]
pub(super) struct Window {
    samples: VecDeque<(Instant, Flow<u64>)>,
}

impl Window {
    /// Samples the totals.
    pub(super) fn tick(&mut self, now: Now, totals: Flow<u64>) {
        // One sample from before the window stays, so that the window is always covered.
        while self.samples.get(1).is_some_and(|(at, _)| now.instant.saturating_duration_since(*at) >= WINDOW) {
            self.samples.pop_front();
        }
        self.samples.push_back((now.instant, totals));
    }

    /// Per second, over the samples.
    pub(super) fn rate(&self) -> Flow<f64> {
        let (Some((from, first)), Some((to, last))) = (self.samples.front(), self.samples.back()) else { return Flow::default() };
        let seconds = to.saturating_duration_since(*from).as_secs_f64();
        if seconds <= 0.0 {
            return Flow::default();
        }
        let per_second = |a: u64, b: u64| b.saturating_sub(a) as f64 / seconds;
        Flow { r#in: per_second(first.r#in, last.r#in), out: per_second(first.out, last.out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_looks_back_ten_seconds() {
        let (start, mut window) = (Now::read(), Window::default());
        let mut tick = |second: u64, total: u64| {
            let now = Now { instant: start.instant + Duration::from_secs(second), ..start };
            window.tick(now, Flow { r#in: total, out: 0 });
            (window.rate().r#in, window.samples.len())
        };
        assert_eq!(tick(0, 500), (0.0, 1));
        assert_eq!(tick(1, 600), (100.0, 2));
        for second in 2..=30 {
            tick(second, 600);
        }
        let (rate, samples) = tick(31, 700);
        assert_eq!((rate, samples), (10.0, 11));
    }
}
