//! One decision: filter, look up, pick, reserve.

use std::sync::Arc;

use fairlead_prefix::Hits;

use crate::explain::Explain;
use crate::filter::{Filters, Strictness};
use crate::fleet::{Fleet, Mode, ModelEntry, Reservation, Row, TargetEntry};
use crate::policy::{Candidate, Decision, Missing, Reason};
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
    /// Targets that were eligible.
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
    candidates: Vec<Candidate>,
    /// One per source of prefixes.
    hits: Vec<Hits>,
    rng: Rng,
    /// What decides when the fleet's state is too old for any other.
    blind: Strategy,
}

impl Scratch {
    /// Scratch space whose ties are drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        let blind = Strategy::new(PolicyName::RoundRobin, &Settings::default());
        Self { candidates: Vec::new(), hits: Vec::new(), rng: Rng::new(seed), blind }
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
    collect(request, model, mode, scratch)?;
    let candidates = &scratch.candidates;
    let decision = Decision { request, candidates, targets: &model.targets, model: &model.cells, fleet };
    let strategy = if mode == Mode::Blind { &scratch.blind } else { request.strategy };
    // Also where there is no choice: policies that take turns or keep accounts count it.
    let mut picked = strategy.pick(&decision, &mut scratch.rng);
    if mode == Mode::Blind {
        picked.choice.reason = Reason::Blind;
    } else if let [_] = decision.candidates {
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

/// Fills `scratch.candidates` with the eligible targets: those that pass the filters of which the fewest are given up.
fn collect(
    request: &PlanRequest<'_>,
    model: &ModelEntry,
    mode: Mode,
    scratch: &mut Scratch,
) -> Result<(), NoPlan> {
    let Scratch { candidates, hits, .. } = scratch;
    // Those with an answer first: a replica that is empty, or an overlay without this prefix, costs nothing a target.
    let mut answers = 0;
    for at in 0..hits.len() {
        if !hits[at].is_empty() {
            hits.swap(at, answers);
            answers += 1;
        }
    }
    let hits = &hits[..answers];
    candidates.reserve(model.rows().len());

    let mut filters = Filters::new(request, mode);
    for step in Strictness::STEPS {
        if !filters.begin(step) {
            continue;
        }
        candidates.clear();
        for (number, row) in model.rows().iter().enumerate() {
            if !filters.admits(step, row, model, number) {
                continue;
            }
            let mut cached = 0;
            for hits in hits {
                cached = cached.max(hits.get(row.slot));
            }
            if filters.has_room(step, row, cached) {
                candidates.push(candidate(row, number, cached, mode, request));
            }
        }
        if !candidates.is_empty() {
            return Ok(());
        }
    }
    Err(filters.why_none(model))
}

#[inline]
fn candidate(
    row: &Row,
    number: usize,
    cached_blocks: u32,
    mode: Mode,
    request: &PlanRequest<'_>,
) -> Candidate {
    let cells = &*row.cells;
    let mut sums = cells.counters.in_flight();
    let mut foreign = 0;
    if mode == Mode::Fresh {
        sums.add(&cells.peers());
        // Foreign requests are known by number only; each is taken to be as long as this one.
        foreign = u64::from(cells.load.foreign_requests().unwrap_or(0));
    }
    let (queued_tokens, queued_us) = (sums.prefill_tokens, sums.prefill_us);
    let tokens = queued_tokens
        .saturating_add(sums.context_tokens)
        .saturating_add(foreign * u64::from(request.prompt_tokens));
    Candidate {
        number: number as u32,
        cached_blocks,
        requests: sums.requests.saturating_add(foreign),
        prefilling: sums.prefilling,
        queued_tokens,
        queued_us,
        context_tokens: sums.context_tokens,
        tokens,
    }
}
