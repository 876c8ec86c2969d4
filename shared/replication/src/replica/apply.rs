//! Snapshots and operations into the trees and the table.

use std::sync::Arc;

use fairlead_wire::msg::{Holding, IndexOp, InstanceInfo, Op, Run, SnapshotChunk, TargetInfo};
use fairlead_wire::{Slot, TargetId};

use super::{Early, Loading, Replica, ReplicaSink, ReservationSource, TargetState};

/// The trees can no longer be brought up to date by operations.
#[derive(Debug)]
pub(super) enum Lost {
    /// An operation does not apply: a snapshot is needed.
    Diverged,
    /// The index does not fit.
    TooSmall,
}

impl From<fairlead_prefix::ApplyError> for Lost {
    fn from(error: fairlead_prefix::ApplyError) -> Self {
        match error {
            fairlead_prefix::ApplyError::Full { .. } | fairlead_prefix::ApplyError::Slot { .. } => {
                Self::TooSmall
            }
            error => {
                tracing::warn!(%error, "replica diverged");
                Self::Diverged
            }
        }
    }
}

impl<S: ReplicaSink + ReservationSource> Replica<S> {
    /// The link is to a scheduler of another epoch: all ids are void, what is known stays.
    pub(super) fn begin_epoch(&mut self) {
        self.stats.epochs += 1;
        self.settled = false;
        self.recollections.clear();
        self.recollect = self.table.iter().filter(|local| !local.fixed).map(|local| local.id).collect();
        self.table.unconfirm_all();
        self.peers.clear();
    }

    /// A frame of operations.
    pub(super) fn delta(&mut self, base: u64, new: u64, ops: Vec<Op>, bytes: usize) {
        let held = self.held.map_or(0, |(_, sequence)| sequence);
        if !self.synced() || self.loading.is_some() || self.is_draining() {
            return self.keep_early(base, new, ops, bytes);
        }
        if base > held {
            self.stats.gaps += 1;
            self.keep_early(base, new, ops, bytes);
            self.ask();
        } else if base == held {
            self.apply_frame(new, ops);
            self.drain_early();
        }
        // Otherwise it has been applied already: it was sent again by a resume.
    }

    /// Whether operations that were kept can be applied now.
    pub(super) fn is_draining(&self) -> bool {
        let held = self.held.map_or(0, |(_, sequence)| sequence);
        self.early.front().is_some_and(|early| early.base <= held) && self.synced() && self.loading.is_none()
    }

    fn keep_early(&mut self, base: u64, new: u64, ops: Vec<Op>, bytes: usize) {
        // Whoever is said to be gone is not picked any more, although the operation itself must wait.
        for op in &ops {
            match op {
                Op::TargetGone { target } => self.unready(*target),
                Op::Target(info) if !info.ready => self.unready(info.target),
                _ => {}
            }
        }
        if self.early.back().is_some_and(|last| last.new != base)
            || self.early_bytes + bytes > self.config.buffer_bytes
        {
            self.clear_early();
        }
        if bytes <= self.config.buffer_bytes {
            self.early_bytes += bytes;
            self.early.push_back(Early { base, new, ops, bytes });
        }
    }

    fn unready(&mut self, remote: u32) {
        let Some(slot) = self.table.by_remote(remote).map(|local| local.id.slot) else { return };
        if let Some(local) = self.table.get_mut(slot)
            && std::mem::replace(&mut local.state.ready, false)
        {
            self.sink.target(local.id, local.state, &local.info);
            self.table_changed = true;
        }
    }

    pub(super) fn clear_early(&mut self) {
        self.early.clear();
        self.early_bytes = 0;
    }

    /// Applies what was kept and follows on what is held now, a bounded part of it.
    pub(super) fn drain_early(&mut self) {
        let mut left = self.config.slice_bytes;
        while left > 0 && self.synced() && self.loading.is_none() {
            let held = self.held.map_or(0, |(_, sequence)| sequence);
            match self.early.front() {
                Some(early) if early.base > held => {
                    self.ask();
                    return;
                }
                Some(_) => {}
                None => return,
            }
            let Some(early) = self.early.pop_front() else { return };
            self.early_bytes -= early.bytes;
            left = left.saturating_sub(early.bytes);
            if early.base == held {
                self.apply_frame(early.new, early.ops);
            }
        }
    }

