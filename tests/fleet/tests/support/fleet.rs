//! A whole fleet in one world, and what may happen to it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use fairlead_dataplane::runtime::Runtime;
use fairlead_dataplane::runtime::sim::{ProcessId, Sim, World};
use fairlead_replication::Trust;
use fairlead_routing::Constants;
use fairlead_wire::TargetId;

use super::agent;
use super::cache::TOKEN_SPACE;
use super::client::{Habits, Tally, client};
use super::engine::{Engine, Moods};
use super::gateway::{self, Gateway};
use super::link::Exchange;
use super::scheduler::{self, Scheduler, truth_config};

/// What may go wrong.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Links break and stall; load frames are lost and overtake one another.
    pub links: bool,
    /// Frames of operations are lost, which a stream does not do: the protocol heals that too.
    pub gaps: bool,
    /// Engines die, refuse, fall silent and break off.
    pub engines: bool,
    /// Agents are restarted.
    pub agents: bool,
    /// Gateways are restarted.
    pub gateways: bool,
    /// The scheduler is restarted.
    pub scheduler: bool,
    /// Processes get no processor for a while.
    pub pauses: bool,
}

impl Faults {
    /// Everything at once.
    pub const ALL: Self = Self {
        links: true,
        gaps: true,
        engines: true,
        agents: true,
        gateways: true,
        scheduler: true,
        pauses: true,
    };

    /// Those of a seed: all of them for every third, some for the others, so that no fault hides what another does.
    pub fn of(seed: u64) -> Self {
        if seed.is_multiple_of(3) {
            return Self::ALL;
        }
        let bits = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let has = |bit: u32| bits >> bit & 1 == 1;
        Self {
            links: has(0),
            gaps: has(1),
            engines: has(2),
            agents: has(3),
            gateways: has(4),
            scheduler: has(5),
            pauses: has(6),
        }
    }
}

/// What a run has met, so that no test passes by never meeting its subject.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Met {
    pub tally: Tally,
    pub picks: u64,
    pub snapshots: u64,
    pub gaps: u64,
    pub resumed: u64,
    pub epochs: u64,
    pub blocks: u64,
    pub exact_blocks: u64,
    /// Targets whose costs all knew.
    pub costs: u64,
    pub trace: u64,
    pub events: u64,
    pub gateways: u64,
    pub schedulers: u64,
}

impl Met {
    /// Both together.
    pub fn and(&mut self, other: &Self) {
        self.tally.and(&other.tally);
        for (sum, more) in [
            (&mut self.picks, other.picks),
            (&mut self.snapshots, other.snapshots),
            (&mut self.gaps, other.gaps),
            (&mut self.resumed, other.resumed),
            (&mut self.epochs, other.epochs),
            (&mut self.blocks, other.blocks),
            (&mut self.exact_blocks, other.exact_blocks),
            (&mut self.costs, other.costs),
            (&mut self.events, other.events),
            (&mut self.gateways, other.gateways),
            (&mut self.schedulers, other.schedulers),
        ] {
            *sum += more;
        }
    }
}

const GATEWAYS: usize = 2;
const ENGINES: usize = 4;
const CLIENTS: u64 = 8;

struct Part {
    process: ProcessId,
    alive: bool,
}

struct Fleet {
    world: World,
    exchange: Rc<Exchange>,
    engines: Vec<Engine>,
    engine_parts: Vec<Part>,
    agents: Vec<Part>,
    gateways: Vec<Option<Gateway>>,
    scheduler: Option<Scheduler>,
    offsets: [u64; 3],
    met: Met,
}

fn gateway_addr(n: usize) -> SocketAddr {
    ([10, 0, 0, n as u8 + 1], 80).into()
}

/// Every other engine tells its cache's events.
fn is_exact(engine: usize) -> bool {
    engine % 2 == 1
}

