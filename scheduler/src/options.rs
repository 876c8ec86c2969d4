//! What a scheduler is started with.

use std::net::SocketAddr;
use std::time::Duration;

use fairlead_replication::LeanConfig;
use fairlead_transport::{Identity, LinkOptions};

/// Settings of a scheduler.
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// Where agents and gateways connect (UDP). Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the admin pages are served (TCP), if at all. Port 0 takes a free one.
    pub admin: Option<SocketAddr>,
    /// The scheduler's certificate.
    pub identity: Identity,
    /// Secret seed of the cluster's block hashes. It must be the same after every restart; by default it comes with
    /// the identity.
    pub cluster_seed: Option<u64>,
    /// Memory of the prefix index, bytes.
    pub index_bytes: usize,
    /// Targets at most.
    pub max_targets: usize,
    /// Interval of heartbeats. A peer that misses three is gone.
    pub heartbeat: Duration,
    /// Tokens of one block of a prompt that is routed by token ids, for the whole cluster.
    pub block_tokens: u32,
    /// How targets without a fixed role lean to prefill and decode.
    pub lean: LeanConfig,
    /// Limits of links.
    pub links: LinkOptions,
    /// Messages from all links that wait for the one task that owns the state. At the bound links are read no
    /// further, and their peers come to wait.
    pub inbox_messages: usize,
    /// Bytes of those messages.
    pub inbox_bytes: usize,
}

impl SchedulerOptions {
    /// Defaults for everything but the two that have none.
    pub fn new(listen: SocketAddr, identity: Identity) -> Self {
        Self {
            listen,
            admin: None,
            identity,
            cluster_seed: None,
            index_bytes: 1 << 30,
            max_targets: fairlead_replication::TruthConfig::default().max_targets,
            heartbeat: Duration::from_secs(1),
            block_tokens: fairlead_replication::TruthConfig::default().block_tokens,
            lean: LeanConfig::default(),
            // What waits for a slow gateway waits in the truth, where it is coalesced; the queues only keep the
            // connection busy.
            links: LinkOptions { send_frames: 64, send_bytes: 512 << 10, ..LinkOptions::default() },
            inbox_messages: 4096,
            inbox_bytes: 64 << 20,
        }
    }
}
