//! What a target's work costs in time: constants, predictions, and how they are learnt.
//!
//! The model (reference: roofline-style step model of continuous batching with chunked prefill):
//!
//! ```text
//! prefill work of u uncached tokens behind c cached ones   w(u, c) = prefill·u + attention·u·(c + u/2)
//! decode step of b sequences with K tokens of context      d(b, K) = step + sequence·b + context·K
//! TTFT behind a queue of W µs and q tokens                 W + w(u, c) + max(1, (q + u) / chunk)·d(b, K)
//! ```
//!
//! All times are microseconds.

mod constants;
mod filter;
mod learn;
mod pool;

pub use constants::{Constants, CostCell};
pub use learn::{DecodeSeen, Learner, PrefillSeen};
pub use pool::{Estimate, pool};
