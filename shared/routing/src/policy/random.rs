//! `random`.

use super::{Choice, Decision, Missing, Policy, Reason};
use crate::registry::PolicyName;
use crate::rng::Rng;

/// Uniform over the eligible targets. Inputs: none. Source: AIBrix `random`.
pub(crate) struct Random;

impl Policy for Random {
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let index = rng.below(decision.candidates.len());
        Ok(Choice { index, reason: Reason::Drawn })
    }

    fn fallback(&self) -> Option<PolicyName> {
        None
    }
}
