//! The limiters that senders share: of each user and address of a protocol, and of rows without a connection. Limiters whose
//! configuration did not change keep what was spent.

use std::sync::Arc;

use super::{KeyedLimiter, LimitVerdict, Limiter};
use crate::config::plan::{Plan, ProtocolPlan, Rate};
use crate::model::Now;
use crate::model::id::{IdMap, ProtocolId, RowId};

/// Users or addresses a limit remembers at once.
const LIMITED_KEYS_MAX: usize = 100_000;

/// The limiters of one configuration.
#[derive(Default)]
pub struct SharedLimits {
    protocols: IdMap<ProtocolId, ProtocolLimits>,
    rows: IdMap<RowId, (Rate, Arc<Limiter>)>,
}

/// The limiters of one protocol.
pub struct ProtocolLimits {
    /// Messages per user.
    pub user: Option<Arc<KeyedLimiter>>,
    /// Messages per address.
    pub address: Option<Arc<KeyedLimiter>>,
    /// New connections per address.
    pub connect: Option<Arc<KeyedLimiter>>,
}

impl SharedLimits {
    /// The limiters of a plan. `previous`: those of the previous plan.
    pub fn new(plan: &Plan, previous: Option<&Self>, now: Now) -> Self {
        let protocol = |plan: &Arc<ProtocolPlan>| {
            let before = previous.and_then(|previous| previous.protocols.get(plan.id));
            (plan.id, ProtocolLimits::new(plan, before, now))
        };
        let rows = plan.rows_without_connection().filter_map(|row| {
            let rate = *row.limit.as_ref()?;
            let same = previous.and_then(|previous| previous.rows.get(row.id)).filter(|(before, _)| *before == rate);
            Some((row.id, same.cloned().unwrap_or_else(|| (rate, Arc::new(Limiter::new(&rate, now))))))
        });
        Self { protocols: plan.protocols.iter().map(protocol).collect(), rows: rows.collect() }
    }

    /// Those of a protocol.
    pub fn protocol(&self, id: ProtocolId) -> Option<&ProtocolLimits> {
        self.protocols.get(id)
    }

    /// One more message through a row without a connection.
    pub fn row(&self, id: RowId, now: Now) -> LimitVerdict {
        self.rows.get(id).map_or(LimitVerdict::Pass, |(_, limiter)| limiter.check(now))
    }

    /// Forgets the keys that would pass anyway. Called now and then.
    pub fn sweep(&self, now: Now) {
        for limits in self.protocols.values() {
            for limiter in [&limits.user, &limits.address, &limits.connect].into_iter().flatten() {
                limiter.sweep(now);
            }
        }
    }
}

impl ProtocolLimits {
    fn new(plan: &ProtocolPlan, before: Option<&Self>, now: Now) -> Self {
        let keyed = |rate: &Option<Rate>, before: Option<&Option<Arc<KeyedLimiter>>>| {
            let rate = rate.as_ref()?;
            let same = before.and_then(Option::as_ref).filter(|limiter| limiter.rate() == rate);
            Some(same.cloned().unwrap_or_else(|| Arc::new(KeyedLimiter::new(rate, LIMITED_KEYS_MAX, now))))
        };
        let limits = &plan.limits;
        Self {
            user: keyed(&limits.user_rate, before.map(|before| &before.user)),
            address: keyed(&limits.address_rate, before.map(|before| &before.address)),
            connect: keyed(&limits.connect_rate, before.map(|before| &before.connect)),
        }
    }
}
