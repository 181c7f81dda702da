//! What happens to messages for clients that do not read, if their channel allows messages to be dropped or merged.

use super::metrics::{Counter, Counters};

/// What happened to a message that a client did not get as it was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflation {
    /// It waited, and made room for another.
    DroppedOldest,
    /// There was no room for it, or it was the newest and made room for another.
    DroppedNewest,
    /// A newer one with the same key took its place.
    Superseded,
    /// It was merged with the message before it.
    Merged,
}

impl Conflation {
    /// All, in the order of the enum.
    pub const ALL: [Conflation; 4] = [Conflation::DroppedOldest, Conflation::DroppedNewest, Conflation::Superseded, Conflation::Merged];

    /// Its name in statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Conflation::DroppedOldest => "dropped_oldest",
            Conflation::DroppedNewest => "dropped_newest",
            Conflation::Superseded => "superseded",
            Conflation::Merged => "merged",
        }
    }

    /// Whether nothing of it was written.
    pub fn is_drop(self) -> bool {
        matches!(self, Conflation::DroppedOldest | Conflation::DroppedNewest)
    }
}

/// How often each happened, for one connection, channel or pattern.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conflations([u64; Conflation::ALL.len()]);

impl Conflations {
    /// Once more.
    pub fn count(&mut self, conflation: Conflation) {
        self.0[conflation as usize] += 1;
    }

    /// How often.
    pub fn get(&self, conflation: Conflation) -> u64 {
        self.0[conflation as usize]
    }

    /// Whether nothing of it ever happened.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|n| *n == 0)
    }
}

/// The same, counted by many at a time.
#[derive(Debug, Default)]
pub struct ConflationCounters(Counters<{ Conflation::ALL.len() }>);

impl ConflationCounters {
    /// Once more.
    pub fn count(&self, conflation: Conflation) {
        self.0.0[conflation as usize].inc();
    }

    /// As it is now.
    pub fn get(&self) -> Conflations {
        Conflations(Conflation::ALL.map(|conflation| self.0.0[conflation as usize].get()))
    }

    /// By their names in JSON.
    pub(super) fn counters(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
        ["droppedOldest", "droppedNewest", "superseded", "merged"].into_iter().zip(&self.0.0)
    }
}
