//! `dynamic-pd-split`.

use super::transfer::Transfers;
use super::{Pair, PairChoice, Pairing};
use crate::fleet::{PaceSeen, Parts};
use crate::policy::cost::{Cost, Outlook};
use crate::policy::{ANSWER_TOKENS, Candidate, Choice, Decision, Missing, Policy, Predicted, Reason, Scope};
use crate::rng::Rng;
use crate::settings::{DynamicPdSettings, Settings};
use fairlead_wire::msg::ServingRole;

/// Targets of each side of which pairs are made.
const BEST: usize = 4;
/// Share of the prompt that a target must hold for its being served there to count as a conversation going on.
const CONVERSATION: f32 = 0.5;

/// Tokens of a short answer, which bear the whole of a prefill that falls among them.
const SHORT_ANSWER: f32 = 64.0;

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

/// A choice's rank: how slow tokens become over their limit, how late the first one is over its own (1 where they are
/// kept), then its cost. Slow tokens come first: they are those of all that decode there, the late one is one.
#[derive(Clone, Copy, Debug)]
struct Rank {
    slow: f32,
    late: f32,
    cost: f32,
}

impl Rank {
    fn new(slow: f32, late: f32, cost: f32) -> Self {
        Self { slow: slow.max(1.0), late: late.max(1.0), cost }
    }

    fn is_before(&self, other: &Self) -> bool {
        let order = self.slow.total_cmp(&other.slow).then(self.late.total_cmp(&other.late));
        order.then(self.cost.total_cmp(&other.cost)).is_lt()
    }

    fn keeps(&self) -> bool {
        self.slow.max(self.late) <= 1.0
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

/// Mean time per token where prefill takes that share of the time, and `more` of it falls to a short answer besides.
fn tpot(step: f32, share: f32, more: f32) -> f32 {
    step / (1.0 - share.min(0.95)) + more / SHORT_ANSWER
}

/// Time until the batch has a place for one more: a place is given back with each answer that ends.
fn place_wait(decision: &Decision<'_>, candidate: &Candidate, p: &Predicted) -> f32 {
    let Some(most) = decision.target(candidate).info.max_num_seqs else { return 0.0 };
    let beyond = candidate.requests.saturating_sub(u64::from(most).saturating_sub(1));
    beyond as f32 * ANSWER_TOKENS * p.step / most.max(1) as f32
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
        let view = self.view(decision);
        let all = decision.candidates;
        let transfers = Transfers::new(decision, &self.settings, all.iter().find(|c| c.domain > 0)?);
        let (mut local, mut prefill, mut decode) = (Best::new(), Best::new(), Best::new());
        // Where the scheduler has parted the pool, each part keeps to its own. A pool that nobody has parted serves whole
        // requests: each gateway by itself would part it in another way.
        let parted = all.iter().any(|c| c.leaning != ServingRole::Both || !c.parts.has(Parts::WHOLE));
        if !parted {
            let choice = self.cost.pick(decision, rng).ok()?;
            return Some(PairChoice::Whole { index: choice.index, reason: Reason::Local });
        }
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
            // A target that leans to prefill has few left to decode, soon none: they are not spared, or its whole part of
            // the prefill would fall to others.
            let spared = p.batch > 0.0 && c.leaning != ServingRole::Prefill;
            let disturbed = if spared { tpot(p.step, share, p.queue + p.own) } else { 0.0 };
            if c.parts.has(Parts::WHOLE) && c.leaning != ServingRole::Prefill {
                let tpot = tpot(p.step_after, share, p.queue + p.own);
                let cost = self.lean(c, ServingRole::Both, costed.prefill + costed.decode);
                let rank = Rank::new(tpot / view.tpot, p.ttft / view.ttft, cost);
                local.offer(Side { index, rank, ttft: p.ttft, tpot });
            }
            if c.parts.has(Parts::PREFILL)
                && (c.leaning == ServingRole::Prefill || !c.parts.has(Parts::DECODE))
            {
                let cost = self.lean(c, ServingRole::Prefill, costed.prefill);
                let rank = Rank::new(disturbed / view.tpot, p.ttft / view.ttft, cost);
                prefill.offer(Side { index, rank, ttft: p.ttft, tpot: disturbed });
            }
            if c.parts.has(Parts::DECODE) && c.leaning != ServingRole::Prefill {
                let moved = transfers.between_hosts(decision, c);
                let ttft = moved + p.step_after + p.room + place_wait(decision, c, &p);
                let tpot = tpot(p.step_after, share, p.queue);
                let cost = self.lean(c, ServingRole::Decode, ttft + costed.decode);
                let rank = Rank::new(tpot / view.tpot, ttft / view.ttft, cost);
                decode.offer(Side { index, rank, ttft, tpot });
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
                let slow = p.tpot.max(d.tpot) / view.tpot;
                let rank = Rank::new(slow, ttft / view.ttft, p.rank.cost + d.rank.cost - saved);
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
                let backed_up = remote.is_some_and(|(_, rank, ..)| rank.late > 1.0);
                let reason = match () {
                    () if !side.rank.keeps() => Reason::SloInfeasible,
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
                let reason = if rank.keeps() { Reason::Remote } else { Reason::RemoteInfeasible };
                Some(PairChoice::Apart { pair, reason, ttft_us, transfer_us, missing: None })
            }
        }
    }
}
