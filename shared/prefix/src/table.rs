//! The hash table from a run's first block to its cell: open addressing, linear probing, one word per slot.
//!
//! A word is `tag << 32 | cell`. The tag is half of the mixed key; the full key is the cell's first block, which the
//! caller compares. Cell 0 does not exist, so the all-zero word is an empty slot, and [`TOMB`] marks a dead one. A
//! key never moves within a table, so a reader that probes while the writer inserts and removes other keys finds it.

use crate::sync::{AtomicU64, Ordering};

/// A slot whose key was removed.
const TOMB: u64 = 1 << 32;

/// Spreads keys that are not hashes (tests, hostile peers) and separates slot from tag.
#[inline]
pub(crate) const fn mix(key: u64) -> u64 {
    let x = (key ^ key >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ x >> 29
}

#[inline]
fn start(mixed: u64, len: usize) -> usize {
    (mixed >> 32) as usize & (len - 1)
}

/// Result of [`probe`] for the writer.
pub(crate) struct Found {
    /// Index of the word.
    pub(crate) index: usize,
    /// Cell in it.
    pub(crate) cell: u32,
}

/// Looks `key` up; `is_key` decides whether a cell with the right tag is the one. The table's length is a power of
/// two or zero.
#[inline]
pub(crate) fn probe(table: &[AtomicU64], key: u64, mut is_key: impl FnMut(u32) -> bool) -> Option<Found> {
    if table.is_empty() {
        return None;
    }
    let mixed = mix(key);
    let tag = mixed & 0xffff_ffff;
    let mut index = start(mixed, table.len());
    for _ in 0..table.len() {
        let word = table[index].load(Ordering::Acquire);
        if word == 0 {
            return None;
        }
        let cell = word as u32;
        if cell != 0 && word >> 32 == tag && is_key(cell) {
            return Some(Found { index, cell });
        }
        index = (index + 1) & (table.len() - 1);
    }
    None
}

/// The cell that a probe for `key` looks at first; 0 when there is none.
#[inline]
pub(crate) fn first_cell(table: &[AtomicU64], key: u64) -> u32 {
    if table.is_empty() {
        return 0;
    }
    table[start(mix(key), table.len())].load(Ordering::Acquire) as u32
}

/// Enters a key that is not in the table. Returns whether a dead slot was used; `None` when the table is full.
pub(crate) fn insert(table: &[AtomicU64], key: u64, cell: u32) -> Option<bool> {
    if table.is_empty() {
        return None;
    }
    let mixed = mix(key);
    let mut index = start(mixed, table.len());
    for _ in 0..table.len() {
        let word = table[index].load(Ordering::Relaxed);
        if word as u32 == 0 {
            table[index].store(word_for(mixed, cell), Ordering::Release);
            return Some(word == TOMB);
        }
        index = (index + 1) & (table.len() - 1);
    }
    None
}

/// Points the key at `index` to another cell.
pub(crate) fn update(table: &[AtomicU64], index: usize, key: u64, cell: u32) {
    table[index].store(word_for(mix(key), cell), Ordering::Release);
}

/// Removes the key at `index`. Returns by how many the number of dead slots grew (it may shrink).
pub(crate) fn remove(table: &[AtomicU64], index: usize) -> isize {
    let mask = table.len() - 1;
    if table[(index + 1) & mask].load(Ordering::Relaxed) != 0 {
        table[index].store(TOMB, Ordering::Release);
        return 1;
    }
    // Nothing probes past an empty slot: this one and the dead ones before it can be empty too.
    table[index].store(0, Ordering::Release);
    let mut freed = 0;
    let mut at = index.wrapping_sub(1) & mask;
    while table[at].load(Ordering::Relaxed) == TOMB {
        table[at].store(0, Ordering::Release);
        freed += 1;
        at = at.wrapping_sub(1) & mask;
    }
    -freed
}

/// The cells in the table.
pub(crate) fn cells(table: &[AtomicU64]) -> impl Iterator<Item = u32> {
    table.iter().map(|word| word.load(Ordering::Relaxed) as u32).filter(|cell| *cell != 0)
}

fn word_for(mixed: u64, cell: u32) -> u64 {
    (mixed & 0xffff_ffff) << 32 | u64::from(cell)
}

/// Smallest table.
pub(crate) const MIN_LEN: usize = 64;

/// Length of a fresh table for `live` keys: at most half full, so that it is not soon rebuilt.
pub(crate) fn len_for(live: usize) -> usize {
    (live.saturating_mul(2)).next_power_of_two().max(MIN_LEN)
}

/// Whether `used` slots (dead ones included) are too many: above 70 %.
pub(crate) fn is_crowded(used: usize, len: usize) -> bool {
    used * 10 >= len * 7
}

#[cfg(all(test, not(any(loom, feature = "shuttle"))))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn table(len: usize) -> Vec<AtomicU64> {
        (0..len).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn finds_what_was_inserted_and_nothing_else() {
        let table = table(64);
        for key in 1..=40u64 {
            assert_eq!(insert(&table, key, key as u32), Some(false));
        }
        for key in 1..=60u64 {
            let found = probe(&table, key, |cell| u64::from(cell) == key).map(|found| found.cell);
            assert_eq!(found, (key <= 40).then_some(key as u32));
        }
    }

    #[test]
    fn removal_leaves_the_others_reachable_and_counts_dead_slots() {
        let table = table(64);
        let mut dead = 0isize;
        for key in 1..=44u64 {
            insert(&table, key, key as u32).unwrap();
        }
        for key in (1..=44u64).filter(|key| key % 3 != 0) {
            let found = probe(&table, key, |cell| u64::from(cell) == key).unwrap();
            dead += remove(&table, found.index);
        }
        let counted = table.iter().filter(|word| word.load(Ordering::Relaxed) == TOMB).count();
        assert_eq!(dead, counted as isize);
        for key in 1..=44u64 {
            assert_eq!(probe(&table, key, |cell| u64::from(cell) == key).is_some(), key % 3 == 0);
        }
    }

    #[test]
    fn a_full_table_refuses_and_a_missing_key_ends() {
        let table = table(4);
        for key in 1..=4u64 {
            assert!(insert(&table, key, key as u32).is_some());
        }
        assert_eq!(insert(&table, 5, 5), None);
        assert!(probe(&table, 9, |_| false).is_none());
    }
}
