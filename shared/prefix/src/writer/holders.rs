//! Who holds what: holder positions of cells, records, per-slot lists.

use fairlead_wire::Slot;

use crate::cells::{Cell, Holder, INLINE};
use crate::stretch::{self, Stretch};
use crate::sync::Ordering;
use crate::words::Words;

use super::tree::View;
use super::{At, NIL, ROOT, Record, Writer, budget, list};

/// Bit of [`Record::position`]: the target holds more of the run behind a hole.
const BEHIND: u16 = 1 << 15;

/// Memory of one entry of the map of stretches behind holes, map overhead included.
fn behind_bytes(set: &[Stretch]) -> usize {
    std::mem::size_of_val(set) + 2 * size_of::<(u32, Vec<Stretch>)>()
}

impl Writer {
    /// Position and word of a slot among the holders of a cell.
    pub(super) fn holder(&self, cell: &Cell, slot: Slot, view: View<'_>) -> Option<(usize, Holder)> {
        let (near, far) = cell.holders(view.guard);
        near.iter().chain(far).enumerate().find_map(|(position, word)| {
            let holder = Holder::unpack(word.load(Ordering::Relaxed))?;
            (holder.slot == slot).then_some((position, holder))
        })
    }

    pub(super) fn has_behind(&self, record: u32) -> bool {
        self.records[record as usize].position & BEHIND != 0
    }

    /// All that the holder holds of its run.
    pub(super) fn stretches(&self, holder: Holder) -> Vec<Stretch> {
        let mut set = Vec::new();
        if holder.lead > 0 {
            set.push((0, u32::from(holder.lead)));
        }
        if self.has_behind(holder.record) {
            set.extend(self.behind.get(&holder.record).into_iter().flatten());
        }
        set
    }

    /// Marks that `slot` holds the last `count` blocks of the path that ends at `end` (all of it, if it is shorter),
    /// from the root down. Returns whether that is new. Leaves the way up in `climb`.
    pub(super) fn mark(&mut self, slot: Slot, end: At, count: u32, view: View<'_>) -> bool {
        let mut climb = std::mem::take(&mut self.climb);
        climb.clear();
        let (mut node, mut left, mut top) = (end.node, count, 0);
        while node != ROOT && left > 0 {
            climb.push((node, NIL));
            let stop = if climb.len() == 1 { end.off } else { self.len(node, view) };
            top = stop.saturating_sub(left);
            left -= stop - top;
            node = self.nodes[node as usize].parent;
        }
        let mut changed = false;
        for (depth, (node, record)) in climb.iter_mut().enumerate().rev() {
            let upto = if depth == 0 { end.off } else { self.len(*node, view) };
            let (new, at) = self.cover(*node, slot, top, upto, view);
            *record = at;
            changed |= new;
            top = 0;
        }
        self.climb = climb;
        changed
    }

    /// Marks that `slot` holds blocks `from..upto` of a run. Returns whether that is new, and the record.
    fn cover(&mut self, node: u32, slot: Slot, from: u32, upto: u32, view: View<'_>) -> (bool, u32) {
        let cell = self.cell(node, view);
        let Some((position, holder)) = self.holder(cell, slot, view) else {
            let record = self.take_record(node, slot);
            let state = &mut self.slots[usize::from(slot)];
            list::push_newest(&mut self.records, &mut state.records, record);
            self.count(slot, 0, upto - from);
            if from > 0 {
                self.store_behind(record, vec![(from, upto - from)]);
            }
            self.add_holder(cell, slot, if from == 0 { upto } else { 0 }, record, view);
            return (true, record);
        };
        let lead = u32::from(holder.lead);
        if lead >= upto {
            return (false, holder.record);
        }
        if from <= lead && !self.has_behind(holder.record) {
            self.count(slot, lead, upto);
            let word = Holder { lead: upto as u16, ..holder }.pack();
            if let Some(place) = cell.position(position, view.guard) {
                place.store(word, Ordering::Release);
            }
            return (true, holder.record);
        }
        let mut set = self.stretches(holder);
        let before = stretch::count(&set);
        stretch::add(&mut set, from, upto - from);
        let after = stretch::count(&set);
        if after == before {
            return (false, holder.record);
        }
        self.count(slot, before, after);
        self.store_holding(cell, position, holder, set, view);
        (true, holder.record)
    }

