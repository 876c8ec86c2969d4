//! Weighted sums, scorers and `llm-d`.

use super::tables::{Scene, by_name};
use crate::policy::{Candidate, Missing, Reason};
use crate::{EngineFigures, Picked, PolicyName, Rng, ScorerName, Settings, Strategy, StrategyError};

fn sum(text: &str) -> Strategy {
    Strategy::parse(text, &Settings::default()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn has(requests: u64, cached_blocks: u32) -> Candidate {
    Candidate { requests, cached_blocks, tokens: 10 * requests, ..Candidate::default() }
}

fn report(waiting: u32, running: u32, kv_usage: f32) -> EngineFigures {
    let (waiting, running, kv_usage) = (Some(waiting), Some(running), Some(kv_usage));
    EngineFigures { waiting, running, kv_usage, taken_us: 1, ..EngineFigures::default() }
}

/// The scores of each candidate, recovered from the values: what is missing to the greatest possible sum.
fn scores(scene: &Scene, text: &str, weight: f64) -> Vec<f64> {
    let strategy = sum(text);
    let mut scores = Vec::new();
    scene.decide(&strategy, None, |d| {
        strategy.policy().values(d, &mut |index, value| {
            assert_eq!(value, strategy.policy().value(d, &d.candidates[index]), "one by one is the same");
            scores.push(weight - value.unwrap());
        });
    });
    scores
}

#[test]
fn sums_are_read_as_they_are_written() {
    for (text, label) in [
        ("prefix-cache:2,least-request:1", "prefix-cache:2,least-request:1"),
        (" prefix-cache : 2 , least-request ", "prefix-cache:2,least-request:1"),
        (
            "queue:2,kv-cache-utilization:2,prefix-cache-scorer:3",
            "queue-scorer:2,kv-cache-utilization-scorer:2,prefix-cache-scorer:3",
        ),
        ("random:1000000,least-request:0", "random:1000000,least-request:0"),
        ("least-request:1", "least-request:1"),
    ] {
        let strategy = sum(text);
        assert_eq!((strategy.label(), strategy.name()), (label, PolicyName::Weighted));
    }
    assert!(sum("prefix-cache:2,least-request:1").wants_prefix());
    assert!(!sum("queue:2,least-request:1").wants_prefix());
    assert_eq!(sum("least-request").name(), PolicyName::LeastRequest, "a name alone is that policy itself");
}

#[test]
fn what_is_no_sum_is_refused_with_the_reason() {
    type Check = fn(&StrategyError) -> bool;
    let table: &[(&str, Check)] = &[
        ("prefix-cach:2,least-request:1", |e| matches!(e, StrategyError::Unknown(_))),
        ("prefix-cache:2,", |e| matches!(e, StrategyError::Unknown(_))),
        (",", |e| matches!(e, StrategyError::Unknown(_))),
        (":", |e| matches!(e, StrategyError::Unknown(_))),
        ("prefix-cache:", |e| matches!(e, StrategyError::Weight { name: "prefix-cache", .. })),
        ("prefix-cache:-1", |e| matches!(e, StrategyError::Weight { .. })),
        ("prefix-cache:+1", |e| matches!(e, StrategyError::Weight { .. })),
        ("prefix-cache:1.5", |e| matches!(e, StrategyError::Weight { .. })),
        ("prefix-cache:1000001", |e| matches!(e, StrategyError::Weight { .. })),
        ("prefix-cache:99999999999999999999", |e| matches!(e, StrategyError::Weight { .. })),
        ("prefix-cache:1:2", |e| matches!(e, StrategyError::Weight { .. })),
        ("queue:1,queue-scorer:2", |e| matches!(e, StrategyError::Twice("queue-scorer"))),
        ("prefix-cache:0,least-request:0", |e| matches!(e, StrategyError::NoWeight)),
        ("llm-d:1,least-request:1", |e| matches!(e, StrategyError::Exclusive("llm-d"))),
        ("vtc-basic:1,least-request:1", |e| matches!(e, StrategyError::Exclusive("vtc-basic"))),
        ("weighted:1", |e| matches!(e, StrategyError::Unknown(_))),
    ];
    for (text, is_right) in table {
        let error = Strategy::parse(text, &Settings::default()).unwrap_err();
        assert!(is_right(&error), "{text}: {error:?}");
    }
    for name in PolicyName::ALL.iter().filter(|name| name.as_str().starts_with("slo")) {
        let error = Strategy::parse(&format!("{name}:1,random:1"), &Settings::default()).unwrap_err();
        assert!(matches!(error, StrategyError::Exclusive(_)), "{name}");
    }
    let all: Vec<_> = PolicyName::ALL.iter().map(|name| name.as_str()).collect();
    let parts: Vec<_> = ScorerName::ALL
        .iter()
        .map(|name| name.as_str())
        .chain(
            all.iter()
                .copied()
                .filter(|name| !["llm-d", "vtc-basic"].contains(name) && !name.starts_with("slo")),
        )
        .collect();
    let text = |count: usize| parts[..count].join(",");
    assert!(Strategy::parse(&text(16), &Settings::default()).is_ok());
    assert_eq!(Strategy::parse(&text(17), &Settings::default()).unwrap_err(), StrategyError::TooMany);
    let said = Strategy::parse("nope:1", &Settings::default()).unwrap_err().to_string();
    for name in all.iter().chain(&["queue-scorer", "no-hit-lru-scorer"]) {
        assert!(said.contains(name), "{said}");
    }
    let long = "x".repeat(5_000);
    assert!(
        Strategy::parse(&format!("{long}:1"), &Settings::default()).unwrap_err().to_string().len() < 2_000
    );
    assert!(
        Strategy::parse(&format!("random:{long}"), &Settings::default()).unwrap_err().to_string().len() < 500
    );
}

#[test]
fn each_policy_is_set_between_its_least_and_its_greatest() {
    // Blocks not held: 0, 5, 10; requests: 8, 4, 0.
    let scene = Scene::new(10, [has(8, 10), has(4, 5), has(0, 0)]);
    assert_eq!(scores(&scene, "prefix-cache:1", 1.0), [1.0, 0.5, 0.0]);
    assert_eq!(scores(&scene, "least-request:1", 1.0), [0.0, 0.5, 1.0]);
    assert_eq!(scores(&scene, "prefix-cache:2,least-request:1", 3.0), [2.0, 1.5, 1.0]);
    assert_eq!(scene.picks(&sum("prefix-cache:2,least-request:1")), [0]);
    assert_eq!(scene.picks(&sum("prefix-cache:1,least-request:2")), [2]);
    assert_eq!(scene.picks(&sum("prefix-cache:1,least-request:1")), [0, 1, 2], "ties are drawn");
    let picked = scene.pick(&sum("prefix-cache:2,least-request:1"), 1);
    assert_eq!((picked.policy, picked.choice.reason), (PolicyName::Weighted, Reason::HighestScore));
    // Where all are equal a part changes nothing.
    let even = Scene::new(10, [has(3, 5), has(3, 0)]);
    assert_eq!(scores(&even, "least-request:5,prefix-cache:1", 6.0), [6.0, 5.0]);
}

#[test]
fn a_candidate_without_a_figure_scores_nothing_by_it() {
    let reports = [EngineFigures::default(), report(9, 0, 0.9), report(0, 0, 0.1)];
    let scene = Scene::new(0, [has(0, 0), has(1, 0), has(2, 0)]).reported(&reports);
    assert_eq!(scores(&scene, "queue:1", 1.0), [0.0, 0.0, 7.0 / 7.0]);
    assert_eq!(scene.pick(&sum("queue:1"), 1).missing, None, "somebody reports it");
    // Nobody reports: the part is named, the others decide.
    let blank = Scene::new(0, [has(1, 0), has(0, 0)]);
    let Picked { choice, policy, missing } = blank.pick(&sum("queue:5,least-request:1"), 1);
    assert_eq!((choice.index, policy, missing), (1, PolicyName::Weighted, Some(Missing("waiting"))));
    // No part has anything to say: least-request, and the first part is named.
    let Picked { choice, policy, missing } = blank.pick(&sum("kv-cache-utilization:5,queue:1"), 1);
    assert_eq!((choice.index, policy, missing), (1, PolicyName::LeastRequest, Some(Missing("kv_usage"))));
    assert_eq!(blank.pick(&sum("random:1"), 1).missing, Some(Missing("random")));
}

#[test]
fn broken_figures_neither_win_nor_lose_for_others() {
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0] {
        let reports = [report(0, 0, broken), report(0, 0, 0.5), report(0, 0, 0.25)];
        let scene = Scene::new(0, [has(0, 0); 3]).reported(&reports);
        assert_eq!(scores(&scene, "kv-cache-utilization:1", 1.0), [0.0, 0.5, 0.75], "{broken}");
        assert_eq!(scene.picks(&sum("kv-cache-utilization:1")), [2]);
        let all = Scene::new(0, [has(1, 0), has(0, 0)]).reported(&[report(0, 0, broken); 2]);
        assert_eq!(all.pick(&sum("kv-cache-utilization:1"), 1).policy, PolicyName::LeastRequest);
    }
}

#[test]
fn scorers_follow_their_formulas() {
    let reports = [report(0, 10, 0.2), report(32, 20, 0.5), report(128, 40, 1.0)];
    let scene = Scene::new(16, [has(0, 16), has(8, 4), has(16, 0)]).reported(&reports);
    for (scorer, want) in [
        ("queue", [1.0, 0.75, 0.0]),
        ("running-requests-size", [1.0, 2.0 / 3.0, 0.0]),
        ("kv-cache-utilization", [0.8, 0.5, 0.0]),
        ("load-aware", [0.5, 0.375, 0.0]),
        ("active-request", [1.0, 0.5, 0.0]),
        ("prefix-cache-scorer", [1.0, 0.25, 0.0]),
        // 10 a request in flight, and 1, 768 and 1024 uncached ones.
        ("token-load", [1.0, 848.0, 1184.0].map(|tokens| 1.0 - tokens / 4_194_304.0)),
        ("no-hit-lru", [0.5, 0.5, 0.5]),
    ] {
        let got = scores(&scene, &format!("{scorer}:1"), 1.0);
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-6), "{scorer}: {got:?}");
    }
    let even = Scene::new(16, [has(4, 2); 2]).reported(&[report(7, 7, 0.5); 2]);
    for (scorer, want) in [("queue", 1.0), ("running-requests-size", 1.0), ("active-request", 0.0)] {
        assert_eq!(scores(&even, &format!("{scorer}:1"), 1.0), [want; 2], "{scorer}");
    }
    // Seven were reported as waiting and running; fourteen more have been picked since.
    let burst = Scene::new(0, [has(21, 0), has(0, 0)]).reported(&[report(0, 7, 0.5), report(7, 7, 0.5)]);
    assert_eq!(scores(&burst, "queue:1", 1.0), [0.0, 1.0]);
}