impl Fleet {
    fn new(seed: u64, faults: Faults) -> Self {
        let world = super::world(seed);
        let moods = if faults.engines {
            Moods { silent_close: 25, break_off: 20, busy: 20, short_keep: 3, until_close: 0 }
        } else {
            Moods { short_keep: 3, ..Moods::default() }
        };
        let engines: Vec<Engine> =
            (0..ENGINES).map(|n| Engine::new(([10, 0, 1, n as u8 + 1], 8000).into(), moods)).collect();
        let offsets = [world.below(1 << 40), world.below(1 << 40), world.below(1 << 40)];
        let exchange = Rc::<Exchange>::default();
        exchange.weather.delay_us.set(1_000);
        let mut fleet = Self {
            engine_parts: engines
                .iter()
                .map(|engine| Part { process: engine.start(&world), alive: true })
                .collect(),
            agents: Vec::new(),
            gateways: (0..GATEWAYS).map(|_| None).collect(),
            scheduler: None,
            engines,
            exchange,
            world,
            offsets,
            met: Met::default(),
        };
        fleet.start_scheduler();
        for n in 0..ENGINES {
            let process = fleet.start_agent(n);
            fleet.agents.push(Part { process, alive: true });
        }
        for n in 0..GATEWAYS {
            fleet.start_gateway(n);
        }
        fleet
    }

    fn start_scheduler(&mut self) {
        self.scheduler = Some(scheduler::start(&self.world, &self.exchange, truth_config(), self.offsets[0]));
    }

    fn start_agent(&self, n: usize) -> ProcessId {
        let name = format!("e{n}");
        agent::start(&self.world, &self.exchange, &name, &self.engines[n], is_exact(n), self.offsets[1])
    }

    fn start_gateway(&mut self, n: usize) {
        let name = format!("g{n}");
        let started = gateway::start(
            &self.world,
            &self.exchange,
            &name,
            gateway_addr(n),
            1 + n as u64,
            self.offsets[2],
        );
        self.gateways[n] = Some(started);
    }

    fn stop_gateway(&mut self, n: usize) {
        if let Some(gateway) = self.gateways[n].take() {
            self.world.kill(gateway.process);
            self.account(&gateway);
            // A process that is gone holds nothing.
            gateway.check_at_rest("killed");
        }
    }

    fn account(&mut self, gateway: &Gateway) {
        self.met.gateways += 1;
        let stats = gateway.desk.borrow().status().stats;
        self.met.picks += gateway.picks();
        self.met.snapshots += stats.snapshots;
        self.met.gaps += stats.gaps;
        self.met.epochs += stats.epochs;
    }

    fn stop_scheduler(&mut self) {
        if let Some(scheduler) = self.scheduler.take() {
            self.world.kill(scheduler.process);
            self.met.schedulers += 1;
            self.met.resumed += scheduler.core.borrow().truth().stats().resumed;
        }
    }

    /// Runs for a while, or until `done`; every pick on the way is looked at.
    fn run(&mut self, us: u64, done: impl Fn() -> bool) -> bool {
        let end = self.world.now_us() + us;
        let world = self.world.clone();
        world.wake_at(end);
        let gateways = &mut self.gateways;
        let mut ended = false;
        world.run_until(|| {
            for gateway in gateways.iter_mut().flatten() {
                gateway.watch();
            }
            ended = done();
            ended || world.now_us() >= end
        });
        ended
    }

