//! Which targets a decision looks at.
//!
//! A policy that compares all targets is shown all that are eligible. Where a model has very many, that is more than a
//! decision has time for, and most of them are as good as one another: policies that can do with fewer are shown those
//! that hold most of the prompt, and a random sample of the others. A sample, and not a list of the least loaded:
//! shards and gateways that share a list herd on it.

use fairlead_prefix::Hits;

use crate::filter::{Filters, Strictness};
use crate::fleet::{Mode, ModelEntry, Parts, Row};
use crate::plan::{NoPlan, Scratch};
use crate::policy::{Candidate, Scope};
use crate::request::PlanRequest;
use crate::rng::Rng;

/// Up to so many targets, a decision looks at all of them.
pub(crate) const FEW: usize = 192;
/// Most holders that a decision looks at where there are more targets.
const HOLDERS: usize = 64;
/// Draws of others beside them. The best of so many is among the best 5 % of a fleet with a chance of 96 %.
const DRAWS: usize = 64;
/// A holder is looked at when it holds at least this share of what the best one holds: targets that hold no more than a
/// common beginning are found by drawing.
const SHARE: u32 = 4;

/// Marks of the targets already among the candidates, by their number; a mark is the decision's own.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    marks: Vec<u32>,
    decision: u32,
}

impl Seen {
    fn begin(&mut self, targets: usize) {
        if self.marks.len() < targets {
            self.marks.resize(targets, 0);
        }
        self.decision = self.decision.wrapping_add(1);
        if self.decision == 0 {
            self.marks.fill(0);
            self.decision = 1;
        }
    }

    /// Whether the number comes up for the first time.
    fn first(&mut self, number: usize) -> bool {
        std::mem::replace(&mut self.marks[number], self.decision) != self.decision
    }
}

/// Fills `scratch.candidates` with targets that serve whole requests, as few as `scope` allows, and says which it came to
/// be. There is at least one.
///
/// # Errors
/// Why no target is eligible.
pub(crate) fn gather(
    scope: Scope,
    request: &PlanRequest<'_>,
    model: &ModelEntry,
    mode: Mode,
    scratch: &mut Scratch,
) -> Result<Scope, NoPlan> {
    let few = model.rows().len() <= FEW;
    let mut sampled = scope == Scope::Sample;
    if scope == Scope::Holders && !few {
        match holders(1, Parts::WHOLE, request, model, mode, scratch) {
            // Whom nobody's cache speaks for may go to one that was drawn.
            0 => sampled = true,
            // The deepest are certainly all there.
            1..HOLDERS => return Ok(scope),
            _ => {}
        }
    }
    if sampled && !few {
        holders(SHARE, Parts::WHOLE, request, model, mode, scratch);
        let rows = model.rows().len();
        draw(rows, |number| number, Parts::WHOLE, request, model, mode, scratch);
        if !scratch.candidates.is_empty() {
            return Ok(Scope::Sample);
        }
    }
    all(&Strictness::STEPS, Parts::WHOLE, |found| !found.is_empty(), request, model, mode, scratch)?;
    Ok(Scope::All)
}

/// Fills `scratch.candidates` with targets of which a pair may be made or that serve the request whole: all of a few; of
/// many the holders of the prompt and a sample of each side. Whether a prefill and a decode target are among them.
pub(crate) fn gather_pairs(
    request: &PlanRequest<'_>,
    model: &ModelEntry,
    mode: Mode,
    look_at_all: bool,
    scratch: &mut Scratch,
) -> bool {
    if !look_at_all && model.rows().len() > FEW {
        holders(SHARE, Parts::ANY, request, model, mode, scratch);
        for side in [&model.prefillers, &model.decoders] {
            let of_side = |at: usize| side[at] as usize;
            draw(side.len(), of_side, Parts::ANY, request, model, mode, scratch);
        }
        if both_sides(&scratch.candidates) {
            return true;
        }
    }
    // Only where nobody serves requests whole is a pair tried with a target that could not be connected to.
    let steps = if model.rows().iter().any(|row| row.ready && row.parts.has(Parts::WHOLE)) {
        Strictness::CONNECTED
    } else {
        &Strictness::STEPS
    };
    all(steps, Parts::ANY, both_sides, request, model, mode, scratch).is_ok()
}

fn both_sides(found: &[Candidate]) -> bool {
    let has = |part| found.iter().any(|candidate| candidate.parts.has(part));
    has(Parts::PREFILL) && has(Parts::DECODE)
}

/// Puts those first that have an answer: a replica that is empty, or an overlay without this prefix, costs nothing a
/// target. Says how many have.
fn answers(hits: &mut [Hits]) -> usize {
    let mut answers = 0;
    for at in 0..hits.len() {
        if !hits[at].is_empty() {
            hits.swap(at, answers);
            answers += 1;
        }
    }
    answers
}

