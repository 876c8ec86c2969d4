//! Targets without a fixed role: gateways tell what they have in flight and how many answers were late, the scheduler
//! says which of the targets should rather prefill and which rather decode, and every gateway hears it.
#![allow(clippy::unwrap_used, reason = "a test may fail so")]

mod world;

use std::collections::BTreeMap;

use fairlead_replication::{LeanConfig, TruthConfig};
use fairlead_wire::TargetId;
use fairlead_wire::msg::*;
use world::{MS, World, instance, truth_config};

/// A limit that a pool under [`traffic`] strains.
fn config() -> TruthConfig {
    TruthConfig {
        lean: LeanConfig { tpot_us: 25_000.0, dwell_us: 1_000 * MS, ..LeanConfig::default() },
        ..truth_config()
    }
}

/// An instance that hands KV over.
fn pair(name: &str, ranks: u16) -> InstanceInfo {
    InstanceInfo { transfer: Some(Transfer::new(Handoff::NixlPull)), ..instance(name, ranks) }
}

/// Two gateways and six targets that hand over to one another (of four instances), and one that does not.
fn world(seed: u64) -> World {
    let mut world = World::new(seed, 2, 5);
    world.truth_config = config();
    for agent in &mut world.agents[..4] {
        agent.info = pair(&agent.info.name, agent.info.dp_ranks);
    }
    world.agents[0].info = pair("e0", 2);
    world.start_truth();
    world.run_for(500 * MS);
    world
}

/// Prompts of three quarters of a second and requests that decode, as the gateways' policy would place them by the
/// leanings that they have been told.
fn traffic(world: &mut World, us: u64, late: bool) {
    let end = world.now + us;
    let mut turn = 0;
    while world.now < end {
        for gateway in 0..world.gateways.len() {
            let leanings: BTreeMap<TargetId, ServingRole> =
                world.gateways[gateway].seen.borrow().leanings.clone();
            let that = |role: ServingRole| {
                let all = leanings.iter().filter(|(_, leaning)| **leaning == role);
                all.map(|(id, _)| *id).collect::<Vec<_>>()
            };
            let or_all =
                |some: Vec<TargetId>| if some.is_empty() { leanings.keys().copied().collect() } else { some };
            let (prefill, decode) = (or_all(that(ServingRole::Prefill)), or_all(that(ServingRole::Decode)));
            let mut reserved: BTreeMap<TargetId, InFlight> = BTreeMap::new();
            for id in &decode {
                let requests = 60 / decode.len() as u32;
                let context_tokens = u64::from(requests) * 2_000;
                reserved.insert(*id, InFlight { requests, context_tokens, ..InFlight::default() });
            }
            if turn % 10 == 0 {
                let queued = reserved.entry(prefill[turn / 10 % prefill.len()]).or_default();
                queued.requests += 1;
                queued.prefilling += 1;
                queued.prefill_us += 500 * MS;
            }
            world.gateways[gateway].seen.borrow_mut().reserved = reserved;
            if turn % 10 == 0 {
                for id in &decode {
                    world.gateways[gateway].replica.paced(*id, late);
                }
            }
        }
        turn += 1;
        world.run_for(50 * MS);
    }
}

/// Nothing in flight any more, and time to tell it.
fn rest(world: &mut World) {
    for gateway in &world.gateways {
        gateway.seen.borrow_mut().reserved.clear();
    }
    world.run_for(200 * MS);
}

/// How many targets a gateway was told to lean to prefill, and how many to decode.
fn told(world: &World, gateway: usize) -> (usize, usize) {
    let seen = world.gateways[gateway].seen.borrow();
    let count = |role| seen.leanings.values().filter(|leaning| **leaning == role).count();
    (count(ServingRole::Prefill), count(ServingRole::Decode))
}

fn leaning(world: &World, name: &str) -> Vec<ServingRole> {
    let targets = world.truth().targets();
    targets.iter().filter(|target| *target.info.name == *name).map(|target| target.leaning).collect()
}

#[test]
fn a_late_pool_is_parted_and_every_gateway_hears_it() {
    let mut world = world(21);
    traffic(&mut world, 6_000 * MS, false);
    assert_eq!((told(&world, 0), told(&world, 1)), ((0, 0), (0, 0)), "in time");
    traffic(&mut world, 6_000 * MS, true);
    let parted = told(&world, 0);
    assert!(parted.0 >= 1 && parted.1 >= 1 && parted.0 + parted.1 == 6, "{parted:?}");
    assert_eq!(told(&world, 1), parted);
    assert_eq!(leaning(&world, "e4"), [ServingRole::Both], "it hands nothing over");
    let stats = world.truth().stats();
    assert_eq!((stats.lean_prefill, stats.lean_decode), parted);
    // A gateway that has just started is told with the snapshot.
    world.restart_gateway(1);
    world.run_for(50 * MS);
    assert_eq!(told(&world, 1), parted);
    rest(&mut world);
    world.quiesce();
    world.check("parted");
}

