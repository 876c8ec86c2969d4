//! Load is counted once: random interleavings of reservations, ends, reports of the engines and delays of links, on
//! processes whose clocks differ.
//!
//! `FAIRLEAD_SEEDS=from..to` runs other seeds.
#![allow(clippy::unwrap_used, reason = "a test may fail so")]

mod world;

use world::{MS, World};

/// Requests that each simulated engine reports beyond those of the gateways.
const FOREIGN: i64 = 3;

fn seeds() -> std::ops::Range<u64> {
    let given = std::env::var("FAIRLEAD_SEEDS").ok();
    let range = given.as_deref().and_then(|range| {
        let (from, to) = range.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    range.unwrap_or(0..6)
}

/// Errors of the foreign requests that gateways believe in, while requests come and go.
#[derive(Default)]
struct Errors {
    looks: i64,
    sum: i64,
    off: i64,
}

fn replay(seed: u64, errors: &mut Errors) {
    let mut world = World::new(seed, 3, 2);
    world.delay = [0, MS, 3 * MS][world.rng.below(3)];
    world.run_for(1_000 * MS);
    // When the sum at each instance last changed, and how often in all.
    let mut changes: [Vec<u64>; 2] = Default::default();
    for step in 0..3_000u64 {
        // Bursts and lulls: in a lull everything must come out exactly.
        let busy = step / 100 % 3 != 2;
        if busy && world.rng.one_in(3) {
            let gateway = world.rng.below(3);
            let which = world.rng.below(2);
            let id = world.gateways[gateway].find(&format!("e{which}")).unwrap();
            let more = if world.rng.one_in(2) { 1 } else { -1 };
            let before = world.actual(&format!("e{which}"), 0, None);
            world.gateways[gateway].reserve(id, more);
            // As the control thread is told of a pick, and not of an end.
            if more > 0 {
                let now = world.now + world.gateways[gateway].skew;
                world.gateways[gateway].replica.place(id, Default::default(), &[], now);
            }
            if world.actual(&format!("e{which}"), 0, None) != before {
                changes[which].push(world.now);
            }
        }
        world.run_for(MS);
        for (which, changes) in changes.iter().enumerate() {
            let actual = i64::from(world.actual(&format!("e{which}"), 0, None));
            for gateway in &world.gateways {
                let id = gateway.find(&format!("e{which}")).unwrap();
                let seen = gateway.seen.borrow();
                let Some(view) = seen.engines.get(&id) else { continue };
                let foreign = i64::from(view.foreign_requests.unwrap());
                errors.looks += 1;
                errors.sum += foreign - FOREIGN;
                errors.off += i64::from(foreign != FOREIGN);
                // Nobody can tell apart what happened so close to the report that the clocks' error or the way of the
                // news lies between.
                let taken = view.load.taken_us - gateway.skew;
                let near = |time: &&u64| time.abs_diff(taken) <= 6 * MS + 3 * world.delay;
                let doubt = changes.iter().rev().filter(near).count() as i64;
                assert!(
                    (foreign - FOREIGN).abs() <= doubt,
                    "seed {seed} step {step}: {foreign} foreign at e{which}, {doubt} changes near the report"
                );
                // What a gateway takes for the whole load, once the news has come round.
                let settled = changes.last().is_none_or(|last| world.now - last > 10 * MS + 4 * world.delay);
                let sum = i64::from(seen.reserved.get(&id).map_or(0, |own| own.requests))
                    + i64::from(seen.peers.get(&id).map_or(0, |peers| peers.requests));
                if settled {
                    assert_eq!(sum, actual, "seed {seed} step {step}: the gateways' own at e{which}");
                }
            }
        }
    }
}

#[test]
fn load_is_counted_once() {
    let mut errors = Errors::default();
    for seed in seeds() {
        replay(seed, &mut errors);
    }
    let mean = errors.sum as f64 / errors.looks as f64;
    let share = errors.off as f64 / errors.looks as f64;
    // Requests that begin just before a report are not counted a second time as foreign, nor is foreign load lost.
    assert!(mean.abs() < 0.05, "foreign load is off by {mean:.3} on average");
    assert!(share < 0.1, "wrong for a share of {share:.3} of the time");
}

/// What the second gateway knows to be in flight of the first one's at a rank of the only instance.
fn told(world: &World, rank: u16) -> u32 {
    let other = &world.gateways[1];
    let id = other.find_rank("e0", rank).unwrap();
    other.seen.borrow().peers.get(&id).map_or(0, |peers| peers.requests)
}

#[test]
fn of_many_targets_those_in_use_are_read_and_the_others_in_their_turn() {
    let mut world = World::new(1, 2, 1);
    world.agents[0].info.dp_ranks = 200;
    world.run_for(1_000 * MS);
    // The shards' word that a request goes there may find no room in its queue.
    for said in [true, false] {
        for rank in [0, 63, 64, 130, 199] {
            let id = world.gateways[0].find_rank("e0", rank).unwrap();
            for more in [1, 1, -1, -1] {
                let before = told(&world, rank);
                world.gateways[0].reserve(id, more);
                if said && more > 0 {
                    let now = world.now + world.gateways[0].skew;
                    world.gateways[0].replica.place(id, Default::default(), &[], now);
                }
                world.run_for(12 * MS);
                let change = i64::from(told(&world, rank)) - i64::from(before);
                assert_eq!(change, i64::from(more), "rank {rank}, said: {said}");
            }
        }
    }
}
