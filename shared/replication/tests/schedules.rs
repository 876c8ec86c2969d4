//! Random schedules of operations and faults: once it is quiet, every replica equals the truth.
//!
//! A failing seed is named in the message and replays exactly. `FAIRLEAD_SEEDS=from..to` runs others.

mod world;

use fairlead_replication::LeanConfig;
use fairlead_wire::msg::{Handoff, HashSpace, Transfer};
use world::{MS, World};

fn seeds() -> std::ops::Range<u64> {
    let given = std::env::var("FAIRLEAD_SEEDS").ok();
    let range = given.as_deref().and_then(|range| {
        let (from, to) = range.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    range.unwrap_or(0..6)
}

#[derive(Clone, Copy, Default)]
struct Faults {
    /// Links of gateways break.
    links: bool,
    /// Frames are lost and load frames reordered.
    loss: bool,
    /// The scheduler is killed and started again.
    restarts: bool,
    /// Engines restart, agents come and go.
    agents: bool,
    /// The index is small and the paths are long.
    small: bool,
}

fn act(world: &mut World, faults: Faults) {
    let gateway = world.rng.below(world.gateways.len());
    let agent = world.rng.below(world.agents.len());
    match world.rng.below(100) {
        0..=4 => {
            let ready = world.gateways[gateway].ready();
            if let Some(&target) = ready.get(world.rng.below(ready.len())) {
                let count = world.rng.below(1_000) as u32;
                let prefill = 10.0 + world.rng.below(90) as f32;
                world.gateways[gateway].learn(target, prefill, count);
            }
        }
        5..=7 => {
            let ready = world.gateways[gateway].ready();
            if let Some(&target) = ready.get(world.rng.below(ready.len())) {
                let count = world.rng.below(30);
                (0..count).for_each(|answer| world.gateways[gateway].replica.paced(target, answer % 2 == 0));
            }
        }
        8..=49 => {
            let path = if faults.small { world.rng.path(3_000) } else { world.rng.path(16) };
            let ready = world.gateways[gateway].ready();
            if let Some(&target) = ready.get(world.rng.below(ready.len())) {
                let now = world.now + world.gateways[gateway].skew;
                let keep = world.gateways[gateway].depth(target, &path);
                world.gateways[gateway].replica.place(target, HashSpace::Bytes, &path, now);
                if world.rng.one_in(8) {
                    world.gateways[gateway].replica.withdraw(target, HashSpace::Bytes, &path, keep, now);
                }
            }
        }
        50..=64 => {
            let ready = world.gateways[gateway].ready();
            if let Some(&target) = ready.get(world.rng.below(ready.len())) {
                world.gateways[gateway].reserve(target, 1);
            }
        }
        65..=79 => {
            let busy: Vec<_> = {
                let seen = world.gateways[gateway].seen.borrow();
                seen.reserved.iter().filter(|(_, cell)| cell.requests > 0).map(|(id, _)| *id).collect()
            };
            if let Some(&target) = busy.get(world.rng.below(busy.len())) {
                world.gateways[gateway].reserve(target, -1);
            }
        }
        80..=83 if faults.links => world.cut(world.gateways[gateway].session),
        84 if faults.links => {
            world.cut(world.gateways[gateway].session);
            world.gateways[gateway].held_off ^= true;
        }
        85 if faults.links => world.restart_gateway(gateway),
        86..=87 if faults.loss => world.loss = [0, 0, 3, 10][world.rng.below(4)],
        88 if faults.loss => world.reorder ^= true,
        89 if faults.restarts && world.rng.one_in(2) => {
            if world.truth.is_some() {
                world.stop_truth();
            } else {
                world.start_truth();
            }
        }
        90 if faults.restarts => world.start_truth(),
        91..=92 if faults.agents => {
            world.cut(world.agents[agent].session);
            world.agents[agent].held_off = world.rng.one_in(2);
        }
        93 if faults.agents => world.agents[agent].held_off = false,
        94 if faults.agents => world.restart_engine(agent),
        95..=96 if faults.agents => world.agents[agent].ready ^= true,
        _ => {
            let us = [MS, 2 * MS, 5 * MS, 20 * MS, 50 * MS, 400 * MS][world.rng.below(6)];
            world.run_for(us);
        }
    }
}

/// What the schedules have run into, so that a test cannot pass by never meeting its subject.
#[derive(Debug, Default)]
struct Met {
    snapshots: u64,
    gaps: u64,
    resumed: u64,
    epochs: u64,
    trims: u64,
    evictions: u64,
    leanings: usize,
}

fn explore(faults: Faults, salt: u64) -> Met {
    let mut met = Met::default();
    for seed in seeds() {
        let mut world = World::new(seed ^ salt << 32, 3, 4);
        // All but one hand KV over to one another, and their answers are late by a limit that none could keep.
        for agent in &mut world.agents[1..] {
            agent.info.transfer = Some(Transfer::new(Handoff::NixlPull));
        }
        let lean =
            LeanConfig { tpot_us: 8_000.0, dwell_us: 200 * MS, window_us: 500 * MS, ..LeanConfig::default() };
        world.truth_config.lean = lean;
        world.start_truth();
        if faults.small {
            world.shrink();
        }
        world.run_for(20 * MS);
        for round in 0..2 {
            for _ in 0..if faults.small { 60 } else { 200 } {
                act(&mut world, faults);
            }
            for agent in &mut world.agents {
                agent.ready = true;
            }
            world.quiesce();
            world.check(&format!("seed {seed} round {round}"));
            let truth = world.truth().stats();
            met.leanings += truth.lean_prefill.min(truth.lean_decode);
        }
        for gateway in &world.gateways {
            let reserved = std::mem::take(&mut gateway.seen.borrow_mut().reserved);
            drop(reserved);
        }
        world.run_for(1_000 * MS);
        world.check(&format!("seed {seed} at rest"));
        let truth = world.truth().stats();
        met.resumed += truth.resumed;
        met.trims += truth.trims;
        met.evictions += truth.evictions;
        for gateway in &world.gateways {
            let stats = gateway.replica.status().stats;
            met.snapshots += stats.snapshots;
            met.gaps += stats.gaps;
            met.epochs += stats.epochs;
        }
    }
    met
}

#[test]
fn without_faults() {
    let met = explore(Faults::default(), 1);
    assert!(met.trims > 0 && met.gaps == 0 && met.leanings > 0, "{met:?}");
}

#[test]
fn with_broken_links() {
    let met = explore(Faults { links: true, ..Faults::default() }, 2);
    assert!(met.resumed > 0 && met.snapshots > 0, "{met:?}");
}

#[test]
fn with_losses() {
    let met = explore(Faults { links: true, loss: true, ..Faults::default() }, 3);
    assert!(met.resumed > 0 && met.gaps > 0, "{met:?}");
}

#[test]
fn with_agents_that_come_and_go() {
    explore(Faults { agents: true, ..Faults::default() }, 4);
}

#[test]
fn with_scheduler_restarts() {
    let met = explore(Faults { restarts: true, ..Faults::default() }, 5);
    assert!(met.epochs > 0, "{met:?}");
}

#[test]
fn with_everything() {
    let faults = Faults { links: true, loss: true, restarts: true, agents: true, small: false };
    let met = explore(faults, 6);
    assert!(met.epochs > 0 && met.gaps > 0 && met.trims > 0 && met.leanings > 0, "{met:?}");
}

#[test]
fn with_an_index_too_small_for_all() {
    let faults = Faults { links: true, restarts: true, small: true, ..Faults::default() };
    let met = explore(faults, 7);
    assert!(met.evictions > 0 && met.epochs > 0, "{met:?}");
}
