//! Message bodies. Each is the archive of one frame; [`crate::frame::Kind`] names which.

use rkyv::{Archive, Deserialize, Serialize};

mod feedback;
mod transfer;

pub use feedback::{Costs, Feedback, TargetCosts, TargetFeedback, TargetPace};
pub use transfer::{Handoff, Transfer};

/// What a peer is. The role is believed from the certificate; the hello only repeats it.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The scheduler.
    Scheduler,
    /// A gateway.
    Gateway,
    /// An agent beside an engine.
    Agent,
}

/// First message of a connection, from gateway or agent to the scheduler.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Hello {
    /// Role the sender believes it has.
    pub role: Role,
    /// Unique name of the sender within its role.
    pub name: String,
    /// Differs at every start of the sender.
    pub incarnation: u64,
    /// Oldest protocol version spoken.
    pub protocol_min: u16,
    /// Newest protocol version spoken.
    pub protocol_max: u16,
    /// Version of the software, for logs.
    pub software: String,
    /// Gateways: epoch and sequence of the replica already held.
    pub have: Option<(u64, u64)>,
}

/// The scheduler's answer to an accepted [`Hello`].
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Welcome {
    /// Protocol version to speak from here on.
    pub protocol: u16,
    /// The scheduler's start; part of every version of the state.
    pub epoch: u64,
    /// Secret seed of all block hashes of the cluster.
    pub cluster_seed: u64,
    /// Interval at which both sides send [`Ping`], milliseconds.
    pub heartbeat_ms: u32,
    /// Tokens of one routing block in token mode, the same for the whole cluster.
    pub block_tokens: u32,
}

/// Why a peer was refused.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefuseCode {
    /// No common protocol version.
    Protocol,
    /// Certificate's role or name does not allow this.
    Identity,
    /// A field is out of range.
    Invalid,
    /// A frame was malformed.
    Malformed,
    /// A table is full.
    Capacity,
    /// The peer's name is connected already with a newer incarnation.
    Superseded,
}

/// Ends a connection with a reason.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Refuse {
    /// Machine-readable cause.
    pub code: RefuseCode,
    /// For humans: names the offending field and value.
    pub reason: String,
}

/// Heartbeat and clock probe.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Echoed in the answer.
    pub id: u64,
    /// Sender's clock, microseconds.
    pub sent_us: u64,
}

/// Answer to [`Ping`].
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// Of the ping.
    pub id: u64,
    /// The ping's `sent_us`.
    pub ping_sent_us: u64,
    /// Clock of the answering side, microseconds.
    pub received_us: u64,
}

/// Kind of engine behind an instance.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum EngineKind {
    /// Health endpoint and OpenAI routes, no known metrics.
    #[default]
    Generic,
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
}

/// Fixed part that an instance plays in prefill/decode disaggregation.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ServingRole {
    /// Prefill and decode.
    #[default]
    Both,
    /// Prefill only.
    Prefill,
    /// Decode only.
    Decode,
}

impl ServingRole {
    /// The spelling in admin pages and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Both => "both",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// One model that an instance serves.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelInfo {
    /// Name by which clients ask for it.
    pub name: String,
    /// Longest prompt plus answer, tokens; `None` when the engine does not say.
    pub max_model_len: Option<u32>,
    /// Name of the base model when this is a LoRA adapter.
    pub parent: Option<String>,
}

/// What an agent knows of its engine once it is ready.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct InstanceInfo {
    /// Unique name of the instance.
    pub name: String,
    /// `host:port` at which gateways reach it.
    pub address: String,
    /// Machine it runs on; retries prefer another.
    pub host: String,
    /// Differs at every start of the *engine*: a new one means an empty cache.
    pub incarnation: u64,
    /// Engine family.
    pub engine: EngineKind,
    /// Engine's own version string, empty when unknown.
    pub engine_version: String,
    /// Models served.
    pub models: Vec<ModelInfo>,
    /// Fixed role, if any.
    pub role: ServingRole,
    /// How it hands KV over, where it does.
    pub transfer: Option<Transfer>,
    /// Data-parallel ranks, at least 1.
    pub dp_ranks: u16,
    /// Tokens in one engine KV block.
    pub block_size: Option<u32>,
    /// KV blocks of one rank.
    pub kv_blocks: Option<u64>,
    /// Requests one rank runs at once.
    pub max_num_seqs: Option<u32>,
    /// Labels for filters.
    pub labels: Vec<(String, String)>,
}

