//! `load-aware-scorer`.

use super::{Scorer, Spread, queue};
use crate::policy::{Candidate, Decision};
use crate::settings::LoadAwareScorerSettings;

/// `0.5·(1 − q/threshold)` of the requests queued: 0.5 for an empty queue, 0 from the threshold on.
///
/// Inputs: as for `queue-scorer`. Default: threshold 128. Source: llm-d, ceiling and all: its weight counts half of what
/// another scorer's counts.
pub(super) struct LoadAware(pub(super) LoadAwareScorerSettings);

impl Scorer for LoadAware {
    fn figure(&self) -> &'static str {
        "waiting"
    }

    fn measure(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        queue::queued(decision, candidate)
    }

    fn score(&self, measure: f64, _: &Spread) -> f64 {
        0.5 * (1.0 - measure / self.0.threshold as f64).max(0.0)
    }
}
