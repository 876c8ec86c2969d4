//! Who decides where a request goes.

use super::cluster::{Event, World};
use super::workload::RequestId;

/// Decides where requests go. Gateways with a policy are one; a planner that knows the future may be another.
pub trait Decider {
    /// The instance for a request that has come, or comes back for another try; `tried` has refused or lost it. `None`
    /// when there is none.
    fn decide(&mut self, request: RequestId, tried: &[usize], world: &World) -> Option<usize>;

    /// The instance did not take the request decided on last: it is as if it had not been sent.
    fn refused(&mut self, request: RequestId, instance: usize, down: bool, world: &World) {
        let _ = (request, instance, down, world);
    }

    /// Something has happened; arrivals are not told. May take changes of caches out of the world at
    /// [`Event::Stepped`].
    fn happened(&mut self, event: &Event, world: &mut World) {
        let _ = (event, world);
    }
}
