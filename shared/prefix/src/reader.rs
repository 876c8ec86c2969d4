//! Lookups.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as Counter, Ordering as CounterOrdering};

use crate::cells::{Cell, Cells, Holder};
use crate::hits::{Hits, load_set};
use crate::sync::{AtomicU64, Guard, Ordering, Pins};
use crate::table;
use crate::words::AtomicWords;

/// What the writer and all readers share.
pub(crate) struct Shared {
    pub(crate) pins: Pins,
    pub(crate) table: AtomicWords,
    pub(crate) cells: Cells,
    pub(crate) stats: SharedStats,
}

/// Counters published by the writer, each by itself.
#[derive(Default)]
pub(crate) struct SharedStats {
    pub(crate) blocks: Counter,
    pub(crate) runs: Counter,
    pub(crate) bytes: Counter,
    pub(crate) targets: Counter,
    pub(crate) held_blocks: Counter,
    pub(crate) retired_bytes: Counter,
    pub(crate) ignored: Counter,
    pub(crate) refused: Counter,
    pub(crate) unknown: Counter,
}

/// Size of an index and what it had to leave out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Distinct blocks.
    pub blocks: u64,
    /// Runs (nodes of the tree).
    pub runs: u64,
    /// Memory in use, everything counted, bytes.
    pub bytes: u64,
    /// Targets that hold something.
    pub targets: u64,
    /// Pairs of target and block.
    pub held_blocks: u64,
    /// Part of `bytes` that waits for readers to pass.
    pub retired_bytes: u64,
    /// Operations ignored because they spoke of a tenant that the slot does not have.
    pub ignored: u64,
    /// Placements cut short: no room within the budget, or a hash that stands elsewhere in the tree.
    pub refused: u64,
    /// Stores and removals of blocks that named a place which is not in the tree.
    pub unknown: u64,
}

impl Shared {
    pub(crate) fn stats(&self) -> Stats {
        let load = |counter: &Counter| counter.load(CounterOrdering::Relaxed);
        Stats {
            blocks: load(&self.stats.blocks),
            runs: load(&self.stats.runs),
            bytes: load(&self.stats.bytes),
            targets: load(&self.stats.targets),
            held_blocks: load(&self.stats.held_blocks),
            retired_bytes: load(&self.stats.retired_bytes),
            ignored: load(&self.stats.ignored),
            refused: load(&self.stats.refused),
            unknown: load(&self.stats.unknown),
        }
    }

    /// The run whose first block is `head`. The table is loaded anew for every probe, so that a run found in it was
    /// live no earlier than the run looked at before it.
    #[inline]
    pub(crate) fn find<'g>(&'g self, head: u64, guard: &'g Guard) -> Option<(u32, &'g Cell)> {
        let mut hit = None;
        let found = table::probe(self.table.get(guard), head, |number| {
            hit = self.cells.get(number).filter(|cell| cell.head() == head);
            hit.is_some()
        })?;
        hit.map(|cell| (found.cell, cell))
    }
}

/// Number of leading elements in which a run and a path agree. Equal chained hashes mean equal prefixes, so
/// agreement is monotone: the last element first, else bisect. (The first one too, so that for a path which is not
/// chained the answer from the place where this one stopped is zero, in every replica.)
#[inline]
pub(crate) fn matched(run: &[AtomicU64], path: &[u64]) -> usize {
    let most = run.len().min(path.len());
    let agrees = |at: usize| run[at].load(Ordering::Relaxed) == path[at];
    if most == 0 || !agrees(0) {
        return 0;
    }
    if agrees(most - 1) {
        return most;
    }
    // In steps of an eighth, so that the cache misses of a step overlap.
    let (mut low, mut high) = (1, most - 1);
    while high - low > 8 {
        let step = (high - low) / 8;
        let agree =
            (1..8).fold(0u32, |set, part| set | u32::from(agrees(low + part * step - 1)) << (part - 1));
        let agreeing = agree.trailing_ones() as usize;
        (low, high) =
            (low + agreeing * step, if agreeing == 7 { high } else { low + (agreeing + 1) * step - 1 });
    }
    low + (low..high).take_while(|at| agrees(*at)).count()
}

