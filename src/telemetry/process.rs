//! What the operating system says of this process. Linux only; elsewhere it says nothing.

/// Bytes of memory in use, as the system counts them (`/proc/self/statm`, second field, in pages of 4 KiB).
pub fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    text.split_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * 4096)
}
