//! The few deadlines one connection has, and which of them is next.

use tokio::time::Instant;

use crate::config::plan::ProtocolPlan;
use crate::model::id::RowId;

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// Send a ping.
    Ping,
    /// The answer to the last ping is overdue.
    PongDue,
    /// A row of `every:`.
    Every(RowId),
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
    /// Sets all that a protocol asks for.
    pub(super) fn begin(&mut self, plan: &ProtocolPlan, now: Instant) {
        if let Some(heartbeat) = &plan.heartbeat {
            self.set(Timer::Ping, now + heartbeat.every);
        }
        if let Some(idle) = &plan.idle {
            self.set(Timer::Idle, now + idle.after);
        }
        for (period, row) in &plan.every {
            self.set(Timer::Every(row.id), now + *period);
        }
    }

    /// The protocol has changed: timers with the same period continue, others begin again or end.
    pub(super) fn update(&mut self, before: &ProtocolPlan, plan: &ProtocolPlan, now: Instant) {
        if before.heartbeat != plan.heartbeat {
            self.clear(Timer::Ping);
            if plan.heartbeat.is_none() {
                self.clear(Timer::PongDue);
            }
            self.0.extend(plan.heartbeat.as_ref().map(|heartbeat| (Timer::Ping, now + heartbeat.every)));
        }
        let after = |plan: &ProtocolPlan| plan.idle.as_ref().map(|idle| (idle.after, idle.grace));
        if after(before) != after(plan) {
            self.clear(Timer::Idle);
            self.clear(Timer::Grace);
            self.0.extend(plan.idle.as_ref().map(|idle| (Timer::Idle, now + idle.after)));
        }
        let is_kept = |row: RowId| {
            let period = |plan: &ProtocolPlan| plan.every.iter().find(|(_, every)| every.id == row).map(|(period, _)| *period);
            period(before).is_some() && period(before) == period(plan)
        };
        self.0.retain(|(timer, _)| !matches!(timer, Timer::Every(row) if !is_kept(*row)));
        for (period, row) in &plan.every {
            if !is_kept(row.id) {
                self.set(Timer::Every(row.id), now + *period);
            }
        }
    }

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
