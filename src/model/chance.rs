//! Ids and random texts. In service they come from the system. Where a decision must be repeatable they come from a seed, which
//! is set on this thread while the decision is made.

use std::cell::Cell;

use uuid::{Builder, Uuid};

use crate::model::event::Epoch;

thread_local! {
    /// The state of the seed that is in use on this thread.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Where ids and random texts come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Chance {
    /// The system.
    #[default]
    System,
    /// A seed: the same values each time.
    Seeded(u64),
}

impl Chance {
    /// Runs a closure that takes its ids and random texts from here.
    pub fn run<T>(&mut self, act: impl FnOnce() -> T) -> T {
        let Chance::Seeded(state) = self else { return act() };
        let outer = SEED.replace(Some(*state));
        let done = act();
        *state = SEED.replace(outer).unwrap_or(*state);
        done
    }
}

/// The next bits of the seed (SplitMix64, Steele et al. 2014); none if the system is the source.
fn seeded() -> Option<u64> {
    let state = SEED.get()?.wrapping_add(0x9e37_79b9_7f4a_7c15);
    SEED.set(Some(state));
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Some(mixed ^ (mixed >> 31))
}

fn seeded_bytes() -> Option<[u8; 16]> {
    let (high, low) = (seeded()?, seeded()?);
    Some((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
}

/// An id that nobody can guess.
pub fn uuid() -> Uuid {
    seeded_bytes().map_or_else(Uuid::new_v4, |bytes| Builder::from_random_bytes(bytes).into_uuid())
}

/// An id that grows with time, for an event.
pub fn event_id(now_ms: i64) -> Uuid {
    match seeded_bytes() {
        None => Uuid::now_v7(),
        Some(bytes) => {
            let mut random = [0; 10];
            random.copy_from_slice(&bytes[..10]);
            Builder::from_unix_timestamp_millis(now_ms.max(0).cast_unsigned(), &random).into_uuid()
        }
    }
}

/// An epoch that no channel had before: 62 random bits, so that it fits a database's signed integer, and never 0.
pub fn epoch() -> Epoch {
    uuid().as_u64_pair().1 & (u64::MAX >> 2) | 1
}

/// Twelve characters of a–z and 0–9 out of 62 random bits of a version 4 UUID.
pub fn text() -> String {
    let mut bits = uuid().as_u64_pair().1 & (u64::MAX >> 2);
    (0..12)
        .map(|_| {
            let digit = (bits % 36) as u32;
            bits /= 36;
            char::from_digit(digit, 36).unwrap_or('0')
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(chance: &mut Chance) -> (Uuid, Uuid, Epoch, String) {
        chance.run(|| (uuid(), event_id(1_000), epoch(), text()))
    }

    #[test]
    fn a_seed_gives_the_same_again_and_goes_on() {
        let (mut one, mut other) = (Chance::Seeded(7), Chance::Seeded(7));
        let first = some(&mut one);
        assert_eq!(first, some(&mut other));
        let second = some(&mut one);
        assert_ne!(first, second);
        assert_eq!(second, some(&mut other));
        assert_eq!((first.0.get_version_num(), first.1.get_version_num()), (4, 7));
    }

    #[test]
    fn the_system_never_gives_the_same() {
        assert_ne!(some(&mut Chance::System), some(&mut Chance::System));
    }
}
