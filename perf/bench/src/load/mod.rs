//! `fairlead load`: requests at a concurrency or a rate, alone or in conversations, and what became of them.
//!
//! Arrivals of an open loop follow a plan of deadlines that does not wait for answers, and times are counted from the
//! deadline, so a server that stalls is charged for the requests that should have been sent meanwhile (no coordinated
//! omission). When the generator itself falls behind its plan it says so.
//!
//! Conversations send the whole history with the answers that were really given. On the same load the hit ratio of
//! one cache without limits is computed, as the bound for any placement.
//!
//! A [trace](TraceError) is played with its own times and lengths, and prompts that begin alike where the recorded
//! ones did.

mod args;
mod bound;
mod client;
mod report;
mod run;
mod sse;
mod workload;

pub(crate) use workload::words;

pub use args::{BadArgs, LoadArgs};
pub use bound::InfiniteCache;
pub use fairlead_sim::trace::TraceError;
pub use report::{Quantiles, Report, Second};
pub use run::{LoadError, run};
