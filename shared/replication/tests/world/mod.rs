//! A fleet in virtual time: one truth, gateways with replicas, agents, and links that delay, lose, reorder and break.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use fairlead_replication::{Lane, Output, ReplicaConfig, SessionId, Trust, Truth, TruthConfig};
use fairlead_wire::msg::*;
use fairlead_wire::{Frame, Message, TargetId};

mod desk;
mod engine;
mod gateway;
mod rng;

pub use desk::Desk;
pub use engine::Cache;
pub use gateway::{Gateway, costs};
pub use rng::{Rng, paths};

pub const MS: u64 = 1_000;
pub const HEARTBEAT: u64 = 100 * MS;

pub struct Agent {
    pub info: InstanceInfo,
    pub ready: bool,
    pub session: Option<SessionId>,
    pub incarnation: u64,
    pub skew: u64,
    pub held_off: bool,
    next_report: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Who {
    Gateway(usize),
    Agent(usize),
}

/// One direction of a lane: frames with the time at which they arrive.
type Pipe = VecDeque<(u64, Bytes)>;

struct Conn {
    session: SessionId,
    who: Who,
    to_truth: [Pipe; 4],
    to_peer: [Pipe; 4],
}

pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub truth: Option<Truth>,
    pub truth_config: TruthConfig,
    pub replica_config: ReplicaConfig,
    pub epoch: u64,
    pub gateways: Vec<Gateway>,
    pub agents: Vec<Agent>,
    conns: Vec<Conn>,
    next_session: u64,
    /// Frames of any lane but control are lost, one in so many; 0 loses none.
    pub loss: usize,
    /// Load frames overtake one another.
    pub reorder: bool,
    /// Largest delay of a frame, microseconds.
    pub delay: u64,
    /// Frames that a lane takes before its sender must wait.
    pub lane_room: usize,
    /// The truth's clock less the world's.
    pub truth_skew: u64,
    /// What gateways told of answers' pace, and when it came.
    pub paces: Vec<(u64, TargetPace)>,
}

pub fn truth_config() -> TruthConfig {
    TruthConfig {
        heartbeat_us: HEARTBEAT,
        batch_bytes: 512,
        ring_bytes: 16 << 10,
        lag_bytes: 12 << 10,
        max_targets: 256,
        index_bytes: 1 << 20,
        chunk_bytes: 1_300,
        step_bytes: 2 << 10,
        target_share: 0.0009,
        linger_us: 1_000 * MS,
        slot_grace_us: 300 * MS,
        recollect_us: 5_000 * MS,
        recollect_bytes: 1 << 20,
        max_agents: 12,
        max_gateways: 4,
        ..TruthConfig::default()
    }
}

pub fn replica_config() -> ReplicaConfig {
    ReplicaConfig {
        // Garbage counts too, and on a busy machine threads of other tests stand still while pinned.
        index_bytes: 8 << 20,
        overlay_bytes: 1 << 20,
        overlay_keep_us: 500 * MS,
        max_targets: 256,
        slot_grace_us: 200 * MS,
        slice_runs: 4,
        slice_bytes: 1 << 10,
        buffer_bytes: 8 << 10,
        stall_us: 500 * MS,
        stale_us: 1_000 * MS,
        blind_us: 5_000 * MS,
        ..ReplicaConfig::default()
    }
}

pub fn instance(name: &str, ranks: u16) -> InstanceInfo {
    InstanceInfo {
        name: name.into(),
        address: "127.0.0.1:8000".into(),
        host: "h".into(),
        incarnation: 1,
        engine: EngineKind::Vllm,
        engine_version: String::new(),
        models: vec![ModelInfo { name: "m".into(), max_model_len: None, parent: None }],
        role: ServingRole::Both,
        transfer: None,
        dp_ranks: ranks,
        block_size: None,
        kv_blocks: None,
        max_num_seqs: None,
        labels: Vec::new(),
    }
}

fn hello(role: Role, name: &str, incarnation: u64, have: Option<(u64, u64)>) -> Hello {
    Hello {
        role,
        name: name.into(),
        incarnation,
        protocol_min: 1,
        protocol_max: 1,
        software: String::new(),
        have,
    }
}

