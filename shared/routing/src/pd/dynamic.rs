//! `dynamic-pd-split`.

use super::transfer::Transfers;
use super::{Pair, PairChoice, Pairing};
use crate::fleet::{LATELY_S, PaceSeen, Parts};
use crate::policy::cost::{Cost, Outlook};
use crate::policy::{Candidate, Choice, Decision, Missing, Policy, Reason, Scope};
use crate::rng::Rng;
use crate::settings::{DynamicPdSettings, Settings};
use fairlead_wire::msg::ServingRole;

/// Targets of each side of which pairs are made.
const BEST: usize = 4;
/// Share of the prompt that a target must hold for its being served there to count as a conversation going on.
const CONVERSATION: f32 = 0.5;

pub(crate) struct DynamicPdSplit {
    cost: Cost,
    settings: DynamicPdSettings,
}

/// What a decision knows before it looks at a target.
struct View {
    cost: Outlook,
    /// Limits up to which a prediction counts as keeping them, microseconds.
    ttft: f32,
    tpot: f32,
}

/// A choice's rank: how far it misses the limits (at most 1 where it keeps them), then its cost.
#[derive(Clone, Copy, Debug)]
struct Rank {
    missed: f32,
    cost: f32,
}

impl Rank {
    fn new(missed: f32, cost: f32) -> Self {
        Self { missed: missed.max(1.0), cost }
    }

    fn is_before(&self, other: &Self) -> bool {
        self.missed.total_cmp(&other.missed).then(self.cost.total_cmp(&other.cost)).is_lt()
    }
}

/// A target as a leg's place.
#[derive(Clone, Copy)]
struct Side {
    index: usize,
    rank: Rank,
    /// Time to the first token that is spent there.
    ttft: f32,
    /// Time per token there over its limit, or of those that it disturbs.
    tpot: f32,
}

/// The best few.
struct Best {
    sides: [Option<Side>; BEST],
}

impl Best {
    fn new() -> Self {
        Self { sides: [None; BEST] }
    }

    fn offer(&mut self, side: Side) {
        let better = |held: &Option<Side>| held.is_none_or(|held| side.rank.is_before(&held.rank));
        if let Some(at) = self.sides.iter().position(better) {
            self.sides[at..].rotate_right(1);
            self.sides[at] = Some(side);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Side> {
        self.sides.iter().flatten()
    }
}

impl DynamicPdSplit {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self { cost: Cost::new(settings), settings: settings.dynamic_pd_split }
    }

    fn view(&self, decision: &Decision<'_>) -> View {
        let s = &self.settings;
        let limit =
            |own: u32, default_ms: f32| s.margin * if own > 0 { own as f32 } else { default_ms * 1e3 };
        View {
            cost: self.cost.outlook(decision),
            ttft: limit(decision.request.slo.ttft_us, s.target_ttft_ms),
            tpot: limit(decision.request.slo.tpot_us, s.target_tpot_ms),
        }
    }

    /// What a target costs that leans to the other part.
    fn lean(&self, candidate: &Candidate, part: ServingRole, cost: f32) -> f32 {
        match candidate.leaning {
            ServingRole::Both => cost,
            leaning if leaning == part => cost,
            _ => cost * (1.0 + self.settings.leaning),
        }
    }
}

/// Mean time per token where prefill takes that share of the time.
fn tpot(step: f32, share: f32) -> f32 {
    step / (1.0 - share.min(0.95))
}

impl Policy for DynamicPdSplit {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn scope(&self) -> Scope {
        Scope::Sample
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        self.cost.pick(decision, rng)
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        self.cost.value(decision, candidate)
    }

