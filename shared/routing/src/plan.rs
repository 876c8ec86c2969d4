//! One decision: filter, look up, pick, reserve.

use std::sync::Arc;

use fairlead_prefix::Hits;

use crate::fleet::{Fleet, Mode, ModelEntry, Reservation, Row, TargetEntry};
use crate::policy::{Candidate, Choice, Decision, PolicyName, Reason};
use crate::rng::Rng;

/// What a request needs of the fleet.
#[derive(Clone, Copy, Debug)]
pub struct PlanRequest<'a> {
    /// Model asked for.
    pub model: &'a str,
    /// Chained hashes of the prompt's full blocks.
    pub path: &'a [u64],
    /// Estimated tokens of the whole prompt.
    pub prompt_tokens: u32,
    /// Tokens in a block of `path`; 0 where its blocks are of bytes.
    pub block_tokens: u32,
    /// Targets that this request has tried already.
    pub tried: &'a [Arc<TargetEntry>],
    /// How to pick.
    pub policy: PolicyName,
    /// Clock of the process, microseconds.
    pub now_us: u64,
}

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
}

impl Scratch {
    /// Scratch space whose ties are drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { candidates: Vec::new(), hits: Vec::new(), rng: Rng::new(seed) }
    }
}

/// Picks a target for the request and reserves its load there.
///
/// # Errors
/// [`NoPlan`] says whether the model is unknown, asleep, or exhausted by retries.
pub fn plan(request: &PlanRequest<'_>, fleet: &Fleet, scratch: &mut Scratch) -> Result<Plan, NoPlan> {
    let table = fleet.table();
    let model = table.model(request.model).ok_or(NoPlan::UnknownModel)?;
    let mode = fleet.mode();
    let policy_name = if mode == Mode::Blind { PolicyName::RoundRobin } else { request.policy };
    let policy = policy_name.policy();

    scratch.hits.resize_with(fleet.prefixes().len(), Hits::default);
    let wanted = policy.wants_prefix() && !request.path.is_empty();
    for (reader, hits) in fleet.prefixes().iter().zip(&mut scratch.hits) {
        if wanted {
            reader.lookup(request.path, hits);
        } else {
            hits.clear();
        }
    }
    collect(request, model, mode, scratch)?;

    let mut decision = Decision {
        candidates: &scratch.candidates,
        targets: &model.targets,
        prompt_blocks: request.path.len() as u32,
        fleet,
        rng: &mut scratch.rng,
    };
    let (choice, decided_by) = if let [_] = decision.candidates {
        (Choice { index: 0, reason: Reason::OnlyCandidate }, policy_name)
    } else if let Some(choice) = policy.pick(&mut decision) {
        (choice, policy_name)
    } else {
        let name = policy.fallback();
        let choice = name.policy().pick(&mut decision).unwrap_or(Choice { index: 0, reason: Reason::Turn });
        (choice, name)
    };
    let picked = &scratch.candidates[choice.index];
    let cached_blocks = picked.cached_blocks;
    let prompt = u64::from(request.prompt_tokens);
    let cached = match (request.block_tokens, request.path.len()) {
        (_, 0) => 0,
        (0, blocks) => (prompt as f64 * (f64::from(cached_blocks) / blocks as f64)) as u64,
        (tokens, _) => u64::from(cached_blocks) * u64::from(tokens),
    };
    // The last token is never cached for an engine.
    let uncached = prompt.saturating_sub(cached).max(u64::from(prompt > 0));
    let target = &model.targets[picked.number as usize];
    let reservation = Reservation::new(target.clone(), prompt, uncached);
    let candidates = scratch.candidates.len();
    let reason = if mode == Mode::Blind { Reason::Blind } else { choice.reason };
    Ok(Plan { reservation, cached_blocks, policy: decided_by, reason, candidates })
}

/// Fills `scratch.candidates` with the eligible targets.
///
/// Retries prefer another host than those that failed; when only such hosts are left, another target there; a target
/// whose circuit is open is taken only when nothing else is ready, since the scheduler still calls it ready.
fn collect(
    request: &PlanRequest<'_>,
    model: &ModelEntry,
    mode: Mode,
    scratch: &mut Scratch,
) -> Result<(), NoPlan> {
    let tried = |target: &TargetEntry| request.tried.iter().any(|t| t.id == target.id);
    let host_tried = |target: &TargetEntry| request.tried.iter().any(|t| t.info.host == target.info.host);
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

    for pass in 0..3 {
        candidates.clear();
        for (number, row) in model.rows().iter().enumerate().filter(|(_, row)| row.ready) {
            if pass < 2 && !row.cells.circuit_closed(request.now_us) {
                continue;
            }
            // The first attempt looks at no description.
            if !request.tried.is_empty() {
                let target = &model.targets[number];
                if tried(target) || (pass == 0 && host_tried(target)) {
                    continue;
                }
            }
            let mut cached = 0;
            for hits in hits {
                cached = cached.max(hits.get(row.slot));
            }
            candidates.push(candidate(row, number, cached, mode, request.prompt_tokens));
        }
        if !candidates.is_empty() {
            return Ok(());
        }
    }
    if model.targets.iter().any(|target| target.ready) {
        Err(NoPlan::AllTried)
    } else {
        Err(NoPlan::NoneReady)
    }
}

#[inline]
fn candidate(row: &Row, number: usize, cached_blocks: u32, mode: Mode, prompt_tokens: u32) -> Candidate {
    let cells = &*row.cells;
    let own = cells.counters.in_flight();
    let mut requests = own.requests;
    let mut prefilling = own.prefilling;
    let mut tokens = own.prefill_tokens.saturating_add(own.context_tokens);
    if mode == Mode::Fresh {
        let peers = cells.peers();
        requests = requests.saturating_add(peers.requests);
        prefilling = prefilling.saturating_add(peers.prefilling);
        tokens = tokens.saturating_add(peers.prefill_tokens).saturating_add(peers.context_tokens);
        // Foreign requests are known by number only; each is taken to be as long as this one.
        if let Some(foreign) = cells.load.foreign_requests() {
            requests = requests.saturating_add(u64::from(foreign));
            tokens = tokens.saturating_add(u64::from(foreign) * u64::from(prompt_tokens));
        }
    }
    Candidate { number: number as u32, cached_blocks, requests, prefilling, tokens }
}
