//! One decision: filter, look up, pick, reserve.

use std::sync::Arc;

use fairlead_prefix::Hits;

use fairlead_wire::msg::Handoff;

use crate::candidates::{Seen, gather, gather_pairs};
use crate::explain::Explain;
use crate::fleet::{Fleet, Mode, ModelEntry, Reservation, TargetEntry};
use crate::pd::{PairChoice, sides};
use crate::policy::{Candidate, Choice, Decision, Missing, Reason, Scope};
use crate::registry::PolicyName;
use crate::request::PlanRequest;
use crate::rng::Rng;
use crate::settings::Settings;
use crate::strategy::{Picked, Strategy};

/// The decision.
#[derive(Debug)]
pub struct Plan {
    /// Load reserved on the target that makes the answer; hold it until the request ends.
    pub reservation: Reservation,
    /// The prefill leg, where another target prefills.
    pub prefill: Option<PrefillPlan>,
    /// Leading blocks that the target that prefills holds, as far as this gateway knows.
    pub cached_blocks: u32,
    /// Policy that decided.
    pub policy: PolicyName,
    /// Why this target.
    pub reason: Reason,
    /// The figure for want of which the policy asked for could not decide, where that was so.
    pub missing: Option<Missing>,
    /// Predicted time to the first token, microseconds.
    pub predicted_ttft_us: u32,
    /// Eligible targets that the decision looked at.
    pub candidates: usize,
}

/// The prefill leg of a plan.
#[derive(Debug)]
pub struct PrefillPlan {
    /// Load reserved on the target that prefills; hold it until the hand-off.
    pub reservation: Reservation,
    /// How it hands KV over.
    pub handoff: Handoff,
    /// Leading blocks that the target that decodes holds itself.
    pub decode_cached_blocks: u32,
    /// Predicted time from the end of the prefill leg to the first token, less that token's step, microseconds.
    pub transfer_us: f32,
    /// Predicted step of the first token, microseconds.
    pub step_us: f32,
}

impl Plan {
    /// The target picked: with a prefill leg, the one that decodes.
    pub fn target(&self) -> &Arc<TargetEntry> {
        self.reservation.target()
    }
}

/// Why there is no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlan {
    /// No target serves that model.
    #[error("no such model")]
    UnknownModel,
    /// Targets serve the model, but none is ready.
    #[error("no ready target serves the model")]
    NoneReady,
    /// Targets serve the model, but the request's label filter matches none of them.
    #[error("no target of the model matches the label filter")]
    NoneMatches,
    /// Every ready target has been tried by this request.
    #[error("every ready target has been tried")]
    AllTried,
    /// The request cannot be split, or not now, and no target of the model serves whole requests.
    #[error("no target of the model serves whole requests")]
    NoneWhole,
}

/// Buffers and random state of one shard, reused from decision to decision so that the steady path allocates nothing.
pub struct Scratch {
    pub(crate) candidates: Vec<Candidate>,
    /// A part of them.
    side: Vec<Candidate>,
    /// One per source of prefixes.
    pub(crate) hits: Vec<Hits>,
    pub(crate) rng: Rng,
    pub(crate) seen: Seen,
    /// What decides when the fleet's state is too old for any other.
    blind: Strategy,
}

impl Scratch {
    /// Scratch space whose ties are drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        let blind = Strategy::new(PolicyName::RoundRobin, &Settings::default());
        Self {
            candidates: Vec::new(),
            side: Vec::new(),
            hits: Vec::new(),
            rng: Rng::new(seed),
            seen: Seen::default(),
            blind,
        }
    }
}

/// Picks a target for the request and reserves its load there.
///
/// # Errors
/// [`NoPlan`] says whether the model is unknown, asleep, or exhausted by retries.
pub fn plan(request: &PlanRequest<'_>, fleet: &Fleet, scratch: &mut Scratch) -> Result<Plan, NoPlan> {
    decide(request, fleet, scratch, None)
}

