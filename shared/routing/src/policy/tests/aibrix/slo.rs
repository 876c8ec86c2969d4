//! Policies that keep limits.

use super::*;

const ALL: [PolicyName; 3] =
    [PolicyName::SloLeastLoadPulling, PolicyName::SloLeastLoad, PolicyName::SloPackLoad];

/// Targets with so many requests decoding, each of a short prompt. With the prior's constants a step takes 6 ms and
/// some 35 µs for each of them.
fn scene(policy: PolicyName, decoding: &[u64]) -> Scene {
    let candidate =
        |&requests: &u64| Candidate { requests, context_tokens: requests * 64, ..Candidate::default() };
    let candidates: Vec<_> = decoding.iter().map(candidate).collect();
    let mut scene = Scene::new(policy, &candidates).prompt(1);
    // 192 tokens of mean context: (8,000 − 6,000) / (30 + 0.02 · 192) = 59 sequences within 8 ms.
    scene.slo = Slo { ttft_us: 0, tpot_us: 8_000 };
    scene
}

#[test]
fn slo_is_the_pulling_one() {
    assert_eq!("slo".parse(), Ok(PolicyName::SloLeastLoadPulling));
}

#[test]
fn load_is_the_share_of_what_the_target_holds_within_the_limits() {
    let mut scene = scene(PolicyName::SloLeastLoad, &[0, 30, 59]);
    let values: Vec<_> = scene.values().into_iter().flatten().collect();
    assert_eq!(values[0], 0.0);
    // A little less than 30/59 and 1: prefill is a part of the latency, too.
    assert!((0.49..0.51).contains(&values[1]) && (0.97..1.0).contains(&values[2]), "{values:?}");
    // Without a limit on steps the engine's own bound, where it says one.
    scene.slo = Slo { ttft_us: 1_000_000, tpot_us: 0 };
    let mut scene = scene.described(1, |info| info.max_num_seqs = Some(30));
    let values: Vec<_> = scene.values().into_iter().flatten().collect();
    assert!((0.97..1.0).contains(&values[1]) && (0.2..0.24).contains(&values[2]), "{values:?}");
}

#[test]
fn each_follows_its_rule() {
    // Requests decoding per target; picks of pulling, least load and pack load.
    let (least, most, none) = (Reason::LeastLoad, Reason::HighestScore, Reason::SloInfeasible);
    for (name, decoding, want) in [
        ("all have room", [20, 30, 25], [(0, least), (0, least), (1, most)]),
        ("one is full", [40, 59, 30], [(2, least), (2, least), (0, most)]),
        ("all are full", [80, 70, 90], [(1, none), (1, least), (1, none)]),
        ("one is just full enough", [57, 90, 90], [(0, least), (0, least), (0, most)]),
    ] {
        for (policy, want) in ALL.into_iter().zip(want) {
            assert_eq!(scene(policy, &decoding).pick(), Ok(want), "{policy}: {name}");
        }
    }
}

#[test]
fn a_faster_target_has_more_room() {
    let mut scene = scene(PolicyName::SloLeastLoad, &[20, 30]);
    let prior = scene.targets[1].cells.costs.read();
    scene.targets[1].cells.costs.store(&crate::Constants { step: prior.step / 2.0, ..prior });
    assert_eq!(scene.pick(), Ok((1, Reason::LeastLoad)), "30 of 147 are less than 20 of 59");
}

#[test]
fn the_first_token_s_limit_is_kept_by_prediction() {
    // 2 s of prefill queued at the idle target, none at the fuller one.
    let rows = [Candidate { queued_tokens: 50_000, queued_us: 2_000_000, ..busy(0, 0) }, busy(9, 0)];
    for (policy, want) in ALL.into_iter().zip([1, 1, 1]) {
        let mut scene = Scene::new(policy, &rows).prompt(10);
        scene.slo = Slo { ttft_us: 500_000, tpot_us: 50_000 };
        // A clock at which nothing of the queue has been done yet.
        scene.now_us = 0;
        assert_eq!(scene.pick().unwrap().0, want, "{policy}");
    }
    // What a target holds of the prompt counts: without it, no first token in time.
    let mut scene = Scene::new(PolicyName::SloPackLoad, &[busy(9, 0), busy(1, 90)]).prompt(100);
    scene.slo = Slo { ttft_us: 100_000, tpot_us: 0 };
    assert_eq!(scene.pick(), Ok((1, Reason::HighestScore)));
}

#[test]
fn the_request_s_limits_come_before_the_configured_ones_and_without_both_it_says_so() {
    for policy in ALL {
        let mut scene = scene(policy, &[3, 2]);
        scene.slo = Slo::default();
        assert_eq!(scene.pick(), Err(Some(Missing("slo"))), "{policy}");
        let picked = scene.picked();
        assert_eq!((picked.choice.index, picked.policy), (1, PolicyName::LeastRequest));
        assert_eq!(picked.missing, Some(Missing("slo")));
        assert_eq!(scene.values(), [None; 2]);
    }
    let mut settings = Settings::default();
    settings.slo.target_tpot_ms = 7.0;
    let with = |slo| {
        let mut scene = scene(PolicyName::SloPackLoad, &[40, 10]);
        scene.strategy = Strategy::new(PolicyName::SloPackLoad, &settings);
        scene.slo = slo;
        scene.pick()
    };
    assert_eq!(with(Slo::default()), Ok((1, Reason::HighestScore)), "29 within 7 ms");
    assert_eq!(with(Slo { ttft_us: 0, tpot_us: 8_000 }), Ok((0, Reason::HighestScore)), "59 within 8 ms");
}

#[test]
fn a_limit_below_the_bare_step_is_missed_by_all_and_decided_all_the_same() {
    for policy in ALL {
        let mut scene = scene(policy, &[3, 1, 2]);
        scene.slo = Slo { ttft_us: 0, tpot_us: 1_000 };
        let want = if policy == PolicyName::SloLeastLoad { Reason::LeastLoad } else { Reason::SloInfeasible };
        assert_eq!(scene.pick(), Ok((1, want)), "{policy}");
    }
}

#[test]
fn ties_are_drawn_and_broken_costs_neither_win_nor_lose() {
    for policy in ALL {
        let mut scene = scene(policy, &[5, 5, 5, 5]);
        let nan = crate::Constants { prefill: f32::NAN, chunk: f32::NAN, ..crate::Constants::PRIOR };
        scene.targets[2].cells.costs.store(&nan);
        let counts = scene.counts(3_000);
        assert!(counts[2] == 0 && even(&[counts[0], counts[1], counts[3]]), "{policy}: {counts:?}");
        scene.targets.iter().for_each(|target| target.cells.costs.store(&nan));
        assert_eq!(scene.pick(), Err(None), "{policy}");
    }
}
