//! Where a transaction spends its time: logged if it takes long, because all publishers wait for it.

use std::time::Duration;

use tokio::time::Instant;

/// A transaction that takes longer is logged.
const SLOW: Duration = Duration::from_secs(1);

/// The moments of one transaction: it was requested, it had begun, the statements before the commit were done, and it was over.
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

    /// One more of its statements is done. The first is the begin, the last the commit.
    pub(super) fn step(&mut self) {
        let now = Instant::now();
        self.begun.get_or_insert(now);
        (self.worked, self.over) = (self.over.max(self.begun.unwrap_or(now)), now);
    }

    /// Logs it if it took long.
    pub(super) fn tell(&self) {
        if let Some(Slow { took, begin, statements, commit }) = self.slow() {
            let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(
                rows = self.rows,
                took_ms = ms(took),
                begin_ms = ms(begin),
                statements_ms = ms(statements),
                commit_ms = ms(commit),
                "a transaction of the store took long, and publishers waited for it"
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

/// A slow transaction, in parts.
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
