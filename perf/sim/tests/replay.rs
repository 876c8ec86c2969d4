//! Replay: what goes in comes out, the same every time, and gateways know what they should when they should.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use fairlead_routing::InFlightSums;
use fairlead_sim::profile::Profile;
use fairlead_sim::replay::{
    Decider, Event, Failure, Gateways, InstanceSpec, Outcome, Play, Record, RequestId, Setup, Slo, Workload,
    World, run, run_with,
};
use fairlead_sim::trace::{Ask, Talk, Trace};
use proptest::prelude::*;

fn instance(kv_blocks: u32) -> InstanceSpec {
    InstanceSpec { profile: Profile::h200_8b(), kv_blocks }
}

fn setup(instances: usize) -> Setup {
    Setup::new(instance(3_000), instances)
}

fn ask(input: u32, output: u32, ids: &[(u64, u32)]) -> Ask {
    Ask { input, output, think: 0.0, shared: 0, fresh: ids.into() }
}

/// Requests at times, each with a path of its own family: time, family, blocks, output.
fn timed(requests: &[(f64, u64, u32, u32)]) -> Arc<Workload> {
    let talk = |&(at, family, blocks, output): &(f64, u64, u32, u32)| Talk {
        at: Some(at),
        prefix: 0,
        asks: vec![ask(blocks * 512 + 100, output, &[(family * 10_000, blocks)])],
    };
    let trace = Trace { talks: requests.iter().map(talk).collect(), left_out: 0 };
    Arc::new(Workload::new(&trace, &Play::default()))
}

fn play(setup: &Setup, workload: &Arc<Workload>, policy: &str, seed: u64) -> Outcome {
    run(setup, workload, policy, seed).unwrap()
}

fn instances(outcome: &Outcome) -> Vec<u32> {
    outcome.records.iter().map(|r| r.instance.unwrap()).collect()
}

/// Passes everything on and counts what happens to each request.
struct Watched {
    gateways: Gateways,
    first: Vec<u32>,
    ended: Vec<u32>,
    lost: Vec<u32>,
    arrivals: Vec<(RequestId, f64)>,
    ends: Vec<f64>,
}

impl Watched {
    fn new(setup: &Setup, workload: &Arc<Workload>, policy: &str, seed: u64) -> Self {
        let n = workload.requests.len();
        Self {
            gateways: Gateways::new(setup, workload, policy, seed).unwrap(),
            first: vec![0; n],
            ended: vec![0; n],
            lost: vec![0; n],
            arrivals: Vec::new(),
            ends: vec![f64::NAN; n],
        }
    }
}

impl Decider for Watched {
    fn decide(&mut self, request: RequestId, tried: &[usize], world: &World) -> Option<usize> {
        if tried.is_empty() {
            self.arrivals.push((request, world.now));
        }
        let decided = self.gateways.decide(request, tried, world);
        assert!(decided.is_none_or(|instance| !tried.contains(&instance)));
        decided
    }

    fn refused(&mut self, request: RequestId, instance: usize, down: bool, world: &World) {
        self.gateways.refused(request, instance, down, world);
    }

