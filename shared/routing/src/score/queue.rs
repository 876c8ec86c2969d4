//! `queue-scorer`.

use super::{Scorer, Spread, View};

/// `(most − q)/(most − least)` of the requests queued; 1 for all where they are equal.
///
/// Inputs: `waiting` and, where known, `running` of the engine's report, requests in flight. Source: llm-d. Ours
/// differs: requests in flight that the report does not show as running count as queued, so that what was picked since
/// the report is not forgotten.
pub(super) struct Queue;

/// Requests queued, by the report and by what was picked since.
pub(super) fn queued(view: &View<'_>) -> Option<f64> {
    let waiting = u64::from(view.figures.waiting?);
    let since = match view.figures.running {
        Some(running) => view.candidate.requests.saturating_sub(u64::from(running)),
        None => 0,
    };
    Some(waiting.max(since) as f64)
}

impl Scorer for Queue {
    fn wants_figures(&self) -> bool {
        true
    }

    fn figure(&self) -> &'static str {
        "waiting"
    }

    fn measure(&self, view: &View<'_>) -> Option<f64> {
        queued(view)
    }

    fn score(&self, measure: f64, spread: &Spread) -> f64 {
        spread.least_is_best(measure)
    }
}