#[test]
fn scorers_have_their_knobs() {
    let mut settings = Settings::default();
    settings.load_aware_scorer.threshold = 64;
    settings.active_request_scorer.idle_threshold = 8;
    settings.active_request_scorer.max_busy_score = 0.5;
    settings.prefix_cache_scorer.length_weight = 0.5;
    settings.prefix_cache_scorer.length_scale = 1024;
    let scene = Scene::new(32, [has(8, 16), has(9, 8), has(18, 0)]).reported(&[report(16, 0, 0.0); 3]);
    let score = |text: &str| {
        let strategy = Strategy::parse(text, &settings).unwrap();
        let mut scores = Vec::new();
        scene.decide(&strategy, None, |d| {
            strategy.policy().values(d, &mut |_, value| scores.push(1.0 - value.unwrap()));
        });
        scores
    };
    assert_eq!(score("active-request:1"), [1.0, 0.25, 0.0]);
    assert_eq!(score("prefix-cache-scorer:1"), [0.5 + 0.25, 0.125 + 0.125, 0.0]);
    assert_eq!(score("load-aware:1"), [0.375, 0.375, 0.5 * (1.0 - 18.0 / 64.0)]);
}

#[test]
fn no_hit_lru_gives_cold_prompts_in_turn() {
    let strategy = sum("no-hit-lru:1");
    let cold = Scene::new(4, [has(0, 0); 4]);
    let mut rng = Rng::new(9);
    let mut go = |scene: &Scene| scene.decide(&strategy, None, |d| strategy.pick(d, &mut rng)).choice.index;
    for _ in 0..3 {
        let mut round: Vec<_> = (0..4).map(|_| go(&cold)).collect();
        round.sort_unstable();
        assert_eq!(round, [0, 1, 2, 3]);
    }
    let ages = scores(&cold, "no-hit-lru:1", 1.0);
    let mut sorted = ages.clone();
    sorted.sort_by(f64::total_cmp);
    assert_eq!(sorted, [0.0, 0.25, 0.5, 0.75], "{ages:?}");
}

