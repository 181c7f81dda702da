//! What one call may still spend, on this thread: operations, wall time, memory. Asked by the engine at every operation.
//!
//! The engine counts operations too, but on a copy inside call-backs of `map`, `sort` and the like, where the count is then lost.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rhai::Dynamic;

use super::engine::{CLOCK_ALWAYS_BYTES, CLOCK_EVERY, HOST_TIME_MAX, MEMORY_BYTES_MAX, OPERATIONS_MAX, TIME_MAX};
use crate::telemetry::memory::thread_live_bytes;

/// Which bound was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trip {
    Operations,
    Time,
    Memory,
}

impl Trip {
    pub(super) fn why(self) -> String {
        match self {
            Trip::Operations => format!("more than {OPERATIONS_MAX} operations"),
            Trip::Time => format!("took longer than {} ms", TIME_MAX.as_millis()),
            Trip::Memory => format!("held more than {} MiB", MEMORY_BYTES_MAX >> 20),
        }
    }
}

#[derive(Clone, Copy)]
struct Budget {
    operations: u32,
    until: Instant,
    /// Whether the time was given a second time already.
    extended: bool,
    bytes_before: isize,
    /// Bytes that were taken meanwhile and are not the script's: caches of the host.
    excused: isize,
    look_soon: bool,
    /// Time host functions may still take without it counting.
    host_left: Duration,
    trip: Option<Trip>,
}

thread_local! {
    static BUDGET: Cell<Option<Budget>> = const { Cell::new(None) };
}

/// Holds while a call runs. Dropping it, on whatever path, ends the budget.
pub(super) struct Running(());

/// Begins a budget. `None` when a call already runs on this thread: scripts are not called from within scripts.
pub(super) fn begin() -> Option<Running> {
    if BUDGET.get().is_some() {
        return None;
    }
    let until = Instant::now() + TIME_MAX;
    BUDGET.set(Some(Budget {
        operations: 0,
        until,
        extended: false,
        bytes_before: thread_live_bytes(),
        excused: 0,
        look_soon: false,
        host_left: HOST_TIME_MAX,
        trip: None,
    }));
    Some(Running(()))
}

impl Running {
    /// The bound that was hit, if one was.
    pub(super) fn trip(&self) -> Option<Trip> {
        BUDGET.get().and_then(|budget| budget.trip)
    }

    /// Bytes held now that were not held when the call began.
    pub(super) fn held(&self) -> isize {
        BUDGET.get().map_or(0, |budget| thread_live_bytes() - budget.bytes_before - budget.excused)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        BUDGET.set(None);
    }
}

/// One operation. Something to say ends the script.
pub(super) fn spend() -> Option<Dynamic> {
    let mut budget = BUDGET.get()?;
    budget.operations += 1;
    let held = thread_live_bytes() - budget.bytes_before;
    let look = budget.look_soon || held > CLOCK_ALWAYS_BYTES || budget.operations % CLOCK_EVERY == 0;
    budget.look_soon = false;
    let mut late = false;
    if look {
        let now = Instant::now();
        late = now > budget.until;
        // The clock also runs while the machine does something else. The time is given once more, so that a script that was
        // only kept waiting comes to its end.
        if late && !budget.extended {
            budget.until = now + TIME_MAX;
            budget.extended = true;
            late = false;
        }
    }
    budget.trip = if held > MEMORY_BYTES_MAX {
        Some(Trip::Memory)
    } else if budget.operations > OPERATIONS_MAX {
        Some(Trip::Operations)
    } else if late {
        Some(Trip::Time)
    } else {
        budget.trip
    };
    BUDGET.set(Some(budget));
    budget.trip.map(|_| Dynamic::UNIT)
}

/// Bytes the running call may still take: for host functions that build large values in one go.
pub(super) fn bytes_left() -> usize {
    let held = BUDGET.get().map_or(0, |budget| thread_live_bytes() - budget.bytes_before);
    usize::try_from(MEMORY_BYTES_MAX - held).unwrap_or(0)
}

/// The clock is read at the next operation: for host functions that may take long.
pub(super) fn look_soon() {
    change(|budget| budget.look_soon = true);
}

/// Runs what the host does for a script. Its time does not count, up to a bound of its own: how long a list of connections is, is not
/// the script's doing, how often it asks is.
pub(super) fn host_work<T>(work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    let took = began.elapsed();
    change(|budget| {
        let free = took.min(budget.host_left);
        budget.host_left -= free;
        budget.until += free;
        budget.look_soon = true;
    });
    done
}

/// Bytes that a host function keeps for later calls.
pub(super) fn excuse(bytes: isize) {
    change(|budget| budget.excused += bytes);
}

fn change(f: impl FnOnce(&mut Budget)) {
    if let Some(mut budget) = BUDGET.get() {
        f(&mut budget);
        BUDGET.set(Some(budget));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_looked_at_at_every_operation() {
        let running = begin().unwrap();
        assert!(begin().is_none());
        let held: Vec<u8> = Vec::with_capacity(MEMORY_BYTES_MAX.cast_unsigned() - 1000);
        assert!(spend().is_none());
        let more: Vec<u8> = Vec::with_capacity(2000);
        assert!(spend().is_some());
        assert_eq!(running.trip(), Some(Trip::Memory));
        drop((held, more, running));
        // Outside of a call nothing is counted.
        assert!(spend().is_none() && begin().is_some());
    }

    #[test]
    fn the_hosts_time_does_not_count_but_is_bounded() {
        let running = begin().unwrap();
        host_work(|| std::thread::sleep(TIME_MAX * 2));
        assert!(spend().is_none());
        host_work(|| std::thread::sleep(HOST_TIME_MAX + TIME_MAX));
        assert!(spend().is_none(), "once, the machine may have been busy");
        std::thread::sleep(TIME_MAX * 2);
        look_soon();
        assert!(spend().is_some());
        assert_eq!(running.trip(), Some(Trip::Time));
    }
}
