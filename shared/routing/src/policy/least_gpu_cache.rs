//! `least-gpu-cache`.

use super::figures::{pick_least, sound};
use super::{Candidate, Choice, Decision, Missing, Policy};
use crate::rng::Rng;

/// The target with the smallest share of its accelerator's KV room in use.
///
/// Inputs: `kv_usage` as the engines report it. Targets without it are passed over; where no target has it the policy
/// passes to `least-request`. Ties are drawn. Defaults: none to set.
///
/// Source: AIBrix `least-gpu-cache`. Ours differs: the original asks vLLM for a name that is gone since 0.12 and is
/// random there; here every generation's name is read.
pub(crate) struct LeastGpuCache;

impl Policy for LeastGpuCache {
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        pick_least(decision, rng, "kv_usage", |c| self.value(decision, c))
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        sound(decision.figures(candidate).kv_usage)
    }
}