    fn happened(&mut self, event: &Event, world: &mut World) {
        match *event {
            Event::FirstToken { request, .. } => self.first[request as usize] += 1,
            Event::Finished { request, .. } => {
                self.ended[request as usize] += 1;
                self.ends[request as usize] = world.now;
            }
            Event::Lost { request, .. } => self.lost[request as usize] += 1,
            _ => {}
        }
        self.gateways.happened(event, world);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    /// Whatever dies and however late the news is: every request comes once and ends once, nothing stays reserved, and
    /// the index knows in the end what the caches hold.
    #[test]
    fn every_request_ends_once(
        requests in prop::collection::vec((0.0f64..20.0, 0u64..6, 0u32..12, 1u32..40), 1..60),
        failures in prop::collection::vec((0usize..4, 0.0f64..20.0, prop::option::of(0.1f64..10.0)), 0..4),
        policy in prop::sample::select(vec!["random", "least-request", "prefix-cache", "marginal"]),
        gateways in 1usize..4,
        delay in prop::sample::select(vec![0.0, 0.001, 0.3, 5.0]),
        kv_blocks in 20u32..60,
        seed in any::<u64>(),
    ) {
        let workload = timed(&requests);
        let failures = failures.iter().map(|&(instance, at, after)| {
            Failure { instance, at, until: after.map(|after| at + after) }
        });
        let setup = Setup {
            gateways,
            state_delay: delay,
            failures: failures.collect(),
            ..Setup::new(instance(kv_blocks), 4)
        };
        let mut watched = Watched::new(&setup, &workload, policy, seed);
        let outcome = run_with(&setup, &workload, &mut watched, seed);
        prop_assert_eq!(outcome.records.len(), requests.len());
        prop_assert_eq!(watched.arrivals.len(), requests.len());
        for (i, (request, at)) in watched.arrivals.iter().enumerate() {
            let (request, record) = (*request as usize, &outcome.records[i]);
            prop_assert_eq!(record.arrival, *at);
            prop_assert_eq!(watched.ended[request], u32::from(record.end.is_some()));
            prop_assert!(watched.first[request] <= 1 && watched.lost[request] <= 3);
            if let Some(end) = record.end {
                let first = record.first.unwrap();
                prop_assert!(record.arrival < first && first <= end);
                prop_assert!(record.cached < record.prompt);
            } else {
                prop_assert!(!setup.failures.is_empty());
            }
        }
        prop_assert_eq!(watched.gateways.in_flight(), InFlightSums::default());
        prop_assert_eq!(&outcome, &play(&setup, &workload, policy, seed), "the same again");
    }
}

#[test]
fn the_index_knows_what_the_caches_hold() {
    /// Takes the world's state at its end.
    struct Last(Gateways, Option<World>);
    impl Decider for Last {
        fn decide(&mut self, request: RequestId, tried: &[usize], world: &World) -> Option<usize> {
            self.0.decide(request, tried, world)
        }
        fn happened(&mut self, event: &Event, world: &mut World) {
            self.0.happened(event, world);
            if matches!(event, Event::Stepped(_)) && world.next_at().is_none() {
                self.1 = Some(world.branch());
            }
        }
    }
    // Turns of 12 conversations that share a first block, on caches that hold a part of them.
    let requests: Vec<(f64, u64, u32, u32)> = (0..300u32)
        .map(|i| (f64::from(i) * 0.11, u64::from(i * 7 % 12), 3 + (i * 5) % 17, 1 + i % 30))
        .collect();
    let workload = timed(&requests);
    let mut evicted = 0;
    for delay in [0.0, 0.2] {
        let setup = Setup { state_delay: delay, gateways: 2, ..Setup::new(instance(64), 3) };
        let mut last = Last(Gateways::new(&setup, &workload, "prefix-cache", 1).unwrap(), None);
        run_with(&setup, &workload, &mut last, 1);
        let Last(mut gateways, Some(world)) = last else { panic!("no step was the last") };
        for request in &workload.requests {
            for (number, engine) in world.engines.iter().enumerate() {
                let held = engine.model.cache().matched(&request.path);
                assert_eq!(gateways.held(number, &request.path), held, "delay {delay}, instance {number}");
                evicted += engine.model.cache().evictions();
            }
        }
    }
    assert!(evicted > 0);
}

#[test]
fn a_run_depends_on_its_seed_alone() {
    let requests: Vec<_> = (0..200u32).map(|i| (f64::from(i) * 0.05, u64::from(i) % 20, 8, 20)).collect();
    let workload = timed(&requests);
    let setup = Setup { gateways: 3, state_delay: 0.01, ..setup(4) };
    for policy in ["random", "round-robin", "least-request", "prefix-cache", "marginal", "cost"] {
        assert_eq!(play(&setup, &workload, policy, 5), play(&setup, &workload, policy, 5), "{policy}");
    }
    assert_ne!(play(&setup, &workload, "random", 5), play(&setup, &workload, "random", 6));
    assert!(run(&setup, &workload, "no-such-policy", 1).is_err());
}

#[test]
fn an_instance_dies_and_returns_empty() {
    // One long answer and one long prompt at the moment of death; later ones of the same family.
    let workload = timed(&[
        (0.0, 1, 4, 2_000),
        (0.95, 2, 60, 10),
        (2.0, 1, 4, 5),
        (6.0, 1, 4, 5),
        (7.0, 1, 4, 5),
        (8.0, 1, 4, 5),
    ]);
    let setup = Setup { failures: vec![Failure { instance: 0, at: 1.0, until: Some(5.0) }], ..setup(1) };
    let outcome = play(&setup, &workload, "least-request", 1);
    let end = |i: usize| outcome.records[i].end.is_some();
    // Past its first token: lost. Before: tried again, but there is nowhere to go. While it is down: nowhere either.
    assert_eq!((0..6).map(end).collect::<Vec<_>>(), [false, false, false, true, true, true]);
    assert!(outcome.records[0].first.is_some());
    assert_eq!([3, 4].map(|i: usize| outcome.records[i].cached), [0, 2_048]);

    // With a second instance only the answer that had begun is lost.
    let setup = Setup { pool: vec![instance(3_000); 2], ..setup };
    for delay in [0.0, 0.5] {
        let setup = Setup { state_delay: delay, ..setup.clone() };
        let outcome = play(&setup, &workload, "round-robin", 1);
        let failed: Vec<usize> = (0..6).filter(|i| outcome.records[*i].end.is_none()).collect();
        let at = instances(&outcome);
        if at[0] == 0 {
            assert_eq!((failed, at[1], at[2]), (vec![0], 1, 1), "delay {delay}");
        } else {
            assert_eq!((failed, at[1], at[2]), (vec![], 1, 1), "delay {delay}");
        }
        assert!(at[3..].contains(&0), "it is used again: {at:?}");
    }
}

#[test]
fn requests_that_no_instance_can_hold_fail_and_the_others_go_on() {
    let workload = timed(&[(0.0, 1, 50, 5), (0.1, 2, 10, 5)]);
    let outcome = play(&Setup::new(instance(20), 3), &workload, "least-request", 1);
    assert_eq!(outcome.records[0].end, None);
    assert!(outcome.records[1].end.is_some());
    // A pool of two kinds: the larger one takes it.
    let pool = vec![instance(20), instance(100)];
    for seed in 0..8 {
        let setup = Setup { pool: pool.clone(), ..setup(0) };
        let outcome = play(&setup, &workload, "random", seed);
        assert!(outcome.records.iter().all(|r| r.end.is_some()));
        assert_eq!(outcome.records[0].instance, Some(1));
    }
}

fn sessions(n: usize, play: Play) -> Arc<Workload> {
    let talk = |s: u64| {
        let first = ask(5 * 512 + 10, 20, &[(0, 3), (1_000 * (s + 1), 2)]);
        let turn = |think, shared, new: &[(u64, u32)]| Ask { think, shared, ..ask(9 * 512, 20, new) };
        let asks = vec![
            first,
            turn(4.0, 5, &[(1_000 * (s + 1) + 10, 4)]),
            turn(90.0, 5, &[(1_000 * (s + 1) + 20, 4)]),
            turn(1.0, 9, &[]),
        ];
        Talk { at: None, prefix: 3, asks }
    };
    let trace = Trace { talks: (0..n as u64).map(talk).collect(), left_out: 0 };
    Arc::new(Workload::new(&trace, &play))
}

#[test]
fn sessions_ask_after_thinking() {
    let workload =
        sessions(2, Play { sessions: 5, max_turns: 3, starts_per_s: 0.5, speed: 2.0, ..Play::default() });
    assert_eq!(workload.requests.len(), 15);
    let setup = setup(2);
    let mut watched = Watched::new(&setup, &workload, "least-request", 3);
    run_with(&setup, &workload, &mut watched, 3);
    let mut at = [f64::NAN; 15];
    watched.arrivals.iter().for_each(|(request, time)| at[*request as usize] = *time);
    for session in 0..5 {
        let first = session * 3;
        assert!((at[first + 1] - watched.ends[first] - 2.0).abs() < 1e-9, "think 4 s at twice the speed");
        assert!((at[first + 2] - watched.ends[first + 1] - 15.0).abs() < 1e-9, "at most 30 s");
        let key = workload.requests[first].session.unwrap();
        assert!((0..3).all(|turn| workload.requests[first + turn].session == Some(key)));
    }
    assert!(at[3] > at[0] && at[6] > at[3], "sessions start one after the other");
}

#[test]
fn sessions_beyond_the_trace_share_the_system_prompt_alone() {
    let workload = sessions(2, Play { sessions: 4, ..Play::default() });
    let path = |session: usize, turn: usize| &workload.requests[session * 4 + turn].path;
    let common = |a: &[u64], b: &[u64]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    for (a, b) in [(0, 1), (0, 2), (1, 3), (2, 3)] {
        assert_eq!(common(path(a, 0), path(b, 0)), 3, "{a} and {b}");
    }
    for session in 0..4 {
        assert_eq!(common(path(session, 0), path(session, 1)), 5);
        assert_eq!(common(path(session, 2), path(session, 3)), 9);
    }
    assert_eq!(sessions(2, Play { requests: 6, ..Play::default() }).requests.len(), 6);
}

#[test]
fn turns_of_a_conversation_are_a_session() {
    let ids =
        |ids: &[(u64, u32)], input: u32| Talk { at: Some(0.0), prefix: 0, asks: vec![ask(input, 1, ids)] };
    // Two conversations that begin alike; the last block of a prompt is not whole.
    let trace = Trace {
        talks: vec![
            ids(&[(0, 1), (10, 2)], 1_100),
            ids(&[(0, 1), (20, 2)], 1_100),
            ids(&[(0, 1), (10, 1), (30, 3)], 2_100),
            ids(&[(0, 1), (20, 1), (40, 3)], 2_100),
            ids(&[], 300),
        ],
        left_out: 0,
    };
    let workload = Workload::new(&trace, &Play::default());
    let of: Vec<_> = workload.requests.iter().map(|r| r.session).collect();
    assert_eq!((of[2], of[3]), (of[0], of[1]));
    assert!(of[0] != of[1] && of[0].is_some() && of[4].is_none());
}

#[test]
fn old_news_is_as_good_as_new_when_little_happens() {
    let requests: Vec<_> =
        (0..120u32).map(|i| (f64::from(i) * 3.0, u64::from(i) % 9, 6 + i / 9, 30)).collect();
    let workload = timed(&requests);
    for policy in ["least-request", "prefix-cache", "marginal"] {
        let fresh = play(&setup(3), &workload, policy, 2);
        let late = play(&Setup { state_delay: 0.2, ..setup(3) }, &workload, policy, 2);
        assert_eq!(fresh, late, "{policy}");
    }
}

#[test]
fn what_a_gateway_does_itself_counts_at_once() {
    // A burst while all news takes a minute: it spreads, and a prompt like one that is on its way goes there too.
    let burst: Vec<_> = (0..4u32).map(|i| (f64::from(i) * 0.001, u64::from(i), 8, 50)).collect();
    let setup = Setup { state_delay: 60.0, ..setup(4) };
    let mut at = instances(&play(&setup, &timed(&burst), "least-request", 7));
    at.sort_unstable();
    assert_eq!(at, [0, 1, 2, 3]);
    let alike = timed(&[(0.0, 1, 8, 50), (0.001, 2, 8, 50), (0.002, 1, 8, 50)]);
    for seed in 0..8 {
        let at = instances(&play(&setup, &alike, "prefix-cache", seed));
        assert_eq!(at[0], at[2]);
        // Two gateways that do not hear of each other do not spread.
        let two = Setup { gateways: 2, ..setup.clone() };
        assert_eq!(play(&two, &alike, "prefix-cache", seed).records.len(), 3);
    }
    // After the delay the others' requests count: the long one is known to be there.
    let late = timed(&[(0.0, 1, 8, 4_000), (10.0, 2, 8, 4_000)]);
    let hear = Setup { gateways: 8, state_delay: 5.0, ..Setup::new(instance(3_000), 2) };
    for seed in 0..16 {
        let at = instances(&play(&hear, &late, "least-request", seed));
        assert_ne!(at[0], at[1], "seed {seed}");
    }
}

#[test]
fn a_decision_can_be_tried_out() {
    /// Takes the instance at which the request's first token comes first, by playing on in a copy.
    struct Oracle(Option<World>);
    impl Decider for Oracle {
        fn decide(&mut self, request: RequestId, _: &[usize], world: &World) -> Option<usize> {
            let copy = self.0.get_or_insert_with(|| world.branch());
            let mut ttft = |instance: usize| {
                world.branch_into(copy);
                copy.send(request, instance).ok()?;
                loop {
                    match copy.next()? {
                        Event::FirstToken { request: r, .. } if r == request => {
                            return Some(copy.now - world.now);
                        }
                        Event::Arrival(later) => {
                            let least =
                                (0..copy.engines.len()).min_by_key(|i| copy.engines[*i].in_flight())?;
                            copy.send(later, least).ok()?;
                        }
                        _ => {}
                    }
                }
            };
            let of = |instance| (instance, ttft(instance).unwrap_or(f64::INFINITY));
            let all = (0..world.engines.len()).map(of);
            all.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(instance, _)| instance)
        }
    }
    let requests: Vec<_> = (0..60u32).map(|i| (f64::from(i) * 0.2, u64::from(i) % 7, 20, 30)).collect();
    let workload = timed(&requests);
    let mean = |outcome: &Outcome| outcome.summary(&Slo::default()).ttft_mean_s;
    let oracle = run_with(&setup(3), &workload, &mut Oracle(None), 1);
    assert!(mean(&oracle) < 0.8 * mean(&play(&setup(3), &workload, "least-request", 1)));
}

