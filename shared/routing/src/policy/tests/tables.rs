//! Policies of PAI-EAS, SGLang, Dynamo and of papers: each rule by a table.

use std::sync::Arc;

use crate::fleet::tests_support::{empty_fleet, entry};
use crate::policy::{Candidate, Decision, Missing, Reason};
use crate::{
    ConsistentHashSettings, DynamoSettings, EngineFigures, Fleet, Mode, ModelCells, Picked, PlanRequest,
    PolicyName, Rng, Settings, Strategy, TargetEntry, rendezvous,
};

/// A decision under test: candidates with what their engines report.
pub(super) struct Scene {
    fleet: Fleet,
    targets: Vec<Arc<TargetEntry>>,
    pub(super) candidates: Vec<Candidate>,
    model: ModelCells,
    path: Vec<u64>,
}

impl Scene {
    /// A prompt of `blocks` blocks of 64 tokens, and candidates.
    pub(super) fn new(blocks: usize, candidates: impl IntoIterator<Item = Candidate>) -> Self {
        let number = |(number, c): (usize, Candidate)| Candidate { number: number as u32, ..c };
        let candidates: Vec<_> = candidates.into_iter().enumerate().map(number).collect();
        let targets = (0..candidates.len()).map(|i| entry(i as u16, &format!("t{i}"), "m")).collect();
        let path = (1..=blocks as u64).collect();
        Self { fleet: empty_fleet(), targets, candidates, model: ModelCells::default(), path }
    }

    /// With reports of the engines.
    pub(super) fn reported(self, figures: &[EngineFigures]) -> Self {
        for (target, figures) in self.targets.iter().zip(figures) {
            target.cells.report(figures);
        }
        self
    }

