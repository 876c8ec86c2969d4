//! Stores and removals as an engine's events tell them: exact blocks, placed by the blocks right before them.

use std::sync::Arc;

use fairlead_wire::msg::IndexOp;
use fairlead_wire::{TargetId, is_anchor};

use crate::sync::{AtomicU64, Ordering};

use super::anchors::Anchors;
use super::tree::View;
use super::{At, ROOT, Writer};

/// Why blocks were not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// What should stand before the blocks is not in the tree.
    #[error("block {block:#018x} before the stored blocks is not in the index")]
    UnknownParent {
        /// The first of the blocks above.
        block: u64,
    },
}

impl Writer {
    /// Enters that `target` holds `blocks`, used at `now_us`, which follow the path that ends with `above`; of `above`
    /// itself nothing is said. `above` begins with an anchor ([`is_anchor`]) or with the path's first block; when it is
    /// empty, `blocks` begin a path. Returns the operation for the replicas; `None` when nothing changed.
    ///
    /// Where the blocks cannot be entered in full, the part that is in the tree already is marked, as by
    /// [`Writer::place`]. A zero ends the blocks.
    pub fn store(
        &mut self,
        target: TargetId,
        above: &[u64],
        blocks: &[u64],
        now_us: u64,
    ) -> Result<Option<IndexOp>, StoreError> {
        if self.bound(target.slot) != Some(target.generation) {
            self.ignored += 1;
            self.publish_stats();
            return Ok(None);
        }
        let blocks = blocks.split(|block| *block == 0).next().unwrap_or(&[]);
        let shared = Arc::clone(&self.shared);
        let guard = shared.pins.pin();
        let view = View { shared: &shared, guard: &guard };
        let from = match above.first() {
            None => At::ROOT,
            Some(&first) => match self.locate(first, view).map(|at| self.walk(at, above, view)) {
                Some((at, taken)) if taken == above.len() => at,
                _ => {
                    self.unknown += 1;
                    self.publish_stats();
                    return Err(StoreError::UnknownParent { block: first });
                }
            },
        };
        let (found, taken) = self.walk(from, blocks, view);
        // Its name now: growing may split the run.
        let anchor = self.head(from.node, view);
        let (end, held) = match self.grow(found, &blocks[taken..], view) {
            Ok(end) => (end, blocks),
            Err(_) => {
                self.refused += 1;
                (found, &blocks[..taken])
            }
        };
        let changed = self.mark(target.slot, end, held.len() as u32, view);
        self.touch(target.slot, now_us);
        drop(guard);
        self.finish();
        Ok(changed.then(|| IndexOp::Store {
            target: target.pack(),
            anchor,
            skip: from.off,
            blocks: held.to_vec(),
        }))
    }

    /// Enters that `target` no longer holds `blocks`, which follow the path that ends with `above`. `above` is as in
    /// [`Writer::store`], but may also be empty when the first of `blocks` is an anchor. Blocks that are not in the
    /// tree are ignored (and counted, when not even the first is). Returns the operations for the replicas.
    pub fn remove_blocks(&mut self, target: TargetId, above: &[u64], blocks: &[u64]) -> Vec<IndexOp> {
        let mut ops = Vec::new();
        if self.bound(target.slot) != Some(target.generation) {
            self.ignored += 1;
            self.publish_stats();
            return ops;
        }
        let Some(&first) = above.first().or(blocks.first()) else { return ops };
        let shared = Arc::clone(&self.shared);
        let guard = shared.pins.pin();
        let view = View { shared: &shared, guard: &guard };
        let before = self.locate(first, view).map(|at| self.walk(at, above, view));
        match before.filter(|(_, taken)| *taken == above.len()).map(|(at, _)| self.walk(at, blocks, view)) {
            Some((end, matched)) if matched > 0 => {
                self.remove_back(target, end, matched as u64, view, &mut ops);
            }
            _ => self.unknown += 1,
        }
        drop(guard);
        self.finish();
        ops
    }

