//! `prefix-cache`.

use super::{Choice, Decision, Policy, Reason, least};

/// Below this share of the prompt's blocks, a match does not decide.
const HIT_RATE: f64 = 0.5;
/// A holder with this many requests before their first token, besides one, is busy.
const WAITING: u64 = 2;
/// A busy holder is still taken while its tokens are within this share above the mean.
const TOLERANCE: f64 = 0.3;

/// The longest cached prefix, bounded by load.
///
/// Rule (PAI-EAS LLM Intelligent Router, policy `prefix-cache`, default thresholds): the candidates are the targets
/// that hold the longest match. When the match covers less than half of the prompt, the target with the fewest tokens
/// in process is taken over all. Else the candidates with fewer than three requests before their first token are
/// kept; if none is left, those whose tokens are at most 1.3 times the mean; if none is left, the target with the
/// fewest tokens over all. Of the kept ones the fewest tokens win; ties are drawn.
pub(super) struct PrefixCache;

impl Policy for PrefixCache {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn pick(&self, decision: &mut Decision<'_>) -> Option<Choice> {
        let candidates = decision.candidates;
        let longest = candidates.iter().map(|c| c.cached_blocks).max()?;
        if longest == 0 || f64::from(longest) < HIT_RATE * f64::from(decision.prompt_blocks) {
            let index = least(candidates, decision.rng, |_| true, |c| c.tokens)?;
            return Some(Choice { index, reason: Reason::PrefixMiss });
        }
        let holds = |c: &super::Candidate| c.cached_blocks == longest;
        let calm = |c: &super::Candidate| holds(c) && c.prefilling.saturating_sub(1) < WAITING;
        if let Some(index) = least(candidates, decision.rng, calm, |c| c.tokens) {
            return Some(Choice { index, reason: Reason::PrefixHit });
        }
        let total: u64 = candidates.iter().map(|c| c.tokens).fold(0, u64::saturating_add);
        let bound = total as f64 / candidates.len() as f64 * (1.0 + TOLERANCE);
        let near_mean = |c: &super::Candidate| holds(c) && c.tokens as f64 <= bound;
        if let Some(index) = least(candidates, decision.rng, near_mean, |c| c.tokens) {
            return Some(Choice { index, reason: Reason::PrefixHitBusy });
        }
        let index = least(candidates, decision.rng, |_| true, |c| c.tokens)?;
        Some(Choice { index, reason: Reason::PrefixOverloaded })
    }
}
