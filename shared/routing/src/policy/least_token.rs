//! `least-token`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason, least};
use crate::registry::PolicyName;
use crate::rng::Rng;

/// The target with the fewest tokens in process.
///
/// ```text
/// tokens = uncached prompt tokens before their first token + prompt tokens of requests past it
/// ```
///
/// Inputs: this gateway's and the other gateways' reservations; foreign requests, where the engine's report shows
/// some, count as long as this one. No settings. Ties are drawn. Never passes.
///
/// Source: PAI-EAS LLM Intelligent Router, `least-token` (its guide: tokens of input and output in process). Ours
/// differs: an answer's tokens are not counted as they come, since how long it gets is unknown at the pick and the
/// engine's own figures are late; a prompt's cached part counts only from the first token on.
pub(crate) struct LeastToken;

impl Policy for LeastToken {
    fn wants_prefix(&self) -> bool {
        // What a reservation counts as uncached follows from the lookup.
        true
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let index = least(decision.candidates, rng, |_| true, |c| c.tokens).ok_or(None)?;
        Ok(Choice { index, reason: Reason::LeastLoad })
    }

    fn value(&self, _: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(candidate.tokens as f64)
    }

    fn fallback(&self) -> Option<PolicyName> {
        None
    }
}
