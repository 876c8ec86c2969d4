//! `random`.

use super::{Choice, Decision, Policy, Reason};

/// Uniform over the eligible targets. Inputs: none. Source: AIBrix `random`.
pub(super) struct Random;

impl Policy for Random {
    fn pick(&self, decision: &mut Decision<'_>) -> Option<Choice> {
        let index = decision.rng.below(decision.candidates.len());
        Some(Choice { index, reason: Reason::Drawn })
    }
}