    fn apply_frame(&mut self, new: u64, ops: Vec<Op>) {
        self.stats.delta_frames += 1;
        self.stats.ops += ops.len() as u64;
        // Changes of the index are applied as many at a time as stand side by side.
        let mut index = Vec::new();
        for op in ops {
            if let Op::Index(op) = op {
                index.push(op);
                continue;
            }
            self.apply_index(&mut index);
            if let Err(lost) = self.apply(op) {
                self.lose(&lost);
            }
        }
        self.apply_index(&mut index);
        if let Some((_, sequence)) = &mut self.held {
            *sequence = new;
        }
        self.progress_us = self.now_us;
    }

    fn apply(&mut self, op: Op) -> Result<(), Lost> {
        match op {
            Op::Target(info) => self.upsert(*info),
            Op::TargetGone { target } => {
                if let Some(local) = self.table.by_remote(target) {
                    self.remove_target(local.id.slot);
                }
                Ok(())
            }
            Op::EpochSettled => {
                self.settle();
                Ok(())
            }
            Op::Costs(told) => {
                self.show_costs(told.target, Some(told.costs));
                Ok(())
            }
            Op::Index(op) => {
                self.apply_index(&mut vec![op]);
                Ok(())
            }
        }
    }

    /// Applies changes of the index, and takes them out of `ops`.
    fn apply_index(&mut self, ops: &mut Vec<IndexOp>) {
        if ops.is_empty() || self.index_off || !self.whole {
            return ops.clear();
        }
        let applied = ops.iter_mut().try_for_each(|op| self.localise(op));
        if let Err(lost) = applied.and_then(|()| Ok(self.trees[self.live].apply_all(ops.iter())?)) {
            ops.clear();
            return self.lose(&lost);
        }
        for op in ops.drain(..) {
            match op {
                IndexOp::Place { target, blocks, .. } => {
                    if let Some(&end) = blocks.last() {
                        self.overlay.confirm(TargetId::unpack(target).slot, end);
                    }
                }
                IndexOp::Clear { target } if self.base => {
                    self.trees[1 - self.live].clear(TargetId::unpack(target).slot);
                }
                _ => {}
            }
        }
    }

    /// Gives an operation the local id of its target.
    fn localise(&self, op: &mut IndexOp) -> Result<(), Lost> {
        match op {
            IndexOp::Place { target, .. }
            | IndexOp::Store { target, .. }
            | IndexOp::Remove { target, .. }
            | IndexOp::Clear { target } => {
                *target = self.table.by_remote(*target).ok_or(Lost::Diverged)?.id.pack();
            }
            IndexOp::Evict { .. } => {}
        }
        Ok(())
    }

    /// A piece of a snapshot taken at `sequence` of the linked epoch.
    pub(super) fn snapshot(&mut self, sequence: u64, chunk: SnapshotChunk, bytes: usize) {
        let held = if self.synced() { self.held.map_or(0, |(_, held)| held) } else { 0 };
        let expected = self
            .loading
            .as_ref()
            .is_some_and(|loading| loading.sequence == sequence && loading.next_part == chunk.part);
        if !expected {
            let newer = self.loading.as_ref().is_none_or(|loading| loading.sequence <= sequence);
            if chunk.part != 0 || sequence < held || !newer {
                // A piece of a snapshot that was given up.
                return;
            }
            self.begin_loading(sequence);
        }
        if let Some(loading) = &mut self.loading {
            loading.next_part += 1;
        }
        self.take_part(sequence, chunk, bytes);
    }

