//! Who decides where a request goes.

use super::cluster::{Event, World};
use super::workload::RequestId;

/// Where the parts of a request go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placing {
    /// The instance that makes the answer.
    pub decode: usize,
    /// The one that prefills, where that is another.
    pub prefill: Option<usize>,
}

impl Placing {
    /// All of it to one instance.
    pub fn whole(instance: usize) -> Self {
        Self { decode: instance, prefill: None }
    }
}

/// Decides where requests go. Gateways with a policy are one; a planner that knows the future may be another.
pub trait Decider {
    /// The instance for a request that has come, or comes back for another try; `tried` has refused or lost it. `None`
    /// when there is none.
    fn decide(&mut self, request: RequestId, tried: &[usize], world: &World) -> Option<usize>;

    /// The instances of its parts. Who never parts them decides by [`Decider::decide`] alone.
    fn place(&mut self, request: RequestId, tried: &[usize], world: &World) -> Option<Placing> {
        self.decide(request, tried, world).map(Placing::whole)
    }

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
