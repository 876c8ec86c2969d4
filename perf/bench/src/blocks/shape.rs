//! Conversations shaped like the Mooncake conversation trace (12,031 requests, Qin et al., FAST '25).
//!
//! The tables are quantiles of that trace, lengths in blocks of 64 tokens: the first prompt of a conversation, what a
//! further turn adds to the prompt before it, how far back an edited turn goes, what it adds there, and the chance
//! that a turn is followed by another.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{MAX_HOLDERS, SYSTEM_BLOCKS, Size, Workload, chain};
use crate::rng::Rng;

type Table = &'static [(f64, f64)];

/// Blocks of a conversation's first prompt.
const FIRST: Table = &[
    (0.0, 13.9),
    (0.10, 14.1),
    (0.25, 20.9),
    (0.50, 82.3),
    (0.75, 204.0),
    (0.90, 399.4),
    (0.95, 602.2),
    (0.99, 1404.2),
    (0.999, 1898.0),
    (1.0, 1971.8),
];
/// Blocks that a further turn adds, the answer before it included.
const ADDED: Table = &[
    (0.0, 0.0),
    (0.05, 0.3),
    (0.10, 1.0),
    (0.25, 4.1),
    (0.50, 7.4),
    (0.75, 13.0),
    (0.90, 72.0),
    (0.95, 115.5),
    (0.99, 266.1),
    (0.999, 607.2),
    (1.0, 1436.2),
];
/// Share of the prompt before it that an edited turn keeps.
const KEPT: Table =
    &[(0.0, 0.015), (0.05, 0.05), (0.25, 0.11), (0.50, 0.21), (0.75, 0.45), (0.90, 0.83), (1.0, 0.99)];
/// Blocks that an edited turn puts behind what it keeps.
const EDITED: Table = &[
    (0.0, 0.2),
    (0.05, 14.0),
    (0.25, 90.5),
    (0.50, 149.5),
    (0.75, 232.0),
    (0.90, 311.1),
    (0.95, 415.6),
    (0.99, 673.8),
    (1.0, 1483.9),
];
/// Share of further turns that are edits.
const EDITS: f64 = 0.15;
/// Chance that the n-th turn is followed by another. Somewhat above the trace's own count (0.31, 0.42, 0.51, ...), in
/// which the conversations that outlive the trace are missing.
const FOLLOWED: [f64; 6] = [0.35, 0.46, 0.55, 0.62, 0.64, 0.72];
/// Requests of others between two turns, at least and on average beyond that.
const GAP: (f64, f64) = (99.0, 560.0);
/// Longest prompt, blocks.
const LONGEST: usize = 1971;
/// Chance that a further holder of a conversation gets one of its turns.
const FURTHER_HOLDER: f64 = 0.75;

fn draw(table: Table, rng: &mut Rng) -> f64 {
    let at = rng.unit();
    let next = table.partition_point(|&(q, _)| q <= at).clamp(1, table.len() - 1);
    let ((q0, v0), (q1, v1)) = (table[next - 1], table[next]);
    v0 + (v1 - v0) * (at - q0) / (q1 - q0)
}

struct Conversation {
    path: Vec<u64>,
    turns: usize,
    last: usize,
    holders: Vec<u16>,
}

pub(super) fn generate(size: Size, seed: u64) -> Workload {
    let mut rng = Rng::new(seed ^ 0xb10c_5eed);
    let mut load = Workload::default();
    let mut content = seed << 40;
    let mut system = Vec::new();
    chain(&mut system, SYSTEM_BLOCKS, &mut content);
    // Conversations whose next turn is due when that many requests have come.
    let mut waiting: BinaryHeap<(Reverse<u64>, usize)> = BinaryHeap::new();
    let mut all: Vec<Conversation> = Vec::new();
    let mut distinct = 0;
    for arrived in 0u64.. {
        if distinct >= size.blocks && load.fill == 0 {
            (load.fill, load.distinct) = (load.requests.len(), distinct);
        }
        if distinct >= size.blocks + size.churn {
            break;
        }
        let due = waiting.peek().is_some_and(|(Reverse(due), _)| *due <= arrived);
        let number = match waiting.pop() {
            Some((_, number)) if due => number,
            other => {
                waiting.extend(other);
                all.push(Conversation {
                    path: system.clone(),
                    turns: 0,
                    last: 0,
                    holders: holders(size.targets, &mut rng),
                });
                all.len() - 1
            }
        };
        let talk = &mut all[number];
        let shared = if talk.turns == 0 {
            let add = draw(FIRST, &mut rng) as usize - SYSTEM_BLOCKS;
            chain(&mut talk.path, add, &mut content);
            if arrived == 0 { 0 } else { SYSTEM_BLOCKS }
        } else {
            let (keep, add) = if rng.unit() < EDITS {
                let keep = (talk.path.len() as f64 * draw(KEPT, &mut rng)) as usize;
                (keep.max(2 * SYSTEM_BLOCKS).min(talk.path.len()), draw(EDITED, &mut rng))
            } else {
                // A turn goes on from the end of the one before: that one is no leaf any more.
                load.requests[talk.last].leaf = false;
                (talk.path.len(), draw(ADDED, &mut rng))
            };
            talk.path.truncate(keep);
            let add = (add.round() as usize).min(LONGEST.saturating_sub(keep));
            chain(&mut talk.path, add, &mut content);
            keep
        };
        distinct += (talk.path.len() - shared) as u64;
        let (first, further) = talk.holders.split_at(1);
        let further = further.iter().filter(|_| rng.unit() < FURTHER_HOLDER);
        let who: Vec<u16> = first.iter().chain(further).copied().collect();
        talk.last = load.push(&talk.path, shared, &who);
        let followed = FOLLOWED[talk.turns.min(FOLLOWED.len() - 1)];
        talk.turns += 1;
        if rng.unit() < followed {
            let gap = GAP.0 + rng.exponential(1.0 / GAP.1);
            waiting.push((Reverse(arrived + gap as u64), number));
        } else {
            talk.path = Vec::new();
        }
    }
    load.finish()
}

/// One to three different targets.
pub(super) fn holders(targets: u16, rng: &mut Rng) -> Vec<u16> {
    let count = (1 + rng.next() as usize % MAX_HOLDERS).min(usize::from(targets));
    let mut all: Vec<u16> = Vec::with_capacity(count);
    while all.len() < count {
        let slot = (rng.next() % u64::from(targets)) as u16;
        if !all.contains(&slot) {
            all.push(slot);
        }
    }
    all
}
