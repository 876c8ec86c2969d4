//! Simulated engines: to a client and to an agent they behave like vLLM or SGLang; what they cost is a model of
//! steps, a cache and memory instead of a card.
//!
//! - [`model`], [`cache`], [`profile`]: continuous batching, the block cache and step costs, without clock or socket.
//! - [`prompt`], [`text`]: what a body asks for and the deterministic answer to it.
//! - [`Sim::start`]: engines over HTTP in real time, any number of them on one thread, idle when idle.
//! - [`events`]: what the cache holds, told over ZeroMQ as the engines tell it.
//! - [`HandoffOptions`]: prefill and decode on different engines, as vLLM's connectors and SGLang hand over.
//! - [`Faults`]: ways to fail on demand, at the start, through [`Control`] or through `POST /sim/control`.

pub mod cache;
mod engine;
pub mod events;
mod faults;
mod handoff;
mod histogram;
mod host;
mod http;
mod metrics;
pub mod model;
mod options;
pub mod profile;
pub mod prompt;
pub mod replay;
mod state;
pub mod stats;
pub mod text;
pub mod tokenise;
pub mod trace;

pub use faults::{BadFaults, Faults, Garbage};
pub use handoff::{HandoffOptions, HandoffState, LegKind, OnKvFailure};
pub use histogram::Histogram;
pub use host::{Control, Handle, Host, Sim, StartError};
pub use options::{BadOption, EngineKind, KvEncoding, KvEvents, SimOptions};
pub use profile::Profile;
pub use state::{Last, State};
