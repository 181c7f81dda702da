//! The clock that `governor` reads: it shows the time that the current decision has set.

use std::cell::Cell;
use std::time::Instant;

use governor::clock::Clock;

use crate::model::Now;

thread_local! {
    /// Only while [`at`] runs; decisions never await, so a thread decides one at a time.
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A clock of size zero that shows the time given to [`at`].
#[derive(Debug, Clone)]
pub(super) struct Fed;

impl Clock for Fed {
    type Instant = Instant;

    fn now(&self) -> Instant {
        NOW.get().unwrap_or_else(Instant::now)
    }
}

/// Runs a decision at a time.
pub(super) fn at<T>(now: Now, decide: impl FnOnce() -> T) -> T {
    NOW.set(Some(now.instant));
    let decided = decide();
    NOW.set(None);
    decided
}
