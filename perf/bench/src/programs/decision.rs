//! `decision`: from block hashes to reservation, as a shard does it for every request.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use fairlead_routing::{
    EngineFigures, Fleet, InFlightSums, Plan, PlanRequest, PolicyName, Reservation, Scratch, Settings,
    Strategy, TargetCells, TargetEntry, plan,
};
use fairlead_wire::TargetId;
use fairlead_wire::msg::{EngineKind, Handoff, InstanceInfo, ModelInfo, ServingRole, Transfer};

use super::index::map::{FlatMap, MapProbe};
use super::index::measure::{self, Asker};
use super::index::ours::Truth;
use super::index::subject::{Probe, Subject};
use super::index::workload;
use super::{Options, index, say};
use crate::blocks::BLOCK_TOKENS;
use crate::kit::sheet::{Metric, Sheet};
use crate::kit::{alloc, pin, stats};
use crate::rng::Rng;

const P50: Metric = Metric::new("decision_p50_us", "us");
const P99: Metric = Metric::new("decision_p99_us", "us");
const ALLOCATIONS: Metric = Metric::new("allocations", "1/decision");

const MODEL: &str = "model";
const BASELINE: &str = "HashMap of bitsets, loads under a lock";
/// Requests in flight per target.
const IN_FLIGHT: usize = 4;
/// Prompts in the overlay: what a gateway has placed and the scheduler has not confirmed yet.
const OVERLAY: usize = 500;
/// Decisions before the first that counts.
const WARM_UP: usize = 2000;
const BUDGET: usize = 1 << 30;

struct Shape {
    case: &'static str,
    targets: u16,
    /// Index into [`measure::LENGTHS`].
    length: usize,
}

const SHAPES: [Shape; 2] = [
    Shape { case: "64 targets", targets: 64, length: 1 },
    Shape { case: "1000 targets", targets: 1000, length: 2 },
];

/// Runs it.
///
/// # Errors
/// The trace cannot be read, or a decision is refused.
pub fn run(options: &Options, sheet: &mut Sheet) -> anyhow::Result<()> {
    let (blocks, samples, repeats) =
        if options.quick { (1_000_000, 5_000, 3) } else { (2_000_000, 30_000, 5) };
    for shape in &SHAPES {
        let size = index::Plan { blocks, churn: blocks / 10, repeats, samples, cold: 0, lookups: 0 };
        if options.pd {
            measure_pairs(shape, &size, sheet)?;
        } else {
            measure_shape(shape, &size, sheet)?;
        }
    }
    if options.pd {
        sheet.note("a quarter of the targets leans to prefill, the rest to decode; every decision may place both apart");
    }
    sheet.note("`64 targets` with prompts of 128 blocks, `1000 targets` with 1,000 blocks; every prompt is asked once");
    Ok(())
}