    pub(super) fn load_part(&mut self, sequence: u64, chunk: &SnapshotChunk) {
        self.progress_us = self.now_us;
        if let Err(lost) = self.load_chunk(chunk) {
            self.lose(&lost);
            if matches!(lost, Lost::Diverged) {
                return;
            }
        }
        if chunk.last {
            self.finish_loading(sequence, chunk.settled);
        }
    }

    fn begin_loading(&mut self, sequence: u64) {
        self.abort_loading();
        self.index_off = false;
        let epoch = self.link.as_ref().map(|link| link.epoch);
        let same_epoch = self.held.map(|(held, _)| held) == epoch;
        let into = if self.base {
            // The base takes over what the live tree knows, and the live tree is loaded anew.
            self.fold();
            self.whole = false;
            self.live
        } else if same_epoch && self.whole {
            1 - self.live
        } else {
            // What is there is of another epoch (or worth little): it stays in use as the base.
            if self.held.is_some() {
                self.base = true;
                self.live = 1 - self.live;
            }
            self.whole = false;
            self.live
        };
        self.discard(into);
        self.loading = Some(Loading { sequence, next_part: 0, into, listed: Default::default() });
    }

    fn load_chunk(&mut self, chunk: &SnapshotChunk) -> Result<(), Lost> {
        let Some(loading) = &mut self.loading else { return Ok(()) };
        loading.listed.extend(chunk.targets.iter().map(|info| info.target));
        let into = loading.into;
        let mut outcome = Ok(());
        for info in &chunk.targets {
            if let Err(lost) = self.upsert(info.clone()) {
                outcome = Err(lost);
            }
        }
        outcome?;
        if self.index_off {
            return Ok(());
        }
        for run in &chunk.runs {
            let run = self.translate(run)?;
            self.trees[into].restore_run(&run)?;
        }
        Ok(())
    }

    fn translate(&self, run: &Run) -> Result<Run, Lost> {
        let holder = |holder: &Holding| {
            let local = self.table.by_remote(holder.target).ok_or(Lost::Diverged)?;
            Ok(Holding { target: local.id.pack(), depth: holder.depth, missing: holder.missing.clone() })
        };
        let holders = run.holders.iter().map(holder).collect::<Result<_, Lost>>()?;
        Ok(Run { parent: run.parent, blocks: run.blocks.clone(), holders })
    }

    fn finish_loading(&mut self, sequence: u64, settled: bool) {
        let Some(loading) = self.loading.take() else { return };
        let Some(epoch) = self.link.as_ref().map(|link| link.epoch) else { return };
        self.stats.snapshots += 1;
        if loading.into != self.live {
            let old = self.live;
            self.live = loading.into;
            self.discard(old);
        }
        self.held = Some((epoch, sequence));
        self.whole = true;
        let unlisted: Vec<Slot> = self
            .table
            .iter()
            .filter(|local| local.remote.is_some_and(|remote| !loading.listed.contains(&remote)))
            .map(|local| local.id.slot)
            .collect();
        for slot in unlisted {
            self.remove_target(slot);
        }
        if settled {
            self.settle();
        }
        if let Some(link) = &mut self.link {
            link.resume = false;
        }
        self.drain_early();
    }

    /// Gives a half-loaded snapshot up.
    pub(super) fn abort_loading(&mut self) {
        self.clear_parts();
        if let Some(loading) = self.loading.take()
            && loading.into != self.live
        {
            self.discard(loading.into);
        }
    }

    fn lose(&mut self, lost: &Lost) {
        match lost {
            Lost::Diverged => {
                self.stats.diverged += 1;
                if self.loading.is_some() {
                    self.abort_loading();
                } else {
                    self.whole = false;
                }
                // A snapshot that does not apply must not be asked for in a tight loop.
                if let Some(link) = &mut self.link {
                    link.resume = true;
                    link.next_resume_us = link.next_resume_us.max(self.now_us + 100_000);
                }
            }
            Lost::TooSmall => {
                if !std::mem::replace(&mut self.index_off, true) {
                    tracing::warn!("the prefix index does not fit: routing goes on by load");
                }
                self.base = false;
                self.discard(0);
                self.discard(1);
            }
        }
    }

