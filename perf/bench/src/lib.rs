//! Load generation and benchmark programs.
//!
//! [`load`] is what `fairlead load` runs. [`programs`] are the benchmarks behind `perf/run`, on what [`kit`] gives them;
//! those of proxies as processes also on [`proxy`].

pub mod blocks;
pub mod kit;
pub mod load;
pub mod machine;
pub mod programs;
#[cfg(feature = "fleet")]
pub mod proxy;
mod rng;
