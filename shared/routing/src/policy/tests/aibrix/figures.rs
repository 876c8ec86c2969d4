//! Policies that compare what the engines report.

use super::*;

const NONE: EngineFigures = EngineFigures {
    running: None,
    waiting: None,
    kv_usage: None,
    host_kv_usage: None,
    kv_total_tokens: None,
    prompt_tokens_per_s: None,
    generation_tokens_per_s: None,
    queue_time_s: None,
    prefill_time_s: None,
    decode_time_s: None,
    request_prompt_tokens: None,
    request_generation_tokens: None,
    busy: None,
    utilization: None,
    foreign_requests: None,
    taken_us: 0,
};

/// Policies that take the least of one figure: name, what is missing where nobody tells it, and a report with it.
type One = (PolicyName, &'static str, fn(f32) -> EngineFigures);

const ONES: &[One] = &[
    (PolicyName::LeastBusyTime, "busy", |x| EngineFigures { busy: Some(x), ..NONE }),
    (PolicyName::LeastGpuCache, "kv_usage", |x| EngineFigures { kv_usage: Some(x), ..NONE }),
    (PolicyName::LeastKvCache, "kv_usage", |x| EngineFigures { kv_usage: Some(x), ..NONE }),
    (PolicyName::LeastUtilization, "utilization", |x| EngineFigures { utilization: Some(x), ..NONE }),
    (PolicyName::Throughput, "tokens_per_s", |x| EngineFigures {
        prompt_tokens_per_s: Some(x),
        generation_tokens_per_s: Some(x),
        ..NONE
    }),
    (PolicyName::LeastLatency, "request_times", |x| EngineFigures {
        queue_time_s: Some(x),
        prefill_time_s: Some(x),
        decode_time_s: Some(x + 1.0),
        ..NONE
    }),
];

#[test]
fn the_least_figure_wins_and_those_without_it_are_passed_over() {
    for (policy, _, with) in ONES {
        let least = |figures: &[EngineFigures]| Scene::reporting(*policy, figures).pick();
        assert_eq!(least(&[with(0.5), with(0.2), with(0.7)]), Ok((1, Reason::LeastLoad)), "{policy}");
        assert_eq!(least(&[NONE, with(0.9), NONE]), Ok((1, Reason::LeastLoad)), "{policy}: known on one");
        assert_eq!(least(&[with(0.0), with(0.2)]), Ok((0, Reason::LeastLoad)), "{policy}: zero is a figure");
    }
}

#[test]
fn ties_are_drawn() {
    for (policy, _, with) in ONES {
        let mut scene = Scene::reporting(*policy, &[with(0.2), with(0.5), with(0.2), with(0.2)]);
        let counts = scene.counts(3_000);
        assert!(counts[1] == 0 && even(&[counts[0], counts[2], counts[3]]), "{policy}: {counts:?}");
    }
}

#[test]
fn where_nobody_tells_the_figure_the_fallback_is_named() {
    for (policy, figure, _) in ONES {
        let mut scene = Scene::reporting(*policy, &[NONE; 3]);
        assert_eq!(scene.pick(), Err(Some(Missing(figure))), "{policy}");
        scene.candidates[0].requests = 2;
        scene.candidates[2].requests = 1;
        let picked = scene.picked();
        assert_eq!(picked.choice.index, 1, "{policy}: fewest requests");
        assert_eq!((picked.policy, picked.missing), (PolicyName::LeastRequest, Some(Missing(figure))));
        assert_eq!(scene.values(), [None; 3]);
    }
}

#[test]
fn an_old_report_is_no_figure() {
    for (policy, figure, with) in ONES {
        let mut scene = Scene::reporting(*policy, &[with(0.5), with(0.2)]);
        scene.fleet.set_mode(Mode::Stale);
        assert_eq!(scene.pick(), Err(Some(Missing(figure))), "{policy}");
    }
}

#[test]
fn broken_figures_neither_win_nor_lose() {
    for (policy, figure, with) in ONES {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -3.0] {
            let mut scene = Scene::reporting(*policy, &[with(0.5), with(broken), with(0.4)]);
            assert_eq!(scene.pick(), Ok((2, Reason::LeastLoad)), "{policy} {broken}");
            assert_eq!(scene.values()[1], None, "{policy} {broken}");
            let mut scene = Scene::reporting(*policy, &[with(broken); 2]);
            assert_eq!(scene.pick(), Err(Some(Missing(figure))), "{policy} {broken} everywhere");
        }
    }
}

#[test]
fn kv_off_the_accelerator_counts_where_there_is_some() {
    let kv = |own, host| EngineFigures { kv_usage: own, host_kv_usage: host, ..NONE };
    for (name, rows, index) in [
        ("both add up", [kv(Some(0.3), Some(0.5)), kv(Some(0.5), Some(0.2))], 1),
        ("none there is nothing in use", [kv(Some(0.3), None), kv(Some(0.2), Some(0.2))], 0),
        ("the accelerator's is needed", [kv(None, Some(0.0)), kv(Some(0.9), Some(0.9))], 1),
        ("a broken one is not none", [kv(Some(0.1), Some(f32::NAN)), kv(Some(0.9), None)], 1),
    ] {
        assert_eq!(
            Scene::reporting(PolicyName::LeastKvCache, &rows).pick(),
            Ok((index, Reason::LeastLoad)),
            "{name}"
        );
    }
    // The other policy of the two looks at the accelerator alone.
    let rows = [kv(Some(0.3), None), kv(Some(0.2), Some(1.0))];
    assert_eq!(Scene::reporting(PolicyName::LeastGpuCache, &rows).pick(), Ok((1, Reason::LeastLoad)));
}

