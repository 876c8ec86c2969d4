//! Every interleaving of the primitives under loom: publish, replace in place of, unlink, grow, reuse after grace.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p fairlead-prefix --release --test loom --target-dir <own>`
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, missing_docs, reason = "the crate's private modules are compiled in here by path")]

#[path = "../src/cells.rs"]
mod cells;
#[path = "../src/sync.rs"]
mod sync;
#[path = "../src/table.rs"]
mod table;
#[path = "../src/words.rs"]
mod words;

use loom::sync::Arc;
use loom::thread;

use cells::{Cell, Holder};
use sync::{AtomicU64, Guard, Ordering, Pins};
use words::{AtomicWords, Graveyard, Words};

const SLOT: u16 = 7;

/// The shared part of an index, as small as loom needs it: one table and three cells.
struct Index {
    pins: Pins,
    table: AtomicWords,
    cells: [Cell; 4],
}

impl Index {
    fn new() -> (Arc<Self>, Graveyard) {
        let pins = Pins::new();
        let mut grave = Graveyard::new(&pins);
        let index = Self { pins, table: AtomicWords::none(), cells: std::array::from_fn(|_| Cell::empty()) };
        index.table.replace(Some(Words::new(4, 0, [])), &mut grave);
        (Arc::new(index), grave)
    }

    /// Fills a cell that no reader sees and enters it under its first block.
    fn publish(&self, cell: u32, blocks: &[u64], lead: u16, grave: &mut Graveyard) {
        self.fill(cell, blocks, lead, grave);
        let guard = self.pins.pin();
        table::insert(self.table.get(&guard), blocks[0], cell);
    }

    fn fill(&self, number: u32, blocks: &[u64], lead: u16, grave: &mut Graveyard) {
        let cell = &self.cells[number as usize];
        cell.set_head(blocks[0]);
        cell.set_narrow();
        cell.blocks().replace(Some(Words::new(blocks.len(), 0, blocks.iter().copied())), grave);
        cell.set_len(blocks.len() as u32);
        let guard = self.pins.pin();
        if let Some(word) = cell.position(0, &guard) {
            word.store(Holder { slot: SLOT, lead, behind: false, record: 0 }.pack(), Ordering::Release);
        }
        cell.set_used(1);
    }

    fn lead(&self, number: u32, lead: u16) {
        let guard = self.pins.pin();
        if let Some(word) = self.cells[number as usize].position(0, &guard) {
            word.store(Holder { slot: SLOT, lead, behind: false, record: 0 }.pack(), Ordering::Release);
        }
    }

    fn find<'g>(&'g self, head: u64, guard: &'g Guard) -> Option<&'g Cell> {
        let table = self.table.get(guard);
        let found = table::probe(table, head, |number| self.cells[number as usize].head() == head)?;
        Some(&self.cells[found.cell as usize])
    }

    /// The lookup of the crate, for one slot.
    fn lookup(&self, path: &[u64]) -> usize {
        let guard = self.pins.pin();
        for _ in 0..4 {
            if let Some(depth) = self.look(path, &guard) {
                return depth;
            }
        }
        unreachable!("a model merges but once");
    }

    /// One pass; nothing when a run was merged meanwhile.
    fn look(&self, path: &[u64], guard: &Guard) -> Option<usize> {
        let mut depth = 0;
        let mut last: Option<&Cell> = None;
        while depth < path.len() {
            let Some(cell) = self.find(path[depth], guard) else {
                return (!last.is_some_and(Cell::is_moved)).then_some(depth);
            };
            last = Some(cell);
            let run = cell.run(guard);
            let common =
                run.iter().zip(&path[depth..]).take_while(|(a, b)| a.load(Ordering::Relaxed) == **b).count();
            let gain = self.held(cell, guard).min(common);
            depth += gain;
            if gain < run.len() {
                break;
            }
        }
        Some(depth)
    }

    /// Leading blocks that the slot holds of a run.
    fn held(&self, cell: &Cell, guard: &Guard) -> usize {
        let of = |word: &AtomicU64| Holder::unpack(word.load(Ordering::Acquire)).filter(|h| h.slot == SLOT);
        let Some(wide) = cell.wide(guard) else {
            let (near, _) = cell.holders(guard);
            return near.first().and_then(of).map_or(0, |holder| usize::from(holder.lead));
        };
        // The set first, then the exceptions.
        let in_set = wide.set.first().is_some_and(|bits| bits.load(Ordering::Acquire) >> SLOT & 1 != 0);
        let exception = wide.exceptions().iter().find_map(of);
        if in_set { exception.map_or(wide.full as usize, |holder| usize::from(holder.lead)) } else { 0 }
    }

