//! Pairs: who may be one, who is, and what is counted.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use fairlead_prefix::Writer;
use fairlead_wire::TargetId;
use fairlead_wire::msg::{Handoff, InstanceInfo, ServingRole, Transfer};

use crate::fleet::InFlightSums;
use crate::{
    EngineFigures, Fleet, Leg, Mode, NoPlan, Plan, PlanRequest, PolicyName, Reason, Reservation, Scratch,
    Settings, Strategy, TargetEntry, plan, plan_explained,
};
use ServingRole::{Both, Decode, Prefill};

/// Role, domain, hand-off, leaning.
type Spec = (ServingRole, &'static str, Option<Handoff>, ServingRole);

const NIXL: Option<Handoff> = Some(Handoff::NixlPull);
const SGLANG: Option<Handoff> = Some(Handoff::Sglang);
const P: Spec = (Prefill, "", NIXL, Both);
const D: Spec = (Decode, "", NIXL, Both);
const EITHER: Spec = (Both, "", NIXL, Both);
const TO_P: Spec = (Both, "", NIXL, Prefill);
const TO_D: Spec = (Both, "", NIXL, Decode);
const PLAIN: Spec = (Both, "", None, Both);

struct World {
    fleet: Fleet,
    targets: Vec<Arc<TargetEntry>>,
    index: Writer,
    scratch: Scratch,
    path: Vec<u64>,
}

impl World {
    fn new(specs: &[Spec]) -> Self {
        Self::with(specs, |_| true)
    }

    fn with(specs: &[Spec], ready: impl Fn(usize) -> bool) -> Self {
        let config = fairlead_prefix::Config { max_bytes: 1 << 20, max_targets: 64, locate: false };
        let (mut index, reader) = fairlead_prefix::new(config);
        let entry = |(number, &(role, domain, handoff, leaning)): (usize, &Spec)| {
            let transfer =
                handoff.map(|handoff| Transfer { domain: domain.into(), ..Transfer::new(handoff) });
            let name = format!("t{number}");
            let info = InstanceInfo {
                role,
                transfer,
                host: format!("host-{number}"),
                ..InstanceInfo::new(&name, &format!("10.0.0.{number}:1"), ["m"])
            };
            let id = TargetId::new(number as u16, 1);
            let target = TargetEntry::new(id, Arc::new(info), 0, ready(number), Arc::default());
            Arc::new(target.with_leaning(leaning))
        };
        let targets: Vec<_> = specs.iter().enumerate().map(entry).collect();
        targets.iter().for_each(|target| index.bind(target.id).unwrap());
        let fleet = Fleet::new([reader]);
        fleet.publish(targets.iter().cloned().map(Some).collect());
        Self { fleet, targets, index, scratch: Scratch::new(3), path: (1..=100).collect() }
    }

    fn ask(&mut self, policy: PolicyName, change: impl Fn(&mut PlanRequest<'_>)) -> Result<Plan, NoPlan> {
        let strategy = Strategy::new(policy, &Settings::default());
        let mut request = PlanRequest {
            path: &self.path,
            prompt_tokens: 6_400,
            block_tokens: 64,
            now_us: 1_000_000,
            ..PlanRequest::new("m", &strategy)
        };
        change(&mut request);
        plan(&request, &self.fleet, &mut self.scratch)
    }

    fn sums(&self, number: usize) -> InFlightSums {
        self.targets[number].cells.counters.in_flight()
    }
}

/// A limit on the time per token that a long prompt's prefill beside it breaks.
fn tight(request: &mut PlanRequest<'_>) {
    request.slo.tpot_us = 10_000;
}

/// Prefill and decode target, where apart; and why.
fn places(plan: &Plan) -> (Option<u16>, u16, Reason) {
    let prefill = plan.prefill.as_ref().map(|leg| leg.reservation.target().id.slot);
    (prefill, plan.target().id.slot, plan.reason)
}

#[test]
fn who_is_paired_and_who_is_not() {
    use PolicyName::{Cost, DynamicPdSplit, LeastRequest, Pd, PdSplit};
    let other = |spec: Spec, domain| (spec.0, domain, spec.2, spec.3);
    let sglang = |spec: Spec| (spec.0, spec.1, SGLANG, spec.3);
    for (what, specs, policy, want) in [
        ("one of each", &[P, D][..], PdSplit, Ok((Some(0), 1, Reason::Remote))),
        ("the same by AIBrix's rule", &[P, D], Pd, Ok((Some(0), 1, Reason::Remote))),
        ("a policy that knows of no pairs", &[P, D], Cost, Ok((Some(0), 1, Reason::Remote))),
        ("another one", &[D, P], LeastRequest, Ok((Some(1), 0, Reason::Remote))),
        ("a long prompt goes apart", &[P, D], DynamicPdSplit, Ok((Some(0), 1, Reason::Remote))),
        ("plain targets", &[PLAIN], PdSplit, Ok((None, 0, Reason::OnlyCandidate))),
        ("no second one", &[EITHER], PdSplit, Ok((None, 0, Reason::PrefillDown))),
        ("whole by choice", &[EITHER], Cost, Ok((None, 0, Reason::OnlyCandidate))),
        ("nobody leans", &[EITHER, EITHER], DynamicPdSplit, Ok((None, 2, Reason::Local))),
        ("they lean", &[TO_P, TO_D], DynamicPdSplit, Ok((Some(0), 1, Reason::Remote))),
        ("no prefill target", &[D], PdSplit, Ok((None, 0, Reason::OnlyCandidate))),
        ("SGLang's decode targets alone", &[sglang(D)], Cost, Err(NoPlan::NoneWhole)),
        ("prefill targets alone", &[P], Cost, Err(NoPlan::NoneWhole)),
        ("parted by domain", &[other(P, "a"), other(D, "b")], Cost, Ok((None, 1, Reason::PrefillDown))),
        (
            "within a domain",
            &[other(P, "a"), other(D, "b"), other(D, "a")],
            Cost,
            Ok((Some(0), 2, Reason::Remote)),
        ),
        ("other hand-offs", &[sglang(P), D], PdSplit, Ok((None, 1, Reason::PrefillDown))),
    ] {
        let mut world = World::new(specs);
        let got = world.ask(policy, tight).map(|plan| places(&plan));
        // Where it is drawn, only that it is whole.
        let got = got.map(|(p, d, why)| (p, if why == Reason::Local { 2 } else { d }, why));
        assert_eq!(got, want, "{what}");
    }
}

#[test]
fn both_legs_are_reserved_together_and_released_apart() {
    let mut world = World::new(&[P, D]);
    world.index.place(world.targets[0].id, &world.path[..50], 0);
    let mut plan = world.ask(PolicyName::PdSplit, |_| ()).unwrap();
    let (p, d) = (world.sums(0), world.sums(1));
    assert_eq!((p.requests, p.prefilling, p.prefill_tokens, p.context_tokens), (1, 1, 3_200, 0));
    assert_eq!((d.requests, d.prefilling, d.prefill_tokens, d.context_tokens), (1, 0, 0, 6_400));
    assert_eq!((plan.cached_blocks, plan.reservation.leg()), (50, Leg::Decode));
    let leg = plan.prefill.take().unwrap();
    assert_eq!(
        (leg.handoff, leg.decode_cached_blocks, leg.reservation.leg()),
        (Handoff::NixlPull, 0, Leg::Prefill)
    );
    assert!(leg.transfer_us > 2_000.0 && plan.predicted_ttft_us as f32 > leg.transfer_us);
    drop(leg);
    assert_eq!((world.sums(0), world.sums(1).requests), (InFlightSums::default(), 1));
    drop(plan);
    assert_eq!(world.sums(1), InFlightSums::default());
    // A burst sees itself on both sides.
    let mut world = World::new(&[P, P, D, D]);
    let plans: Vec<_> = (0..40).map(|_| world.ask(PolicyName::LeastRequest, |_| ()).unwrap()).collect();
    assert!((0..4).all(|n| world.sums(n).requests == 20));
    drop(plans);
    assert!((0..4).all(|n| world.sums(n) == InFlightSums::default()));
}

#[test]
fn requests_that_cannot_be_split_are_served_whole_where_that_is_possible() {
    let whole = |request: &mut PlanRequest<'_>| request.splits = false;
    for policy in [PolicyName::PdSplit, PolicyName::DynamicPdSplit, PolicyName::Pd, PolicyName::Cost] {
        let mut world = World::new(&[P, D]);
        assert_eq!(places(&world.ask(policy, whole).unwrap()), (None, 1, Reason::NotSplit), "{policy}");
        assert_eq!(world.sums(1), InFlightSums::default());
        let sglang = |role| (role, "", SGLANG, Both);
        let mut world = World::new(&[sglang(Prefill), sglang(Decode)]);
        assert_eq!(world.ask(policy, whole).map(|_| ()), Err(NoPlan::NoneWhole), "{policy}");
    }
}

#[test]
fn a_dead_prefill_side_leaves_decode_targets_that_prefill_themselves() {
    for policy in [PolicyName::PdSplit, PolicyName::DynamicPdSplit, PolicyName::Pd, PolicyName::LeastRequest]
    {
        let mut world = World::with(&[P, P, D], |number| number == 2);
        assert_eq!(places(&world.ask(policy, |_| ()).unwrap()), (None, 2, Reason::PrefillDown), "{policy}");
        let sglang = |role| (role, "", SGLANG, Both);
        let mut world = World::with(&[sglang(Prefill), sglang(Decode)], |number| number == 1);
        assert_eq!(world.ask(policy, |_| ()).map(|_| ()), Err(NoPlan::NoneWhole), "{policy}");
        let mut world = World::with(&[P, D], |_| false);
        assert_eq!(world.ask(policy, |_| ()).map(|_| ()), Err(NoPlan::NoneReady), "{policy}");
    }
}

#[test]
fn a_retry_takes_another_pair() {
    let mut world = World::new(&[P, P, D, D]);
    let targets = world.targets.clone();
    for (tried, prefill, decode) in [(vec![0], 1, None), (vec![2], 2, Some(3)), (vec![0, 2], 1, Some(3))] {
        let tried: Vec<_> = tried.into_iter().map(|n: usize| targets[n].clone()).collect();
        let change = |request: &mut PlanRequest<'_>| {
            // The lifetime of what was tried is that of this test.
            request.tried = Box::leak(tried.clone().into_boxed_slice());
        };
        let (p, d, _) = places(&world.ask(PolicyName::PdSplit, change).unwrap());
        assert!(prefill == 2 || p == Some(prefill), "{tried:?}");
        assert!(decode.is_none_or(|decode| decode == d), "{tried:?}");
    }
    let all: Vec<_> = targets[..2].to_vec();
    let change = |request: &mut PlanRequest<'_>| request.tried = Box::leak(all.clone().into_boxed_slice());
    assert_eq!(world.ask(PolicyName::PdSplit, change).unwrap().reason, Reason::PrefillDown);
    // A prefill target that cannot be reached is passed over as long as there is another.
    targets[0].cells.connect_failed(1_000_000);
    for _ in 0..20 {
        assert_eq!(places(&world.ask(PolicyName::LeastRequest, |_| ()).unwrap()).0, Some(1));
    }
}

#[test]
fn a_fleet_that_nobody_knows_of_any_more_goes_round_on_both_sides() {
    let mut world = World::new(&[P, P, D, D]);
    world.fleet.set_mode(Mode::Blind);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let plan = world.ask(PolicyName::DynamicPdSplit, |_| ()).unwrap();
        let (p, d, reason) = places(&plan);
        assert_eq!((reason, plan.policy), (Reason::Blind, PolicyName::RoundRobin));
        seen.push((p.unwrap(), d));
    }
    assert_eq!(seen[..2], seen[2..]);
    assert!(seen[0].0 != seen[1].0 && seen[0].1 != seen[1].1);
}

