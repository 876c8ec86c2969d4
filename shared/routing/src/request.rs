//! What a decision is asked for.

use std::sync::Arc;

use crate::filter::LabelFilter;
use crate::fleet::TargetEntry;
use crate::strategy::Strategy;

/// Limits that a client or the configuration sets for one request; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slo {
    /// Time to the first token, microseconds.
    pub ttft_us: u32,
    /// Time per further token, microseconds.
    pub tpot_us: u32,
}

/// What a request needs of the fleet.
#[derive(Clone, Copy, Debug)]
pub struct PlanRequest<'a> {
    /// Model asked for.
    pub model: &'a str,
    /// Chained hashes of the prompt's full blocks.
    pub path: &'a [u64],
    /// Estimated tokens of the whole prompt.
    pub prompt_tokens: u32,
    /// Tokens in a block of `path`; 0 where its blocks are of bytes.
    pub block_tokens: u32,
    /// Most tokens that the answer may have, where the client said so.
    pub max_output: Option<u32>,
    /// Hash of the session's key, where the request bears one.
    pub session: Option<u64>,
    /// Hash of the user on whose behalf it comes, where known.
    pub user: Option<u64>,
    /// Limits to be kept.
    pub slo: Slo,
    /// Labels that the target must have.
    pub labels: Option<&'a LabelFilter>,
    /// Targets that this request has tried already.
    pub tried: &'a [Arc<TargetEntry>],
    /// Whether prefill and decode may be placed apart: it asks for one answer to one prompt, or its hand-off bears more.
    pub splits: bool,
    /// How to pick.
    pub strategy: &'a Strategy,
    /// Clock of the process, microseconds.
    pub now_us: u64,
}

impl<'a> PlanRequest<'a> {
    /// A request of which nothing is known but the model and how to pick.
    pub fn new(model: &'a str, strategy: &'a Strategy) -> Self {
        Self {
            model,
            path: &[],
            prompt_tokens: 0,
            block_tokens: 0,
            max_output: None,
            session: None,
            user: None,
            slo: Slo::default(),
            labels: None,
            tried: &[],
            splits: true,
            strategy,
            now_us: 0,
        }
    }

    /// Prompt tokens that `blocks` leading blocks of the path stand for.
    #[inline]
    pub fn tokens_of(&self, blocks: u32) -> u32 {
        match (self.block_tokens, self.path.len()) {
            (_, 0) => 0,
            (0, all) => (f64::from(self.prompt_tokens) * (f64::from(blocks) / all as f64)) as u32,
            (tokens, _) => blocks.saturating_mul(tokens).min(self.prompt_tokens),
        }
    }

    /// Prompt tokens to compute where `blocks` leading blocks are cached. The last token is never cached for an
    /// engine.
    #[inline]
    pub fn uncached(&self, blocks: u32) -> u32 {
        (self.prompt_tokens - self.tokens_of(blocks)).max(u32::from(self.prompt_tokens > 0))
    }
}
