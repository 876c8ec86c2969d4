//! `slo-least-load`.

use super::figures::least_known;
use super::slo::{Load, NO_LIMITS, limits};
use super::{Candidate, Choice, Decision, Missing, Policy, Reason};
use crate::rng::Rng;
use crate::settings::{Settings, SloSettings};

/// The target with the least load against what it can take within the limits, whether or not they are predicted to be
/// kept.
///
/// Load: `load` of this module's neighbour `slo.rs`, a share of what the target can take under this request's limits,
/// so that a slower target counts as fuller. The least wins, ties are drawn.
///
/// Inputs: the request's limits, else the configured ones (`slo.target_ttft_ms`, `slo.target_tpot_ms`); the targets'
/// learnt costs; reservations of all gateways. Without limits the policy passes to `least-request`. Defaults: no
/// limits, answers of 256 tokens.
///
/// Source: AIBrix `slo-least-load`. Ours differs: throughput and latency follow from learnt costs instead of profiles
/// measured before; all targets are compared with each other, not those of one kind of accelerator first; and the
/// original's queue, in which requests wait in the order of what they have left, does not exist.
pub(crate) struct SloLeastLoad(SloSettings);

impl SloLeastLoad {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.slo)
    }
}

impl Policy for SloLeastLoad {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let slo = limits(&self.0, decision).ok_or(Some(Missing(NO_LIMITS)))?;
        let load = |c: &Candidate| Some(Load::of(&self.0, decision, &slo, c)?.load);
        let index = least_known(decision.candidates, rng, load).ok_or(None)?;
        Ok(Choice { index, reason: Reason::LeastLoad })
    }

    /// The load before the request.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        let slo = limits(&self.0, decision)?;
        Some(Load::of(&self.0, decision, &slo, candidate)?.load)
    }
}
