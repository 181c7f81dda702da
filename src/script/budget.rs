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

/// Every number by itself, because most operations look at three of them.
struct Budget {
    /// Whether a call runs.
    running: Cell<bool>,
    operations: Cell<u32>,
    until: Cell<Option<Instant>>,
    /// Whether the time was given a second time already.
    extended: Cell<bool>,
    bytes_before: Cell<isize>,
    /// Bytes that were taken meanwhile and are not the script's: caches of the host.
    excused: Cell<isize>,
    look_soon: Cell<bool>,
    /// Time host functions may still take without it counting.
    host_left: Cell<Duration>,
    trip: Cell<Option<Trip>>,
}

thread_local! {
    static BUDGET: Budget = const {
        Budget {
            running: Cell::new(false),
            operations: Cell::new(0),
            until: Cell::new(None),
            extended: Cell::new(false),
            bytes_before: Cell::new(0),
            excused: Cell::new(0),
            look_soon: Cell::new(false),
            host_left: Cell::new(HOST_TIME_MAX),
            trip: Cell::new(None),
        }
    };
}

/// Holds while a call runs. Dropping it, on whatever path, ends the budget.
pub(super) struct Running(());

/// Begins a budget. `None` when a call already runs on this thread: scripts are not called from within scripts.
pub(super) fn begin() -> Option<Running> {
    BUDGET.with(|budget| {
        if budget.running.replace(true) {
            return None;
        }
        budget.operations.set(0);
        budget.until.set(Some(Instant::now() + TIME_MAX));
        budget.extended.set(false);
        budget.bytes_before.set(thread_live_bytes());
        budget.excused.set(0);
        budget.look_soon.set(false);
        budget.host_left.set(HOST_TIME_MAX);
        budget.trip.set(None);
        Some(Running(()))
    })
}

impl Running {
    /// The bound that was hit, if one was.
    pub(super) fn trip(&self) -> Option<Trip> {
        BUDGET.with(|budget| budget.trip.get())
    }

    /// Bytes held now that were not held when the call began.
    pub(super) fn held(&self) -> isize {
        BUDGET.with(|budget| budget.held() - budget.excused.get())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        BUDGET.with(|budget| budget.running.set(false));
    }
}

impl Budget {
    fn held(&self) -> isize {
        thread_live_bytes() - self.bytes_before.get()
    }

    /// Whether the time is over.
    fn is_late(&self) -> bool {
        let now = Instant::now();
        let late = self.until.get().is_some_and(|until| now > until);
        // The clock also runs while the machine does something else. The time is given once more, so that a script that was
        // only kept waiting comes to its end.
        if late && !self.extended.replace(true) {
            self.until.set(Some(now + TIME_MAX));
            return false;
        }
        late
    }
}

/// One operation. Something to say ends the script.
pub(super) fn spend() -> Option<Dynamic> {
    BUDGET.with(|budget| {
        if !budget.running.get() {
            return None;
        }
        let (operations, held) = (budget.operations.get() + 1, budget.held());
        budget.operations.set(operations);
        let look = budget.look_soon.replace(false) || held > CLOCK_ALWAYS_BYTES || operations.is_multiple_of(CLOCK_EVERY);
        let late = look && budget.is_late();
        if held > MEMORY_BYTES_MAX {
            budget.trip.set(Some(Trip::Memory));
        } else if operations > OPERATIONS_MAX {
            budget.trip.set(Some(Trip::Operations));
        } else if late {
            budget.trip.set(Some(Trip::Time));
        }
        budget.trip.get().map(|_| Dynamic::UNIT)
    })
}

/// Bytes the running call may still take: for host functions that build large values in one go.
pub(super) fn bytes_left() -> usize {
    let held = BUDGET.with(|budget| if budget.running.get() { budget.held() } else { 0 });
    usize::try_from(MEMORY_BYTES_MAX - held).unwrap_or(0)
}

/// The clock is read at the next operation: for host functions that may take long.
pub(super) fn look_soon() {
    BUDGET.with(|budget| budget.look_soon.set(true));
}

/// Runs what the host does for a script. Its time does not count, up to a bound of its own: how long a list of connections is, is not
/// the script's doing, how often it asks is.
pub(super) fn host_work<T>(work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    let took = began.elapsed();
    BUDGET.with(|budget| {
        let free = took.min(budget.host_left.get());
        budget.host_left.set(budget.host_left.get() - free);
        budget.until.set(budget.until.get().map(|until| until + free));
        budget.look_soon.set(true);
    });
    done
}

/// Bytes that a host function keeps for later calls.
pub(super) fn excuse(bytes: isize) {
    BUDGET.with(|budget| budget.excused.set(budget.excused.get() + bytes));
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
