//! `least-kv-cache`.

use super::figures::{pick_least, sound};
use super::{Candidate, Choice, Decision, Missing, Policy};
use crate::rng::Rng;

/// The target whose KV cache is emptiest, on the accelerator and off it.
///
/// Rule: least `kv_usage + host_kv_usage`, each the share of its room in use. Inputs: both as the engines report them;
/// an engine that reports no room off the accelerator has none there and counts with its first share alone. Targets
/// without the first are passed over; where no target has it the policy passes to `least-request`. Ties are drawn.
/// Defaults: none to set.
///
/// Source: AIBrix `least-kv-cache`. Ours differs: the original requires vLLM's CPU share, which vLLM has not exported
/// since its V1 engine, and so is random; here vLLM's present and former names are read, and SGLang's host pool.
pub(crate) struct LeastKvCache;

impl Policy for LeastKvCache {
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        pick_least(decision, rng, "kv_usage", |c| self.value(decision, c))
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        let figures = decision.figures(candidate);
        let host = match figures.host_kv_usage {
            None => 0.0,
            told => sound(told)?,
        };
        Some(sound(figures.kv_usage)? + host)
    }
}
