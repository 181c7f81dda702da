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

/// Every number by itself, because most operations look at two of them.
struct Budget {
    /// Operations until the next look at everything, that one included. 0: no call runs.
    left: Cell<u32>,
    /// Live bytes of the thread above which every operation looks at everything.
    calm_bytes: Cell<isize>,
    /// Operations up to the last look …
    operations: Cell<u32>,
    /// … and how many were given until the next.
    given: Cell<u32>,
    until: Cell<Option<Instant>>,
    /// Whether the time was given a second time already.
    extended: Cell<bool>,
    bytes_before: Cell<isize>,
    /// Bytes that were taken meanwhile and are not the script's: caches of the host.
    excused: Cell<isize>,
    /// Time host functions may still take without it counting.
    host_left: Cell<Duration>,
    trip: Cell<Option<Trip>>,
}

thread_local! {
    static BUDGET: Budget = const {
        Budget {
            left: Cell::new(0),
            calm_bytes: Cell::new(0),
            operations: Cell::new(0),
            given: Cell::new(0),
            until: Cell::new(None),
            extended: Cell::new(false),
            bytes_before: Cell::new(0),
            excused: Cell::new(0),
            host_left: Cell::new(HOST_TIME_MAX),
            trip: Cell::new(None),
        }
    };
}

/// Holds while a call runs. Dropping it, on whatever path, ends the budget.
pub(super) struct Running(());

/// Begins a budget. `None` when a call already runs on this thread: scripts are not called from within scripts.
pub(super) fn begin() -> Option<Running> {
    begin_at(Instant::now())
}

fn begin_at(now: Instant) -> Option<Running> {
    BUDGET.with(|budget| {
        if budget.is_running() {
            return None;
        }
        let bytes = thread_live_bytes();
        budget.bytes_before.set(bytes);
        budget.calm_bytes.set(bytes + CLOCK_ALWAYS_BYTES);
        budget.operations.set(0);
        budget.give(CLOCK_EVERY);
        budget.until.set(Some(now + TIME_MAX));
        budget.extended.set(false);
        budget.excused.set(0);
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
        BUDGET.with(|budget| budget.left.set(0));
    }
}

impl Budget {
    fn is_running(&self) -> bool {
        self.left.get() > 0
    }

    fn held(&self) -> isize {
        thread_live_bytes() - self.bytes_before.get()
    }

    /// So many operations until the next look.
    fn give(&self, operations: u32) {
        self.given.set(operations);
        self.left.set(operations);
    }

    /// The next operation looks.
    fn look_soon(&self) {
        if self.is_running() {
            self.given.set(self.given.get() - (self.left.get() - 1));
            self.left.set(1);
        }
    }

    /// A look at everything, at one operation.
    #[cold]
    #[inline(never)]
    fn look(&self) -> Option<Dynamic> {
        if !self.is_running() {
            return None;
        }
        let operations = self.operations.get() + (self.given.get() - self.left.get()) + 1;
        self.operations.set(operations);
        self.give(CLOCK_EVERY.min((OPERATIONS_MAX + 1).saturating_sub(operations)).max(1));
        let late = self.is_late();
        if self.held() > MEMORY_BYTES_MAX {
            self.trip.set(Some(Trip::Memory));
        } else if operations > OPERATIONS_MAX {
            self.trip.set(Some(Trip::Operations));
        } else if late {
            self.trip.set(Some(Trip::Time));
        }
        self.trip.get().map(|_| {
            // From now on every operation says so.
            self.look_soon();
            Dynamic::UNIT
        })
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
        let left = budget.left.get();
        if left > 1 && thread_live_bytes() <= budget.calm_bytes.get() {
            budget.left.set(left - 1);
            return None;
        }
        budget.look()
    })
}

/// Bytes the running call may still take: for host functions that build large values in one go.
pub(super) fn bytes_left() -> usize {
    let held = BUDGET.with(|budget| if budget.is_running() { budget.held() } else { 0 });
    usize::try_from(MEMORY_BYTES_MAX - held).unwrap_or(0)
}

/// The clock is read at the next operation: for host functions that may take long.
pub(super) fn look_soon() {
    BUDGET.with(Budget::look_soon);
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
        budget.look_soon();
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
    fn operations_are_counted_whatever_is_looked_at_in_between() {
        for look_every in [u32::MAX, 1, 7, CLOCK_EVERY, CLOCK_EVERY + 1] {
            let running = begin_at(Instant::now() + HOST_TIME_MAX * 100).unwrap();
            for n in 1..=OPERATIONS_MAX {
                assert!(spend().is_none(), "{n}");
                if n % look_every == 0 {
                    look_soon();
                }
            }
            assert!(spend().is_some() && spend().is_some(), "it stays so");
            assert_eq!(running.trip(), Some(Trip::Operations));
        }
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