    /// Sets what a slot that is no holder of the run yet holds of it. `set` is not empty.
    pub(super) fn add_holding(&mut self, node: u32, slot: Slot, set: Vec<Stretch>, view: View<'_>) {
        let cell = self.cell(node, view);
        let record = self.take_record(node, slot);
        let state = &mut self.slots[usize::from(slot)];
        list::push_newest(&mut self.records, &mut state.records, record);
        self.count(slot, 0, stretch::count(&set));
        let position = self.add_holder(cell, slot, 0, record, view);
        self.store_holding(cell, position, Holder { slot, lead: 0, record }, set, view);
    }

    /// Writes a changed, non-empty set of stretches: the leading one where readers see it, the others for the writer.
    fn store_holding(
        &mut self,
        cell: &Cell,
        position: usize,
        holder: Holder,
        mut set: Vec<Stretch>,
        view: View<'_>,
    ) {
        let leads = set.first().is_some_and(|first| first.0 == 0);
        let lead = if leads { set.remove(0).1 } else { 0 };
        self.store_behind(holder.record, set);
        if let Some(place) = cell.position(position, view.guard) {
            place.store(Holder { lead: lead as u16, ..holder }.pack(), Ordering::Release);
        }
    }

    fn store_behind(&mut self, record: u32, set: Vec<Stretch>) {
        let known = &mut self.records[record as usize];
        if known.position & BEHIND != 0
            && let Some(old) = self.behind.remove(&record)
        {
            self.usage.behind -= behind_bytes(&old);
        }
        if set.is_empty() {
            known.position &= !BEHIND;
        } else {
            known.position |= BEHIND;
            self.usage.behind += behind_bytes(&set);
            self.behind.insert(record, set);
        }
    }

    /// Ends what `slot` holds of a stretch of a run. Returns how many blocks that was.
    pub(super) fn remove_stretch(
        &mut self,
        node: u32,
        slot: Slot,
        from: u32,
        len: u32,
        view: View<'_>,
    ) -> u32 {
        let cell = self.cell(node, view);
        let Some((position, holder)) = self.holder(cell, slot, view) else { return 0 };
        let mut set = self.stretches(holder);
        let before = stretch::count(&set);
        stretch::remove(&mut set, from, len);
        let after = stretch::count(&set);
        if after == before {
            return 0;
        }
        if after == 0 {
            if let Some(place) = cell.position(position, view.guard) {
                place.store(Holder::NONE, Ordering::Release);
            }
            if position + 1 == cell.used() as usize {
                cell.set_used(position as u32);
            }
            self.free_record(holder.record, before);
        } else {
            self.count(slot, before, after);
            self.store_holding(cell, position, holder, set, view);
        }
        self.tidy(node, view);
        before - after
    }

    /// Ends all that a slot holds, oldest first.
    pub(super) fn clear_pinned(&mut self, slot: Slot, view: View<'_>) {
        while let Some(state) = self.slots.get(usize::from(slot)) {
            let oldest = state.records.oldest;
            if oldest == NIL {
                return;
            }
            self.remove_stretch(self.records[oldest as usize].node, slot, 0, u32::MAX, view);
        }
    }

    /// Gives a slot a position among the holders of a cell.
    fn add_holder(&mut self, cell: &Cell, slot: Slot, lead: u32, record: u32, view: View<'_>) -> usize {
        let (near, far) = cell.holders(view.guard);
        let free = near.iter().chain(far).position(|word| word.load(Ordering::Relaxed) == Holder::NONE);
        let position = free.unwrap_or(cell.used() as usize);
        self.put_holder(cell, position, Holder { slot, lead: lead as u16, record }, view);
        position
    }

    /// Gives a slot the next position of a cell that has no empty ones.
    fn append_holder(&mut self, cell: &Cell, holder: Holder, view: View<'_>) -> usize {
        let position = cell.used() as usize;
        self.put_holder(cell, position, holder, view);
        position
    }

    fn put_holder(&mut self, cell: &Cell, position: usize, holder: Holder, view: View<'_>) {
        if position >= self.positions(cell, view) {
            let spill = cell.spill().get(view.guard);
            let words = Words::new(
                (spill.len() * 2).max(INLINE),
                Holder::NONE,
                spill.iter().map(|word| word.load(Ordering::Relaxed)),
            );
            if !spill.is_empty() {
                self.usage.spill -= Words::bytes_for(spill.len());
            }
            self.usage.spill += words.bytes();
            cell.spill().replace(Some(words), &mut self.grave);
        }
        if let Some(place) = cell.position(position, view.guard) {
            place.store(holder.pack(), Ordering::Release);
        }
        if position == cell.used() as usize {
            cell.set_used(position as u32 + 1);
        }
        let known = &mut self.records[holder.record as usize].position;
        *known = (*known & BEHIND) | position as u16;
    }

