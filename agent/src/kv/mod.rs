//! KV-cache events: what the engine really holds.
//!
//! ```text
//!  engine ──PUB──▶ sockets ─▶ follower ─▶ mirror ─▶ teller ──▶ uplink ──▶ scheduler
//!         ◀DEALER─            in order,   pages ▸   account,
//!          replay             no hole     blocks    changes
//! ```
//!
//! One stream for each data-parallel rank, each a task of its own. A stream begins when the scheduler has said how blocks
//! are named (seed and block size) and the engine which model it serves. It first reads the engine's buffer from the
//! beginning, so an agent that comes late knows what the engine holds if the buffer reaches back that far; otherwise the
//! rank is *partial*: what is known is right, there may be more.
//!
//! | what happens | what is done |
//! |---|---|
//! | a number is missing | replay from the last batch applied; that batch must come back unchanged |
//! | the buffer does not reach back, or there is none | what is known is dropped, the rank is partial |
//! | numbers go back, another batch under a known number | the engine was restarted: anew, from its buffer |
//! | the connection is lost | partial while it is; then as for a missing number |
//! | the engine's incarnation, model, seed or block size changes | anew |
//! | a new session with a scheduler | a full account, then changes |
//! | the link has no room | changes wait, at most 1 MiB a stream; beyond, an account follows instead |
//!
//! The engine's messages are buffered by the kernel and by the engine, which drops beyond its own limit; that shows as a
//! missing number. The socket library takes a message whole, whatever its size: an engine is trusted that far.

pub(crate) mod endpoints;
pub mod event;
mod follower;
mod mirror;
mod msgpack;
mod ops;
mod pages;
mod sockets;
mod source;
mod stats;
mod teller;

pub use mirror::{Counters, Mirror, MirrorConfig};
pub use msgpack::Malformed;
pub use ops::Ops;
pub(crate) use stats::KvStats;

use endpoints::Source;
use fairlead_wire::msg::CacheEvents;
use source::Follow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Messages on their way to the uplink, of 32 KiB at most or one operation.
pub(crate) const TOLD: usize = 32;

/// What of an engine matters for its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Engine {
    pub incarnation: u64,
    pub ranks: u16,
    /// Name of the base model in the hashes.
    pub model: String,
    /// See [`MirrorConfig::copies`].
    pub copies: Option<u64>,
    pub sources: Vec<Source>,
}

/// The scheduler's side as streams see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Upstream {
    /// Seed of the hashes, tokens of a routing block; the last ones heard.
    pub naming: Option<(u64, u32)>,
    pub session: Option<Session>,
}

/// A scheduler that knows the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    /// Rises with each registration and whenever something could not be sent: a full account is due.
    pub number: u64,
    /// The engine's life that was registered.
    pub incarnation: u64,
}

/// A message for a session's scheduler.
#[derive(Debug)]
pub(crate) struct Told {
    pub session: u64,
    pub events: CacheEvents,
}

/// Follows all streams of an engine.
pub(crate) struct Feed {
    pub engine: watch::Receiver<Option<Arc<Engine>>>,
    pub upstream: watch::Receiver<Upstream>,
    pub told: mpsc::Sender<Told>,
    pub stats: Arc<KvStats>,
    /// Bound on the memory of all mirrors, bytes.
    pub max_bytes: usize,
}

impl Feed {
    /// Runs for ever.
    pub async fn run(mut self) {
        let mut streams = JoinSet::new();
        let mut running: Vec<Source> = Vec::new();
        loop {
            let engine = self.engine.borrow_and_update().clone();
            if let Some(engine) = engine
                && engine.sources != running
            {
                streams.shutdown().await;
                running.clone_from(&engine.sources);
                self.stats.streams.store(running.len() as u64, Relaxed);
                for source in &running {
                    let follow = Follow {
                        source: source.clone(),
                        engine: self.engine.clone(),
                        upstream: self.upstream.clone(),
                        told: self.told.clone(),
                        stats: self.stats.clone(),
                        max_bytes: self.max_bytes / running.len(),
                    };
                    streams.spawn(follow.run());
                }
            }
            if self.engine.changed().await.is_err() {
                // The engine's monitor is gone, and so is this agent.
                std::future::pending::<()>().await;
            }
        }
    }
}