    /// Something happens.
    fn act(&mut self, faults: Faults) {
        let world = self.world.clone();
        let engine = world.below(ENGINES as u64) as usize;
        let gateway = world.below(GATEWAYS as u64) as usize;
        let weather = self.exchange.weather.clone();
        match world.below(16) {
            0 | 1 if faults.links => {
                let breakers = self.exchange.breakers.borrow();
                if let Some(breaker) = breakers.get(world.below(breakers.len() as u64) as usize) {
                    let stall = [2_000, 50_000, 300_000, 600_000][world.below(4) as usize];
                    world.as_process(ProcessId(0), || {
                        if world.below(2) == 0 { breaker.cut() } else { breaker.stall(stall) }
                    });
                }
            }
            2 if faults.links => weather.load_loss.set([0, 2, 5][world.below(3) as usize]),
            3 if faults.links => weather.reorder.set(world.below(2) == 0),
            4 if faults.links => weather.delay_us.set([200, 1_000, 20_000][world.below(3) as usize]),
            5 if faults.gaps => weather.delta_loss.set([0, 0, 5, 20][world.below(4) as usize]),
            6 if faults.engines => {
                let part = &mut self.engine_parts[engine];
                if part.alive {
                    world.kill(part.process);
                } else {
                    part.process = self.engines[engine].start(&world);
                }
                part.alive ^= true;
            }
            7 if faults.engines => world.silence(self.engines[engine].addr, world.below(2) == 0),
            8 | 9 if faults.agents => {
                if self.agents[engine].alive {
                    world.kill(self.agents[engine].process);
                } else {
                    self.agents[engine].process = self.start_agent(engine);
                }
                self.agents[engine].alive ^= true;
            }
            10 if faults.gateways => {
                if self.gateways[gateway].is_some() {
                    self.stop_gateway(gateway);
                } else {
                    self.start_gateway(gateway);
                }
            }
            11 if faults.scheduler => {
                if self.scheduler.is_some() {
                    self.stop_scheduler();
                } else {
                    self.start_scheduler();
                }
            }
            12 | 13 if faults.pauses => {
                let process = match world.below(4) {
                    0 => self.engine_parts[engine].process,
                    1 => self.agents[engine].process,
                    2 => match &self.gateways[gateway] {
                        Some(gateway) => gateway.process,
                        None => return,
                    },
                    _ => match &self.scheduler {
                        Some(scheduler) => scheduler.process,
                        None => return,
                    },
                };
                world.pause(process, [3_000, 60_000, 400_000, 800_000][world.below(4) as usize]);
            }
            _ => {}
        }
    }

    /// Everything is mended.
    fn heal(&mut self) {
        let weather = &self.exchange.weather;
        weather.load_loss.set(0);
        weather.delta_loss.set(0);
        weather.reorder.set(false);
        weather.delay_us.set(1_000);
        if self.scheduler.is_none() {
            self.start_scheduler();
        }
        for n in 0..ENGINES {
            self.world.silence(self.engines[n].addr, false);
            if !self.engine_parts[n].alive {
                self.engine_parts[n] = Part { process: self.engines[n].start(&self.world), alive: true };
            }
            if !self.agents[n].alive {
                self.agents[n] = Part { process: self.start_agent(n), alive: true };
            }
        }
        for n in 0..GATEWAYS {
            if self.gateways[n].is_none() {
                self.start_gateway(n);
            }
        }
    }

    /// The constants that a gateway decides with, in the order of the engines' names.
    fn known(&self, gateway: usize) -> Vec<Constants> {
        let table = self.gateways[gateway].as_ref().expect("running").shared.fleet.table_full();
        let entries: BTreeMap<_, _> = table
            .entries
            .iter()
            .flatten()
            .map(|entry| (entry.name.clone(), entry.cells.costs.read()))
            .collect();
        entries.into_values().collect()
    }

    /// Whether all is told: every replica has the truth's version, and the truth knows everybody. When it is never so,
    /// `check` says what is missing.
    fn is_quiet(&self) -> bool {
        let Some(scheduler) = &self.scheduler else { return false };
        let core = scheduler.core.borrow();
        let stats = core.truth().stats();
        stats.settled
            && stats.ready == ENGINES
            && self.gateways.iter().flatten().all(|gateway| {
                let status = gateway.desk.borrow().status();
                status.synced
                    && !status.provisional
                    && status.overlay_entries == 0
                    && (status.epoch, status.sequence) == (stats.epoch, stats.sequence)
            })
    }

