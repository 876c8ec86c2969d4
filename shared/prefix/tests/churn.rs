//! Churn far beyond the budget. Alone in its process: what other threads pin would delay what is freed here.
#![allow(clippy::unwrap_used, reason = "tests")]

use fairlead_prefix::{Config, Hits, TargetId, Writer, new};
use fairlead_wire::msg::IndexOp;

/// A path of `len` blocks: `shared` blocks that all paths have, then its own.
fn path(own: u64, shared: usize, len: usize) -> Vec<u64> {
    let mut last = 1u64;
    (0..len)
        .map(|at| {
            let text = if at < shared { at as u64 } else { own << 20 | at as u64 };
            last = (last.rotate_left(5) ^ text).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            last
        })
        .collect()
}

fn target(slot: u16) -> TargetId {
    TargetId::new(slot, 1)
}

fn bound(config: Config, targets: u16) -> Writer {
    let (mut writer, _) = new(config);
    for slot in 0..targets {
        writer.bind(target(slot)).unwrap();
    }
    writer
}

#[test]
fn churn_far_beyond_the_budget_stays_within_it_and_replicas_follow() {
    let config = Config { max_bytes: 2 << 20, max_targets: 64 };
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
