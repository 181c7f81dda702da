//! Rate limits of connections, rows, users and addresses. Knows neither messages nor connections; time is passed in.

mod clock;
mod keyed;
mod shared;

use std::num::NonZeroU32;
use std::time::Duration;

use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

pub use keyed::KeyedLimiter;
pub use shared::{ProtocolLimits, SharedLimits};

use crate::config::plan::Rate;
use crate::model::Now;
use clock::Fed;

/// How many times its rate a client may try before it counts as flooding.
const FLOOD: u32 = 10;
/// No bucket takes longer to fill than this. Keeps products of times and counts within 64 bits.
const FILL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// What a limiter answers to one more message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitVerdict {
    /// Within the rate.
    Pass,
    /// Over it. Not counted against the sender.
    Over {
        /// After which the next one passes.
        retry_after: Duration,
    },
    /// Ten times over the rate, refused tries included: the sender ignores refusals.
    Flooding,
}

/// One rate of one sender: a bucket that holds `burst` and fills by `count` in `per`. A second one, ten times its size, counts
/// every try.
#[derive(Debug)]
pub struct Limiter {
    rate: Bucket,
    flood: Bucket,
}

type Bucket = RateLimiter<NotKeyed, InMemoryState, Fed>;

impl Limiter {
    /// A limiter whose bucket is full.
    pub fn new(rate: &Rate, now: Now) -> Self {
        clock::at(now, || Self {
            rate: RateLimiter::direct_with_clock(quota(rate, 1), Fed),
            flood: RateLimiter::direct_with_clock(quota(rate, FLOOD), Fed),
        })
    }

    /// One more, now.
    pub fn check(&self, now: Now) -> LimitVerdict {
        clock::at(now, || match (self.flood.check(), self.rate.check()) {
            (Err(_), _) => LimitVerdict::Flooding,
            (Ok(()), Ok(())) => LimitVerdict::Pass,
            (Ok(()), Err(until)) => LimitVerdict::Over { retry_after: until.wait_time_from(now.instant).max(Duration::from_nanos(1)) },
        })
    }
}

/// Nanoseconds in which the bucket of a rate gains one.
fn interval(rate: &Rate, times: u32) -> Duration {
    let count = u128::from(rate.count.get()) * u128::from(times);
    let nanos = (rate.per.min(FILL_MAX).as_nanos() / count).max(1);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn quota(rate: &Rate, times: u32) -> Quota {
    let interval = interval(rate, times);
    let fits = u32::try_from(FILL_MAX.as_nanos() / interval.as_nanos()).unwrap_or(u32::MAX);
    let burst = rate.burst.saturating_mul(NonZeroU32::MIN.saturating_add(times - 1)).min(NonZeroU32::new(fits).unwrap_or(NonZeroU32::MIN));
    // An interval of zero is the only one that is refused, and `interval` gives none.
    Quota::with_period(interval).unwrap_or(Quota::per_second(burst)).allow_burst(burst)
}

/// After this long without a try a bucket is full again, whatever it held.
fn refill(rate: &Rate) -> Duration {
    quota(rate, 1).burst_size_replenished_in().max(quota(rate, FLOOD).burst_size_replenished_in())
}

#[cfg(test)]
mod tests;
