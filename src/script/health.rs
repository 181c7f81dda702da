//! How a plugin does, counted over all threads, and the rule that takes it out of service.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use super::call::PluginState;
use super::engine::{LOG_LINES_PER_SECOND_MAX, TRIPS_MAX};

/// Counters of one plugin, from its loading on.
#[derive(Default)]
pub(super) struct Health {
    calls: AtomicU64,
    failures: AtomicU64,
    total_ns: AtomicU64,
    max_ns: AtomicU64,
    trips_in_a_row: AtomicU32,
    out: AtomicBool,
    log_second: AtomicI64,
    log_lines: AtomicU32,
    log_dropped: AtomicU64,
    /// Protects the texts. Taken when something went wrong or is asked for, never in a call that succeeds.
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    error: Option<(String, i64)>,
    out: Option<(i64, String)>,
}

/// How a call ended, as far as service goes.
pub(super) enum Ended<'a> {
    /// With a value, or a throw.
    Well,
    /// It failed, by a mistake in the script.
    Failed(&'a str),
    /// It failed by a limit, or the engine panicked.
    Tripped(&'a str),
}

/// The numbers of [`Health`] for a report.
pub(super) struct Numbers {
    pub(super) calls: u64,
    pub(super) failures: u64,
    pub(super) mean_us: f64,
    pub(super) max_us: u64,
    pub(super) last_error: Option<(String, i64)>,
    pub(super) log_lines_dropped: u64,
    pub(super) state: PluginState,
}

impl Health {
    /// Counts a call. True when this one took the plugin out of service.
    pub(super) fn ended(&self, ended: &Ended<'_>, took: Duration, now_ms: i64) -> bool {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.calls.fetch_add(1, Relaxed);
        self.total_ns.fetch_add(ns, Relaxed);
        if ns > self.max_ns.load(Relaxed) {
            self.max_ns.fetch_max(ns, Relaxed);
        }
        let why = match ended {
            Ended::Well | Ended::Failed(_) if self.trips_in_a_row.load(Relaxed) > 0 => {
                self.trips_in_a_row.store(0, Relaxed);
                if let Ended::Failed(why) = ended { why } else { return false }
            }
            Ended::Well => return false,
            Ended::Failed(why) | Ended::Tripped(why) => why,
        };
        self.failures.fetch_add(1, Relaxed);
        self.last.lock().error = Some(((*why).to_owned(), now_ms));
        matches!(ended, Ended::Tripped(_)) && self.trips_in_a_row.fetch_add(1, Relaxed) + 1 >= TRIPS_MAX && self.take_out(why, now_ms)
    }

    /// Takes the plugin out of service. False when it was out already.
    pub(super) fn take_out(&self, why: &str, now_ms: i64) -> bool {
        let mut last = self.last.lock();
        if last.out.is_some() {
            return false;
        }
        last.out = Some((now_ms, why.to_owned()));
        self.out.store(true, Relaxed);
        true
    }

    /// Why the plugin is out of service, if it is.
    pub(super) fn out_of_service(&self) -> Option<String> {
        if !self.out.load(Relaxed) {
            return None;
        }
        self.last.lock().out.as_ref().map(|(_, why)| why.clone())
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

    pub(super) fn numbers(&self) -> Numbers {
        let last = self.last.lock();
        let calls = self.calls.load(Relaxed);
        let state = match &last.out {
            None => PluginState::InService,
            Some((since_ms, why)) => PluginState::OutOfService { since_ms: *since_ms, why: why.clone() },
        };
        Numbers {
            calls,
            failures: self.failures.load(Relaxed),
            mean_us: if calls == 0 { 0.0 } else { self.total_ns.load(Relaxed) as f64 / calls as f64 / 1000.0 },
            max_us: self.max_ns.load(Relaxed) / 1000,
            last_error: last.error.clone(),
            log_lines_dropped: self.log_dropped.load(Relaxed),
            state,
        }
    }
}