impl World {
    pub fn new(seed: u64, gateways: usize, agents: usize) -> Self {
        let mut world = Self {
            now: 1_000 * MS,
            rng: Rng(seed),
            truth: None,
            truth_config: truth_config(),
            replica_config: replica_config(),
            epoch: 0,
            gateways: Vec::new(),
            agents: Vec::new(),
            conns: Vec::new(),
            next_session: 1,
            loss: 0,
            reorder: false,
            delay: 2 * MS,
            lane_room: 8,
            truth_skew: 5_000 * MS,
            paces: Vec::new(),
        };
        for i in 0..gateways {
            let skew = world.rng.below(1_000_000) as u64;
            let config = world.replica_config.clone();
            world.gateways.push(Gateway::new(&format!("g{i}"), 1, skew, config, world.now));
        }
        for i in 0..agents {
            let skew = world.rng.below(100_000_000) as u64;
            let ranks = if i % 3 == 2 { 2 } else { 1 };
            world.agents.push(Agent {
                info: instance(&format!("e{i}"), ranks),
                ready: true,
                session: None,
                incarnation: 1,
                skew,
                held_off: false,
                next_report: 0,
            });
        }
        world.start_truth();
        world
    }

    /// The least index there is, and room for long paths.
    pub fn shrink(&mut self) {
        self.truth_config.index_bytes = 512 << 10;
        self.truth_config.target_share = 1.0;
        self.truth_config.ring_bytes = 256 << 10;
        self.truth_config.lag_bytes = 200 << 10;
        self.truth_config.chunk_bytes = 32 << 10;
        self.replica_config.buffer_bytes = 256 << 10;
        self.replica_config.overlay_bytes = 4 << 20;
        for i in 0..self.gateways.len() {
            self.restart_gateway(i);
        }
        self.start_truth();
    }

    pub fn start_truth(&mut self) {
        self.stop_truth();
        self.epoch += 1;
        self.truth = Some(Truth::new(self.truth_config.clone(), self.epoch, 42, self.now + self.truth_skew));
    }

    pub fn stop_truth(&mut self) {
        self.truth = None;
        for conn in std::mem::take(&mut self.conns) {
            self.peer_lost(conn.who);
        }
    }

    pub fn truth(&self) -> &Truth {
        self.truth.as_ref().expect("running")
    }

    fn peer_lost(&mut self, who: Who) {
        match who {
            Who::Gateway(i) => {
                let gateway = &mut self.gateways[i];
                gateway.session = None;
                gateway.replica.disconnected(self.now + gateway.skew);
            }
            Who::Agent(i) => self.agents[i].session = None,
        }
    }

    /// Breaks a link; both sides notice.
    pub fn cut(&mut self, session: Option<SessionId>) {
        let Some(session) = session else { return };
        let Some(at) = self.conns.iter().position(|conn| conn.session == session) else { return };
        let conn = self.conns.remove(at);
        self.peer_lost(conn.who);
        let now = self.now + self.truth_skew;
        if let Some(truth) = &mut self.truth {
            truth.gone(session, now);
        }
    }

    /// Replaces a gateway's process: an empty replica.
    pub fn restart_gateway(&mut self, i: usize) {
        self.cut(self.gateways[i].session);
        let old = &self.gateways[i];
        let (name, incarnation, skew) = (old.name.clone(), old.incarnation + 1, old.skew);
        self.gateways[i] = Gateway::new(&name, incarnation, skew, self.replica_config.clone(), self.now);
    }

    pub fn restart_engine(&mut self, i: usize) {
        self.agents[i].info.incarnation += 1;
        let agent = &self.agents[i];
        let register = Message::Register(Register { instance: agent.info.clone() });
        self.agent_says(i, &register);
    }

