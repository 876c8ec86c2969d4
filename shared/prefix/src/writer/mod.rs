//! The one writer: operations in, operations out.

mod anchors;
mod budget;
mod exact;
mod holders;
mod list;
mod slices;
mod snapshot;
mod tree;

#[cfg(all(test, not(any(loom, feature = "shuttle"))))]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering as CounterOrdering;

use ahash::AHashMap;
use fairlead_wire::msg::IndexOp;
use fairlead_wire::{Slot, TargetId};

use crate::cells::Cells;
use crate::reader::{Reader, Shared, SharedStats, Stats};
use crate::stretch::Stretch;
use crate::sync::{Ordering, Pins};
use crate::words::{AtomicWords, Graveyard};
use crate::{Config, MAX_TARGETS};

pub use exact::StoreError;
pub use slices::RunCursor;
pub use snapshot::Runs;

use anchors::Anchors;
use tree::View;

/// No node, record or cell.
pub(crate) const NIL: u32 = u32::MAX;
/// The node above all first runs.
pub(crate) const ROOT: u32 = 0;

/// Operations of one step of [`Writer::apply_all`].
const BATCH: usize = 16;

/// Why an operation or a run of a snapshot was not applied. After any of these the replica needs a new snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The operation builds on a run that is not here.
    #[error("run {run:#018x} is not in the index")]
    UnknownRun {
        /// Head hash of the run.
        run: u64,
    },
    /// The operation builds on more blocks of a run than it has.
    #[error("run {run:#018x} has {len} blocks, the operation builds on {skip}")]
    Skip {
        /// Head hash of the run.
        run: u64,
        /// Blocks asked for.
        skip: u32,
        /// Blocks there are.
        len: u32,
    },
    /// A hash stands at another place of the tree already.
    #[error("block {block:#018x} stands elsewhere in the tree")]
    Conflict {
        /// The hash.
        block: u64,
    },
    /// The memory budget does not allow it.
    #[error("the index would need more than its {max_bytes} bytes")]
    Full {
        /// The budget.
        max_bytes: usize,
    },
    /// The slot is beyond the table.
    #[error("target slot {slot} is not below {max_targets}")]
    Slot {
        /// The slot.
        slot: Slot,
        /// Bound of slots.
        max_targets: usize,
    },
    /// A run of a snapshot is malformed.
    #[error("run {run:#018x} is malformed: {what}")]
    Malformed {
        /// Head hash of the run.
        run: u64,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// A slot that the index does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("target slot {slot} is not below {max_targets}")]
pub struct BindError {
    /// The slot.
    pub slot: Slot,
    /// Bound of slots.
    pub max_targets: usize,
}

/// The writer's view of a run. Links are node numbers.
pub(crate) struct Node {
    /// What readers see of it.
    cell: u32,
    parent: u32,
    first_child: u32,
    prev_sibling: u32,
    next_sibling: u32,
    /// Neighbours in the order of last use.
    newer: u32,
    older: u32,
    /// Time of last use, ticks.
    used: u32,
}

/// One target's part in one run of the narrow form.
pub(crate) struct Record {
    node: u32,
    /// Neighbours in the slot's order of last use.
    newer: u32,
    older: u32,
    /// Time of last use, ticks.
    used: u32,
    slot: Slot,
}

/// Ends of a doubly linked list.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    newest: u32,
    oldest: u32,
}

impl Ends {
    const EMPTY: Self = Self { newest: NIL, oldest: NIL };
}

/// What the writer keeps for a slot.
pub(crate) struct SlotState {
    /// The tenant, if any.
    generation: Option<u16>,
    records: Ends,
    /// The wide runs of which it holds something, a bit each.
    wide: Vec<u64>,
    /// Blocks held.
    held: u64,
}

/// Memory by purpose, bytes.
#[derive(Default)]
pub(crate) struct Usage {
    blocks: usize,
    spill: usize,
    behind: usize,
    table: usize,
    /// The slots' sets of wide runs.
    wide: usize,
}

/// A place in the tree: `off` blocks into `node`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    node: u32,
    off: u32,
}

impl At {
    const ROOT: Self = Self { node: ROOT, off: 0 };
}

