//! The answer of a lookup.

use fairlead_wire::Slot;

/// Slots an index can tell apart.
pub const MAX_TARGETS: usize = 4096;

/// Words of a set of slots.
const WORDS: usize = MAX_TARGETS / 64;
/// Sets kept as sets; further ones are told target by target.
const LEVELS: usize = 8;

/// Targets that hold at least `depth` blocks.
struct Level {
    depth: u32,
    set: [u64; WORDS],
}

impl Level {
    #[inline]
    fn has(&self, slot: Slot) -> bool {
        self.set.get(usize::from(slot) / 64).is_some_and(|word| word >> (slot % 64) & 1 != 0)
    }
}

/// Per target the number of leading blocks it holds. Reusable: after its construction it never allocates.
///
/// What many targets hold (a system prompt) is kept as a set, so that a lookup need not go through them one by one.
pub struct Hits {
    /// Longest match by anyone, blocks.
    pub matched_blocks: u32,
    /// Depth of a target that was told by itself; 0 otherwise.
    depth: Box<[u32]>,
    /// Targets that were told by themselves.
    touched: Vec<Slot>,
    /// Sets, each part of the one before it and deeper. A target's own depth goes before them.
    levels: Vec<Level>,
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
            levels: Vec::with_capacity(LEVELS),
        }
    }

    /// Forgets all hits, in time proportional to the targets told by themselves.
    pub fn clear(&mut self) {
        for slot in self.touched.drain(..) {
            self.depth[usize::from(slot)] = 0;
        }
        self.levels.clear();
        self.matched_blocks = 0;
    }

    /// Leading blocks held by `slot`.
    #[inline]
    pub fn get(&self, slot: Slot) -> u32 {
        match self.depth.get(usize::from(slot)) {
            None => 0,
            Some(0) => self.levels.iter().rev().find(|level| level.has(slot)).map_or(0, |level| level.depth),
            Some(own) => *own,
        }
    }

    /// Targets that hold at least one block, with their depth, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, u32)> + '_ {
        let own = self.touched.iter().map(|slot| (*slot, self.depth[usize::from(*slot)]));
        let sets = self.levels.iter().enumerate().flat_map(move |(at, level)| {
            let deeper = self.levels.get(at + 1);
            let words = level.set.iter().enumerate();
            words.flat_map(move |(word, bits)| {
                let left = bits & !deeper.map_or(0, |deeper| deeper.set[word]);
                ones(left).map(move |bit| (word as Slot * 64 + bit, level.depth))
            })
        });
        own.chain(sets.filter(|(slot, _)| self.depth[usize::from(*slot)] == 0))
    }

    /// Number of targets that hold at least one block.
    pub fn len(&self) -> usize {
        let Some(widest) = self.levels.first() else { return self.touched.len() };
        let alone = self.touched.iter().filter(|slot| !widest.has(**slot)).count();
        alone + widest.set.iter().map(|bits| bits.count_ones() as usize).sum::<usize>()
    }

    /// Whether nobody holds anything.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.touched.is_empty() && self.levels.is_empty()
    }

    /// Raises the depth of `slot` to `depth` when it is less. Slots beyond [`MAX_TARGETS`] are ignored.
    pub fn merge_max(&mut self, slot: Slot, depth: u32) {
        if usize::from(slot) < MAX_TARGETS && depth > self.get(slot) {
            self.set(slot, depth);
        }
    }

    /// Raises every depth to that in `other`: the larger of replica and overlay.
    pub fn merge(&mut self, other: &Hits) {
        for (slot, depth) in other.iter() {
            self.merge_max(slot, depth);
        }
    }

    /// Tells the depth, more than 0, of a slot by itself.
    #[inline]
    fn set(&mut self, slot: Slot, depth: u32) {
        let own = &mut self.depth[usize::from(slot)];
        if *own == 0 {
            self.touched.push(slot);
        }
        *own = depth;
        self.matched_blocks = self.matched_blocks.max(depth);
    }

    /// `slot` holds `gain` blocks from `offset`: counts when it holds all before them. Returns whether it counted.
    #[inline]
    pub(crate) fn advance(&mut self, slot: Slot, offset: u32, gain: u32) -> bool {
        let Some(own) = self.depth.get(usize::from(slot)) else { return false };
        let known = match *own {
            0 if offset > 0 => {
                self.levels.last().filter(|level| level.has(slot)).map_or(0, |last| last.depth)
            }
            own => own,
        };
        if known != offset || gain == 0 {
            return false;
        }
        self.set(slot, offset + gain);
        true
    }

    /// The slots of a set hold `gain` blocks from `offset`: counts those that hold all before them. Returns whether any
    /// did.
    #[inline]
    pub(crate) fn advance_all(&mut self, mut set: [u64; WORDS], offset: u32, gain: u32) -> bool {
        if gain == 0 {
            return false;
        }
        let mut any = false;
        if offset > 0 {
            // Those told by themselves stay so.
            let mut alone = [0u64; WORDS];
            for &slot in &self.touched {
                let (word, bit) = (usize::from(slot) / 64, 1 << (slot % 64));
                alone[word] |= bit;
                let own = &mut self.depth[usize::from(slot)];
                if set[word] & bit != 0 && *own == offset {
                    *own = offset + gain;
                    any = true;
                }
            }
            let last = self.levels.last().filter(|level| level.depth == offset);
            for (word, bits) in set.iter_mut().enumerate() {
                *bits &= last.map_or(0, |level| level.set[word]) & !alone[word];
            }
        }
        if set.iter().any(|bits| *bits != 0) {
            any = true;
            if self.levels.len() < LEVELS {
                self.levels.push(Level { depth: offset + gain, set });
            } else {
                for (word, bits) in set.into_iter().enumerate() {
                    for bit in ones(bits) {
                        self.set(word as Slot * 64 + bit, offset + gain);
                    }
                }
            }
        }
        if any {
            self.matched_blocks = self.matched_blocks.max(offset + gain);
        }
        any
    }
}