#[test]
fn figures_are_those_of_the_table() {
    let record = |arrival: f64, ttft: f64, tpot: f64, output: u32, cached: u32| Record {
        arrival,
        instance: Some(0),
        prefill: None,
        cached,
        prompt: 1_000,
        output,
        first: Some(arrival + ttft),
        end: Some(arrival + ttft + tpot * f64::from(output - 1)),
    };
    let mut records = vec![record(0.0, 100.0, 1.0, 11, 1_000)];
    records.extend([
        record(1.0, 1.0, 0.02, 11, 0),
        record(2.0, 2.0, 0.02, 11, 500),
        record(3.0, 1.9, 0.05, 11, 0),
        record(4.0, 0.1, 0.00, 1, 500),
        record(5.0, 1.0, 0.04, 101, 0),
        record(6.0, 1.0, 0.04, 11, 0),
        record(7.0, 1.0, 0.04, 11, 0),
        record(8.0, 1.0, 0.04, 11, 0),
        Record { end: None, ..record(9.0, 0.5, 0.04, 11, 900) },
    ]);
    let outcome = Outcome { records };
    let s = outcome.summary(&Slo::default());
    assert_eq!((s.requests, s.failed), (9, 1), "the first tenth is not counted");
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
    close(s.ttft_mean_s, 9.0 / 8.0);
    close(s.ttft_p50_s, 1.0);
    close(s.ttft_p99_s, 2.0);
    close(s.tpot_mean_ms, 1e3 * (0.02 + 0.02 + 0.05 + 4.0 * 0.04) / 7.0);
    close(s.tpot_p99_ms, 50.0);
    close(s.hit_ratio, 1_000.0 / 8_000.0);
    // Neither the one at 2 s nor the one at 50 ms nor the one that failed.
    close(s.goodput, 6.0 / 9.0);
    close(s.throughput_rps, 8.0 / 9.0);
    let strict = outcome.summary(&Slo { ttft: 1.5, tpot: 0.03 });
    close(strict.goodput, 2.0 / 9.0);
    assert_eq!(Outcome::default().summary(&Slo::default()).requests, 0);
}