impl InstanceInfo {
    /// An instance of which only its name, its `host:port` and its models are known.
    pub fn new(name: &str, address: &str, models: impl IntoIterator<Item: Into<String>>) -> Self {
        let model = |name: String| ModelInfo { name, max_model_len: None, parent: None };
        Self {
            name: name.to_owned(),
            address: address.to_owned(),
            host: address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned(),
            incarnation: 1,
            engine: EngineKind::Generic,
            engine_version: String::new(),
            models: models.into_iter().map(|name| model(name.into())).collect(),
            role: ServingRole::Both,
            transfer: None,
            dp_ranks: 1,
            block_size: None,
            kv_blocks: None,
            max_num_seqs: None,
            labels: Vec::new(),
        }
    }
}

/// Load of one rank as its engine reports it. `None` is unknown, never zero.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Default)]
pub struct RankLoad {
    /// Data-parallel rank.
    pub rank: u16,
    /// When the figures were taken. Agent's clock from agent to scheduler; scheduler's clock from there on.
    pub taken_us: u64,
    /// Requests running.
    pub running: Option<u32>,
    /// Requests waiting.
    pub waiting: Option<u32>,
    /// Share of KV room in use, 0 to 1.
    pub kv_usage: Option<f32>,
    /// KV room, tokens.
    pub kv_total_tokens: Option<u64>,
    /// Prompt tokens since the engine's start.
    pub prompt_tokens_total: Option<u64>,
    /// Generated tokens since the engine's start.
    pub generation_tokens_total: Option<u64>,
    /// Prompt tokens per second, measured by the agent between its last two scrapes.
    pub prompt_tokens_per_s: Option<f32>,
    /// Generated tokens per second.
    pub generation_tokens_per_s: Option<f32>,
    /// Share of prompt tokens served from cache.
    pub cache_hit_rate: Option<f32>,
    /// Share of the room for KV outside of the accelerator in use, 0 to 1.
    pub host_kv_usage: Option<f32>,
    /// Mean time that a request waited before its prefill began, seconds. This mean and the four below are over the
    /// requests that ended lately; 0 where none did.
    pub queue_time_s: Option<f32>,
    /// Mean time from then to its first token, seconds.
    pub prefill_time_s: Option<f32>,
    /// Mean time from there to its end, seconds.
    pub decode_time_s: Option<f32>,
    /// Mean prompt tokens of a request.
    pub request_prompt_tokens: Option<f32>,
    /// Mean generated tokens of a request.
    pub request_generation_tokens: Option<f32>,
    /// Share of the time lately in which requests were running, as the agent saw it.
    pub busy: Option<f32>,
    /// Share of what the engine can take that is in use, 0 to 1: as the engine tells it, else as the agent reckons it.
    pub utilization: Option<f32>,
}

/// Agent to scheduler: the engine is ready (or changed what it serves).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Register {
    /// The instance.
    pub instance: InstanceInfo,
}

/// Agent to scheduler: state of the engine, sent on change and with each heartbeat.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Report {
    /// Engine incarnation the report speaks of.
    pub incarnation: u64,
    /// Whether the engine answers its health probe.
    pub ready: bool,
    /// Why not, when not.
    pub reason: Option<String>,
    /// Load per rank; empty when nothing was scraped.
    pub ranks: Vec<RankLoad>,
}

/// A gateway's requests in flight at one target: absolute, so that the newest replaces all before it.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct InFlight {
    /// Packed [`crate::TargetId`].
    pub target: u32,
    /// Requests picked and not ended.
    pub requests: u32,
    /// Those of them that have not had their first token.
    pub prefilling: u32,
    /// Uncached prompt tokens not yet prefilled.
    pub prefill_tokens: u64,
    /// The same as work of the target, as this gateway predicts it, microseconds.
    pub prefill_us: u64,
    /// Prompt tokens of requests past their first token.
    pub context_tokens: u64,
}

/// Gateway to scheduler: its reservations.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct GatewayLoad {
    /// Rises with every message of one gateway incarnation.
    pub version: u64,
    /// Whether a target that is not listed has nothing in flight. Sent so after a connect and then with every
    /// heartbeat, so that a lost message heals.
    pub full: bool,
    /// Targets whose figures changed since the last message (a zero entry ends one); all of them when `full`.
    pub targets: Vec<InFlight>,
}

