//! Readers that check every answer while the writer churns.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use fairlead_prefix::{Config, Hits, TargetId, new};
use fairlead_wire::is_anchor;

const TARGETS: u16 = 24;
const PATHS: u64 = 96;

/// Path `number`: three levels of sharing, up to a few hundred blocks.
fn path(number: u64) -> Vec<u64> {
    let mut last = 3u64;
    let len = 40 + (number * 37 % 200) as usize;
    (0..len)
        .map(|at| {
            let branch = match at {
                0..8 => 0,
                8..24 => number % 4,
                24..32 => number % 16,
                _ => number,
            };
            last = (last.rotate_left(7) ^ branch << 32 ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            // Every tenth block an anchor.
            if at % 10 == 9 {
                last &= !15;
            }
            last
        })
        .collect()
}

fn common(a: &[u64], b: &[u64]) -> u32 {
    a.iter().zip(b).take_while(|(a, b)| a == b).count() as u32
}

/// Which paths a target may ever hold.
fn may_hold(slot: u16, number: u64) -> bool {
    (number + u64::from(slot)).is_multiple_of(3)
}

/// A place in a path, and the blocks above it from an anchor on.
fn place<'p>(path: &'p [u64], random: &mut Random) -> (usize, &'p [u64]) {
    let from = random.below(path.len() as u64) as usize;
    let anchor = path[..from].iter().rposition(|block| is_anchor(*block)).unwrap_or(0);
    (from, &path[anchor..from])
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn readers_never_see_more_than_was_ever_held_nor_less_than_was_always_held() {
    let (mut writer, reader) =
        new(Config { max_bytes: 1 << 20, max_targets: usize::from(TARGETS), locate: true });
    let paths: Vec<Vec<u64>> = (0..PATHS).map(path).collect();
    // For every target and path, the deepest it could ever answer.
    let most: Vec<Vec<u32>> = (0..TARGETS)
        .map(|slot| {
            let may = |number: &usize| may_hold(slot, *number as u64);
            paths
                .iter()
                .map(|path| {
                    (0..paths.len()).filter(may).map(|other| common(&paths[other], path)).max().unwrap_or(0)
                })
                .collect()
        })
        .collect();
    for slot in 0..TARGETS {
        writer.bind(TargetId::new(slot, 1)).unwrap();
    }
    // Target 0 holds some paths all the time; nothing the writer does may hide them for a moment.
    let kept: Vec<usize> = (0..paths.len()).filter(|number| may_hold(0, *number as u64)).step_by(4).collect();
    for &number in &kept {
        writer.place(TargetId::new(0, 1), &paths[number], 1);
    }
    let stop = AtomicBool::new(false);
    let lookups = AtomicU64::new(0);
    thread::scope(|scope| {
        for seed in 1..=3u64 {
            let (reader, paths, most, kept, stop, lookups) =
                (reader.clone(), &paths, &most, &kept, &stop, &lookups);
            scope.spawn(move || {
                let mut random = Random(seed * 0x1234_5678_9abc);
                let mut hits = Hits::new();
                while !stop.load(Ordering::Relaxed) {
                    let number = random.below(PATHS) as usize;
                    reader.lookup(&paths[number], &mut hits);
                    for (slot, depth) in hits.iter() {
                        let bound = most[usize::from(slot)][number];
                        assert!(
                            depth <= bound,
                            "slot {slot} never held {depth} blocks of path {number}, only {bound}"
                        );
                    }
                    assert_eq!(hits.matched_blocks, hits.iter().map(|hit| hit.1).max().unwrap_or(0));
                    let always = kept[random.below(kept.len() as u64) as usize];
                    reader.lookup(&paths[always], &mut hits);
                    assert_eq!(
                        hits.get(0) as usize,
                        paths[always].len(),
                        "path {always} was held all the time"
                    );
                    lookups.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut random = Random(99);
        let mut round = 0u64;
        while round < 60_000 || lookups.load(Ordering::Relaxed) < 3_000 {
            round += 1;
            let slot = 1 + random.below(u64::from(TARGETS) - 1) as u16;
            let target = TargetId::new(slot, 1);
            let number = random.below(PATHS);
            let path = &paths[number as usize];
            match random.below(40) {
                0 => writer.clear(slot),
                1 => {
                    writer.drop_target(slot);
                    writer.bind(target).unwrap();
                }
                2..8 => {
                    writer.remove_path_tail(target, path, random.below(path.len() as u64) as u32);
                }
                8 => {
                    writer.trim_target(target, random.below(600));
                }
                9 => writer.collect(),
                10..16 => {
                    let (from, above) = place(path, &mut random);
                    let len = 1 + random.below((path.len() - from) as u64) as usize;
                    writer.remove_blocks(target, above, &path[from..from + len]);
                }
                16..22 if may_hold(slot, number) => {
                    let (from, above) = place(path, &mut random);
                    let len = 1 + random.below((path.len() - from) as u64) as usize;
                    let _ = writer.store(target, above, &path[from..from + len], round);
                }
                22 => {
                    // The beginning gets many holders, and loses them again.
                    for slot in (1..TARGETS).filter(|slot| may_hold(*slot, number)) {
                        writer.place(TargetId::new(slot, 1), &path[..4 + random.below(20) as usize], round);
                    }
                }
                23..25 => {
                    // A hole in the middle of a run.
                    let runs: Vec<_> =
                        if round.is_multiple_of(50) { writer.snapshot_runs().collect() } else { Vec::new() };
                    if let Some(run) = runs.get(random.below(runs.len().max(1) as u64) as usize) {
                        let op = fairlead_wire::msg::IndexOp::Remove {
                            target: target.pack(),
                            run: run.blocks[0],
                            from: random.below(run.blocks.len() as u64) as u32,
                            len: 1 + random.below(5) as u32,
                        };
                        writer.apply(&op).unwrap();
                    }
                }
                _ if may_hold(slot, number) => {
                    let len = 1 + random.below(path.len() as u64) as usize;
                    writer.place(target, &path[..len], round);
                }
                _ => {}
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    for slot in 0..TARGETS {
        writer.drop_target(slot);
    }
    for _ in 0..16 {
        writer.collect();
    }
    let stats = writer.stats();
    assert_eq!((stats.runs, stats.blocks, stats.held_blocks, stats.targets), (0, 0, 0, 0));
    assert_eq!(stats.retired_bytes, 0, "with no reader left, everything is freed");
}
