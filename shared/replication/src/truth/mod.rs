//! The scheduler's state machine: sessions in, sequenced operations out.
//!
//! # Sessions
//! The driver numbers each connection and hands over its hello ([`Truth::connected`]), its messages
//! ([`Truth::message`]) and its end ([`Truth::gone`]); it sends what [`Truth::poll`] gives. Of two sessions with one
//! name the newer incarnation stays (of equal ones the newer session); the other is refused as superseded.
//!
//! # Liveness
//! An agent that closes its link, or of which nothing is heard for three heartbeats, takes its targets out of the
//! routing at once (`ready = false`); what they hold is forgotten only `linger_us` later, so that an agent's restart
//! beside a running engine costs no cache knowledge. Silence is judged against this process's own progress: after a
//! stall of the driver every peer gets its full patience again.
//!
//! # Epochs
//! The first three heartbeats of an epoch are provisional: gateways that hold another epoch send recollections, kept
//! until the same incarnation of the instance registers. Then `EpochSettled` voids what nobody has claimed.
//!
//! # Bounds
//! Targets, classes and pools of targets, sessions, index bytes (least recently used runs are evicted, as operations), blocks per target (a share of
//! the index, and no more than the engine's KV room; the least recently used go), ring bytes, recollection bytes, control frames queued per session (beyond: the session is closed), lag per gateway (beyond: a snapshot).

mod agents;
mod capacity;
mod costs;
mod events;
mod fanout;
mod fleet;
mod gateway;
mod gateways;
mod intake;
mod log;
mod pools;
mod recollect;
mod snapshot;
mod types;

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::AHashMap;
use bytes::Bytes;
use fairlead_prefix::{Hits, Reader, Writer};
use fairlead_wire::limits::MAX_TEXT;
use fairlead_wire::msg::{CacheSource, Hello, Op, Pong, Refuse, RefuseCode, Role, ServingRole, Welcome};
use fairlead_wire::{Body, Message, Stamp, encode};

use crate::{ClockMap, Lane, SessionId};
use fleet::Fleet;
use gateway::Gateway;
use intake::{Input, Waiting};
use log::Log;
use recollect::Recollections;
use snapshot::{Building, Snapshot};
pub use types::{Output, TargetView, TruthConfig, TruthStats};

/// Control frames waiting for one session; a peer that reads none of them is closed.
const MAX_CONTROL: usize = 256;
/// A tick later than this after the one before means that this process was starved.
const STALL_US: u64 = 500_000;

pub(crate) enum Part {
    Agent {
        /// Whether it has registered an instance.
        registered: bool,
    },
    Gateway(Box<Gateway>),
}

pub(crate) struct Session {
    pub(crate) name: Arc<str>,
    incarnation: u64,
    last_heard_us: u64,
    pub(crate) clock: ClockMap,
    control: VecDeque<Bytes>,
    pub(crate) part: Part,
}

/// See the module's documentation.
pub struct Truth {
    config: TruthConfig,
    cluster_seed: u64,
    index: Writer,
    reader: Reader,
    hits: Hits,
    log: Log,
    fleet: Fleet,
    sessions: AHashMap<SessionId, Session>,
    names: AHashMap<(bool, Arc<str>), SessionId>,
    /// Gateways in the order of their arrival; the turn goes round.
    gateways: Vec<SessionId>,
    turn: usize,
    next_number: u32,
    /// Oldest first.
    snapshots: Vec<Snapshot>,
    /// The encoding of the last of them, while it is under way.
    building: Option<Building>,
    /// What waits until the index may be changed.
    waiting: Waiting,
    snapshot_used_us: u64,
    recollections: Recollections,
    classes: costs::Classes,
    pools: pools::Pools,
    settled: bool,
    settle_at_us: u64,
    recollect_until_us: u64,
    closing: VecDeque<(SessionId, Refuse)>,
    control_ready: VecDeque<SessionId>,
    now_us: u64,
    last_tick_us: u64,
    /// Nothing heard before this is held against a peer.
    patience_us: u64,
    next_heartbeat_us: u64,
    stats: TruthStats,
}

