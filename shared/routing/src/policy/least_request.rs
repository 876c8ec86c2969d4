//! `least-request`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason, least};
use crate::registry::PolicyName;
use crate::rng::Rng;

/// The target with the fewest requests in flight.
///
/// Inputs: this gateway's and the other gateways' reservations, exact, and foreign requests where the engine's report
/// shows some. Ties are drawn. Source: what PAI-EAS's guide promises under the name (its code does least-token).
pub(crate) struct LeastRequest;

impl Policy for LeastRequest {
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
