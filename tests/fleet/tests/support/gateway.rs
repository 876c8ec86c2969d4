//! A gateway's process: real shards, the real desk of the control thread, a simulated link.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fairlead_dataplane::runtime::sim::{ProcessId, Sim, World, below};
use fairlead_dataplane::runtime::{Either, Runtime, either};
use fairlead_dataplane::sim::{self, Desk, DeskOptions};
use fairlead_dataplane::{GatewayOptions, Inbox, Shared};
use fairlead_replication::{Lane as ReplicaLane, ReplicaConfig};
use fairlead_routing::{TargetEntry, TargetTable};
use fairlead_scheduler::sim::Outlet;
use fairlead_transport::Lane;
use tokio::sync::Notify;

use super::link::{End, Exchange};

/// Frames taken in one go.
const FRAME_BATCH: usize = 64;

/// Short terms and small buffers.
pub fn replica_config() -> ReplicaConfig {
    ReplicaConfig {
        index_bytes: 12 << 20,
        overlay_bytes: 1 << 20,
        overlay_keep_us: 500_000,
        max_targets: 64,
        slot_grace_us: 200_000,
        buffer_bytes: 64 << 10,
        stall_us: 500_000,
        stale_us: 1_000_000,
        blind_us: 5_000_000,
        ..ReplicaConfig::default()
    }
}

/// A running gateway.
pub struct Gateway {
    pub name: String,
    pub process: ProcessId,
    pub desk: Rc<RefCell<Desk>>,
    pub shared: Arc<Shared>,
    table: Arc<TargetTable>,
    watched: Vec<Watched>,
}

/// Every target that this process has known.
struct Watched {
    entry: Arc<TargetEntry>,
    requests: u64,
    may_be_picked: bool,
}

/// Starts a gateway's process: its shards accept when the state of the fleet is there, or has not come in time.
pub fn start(
    world: &World,
    exchange: &Rc<Exchange>,
    name: &str,
    addr: SocketAddr,
    shards: u64,
    offset_us: u64,
) -> Gateway {
    let process = world.process_with(offset_us);
    let seed = world.below(u64::MAX);
    let options = Arc::new(GatewayOptions { seed, ..GatewayOptions::default() });
    let now = world.now_us() + offset_us;
    let desk = DeskOptions {
        name: name.to_owned(),
        incarnation: now,
        instances: Vec::new(),
        snapshot_wait: Some(Duration::from_secs(1)),
        replica: replica_config(),
        tpot_us: options.routing.settings.dynamic_pd_split.target_tpot_ms * 1e3,
    };
    let desk = Desk::new(desk, |fleet| sim::shared(&options, fleet), now).expect("descriptors");
    let shared = desk.shared().clone();
    let desk = Rc::new(RefCell::new(desk));
    for shard in 0..shards {
        let (options, shared) = (options.clone(), shared.clone());
        world.spawn(process, async move {
            while !shared.is_synced() {
                Sim::sleep(Duration::from_millis(1)).await;
            }
            let listener = Sim::listen(addr).expect("an address of one's own");
            sim::shard(listener, options, shared, Inbox::default(), seed ^ (shard + 1) << 32).await;
        });
    }
    let control = Control {
        desk: desk.clone(),
        shared: shared.clone(),
        exchange: exchange.clone(),
        room: Arc::default(),
    };
    world.spawn(process, control.run());
    let table = shared.fleet.table_full();
    Gateway { name: name.to_owned(), process, desk, shared, table, watched: Vec::new() }
}

struct Control {
    desk: Rc<RefCell<Desk>>,
    shared: Arc<Shared>,
    exchange: Rc<Exchange>,
    room: Arc<Notify>,
}

impl Control {
    /// The loop of the control thread.
    async fn run(self) {
        loop {
            let attempt = self.exchange.connect(self.desk.borrow().hello());
            let link = self.tend(attempt).await;
            if let Ok((end, welcome)) = link {
                self.desk.borrow_mut().connected(&welcome, Sim::now_us());
                end.signal_room(self.room.clone());
                self.linked(end).await;
                self.desk.borrow_mut().disconnected(Sim::now_us());
            }
            self.tend(Sim::sleep(Duration::from_millis(10 + below(150)))).await;
        }
    }

