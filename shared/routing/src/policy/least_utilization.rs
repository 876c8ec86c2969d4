//! `least-utilization`.

use super::figures::{pick_least, sound};
use super::{Candidate, Choice, Decision, Missing, Policy};
use crate::rng::Rng;

/// The target with the lowest overall utilization.
///
/// Rule: least utilization, a share of 1. Inputs: the engine's own figure where it has one (xLLM, and SGLang when
/// told of a limit), else the greater of its KV room's share in use and running requests over the most it runs at
/// once. Targets without any of these are passed over; where no target has one the policy passes to `least-request`.
/// Ties are drawn. Defaults: none to set.
///
/// Source: AIBrix `least-utilization`, as documented. Ours differs: the original knows xLLM's figure only and is random
/// with all other engines.
pub(crate) struct LeastUtilization;

impl Policy for LeastUtilization {
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        pick_least(decision, rng, "utilization", |c| self.value(decision, c))
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        sound(decision.figures(candidate).utilization)
    }
}