    fn ask(&mut self) {
        if let Some(link) = &mut self.link {
            link.resume = true;
        }
    }

    /// The epoch's scheduler has heard from everybody: what it has not named is gone.
    fn settle(&mut self) {
        self.settled = true;
        self.recollect.clear();
        self.recollections.clear();
        if std::mem::take(&mut self.base) {
            self.discard(1 - self.live);
        }
        let void: Vec<Slot> =
            self.table.iter().filter(|local| local.remote.is_none()).map(|local| local.id.slot).collect();
        for slot in void {
            self.remove_target(slot);
        }
    }

    /// Enters the live tree's paths in the base.
    fn fold(&mut self) {
        let (live, base) = (self.live, 1 - self.live);
        let ids: Vec<TargetId> = self.table.iter().map(|local| local.id).collect();
        for id in ids {
            for path in self.trees[live].paths_of(id.slot) {
                self.trees[base].place(id, &path, self.now_us);
            }
        }
    }

    pub(super) fn reset_tree(&mut self, which: usize) {
        let tree = &mut self.trees[which];
        tree.reset();
        for local in self.table.iter() {
            if let Err(error) = tree.bind(local.id) {
                tracing::error!(%error, "the index has no room for a target of the table");
            }
        }
    }

    fn upsert(&mut self, told: TargetInfo) -> Result<(), Lost> {
        let TargetInfo { target: remote, rank, ready, cache, costs, leaning, instance } = told;
        let state = TargetState { rank, ready, cache, leaning };
        if let Some(local) = self.table.by_remote(remote) {
            let slot = local.id.slot;
            self.update(slot, state, instance);
            self.show_costs(remote, costs);
            return Ok(());
        }
        if let Some(local) = self.table.by_name(&instance.name, rank) {
            let slot = local.id.slot;
            let same = local.fixed || local.info.incarnation == instance.incarnation;
            if local.remote.is_none() && same {
                self.table.confirm(slot, remote);
                self.update(slot, state, instance);
                self.resend_due = true;
                self.load_dirty = true;
                self.costs_are_due();
                self.show_load(slot);
                self.show_costs(remote, costs);
                return Ok(());
            }
            self.remove_target(slot);
        }
        let shared = self.table.by_name(&instance.name, 0).map(|first| first.info.clone());
        let info = shared.filter(|first| **first == instance).unwrap_or_else(|| Arc::new(instance));
        if self.add_target(state, info, Some(remote)).is_none() {
            self.stats.targets_refused += 1;
            return Err(Lost::TooSmall);
        }
        self.show_costs(remote, costs);
        Ok(())
    }

    fn update(&mut self, slot: Slot, state: TargetState, instance: InstanceInfo) {
        let Some(local) = self.table.get_mut(slot) else { return };
        if local.state == state && *local.info == instance {
            return;
        }
        local.state = state;
        if *local.info != instance {
            local.info = Arc::new(instance);
        }
        self.sink.target(local.id, local.state, &local.info);
        self.table_changed = true;
    }

    pub(super) fn add_target(
        &mut self,
        state: TargetState,
        info: Arc<InstanceInfo>,
        remote: Option<u32>,
    ) -> Option<TargetId> {
        let id = self.table.add(state, info.clone(), remote)?;
        for tree in self.trees.iter_mut().chain([&mut self.overlay.tree]) {
            if let Err(error) = tree.bind(id) {
                tracing::error!(%error, "the index has no room for a target of the table");
            }
        }
        self.sink.target(id, state, &info);
        self.table_changed = true;
        self.show_load(id.slot);
        Some(id)
    }

    fn remove_target(&mut self, slot: Slot) {
        let Some(local) = self.table.remove(slot, self.now_us) else { return };
        for tree in &mut self.trees {
            tree.drop_target(slot);
        }
        self.overlay.drop_target(slot);
        if let Some(remote) = local.remote {
            self.peers.forget_target(remote);
        }
        self.sink.target_gone(local.id);
        self.table_changed = true;
    }
}
