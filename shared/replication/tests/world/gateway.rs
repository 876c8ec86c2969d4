//! A gateway's process: its replica, and what the process is told by it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use fairlead_prefix::Hits;
use fairlead_replication::{
    EngineView, Readers, Replica, ReplicaConfig, ReplicaSink, ReservationSource, SessionId, TargetState,
    Trust,
};
use fairlead_wire::TargetId;
use fairlead_wire::msg::{Costs, InFlight, InstanceInfo, ServingRole};

/// What a gateway's process sees of its replica.
#[derive(Default)]
pub struct Seen {
    pub targets: BTreeMap<TargetId, (String, u16, u64, bool)>,
    /// Slots that may not be given away yet.
    pub cooling: BTreeSet<TargetId>,
    pub peers: BTreeMap<TargetId, InFlight>,
    pub engines: BTreeMap<TargetId, EngineView>,
    pub costs: BTreeMap<TargetId, Costs>,
    pub leanings: BTreeMap<TargetId, ServingRole>,
    pub trust: Option<Trust>,
    pub reserved: BTreeMap<TargetId, InFlight>,
    pub publishes: u64,
}

#[derive(Clone)]
pub struct Sink(pub Rc<RefCell<Seen>>);

impl ReplicaSink for Sink {
    fn target(&mut self, id: TargetId, state: TargetState, info: &Arc<InstanceInfo>) {
        let mut seen = self.0.borrow_mut();
        assert!(!seen.cooling.iter().any(|cold| cold.slot == id.slot), "slot {id} given away while in use");
        assert!(
            !seen.targets.keys().any(|known| known.slot == id.slot && *known != id),
            "two tenants of {id}"
        );
        seen.targets.insert(id, (info.name.clone(), state.rank, info.incarnation, state.ready));
        seen.leanings.insert(id, state.leaning);
    }

    fn target_gone(&mut self, id: TargetId) {
        let mut seen = self.0.borrow_mut();
        assert!(seen.targets.remove(&id).is_some(), "{id} was not there");
        seen.peers.remove(&id);
        seen.engines.remove(&id);
        seen.costs.remove(&id);
        seen.leanings.remove(&id);
        seen.cooling.insert(id);
    }

    fn forgotten(&mut self, id: TargetId) {
        let mut seen = self.0.borrow_mut();
        assert!(seen.cooling.remove(&id), "{id} was not cooling");
        assert_eq!(seen.reserved.get(&id).copied().unwrap_or_default().requests, 0, "{id} is still in use");
    }

    fn publish(&mut self) {
        self.0.borrow_mut().publishes += 1;
    }

    fn engine_load(&mut self, id: TargetId, load: &EngineView) {
        let mut seen = self.0.borrow_mut();
        assert!(seen.targets.contains_key(&id));
        seen.engines.insert(id, *load);
    }

    fn peer_load(&mut self, id: TargetId, sums: &InFlight, _: u64) {
        let mut seen = self.0.borrow_mut();
        assert!(seen.targets.contains_key(&id));
        assert_eq!(sums.target, id.pack());
        seen.peers.insert(id, *sums);
    }

    fn costs(&mut self, id: TargetId, costs: &Costs) {
        let mut seen = self.0.borrow_mut();
        assert!(seen.targets.contains_key(&id));
        seen.costs.insert(id, *costs);
    }

    fn trust(&mut self, trust: Trust) {
        self.0.borrow_mut().trust = Some(trust);
    }
}

impl ReservationSource for Sink {
    fn in_flight(&self, id: TargetId) -> InFlight {
        self.0.borrow().reserved.get(&id).copied().unwrap_or_default()
    }
}

/// Costs in proportion to that of a prompt token.
pub fn costs(prefill: f32, count: u32) -> Costs {
    Costs {
        prefill,
        attention: prefill / 30_000.0,
        step: prefill * 200.0,
        sequence: prefill,
        context: prefill / 1_500.0,
        chunk: 1_024.0,
        prefills: count,
        decodes: count,
    }
}

pub struct Gateway {
    pub name: String,
    pub replica: Replica<Sink>,
    pub seen: Rc<RefCell<Seen>>,
    pub readers: Readers,
    pub session: Option<SessionId>,
    pub incarnation: u64,
    pub skew: u64,
    /// Not reconnected while set.
    pub held_off: bool,
}

impl Gateway {
    pub fn new(name: &str, incarnation: u64, skew: u64, config: ReplicaConfig, now: u64) -> Self {
        let seen = Rc::new(RefCell::new(Seen::default()));
        let mut readers = None;
        let sink = Sink(seen.clone());
        let make = |all: &Readers| {
            readers = Some(all.clone());
            sink
        };
        let replica = Replica::new(config, make, now + skew);
        let readers = readers.expect("made");
        Self { name: name.into(), replica, seen, readers, session: None, incarnation, skew, held_off: false }
    }

    pub fn find(&self, name: &str) -> Option<TargetId> {
        self.seen.borrow().targets.iter().find(|(_, target)| target.0 == name).map(|(id, _)| *id)
    }

    pub fn find_rank(&self, name: &str, rank: u16) -> Option<TargetId> {
        let seen = self.seen.borrow();
        seen.targets.iter().find(|(_, target)| target.0 == name && target.1 == rank).map(|(id, _)| *id)
    }

    pub fn ready(&self) -> Vec<TargetId> {
        self.seen.borrow().targets.iter().filter(|(_, target)| target.3).map(|(id, _)| *id).collect()
    }

    /// Leading blocks that the target is believed to hold.
    pub fn depth(&self, id: TargetId, path: &[u64]) -> u32 {
        let mut hits = Hits::default();
        let all = self.readers.index.iter().chain([&self.readers.overlay]);
        all.map(|reader| {
            reader.lookup(path, &mut hits);
            hits.get(id.slot)
        })
        .max()
        .unwrap_or(0)
    }

    /// What the gateway has seen so far, `count` observations of each kind, says that a prompt token costs so much.
    pub fn learn(&mut self, id: TargetId, prefill: f32, count: u32) {
        self.replica.learnt(id, &costs(prefill, count));
    }

    /// What it knows of an instance's cost of a prompt token, and by how many observations.
    pub fn shared(&self, name: &str) -> Option<(f32, u32)> {
        let id = self.find(name)?;
        let costs = self.seen.borrow().costs.get(&id).copied()?;
        Some((costs.prefill, costs.prefills))
    }

    pub fn reserve(&self, id: TargetId, requests: i32) {
        let mut seen = self.seen.borrow_mut();
        let cell = seen.reserved.entry(id).or_default();
        cell.requests = cell.requests.saturating_add_signed(requests);
        cell.prefilling = cell.requests / 2;
        cell.prefill_tokens = u64::from(cell.requests) * 10;
        cell.prefill_us = u64::from(cell.requests) * 30_000;
        cell.context_tokens = u64::from(cell.requests) * 100;
    }
}
