//! Time as a value that is passed in. Decisions never read a clock themselves, so tests choose the time.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One moment, on both clocks: the wall clock for what people read, the monotonic one for what is measured.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Milliseconds since the Unix epoch.
    pub wall_ms: i64,
    /// The monotonic clock.
    pub instant: Instant,
}

impl Now {
    /// Reads both clocks of the system.
    pub fn read() -> Self {
        let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
        Self { wall_ms, instant: Instant::now() }
    }

    /// The wall clock as UTC text with three decimals: `2024-01-01T00:00:00.000Z`.
    pub fn iso(&self) -> String {
        iso(self.wall_ms)
    }
}

/// Where a server reads the time: the system's clocks, or these moved ahead by a test. Timers are not moved: they
/// take as long as before.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Milliseconds.
    ahead: Option<Arc<AtomicU64>>,
}

impl Clock {
    /// A clock that can be moved ahead.
    pub fn movable() -> Self {
        Self { ahead: Some(Arc::default()) }
    }

    /// Moves it and all its clones ahead. Does nothing to the system's clock.
    pub fn advance(&self, by: Duration) {
        if let Some(ahead) = &self.ahead {
            ahead.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Relaxed);
        }
    }

    /// This moment.
    pub fn now(&self) -> Now {
        let now = Now::read();
        let Some(ahead) = &self.ahead else { return now };
        let ahead_ms = ahead.load(Relaxed);
        let wall_ms = now.wall_ms.saturating_add(i64::try_from(ahead_ms).unwrap_or(i64::MAX));
        Now { wall_ms, instant: now.instant + Duration::from_millis(ahead_ms) }
    }
}

/// Milliseconds since the Unix epoch as UTC text with three decimals. Times before 1970 read as 1970.
pub fn iso(wall_ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(wall_ms).unwrap_or(0));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn iso_has_three_decimals_and_a_z() {
        assert_eq!(super::iso(1_704_067_200_000), "2024-01-01T00:00:00.000Z");
        assert_eq!(super::iso(-5), "1970-01-01T00:00:00.000Z");
    }
}