impl Truth {
    /// An empty truth that starts epoch `epoch` (never used before by this cluster; a start time does). All block
    /// hashes of the cluster are made with `cluster_seed`.
    pub fn new(config: TruthConfig, epoch: u64, cluster_seed: u64, now_us: u64) -> Self {
        let index = fairlead_prefix::Config {
            max_bytes: config.index_bytes,
            max_targets: config.max_targets,
            locate: true,
        };
        let (index, reader) = fairlead_prefix::new(index);
        let patience = config.heartbeat_us * u64::from(config.missed);
        Self {
            cluster_seed,
            index,
            reader,
            hits: Hits::default(),
            log: Log::new(epoch, config.flush_us, config.batch_bytes, config.ring_bytes),
            fleet: Fleet::new(config.max_targets),
            sessions: AHashMap::new(),
            names: AHashMap::new(),
            gateways: Vec::new(),
            turn: 0,
            next_number: 1,
            snapshots: Vec::new(),
            building: None,
            waiting: Waiting::default(),
            snapshot_used_us: 0,
            recollections: Recollections::new(config.recollect_bytes),
            classes: costs::Classes::default(),
            pools: pools::Pools::default(),
            settled: false,
            settle_at_us: now_us + patience,
            recollect_until_us: now_us + config.recollect_us,
            closing: VecDeque::new(),
            control_ready: VecDeque::new(),
            now_us,
            last_tick_us: now_us,
            patience_us: now_us,
            next_heartbeat_us: now_us + config.heartbeat_us,
            stats: TruthStats::default(),
            config,
        }
    }

    /// A peer has connected; role and name of `hello` have been checked against its certificate.
    pub fn connected(&mut self, session: SessionId, hello: &Hello, protocol: u16, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        let is_gateway = match hello.role {
            Role::Gateway => true,
            Role::Agent => false,
            Role::Scheduler => {
                return self.turn_away(session, RefuseCode::Identity, "hello.role: scheduler".into());
            }
        };
        if let Err(reason) = hello.validate() {
            return self.turn_away(session, RefuseCode::Invalid, reason.0);
        }
        let name: Arc<str> = hello.name.as_str().into();
        if let Some(&other) = self.names.get(&(is_gateway, name.clone())) {
            let theirs = self.sessions.get(&other).map_or(0, |session| session.incarnation);
            if theirs > hello.incarnation {
                let why = format!("hello.name: {name:?} is connected with a newer incarnation");
                return self.turn_away(session, RefuseCode::Superseded, why);
            }
            self.supersede(other);
        }
        let (count, max) = if is_gateway {
            (self.gateways.len(), self.config.max_gateways)
        } else {
            (self.sessions.len() - self.gateways.len(), self.config.max_agents)
        };
        if count >= max {
            let why = format!("hello.role: {max} {:?}s are connected already", hello.role);
            return self.turn_away(session, RefuseCode::Capacity, why);
        }
        let part = if is_gateway {
            self.gateways.push(session);
            Part::Gateway(Box::new(self.greet_gateway(hello)))
        } else {
            Part::Agent { registered: false }
        };
        self.names.insert((is_gateway, name.clone()), session);
        let entry = Session {
            name,
            incarnation: hello.incarnation,
            last_heard_us: self.now_us,
            clock: ClockMap::default(),
            control: VecDeque::new(),
            part,
        };
        self.sessions.insert(session, entry);
        let welcome = Welcome {
            protocol,
            epoch: self.log.epoch,
            cluster_seed: self.cluster_seed,
            heartbeat_ms: (self.config.heartbeat_us / 1_000) as u32,
            block_tokens: self.config.block_tokens.max(1),
        };
        self.control(session, &welcome);
        self.ping(session);
    }

