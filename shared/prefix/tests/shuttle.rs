//! The whole index under shuttle's random schedules: readers check every answer while the writer splits, merges, widens,
//! narrows, cuts, unlinks and frees.
//!
//! `cargo test -p fairlead-prefix --features shuttle --test shuttle`
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use fairlead_prefix::{Config, Hits, TargetId, Writer, new};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

const TARGETS: u16 = 24;
const PATHS: usize = 6;
/// Slot whose holdings nobody touches.
const KEPT: u16 = 0;

/// Path `number`: two levels of sharing.
fn path(number: usize) -> Vec<u64> {
    let mut last = 3u64;
    (0..14)
        .map(|at| {
            let branch = match at {
                0..4 => 0,
                4..8 => number % 2,
                _ => number,
            };
            last =
                (last.rotate_left(7) ^ ((branch as u64) << 32) ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            last
        })
        .collect()
}

fn common(a: &[u64], b: &[u64]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Which paths a target may ever hold.
fn may_hold(slot: u16, number: usize) -> bool {
    (number + usize::from(slot)).is_multiple_of(3)
}

fn change(writer: &mut Writer, paths: &[Vec<u64>]) {
    let mut random = thread_rng();
    let slot = random.gen_range(1..TARGETS);
    let target = TargetId::new(slot, 1);
    let number = random.gen_range(0..PATHS);
    let path = &paths[number];
    let from = random.gen_range(0..path.len());
    let len = random.gen_range(1..=path.len() - from);
    match random.gen_range(0..12) {
        0 => writer.clear(slot),
        1 | 2 => {
            writer.remove_path_tail(target, path, from as u32);
        }
        3 | 4 => {
            writer.remove_blocks(target, &path[..from], &path[from..from + len]);
        }
        5 => writer.collect(),
        6 if may_hold(slot, number) => {
            let _ = writer.store(target, &path[..from], &path[from..from + len], 1);
        }
        7 => {
            // Many at once: the front takes the wide form.
            for slot in (1..TARGETS).filter(|slot| may_hold(*slot, number)) {
                writer.place(TargetId::new(slot, 1), &path[..4 + from / 4], 1);
            }
        }
        _ if may_hold(slot, number) => {
            writer.place(target, &path[..from + 1], 1);
        }
        _ => {}
    }
}

fn world() {
    let config = Config { max_bytes: Config::MIN_BYTES, max_targets: usize::from(TARGETS), locate: true };
    let (mut writer, reader) = new(config);
    let paths: Arc<Vec<Vec<u64>>> = Arc::new((0..PATHS).map(path).collect());
    for slot in 0..TARGETS {
        writer.bind(TargetId::new(slot, 1)).unwrap();
    }
    writer.place(TargetId::new(KEPT, 1), &paths[0], 1);
    writer.place(TargetId::new(KEPT, 1), &paths[3], 1);
    for slot in 1..TARGETS {
        let number = (0..PATHS).find(|number| may_hold(slot, *number)).unwrap();
        writer.place(TargetId::new(slot, 1), &paths[number], 1);
    }
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (reader, paths) = (reader.clone(), paths.clone());
            thread::spawn(move || {
                let mut hits = Hits::new();
                for _ in 0..3 {
                    let number = thread_rng().gen_range(0..PATHS);
                    reader.lookup(&paths[number], &mut hits);
                    for (slot, depth) in hits.iter() {
                        let may = (0..PATHS).filter(|other| may_hold(slot, *other));
                        let most = may.map(|other| common(&paths[other], &paths[number])).max().unwrap_or(0);
                        assert!(
                            depth as usize <= most,
                            "slot {slot}: {depth} of path {number}, never {most}"
                        );
                    }
                    let always = (0..PATHS).filter(|other| *other == 0 || *other == 3);
                    let least = always.map(|other| common(&paths[other], &paths[number])).max().unwrap_or(0);
                    assert_eq!(hits.get(KEPT) as usize, least, "what nobody touches is seen in full");
                }
            })
        })
        .collect();
    for _ in 0..12 {
        change(&mut writer, &paths);
    }
    for reader in readers {
        reader.join().unwrap();
    }
    for slot in 0..TARGETS {
        writer.drop_target(slot);
    }
    for _ in 0..4 {
        writer.collect();
    }
    let stats = writer.stats();
    assert_eq!((stats.runs, stats.blocks, stats.held_blocks, stats.retired_bytes), (0, 0, 0, 0));
}

fn iterations() -> usize {
    std::env::var("SHUTTLE_ITERATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(150)
}

#[test]
fn random_schedules() {
    shuttle::check_random(world, iterations());
}

/// Few preemptions, at the worst places.
#[test]
fn rarely_interrupted_schedules() {
    shuttle::check_pct(world, iterations(), 3);
}
