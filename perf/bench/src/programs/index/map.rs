//! The baseline: a hash map from block to the set of its holders, under a lock for readers and writer.

use std::sync::{Arc, PoisonError, RwLock};

use ahash::AHashMap;

use super::subject::{Probe, Subject};

type Map<const W: usize> = AHashMap<u64, [u64; W]>;

/// The map, for up to `64 * W` targets.
#[derive(Default)]
pub struct FlatMap<const W: usize> {
    map: Arc<RwLock<Map<W>>>,
}

fn bit(target: u16) -> (usize, u64) {
    (usize::from(target) / 64, 1 << (target % 64))
}

impl<const W: usize> Subject for FlatMap<W> {
    type Probe = MapProbe<W>;

    fn name(&self) -> &'static str {
        "HashMap of bitsets under RwLock"
    }

    fn place(&mut self, target: u16, path: &[u64]) {
        let (word, bit) = bit(target);
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        for block in path {
            map.entry(*block).or_insert([0; W])[word] |= bit;
        }
    }

    fn append(&mut self, target: u16, _above: &[u64], block: u64) {
        self.place(target, &[block]);
    }

    fn take(&mut self, target: u16, _above: &[u64], block: u64) {
        self.remove(target, &[block], 0);
    }

    fn remove(&mut self, target: u16, path: &[u64], keep: usize) {
        let (word, bit) = bit(target);
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        for block in path.iter().skip(keep) {
            if let Some(set) = map.get_mut(block) {
                set[word] &= !bit;
                if set.iter().all(|w| *w == 0) {
                    map.remove(block);
                }
            }
        }
    }

    fn drain(&mut self) {}

    fn probe(&self) -> MapProbe<W> {
        MapProbe { map: Arc::clone(&self.map), depth: vec![0; 64 * W], touched: Vec::with_capacity(64 * W) }
    }
}

/// A reader with its answer.
pub struct MapProbe<const W: usize> {
    map: Arc<RwLock<Map<W>>>,
    depth: Vec<u32>,
    touched: Vec<u16>,
}

impl<const W: usize> MapProbe<W> {
    fn note(&mut self, word: usize, mut lost: u64, depth: u32) {
        while lost != 0 {
            let target = word * 64 + lost.trailing_zeros() as usize;
            lost &= lost - 1;
            self.depth[target] = depth;
            self.touched.push(target as u16);
        }
    }
}

impl<const W: usize> Probe for MapProbe<W> {
    fn lookup(&mut self, path: &[u64]) {
        for target in self.touched.drain(..) {
            self.depth[usize::from(target)] = 0;
        }
        let map = Arc::clone(&self.map);
        let map = map.read().unwrap_or_else(PoisonError::into_inner);
        let mut alive = [u64::MAX; W];
        let mut at = 0;
        for block in path {
            let Some(set) = map.get(block) else { break };
            let mut any = 0;
            for word in 0..W {
                let lost = alive[word] & !set[word];
                alive[word] &= set[word];
                any |= alive[word];
                if lost != 0 && at > 0 {
                    self.note(word, lost, at);
                }
            }
            if any == 0 {
                return;
            }
            at += 1;
        }
        if at > 0 {
            for (word, alive) in alive.into_iter().enumerate() {
                self.note(word, alive, at);
            }
        }
    }

    fn depth(&self, target: u16) -> u32 {
        self.depth.get(usize::from(target)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_the_number_of_leading_blocks() {
        let mut map = FlatMap::<2>::default();
        map.place(1, &[10, 11, 12]);
        map.place(100, &[10, 11, 12, 13]);
        map.remove(1, &[10, 11, 12], 2);
        let mut probe = map.probe();
        probe.lookup(&[10, 11, 12, 13, 14]);
        assert_eq!([probe.depth(1), probe.depth(100), probe.depth(5)], [2, 4, 0]);
        map.remove(100, &[10, 11, 12, 13], 0);
        probe.lookup(&[10, 11, 12, 13, 14]);
        assert_eq!([probe.depth(1), probe.depth(100)], [2, 0]);
        assert_eq!(map.map.read().unwrap().len(), 2);
    }
}
