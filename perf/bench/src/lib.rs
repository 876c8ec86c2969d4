//! Load generation and benchmark programs.
//!
//! [`load`] is what `fairlead load` runs. [`programs`] are the benchmarks behind `perf/run`, on what [`kit`] gives them.

pub mod blocks;
pub mod kit;
pub mod load;
pub mod machine;
pub mod programs;
mod rng;
