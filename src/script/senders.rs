//! Senders whose script calls exceed their budgets: what each spent lately, and when it may be served again.
//!
//! A call counts against its connection and the connection's user; without a connection it counts against its source.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::engine::{SENDER_REFUSED_MAX, SENDER_TRIP_EVERY, SENDER_TRIPS_MAX, SENDERS_MAX};
use crate::model::{ConnView, Now, Origin};

/// Locks the senders are spread over.
const SHARDS: usize = 16;
/// The time in which one refused message is forgotten.
const REFUSED_EVERY: Duration = SENDER_TRIP_EVERY.checked_div(10).expect("ten is not zero");

/// Who caused a call.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    client: Option<&'a str>,
    user: Option<&'a str>,
    source: &'a str,
    /// Empty where it is not known.
    address: &'a str,
}

impl<'a> Sender<'a> {
    /// Of a message.
    pub fn of_connection(view: &'a ConnView) -> Self {
        let id = Some(&*view.id).filter(|id| !id.is_empty());
        Self { client: id, user: view.user.as_deref(), source: &view.protocol, address: &view.ip }
    }

    /// Of an event.
    pub fn of_event(origin: &'a Origin) -> Self {
        let address = origin.address.as_deref().unwrap_or_default();
        Self { client: origin.client.as_deref(), user: origin.user.as_deref(), source: &origin.source, address }
    }

    /// The sender of an input from a source or another input without a connection.
    pub fn of_source(name: &'a str) -> Self {
        Self { client: None, user: None, source: name, address: "" }
    }

    /// What distinguishes senders: connections are cheap to make, addresses and users are not.
    pub(super) fn principal(&self) -> &'a str {
        let address = Some(self.address).filter(|address| !address.is_empty());
        self.user.or(address).or(self.client).unwrap_or(self.source)
    }

    /// The tables it is in, and its name in each.
    fn keys(&self) -> impl Iterator<Item = (usize, &'a str)> {
        let source = if self.client.is_none() && self.user.is_none() { Some(self.source) } else { None };
        [self.client, self.user, source].into_iter().enumerate().filter_map(|(table, key)| Some((table, key?)))
    }
}

/// Connections, users, sources.
type Tables = [HashMap<Box<str>, Spent>; 3];

/// Senders that went over budgets lately.
pub(super) struct Senders {
    /// While it is zero nobody looks further.
    remembered: AtomicUsize,
    hasher: RandomState,
    /// Each held for one look-up.
    shards: [Mutex<Tables>; SHARDS],
}

/// What one sender spent: two buckets that drain, each stored as the time at which it will be empty.
struct Spent {
    trips_until: Instant,
    refused_until: Instant,
}

