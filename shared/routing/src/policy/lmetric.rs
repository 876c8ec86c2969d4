//! `lmetric`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason, least};
use crate::registry::PolicyName;
use crate::rng::Rng;

/// The least product of what is to be prefilled and how many share the target.
///
/// ```text
/// (uncached prompt tokens queued there + this prompt's uncached tokens there) × (requests there + 1)
/// ```
///
/// Inputs: reservations of all gateways, foreign requests where known, cached blocks. No settings. Ties are drawn.
/// Never passes.
///
/// Source: LMetric (arXiv 2603.15202). Its second factor is the batch size; ours counts all requests in flight and this
/// one, so that idle targets still differ by what they hold.
pub(crate) struct Lmetric;

#[inline]
fn product(decision: &Decision<'_>, candidate: &Candidate) -> u64 {
    let own = u64::from(decision.request.uncached(candidate.cached_blocks));
    let tokens = candidate.queued_tokens.saturating_add(own);
    // A request without a prompt (or of unknown length) still prefers the smaller batch.
    tokens.max(1).saturating_mul(candidate.requests.saturating_add(1))
}

impl Policy for Lmetric {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let index = least(decision.candidates, rng, |_| true, |c| product(decision, c)).ok_or(None)?;
        Ok(Choice { index, reason: Reason::LeastCost })
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(product(decision, candidate) as f64)
    }

    fn fallback(&self) -> Option<PolicyName> {
        None
    }
}
