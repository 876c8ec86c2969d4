//! What a shard learns from the requests that it has served.

use fairlead_openai::Usage;
use fairlead_routing::TargetEntry;

use super::Shard;
use super::decide::Prompt;
use super::relay::Ended;
use super::upstream::Cause;

/// One answered request.
pub struct Answered<'a> {
    /// The request.
    pub prompt: &'a Prompt,
    /// Who answered.
    pub target: &'a TargetEntry,
    /// Status of the answer.
    pub status: u16,
    /// Blocks that the decision took to be cached there.
    pub cached_blocks: u32,
    /// First byte of the request.
    pub began_us: u64,
    /// Request sent.
    pub sent_us: u64,
    /// First byte of the answer's body; 0 if it had none.
    pub first_us: u64,
    /// Last byte of the answer's body.
    pub last_us: u64,
    /// Tokens, as the engine counted them.
    pub usage: Option<Usage>,
    /// Events of a stream.
    pub events: u64,
    /// How it ended.
    pub ended: Ended,
}

/// Takes an answered request into account.
pub fn answered(shard: &Shard, answered: &Answered<'_>) {
    if let Some(usage) = answered.usage
        && let Some(model) = shard.shared.fleet.table().model(&answered.prompt.model)
    {
        model.cells.learn(answered.prompt.bytes, usage.prompt_tokens);
    }
}

/// Takes a retry into account.
pub fn retry(_shard: &Shard, cause: Cause) {
    tracing::debug!(cause = cause.as_str(), "retry");
}
