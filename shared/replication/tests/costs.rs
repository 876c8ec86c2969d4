//! What targets' work costs: learnt by gateways, put together by the scheduler, known to all.
#![allow(clippy::unwrap_used, reason = "a test may fail so")]

mod world;

use fairlead_wire::msg::*;
use fairlead_wire::{Message, TargetId};
use world::{Desk, MS, World, costs, instance, truth_config};

/// Long enough for what was learnt to be everywhere.
const ROUND: u64 = 2_500 * MS;

fn learn(world: &mut World, gateway: usize, name: &str, prefill: f32, count: u32) {
    let id = world.gateways[gateway].find(name).unwrap();
    world.gateways[gateway].learn(id, prefill, count);
}

fn near(found: Option<(f32, u32)>, want: f32) -> bool {
    found.is_some_and(|(found, count)| (found / want - 1.0).abs() < 0.03 && count > 0)
}

/// Two gateways and three engines, of which the first is learnt to be fast and the second to be slow.
fn warm() -> World {
    let mut world = World::new(11, 2, 3);
    world.run_for(500 * MS);
    learn(&mut world, 0, "e0", 20.0, 100);
    learn(&mut world, 0, "e1", 80.0, 100);
    world.run_for(ROUND);
    world
}

#[test]
fn what_one_has_learnt_all_know_and_a_new_one_at_once() {
    let mut world = warm();
    for gateway in 0..2 {
        assert!(
            near(world.gateways[gateway].shared("e0"), 20.0),
            "{:?}",
            world.gateways[gateway].shared("e0")
        );
        assert!(near(world.gateways[gateway].shared("e1"), 80.0));
        // Nobody has sent anything there: like the others of its class.
        assert!(
            near(world.gateways[gateway].shared("e2"), 40.0),
            "{:?}",
            world.gateways[gateway].shared("e2")
        );
        assert_eq!(world.gateways[gateway].shared("e2").map(|(_, count)| count), Some(1));
    }
    world.restart_gateway(1);
    world.run_for(30 * MS);
    assert!(near(world.gateways[1].shared("e0"), 20.0), "with the snapshot");
    world.quiesce();
    world.check("warm");
}

#[test]
fn gateways_count_by_their_observations() {
    let mut world = warm();
    learn(&mut world, 1, "e0", 80.0, 300);
    world.run_for(ROUND);
    // 100 of 20 and 300 of 80, in logarithms.
    assert!(near(world.gateways[0].shared("e0"), 56.6), "{:?}", world.gateways[0].shared("e0"));
    // What is said again with a few more observations counts by those alone.
    learn(&mut world, 0, "e0", 20.5, 110);
    world.run_for(ROUND);
    assert!(near(world.gateways[1].shared("e0"), 55.0), "{:?}", world.gateways[1].shared("e0"));
    // In the long run the newest counts.
    for round in 1..12 {
        learn(&mut world, 0, "e0", 30.0 + round as f32, 110 + 300 * round);
        world.run_for(ROUND);
    }
    assert!(world.gateways[1].shared("e0").unwrap().0 > 36.0);
    world.quiesce();
    world.check("in the long run");
}

#[test]
fn little_changes_and_numbers_without_observations_are_not_told() {
    let mut world = warm();
    let frames = |world: &World| world.truth().stats().delta_frames;
    let before = frames(&world);
    learn(&mut world, 0, "e0", 20.1, 140);
    learn(&mut world, 1, "e0", 500.0, 0);
    world.run_for(2 * ROUND);
    assert_eq!(frames(&world), before);
    assert!(near(world.gateways[1].shared("e0"), 20.0));
}

