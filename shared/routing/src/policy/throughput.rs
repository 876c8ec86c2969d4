//! `throughput`.

use super::figures::{pick_least, sound};
use super::{Candidate, Choice, Decision, Missing, Policy};
use crate::rng::Rng;
use crate::settings::{Settings, ThroughputSettings};

/// The target that processes the fewest weighted tokens.
///
/// ```text
/// value = prompt_weight · prompt tokens/s + generation_weight · generated tokens/s
/// ```
///
/// Least wins: what is processed least is loaded least. Inputs: both rates as the agent measures them between its last
/// two scrapes (SGLang's own for generation). Targets without both are passed over; where no target has both the policy
/// passes to `least-request`. Ties are drawn. Defaults: 2 and 1.
///
/// Source: AIBrix `throughput`, whose documentation and code take the least (one of its notes says the opposite). Ours
/// differs: the original reads one-day averages from a Prometheus server as zero and so is random; here the rates are
/// those of now.
pub(crate) struct Throughput(ThroughputSettings);

impl Throughput {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.throughput)
    }
}

impl Policy for Throughput {
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        pick_least(decision, rng, "tokens_per_s", |c| self.value(decision, c))
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        let figures = decision.figures(candidate);
        let prompt = sound(figures.prompt_tokens_per_s)?;
        let generation = sound(figures.generation_tokens_per_s)?;
        Some(self.0.prompt_weight * prompt + self.0.generation_weight * generation)
    }
}
