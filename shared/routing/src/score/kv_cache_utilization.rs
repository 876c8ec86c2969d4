//! `kv-cache-utilization-scorer`.

use super::{Scorer, Spread, View};

/// `1 − share of KV room in use`, whatever the others have.
///
/// Inputs: `kv_usage` of the engine's report. Source: llm-d.
pub(super) struct KvCacheUtilization;

impl Scorer for KvCacheUtilization {
    fn wants_figures(&self) -> bool {
        true
    }

    fn figure(&self) -> &'static str {
        "kv_usage"
    }

    fn measure(&self, view: &View<'_>) -> Option<f64> {
        view.figures.kv_usage.map(f64::from)
    }

    fn score(&self, measure: f64, _: &Spread) -> f64 {
        1.0 - measure
    }
}
