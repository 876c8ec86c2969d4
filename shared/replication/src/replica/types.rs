//! Settings, errors, counts and state of a replica.

use fairlead_prefix::Reader;
use fairlead_wire::limits::MAX_TARGETS;
use fairlead_wire::{FrameError, Kind};

use super::Trust;

/// Settings of a [`Replica`].
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// Byte budget of each of the two trees; one of them is nearly always empty. Should be above the scheduler's.
    pub index_bytes: usize,
    /// Byte budget of unconfirmed placements.
    pub overlay_bytes: usize,
    /// How long an unconfirmed placement counts while the scheduler is there, microseconds.
    pub overlay_keep_us: u64,
    /// There never is a scheduler: nothing that is said to it has to be kept account of.
    pub alone: bool,
    /// Local target slots, cooling ones included.
    pub max_targets: usize,
    /// Least interval between two messages about this gateway's reservations, microseconds.
    pub load_us: u64,
    /// How long a local slot rests before a new target gets it, microseconds.
    pub slot_grace_us: u64,
    /// Operations kept while a snapshot is loaded, bytes.
    pub buffer_bytes: usize,
    /// Placements waiting to be sent, bytes.
    pub queue_bytes: usize,
    /// Runs taken in one go out of a tree that is of no more use: a fraction of a millisecond.
    pub slice_runs: usize,
    /// Bytes of kept operations applied in one go.
    pub slice_bytes: usize,
    /// A snapshot that makes no progress for so long is asked for again, microseconds.
    pub stall_us: u64,
    /// Silence after which other parties' load no longer counts, microseconds.
    pub stale_us: u64,
    /// Silence after which even the target list is doubted, microseconds.
    pub blind_us: u64,
}

impl Default for ReplicaConfig {
    fn default() -> Self {
        Self {
            index_bytes: 1_280 << 20,
            overlay_bytes: 64 << 20,
            overlay_keep_us: 5_000_000,
            alone: false,
            max_targets: MAX_TARGETS,
            load_us: 1_000,
            slot_grace_us: 2_000_000,
            buffer_bytes: 64 << 20,
            queue_bytes: 4 << 20,
            slice_runs: 2_048,
            slice_bytes: 512 << 10,
            stall_us: 5_000_000,
            stale_us: 10_000_000,
            blind_us: 300_000_000,
        }
    }
}

/// What shards look up prefixes in: the answer is the largest per target.
#[derive(Clone)]
pub struct Readers {
    /// The two trees of the replica.
    pub index: [Reader; 2],
    /// Unconfirmed placements.
    pub overlay: Reader,
}

/// Why a frame was not taken. The link should be closed.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The frame is malformed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A scheduler does not send this.
    #[error("{0:?} is not for a gateway")]
    Unexpected(Kind),
    /// No link has been announced with [`Replica::connected`].
    #[error("a frame without a link")]
    NotConnected,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaStats {
    /// Operations applied.
    pub ops: u64,
    /// Frames of operations applied.
    pub delta_frames: u64,
    /// Frames that did not follow on what is held.
    pub gaps: u64,
    /// Resumes asked for.
    pub resumes: u64,
    /// Snapshots loaded.
    pub snapshots: u64,
    /// Epochs begun after the first.
    pub epochs: u64,
    /// Operations that did not apply: a new snapshot was asked for.
    pub diverged: u64,
    /// Placements not sent for want of room (they stay in the overlay).
    pub placements_dropped: u64,
    /// Placements sent.
    pub placements_sent: u64,
    /// Overlay entries given up for want of room.
    pub overlay_crowded: u64,
    /// Load messages of other sessions or epochs.
    pub loads_ignored: u64,
    /// Targets that found no local slot.
    pub targets_refused: u64,
}

/// State of a replica, for metrics and admin pages.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    /// Epoch and sequence held; 0 before the first snapshot.
    pub epoch: u64,
    /// See `epoch`.
    pub sequence: u64,
    /// Time since the scheduler was last heard, microseconds.
    pub age_us: u64,
    /// Whether there is a link.
    pub connected: bool,
    /// Whether the live tree follows the linked scheduler.
    pub synced: bool,
    /// Whether the epoch held has settled: the scheduler has had time to hear of everybody.
    pub settled: bool,
    /// Whether an old epoch's state is still in use.
    pub provisional: bool,
    /// Whether a snapshot is being loaded.
    pub loading: bool,
    /// Whether prefix knowledge is switched off for want of room.
    pub index_off: bool,
    /// How far the state may be trusted.
    pub trust: Trust,
    /// Known targets.
    pub targets: usize,
    /// Those that may be picked.
    pub ready: usize,
    /// Other gateways.
    pub peers: usize,
    /// Overlay entries.
    pub overlay_entries: usize,
    /// Overlay bytes, everything counted.
    pub overlay_bytes: usize,
    /// Size of both trees together.
    pub blocks: u64,
    /// The same, counted once per holder.
    pub held_blocks: u64,
    /// See `blocks`.
    pub index_bytes: u64,
    /// Round trip to the scheduler, microseconds.
    pub round_trip_us: Option<u64>,
    /// Counts.
    pub stats: ReplicaStats,
}