#[test]
fn dynamic_prefills_where_it_decodes_when_that_is_cheaper() {
    use PolicyName::DynamicPdSplit;
    // A decode target that holds the conversation, and a short new turn.
    let mut world = World::new(&[P, D, D]);
    world.index.place(world.targets[2].id, &world.path[..95], 0);
    assert_eq!(places(&world.ask(DynamicPdSplit, |_| ()).unwrap()), (None, 2, Reason::LocalPrefix));
    // Nobody decodes there, and its own tokens can wait for the prompt: no transfer is faster.
    let mut world = World::new(&[P, D]);
    assert_eq!(places(&world.ask(DynamicPdSplit, |_| ()).unwrap()), (None, 1, Reason::Local));
    // A short prompt is not worth a transfer.
    let short = |request: &mut PlanRequest<'_>| (request.path, request.prompt_tokens) = (&[], 40);
    let short_and_tight = |request: &mut PlanRequest<'_>| (short(request), tight(request)).1;
    assert_eq!(places(&world.ask(DynamicPdSplit, short_and_tight).unwrap()), (None, 1, Reason::Local));
    // A prefill side that is backed up beyond the limit of the first token.
    let p = world.targets[0].clone();
    let queue: Vec<_> = (0..10).map(|_| Reservation::new(p.clone(), 12_000, 12_000, 1_000_000)).collect();
    assert_eq!(places(&world.ask(DynamicPdSplit, |_| ()).unwrap()), (None, 1, Reason::LocalBacklog));
    drop(queue);
    assert_eq!(places(&world.ask(DynamicPdSplit, tight).unwrap()), (Some(0), 1, Reason::Remote));
    // What decodes there is not slowed beyond its limit for the sake of one first token.
    let d = world.targets[1].clone();
    let decoding: Vec<_> = (0..40)
        .map(|_| {
            let mut guard = Reservation::new(d.clone(), 2_000, 10, 1_000_000);
            guard.first_token(1_000_000);
            guard
        })
        .collect();
    let _queue: Vec<_> = (0..10).map(|_| Reservation::new(p.clone(), 12_000, 12_000, 1_000_000)).collect();
    let (prefill, decode, reason) = places(&world.ask(DynamicPdSplit, tight).unwrap());
    assert_eq!((prefill, decode, reason), (Some(0), 1, Reason::RemoteInfeasible));
    drop(decoding);
}

