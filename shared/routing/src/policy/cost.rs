//! `cost`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason, Scope, least_f64};
use crate::rng::Rng;
use crate::settings::{CostSettings, Settings};

/// Eviction is weighed as if at least this share of what is computed replaced nothing wanted: the series of
/// recomputing what was evicted by recomputing ends somewhere.
const MOST_REGRET: f32 = 0.9;

/// Least predicted cost to this request and to those that it delays.
///
/// ```text
/// cost = TTFT                                   wait for KV room, queue, own prefill, steps in between
///      + own · (own_prefill                     prefill work keeps others waiting
///             + eviction · r / (1 - r)          and takes the place of what is wanted again, which evicts in turn
///             + crowding · c                    and settles a prompt where long contexts settled lately
///             + disturbance · b · own / (own + short))      and stalls the decoding requests
///      + queue_disturbance · b · queue          more than one kind of work waits for the same steps
///      + decode_step · d(b + 1, K + L)          slower tokens for all
/// ```
///
/// `own` is the predicted prefill work of the tokens that the target does not hold, `b` the requests that decode
/// there, `K` their context, `L` the prompt, `d` the decode step, `r` the share of what is computed lately that had
/// been computed before and was evicted ([`Pressure`](crate::Pressure)), `c` the share of the target's time that
/// reading contexts takes by what was sent there in the last minute. A prompt that is short against `short` disturbs
/// nobody for long, and only the queue decides.
///
/// Inputs: the constants learnt per target, cached blocks, queued prefill work, decoding requests and their context,
/// the engine's KV room where reported. Ties are drawn. Source: ours; it began as [`Marginal`](super::Marginal). The
/// weights were chosen by replay of public traces so that neighbours in every direction do about as well.
pub(crate) struct Cost(CostSettings);

impl Cost {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.cost)
    }

    #[inline]
    fn cost(&self, decision: &Decision<'_>, c: &Candidate, eviction: f32) -> f32 {
        let s = &self.0;
        let p = decision.predict(c);
        let stall = s.disturbance * p.batch * p.own / (p.own + s.short_prefill_ms * 1e3);
        p.ttft
            + p.own * (s.own_prefill + eviction + s.crowding * p.crowding + stall)
            + s.queue_disturbance * p.batch * p.queue
            + s.decode_step * p.step_after
    }

    /// Weight of what is evicted, by how much of it is wanted again.
    fn eviction(&self, decision: &Decision<'_>) -> f32 {
        let regret = decision.model.pressure.regret().min(MOST_REGRET);
        self.0.eviction * regret / (1.0 - regret)
    }
}

impl Policy for Cost {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn scope(&self) -> Scope {
        Scope::Sample
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let eviction = self.eviction(decision);
        let cost = |c: &Candidate| Some(f64::from(self.cost(decision, c, eviction)));
        let index = least_f64(decision.candidates, rng, cost).ok_or(None)?;
        Ok(Choice { index, reason: Reason::LeastCost })
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(f64::from(self.cost(decision, candidate, self.eviction(decision))))
    }
}