/// Changes the index. There is one per index; its readers come from [`Writer::reader`].
pub struct Writer {
    shared: Arc<Shared>,
    config: Config,
    nodes: Vec<Node>,
    free_nodes: Vec<u32>,
    records: Vec<Record>,
    free_records: Vec<u32>,
    /// By node and slot: what the target holds of the run behind a hole.
    behind: AHashMap<u64, Vec<Stretch>>,
    /// Nodes of the wide runs, by number.
    wide: Vec<u32>,
    free_wide: Vec<u32>,
    slots: Vec<SlotState>,
    runs_by_use: Ends,
    free_cells: Vec<u32>,
    chunks: usize,
    grave: Graveyard,
    table_dead: isize,
    /// With [`Config::locate`].
    anchors: Option<Anchors>,
    usage: Usage,
    live_runs: usize,
    blocks: u64,
    held: u64,
    targets: usize,
    ignored: u64,
    refused: u64,
    unknown: u64,
    /// Growth was refused for lack of room since the last eviction.
    starved: bool,
    /// First time seen; ticks count from here.
    base_us: Option<u64>,
    /// Time of the last placement, ticks.
    now: u32,
    /// Scratch: nodes from a place up to the root, with the record of the target at hand.
    climb: Vec<(u32, u32)>,
    returned_cells: Vec<u32>,
}

impl Writer {
    pub(crate) fn new(config: Config) -> Self {
        let config = Config {
            max_bytes: config.max_bytes.max(Config::MIN_BYTES),
            max_targets: config.max_targets.clamp(1, MAX_TARGETS),
            ..config
        };
        let pins = Pins::new();
        // Twice what the budget allows: cells that wait for readers must not keep a run from changing its shape.
        let grave = Graveyard::new(&pins);
        let cells =
            Cells::new((config.max_bytes / size_of::<crate::cells::Cell>() * 2).min(NIL as usize / 2));
        let shared = Shared { pins, table: AtomicWords::none(), cells, stats: SharedStats::default() };
        let slots = (0..config.max_targets)
            .map(|_| SlotState { generation: None, records: Ends::EMPTY, wide: Vec::new(), held: 0 })
            .collect();
        let root = Node {
            cell: NIL,
            parent: NIL,
            first_child: NIL,
            prev_sibling: NIL,
            next_sibling: NIL,
            newer: NIL,
            older: NIL,
            used: 0,
        };
        let writer = Self {
            shared: Arc::new(shared),
            config,
            nodes: vec![root],
            free_nodes: Vec::new(),
            records: Vec::new(),
            free_records: Vec::new(),
            behind: AHashMap::new(),
            wide: Vec::new(),
            free_wide: Vec::new(),
            slots,
            runs_by_use: Ends::EMPTY,
            free_cells: Vec::new(),
            chunks: 0,
            grave,
            table_dead: 0,
            anchors: config.locate.then(|| Anchors::with_room(0)),
            usage: Usage::default(),
            live_runs: 0,
            blocks: 0,
            held: 0,
            targets: 0,
            ignored: 0,
            refused: 0,
            unknown: 0,
            starved: false,
            base_us: None,
            now: 0,
            climb: Vec::new(),
            returned_cells: Vec::new(),
        };
        writer.publish_stats();
        writer
    }

    /// Another reader.
    pub fn reader(&self) -> Reader {
        Reader { shared: Arc::clone(&self.shared) }
    }

    /// Makes `target` the tenant of its slot. What an earlier tenant held is dropped.
    pub fn bind(&mut self, target: TargetId) -> Result<(), BindError> {
        let bad = BindError { slot: target.slot, max_targets: self.config.max_targets };
        let state = self.slots.get(usize::from(target.slot)).ok_or(bad)?;
        if state.generation != Some(target.generation) {
            self.drop_target(target.slot);
            self.slots[usize::from(target.slot)].generation = Some(target.generation);
        }
        Ok(())
    }

    /// Generation of the slot's tenant.
    pub fn bound(&self, slot: Slot) -> Option<u16> {
        self.slots.get(usize::from(slot)).and_then(|state| state.generation)
    }

    /// Blocks that a slot holds.
    pub fn held_by(&self, slot: Slot) -> u64 {
        self.slots.get(usize::from(slot)).map_or(0, |state| state.held)
    }

    /// Enters that `target` now holds the whole path and that it was used at `now_us`. Returns the operation for the
    /// replicas; `None` when nothing changed.
    ///
    /// Where the path cannot be entered in full (budget, or a hash that stands elsewhere), the part that is in the
    /// tree already is marked, and the refusal counted. A zero ends the path: zero names the root.
    pub fn place(&mut self, target: TargetId, path: &[u64], now_us: u64) -> Option<IndexOp> {
        if self.bound(target.slot) != Some(target.generation) {
            self.ignored += 1;
            self.publish_stats();
            return None;
        }
        let path = path.split(|block| *block == 0).next().unwrap_or(&[]);
        let shared = Arc::clone(&self.shared);
        let guard = shared.pins.pin();
        let view = View { shared: &shared, guard: &guard };
        let (found, taken) = self.walk(At::ROOT, path, view);
        let mut rest = &path[taken..];
        let anchor = self.head(found.node, view);
        let end = match self.grow(found, rest, view) {
            Ok(end) => end,
            Err(_) => {
                self.refused += 1;
                rest = &[];
                found
            }
        };
        let changed = self.mark(target.slot, end, u32::MAX, view);
        self.touch(target.slot, now_us);
        drop(guard);
        self.finish();
        (changed || !rest.is_empty()).then(|| IndexOp::Place {
            target: target.pack(),
            anchor,
            skip: found.off,
            blocks: rest.to_vec(),
        })
    }

