//! `pd-split`, and how a policy that knows nothing of pairs makes one.

use super::transfer::Transfers;
use super::{Domains, Pair, PairChoice, Pairing};
use crate::fleet::Parts;
use crate::policy::{Candidate, Choice, Decision, Missing, Policy, Reason, Scope};
use crate::registry::PolicyName;
use crate::rng::Rng;
use crate::settings::{DynamicPdSettings, Settings};
use crate::strategy::Strategy;

/// Prefill and decode always apart, each side by a policy of its own.
///
/// Rule (PAI-EAS, policy `pd-split`): first the prefill target, by `prefill_policy` among the targets that take prefill
/// legs and have a decode target of their domain; then the decode target, by `decode_policy` among those of that domain.
/// On the decode side every target counts as holding the whole prompt, since that is what the hand-off brings. A request
/// that cannot be split, or finds no pair, is served whole by `prefill_policy`.
///
/// Inputs: those of the two policies. Source: PAI-EAS's guide (`prefill_policy`, `decode_policy`); either may be any
/// policy here.
pub(crate) struct PdSplit {
    prefill: Strategy,
    decode: Strategy,
    settings: DynamicPdSettings,
}

impl PdSplit {
    pub(crate) fn new(settings: &Settings) -> Self {
        // A pair within a side makes no sense; the default policy stands for it.
        let side = |name: PolicyName| match name {
            PolicyName::PdSplit | PolicyName::DynamicPdSplit | PolicyName::Pd => PolicyName::default(),
            name => name,
        };
        Self {
            prefill: Strategy::new(side(settings.sides.prefill), settings),
            decode: Strategy::new(side(settings.sides.decode), settings),
            settings: settings.dynamic_pd_split,
        }
    }
}

impl Policy for PdSplit {
    fn wants_prefix(&self) -> bool {
        self.prefill.wants_prefix() || self.decode.wants_prefix()
    }

    fn scope(&self) -> Scope {
        match self.prefill.policy().scope() {
            // The holders alone answer only for policies that are asked about them.
            Scope::Holders => Scope::All,
            scope => scope,
        }
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        Ok(self.prefill.pick(decision, rng).choice)
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        self.prefill.policy().value(decision, candidate)
    }

    fn pairing(&self) -> Option<&dyn Pairing> {
        Some(self)
    }
}

impl Pairing for PdSplit {
    fn pick_pair(
        &self,
        decision: &Decision<'_>,
        side: &mut Vec<Candidate>,
        rng: &mut Rng,
    ) -> Option<PairChoice> {
        sides(&self.prefill, &self.decode, &self.settings, decision, side, rng)
    }
}

/// Picks on each side by a strategy of its own; where no two make a pair, one that serves whole requests by the first.
pub(crate) fn sides(
    prefill: &Strategy,
    decode: &Strategy,
    settings: &DynamicPdSettings,
    decision: &Decision<'_>,
    side: &mut Vec<Candidate>,
    rng: &mut Rng,
) -> Option<PairChoice> {
    apart(prefill, decode, settings, decision, side, rng).or_else(|| {
        let (index, reason) = whole(prefill, decision, side, rng)?;
        Some(PairChoice::Whole { index, reason })
    })
}

fn apart(
    prefill: &Strategy,
    decode: &Strategy,
    settings: &DynamicPdSettings,
    decision: &Decision<'_>,
    side: &mut Vec<Candidate>,
    rng: &mut Rng,
) -> Option<PairChoice> {
    let all = decision.candidates;
    let mut reached = Domains::default();
    all.iter().filter(|c| c.parts.has(Parts::DECODE)).for_each(|c| reached.add(c.domain));
    let (p, of_prefill) = picked(prefill, decision, side, rng, |c| {
        (c.parts.has(Parts::PREFILL) && reached.has(c.domain)).then_some(*c)
    })?;
    let from = &all[p];
    let blocks = decision.prompt_blocks();
    let (d, of_decode) = picked(decode, decision, side, rng, |c| {
        let fits = c.parts.has(Parts::DECODE) && c.domain == from.domain && c.number != from.number;
        fits.then_some(Candidate { cached_blocks: blocks, ..*c })
    })?;
    let to = &all[d];
    let transfer_us = Transfers::new(decision, settings, from).time(decision, from, to);
    let step = decision.predict(to).step_after;
    let ttft_us = decision.predict(from).ttft + transfer_us + step;
    let (pair, missing) = (Pair { prefill: p, decode: d }, of_prefill.or(of_decode));
    Some(PairChoice::Apart { pair, reason: Reason::Remote, ttft_us, transfer_us, missing })
}

fn whole(
    strategy: &Strategy,
    decision: &Decision<'_>,
    side: &mut Vec<Candidate>,
    rng: &mut Rng,
) -> Option<(usize, Reason)> {
    let whole = |c: &Candidate| c.parts.has(Parts::WHOLE).then_some(*c);
    let (index, _) = picked(strategy, decision, side, rng, whole)?;
    Some((index, Reason::PrefillDown))
}

/// What a strategy picks of the candidates that `take` admits, by its index among all, and the figure that it lacked.
fn picked(
    strategy: &Strategy,
    decision: &Decision<'_>,
    side: &mut Vec<Candidate>,
    rng: &mut Rng,
    take: impl Fn(&Candidate) -> Option<Candidate>,
) -> Option<(usize, Option<Missing>)> {
    side.clear();
    side.extend(decision.candidates.iter().filter_map(take));
    if side.is_empty() {
        return None;
    }
    let Decision { request, targets, model, fleet, .. } = *decision;
    let picked = strategy.pick(&Decision { request, candidates: side, targets, model, fleet }, rng);
    let number = side.get(picked.choice.index)?.number;
    let index = decision.candidates.iter().position(|c| c.number == number)?;
    Some((index, picked.missing))
}
