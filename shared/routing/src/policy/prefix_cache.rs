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
///
/// Of very many targets, those of a sample stand for all where the match is too short: the one with the fewest tokens among
/// 64 drawn is nearly always among the best twentieth, and gateways that look at different ones do not herd.
pub(crate) struct PrefixCache(PrefixCacheSettings);

impl PrefixCache {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.prefix_cache)
    }

    /// The longest match among the holders, where it covers enough of the prompt to decide.
    fn deciding(&self, decision: &Decision<'_>) -> Option<u32> {
        let longest = decision.candidates.iter().map(|c| c.cached_blocks).max()?;
        let decides = f64::from(longest) >= self.0.hit_rate * f64::from(decision.prompt_blocks());
        decides.then_some(longest)
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
        let longest = self.deciding(decision)?;
        self.calm_holder(decision, longest, rng)
    }

    /// Whose match is too short to decide goes to the target with the fewest tokens, which may be one of a sample; a
    /// mean is taken over all.
    fn scope_after_holders(&self, decision: &Decision<'_>) -> Scope {
        if self.deciding(decision).is_some() { Scope::All } else { Scope::Sample }
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let PrefixCacheSettings { hit_rate, waiting, tolerance } = self.0;
        let candidates = decision.candidates;
        // Two passes whatever the rule comes to: there may be a thousand candidates.
        let (mut longest, mut total) = (0, 0u64);
        for c in candidates {
            longest = longest.max(c.cached_blocks);
            total = total.saturating_add(c.tokens);
        }
        let decides = longest > 0 && f64::from(longest) >= hit_rate * f64::from(decision.prompt_blocks());
        let bound = total as f64 / candidates.len() as f64 * (1.0 + tolerance);
        let (mut calm, mut near, mut any) = (Fewest::new(), Fewest::new(), Fewest::new());
        for (index, c) in candidates.iter().enumerate() {
            any.offer(index, c.tokens, rng);
            if decides && c.cached_blocks == longest {
                if c.prefilling.saturating_sub(1) < waiting {
                    calm.offer(index, c.tokens, rng);
                }
                if c.tokens as f64 <= bound {
                    near.offer(index, c.tokens, rng);
                }
            }
        }
        let missed = if decides { Reason::PrefixOverloaded } else { Reason::PrefixMiss };
        [(calm, Reason::PrefixHit), (near, Reason::PrefixHitBusy), (any, missed)]
            .into_iter()
            .find_map(|(fewest, reason)| fewest.index.map(|index| Choice { index, reason }))
            .ok_or(None)
    }

    /// Blocks of the prompt that the target does not hold.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(f64::from(decision.prompt_blocks().saturating_sub(candidate.cached_blocks)))
    }
}

/// The candidate with the fewest tokens of those offered; ties are drawn evenly.
struct Fewest {
    index: Option<usize>,
    tokens: u64,
    ties: usize,
}

impl Fewest {
    fn new() -> Self {
        Self { index: None, tokens: u64::MAX, ties: 0 }
    }

    #[inline]
    fn offer(&mut self, index: usize, tokens: u64, rng: &mut Rng) {
        if tokens < self.tokens || self.index.is_none() {
            *self = Self { index: Some(index), tokens, ties: 1 };
        } else if tokens == self.tokens {
            self.ties += 1;
            if rng.below(self.ties) == 0 {
                self.index = Some(index);
            }
        }
    }
}