/// All targets that can take one of the `parts` and pass the filters, of which as few are given up as make `enough`.
fn all(
    steps: &[Strictness],
    parts: Parts,
    enough: impl Fn(&[Candidate]) -> bool,
    request: &PlanRequest<'_>,
    model: &ModelEntry,
    mode: Mode,
    scratch: &mut Scratch,
) -> Result<(), NoPlan> {
    let Scratch { candidates, hits, .. } = scratch;
    let answers = answers(hits);
    let hits = &hits[..answers];
    candidates.reserve(model.rows().len());

    let mut filters = Filters::new(request, mode, parts);
    for &step in steps {
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
        if enough(candidates) {
            return Ok(());
        }
    }
    Err(filters.why_none(model))
}

/// Begins the candidates with the eligible holders of at least one `share`th of what the best target holds, as far as
/// there is room for them; says how many there are.
fn holders(
    share: u32,
    parts: Parts,
    request: &PlanRequest<'_>,
    model: &ModelEntry,
    mode: Mode,
    scratch: &mut Scratch,
) -> usize {
    let Scratch { candidates, hits, seen, .. } = scratch;
    candidates.clear();
    candidates.reserve(model.rows().len());
    seen.begin(model.rows().len());
    let answers = answers(hits);
    let hits = &hits[..answers];
    let deepest = hits.iter().map(|hits| hits.matched_blocks).max().unwrap_or(0);
    let mut filters = Filters::new(request, mode, parts);
    let step = Strictness::STEPS[0];
    for source in hits {
        for (slot, depth) in source.iter() {
            if depth * share < deepest || candidates.len() >= HOLDERS {
                continue;
            }
            let Some(number) = model.number_of(slot).filter(|number| seen.first(*number)) else { continue };
            let row = &model.rows()[number];
            let cached = hits.iter().map(|hits| hits.get(slot)).max().unwrap_or(depth);
            if filters.admits(step, row, model, number) && filters.has_room(step, row, cached) {
                candidates.push(candidate(row, number, cached, mode, request));
            }
        }
    }
    candidates.len()
}

/// Adds eligible targets drawn at random from `targets`, of which `number_of` tells the numbers.
fn draw(
    targets: usize,
    number_of: impl Fn(usize) -> usize,
    parts: Parts,
    request: &PlanRequest<'_>,
    model: &ModelEntry,
    mode: Mode,
    scratch: &mut Scratch,
) {
    let Scratch { candidates, hits, seen, rng, .. } = scratch;
    let answers = answers(hits);
    let hits = &hits[..answers];
    let mut filters = Filters::new(request, mode, parts);
    let step = Strictness::STEPS[0];
    let rows = model.rows();
    for drawn in draws(targets, rng) {
        let number = number_of(drawn);
        let row = &rows[number];
        if !seen.first(number) || !filters.admits(step, row, model, number) {
            continue;
        }
        let cached = hits.iter().map(|hits| hits.get(row.slot)).max().unwrap_or(0);
        if filters.has_room(step, row, cached) {
            candidates.push(candidate(row, number, cached, mode, request));
        }
    }
}

