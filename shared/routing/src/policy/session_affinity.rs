//! `session-affinity`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason};
use crate::fleet::rendezvous;
use crate::rng::Rng;

/// The target that the request's session is bound to, whatever its load.
///
/// Rule: of the eligible targets the one with the greatest rendezvous weight of session and target name, so that
/// every gateway sends a session to the same target without a table, and a target that comes or goes moves only its
/// own sessions. Inputs: the hash of the session's key. A request without a session goes to `least-request`.
/// Defaults: none to set.
///
/// Source: AIBrix `session-affinity` in the form with a key of the caller's own (`x-aibrix-session-key`). Ours
/// differs: a request without a session goes to the least loaded target instead of a random one; a target is hashed
/// by its name, which outlives its address; and the original's other form, in which the answer hands out the target's
/// address and the client sends it back, does not exist: an address is never shown, and never taken from a client.
pub(crate) struct SessionAffinity;

impl Policy for SessionAffinity {
    fn pick(&self, decision: &Decision<'_>, _: &mut Rng) -> Result<Choice, Option<Missing>> {
        let session = decision.request.session.ok_or(None)?;
        // At equal weights, which two names would have to collide for, the target listed first.
        let weight = |key: u64| rendezvous(session, key);
        let weights = decision.candidates.iter().map(|c| weight(decision.target(c).key));
        let (own, index) = weights.zip(0..).max_by_key(|(weight, index)| (*weight, !index)).ok_or(None)?;
        let elsewhere = decision.targets.iter().any(|target| weight(target.key) > own);
        let reason = if elsewhere { Reason::BoundElsewhere } else { Reason::Bound };
        Ok(Choice { index, reason })
    }

    /// Where the target stands in the session's ranking, 0 to 1.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        let weight = rendezvous(decision.request.session?, decision.target(candidate).key);
        Some(1.0 - weight as f64 / u64::MAX as f64)
    }
}
