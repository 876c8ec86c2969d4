//! `kv-cache-utilization-scorer`.

use super::{Scorer, Spread};
use crate::policy::{Candidate, Decision};

/// `1 − share of KV room in use`, whatever the others have.
///
/// Inputs: `kv_usage` of the engine's report. Source: llm-d.
pub(super) struct KvCacheUtilization;

impl Scorer for KvCacheUtilization {
    fn figure(&self) -> &'static str {
        "kv_usage"
    }

    fn measure(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        decision.figures(candidate).kv_usage.map(f64::from)
    }

    fn score(&self, measure: f64, _: &Spread) -> f64 {
        1.0 - measure
    }
}