/// What the blocks of a chain are made of. Chains of both kinds live in one index; they never meet.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum HashSpace {
    /// Bytes of the canonical prompt.
    #[default]
    Bytes,
    /// Token ids.
    Tokens,
}

/// Where the index learns what a target holds.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum CacheSource {
    /// From the prompts that gateways send there.
    #[default]
    Placements,
    /// From the engine's own KV-cache events: exact in token space.
    Events,
    /// From the engine's events, of which some were lost: what is known is right, there may be more.
    PartialEvents,
}

/// A prompt was sent to a target: it will hold these blocks. Or, with `keep`, it will not after all.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Packed [`crate::TargetId`].
    pub target: u32,
    /// Chained block hashes from the first block of the prompt.
    pub path: Vec<u64>,
    /// `Some(n)` withdraws an earlier placement of this path: only its first `n` blocks stay.
    pub keep: Option<u32>,
    /// What the path's blocks are made of. A target with events is not placed on in token space.
    pub space: HashSpace,
}

/// Gateway to scheduler: placements, in order.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Placements {
    /// The placements.
    pub items: Vec<Placement>,
}

/// One change of an engine's KV cache, in routing blocks. Blocks are named by their chained hashes.
///
/// `above` places `blocks` in the tree: it lists the blocks right before them in path order, beginning at an anchor
/// ([`crate::is_anchor`]) or at the path's first block.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum CacheOp {
    /// The engine holds `blocks`. Says nothing of `above`. With `above` empty, `blocks` begin a path.
    Store {
        /// Blocks right before.
        above: Vec<u64>,
        /// Consecutive blocks.
        blocks: Vec<u64>,
    },
    /// The engine no longer holds `blocks`. `above` may be empty where the first of `blocks` is an anchor or begins a
    /// path.
    Remove {
        /// Blocks right before.
        above: Vec<u64>,
        /// Consecutive blocks.
        blocks: Vec<u64>,
    },
    /// The engine holds nothing.
    Clear,
}

/// Agent to scheduler: changes of the KV cache of one rank, in order, from the engine's own events.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct CacheEvents {
    /// Engine incarnation the changes belong to.
    pub incarnation: u64,
    /// Data-parallel rank.
    pub rank: u16,
    /// Events were lost: the engine may hold more than what has been told.
    pub partial: bool,
    /// All that was told before is void; the operations begin a full account.
    pub replace: bool,
    /// In order.
    pub ops: Vec<CacheOp>,
}

/// A target as gateways see it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct TargetInfo {
    /// Packed [`crate::TargetId`].
    pub target: u32,
    /// Rank within the instance.
    pub rank: u16,
    /// Whether it may be picked.
    pub ready: bool,
    /// Where the index learns what it holds.
    pub cache: CacheSource,
    /// What its work costs, as all gateways have learnt together; `None` while nothing is known of its like.
    pub costs: Option<Costs>,
    /// The part that an instance without a fixed role should rather play now; `Both` for no leaning.
    pub leaning: ServingRole,
    /// The instance.
    pub instance: InstanceInfo,
}

/// One change of the prefix index. The truth is the set of (target, block); depth is its fast form.
///
/// Runs are named by the chained hash of their first block. Splits follow from the operations alone, so a name
/// means the same run in every replica that has applied the same operations.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum IndexOp {
    /// The target holds everything from the root through the first `skip` blocks of run `anchor`, and then `blocks`.
    Place {
        /// Packed [`crate::TargetId`].
        target: u32,
        /// Head hash of an existing run; 0 is the root (then `skip` is 0).
        anchor: u64,
        /// Blocks of the anchor run that belong to the path.
        skip: u32,
        /// Hashes that follow.
        blocks: Vec<u64>,
    },
    /// The target holds `blocks`, which follow the first `skip` blocks of run `anchor`. Unlike [`IndexOp::Place`] this
    /// says nothing of the blocks before them.
    Store {
        /// Packed [`crate::TargetId`].
        target: u32,
        /// Head hash of an existing run; 0 is the root (then `skip` is 0).
        anchor: u64,
        /// Blocks of the anchor run that stand before `blocks`.
        skip: u32,
        /// Hashes that are held.
        blocks: Vec<u64>,
    },
    /// The target no longer holds `len` blocks of run `run` from offset `from`.
    Remove {
        /// Packed [`crate::TargetId`].
        target: u32,
        /// Head hash of the run.
        run: u64,
        /// First block, counted from the head.
        from: u32,
        /// Number of blocks.
        len: u32,
    },
    /// The target holds nothing (its cache was reset); it stays.
    Clear {
        /// Packed [`crate::TargetId`].
        target: u32,
    },
    /// Every holding of run `run` and all that hangs below it ends (byte budget).
    Evict {
        /// Head hash of the run.
        run: u64,
    },
}

