//! `active-request-scorer`.

use super::{Scorer, Spread};
use crate::policy::{Candidate, Decision};
use crate::settings::ActiveRequestScorerSettings;

/// 1 up to `idle_threshold` requests in flight, else `max_busy_score·(most − n)/most`.
///
/// Inputs: requests in flight. Defaults: 0 and 1.0. Source: llm-d, whose count is of one router; ours is of all gateways.
pub(super) struct ActiveRequest(pub(super) ActiveRequestScorerSettings);

impl Scorer for ActiveRequest {
    fn figure(&self) -> &'static str {
        "requests"
    }

    fn measure(&self, _: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(candidate.requests as f64)
    }

    fn score(&self, measure: f64, spread: &Spread) -> f64 {
        if measure <= self.0.idle_threshold as f64 {
            return 1.0;
        }
        // Busy, so the greatest is not 0.
        self.0.max_busy_score * (spread.most - measure) / spread.most
    }
}
