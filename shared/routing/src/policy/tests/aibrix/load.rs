//! Policies that compare requests in flight, cached prefixes or keys.

use super::*;

#[test]
fn least_request_takes_the_fewest_and_draws_ties() {
    let mut scene = Scene::new(PolicyName::AibrixLeastRequest, &[busy(3, 9), busy(1, 0), busy(2, 9)]);
    assert_eq!(scene.pick(), Ok((1, Reason::LeastRequests)));
    assert_eq!(scene.values(), [Some(3.0), Some(1.0), Some(2.0)]);
    let mut scene = Scene::new(PolicyName::AibrixLeastRequest, &[busy(0, 0), busy(0, 0), busy(1, 0)]);
    let counts = scene.counts(2_000);
    assert!(counts[2] == 0 && even(&counts[..2]), "a cold target counts as zero: {counts:?}");
}

#[test]
fn power_of_two_never_takes_the_fullest_and_takes_others_as_often_as_they_win() {
    let mut scene = Scene::new(PolicyName::PowerOfTwo, &[busy(0, 0), busy(1, 0), busy(2, 0), busy(9, 0)]);
    // Six pairs; the emptiest is in three of them, the next in two where it wins, the third in one.
    let counts = scene.counts(6_000);
    assert_eq!(counts[3], 0, "two different ones are drawn");
    for (index, want) in [(0, 3_000), (1, 2_000), (2, 1_000)] {
        assert!(counts[index].abs_diff(want) < 200, "{counts:?}");
    }
    let counts = Scene::new(PolicyName::PowerOfTwo, &[busy(5, 0); 4]).counts(4_000);
    assert!(even(&counts), "at a tie the first drawn: {counts:?}");
    assert_eq!(Scene::new(PolicyName::PowerOfTwo, &[busy(5, 0)]).pick(), Ok((0, Reason::LeastRequests)));
}

#[test]
fn prefix_cache_follows_its_rule() {
    // (requests, cached blocks) per target; prompt blocks; expected index and reason.
    type Case = (&'static str, u64, &'static [(u64, u32)], usize, Reason);
    let table: &[Case] = &[
        ("nothing held: fewest requests", 10, &[(3, 0), (2, 0), (4, 0)], 1, Reason::PrefixMiss),
        ("the longest match", 10, &[(2, 4), (2, 9), (0, 0)], 1, Reason::PrefixHit),
        ("a tenth is a match", 10, &[(2, 1), (2, 0), (2, 0)], 0, Reason::PrefixHit),
        ("of equal matches the fewest requests", 10, &[(3, 9), (2, 9), (0, 0), (4, 9)], 1, Reason::PrefixHit),
        ("equal in whole percent", 1_000, &[(3, 909), (2, 900), (2, 0), (3, 0)], 1, Reason::PrefixHit),
        // Requests 0, 0, 0, 8: mean 2, σ 4.
        ("within mean + σ", 10, &[(6, 9), (0, 0), (0, 0), (8, 0)], 0, Reason::PrefixHit),
        ("beyond it the next best match", 10, &[(8, 9), (1, 3), (0, 0), (0, 0)], 1, Reason::PrefixHit),
        ("beyond it and no other", 10, &[(8, 9), (1, 0), (0, 0), (1, 0)], 2, Reason::PrefixOverloaded),
        ("a difference of 8 is even", 10, &[(8, 9), (8, 0), (8, 0), (0, 0)], 0, Reason::PrefixHit),
        ("one of 9 is not", 10, &[(9, 9), (9, 0), (9, 0), (0, 0)], 3, Reason::Imbalance),
        ("matches among the fewest", 10, &[(9, 9), (0, 0), (0, 2), (0, 1)], 2, Reason::Imbalance),
        ("an empty prompt", 0, &[(1, 0), (0, 0)], 1, Reason::PrefixMiss),
    ];
    for (name, blocks, rows, index, reason) in table {
        let candidates: Vec<_> = rows.iter().map(|&(requests, cached)| busy(requests, cached)).collect();
        let mut scene = Scene::new(PolicyName::AibrixPrefixCache, &candidates).prompt(*blocks);
        assert_eq!(scene.pick(), Ok((*index, *reason)), "{name}");
    }
    let counts = Scene::new(PolicyName::AibrixPrefixCache, &[busy(1, 9), busy(1, 9), busy(1, 9), busy(1, 0)])
        .prompt(10)
        .counts(3_000);
    assert!(counts[3] == 0 && even(&counts[..3]), "{counts:?}");
    let mut settings = Settings::default();
    settings.aibrix_prefix_cache.imbalance = 16;
    settings.aibrix_prefix_cache.deviations = 2.0;
    let candidates = [busy(9, 9), busy(9, 0), busy(9, 0), busy(0, 0)];
    let mut scene = Scene::with(PolicyName::AibrixPrefixCache, &settings, &candidates).prompt(10);
    assert_eq!(scene.pick(), Ok((0, Reason::PrefixHit)), "as its notes have it");
    assert_eq!(scene.values(), [Some(10.0), Some(100.0), Some(100.0), Some(100.0)]);
}

