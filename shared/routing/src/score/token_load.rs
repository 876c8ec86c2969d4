//! `token-load-scorer`.

use super::{Scorer, Spread};
use crate::policy::{Candidate, Decision};
use crate::settings::TokenLoadScorerSettings;

/// `1 − min(1, tokens/threshold)` of the tokens in process and this prompt's uncached ones.
///
/// Inputs: reservations of all gateways, cached blocks. Default: threshold 4,194,304. Source: llm-d.
pub(super) struct TokenLoad(pub(super) TokenLoadScorerSettings);

impl Scorer for TokenLoad {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn figure(&self) -> &'static str {
        "tokens"
    }

    fn measure(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        let own = decision.request.uncached(candidate.cached_blocks);
        Some(candidate.tokens.saturating_add(u64::from(own)) as f64)
    }

    fn score(&self, measure: f64, _: &Spread) -> f64 {
        1.0 - (measure / self.0.threshold as f64).min(1.0)
    }
}
