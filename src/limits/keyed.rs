//! One rate for many senders, distinguished by a text: users, addresses.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{LimitVerdict, Limiter, refill};
use crate::config::plan::Rate;
use crate::model::Now;

/// Locks the keys are spread over. A power of two.
const SHARDS: usize = 16;

/// A limiter per key, for a bounded number of keys. When that many are known, all new ones share a single limiter until
/// [`KeyedLimiter::sweep`] has made room: known senders are not disturbed, memory stays bounded, and a flood of made-up keys
/// gets what one key gets.
pub struct KeyedLimiter {
    rate: Rate,
    keys_max: usize,
    keys: AtomicUsize,
    strangers: Limiter,
    /// Chooses the shard, and nothing else: within it, keys are hashed so that no client can make them collide.
    hasher: foldhash::fast::RandomState,
    /// Each held for one look-up and one decision.
    shards: [Mutex<HashMap<Box<str>, Entry>>; SHARDS],
    refill: Duration,
}

struct Entry {
    limiter: Limiter,
    last: Instant,
}

impl KeyedLimiter {
    /// A limiter for at most `keys_max` keys.
    pub fn new(rate: &Rate, keys_max: usize, now: Now) -> Self {
        Self {
            rate: *rate,
            keys_max,
            keys: AtomicUsize::new(0),
            strangers: Limiter::new(rate, now),
            hasher: foldhash::fast::RandomState::default(),
            shards: std::array::from_fn(|_| Mutex::default()),
            refill: refill(rate),
        }
    }

    /// Its rate.
    pub fn rate(&self) -> &Rate {
        &self.rate
    }

    /// One more from this sender, now.
    pub fn check(&self, key: &str, now: Now) -> LimitVerdict {
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        let mut known = self.shards[shard].lock();
        if let Some(entry) = known.get_mut(key) {
            entry.last = entry.last.max(now.instant);
            return entry.limiter.check(now);
        }
        if self.keys.fetch_add(1, Ordering::Relaxed) >= self.keys_max {
            self.keys.fetch_sub(1, Ordering::Relaxed);
            return self.strangers.check(now);
        }
        let limiter = Limiter::new(&self.rate, now);
        let verdict = limiter.check(now);
        known.insert(key.into(), Entry { limiter, last: now.instant });
        verdict
    }

    /// Forgets every key whose limiter would answer as a new one does. Call it now and then.
    pub fn sweep(&self, now: Now) {
        for shard in &self.shards {
            let mut known = shard.lock();
            let before = known.len();
            known.retain(|_, entry| now.instant.saturating_duration_since(entry.last) < self.refill);
            self.keys.fetch_sub(before - known.len(), Ordering::Relaxed);
            if known.capacity() > 4 * known.len() + 64 {
                known.shrink_to_fit();
            }
        }
    }

    /// How many keys are known.
    pub fn len(&self) -> usize {
        self.keys.load(Ordering::Relaxed)
    }

    /// Whether no key is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