#[test]
fn dynamic_weighs_the_transfer() {
    // One decode target holds most of the prompt and must be sent less; both are as busy.
    let mut world = World::new(&[TO_P, TO_D, TO_D]);
    for target in &world.targets {
        target.cells.report(&EngineFigures { kv_total_tokens: Some(1 << 20), ..EngineFigures::default() });
    }
    world.index.place(world.targets[2].id, &world.path[..20], 0);
    for _ in 0..20 {
        let plan = world.ask(PolicyName::DynamicPdSplit, tight).unwrap();
        assert_eq!(places(&plan), (Some(0), 2, Reason::Remote));
        assert_eq!(plan.prefill.as_ref().unwrap().decode_cached_blocks, 20);
    }
}

#[test]
fn aibrix_picks_each_side_by_its_rule() {
    let held = |world: &World, number: usize, count: usize, prefilling: bool| -> Vec<Reservation> {
        let target = world.targets[number].clone();
        let hold = |_| match prefilling {
            true => Reservation::prefill_leg(target.clone(), 100, 100, 1),
            false => Reservation::decode_leg(target.clone(), 100, 1),
        };
        (0..count).map(hold).collect()
    };
    // Outstanding prefills differ by more than 16: the fewest, whatever is held.
    let mut world = World::new(&[P, P, D, D]);
    world.index.place(world.targets[0].id, &world.path, 0);
    let _busy = held(&world, 0, 17, true);
    assert_eq!(places(&world.ask(PolicyName::Pd, |_| ()).unwrap()).0, Some(1));
    // By less: the match counts ten, requests at most one.
    let mut world = World::new(&[P, P, D, D]);
    world.index.place(world.targets[0].id, &world.path, 0);
    let both = (held(&world, 0, 2, true), held(&world, 1, 2, true));
    assert_eq!(places(&world.ask(PolicyName::Pd, |_| ()).unwrap()).0, Some(0));
    drop(both);
    // Decode: requests 16 apart, then throughput, then the sum.
    let mut world = World::new(&[P, D, D]);
    let _busy = held(&world, 1, 16, false);
    assert_eq!(places(&world.ask(PolicyName::Pd, |_| ()).unwrap()).1, 2);
    let mut world = World::new(&[P, D, D]);
    let rate = |tokens, used| EngineFigures {
        generation_tokens_per_s: Some(tokens),
        kv_usage: Some(used),
        kv_total_tokens: Some(1 << 20),
        ..EngineFigures::default()
    };
    world.targets[1].cells.report(&rate(5_000.0, 0.1));
    world.targets[2].cells.report(&rate(1_000.0, 0.1));
    assert_eq!(places(&world.ask(PolicyName::Pd, |_| ()).unwrap()).1, 2, "the slowest");
    world.targets[1].cells.report(&rate(1_000.0, 0.1));
    world.targets[2].cells.report(&rate(1_000.0, 0.9));
    let _one = (held(&world, 1, 1, false), held(&world, 2, 1, false));
    assert_eq!(places(&world.ask(PolicyName::Pd, |_| ()).unwrap()).1, 1, "more room");
}