    /// Distributes the holders of a cell that is being split among the cells of `front` and `rest`, which readers do
    /// not see yet. Records stay with `rest` where it is held.
    pub(super) fn divide_holders(&mut self, old: u32, front: u32, rest: u32, at: u32, view: View<'_>) {
        let (front_cell, rest_cell) = (self.cell(front, view), self.cell(rest, view));
        let (near, far) = view.cell(old).holders(view.guard);
        for word in near.iter().chain(far) {
            let Some(holder) = Holder::unpack(word.load(Ordering::Relaxed)) else { continue };
            let (above, below) = stretch::split(&self.stretches(holder), at);
            self.store_behind(holder.record, Vec::new());
            let front_record = if below.is_empty() {
                self.records[holder.record as usize].node = front;
                holder.record
            } else {
                let position = self.append_holder(rest_cell, Holder { lead: 0, ..holder }, view);
                self.store_holding(rest_cell, position, holder, below, view);
                if above.is_empty() {
                    continue;
                }
                let record = self.take_record(front, holder.slot);
                self.records[record as usize].used = self.records[holder.record as usize].used;
                let ends = &mut self.slots[usize::from(holder.slot)].records;
                list::insert_newer_than(&mut self.records, ends, holder.record, record);
                record
            };
            let moved = Holder { slot: holder.slot, lead: 0, record: front_record };
            let position = self.append_holder(front_cell, moved, view);
            self.store_holding(front_cell, position, moved, above, view);
        }
    }

    /// Copies the holders of a cell to the node's new one.
    pub(super) fn move_holders(&mut self, old: u32, node: u32, view: View<'_>) {
        let cell = self.cell(node, view);
        let (near, far) = view.cell(old).holders(view.guard);
        for word in near.iter().chain(far) {
            if let Some(holder) = Holder::unpack(word.load(Ordering::Relaxed)) {
                self.append_holder(cell, holder, view);
            }
        }
    }

    /// Forgets the holders of a cell that was unlinked. The cell keeps its content for readers that still look.
    pub(super) fn release_holders(&mut self, number: u32, view: View<'_>) {
        let (near, far) = view.cell(number).holders(view.guard);
        for word in near.iter().chain(far) {
            if let Some(holder) = Holder::unpack(word.load(Ordering::Relaxed)) {
                let held = stretch::count(&self.stretches(holder));
                self.free_record(holder.record, held);
            }
        }
    }

    /// Notes the use of the path of which `mark` went the end: the deepest run first, so that a run is never older
    /// than one below.
    pub(super) fn touch(&mut self, slot: Slot, now_us: u64) {
        self.now = self.now.max(self.tick(now_us));
        let climb = std::mem::take(&mut self.climb);
        let mut node = climb.first().map_or(ROOT, |(deepest, _)| *deepest);
        while node != ROOT {
            list::renew(&mut self.nodes, &mut self.runs_by_use, node);
            self.nodes[node as usize].used = self.now;
            node = self.nodes[node as usize].parent;
        }
        for &(_, record) in &climb {
            list::renew(&mut self.records, &mut self.slots[usize::from(slot)].records, record);
            self.records[record as usize].used = self.now;
        }
        self.climb = climb;
    }

    fn take_record(&mut self, node: u32, slot: Slot) -> u32 {
        let record = Record { node, newer: NIL, older: NIL, used: self.now, slot, position: 0 };
        match self.free_records.pop() {
            Some(free) => {
                self.records[free as usize] = record;
                free
            }
            None => {
                budget::push_leanly(&mut self.records, record);
                (self.records.len() - 1) as u32
            }
        }
    }

    /// Takes a record, with `held` blocks, from its slot.
    fn free_record(&mut self, record: u32, held: u32) {
        self.store_behind(record, Vec::new());
        let slot = self.records[record as usize].slot;
        list::remove(&mut self.records, &mut self.slots[usize::from(slot)].records, record);
        self.free_records.push(record);
        self.count(slot, held, 0);
    }

    /// A slot's holding of a run went from `before` to `after` blocks.
    fn count(&mut self, slot: Slot, before: u32, after: u32) {
        let state = &mut self.slots[usize::from(slot)];
        let held = state.held + u64::from(after) - u64::from(before);
        match (state.held, held) {
            (0, 1..) => self.targets += 1,
            (1.., 0) => self.targets -= 1,
            _ => {}
        }
        state.held = held;
        self.held = self.held + u64::from(after) - u64::from(before);
    }
}
