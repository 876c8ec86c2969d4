//! Prompts as chains of block hashes, for the index and decision benchmarks: who asks what, and who comes to hold it.
//!
//! [`Workload::generate`] draws conversations whose shape follows the Mooncake conversation trace (see [`shape`]);
//! [`Workload::from_trace`] takes a file of that form. A block is 64 tokens.

mod shape;
mod trace;

use fairlead_sim::text::mix;

pub use trace::TraceError;

/// Tokens of a block.
pub const BLOCK_TOKENS: u32 = 64;
/// Leading blocks that (nearly) all prompts share: one block of 512 tokens in the trace.
pub const SYSTEM_BLOCKS: usize = 8;
/// Longest line of a trace, bytes.
const LONGEST_LINE: u64 = 16 << 20;
/// Most holders of a path.
pub const MAX_HOLDERS: usize = 3;

/// One prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    start: usize,
    len: u32,
    /// Blocks from the start that an earlier prompt had too.
    pub shared: u32,
    /// Whether no later prompt of its conversation goes on from its end.
    pub leaf: bool,
    holders: [u16; MAX_HOLDERS],
    holder_count: u8,
}

impl Request {
    /// Targets that come to hold it.
    pub fn holders(&self) -> &[u16] {
        &self.holders[..usize::from(self.holder_count)]
    }

    /// Blocks in it.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it is shorter than one block.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What a workload is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    /// Distinct blocks to fill an index with.
    pub blocks: u64,
    /// Further distinct blocks, for churn on a full index.
    pub churn: u64,
    /// Targets.
    pub targets: u16,
}

/// Prompts in order of arrival.
#[derive(Debug, Default)]
pub struct Workload {
    blocks: Vec<u64>,
    requests: Vec<Request>,
    fill: usize,
    /// Distinct blocks of the fill.
    pub distinct: u64,
}

impl Workload {
    /// Draws a workload of that size; the same seed gives the same one.
    pub fn generate(size: Size, seed: u64) -> Self {
        shape::generate(size, seed)
    }

    /// Takes a trace in Mooncake's form (`.jsonl`, or `.jsonl.gz` where `gzip` is installed), repeated under other
    /// names until it has the size asked for.
    ///
    /// # Errors
    /// The file cannot be read or a line is not of that form.
    pub fn from_trace(path: &std::path::Path, size: Size, seed: u64) -> Result<Self, TraceError> {
        trace::read(path, size, seed)
    }

    /// The block hashes of a prompt.
    pub fn path(&self, request: &Request) -> &[u64] {
        &self.blocks[request.start..request.start + request.len()]
    }

    /// Prompts to fill the index with.
    pub fn fill(&self) -> &[Request] {
        &self.requests[..self.fill]
    }

    /// Prompts after these.
    pub fn churn(&self) -> &[Request] {
        &self.requests[self.fill..]
    }

    /// Cuts memory that was reserved for growing, so that it does not count in a measurement of memory.
    fn finish(mut self) -> Self {
        self.blocks.shrink_to_fit();
        self.requests.shrink_to_fit();
        self
    }

    fn push(&mut self, path: &[u64], shared: usize, holders: &[u16]) -> usize {
        let mut all = [0; MAX_HOLDERS];
        all[..holders.len()].copy_from_slice(holders);
        self.requests.push(Request {
            start: self.blocks.len(),
            len: path.len() as u32,
            shared: shared as u32,
            leaf: true,
            holders: all,
            holder_count: holders.len() as u8,
        });
        self.blocks.extend_from_slice(path);
        self.requests.len() - 1
    }
}

/// Puts `count` blocks behind a path, whose contents `content` numbers. Never zero, which names the root of the tree.
pub fn chain(path: &mut Vec<u64>, count: usize, content: &mut u64) {
    let mut above = path.last().copied().unwrap_or(0x05ee_d0f1);
    for _ in 0..count {
        *content += 1;
        above = mix(above ^ mix(*content)).max(1);
        path.push(above);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_shape_is_that_of_the_trace() {
        let size = Size { blocks: 1_000_000, churn: 100_000, targets: 512 };
        let load = Workload::generate(size, 7);
        assert_eq!(load.fill(), Workload::generate(size, 7).fill());
        let fill = load.fill();
        let mut seen = HashSet::new();
        let (mut total, mut shared, mut fresh, mut heads) = (0, 0, 0, 0);
        for r in fill {
            let path = load.path(r);
            let known = path.iter().take_while(|b| seen.contains(*b)).count();
            assert_eq!(known, r.shared as usize);
            assert!((1..=MAX_HOLDERS).contains(&r.holders().len()) && r.holders().iter().all(|h| *h < 512));
            heads += usize::from(known < path.len());
            seen.extend(path.iter().copied());
            total += path.len();
            shared += known;
            fresh += usize::from(known <= SYSTEM_BLOCKS);
        }
        assert_eq!(seen.len() as u64, load.distinct);
        assert!((1_000_000..1_003_000).contains(&seen.len()));
        assert!(!seen.contains(&0));
        let n = fill.len() as f64;
        let near = |what: &str, is: f64, of_trace: f64, part: f64| {
            assert!((is / of_trace - 1.0).abs() < part, "{what}: {is}, trace {of_trace}");
        };
        near("blocks a prompt", total as f64 / n, 188.0, 0.1);
        near("share of blocks reused", shared as f64 / total as f64, 0.374, 0.15);
        near("share of new conversations", fresh as f64 / n, 0.613, 0.05);
        assert!(heads as f64 > 0.9 * n);
        assert!(load.churn().iter().map(|r| r.len() - r.shared as usize).sum::<usize>() > 95_000);
    }
}
