//! Work that an index of any size makes, done in bounded slices: a tree that is of no more use is emptied, a snapshot is
//! loaded, what was kept meanwhile is applied. One slice per tick, so that frames, placements and samples of this
//! gateway's load have their turn in between. Until a tree is empty, what is left in it answers on.

use fairlead_wire::msg::SnapshotChunk;

use super::{Replica, ReplicaSink, ReservationSource};

/// A piece of a snapshot that waits for its tree to be empty.
pub(super) struct Part {
    pub(super) sequence: u64,
    pub(super) chunk: SnapshotChunk,
    pub(super) bytes: usize,
}

impl<S: ReplicaSink + ReservationSource> Replica<S> {
    /// Whether there is work for the next tick, which should follow at once.
    pub fn has_work(&self) -> bool {
        self.emptying != [false; 2] || !self.parts.is_empty() || self.is_draining()
    }

    /// Does one slice.
    pub(super) fn work(&mut self) {
        if let Some(which) = self.emptying.iter().position(|emptying| *emptying) {
            self.empty_slice(which);
            self.progress_us = self.now_us;
        } else if let Some(part) = self.parts.pop_front() {
            self.parts_bytes -= part.bytes;
            self.load_part(part.sequence, &part.chunk);
        } else if self.is_draining() {
            self.drain_early();
        }
    }

    /// The tree is of no more use: it is emptied in slices.
    pub(super) fn discard(&mut self, which: usize) {
        self.emptying[which] = true;
        self.empty_slice(which);
    }

    fn empty_slice(&mut self, which: usize) {
        let tree = &mut self.trees[which];
        if !tree.empty_some(self.config.slice_runs) {
            return;
        }
        tree.collect();
        // What readers may still look at counts against the tree's budget: loading it anew must not fail for that.
        if tree.stats().retired_bytes <= self.config.index_bytes as u64 / 16 {
            self.emptying[which] = false;
            self.reset_tree(which);
        }
    }

    /// Takes a piece of the snapshot that is being loaded, at once or when its tree is empty. Beyond the bound of what
    /// may wait, the rest is done in one go.
    pub(super) fn take_part(&mut self, sequence: u64, chunk: SnapshotChunk, bytes: usize) {
        let waits = self.loading.as_ref().is_some_and(|loading| self.emptying[loading.into]);
        if !waits && self.parts.is_empty() {
            return self.load_part(sequence, &chunk);
        }
        self.parts_bytes += bytes;
        self.parts.push_back(Part { sequence, chunk, bytes });
        while self.parts_bytes > self.config.buffer_bytes {
            self.work();
        }
    }

    pub(super) fn clear_parts(&mut self) {
        self.parts.clear();
        self.parts_bytes = 0;
    }
}
