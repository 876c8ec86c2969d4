//! Rules by table. What holds for every policy is in `tests/policies.rs`.

mod aibrix;
mod costs;
mod sums;
mod tables;

use std::sync::Arc;

use super::*;
use crate::Rng;
use crate::fleet::tests_support::{empty_fleet, entry};
use crate::fleet::{Mode, Reservation};
use crate::plan::{NoPlan, Scratch, plan};
use crate::{Settings, Strategy};

fn candidates(rows: &[(u32, u64, u64)]) -> Vec<Candidate> {
    let row = |(number, &(cached_blocks, prefilling, tokens)): (usize, &(u32, u64, u64))| Candidate {
        number: number as u32,
        cached_blocks,
        requests: prefilling,
        prefilling,
        tokens,
        ..Candidate::default()
    };
    rows.iter().enumerate().map(row).collect()
}

fn strategy(name: PolicyName) -> &'static Strategy {
    Box::leak(Box::new(Strategy::new(name, &Settings::default())))
}

fn pick(policy: PolicyName, prompt_blocks: usize, rows: &[(u32, u64, u64)]) -> (usize, Reason) {
    let fleet = empty_fleet();
    let candidates = candidates(rows);
    let path = vec![1; prompt_blocks];
    let request = PlanRequest { path: &path, ..PlanRequest::new("m", strategy(policy)) };
    let model = Default::default();
    let decision =
        Decision { request: &request, candidates: &candidates, targets: &[], model: &model, fleet: &fleet };
    let choice = request.strategy.policy().pick(&decision, &mut Rng::new(1)).unwrap();
    (choice.index, choice.reason)
}

#[test]
fn prefix_cache_follows_its_rule() {
    // (cached blocks, requests in prefill, tokens) per target; prompt blocks; expected index and reason.
    type Case = (&'static str, usize, &'static [(u32, u64, u64)], usize, Reason);
    let table: &[Case] = &[
        ("nothing cached: least tokens", 10, &[(0, 0, 5), (0, 0, 4), (0, 0, 9)], 1, Reason::PrefixMiss),
        ("less than half: least tokens", 10, &[(4, 0, 50), (0, 0, 4)], 1, Reason::PrefixMiss),
        ("exactly half decides", 10, &[(5, 0, 50), (0, 0, 4)], 0, Reason::PrefixHit),
        ("longest wins over longer queue", 10, &[(9, 2, 50), (8, 0, 0)], 0, Reason::PrefixHit),
        (
            "of equal holders the least tokens",
            10,
            &[(9, 0, 50), (9, 0, 40), (9, 0, 60)],
            1,
            Reason::PrefixHit,
        ),
        ("a busy holder yields to a calm one", 10, &[(9, 3, 10), (9, 2, 90)], 1, Reason::PrefixHit),
        ("all busy: near the mean", 10, &[(9, 3, 100), (0, 0, 100)], 0, Reason::PrefixHitBusy),
        (
            "all busy and far above: least over all",
            10,
            &[(9, 3, 300), (0, 0, 10)],
            1,
            Reason::PrefixOverloaded,
        ),
        ("empty prompt: least tokens", 0, &[(0, 0, 2), (0, 0, 1)], 1, Reason::PrefixMiss),
    ];
    for (name, blocks, rows, index, reason) in table {
        assert_eq!(pick(PolicyName::PrefixCache, *blocks, rows), (*index, *reason), "{name}");
    }
}

#[test]
fn least_request_takes_the_fewest() {
    assert_eq!(
        pick(PolicyName::LeastRequest, 0, &[(9, 2, 0), (0, 1, 99), (0, 3, 0)]),
        (1, Reason::LeastRequests)
    );
}

#[test]
fn names_parse_back_and_unknown_ones_list_the_known() {
    for name in PolicyName::ALL {
        assert_eq!(name.as_str().parse::<PolicyName>(), Ok(*name));
    }
    let error = "prefix_cache".parse::<PolicyName>().unwrap_err().to_string();
    assert!(error.contains("prefix_cache") && error.contains("round-robin"), "{error}");
}

fn request<'a>(policy: PolicyName, tried: &'a [Arc<crate::TargetEntry>]) -> PlanRequest<'a> {
    PlanRequest { prompt_tokens: 100, tried, now_us: 10, ..PlanRequest::new("m", strategy(policy)) }
}

#[test]
fn uncached_tokens_are_exact_where_blocks_are_of_tokens() {
    let config = fairlead_prefix::Config { max_bytes: 1 << 20, max_targets: 4, locate: false };
    let (mut tree, reader) = fairlead_prefix::new(config);
    let only = entry(0, "t", "m");
    tree.bind(only.id).unwrap();
    tree.place(only.id, &[7], 0);
    let fleet = crate::Fleet::new([reader]);
    fleet.publish(vec![Some(only.clone())]);
    let mut scratch = Scratch::new(5);
    // One whole block of 64 tokens is known, and 36 tokens make no block.
    for (block_tokens, uncached) in [(64, 36), (0, 1), (128, 1)] {
        let request = PlanRequest { path: &[7], block_tokens, ..request(PolicyName::PrefixCache, &[]) };
        let _plan = plan(&request, &fleet, &mut scratch).unwrap();
        assert_eq!(only.cells.counters.in_flight().prefill_tokens, uncached, "{block_tokens}");
    }
}