    /// Goes on with everything else until `until` has come.
    async fn tend<F: Future>(&self, until: F) -> F::Output {
        let mut until = std::pin::pin!(until);
        loop {
            let _ = self.desk.borrow_mut().step(Sim::now_us());
            if let Either::First(output) = either(until.as_mut(), self.idle()).await {
                return output;
            }
        }
    }

    /// Until something is due, or the shards have something.
    async fn idle(&self) {
        let now = Sim::now_us();
        let due = self.desk.borrow().due(now).saturating_sub(now);
        let bell = self.shared.bell();
        bell.arm();
        if !self.shared.has_placements() {
            let rung = either(bell.rung(), self.room.notified());
            either(rung, Sim::sleep(Duration::from_micros(due))).await;
        }
        bell.disarm();
    }

    async fn linked(&self, end: End) {
        loop {
            if !self.desk.borrow_mut().step(Sim::now_us()) {
                end.close("no heartbeat for three intervals");
                return;
            }
            while let Some(out) = self.desk.borrow_mut().poll(|lane| end.has_room(transport_lane(lane))) {
                if end.try_send(transport_lane(out.lane), out.bytes, false).is_err() {
                    break;
                }
            }
            let mut got = match either(end.recv(), self.idle()).await {
                Either::First(Ok((_, frame))) => Some(frame),
                Either::First(Err(_)) => return,
                Either::Second(()) => None,
            };
            for _ in 0..FRAME_BATCH {
                let Some(frame) = got else { break };
                if self.desk.borrow_mut().frame(&frame, Sim::now_us()).is_err() {
                    end.close("a frame that cannot be taken");
                    return;
                }
                got = end.try_recv().map(|(_, frame)| frame);
            }
        }
    }
}

fn transport_lane(lane: ReplicaLane) -> Lane {
    match lane {
        ReplicaLane::Control => Lane::Control,
        ReplicaLane::Load => Lane::Load,
        ReplicaLane::Delta => Lane::Delta,
        ReplicaLane::Snapshot => Lane::Snapshot,
    }
}

impl Gateway {
    /// To be called between any two polls: a target that this gateway knew to be gone or not ready before the poll got
    /// no request in it. (Whatever makes it gone is learnt in a poll of the control task, a pick made in one of a
    /// shard's.)
    pub fn watch(&mut self) {
        for watched in &mut self.watched {
            let requests = watched.entry.cells.counters.requests_total();
            assert!(
                requests == watched.requests || watched.may_be_picked,
                "{}: {} was picked and is known to be gone",
                self.name,
                watched.entry.name
            );
            watched.requests = requests;
        }
        let table = self.shared.fleet.table();
        if Arc::ptr_eq(&table, &self.table) {
            return;
        }
        self.table = (*table).clone();
        for watched in &mut self.watched {
            watched.may_be_picked = false;
        }
        for entry in self.table.entries.iter().flatten() {
            let known =
                self.watched.iter_mut().find(|watched| Arc::ptr_eq(&watched.entry.cells, &entry.cells));
            match known {
                Some(watched) => watched.may_be_picked = entry.ready,
                None => self.watched.push(Watched {
                    entry: entry.clone(),
                    requests: entry.cells.counters.requests_total(),
                    may_be_picked: entry.ready,
                }),
            }
        }
    }

    /// Nothing is in flight, at no target ever known.
    pub fn check_at_rest(&self, what: &str) {
        for watched in &self.watched {
            let sums = watched.entry.cells.counters.in_flight();
            assert_eq!(sums, Default::default(), "{what}: {}: {}", self.name, watched.entry.name);
        }
        let shared = &self.shared;
        assert_eq!((shared.in_flight.used(), shared.body_bytes.used()), (0, 0), "{what}: {}", self.name);
    }

    /// Picks made so far.
    pub fn picks(&self) -> u64 {
        self.watched.iter().map(|watched| watched.requests).sum()
    }
}
