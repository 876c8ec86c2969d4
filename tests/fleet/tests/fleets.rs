//! Whole fleets: gateways with their shards, a scheduler, agents, engines and clients, on links and sockets that delay,
//! lose, reorder and break. Once it is quiet every replica equals the truth, nothing is reserved, and no pick was made
//! of a target that its gateway knew to be gone.
//!
//! A failing seed is named and repeats exactly: `FAIRLEAD_SEEDS=from..to` runs others.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and say with which seed"
)]

mod support;

use support::each_seed;
use support::fleet::{Faults, Met, learn, run};

#[test]
fn a_fleet_without_faults_serves_everybody() {
    each_seed(6, |seed| {
        let met = run(seed, Faults::default(), 2);
        assert_eq!(met.tally.whole + met.tally.left, met.tally.sent, "{met:?}");
    });
}

#[test]
fn what_gateways_learn_is_known_to_one_that_starts_and_outlives_the_scheduler() {
    each_seed(3, learn);
}

#[test]
fn whatever_happens_replicas_equal_the_truth_in_the_end() {
    let met = each_seed(1_000, |seed| run(seed, Faults::of(seed), 1));
    let mut sum = Met::default();
    met.iter().for_each(|met| sum.and(met));
    eprintln!("{} seeds: {sum:?}", met.len());
    if met.len() >= 100 {
        assert!(sum.gaps > 0 && sum.resumed > 0 && sum.epochs > 0 && sum.picks > 0, "{sum:?}");
        assert!(sum.tally.whole > 0 && sum.tally.cut > 0 && sum.tally.refused > 0, "{sum:?}");
        assert!(sum.exact_blocks > 0 && sum.blocks > sum.exact_blocks, "{sum:?}");
    }
}

#[test]
fn a_seed_repeats_everything() {
    each_seed(6, |seed| {
        let (first, again) = (run(seed, Faults::ALL, 1), run(seed, Faults::ALL, 1));
        assert!(first.events > 1_000);
        assert_eq!(first, again);
    });
}
