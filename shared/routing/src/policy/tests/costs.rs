//! `marginal` and `cost` by their formulas.

use std::sync::Arc;

use super::*;
use crate::fleet::{ModelCells, PaceSeen};
use crate::{Constants, EngineFigures};

/// Tokens of the prompt: 20 blocks of 512.
const PROMPT: u32 = 10_240;
const PATH: [u64; 20] = [7; 20];

/// A target in a test.
#[derive(Clone, Copy, Default)]
struct Target {
    /// Blocks of the prompt.
    cached: u32,
    /// Prefill queued, milliseconds.
    queue_ms: u64,
    /// Decoding requests, each with 1,000 tokens.
    decoding: u64,
    /// How much slower than the others.
    slower: f32,
    /// Share of its KV room in use; 0 is unknown.
    kv: f32,
}

fn decide(policy: PolicyName, targets: &[Target], model: &ModelCells) -> (usize, Vec<f64>) {
    let fleet = empty_fleet();
    let entries: Vec<_> = (0..targets.len()).map(|i| entry(i as u16, &format!("t{i}"), "m")).collect();
    let prior = Constants::PRIOR;
    for (entry, target) in entries.iter().zip(targets) {
        if target.slower > 0.0 {
            let slow = Constants { prefill: prior.prefill * target.slower, ..prior };
            entry.cells.costs.store(&slow);
        }
        if target.kv > 0.0 {
            let figures = EngineFigures {
                kv_usage: Some(target.kv),
                kv_total_tokens: Some(100_000),
                waiting: Some(0),
                ..EngineFigures::default()
            };
            entry.cells.report(&figures);
        }
        // So that nothing of the queue counts as done meanwhile.
        entry.cells.counters.progressed(1_000);
    }
    let candidates: Vec<_> = targets
        .iter()
        .enumerate()
        .map(|(number, t)| Candidate {
            number: number as u32,
            cached_blocks: t.cached,
            requests: t.decoding + u64::from(t.queue_ms > 0),
            prefilling: u64::from(t.queue_ms > 0),
            queued_tokens: t.queue_ms * 30,
            queued_us: t.queue_ms * 1_000,
            context_tokens: t.decoding * 1_000,
            ..Candidate::default()
        })
        .collect();
    let request = PlanRequest {
        path: &PATH,
        prompt_tokens: PROMPT,
        block_tokens: 512,
        now_us: 1_000,
        ..PlanRequest::new("m", strategy(policy))
    };
    let targets: Vec<Arc<TargetEntry>> = entries;
    let decision =
        Decision { request: &request, candidates: &candidates, targets: &targets, model, fleet: &fleet };
    let policy = request.strategy.policy();
    let values = candidates.iter().map(|c| policy.value(&decision, c).unwrap()).collect();
    (policy.pick(&decision, &mut Rng::new(1)).unwrap().index, values)
}

/// A model whose targets have had a mean queue of so many mean requests.
fn busy(backlog: f32) -> ModelCells {
    let model = ModelCells::default();
    let seen = PaceSeen { queue: backlog * 400_000.0, prefill: Constants::PRIOR.prefill, targets: 1.0 };
    for _ in 0..2_000 {
        model.pace.note(&seen, 400_000.0);
    }
    model
}

const IDLE: Target = Target { cached: 0, queue_ms: 0, decoding: 0, slower: 0.0, kv: 0.0 };

#[test]
fn marginal_is_its_formula() {
    let target = Target { cached: 10, queue_ms: 300, decoding: 5, ..IDLE };
    let (_, values) = decide(PolicyName::Marginal, &[target], &ModelCells::default());
    let (u, c) = (5_120.0, 5_120.0);
    let own = u * 33.3 + u * (c + u / 2.0) * (33.3 / 30_700.0);
    let step = |batch: f64, context: f64| 6_000.0 + 30.0 * batch + 0.02 * context;
    let ttft = 300_000.0 + own + (9_000.0 + u) / 1_024.0 * step(5.0, 5_000.0);
    let cost = ttft + 4.0 * own + 120.0 * step(6.0, 15_240.0) + 0.1 * 5.0 * own;
    assert!((values[0] / cost - 1.0).abs() < 1e-4, "{} {cost}", values[0]);
}

#[test]
fn who_is_picked() {
    use PolicyName::{Cost, Marginal};
    let calm = || ModelCells::default();
    let holder = Target { cached: 18, ..IDLE };
    let queued = |queue_ms| Target { queue_ms, ..holder };
    type Case = (&'static str, PolicyName, ModelCells, Vec<Target>, usize);
    let table: Vec<Case> = vec![
        ("the holder", Marginal, calm(), vec![IDLE, holder], 1),
        ("the shorter queue of two holders", Marginal, calm(), vec![queued(300), queued(200)], 1),
        ("a holder's queue weighs less than prefill kept", Marginal, calm(), vec![IDLE, queued(1_500)], 1),
        ("until it is too long", Marginal, calm(), vec![IDLE, queued(4_000)], 0),
        ("the holder", Cost, calm(), vec![IDLE, holder], 1),
        ("where nobody waits, the first token alone decides", Cost, calm(), vec![IDLE, queued(1_500)], 0),
        ("where others wait, prefill is worth saving", Cost, busy(10.0), vec![IDLE, queued(1_500)], 1),
        ("at no price, though", Cost, busy(10.0), vec![IDLE, queued(20_000)], 0),
        (
            "fewer decoding requests to stall",
            Cost,
            busy(10.0),
            vec![Target { decoding: 30, ..IDLE }, Target { decoding: 5, ..IDLE }],
            1,
        ),
        ("the faster of two kinds", Cost, calm(), vec![Target { slower: 2.0, ..IDLE }, IDLE], 1),
        (
            "a slow one's time is no dearer: only its own time to the first token counts against it",
            Cost,
            busy(10.0),
            vec![Target { slower: 2.0, ..IDLE }, Target { queue_ms: 900, ..IDLE }],
            0,
        ),
        (
            "a full engine makes wait",
            Cost,
            calm(),
            vec![Target { kv: 0.99, decoding: 4, ..IDLE }, Target { kv: 0.1, decoding: 4, ..IDLE }],
            1,
        ),
    ];
    for (what, policy, model, targets, want) in table {
        let (picked, values) = decide(policy, &targets, &model);
        assert_eq!(picked, want, "{policy}, {what}: {values:?}");
    }
}

#[test]
fn what_is_evicted_and_wanted_again_raises_the_price_of_prefill() {
    let model = ModelCells::default();
    let price = |model: &ModelCells| {
        let (_, values) = decide(PolicyName::Cost, &[IDLE, Target { cached: 18, ..IDLE }], model);
        values[0] - values[1]
    };
    let before = price(&model);
    // The same prompts over and over, of which nothing is held any more.
    let prompts: Vec<Vec<u64>> =
        (0..50u64).map(|p| (0..20).map(|b| (p * 64 + b + 1) << 40 | (p * 64 + b)).collect()).collect();
    for _ in 0..100 {
        for prompt in &prompts {
            model.pressure.note(prompt, 512.0, 0, PROMPT);
        }
    }
    assert!(price(&model) > 1.5 * before, "{} {before} {:?}", price(&model), model.pressure);
}
