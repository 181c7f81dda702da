//! The position of a channel, and what a subscriber who was away has missed.

use crate::model::event::Epoch;

/// The position of a channel at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its stream.
    pub epoch: Epoch,
    /// The oldest offset that is still available; `offset + 1` if none is.
    pub first: u64,
    /// The newest offset that was shown to anyone.
    pub offset: u64,
}

/// What a subscriber who has seen a channel up to some position will get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryVerdict {
    /// Whether everything that was missed can be given.
    pub recovered: bool,
    /// How many events cannot. `None` if nobody knows.
    pub missed: Option<u64>,
    /// The events that are given begin after this offset.
    pub after: u64,
}

impl Position {
    /// What a subscriber who has seen everything up to `since` will get. No epoch means the current one.
    ///
    /// A position of another stream, or from the future, means nothing here: then no events are given, and how many are missing
    /// is not known. Offsets of two streams cannot be compared: the later one may have begun again.
    pub fn recover(&self, since: u64, epoch: Option<Epoch>) -> RecoveryVerdict {
        if epoch.is_some_and(|epoch| epoch != self.epoch) || since > self.offset {
            return RecoveryVerdict { recovered: false, missed: None, after: self.offset };
        }
        let before_first = self.first.saturating_sub(1);
        let missed = before_first.saturating_sub(since);
        RecoveryVerdict { recovered: missed == 0, missed: Some(missed), after: since + missed }
    }
}

impl RecoveryVerdict {
    /// The verdict once it turns out that the events before an offset are gone.
    pub fn from_there(self, first: u64) -> Self {
        let gone = first.saturating_sub(1).saturating_sub(self.after);
        let Self { recovered, missed, after } = self;
        Self { recovered: recovered && gone == 0, missed: missed.map(|missed| missed + gone), after: after + gone }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Position = Position { epoch: 7, first: 11, offset: 20 };

    #[track_caller]
    fn check(since: u64, epoch: Option<Epoch>, recovered: bool, missed: impl Into<Option<u64>>, after: u64) {
        assert_eq!(AT.recover(since, epoch), RecoveryVerdict { recovered, missed: missed.into(), after });
    }

    #[test]
    fn what_the_log_still_has_is_recovered() {
        check(10, Some(7), true, 0, 10);
        check(15, None, true, 0, 15);
        check(20, Some(7), true, 0, 20);
    }

    #[test]
    fn what_is_gone_is_counted_and_the_rest_is_given() {
        check(9, Some(7), false, 1, 10);
        check(0, None, false, 10, 10);
    }

    #[test]
    fn another_stream_or_the_future_gives_nothing() {
        check(15, Some(8), false, None, 20);
        check(0, Some(8), false, None, 20);
        check(21, Some(7), false, None, 20);
        check(u64::MAX, None, false, None, 20);
    }

    #[test]
    fn what_goes_later_is_missed_too() {
        let verdict = |recovered, missed, after| RecoveryVerdict { recovered, missed: Some(missed), after };
        let whole = AT.recover(15, None);
        assert_eq!(whole.from_there(16), whole);
        assert_eq!(whole.from_there(0), whole);
        assert_eq!(whole.from_there(18), verdict(false, 2, 17));
        assert_eq!(AT.recover(5, None).from_there(18), verdict(false, 12, 17));
        assert_eq!(AT.recover(15, Some(8)).from_there(30), RecoveryVerdict { recovered: false, missed: None, after: 29 });
    }

    #[test]
    fn a_channel_without_a_past_recovers_only_who_missed_nothing() {
        let fresh = Position { epoch: 7, first: 1, offset: 0 };
        assert_eq!(fresh.recover(0, None), RecoveryVerdict { recovered: true, missed: Some(0), after: 0 });
        let passing = Position { epoch: 7, first: 6, offset: 5 };
        assert_eq!(passing.recover(5, None), RecoveryVerdict { recovered: true, missed: Some(0), after: 5 });
        assert_eq!(passing.recover(3, None), RecoveryVerdict { recovered: false, missed: Some(2), after: 5 });
    }
}
