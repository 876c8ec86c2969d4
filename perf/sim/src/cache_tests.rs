use super::*;
use proptest::prelude::*;

/// The same rules written for reading: a list of blocks in order of their last release.
#[derive(Default)]
struct Slow {
    capacity: usize,
    // (hash, holders); position = age among the unheld.
    blocks: Vec<(u64, u32)>,
    private: usize,
}

impl Slow {
    fn refs(&self, h: u64) -> Option<u32> {
        self.blocks.iter().find(|b| b.0 == h).map(|b| b.1)
    }
    fn matched(&self, path: &[u64]) -> usize {
        path.iter().take_while(|h| self.refs(**h).is_some()).count()
    }
    fn admit(&mut self, path: &[u64], cached: usize, fresh: u32) -> bool {
        let mut trial = self.blocks.clone();
        for h in &path[..cached] {
            trial.iter_mut().filter(|b| b.0 == *h).for_each(|b| b.1 += 1);
        }
        while trial.len() + self.private + fresh as usize > self.capacity {
            let Some(i) = trial.iter().position(|b| b.1 == 0) else { return false };
            trial.remove(i);
        }
        self.blocks = trial;
        self.private += fresh as usize;
        true
    }
    fn publish(&mut self, h: u64) {
        self.private -= 1;
        match self.blocks.iter_mut().find(|b| b.0 == h) {
            Some(b) => b.1 += 1,
            None => self.blocks.push((h, 1)),
        }
    }
    fn release(&mut self, path: &[u64], private: u32) {
        self.private -= private as usize;
        for h in path.iter().rev() {
            let i = self.blocks.iter().position(|b| b.0 == *h).expect("held blocks are present");
            self.blocks[i].1 -= 1;
            if self.blocks[i].1 == 0 {
                let b = self.blocks.remove(i);
                self.blocks.push(b);
            }
        }
    }
    fn used(&self) -> usize {
        self.private + self.blocks.iter().filter(|b| b.1 > 0).count()
    }
}

struct Holder {
    path: Vec<u64>,
    held: usize,
    private: u32,
}

fn path_of(family: u8, len: u8) -> Vec<u64> {
    // Families share a trunk of three blocks, then part ways.
    (0..len as u64).map(|i| if i < 3 { i + 1 } else { 100 * (family as u64 + 1) + i }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_the_slow_cache(
        capacity in 4u32..40,
        ops in prop::collection::vec((0u8..3, 0u8..4, 1u8..12, 0u8..4), 1..200),
    ) {
        let mut fast = BlockCache::new(capacity);
        let mut slow = Slow { capacity: capacity as usize, ..Slow::default() };
        let mut holders: Vec<Holder> = Vec::new();
        for (op, family, len, extra) in ops {
            match op {
                0 => {
                    let path = path_of(family, len);
                    let cached = fast.matched(&path);
                    prop_assert_eq!(cached, slow.matched(&path));
                    let fresh = (path.len() - cached) as u32 + extra as u32;
                    let ok = fast.admit(&path, cached, fresh);
                    prop_assert_eq!(ok, slow.admit(&path, cached, fresh));
                    if ok {
                        holders.push(Holder { path, held: cached, private: fresh });
                    }
                }
                1 if !holders.is_empty() => {
                    let i = len as usize % holders.len();
                    let h = &mut holders[i];
                    if h.held < h.path.len() {
                        fast.publish(h.path[h.held]);
                        slow.publish(h.path[h.held]);
                        h.held += 1;
                        h.private -= 1;
                    }
                }
                2 if !holders.is_empty() => {
                    let h = holders.swap_remove(len as usize % holders.len());
                    fast.release(&h.path[..h.held], h.private);
                    slow.release(&h.path[..h.held], h.private);
                }
                _ => {}
            }
            prop_assert_eq!(fast.used() as usize, slow.used());
            prop_assert_eq!(fast.named() as usize, slow.blocks.len());
            for family in 0..4 {
                let path = path_of(family, 12);
                prop_assert_eq!(fast.matched(&path), slow.matched(&path));
            }
        }
        for h in holders.drain(..) {
            fast.release(&h.path[..h.held], h.private);
        }
        prop_assert_eq!(fast.used(), 0);
        fast.clear();
        prop_assert_eq!(fast.named(), 0);
    }
}

#[test]
fn the_tail_goes_first() {
    let mut c = BlockCache::new(4);
    assert!(c.admit(&[1, 2, 3], 0, 3));
    assert!((1..=3).all(|h| c.publish(h)));
    c.release(&[1, 2, 3], 0);
    assert!(c.admit(&[9], 0, 2));
    assert_eq!(c.matched(&[1, 2, 3]), 2);
    assert_eq!(c.evictions(), 1);
}

#[test]
fn what_is_pinned_stays() {
    let mut c = BlockCache::new(3);
    assert!(c.admit(&[1, 2], 0, 2));
    c.publish(1);
    c.publish(2);
    assert!(!c.admit(&[7], 0, 2));
    assert!(c.admit(&[7], 0, 1));
    assert_eq!((c.used(), c.named()), (3, 2));
}
