//! The control thread without its thread: the replica, what shards hand over, and when requests may be accepted.
//!
//! No I/O and no clock of its own, so that a test drives the very code that the [driver](super::driver) does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fairlead_replication::{Lane, Outgoing, Replica, ReplicaConfig, ReplicaError, ReplicaStatus};
use fairlead_routing::Fleet;
use fairlead_wire::msg::{Hello, InstanceInfo, Role, Welcome};
use fairlead_wire::{Frame, PROTOCOL, PROTOCOL_MIN};

use super::sink::FleetSink;
use crate::shared::Shared;

/// Placements taken in one go before frames get their turn.
const PLACEMENT_BATCH: usize = 1024;
/// Sleep while nothing is in flight: the replica's own deadlines serve the sampling of running requests.
const IDLE_US: u64 = 20_000;
/// Interval at which what was learnt of targets' costs is shown to the shards.
const COSTS_US: u64 = 100_000;

/// What a desk is told at start.
#[derive(Clone)]
pub struct DeskOptions {
    /// Name of this gateway, unique among gateways.
    pub name: String,
    /// Differs from start to start.
    pub incarnation: u64,
    /// Instances from the configuration, served when no scheduler has been heard within `snapshot_wait`.
    pub instances: Vec<InstanceInfo>,
    /// How long to wait for the fleet's state; `None` without a scheduler.
    pub snapshot_wait: Option<Duration>,
    /// Settings of the replica.
    pub replica: ReplicaConfig,
    /// Time per token after the first beyond which an answer counts as late, microseconds.
    pub tpot_us: f32,
}

/// See the module's documentation. Times are of the process's clock, microseconds.
pub struct Desk {
    options: DeskOptions,
    replica: Replica<FleetSink>,
    shared: Arc<Shared>,
    /// When instances from the configuration are served if no scheduler was heard.
    fixed_at_us: Option<u64>,
    next_costs_us: u64,
}

impl Desk {
    /// An empty replica, and the state shared with the shards, which `make_shared` makes around the fleet view.
    ///
    /// # Errors
    /// Those of `make_shared`.
    pub fn new(
        options: DeskOptions,
        make_shared: impl FnOnce(Arc<Fleet>) -> io::Result<Arc<Shared>>,
        now_us: u64,
    ) -> io::Result<Self> {
        let replica = Replica::new(
            options.replica.clone(),
            |readers| {
                let [first, second] = readers.index.clone();
                let fleet = Arc::new(Fleet::new([first, second, readers.overlay.clone()]));
                FleetSink::new(fleet, options.tpot_us)
            },
            now_us,
        );
        let shared = make_shared(replica.sink().fleet().clone())?;
        shared.set_synced(false);
        shared.set_fleet_known(options.snapshot_wait.is_none());
        let wait = options.snapshot_wait.unwrap_or_default();
        let fixed_at_us = Some(now_us + wait.as_micros() as u64);
        Ok(Self { replica, shared, fixed_at_us, next_costs_us: now_us, options })
    }

    /// What this gateway's shards share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The replica's state.
    pub fn status(&self) -> ReplicaStatus {
        self.replica.status()
    }

    /// When the scheduler was last heard; `None` while it has told nothing.
    pub fn heard_us(&self) -> Option<u64> {
        self.replica.heard_us()
    }

    /// The replica, for tests that compare it with the truth.
    #[cfg(feature = "sim")]
    pub fn replica(&self) -> &Replica<FleetSink> {
        &self.replica
    }

    /// Takes what the shards have handed over, up to a bound, and does what is due. False: the link is dead and has to
    /// be ended.
    #[must_use]
    pub fn step(&mut self, now_us: u64) -> bool {
        self.take_notes(now_us);
        if now_us >= self.next_costs_us {
            self.next_costs_us = now_us + COSTS_US;
            self.show_costs();
        }
        self.replica.tick(now_us);
        let alive = !self.replica.link_is_dead(now_us);
        self.fixed(now_us);
        alive
    }

