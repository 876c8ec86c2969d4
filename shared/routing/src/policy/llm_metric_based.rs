//! `llm-metric-based`.

use super::figures::{least_known, sound};
use super::{Candidate, Choice, Decision, Missing, Policy, Reason};
use crate::registry::PolicyName;
use crate::rng::Rng;
use crate::settings::{LlmMetricBasedSettings, Settings};

/// Requests that an engine runs at once where it does not say: vLLM's default.
const USUAL_SEQUENCES: u32 = 256;

/// The instance with the least load by its own metrics: queued requests, running requests and KV room in use.
///
/// ```text
/// load = queued_weight·queued/sequences + running_weight·running/sequences + kv_weight·KV usage
/// ```
///
/// where `sequences` is what the engine runs at once (256 where it does not say), and `queued` is the engine's queue or
/// the requests in flight that its report does not show as running, whichever is more: what was picked since the
/// report counts, so that gateways do not all run to the instance that was idle at the last one.
///
/// Inputs: `running`, `waiting`, `kv_usage` of the engine's report, requests in flight. An instance that does not
/// report all three is passed over while another does; without any the policy passes to `least-token`, which is what
/// the original does under this name. Ties are drawn. Defaults: weights 10, 1, 1 (a queued request delays this one, a
/// running one only shares steps with it).
///
/// Source: PAI-EAS LLM Intelligent Router, which promises a combination of these three metrics and gives no formula
/// (its code decides by tokens); the formula and its weights are ours.
pub(crate) struct LlmMetricBased(LlmMetricBasedSettings);

impl LlmMetricBased {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.llm_metric_based)
    }

    fn load(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        let figures = decision.figures(candidate);
        let (running, waiting) = (u64::from(figures.running?), u64::from(figures.waiting?));
        let kv_usage = sound(figures.kv_usage)?;
        let sequences = decision.target(candidate).info.max_num_seqs.unwrap_or(USUAL_SEQUENCES).max(1);
        let queued = waiting.max(candidate.requests.saturating_sub(running));
        let share = |requests: u64| requests as f64 / f64::from(sequences);
        let LlmMetricBasedSettings { queued_weight, running_weight, kv_weight } = self.0;
        Some(queued_weight * share(queued) + running_weight * share(running) + kv_weight * kv_usage)
    }

    /// The figure that is to blame when no candidate has all of them.
    fn missing(decision: &Decision<'_>) -> Missing {
        let nobody = |known: fn(&crate::EngineFigures) -> bool| {
            !decision.candidates.iter().any(|c| known(&decision.figures(c)))
        };
        if nobody(|f| f.waiting.is_some()) {
            Missing("waiting")
        } else if nobody(|f| f.running.is_some()) {
            Missing("running")
        } else {
            Missing("kv_usage")
        }
    }
}

impl Policy for LlmMetricBased {
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let index = least_known(decision.candidates, rng, |c| self.load(decision, c))
            .ok_or_else(|| Some(Self::missing(decision)))?;
        Ok(Choice { index, reason: Reason::LeastLoad })
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        self.load(decision, candidate)
    }

    fn fallback(&self) -> Option<PolicyName> {
        Some(PolicyName::LeastToken)
    }
}
