//! `aibrix-least-request`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason, least};
use crate::registry::PolicyName;
use crate::rng::Rng;

/// The target with the fewest requests in flight, data-parallel ranks taken one by one.
///
/// Inputs: requests in flight; a target without any counts as zero, so that a cold one gets traffic. Ties are drawn.
/// Defaults: none to set.
///
/// Source: AIBrix `least-request`. Ours differs: the requests are those of all gateways and, where the engine's
/// report shows some, foreign ones (the original counts its own replica's); counting is one step with the pick, so
/// that a burst sees itself. That makes it this project's `least-request`, under the name that tells where it comes
/// from.
pub(crate) struct AibrixLeastRequest;

impl Policy for AibrixLeastRequest {
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let index = least(decision.candidates, rng, |_| true, |c| c.requests).ok_or(None)?;
        Ok(Choice { index, reason: Reason::LeastRequests })
    }

    fn value(&self, _: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(candidate.requests as f64)
    }

    fn fallback(&self) -> Option<PolicyName> {
        None
    }
}