#[test]
fn preble_exploits_long_matches_and_explores_by_recent_work() {
    let policy = PolicyName::PrefixCachePreble;
    let mut scene = Scene::new(policy, &[busy(1, 5), busy(0, 0), busy(1, 4)]).prompt(10);
    assert_eq!(scene.pick(), Ok((0, Reason::LeastCost)), "half is not more than half: the cheapest prefill");
    let mut scene = Scene::new(policy, &[busy(1, 6), busy(0, 0), busy(1, 5)]).prompt(10);
    for _ in 0..20 {
        assert_eq!(scene.pick(), Ok((0, Reason::PrefixHit)), "the one holder, however much was sent there");
    }
    // Of two holders the one to which less was sent.
    let mut scene = Scene::new(policy, &[busy(1, 9), busy(1, 9), busy(0, 8)]).prompt(10);
    let counts = scene.counts(100);
    assert!(counts[2] == 0 && counts[0].abs_diff(counts[1]) <= 1, "{counts:?}");
    // Without a match work spreads, and more of it to a target that is twice as fast.
    let mut scene = Scene::new(policy, &[busy(0, 0), busy(0, 0), busy(0, 0)]).prompt(100);
    let prior = scene.targets[0].cells.costs.read();
    let twice = crate::Constants { prefill: prior.prefill / 2.0, step: prior.step / 2.0, ..prior };
    scene.targets[2].cells.costs.store(&crate::Constants { attention: prior.attention / 2.0, ..twice });
    let counts = scene.counts(400);
    assert!(counts[0].abs_diff(counts[1]) <= 2 && counts[2].abs_diff(200) <= 4, "{counts:?}");
}

#[test]
fn preble_forgets_after_its_window_and_heeds_imbalance_first() {
    let policy = PolicyName::PrefixCachePreble;
    let mut scene = Scene::new(policy, &[busy(0, 0), busy(0, 0)]).prompt(100);
    scene.candidates.truncate(1);
    for _ in 0..50 {
        assert_eq!(scene.picked().choice.index, 0);
    }
    scene.candidates.push(Candidate { number: 1, ..busy(0, 0) });
    let counts = scene.counts(40);
    assert_eq!(counts, [0, 40], "what the first has had counts against it");
    scene.now_us += 360_000_000;
    let counts = scene.counts(40);
    assert_eq!(counts[0].abs_diff(counts[1]), 0, "{counts:?}");
    let mut scene = Scene::new(policy, &[busy(9, 10), busy(0, 0), busy(0, 6)]).prompt(10);
    assert_eq!(scene.pick(), Ok((2, Reason::Imbalance)));
    let mut scene = Scene::new(policy, &[busy(8, 10), busy(0, 0), busy(0, 6)]).prompt(10);
    assert_eq!(scene.pick(), Ok((0, Reason::PrefixHit)));
    let counts = Scene::new(policy, &[busy(0, 0); 4]).counts(400);
    assert!(even(&counts), "no prompt, no cost but the steps: {counts:?}");
}

#[test]
fn a_session_stays_where_it_is_and_only_those_of_a_lost_target_move() {
    let policy = PolicyName::SessionAffinity;
    let mut all = Scene::new(policy, &[Candidate::default(); 8]);
    let mut rest = Scene::new(policy, &[Candidate::default(); 8]);
    rest.candidates.remove(3);
    let mut owned = [0; 8];
    for session in 0..4_000u64 {
        let session = Some(Rng::new(session).next_u64());
        (all.session, rest.session) = (session, session);
        let (index, reason) = all.pick().unwrap();
        assert_eq!(reason, Reason::Bound);
        owned[index] += 1;
        all.candidates[index].requests = 1_000;
        assert_eq!(all.pick(), Ok((index, Reason::Bound)), "whatever its load");
        let (other, reason) = rest.pick().unwrap();
        let other = rest.candidates[other].number as usize;
        assert_eq!((other == index, reason == Reason::Bound), (index != 3, index != 3));
        let best = all.values().into_iter().flatten().enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        assert_eq!(best.map(|(at, _)| at), Some(index));
    }
    assert!(even(&owned), "{owned:?}");
}

#[test]
fn without_a_session_the_fewest_requests_win() {
    let mut scene = Scene::new(PolicyName::SessionAffinity, &[busy(2, 0), busy(1, 0)]);
    assert_eq!(scene.pick(), Err(None));
    let picked = scene.picked();
    assert_eq!((picked.choice.index, picked.policy), (1, PolicyName::LeastRequest));
    assert_eq!(scene.values(), [None; 2]);
}
