//! What a replica is told to and asked of by its process.

use std::sync::Arc;

use fairlead_wire::TargetId;
use fairlead_wire::msg::{CacheSource, Costs, InFlight, InstanceInfo, RankLoad, ServingRole};

/// How far the replicated state may be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Linked to the scheduler, or cut off so recently that its figures still count.
    Fresh,
    /// Cut off for longer than `stale_us`: targets and prefixes count, other parties' load does not.
    Stale,
    /// Cut off for longer than `blind_us`.
    Blind,
}

/// An engine's report as this gateway sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineView {
    /// The figures; `taken_us` in this process's clock.
    pub load: RankLoad,
    /// Requests that the report shows beyond what all gateways had in flight at its time; `None` when the engine
    /// reports no requests.
    pub foreign_requests: Option<u32>,
}

/// What may change of a target while its instance stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetState {
    /// Rank within the instance; never changes.
    pub rank: u16,
    /// Whether it may be picked.
    pub ready: bool,
    /// Where the index learns what it holds.
    pub cache: CacheSource,
    /// The part that it should rather play; `Both` for no leaning.
    pub leaning: ServingRole,
}

/// Takes the replicated state into the form that decisions read. All ids are local: chosen by the replica, the same
/// through reconnects, snapshots and restarts of the scheduler, so that guards of running requests stay valid.
pub trait ReplicaSink {
    /// A target appeared, or its description or state changed. Takes effect with [`ReplicaSink::publish`].
    fn target(&mut self, id: TargetId, state: TargetState, info: &Arc<InstanceInfo>);
    /// A target is gone: no longer to be picked. Its counters must stay readable until
    /// [`ReplicaSink::forgotten`]. Takes effect with [`ReplicaSink::publish`].
    fn target_gone(&mut self, id: TargetId);
    /// The slot of a gone target has no reservation left and may be given to another.
    fn forgotten(&mut self, id: TargetId);
    /// Ends a batch of changes of the table.
    fn publish(&mut self);
    /// What the engine of a target reports.
    fn engine_load(&mut self, id: TargetId, load: &EngineView);
    /// What the other gateways have in flight at a target (`target` of the sums is the local id), as told at `now_us`.
    fn peer_load(&mut self, id: TargetId, sums: &InFlight, now_us: u64);
    /// What the work of a target costs, as all gateways have learnt together. Told anew when it changes by more than a
    /// little; of a part without observations the numbers mean nothing.
    fn costs(&mut self, id: TargetId, costs: &Costs);
    /// How far all this may be trusted; told on change.
    fn trust(&mut self, trust: Trust);
}

/// Reads this gateway's own reservations.
pub trait ReservationSource {
    /// What this gateway has in flight at a target, gone targets included (`target` of the answer is ignored).
    fn in_flight(&self, id: TargetId) -> InFlight;
}
