//! `vtc-basic`.

use super::*;

const POLICY: PolicyName = PolicyName::VtcBasic;

/// Without the draw.
fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.vtc_basic.noise = 0.0;
    settings
}

fn scene(requests: &[u64]) -> Scene {
    let candidates: Vec<_> = requests.iter().map(|&requests| busy(requests, 0)).collect();
    let mut scene = Scene::with(POLICY, &settings(), &candidates).prompt(10);
    scene.now_us = 3_000_000_000;
    scene
}

#[test]
fn who_was_served_little_gets_the_least_loaded_target() {
    let mut scene = scene(&[7, 5, 6, 8]);
    // Each request counts 640 prompt tokens and twice 960 of an answer.
    scene.user = Some(1);
    assert_eq!(scene.pick(), Ok((1, Reason::LeastCost)), "nothing served yet");
    for user in 2..6 {
        scene.user = Some(user);
        scene.pick().unwrap();
        scene.pick().unwrap();
    }
    scene.now_us += 1_000_000;
    // Of 2,560 and 5,120: a bucket is 3,840.
    scene.user = Some(1);
    assert_eq!(scene.pick(), Ok((2, Reason::LeastCost)), "2,560 are nearer to one bucket than to none");
    scene.user = Some(9);
    assert_eq!(scene.pick(), Ok((1, Reason::LeastCost)), "a new user first");
    scene.user = Some(7);
    for _ in 0..12 {
        scene.pick().unwrap();
    }
    scene.now_us += 1_000_000;
    assert_eq!(
        scene.pick(),
        Ok((0, Reason::LeastCost)),
        "the greediest: near two buckets, the third in order"
    );
    scene.now_us += 600_000_000;
    assert_eq!(scene.pick(), Ok((1, Reason::LeastCost)), "forgotten after two windows");
}

#[test]
fn tokens_are_weighed_and_an_answer_is_no_longer_than_allowed() {
    let value = |change: &dyn Fn(&mut Scene)| {
        let mut scene = scene(&[0, 0]);
        scene.user = Some(1);
        change(&mut scene);
        scene.pick().unwrap();
        // The first target's score is the distance of rank 0 from the user's place.
        scene.values()[0].unwrap()
    };
    // 640 + 2 · 960 = 2,560 in buckets of (0 + 2,560) / 2.
    assert_eq!(value(&|_| ()), 1.0, "no further than the last target");
    let wide = |scene: &mut Scene| {
        let mut settings = settings();
        settings.vtc_basic.least_bucket = 4_000.0;
        scene.strategy = Strategy::new(POLICY, &settings);
    };
    assert_eq!(value(&|scene| wide(scene)), 2_560.0 / 4_000.0);
    let short = |scene: &mut Scene| {
        wide(scene);
        scene.max_output = Some(80);
    };
    assert_eq!(value(&short), 800.0 / 4_000.0);
}

#[test]
fn utilization_counts_beside_fairness() {
    let mut scene = scene(&[10, 20, 150]);
    scene.user = Some(1);
    let values = scene.values();
    assert_eq!(values, [Some(0.1), Some(1.2), Some(3.0)], "rank and share of 100 requests, full at most");
}

#[test]
fn equal_targets_are_drawn_and_a_request_of_nobody_goes_to_the_fewest_requests() {
    let mut even_scene = Scene::new(POLICY, &[busy(2, 0); 4]).prompt(1);
    let mut counts = [0; 4];
    for user in 0..4_000u64 {
        even_scene.user = Some(Rng::new(user).next_u64());
        counts[even_scene.picked().choice.index] += 1;
    }
    assert!(even(&counts), "{counts:?}");
    let mut scene = scene(&[2, 1]);
    assert_eq!(scene.pick(), Err(None));
    let picked = scene.picked();
    assert_eq!((picked.choice.index, picked.policy, picked.missing), (1, PolicyName::LeastRequest, None));
    assert_eq!(scene.values(), [None; 2]);
}
