//! `prefix-cache-scorer`.

use super::{Scorer, Spread};
use crate::policy::{Candidate, Decision};
use crate::settings::PrefixCacheScorerSettings;

/// Share of the prompt's blocks that the target holds, or how many tokens that is, or some of both.
///
/// ```text
/// score = w·min(1, cached tokens/scale)² + (1 − w)·cached blocks/blocks
/// ```
///
/// Inputs: cached blocks. Defaults: `w` (`length_weight`) 0, `scale` (`length_scale`) 8192 tokens. Source: llm-d.
pub(super) struct PrefixCache(pub(super) PrefixCacheScorerSettings);

impl Scorer for PrefixCache {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn figure(&self) -> &'static str {
        "cached_blocks"
    }

    fn measure(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        let cached = candidate.cached_blocks;
        let blocks = decision.prompt_blocks().max(1);
        let share = f64::from(cached) / f64::from(blocks);
        let weight = self.0.length_weight;
        if weight == 0.0 {
            return Some(share);
        }
        let length = f64::from(decision.request.tokens_of(cached)) / f64::from(self.0.length_scale);
        Some(weight * length.min(1.0).powi(2) + (1.0 - weight) * share)
    }

    fn score(&self, measure: f64, _: &Spread) -> f64 {
        measure
    }
}
