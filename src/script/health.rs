//! The counters of a plugin, over all threads and all loadings.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use super::engine::LOG_LINES_PER_SECOND_MAX;

/// Counters of one plugin.
#[derive(Default)]
pub(super) struct Health {
    calls: AtomicU64,
    failures: AtomicU64,
    total_ns: AtomicU64,
    max_ns: AtomicU64,
    log_second: AtomicI64,
    log_lines: AtomicU32,
    log_dropped: AtomicU64,
    /// Of these, how many the log knows of.
    log_dropped_told: AtomicU64,
    /// The last error and its time. Locked when a call fails or when it is shown, never in a call that succeeds.
    last_error: Mutex<Option<(String, i64)>>,
}

/// The numbers of [`Health`] for a report.
pub(super) struct Numbers {
    pub(super) calls: u64,
    pub(super) failures: u64,
    pub(super) mean_us: f64,
    pub(super) max_us: u64,
    pub(super) last_error: Option<(String, i64)>,
    pub(super) log_lines_dropped: u64,
}

impl Health {
    /// Counts a call, and why it failed if it did.
    pub(super) fn ended(&self, failed: Option<&str>, took: Duration, now_ms: i64) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.calls.fetch_add(1, Relaxed);
        self.total_ns.fetch_add(ns, Relaxed);
        if ns > self.max_ns.load(Relaxed) {
            self.max_ns.fetch_max(ns, Relaxed);
        }
        if let Some(why) = failed {
            self.failures.fetch_add(1, Relaxed);
            *self.last_error.lock() = Some((why.to_owned(), now_ms));
        }
    }

    /// Whether one more log line fits into this second.
    pub(super) fn may_log(&self, now_ms: i64) -> bool {
        let second = now_ms / 1000;
        if self.log_second.swap(second, Relaxed) != second {
            self.log_lines.store(0, Relaxed);
        }
        let fits = self.log_lines.fetch_add(1, Relaxed) < LOG_LINES_PER_SECOND_MAX;
        if !fits {
            self.log_dropped.fetch_add(1, Relaxed);
        }
        fits
    }

    /// Lines that were left out in past seconds and not yet reported in the log.
    pub(super) fn left_out(&self, now_ms: i64) -> Option<u64> {
        let dropped = self.log_dropped.load(Relaxed);
        if dropped == self.log_dropped_told.load(Relaxed) || self.log_second.load(Relaxed) == now_ms / 1000 {
            return None;
        }
        let told = self.log_dropped_told.swap(dropped, Relaxed);
        dropped.checked_sub(told).filter(|more| *more > 0)
    }

    pub(super) fn numbers(&self) -> Numbers {
        let calls = self.calls.load(Relaxed);
        Numbers {
            calls,
            failures: self.failures.load(Relaxed),
            mean_us: if calls == 0 { 0.0 } else { self.total_ns.load(Relaxed) as f64 / calls as f64 / 1000.0 },
            max_us: self.max_ns.load(Relaxed) / 1000,
            last_error: self.last_error.lock().clone(),
            log_lines_dropped: self.log_dropped.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_told_of_the_lines_it_does_not_have_once_their_second_is_over() {
        let health = Health::default();
        let written = |second: i64, lines: u32| (0..lines).filter(|_| health.may_log(second * 1000)).count();
        assert_eq!(written(1, LOG_LINES_PER_SECOND_MAX + 5), LOG_LINES_PER_SECOND_MAX as usize);
        assert_eq!((health.left_out(1999), health.left_out(2000), health.left_out(2001)), (None, Some(5), None));
        assert_eq!((written(3, 1), health.left_out(5000)), (1, None));
        assert_eq!(health.numbers().log_lines_dropped, 5);
    }
}
