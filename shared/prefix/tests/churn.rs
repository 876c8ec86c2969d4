//! Churn far beyond the budget. Alone in its process: what other threads pin would delay what is freed here.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{bound, path, target};
use fairlead_prefix::{Config, Hits};
use fairlead_wire::msg::IndexOp;

#[test]
fn churn_far_beyond_the_budget_stays_within_it_and_replicas_follow() {
    let config = Config { max_bytes: 2 << 20, max_targets: 64, locate: true };
    let mut truth = bound(config, 64);
    // A replica needs a little more than the truth: it lags behind in evictions.
    let mut replica = bound(Config { max_bytes: 3 << 20, ..config }, 64);
    let mut evicted = 0;
    for round in 0..6000u64 {
        let path = path(round, 10, 20 + (round % 300) as usize);
        let ops: Vec<IndexOp> =
            truth.place(target((round % 64) as u16), &path, round * 1000).into_iter().collect();
        replica.apply_all(&ops).unwrap();
        if round % 8 == 0 {
            let ops = truth.evict_to_budget(round * 1000);
            evicted += ops.len();
            replica.apply_all(&ops).unwrap();
        }
        truth.collect();
        replica.collect();
        let stats = truth.stats();
        assert!(stats.bytes - stats.retired_bytes <= 2 << 20, "round {round}: {stats:?}");
        assert!(stats.bytes <= (2 << 20) * 5 / 4 + (64 << 10), "round {round}: {stats:?}");
        assert!(replica.stats().bytes <= (3 << 20) * 5 / 4);
    }
    assert!(evicted > 1000);
    assert_eq!(truth.stats().refused, 0, "eviction keeps ahead");
    assert_eq!(truth.holdings(), replica.holdings());
    // The shared beginning is used by everybody and was never the oldest.
    let mut hits = Hits::new();
    truth.reader().lookup(&path(0, 10, 10), &mut hits);
    assert_eq!(hits.matched_blocks, 10);
    // Recent ones are there, old ones are not.
    truth.reader().lookup(&path(5999, 10, 200), &mut hits);
    assert_eq!(hits.matched_blocks, 200);
    truth.reader().lookup(&path(1, 10, 21), &mut hits);
    assert_eq!(hits.matched_blocks, 10);
}
