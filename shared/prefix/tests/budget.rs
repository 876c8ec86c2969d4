//! Bounds: memory, runs, holders, slots, hostile input.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{bound, path, target};
use fairlead_prefix::{ApplyError, Config, Hits, MAX_RUN, MAX_TARGETS, TargetId, Writer};
use fairlead_wire::msg::{Holding, IndexOp, Run};

/// Collects until all is freed. Other tests of this process pin the same collector, so it may take a few attempts.
fn drain(writer: &mut Writer) {
    while writer.stats().retired_bytes > 0 {
        writer.collect();
        std::thread::yield_now();
    }
}

#[test]
fn without_eviction_the_truth_refuses_and_a_replica_says_full() {
    let config = Config { max_bytes: Config::MIN_BYTES, max_targets: 4, locate: true };
    let mut writer = bound(config, 4);
    for round in 0..2000u64 {
        writer.place(target(0), &path(round, 4, 100), round);
        assert!(writer.stats().bytes - writer.stats().retired_bytes <= Config::MIN_BYTES as u64);
    }
    let stats = writer.stats();
    assert!(stats.refused > 0 && stats.blocks > 1000);
    let op = IndexOp::Place { target: target(1).pack(), anchor: 0, skip: 0, blocks: path(7777, 0, 3000) };
    let before = writer.holdings();
    assert!(matches!(writer.apply(&op), Err(ApplyError::Full { .. })));
    assert_eq!(writer.holdings(), before, "a refused operation leaves everything as it was");
    // Having refused is reason enough to evict, and then there is room again.
    assert!(!writer.evict_to_budget(1 << 30).is_empty());
    assert!(writer.place(target(0), &path(9999, 4, 100), 1 << 30).is_some());
    assert_eq!(writer.stats().refused, stats.refused);
}

#[test]
fn node_count_returns_to_its_start_after_churn() {
    let mut writer = bound(Config::default(), 8);
    writer.place(target(0), &path(0, 40, 80), 1);
    let start = writer.stats();
    for round in 1..300u64 {
        writer.place(target((round % 8) as u16), &path(round, 40, 60), round);
    }
    for slot in 1..8 {
        writer.clear(slot);
    }
    for round in (8..300u64).step_by(8) {
        writer.remove_path_tail(target(0), &path(round, 40, 60), 40);
    }
    drain(&mut writer);
    let end = writer.stats();
    assert_eq!((end.blocks, end.held_blocks, end.retired_bytes), (80, 80, 0));
    assert_eq!(end.runs, start.runs, "what was split is merged again");
}

#[test]
fn a_prompt_shared_by_all_slots_answers_for_each() {
    let mut writer = bound(Config::default(), MAX_TARGETS as u16);
    let reader = writer.reader();
    for slot in 0..MAX_TARGETS as u16 {
        writer.place(target(slot), &path(u64::from(slot), 50, 60), u64::from(slot));
    }
    let mut hits = Hits::new();
    reader.lookup(&path(9, 50, 60), &mut hits);
    assert_eq!((hits.len(), hits.matched_blocks), (MAX_TARGETS, 60));
    for slot in 0..MAX_TARGETS as u16 {
        assert_eq!(hits.get(slot), if slot == 9 { 60 } else { 50 });
    }
    // The shared run has the wide form: well under a word a holder, the records of narrow runs apart.
    let shared = |writer: &mut Writer| {
        drain(writer);
        writer.stats().bytes
    };
    let with_own = shared(&mut writer);
    let mut alone = bound(Config::default(), MAX_TARGETS as u16);
    let empty = shared(&mut alone);
    for slot in 0..MAX_TARGETS as u16 {
        alone.place(target(slot), &path(0, 50, 50), 1);
    }
    let bytes = shared(&mut alone) - empty;
    assert!(bytes < 128 << 10 && with_own > bytes, "one run with {MAX_TARGETS} holders took {bytes} bytes");
    // One target less, found again and added at the freed position.
    writer.clear(17);
    reader.lookup(&path(9, 50, 60), &mut hits);
    assert_eq!((hits.len(), hits.get(17)), (MAX_TARGETS - 1, 0));
    writer.place(target(17), &path(9, 50, 60), 1);
    reader.lookup(&path(9, 50, 60), &mut hits);
    assert_eq!((hits.len(), hits.get(17)), (MAX_TARGETS, 60));
}

