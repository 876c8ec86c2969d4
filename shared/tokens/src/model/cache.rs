//! Token ids of parts of prompts that were tokenised before.
//!
//! Keys are 128-bit hashes of model and text with a seed drawn at the start, so that nobody can prepare two texts with
//! the same key; the text itself is not kept. Two generations bound the size: what is found in the older one moves to
//! the younger, and when the younger is half of the bound the older is dropped.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use ahash::AHashMap;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Memory of an entry beside its ids: key, pointer, reference counts, and the map's spare room.
const ENTRY_BYTES: usize = 96;

/// Counts of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Parts found.
    pub hits: u64,
    /// Parts not found.
    pub misses: u64,
}

/// A cache for one thread, for any number of models.
#[derive(Debug)]
pub struct PieceCache {
    young: AHashMap<u128, Arc<[u32]>>,
    old: AHashMap<u128, Arc<[u32]>>,
    young_bytes: usize,
    old_bytes: usize,
    max_bytes: usize,
    seed: u64,
    stats: CacheStats,
}

impl PieceCache {
    /// A cache of at most `max_bytes` bytes; 0 keeps nothing. At the bound the parts not used for longest go.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            young: AHashMap::new(),
            old: AHashMap::new(),
            young_bytes: 0,
            old_bytes: 0,
            max_bytes,
            seed: RandomState::new().hash_one(max_bytes),
            stats: CacheStats::default(),
        }
    }

    pub(super) fn key(&self, model: u64, text: &str) -> u128 {
        xxh3_128_with_seed(text.as_bytes(), self.seed ^ model)
    }

    pub(super) fn get(&mut self, key: u128) -> Option<Arc<[u32]>> {
        if let Some(ids) = self.young.get(&key) {
            self.stats.hits += 1;
            return Some(ids.clone());
        }
        let Some(ids) = self.old.remove(&key) else {
            self.stats.misses += 1;
            return None;
        };
        self.stats.hits += 1;
        self.old_bytes -= cost(&ids);
        self.insert(key, &ids);
        Some(ids)
    }

    /// Keeps the ids of a part. `key` is that of its [`MissingPiece`](crate::MissingPiece), found with this cache.
    pub fn insert(&mut self, key: u128, ids: &Arc<[u32]>) {
        let cost = cost(ids);
        let half = self.max_bytes / 2;
        if cost > half {
            return;
        }
        if self.young_bytes + cost > half {
            self.old = std::mem::take(&mut self.young);
            self.old_bytes = std::mem::take(&mut self.young_bytes);
        }
        if self.young.insert(key, ids.clone()).is_none() {
            self.young_bytes += cost;
        }
    }

    /// The bound.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Bytes in use.
    pub fn bytes(&self) -> usize {
        self.young_bytes + self.old_bytes
    }

    /// Counts since the start.
    pub fn stats(&self) -> CacheStats {
        self.stats
    }
}

fn cost(ids: &[u32]) -> usize {
    ENTRY_BYTES + std::mem::size_of_val(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_bound_and_keeps_what_is_used() {
        let mut cache = PieceCache::new(20_000);
        let hot = cache.key(1, "hot");
        cache.insert(hot, &vec![7; 10].into());
        for n in 0..2_000 {
            let key = cache.key(1, &format!("text {n}"));
            assert!(cache.get(key).is_none());
            cache.insert(key, &vec![n; 20].into());
            assert!(cache.bytes() <= 20_000, "{} bytes", cache.bytes());
            assert_eq!(cache.get(hot).as_deref(), Some(&[7; 10][..]));
        }
        let late = cache.key(1, "text 1999");
        assert!(cache.get(late).is_some());
        let early = cache.key(1, "text 0");
        assert!(cache.get(early).is_none());
        assert!(cache.get(cache.key(2, "hot")).is_none(), "another model");
    }

    #[test]
    fn a_part_larger_than_the_cache_is_not_kept() {
        let mut cache = PieceCache::new(1_000);
        let key = cache.key(1, "large");
        cache.insert(key, &vec![1; 1_000].into());
        assert_eq!(cache.bytes(), 0);
        assert!(PieceCache::new(0).get(key).is_none());
    }
}
