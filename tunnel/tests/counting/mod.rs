//! A global allocator that counts what one thread asks for while it is told to, and can say who asked.
//!
//! A thread names the column that its allocations go to ([`in_column`]); without one nothing is counted, so
//! that a test's own bookkeeping does not show. `realloc` counts: growing a queue is work too.

#![allow(unsafe_code, reason = "a global allocator is unsafe by its trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// Columns that may be counted apart.
pub const COLUMNS: usize = 2;

thread_local! {
    static COLUMN: Cell<Option<usize>> = const { Cell::new(None) };
    static COUNTS: Cell<[Count; COLUMNS]> = const { Cell::new([Count { calls: 0, bytes: 0 }; COLUMNS]) };
    /// Backtraces, while they are wanted.
    static TRACES: RefCell<Option<Vec<(usize, Backtrace)>>> = const { RefCell::new(None) };
}

/// What one column asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub calls: u64,
    pub bytes: u64,
}

/// [`System`], with an eye on it.
pub struct Counting;

// SAFETY: every call goes to `System` unchanged. `note` does not unwind, and what it allocates itself
// comes back here with no column set, so it ends there.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps `alloc`'s contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: `block` came from `System` by way of the functions above.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as for `realloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

fn note(bytes: usize) {
    // A thread that is ending has no columns any more.
    let Some(column) = COLUMN.try_with(Cell::take).ok().flatten() else { return };
    COUNTS.with(|counts| {
        let mut all = counts.get();
        all[column].calls += 1;
        all[column].bytes += bytes as u64;
        counts.set(all);
    });
    TRACES.with_borrow_mut(|traces| {
        if let Some(traces) = traces {
            traces.push((column, Backtrace::force_capture()));
        }
    });
    COLUMN.set(Some(column));
}

/// Does `act`; what this thread allocates meanwhile goes to `column`.
pub fn in_column<T>(column: usize, act: impl FnOnce() -> T) -> T {
    COLUMN.set(Some(column));
    let done = act();
    COLUMN.set(None);
    done
}

/// The counts since this was last asked.
pub fn take_counts() -> [Count; COLUMNS] {
    COUNTS.take()
}

/// Keeps a backtrace of every counted allocation from now on.
pub fn begin_traces() {
    TRACES.set(Some(Vec::new()));
}

/// The innermost of `crates` on each kept backtrace, with the function there, and how often that was seen.
pub fn end_traces(crates: &[&str]) -> BTreeMap<(usize, String), u64> {
    let mut seen = BTreeMap::new();
    for (column, trace) in TRACES.take().unwrap_or_default() {
        let text = trace.to_string();
        let function = text
            .lines()
            // "  12: culvert_tunnel::segment::split", or "  12: <culvert_tunnel::… as …>::…"; others are places.
            .filter_map(|line| line.trim_start().split_once(": ").filter(|(n, _)| n.parse::<u32>().is_ok()))
            .map(|(_, function)| function.trim_start_matches('<'))
            .find(|function| crates.iter().any(|name| function.starts_with(name)));
        *seen.entry((column, function.unwrap_or("nobody we know").to_owned())).or_default() += 1;
    }
    seen
}
