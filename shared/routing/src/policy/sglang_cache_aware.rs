//! `sglang-cache-aware`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason, least};
use crate::rng::Rng;
use crate::settings::{Settings, SglangCacheAwareSettings};

/// A cached prefix while the loads are even, the fewest requests while they are not.
///
/// Rule: the loads are uneven when both `max − min > balance_abs` and `max > balance_rel × min` hold of the requests in
/// flight; then the target with the fewest requests is taken. Else a holder of the longest match is taken where it
/// covers more than `cache_threshold` of the prompt, and the target with the fewest requests where it does not. Of
/// several longest holders one is drawn, and so are ties in the number of requests.
///
/// Inputs: requests in flight (all gateways, foreign ones where known), cached blocks. Never passes. Defaults: 0.3, 64,
/// 1.5, those of the command line (the library's are 0.5, 32, 1.1).
///
/// Source: `cache_aware` of sglang-router. Ours differs: the match comes from the shared index of blocks instead of a
/// tree of characters per router, and a request that matches too little goes by load (older versions: to the smallest
/// tree).
pub(crate) struct SglangCacheAware(SglangCacheAwareSettings);

impl SglangCacheAware {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.sglang_cache_aware)
    }

    fn is_uneven(&self, candidates: &[Candidate]) -> bool {
        let spread = |(least, most): (u64, u64), c: &Candidate| (least.min(c.requests), most.max(c.requests));
        let (least, most) = candidates.iter().fold((u64::MAX, 0), spread);
        most.saturating_sub(least) > self.0.balance_abs && most as f64 > self.0.balance_rel * least as f64
    }
}

impl Policy for SglangCacheAware {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let candidates = decision.candidates;
        let longest = candidates.iter().map(|c| c.cached_blocks).max().ok_or(None)?;
        let rate = f64::from(longest) / f64::from(decision.prompt_blocks().max(1));
        let reason = if self.is_uneven(candidates) {
            Reason::Imbalance
        } else if longest > 0 && rate > self.0.cache_threshold {
            let holds = |c: &Candidate| c.cached_blocks == longest;
            let index = least(candidates, rng, holds, |_| 0).ok_or(None)?;
            return Ok(Choice { index, reason: Reason::PrefixHit });
        } else {
            Reason::PrefixMiss
        };
        let index = least(candidates, rng, |_| true, |c| c.requests).ok_or(None)?;
        Ok(Choice { index, reason })
    }

    /// Blocks of the prompt that the target does not hold.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(f64::from(decision.prompt_blocks().saturating_sub(candidate.cached_blocks)))
    }
}
