//! Who holds what: holders of cells in both forms, records, per-slot lists.

use fairlead_wire::Slot;

use crate::cells::{CHUNK_BYTES, Cell, Holder, INLINE};
use crate::hits::ones;
use crate::stretch::{self, Stretch};
use crate::sync::Ordering;
use crate::words::Words;

use super::tree::View;
use super::{At, NIL, ROOT, Record, Writer, budget, list};

/// A run with more holders than this takes the wide form.
const NARROW_MOST: usize = if cfg!(test) { 3 } else { 16 };
/// A wide run that is written anew with no more holders than this takes the narrow form.
const WIDE_LEAST: usize = if cfg!(test) { 2 } else { 8 };
/// Least room for further exceptions in a wide run that is written anew.
const SPARE: usize = if cfg!(test) { 1 } else { 8 };

/// Memory of one entry of the map of stretches behind holes, map overhead included.
fn behind_bytes(set: &[Stretch]) -> usize {
    std::mem::size_of_val(set) + 2 * size_of::<(u64, Vec<Stretch>)>()
}

/// Key of that map.
fn behind_key(node: u32, slot: Slot) -> u64 {
    u64::from(node) << 16 | u64::from(slot)
}

/// Where a slot stands among the holders of a cell.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// A position of the narrow form.
    At(usize),
    /// An exception of the wide form.
    Exception(usize),
    /// In the set of the wide form, without an exception.
    Set,
}

/// All that one slot holds of a run.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) slot: Slot,
    pub(super) lead: u32,
    /// What is held behind a hole.
    pub(super) behind: Vec<Stretch>,
    /// The record, in the narrow form.
    pub(super) record: u32,
}

impl Share {
    /// The share that consists of these stretches.
    pub(super) fn new(slot: Slot, mut set: Vec<Stretch>, record: u32) -> Self {
        let leads = set.first().is_some_and(|first| first.0 == 0);
        let lead = if leads { set.remove(0).1 } else { 0 };
        Self { slot, lead, behind: set, record }
    }

    pub(super) fn stretches(&self) -> Vec<Stretch> {
        let lead = (self.lead > 0).then_some((0, self.lead));
        lead.into_iter().chain(self.behind.iter().copied()).collect()
    }

    pub(super) fn count(&self) -> u32 {
        self.lead + stretch::count(&self.behind)
    }

    pub(super) fn extent(&self) -> u32 {
        stretch::extent(&self.behind).max(self.lead)
    }
}

impl Writer {
    /// Place and word of a slot among the holders of a cell.
    #[inline]
    pub(super) fn holder(&self, cell: &Cell, slot: Slot, view: View<'_>) -> Option<(Place, Holder)> {
        let matches = |word: &crate::sync::AtomicU64| {
            Holder::unpack(word.load(Ordering::Relaxed)).filter(|holder| holder.slot == slot)
        };
        let Some(wide) = cell.wide(view.guard) else {
            let (near, far) = cell.holders(view.guard);
            for (at, word) in near.iter().enumerate() {
                if let Some(holder) = matches(word) {
                    return Some((Place::At(at), holder));
                }
            }
            let mut far = far.iter().enumerate();
            return far.find_map(|(at, word)| Some((Place::At(INLINE + at), matches(word)?)));
        };
        let bits = wide.set.get(usize::from(slot) / 64)?.load(Ordering::Relaxed);
        if bits >> (slot % 64) & 1 == 0 {
            return None;
        }
        let mut exceptions = wide.exceptions().iter().enumerate();
        let exception = exceptions.find_map(|(at, word)| Some((Place::Exception(at), matches(word)?)));
        Some(
            exception
                .unwrap_or((Place::Set, Holder { slot, lead: wide.full as u16, behind: false, record: NIL })),
        )
    }

    #[inline]
    fn behind(&self, node: u32, holder: Holder) -> &[Stretch] {
        let known = holder.behind.then(|| self.behind.get(&behind_key(node, holder.slot))).flatten();
        known.map_or(&[], |set| set)
    }

    #[inline]
    fn share(&self, node: u32, holder: Holder) -> Share {
        let behind = self.behind(node, holder).to_vec();
        Share { slot: holder.slot, lead: u32::from(holder.lead), behind, record: holder.record }
    }

    /// What `slot` holds of a run.
    pub(super) fn share_of(&self, node: u32, slot: Slot, view: View<'_>) -> Option<Share> {
        let (_, holder) = self.holder(self.cell(node, view), slot, view)?;
        (holder.lead > 0 || holder.behind).then(|| self.share(node, holder))
    }

