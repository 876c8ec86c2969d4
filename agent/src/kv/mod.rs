//! KV-cache events: what the engine really holds.

pub mod event;
mod mirror;
mod msgpack;
mod ops;
mod pages;

pub use mirror::{Counters, Mirror, MirrorConfig};
pub use msgpack::Malformed;
pub use ops::Ops;
