//! `marginal`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason, Scope, least_f64};
use crate::rng::Rng;

/// Least predicted cost with fixed weights: predicted TTFT, plus the prefill work that the choice adds, the decode
/// step after it and the disturbance to running decodes.
///
/// ```text
/// cost = TTFT + 4·own prefill + 120·decode step(b + 1, K + L) + 0.1·b·own prefill
/// ```
///
/// Inputs: the constants learnt per target, cached blocks, queued prefill work, decoding requests and their context.
/// Ties are drawn. Source: the candidate that this project's policy `cost` started from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marginal {
    pub(crate) own_prefill: f32,
    pub(crate) decode_step: f32,
    pub(crate) disturbance: f32,
}

impl Default for Marginal {
    fn default() -> Self {
        Self { own_prefill: 4.0, decode_step: 120.0, disturbance: 0.1 }
    }
}

impl Marginal {
    fn cost(&self, decision: &Decision<'_>, c: &Candidate) -> f32 {
        let p = decision.predict(c);
        p.ttft
            + self.own_prefill * p.own
            + self.decode_step * p.step_after
            + self.disturbance * p.batch * p.own
    }
}

impl Policy for Marginal {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn scope(&self) -> Scope {
        Scope::Sample
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let cost = |c: &Candidate| Some(f64::from(self.cost(decision, c)));
        let index = least_f64(decision.candidates, rng, cost).ok_or(None)?;
        Ok(Choice { index, reason: Reason::LeastCost })
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(f64::from(self.cost(decision, candidate)))
    }
}