    /// Applies an operation of the truth. Applying it again changes nothing.
    ///
    /// Operations for a tenant that the slot does not have are ignored (and counted), as are removals from runs that
    /// are gone already.
    pub fn apply(&mut self, op: &IndexOp) -> Result<(), ApplyError> {
        let shared = Arc::clone(&self.shared);
        let guard = shared.pins.pin();
        let view = View { shared: &shared, guard: &guard };
        let result = self.apply_pinned(op, view);
        drop(guard);
        self.finish();
        result
    }

    /// Applies operations in order; stops at the first that fails. The way to apply many: one pin for a batch, and the
    /// memory that the next operations need is asked for ahead.
    pub fn apply_all<'a>(&mut self, ops: impl IntoIterator<Item = &'a IndexOp>) -> Result<(), ApplyError> {
        let shared = Arc::clone(&self.shared);
        let mut ops = ops.into_iter();
        let mut batch: Vec<&IndexOp> = Vec::with_capacity(BATCH);
        loop {
            batch.clear();
            batch.extend(ops.by_ref().take(BATCH));
            if batch.is_empty() {
                return Ok(());
            }
            let guard = shared.pins.pin();
            let view = View { shared: &shared, guard: &guard };
            self.warm(&batch, view);
            let result = batch.iter().try_for_each(|op| self.apply_pinned(op, view));
            drop(guard);
            self.finish();
            result?;
        }
    }

    /// Touches what the operations will read first, for all of them at once: one after the other, each would wait for
    /// memory alone.
    fn warm(&self, batch: &[&IndexOp], view: View<'_>) {
        let names = batch.iter().map(|op| match op {
            IndexOp::Place { anchor, .. } | IndexOp::Store { anchor, .. } => *anchor,
            IndexOp::Remove { run, .. } | IndexOp::Evict { run } => *run,
            IndexOp::Clear { .. } => 0,
        });
        let mut cells = [0u32; BATCH];
        let table = view.shared.table.get(view.guard);
        for (cell, name) in cells.iter_mut().zip(names) {
            *cell = crate::table::first_cell(table, name);
        }
        let mut sum = 0u64;
        let mut nodes = [0u32; BATCH];
        for (node, number) in nodes.iter_mut().zip(&cells) {
            if let Some(cell) = view.shared.cells.get(*number) {
                *node = cell.node();
                sum ^= cell.blocks().get(view.guard).len() as u64;
            }
        }
        for (node, number) in nodes.iter().zip(&cells) {
            if let Some(node) = self.nodes.get(*node as usize) {
                sum ^= u64::from(node.first_child);
            }
            if let Some(cell) = view.shared.cells.get(*number) {
                sum ^= cell.run(view.guard).last().map_or(0, |last| last.load(Ordering::Relaxed));
            }
        }
        std::hint::black_box(sum);
    }

    fn apply_pinned(&mut self, op: &IndexOp, view: View<'_>) -> Result<(), ApplyError> {
        match op {
            IndexOp::Place { target, anchor, skip, blocks } => {
                let Some(slot) = self.tenant(*target)? else { return Ok(()) };
                let end = self.enter(*anchor, *skip, blocks, view)?;
                self.mark(slot, end, u32::MAX, view);
                Ok(())
            }
            IndexOp::Store { target, anchor, skip, blocks } => {
                let Some(slot) = self.tenant(*target)? else { return Ok(()) };
                let end = self.enter(*anchor, *skip, blocks, view)?;
                self.mark(slot, end, blocks.len() as u32, view);
                Ok(())
            }
            IndexOp::Remove { target, run, from, len } => {
                let Some(slot) = self.tenant(*target)? else { return Ok(()) };
                if let Some(node) = self.find(*run, view) {
                    self.remove_stretch(node, slot, *from, *len, view);
                }
                Ok(())
            }
            IndexOp::Clear { target } => {
                if let Some(slot) = self.tenant(*target)? {
                    self.clear_pinned(slot, view);
                }
                Ok(())
            }
            IndexOp::Evict { run } => {
                if let Some(node) = self.find(*run, view) {
                    self.evict(node, view);
                }
                Ok(())
            }
        }
    }

    /// Makes sure that `blocks` stand behind the first `skip` blocks of the run `anchor`. Returns where they end.
    fn enter(&mut self, anchor: u64, skip: u32, blocks: &[u64], view: View<'_>) -> Result<At, ApplyError> {
        if blocks.contains(&0) {
            return Err(ApplyError::Malformed { run: anchor, what: "a block hash is zero" });
        }
        let node = match anchor {
            0 => ROOT,
            name => self.find(name, view).ok_or(ApplyError::UnknownRun { run: name })?,
        };
        let len = self.len(node, view);
        if skip > len || (node != ROOT && skip == 0) {
            return Err(ApplyError::Skip { run: anchor, skip, len });
        }
        let (found, taken) = self.walk(At { node, off: skip }, blocks, view);
        self.grow(found, &blocks[taken..], view)
    }

    /// The slot of a packed target when it is the slot's tenant.
    fn tenant(&mut self, packed: u32) -> Result<Option<Slot>, ApplyError> {
        let target = TargetId::unpack(packed);
        let max_targets = self.config.max_targets;
        let state = self
            .slots
            .get(usize::from(target.slot))
            .ok_or(ApplyError::Slot { slot: target.slot, max_targets })?;
        if state.generation == Some(target.generation) {
            return Ok(Some(target.slot));
        }
        self.ignored += 1;
        Ok(None)
    }

    /// Forgets all that `slot` holds, in time proportional to it. The tenant stays.
    pub fn clear(&mut self, slot: Slot) {
        let shared = Arc::clone(&self.shared);
        self.clear_pinned(slot, View { shared: &shared, guard: &shared.pins.pin() });
        self.finish();
    }

    /// Forgets all that `slot` holds and its tenant.
    pub fn drop_target(&mut self, slot: Slot) {
        self.clear(slot);
        if let Some(state) = self.slots.get_mut(usize::from(slot)) {
            state.generation = None;
        }
    }

    /// Forgets what `target` holds of `path` beyond its first `keep` blocks. What it holds of other paths stays.
    /// Returns the operations for the replicas.
    pub fn remove_path_tail(&mut self, target: TargetId, path: &[u64], keep: u32) -> Vec<IndexOp> {
        let mut ops = Vec::new();
        if self.bound(target.slot) != Some(target.generation) {
            self.ignored += 1;
            self.publish_stats();
            return ops;
        }
        let shared = Arc::clone(&self.shared);
        let guard = shared.pins.pin();
        let view = View { shared: &shared, guard: &guard };
        let (end, matched) = self.walk(At::ROOT, path, view);
        self.remove_back(target, end, (matched as u64).saturating_sub(u64::from(keep)), view, &mut ops);
        drop(guard);
        self.finish();
        ops
    }

    /// Empties the index, tenants included. Readers stay valid.
    pub fn reset(&mut self) {
        for slot in 0..self.slots.len() {
            self.drop_target(slot as Slot);
        }
        let shared = Arc::clone(&self.shared);
        let guard = shared.pins.pin();
        let view = View { shared: &shared, guard: &guard };
        // Runs that nobody holds but that stand above others are gone with those; a restored snapshot may have left
        // some that never had a holder.
        while self.runs_by_use.oldest != NIL {
            self.evict(self.runs_by_use.oldest, view);
        }
        drop(guard);
        self.base_us = None;
        self.starved = false;
        self.finish();
        self.collect();
    }

    /// Frees what readers have passed, and starts a grace period for what was retired since. Nobody else frees.
    pub fn collect(&mut self) {
        let mut cells = std::mem::take(&mut self.returned_cells);
        self.grave.collect(&mut cells);
        for cell in cells.drain(..) {
            self.recycle(cell);
        }
        self.returned_cells = cells;
        self.shrink_table();
        self.publish_stats();
    }

    /// Size of the index.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// End of every public operation.
    fn finish(&mut self) {
        if self.grave.is_due() {
            self.collect();
        } else {
            self.publish_stats();
        }
    }

    fn publish_stats(&self) {
        let stats = &self.shared.stats;
        let set = |counter: &std::sync::atomic::AtomicU64, value: u64| {
            counter.store(value, CounterOrdering::Relaxed)
        };
        set(&stats.blocks, self.blocks);
        set(&stats.runs, self.live_runs as u64);
        set(&stats.bytes, self.footprint() as u64);
        set(&stats.targets, self.targets as u64);
        set(&stats.held_blocks, self.held);
        set(&stats.retired_bytes, self.grave.bytes() as u64);
        set(&stats.ignored, self.ignored);
        set(&stats.refused, self.refused);
        set(&stats.unknown, self.unknown);
    }
}
