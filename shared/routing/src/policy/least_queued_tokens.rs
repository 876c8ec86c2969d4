//! `least-queued-tokens`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason, least};
use crate::registry::PolicyName;
use crate::rng::Rng;

/// The target that has the least to prefill once it has this request.
///
/// ```text
/// tokens = uncached prompt tokens queued there + this prompt's uncached tokens there
/// ```
///
/// Inputs: reservations of all gateways, cached blocks. No settings. Ties are drawn. Never passes.
///
/// Source: a baseline of routing studies ("least queued uncached tokens"), here with the request's own uncached tokens
/// added, so that a cached prefix counts for what it saves.
pub(crate) struct LeastQueuedTokens;

#[inline]
fn tokens(decision: &Decision<'_>, candidate: &Candidate) -> u64 {
    let own = decision.request.uncached(candidate.cached_blocks);
    candidate.queued_tokens.saturating_add(u64::from(own))
}

impl Policy for LeastQueuedTokens {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let index = least(decision.candidates, rng, |_| true, |c| tokens(decision, c)).ok_or(None)?;
        Ok(Choice { index, reason: Reason::LeastLoad })
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(tokens(decision, candidate) as f64)
    }

    fn fallback(&self) -> Option<PolicyName> {
        None
    }
}
