//! Whole shards on the simulated runtime, for tests of whole fleets.

use std::io;
use std::sync::Arc;

use fairlead_routing::Fleet;

pub use crate::control::{Desk, DeskOptions, FleetSink};
use crate::options::GatewayOptions;
use crate::runtime::sim::{Sim, SimListener};
use crate::shard::{self, Inbox, Offload};
use crate::shared::Shared;

/// [`Shared`] of a simulated gateway: what a helper thread would do happens at once.
///
/// # Errors
/// Descriptors are exhausted.
pub fn shared(options: &GatewayOptions, fleet: Arc<Fleet>) -> io::Result<Arc<Shared>> {
    Shared::with_helper(options, fleet, Offload::in_line())
}

/// One shard, the same code as on a real runtime, from its first accept to the end of its drain.
pub async fn shard(
    listener: SimListener,
    options: Arc<GatewayOptions>,
    shared: Arc<Shared>,
    inbox: Inbox,
    seed: u64,
) {
    shared.shard_started();
    let doors = vec![shard::Door { listener, secure: false }];
    shard::run(Sim, doors, options, shared.clone(), inbox, seed).await;
    shared.shard_ended();
}

/// Tells a gateway's shards to drain.
pub fn drain(shared: &Shared, inboxes: &[Inbox]) {
    shared.set_draining();
    inboxes.iter().for_each(Inbox::wake);
}