fn measure_shape(shape: &Shape, size: &index::Plan, sheet: &mut Sheet) -> anyhow::Result<()> {
    let Shape { case, targets, .. } = *shape;
    let (load, origin) = workload(size, targets)?;
    say(&format!("{case}: {origin}; {} blocks", load.distinct));
    let cores = pin::cores();
    pin::pin(&cores, 1);
    let mut truth = Truth::new(targets, BUDGET)?;
    measure::fill(&mut truth, &load);
    let mut overlay = Truth::new(targets, BUDGET)?;
    for request in load.fill().iter().rev().take(OVERLAY) {
        overlay.place(request.holders()[0], load.path(request));
    }
    let fleet = fleet(&truth, &overlay, targets, false);
    let mut map = FlatMap::<16>::default();
    measure::fill(&mut map, &load);
    for repeat in 0..size.repeats {
        say(&format!("{case}: repeat {} of {}", repeat + 1, size.repeats));
        let seed = 7 + repeat as u64;
        for policy in [PolicyName::PrefixCache, PolicyName::Cost, PolicyName::LeastRequest] {
            let named = match policy {
                PolicyName::PrefixCache => case.to_owned(),
                other => format!("{case}, {other}"),
            };
            let mut decide = Decider::new(&fleet, policy, seed, targets);
            let mut asker = Asker::new(&load, seed);
            let found = decide.measure(&mut asker, shape.length, size.samples)?;
            sheet.ours(&named, P50, found.p50);
            sheet.ours(&named, P99, found.p99);
            sheet.ours(&named, ALLOCATIONS, found.allocations);
            if policy == PolicyName::Cost {
                // Nothing as simple as the baseline decides by this rule.
                continue;
            }
            let mut naive = Naive::new(&map, policy, seed, targets);
            let (p50, p99) = naive.measure(&mut Asker::new(&load, seed), shape.length, size.samples / 5);
            sheet.baseline(&named, P50, BASELINE, p50);
            sheet.baseline(&named, P99, BASELINE, p99);
        }
        let busy = format!("{case}, writer at 1M/s");
        let (found, reached) = measure::under_writer(&mut truth, &load, index::WRITER_RATE, |_| {
            let mut decide = Decider::new(&fleet, PolicyName::PrefixCache, seed, targets);
            decide.measure(&mut Asker::new(&load, seed), shape.length, size.samples)
        });
        pin::pin(&cores, 1);
        let found = found?;
        sheet.ours(&busy, P50, found.p50);
        sheet.ours(&busy, P99, found.p99);
        sheet.ours(&busy, ALLOCATIONS, found.allocations);
        if reached < 0.95 * index::WRITER_RATE {
            sheet.note(format!("{case}: the writer reached {reached:.0} a second only"));
        }
    }
    Ok(())
}

/// Decisions that place prefill and decode apart.
fn measure_pairs(shape: &Shape, size: &index::Plan, sheet: &mut Sheet) -> anyhow::Result<()> {
    let Shape { case, targets, .. } = *shape;
    let (load, origin) = workload(size, targets)?;
    say(&format!("{case}: {origin}; {} blocks", load.distinct));
    pin::pin(&pin::cores(), 1);
    let mut truth = Truth::new(targets, BUDGET)?;
    measure::fill(&mut truth, &load);
    let mut overlay = Truth::new(targets, BUDGET)?;
    for request in load.fill().iter().rev().take(OVERLAY) {
        overlay.place(request.holders()[0], load.path(request));
    }
    let fleet = fleet(&truth, &overlay, targets, true);
    for repeat in 0..size.repeats {
        say(&format!("{case}: repeat {} of {}", repeat + 1, size.repeats));
        let seed = 7 + repeat as u64;
        for policy in [PolicyName::DynamicPdSplit, PolicyName::PdSplit, PolicyName::Pd] {
            let named = format!("{case}, {policy}");
            let mut decide = Decider::new(&fleet, policy, seed, targets);
            let found = decide.measure(&mut Asker::new(&load, seed), shape.length, size.samples)?;
            ensure!(decide.apart > 0, "{policy} placed nothing apart");
            sheet.ours(&named, P50, found.p50);
            sheet.ours(&named, P99, found.p99);
            sheet.ours(&named, ALLOCATIONS, found.allocations);
        }
    }
    Ok(())
}

/// A fleet as a gateway sees it: replica and overlay, engines' reports, other gateways' sums. With `pairs` its targets
/// hand KV over and lean to a part.
fn fleet(truth: &Truth, overlay: &Truth, targets: u16, pairs: bool) -> Fleet {
    let fleet = Fleet::new([truth.reader(), overlay.reader()]);
    let mut rng = Rng::new(11);
    let entry = |slot: u16| {
        let info = InstanceInfo {
            name: format!("engine-{slot}"),
            address: format!("10.0.{}.{}:8000", slot / 250, slot % 250),
            host: format!("host-{}", slot / 8),
            incarnation: 1,
            engine: EngineKind::Vllm,
            engine_version: String::new(),
            models: vec![ModelInfo { name: MODEL.into(), max_model_len: None, parent: None }],
            role: ServingRole::Both,
            transfer: pairs.then(|| Transfer::new(Handoff::NixlPull)),
            dp_ranks: 1,
            block_size: Some(16),
            kv_blocks: Some(10_000),
            max_num_seqs: Some(256),
            labels: Vec::new(),
        };
        let cells = Arc::new(TargetCells::new());
        cells.report(&EngineFigures {
            running: Some(rng.next() as u32 % 32),
            waiting: Some(0),
            kv_usage: Some(0.5),
            kv_total_tokens: Some(160_000),
            foreign_requests: Some(rng.next() as u32 % 2),
            taken_us: 1,
            ..EngineFigures::default()
        });
        cells.set_peers(InFlightSums { requests: rng.next() % 8, ..InFlightSums::default() }, 1);
        let leaning = match (pairs, slot % 4) {
            (false, _) => ServingRole::Both,
            (true, 0) => ServingRole::Prefill,
            (true, _) => ServingRole::Decode,
        };
        let entry = TargetEntry::new(TargetId::new(slot, 1), Arc::new(info), 0, true, cells);
        Some(Arc::new(entry.with_leaning(leaning)))
    };
    fleet.publish((0..targets).map(entry).collect());
    fleet
}