#[test]
fn llm_d_weighs_queue_room_and_prefix() {
    let strategy = by_name(PolicyName::LlmD);
    type Row = (Candidate, EngineFigures);
    let table: &[(&str, &[Row], &[usize])] = &[
        // 3·1 + 2·0.5 + 2·0 against 2·0.5 + 2·1.
        (
            "prefix outweighs a queue",
            &[(has(0, 10), report(4, 0, 0.5)), (has(0, 0), report(0, 0, 0.5))],
            &[0],
        ),
        // 3 + 0 against 2 + 2·0.6.
        (
            "queue and room outweigh it",
            &[(has(0, 10), report(4, 0, 1.0)), (has(0, 0), report(0, 0, 0.4))],
            &[1],
        ),
        ("half a prefix does not", &[(has(0, 5), report(4, 0, 0.5)), (has(0, 0), report(0, 0, 0.5))], &[1]),
        ("ties are drawn", &[(has(0, 5), report(0, 0, 0.5)), (has(0, 5), report(0, 0, 0.5))], &[0, 1]),
        // 3·0.6 against 2·1 + 2·0.5, the queue being the only one.
        (
            "who reports nothing scores less",
            &[(has(0, 6), EngineFigures::default()), (has(9, 0), report(9, 0, 0.5))],
            &[1],
        ),
    ];
    for (what, rows, picks) in table {
        let reports: Vec<_> = rows.iter().map(|row| row.1).collect();
        let scene = Scene::new(10, rows.iter().map(|row| row.0)).reported(&reports);
        assert_eq!(scene.picks(&strategy), *picks, "{what}");
        let picked = scene.pick(&strategy, 1);
        assert_eq!((picked.policy, picked.missing), (PolicyName::LlmD, None), "{what}");
    }
    let only_queue = EngineFigures { kv_usage: None, ..report(0, 0, 0.0) };
    let scene = Scene::new(10, [has(0, 5), has(0, 0)]).reported(&[only_queue; 2]);
    let picked = scene.pick(&strategy, 1);
    assert_eq!((picked.choice.index, picked.missing), (0, Some(Missing("kv_usage"))), "the others decide");
    let blank = Scene::new(10, [has(0, 5), has(0, 0)]);
    let picked = blank.pick(&strategy, 1);
    assert_eq!((picked.policy, picked.missing), (PolicyName::PrefixCache, Some(Missing("waiting"))));
}
