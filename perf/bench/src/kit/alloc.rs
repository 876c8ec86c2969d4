//! The allocator of the benchmark programs: the product's, with a count per thread.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

use tikv_jemallocator::Jemalloc;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// jemalloc that counts the calling thread's allocations.
pub struct Counting;

fn count() {
    // A thread that is ending has lost its counter; nobody asks for it any more.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to jemalloc as it came; counting touches a thread-local of plain data only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { Jemalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { Jemalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { Jemalloc.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { Jemalloc.dealloc(block, layout) }
    }
}

/// Allocations and reallocations of the calling thread so far.
pub fn allocations() -> u64 {
    COUNT.with(Cell::get)
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
}