    fn take_notes(&mut self, now_us: u64) {
        for _ in 0..PLACEMENT_BATCH {
            let Some(note) = self.shared.next_answer() else { break };
            self.replica.answered(note.target, &note.answer);
        }
        for _ in 0..PLACEMENT_BATCH {
            let Some(note) = self.shared.next_speed() else { break };
            self.replica.sink_mut().seen(&note);
            if let Some(late) = self.replica.sink().late(&note) {
                self.replica.paced(note.target, late);
            }
        }
        for _ in 0..PLACEMENT_BATCH {
            let Some(note) = self.shared.next_placement() else { return };
            match note.keep {
                None => self.replica.place(note.target, note.space, &note.path, now_us),
                Some(keep) => self.replica.withdraw(note.target, note.space, &note.path, keep, now_us),
            }
        }
    }

    fn show_costs(&mut self) {
        let (learnt, counts) = self.replica.sink_mut().show_costs();
        for (target, costs) in &learnt {
            self.replica.learnt(*target, costs);
        }
        if let Some(counts) = counts {
            self.shared.set_learnt_counts(counts);
        }
    }

    /// Serves the configuration's instances when the scheduler has not spoken in time.
    fn fixed(&mut self, now_us: u64) {
        if self.fixed_at_us.is_some_and(|at| now_us >= at) {
            self.fixed_at_us = None;
            if !self.replica.status().synced && !self.options.instances.is_empty() {
                if self.options.snapshot_wait.is_some() {
                    tracing::warn!(
                        instances = self.options.instances.len(),
                        "no state from the scheduler yet: serving the instances of the configuration"
                    );
                }
                self.replica.serve_fixed(&self.options.instances, now_us);
                self.shared.set_fleet_known(true);
            }
            self.shared.set_synced(true);
        }
    }

    /// What to say to a scheduler first.
    pub fn hello(&self) -> Hello {
        Hello {
            role: Role::Gateway,
            name: self.options.name.clone(),
            incarnation: self.options.incarnation,
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL,
            software: concat!("fairlead ", env!("CARGO_PKG_VERSION")).into(),
            have: self.replica.have(),
        }
    }

    /// There is a link.
    pub fn connected(&mut self, welcome: &Welcome, now_us: u64) {
        self.shared.cluster_seed.store(welcome.cluster_seed, Ordering::Relaxed);
        self.shared.block_tokens.store(welcome.block_tokens.max(1), Ordering::Relaxed);
        self.replica.connected(welcome, now_us);
    }

    /// A frame has come.
    ///
    /// # Errors
    /// The link has to be ended.
    pub fn frame(&mut self, frame: &Frame, now_us: u64) -> Result<(), ReplicaError> {
        self.replica.on_frame(frame, now_us)?;
        if !self.shared.is_synced() || !self.shared.is_fleet_known() {
            self.first_state();
        }
        Ok(())
    }

    /// Sees whether enough of the fleet is known to accept requests. A scheduler that has just started itself knows
    /// nobody at first: its state counts when it names a target, or when everybody has had the time to find it.
    fn first_state(&mut self) {
        let status = self.replica.status();
        if status.synced && status.settled {
            self.shared.set_fleet_known(true);
        }
        if status.synced && (status.settled || status.ready > 0) && !self.shared.is_synced() {
            self.fixed_at_us = None;
            self.shared.set_synced(true);
        }
    }

    /// The link has ended.
    pub fn disconnected(&mut self, now_us: u64) {
        self.replica.disconnected(now_us);
    }

    /// The next frame to send on a lane that has room.
    pub fn poll(&mut self, room: impl FnMut(Lane) -> bool) -> Option<Outgoing> {
        self.replica.poll(room)
    }

    /// When [`Desk::step`] has something to do at the latest.
    pub fn due(&self, now_us: u64) -> u64 {
        let busy = self.shared.in_flight.used() > 0 || self.replica.is_loaded() || self.replica.has_work();
        let due = self.replica.next_deadline().max(if busy { now_us } else { now_us + IDLE_US });
        self.fixed_at_us.map_or(due, |at| due.min(at))
    }
}
