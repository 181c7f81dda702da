//! The remaining budget of the call on this thread: operations, CPU time, memory. The engine checks it at every operation.
//!
//! The engine counts operations too, but on a copy inside call-backs of `map`, `sort` and the like, where the count is then lost.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rhai::Dynamic;
use rustix::time::{ClockId, clock_gettime};

use super::engine::{CLOCK_ALWAYS_BYTES, CLOCK_EVERY, HOST_TIME_MAX, MEMORY_BYTES_MAX, OPERATIONS_MAX, TIME_MAX, WALL_TIME_MAX};
use crate::telemetry::memory::thread_live_bytes;

/// The thread's CPU time is read for a call when it was not within this time before: the reading is a system call. A call may
/// take longer by as much.
const READING_AGE_MAX: Duration = Duration::from_millis(1);

/// Which bound was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trip {
    Operations,
    Time,
    WallTime,
    Memory,
}

impl Trip {
    pub(super) fn why(self) -> String {
        match self {
            Trip::Operations => format!("more than {OPERATIONS_MAX} operations"),
            Trip::Time => format!("took more than {} ms of CPU time", TIME_MAX.as_millis()),
            Trip::WallTime => format!("took longer than {} s", WALL_TIME_MAX.as_secs()),
            Trip::Memory => format!("held more than {} MiB", MEMORY_BYTES_MAX >> 20),
        }
    }
}

/// Each number has its own cell, because most operations read only two of them.
struct Budget {
    /// Operations until the next full check, including that one. 0: no call runs.
    left: Cell<u32>,
    /// Live bytes of the thread above which every operation does a full check.
    calm_bytes: Cell<isize>,
    /// Operations up to the last look …
    operations: Cell<u32>,
    /// … and how many were given until the next.
    given: Cell<u32>,
    clock: Clock,
    bytes_before: Cell<isize>,
    /// Bytes allocated meanwhile that do not count as the script's: caches of the host.
    excused: Cell<isize>,
    trip: Cell<Option<Trip>>,
}

/// How long a call takes. CPU time runs no faster than the wall clock, which costs little to read: as long as the wall clock has
/// not moved by what is left, there is nothing else to look at.
struct Clock {
    /// When the call began. None: its clock is stopped.
    began: Cell<Option<Instant>>,
    /// The thread's CPU time then, at least that.
    cpu_began: Cell<Duration>,
    /// The CPU time it may take, including host time that does not count.
    cpu_max: Cell<Duration>,
    /// Before this no CPU time can be over.
    calm_until: Cell<Option<Instant>>,
    /// Time host functions may still take without it counting.
    host_left: Cell<Duration>,
    /// The thread's CPU time, and when that was read.
    reading: Cell<Option<(Instant, Duration)>>,
}

thread_local! {
    static BUDGET: Budget = const {
        Budget {
            left: Cell::new(0),
            calm_bytes: Cell::new(0),
            operations: Cell::new(0),
            given: Cell::new(0),
            clock: Clock {
                began: Cell::new(None),
                cpu_began: Cell::new(Duration::ZERO),
                cpu_max: Cell::new(TIME_MAX),
                calm_until: Cell::new(None),
                host_left: Cell::new(HOST_TIME_MAX),
                reading: Cell::new(None),
            },
            bytes_before: Cell::new(0),
            excused: Cell::new(0),
            trip: Cell::new(None),
        }
    };
}

/// The CPU time of this thread.
pub(super) fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

impl Clock {
    fn start(&self, now: Instant) {
        let age = |(at, _): &(Instant, Duration)| now.checked_duration_since(*at);
        let (at, cpu) = self.reading.get().filter(|reading| age(reading).is_some_and(|age| age < READING_AGE_MAX)).unwrap_or_else(|| {
            let reading = (now, cpu_time());
            self.reading.set(Some(reading));
            reading
        });
        self.began.set(Some(now));
        self.cpu_began.set(cpu + (now - at));
        self.cpu_max.set(TIME_MAX);
        self.calm_until.set(Some(now + TIME_MAX));
        self.host_left.set(HOST_TIME_MAX);
    }

    /// Which time is over, if one is.
    fn is_over(&self) -> Option<Trip> {
        let (began, calm_until) = self.began.get().zip(self.calm_until.get())?;
        let now = Instant::now();
        if now <= calm_until {
            return None;
        }
        let used = cpu_time().saturating_sub(self.cpu_began.get());
        let Some(left) = self.cpu_max.get().checked_sub(used) else { return Some(Trip::Time) };
        self.calm_until.set(Some(now + left));
        (now.saturating_duration_since(began) > WALL_TIME_MAX).then_some(Trip::WallTime)
    }

