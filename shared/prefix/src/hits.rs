//! The answer of a lookup.

use fairlead_wire::Slot;

/// Slots an index can tell apart.
pub const MAX_TARGETS: usize = 4096;

/// Per target the number of leading blocks it holds. Reusable: after its construction it never allocates.
pub struct Hits {
    /// Longest match by anyone, blocks.
    pub matched_blocks: u32,
    depth: Box<[u32]>,
    touched: Vec<Slot>,
}

impl Default for Hits {
    fn default() -> Self {
        Self::new()
    }
}

impl Hits {
    /// No hits.
    pub fn new() -> Self {
        Self {
            matched_blocks: 0,
            depth: vec![0; MAX_TARGETS].into_boxed_slice(),
            touched: Vec::with_capacity(MAX_TARGETS),
        }
    }

    /// Forgets all hits, in time proportional to their number.
    pub fn clear(&mut self) {
        for slot in self.touched.drain(..) {
            self.depth[usize::from(slot)] = 0;
        }
        self.matched_blocks = 0;
    }

    /// Leading blocks held by `slot`.
    #[inline]
    pub fn get(&self, slot: Slot) -> u32 {
        self.depth.get(usize::from(slot)).copied().unwrap_or(0)
    }

    /// Targets that hold at least one block, with their depth, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, u32)> + '_ {
        self.touched.iter().map(|slot| (*slot, self.depth[usize::from(*slot)]))
    }

    /// Number of targets that hold at least one block.
    pub fn len(&self) -> usize {
        self.touched.len()
    }

    /// Whether nobody holds anything.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }

    /// Raises the depth of `slot` to `depth` when it is less. Slots beyond [`MAX_TARGETS`] are ignored.
    pub fn merge_max(&mut self, slot: Slot, depth: u32) {
        let Some(known) = self.depth.get_mut(usize::from(slot)) else { return };
        if depth > *known {
            if *known == 0 {
                self.touched.push(slot);
            }
            *known = depth;
            self.matched_blocks = self.matched_blocks.max(depth);
        }
    }

    /// Raises every depth to that in `other`: the larger of replica and overlay.
    pub fn merge(&mut self, other: &Hits) {
        for (slot, depth) in other.iter() {
            self.merge_max(slot, depth);
        }
    }

    /// `slot` holds `gain` blocks from `offset`: counts when it holds all before them. Returns whether it counted.
    #[inline]
    pub(crate) fn advance(&mut self, slot: Slot, offset: u32, gain: u32) -> bool {
        let Some(known) = self.depth.get_mut(usize::from(slot)) else { return false };
        if *known != offset || gain == 0 {
            return false;
        }
        if offset == 0 {
            self.touched.push(slot);
        }
        *known = offset + gain;
        self.matched_blocks = self.matched_blocks.max(offset + gain);
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_the_larger_and_clearing_forgets() {
        let mut hits = Hits::new();
        hits.merge_max(3, 5);
        hits.merge_max(3, 2);
        hits.merge_max(4000, 1);
        hits.merge_max(u16::MAX, 9);
        let mut other = Hits::new();
        other.merge_max(3, 7);
        other.merge_max(8, 2);
        hits.merge(&other);
        let mut all: Vec<_> = hits.iter().collect();
        all.sort_unstable();
        assert_eq!(all, [(3, 7), (8, 2), (4000, 1)]);
        assert_eq!((hits.matched_blocks, hits.len(), hits.get(u16::MAX)), (7, 3, 0));
        hits.clear();
        assert!(hits.is_empty() && hits.get(3) == 0 && hits.matched_blocks == 0);
    }
}
