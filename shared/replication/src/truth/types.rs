//! Settings, counts and outputs of a truth.

use std::sync::Arc;

use bytes::Bytes;
use fairlead_wire::TargetId;
use fairlead_wire::msg::{CacheSource, Costs, InstanceInfo, RankLoad, Refuse, ServingRole};

use crate::{Lane, LeanConfig, SessionId};

/// Settings of a [`Truth`].
#[derive(Clone, Debug)]
pub struct TruthConfig {
    /// Interval of heartbeats, microseconds.
    pub heartbeat_us: u64,
    /// Heartbeats missed before a peer counts as gone.
    pub missed: u32,
    /// Longest wait of an operation or a load change for company, microseconds.
    pub flush_us: u64,
    /// Size at which a frame of operations is closed, bytes.
    pub batch_bytes: usize,
    /// Size at which a chunk of a snapshot is closed, at most 1 MiB. A receiver applies one chunk at a time, so this
    /// bounds how long it is busy.
    pub chunk_bytes: usize,
    /// Recent frames kept for resuming gateways, bytes.
    pub ring_bytes: usize,
    /// Backlog of one gateway beyond which it gets a snapshot instead, bytes.
    pub lag_bytes: u64,
    /// Target slots, cooling ones included.
    pub max_targets: usize,
    /// Byte budget of the prefix index. Gateways' budgets should be larger: only the truth evicts.
    pub index_bytes: usize,
    /// Share of the index that one target may take.
    pub target_share: f32,
    /// Tokens of one routing block in token mode, for the whole cluster.
    pub block_tokens: u32,
    /// Bytes of one routing block in byte mode, for what an engine of known KV room can hold; 0 turns that limit off.
    pub block_bytes: u32,
    /// Inputs that wait while a snapshot is encoded, bytes; beyond, it is encoded to its end in one go.
    pub hold_bytes: usize,
    /// Bytes of inputs that have waited done in one tick, about; a single one may go beyond.
    pub step_bytes: usize,
    /// How long a target without an agent keeps its slot and its holdings, microseconds.
    pub linger_us: u64,
    /// How long a slot rests before a new target gets it, microseconds.
    pub slot_grace_us: u64,
    /// How long after the start recollections are taken, microseconds.
    pub recollect_us: u64,
    /// Recollections kept for instances that have not registered, bytes.
    pub recollect_bytes: usize,
    /// Agents' sessions.
    pub max_agents: usize,
    /// Gateways' sessions.
    pub max_gateways: usize,
    /// How targets without a fixed role lean to prefill and decode.
    pub lean: LeanConfig,
}

impl Default for TruthConfig {
    fn default() -> Self {
        Self {
            heartbeat_us: 1_000_000,
            missed: 3,
            flush_us: 200,
            batch_bytes: 64 << 10,
            chunk_bytes: 256 << 10,
            ring_bytes: 64 << 20,
            lag_bytes: 32 << 20,
            max_targets: 3_840,
            index_bytes: 1 << 30,
            target_share: 0.25,
            block_tokens: 64,
            block_bytes: 256,
            hold_bytes: 64 << 20,
            step_bytes: 256 << 10,
            linger_us: 10_000_000,
            slot_grace_us: 5_000_000,
            recollect_us: 30_000_000,
            recollect_bytes: 256 << 20,
            max_agents: 4_096,
            max_gateways: 256,
            lean: LeanConfig::default(),
        }
    }
}

/// Counts since the start, and present sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TruthStats {
    /// Epoch.
    pub epoch: u64,
    /// Sequence of the last frame of operations.
    pub sequence: u64,
    /// Whether the epoch has settled.
    pub settled: bool,
    /// Agents connected.
    pub agents: usize,
    /// Gateways connected.
    pub gateways: usize,
    /// Live targets.
    pub targets: usize,
    /// Live targets that may be picked.
    pub ready: usize,
    /// Bytes in the ring of recent frames.
    pub ring_bytes: usize,
    /// Bytes of snapshots kept.
    pub snapshot_bytes: usize,
    /// Bytes of inputs that wait until the index may be changed.
    pub waiting_bytes: usize,
    /// Times a snapshot was encoded in one go because too much waited.
    pub holds_cut: u64,
    /// Targets whose engine tells all that it holds.
    pub exact: usize,
    /// Targets whose engine tells what it holds, of which something was lost.
    pub partial: usize,
    /// Targets without a fixed role that should rather prefill.
    pub lean_prefill: usize,
    /// Those that should rather decode.
    pub lean_decode: usize,
    /// KV-cache events taken.
    pub cache_events: u64,
    /// KV-cache events of an unknown incarnation, or before the registration.
    pub events_ignored: u64,
    /// KV-cache events whose place is not in the index.
    pub unknown_parents: u64,
    /// Frames of operations made.
    pub delta_frames: u64,
    /// Snapshots encoded.
    pub snapshots_built: u64,
    /// Gateways that were started on a snapshot.
    pub snapshots_started: u64,
    /// Gateways resumed from the ring.
    pub resumed: u64,
    /// Sessions refused.
    pub refused: u64,
    /// Those, by [`RefuseCode`](fairlead_wire::msg::RefuseCode) in the order of its declaration.
    pub refused_by: [u64; 6],
    /// Sessions closed for silence.
    pub silent: u64,
    /// Reports that named an unknown incarnation or rank, or came before the registration.
    pub reports_ignored: u64,
    /// Placements of targets that are gone.
    pub placements_ignored: u64,
    /// Placements taken.
    pub placements: u64,
    /// Operations that evicted runs.
    pub evictions: u64,
    /// Operations that took from a target what goes beyond its share or its engine's KV room.
    pub trims: u64,
    /// Recollected paths not kept for want of room.
    pub recollections_dropped: u64,
    /// Times this process was starved.
    pub stalls: u64,
}

/// A target as the truth sees it, for the scheduler's admin pages.
#[derive(Clone, Debug)]
pub struct TargetView {
    /// Id in this epoch.
    pub id: TargetId,
    /// Rank within the instance.
    pub rank: u16,
    /// Whether it may be picked.
    pub ready: bool,
    /// The instance.
    pub info: Arc<InstanceInfo>,
    /// Last report, `taken_us` in the scheduler's clock.
    pub load: Option<RankLoad>,
    /// Requests in flight, summed over the gateways.
    pub requests: u64,
    /// Where the index learns what it holds.
    pub cache: CacheSource,
    /// The part that it should rather play; `Both` for no leaning.
    pub leaning: ServingRole,
    /// What its work costs, as the gateways were told.
    pub costs: Option<Costs>,
    /// Blocks that the index says it holds.
    pub held_blocks: u64,
    /// Blocks that it is believed to hold at most where placements alone tell; `None` when its engine's KV room is
    /// unknown.
    pub believed_blocks: Option<u64>,
    /// Correction within `believed_blocks` that answers have led to.
    pub capacity_factor: f64,
    /// Cached over predicted tokens of the last judged answers.
    pub cached_ratio: Option<f64>,
}

/// What the driver is to do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send a frame.
    Send {
        /// To whom.
        session: SessionId,
        /// In which order.
        lane: Lane,
        /// Header and payload; shared when several receive it.
        bytes: Bytes,
        /// Whether it is the last frame of a snapshot.
        last: bool,
    },
    /// Refuse the peer and close. The session is forgotten already.
    Close {
        /// Whom.
        session: SessionId,
        /// What to tell it.
        refuse: Refuse,
    },
}