    /// A frame has come from a session. `message` has been decoded by [`fairlead_wire::Frame::message`], which checks
    /// its ranges.
    pub fn message(&mut self, session: SessionId, message: Message, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        let now_us = self.now_us;
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        entry.last_heard_us = now_us;
        let is_gateway = matches!(entry.part, Part::Gateway(_));
        match (message, is_gateway) {
            (Message::Ping(ping), _) => {
                let pong = Pong { id: ping.id, ping_sent_us: ping.sent_us, received_us: now_us };
                self.control(session, &pong);
            }
            (Message::Pong(pong), _) => entry.clock.pong(&pong, now_us),
            (Message::Register(register), false) => self.on_register(session, register.instance),
            (Message::Report(report), false) => self.on_report(session, report),
            (Message::CacheEvents(events), false) => self.take(Input::Events { session, events }),
            (Message::GatewayLoad(load), true) => self.gateway_load(session, &load),
            (Message::Placements(placements), true) => self.take(Input::Place(placements.items)),
            (Message::Recollection(told), true) => self.take(Input::Recollect(told)),
            (Message::Feedback(feedback), true) => {
                self.feedback(&feedback.items);
                self.learnt(&feedback.costs);
                self.paced(&feedback.paces);
            }
            (Message::Resume(resume), true) => self.resume(session, resume.epoch, resume.sequence),
            (other, _) => {
                let why = format!("{:?} is not for a scheduler from this peer", other.kind());
                self.refuse(session, RefuseCode::Malformed, why);
            }
        }
    }

    /// A connection has ended.
    pub fn gone(&mut self, session: SessionId, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        self.forget(session, true);
    }

    /// Does what is due. Call at [`Truth::next_deadline`] at the latest, and before [`Truth::poll`].
    pub fn tick(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        let now_us = self.now_us;
        let stalled = now_us.saturating_sub(self.last_tick_us);
        if stalled > STALL_US.max(self.config.heartbeat_us / 2) && self.next_heartbeat_us + STALL_US < now_us
        {
            // What peers sent meanwhile still waits in our own queues.
            self.stats.stalls += 1;
            self.patience_us = now_us;
            self.settle_at_us = self.settle_at_us.saturating_add(if self.settled { 0 } else { stalled });
        }
        self.last_tick_us = now_us;
        if now_us >= self.next_heartbeat_us {
            self.next_heartbeat_us = now_us + self.config.heartbeat_us;
            self.heartbeat();
        }
        if !self.settled && now_us >= self.settle_at_us {
            self.settled = true;
            self.recollections.clear();
            self.log.push(Op::EpochSettled, now_us);
        }
        self.lean();
        self.catch_up();
        if self.building.is_none() {
            self.keep_budget();
        }
        self.index.collect();
        if self.log.deadline().is_some_and(|due| due <= now_us) {
            self.log.flush(now_us);
        }
    }

    /// Sends pending operations and load changes with the next [`Truth::poll`] rather than at their deadline. For a
    /// driver that has handled all it has received: there is no company left to wait for.
    pub fn flush(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        self.log.flush(self.now_us);
        for session in &self.gateways {
            if let Some(Session { part: Part::Gateway(gateway), .. }) = self.sessions.get_mut(session)
                && gateway.dirty.since_us.is_some()
            {
                gateway.dirty.since_us = Some(0);
            }
        }
    }

    /// When [`Truth::tick`] has something to do next. Load changes that are due already wait for room in a lane, which
    /// is no matter of time: a driver that has polled to the end calls again when there is room.
    pub fn next_deadline(&self) -> u64 {
        let loads = self.gateways.iter().filter_map(|session| match self.sessions.get(session)?.part {
            Part::Gateway(ref gateway) => gateway.dirty.since_us.map(|since| since + self.config.flush_us),
            Part::Agent { .. } => None,
        });
        let loads = loads.filter(|due| *due > self.now_us);
        let settle = (!self.settled).then_some(self.settle_at_us);
        let work = (!self.is_caught_up()).then_some(self.now_us);
        let lean = [self.pools.due_us()];
        loads
            .chain(work)
            .chain(self.log.deadline())
            .chain(settle)
            .chain(lean)
            .fold(self.next_heartbeat_us, u64::min)
    }

    /// What to do next; `None` when there is nothing, or no lane has room for it. `room` says whether a lane takes
    /// another frame: where it does not, the backlog waits here, where it is coalesced.
    pub fn poll(&mut self, mut room: impl FnMut(SessionId, Lane) -> bool) -> Option<Output> {
        if let Some((session, refuse)) = self.closing.pop_front() {
            return Some(Output::Close { session, refuse });
        }
        for _ in 0..self.control_ready.len() {
            let Some(id) = self.control_ready.pop_front() else { break };
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            if !room(id, Lane::Control) {
                self.control_ready.push_back(id);
                continue;
            }
            let Some(bytes) = session.control.pop_front() else { continue };
            if !session.control.is_empty() {
                self.control_ready.push_back(id);
            }
            return Some(Output::Send { session: id, lane: Lane::Control, bytes, last: false });
        }
        for _ in 0..self.gateways.len() {
            self.turn = (self.turn + 1) % self.gateways.len();
            let session = self.gateways[self.turn];
            if let Some(output) = self.poll_gateway(session, &mut room) {
                return Some(output);
            }
        }
        None
    }

