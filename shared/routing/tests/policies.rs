//! What holds for every policy in the registry.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use fairlead_routing::{
    EngineFigures, InFlightSums, LabelFilter, Mode, NoPlan, PlanRequest, Reservation, Rng, Scratch, Slo,
    Strategy, TargetEntry, plan,
};
use proptest::prelude::*;
use std::sync::Arc;
use support::{World, entry, figures, floats, path, request, strategies};

/// Decisions per test of a distribution.
const DRAWS: usize = 1_500;

/// How often each of the targets is picked, nothing being left behind by a decision; every request has a session, a
/// user and a prompt of its own, so that policies which bind to one of these spread, too.
fn spread(world: &World, strategy: &Strategy, seed: u64) -> Vec<usize> {
    let (mut scratch, mut rng) = (Scratch::new(seed), Rng::new(seed ^ 0x5eed));
    let mut seen = vec![0; world.targets.len()];
    for turn in 0..DRAWS {
        let path = path(&mut rng, 8);
        let request = PlanRequest {
            session: Some(rng.next_u64()),
            user: Some(rng.next_u64()),
            ..request(strategy, &path, 1_000_000 + 1_000 * turn as u64)
        };
        let plan = plan(&request, &world.fleet, &mut scratch).unwrap();
        seen[usize::from(plan.target().id.slot)] += 1;
    }
    seen
}

/// Whether counts are those of an even draw: chi-square at a probability of some 10⁻⁹.
fn is_even(seen: &[usize]) -> bool {
    let mean = seen.iter().sum::<usize>() as f64 / seen.len() as f64;
    let chi: f64 = seen.iter().map(|&n| (n as f64 - mean).powi(2) / mean).sum();
    let freedom = (seen.len() - 1) as f64;
    chi < freedom + 6.0 * (2.0 * freedom).sqrt() + 36.0
}

#[test]
fn where_nothing_distinguishes_targets_they_are_picked_evenly() {
    for known in [false, true] {
        for strategy in strategies() {
            let world = World::new(5);
            if known {
                world.report(&figures());
            }
            let seen = spread(&world, &strategy, 11);
            assert!(is_even(&seen), "{}, reports {known}: {seen:?}", strategy.label());
        }
    }
}

#[test]
fn broken_figures_neither_attract_nor_repel() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, -0.0, f32::MAX, f32::MIN_POSITIVE] {
        // Anew for each fleet, since some keep accounts over time.
        for strategy in strategies() {
            let world = World::new(4);
            world.report(&figures());
            world.targets[2].cells.report(&floats(value));
            let mut seen = spread(&world, &strategy, 5);
            let broken = seen.remove(2);
            let is_possible = value >= 0.0 && value.is_finite();
            if !is_possible {
                // It counts as unknown: passed over by policies that need a figure, an equal for all others, and in a
                // sum of both less than the others.
                let even = is_even(&[seen.as_slice(), &[broken]].concat());
                let less = seen.iter().all(|&other| broken < other);
                assert!(less || even, "{} {value}: {broken} of {seen:?}", strategy.label());
            }
            // Whatever becomes of it, the others are equal among themselves.
            if seen.iter().sum::<usize>() > 0 {
                assert!(is_even(&seen), "{} {value}: {seen:?}", strategy.label());
            }
        }
    }
}

#[test]
fn where_all_figures_are_broken_picks_are_even() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0] {
        for strategy in strategies() {
            let world = World::new(3);
            world.report(&floats(value));
            let seen = spread(&world, &strategy, 5);
            assert!(is_even(&seen), "{} {value}: {seen:?}", strategy.label());
        }
    }
}

#[test]
fn loads_that_overflow_do_not_win() {
    for strategy in strategies() {
        // Policies that do not look at the load in flight may pick it, but no more often than the others.
        let world = World::new(3);
        let huge = InFlightSums {
            requests: u64::MAX / 2,
            prefilling: u64::MAX / 2,
            prefill_tokens: u64::MAX / 2,
            prefill_us: u64::MAX / 2,
            context_tokens: u64::MAX / 2,
        };
        world.targets[1].cells.set_peers(huge, 1);
        let mut seen = spread(&world, &strategy, 5);
        let even = is_even(&seen);
        let most = seen.remove(1);
        assert!(even || most < seen[0].min(seen[1]), "{}: {most} of {seen:?}", strategy.label());
    }
}