    pub fn agent_says(&mut self, i: usize, message: &Message) {
        let now = self.now + self.agents[i].skew;
        let stamp = fairlead_wire::Stamp { created_us: now, ..Default::default() };
        let bytes = Bytes::from(message.encode(stamp).expect("valid").to_bytes());
        let at = self.arrival(Lane::Control);
        let Some(session) = self.agents[i].session else { return };
        if let Some(conn) = self.conns.iter_mut().find(|conn| conn.session == session) {
            push(&mut conn.to_truth[0], at, bytes, false);
        }
    }

    fn arrival(&mut self, lane: Lane) -> u64 {
        // The control lane of a ping is what clocks are measured with: give it some jitter too.
        let most = if lane == Lane::Snapshot { self.delay * 3 } else { self.delay };
        self.now + 50 + self.rng.next() % (most + 1)
    }

    fn connect_all(&mut self) {
        let Some(truth) = &mut self.truth else { return };
        let now = self.now + self.truth_skew;
        let mut connect = |who, hello: &Hello| {
            let session = SessionId(self.next_session);
            self.next_session += 1;
            truth.connected(session, hello, 1, now);
            self.conns.push(Conn { session, who, to_truth: Default::default(), to_peer: Default::default() });
            session
        };
        for (i, gateway) in self.gateways.iter_mut().enumerate() {
            if gateway.session.is_none() && !gateway.held_off {
                let hello = hello(Role::Gateway, &gateway.name, gateway.incarnation, gateway.replica.have());
                gateway.session = Some(connect(Who::Gateway(i), &hello));
                // As the driver does: the welcome is taken with the handshake.
                let welcome = Welcome {
                    protocol: 1,
                    epoch: self.epoch,
                    cluster_seed: 42,
                    heartbeat_ms: (HEARTBEAT / MS) as u32,
                    block_tokens: 64,
                };
                gateway.replica.connected(&welcome, self.now + gateway.skew);
            }
        }
        let mut fresh = Vec::new();
        for (i, agent) in self.agents.iter_mut().enumerate() {
            if agent.session.is_none() && !agent.held_off {
                let hello = hello(Role::Agent, &agent.info.name, agent.incarnation, None);
                agent.session = Some(connect(Who::Agent(i), &hello));
                agent.next_report = self.now + 5 * MS;
                fresh.push(i);
            }
        }
        for i in fresh {
            let register = Message::Register(Register { instance: self.agents[i].info.clone() });
            self.agent_says(i, &register);
        }
    }

    /// Requests that all gateways have in flight at an instance's rank.
    pub fn actual(&self, name: &str, rank: u16, except: Option<usize>) -> u32 {
        let mut sum = 0;
        for (i, gateway) in self.gateways.iter().enumerate() {
            if Some(i) == except {
                continue;
            }
            let seen = gateway.seen.borrow();
            for (id, target) in &seen.targets {
                if target.0 == name && target.1 == rank {
                    sum += seen.reserved.get(id).map_or(0, |cell| cell.requests);
                }
            }
        }
        sum
    }

    fn agents_report(&mut self) {
        for i in 0..self.agents.len() {
            let agent = &self.agents[i];
            if agent.session.is_none() || self.now < agent.next_report {
                continue;
            }
            let taken_us = self.now + agent.skew;
            let load = |rank| RankLoad {
                rank,
                taken_us,
                running: Some(self.actual(&agent.info.name, rank, None) + 3),
                waiting: None,
                ..RankLoad::default()
            };
            let ranks = (0..agent.info.dp_ranks).map(load).collect();
            let report = Message::Report(Report {
                incarnation: agent.info.incarnation,
                ready: agent.ready,
                reason: None,
                ranks,
            });
            self.agents[i].next_report = self.now + HEARTBEAT / 2;
            self.agent_says(i, &report);
        }
    }

    /// One step of every part at the present time.
    pub fn step(&mut self) {
        self.connect_all();
        self.agents_report();
        self.deliver();
        let now = self.now + self.truth_skew;
        if let Some(truth) = &mut self.truth {
            truth.tick(now);
        }
        for gateway in &mut self.gateways {
            gateway.replica.tick(self.now + gateway.skew);
        }
        self.collect();
    }