    fn excuse(&self, took: Duration) {
        let free = took.min(self.host_left.get());
        self.host_left.set(self.host_left.get() - free);
        self.cpu_max.set(self.cpu_max.get() + free);
        self.calm_until.set(self.calm_until.get().map(|until| until + free));
    }
}

/// Holds while a call runs. Dropping it, on whatever path, ends the budget.
pub(super) struct Running(());

/// Begins a budget, whose time does not run yet. `None` when a call already runs on this thread: scripts are not called from
/// within scripts.
pub(super) fn begin() -> Option<Running> {
    BUDGET.with(|budget| {
        if budget.is_running() {
            return None;
        }
        let bytes = thread_live_bytes();
        budget.bytes_before.set(bytes);
        budget.calm_bytes.set(bytes + CLOCK_ALWAYS_BYTES);
        budget.operations.set(0);
        budget.give(CLOCK_EVERY);
        budget.clock.began.set(None);
        budget.excused.set(0);
        budget.trip.set(None);
        Some(Running(()))
    })
}

impl Running {
    /// From now on the time runs.
    pub(super) fn start_clock(&self) {
        BUDGET.with(|budget| budget.clock.start(Instant::now()));
    }

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
        if self.held() > MEMORY_BYTES_MAX {
            self.trip.set(Some(Trip::Memory));
        } else if operations > OPERATIONS_MAX {
            self.trip.set(Some(Trip::Operations));
        } else if let Some(trip) = self.clock.is_over() {
            self.trip.set(Some(trip));
        }
        self.trip.get().map(|_| {
            // From now on every operation reports it.
            self.look_soon();
            Dynamic::UNIT
        })
    }
}

/// Counts one operation. A returned reason ends the script.
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

/// Runs host code for a script. Its time does not count, up to a bound of its own: the length of a list of connections is not
/// the script's doing, how often it asks is.
pub(super) fn host_work<T>(work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    let took = began.elapsed();
    BUDGET.with(|budget| {
        budget.clock.excuse(took);
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

    fn running() -> Running {
        let running = begin().unwrap();
        running.start_clock();
        running
    }

    fn compute(time: Duration) {
        let until = cpu_time() + time;
        while cpu_time() < until {
            std::hint::spin_loop();
        }
    }

    fn look() -> bool {
        look_soon();
        spend().is_some()
    }

    #[test]
    fn memory_is_looked_at_at_every_operation() {
        let running = running();
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
            // Without a clock.
            let running = begin().unwrap();
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
    fn waiting_costs_nothing_and_computing_does() {
        let running = running();
        for _ in 0..3 {
            std::thread::sleep(TIME_MAX);
            assert!(!look());
        }
        compute(TIME_MAX / 2);
        assert!(!look());
        std::thread::sleep(TIME_MAX);
        assert!(!look(), "half of the time is left");
        compute(TIME_MAX / 2 + READING_AGE_MAX * 2);
        assert!(look());
        assert_eq!(running.trip(), Some(Trip::Time));
    }

    #[test]
    fn what_a_thread_did_before_does_not_count() {
        drop(running());
        compute(TIME_MAX);
        let running = running();
        compute(TIME_MAX / 2);
        std::thread::sleep(TIME_MAX);
        assert!(!look());
        assert_eq!(running.trip(), None);
    }

    #[test]
    fn waiting_has_an_end_too() {
        let running = begin().unwrap();
        let before = Instant::now().checked_sub(WALL_TIME_MAX + TIME_MAX).unwrap();
        BUDGET.with(|budget| {
            budget.clock.start(Instant::now());
            budget.clock.began.set(Some(before));
            budget.clock.calm_until.set(Some(before));
        });
        assert!(look());
        assert_eq!(running.trip(), Some(Trip::WallTime));
    }

    #[test]
    fn the_hosts_time_does_not_count_but_is_bounded() {
        let running = running();
        host_work(|| compute(TIME_MAX * 2));
        assert!(spend().is_none());
        host_work(|| compute(HOST_TIME_MAX));
        assert!(spend().is_some());
        assert_eq!(running.trip(), Some(Trip::Time));
    }
}
