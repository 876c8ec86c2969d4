//! From prompt to block hashes.
//!
//! A *block* is a fixed run of the prompt's bytes (or of its token ids as little-endian `u32`). Blocks are hashed one by
//! one and linked in a chain, each to the hash before it, so that one `u64` names a whole prefix: equal hash means equal
//! prefix. The chain starts from the model, the LoRA adapter, the cache salt, the block size and a secret
//! cluster seed. Every process of a cluster must compute the same chain, therefore the hash is xxh3-64, whose output
//! is fixed by its specification, and `tests/golden.rs` pins it.
//!
//! A hash is never 0: the prefix index uses 0 as the name of the root.

mod error;
mod hasher;
mod model;
mod template;
mod wide;

pub use error::{EncodeError, LoadError};
pub use hasher::{BlockHasher, DEFAULT_MAX_BLOCKS, MAX_BLOCK_BYTES, PromptSize, hash_blocks, root};
pub use model::{CacheStats, Encoding, MissingPiece, PieceCache, Rendered, TokenModel};

/// Block size of byte mode, in bytes, where the configuration names none.
pub const DEFAULT_BLOCK_BYTES: u32 = 256;

/// Block size of token mode, in tokens, where the scheduler names none.
pub const DEFAULT_BLOCK_TOKENS: u32 = 64;

/// Bytes of prompt per token that [`estimate_tokens`] assumes; English text in current vocabularies has 4 to 4.5.
pub const BYTES_PER_TOKEN: u64 = 4;

/// A first guess of the number of tokens in `bytes` bytes of prompt, rounded up. A model's measured ratio is better
/// wherever one is known.
pub fn estimate_tokens(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(BYTES_PER_TOKEN)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::estimate_tokens;

    #[test]
    fn tokens_are_estimated_from_bytes() {
        for (bytes, tokens) in [(0, 0), (1, 1), (4, 1), (5, 2), (4096, 1024), (u64::MAX, u32::MAX)] {
            assert_eq!(estimate_tokens(bytes), tokens, "{bytes} bytes");
        }
    }
}
