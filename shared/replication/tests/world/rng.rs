//! Randomness that a seed repeats.

/// Deterministic randomness (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A path of chained hashes out of a small tree of them, so that paths share beginnings.
    pub fn path(&mut self, depth: usize) -> Vec<u64> {
        let mut hash = 7;
        (0..1 + self.below(depth))
            .map(|_| {
                let choice = if self.one_in(3) { 1 + self.below(3) as u64 } else { 0 };
                hash = Rng(hash ^ choice << 60).next().max(1);
                hash
            })
            .collect()
    }
}

/// Paths that share nothing.
pub fn paths(count: u64, len: u64) -> Vec<Vec<u64>> {
    (0..count).map(|p| (0..len).map(|i| Rng(p * 1_000 + i).next().max(1)).collect()).collect()
}
