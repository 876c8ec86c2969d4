//! What the agent's parts tell each other and their owner.

use crate::kv::KvStats;
use fairlead_wire::msg::{InstanceInfo, RankLoad};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

/// The engine as its monitor sees it; the uplink sends what is newest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Published {
    /// Replaced when anything in it changes; `None` before the engine was ready for the first time.
    pub instance: Option<Arc<InstanceInfo>>,
    /// Whether it answers its health probe.
    pub ready: bool,
    /// Why it is not ready.
    pub reason: Option<String>,
    /// Its figures.
    pub ranks: Vec<RankLoad>,
}

/// An agent's state for whoever started it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentState {
    /// Whether the engine is ready.
    pub ready: bool,
    /// What is waited for, or why the engine is not ready.
    pub reason: Option<String>,
    /// What is known of the instance, from the first time it was ready.
    pub instance: Option<Arc<InstanceInfo>>,
    /// Epoch of the scheduler connected to.
    pub epoch: Option<u64>,
    /// Why there is no connection to a scheduler.
    pub link_error: Option<String>,
    /// Whether the connected scheduler has been told of the instance as it is now.
    pub registered: bool,
}

/// Counters for the admin page.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub ready: AtomicBool,
    pub connected: AtomicBool,
    pub probes: AtomicU64,
    pub probe_failures: AtomicU64,
    pub scrapes: AtomicU64,
    pub scrape_failures: AtomicU64,
    pub engine_restarts: AtomicU64,
    pub connects: AtomicU64,
    pub connect_failures: AtomicU64,
    pub registrations: AtomicU64,
    pub reports: AtomicU64,
    pub send_failures: AtomicU64,
    pub rtt_us: AtomicU64,
    pub kv: Arc<KvStats>,
    /// Expected figures that the engine does not report, by position in the list of expected ones.
    pub unknown: AtomicU32,
    /// Position in [`ENGINE_LABELS`].
    pub engine: AtomicU32,
}

/// Label values of the engine's family.
pub(crate) const ENGINE_LABELS: [&str; 3] = ["generic", "vllm", "sglang"];