    /// Counts and sizes.
    pub fn stats(&self) -> TruthStats {
        TruthStats {
            epoch: self.log.epoch,
            sequence: self.log.head,
            settled: self.settled,
            agents: self.sessions.len() - self.gateways.len(),
            gateways: self.gateways.len(),
            targets: self.fleet.live().count(),
            ready: self.fleet.live().filter(|target| target.ready).count(),
            ring_bytes: self.log.ring_bytes(),
            snapshot_bytes: self.snapshots.iter().flat_map(|one| &one.chunks).map(Bytes::len).sum(),
            waiting_bytes: self.waiting.bytes(),
            exact: self.fleet.live().filter(|target| target.cache == CacheSource::Events).count(),
            partial: self.fleet.live().filter(|target| target.cache == CacheSource::PartialEvents).count(),
            lean_prefill: self.fleet.live().filter(|target| target.leaning == ServingRole::Prefill).count(),
            lean_decode: self.fleet.live().filter(|target| target.leaning == ServingRole::Decode).count(),
            delta_frames: self.log.frames,
            recollections_dropped: self.stats.recollections_dropped + self.recollections.dropped,
            ..self.stats
        }
    }

    /// Size of the prefix index.
    pub fn index_stats(&self) -> fairlead_prefix::Stats {
        self.index.stats()
    }

    /// The prefix index, for tests and admin pages.
    pub fn index(&self) -> &Writer {
        &self.index
    }

    /// All live targets.
    pub fn targets(&self) -> Vec<TargetView> {
        let requests = |packed: u32| {
            self.gateway_parts().map(|gateway| u64::from(gateway.in_flight_at(packed).requests)).sum()
        };
        self.fleet
            .live()
            .map(|target| TargetView {
                id: target.id,
                rank: target.rank,
                ready: target.ready,
                info: target.info.clone(),
                load: target.load,
                cache: target.cache,
                leaning: target.leaning,
                costs: target.costs.told(),
                held_blocks: self.index.held_by(target.id.slot),
                believed_blocks: self.believed(target),
                capacity_factor: target.capacity.factor,
                cached_ratio: target.capacity.ratio,
                requests: requests(target.id.pack()),
            })
            .collect()
    }

    /// Names of the connected gateways with the number of their session.
    pub fn gateway_names(&self) -> Vec<(Arc<str>, u32)> {
        let named = |id: &SessionId| {
            let session = self.sessions.get(id)?;
            match &session.part {
                Part::Gateway(gateway) => Some((session.name.clone(), gateway.number)),
                Part::Agent { .. } => None,
            }
        };
        self.gateways.iter().filter_map(named).collect()
    }

    fn gateway_parts(&self) -> impl Iterator<Item = &Gateway> {
        self.gateways.iter().filter_map(|id| match &self.sessions.get(id)?.part {
            Part::Gateway(gateway) => Some(&**gateway),
            Part::Agent { .. } => None,
        })
    }

    fn gateway_mut(&mut self, session: SessionId) -> Option<&mut Gateway> {
        match &mut self.sessions.get_mut(&session)?.part {
            Part::Gateway(gateway) => Some(gateway),
            Part::Agent { .. } => None,
        }
    }

    fn stamp(&self) -> Stamp {
        Stamp {
            epoch: self.log.epoch,
            base_seq: self.log.head,
            new_seq: self.log.head,
            created_us: self.now_us,
        }
    }

    fn control<T: Body>(&mut self, session: SessionId, body: &T) {
        let bytes = match encode(body, self.stamp()) {
            Ok(frame) => Bytes::from(frame.to_bytes()),
            Err(error) => {
                tracing::error!(%error, "control frame cannot be encoded");
                return;
            }
        };
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        if entry.control.len() >= MAX_CONTROL {
            return self.refuse(session, RefuseCode::Capacity, "control frames are not read".into());
        }
        if entry.control.is_empty() {
            self.control_ready.push_back(session);
        }
        entry.control.push_back(bytes);
    }

