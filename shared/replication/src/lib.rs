//! State machines of the replicated state, sans I/O: times and messages in, frames out.
//!
//! [`Truth`] is the scheduler's side: it assigns target slots, judges liveness, applies placements to the prefix index
//! and turns every change into a sequenced operation. [`Replica`] is a gateway's side: the single writer of the index
//! copy that the shards read. Both are driven by their process's event loop and run as well in virtual time.
//!
//! ```text
//!  agents ──Register, Report──▶ Truth ──Snapshot, Delta (sequenced), LoadUpdate (newest wins)──▶ Replica ──▶ shards
//!                                 ▲                                                                │
//!                                 └──────── GatewayLoad, Placements, Recollection, Resume ─────────┘
//! ```
//!
//! # Versions
//! A version is (epoch, sequence). The epoch is the scheduler's start; the sequence counts operations. A frame of
//! operations says from which sequence to which it leads. A replica that sees a gap asks to resume; the truth replays
//! from its ring of recent frames or, when they are gone, sends a snapshot taken at sequence N and then what follows
//! N.
//!
//! # Promise
//! Once the stream is quiet, a replica (without its overlay) equals the truth: same targets, same holdings, same sums
//! of the other gateways' reservations.

mod clock;
mod lean;
mod replica;
mod truth;

pub use clock::ClockMap;
pub use lean::{LeanConfig, LeanTarget, Leaning};
pub use replica::{
    CHORES_US, CONFIRM, CacheAnswer, EngineView, Entry as OverlayEntry, Outgoing, Overlay, Readers, Replica,
    ReplicaConfig, ReplicaError, ReplicaSink, ReplicaStats, ReplicaStatus, ReservationSource, Trust,
};
pub use truth::{Output, TargetView, Truth, TruthConfig, TruthStats};

/// A connection to a peer, numbered by the driver. A number is never used twice in one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// An ordered sequence of frames within a connection. Frames of different lanes may overtake one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Heartbeats, registrations, reservations: small, ordered, reliable.
    Control,
    /// Load updates: may be lost or reordered.
    Load,
    /// Sequenced operations; from a gateway, placements.
    Delta,
    /// Snapshots; from a gateway, recollections.
    Snapshot,
}
