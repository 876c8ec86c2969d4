//! `least-request`.

use super::{Choice, Decision, Policy, Reason, least};

/// The target with the fewest requests in flight.
///
/// Inputs: this gateway's and the other gateways' reservations, exact, and foreign requests where the engine's report
/// shows some. Ties are drawn. Source: what PAI-EAS's guide promises under the name (its code does least-token).
pub(super) struct LeastRequest;

impl Policy for LeastRequest {
    fn pick(&self, decision: &mut Decision<'_>) -> Option<Choice> {
        let index = least(decision.candidates, decision.rng, |_| true, |c| c.requests)?;
        Some(Choice { index, reason: Reason::LeastRequests })
    }
}
