//! What a decision gets besides what it reads: the time, random values and limiters. It reads none of them from the system.

use crate::config::plan::{ProtocolPlan, Rate, Row};
use crate::limits::{LimitVerdict, Limiter, SharedLimits};
use crate::model::Now;
use crate::model::chance::Chance;
use crate::model::id::{ProtocolId, RowId};
use crate::model::view::ConnView;

/// What a decision is given.
pub struct Env<'e> {
    /// The time of the decision.
    pub now: Now,
    /// Where ids and random texts come from.
    pub chance: &'e mut Chance,
    /// Decides whether a limit is exceeded.
    pub limits: &'e mut dyn Limits,
    /// Whether transactions of the connection wait for their commit.
    pub pending: bool,
    /// Whether this only shows what would happen: then nothing that scripts do is counted or logged.
    pub trial: bool,
}

/// Decides whether a limit is exceeded.
pub trait Limits {
    /// Spends one message of this connection.
    fn message(&mut self, protocol: ProtocolId, view: &ConnView, now: Now) -> LimitVerdict;
    /// Spends one message through a row.
    fn row(&mut self, row: &Row, now: Now) -> LimitVerdict;
}

/// The limiters that belong to one connection; only its task spends them.
#[derive(Debug, Default)]
pub struct ClientLimits {
    connection: Option<Limiter>,
    /// Of the rows with a limit that it has used. Few, so they are searched.
    rows: Vec<(RowId, Rate, Limiter)>,
}

impl ClientLimits {
    /// Limiters for a connection of this protocol.
    pub fn new(plan: &ProtocolPlan, now: Now) -> Self {
        Self { connection: plan.limits.rate.as_ref().map(|rate| Limiter::new(rate, now)), rows: Vec::new() }
    }

    /// The protocol has changed. Limiters with the same rate keep what was spent; those of rows are compared at the next
    /// message.
    pub fn update(&mut self, before: &ProtocolPlan, plan: &ProtocolPlan, now: Now) {
        if before.limits.rate != plan.limits.rate {
            self.connection = Self::new(plan, now).connection;
        }
    }

    fn row(&mut self, row: &Row, rate: &Rate, now: Now) -> LimitVerdict {
        let known = self.rows.iter().position(|(id, ..)| *id == row.id);
        let at = known.unwrap_or_else(|| {
            self.rows.push((row.id, *rate, Limiter::new(rate, now)));
            self.rows.len() - 1
        });
        let (_, known, limiter) = &mut self.rows[at];
        if known != rate {
            (*known, *limiter) = (*rate, Limiter::new(rate, now));
        }
        limiter.check(now)
    }
}

/// What one input has spent, so that it is spent once however often the input is decided.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    message: Option<LimitVerdict>,
    row: Option<(RowId, LimitVerdict)>,
}

/// The limiters in service.
pub struct Spending<'l> {
    /// Those that senders share.
    pub shared: &'l SharedLimits,
    /// Those of the connection. `None` if there is no connection; then a row has one limiter for all.
    pub client: Option<&'l mut ClientLimits>,
    /// What the input has spent already.
    pub spent: &'l mut Spent,
}

impl Limits for Spending<'_> {
    fn message(&mut self, protocol: ProtocolId, view: &ConnView, now: Now) -> LimitVerdict {
        if let Some(known) = self.spent.message {
            return known;
        }
        let own = self.client.as_ref().and_then(|client| client.connection.as_ref()).map(|limiter| limiter.check(now));
        let shared = self.shared.protocol(protocol);
        let user = shared.and_then(|shared| shared.user.as_ref()).zip(view.user.as_ref()).map(|(limiter, user)| limiter.check(user, now));
        let address = shared.and_then(|shared| shared.address.as_ref()).map(|limiter| limiter.check(&view.ip, now));
        let verdict = [own, user, address].into_iter().flatten().find(|verdict| *verdict != LimitVerdict::Pass);
        *self.spent.message.insert(verdict.unwrap_or(LimitVerdict::Pass))
    }

    fn row(&mut self, row: &Row, now: Now) -> LimitVerdict {
        let Some(rate) = &row.limit else { return LimitVerdict::Pass };
        if let Some((_, known)) = self.spent.row.filter(|(id, _)| *id == row.id) {
            return known;
        }
        let verdict = match &mut self.client {
            Some(client) => client.row(row, rate, now),
            None => self.shared.row(row.id, now),
        };
        self.spent.row = Some((row.id, verdict));
        verdict
    }
}
