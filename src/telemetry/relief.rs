//! What becomes of messages for clients that do not read, where their channel says that it need not be all of them.

use super::metrics::{Counter, Counters};

/// What became of a message that a client did not get as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relief {
    /// It waited, and made room for another.
    DroppedOldest,
    /// There was no room for it, or it was the last to come and made room for another.
    DroppedNewest,
    /// A newer one with the same key took its place.
    Superseded,
    /// It became one with its neighbour.
    Merged,
}

impl Relief {
    /// All, in the order of the enum.
    pub const ALL: [Relief; 4] = [Relief::DroppedOldest, Relief::DroppedNewest, Relief::Superseded, Relief::Merged];

    /// Its name in statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Relief::DroppedOldest => "dropped_oldest",
            Relief::DroppedNewest => "dropped_newest",
            Relief::Superseded => "superseded",
            Relief::Merged => "merged",
        }
    }

    /// Whether nothing of it was written.
    pub fn is_drop(self) -> bool {
        matches!(self, Relief::DroppedOldest | Relief::DroppedNewest)
    }
}

/// How often each happened, of one thing: a connection, a channel, a pattern.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reliefs([u64; Relief::ALL.len()]);

impl Reliefs {
    /// Once more.
    pub fn count(&mut self, relief: Relief) {
        self.0[relief as usize] += 1;
    }

    /// How often.
    pub fn get(&self, relief: Relief) -> u64 {
        self.0[relief as usize]
    }

    /// Whether nothing of it ever happened.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|n| *n == 0)
    }
}

/// The same, counted by many at a time.
#[derive(Debug, Default)]
pub struct ReliefCounters(Counters<{ Relief::ALL.len() }>);

impl ReliefCounters {
    /// Once more.
    pub fn count(&self, relief: Relief) {
        self.0.0[relief as usize].inc();
    }

    /// As it is now.
    pub fn get(&self) -> Reliefs {
        Reliefs(Relief::ALL.map(|relief| self.0.0[relief as usize].get()))
    }

    /// By their names in JSON.
    pub(super) fn counters(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
        ["droppedOldest", "droppedNewest", "superseded", "merged"].into_iter().zip(&self.0.0)
    }
}
