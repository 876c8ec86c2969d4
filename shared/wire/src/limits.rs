//! Bounds on what a message may contain. A value beyond a bound is refused with the field and the value named.

/// Target slots of a fleet.
pub const MAX_TARGETS: usize = 4096;
/// Data-parallel ranks of one instance.
pub const MAX_RANKS: u16 = 1024;
/// Bytes of a name (instance, model, label, host).
pub const MAX_NAME: usize = 256;
/// Bytes of a free text (a reason).
pub const MAX_TEXT: usize = 1024;
/// Models of one instance, adapters included.
pub const MAX_MODELS: usize = 512;
/// Labels of one instance.
pub const MAX_LABELS: usize = 64;
/// Block hashes on one path: 16 MiB of prompt at 256 bytes a block.
pub const MAX_PATH: usize = 65_536;
/// Placements, recollected paths or operations in one message.
pub const MAX_ITEMS: usize = 65_536;
/// Gateways of a cluster.
pub const MAX_GATEWAYS: usize = 1024;
/// Tokens in one engine KV block.
pub const MAX_BLOCK_SIZE: u32 = 65_536;
/// Largest token or block count a message may carry, so that sums over every gateway and target cannot overflow.
pub const MAX_COUNT: u64 = 1 << 40;
/// Largest rate, per second.
pub const MAX_RATE: f32 = 1e9;
/// Longest time that a mean over requests may tell, seconds: more than a month is no request.
pub const MAX_SECONDS: f32 = 4e6;
/// Largest learnt cost, and the inverse of the least, microseconds.
pub const MAX_COST: f32 = 1e9;
/// Observations that one message may claim for a target.
pub const MAX_OBSERVATIONS: u32 = 1 << 24;
/// Tokens of one routing block.
pub const MAX_BLOCK_TOKENS: u32 = 1024;
/// Blocks listed to place others in the tree: with one anchor in [`crate::ANCHOR_SPACING`] blocks, a longer stretch
/// without one is never met (a chance of 10^-28).
pub const MAX_ABOVE: usize = 1024;