/// One sequenced change of the replicated state.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub enum Op {
    /// A target appeared, or its description or readiness changed.
    Target(Box<TargetInfo>),
    /// A target is gone, with all it held.
    TargetGone {
        /// Packed [`crate::TargetId`].
        target: u32,
    },
    /// The index changed.
    Index(IndexOp),
    /// The new epoch's scheduler has heard from everybody it can expect to: what is still provisional is void.
    EpochSettled,
    /// What the gateways have learnt of a target's costs has changed.
    Costs(TargetCosts),
}

/// Scheduler to gateways: sequenced operations. The frame header carries epoch, base and new sequence.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Delta {
    /// In order.
    pub ops: Vec<Op>,
}

/// Part of a run that a target holds.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Packed [`crate::TargetId`].
    pub target: u32,
    /// The first `depth` blocks of the run, less the exceptions.
    pub depth: u32,
    /// Stretches (offset, length) inside `depth` that are not held.
    pub missing: Vec<(u32, u32)>,
}

/// One run of the index in a snapshot. Parents come before children.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Head hash of the parent run; 0 is the root.
    pub parent: u64,
    /// Chained hashes; the first is the run's name.
    pub blocks: Vec<u64>,
    /// Who holds how much.
    pub holders: Vec<Holding>,
}

/// A piece of a snapshot. The frame header carries the epoch and the sequence N at which it was taken.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct SnapshotChunk {
    /// Counts from 0.
    pub part: u32,
    /// No more to come.
    pub last: bool,
    /// Whether the epoch was settled ([`Op::EpochSettled`]) when the snapshot was taken.
    pub settled: bool,
    /// Targets (in the first parts).
    pub targets: Vec<TargetInfo>,
    /// Runs.
    pub runs: Vec<Run>,
}

/// Gateway to a scheduler of a new epoch: what the gateway's replica says a target holds. Slots mean nothing to the
/// new scheduler, so the target is named.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Recollection {
    /// Instance name.
    pub instance: String,
    /// Rank.
    pub rank: u16,
    /// Engine incarnation the holdings belong to; another one voids them.
    pub incarnation: u64,
    /// Paths from the root, each a leaf of what the target holds.
    pub paths: Vec<Vec<u64>>,
    /// Last message of this gateway's recollections.
    pub last: bool,
}

/// Gateway to scheduler: deltas were missed; answer with the ring or a snapshot.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Epoch held.
    pub epoch: u64,
    /// Last sequence applied.
    pub sequence: u64,
}

/// Load of one target as its engine reports it.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
pub struct EngineLoad {
    /// Packed [`crate::TargetId`].
    pub target: u32,
    /// The figures, `taken_us` in the scheduler's clock.
    pub load: RankLoad,
}

/// Reservations of one other gateway.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct PeerLoad {
    /// Scheduler-assigned number of the gateway's session.
    pub gateway: u32,
    /// Of the gateway's [`GatewayLoad`].
    pub version: u64,
    /// Whether a target that is not listed has nothing in flight.
    pub full: bool,
    /// Changed targets, absolute; all of them when `full`.
    pub targets: Vec<InFlight>,
}

/// Scheduler to gateways: load, unsequenced, the newest wins.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
pub struct LoadUpdate {
    /// Engines' figures that changed.
    pub engines: Vec<EngineLoad>,
    /// Other gateways' reservations that changed.
    pub gateways: Vec<PeerLoad>,
    /// Gateway sessions that ended: forget their reservations.
    pub gone: Vec<u32>,
    /// Every gateway session there is, in the periodic refresh: whoever is not listed has ended. Heals the loss of
    /// a `gone`.
    pub live: Option<Vec<u32>>,
}
