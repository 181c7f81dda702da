//! Where a transaction spends its time: told where that is long, as everybody who publishes waits for it.

use std::time::Duration;

use tokio::time::Instant;

/// A transaction that takes longer is told.
const SLOW: Duration = Duration::from_secs(1);

/// The moments of one transaction: it was wanted, it had begun, what was said before the last word was done, and it was over.
pub(super) struct Clock {
    rows: usize,
    wanted: Instant,
    begun: Option<Instant>,
    worked: Instant,
    over: Instant,
}

impl Clock {
    pub(super) fn new(rows: usize) -> Self {
        let now = Instant::now();
        Self { rows, wanted: now, begun: None, worked: now, over: now }
    }

    /// One more of its words was said and answered. The first is the beginning, the last the commit.
    pub(super) fn step(&mut self) {
        let now = Instant::now();
        self.begun.get_or_insert(now);
        (self.worked, self.over) = (self.over.max(self.begun.unwrap_or(now)), now);
    }

    /// Says so where it took long.
    pub(super) fn tell(&self) {
        if let Some(Slow { took, begin, statements, commit }) = self.slow() {
            let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(
                rows = self.rows,
                took_ms = ms(took),
                begin_ms = ms(begin),
                statements_ms = ms(statements),
                commit_ms = ms(commit),
                "a transaction of the store took long; what was published meanwhile waited for it"
            );
        }
    }

    fn slow(&self) -> Option<Slow> {
        let begun = self.begun.unwrap_or(self.over);
        let took = self.over - self.wanted;
        let slow = Slow { took, begin: begun - self.wanted, statements: self.worked - begun, commit: self.over - self.worked };
        (took > SLOW).then_some(slow)
    }
}

/// What took long.
#[derive(Debug, PartialEq)]
struct Slow {
    took: Duration,
    begin: Duration,
    statements: Duration,
    commit: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_told_by_its_parts() {
        let ms = Duration::from_millis;
        for statements in [[0, 0].as_slice(), &[100], &[100, 200]] {
            let mut clock = Clock::new(3);
            tokio::time::advance(ms(900)).await;
            clock.step();
            for statement in statements {
                tokio::time::advance(ms(*statement)).await;
                clock.step();
            }
            assert_eq!(clock.slow().is_some(), statements.iter().sum::<u64>() > 100);
            tokio::time::advance(ms(5000)).await;
            clock.step();
            let statements = ms(statements.iter().sum());
            let slow = Slow { took: ms(5900) + statements, begin: ms(900), statements, commit: ms(5000) };
            assert_eq!(clock.slow(), Some(slow));
        }
        assert_eq!(Clock::new(1).slow(), None);
    }
}
