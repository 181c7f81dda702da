//! Whether a function is in service. It goes out of service when calls by different senders exceed its budget, or when its calls
//! leak memory. It comes back by itself: after a pause one call is tried.
//!
//! A single sender cannot take a function out of service: it is refused itself, see [`super::senders`].

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::engine::{PAUSE_MAX, PAUSE_MIN, TRIPPING_SENDERS_MIN, TRIPS_MAX};
use crate::model::{Now, PluginName};

/// Whether one function is called.
pub(super) struct Service {
    plugin: PluginName,
    function: Arc<str>,
    /// Expressions of the routes file stay in service however often they exceed budgets: their rows cannot work without them.
    stays: bool,
    /// Looked at by every call; the rest only by those that need it.
    is_out: AtomicBool,
    trips_in_a_row: AtomicU32,
    /// Protects the rest. Never held while something is logged.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Who caused the last trips.
    senders: VecDeque<Box<str>>,
    out: Option<Out>,
}

struct Out {
    since_ms: i64,
    why: String,
    pause: Duration,
    /// When the next call is tried.
    again: Instant,
    /// Whether one is being tried.
    is_tried: bool,
    refused: u64,
}

impl Service {
    pub(super) fn of_function(plugin: &PluginName, function: &Arc<str>) -> Arc<Self> {
        Arc::new(Self::new(plugin, function, false))
    }

    pub(super) fn of_expression(plugin: &PluginName, function: &Arc<str>) -> Arc<Self> {
        Arc::new(Self::new(plugin, function, true))
    }

    fn new(plugin: &PluginName, function: &Arc<str>, stays: bool) -> Self {
        let (is_out, trips_in_a_row, state) = Default::default();
        Self { plugin: plugin.clone(), function: function.clone(), stays, is_out, trips_in_a_row, state }
    }

    /// Whether a call may begin. `only_looks`: it must not be used as a trial. The error says why not.
    pub(super) fn admit(&self, now: Now, only_looks: bool) -> Result<(), String> {
        if !self.is_out.load(Relaxed) {
            return Ok(());
        }
        {
            let mut state = self.state.lock();
            let Some(out) = &mut state.out else { return Ok(()) };
            if only_looks || now.instant < out.again {
                out.refused += u64::from(!only_looks);
                return Err(format!("`{}` of plugin `{}` is out of service: {}", self.function, self.plugin, out.why));
            }
            // If the result of this trial is never reported, another is tried after the same pause.
            out.again = now.instant + out.pause;
            out.is_tried = true;
        }
        tracing::info!(plugin = &*self.plugin, function = &*self.function, "a function that is out of service is tried with one call");
        Ok(())
    }

    /// A call stayed within its budget.
    pub(super) fn ended_well(&self, now: Now) {
        if self.trips_in_a_row.load(Relaxed) > 0 {
            self.trips_in_a_row.store(0, Relaxed);
        }
        if !self.is_out.load(Relaxed) {
            return;
        }
        let back = {
            let mut state = self.state.lock();
            let back = state.out.take_if(|out| out.is_tried);
            if back.is_some() {
                state.senders.clear();
                self.is_out.store(false, Relaxed);
            }
            back
        };
        if let Some(Out { since_ms, refused, .. }) = back {
            let after_ms = now.wall_ms.saturating_sub(since_ms);
            tracing::info!(plugin = &*self.plugin, function = &*self.function, after_ms, refused, "function back in service");
        }
    }

    /// A call went over its budget.
    pub(super) fn tripped(&self, sender: &str, why: &str, now: Now) {
        if self.stays {
            return;
        }
        let trips = self.trips_in_a_row.fetch_add(1, Relaxed) + 1;
        let senders: usize = {
            let mut state = self.state.lock();
            if state.senders.len() >= TRIPS_MAX as usize {
                state.senders.pop_front();
            }
            state.senders.push_back(sender.into());
            state.senders.iter().collect::<BTreeSet<_>>().len()
        };
        if self.is_out.load(Relaxed) || trips >= TRIPS_MAX && senders >= TRIPPING_SENDERS_MIN {
            self.take_out(why, now);
        }
    }

    /// Its calls leave memory behind.
    pub(super) fn leaked(&self, why: &str, now: Now) {
        self.take_out(why, now);
    }

    fn take_out(&self, why: &str, now: Now) {
        let (pause, refused) = {
            let mut state = self.state.lock();
            let (since_ms, pause, refused) = match &state.out {
                None => (now.wall_ms, PAUSE_MIN, 0),
                Some(out) if out.is_tried => (out.since_ms, (out.pause * 2).min(PAUSE_MAX), out.refused),
                // It began before the function was taken out.
                Some(_) => return,
            };
            let again = now.instant + pause;
            state.out = Some(Out { since_ms, why: why.to_owned(), pause, again, is_tried: false, refused });
            self.is_out.store(true, Relaxed);
            (pause, refused)
        };
        let pause_s = pause.as_secs();
        tracing::warn!(plugin = &*self.plugin, function = &*self.function, why, pause_s, refused, "function out of service");
    }

    /// Since when it is out of service and why, if it is.
    pub(super) fn out(&self) -> Option<(i64, String)> {
        self.state.lock().out.as_ref().map(|out| (out.since_ms, out.why.clone()))
    }
}
