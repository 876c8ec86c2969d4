//! What gateways remember of the epoch before, kept until the instance that it speaks of registers.

use std::sync::Arc;

use ahash::AHashMap;
use fairlead_wire::msg::Recollection;

/// Charged for a rank that is remembered, its name included.
const KEY_BYTES: usize = 512;

#[derive(Debug, Default)]
struct Memory {
    /// Paths by their last hash: chained hashes make equal ends equal paths, so gateways that remember the same cost
    /// once.
    paths: AHashMap<u64, Vec<u64>>,
}

#[derive(Debug, Default)]
pub(crate) struct Recollections {
    held: AHashMap<(Arc<str>, u16, u64), Memory>,
    bytes: usize,
    max_bytes: usize,
    /// Paths not kept for want of room.
    pub(crate) dropped: u64,
}

impl Recollections {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, ..Self::default() }
    }

    pub(crate) fn keep(&mut self, told: Recollection) {
        let key = (Arc::from(told.instance), told.rank, told.incarnation);
        if !self.held.contains_key(&key) {
            if told.paths.is_empty() || self.bytes + KEY_BYTES > self.max_bytes {
                self.dropped += told.paths.len() as u64;
                return;
            }
            self.bytes += KEY_BYTES;
        }
        let memory = self.held.entry(key).or_default();
        for path in told.paths {
            let Some(&end) = path.last() else { continue };
            let size = path.len() * 8 + 48;
            if self.bytes + size > self.max_bytes {
                self.dropped += 1;
            } else if memory.paths.insert(end, path).is_none() {
                self.bytes += size;
            }
        }
    }

    /// Takes what is remembered of a rank.
    pub(crate) fn take(&mut self, instance: &Arc<str>, rank: u16, incarnation: u64) -> Vec<Vec<u64>> {
        let Some(memory) = self.held.remove(&(instance.clone(), rank, incarnation)) else {
            return Vec::new();
        };
        let size: usize = memory.paths.values().map(|path| path.len() * 8 + 48).sum();
        self.bytes = self.bytes.saturating_sub(size + KEY_BYTES);
        memory.paths.into_values().collect()
    }

    pub(crate) fn clear(&mut self) {
        self.held = AHashMap::new();
        self.bytes = 0;
    }
}
