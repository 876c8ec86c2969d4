//! Memory: what is used, what may still be used, what has to go.

use fairlead_wire::TargetId;
use fairlead_wire::msg::IndexOp;

use crate::cells::{CHUNK_BYTES, Cell, INLINE};
use crate::table;
use crate::words::Words;

use super::anchors::Anchors;
use super::tree::View;
use super::{ApplyError, NIL, Node, ROOT, Record, SlotState, Writer};

/// Microseconds of one tick of last use, as a power of two: 262 ms, so that 32 bits last 35 years.
const TICK_BITS: u32 = 18;

/// Appends with growth by an eighth: doubling would leave half of a large vector empty.
pub(super) fn push_leanly<T>(all: &mut Vec<T>, item: T) {
    if all.len() == all.capacity() {
        all.reserve_exact(all.len() / 8 + 16);
    }
    all.push(item);
}

/// What pushing `count` items leanly, of which `free` have a place, adds to a vector's memory.
fn growth<T>(all: &Vec<T>, free: usize, count: usize) -> usize {
    let spare = free + all.capacity() - all.len();
    if count <= spare { 0 } else { (all.len() / 8 + 16).max(count - spare) * size_of::<T>() }
}

/// What a change of the tree asks for.
pub(super) struct Need {
    /// Words in new arrays.
    pub(super) words: usize,
    /// New cells.
    pub(super) runs: usize,
    /// New records beyond one for each new run.
    pub(super) records: usize,
    /// Blocks that are anchors.
    pub(super) anchors: usize,
}

impl Writer {
    /// All memory of the index, garbage included, bytes.
    pub(super) fn footprint(&self) -> usize {
        self.fixed()
            + self.chunks * CHUNK_BYTES
            + self.nodes.capacity() * size_of::<Node>()
            + self.records.capacity() * size_of::<Record>()
            + (self.wide.capacity() + self.free_wide.capacity()) * size_of::<u32>()
            + (self.free_nodes.capacity() + self.free_records.capacity() + self.free_cells.capacity())
                * size_of::<u32>()
            + self.variable()
            + self.grave.bytes()
    }

    /// Memory of what is in the index, without what is kept for reuse.
    fn used(&self) -> usize {
        let records = self.records.len() - self.free_records.len();
        self.fixed()
            + self.live_runs * (size_of::<Cell>() + size_of::<Node>())
            + records * size_of::<Record>()
            + self.variable()
    }

    fn fixed(&self) -> usize {
        self.shared.cells.directory_bytes() + self.slots.capacity() * size_of::<SlotState>()
    }

    fn variable(&self) -> usize {
        self.usage.blocks
            + self.usage.spill
            + self.usage.behind
            + self.usage.table
            + self.anchors.as_ref().map_or(0, Anchors::bytes)
    }

    /// Memory without what waits for readers.
    fn kept(&self) -> usize {
        self.footprint() - self.grave.bytes()
    }

    /// Whether a change fits the budget, with a holder for all runs from `node` up. Reserves the cells for it.
    pub(super) fn check_room(&mut self, change: Need, node: u32, view: View<'_>) -> Result<(), ApplyError> {
        let Need { words, runs, records, .. } = change;
        let mut need = words * size_of::<u64>() * 5 / 4 + runs * Words::bytes_for(0);
        let mut holders = runs + records;
        let max = self.config.max_bytes;
        // With room in plenty, the holders of the runs above are not counted one by one.
        let mut above = if self.kept() + need > max / 4 * 3 { node } else { ROOT };
        while above != ROOT {
            let cell = self.cell(above, view);
            holders += 1;
            let positions = self.positions(cell, view);
            if cell.used() as usize >= positions {
                need += Words::bytes_for((positions * 2).max(INLINE));
            }
            above = self.nodes[above as usize].parent;
        }
        need += growth(&self.nodes, self.free_nodes.len(), runs);
        need += growth(&self.records, self.free_records.len(), holders);
        let table = view.shared.table.get(view.guard).len();
        if table::is_crowded(self.live_runs + runs + self.table_dead.max(0) as usize, table) {
            need += Words::bytes_for(table::len_for(self.live_runs + runs));
        }
        if let Some(anchors) = &self.anchors {
            need += anchors.growth(change.anchors);
        }
        let full = ApplyError::Full { max_bytes: self.config.max_bytes };
        // One chunk stays in hand: removals must be able to replace cells when nothing else is left.
        let chunks = (runs + 1).saturating_sub(self.free_cells.len()).div_ceil(crate::cells::CHUNK);
        need += (chunks + 1) * CHUNK_BYTES;
        if self.kept() + need > max {
            self.starved = true;
            return Err(full);
        }
        // Readers stand still: eviction would only add to the garbage.
        if self.grave.bytes() > max / 4 {
            return Err(full);
        }
        for _ in 0..chunks {
            if !self.add_cells(view.shared) {
                return Err(full);
            }
        }
        Ok(())
    }

