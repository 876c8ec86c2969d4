//! `queue-scorer`.

use super::{Scorer, Spread};
use crate::policy::{Candidate, Decision};

/// `(most − q)/(most − least)` of the requests queued; 1 for all where they are equal.
///
/// Inputs: `waiting` and, where known, `running` of the engine's report, requests in flight. Source: llm-d. Ours
/// differs: requests in flight that the report does not show as running count as queued, so that what was picked since
/// the report is not forgotten.
pub(super) struct Queue;

/// Requests queued, by the report and by what was picked since.
pub(super) fn queued(decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
    let figures = decision.figures(candidate);
    let waiting = u64::from(figures.waiting?);
    let since = match figures.running {
        Some(running) => candidate.requests.saturating_sub(u64::from(running)),
        None => 0,
    };
    Some(waiting.max(since) as f64)
}

impl Scorer for Queue {
    fn figure(&self) -> &'static str {
        "waiting"
    }

    fn measure(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        queued(decision, candidate)
    }

    fn score(&self, measure: f64, spread: &Spread) -> f64 {
        spread.least_is_best(measure)
    }
}