    pub fn run_for(&mut self, us: u64) {
        let end = self.now + us;
        while self.now < end {
            self.step();
            self.now += MS.min(end - self.now);
        }
    }

    fn deliver(&mut self) {
        for at in 0..self.conns.len() {
            for lane in 0..4 {
                while let Some(bytes) =
                    self.conns.get_mut(at).and_then(|conn| pop(&mut conn.to_truth[lane], self.now))
                {
                    let session = self.conns[at].session;
                    let message = Frame::from_bytes(&bytes).and_then(|frame| frame.message()).expect("valid");
                    if let Message::Feedback(told) = &message {
                        self.paces.extend(told.paces.iter().map(|pace| (self.now, *pace)));
                    }
                    let now = self.now + self.truth_skew;
                    if let Some(truth) = &mut self.truth {
                        truth.message(session, message, now);
                    }
                }
                while let Some(bytes) =
                    self.conns.get_mut(at).and_then(|conn| pop(&mut conn.to_peer[lane], self.now))
                {
                    let frame = Frame::from_bytes(&bytes).expect("valid");
                    match self.conns[at].who {
                        Who::Gateway(i) => {
                            let gateway = &mut self.gateways[i];
                            gateway.replica.on_frame(&frame, self.now + gateway.skew).expect("taken");
                        }
                        Who::Agent(i) => self.agent_hears(i, &frame),
                    }
                }
            }
        }
    }

    fn agent_hears(&mut self, i: usize, frame: &Frame) {
        if let Message::Ping(ping) = frame.message().expect("valid") {
            let received_us = self.now + self.agents[i].skew;
            let pong = Message::Pong(Pong { id: ping.id, ping_sent_us: ping.sent_us, received_us });
            self.agent_says(i, &pong);
        }
    }

    fn collect(&mut self) {
        let mut closed = Vec::new();
        if let Some(mut truth) = self.truth.take() {
            loop {
                let conns = &self.conns;
                let room = |session: SessionId, lane: Lane| {
                    let conn = conns.iter().find(|conn| conn.session == session);
                    conn.is_some_and(|conn| conn.to_peer[lane as usize].len() < self.lane_room)
                };
                match truth.poll(room) {
                    Some(Output::Send { session, lane, bytes, .. }) => {
                        if self.lost(lane) {
                            continue;
                        }
                        let at = self.arrival(lane);
                        let reorder = self.reorder && lane == Lane::Load;
                        if let Some(conn) = self.conns.iter_mut().find(|conn| conn.session == session) {
                            push(&mut conn.to_peer[lane as usize], at, bytes, reorder);
                        }
                    }
                    Some(Output::Close { session, .. }) => closed.push(session),
                    None => break,
                }
            }
            self.truth = Some(truth);
        }
        for session in closed {
            self.cut(Some(session));
        }
        for i in 0..self.gateways.len() {
            let Some(session) = self.gateways[i].session else { continue };
            let Some(at) = self.conns.iter().position(|conn| conn.session == session) else { continue };
            loop {
                let pipes = &self.conns[at].to_truth;
                let room = |lane: Lane| pipes[lane as usize].len() < self.lane_room;
                let Some(out) = self.gateways[i].replica.poll(room) else { break };
                let arrives = self.arrival(out.lane);
                push(&mut self.conns[at].to_truth[out.lane as usize], arrives, out.bytes, false);
            }
        }
    }

    fn lost(&mut self, lane: Lane) -> bool {
        self.loss > 0 && lane != Lane::Control && self.rng.one_in(self.loss)
    }

    /// Everything heals; long enough for every repair to be over.
    pub fn quiesce(&mut self) {
        self.loss = 0;
        self.reorder = false;
        if self.truth.is_none() {
            self.start_truth();
        }
        for gateway in &mut self.gateways {
            gateway.held_off = false;
        }
        for agent in &mut self.agents {
            agent.held_off = false;
        }
        self.run_for(5_000 * MS);
    }