    /// Ends the least recently used runs when the index is near its budget (above 7/8), down to 13/16 of it. Returns
    /// the operations for the replicas. Only the truth evicts.
    pub fn evict_to_budget(&mut self, now_us: u64) -> Vec<IndexOp> {
        let mut ops = Vec::new();
        let max = self.config.max_bytes;
        self.now = self.now.max(self.tick(now_us));
        let used = self.used();
        if !self.starved && used <= max / 8 * 7 {
            return ops;
        }
        let aim = (max / 16 * 13).min(used.saturating_sub(max / 16));
        let shared = std::sync::Arc::clone(&self.shared);
        let guard = shared.pins.pin();
        let view = View { shared: &shared, guard: &guard };
        while self.runs_by_use.oldest != NIL && self.used() > aim {
            let oldest = self.runs_by_use.oldest;
            if self.nodes[oldest as usize].first_child != NIL {
                // What hangs below it was used in the same tick, or later.
                super::list::renew(&mut self.nodes, &mut self.runs_by_use, oldest);
                continue;
            }
            ops.push(IndexOp::Evict { run: self.head(oldest, view) });
            self.evict(oldest, view);
        }
        self.starved = false;
        drop(guard);
        self.finish();
        ops
    }

    /// Ends the least recently used holdings of `target` until it holds at most `max_blocks` blocks. Returns the
    /// operations for the replicas.
    pub fn trim_target(&mut self, target: TargetId, max_blocks: u64) -> Vec<IndexOp> {
        let mut ops = Vec::new();
        if self.bound(target.slot) != Some(target.generation) {
            self.ignored += 1;
            self.publish_stats();
            return ops;
        }
        let shared = std::sync::Arc::clone(&self.shared);
        let guard = shared.pins.pin();
        let view = View { shared: &shared, guard: &guard };
        loop {
            let held = self.held_by(target.slot);
            let excess = held.saturating_sub(max_blocks);
            let Some(oldest) = self.oldest_of(target.slot).filter(|_| excess > 0) else { break };
            let op = self.trim_oldest(target, oldest, excess, view);
            if self.held_by(target.slot) == held {
                break;
            }
            ops.push(op);
        }
        drop(guard);
        self.finish();
        ops
    }

    /// Ends up to `excess` blocks of what a target holds of a run, from its end (all of it where it has holes).
    fn trim_oldest(&mut self, target: TargetId, node: u32, excess: u64, view: View<'_>) -> IndexOp {
        let share = self.share_of(node, target.slot, view);
        let (extent, count, whole) =
            share.map_or((0, 0, true), |share| (share.extent(), share.count(), !share.behind.is_empty()));
        let from = if whole || u64::from(count) <= excess { 0 } else { extent - excess as u32 };
        let run = self.head(node, view);
        self.remove_stretch(node, target.slot, from, extent - from, view);
        IndexOp::Remove { target: target.pack(), run, from, len: extent - from }
    }

    /// Time in ticks since the first time seen.
    pub(super) fn tick(&mut self, now_us: u64) -> u32 {
        // The base lies a little back, so that times just before the first one are told apart from it.
        let base = *self.base_us.get_or_insert(now_us.saturating_sub(1 << 32));
        u32::try_from(now_us.saturating_sub(base) >> TICK_BITS).unwrap_or(u32::MAX)
    }

    /// Rebuilds the table when it has become far too large.
    pub(super) fn shrink_table(&mut self) {
        let shared = std::sync::Arc::clone(&self.shared);
        let guard = shared.pins.pin();
        let view = View { shared: &shared, guard: &guard };
        if shared.table.get(&guard).len() > 4 * table::len_for(self.live_runs) {
            self.rebuild_table(None, view);
        }
    }
}