/// A fleet made from random bytes: states, reports, loads and caches of all kinds.
fn random_world(rng: &mut Rng, targets: u16) -> (World, Vec<Vec<u64>>) {
    let made = |slot| {
        let tier = if rng.below(2) == 0 { "gold" } else { "free" };
        let ready = rng.below(8) > 0;
        entry(slot, ready, &[("tier", tier)])
    };
    let mut world = World::of((0..targets).map(made).collect());
    let paths: Vec<_> = (0..4).map(|_| path(rng, 1 + rng.clone().below(40))).collect();
    for target in &world.targets {
        let any_float = |rng: &mut Rng| match rng.below(6) {
            0 => None,
            1 => Some([f32::NAN, f32::INFINITY, -1.0, f32::MAX, 0.0][rng.below(5)]),
            _ => Some(rng.unit() as f32),
        };
        let any_count = |rng: &mut Rng| match rng.below(6) {
            0 => None,
            1 => Some(u32::MAX),
            _ => Some(rng.below(100) as u32),
        };
        let load = EngineFigures {
            running: any_count(rng),
            waiting: any_count(rng),
            kv_usage: any_float(rng),
            host_kv_usage: any_float(rng),
            kv_total_tokens: any_count(rng).map(|count| u64::from(count) * 100),
            prompt_tokens_per_s: any_float(rng),
            generation_tokens_per_s: any_float(rng),
            queue_time_s: any_float(rng),
            prefill_time_s: any_float(rng),
            decode_time_s: any_float(rng),
            request_prompt_tokens: any_float(rng),
            request_generation_tokens: any_float(rng),
            busy: any_float(rng),
            utilization: any_float(rng),
            foreign_requests: any_count(rng),
            taken_us: rng.next_u64(),
        };
        if rng.below(4) > 0 {
            target.cells.report(&load);
        }
        let any_sum = |rng: &mut Rng| if rng.below(9) == 0 { u64::MAX } else { rng.below(5_000) as u64 };
        if rng.below(2) == 0 {
            let sums = InFlightSums {
                requests: any_sum(rng),
                prefilling: any_sum(rng),
                prefill_tokens: any_sum(rng),
                prefill_us: any_sum(rng),
                context_tokens: any_sum(rng),
            };
            target.cells.set_peers(sums, rng.next_u64());
        }
        if rng.below(6) == 0 {
            target.cells.connect_failed(1_000_000);
        }
        let mut constants = target.cells.costs.read().to_array();
        if rng.below(4) == 0 {
            constants[rng.below(6)] = [f32::NAN, f32::INFINITY, 0.0, -1.0, f32::MAX][rng.below(5)];
        }
        let [prefill, attention, step, sequence, context, chunk] = constants;
        let broken = fairlead_routing::Constants { prefill, attention, step, sequence, context, chunk };
        target.cells.costs.store(&broken);
        let path = &paths[rng.below(paths.len())];
        world.index.place(target.id, &path[..rng.below(path.len() + 1)], 1);
    }
    world.fleet.set_mode([Mode::Fresh, Mode::Fresh, Mode::Stale, Mode::Blind][rng.below(4)]);
    (world, paths)
}