#[test]
fn throughput_weighs_prompts_twice_and_needs_both_rates() {
    let rates = |prompt, generation| EngineFigures {
        prompt_tokens_per_s: prompt,
        generation_tokens_per_s: generation,
        ..NONE
    };
    for (name, rows, index) in [
        ("2:1", [rates(Some(100.0), Some(300.0)), rates(Some(150.0), Some(210.0))], 0),
        ("one rate is not enough", [rates(Some(0.0), None), rates(Some(9e3), Some(9e3))], 1),
        ("nor the other", [rates(None, Some(0.0)), rates(Some(9e3), Some(9e3))], 1),
    ] {
        assert_eq!(
            Scene::reporting(PolicyName::Throughput, &rows).pick(),
            Ok((index, Reason::LeastLoad)),
            "{name}"
        );
    }
    let mut settings = Settings::default();
    settings.throughput.prompt_weight = 0.0;
    let mut scene = Scene::with(PolicyName::Throughput, &settings, &[busy(0, 0), busy(0, 0)]);
    scene.targets[0].cells.load.store(&rates(Some(100.0), Some(300.0)));
    scene.targets[1].cells.load.store(&rates(Some(150.0), Some(210.0)));
    assert_eq!(scene.pick(), Ok((1, Reason::LeastLoad)));
}

fn times(queue: f32, prefill: f32, decode: f32, prompt: f32, generation: f32) -> EngineFigures {
    EngineFigures {
        queue_time_s: Some(queue),
        prefill_time_s: Some(prefill),
        decode_time_s: Some(decode),
        request_prompt_tokens: Some(prompt),
        request_generation_tokens: Some(generation),
        ..NONE
    }
}

#[test]
fn least_latency_compares_by_one_and_the_same_request() {
    // The mean request of the two has 300 prompt tokens and 150 generated ones.
    let rows = [times(0.5, 0.2, 4.0, 200.0, 200.0), times(0.25, 0.2, 4.0, 400.0, 100.0)];
    let mut scene = Scene::reporting(PolicyName::LeastLatency, &rows);
    let values: Vec<_> =
        scene.values().into_iter().flatten().map(|value| (value * 1e5).round() / 1e5).collect();
    assert_eq!(values, [0.5 + 0.3 + 3.0, 0.25 + 0.15 + 6.0]);
    assert_eq!(scene.pick(), Ok((0, Reason::LeastLoad)));
    // A phase that is not told makes the whole unknown, a length that is not told only its own scale.
    let rows = [EngineFigures { queue_time_s: None, ..rows[0] }, rows[1]];
    assert_eq!(Scene::reporting(PolicyName::LeastLatency, &rows).pick(), Ok((1, Reason::LeastLoad)));
    let rows = [EngineFigures { request_prompt_tokens: None, ..times(0.0, 0.2, 1.0, 0.0, 100.0) }, rows[1]];
    assert_eq!(Scene::reporting(PolicyName::LeastLatency, &rows).pick(), Ok((0, Reason::LeastLoad)));
}

#[test]
fn least_latency_counts_who_is_waiting_now() {
    let row = times(0.5, 0.2, 4.0, 100.0, 100.0);
    let mut scene = Scene::reporting(PolicyName::LeastLatency, &[row, times(0.9, 0.2, 4.0, 100.0, 100.0)]);
    for (prefilling, index) in [(0, 0), (2, 0), (4, 0), (5, 1), (50, 1)] {
        scene.candidates[0].prefilling = prefilling;
        assert_eq!(scene.pick(), Ok((index, Reason::LeastLoad)), "{prefilling} at 0.2 s each");
    }
}

#[test]
fn busy_shares_are_compared_in_whole_percent() {
    let rows = [0.998, 0.99, 0.9999].map(|x| EngineFigures { busy: Some(x), ..NONE });
    assert_eq!(Scene::reporting(PolicyName::LeastBusyTime, &rows).pick(), Ok((1, Reason::LeastLoad)));
    let counts = Scene::reporting(PolicyName::LeastBusyTime, &[rows[0], rows[2]]).counts(1_000);
    assert!(even(&counts), "{counts:?}");
}

#[test]
fn an_untried_target_takes_one_request_at_a_time() {
    let cold = times(0.0, 0.0, 0.0, 0.0, 0.0);
    let mut scene =
        Scene::reporting(PolicyName::LeastLatency, &[times(0.1, 0.1, 1.0, 10.0, 10.0), cold, cold]);
    let first = scene.pick().unwrap().0;
    assert!(first > 0, "the untried ones first");
    scene.candidates[first].requests = 1;
    let second = scene.pick().unwrap().0;
    assert!(second > 0 && second != first);
    scene.candidates[second].requests = 1;
    assert_eq!(scene.pick(), Ok((0, Reason::LeastLoad)), "until they are measured");
    // Where all are such, nothing is missing; it is only not there yet.
    let mut scene = Scene::reporting(PolicyName::LeastLatency, &[cold, cold]);
    scene.candidates.iter_mut().for_each(|c| c.requests = 2);
    scene.candidates[1].requests = 1;
    let picked = scene.picked();
    assert_eq!((picked.choice.index, picked.policy, picked.missing), (1, PolicyName::LeastRequest, None));
}
