//! Probing targets that this gateway could not connect to.
//!
//! A target whose circuit is open gets no requests. Instead of spending one on finding out whether it is back, the
//! shard that met the failure connects to it now and then, keeps the circuit open while that fails, and closes it as
//! soon as it succeeds.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashSet;
use fairlead_routing::TargetEntry;
use fairlead_wire::TargetId;

use super::Shard;
use super::upstream::acquire;
use crate::runtime::Runtime;

/// Pause between probes; shorter than the shortest exclusion, so that a circuit does not lapse in between.
const PAUSE: Duration = Duration::from_millis(400);

/// Targets that a shard is probing, one task each.
#[derive(Default)]
pub struct Probes {
    running: RefCell<AHashSet<TargetId>>,
}

/// Probes `target` until it takes a connection, has left the table, or the gateway drains.
pub fn begin<R: Runtime>(shard: &Rc<Shard<R>>, target: &Arc<TargetEntry>) {
    if !shard.probes.running.borrow_mut().insert(target.id) {
        return;
    }
    let (shard, target) = (shard.clone(), target.clone());
    R::spawn(async move {
        while is_wanted(&shard, &target) {
            R::sleep(PAUSE).await;
            // A connect that hangs must not outlast the exclusion.
            target.cells.connect_failed(R::now_us());
            if let Ok(upstream) = acquire(&shard, &target, true).await {
                target.cells.connected();
                shard.pool.put(target.id, upstream.socket);
                tracing::info!(target = %target.name, "target takes connections again");
                break;
            }
        }
        shard.probes.running.borrow_mut().remove(&target.id);
    });
}

fn is_wanted<R: Runtime>(shard: &Shard<R>, target: &TargetEntry) -> bool {
    !shard.shared.is_draining() && shard.shared.fleet.table().get(target.id).is_some()
}
