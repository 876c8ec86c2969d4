//! `cost`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason, least_f64};
use crate::rng::Rng;
use crate::settings::{CostSettings, Settings};

/// Least predicted cost to this request and to those that it delays.
pub(crate) struct Cost(CostSettings);

impl Cost {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.cost)
    }

    fn cost(&self, decision: &Decision<'_>, c: &Candidate, regret: f32) -> f32 {
        let s = &self.0;
        let p = decision.predict(c);
        let queued = s.queued_prefill * p.own * (p.queue + p.own) / 1e6;
        // What is evicted and wanted again is computed again, which evicts in turn.
        let again = regret.min(0.95);
        let eviction = s.eviction * p.own * again / (1.0 - again);
        p.ttft
            + s.own_prefill * p.own
            + queued
            + s.decode_step * p.step_after
            + s.disturbance * p.batch * p.own
            + eviction
    }
}

impl Policy for Cost {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let regret = decision.model.pressure.regret();
        let cost = |c: &Candidate| Some(f64::from(self.cost(decision, c, regret)));
        let index = least_f64(decision.candidates, rng, cost).ok_or(None)?;
        Ok(Choice { index, reason: Reason::LeastCost })
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(f64::from(self.cost(decision, candidate, decision.model.pressure.regret())))
    }
}