    fn pairing(&self) -> Option<&dyn Pairing> {
        Some(self)
    }
}

impl Pairing for DynamicPdSplit {
    fn pick_pair(
        &self,
        decision: &Decision<'_>,
        _side: &mut Vec<Candidate>,
        rng: &mut Rng,
    ) -> Option<PairChoice> {
        const LATELY_US: f32 = LATELY_S as f32 * 1e6;
        let view = self.view(decision);
        let all = decision.candidates;
        let transfers = Transfers::new(decision, &self.settings, all.iter().find(|c| c.domain > 0)?);
        let (mut local, mut prefill, mut decode) = (Best::new(), Best::new(), Best::new());
        let mut seen = PaceSeen::default();
        // From a place that is drawn, so that equals are not always taken in the same order.
        let from = rng.below(all.len());
        for index in (from..all.len()).chain(0..from) {
            let c = &all[index];
            let p = decision.predict(c);
            let costed = self.cost.parts(decision, &p, &view.cost);
            seen.queue += p.queue;
            seen.prefill += p.prefill;
            seen.targets += 1.0;
            let share = decision.prefill_share(c, &p);
            // Those that decode there wait for the prompt as much as for all that is prefilled there.
            let with_prompt = share + p.own / LATELY_US;
            let disturbed = if p.batch > 0.0 { tpot(p.step, with_prompt) } else { 0.0 };
            if c.parts.has(Parts::WHOLE) {
                let tpot = tpot(p.step_after, with_prompt);
                let missed = (p.ttft / view.ttft).max(tpot / view.tpot);
                let cost = self.lean(c, ServingRole::Both, costed.prefill + costed.decode);
                local.offer(Side { index, rank: Rank::new(missed, cost), ttft: p.ttft, tpot });
            }
            if c.parts.has(Parts::PREFILL) {
                let missed = (p.ttft / view.ttft).max(disturbed / view.tpot);
                let cost = self.lean(c, ServingRole::Prefill, costed.prefill);
                prefill.offer(Side { index, rank: Rank::new(missed, cost), ttft: p.ttft, tpot: disturbed });
            }
            if c.parts.has(Parts::DECODE) {
                let moved = transfers.between_hosts(decision, c);
                let ttft = moved + p.step_after + p.room;
                let tpot = tpot(p.step_after, share);
                let missed = (ttft / view.ttft).max(tpot / view.tpot);
                let cost = self.lean(c, ServingRole::Decode, ttft + costed.decode);
                decode.offer(Side { index, rank: Rank::new(missed, cost), ttft, tpot });
            }
        }
        let local = local.sides[0];
        let mut remote: Option<(Pair, Rank, f32, f32)> = None;
        for p in prefill.iter() {
            for d in decode.iter() {
                let (from, to) = (&all[p.index], &all[d.index]);
                if from.domain != to.domain || from.number == to.number {
                    continue;
                }
                let transfer = transfers.time(decision, from, to);
                let saved = transfers.between_hosts(decision, to) - transfer;
                let ttft = p.ttft + d.ttft - saved;
                let missed = (ttft / view.ttft).max(p.tpot.max(d.tpot) / view.tpot);
                let rank = Rank::new(missed, p.rank.cost + d.rank.cost - saved);
                if remote.as_ref().is_none_or(|(_, best, ..)| rank.is_before(best)) {
                    remote = Some((Pair { prefill: p.index, decode: d.index }, rank, ttft, transfer));
                }
            }
        }
        let chosen = match (local, remote) {
            (None, None) => None,
            (Some(local), Some((_, rank, ..))) if !rank.is_before(&local.rank) => Some(Ok(local)),
            (Some(local), None) => Some(Ok(local)),
            (_, Some(remote)) => Some(Err(remote)),
        }?;
        let own = |index: usize| decision.predict(&all[index]).own;
        match chosen {
            Ok(side) => {
                decision.model.pace.note(&seen, own(side.index));
                let held = decision.request.tokens_of(all[side.index].cached_blocks);
                let backed_up =
                    remote.is_some_and(|(_, rank, ttft, _)| rank.missed > 1.0 && ttft > view.ttft);
                let reason = match () {
                    () if side.rank.missed > 1.0 => Reason::SloInfeasible,
                    () if held as f32 >= CONVERSATION * decision.request.prompt_tokens as f32 => {
                        Reason::LocalPrefix
                    }
                    () if backed_up => Reason::LocalBacklog,
                    () => Reason::Local,
                };
                Some(PairChoice::Whole { index: side.index, reason })
            }
            Err((pair, rank, ttft_us, transfer_us)) => {
                decision.model.pace.note(&seen, own(pair.prefill));
                let reason = if rank.missed > 1.0 { Reason::RemoteInfeasible } else { Reason::Remote };
                Some(PairChoice::Apart { pair, reason, ttft_us, transfer_us, missing: None })
            }
        }
    }
}
