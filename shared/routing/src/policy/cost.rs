//! `cost`.

use super::{Candidate, Choice, Decision, Missing, Policy, Predicted, Reason, Scope, least_f64};
use crate::fleet::PaceSeen;
use crate::rng::Rng;
use crate::settings::{CostSettings, Settings};

/// Eviction is weighed as if at least this share of what is computed replaced nothing wanted: the series of
/// recomputing what was evicted by recomputing ends somewhere.
const MOST_REGRET: f32 = 0.9;

/// Least predicted cost to this request and to those that it delays.
///
/// ```text
/// cost = TTFT                                   wait for KV room, queue, own prefill, steps in between
///      + own · eviction · r / (1 - r)           takes the place of what is wanted again, which evicts in turn
///      + own · crowding · c                     settles a prompt where long contexts settled lately
///      + f · (own · own_prefill                 prefill work keeps others waiting
///             + own · disturbance · b · w / (w + short)      and stalls the decoding requests
///             + queue_disturbance · b · queue   more than one kind of work waits for the same steps
///             + decode_step · d(b + 1, K + L))  slower tokens for all
/// ```
///
/// `w` is the predicted prefill work of the tokens that the target does not hold, and `own` the same at the speed of
/// the mean target: a slow target's time is worth no more than a fast one's for taking longer. `b` are the requests
/// that decode there, `K` their context, `L` the prompt, `d` the decode step, `r` the share of what is computed lately
/// that had been computed before and was evicted ([`Pressure`](crate::Pressure)), `c` the share of the target's time
/// that reading contexts takes by what was sent there in the last minute. `f` grows with the fleet's mean queue
/// ([`Pace`](crate::Pace)) from 0 to 1: where nobody waits, nobody is kept waiting, and only the request's own time
/// decides. A prompt that is short against `short` disturbs nobody for long.
///
/// Inputs: the constants learnt per target, cached blocks, queued prefill work, decoding requests and their context,
/// the engine's KV room where reported. Ties are drawn. Source: ours; it began as [`Marginal`](super::Marginal). The
/// weights were chosen by replay of public traces so that neighbours in every direction do about as well.
pub(crate) struct Cost(CostSettings);

/// What a decision knows before it looks at a target.
pub(crate) struct Outlook {
    /// Weight on own prefill work of what it evicts.
    eviction: f32,
    /// How far others count.
    others: f32,
}

/// A cost by its parts, microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Costed {
    /// Prefilling there: time to the first token, and what that does to others.
    pub(crate) prefill: f32,
    /// Decoding there: what it does to others.
    pub(crate) decode: f32,
}

impl Cost {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.cost)
    }

    pub(crate) fn outlook(&self, decision: &Decision<'_>) -> Outlook {
        let regret = decision.model.pressure.regret().min(MOST_REGRET);
        let others = (decision.model.pace.backlog() / self.0.full_backlog).min(1.0);
        Outlook { eviction: self.0.eviction * regret / (1.0 - regret), others }
    }

    #[inline]
    fn cost(&self, decision: &Decision<'_>, c: &Candidate, outlook: &Outlook) -> (f32, Predicted) {
        let p = decision.predict(c);
        let costed = self.parts(decision, &p, outlook);
        (costed.prefill + costed.decode, p)
    }

    /// The cost by its parts, of work predicted so.
    #[inline]
    pub(crate) fn parts(&self, decision: &Decision<'_>, p: &Predicted, outlook: &Outlook) -> Costed {
        let s = &self.0;
        let own = p.own * decision.model.pace.prefill_or(p.prefill) / p.prefill;
        let stall = s.disturbance * p.batch * p.own / (p.own + s.short_prefill_ms * 1e3);
        let others = own * (s.own_prefill + stall) + s.queue_disturbance * p.batch * p.queue;
        let settling = own * (outlook.eviction + s.crowding * p.crowding);
        Costed {
            prefill: p.ttft + settling + outlook.others * others,
            decode: outlook.others * s.decode_step * p.step_after,
        }
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
        let outlook = self.outlook(decision);
        let mut seen = PaceSeen::default();
        let index = least_f64(decision.candidates, rng, |c| {
            let (cost, p) = self.cost(decision, c, &outlook);
            seen.queue += p.queue;
            seen.prefill += p.prefill;
            seen.targets += 1.0;
            Some(f64::from(cost))
        })
        .ok_or(None)?;
        decision.model.pace.note(&seen, decision.predict(&decision.candidates[index]).own);
        Ok(Choice { index, reason: Reason::LeastCost })
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(f64::from(self.cost(decision, candidate, &self.outlook(decision)).0))
    }
}
