//! The few deadlines one connection has, and which of them is next.

use tokio::time::Instant;

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// Send a ping.
    Ping,
    /// The answer to the last ping is overdue.
    PongDue,
    /// A row of `every:`.
    Every(usize),
    /// The client was silent for long.
    Idle,
    /// It stayed silent after that.
    Grace,
    /// The token runs out.
    Expiry,
    /// The close handshake took too long.
    CloseDue,
}

/// At most one deadline of each kind.
#[derive(Debug, Default)]
pub(super) struct Timers(Vec<(Timer, Instant)>);

impl Timers {
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.clear(timer);
        // Most connections have one or two, and there are many connections.
        self.0.reserve_exact(1);
        self.0.push((timer, at));
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        self.0.retain(|(t, _)| *t != timer);
    }

    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.0.iter().any(|(t, _)| *t == timer)
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().map(|(_, at)| *at).min()
    }

    /// Takes a deadline that has passed, the earliest first.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Timer> {
        let (index, _) = self.0.iter().enumerate().filter(|(_, (_, at))| *at <= now).min_by_key(|(_, (_, at))| *at)?;
        Some(self.0.swap_remove(index).0)
    }
}
