//! The chained hash of a prompt's blocks.

use xxhash_rust::const_xxh3::const_custom_default_secret;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_secret, xxh3_64_with_seed};

use crate::wide;

/// Largest block in bytes.
pub const MAX_BLOCK_BYTES: u32 = 4096;

/// Blocks up to this size straddle two pieces on the stack; the default's do.
const SMALL_BLOCK: usize = 256;

/// Blocks hashed at most unless [`BlockHasher::max_blocks`] says otherwise: 16 MiB of prompt in 256-byte blocks.
/// Two prompts that differ only beyond that share all the prefix that routing can make use of.
pub const DEFAULT_MAX_BLOCKS: u32 = 65_536;

/// Odd multiplier (2^64 over the golden ratio) that spreads the block size over the seed's bits.
const SIZE_MIX: u64 = 0x9E37_79B9_7F4A_7C15;

/// Longest input for which xxh3 uses its seed as it is. For longer ones it makes a secret of the seed, which takes as long
/// as hashing a block with it.
const SEEDED: usize = 240;

/// Root names up to this length are joined on the stack.
const ROOT_INLINE: usize = 256;

/// What a [`BlockHasher`] has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptSize {
    /// Bytes of the canonical prompt, including those beyond the last whole block.
    pub bytes: u64,
    /// Blocks hashed, at most the hasher's bound.
    pub blocks: u32,
}

/// 0 is the name of the index's root, so no block may have it.
#[inline]
fn never_zero(hash: u64) -> u64 {
    if hash == 0 { 1 } else { hash }
}

/// What blocks and links of a chain are hashed with: the cluster's secret and the block size.
#[inline]
fn chain_seed(seed: u64, block_bytes: u32) -> u64 {
    seed ^ u64::from(block_bytes).wrapping_mul(SIZE_MIX)
}

/// One link of the chain: the hash of all up to a block from that of all before it and that of the block itself. Blocks
/// are so hashed without waiting for one another.
#[inline]
fn link(seed: u64, above: u64, block: u64) -> u64 {
    let mut both = [0; 16];
    both[..8].copy_from_slice(&above.to_le_bytes());
    both[8..].copy_from_slice(&block.to_le_bytes());
    never_zero(xxh3_64_with_seed(&both, seed))
}