    pub(super) fn decide<T>(
        &self,
        strategy: &Strategy,
        session: Option<u64>,
        f: impl FnOnce(&Decision<'_>) -> T,
    ) -> T {
        let request = PlanRequest {
            path: &self.path,
            prompt_tokens: self.path.len() as u32 * 64,
            block_tokens: 64,
            session,
            now_us: 1_000_000,
            ..PlanRequest::new("m", strategy)
        };
        f(&Decision {
            request: &request,
            candidates: &self.candidates,
            targets: &self.targets,
            model: &self.model,
            fleet: &self.fleet,
        })
    }

    pub(super) fn pick(&self, strategy: &Strategy, seed: u64) -> Picked {
        self.decide(strategy, None, |decision| strategy.pick(decision, &mut Rng::new(seed)))
    }

    /// Which are picked over many seeds, sorted.
    pub(super) fn picks(&self, strategy: &Strategy) -> Vec<usize> {
        let mut seen: Vec<_> = (0..64).map(|seed| self.pick(strategy, seed).choice.index).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }
}

pub(super) fn by_name(name: PolicyName) -> Strategy {
    Strategy::new(name, &Settings::default())
}

fn load(requests: u64, queued_tokens: u64, context_tokens: u64, cached_blocks: u32) -> Candidate {
    let tokens = queued_tokens + context_tokens;
    Candidate { requests, queued_tokens, context_tokens, tokens, cached_blocks, ..Candidate::default() }
}

fn report(running: u32, waiting: u32, kv_usage: f32) -> EngineFigures {
    let (running, waiting, kv_usage) = (Some(running), Some(waiting), Some(kv_usage));
    EngineFigures { running, waiting, kv_usage, taken_us: 1, ..EngineFigures::default() }
}

type Row = (u64, u64, u64, u32);

/// (what, blocks of the prompt, (requests, queued, context, cached blocks) of each, who may be picked, reason).
type Case = (&'static str, usize, &'static [Row], &'static [usize], Reason);

fn check(strategy: &Strategy, table: &[Case]) {
    for (what, blocks, rows, picks, reason) in table {
        let scene = Scene::new(*blocks, rows.iter().map(|&(r, q, c, b)| load(r, q, c, b)));
        assert_eq!(scene.picks(strategy), *picks, "{}: {what}", strategy.label());
        assert_eq!(scene.pick(strategy, 1).choice.reason, *reason, "{}: {what}", strategy.label());
        assert_eq!(scene.pick(strategy, 1).missing, None);
    }
}

#[test]
fn least_token_counts_what_waits_and_what_is_decoded() {
    check(
        &by_name(PolicyName::LeastToken),
        &[
            ("queued and context add up", 0, &[(1, 50, 60, 0), (9, 60, 40, 0)], &[1], Reason::LeastLoad),
            ("requests do not count", 0, &[(9, 0, 10, 0), (1, 0, 11, 0)], &[0], Reason::LeastLoad),
            (
                "nor does what is cached",
                10,
                &[(0, 0, 10, 10), (0, 0, 10, 0), (0, 0, 11, 10)],
                &[0, 1],
                Reason::LeastLoad,
            ),
        ],
    );
}

#[test]
fn least_queued_tokens_adds_its_own() {
    check(
        &by_name(PolicyName::LeastQueuedTokens),
        &[
            // 640 tokens: 320 uncached behind 300 against 640 behind none.
            ("the sum decides", 10, &[(0, 300, 0, 5), (0, 0, 0, 0)], &[0], Reason::LeastLoad),
            ("a longer queue outweighs", 10, &[(0, 330, 0, 5), (0, 0, 0, 0)], &[1], Reason::LeastLoad),
            ("what is decoded does not count", 10, &[(9, 0, 9000, 0), (0, 1, 0, 0)], &[0], Reason::LeastLoad),
            ("ties are drawn", 10, &[(1, 320, 0, 5), (2, 0, 5, 0)], &[0, 1], Reason::LeastLoad),
            // The last token is computed in any case.
            ("all cached is one token", 10, &[(0, 0, 0, 10), (0, 0, 0, 9)], &[0], Reason::LeastLoad),
        ],
    );
}

#[test]
fn lmetric_multiplies_tokens_by_requests() {
    check(
        &by_name(PolicyName::Lmetric),
        &[
            // (320 + 0)·(1 + 1) against 640·1: equal.
            ("products tie", 10, &[(1, 0, 0, 5), (0, 0, 0, 0)], &[0, 1], Reason::LeastCost),
            ("a busier holder loses", 10, &[(2, 0, 0, 5), (0, 0, 0, 0)], &[1], Reason::LeastCost),
            (
                "idle ones differ by what they hold",
                10,
                &[(0, 0, 0, 5), (0, 0, 0, 6)],
                &[1],
                Reason::LeastCost,
            ),
            ("queued tokens count", 10, &[(1, 100, 0, 0), (1, 0, 0, 0)], &[1], Reason::LeastCost),
            ("without a prompt: requests", 0, &[(2, 0, 0, 0), (1, 0, 0, 0)], &[1], Reason::LeastCost),
        ],
    );
    let huge = Scene::new(10, [load(u64::MAX, u64::MAX, 0, 0), load(1, 5, 0, 0)]);
    assert_eq!(huge.picks(&by_name(PolicyName::Lmetric)), [1], "no overflow");
}

#[test]
fn sglang_cache_aware_leaves_the_cache_when_loads_are_uneven() {
    check(
        &by_name(PolicyName::SglangCacheAware),
        &[
            ("a match above the threshold", 10, &[(60, 0, 0, 4), (0, 0, 0, 0)], &[0], Reason::PrefixHit),
            (
                "at the threshold it does not decide",
                10,
                &[(5, 0, 0, 3), (0, 0, 0, 0)],
                &[1],
                Reason::PrefixMiss,
            ),
            (
                "of several holders any",
                10,
                &[(9, 0, 0, 8), (1, 0, 0, 8), (0, 0, 0, 7)],
                &[0, 1],
                Reason::PrefixHit,
            ),
            ("64 apart is even", 10, &[(64, 0, 0, 9), (0, 0, 0, 0)], &[0], Reason::PrefixHit),
            ("65 apart is not", 10, &[(65, 0, 0, 9), (0, 0, 0, 0)], &[1], Reason::Imbalance),
            ("65 apart, but not 1.5 times", 10, &[(195, 0, 0, 9), (130, 0, 0, 0)], &[0], Reason::PrefixHit),
            ("and more than 1.5 times", 10, &[(196, 0, 0, 9), (130, 0, 0, 0)], &[1], Reason::Imbalance),
            ("nothing held: fewest requests", 10, &[(3, 0, 0, 0), (2, 9, 0, 0)], &[1], Reason::PrefixMiss),
            ("no prompt: fewest requests", 0, &[(1, 0, 0, 0), (1, 0, 0, 0)], &[0, 1], Reason::PrefixMiss),
        ],
    );
}

#[test]
fn dynamo_adds_blocks_to_prefill_and_blocks_to_decode() {
    check(
        &by_name(PolicyName::Dynamo),
        &[
            // In tokens: twice (queued + 640 − cached), and context.
            ("cached blocks are taken off", 10, &[(0, 0, 0, 5), (0, 0, 0, 0)], &[0], Reason::LeastCost),
            (
                "twice as much context outweighs them",
                10,
                &[(0, 0, 641, 5), (0, 0, 0, 0)],
                &[1],
                Reason::LeastCost,
            ),
            ("and ties with them", 10, &[(0, 0, 640, 5), (0, 0, 0, 0)], &[0, 1], Reason::LeastCost),
            ("what waits counts twice", 10, &[(0, 100, 0, 0), (0, 0, 199, 0)], &[1], Reason::LeastCost),
            ("requests do not count", 10, &[(99, 0, 0, 0), (0, 0, 0, 0)], &[0, 1], Reason::LeastCost),
        ],
    );
}

#[test]
fn dynamo_has_its_knobs() {
    let with = |change: fn(&mut DynamoSettings)| {
        let mut settings = Settings::default();
        change(&mut settings.dynamo);
        Strategy::new(PolicyName::Dynamo, &settings)
    };
    let scene = Scene::new(10, [load(9, 0, 900, 6), load(0, 0, 0, 0)]);
    assert_eq!(scene.picks(&by_name(PolicyName::Dynamo)), [1]);
    assert_eq!(scene.picks(&with(|s| s.prefill_scale = 2.0)), [0]);
    assert_eq!(scene.picks(&with(|s| (s.prefill_scale, s.overlap_credit) = (2.0, 0.5))), [1]);
    assert_eq!(scene.picks(&with(|s| (s.prefill_scale, s.request_weight) = (2.0, 1.0))), [1]);
}

#[test]
fn dynamo_draws_by_cost_when_it_is_warm() {
    let mut settings = Settings::default();
    settings.dynamo.temperature = 0.5;
    let strategy = Strategy::new(PolicyName::Dynamo, &settings);
    let scene = Scene::new(10, [load(0, 0, 0, 10), load(0, 0, 0, 5), load(0, 0, 0, 0)]);
    let mut rng = Rng::new(7);
    let mut seen = [0.0; 3];
    for _ in 0..30_000 {
        let picked = scene.decide(&strategy, None, |d| strategy.pick(d, &mut rng));
        seen[picked.choice.index] += 1.0 / 30_000.0;
    }
    // exp(-x/0.5) for x = 0, 0.5, 1 (about: the last token is never cached).
    let weights = [0.0f64, 0.5, 1.0].map(|x| (-x / 0.5).exp());
    let sum: f64 = weights.iter().sum();
    for (seen, weight) in seen.iter().zip(weights) {
        assert!((seen - weight / sum).abs() < 0.015, "{seen} against {}", weight / sum);
    }
}

#[test]
fn llm_metric_based_combines_three_metrics() {
    let strategy = by_name(PolicyName::LlmMetricBased);
    type Case = (&'static str, Vec<(u64, EngineFigures)>, &'static [usize]);
    let unknown = EngineFigures::default();
    let table: Vec<Case> = vec![
        ("a queued one outweighs nine running", vec![(1, report(0, 1, 0.0)), (9, report(9, 0, 0.0))], &[1]),
        ("but not eleven", vec![(1, report(0, 1, 0.0)), (11, report(11, 0, 0.0))], &[0]),
        ("KV room counts", vec![(5, report(5, 0, 0.9)), (5, report(5, 0, 0.8))], &[1]),
        (
            "what the report does not show is queued",
            vec![(8, report(2, 0, 0.1)), (4, report(4, 1, 0.1))],
            &[1],
        ),
        ("ties are drawn", vec![(3, report(3, 0, 0.5)), (3, report(3, 0, 0.5))], &[0, 1]),
        ("who does not report is passed over", vec![(0, unknown), (90, report(90, 9, 0.9))], &[1]),
        (
            "nor does one of three metrics suffice",
            vec![(0, EngineFigures { running: Some(0), ..unknown }), (9, report(9, 9, 0.9))],
            &[1],
        ),
    ];
    for (what, rows, picks) in table {
        let figures: Vec<_> = rows.iter().map(|(_, figures)| *figures).collect();
        let scene =
            Scene::new(2, rows.iter().map(|(requests, _)| load(*requests, 0, 0, 0))).reported(&figures);
        assert_eq!(scene.picks(&strategy), picks, "{what}");
        let picked = scene.pick(&strategy, 1);
        assert_eq!((picked.policy, picked.missing), (PolicyName::LlmMetricBased, None), "{what}");
    }
}

#[test]
fn llm_metric_based_says_what_it_lacks_and_goes_by_tokens() {
    let strategy = by_name(PolicyName::LlmMetricBased);
    let without_kv = EngineFigures { kv_usage: None, ..report(1, 1, 0.0) };
    for (figures, missing) in [(EngineFigures::default(), "waiting"), (without_kv, "kv_usage")] {
        let scene = Scene::new(2, [load(0, 0, 9, 0), load(5, 0, 8, 0)]).reported(&[figures, figures]);
        let picked = scene.pick(&strategy, 1);
        assert_eq!((picked.policy, picked.choice.index), (PolicyName::LeastToken, 1));
        assert_eq!(picked.missing, Some(Missing(missing)));
    }
    let scene = Scene::new(2, [load(0, 0, 9, 0), load(5, 0, 8, 0)]).reported(&[report(0, 0, 0.0); 2]);
    scene.fleet.set_mode(Mode::Stale);
    assert_eq!(scene.pick(&strategy, 1).policy, PolicyName::LeastToken, "old reports are no reports");
}

#[test]
fn consistent_hash_keeps_a_key_where_it_is() {
    let strategy = by_name(PolicyName::ConsistentHash);
    let pick = |scene: &Scene, session| {
        let picked = scene.decide(&strategy, session, |d| strategy.pick(d, &mut Rng::new(1)));
        (picked.choice.index, picked.choice.reason)
    };
    let rank = |scene: &Scene, key: u64| {
        let mut order: Vec<usize> = (0..scene.targets.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(rendezvous(key, scene.targets[*i].key)));
        order
    };
    let idle = Scene::new(9, [load(0, 0, 0, 0); 5]);
    for key in 0..200u64 {
        let order = rank(&idle, key);
        assert_eq!(pick(&idle, Some(key)), (order[0], Reason::Bound), "the session is the key");
        // Six requests of which none is at the first: the bound is ceil(1.25·7/5) = 2.
        let mut busy = Scene::new(9, [load(1, 0, 0, 0); 5]);
        busy.candidates[order[0]].requests = 2;
        assert_eq!(pick(&busy, Some(key)), (order[1], Reason::BoundElsewhere), "the next in rank takes over");
        busy.candidates[order[0]].requests = 1;
        assert_eq!(pick(&busy, Some(key)), (order[0], Reason::Bound));
    }
    // Without a session: the hash of the prompt's first four blocks, here the number 4.
    assert_eq!(pick(&idle, None), (rank(&idle, 4)[0], Reason::Bound));
    let short = Scene::new(2, [load(0, 0, 0, 0); 5]);
    assert_eq!(pick(&short, None), (rank(&short, 2)[0], Reason::Bound), "or of what there is");
    let none = Scene::new(0, [load(3, 0, 0, 0), load(1, 0, 0, 0)]);
    let picked = none.pick(&strategy, 1);
    assert_eq!((picked.policy, picked.choice.index), (PolicyName::LeastRequest, 1), "no key: by load");
}

#[test]
fn consistent_hash_finds_somebody_whatever_its_bound() {
    for load_factor in [1e-9, 0.5, 1.0, 1.25, f64::NAN, f64::INFINITY, 0.0] {
        let consistent_hash = ConsistentHashSettings { load_factor, blocks: 0 };
        let settings = Settings { consistent_hash, ..Settings::default() };
        let strategy = Strategy::new(PolicyName::ConsistentHash, &settings);
        for requests in [0, 1, 7, u64::MAX / 8] {
            let scene = Scene::new(3, [load(requests, 0, 0, 0); 3]);
            assert_eq!(
                scene.pick(&strategy, 1).policy,
                PolicyName::ConsistentHash,
                "{load_factor} {requests}"
            );
        }
    }
}