    /// Every replica equals the truth, and the truth the engines.
    fn check(&mut self, what: &str) {
        let scheduler = self.scheduler.as_ref().expect("running");
        let core = scheduler.core.borrow();
        let truth = core.truth();
        let stats = truth.stats();
        assert!(stats.settled, "{what}");
        let all: BTreeMap<TargetId, _> =
            truth.targets().into_iter().map(|target| (target.id, target)).collect();
        let shown: BTreeSet<_> = all
            .values()
            .map(|target| (target.info.name.clone(), target.info.incarnation, target.ready))
            .collect();
        let expected: BTreeSet<_> =
            (0..ENGINES).map(|n| (format!("e{n}"), self.engines[n].life.get(), true)).collect();
        assert_eq!(shown, expected, "{what}: targets of the truth");
        let held = truth.index().holdings();
        for (n, engine) in self.engines.iter().enumerate() {
            let target =
                all.values().find(|target| target.info.name == format!("e{n}")).expect("listed above");
            let told: BTreeSet<u64> = held
                .iter()
                .filter(|(id, block)| *id == target.id.pack() && block & TOKEN_SPACE != 0 && is_exact(n))
                .map(|(_, block)| *block)
                .collect();
            if is_exact(n) {
                let cached = engine.cache.borrow().blocks();
                let missing: Vec<_> = cached.difference(&told).collect();
                assert!(missing.is_empty(), "{what}: e{n}: {} blocks unknown: {missing:x?}", missing.len());
                self.met.exact_blocks += cached.len() as u64;
            }
            assert_eq!(target.requests, 0, "{what}: e{n}: reservations in the truth");
        }
        self.met.blocks += truth.index().stats().blocks;
        self.met.costs += all.values().filter(|target| target.costs.is_some()).count() as u64;
        for gateway in self.gateways.iter().flatten() {
            let desk = gateway.desk.borrow();
            let status = desk.status();
            let what = format!("{what}: {}: {status:?}", gateway.name);
            assert!(status.synced && !status.provisional && !status.loading && !status.index_off, "{what}");
            assert_eq!((status.epoch, status.sequence), (stats.epoch, stats.sequence), "{what}");
            assert_eq!(status.stats.diverged, 0, "{what}");
            assert_eq!((status.overlay_entries, status.trust), (0, Trust::Fresh), "{what}");
            let replica = desk.replica();
            let translation: BTreeMap<TargetId, TargetId> = replica.translation().into_iter().collect();
            assert_eq!(translation.len(), all.len(), "{what}");
            let table = gateway.shared.fleet.table_full();
            assert_eq!(table.entries.iter().flatten().count(), all.len(), "{what}: entries of the table");
            for (local, remote) in &translation {
                let (entry, target) = (table.get(*local).expect("in the table"), &all[remote]);
                assert_eq!(
                    (&*entry.info.name, entry.info.incarnation, entry.ready),
                    (&*target.info.name, target.info.incarnation, target.ready),
                    "{what}"
                );
                assert_eq!(replica.shared_costs(*local), target.costs, "{what}: costs of {}", entry.name);
                assert_eq!(entry.cells.peers(), Default::default(), "{what}: {}: peers", entry.name);
            }
            let mut mine: Vec<(u32, u64)> = replica
                .index()
                .holdings()
                .into_iter()
                .map(|(local, block)| (translation[&TargetId::unpack(local)].pack(), block))
                .collect();
            mine.sort_unstable();
            assert!(mine == held, "{what}: holdings differ: {} and {}", mine.len(), held.len());
            assert_eq!(status.blocks, truth.index().stats().blocks, "{what}: blocks of both trees");
            gateway.check_at_rest(&what);
        }
    }
}

