//! `prefix-cache-preble`.

use fairlead_wire::limits::MAX_TARGETS;

use super::aibrix_prefix_cache::imbalance;
use super::figures::least_known;
use super::sliding::{Scale, SlidingSum};
use super::{Candidate, Choice, Decision, Missing, Policy, Reason};
use crate::rng::Rng;
use crate::settings::{PrefixCachePrebleSettings, Settings};

/// Exploit a long match, else explore where recent work and the request's own cost least.
///
/// Rule:
/// 1. Where the most and the fewest requests in flight differ by more than `imbalance`, only the targets with the
///    fewest stay.
/// 2. Where the longest match among those covers more than `match_share` of the prompt, its holders are compared by
///    their load alone (exploit).
/// 3. Else all of them by load plus the request's own prefill there (explore).
///
/// ```text
/// load = Σ over the requests sent there in the last window_s: own prefill + output_tokens · decode step
/// ```
///
/// All in time by the target's learnt costs; `own prefill` is of the uncached tokens. The least wins, ties are drawn.
///
/// Inputs: cached blocks, requests in flight, constants, and what this policy itself has sent where: one word for
/// each of 4,096 target slots; a target that takes another's slot over begins with what is left of the other's
/// window. Each gateway knows its own sendings only, and in a weighted sum, which asks the policy for its measure
/// alone, none. Defaults: 3 minutes, 45 tokens, a half (of AIBrix), imbalance 8.
///
/// Sources: AIBrix `prefix-cache-preble`; Preble (Srivatsa et al., arXiv 2407.00023). Ours differs: costs are learnt
/// per target instead of measured once on two old accelerators for one model; the share of the match is that of the
/// targets left after step 1; load is counted per target, not per node of the tree; the request's own prefill counts
/// in step 3, as in the paper (AIBrix leaves it out), and the paper's cost of evictions does not.
pub(crate) struct PrefixCachePreble {
    settings: PrefixCachePrebleSettings,
    scale: Scale,
    loads: Box<[SlidingSum]>,
}

/// What the windows tell apart, microseconds: 67,000 s fit into one.
const UNIT_US: f64 = 4_000.0;

impl PrefixCachePreble {
    pub(crate) fn new(settings: &Settings) -> Self {
        let settings = settings.prefix_cache_preble;
        let scale = Scale { window_us: (settings.window_s * 1e6) as u64, unit: UNIT_US };
        Self { settings, scale, loads: (0..MAX_TARGETS).map(|_| SlidingSum::default()).collect() }
    }

    fn cell(&self, decision: &Decision<'_>, c: &Candidate) -> &SlidingSum {
        &self.loads[usize::from(decision.target(c).id.slot) % MAX_TARGETS]
    }

    fn load(&self, decision: &Decision<'_>, c: &Candidate) -> f64 {
        self.cell(decision, c).read(&self.scale, decision.request.now_us)
    }

    fn cost(&self, decision: &Decision<'_>, c: &Candidate) -> f64 {
        self.load(decision, c) + f64::from(decision.predict(c).own)
    }
}

impl Policy for PrefixCachePreble {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let candidates = decision.candidates;
        let (uneven, fewest) = imbalance(candidates, self.settings.imbalance);
        let stays = |c: &Candidate| !uneven || c.requests == fewest;
        let longest = candidates.iter().filter(|c| stays(c)).map(|c| c.cached_blocks).max().unwrap_or(0);
        let enough = self.settings.match_share * f64::from(decision.prompt_blocks());
        let exploit = longest > 0 && f64::from(longest) > enough;
        let measure = |c: &Candidate| match exploit {
            _ if !stays(c) => None,
            true => (c.cached_blocks == longest).then(|| self.load(decision, c)),
            false => Some(self.cost(decision, c)),
        };
        let index = least_known(candidates, rng, measure).ok_or(None)?;
        let reason = match exploit {
            _ if uneven => Reason::Imbalance,
            true => Reason::PrefixHit,
            false => Reason::LeastCost,
        };
        let picked = &candidates[index];
        let predicted = decision.predict(picked);
        let work = f64::from(predicted.own) + self.settings.output_tokens * f64::from(predicted.step_after);
        self.cell(decision, picked).add(&self.scale, decision.request.now_us, work);
        Ok(Choice { index, reason })
    }

    /// Load and own prefill, microseconds.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(self.cost(decision, candidate))
    }
}
