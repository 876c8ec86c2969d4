//! The shape of the tree: walking, growing, splitting, cutting, unlinking.

use ahash::AHashSet;

use crate::MAX_RUN;
use crate::cells::{CHUNK, Cell, INLINE};
use crate::reader::{Shared, matched};
use crate::stretch;
use crate::sync::{AtomicU64, Guard, Ordering};
use crate::table;
use crate::words::Words;

use super::budget::Need;
use super::holders::Share;
use super::{ApplyError, At, NIL, Node, ROOT, Writer, list};

/// The shared part under the writer's own pin.
#[derive(Clone, Copy)]
pub(crate) struct View<'v> {
    pub(crate) shared: &'v Shared,
    pub(crate) guard: &'v Guard,
}

impl<'v> View<'v> {
    #[inline]
    pub(super) fn cell(self, number: u32) -> &'v Cell {
        let cell = self.shared.cells.get(number);
        cell.unwrap_or_else(|| unreachable!("cell {number} of a live run is in the arena"))
    }
}

/// Copies `blocks` into an array with `room` words.
fn copy(blocks: &[AtomicU64], room: usize) -> Words {
    Words::new(room.max(blocks.len()), 0, blocks.iter().map(|block| block.load(Ordering::Relaxed)))
}

impl Writer {
    /// The cell of a node other than the root.
    #[inline]
    pub(super) fn cell<'v>(&self, node: u32, view: View<'v>) -> &'v Cell {
        view.cell(self.nodes[node as usize].cell)
    }

    /// The node whose run starts with `head`.
    #[inline]
    pub(super) fn find(&self, head: u64, view: View<'_>) -> Option<u32> {
        view.shared.find(head, view.guard).map(|(_, cell)| cell.node())
    }

    /// Blocks of the node's run; the root has none.
    #[inline]
    pub(super) fn len(&self, node: u32, view: View<'_>) -> u32 {
        if node == ROOT { 0 } else { self.cell(node, view).len() }
    }

    /// Name of the node's run; 0 for the root.
    #[inline]
    pub(super) fn head(&self, node: u32, view: View<'_>) -> u64 {
        if node == ROOT { 0 } else { self.cell(node, view).head() }
    }

    /// Follows `path` from a place as far as the tree goes. Returns where it ends and how many blocks it took.
    pub(super) fn walk(&self, from: At, path: &[u64], view: View<'_>) -> (At, usize) {
        let (mut at, mut taken) = (from, 0);
        loop {
            if at.node != ROOT {
                let run = self.cell(at.node, view).run(view.guard);
                let common = matched(&run[at.off as usize..], &path[taken..]);
                taken += common;
                at.off += common as u32;
                if (at.off as usize) < run.len() {
                    return (at, taken);
                }
            }
            if self.nodes[at.node as usize].first_child == NIL {
                return (at, taken);
            }
            let next = path.get(taken).and_then(|block| self.find(*block, view));
            match next {
                Some(child) if self.nodes[child as usize].parent == at.node => {
                    at = At { node: child, off: 0 }
                }
                _ => return (at, taken),
            }
        }
    }

    /// Enters `rest` behind a place at which no run goes on with it. Nothing is changed unless all of it can be.
    pub(super) fn grow(&mut self, at: At, rest: &[u64], view: View<'_>) -> Result<At, ApplyError> {
        let len = self.len(at.node, view);
        let childless = at.node != ROOT && self.nodes[at.node as usize].first_child == NIL;
        let inside = at.off < len && !rest.is_empty();
        let cuts = inside && childless && self.extent(at.node, view) <= at.off;
        let splits = inside && !cuts;
        let room = if childless && !splits { MAX_RUN - at.off as usize } else { 0 };
        let (tail, further) = rest.split_at(rest.len().min(room));

        let runs = further.len().div_ceil(MAX_RUN);
        let names = further.chunks(MAX_RUN).filter_map(|chunk| chunk.first().copied());
        let split_name =
            splits.then(|| self.cell(at.node, view).run(view.guard)[at.off as usize].load(Ordering::Relaxed));
        self.check_names(names.chain(split_name), view)?;
        let copied = if splits || cuts || !tail.is_empty() { len as usize } else { 0 };
        let holders = if splits || cuts {
            let cell = self.cell(at.node, view);
            (cell.used() as usize).max(cell.spill().get(view.guard).len())
        } else {
            0
        };
        let need = Need {
            // Spill arrays grow by doubling, so that up to twice the holders of both halves are reserved.
            words: copied + rest.len() + 4 * holders,
            runs: runs + 2 * usize::from(splits) + usize::from(cuts),
            records: if splits { holders } else { 0 },
            anchors: self.anchors_in(rest),
        };
        self.check_room(need, at.node, view)?;

        let mut end = at;
        if splits {
            end.node = self.split(at.node, at.off, view);
        } else if cuts {
            self.cut(at.node, at.off, view);
        }
        if !tail.is_empty() {
            self.extend(end.node, tail, view);
            end.off += tail.len() as u32;
        }
        for chunk in further.chunks(MAX_RUN) {
            end = At { node: self.add_run(end.node, chunk, view), off: chunk.len() as u32 };
        }
        Ok(end)
    }

    /// Names of new runs must be new and differ.
    fn check_names(&self, mut names: impl Iterator<Item = u64>, view: View<'_>) -> Result<(), ApplyError> {
        let Some(first) = names.next() else { return Ok(()) };
        if self.find(first, view).is_some() {
            return Err(ApplyError::Conflict { block: first });
        }
        // Rarely more than one: only behind a split, or in a path longer than a run.
        let mut seen = AHashSet::new();
        for block in names {
            if block == first || !seen.insert(block) || self.find(block, view).is_some() {
                return Err(ApplyError::Conflict { block });
            }
        }
        Ok(())
    }

    /// Adds a run without holders behind the end of `parent`. Room and name were checked.
    pub(super) fn add_run(&mut self, parent: u32, blocks: &[u64], view: View<'_>) -> u32 {
        let words = Words::new(blocks.len(), 0, blocks.iter().copied());
        let number = self.take_cell(view);
        let node = self.take_node(number, parent);
        self.fill_cell(number, node, words, blocks.len() as u32, view);
        let siblings = self.nodes[parent as usize].first_child;
        self.nodes[node as usize].next_sibling = siblings;
        if siblings != NIL {
            self.nodes[siblings as usize].prev_sibling = node;
        }
        self.nodes[parent as usize].first_child = node;
        list::push_newest(&mut self.nodes, &mut self.runs_by_use, node);
        self.live_runs += 1;
        self.blocks += blocks.len() as u64;
        self.enter_name(blocks[0], number, view);
        self.enter_anchors(node, 0, blocks, view);
        node
    }

    /// Puts blocks behind the end of a run.
    fn extend(&mut self, node: u32, tail: &[u64], view: View<'_>) {
        let cell = self.cell(node, view);
        let run = cell.run(view.guard);
        let room = cell.blocks().get(view.guard);
        let len = run.len() + tail.len();
        if len <= room.len() {
            // Words behind the length were never published: no reader looks at them.
            for (word, block) in room[run.len()..].iter().zip(tail) {
                word.store(*block, Ordering::Relaxed);
            }
        } else {
            // A quarter of spare room makes growing by small steps cost constant time a block.
            let words = copy(run, (run.len() + run.len() / 4).max(len).min(MAX_RUN));
            self.usage.blocks += words.bytes();
            self.usage.blocks -= Words::bytes_for(room.len());
            words.set(run.len(), tail);
            cell.blocks().replace(Some(words), &mut self.grave);
        }
        let from = (len - tail.len()) as u32;
        cell.set_len(len as u32);
        self.blocks += tail.len() as u64;
        self.enter_anchors(node, from, tail, view);
    }

    /// Splits a run after `at` blocks. The node keeps the rest and its children (without children, of the rest only
    /// what is held, which is at least one block); the front gets a new node above it, which is returned.
    fn split(&mut self, node: u32, at: u32, view: View<'_>) -> u32 {
        let old = self.nodes[node as usize].cell;
        let run = view.cell(old).run(view.guard);
        let (front_run, mut rest_run) = run.split_at(at as usize);
        if self.nodes[node as usize].first_child == NIL {
            let held = (self.extent(node, view) - at) as usize;
            self.blocks -= (rest_run.len() - held) as u64;
            self.remove_anchors(node, at + held as u32, &rest_run[held..]);
            rest_run = &rest_run[..held];
        }
        let (front_name, rest_name) =
            (front_run[0].load(Ordering::Relaxed), rest_run[0].load(Ordering::Relaxed));
        let parent = self.nodes[node as usize].parent;
        let (front_cell, rest_cell) = (self.take_cell(view), self.take_cell(view));
        let front = self.take_node(front_cell, parent);
        self.nodes[front as usize].used = self.nodes[node as usize].used;
        self.nodes[node as usize].cell = rest_cell;
        let shares = self.take_shares(node, view.cell(old), view);
        self.fill_cell(front_cell, front, copy(front_run, 0), at, view);
        self.fill_cell(rest_cell, node, copy(rest_run, 0), rest_run.len() as u32, view);
        let (above, below) = self.divide(shares, front, at);
        self.install(front, view.cell(front_cell), above, view);
        self.install(node, view.cell(rest_cell), below, view);

        self.replace_child(node, front);
        self.nodes[front as usize].first_child = node;
        let below = &mut self.nodes[node as usize];
        (below.parent, below.prev_sibling, below.next_sibling) = (front, NIL, NIL);
        list::insert_newer_than(&mut self.nodes, &mut self.runs_by_use, node, front);
        self.live_runs += 1;
        self.move_anchors((node, 0), (front, 0), front_run);
        self.move_anchors((node, at), (node, 0), rest_run);

        // The rest first: a reader that sees the short front must find what follows.
        self.enter_name(rest_name, rest_cell, view);
        self.move_name(front_name, front_cell, view);
        self.bury_cell(old, view);
        front
    }

    /// Shares of a run that is being split after `at` blocks: those of the front and those of the rest. Records stay
    /// with the rest where something of it is held.
    fn divide(&mut self, shares: Vec<Share>, front: u32, at: u32) -> (Vec<Share>, Vec<Share>) {
        let (mut above, mut below) = (Vec::with_capacity(shares.len()), Vec::with_capacity(shares.len()));
        for share in shares {
            let (slot, record) = (share.slot, share.record);
            let (front_set, rest_set) = stretch::split(&share.stretches(), at);
            let front_record = match (front_set.is_empty(), rest_set.is_empty()) {
                (false, false) => self.divide_record(record, front),
                _ => record,
            };
            if !front_set.is_empty() {
                above.push(Share::new(slot, front_set, front_record));
            }
            if !rest_set.is_empty() {
                below.push(Share::new(slot, rest_set, record));
            }
        }
        (above, below)
    }

    /// Cuts a run without children to its first `at` blocks, behind which nobody holds anything.
    ///
    /// A new cell, not a shorter length: a reader that has matched the old blocks must not combine them with holders
    /// of other blocks that come to stand in their place.
    fn cut(&mut self, node: u32, at: u32, view: View<'_>) {
        let run = self.cell(node, view).run(view.guard);
        self.blocks -= (run.len() - at as usize) as u64;
        self.remove_anchors(node, at, &run[at as usize..]);
        self.replace_cell(node, at, view);
    }

    /// Gives a node a new cell with its first `at` blocks, behind which nobody holds anything.
    pub(super) fn replace_cell(&mut self, node: u32, at: u32, view: View<'_>) {
        let number = self.take_cell(view);
        let old = std::mem::replace(&mut self.nodes[node as usize].cell, number);
        let cell = view.cell(old);
        let shares = self.take_shares(node, cell, view);
        self.fill_cell(number, node, copy(&cell.run(view.guard)[..at as usize], 0), at, view);
        self.install(node, view.cell(number), shares, view);
        self.move_name(cell.head(), number, view);
        self.bury_cell(old, view);
    }

    /// Merges a run with its parent, whose only child it is. The node is the child's, the name the parent's.
    fn merge(&mut self, node: u32, view: View<'_>) {
        let parent = self.nodes[node as usize].parent;
        let (front_cell, rest_cell) = (self.nodes[parent as usize].cell, self.nodes[node as usize].cell);
        let (front, rest) = (view.cell(front_cell), view.cell(rest_cell));
        let (front_run, rest_run) = (front.run(view.guard), rest.run(view.guard));
        let at = front_run.len() as u32;
        let number = self.take_cell(view);
        let blocks = front_run.iter().chain(rest_run).map(|block| block.load(Ordering::Relaxed));
        let blocks = Words::new(front_run.len() + rest_run.len(), 0, blocks);
        let above = self.take_shares(parent, front, view);
        let below = self.take_shares(node, rest, view);
        let shares = self.unite(above, below, at);
        self.move_anchors((node, 0), (node, at), rest_run);
        self.move_anchors((parent, 0), (node, 0), front_run);

        // The node takes its parent's place among the siblings and in the order of use.
        let used = self.nodes[parent as usize].used.max(self.nodes[node as usize].used);
        list::remove(&mut self.nodes, &mut self.runs_by_use, node);
        list::insert_newer_than(&mut self.nodes, &mut self.runs_by_use, parent, node);
        list::remove(&mut self.nodes, &mut self.runs_by_use, parent);
        self.replace_child(parent, node);
        let above = self.nodes[parent as usize].parent;
        let link = &mut self.nodes[node as usize];
        (link.parent, link.cell, link.used) = (above, number, used);
        self.nodes[parent as usize].cell = NIL;
        self.free_nodes.push(parent);
        self.live_runs -= 1;

        let len = blocks.len() as u32;
        self.fill_cell(number, node, blocks, len, view);
        self.install(node, view.cell(number), shares, view);
        // The whole first, then the marks on what it replaces, then the name of the rest goes: a reader that has passed
        // the old front and misses the rest sees the mark and looks again.
        let (front_name, rest_name) = (front.head(), rest.head());
        self.move_name(front_name, number, view);
        self.bury_cell(front_cell, view);
        self.bury_cell(rest_cell, view);
        self.remove_name(rest_name, rest_cell, view);
    }

    /// Shares of a merged run, from those of its first `at` blocks and those of the rest.
    fn unite(&mut self, above: Vec<Share>, mut below: Vec<Share>, at: u32) -> Vec<Share> {
        below.sort_unstable_by_key(|share| share.slot);
        let mut taken = vec![false; below.len()];
        let mut all = Vec::with_capacity(above.len() + below.len());
        let shifted = |share: &Share| share.stretches().into_iter().map(move |(from, len)| (from + at, len));
        for mut share in above {
            if let Ok(place) = below.binary_search_by_key(&share.slot, |share| share.slot) {
                taken[place] = true;
                let other = &below[place];
                if share.record == NIL {
                    share.record = other.record;
                } else if other.record != NIL {
                    self.free_record(other.record);
                }
                let mut set = share.stretches();
                for (from, len) in shifted(other) {
                    stretch::add(&mut set, from, len);
                }
                share = Share::new(share.slot, set, share.record);
            }
            all.push(share);
        }
        let alone = below.iter().zip(taken).filter(|(_, taken)| !taken);
        all.extend(alone.map(|(share, _)| Share::new(share.slot, shifted(share).collect(), share.record)));
        all
    }

    /// After holders of a run went: gives the tree the shape that it should have now.
    pub(super) fn tidy(&mut self, node: u32, view: View<'_>) {
        if let Some(node) = self.shrink(node, view) {
            self.absorb(node, view);
        }
    }

    /// After holders of several runs went at once. The outcome is the same in whatever order the runs come: what is of no
    /// use goes everywhere before anything is merged, and merges go by name.
    pub(super) fn tidy_all(&mut self, nodes: &[u32], view: View<'_>) {
        let mut names = Vec::new();
        for &node in nodes {
            // Unless it went with an earlier one. Numbers are not used again meanwhile.
            if self.nodes[node as usize].cell != NIL
                && let Some(node) = self.shrink(node, view)
            {
                names.push(self.head(node, view));
            }
        }
        names.sort_unstable();
        for name in names {
            if let Some(node) = self.find(name, view) {
                self.absorb(node, view);
            }
        }
    }

    /// Unlinks the run if it is of no use, then looks at its parent; or cuts it when at least half of it is held by
    /// nobody. Returns the run at which this ended, if that has children.
    fn shrink(&mut self, mut node: u32, view: View<'_>) -> Option<u32> {
        while node != ROOT {
            if self.nodes[node as usize].first_child != NIL {
                return Some(node);
            }
            let extent = self.extent(node, view);
            if extent > 0 {
                if extent <= self.len(node, view) / 2 {
                    self.cut(node, extent, view);
                }
                return None;
            }
            let parent = self.nodes[node as usize].parent;
            self.unlink(node, view);
            node = parent;
        }
        None
    }

    /// Merges a run with its child while that is the only one and the whole is no longer than a run may be.
    fn absorb(&mut self, mut node: u32, view: View<'_>) {
        loop {
            let child = self.nodes[node as usize].first_child;
            if child == NIL
                || self.nodes[child as usize].next_sibling != NIL
                || (self.len(node, view) + self.len(child, view)) as usize > MAX_RUN
            {
                return;
            }
            self.merge(child, view);
            node = child;
        }
    }

    /// Ends a run and all below it, with all holdings.
    pub(super) fn evict(&mut self, node: u32, view: View<'_>) {
        let above = self.nodes[node as usize].parent;
        loop {
            let mut leaf = node;
            while self.nodes[leaf as usize].first_child != NIL {
                leaf = self.nodes[leaf as usize].first_child;
            }
            self.unlink(leaf, view);
            if leaf == node {
                break;
            }
        }
        self.tidy(above, view);
    }

    /// Takes a run without children out, with all holdings.
    pub(super) fn unlink(&mut self, node: u32, view: View<'_>) {
        let number = self.nodes[node as usize].cell;
        let cell = view.cell(number);
        self.remove_name(cell.head(), number, view);
        self.release_shares(node, cell, view);
        self.remove_anchors(node, 0, cell.run(view.guard));
        self.blocks -= u64::from(cell.len());
        self.live_runs -= 1;
        self.bury_cell(number, view);
        list::remove(&mut self.nodes, &mut self.runs_by_use, node);
        self.replace_child(node, NIL);
        self.nodes[node as usize].cell = NIL;
        self.free_nodes.push(node);
    }

    /// Puts `new` (or nothing) in the place of `old` among its siblings.
    fn replace_child(&mut self, old: u32, new: u32) {
        let Node { parent, prev_sibling: prev, next_sibling: next, .. } = self.nodes[old as usize];
        let (to_prev, to_next) = if new == NIL { (next, prev) } else { (new, new) };
        match prev {
            NIL => self.nodes[parent as usize].first_child = to_prev,
            _ => self.nodes[prev as usize].next_sibling = to_prev,
        }
        if next != NIL {
            self.nodes[next as usize].prev_sibling = to_next;
        }
        if new != NIL {
            let link = &mut self.nodes[new as usize];
            (link.prev_sibling, link.next_sibling) = (prev, next);
        }
    }

    fn take_node(&mut self, cell: u32, parent: u32) -> u32 {
        let node = Node {
            cell,
            parent,
            first_child: NIL,
            prev_sibling: NIL,
            next_sibling: NIL,
            newer: NIL,
            older: NIL,
            used: self.nodes[parent as usize].used,
        };
        match self.free_nodes.pop() {
            Some(free) => {
                self.nodes[free as usize] = node;
                free
            }
            None => {
                super::budget::push_leanly(&mut self.nodes, node);
                (self.nodes.len() - 1) as u32
            }
        }
    }

    /// A cell that no reader sees. There is one: what grows has reserved it, and what shrinks takes of the second half
    /// of the directory at worst.
    fn take_cell(&mut self, view: View<'_>) -> u32 {
        if self.free_cells.is_empty() {
            self.add_cells(view.shared);
        }
        self.free_cells.pop().unwrap_or_else(|| unreachable!("cells were reserved before the change"))
    }

    /// Adds a chunk of cells to the arena; `false` when its directory is full.
    pub(super) fn add_cells(&mut self, shared: &Shared) -> bool {
        if !shared.cells.add_chunk(self.chunks) {
            return false;
        }
        let first = (self.chunks * CHUNK) as u32;
        self.chunks += 1;
        // Number 0 means "no cell" in the table.
        self.free_cells.extend((first.max(1)..first + CHUNK as u32).rev());
        true
    }

    fn fill_cell(&mut self, number: u32, node: u32, blocks: Words, len: u32, view: View<'_>) {
        let cell = view.cell(number);
        self.usage.blocks += blocks.bytes();
        cell.set_node(node);
        cell.set_head(blocks.first());
        cell.set_narrow();
        cell.blocks().replace(Some(blocks), &mut self.grave);
        cell.set_len(len);
    }

    fn bury_cell(&mut self, number: u32, view: View<'_>) {
        let cell = view.cell(number);
        cell.set_node(Cell::MOVED);
        let words = |array: &[AtomicU64]| if array.is_empty() { 0 } else { Words::bytes_for(array.len()) };
        let blocks = words(cell.blocks().get(view.guard));
        let spill = words(cell.spill().get(view.guard));
        self.usage.blocks -= blocks;
        self.usage.spill -= spill;
        self.grave.bury_cell(number, blocks + spill);
    }

    /// Makes a cell that came back from the graveyard ready for use.
    pub(super) fn recycle(&mut self, number: u32) {
        if let Some(cell) = self.shared.cells.get(number) {
            cell.blocks().replace(None, &mut self.grave);
            cell.spill().replace(None, &mut self.grave);
            cell.set_len(0);
            cell.set_narrow();
            self.free_cells.push(number);
        }
    }

    /// Enters a new name in the table, which is rebuilt first when it is crowded.
    fn enter_name(&mut self, name: u64, cell: u32, view: View<'_>) {
        let table = view.shared.table.get(view.guard);
        let entered = if table::is_crowded(self.live_runs + self.table_dead.max(0) as usize, table.len()) {
            None
        } else {
            table::insert(table, name, cell)
        };
        match entered {
            Some(reused) => self.table_dead -= isize::from(reused),
            None => self.rebuild_table(Some((name, cell)), view),
        }
    }

    /// Takes the name of a cell out of the table.
    fn remove_name(&mut self, name: u64, cell: u32, view: View<'_>) {
        let table = view.shared.table.get(view.guard);
        if let Some(found) = table::probe(table, name, |number| number == cell) {
            self.table_dead += table::remove(table, found.index);
        }
    }

    /// Points a name in the table to another cell.
    fn move_name(&mut self, name: u64, cell: u32, view: View<'_>) {
        let table = view.shared.table.get(view.guard);
        let found = table::probe(table, name, |number| view.cell(number).head() == name);
        if let Some(found) = found {
            table::update(table, found.index, name, cell);
        }
    }

    /// Publishes a new table without dead slots, of a length that fits.
    pub(super) fn rebuild_table(&mut self, extra: Option<(u64, u32)>, view: View<'_>) {
        let old = view.shared.table.get(view.guard);
        let len = table::len_for(self.live_runs);
        let fresh: Vec<AtomicU64> = (0..len).map(|_| AtomicU64::new(0)).collect();
        for number in table::cells(old) {
            table::insert(&fresh, view.cell(number).head(), number);
        }
        if let Some((name, cell)) = extra {
            table::insert(&fresh, name, cell);
        }
        let words = Words::new(len, 0, fresh.iter().map(|word| word.load(Ordering::Relaxed)));
        self.usage.table = words.bytes();
        self.table_dead = 0;
        view.shared.table.replace(Some(words), &mut self.grave);
    }

    /// Holder positions of a cell that exist without a new array.
    #[inline]
    pub(super) fn positions(&self, cell: &Cell, view: View<'_>) -> usize {
        match cell.wide(view.guard) {
            Some(wide) => wide.room(),
            None => INLINE + cell.spill().get(view.guard).len(),
        }
    }
}