    /// Ends what `target` holds of the last `count` blocks of the path that ends at `end`.
    pub(super) fn remove_back(
        &mut self,
        target: TargetId,
        end: At,
        count: u64,
        view: View<'_>,
        ops: &mut Vec<IndexOp>,
    ) {
        let from = u64::from(end.off).saturating_sub(count) as u32;
        let mut left = count - u64::from(end.off - from);
        let mut above = Vec::new();
        let mut node = end.node;
        while node != ROOT && left > 0 {
            node = self.nodes[node as usize].parent;
            let len = self.len(node, view);
            let from = u64::from(len).saturating_sub(left) as u32;
            left -= u64::from(len - from);
            above.push((self.head(node, view), from, len - from));
        }
        // From the deepest run up. Those above by name, because a removal may unlink or merge them.
        let run = self.head(end.node, view);
        if end.node != ROOT && self.remove_stretch(end.node, target.slot, from, end.off - from, view) > 0 {
            ops.push(IndexOp::Remove { target: target.pack(), run, from, len: end.off - from });
        }
        for (run, from, len) in above {
            let Some(node) = self.find(run, view) else { continue };
            if self.remove_stretch(node, target.slot, from, len, view) > 0 {
                ops.push(IndexOp::Remove { target: target.pack(), run, from, len });
            }
        }
    }

    /// The place right before a block that can be found by its hash alone: an anchor, or the first block of a run (a
    /// path's first block always is one).
    pub(super) fn locate(&self, hash: u64, view: View<'_>) -> Option<At> {
        let anchors = self.anchors.as_ref().filter(|_| is_anchor(hash));
        let found = anchors.and_then(|anchors| {
            anchors.find(hash, |node, offset| {
                let block = self.cell(node, view).run(view.guard).get(offset as usize);
                block.is_some_and(|block| block.load(Ordering::Relaxed) == hash)
            })
        });
        let (node, off) = found.or_else(|| self.find(hash, view).map(|node| (node, 0)))?;
        Some(At { node, off })
    }

    /// Blocks for which the table of anchors needs room.
    pub(super) fn anchors_in(&self, blocks: &[u64]) -> usize {
        if self.anchors.is_none() { 0 } else { blocks.iter().filter(|block| is_anchor(**block)).count() }
    }

    /// Enters the anchors among blocks that were added to a run.
    pub(super) fn enter_anchors(&mut self, node: u32, from: u32, blocks: &[u64], view: View<'_>) {
        let more = self.anchors_in(blocks);
        let Some(anchors) = &mut self.anchors else { return };
        if more == 0 {
            return;
        }
        if anchors.is_crowded(more) {
            // The new blocks are in the tree already.
            return self.rebuild_anchors(more, view);
        }
        for (at, block) in blocks.iter().enumerate().filter(|(_, block)| is_anchor(**block)) {
            anchors.insert(*block, node, from + at as u32);
        }
    }

    fn rebuild_anchors(&mut self, more: usize, view: View<'_>) {
        let live = self.anchors.as_ref().map_or(0, Anchors::live);
        // The old one goes first: it is not needed for making the new one.
        self.anchors = None;
        let mut anchors = Anchors::with_room(live + more);
        for (node, links) in self.nodes.iter().enumerate().filter(|(_, node)| node.cell != super::NIL) {
            for (at, block) in view.cell(links.cell).run(view.guard).iter().enumerate() {
                let block = block.load(Ordering::Relaxed);
                if is_anchor(block) {
                    anchors.insert(block, node as u32, at as u32);
                }
            }
        }
        self.anchors = Some(anchors);
    }

    /// Blocks of a run stand elsewhere now: `to` instead of `from` (node and offset of the first).
    pub(super) fn move_anchors(&mut self, from: (u32, u32), to: (u32, u32), blocks: &[AtomicU64]) {
        let Some(anchors) = &mut self.anchors else { return };
        for (at, block) in anchors_among(blocks) {
            anchors.update(block, (from.0, from.1 + at), (to.0, to.1 + at));
        }
    }

    /// Blocks of a run are gone; the first of them stood at `from`.
    pub(super) fn remove_anchors(&mut self, node: u32, from: u32, blocks: &[AtomicU64]) {
        let Some(anchors) = &mut self.anchors else { return };
        for (at, block) in anchors_among(blocks) {
            anchors.remove(block, node, from + at);
        }
    }
}

fn anchors_among(blocks: &[AtomicU64]) -> impl Iterator<Item = (u32, u64)> {
    let blocks = blocks.iter().enumerate().map(|(at, block)| (at as u32, block.load(Ordering::Relaxed)));
    blocks.filter(|(_, block)| is_anchor(*block))
}
