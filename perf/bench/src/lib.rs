//! Load generation and benchmark programs.

pub mod load;
pub mod machine;
mod rng;