#[test]
fn a_branch_that_goes_leaves_one_run_and_no_trace_in_any_replica() {
    let (mut truth, mut replica) = (bound(Config::default(), 3), bound(Config::default(), 3));
    let trunk = path(1, 0, 60);
    let mut ops = Vec::new();
    ops.extend(truth.place(target(0), &trunk, 1));
    ops.extend(truth.place(target(1), &path(2, 0, 1)[..1], 1));
    let mut branch = trunk[..20].to_vec();
    branch.extend(path(7, 0, 30));
    ops.extend(truth.place(target(2), &branch, 2));
    assert_eq!(truth.stats().runs, 4);
    // Held to its end, held to the fork, and with a hole across it.
    ops.extend(truth.remove_path_tail(target(2), &branch, 20));
    assert_eq!(truth.stats().runs, 2);
    ops.extend(truth.place(target(2), &trunk[..40], 3));
    replica.apply_all(&ops).unwrap();
    let runs =
        |index: &Writer| index.snapshot_runs().filter(|run| run.blocks[0] == trunk[0]).collect::<Vec<_>>();
    assert_eq!(runs(&truth), runs(&replica));
    assert_eq!(runs(&truth)[0].blocks, trunk);
    let mut hits = Hits::new();
    replica.reader().lookup(&trunk, &mut hits);
    assert_eq!([hits.get(0), hits.get(1), hits.get(2)], [60, 0, 40]);
}

#[test]
fn paths_longer_than_a_run_are_chained_split_and_extended() {
    let mut truth = bound(Config::default(), 3);
    let mut replica = bound(Config::default(), 3);
    let whole = path(1, 3 * MAX_RUN, 3 * MAX_RUN + 100);
    let mut ops = Vec::new();
    ops.extend(truth.place(target(0), &whole[..MAX_RUN - 1], 1));
    ops.extend(truth.place(target(0), &whole, 2));
    ops.extend(truth.place(target(1), &path(2, MAX_RUN + 5, 2 * MAX_RUN), 3));
    ops.extend(truth.place(target(2), &whole[..2 * MAX_RUN], 4));
    ops.extend(truth.remove_path_tail(target(0), &whole, 3));
    replica.apply_all(&ops).unwrap();
    assert_eq!(truth.holdings(), replica.holdings());
    let mut hits = Hits::new();
    truth.reader().lookup(&whole, &mut hits);
    assert_eq!([hits.get(0), hits.get(1), hits.get(2)], [3, MAX_RUN as u32 + 5, 2 * MAX_RUN as u32]);
    assert!(truth.snapshot_runs().all(|run| run.blocks.len() <= MAX_RUN));
}

#[test]
fn growing_by_single_blocks_keeps_one_run() {
    let mut writer = bound(Config::default(), 1);
    let whole = path(1, 0, 2000);
    for end in 1..=whole.len() {
        let op = writer.place(target(0), &whole[..end], end as u64).unwrap();
        assert!(matches!(op, IndexOp::Place { blocks, .. } if blocks.len() == 1));
    }
    assert_eq!((writer.stats().runs, writer.stats().blocks), (1, 2000));
}

#[test]
fn operations_that_do_not_fit_are_refused_with_a_reason() {
    let config = Config { max_targets: 4, ..Config::default() };
    let mut writer = bound(config, 4);
    let known = path(1, 0, 10);
    writer.place(target(0), &known, 1);
    let head = known[0];
    let place = |anchor, skip, blocks: &[u64]| IndexOp::Place {
        target: target(1).pack(),
        anchor,
        skip,
        blocks: blocks.to_vec(),
    };
    let cases = [
        (place(99, 1, &[5]), ApplyError::UnknownRun { run: 99 }),
        (place(head, 11, &[5]), ApplyError::Skip { run: head, skip: 11, len: 10 }),
        (place(head, 0, &[5]), ApplyError::Skip { run: head, skip: 0, len: 10 }),
        (place(0, 1, &[5]), ApplyError::Skip { run: 0, skip: 1, len: 0 }),
        (place(head, 3, &[5, 0]), ApplyError::Malformed { run: head, what: "a block hash is zero" }),
        (place(head, 3, &[head]), ApplyError::Conflict { block: head }),
        (IndexOp::Clear { target: TargetId::new(4, 1).pack() }, ApplyError::Slot { slot: 4, max_targets: 4 }),
    ];
    let before = writer.holdings();
    for (op, error) in cases {
        assert_eq!(writer.apply(&op), Err(error), "{op:?}");
        assert_eq!(writer.holdings(), before);
    }
    for op in [
        IndexOp::Remove { target: target(0).pack(), run: 99, from: 0, len: 1 },
        IndexOp::Remove { target: target(0).pack(), run: head, from: u32::MAX, len: u32::MAX },
        IndexOp::Remove { target: target(0).pack(), run: head, from: 3, len: 0 },
        IndexOp::Evict { run: 99 },
        IndexOp::Clear { target: TargetId::new(0, 9).pack() },
    ] {
        assert_eq!(writer.apply(&op), Ok(()), "{op:?}");
        assert_eq!(writer.holdings(), before);
    }
}

