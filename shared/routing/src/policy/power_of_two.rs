//! `power-of-two`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason};
use crate::registry::PolicyName;
use crate::rng::Rng;

/// The less loaded of two targets drawn at random.
///
/// Rule: two different targets are drawn; the one with fewer requests in flight wins, at a tie the one drawn first.
/// Inputs: requests in flight. Defaults: none to set.
///
/// Source: AIBrix `power-of-two`; Mitzenmacher, "The power of two choices in randomized load balancing" (2001). Ours
/// differs: the original keeps its counts in Redis, asked at every request; here they are the reservations of all
/// gateways, exact for this one and as fresh as the link for the others.
pub(crate) struct PowerOfTwo;

impl Policy for PowerOfTwo {
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let candidates = decision.candidates;
        let first = rng.below(candidates.len());
        let mut index = first;
        if candidates.len() > 1 {
            let other = rng.below(candidates.len() - 1);
            let second = other + usize::from(other >= first);
            if candidates[second].requests < candidates[first].requests {
                index = second;
            }
        }
        Ok(Choice { index, reason: Reason::LeastRequests })
    }

    fn value(&self, _: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(candidate.requests as f64)
    }

    fn fallback(&self) -> Option<PolicyName> {
        None
    }
}
