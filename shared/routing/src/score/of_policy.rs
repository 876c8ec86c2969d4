//! A policy as a scorer.

use super::{Scorer, Spread};
use crate::policy::{Candidate, Decision, Policy};
use crate::registry::PolicyName;

/// A policy's value, set between the least and the greatest among the candidates: 1 for the least, 0 for the greatest.
///
/// A policy without a measure (`random`, `round-robin`) scores 0 for all and so decides nothing. Source: AIBrix, whose
/// weighted strategies normalise each strategy's score so.
pub(crate) struct OfPolicy {
    name: PolicyName,
    policy: Box<dyn Policy>,
}

impl OfPolicy {
    pub(crate) fn new(name: PolicyName, policy: Box<dyn Policy>) -> Self {
        Self { name, policy }
    }
}

impl Scorer for OfPolicy {
    fn wants_prefix(&self) -> bool {
        self.policy.wants_prefix()
    }

    fn figure(&self) -> &'static str {
        self.name.as_str()
    }

    fn measure(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        self.policy.value(decision, candidate)
    }

    fn measures(&self, decision: &Decision<'_>, tell: &mut dyn FnMut(usize, Option<f64>)) {
        self.policy.values(decision, tell);
    }

    fn score(&self, measure: f64, spread: &Spread) -> f64 {
        spread.least_is_best(measure)
    }
}