    /// Asserts that every replica equals the truth.
    pub fn check(&self, what: &str) {
        let truth = self.truth();
        let stats = truth.stats();
        let all: BTreeMap<TargetId, _> =
            truth.targets().into_iter().map(|target| (target.id, target)).collect();
        let expected: BTreeSet<_> =
            all.values().map(|t| (t.info.name.clone(), t.rank, t.info.incarnation, t.ready)).collect();
        let registered: usize = self.agents.iter().map(|agent| usize::from(agent.info.dp_ranks)).sum();
        assert_eq!(all.len(), registered, "{what}: targets of the truth");
        for (i, gateway) in self.gateways.iter().enumerate() {
            let status = gateway.replica.status();
            let what = format!("{what}: {}: {status:?}", gateway.name);
            assert!(status.synced && !status.provisional && !status.loading && !status.index_off, "{what}");
            assert_eq!((status.epoch, status.sequence), (stats.epoch, stats.sequence), "{what}");
            assert_eq!(status.stats.diverged, 0, "{what}");
            assert_eq!(status.overlay_entries, 0, "{what}");
            assert_eq!(status.trust, Trust::Fresh, "{what}");
            let seen = gateway.seen.borrow();
            let shown: BTreeSet<_> = seen.targets.values().cloned().collect();
            assert_eq!(shown, expected, "{what}: targets");
            assert_eq!(seen.targets.len(), all.len(), "{what}: count of targets");

            let translation: BTreeMap<TargetId, TargetId> =
                gateway.replica.translation().into_iter().collect();
            assert_eq!(translation.len(), all.len(), "{what}: translation");
            for (local, remote) in &translation {
                let target = &all[remote];
                let (name, rank, incarnation, _) = &seen.targets[local];
                assert_eq!(
                    (name, *rank, *incarnation),
                    (&target.info.name, target.rank, target.info.incarnation)
                );
                assert_eq!(seen.costs.get(local).copied(), target.costs, "{what}: costs of {name}#{rank}");
                assert_eq!(
                    seen.leanings.get(local).copied(),
                    Some(target.leaning),
                    "{what}: {name}#{rank} leans"
                );
                let others = self.actual(name, *rank, Some(i));
                let sums = seen.peers.get(local).copied().unwrap_or_default();
                assert_eq!(sums.requests, others, "{what}: peers at {name}#{rank}");
                assert_eq!(
                    (sums.prefill_tokens, sums.prefill_us, sums.context_tokens),
                    (u64::from(others) * 10, u64::from(others) * 30_000, u64::from(others) * 100)
                );
                assert_eq!(
                    target.requests,
                    u64::from(self.actual(name, *rank, None)),
                    "{what}: sums of the truth"
                );
                let engine = seen.engines.get(local).expect("reported");
                assert_eq!(engine.foreign_requests, Some(3), "{what}: foreign traffic at {name}#{rank}");
            }
            let mut held: Vec<(u32, u64)> = gateway
                .replica
                .index()
                .holdings()
                .into_iter()
                .map(|(local, block)| (translation[&TargetId::unpack(local)].pack(), block))
                .collect();
            held.sort_unstable();
            assert_eq!(held, truth.index().holdings(), "{what}: holdings");
            assert_eq!(status.blocks, truth.index().stats().blocks, "{what}: blocks of both trees");
            for id in &seen.cooling {
                assert!(
                    seen.reserved.get(id).is_some_and(|cell| cell.requests > 0),
                    "{what}: {id} cools for nothing"
                );
            }
        }
    }
}

fn push(pipe: &mut Pipe, at: u64, bytes: Bytes, reorder: bool) {
    if reorder {
        let position = pipe.partition_point(|(other, _)| *other <= at);
        pipe.insert(position, (at, bytes));
    } else {
        // In order: nothing arrives before what was sent before it.
        let at = pipe.back().map_or(at, |(last, _)| at.max(*last));
        pipe.push_back((at, bytes));
    }
}

fn pop(pipe: &mut Pipe, now: u64) -> Option<Bytes> {
    if pipe.front()?.0 <= now { pipe.pop_front().map(|(_, bytes)| bytes) } else { None }
}
