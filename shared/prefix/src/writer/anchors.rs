//! Where the anchors stand: from the hash of a block to its run and place, so that an engine's events find their place
//! in the tree without an entry for every block. The writer's alone; readers have no use for it.
//!
//! Open addressing with linear probing, one word an anchor: `node << 32 | offset << 20 | part of the mixed hash`. A word
//! that is found is compared with the block that stands there. When crowded, the table is made anew from the runs.

use super::ROOT;
use crate::MAX_RUN;
use crate::table::mix;

/// A slot whose anchor went.
const TOMB: u64 = 1;
const TAG: u64 = (1 << 20) - 1;
const MIN_LEN: usize = 64;

const _: () = assert!(MAX_RUN <= 1 << 12, "an offset in a run has twelve bits");

#[derive(Default)]
pub(super) struct Anchors {
    words: Vec<u64>,
    live: usize,
    dead: usize,
}

fn word(hash: u64, node: u32, offset: u32) -> u64 {
    debug_assert!(node != ROOT && (offset as usize) < MAX_RUN);
    u64::from(node) << 32 | u64::from(offset) << 20 | mix(hash) & TAG
}

impl Anchors {
    /// An empty table with room for `live` anchors.
    pub(super) fn with_room(live: usize) -> Self {
        Self { words: vec![0; Self::len_for(live)], live: 0, dead: 0 }
    }

    fn len_for(live: usize) -> usize {
        (2 * live).max(MIN_LEN)
    }

    pub(super) fn bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }

    /// Live anchors.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Whether `more` anchors would crowd the table: above three quarters, dead ones counted.
    pub(super) fn is_crowded(&self, more: usize) -> bool {
        (self.live + self.dead + more) * 4 > self.words.len() * 3
    }

    /// What a table with `more` anchors than now would add to the memory.
    pub(super) fn growth(&self, more: usize) -> usize {
        if self.is_crowded(more) {
            (Self::len_for(self.live + more) * size_of::<u64>()).saturating_sub(self.bytes())
        } else {
            0
        }
    }

    /// The slots a hash may be in, in order.
    fn slots(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let len = self.words.len();
        let first = ((u128::from(mix(hash)) * len as u128) >> 64) as usize;
        (first..len).chain(0..first)
    }

    /// Run and offset of an anchor; `is` compares the block that stands there.
    pub(super) fn find(&self, hash: u64, is: impl Fn(u32, u32) -> bool) -> Option<(u32, u32)> {
        for slot in self.slots(hash) {
            let word = self.words[slot];
            if word == 0 {
                return None;
            }
            let (node, offset) = ((word >> 32) as u32, word as u32 >> 20);
            if word != TOMB && (word ^ mix(hash)) & TAG == 0 && is(node, offset) {
                return Some((node, offset));
            }
        }
        None
    }

    /// Enters an anchor. There is room: the table is not crowded.
    pub(super) fn insert(&mut self, hash: u64, node: u32, offset: u32) {
        for slot in self.slots(hash) {
            if self.words[slot] <= TOMB {
                self.dead -= usize::from(self.words[slot] == TOMB);
                self.words[slot] = word(hash, node, offset);
                self.live += 1;
                return;
            }
        }
    }

    fn slot_of(&self, hash: u64, word: u64) -> Option<usize> {
        self.slots(hash).take_while(|slot| self.words[*slot] != 0).find(|slot| self.words[*slot] == word)
    }

    /// Takes an anchor out.
    pub(super) fn remove(&mut self, hash: u64, node: u32, offset: u32) {
        let Some(slot) = self.slot_of(hash, word(hash, node, offset)) else { return };
        self.live -= 1;
        let next = if slot + 1 == self.words.len() { 0 } else { slot + 1 };
        if self.words[next] != 0 {
            self.words[slot] = TOMB;
            self.dead += 1;
            return;
        }
        // Nothing probes past an empty slot: this one and the dead ones before it can be empty too.
        self.words[slot] = 0;
        let mut at = slot;
        loop {
            at = if at == 0 { self.words.len() - 1 } else { at - 1 };
            if self.words[at] != TOMB {
                return;
            }
            self.words[at] = 0;
            self.dead -= 1;
        }
    }

    /// An anchor stands somewhere else now.
    pub(super) fn update(&mut self, hash: u64, from: (u32, u32), to: (u32, u32)) {
        if let Some(slot) = self.slot_of(hash, word(hash, from.0, from.1)) {
            self.words[slot] = word(hash, to.0, to.1);
        }
    }
}

#[cfg(all(test, not(any(loom, feature = "shuttle"))))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((0u8..3, 0u64..40), 1..200)) {
            let mut table = Anchors::with_room(0);
            let mut model: BTreeMap<u64, (u32, u32)> = BTreeMap::new();
            for (at, (kind, hash)) in steps.into_iter().enumerate() {
                let place = (at as u32 + 1, at as u32 % 4096);
                match (kind, model.get(&hash).copied()) {
                    (0, None) => {
                        table.insert(hash, place.0, place.1);
                        model.insert(hash, place);
                    }
                    (1, Some(known)) => {
                        table.remove(hash, known.0, known.1);
                        model.remove(&hash);
                    }
                    (2, Some(known)) => {
                        table.update(hash, known, place);
                        model.insert(hash, place);
                    }
                    _ => {}
                }
                prop_assert_eq!((table.live, table.dead), (
                    model.len(), table.words.iter().filter(|word| **word == TOMB).count()));
                for hash in 0..40 {
                    let known = model.get(&hash).copied();
                    prop_assert_eq!(table.find(hash, |node, offset| known == Some((node, offset))), known);
                }
            }
        }
    }
}