/// Runs random requests against a random fleet, and answers which targets were picked.
fn play(seed: u64, strategy: &Strategy) -> Vec<Result<u16, NoPlan>> {
    let mut rng = Rng::new(seed);
    let targets = 1 + rng.below(12) as u16;
    let (world, paths) = random_world(&mut rng, targets);
    let mut scratch = Scratch::new(seed);
    let filters = [LabelFilter::parse("tier=gold").unwrap(), LabelFilter::parse("tier!=gold,!x").unwrap()];
    let mut held: Vec<Reservation> = Vec::new();
    let mut picks = Vec::new();
    for _ in 0..24 {
        let any_u32 = |rng: &mut Rng| [0, 1, 100, 100_000, u32::MAX][rng.below(5)];
        let tried: Vec<Arc<TargetEntry>> =
            world.targets.iter().filter(|_| rng.below(6) == 0).cloned().collect();
        let labels = filters.get(rng.below(8));
        let path = &paths[rng.below(paths.len())];
        let now_us = [0, 1_000_000, 1_500_000, u64::MAX / 2][rng.below(4)] + rng.below(1_000) as u64;
        let request = PlanRequest {
            path: &path[..rng.below(path.len() + 1)],
            prompt_tokens: any_u32(&mut rng),
            block_tokens: any_u32(&mut rng),
            max_output: (rng.below(2) == 0).then(|| any_u32(&mut rng)),
            session: (rng.below(2) == 0).then(|| rng.next_u64()),
            user: (rng.below(2) == 0).then(|| rng.next_u64()),
            slo: Slo { ttft_us: any_u32(&mut rng), tpot_us: any_u32(&mut rng) },
            labels,
            tried: &tried,
            now_us,
            ..PlanRequest::new(support::MODEL, strategy)
        };
        let result = plan(&request, &world.fleet, &mut scratch);
        let may = |target: &TargetEntry| {
            target.ready
                && !tried.iter().any(|tried| tried.id == target.id)
                && labels.is_none_or(|labels| labels.matches(&target.info.labels))
        };
        picks.push(result.as_ref().map(|plan| plan.target().id.slot).map_err(|why| *why));
        match result {
            Ok(mut plan) => {
                assert!(may(plan.target()), "{} picked what is filtered", strategy.label());
                let closed = |target: &TargetEntry| may(target) && target.cells.circuit_closed(now_us);
                assert!(closed(plan.target()) || !world.targets.iter().any(|target| closed(target)));
                if rng.below(2) == 0 {
                    plan.reservation.first_token(now_us);
                }
                held.push(plan.reservation);
            }
            Err(why) => {
                assert!(!world.targets.iter().any(|target| may(target)), "{}: {why}", strategy.label());
            }
        }
        if held.len() > 12 {
            drop(held.swap_remove(rng.below(12)));
        }
    }
    picks
}

#[test]
fn a_seed_decides_all_picks() {
    for (one, other) in strategies().zip(strategies()) {
        for seed in 0..20 {
            assert_eq!(play(seed, &one), play(seed, &other), "{} {seed}", one.label());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever the fleet and the requests: no panic, and nothing is picked that is filtered.
    #[test]
    fn random_fleets_and_requests(seed in any::<u64>()) {
        play(seed, &strategies().nth(seed as usize % strategies().count()).unwrap());
    }

    /// Over any history of readiness: who is picked is always the eligible one whose last turn is longest ago.
    #[test]
    fn round_robin_is_exact_under_churn(ready in proptest::collection::vec(any::<u8>(), 1..60), seed in any::<u64>()) {
        let world = World::new(6);
        let strategy = Strategy::parse("round-robin", &fairlead_routing::Settings::default()).unwrap();
        let mut scratch = Scratch::new(seed);
        let mut last = [0usize; 6];
        for (turn, ready) in ready.iter().enumerate() {
            let entries = world.targets.iter().map(|target| {
                let mut entry = TargetEntry::new(target.id, target.info.clone(), 0, true, target.cells.clone());
                entry.ready = ready >> target.id.slot & 1 == 1;
                Some(Arc::new(entry))
            });
            world.fleet.publish(entries.collect());
            let oldest = (0..6).filter(|slot| ready >> slot & 1 == 1).map(|slot| last[slot]).min();
            match plan(&PlanRequest::new(support::MODEL, &strategy), &world.fleet, &mut scratch) {
                Ok(plan) => {
                    let slot = usize::from(plan.target().id.slot);
                    prop_assert_eq!(Some(last[slot]), oldest);
                    last[slot] = turn + 1;
                }
                Err(why) => prop_assert_eq!((why, oldest), (NoPlan::NoneReady, None)),
            }
        }
    }
}
