//! Decides when the next batch of events is taken. While one commit is in progress the next batch collects rows. If commits are
//! so short that few would collect, the writer waits a few milliseconds for more, because a commit costs about the same for two
//! rows and for twenty.
//!
//! It does not wait if that gains nothing: if events come one by one, if enough rows wait, or if all publishers wait for their
//! answers. The number of such publishers is learnt: while it waited, no more rows came.

use std::time::{Duration, Instant};

/// The longest time from the beginning of one batch to that of the next, if it waits for rows.
const LONGEST: Duration = Duration::from_millis(2);
/// Rows that must come within that time to make waiting worth it.
const WORTH: u32 = 4;
/// From this many rows on, a commit costs little more than its rows.
const ENOUGH: usize = 64;
/// If nothing has come for this long, nothing will: all publishers wait.
const SILENCE: Duration = Duration::from_millis(1);
/// What was learnt is learnt again after this many batches.
const LEARNT_FOR: u32 = 100;

/// What is known about how rows arrive.
#[derive(Default)]
pub(super) struct Pace {
    /// When the last batch was taken.
    taken: Option<Instant>,
    /// Whether rows come fast enough.
    worth: bool,
    /// No more than this many rows come, and for how many batches that is assumed.
    all: Option<(usize, u32)>,
}

impl Pace {
    /// How many rows to wait for, and until when.
    pub(super) fn wanted(&self) -> Option<(usize, Instant)> {
        let taken = self.taken.filter(|_| self.worth)?;
        Some((self.all.map_or(ENOUGH, |(all, _)| all.min(ENOUGH)), taken + LONGEST))
    }

    /// Notes that a batch of this many rows was taken. `newest`: when the last of them came.
    pub(super) fn took(&mut self, rows: usize, newest: Instant, now: Instant) {
        let wanted = self.wanted();
        self.all = self.all.and_then(|(all, batches)| Some((all, batches.checked_sub(1)?)));
        if wanted.is_some_and(|(wanted, _)| rows < wanted) && now.saturating_duration_since(newest) > SILENCE {
            self.all = Some((rows, LEARNT_FOR));
        }
        let span = self.taken.replace(now).map(|taken| now.saturating_duration_since(taken));
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        self.worth = rows > 1 && span.is_some_and(|span| span * WORTH <= LONGEST.saturating_mul(rows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn micros(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    /// Simulates commits of this duration, one after the other, of rows that come at this interval. Returns how many rows each
    /// had.
    fn steady(pace: &mut Pace, commit: Duration, every: Duration, batches: usize) -> Vec<usize> {
        let (begin, mut taken) = (Instant::now(), 0);
        let came_by = |now: Instant| usize::try_from((now - begin).as_nanos() / every.as_nanos()).unwrap();
        let came_at = |row: usize| begin + every * u32::try_from(row).unwrap();
        let (mut now, mut rows) = (begin, Vec::new());
        while rows.len() < batches {
            now = now.max(came_at(taken + 1));
            if let Some((wanted, until)) = pace.wanted() {
                now = now.max(until.min(came_at(taken + wanted)));
            }
            let came = came_by(now);
            pace.took(came - taken, came_at(came), now);
            rows.push(came - taken);
            (taken, now) = (came, now + commit);
        }
        rows
    }

    #[test]
    fn where_rows_keep_coming_more_are_let_come_up_to_enough() {
        let rows = steady(&mut Pace::default(), micros(700), micros(250), 50);
        assert!(rows[10..].iter().all(|rows| (7..=9).contains(rows)), "{rows:?}");
        let rows = steady(&mut Pace::default(), micros(700), micros(20), 50);
        assert!(rows[10..].iter().all(|rows| (ENOUGH..=ENOUGH + 1).contains(rows)), "{rows:?}");
        let rows = steady(&mut Pace::default(), micros(8000), micros(250), 50);
        assert!(rows[10..].iter().all(|rows| *rows == 32), "what is slow by itself does not wait besides: {rows:?}");
    }

    #[test]
    fn where_rows_come_one_by_one_nobody_waits() {
        let mut pace = Pace::default();
        for every in [1000, 2000, 50_000] {
            assert!(steady(&mut pace, micros(700), micros(every), 50).iter().all(|rows| *rows == 1) && pace.wanted().is_none());
        }
        // One publisher that waits for each answer.
        let mut now = Instant::now();
        for _ in 0..50 {
            now += micros(300);
            pace.took(1, now, now);
            assert!(pace.wanted().is_none());
        }
    }

    #[test]
    fn as_many_as_all_who_publish_are_waited_for_and_no_more() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let mut late = 0;
        for publishers in [8, 5, 20] {
            for _ in 0..1000 {
                // The commit, after which all publish again at the same time.
                let came = now + micros(700);
                now = came;
                if let Some((wanted, until)) = pace.wanted()
                    && wanted > publishers
                {
                    now = now.max(until);
                    late += 1;
                }
                pace.took(publishers, came, now);
            }
        }
        assert!(late < 40, "{late} of 3000 batches waited in vain");
    }
}
