//! Durations, sizes and rates as people write them. Pure: text in, value or reason out.

use std::num::NonZeroU32;
use std::time::Duration;

use super::plan::Rate;

/// No timer of the language is longer.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// No size of the language is larger.
const SIZE_MAX: u64 = 4 << 30;
/// No database is larger.
const DISK_SIZE_MAX: u64 = 1 << 50;

/// `30s`, `100ms`, `1h30m`: more than nothing, at most a year.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let hint = "write `30s`, `100ms`, `5m`, `24h` or `1h30m`";
    // humantime also reads "1 year 2 months"; the language has no calendar.
    let plain = text.chars().all(|c| c.is_ascii_digit() || "mshd ".contains(c));
    let parsed =
        humantime::parse_duration(text).ok().filter(|_| plain).ok_or_else(|| format!("`{text}` is not a valid duration; {hint}"))?;
    if parsed.is_zero() || parsed > DURATION_MAX {
        return Err(format!("`{text}` is out of range: more than 0 and at most 366 days"));
    }
    Ok(parsed)
}

/// `1MiB`, `64KB`, `512B`, `4096`: at least one byte.
pub(super) fn size(text: &str) -> Result<usize, String> {
    bytes(text, SIZE_MAX, "4 GiB").and_then(|bytes| usize::try_from(bytes).map_err(|error| error.to_string()))
}

/// The same for a size on disk: `10GiB`, `2TiB`; at least 1 MiB, because no smaller database works.
pub(super) fn disk_size(text: &str) -> Result<u64, String> {
    let bytes = bytes(text, DISK_SIZE_MAX, "1024 TiB")?;
    if bytes < 1 << 20 { Err(format!("`{text}` is out of range: 1 MiB to 1024 TiB")) } else { Ok(bytes) }
}

fn bytes(text: &str, most: u64, shown: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 10] = [
        ("", 1),
        ("B", 1),
        ("KB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
    ];
    let wrong = || format!("`{text}` is not a valid size; write `1MiB`, `64KB`, `512B` or a number of bytes");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let count: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = text[digits..].trim();
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    let bytes = count.checked_mul(*factor).filter(|bytes| (1..=most).contains(bytes));
    bytes.ok_or_else(|| format!("`{text}` is out of range: 1 byte to {shown}"))
}

/// `100/60s`, `20/s`, `20/s burst 40`.
pub(super) fn rate(text: &str) -> Result<Rate, String> {
    let wrong = || format!("`{text}` is not a valid rate; write `100/60s`, `20/s`, `20/s burst 40`, or `none` for no limit");
    let (rate, burst) = text.split_once(" burst ").map_or((text, None), |(rate, burst)| (rate, Some(burst)));
    let (count, per) = rate.split_once('/').ok_or_else(wrong)?;
    let number = |text: &str| text.trim().parse::<NonZeroU32>().map_err(|_| wrong());
    let per = per.trim();
    let per =
        if per.starts_with(|c: char| c.is_ascii_digit()) { duration(per)? } else { duration(&format!("1{per}")).map_err(|_| wrong())? };
    let count = number(count)?;
    if u128::from(count.get()) > per.as_nanos() {
        return Err(format!("`{text}` is more than one in a nanosecond"));
    }
    Ok(Rate { count, per, burst: burst.map_or(Ok(count), number)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("100ms"), Ok(Duration::from_millis(100)));
        for wrong in ["", "30", "s", "0s", "-1s", "1.5s", "1 year", "1month", "400d", "30 s x", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("1MiB", 1 << 20), ("64KB", 64_000), ("512B", 512), ("4096", 4096), ("2 KiB", 2048)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "0", "MiB", "1mib", "1.5MiB", "-1", "5GiB", "99999999999999999999B", "18446744073709551615GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates() {
        let count = |n| NonZeroU32::new(n).unwrap();
        assert_eq!(rate("100/60s"), Ok(Rate { count: count(100), per: Duration::from_secs(60), burst: count(100) }));
        assert_eq!(rate("20/s burst 40"), Ok(Rate { count: count(20), per: Duration::from_secs(1), burst: count(40) }));
        for wrong in ["", "20", "0/s", "20/", "20/parsec", "20/s burst 0", "20/s burst", "x/s", "20/0s", "4000000000/ms"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(n in 1u32..100_000, unit in prop::sample::select(vec!["ms", "s", "m"])) {
            let factor = match unit { "ms" => 1, "s" => 1000, _ => 60_000 };
            prop_assert_eq!(duration(&format!("{n}{unit}")), Ok(Duration::from_millis(u64::from(n) * factor)));
            prop_assert_eq!(size(&format!("{n}KiB")), Ok(n as usize * 1024));
            prop_assert_eq!(rate(&format!("{n}/m")).map(|r| r.count.get()), Ok(n));
        }

        #[test]
        fn no_text_panics(text in "[0-9a-zA-Z/ .üB-]{0,24}") {
            drop((duration(&text), size(&text), rate(&text)));
        }
    }
}
