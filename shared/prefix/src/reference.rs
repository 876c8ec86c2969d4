//! The slow, obvious index: a set of (target, block), and for each block the one before it. For tests.

use std::collections::{BTreeSet, HashMap, HashSet};

use fairlead_wire::{Slot, TargetId};

/// What the radix tree must agree with.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    held: BTreeSet<(u32, u64)>,
    /// The block before each block; 0 before the first.
    before: HashMap<u64, u64>,
}

impl Reference {
    /// `target` holds every block of the path.
    pub fn place(&mut self, target: TargetId, path: &[u64]) {
        let mut last = 0;
        for block in path {
            self.before.insert(*block, last);
            self.held.insert((target.pack(), *block));
            last = *block;
        }
    }

    /// `target` holds `blocks`, which follow the path that ends with `above`; nothing is said of `above`.
    pub fn store(&mut self, target: TargetId, above: &[u64], blocks: &[u64]) {
        let mut last = above.last().copied().unwrap_or(0);
        for block in blocks {
            self.before.insert(*block, last);
            self.held.insert((target.pack(), *block));
            last = *block;
        }
    }

    /// Whether anybody holds `block`.
    pub fn is_held(&self, block: u64) -> bool {
        self.held.iter().any(|(_, held)| *held == block)
    }

    /// Whether `target` holds all of `blocks`.
    pub fn holds(&self, target: TargetId, blocks: &[u64]) -> bool {
        blocks.iter().all(|block| self.held.contains(&(target.pack(), *block)))
    }

    /// `target` no longer holds these blocks.
    pub fn remove(&mut self, target: TargetId, blocks: &[u64]) {
        for block in blocks {
            self.held.remove(&(target.pack(), *block));
        }
    }

    /// No tenant of `slot` holds anything.
    pub fn clear(&mut self, slot: Slot) {
        self.held.retain(|(target, _)| TargetId::unpack(*target).slot != slot);
    }

    /// Nobody holds `head` or any block whose prefix contains it.
    pub fn evict(&mut self, head: u64) {
        let mut gone = HashSet::from([head]);
        let under: Vec<u64> =
            self.held.iter().map(|(_, block)| *block).filter(|block| self.is_under(*block, head)).collect();
        gone.extend(under);
        self.held.retain(|(_, block)| !gone.contains(block));
    }

    fn is_under(&self, block: u64, head: u64) -> bool {
        let mut at = block;
        while at != 0 {
            if at == head {
                return true;
            }
            at = self.before.get(&at).copied().unwrap_or(0);
        }
        false
    }

    /// Leading blocks of `path` held by `target`.
    pub fn depth(&self, target: TargetId, path: &[u64]) -> u32 {
        path.iter().take_while(|block| self.held.contains(&(target.pack(), **block))).count() as u32
    }

    /// All pairs, sorted.
    pub fn holdings(&self) -> Vec<(u32, u64)> {
        self.held.iter().copied().collect()
    }
}
