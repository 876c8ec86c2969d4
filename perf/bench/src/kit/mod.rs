//! What all benchmark programs share: rows and their table, order statistics, pinning, counted allocations, memory.

pub mod alloc;
pub mod clock;
pub mod memory;
pub mod pin;
pub mod sheet;
pub mod stats;