/// Only the first gateway has traffic, for long enough to learn. Then the second starts anew, then the scheduler, then
/// the first gateway.
pub fn learn(seed: u64) {
    let mut fleet = Fleet::new(seed, Faults::default());
    let people = fleet.world.process_with(0);
    fleet.run(2_000_000, || false);
    let left = Rc::new(std::cell::Cell::new(CLIENTS));
    for who in 0..CLIENTS {
        let left = left.clone();
        fleet.world.spawn(people, async move {
            client(gateway_addr(0), who, 80, Habits::default(), Rc::default()).await;
            left.set(left.get() - 1);
        });
    }
    assert!(fleet.run(600_000_000, move || left.get() == 0), "seed {seed}");
    fleet.run(5_000_000, || false);
    fleet.check("learnt");
    let known = fleet.known(0);
    assert!(known.len() == ENGINES && known.iter().all(|known| *known != Constants::PRIOR), "{known:?}");
    let own = fleet.gateways[0].as_ref().map(|gateway| gateway.shared.learnt_counts());
    assert!(own.is_some_and(|own| own.values().any(|count| count.own.1 > 0 && count.shared.1 > 0)));
    fleet.stop_gateway(1);
    fleet.start_gateway(1);
    fleet.run(200_000, || false);
    let at_once = fleet.known(1);
    for (there, here) in known.iter().zip(&at_once) {
        for (there, here) in there.to_array().iter().zip(here.to_array()) {
            assert!((here / there).ln().abs() < 0.1, "seed {seed}: {known:?} there, {at_once:?} here");
        }
    }
    for starts_too in [None, Some(0)] {
        fleet.stop_scheduler();
        if let Some(gateway) = starts_too {
            fleet.stop_gateway(gateway);
        }
        fleet.run(300_000, || false);
        fleet.start_scheduler();
        if let Some(gateway) = starts_too {
            fleet.start_gateway(gateway);
        }
        fleet.run(10_000_000, || false);
        fleet.check("told again");
        let known = fleet.known(0);
        assert!(known.iter().all(|known| *known != Constants::PRIOR), "seed {seed}: {known:?}");
    }
    for n in 0..GATEWAYS {
        fleet.stop_gateway(n);
    }
    fleet.stop_scheduler();
    fleet.world.end();
}

/// Some rounds of traffic and trouble, each followed by rest and a look at everything.
pub fn run(seed: u64, faults: Faults, rounds: u32) -> Met {
    let mut fleet = Fleet::new(seed, faults);
    let tally = Rc::<RefCell<Tally>>::default();
    let habits = Habits { leave: 8, slow: 8, half_close: 10, drip: 8 };
    let people = fleet.world.process_with(0);
    let shared: Vec<_> = fleet.gateways.iter().flatten().map(|gateway| gateway.shared.clone()).collect();
    fleet.run(2_000_000, || shared.iter().all(|shared| shared.is_synced()));
    fleet.run(20_000, || false);
    for round in 0..rounds {
        let left = Rc::new(std::cell::Cell::new(CLIENTS));
        for number in 0..CLIENTS {
            let (tally, left) = (tally.clone(), left.clone());
            let addr = gateway_addr(fleet.world.below(GATEWAYS as u64) as usize);
            let who = u64::from(round) * CLIENTS + number;
            fleet.world.spawn(people, async move {
                Sim::sleep(Duration::from_millis(number)).await;
                client(addr, who, 4, habits, tally).await;
                left.set(left.get() - 1);
            });
        }
        for _ in 0..25 {
            fleet.act(faults);
            let us = [1_000, 5_000, 20_000, 60_000][fleet.world.below(4) as usize];
            fleet.run(us, || false);
        }
        fleet.heal();
        let waiting = left.clone();
        assert!(
            fleet.run(600_000_000, move || waiting.get() == 0),
            "seed {seed}: clients that wait for ever"
        );
        // Connections end, heartbeats go round, overlays and grace periods run out.
        for _ in 0..60 {
            fleet.run(250_000, || false);
            if fleet.is_quiet() {
                break;
            }
        }
        // What was learnt last is told late.
        fleet.run(4_000_000, || false);
        fleet.check(&format!("seed {seed} round {round}"));
    }
    for n in 0..GATEWAYS {
        fleet.stop_gateway(n);
    }
    fleet.stop_scheduler();
    fleet.world.end();
    let mut met = fleet.met;
    met.tally = tally.borrow().clone();
    met.trace = fleet.world.trace();
    met.events = fleet.world.events();
    met
}