#[test]
fn a_scheduler_that_starts_anew_knows_of_no_leaning() {
    let mut world = world(22);
    traffic(&mut world, 8_000 * MS, true);
    let parted = told(&world, 0);
    assert_ne!(parted, (0, 0));
    world.stop_truth();
    world.run_for(300 * MS);
    assert_eq!(told(&world, 0), parted, "nobody says otherwise");
    world.start_truth();
    rest(&mut world);
    world.run_for(500 * MS);
    assert_eq!((told(&world, 0), told(&world, 1)), ((0, 0), (0, 0)));
    traffic(&mut world, 8_000 * MS, true);
    assert_ne!(told(&world, 1), (0, 0), "it finds out again");
    rest(&mut world);
    world.quiesce();
    world.check("anew");
}

#[test]
fn a_target_that_may_not_be_picked_leans_to_nothing() {
    let mut world = world(23);
    traffic(&mut world, 8_000 * MS, true);
    let sum = |world: &World| told(world, 0).0 + told(world, 0).1;
    assert_eq!((sum(&world), leaning(&world, "e0").len()), (6, 2));
    // Its engine is not ready; its agent is gone; it starts anew.
    for how in 0..3 {
        match how {
            0 => world.agents[0].ready = false,
            1 => {
                world.agents[0].held_off = true;
                world.cut(world.agents[0].session);
            }
            _ => world.restart_engine(0),
        }
        world.run_for(100 * MS);
        if how < 2 {
            assert_eq!(leaning(&world, "e0"), [ServingRole::Both; 2]);
            assert_eq!(sum(&world), 4);
            traffic(&mut world, 2_000 * MS, true);
            assert_eq!(sum(&world), 4, "the others are parted among themselves");
        }
        (world.agents[0].ready, world.agents[0].held_off) = (true, false);
        traffic(&mut world, 3_000 * MS, true);
        assert_eq!(sum(&world), 6, "it has a part again");
        let (prefill, decode) = told(&world, 0);
        assert!(prefill >= 1 && decode >= 1);
    }
    rest(&mut world);
    world.quiesce();
    world.check("picked again");
}

#[test]
fn what_a_gateway_had_in_flight_ends_with_it() {
    let mut world = world(24);
    traffic(&mut world, 5_000 * MS, false);
    while told(&world, 0) == (0, 0) {
        traffic(&mut world, 250 * MS, true);
    }
    // It says that it has more to prefill than all could in a minute, and is gone.
    let id = world.gateways[1].find("e0").unwrap();
    let much = InFlight { requests: 500, prefilling: 500, prefill_us: 60_000 * MS, ..InFlight::default() };
    world.gateways[1].seen.borrow_mut().reserved.insert(id, much);
    world.run_for(50 * MS);
    assert!(world.truth().targets().iter().any(|target| target.requests >= 500));
    world.gateways[1].held_off = true;
    world.cut(world.gateways[1].session);
    // The other has little to do.
    let id = world.gateways[0].find("e1").unwrap();
    let little = InFlight { requests: 2, context_tokens: 100, ..InFlight::default() };
    world.gateways[0].seen.borrow_mut().reserved = BTreeMap::from([(id, little)]);
    world.run_for(30_000 * MS);
    assert_eq!(told(&world, 0), (0, 0));
}

#[test]
fn nothing_leans_where_that_is_switched_off() {
    let mut world = world(25);
    world.truth_config.lean.enabled = false;
    world.start_truth();
    world.run_for(300 * MS);
    traffic(&mut world, 8_000 * MS, true);
    assert_eq!((told(&world, 0), world.truth().stats().lean_prefill), ((0, 0), 0));
}

#[test]
fn paces_are_told_four_times_a_second_and_wait_for_a_scheduler() {
    let mut world = world(26);
    world.gateways[1].held_off = true;
    world.cut(world.gateways[1].session);
    let id = world.gateways[0].find("e1").unwrap();
    for answer in 0..2_000 {
        world.gateways[0].replica.paced(id, answer % 4 == 0);
        world.run_for(MS);
    }
    world.run_for(500 * MS);
    let told = std::mem::take(&mut world.paces);
    assert!((8..=10).contains(&told.len()), "{} messages in two seconds", told.len());
    let sum = |of: fn(&TargetPace) -> u32| told.iter().map(|(_, pace)| of(pace)).sum::<u32>();
    assert_eq!((sum(|pace| pace.answers), sum(|pace| pace.late)), (2_000, 500));
    // Without a scheduler they wait, and the older the fewer: a long time must not drown the present.
    world.stop_truth();
    for answer in 0..3_000 {
        world.gateways[0].replica.paced(id, answer >= 1_500);
        world.run_for(MS);
    }
    world.gateways[0].replica.paced(TargetId::new(id.slot, id.generation + 1), true);
    world.start_truth();
    world.run_for(500 * MS);
    let [(_, pace)] = world.paces[..] else { panic!("{:?}", world.paces) };
    assert!((512..=1_024).contains(&pace.answers), "{pace:?}");
    assert!(pace.late * 2 > pace.answers, "{pace:?}");
    assert_eq!(leaning(&world, "e1"), [ServingRole::Both]);
}
