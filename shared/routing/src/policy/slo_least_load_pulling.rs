//! `slo-least-load-pulling`, also called `slo`.

use super::figures::least_known;
use super::slo::{Load, NO_LIMITS, limits};
use super::{Candidate, Choice, Decision, Missing, Policy, Reason};
use crate::rng::Rng;
use crate::settings::{Settings, SloSettings};

/// The target with the least load among those at which the limits are predicted to be kept.
///
/// Rule: of the targets at which the load with this request is at most `cap`, its predicted time to the first token
/// at most the TTFT limit and the decode step with it at most the TPOT limit, the one with the least load wins; ties
/// are drawn. **There is no queue in this gateway for requests to wait in until a target can pull them**: where no
/// target qualifies, the policy behaves as `slo-least-load`, and says so by the reason `slo_infeasible`.
///
/// Inputs, formula and fallback: as for `slo-least-load`. Defaults: cap 1.
///
/// Source: AIBrix `slo-least-load-pulling`, its default among the SLO policies. Ours differs: as for
/// `slo-least-load`; in the original such a request stays queued at the gateway, and is refused once its limit has
/// passed.
pub(crate) struct SloLeastLoadPulling(SloSettings);

impl SloLeastLoadPulling {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.slo)
    }
}

impl Policy for SloLeastLoadPulling {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let slo = limits(&self.0, decision).ok_or(Some(Missing(NO_LIMITS)))?;
        let look = |c: &Candidate| Load::of(&self.0, decision, &slo, c);
        let within = |c: &Candidate| look(c).filter(Load::keeps).map(|load| load.load);
        if let Some(index) = least_known(decision.candidates, rng, within) {
            return Ok(Choice { index, reason: Reason::LeastLoad });
        }
        let index = least_known(decision.candidates, rng, |c| Some(look(c)?.load)).ok_or(None)?;
        Ok(Choice { index, reason: Reason::SloInfeasible })
    }

    /// The load before the request.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        let slo = limits(&self.0, decision)?;
        Some(Load::of(&self.0, decision, &slo, candidate)?.load)
    }
}