/// One number out of each of [`DRAWS`] equal stretches; all of fewer.
fn draws(targets: usize, rng: &mut Rng) -> impl Iterator<Item = usize> {
    let draws = DRAWS.min(targets);
    (0..draws).map(move |stretch| {
        let (from, to) = (stretch * targets / draws, (stretch + 1) * targets / draws);
        from + rng.below((to - from).max(1)).min(targets - 1 - from)
    })
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
        parts: row.parts,
        domain: row.domain,
        leaning: row.leaning,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::fleet::tests_support::entry;
    use crate::{Fleet, PolicyName, Reason, Settings, Strategy, TargetEntry, plan};

    const TARGETS: u16 = 400;

    /// Targets of which some hold beginnings of `path`.
    fn fleet(path: &[u64], held: &[(u16, usize)]) -> (Fleet, Vec<Arc<TargetEntry>>) {
        let config = fairlead_prefix::Config { max_bytes: 8 << 20, max_targets: 1_024, locate: false };
        let (mut tree, reader) = fairlead_prefix::new(config);
        // Slots with gaps, as after departures.
        let entries: Vec<_> = (0..TARGETS).map(|i| entry(i + i / 100, &format!("t{i}"), "m")).collect();
        for target in &entries {
            tree.bind(target.id).unwrap();
        }
        for (target, blocks) in held {
            tree.place(entries[usize::from(*target)].id, &path[..*blocks], 0);
        }
        let fleet = Fleet::new([reader]);
        let mut table: Vec<Option<Arc<TargetEntry>>> = Vec::new();
        for target in &entries {
            table.resize(usize::from(target.id.slot), None);
            table.push(Some(target.clone()));
        }
        fleet.publish(table);
        (fleet, entries)
    }

    fn ask<'a>(path: &'a [u64], strategy: &'a Strategy) -> PlanRequest<'a> {
        PlanRequest {
            path,
            prompt_tokens: path.len() as u32 * 64,
            block_tokens: 64,
            now_us: 1,
            ..PlanRequest::new("m", strategy)
        }
    }

    #[test]
    fn a_few_of_many_targets_are_looked_at_and_the_deepest_holder_is_among_them() {
        let path: Vec<u64> = (1..=100).collect();
        let (fleet, entries) = fleet(&path, &[(7, 20), (390, 100), (200, 90)]);
        let strategy = Strategy::new(PolicyName::Cost, &Settings::default());
        let mut scratch = Scratch::new(3);
        for _ in 0..20 {
            let found = plan(&ask(&path, &strategy), &fleet, &mut scratch).unwrap();
            assert!(found.candidates <= HOLDERS + DRAWS);
            assert_eq!(found.target().id, entries[390].id);
        }
    }

    #[test]
    fn without_holders_all_targets_get_their_share() {
        let path: Vec<u64> = (1..=10).collect();
        let (fleet, entries) = fleet(&path, &[]);
        let strategy = Strategy::new(PolicyName::Cost, &Settings::default());
        let mut scratch = Scratch::new(3);
        // Held, so that those that have work are passed over for those that have none.
        let _held: Vec<_> =
            (0..TARGETS * 4).map(|_| plan(&ask(&path, &strategy), &fleet, &mut scratch).unwrap()).collect();
        let counts: Vec<u64> = entries.iter().map(|e| e.cells.counters.in_flight().requests).collect();
        assert!(counts.iter().all(|n| (1..=7).contains(n)), "{counts:?}");
    }

    #[test]
    fn many_holders_and_none_eligible_are_no_trouble() {
        let path: Vec<u64> = (1..=10).collect();
        let held: Vec<(u16, usize)> = (0..TARGETS).map(|i| (i, 10)).collect();
        let (fleet, entries) = fleet(&path, &held);
        let mut scratch = Scratch::new(3);
        for name in [PolicyName::Cost, PolicyName::PrefixCache] {
            let strategy = Strategy::new(name, &Settings::default());
            assert_eq!(plan(&ask(&path, &strategy), &fleet, &mut scratch).unwrap().cached_blocks, 10);
            let none = entries.iter().map(|e| {
                let mut gone = e.clone_for_test();
                gone.ready = false;
                Some(Arc::new(gone))
            });
            let other = Fleet::new([]);
            other.publish(none.collect());
            let refused = plan(&ask(&path, &strategy), &other, &mut scratch).map(|_| ());
            assert_eq!(refused, Err(NoPlan::NoneReady));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// What prefix-cache decides by the holders alone is what it decides by all; where their match is short, it goes
        /// to one of those drawn.
        #[test]
        fn holders_decide_as_all_do(
            held in proptest::collection::vec((0..TARGETS, 1usize..=12), 0..90),
            busy in proptest::collection::vec((0..TARGETS, 1u32..4), 0..40),
            open in proptest::collection::vec(0..TARGETS, 0..20),
        ) {
            let path: Vec<u64> = (1..=12).collect();
            let (fleet, entries) = fleet(&path, &held);
            let strategy = Strategy::new(PolicyName::PrefixCache, &Settings::default());
            let mut guards = Vec::new();
            for (number, (target, requests)) in busy.iter().enumerate() {
                for _ in 0..*requests {
                    // Different tokens, so that there are no ties to draw.
                    let tokens = 1_000 + 10 * number as u64;
                    let target = entries[usize::from(*target)].clone();
                    guards.push(crate::Reservation::new(target, tokens, tokens, 1));
                }
            }
            for target in &open {
                entries[usize::from(*target)].cells.connect_failed(1);
            }
            let mut scratch = Scratch::new(9);
            let request = ask(&path, &strategy);
            let fast = plan(&request, &fleet, &mut scratch).unwrap();
            let (reason, cached, target) = (fast.reason, fast.cached_blocks, fast.target().clone());
            drop(fast);
            let mut explain = crate::Explain::default();
            let slow = crate::plan_explained(&request, &fleet, &mut scratch, &mut explain).unwrap();
            prop_assert_eq!(reason, slow.reason);
            if reason != Reason::PrefixMiss {
                prop_assert_eq!(cached, slow.cached_blocks);
            }
            if reason == Reason::PrefixHit {
                let tokens = |t: &TargetEntry| {
                    let now = t.cells.counters.in_flight();
                    now.prefill_tokens + now.context_tokens
                };
                let own = slow.reservation.prefill_tokens();
                let other = tokens(slow.target()) - own;
                let first = if target.id == slow.target().id { other } else { tokens(&target) };
                prop_assert_eq!(first, other, "equally loaded, if not the same");
            }
        }
    }
}