/// As [`plan`], and fills `explain` with what the decision saw. Allocates.
///
/// # Errors
/// As for [`plan`]; `explain` is then left as it was.
pub fn plan_explained(
    request: &PlanRequest<'_>,
    fleet: &Fleet,
    scratch: &mut Scratch,
    explain: &mut Explain,
) -> Result<Plan, NoPlan> {
    decide(request, fleet, scratch, Some(explain))
}

#[inline]
fn decide(
    request: &PlanRequest<'_>,
    fleet: &Fleet,
    scratch: &mut Scratch,
    mut explain: Option<&mut Explain>,
) -> Result<Plan, NoPlan> {
    let table = fleet.table();
    let model = table.model(request.model).ok_or(NoPlan::UnknownModel)?;
    let mode = fleet.mode();
    scratch.hits.resize_with(fleet.prefixes().len(), Hits::default);
    let wanted = request.strategy.wants_prefix() && mode != Mode::Blind && !request.path.is_empty();
    for (reader, hits) in fleet.prefixes().iter().zip(&mut scratch.hits) {
        if wanted {
            reader.lookup(request.path, hits);
        } else {
            hits.clear();
        }
    }
    // Where some targets only prefill, a policy that knows nothing of pairs makes them all the same.
    let split = model.can_split() && (request.strategy.pairing().is_some() || model.is_split());
    let mut instead = None;
    if split && request.splits {
        match apart(request, fleet, model, mode, scratch, explain.as_deref_mut()) {
            Some(plan) => return Ok(plan),
            None => instead = Some(Reason::PrefillDown),
        }
    } else if split || model.is_split() {
        instead = Some(if request.splits { Reason::PrefillDown } else { Reason::NotSplit });
    }
    let scope = match mode {
        // An explained decision looks at all of them, so that the record tells of all.
        _ if explain.is_some() => Scope::All,
        Mode::Blind => Scope::All,
        Mode::Fresh | Mode::Stale => request.strategy.policy().scope(),
    };
    let targets = &model.targets;
    let mut early = None;
    if gather(scope, request, model, mode, scratch)? == Scope::Holders {
        let decision =
            Decision { request, candidates: &scratch.candidates, targets, model: &model.cells, fleet };
        early = request.strategy.pick_holder(&decision, &mut scratch.rng);
        if early.is_none() {
            let scope = request.strategy.policy().scope_after_holders(&decision);
            gather(scope, request, model, mode, scratch)?;
        }
    }
    let decision = Decision { request, candidates: &scratch.candidates, targets, model: &model.cells, fleet };
    let strategy = if mode == Mode::Blind { &scratch.blind } else { request.strategy };
    // Also where there is no choice: policies that take turns or keep accounts count it.
    let mut picked = early.unwrap_or_else(|| strategy.pick(&decision, &mut scratch.rng));
    if mode == Mode::Blind {
        picked.choice.reason = Reason::Blind;
    } else if let Some(reason) = instead {
        picked.choice.reason = reason;
    } else if let ([_], None) = (decision.candidates, early) {
        picked.choice.reason = Reason::OnlyCandidate;
    }
    if let Some(explain) = explain {
        let deciding = (mode != Mode::Blind).then(|| request.strategy.member(picked.policy)).flatten();
        explain.fill(&decision, &picked, deciding, mode);
    }
    Ok(reserve_whole(&decision, scratch.candidates.len(), picked, wanted))
}

/// Reserves the whole of the request at the target picked.
fn reserve_whole(decision: &Decision<'_>, candidates: usize, picked: Picked, wanted: bool) -> Plan {
    let Picked { choice, policy, missing } = picked;
    let request = decision.request;
    let candidate = &decision.candidates[choice.index];
    let target = &decision.targets[candidate.number as usize];
    let cached_blocks = candidate.cached_blocks;
    let predicted_ttft_us = decision.predict(candidate).ttft as u32;
    if wanted {
        note_pressure(decision, cached_blocks);
    }
    let (prompt, uncached) = (u64::from(request.prompt_tokens), u64::from(request.uncached(cached_blocks)));
    let reservation = Reservation::new(target.clone(), prompt, uncached, request.now_us);
    let reason = choice.reason;
    Plan { reservation, prefill: None, cached_blocks, policy, reason, missing, predicted_ttft_us, candidates }
}

