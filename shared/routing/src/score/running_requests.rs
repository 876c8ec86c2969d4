//! `running-requests-size-scorer`.

use super::{Scorer, Spread};
use crate::policy::{Candidate, Decision};

/// `(most − r)/(most − least)` of the requests that the engines report as running; 1 for all where they are equal.
///
/// Inputs: `running` of the engine's report. Source: llm-d.
pub(super) struct RunningRequests;

impl Scorer for RunningRequests {
    fn figure(&self) -> &'static str {
        "running"
    }

    fn measure(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        decision.figures(candidate).running.map(f64::from)
    }

    fn score(&self, measure: f64, spread: &Spread) -> f64 {
        spread.least_is_best(measure)
    }
}