    fn ping(&mut self, session: SessionId) {
        if let Some(entry) = self.sessions.get_mut(&session) {
            let ping = entry.clock.ping(self.now_us);
            self.control(session, &ping);
        }
    }

    /// Refuses a peer that never became a session.
    fn turn_away(&mut self, session: SessionId, code: RefuseCode, reason: String) {
        self.stats.refused += 1;
        if let Some(count) = self.stats.refused_by.get_mut(code as usize) {
            *count += 1;
        }
        self.closing.push_back((session, refusal(code, reason)));
    }

    /// Ends a session with a reason.
    fn refuse(&mut self, session: SessionId, code: RefuseCode, reason: String) {
        if let Some(entry) = self.sessions.get(&session) {
            tracing::warn!(name = %entry.name, ?code, %reason, "peer refused");
        }
        self.turn_away(session, code, reason);
        self.forget(session, true);
    }

    /// Ends a session in favour of a newer one of the same name, which is about to speak for the same things.
    fn supersede(&mut self, session: SessionId) {
        self.turn_away(session, RefuseCode::Superseded, "a newer session of this name has connected".into());
        self.forget(session, false);
    }

    fn forget(&mut self, session: SessionId, unready: bool) {
        let Some(entry) = self.sessions.remove(&session) else { return };
        let is_gateway = matches!(entry.part, Part::Gateway(_));
        let key = (is_gateway, entry.name.clone());
        if self.names.get(&key) == Some(&session) {
            self.names.remove(&key);
        }
        match entry.part {
            Part::Agent { registered } => {
                if registered {
                    self.orphan(&entry.name, session, unready);
                }
            }
            Part::Gateway(gateway) => {
                self.observe_end(&gateway);
                self.gateway_gone(session, &gateway);
            }
        }
    }

    fn heartbeat(&mut self) {
        let now_us = self.now_us;
        let limit = self.config.heartbeat_us * u64::from(self.config.missed);
        let silent: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| {
                now_us.saturating_sub(session.last_heard_us.max(self.patience_us)) >= limit
            })
            .map(|(id, _)| *id)
            .collect();
        for session in silent {
            self.stats.silent += 1;
            self.refuse(session, RefuseCode::Invalid, format!("heartbeat: nothing heard for {limit} us"));
        }
        let mut everybody: Vec<SessionId> = self.sessions.keys().copied().collect();
        everybody.sort_unstable();
        for session in everybody {
            self.ping(session);
        }
        if self.is_caught_up() {
            self.bury_orphans(limit);
            self.forsake_events();
            self.thaw();
        }
        self.tell_costs();
        for session in self.gateways.clone() {
            if let Some(gateway) = self.gateway_mut(session) {
                gateway.dirty.refresh = true;
                gateway.dirty.touch(now_us);
            }
        }
        self.release_snapshots();
    }

    /// Frees slots that have cooled and on which nobody has anything in flight.
    fn thaw(&mut self) {
        let now_us = self.now_us;
        let fleet = &mut self.fleet;
        let (sessions, gateways) = (&self.sessions, &self.gateways);
        fleet.thaw(now_us, self.config.slot_grace_us, |id| {
            gateways.iter().any(|session| match sessions.get(session).map(|session| &session.part) {
                Some(Part::Gateway(gateway)) => gateway.in_flight.contains_key(&id.pack()),
                _ => false,
            })
        });
    }

    /// Evicts what the index has no room for; does nothing while it is well below its budget.
    fn keep_budget(&mut self) {
        let ops = self.index.evict_to_budget(self.now_us);
        self.stats.evictions += ops.len() as u64;
        for op in ops {
            self.log.push(Op::Index(op), self.now_us);
        }
    }

    fn push(&mut self, op: Op) {
        self.log.push(op, self.now_us);
    }
}

fn refusal(code: RefuseCode, mut reason: String) -> Refuse {
    let end = (0..=MAX_TEXT.min(reason.len())).rev().find(|&at| reason.is_char_boundary(at)).unwrap_or(0);
    reason.truncate(end);
    reason.retain(|c| !c.is_control());
    Refuse { code, reason }
}