#[test]
fn a_scheduler_that_starts_anew_is_told_again() {
    let mut world = warm();
    world.stop_truth();
    // Nobody forgets meanwhile, not even who has learnt nothing himself.
    world.run_for(500 * MS);
    assert!(near(world.gateways[1].shared("e1"), 80.0));
    world.start_truth();
    world.run_for(2 * ROUND);
    for target in world.truth().targets() {
        let want = [20.0, 80.0, 40.0][usize::from(target.info.name.as_bytes()[1] - b'0')];
        let costs = target.costs.unwrap();
        assert!(near(Some((costs.prefill, costs.prefills)), want), "{}: {costs:?}", target.info.name);
    }
    world.quiesce();
    world.check("told again");
    // Once more, and the only one that had learnt anything is gone too: what the other was told is left.
    world.stop_truth();
    world.restart_gateway(0);
    world.start_truth();
    world.run_for(2 * ROUND);
    assert!(near(world.gateways[0].shared("e1"), 80.0), "{:?}", world.gateways[0].shared("e1"));
    world.quiesce();
    world.check("from memory");
}

#[test]
fn what_was_said_into_a_broken_link_is_said_again() {
    let mut world = World::new(12, 1, 1);
    world.run_for(500 * MS);
    learn(&mut world, 0, "e0", 20.0, 100);
    // The message is on its way when the link breaks.
    world.step();
    world.cut(world.gateways[0].session);
    world.run_for(2 * ROUND);
    assert!(near(world.gateways[0].shared("e0"), 20.0), "{:?}", world.gateways[0].shared("e0"));
}

#[test]
fn costs_live_through_an_agents_absence_and_an_engines_restart() {
    let mut world = warm();
    world.cut(world.agents[1].session);
    world.agents[1].held_off = true;
    world.run_for(300 * MS);
    world.agents[1].held_off = false;
    world.run_for(100 * MS);
    assert!(near(world.gateways[1].shared("e1"), 80.0));
    // Another engine there may be another one altogether; until it is known, it is like those of its class.
    world.restart_engine(1);
    world.run_for(20 * MS);
    assert!(near(world.gateways[1].shared("e1"), 40.0), "{:?}", world.gateways[1].shared("e1"));
    world.quiesce();
    world.check("restarted");
}

#[test]
fn hardware_labels_part_classes() {
    let mut desk = Desk::new(truth_config());
    for (session, name, gpu) in [(1, "a", "h200"), (2, "b", "l40s"), (3, "c", "h200")] {
        desk.hello(session, Role::Agent, name, 1);
        let labels = vec![("gpu".to_owned(), gpu.to_owned()), ("zone".to_owned(), name.to_owned())];
        desk.register(session, InstanceInfo { labels, ..instance(name, 1) });
    }
    desk.hello(4, Role::Gateway, "g", 1);
    let id = |desk: &Desk, name: &str| {
        desk.truth.targets().iter().find(|target| *target.info.name == *name).unwrap().id
    };
    let told = |target: TargetId| TargetCosts { target: target.pack(), costs: costs(20.0, 50) };
    let items = vec![told(id(&desk, "a")), told(TargetId::new(4_000, 1)), told(TargetId::new(0, 9))];
    desk.says(4, Feedback { costs: items, ..Feedback::default() });
    desk.pass(200 * MS, &[1, 2, 3, 4]);
    let known: Vec<_> = desk
        .truth
        .targets()
        .iter()
        .map(|target| target.costs.map(|costs| (costs.prefill.round(), costs.prefills)))
        .collect();
    assert_eq!(known, [Some((20.0, 50)), None, Some((20.0, 1))]);
    // Said once, not with every heartbeat.
    let ops = |desk: &Desk| {
        let of = |message: &Message| match message {
            Message::Delta(delta) => delta.ops.iter().filter(|op| matches!(op, Op::Costs(_))).count(),
            _ => 0,
        };
        desk.sent.iter().map(|(_, message)| of(message)).sum::<usize>()
    };
    assert_eq!(ops(&desk), 2);
    desk.pass(500 * MS, &[1, 2, 3, 4]);
    assert_eq!(ops(&desk), 2);
}
