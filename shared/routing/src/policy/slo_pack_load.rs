//! `slo-pack-load`.

use super::figures::least_known;
use super::slo::{Load, NO_LIMITS, limits};
use super::{Candidate, Choice, Decision, Missing, Policy, Reason};
use crate::rng::Rng;
use crate::settings::{Settings, SloSettings};

/// The fullest target at which the limits are predicted to be kept: load is packed onto few targets.
///
/// Rule: of the targets at which the load with this request is at most `cap`, its predicted time to the first token
/// at most the TTFT limit and the decode step with it at most the TPOT limit, the one with the highest load with it
/// wins; ties are drawn. Where no target qualifies, the one that misses its limits by the least factor, with the
/// reason `slo_infeasible`.
///
/// Inputs, formula and fallback: as for `slo-least-load`. Defaults: cap 1.
///
/// Source: AIBrix `slo-pack-load`. Ours differs: as for `slo-least-load`; the original leaves a request that no target
/// qualifies for in its queue, and refuses it where a target's profile says that the limits cannot be kept at all.
pub(crate) struct SloPackLoad(SloSettings);

impl SloPackLoad {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.slo)
    }
}

impl Policy for SloPackLoad {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let slo = limits(&self.0, decision).ok_or(Some(Missing(NO_LIMITS)))?;
        let look = |c: &Candidate| Load::of(&self.0, decision, &slo, c);
        let room = |c: &Candidate| look(c).filter(Load::keeps).map(|load| self.0.cap - load.after());
        if let Some(index) = least_known(decision.candidates, rng, room) {
            return Ok(Choice { index, reason: Reason::HighestScore });
        }
        let index = least_known(decision.candidates, rng, |c| Some(look(c)?.worst)).ok_or(None)?;
        Ok(Choice { index, reason: Reason::SloInfeasible })
    }

    /// The room that the request leaves, or how far the limits are missed beyond the most room there can be.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        let slo = limits(&self.0, decision)?;
        let load = Load::of(&self.0, decision, &slo, candidate)?;
        Some(if load.keeps() { self.0.cap - load.after() } else { self.0.cap + load.worst })
    }
}
