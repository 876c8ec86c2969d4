//! The gateway's data plane: runtime, HTTP/1.1 relay, shards.
//!
//! [`start`] takes [`GatewayOptions`] and the fleet view, and runs one thread per shard. Each shard has its own
//! runtime, listener, upstream pools and timers, and serves a connection from accept to close:
//!
//! ```text
//! accept ─▶ head ─▶ body ─▶ scan, hash ─▶ plan, reserve ─▶ send to the engine ─▶ relay the answer ─▶ learn
//! ```
//!
//! Whoever writes the [`Fleet`](fairlead_routing::Fleet) (the control thread, or an embedding program) shares
//! [`Shared`] with the shards: placements come out of it, readiness and the cluster's seed go in.

mod control;
mod degraded;
mod gateway;
mod handoff;
pub mod http;
mod http2;
mod instances;
mod options;
mod prefill_down;
mod routing;
pub mod runtime;
mod shard;
mod shared;
#[cfg(feature = "sim")]
pub mod sim;
mod tls;
mod token_mode;

pub use control::{ControlOptions, ControlledGateway, start_controlled};
pub use gateway::{Gateway, StartError, start, start_with};
pub use http2::Http2Options;
pub use instances::{StaticInstance, static_fleet};
pub use options::{
    GatewayOptions, Limits, ModelRouting, ProfileRouting, RetryOptions, RoutingOptions, Timeouts, Tokenising,
};
pub use shard::{AnswerNote, Gauge, Inbox, PlacementNote, Share, SpeedNote, readiness};
pub use shared::{LearntCount, LearntCounts, Shared};
pub use tls::{TlsError, TlsOptions, UpstreamTls};
pub use token_mode::{TokenMode, TokenModels};
