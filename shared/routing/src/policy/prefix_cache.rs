//! `prefix-cache`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason, Scope, least};
use crate::rng::Rng;
use crate::settings::{PrefixCacheSettings, Settings};

/// The longest cached prefix, bounded by load.
///
/// Rule (PAI-EAS LLM Intelligent Router, policy `prefix-cache`, default thresholds): the candidates are the targets
/// that hold the longest match. When the match covers less than half of the prompt, the target with the fewest tokens
/// in process is taken over all. Else the candidates with fewer than three requests before their first token are
/// kept; if none is left, those whose tokens are at most 1.3 times the mean; if none is left, the target with the
/// fewest tokens over all. Of the kept ones the fewest tokens win; ties are drawn.
pub(crate) struct PrefixCache(PrefixCacheSettings);

impl PrefixCache {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.prefix_cache)
    }

    /// Of the holders of the longest match that are not busy, the one with the fewest tokens.
    fn calm_holder(&self, decision: &Decision<'_>, longest: u32, rng: &mut Rng) -> Option<Choice> {
        let waiting = self.0.waiting;
        let calm = |c: &Candidate| c.cached_blocks == longest && c.prefilling.saturating_sub(1) < waiting;
        let index = least(decision.candidates, rng, calm, |c| c.tokens)?;
        Some(Choice { index, reason: Reason::PrefixHit })
    }
}

impl Policy for PrefixCache {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn scope(&self) -> Scope {
        Scope::Holders
    }

    fn pick_holder(&self, decision: &Decision<'_>, rng: &mut Rng) -> Option<Choice> {
        let longest = decision.candidates.iter().map(|c| c.cached_blocks).max()?;
        let decides = f64::from(longest) >= self.0.hit_rate * f64::from(decision.prompt_blocks());
        if decides { self.calm_holder(decision, longest, rng) } else { None }
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let PrefixCacheSettings { hit_rate, tolerance, .. } = self.0;
        let candidates = decision.candidates;
        let longest = candidates.iter().map(|c| c.cached_blocks).max().ok_or(None)?;
        if longest == 0 || f64::from(longest) < hit_rate * f64::from(decision.prompt_blocks()) {
            let index = least(candidates, rng, |_| true, |c| c.tokens).ok_or(None)?;
            return Ok(Choice { index, reason: Reason::PrefixMiss });
        }
        if let Some(choice) = self.calm_holder(decision, longest, rng) {
            return Ok(choice);
        }
        let holds = |c: &Candidate| c.cached_blocks == longest;
        let total: u64 = candidates.iter().map(|c| c.tokens).fold(0, u64::saturating_add);
        let bound = total as f64 / candidates.len() as f64 * (1.0 + tolerance);
        let near_mean = |c: &Candidate| holds(c) && c.tokens as f64 <= bound;
        if let Some(index) = least(candidates, rng, near_mean, |c| c.tokens) {
            return Ok(Choice { index, reason: Reason::PrefixHitBusy });
        }
        let index = least(candidates, rng, |_| true, |c| c.tokens).ok_or(None)?;
        Ok(Choice { index, reason: Reason::PrefixOverloaded })
    }

    /// Blocks of the prompt that the target does not hold.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(f64::from(decision.prompt_blocks().saturating_sub(candidate.cached_blocks)))
    }
}
