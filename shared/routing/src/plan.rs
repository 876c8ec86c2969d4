//! One decision: filter, look up, pick, reserve.

use std::sync::Arc;

use fairlead_prefix::Hits;

use crate::candidates::{Seen, gather};
use crate::explain::Explain;
use crate::fleet::{Fleet, Mode, Reservation, TargetEntry};
use crate::policy::{Candidate, Decision, Missing, Reason, Scope};
use crate::registry::PolicyName;
use crate::request::PlanRequest;
use crate::rng::Rng;
use crate::settings::Settings;
use crate::strategy::{Picked, Strategy};

/// The decision.
#[derive(Debug)]
pub struct Plan {
    /// Load reserved on the target; hold it until the request ends.
    pub reservation: Reservation,
    /// Leading blocks that the target holds, as far as this gateway knows.
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

impl Plan {
    /// The target picked.
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
}

/// Buffers and random state of one shard, reused from decision to decision so that the steady path allocates nothing.
pub struct Scratch {
    pub(crate) candidates: Vec<Candidate>,
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
        Self { candidates: Vec::new(), hits: Vec::new(), rng: Rng::new(seed), seen: Seen::default(), blind }
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
    explain: Option<&mut Explain>,
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
            gather(Scope::All, request, model, mode, scratch)?;
        }
    }
    let decision = Decision { request, candidates: &scratch.candidates, targets, model: &model.cells, fleet };
    let strategy = if mode == Mode::Blind { &scratch.blind } else { request.strategy };
    // Also where there is no choice: policies that take turns or keep accounts count it.
    let mut picked = early.unwrap_or_else(|| strategy.pick(&decision, &mut scratch.rng));
    if mode == Mode::Blind {
        picked.choice.reason = Reason::Blind;
    } else if let ([_], None) = (decision.candidates, early) {
        picked.choice.reason = Reason::OnlyCandidate;
    }
    if let Some(explain) = explain {
        let deciding = (mode != Mode::Blind).then(|| request.strategy.member(picked.policy)).flatten();
        explain.fill(&decision, &picked, deciding, mode);
    }
    let Picked { choice, policy, missing } = picked;
    let candidate = &scratch.candidates[choice.index];
    let target = &model.targets[candidate.number as usize];
    let cached_blocks = candidate.cached_blocks;
    let predicted_ttft_us = decision.predict(candidate).ttft as u32;
    if wanted {
        let held = scratch.candidates.iter().map(|c| c.cached_blocks).max().unwrap_or(0);
        let tokens = match request.block_tokens {
            0 => request.prompt_tokens as f32 / request.path.len() as f32,
            tokens => tokens as f32,
        };
        model.cells.pressure.note(request.path, tokens, held, request.uncached(cached_blocks));
    }
    let (prompt, uncached) = (u64::from(request.prompt_tokens), u64::from(request.uncached(cached_blocks)));
    let reservation = Reservation::new(target.clone(), prompt, uncached, request.now_us);
    let (reason, candidates) = (choice.reason, scratch.candidates.len());
    Ok(Plan { reservation, cached_blocks, policy, reason, missing, predicted_ttft_us, candidates })
}
