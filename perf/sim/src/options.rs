//! How an engine is set up.

use crate::faults::Faults;
use crate::handoff::HandoffOptions;
use crate::profile::Profile;
use fairlead_tokens::TokenModel;
use fairlead_wire::msg::ServingRole;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Which engine's names and routes to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EngineKind {
    /// vLLM 0.32.
    #[default]
    Vllm,
    /// SGLang 0.5.
    Sglang,
}

/// How KV events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum KvEncoding {
    /// Maps: vLLM from 0.24, SGLang from 0.5.20.
    #[default]
    Map,
    /// Positions: the releases before.
    Array,
}

/// KV events over ZeroMQ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvEvents {
    /// Where they are published; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the last batches can be asked for again; port 0 takes a free one.
    pub replay: Option<SocketAddr>,
    /// How they are written.
    pub encoding: KvEncoding,
    /// First frame of each message.
    pub topic: String,
    /// Batches kept for who asks again.
    pub kept: usize,
    /// Whether blocks found in the cache are told again as stored.
    pub tell_reused: bool,
}

impl Default for KvEvents {
    fn default() -> Self {
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            listen: free,
            replay: Some(free),
            encoding: KvEncoding::Map,
            topic: String::new(),
            kept: 10_000,
            tell_reused: false,
        }
    }
}

/// One simulated engine.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Name in the `x-inference-pod` response header.
    pub name: String,
    /// Whose names and routes.
    pub engine: EngineKind,
    /// Served names of the model, at least one; the first is the one that metrics carry.
    pub models: Vec<String>,
    /// Served names of adapters of that model.
    pub loras: Vec<String>,
    /// Step costs and memory.
    pub profile: Profile,
    /// How many times faster than life; at least 0.001.
    pub speed: f64,
    /// Tokens in a KV block.
    pub block_tokens: u32,
    /// KV blocks; by default what the profile's memory gives.
    pub kv_blocks: Option<u32>,
    /// Requests that may wait in the queue.
    pub max_waiting: u32,
    /// Longest prompt and output together, tokens.
    pub max_model_len: u32,
    /// Whether prompts share blocks.
    pub prefix_caching: bool,
    /// Time until ready.
    pub startup: Duration,
    /// How long an idle connection is kept; `None` for ever.
    pub keep_alive: Option<Duration>,
    /// Metric names of vLLM before 0.11 for KV use and the prefix cache.
    pub legacy_metrics: bool,
    /// Largest request body, bytes.
    pub max_body: usize,
    /// Most open connections; further ones wait in the backlog.
    pub max_connections: usize,
    /// Faults from the start.
    pub faults: Faults,
    /// What turns prompts into token ids; by default four bytes of text are one.
    pub tokenizer: Option<Arc<TokenModel>>,
    /// Where the cache's changes are told; nowhere by default.
    pub kv_events: Option<KvEvents>,
    /// Part that it plays where prefill and decode are apart.
    pub role: ServingRole,
    /// How it hands KV over; not at all by default.
    pub transfer: Option<HandoffOptions>,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            name: "sim".into(),
            engine: EngineKind::Vllm,
            models: vec!["sim-8b".into()],
            loras: Vec::new(),
            profile: Profile::h200_8b(),
            speed: 1.0,
            block_tokens: 16,
            kv_blocks: None,
            max_waiting: 4096,
            max_model_len: 131_072,
            prefix_caching: true,
            startup: Duration::ZERO,
            keep_alive: Some(Duration::from_secs(5)),
            legacy_metrics: false,
            max_body: 128 << 20,
            max_connections: 16_384,
            faults: Faults::default(),
            tokenizer: None,
            kv_events: None,
            role: ServingRole::Both,
            transfer: None,
        }
    }
}

/// An option outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {reason}")]
pub struct BadOption {
    /// The option.
    pub option: &'static str,
    /// Its value and what is allowed.
    pub reason: String,
}

impl SimOptions {
    /// KV blocks that the engine has.
    pub fn blocks(&self) -> u32 {
        let by_memory = self.profile.kv_tokens / u64::from(self.block_tokens.max(1));
        self.kv_blocks.unwrap_or(by_memory.min(u64::from(u32::MAX)) as u32)
    }

    /// Refuses values outside their range, naming them.
    pub fn validate(&self) -> Result<(), BadOption> {
        let bad = |option, reason: String| Err(BadOption { option, reason });
        if self.models.is_empty() || self.models.iter().any(String::is_empty) {
            return bad("model", "needs at least one name, none of them empty".into());
        }
        if let Some(name) = self.loras.iter().find(|n| n.is_empty() || self.models.contains(n)) {
            return bad("lora", format!("{name:?} is empty or the model's own name"));
        }
        if self.kv_events.as_ref().is_some_and(|e| e.kept == 0) {
            return bad("kv-buffer", "must be at least 1".into());
        }
        if !(0.001..=1e6).contains(&self.speed) {
            return bad("speed", format!("{} is outside 0.001..=1000000", self.speed));
        }
        if !(1..=65_536).contains(&self.block_tokens) {
            return bad("block-size", format!("{} is outside 1..=65536", self.block_tokens));
        }
        if !(1..=100_000_000).contains(&self.blocks()) {
            return bad("kv-blocks", format!("{} is outside 1..=100000000", self.blocks()));
        }
        let p = &self.profile;
        for (option, v) in [
            ("base", p.base),
            ("prefill", p.prefill),
            ("attention", p.attention),
            ("per-sequence", p.per_sequence),
            ("decode-context", p.decode_context),
        ] {
            if !v.is_finite() || !(0.0..=3600.0).contains(&v) {
                return bad(option, format!("{v} is outside 0..=3600 seconds"));
            }
        }
        if p.token_budget == 0 || p.max_running == 0 {
            return bad("token-budget", "token budget and max-num-seqs must be at least 1".into());
        }
        match &self.transfer {
            Some(transfer) => transfer.validate(self.role, self.engine == EngineKind::Sglang)?,
            None if self.role != ServingRole::Both => {
                return bad("role", "prefill and decode need a hand-off".into());
            }
            None => {}
        }
        if self.max_connections == 0 {
            return bad("max-connections", "must be at least 1".into());
        }
        self.faults.validate().map_err(|e| BadOption { option: "faults", reason: e.to_string() })
    }
}