    /// What everybody holds of a run, as the cell tells it.
    pub(super) fn shares(&self, node: u32, cell: &Cell, view: View<'_>) -> Vec<Share> {
        let Some(wide) = cell.wide(view.guard) else {
            let (near, far) = cell.holders(view.guard);
            let words =
                near.iter().chain(far).filter_map(|word| Holder::unpack(word.load(Ordering::Relaxed)));
            return words.map(|holder| self.share(node, holder)).collect();
        };
        let mut set = crate::hits::load_set(wide.set);
        let mut shares = Vec::new();
        for word in wide.exceptions() {
            let Some(holder) = Holder::unpack(word.load(Ordering::Relaxed)) else { continue };
            set[usize::from(holder.slot) / 64] &= !(1 << (holder.slot % 64));
            if holder.lead > 0 || holder.behind {
                shares.push(self.share(node, holder));
            }
        }
        for (word, bits) in set.into_iter().enumerate() {
            let slots = ones(bits).map(|bit| word as Slot * 64 + bit);
            shares.extend(slots.map(|slot| Share { slot, lead: wide.full, behind: Vec::new(), record: NIL }));
        }
        shares
    }

    /// One past the last block of a run that anybody holds.
    pub(super) fn extent(&self, node: u32, view: View<'_>) -> u32 {
        let cell = self.cell(node, view);
        let extent = |holder: Holder| stretch::extent(self.behind(node, holder)).max(u32::from(holder.lead));
        let Some(wide) = cell.wide(view.guard) else {
            let (near, far) = cell.holders(view.guard);
            let words =
                near.iter().chain(far).filter_map(|word| Holder::unpack(word.load(Ordering::Relaxed)));
            return words.map(extent).max().unwrap_or(0);
        };
        let mut set = crate::hits::load_set(wide.set);
        let mut furthest = 0;
        for word in wide.exceptions() {
            let Some(holder) = Holder::unpack(word.load(Ordering::Relaxed)) else { continue };
            set[usize::from(holder.slot) / 64] &= !(1 << (holder.slot % 64));
            furthest = furthest.max(extent(holder));
        }
        if set.iter().any(|bits| *bits != 0) { furthest.max(wide.full) } else { furthest }
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

    /// Marks that `slot` holds blocks `from..upto` of a run. Returns whether that is new, and the record (none in the
    /// wide form).
    fn cover(&mut self, node: u32, slot: Slot, from: u32, upto: u32, view: View<'_>) -> (bool, u32) {
        let cell = self.cell(node, view);
        let known = self.holder(cell, slot, view);
        let (lead, behind, record) = known
            .map_or((0, false, NIL), |(_, holder)| (u32::from(holder.lead), holder.behind, holder.record));
        if lead >= upto {
            return (false, record);
        }
        if from <= lead && !behind {
            self.count(slot, lead, upto);
            if let Some((Place::At(position), holder)) = known
                && let Some(place) = cell.position(position, view.guard)
            {
                place.store(Holder { lead: upto as u16, ..holder }.pack(), Ordering::Release);
                return (true, record);
            }
            return (true, self.put(node, slot, upto, false, view));
        }
        let mut set = known.map(|(_, holder)| self.share(node, holder).stretches()).unwrap_or_default();
        let before = stretch::count(&set);
        stretch::add(&mut set, from, upto - from);
        let after = stretch::count(&set);
        if after == before {
            return (false, record);
        }
        self.count(slot, before, after);
        (true, self.put_share(node, Share::new(slot, set, record), view))
    }

    /// Enters what a slot that held nothing of a run holds of it now.
    pub(super) fn add_share(&mut self, node: u32, slot: Slot, set: Vec<Stretch>, view: View<'_>) {
        self.count(slot, 0, stretch::count(&set));
        self.put_share(node, Share::new(slot, set, NIL), view);
    }

    /// Writes what a slot holds of a run, nothing perhaps. Returns the record (none in the wide form).
    fn put_share(&mut self, node: u32, share: Share, view: View<'_>) -> u32 {
        // The set last: when the cell is written anew meanwhile, set and cell must agree.
        let record = self.put(node, share.slot, share.lead, !share.behind.is_empty(), view);
        self.store_behind(node, share.slot, share.behind);
        record
    }

    /// Writes a slot's lead, and that it holds something behind a hole, in either form. The cell may be replaced.
    fn put(&mut self, node: u32, slot: Slot, lead: u32, behind: bool, view: View<'_>) -> u32 {
        let cell = self.cell(node, view);
        let known = self.holder(cell, slot, view);
        let holds = lead > 0 || behind;
        let word = |record| Holder { slot, lead: lead as u16, behind, record }.pack();
        let Some(wide) = cell.wide(view.guard) else {
            if let Some((Place::At(position), holder)) = known {
                let Some(place) = cell.position(position, view.guard) else { return NIL };
                if !holds {
                    place.store(Holder::NONE, Ordering::Release);
                    if position + 1 == cell.used() as usize {
                        cell.set_used(position as u32);
                    }
                    self.free_record(holder.record);
                    return NIL;
                }
                place.store(word(holder.record), Ordering::Release);
                return holder.record;
            }
            if !holds {
                return NIL;
            }
            let (near, far) = cell.holders(view.guard);
            let free = near.iter().chain(far).position(|word| word.load(Ordering::Relaxed) == Holder::NONE);
            let position = free.unwrap_or(cell.used() as usize);
            if position >= NARROW_MOST && self.rewrite(node, view) {
                return self.put(node, slot, lead, behind, view);
            }
            let record = self.take_record(node, slot);
            list::push_newest(&mut self.records, &mut self.slots[usize::from(slot)].records, record);
            self.put_word(cell, position, word(record), view);
            return record;
        };
        let regular = lead == wide.full && !behind;
        match known {
            Some((Place::Set, _)) if regular => return NIL,
            Some((Place::Exception(at), _)) => {
                wide.exceptions()[at].store(word(NIL), Ordering::Release);
                self.list_wide(cell, slot, holds);
                return NIL;
            }
            None if !holds => return NIL,
            None if regular => {}
            _ => {
                let used = cell.used() as usize;
                if used == wide.room() {
                    if self.rewrite(node, view) {
                        return self.put(node, slot, lead, behind, view);
                    }
                    self.grow_spill(cell, wide.set.len() + 2 * used, view);
                }
                if let Some(place) = cell.spill().get(view.guard).get(wide.set.len() + used) {
                    place.store(word(NIL), Ordering::Release);
                    cell.set_used(used as u32 + 1);
                }
            }
        }
        // The set last: readers look at it first.
        if let Some(bits) = cell.spill().get(view.guard).get(usize::from(slot) / 64) {
            bits.store(bits.load(Ordering::Relaxed) | 1 << (slot % 64), Ordering::Release);
        }
        self.list_wide(cell, slot, holds);
        NIL
    }

    /// Writes a word into a position of the narrow form, the next one perhaps.
    fn put_word(&mut self, cell: &Cell, position: usize, word: u64, view: View<'_>) {
        if position >= self.positions(cell, view) {
            let spill = cell.spill().get(view.guard).len();
            self.grow_spill(cell, (spill * 2).max(INLINE), view);
        }
        if let Some(place) = cell.position(position, view.guard) {
            place.store(word, Ordering::Release);
        }
        if position == cell.used() as usize {
            cell.set_used(position as u32 + 1);
        }
    }

    /// Replaces the spill array by a longer one.
    fn grow_spill(&mut self, cell: &Cell, len: usize, view: View<'_>) {
        let spill = cell.spill().get(view.guard);
        let words = Words::new(len, Holder::NONE, spill.iter().map(|word| word.load(Ordering::Relaxed)));
        if !spill.is_empty() {
            self.usage.spill -= Words::bytes_for(spill.len());
        }
        self.usage.spill += words.bytes();
        cell.spill().replace(Some(words), &mut self.grave);
    }

    /// Notes for the slot whether it holds something of a wide run.
    fn list_wide(&mut self, cell: &Cell, slot: Slot, holds: bool) {
        let Some(number) = cell.wide_number() else { return };
        let list = &mut self.slots[usize::from(slot)].wide;
        let word = number as usize / 64;
        if word >= list.len() {
            if !holds {
                return;
            }
            let before = list.capacity();
            list.reserve_exact(word + 1 + word / 8 - list.len());
            list.resize(word + 1, 0);
            self.usage.wide += (list.capacity() - before) * size_of::<u64>();
        }
        let bit = 1 << (number % 64);
        list[word] = if holds { list[word] | bit } else { list[word] & !bit };
    }

    fn store_behind(&mut self, node: u32, slot: Slot, set: Vec<Stretch>) {
        let key = behind_key(node, slot);
        let new = if set.is_empty() { 0 } else { behind_bytes(&set) };
        let old = if set.is_empty() { self.behind.remove(&key) } else { self.behind.insert(key, set) };
        self.usage.behind = self.usage.behind + new - old.map_or(0, |set| behind_bytes(&set));
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
        let removed = self.uncover(node, slot, from, len, view);
        if removed > 0 {
            self.tidy(node, view);
        }
        removed
    }

    /// The same, leaving the shape of the tree.
    fn uncover(&mut self, node: u32, slot: Slot, from: u32, len: u32, view: View<'_>) -> u32 {
        let cell = self.cell(node, view);
        let Some((_, holder)) = self.holder(cell, slot, view) else { return 0 };
        let lead = u32::from(holder.lead);
        if !holder.behind && from > 0 && from.saturating_add(len) >= lead {
            // From the end, as engines do: no sets.
            if from >= lead || len == 0 {
                return 0;
            }
            self.count(slot, lead, from);
            self.put(node, slot, from, false, view);
            return lead - from;
        }
        let mut set = self.share(node, holder).stretches();
        let before = stretch::count(&set);
        stretch::remove(&mut set, from, len);
        let after = stretch::count(&set);
        if after != before {
            self.count(slot, before, after);
            self.put_share(node, Share::new(slot, set, holder.record), view);
        }
        before - after
    }

    /// Ends all that a slot holds.
    pub(super) fn clear_pinned(&mut self, slot: Slot, view: View<'_>) {
        let runs = self.runs_of(slot);
        for &node in &runs {
            self.uncover(node, slot, 0, u32::MAX, view);
        }
        self.tidy_all(&runs, view);
    }

    /// The run of which a slot holds something that it used least recently. Of wide runs the uses of each holder are
    /// not known; they come last.
    pub(super) fn oldest_of(&self, slot: Slot) -> Option<u32> {
        let state = self.slots.get(usize::from(slot))?;
        if state.records.oldest != NIL {
            return Some(self.records[state.records.oldest as usize].node);
        }
        if state.held == 0 {
            return None;
        }
        let word = state.wide.iter().position(|bits| *bits != 0)?;
        Some(self.wide[word * 64 + state.wide[word].trailing_zeros() as usize])
    }

    /// The runs of which a slot holds something, in no particular order.
    pub(super) fn runs_of(&self, slot: Slot) -> Vec<u32> {
        let Some(state) = self.slots.get(usize::from(slot)) else { return Vec::new() };
        let mut runs = Vec::new();
        let mut record = state.records.oldest;
        while record != NIL {
            runs.push(self.records[record as usize].node);
            record = self.records[record as usize].newer;
        }
        for (word, bits) in state.wide.iter().enumerate() {
            runs.extend(ones(*bits).map(|bit| self.wide[word * 64 + usize::from(bit)]));
        }
        runs
    }

    /// Replaces the cell of a node by one with the same blocks, whose form fits its holders. `false` when there is no
    /// room for that.
    fn rewrite(&mut self, node: u32, view: View<'_>) -> bool {
        let old = self.cell(node, view);
        let words = old.len() as usize + 2 * old.spill().get(view.guard).len() + self.slots.len() / 64 + 64;
        let need = words * size_of::<u64>() + CHUNK_BYTES;
        let fits = self.footprint() - self.grave.bytes() + need <= self.config.max_bytes;
        if fits {
            self.replace_cell(node, old.len(), view);
        }
        fits
    }

    /// Takes the shares of a cell that is being replaced off the cell. The slots' counts stay.
    pub(super) fn take_shares(&mut self, node: u32, cell: &Cell, view: View<'_>) -> Vec<Share> {
        let shares = self.shares(node, cell, view);
        for share in shares.iter().filter(|share| !share.behind.is_empty()) {
            self.store_behind(node, share.slot, Vec::new());
        }
        if let Some(number) = cell.wide_number() {
            for share in &shares {
                self.list_wide(cell, share.slot, false);
            }
            self.wide[number as usize] = NIL;
            self.free_wide.push(number);
        }
        shares
    }

    /// Gives a cell that readers do not see yet its holders. Records are used again where the form has them, and freed
    /// where not.
    pub(super) fn install(&mut self, node: u32, cell: &Cell, shares: Vec<Share>, view: View<'_>) {
        let was_wide = shares.iter().any(|share| share.record == NIL);
        let most = if was_wide { WIDE_LEAST } else { NARROW_MOST - 1 };
        cell.set_narrow();
        let narrow = shares.len() <= most;
        if !narrow {
            let full = usual_lead(&shares).unwrap_or(cell.len());
            let number = self.free_wide.pop().unwrap_or_else(|| {
                budget::push_leanly(&mut self.wide, NIL);
                self.wide.len() as u32 - 1
            });
            self.wide[number as usize] = node;
            let set = self.config.max_targets.div_ceil(64);
            let exceptions = shares.iter().filter(|share| share.lead != full || !share.behind.is_empty());
            let room = exceptions.count() * 3 / 2 + (shares.len() / 16).max(SPARE);
            let zeros = std::iter::repeat_n(0, set);
            let words = Words::new(set + room, Holder::NONE, zeros);
            self.usage.spill += words.bytes();
            cell.spill().replace(Some(words), &mut self.grave);
            cell.set_wide(full, set, number);
            for share in &shares {
                if share.record != NIL {
                    self.free_record(share.record);
                }
            }
        }
        for Share { slot, lead, behind, record } in shares {
            let more = !behind.is_empty();
            self.store_behind(node, slot, behind);
            if !narrow {
                self.put(node, slot, lead, more, view);
                continue;
            }
            let record = if record == NIL {
                let record = self.take_record(node, slot);
                list::push_newest(&mut self.records, &mut self.slots[usize::from(slot)].records, record);
                record
            } else {
                self.records[record as usize].node = node;
                record
            };
            let word = Holder { slot, lead: lead as u16, behind: more, record }.pack();
            self.put_word(cell, cell.used() as usize, word, view);
        }
    }

    /// Takes the holders of a run off the books. The cell keeps its content for readers that still look.
    pub(super) fn release_shares(&mut self, node: u32, cell: &Cell, view: View<'_>) {
        for share in self.take_shares(node, cell, view) {
            if share.record != NIL {
                self.free_record(share.record);
            }
            self.count(share.slot, share.count(), 0);
        }
    }

    /// Another record for a part of what a record stood for, at its place in the order of use.
    pub(super) fn divide_record(&mut self, record: u32, node: u32) -> u32 {
        if record == NIL {
            return NIL;
        }
        let Record { slot, used, .. } = self.records[record as usize];
        let new = self.take_record(node, slot);
        self.records[new as usize].used = used;
        let ends = &mut self.slots[usize::from(slot)].records;
        list::insert_newer_than(&mut self.records, ends, record, new);
        new
    }

    /// Notes the use of the path of which `mark` went the end. Within one tick a run is moved but once, so the order is
    /// that of the ticks; a run is never older than one below it.
    pub(super) fn touch(&mut self, slot: Slot, now_us: u64) {
        self.now = self.now.max(self.tick(now_us));
        let climb = std::mem::take(&mut self.climb);
        let mut node = climb.first().map_or(ROOT, |(deepest, _)| *deepest);
        while node != ROOT && self.nodes[node as usize].used != self.now {
            list::renew(&mut self.nodes, &mut self.runs_by_use, node);
            self.nodes[node as usize].used = self.now;
            node = self.nodes[node as usize].parent;
        }
        for &(_, record) in &climb {
            if record != NIL && self.records[record as usize].used != self.now {
                list::renew(&mut self.records, &mut self.slots[usize::from(slot)].records, record);
                self.records[record as usize].used = self.now;
            }
        }
        self.climb = climb;
    }

    fn take_record(&mut self, node: u32, slot: Slot) -> u32 {
        let record = Record { node, newer: NIL, older: NIL, used: self.now, slot };
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

    /// Takes a record from its slot.
    pub(super) fn free_record(&mut self, record: u32) {
        let slot = self.records[record as usize].slot;
        list::remove(&mut self.records, &mut self.slots[usize::from(slot)].records, record);
        self.free_records.push(record);
    }

    /// A slot's holding of a run went from `before` to `after` blocks.
    #[inline]
    pub(super) fn count(&mut self, slot: Slot, before: u32, after: u32) {
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

/// The lead that most holders have, who hold nothing behind a hole.
fn usual_lead(shares: &[Share]) -> Option<u32> {
    let mut leads: Vec<u32> = shares
        .iter()
        .filter(|share| share.lead > 0 && share.behind.is_empty())
        .map(|share| share.lead)
        .collect();
    leads.sort_unstable();
    leads.chunk_by(|a, b| a == b).max_by_key(|same| same.len()).map(|same| same[0])
}