#[test]
fn explanations_name_both_targets() {
    let mut world = World::new(&[P, D]);
    let strategy = Strategy::new(PolicyName::DynamicPdSplit, &Settings::default());
    let request = PlanRequest {
        path: &world.path,
        prompt_tokens: 6_400,
        block_tokens: 64,
        now_us: 1,
        slo: crate::Slo { ttft_us: 0, tpot_us: 10_000 },
        ..PlanRequest::new("m", &strategy)
    };
    let mut explain = crate::Explain::default();
    let plan = plan_explained(&request, &world.fleet, &mut world.scratch, &mut explain).unwrap();
    assert!(plan.prefill.is_some());
    let text = explain.to_json(2_048);
    for part in ["\"chosen\":\"t1\"", "\"prefill\":\"t0\"", "\"transfer_ms\":", "\"reason\":\"remote\""] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn many_targets_are_sampled_on_both_sides() {
    // A prefill side of one in a hundred, which draws over all would miss.
    let specs: Vec<Spec> = (0..600).map(|n| if n % 100 == 7 { P } else { D }).collect();
    let config = fairlead_prefix::Config { max_bytes: 4 << 20, max_targets: 1_024, locate: false };
    let (_, reader) = fairlead_prefix::new(config);
    let fleet = Fleet::new([reader]);
    let small = World::new(&specs[..20]);
    let entry = |n: usize| {
        let (role, _, handoff, _) = specs[n];
        let info = InstanceInfo {
            role,
            transfer: handoff.map(Transfer::new),
            ..InstanceInfo::new(&format!("t{n}"), "10.0.0.1:1", ["m"])
        };
        Some(Arc::new(TargetEntry::new(TargetId::new(n as u16, 1), Arc::new(info), 0, true, Arc::default())))
    };
    fleet.publish((0..600).map(entry).collect());
    let mut scratch = Scratch::new(1);
    for policy in [PolicyName::DynamicPdSplit, PolicyName::PdSplit, PolicyName::Pd, PolicyName::Cost] {
        let strategy = Strategy::new(policy, &Settings::default());
        for _ in 0..30 {
            let request = PlanRequest {
                path: &small.path,
                prompt_tokens: 6_400,
                block_tokens: 64,
                now_us: 1,
                slo: crate::Slo { ttft_us: 0, tpot_us: 10_000 },
                ..PlanRequest::new("m", &strategy)
            };
            let plan = plan(&request, &fleet, &mut scratch).unwrap();
            let leg = plan.prefill.as_ref().unwrap_or_else(|| panic!("{policy}: {:?}", plan.reason));
            assert_eq!(leg.reservation.target().id.slot % 100, 7);
            assert!(plan.candidates <= 64 + 6 + 64, "{}", plan.candidates);
        }
    }
}
