//! The KV cache of a simulated engine, as far as its events tell of it: a tree of blocks that grows at its leaves and
//! is evicted from them.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_dataplane::runtime::sim::below;
use fairlead_wire::is_anchor;
use fairlead_wire::msg::CacheOp;

#[derive(Debug, Default)]
pub struct Cache {
    /// Parent of every block; 0 above a first block.
    blocks: BTreeMap<u64, u64>,
    children: BTreeMap<u64, u32>,
}

/// Chained hash of a block in token space: marked by its highest bit, so that tests tell it from a prompt's.
fn chained(parent: u64, choice: u64) -> u64 {
    let z = (parent ^ choice << 40).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) | TOKEN_SPACE
}

/// See [`chained`].
pub const TOKEN_SPACE: u64 = 1 << 63;
/// Blocks kept at most.
const ROOM: usize = 300;

impl Cache {
    pub fn blocks(&self) -> BTreeSet<u64> {
        self.blocks.keys().copied().collect()
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Blocks before a block with this parent, from an anchor or a first block on.
    fn above(&self, parent: u64) -> Vec<u64> {
        let mut above = Vec::new();
        let mut at = parent;
        while at != 0 {
            above.push(at);
            if is_anchor(at) {
                break;
            }
            at = self.blocks[&at];
        }
        above.reverse();
        above
    }

    /// Something changes: a prompt is stored, or room is made.
    pub fn change(&mut self) -> Vec<CacheOp> {
        let mut ops = Vec::new();
        while self.blocks.len() > ROOM - 40 {
            ops.extend(self.evict());
        }
        if below(4) == 0 {
            ops.extend(self.evict());
        }
        if below(60) == 0 {
            self.clear();
            ops.push(CacheOp::Clear);
        }
        ops.push(self.store());
        ops
    }

    fn store(&mut self) -> CacheOp {
        let mut parent = match below(self.blocks.len() as u64 + 1) as usize {
            0 => 0,
            n => *self.blocks.keys().nth(n - 1).unwrap_or(&0),
        };
        let above = self.above(parent);
        let mut blocks = Vec::new();
        for _ in 0..1 + below(20) {
            // Few choices, so that engines hold the same paths.
            let block = chained(parent, below(3));
            if self.blocks.insert(block, parent).is_none() {
                *self.children.entry(parent).or_default() += 1;
            }
            blocks.push(block);
            parent = block;
        }
        CacheOp::Store { above, blocks }
    }

    /// Takes a stretch away from a leaf upwards.
    fn evict(&mut self) -> Option<CacheOp> {
        let leaves: Vec<u64> = self
            .blocks
            .keys()
            .copied()
            .filter(|block| self.children.get(block).is_none_or(|count| *count == 0))
            .collect();
        let mut at = *leaves.get(below(leaves.len() as u64) as usize)?;
        let mut gone = Vec::new();
        let most = 1 + below(12);
        loop {
            let parent = self.blocks.remove(&at)?;
            gone.push(at);
            let siblings = self.children.get_mut(&parent)?;
            *siblings -= 1;
            if parent == 0 || *siblings > 0 || gone.len() as u64 == most {
                gone.reverse();
                return Some(CacheOp::Remove { above: self.above_of_removed(&gone, parent), blocks: gone });
            }
            at = parent;
        }
    }

    fn above_of_removed(&self, gone: &[u64], parent: u64) -> Vec<u64> {
        if parent == 0 || is_anchor(gone[0]) { Vec::new() } else { self.above(parent) }
    }

    /// Operations that build the cache from nothing.
    pub fn dump(&self) -> Vec<CacheOp> {
        let mut order: Vec<u64> = Vec::new();
        let mut waiting: Vec<u64> =
            self.blocks.iter().filter(|(_, parent)| **parent == 0).map(|(block, _)| *block).collect();
        while let Some(block) = waiting.pop() {
            order.push(block);
            waiting
                .extend(self.blocks.iter().filter(|(_, parent)| **parent == block).map(|(block, _)| *block));
        }
        let mut ops: Vec<CacheOp> = Vec::new();
        let mut last = 0;
        for block in order {
            let parent = self.blocks[&block];
            match ops.last_mut() {
                Some(CacheOp::Store { blocks, .. }) if last == parent && parent != 0 => blocks.push(block),
                _ => ops.push(CacheOp::Store { above: self.above(parent), blocks: vec![block] }),
            }
            last = block;
        }
        ops
    }
}
