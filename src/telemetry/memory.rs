//! Counts the bytes each thread holds, so that a script can be stopped before it takes too much memory.
//! Knows nothing of scripts. The counter is plain thread-local arithmetic, added up for the process every 16 KiB.
#![allow(unsafe_code)] // The only file with unsafe code: neither a global allocator nor giving pages back works without it. Every call is passed on unchanged.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering::Relaxed};

/// A thread adds its count to that of the process once it differs by this much.
const STEP_BYTES: isize = 16 * 1024;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static NOT_ADDED: Cell<isize> = const { Cell::new(0) };
    /// How far this thread's count may run ahead: nothing, once it ends.
    static STEP: Cell<isize> = const { Cell::new(STEP_BYTES) };
}

static PROCESS: AtomicIsize = AtomicIsize::new(0);

/// The system's allocator, which also counts bytes.
pub struct Counting;

/// Bytes this thread allocated minus those it freed. What another thread frees is counted there, so only the difference between
/// two readings on one thread, with no hand-over in between, means something.
pub fn thread_live_bytes() -> isize {
    LIVE.try_with(Cell::get).unwrap_or(0)
}

/// Bytes this process has taken and not given back, to within 16 KiB a thread. What the system counts as resident is more: an
/// allocator keeps pages for the next time.
pub fn process_live_bytes() -> u64 {
    u64::try_from(PROCESS.load(Relaxed)).unwrap_or(0)
}

/// To be called by a thread that is about to end: what it has not added yet is not lost, nor what it frees from here on.
pub fn thread_ends() {
    STEP.set(0);
    count(0);
}

/// Freed bytes that make it worth while to return pages to the system.
const GIVE_BACK_BYTES: u64 = 8 << 20;

/// The most that was held since pages were last given back.
static PEAK: AtomicU64 = AtomicU64::new(0);

/// Gives pages that nobody uses back to the system, where much less is held than was before. The allocator by itself keeps
/// them, so that a server would look as large as on its busiest day. Called once a second.
pub fn give_back() {
    let live = process_live_bytes();
    let peak = PEAK.fetch_max(live, Relaxed).max(live);
    if peak - live > GIVE_BACK_BYTES.max(live / 2) {
        PEAK.store(live, Relaxed);
        trim();
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: glibc's function of this signature; it may be called at any time, by any thread.
    unsafe { malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

fn count(bytes: isize) {
    // While a thread ends its counters may be gone already; nobody reads them then.
    LIVE.try_with(|live| live.set(live.get().wrapping_add(bytes))).unwrap_or(());
    let rest = NOT_ADDED.try_with(|rest| rest.replace(rest.get().wrapping_add(bytes)).wrapping_add(bytes)).unwrap_or(0);
    if rest.abs() >= STEP.try_with(Cell::get).unwrap_or(0) {
        // In steps, so that threads do not meet at one counter at every allocation.
        PROCESS.fetch_add(rest, Relaxed);
        NOT_ADDED.try_with(|rest| rest.set(0)).unwrap_or(());
    }
}

// SAFETY: every method passes its arguments to `System` unchanged and returns what `System` returned. Counting beside it
// neither allocates (the thread-local is constant-initialised and has no destructor) nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are `System`'s.
        let place = unsafe { System.alloc(layout) };
        if !place.is_null() {
            count(layout.size().cast_signed());
        }
        place
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let place = unsafe { System.alloc_zeroed(layout) };
        if !place.is_null() {
            count(layout.size().cast_signed());
        }
        place
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) };
        count(-layout.size().cast_signed());
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        let moved = unsafe { System.realloc(place, layout, size) };
        if !moved.is_null() {
            count(size.cast_signed() - layout.size().cast_signed());
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_counted_and_what_is_given_back_too() {
        let before = thread_live_bytes();
        let mut bytes: Vec<u8> = Vec::with_capacity(100_000);
        assert_eq!(thread_live_bytes() - before, 100_000);
        bytes.reserve_exact(200_000);
        assert_eq!(thread_live_bytes() - before, 200_000);
        drop(bytes);
        assert_eq!(thread_live_bytes(), before);
    }

    #[test]
    fn threads_are_counted_apart() {
        let before = thread_live_bytes();
        let held = std::thread::spawn(|| vec![0u8; 1_000_000]).join().unwrap();
        let grown = thread_live_bytes() - before;
        assert!(grown < 100_000, "{grown}");
        drop(held);
    }
}
