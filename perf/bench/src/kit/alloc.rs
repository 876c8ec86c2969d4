//! The allocator of the benchmark programs: the product's, with counts per thread.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};

use tikv_jemallocator::Jemalloc;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    /// Bytes not yet added to [`LIVE`].
    static PENDING: Cell<i64> = const { Cell::new(0) };
}

/// Bytes taken by all threads, each of which adds its own part only now and then.
static LIVE: AtomicI64 = AtomicI64::new(0);
/// Bytes that a thread keeps to itself.
const UNTOLD: i64 = 16 << 10;

/// jemalloc that counts the calling thread's allocations and bytes.
pub struct Counting;

/// What jemalloc really gives for a request of `size` bytes: its size classes (16-byte steps to 128, then four to each
/// doubling).
const fn class(size: usize) -> usize {
    if size <= 8 {
        return 8;
    }
    let step = if size <= 128 { 16 } else { 1 << ((size - 1).ilog2() - 2) };
    size.next_multiple_of(step)
}

/// Notes an allocation when `calls` is 1, and by how much what the thread has taken changes.
fn note(calls: u64, bytes: i64) {
    // A thread that is ending has lost its counters; nobody asks for them any more.
    let _ = COUNT.try_with(|count| count.set(count.get() + calls));
    let _ = PENDING.try_with(|pending| {
        let mut sum = pending.get() + bytes;
        if sum.abs() >= UNTOLD {
            LIVE.fetch_add(sum, Ordering::Relaxed);
            sum = 0;
        }
        pending.set(sum);
    });
}

// SAFETY: every call goes to jemalloc as it came; counting touches a thread-local of plain data only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(1, class(layout.size()) as i64);
        // SAFETY: the caller's promise is passed on.
        unsafe { Jemalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(1, class(layout.size()) as i64);
        // SAFETY: the caller's promise is passed on.
        unsafe { Jemalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(1, class(size) as i64 - class(layout.size()) as i64);
        // SAFETY: the caller's promise is passed on.
        unsafe { Jemalloc.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        note(0, -(class(layout.size()) as i64));
        // SAFETY: the caller's promise is passed on.
        unsafe { Jemalloc.dealloc(block, layout) }
    }
}

/// Allocations and reallocations of the calling thread so far.
pub fn allocations() -> u64 {
    COUNT.with(Cell::get)
}

/// Bytes that the process has taken and not given back, in the allocator's own sizes; right to 16 KiB for each other
/// thread.
pub fn live() -> i64 {
    LIVE.load(Ordering::Relaxed) + PENDING.with(Cell::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    #[test]
    fn an_allocation_is_counted_and_reading_is_not() {
        let before = allocations();
        assert_eq!(allocations(), before);
        let boxed = std::hint::black_box(Box::new(7u64));
        assert_eq!(allocations(), before + 1);
        drop(boxed);
        assert_eq!(allocations(), before + 1);
    }

    #[test]
    fn bytes_are_counted_as_the_allocator_gives_them() {
        let sizes = [1, 8, 9, 16, 17, 129, 160, 161, 1024, 1025, 16 << 10, (16 << 10) + 1];
        let classes = [8, 8, 16, 16, 32, 160, 160, 192, 1024, 1280, 16 << 10, 20 << 10];
        assert_eq!(sizes.map(class), classes);
        // Other tests run beside this one: large enough to stand out.
        let before = live();
        let mut all = std::hint::black_box(Vec::<u8>::with_capacity(1 << 30));
        assert!((live() - before - (1 << 30)).abs() < 1 << 28);
        all.shrink_to(1 << 29);
        assert!((live() - before - (1 << 29)).abs() < 1 << 28);
        drop(all);
        assert!((live() - before).abs() < 1 << 28);
    }
}
