//! Time as a value that is passed in. Decisions never read a clock themselves, so tests choose the time.

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
    /// Reads both clocks.
    pub fn read() -> Self {
        let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
        Self { wall_ms, instant: Instant::now() }
    }

    /// The wall clock as UTC text with three decimals: `2024-01-01T00:00:00.000Z`.
    pub fn iso(&self) -> String {
        iso(self.wall_ms)
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