/// Positions of the bits that are set.
pub(crate) fn ones(mut bits: u64) -> impl Iterator<Item = Slot> {
    std::iter::from_fn(move || {
        let bit = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (bit < 64).then_some(bit as Slot)
    })
}

/// A set of slots read from atomic words.
#[inline]
pub(crate) fn load_set(words: &[crate::sync::AtomicU64]) -> [u64; WORDS] {
    let mut set = [0; WORDS];
    for (bits, word) in set.iter_mut().zip(words) {
        *bits = word.load(crate::sync::Ordering::Acquire);
    }
    set
}

#[cfg(all(test, not(any(loom, feature = "shuttle"))))]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    /// What a lookup tells, run by run: who holds how much of the next ten blocks.
    type Runs = Vec<(bool, Vec<(Slot, u32)>)>;

    proptest! {
        #[test]
        fn sets_and_single_targets_answer_alike(
            runs in prop::collection::vec((any::<bool>(), prop::collection::vec((0u16..90, 0u32..11), 0..60)), 1..14),
        ) {
            let runs: Runs = runs;
            let (mut hits, mut plain) = (Hits::new(), std::collections::BTreeMap::new());
            for (at, (wide, holders)) in runs.iter().enumerate() {
                let offset = at as u32 * 10;
                let holders: std::collections::BTreeMap<Slot, u32> = holders.iter().copied().collect();
                let mut set = [0u64; WORDS];
                for (&slot, &gain) in &holders {
                    if *wide && gain == 7 {
                        set[usize::from(slot) / 64] |= 1 << (slot % 64);
                    } else {
                        hits.advance(slot, offset, gain);
                    }
                    if gain > 0 && plain.get(&slot).copied().unwrap_or(0) == offset {
                        plain.insert(slot, offset + gain);
                    }
                }
                // Seven of ten ends the path for these; in every other run all of ten does not.
                let gain = if at % 2 == 0 { 10 } else { 7 };
                for (slot, depth) in plain.iter_mut() {
                    if set[usize::from(*slot) / 64] >> (slot % 64) & 1 != 0 && *depth == offset + 7 {
                        *depth = offset + gain;
                    }
                }
                hits.advance_all(set, offset, gain);
                let mut all: Vec<_> = hits.iter().collect();
                all.sort_unstable();
                prop_assert_eq!(&all, &plain.iter().map(|(slot, depth)| (*slot, *depth)).collect::<Vec<_>>());
                prop_assert_eq!(hits.len(), plain.len());
                prop_assert_eq!(hits.matched_blocks, plain.values().copied().max().unwrap_or(0));
                for slot in 0..100 {
                    prop_assert_eq!(hits.get(slot), plain.get(&slot).copied().unwrap_or(0));
                }
            }
            hits.clear();
            prop_assert!(hits.is_empty() && hits.iter().count() == 0 && (0..100).all(|slot| hits.get(slot) == 0));
        }
    }
}
