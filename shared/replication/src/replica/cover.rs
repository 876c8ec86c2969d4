//! How many entries of the overlay cover each block of each target: counted by runs, so that what an entry costs grows
//! with the number of places where paths part, not with its blocks.
//!
//! A run is a stretch of blocks that the same entries cover. Block hashes are chained, so a run is found by its first
//! block, and equal blocks have equal paths before them. Every entry covers whole runs: where a path ends or parts in the
//! middle of one, the run is cut there, and pieces that are covered alike again are joined when an entry goes.

use ahash::AHashMap;
use fairlead_wire::Slot;

struct Run {
    blocks: Vec<u64>,
    /// Entries that cover it.
    count: u32,
    /// First block of a run that goes on from this one; it may be gone.
    next: Option<u64>,
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Cover {
    runs: AHashMap<(Slot, u64), Run>,
}

impl Cover {
    /// Counts an entry. `border` is called with the last block of every run within the path, in their order: shorter
    /// entries of the same path end only there.
    pub fn add(&mut self, slot: Slot, path: &[u64], mut border: impl FnMut(u64)) {
        let mut rest = path;
        let mut before: Option<u64> = None;
        while let Some(&first) = rest.first() {
            let Some(run) = self.runs.get_mut(&(slot, first)) else {
                self.runs.insert((slot, first), Run { blocks: rest.to_vec(), count: 1, next: None });
                if let Some(run) = before.and_then(|first| self.runs.get_mut(&(slot, first))) {
                    run.next.get_or_insert(first);
                }
                return;
            };
            let shared = run.blocks.iter().zip(rest).take_while(|(have, want)| have == want).count();
            let behind = (shared < run.blocks.len()).then(|| Run {
                blocks: run.blocks.split_off(shared),
                count: run.count,
                next: run.next,
            });
            run.count += 1;
            let (same, further) = rest.split_at(shared);
            if let Some(&last) = same.last() {
                border(last);
            }
            if let Some(behind) = behind
                && let Some(&at) = behind.blocks.first()
            {
                run.next = Some(at);
                self.runs.insert((slot, at), behind);
            }
            before = Some(first);
            rest = further;
        }
    }

    /// Takes an entry out that was added before; how many leading blocks of its path others cover.
    pub fn remove(&mut self, slot: Slot, path: &[u64]) -> u32 {
        let mut at = 0;
        let mut keep = 0;
        let mut last = None;
        while let Some(&first) = path.get(at)
            && let Some(run) = self.runs.get_mut(&(slot, first))
        {
            at += run.blocks.len();
            run.count -= 1;
            if run.count == 0 {
                self.runs.remove(&(slot, first));
            } else {
                keep = at;
                last = Some(first);
            }
        }
        if let Some(first) = last {
            self.join(slot, first);
        }
        u32::try_from(keep.min(path.len())).unwrap_or(u32::MAX)
    }

    /// Joins a run with the one behind it where the same entries cover both: none ends between them, none parts there.
    fn join(&mut self, slot: Slot, first: u64) {
        let alike = |run: &Run| {
            let next = run.next?;
            (self.runs.get(&(slot, next))?.count == run.count).then_some(next)
        };
        let Some(next) = self.runs.get(&(slot, first)).and_then(alike) else { return };
        let Some(behind) = self.runs.remove(&(slot, next)) else { return };
        if let Some(run) = self.runs.get_mut(&(slot, first)) {
            run.blocks.extend_from_slice(&behind.blocks);
            run.next = behind.next;
        }
    }

    /// Number of runs.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.runs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Slot = 3;

    /// A path of chained blocks: each names all before it.
    fn path(choices: &[u8]) -> Vec<u64> {
        let mut name = 1u64;
        choices
            .iter()
            .map(|&c| {
                name = name.wrapping_mul(31).wrapping_add(u64::from(c) + 1);
                name
            })
            .collect()
    }

    #[test]
    fn runs_count_as_single_blocks_do() {
        let mut cover = Cover::default();
        let mut counts: AHashMap<u64, u32> = AHashMap::new();
        let mut live: Vec<Vec<u64>> = Vec::new();
        let mut random = 7u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        for _ in 0..20_000 {
            if live.len() < 30 && draw(2) == 0 {
                let length = 1 + draw(9) as usize;
                let choices: Vec<u8> = (0..length).map(|_| u8::from(draw(5) == 0)).collect();
                let path = path(&choices);
                // The overlay has one entry for each end.
                if live.iter().any(|known| known.last() == path.last()) {
                    continue;
                }
                let mut borders = Vec::new();
                cover.add(SLOT, &path, |block| borders.push(block));
                let shorter = live.iter().filter(|known| path.starts_with(known));
                for known in shorter {
                    assert!(borders.contains(known.last().unwrap()));
                }
                path.iter().for_each(|block| *counts.entry(*block).or_insert(0) += 1);
                live.push(path);
            } else if !live.is_empty() {
                let path = live.swap_remove(draw(live.len() as u64) as usize);
                let mut keep = 0;
                for block in &path {
                    let count = counts.get_mut(block).unwrap();
                    *count -= 1;
                    keep += u32::from(*count > 0);
                }
                assert_eq!(cover.remove(SLOT, &path), keep);
            }
        }
        for path in live {
            cover.remove(SLOT, &path);
        }
        assert_eq!(cover.len(), 0);
    }

    #[test]
    fn a_conversation_stays_one_run() {
        let mut cover = Cover::default();
        let whole = path(&[0; 100]);
        cover.add(SLOT, &whole[..10], |_| {});
        for turn in 2..=10 {
            cover.add(SLOT, &whole[..turn * 10], |_| {});
            let before = turn * 10 - 10;
            assert_eq!(cover.remove(SLOT, &whole[..before]) as usize, before);
            assert_eq!(cover.len(), 1);
        }
        assert_eq!((cover.remove(SLOT, &whole), cover.len()), (0, 0));
    }
}
