//! Snapshots, and what a target holds as paths.

use std::sync::Arc;

use ahash::AHashMap;
use fairlead_wire::msg::{Holding, Run};
use fairlead_wire::{Slot, TargetId};

use crate::MAX_RUN;
use crate::stretch;
use crate::sync::Ordering;

use super::budget::Need;
use super::tree::View;
use super::{ApplyError, NIL, ROOT, Writer};

/// The runs of an index, parents before children.
pub struct Runs<'w> {
    pub(super) writer: &'w Writer,
    pub(super) next: u32,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let node = self.next;
        if node == NIL {
            return None;
        }
        let nodes = &self.writer.nodes;
        let mut at = node;
        self.next = nodes[at as usize].first_child;
        while self.next == NIL && at != ROOT {
            self.next = nodes[at as usize].next_sibling;
            at = nodes[at as usize].parent;
        }
        Some(self.writer.run(node))
    }
}

impl Writer {
    /// The runs with their holders, parents before children.
    pub fn snapshot_runs(&self) -> Runs<'_> {
        Runs { writer: self, next: self.nodes[ROOT as usize].first_child }
    }

    fn run(&self, node: u32) -> Run {
        let guard = self.shared.pins.pin();
        let view = View { shared: &self.shared, guard: &guard };
        let cell = self.cell(node, view);
        let mut holders = Vec::new();
        for share in self.shares(node, cell, view) {
            let Some(generation) = self.bound(share.slot) else { continue };
            holders.push(Holding {
                target: TargetId::new(share.slot, generation).pack(),
                depth: share.extent(),
                missing: stretch::gaps(&share.stretches()),
            });
        }
        holders.sort_unstable_by_key(|holding| holding.target);
        Run {
            parent: self.head(self.nodes[node as usize].parent, view),
            blocks: cell.run(&guard).iter().map(|block| block.load(Ordering::Relaxed)).collect(),
            holders,
        }
    }

    /// Enters a run of a snapshot; its parent was entered before. Holdings of tenants that a slot does not have are
    /// ignored (and counted). After an error the index is as before.
    pub fn restore_run(&mut self, run: &Run) -> Result<(), ApplyError> {
        let shared = Arc::clone(&self.shared);
        let guard = shared.pins.pin();
        let view = View { shared: &shared, guard: &guard };
        let result = self.restore_pinned(run, view);
        drop(guard);
        self.finish();
        result
    }

    fn restore_pinned(&mut self, run: &Run, view: View<'_>) -> Result<(), ApplyError> {
        let head = run.blocks.first().copied().unwrap_or(0);
        let bad = |what| Err(ApplyError::Malformed { run: head, what });
        if run.blocks.is_empty() || run.blocks.len() > MAX_RUN {
            return bad("the number of blocks is not between 1 and the longest run");
        }
        if run.blocks.contains(&0) {
            return bad("a block hash is zero");
        }
        let parent = match run.parent {
            0 => ROOT,
            name => self.find(name, view).ok_or(ApplyError::UnknownRun { run: name })?,
        };
        if self.find(head, view).is_some() {
            return Err(ApplyError::Conflict { block: head });
        }
        let mut holdings = Vec::with_capacity(run.holders.len().min(self.slots.len()));
        let mut seen = vec![false; self.slots.len()];
        for holding in &run.holders {
            let Some(slot) = self.tenant(holding.target)? else { continue };
            if std::mem::replace(&mut seen[usize::from(slot)], true) {
                return bad("a target is named twice");
            }
            if holding.depth as usize > run.blocks.len() {
                return bad("a target holds more blocks than there are");
            }
            let mut set = Vec::new();
            stretch::add(&mut set, 0, holding.depth);
            for &(from, len) in holding.missing.iter().take(MAX_RUN) {
                stretch::remove(&mut set, from, len);
            }
            if !set.is_empty() {
                holdings.push((slot, set));
            }
        }
        let behind: usize = holdings.iter().map(|(_, set)| set.len() + 4).sum();
        let need = Need {
            words: run.blocks.len() + 4 * holdings.len() + behind,
            runs: 1,
            records: holdings.len(),
            anchors: self.anchors_in(&run.blocks),
        };
        self.check_room(need, ROOT, view)?;
        let node = self.add_run(parent, &run.blocks, view);
        for (slot, set) in holdings {
            self.add_share(node, slot, set, view);
        }
        Ok(())
    }

    /// The paths that `slot` holds from the root, each to the last block that it holds without a hole; none is the
    /// beginning of another. What lies behind a hole cannot be told as a path and is left out.
    pub fn paths_of(&self, slot: Slot) -> Vec<Vec<u64>> {
        let guard = self.shared.pins.pin();
        let view = View { shared: &self.shared, guard: &guard };
        // Leading blocks held, by node.
        let mut leads = AHashMap::new();
        for node in self.runs_of(slot) {
            if let Some((_, holder)) = self.holder(self.cell(node, view), slot, view)
                && holder.lead > 0
            {
                leads.insert(node, u32::from(holder.lead));
            }
        }
        // Whether everything above a node is held; and the nodes below which something goes on.
        let mut reached: AHashMap<u32, bool> = AHashMap::from_iter([(ROOT, true)]);
        let mut goes_on = AHashMap::new();
        let mut way = Vec::new();
        for &node in leads.keys() {
            let mut at = node;
            while !reached.contains_key(&at) {
                way.push(at);
                at = self.nodes[at as usize].parent;
            }
            while let Some(at) = way.pop() {
                let parent = self.nodes[at as usize].parent;
                let whole =
                    parent == ROOT || leads.get(&parent).is_some_and(|lead| *lead == self.len(parent, view));
                let open = whole && reached.get(&parent).copied().unwrap_or(false);
                reached.insert(at, open);
                if open && leads.contains_key(&at) {
                    goes_on.insert(parent, ());
                }
            }
        }
        let mut paths = Vec::new();
        for (&node, &lead) in &leads {
            if goes_on.contains_key(&node) || !reached.get(&node).copied().unwrap_or(false) {
                continue;
            }
            let mut pieces = vec![(node, lead as usize)];
            let mut at = self.nodes[node as usize].parent;
            while at != ROOT {
                pieces.push((at, self.len(at, view) as usize));
                at = self.nodes[at as usize].parent;
            }
            let mut path = Vec::with_capacity(pieces.iter().map(|piece| piece.1).sum());
            for (node, len) in pieces.into_iter().rev() {
                let run = self.cell(node, view).run(&guard);
                path.extend(run[..len].iter().map(|block| block.load(Ordering::Relaxed)));
            }
            paths.push(path);
        }
        paths
    }

    /// All pairs of target (packed) and block, sorted: the truth that replicas are compared by.
    pub fn holdings(&self) -> Vec<(u32, u64)> {
        let mut all = Vec::new();
        for run in self.snapshot_runs() {
            for holding in &run.holders {
                let mut set = vec![(0, holding.depth)];
                for &(from, len) in &holding.missing {
                    stretch::remove(&mut set, from, len);
                }
                for (from, len) in set {
                    let blocks = &run.blocks[from as usize..(from + len) as usize];
                    all.extend(blocks.iter().map(|block| (holding.target, *block)));
                }
            }
        }
        all.sort_unstable();
        all
    }
}