/// Passes of a lookup at most. More than one is rare, more than two next to impossible.
const ATTEMPTS: usize = 16;

/// Counts what the holders of a run hold of the `common` first of its `len` blocks. Returns whether any of them holds
/// all of it.
#[inline]
fn count(cell: &Cell, len: usize, common: usize, offset: u32, hits: &mut Hits, guard: &Guard) -> bool {
    let mut anyone_on = false;
    let mut advance = |hits: &mut Hits, slot, lead: usize| {
        let gain = lead.min(common);
        anyone_on |= hits.advance(slot, offset, gain as u32) && gain == len;
    };
    let Some(wide) = cell.wide(guard) else {
        let (near, far) = cell.holders(guard);
        for word in near.iter().chain(far) {
            let Some(holder) = Holder::unpack(word.load(Ordering::Acquire)) else { continue };
            advance(hits, holder.slot, usize::from(holder.lead));
        }
        return anyone_on;
    };
    let mut set = load_set(wide.set);
    for word in wide.exceptions() {
        let Some(holder) = Holder::unpack(word.load(Ordering::Acquire)) else { continue };
        let Some(bits) = set.get_mut(usize::from(holder.slot) / 64) else { continue };
        let bit = 1 << (holder.slot % 64);
        if *bits & bit != 0 {
            *bits &= !bit;
            advance(hits, holder.slot, usize::from(holder.lead));
        }
    }
    let gain = (wide.full as usize).min(common);
    let all = hits.advance_all(set, offset, gain as u32);
    anyone_on | (all && gain == len)
}

/// Lock-free access to an index for any number of threads.
#[derive(Clone)]
pub struct Reader {
    pub(crate) shared: Arc<Shared>,
}

impl Reader {
    /// Fills `hits` (cleared first) with the leading blocks of `path` that each target holds.
    ///
    /// Takes a pin for its own duration, never waits, never frees, never allocates. Its answer for each target is
    /// one that was true at some moment during the call; see the crate's documentation.
    pub fn lookup(&self, path: &[u64], hits: &mut Hits) {
        let guard = self.shared.pins.pin();
        for _ in 0..ATTEMPTS {
            hits.clear();
            if self.look(path, hits, &guard) {
                break;
            }
        }
    }

    /// One pass of a lookup. `false` when a run was merged under its feet.
    #[inline]
    fn look(&self, path: &[u64], hits: &mut Hits, guard: &Guard) -> bool {
        let mut offset = 0;
        let mut last: Option<&Cell> = None;
        while offset < path.len() {
            let Some((_, cell)) = self.shared.find(path[offset], guard) else {
                // Where nothing goes on, what went on may have become part of what was passed already.
                return !last.is_some_and(Cell::is_moved);
            };
            let run = cell.run(guard);
            let common = matched(run, &path[offset..]);
            if !count(cell, run.len(), common, offset as u32, hits, guard) || common < run.len() {
                break;
            }
            offset += common;
            last = Some(cell);
        }
        true
    }

    /// Size of the index.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }
}

#[cfg(all(test, not(any(loom, feature = "shuttle"))))]
mod tests {
    use super::*;

    #[test]
    fn matching_finds_the_first_difference() {
        for len in 0..200usize {
            let run: Vec<AtomicU64> = (0..len).map(|at| AtomicU64::new(at as u64 + 5)).collect();
            for same in 0..=len {
                for longer in [0, 3] {
                    let path: Vec<u64> =
                        (0..len + longer).map(|at| at as u64 + if at < same { 5 } else { 1000 }).collect();
                    assert_eq!(matched(&run, &path), same, "{same} of {len}");
                    assert_eq!(matched(&run, &path[..len / 2]), same.min(len / 2));
                }
            }
        }
    }
}
