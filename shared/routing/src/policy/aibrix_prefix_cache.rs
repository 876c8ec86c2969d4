//! `aibrix-prefix-cache`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason, least};
use crate::rng::Rng;
use crate::settings::{AibrixPrefixCacheSettings, Settings};

/// The longest cached prefix among targets that do not stand out by their load.
///
/// Rule:
/// 1. Where the most and the fewest requests in flight differ by more than `imbalance`, only the targets with the
///    fewest stay; what follows is decided among them.
/// 2. Of the targets that hold some of the prompt, those stay whose requests are at most
///    `mean + deviations · σ`, with mean and σ (of a sample) over all candidates.
/// 3. The greatest match wins, in whole percent of the prompt's blocks; of equals the one with fewer requests; then
///    drawn.
/// 4. Where none is left: the fewest requests over all, drawn among equals.
///
/// Inputs: cached blocks, requests in flight. Defaults: imbalance 8, one deviation: those of the original's code; its
/// notes say 16 and 2.
///
/// Source: AIBrix `prefix-cache`. Ours differs: the index is this project's, fed by placements or by the engines' own
/// events and shared by all gateways, and requests are counted over all of them.
pub(crate) struct AibrixPrefixCache(AibrixPrefixCacheSettings);

impl AibrixPrefixCache {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.aibrix_prefix_cache)
    }
}

/// Whole percent of the prompt that a candidate holds.
fn percent(decision: &Decision<'_>, c: &Candidate) -> u64 {
    let blocks = u64::from(decision.prompt_blocks());
    (u64::from(c.cached_blocks) * 100).checked_div(blocks).unwrap_or(0).min(100)
}

/// Whether the numbers of requests differ by more than that, and the fewest.
pub(super) fn imbalance(candidates: &[Candidate], most: u64) -> (bool, u64) {
    let counts = candidates.iter().map(|c| c.requests);
    let (low, high) = counts.fold((u64::MAX, 0), |(low, high), count| (low.min(count), high.max(count)));
    (high.saturating_sub(low) > most, low)
}

/// Mean and standard deviation (of a sample: over one less than the number) of the requests.
fn spread(candidates: &[Candidate]) -> (f64, f64) {
    let number = candidates.len() as f64;
    let mean = candidates.iter().map(|c| c.requests as f64).sum::<f64>() / number;
    let squares = candidates.iter().map(|c| (c.requests as f64 - mean).powi(2)).sum::<f64>();
    (mean, if candidates.len() > 1 { (squares / (number - 1.0)).sqrt() } else { 0.0 })
}

impl Policy for AibrixPrefixCache {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let candidates = decision.candidates;
        let (uneven, fewest) = imbalance(candidates, self.0.imbalance);
        let (mean, deviation) = spread(candidates);
        let bound = mean + self.0.deviations * deviation;
        let holds = |c: &Candidate| c.cached_blocks > 0 && (!uneven || c.requests == fewest);
        let calm = |c: &Candidate| holds(c) && c.requests as f64 <= bound;
        let order = |c: &Candidate| (100 - percent(decision, c), c.requests);
        let hit = least(candidates, rng, calm, order);
        let reason = match hit {
            _ if uneven => Reason::Imbalance,
            Some(_) => Reason::PrefixHit,
            None if candidates.iter().any(holds) => Reason::PrefixOverloaded,
            None => Reason::PrefixMiss,
        };
        let index = hit.or_else(|| least(candidates, rng, |_| true, |c| c.requests)).ok_or(None)?;
        Ok(Choice { index, reason })
    }

    /// The percent of the prompt that are not held.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some((100 - percent(decision, candidate)) as f64)
    }
}