fn note_pressure(decision: &Decision<'_>, cached_blocks: u32) {
    let request = decision.request;
    let held = decision.candidates.iter().map(|c| c.cached_blocks).max().unwrap_or(0);
    let tokens = match request.block_tokens {
        0 => request.prompt_tokens as f32 / request.path.len() as f32,
        tokens => tokens as f32,
    };
    decision.model.pressure.note(request.path, tokens, held, request.uncached(cached_blocks));
}

/// Places prefill and decode, apart or not; `None` where there is no pair, nor a target for the whole request among those
/// looked at.
fn apart(
    request: &PlanRequest<'_>,
    fleet: &Fleet,
    model: &ModelEntry,
    mode: Mode,
    scratch: &mut Scratch,
    explain: Option<&mut Explain>,
) -> Option<Plan> {
    if !gather_pairs(request, model, mode, explain.is_some() || mode == Mode::Blind, scratch) {
        return None;
    }
    let Scratch { candidates, side, rng, blind, .. } = scratch;
    let (targets, wanted) = (&model.targets, request.strategy.wants_prefix() && mode != Mode::Blind);
    let decision = Decision { request, candidates, targets, model: &model.cells, fleet };
    let strategy = if mode == Mode::Blind { &*blind } else { request.strategy };
    let transfer = &fleet.transfer;
    let choice = match strategy.pairing() {
        Some(pairing) => pairing.pick_pair(&decision, side, rng),
        None => sides(strategy, strategy, transfer, &decision, side, rng),
    }?;
    let wanted = wanted && !request.path.is_empty();
    let (pair, mut reason, ttft_us, transfer_us, missing) = match choice {
        PairChoice::Whole { index, reason } => {
            let picked = Picked { choice: Choice { index, reason }, policy: strategy.name(), missing: None };
            if let Some(explain) = explain {
                explain.fill(&decision, &picked, Some(strategy.policy()), mode);
            }
            return Some(reserve_whole(&decision, candidates.len(), picked, wanted));
        }
        PairChoice::Apart { pair, reason, ttft_us, transfer_us, missing } => {
            (pair, reason, ttft_us, transfer_us, missing)
        }
    };
    if mode == Mode::Blind {
        reason = Reason::Blind;
    }
    let (from, to) = (&candidates[pair.prefill], &candidates[pair.decode]);
    let (p, d) = (&targets[from.number as usize], &targets[to.number as usize]);
    if let Some(explain) = explain {
        let choice = Choice { index: pair.decode, reason };
        let picked = Picked { choice, policy: strategy.name(), missing };
        explain.fill(&decision, &picked, Some(strategy.policy()), mode);
        explain.prefill = Some(p.name.clone());
        explain.transfer_us = Some(transfer_us);
    }
    let step_us = decision.predict(to).step_after;
    if wanted {
        note_pressure(&decision, from.cached_blocks);
    }
    let prompt = u64::from(request.prompt_tokens);
    let uncached = u64::from(request.uncached(from.cached_blocks));
    let handoff = p.handoff()?;
    // Both at once: a burst sees itself on both sides.
    let prefill = PrefillPlan {
        reservation: Reservation::prefill_leg(p.clone(), prompt, uncached, request.now_us),
        handoff,
        decode_cached_blocks: to.cached_blocks,
        transfer_us,
        step_us,
    };
    Some(Plan {
        reservation: Reservation::decode_leg(d.clone(), prompt, request.now_us),
        prefill: Some(prefill),
        cached_blocks: from.cached_blocks,
        policy: strategy.name(),
        reason,
        missing,
        predicted_ttft_us: ttft_us as u32,
        candidates: candidates.len(),
    })
}