    /// A wide cell with room for two exceptions.
    fn widen(&self, number: u32, full: u32, set: u64, grave: &mut Graveyard) {
        let cell = &self.cells[number as usize];
        cell.spill().replace(Some(Words::new(3, Holder::NONE, [set])), grave);
        cell.set_used(0);
        cell.set_wide(full, 1, 0);
    }

    /// An exception of a wide cell, at the next place or over the first.
    fn except(&self, number: u32, lead: u16, fresh: bool) {
        let guard = self.pins.pin();
        let cell = &self.cells[number as usize];
        let word = Holder { slot: SLOT, lead, behind: false, record: 0 }.pack();
        cell.spill().get(&guard)[1].store(word, Ordering::Release);
        if fresh {
            cell.set_used(1);
        }
    }

    fn put_in_set(&self, number: u32) {
        let guard = self.pins.pin();
        let bits = &self.cells[number as usize].spill().get(&guard)[0];
        bits.store(bits.load(Ordering::Relaxed) | 1 << SLOT, Ordering::Release);
    }

    fn remove(&self, name: u64, number: u32) {
        let guard = self.pins.pin();
        let table = self.table.get(&guard);
        let found = table::probe(table, name, |other| other == number).unwrap();
        table::remove(table, found.index);
    }

    fn replace(&self, name: u64, old: u32, new: u32) {
        let guard = self.pins.pin();
        let table = self.table.get(&guard);
        let found = table::probe(table, name, |other| other == old).unwrap();
        table::update(table, found.index, name, new);
    }
}

/// A run is published while a reader looks: all of it or nothing.
#[test]
fn publish() {
    loom::model(|| {
        let (index, mut grave) = Index::new();
        let reader = index.clone();
        let looking = thread::spawn(move || reader.lookup(&[11, 12]));
        index.publish(1, &[11, 12], 2, &mut grave);
        let depth = looking.join().unwrap();
        assert!(depth == 0 || depth == 2, "{depth}");
        assert_eq!(index.lookup(&[11, 12]), 2);
        drop(grave);
    });
}

/// A run is split: a reader sees all that is held, before, during and after.
#[test]
fn split_hides_nothing() {
    loom::model(|| {
        let (index, mut grave) = Index::new();
        index.publish(1, &[11, 12], 2, &mut grave);
        let reader = index.clone();
        let looking = thread::spawn(move || reader.lookup(&[11, 12]));
        // The rest first, then the front in the place of the whole.
        index.publish(3, &[12], 1, &mut grave);
        index.fill(2, &[11], 1, &mut grave);
        {
            let guard = index.pins.pin();
            let table = index.table.get(&guard);
            let whole = table::probe(table, 11, |number| number == 1).unwrap();
            table::update(table, whole.index, 11, 2);
        }
        grave.bury_cell(1, 0);
        let mut free = Vec::new();
        grave.collect(&mut free);
        assert_eq!(looking.join().unwrap(), 2);
        drop(grave);
    });
}

/// A run is unlinked and its cell used again for another as soon as grace allows: a reader of the old path never sees
/// the new run's holder.
#[test]
fn reuse_after_grace() {
    loom::model(|| {
        let (index, mut grave) = Index::new();
        // The old run is held for one block, the new one for two.
        index.publish(1, &[11, 12], 1, &mut grave);
        let reader = index.clone();
        let looking = thread::spawn(move || reader.lookup(&[11, 12]));
        {
            let guard = index.pins.pin();
            let table = index.table.get(&guard);
            let old = table::probe(table, 11, |number| number == 1).unwrap();
            table::remove(table, old.index);
        }
        grave.bury_cell(1, 0);
        let mut free = Vec::new();
        grave.collect(&mut free);
        if let Some(cell) = free.pop() {
            index.publish(cell, &[21, 22], 2, &mut grave);
        }
        let depth = looking.join().unwrap();
        assert!(depth <= 1, "{depth}");
        grave.collect(&mut free);
        grave.collect(&mut free);
        drop(grave);
    });
}

/// The table grows while a reader looks: what is in it is found in the old one or the new one; the old one is freed
/// by the writer, under no reader's feet.
#[test]
fn table_growth() {
    loom::model(|| {
        let (index, mut grave) = Index::new();
        index.publish(1, &[11, 12], 2, &mut grave);
        let reader = index.clone();
        let looking = thread::spawn(move || reader.lookup(&[11, 12]));
        {
            let guard = index.pins.pin();
            let fresh: Vec<AtomicU64> = (0..8).map(|_| AtomicU64::new(0)).collect();
            for number in table::cells(index.table.get(&guard)) {
                table::insert(&fresh, index.cells[number as usize].head(), number);
            }
            let words = Words::new(8, 0, fresh.iter().map(|word| word.load(Ordering::Relaxed)));
            index.table.replace(Some(words), &mut grave);
        }
        let mut free = Vec::new();
        grave.collect(&mut free);
        assert_eq!(looking.join().unwrap(), 2);
        grave.collect(&mut free);
        assert_eq!(grave.bytes(), 0);
        drop(grave);
    });
}