#[test]
fn malformed_runs_of_a_snapshot_are_refused() {
    let mut writer = bound(Config { max_targets: 4, ..Config::default() }, 2);
    let holding = |slot: u16, depth, missing: &[(u32, u32)]| Holding {
        target: target(slot).pack(),
        depth,
        missing: missing.to_vec(),
    };
    let run =
        |parent, blocks: &[u64], holders: Vec<Holding>| Run { parent, blocks: blocks.to_vec(), holders };
    writer.restore_run(&run(0, &[10, 11, 12], vec![holding(0, 3, &[(1, 1)])])).unwrap();
    for bad in [
        run(0, &[], vec![]),
        run(0, &vec![7; MAX_RUN + 1], vec![]),
        run(0, &[20, 0], vec![]),
        run(77, &[20], vec![]),
        run(0, &[10], vec![]),
        run(10, &[20], vec![holding(0, 2, &[])]),
        run(10, &[20], vec![holding(0, 1, &[]), holding(0, 1, &[])]),
        run(10, &[20], vec![Holding { target: TargetId::new(9, 1).pack(), depth: 1, missing: vec![] }]),
    ] {
        assert!(writer.restore_run(&bad).is_err(), "{bad:?}");
    }
    // Of another tenant: counted, not held. Absurd gaps do no harm.
    let stranger = Holding { target: TargetId::new(1, 7).pack(), depth: 1, missing: vec![] };
    writer.restore_run(&run(10, &[20], vec![stranger, holding(0, 1, &[(u32::MAX, u32::MAX)])])).unwrap();
    assert_eq!(writer.stats().ignored, 1);
    assert_eq!(writer.holdings(), [(target(0).pack(), 10), (target(0).pack(), 12), (target(0).pack(), 20)]);
}

#[test]
fn binding_beyond_the_table_is_refused_and_a_new_tenant_starts_empty() {
    let mut writer = bound(Config { max_targets: 2, ..Config::default() }, 2);
    assert!(writer.bind(target(2)).is_err());
    writer.place(target(0), &path(1, 0, 5), 1);
    writer.bind(target(0)).unwrap();
    assert_eq!(writer.held_by(0), 5, "binding the tenant again changes nothing");
    writer.bind(TargetId::new(0, 2)).unwrap();
    assert_eq!((writer.held_by(0), writer.bound(0)), (0, Some(2)));
    assert_eq!(writer.place(target(0), &path(1, 0, 5), 2), None);
    assert_eq!(writer.place(TargetId::new(0, 2), &[3, 0, 4], 2), writer_op(TargetId::new(0, 2), &[3]));
}

fn writer_op(target: TargetId, blocks: &[u64]) -> Option<IndexOp> {
    Some(IndexOp::Place { target: target.pack(), anchor: 0, skip: 0, blocks: blocks.to_vec() })
}

#[test]
fn readers_outlive_the_writer() {
    let mut writer = bound(Config::default(), 1);
    let reader = writer.reader();
    writer.place(target(0), &path(1, 0, 5), 1);
    writer.place(target(0), &path(2, 3, 9), 1);
    drop(writer);
    let mut hits = Hits::new();
    reader.lookup(&path(1, 0, 5), &mut hits);
    assert_eq!(hits.get(0), 5);
}