/// The hash before the first block. `seed` is the cluster's secret; `model` and `lora` are names without a NUL
/// byte, empty where there is none; `salt` keeps tenants apart that must not see each other's cache.
pub fn root(seed: u64, model: &str, lora: &str, salt: &str, block_bytes: u32) -> u64 {
    let seed = chain_seed(seed, block_bytes);
    let parts = [model.as_bytes(), b"\0", lora.as_bytes(), b"\0", salt.as_bytes()];
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let hash = if length <= ROOT_INLINE {
        let mut joined = [0u8; ROOT_INLINE];
        let mut at = 0;
        for part in parts {
            joined[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        xxh3_64_with_seed(&joined[..at], seed)
    } else {
        let mut state = Xxh3::with_seed(seed);
        for part in parts {
            state.update(part);
        }
        state.digest()
    };
    never_zero(hash)
}

/// Hashes a prompt that arrives in pieces. The result does not depend on how the prompt was cut into pieces.
///
/// Whole blocks inside a piece are hashed where they lie; only a block that straddles two pieces is copied. Nothing
/// is allocated except by `out` growing, and room for a straddling block of more than 256 bytes. A trailing partial block is counted and not hashed.
pub struct BlockHasher<'a> {
    out: &'a mut Vec<u64>,
    last: u64,
    seed: u64,
    /// Made of the seed.
    secret: [u8; 192],
    block: usize,
    left: u32,
    blocks: u32,
    bytes: u64,
    held: usize,
    small: [u8; SMALL_BLOCK],
    large: Vec<u8>,
}

impl<'a> BlockHasher<'a> {
    /// Starts a chain whose hashes are appended to `out`. `block_bytes` is taken into
    /// `1..=`[`MAX_BLOCK_BYTES`]. The other arguments are those of [`root`].
    pub fn new(
        seed: u64,
        model: &str,
        lora: &str,
        salt: &str,
        block_bytes: u32,
        out: &'a mut Vec<u64>,
    ) -> Self {
        let block = block_bytes.clamp(1, MAX_BLOCK_BYTES);
        Self::from_root(seed, root(seed, model, lora, salt, block), block, out)
    }

    /// Goes on from a root that was computed before with the same seed and block size, or from the hash of a block.
    pub fn from_root(seed: u64, root: u64, block_bytes: u32, out: &'a mut Vec<u64>) -> Self {
        let block = block_bytes.clamp(1, MAX_BLOCK_BYTES);
        let seed = chain_seed(seed, block);
        let block = block as usize;
        Self {
            out,
            last: root,
            seed,
            secret: if block > SEEDED { const_custom_default_secret(seed) } else { [0; 192] },
            block,
            left: DEFAULT_MAX_BLOCKS,
            blocks: 0,
            bytes: 0,
            held: 0,
            small: [0; SMALL_BLOCK],
            large: if block > SMALL_BLOCK { vec![0; block] } else { Vec::new() },
        }
    }

    /// Hashes at most `blocks` blocks in all; what follows is counted in [`PromptSize::bytes`] and otherwise ignored.
    #[must_use]
    #[inline]
    pub fn max_blocks(mut self, blocks: u32) -> Self {
        self.left = blocks.saturating_sub(self.blocks);
        self
    }

    /// Room for a block that lies in two pieces.
    #[inline]
    fn straddle(&mut self) -> &mut [u8] {
        if self.large.is_empty() { &mut self.small } else { &mut self.large }
    }

    /// xxh3-64 of a whole block with the chain's seed.
    #[inline]
    fn block_hash(&self, block: &[u8]) -> u64 {
        if block.len() > SEEDED {
            wide::hash(block, &self.secret).unwrap_or_else(|| xxh3_64_with_secret(block, &self.secret))
        } else {
            xxh3_64_with_seed(block, self.seed)
        }
    }

    #[inline]
    fn push(&mut self, block: u64) {
        self.last = link(self.seed, self.last, block);
        self.out.push(self.last);
        self.blocks += 1;
        self.left -= 1;
    }

    /// Adds a piece of the prompt.
    pub fn update(&mut self, mut piece: &[u8]) {
        self.bytes += piece.len() as u64;
        if self.left == 0 {
            return;
        }
        if self.held > 0 {
            let taken = piece.len().min(self.block - self.held);
            let held = self.held;
            self.straddle()[held..held + taken].copy_from_slice(&piece[..taken]);
            self.held += taken;
            piece = &piece[taken..];
            if self.held < self.block {
                return;
            }
            self.held = 0;
            let block = self.block;
            let held = if self.large.is_empty() { &self.small[..] } else { &self.large };
            let hash = self.block_hash(&held[..block]);
            self.push(hash);
        }
        let mut blocks = piece.chunks_exact(self.block);
        for block in blocks.by_ref().take(self.left as usize) {
            let hash = self.block_hash(block);
            self.push(hash);
        }
        if self.left > 0 {
            let rest = blocks.remainder();
            self.straddle()[..rest.len()].copy_from_slice(rest);
            self.held = rest.len();
        }
    }

    /// Adds token ids, each as a little-endian `u32`; four bytes of block size then make one token.
    pub fn update_tokens(&mut self, tokens: &[u32]) {
        let mut bytes = [0u8; 256];
        for group in tokens.chunks(64) {
            for (slot, token) in bytes.chunks_exact_mut(4).zip(group) {
                slot.copy_from_slice(&token.to_le_bytes());
            }
            self.update(&bytes[..group.len() * 4]);
        }
    }

    /// The hash of everything up to the last whole block; the root's before the first one.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Whether the bound on blocks is reached, so that further pieces only count.
    pub fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Ends the prompt.
    pub fn finish(self) -> PromptSize {
        PromptSize { bytes: self.bytes, blocks: self.blocks }
    }
}

/// The plain definition of the chain over a prompt that lies in one piece: the reference for [`BlockHasher`].
pub fn hash_blocks(seed: u64, root: u64, block_bytes: u32, prompt: &[u8]) -> Vec<u64> {
    let block_bytes = block_bytes.clamp(1, MAX_BLOCK_BYTES);
    let seed = chain_seed(seed, block_bytes);
    let mut last = root;
    prompt
        .chunks_exact(block_bytes as usize)
        .map(|block| {
            last = link(seed, last, xxh3_64_with_seed(block, seed));
            last
        })
        .collect()
}
