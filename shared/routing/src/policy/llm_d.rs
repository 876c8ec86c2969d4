//! `llm-d`.

use super::weighted::Part;
use super::{Candidate, Choice, Decision, Missing, Policy, Weighted};
use crate::registry::PolicyName;
use crate::rng::Rng;
use crate::score::ScorerName;
use crate::settings::Settings;

/// llm-d's usual weighing: queue, KV room and cached prefix.
///
/// ```text
/// score = 2·queue-scorer + 2·kv-cache-utilization-scorer + 3·prefix-cache-scorer
/// ```
///
/// Inputs: `waiting`, `running`, `kv_usage` of the engines' reports, cached blocks. The greatest score wins, ties are
/// drawn. A target that does not report a figure scores 0 by it. Where no target reports its queue, or none its KV
/// room, that scorer is reported as missing and the others decide; where neither is known, the prefix would decide
/// alone, so the policy passes to `prefix-cache`. Defaults: weights 2, 2, 3, those of its Helm chart's profile.
///
/// Source: llm-d's endpoint picker with its default picker. Ours differs: the prefix index is shared by all gateways and
/// learns from the engines; what was picked since an engine's report counts as queued.
pub(crate) struct LlmD(Weighted);

impl LlmD {
    pub(crate) fn new(settings: &Settings) -> Self {
        let weights = settings.llm_d;
        let parts = [
            (weights.queue, ScorerName::Queue),
            (weights.kv_cache_utilization, ScorerName::KvCacheUtilization),
            (weights.prefix_cache, ScorerName::PrefixCache),
        ];
        let counts = |(weight, _): &(f64, ScorerName)| *weight > 0.0;
        let part = |(weight, name): (f64, ScorerName)| Part { weight, scorer: name.build(settings) };
        Self(Weighted::new(parts.into_iter().filter(counts).map(part).collect()))
    }
}

impl Policy for LlmD {
    fn wants_prefix(&self) -> bool {
        self.0.wants_prefix()
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let reports = |candidate: &Candidate| {
            let figures = decision.figures(candidate);
            figures.waiting.is_some() || figures.kv_usage.is_some()
        };
        if !decision.candidates.iter().any(reports) {
            return Err(Some(Missing("waiting")));
        }
        self.0.pick(decision, rng)
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        self.0.value(decision, candidate)
    }

    fn values(&self, decision: &Decision<'_>, tell: &mut dyn FnMut(usize, Option<f64>)) {
        self.0.values(decision, tell);
    }

    fn missing(&self, decision: &Decision<'_>) -> Option<Missing> {
        self.0.unscored(decision)
    }

    fn fallback(&self) -> Option<PolicyName> {
        Some(PolicyName::PrefixCache)
    }
}
