//! An engine's cache, and the events that tell it.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_wire::is_anchor;
use fairlead_wire::msg::CacheOp;

use super::Rng;

/// What one rank of an engine holds.
#[derive(Default)]
pub struct Cache {
    pub held: BTreeSet<u64>,
    /// The path of each block that was ever held.
    paths: BTreeMap<u64, Vec<u64>>,
}

impl Cache {
    /// A prompt was computed: the events that say so. Blocks that are held already are told again now and then.
    pub fn store(&mut self, path: &[u64], again: bool) -> Vec<CacheOp> {
        for at in 0..path.len() {
            self.paths.insert(path[at], path[..=at].to_vec());
        }
        let news: Vec<bool> = path.iter().map(|block| again || !self.held.contains(block)).collect();
        self.held.extend(path);
        stretches(&news)
            .map(|(from, to)| CacheOp::Store { above: above(path, from), blocks: path[from..to].to_vec() })
            .collect()
    }

    /// Blocks are evicted: from the end of a path, or from anywhere.
    pub fn remove(&mut self, rng: &mut Rng) -> Vec<CacheOp> {
        let Some(&block) = self.held.iter().nth(rng.below(self.held.len())) else { return Vec::new() };
        let path = self.paths[&block].clone();
        let to = path.len();
        let from = to - 1 - rng.below(4.min(to));
        // An engine may also name what it does not hold any more.
        let gone: Vec<bool> = (0..to).map(|at| at >= from).collect();
        for block in &path[from..] {
            self.held.remove(block);
        }
        stretches(&gone).map(|(from, to)| remove(&path, from, to)).collect()
    }

    /// The cache was reset.
    pub fn clear(&mut self) -> Vec<CacheOp> {
        self.held.clear();
        vec![CacheOp::Clear]
    }

    /// All that is held, blocks before those that follow them. As an agent does it: blocks above that are not held may be
    /// unknown to whoever is told, so they are told along and taken back.
    pub fn dump(&self) -> Vec<CacheOp> {
        let mut paths: Vec<&Vec<u64>> = self.held.iter().map(|block| &self.paths[block]).collect();
        paths.sort_unstable_by_key(|path| path.len());
        let mut ops = Vec::new();
        for path in paths {
            let at = path.len() - 1;
            let from =
                path[..at].iter().rposition(|block| self.held.contains(block)).map_or(0, |held| held + 1);
            ops.push(CacheOp::Store { above: above(path, from), blocks: path[from..].to_vec() });
            if from < at {
                ops.push(remove(path, from, at));
            }
        }
        ops
    }
}

fn remove(path: &[u64], from: usize, to: usize) -> CacheOp {
    // A block that can be found by itself needs nothing above it.
    let above = if is_anchor(path[from]) { Vec::new() } else { above(path, from) };
    CacheOp::Remove { above, blocks: path[from..to].to_vec() }
}

/// The blocks right before `at`, from the last anchor or the first block on.
fn above(path: &[u64], at: usize) -> Vec<u64> {
    let from = (0..at).rev().find(|&i| is_anchor(path[i])).unwrap_or(0);
    path[from..at].to_vec()
}

/// Maximal stretches of true.
fn stretches(flags: &[bool]) -> impl Iterator<Item = (usize, usize)> {
    let mut all = Vec::new();
    let mut at = 0;
    while at < flags.len() {
        let to = flags[at..].iter().position(|flag| !flag).map_or(flags.len(), |len| at + len);
        if to > at {
            all.push((at, to));
        }
        at = to.max(at) + 1;
    }
    all.into_iter()
}