impl Default for Senders {
    fn default() -> Self {
        Self { remembered: AtomicUsize::new(0), hasher: RandomState::new(), shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl Senders {
    /// How long a sender must wait. None: it need not wait.
    pub(super) fn wait<'s>(&self, sender: impl FnOnce() -> Option<Sender<'s>>, now: Now) -> Option<Duration> {
        if self.remembered.load(Relaxed) == 0 {
            return None;
        }
        let wait = |(table, key): (usize, &str)| {
            let until = self.shard(key).lock()[table].get(key)?.trips_until;
            // The rest may hold all trips but one.
            until.checked_sub(SENDER_TRIP_EVERY * (SENDER_TRIPS_MAX - 1))?.checked_duration_since(now.instant)
        };
        sender()?.keys().filter_map(wait).filter(|wait| !wait.is_zero()).max()
    }

    /// A call that this sender caused exceeded its budget.
    pub(super) fn charge(&self, sender: &Sender<'_>, now: Now) {
        for (table, key) in sender.keys() {
            self.change(table, key, now, |spent| {
                let full = now.instant + SENDER_TRIP_EVERY * SENDER_TRIPS_MAX;
                spent.trips_until = (spent.trips_until.max(now.instant) + SENDER_TRIP_EVERY).min(full);
            });
        }
    }

    /// A message of this sender was refused. True if it keeps sending.
    pub(super) fn refused(&self, sender: &Sender<'_>, now: Now) -> bool {
        let Some((table, key)) = sender.keys().next() else { return false };
        let full = now.instant + REFUSED_EVERY * SENDER_REFUSED_MAX;
        let until = self.change(table, key, now, |spent| {
            spent.refused_until = spent.refused_until.max(now.instant) + REFUSED_EVERY;
            spent.refused_until
        });
        until.is_some_and(|until| until > full)
    }

    /// Forgets those who may do all again.
    pub(super) fn sweep(&self, now: Now) {
        for shard in &self.shards {
            for table in &mut *shard.lock() {
                let before = table.len();
                table.retain(|_, spent| spent.trips_until.max(spent.refused_until) > now.instant);
                self.remembered.fetch_sub(before - table.len(), Relaxed);
                table.shrink_to(before / 2);
            }
        }
    }

    fn shard(&self, key: &str) -> &Mutex<Tables> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// None: too many are remembered.
    fn change<T>(&self, table: usize, key: &str, now: Now, change: impl FnOnce(&mut Spent) -> T) -> Option<T> {
        let mut tables = self.shard(key).lock();
        let table = &mut tables[table];
        if let Some(spent) = table.get_mut(key) {
            return Some(change(spent));
        }
        if self.remembered.load(Relaxed) >= SENDERS_MAX {
            return None;
        }
        self.remembered.fetch_add(1, Relaxed);
        Some(change(table.entry(key.into()).or_insert(Spent { trips_until: now.instant, refused_until: now.instant })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, ms: u64) -> Now {
        Now { wall_ms: 0, instant: start + Duration::from_millis(ms) }
    }

    fn sender<'a>(client: Option<&'a str>, user: Option<&'a str>) -> Sender<'a> {
        Sender { client, user, source: "p", address: "" }
    }

    #[test]
    fn a_sender_that_spent_its_trips_waits_and_others_do_not() {
        let (senders, start) = (Senders::default(), Instant::now());
        let (ann, bob) = (sender(Some("c1"), Some("ann")), sender(Some("c2"), Some("bob")));
        for _ in 0..SENDER_TRIPS_MAX {
            assert_eq!(senders.wait(|| Some(ann), at(start, 0)), None);
            senders.charge(&ann, at(start, 0));
        }
        assert_eq!(senders.wait(|| Some(ann), at(start, 0)), Some(SENDER_TRIP_EVERY));
        assert_eq!(senders.wait(|| Some(ann), at(start, 4000)), Some(Duration::from_secs(6)));
        // Her other connection, and another user's.
        assert!(senders.wait(|| Some(sender(Some("c3"), Some("ann"))), at(start, 0)).is_some());
        assert_eq!(senders.wait(|| Some(bob), at(start, 0)), None);
        assert_eq!(senders.wait(|| Some(sender(None, None)), at(start, 0)), None);
        // One trip more every ten seconds.
        assert_eq!(senders.wait(|| Some(ann), at(start, 10_000)), None);
        senders.charge(&ann, at(start, 10_000));
        assert_eq!(senders.wait(|| Some(ann), at(start, 10_000)), Some(SENDER_TRIP_EVERY));
        senders.sweep(at(start, 59_999));
        assert_eq!(senders.remembered.load(Relaxed), 2);
        senders.sweep(at(start, 60_000));
        assert_eq!(senders.remembered.load(Relaxed), 0);
    }

    #[test]
    fn who_goes_on_though_refused_does_not_listen() {
        let (senders, start) = (Senders::default(), Instant::now());
        let ann = sender(Some("c1"), Some("ann"));
        assert!((0..SENDER_REFUSED_MAX).all(|_| !senders.refused(&ann, at(start, 0))));
        assert!(senders.refused(&ann, at(start, 0)));
        // One try a second is not a flood.
        let bob = sender(Some("c2"), None);
        assert!((0..1000).all(|second| !senders.refused(&bob, at(start, second * 1000))));
    }

    #[test]
    fn what_has_no_connection_counts_against_its_source() {
        let (senders, start) = (Senders::default(), Instant::now());
        for _ in 0..SENDER_TRIPS_MAX {
            senders.charge(&sender(None, None), at(start, 0));
        }
        assert!(senders.wait(|| Some(sender(None, None)), at(start, 0)).is_some());
        assert_eq!(senders.wait(|| Some(sender(Some("p"), Some("p"))), at(start, 0)), None, "a client of that name is another");
    }
}