struct Found {
    p50: f64,
    p99: f64,
    allocations: f64,
}

/// A shard's part: decides, holds the reservation for as long as a request would run.
struct Decider<'f> {
    fleet: &'f Fleet,
    strategy: Strategy,
    scratch: Scratch,
    running: VecDeque<Reservation>,
    /// Prefill legs before their hand-off.
    legs: VecDeque<Reservation>,
    most: usize,
    now_us: u64,
    /// Requests placed apart.
    apart: u64,
}

impl<'f> Decider<'f> {
    fn new(fleet: &'f Fleet, policy: PolicyName, seed: u64, targets: u16) -> Self {
        let most = IN_FLIGHT * usize::from(targets);
        Self {
            fleet,
            strategy: Strategy::new(policy, &Settings::default()),
            scratch: Scratch::new(seed),
            running: VecDeque::with_capacity(most + 1),
            legs: VecDeque::with_capacity(most + 1),
            most,
            now_us: 1,
            apart: 0,
        }
    }

    fn decide(&mut self, path: &[u64]) -> anyhow::Result<Plan> {
        self.now_us += 100;
        let request = PlanRequest {
            path,
            prompt_tokens: path.len() as u32 * BLOCK_TOKENS,
            block_tokens: BLOCK_TOKENS,
            now_us: self.now_us,
            ..PlanRequest::new(MODEL, &self.strategy)
        };
        plan(&request, self.fleet, &mut self.scratch).context("a decision was refused")
    }

    fn hold(&mut self, plan: Plan) {
        let mut reservation = plan.reservation;
        // Some are past their first token, some are not.
        if !(self.now_us / 100).is_multiple_of(4) {
            reservation.first_token(self.now_us);
        }
        self.running.push_back(reservation);
        if self.running.len() > self.most {
            self.running.pop_front();
        }
        if let Some(leg) = plan.prefill {
            self.apart += 1;
            self.legs.push_back(leg.reservation);
            // A request decodes for longer than it prefills.
            if self.legs.len() > self.most / 8 {
                self.legs.pop_front();
            }
        }
    }

    fn measure(&mut self, asker: &mut Asker<'_>, length: usize, samples: usize) -> anyhow::Result<Found> {
        let mut path = Vec::with_capacity(2048);
        let mut times = Vec::with_capacity(samples);
        let mut allocations = 0;
        let mut hits = 0u64;
        for turn in 0..WARM_UP.max(self.most) + samples {
            path.clear();
            asker.ask(length, &mut path);
            let before = alloc::allocations();
            let start = Instant::now();
            let plan = self.decide(&path)?;
            let took = start.elapsed();
            if turn >= WARM_UP.max(self.most) {
                allocations += alloc::allocations() - before;
                times.push(took.as_nanos() as f64 / 1000.0);
                hits += u64::from(plan.cached_blocks);
            }
            self.hold(plan);
        }
        if self.strategy.wants_prefix() {
            ensure!(hits > 0, "no decision found a cached prefix");
        }
        Ok(Found {
            p50: stats::quantile(&mut times, 0.5),
            p99: stats::quantile(&mut times, 0.99),
            allocations: allocations as f64 / samples as f64,
        })
    }
}