/// A run is extended in place beyond its room while a reader looks: the old length or the new, never unfilled words.
#[test]
fn extend() {
    loom::model(|| {
        let (index, mut grave) = Index::new();
        index.publish(1, &[11], 1, &mut grave);
        let reader = index.clone();
        let looking = thread::spawn(move || reader.lookup(&[11, 12]));
        index.cells[1].blocks().replace(Some(Words::new(2, 0, [11, 12])), &mut grave);
        index.cells[1].set_len(2);
        index.lead(1, 2);
        let depth = looking.join().unwrap();
        assert!(depth == 1 || depth == 2, "{depth}");
        drop(grave);
    });
}

/// Places go from the root down: two runs that were never held together are never answered together.
#[test]
fn place_from_the_root_down() {
    loom::model(|| {
        let (index, mut grave) = Index::new();
        // A hole: the second run is held, the first is not.
        index.publish(1, &[11], 0, &mut grave);
        index.publish(2, &[12], 1, &mut grave);
        let reader = index.clone();
        let looking = thread::spawn(move || reader.lookup(&[11, 12]));
        // The second goes, then the first comes: never both.
        index.lead(2, 0);
        index.lead(1, 1);
        assert!(looking.join().unwrap() <= 1);
        drop(grave);
    });
}

/// A run is merged with the one behind it: a reader sees all that is held, before, during and after.
#[test]
fn merge_hides_nothing() {
    loom::model(|| {
        let (index, mut grave) = Index::new();
        index.publish(1, &[11], 1, &mut grave);
        index.publish(2, &[12], 1, &mut grave);
        let reader = index.clone();
        let looking = thread::spawn(move || reader.lookup(&[11, 12]));
        // The whole, the marks, then the name of the rest goes.
        index.fill(3, &[11, 12], 2, &mut grave);
        index.replace(11, 1, 3);
        index.cells[1].set_node(Cell::MOVED);
        index.cells[2].set_node(Cell::MOVED);
        index.remove(12, 2);
        grave.bury_cell(1, 0);
        grave.bury_cell(2, 0);
        let mut free = Vec::new();
        grave.collect(&mut free);
        assert_eq!(looking.join().unwrap(), 2);
        drop(grave);
    });
}

/// A run takes the wide form in a new cell: what the slot holds is never out of sight.
#[test]
fn widening_hides_nothing() {
    loom::model(|| {
        let (index, mut grave) = Index::new();
        index.publish(1, &[11, 12], 2, &mut grave);
        let reader = index.clone();
        let looking = thread::spawn(move || reader.lookup(&[11, 12]));
        index.fill(2, &[11, 12], 0, &mut grave);
        index.widen(2, 2, 1 << SLOT, &mut grave);
        index.replace(11, 1, 2);
        index.cells[1].set_node(Cell::MOVED);
        grave.bury_cell(1, 0);
        let mut free = Vec::new();
        grave.collect(&mut free);
        assert_eq!(looking.join().unwrap(), 2);
        drop(grave);
    });
}

/// A slot comes to a wide run with less than the others have: never seen with all that they have.
#[test]
fn first_exception_of_a_wide_run() {
    loom::model(|| {
        let (index, mut grave) = Index::new();
        index.fill(1, &[11, 12], 0, &mut grave);
        index.widen(1, 2, 0, &mut grave);
        {
            let guard = index.pins.pin();
            table::insert(index.table.get(&guard), 11, 1);
        }
        let reader = index.clone();
        let looking = thread::spawn(move || reader.lookup(&[11, 12]));
        index.except(1, 1, true);
        index.put_in_set(1);
        let depth = looking.join().unwrap();
        assert!(depth <= 1, "{depth}");
        assert_eq!(index.lookup(&[11, 12]), 1);
        drop(grave);
    });
}

/// A slot of a wide run loses the end of what it holds, then all, and gets all back: each state or the one before.
#[test]
fn exceptions_of_a_wide_run_change_at_once() {
    loom::model(|| {
        let (index, mut grave) = Index::new();
        index.fill(1, &[11, 12], 0, &mut grave);
        index.widen(1, 2, 1 << SLOT, &mut grave);
        {
            let guard = index.pins.pin();
            table::insert(index.table.get(&guard), 11, 1);
        }
        let reader = index.clone();
        let looking = thread::spawn(move || (reader.lookup(&[11, 12]), reader.lookup(&[11, 12])));
        index.except(1, 1, true);
        index.except(1, 0, false);
        let (first, second) = looking.join().unwrap();
        assert!(first <= 2 && second <= first, "{first}, then {second}");
        index.except(1, 2, false);
        assert_eq!(index.lookup(&[11, 12]), 2);
        drop(grave);
    });
}