#[test]
fn round_robin_is_exact_over_the_eligible_set_under_churn() {
    let fleet = empty_fleet();
    let all: Vec<_> = (0..4).map(|i| entry(i, &format!("t{i}"), "m")).collect();
    let mut scratch = Scratch::new(5);
    let mut turn = |fleet: &crate::Fleet| {
        plan(&request(PolicyName::RoundRobin, &[]), fleet, &mut scratch).unwrap().target().id.slot
    };
    fleet.publish(all.iter().cloned().map(Some).collect());
    for _ in 0..5 {
        let mut round: Vec<_> = (0..4).map(|_| turn(&fleet)).collect();
        round.sort_unstable();
        assert_eq!(round, [0, 1, 2, 3]);
    }
    let gone: Vec<_> = all.iter().map(|e| (e.id.slot != 2).then(|| e.clone())).collect();
    fleet.publish(gone);
    for _ in 0..5 {
        let mut round: Vec<_> = (0..3).map(|_| turn(&fleet)).collect();
        round.sort_unstable();
        assert_eq!(round, [0, 1, 3]);
    }
    fleet.publish(all.iter().cloned().map(Some).collect());
    assert_eq!(turn(&fleet), 2, "the one that came back is the longest without a turn");
    let mut round: Vec<_> = (0..4).map(|_| turn(&fleet)).collect();
    round.sort_unstable();
    assert_eq!(round, [0, 1, 2, 3]);
}

#[test]
fn a_burst_sees_itself() {
    let fleet = empty_fleet();
    fleet.publish((0..4).map(|i| Some(entry(i, &format!("t{i}"), "m"))).collect());
    let mut scratch = Scratch::new(5);
    let plans: Vec<_> = (0..40)
        .map(|_| plan(&request(PolicyName::LeastRequest, &[]), &fleet, &mut scratch).unwrap())
        .collect();
    for entry in fleet.table().entries.iter().flatten() {
        assert_eq!(entry.cells.counters.in_flight().requests, 10);
    }
    drop(plans);
    for entry in fleet.table().entries.iter().flatten() {
        assert_eq!(entry.cells.counters.in_flight(), Default::default());
    }
}

#[test]
fn retries_prefer_another_host_then_another_target_then_give_up() {
    let fleet = empty_fleet();
    let mut same_host = (*entry(1, "b", "m")).clone_for_test();
    std::sync::Arc::make_mut(&mut same_host.info).host = "host-a".into();
    let (a, b, c) = (entry(0, "a", "m"), Arc::new(same_host), entry(2, "c", "m"));
    fleet.publish(vec![Some(a.clone()), Some(b.clone()), Some(c.clone())]);
    let mut scratch = Scratch::new(5);
    let mut slot = |tried: &[Arc<crate::TargetEntry>]| {
        plan(&request(PolicyName::Random, tried), &fleet, &mut scratch).map(|p| p.target().id.slot)
    };
    for _ in 0..20 {
        assert_eq!(slot(std::slice::from_ref(&a)), Ok(2), "another host first");
    }
    assert_eq!(slot(&[a.clone(), c.clone()]), Ok(1), "then another target");
    assert_eq!(slot(&[a.clone(), b.clone(), c.clone()]), Err(NoPlan::AllTried));
    c.cells.connect_failed(0);
    for _ in 0..20 {
        assert_ne!(slot(&[]), Ok(2), "open circuit");
    }
    assert_eq!(slot(&[a, b]), Ok(2), "an open circuit is better than nothing");
}

#[test]
fn blind_mode_goes_round_and_stale_mode_ignores_peers() {
    let fleet = empty_fleet();
    fleet.publish((0..2).map(|i| Some(entry(i, &format!("t{i}"), "m"))).collect());
    let table = fleet.table_full();
    let first = table.entries[0].clone().unwrap();
    first.cells.set_peers(crate::InFlightSums { requests: 5, ..Default::default() }, 1);
    let second = table.entries[1].clone().unwrap();
    let _held = Reservation::new(second, 1, 1, 1);
    let mut scratch = Scratch::new(5);
    let mut go = || plan(&request(PolicyName::LeastRequest, &[]), &fleet, &mut scratch).unwrap();
    assert_eq!(go().target().id.slot, 1);
    fleet.set_mode(Mode::Stale);
    assert_eq!(go().target().id.slot, 0);
    fleet.set_mode(Mode::Blind);
    let plan = go();
    assert_eq!((plan.reason, plan.policy), (Reason::Blind, PolicyName::RoundRobin));
}