/// The baseline: the map's depths, and loads in a vector under a lock, scanned by the same rule.
struct Naive {
    probe: MapProbe<16>,
    policy: PolicyName,
    /// Tokens and requests in process, by target.
    loads: Mutex<Vec<(u64, u64)>>,
    running: VecDeque<(usize, u64)>,
    rng: Rng,
}

impl Naive {
    fn new(map: &FlatMap<16>, policy: PolicyName, seed: u64, targets: u16) -> Self {
        let loads = Mutex::new(vec![(0, 0); usize::from(targets)]);
        Self { probe: map.probe(), policy, loads, running: VecDeque::new(), rng: Rng::new(seed) }
    }

    fn decide(&mut self, path: &[u64]) -> usize {
        let tokens = path.len() as u64 * u64::from(BLOCK_TOKENS);
        let wants_prefix = self.policy == PolicyName::PrefixCache;
        if wants_prefix {
            self.probe.lookup(path);
        }
        let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        let depth = |target: usize| if wants_prefix { self.probe.depth(target as u16) } else { 0 };
        let longest = (0..loads.len()).map(depth).max().unwrap_or(0);
        let decides = longest > 0 && longest as usize * 2 >= path.len();
        let tie = self.rng.next() as usize % loads.len();
        let key = |&target: &usize| {
            let (tokens, requests) = loads[target];
            (if wants_prefix { tokens } else { requests }, (target + loads.len() - tie) % loads.len())
        };
        let picked =
            (0..loads.len()).filter(|t| !decides || depth(*t) == longest).min_by_key(key).unwrap_or(tie);
        loads[picked].0 += tokens;
        loads[picked].1 += 1;
        picked
    }

    fn measure(&mut self, asker: &mut Asker<'_>, length: usize, samples: usize) -> (f64, f64) {
        let mut path = Vec::with_capacity(2048);
        let mut times = Vec::with_capacity(samples);
        let targets = self.loads.lock().unwrap_or_else(PoisonError::into_inner).len();
        for _ in 0..samples {
            path.clear();
            asker.ask(length, &mut path);
            let start = Instant::now();
            let picked = self.decide(&path);
            times.push(start.elapsed().as_nanos() as f64 / 1000.0);
            self.running.push_back((picked, path.len() as u64 * u64::from(BLOCK_TOKENS)));
            if self.running.len() > IN_FLIGHT * targets {
                let mut loads = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((target, tokens)) = self.running.pop_front() {
                    loads[target].0 -= tokens;
                    loads[target].1 -= 1;
                }
            }
        }
        (stats::quantile(&mut times, 0.5), stats::quantile(&mut times, 0.99))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{Size, Workload};

    #[test]
    fn decisions_go_to_holders_and_allocate_nothing() {
        let load = Workload::generate(Size { blocks: 20_000, churn: 0, targets: 8 }, 5);
        let mut truth = Truth::new(8, BUDGET).unwrap();
        measure::fill(&mut truth, &load);
        let overlay = Truth::new(8, BUDGET).unwrap();
        let fleet = fleet(&truth, &overlay, 8, false);
        let mut decide = Decider::new(&fleet, PolicyName::PrefixCache, 1, 8);
        let found = decide.measure(&mut Asker::new(&load, 1), 1, 500).unwrap();
        assert_eq!(found.allocations, 0.0);
    }

    #[test]
    fn pairs_allocate_nothing_either() {
        let load = Workload::generate(Size { blocks: 20_000, churn: 0, targets: 8 }, 5);
        let mut truth = Truth::new(8, BUDGET).unwrap();
        measure::fill(&mut truth, &load);
        let overlay = Truth::new(8, BUDGET).unwrap();
        let fleet = fleet(&truth, &overlay, 8, true);
        for policy in [PolicyName::DynamicPdSplit, PolicyName::PdSplit, PolicyName::Pd] {
            let mut decide = Decider::new(&fleet, policy, 1, 8);
            let found = decide.measure(&mut Asker::new(&load, 1), 1, 500).unwrap();
            assert_eq!(found.allocations, 0.0, "{policy}");
            assert!(decide.apart > 0, "{policy}");
        }
    }
}
