//! Single stories, each with one fault.
#![allow(clippy::unwrap_used, reason = "a test may fail so")]

mod world;

use fairlead_replication::Trust;
use fairlead_wire::msg::*;
use world::{Gateway, HEARTBEAT, MS, World, instance, paths, replica_config};

/// A world of two gateways and three engines in which the first gateway has placed paths and holds requests.
fn warm() -> (World, Vec<Vec<u64>>) {
    let mut world = World::new(1, 2, 3);
    world.run_for(500 * MS);
    let paths = paths(12, 5);
    for (i, path) in paths.iter().enumerate() {
        let target = world.gateways[0].find(&format!("e{}", i % 3)).unwrap();
        let now = world.now + world.gateways[0].skew;
        world.gateways[0].replica.place(target, HashSpace::Bytes, path, now);
        world.gateways[0].reserve(target, 1);
    }
    world.run_for(700 * MS);
    world.check("warm");
    (world, paths)
}

fn known(world: &World, gateway: usize, paths: &[Vec<u64>]) -> usize {
    let gateway = &world.gateways[gateway];
    let held = |(i, path): &(usize, &Vec<u64>)| {
        gateway.find(&format!("e{}", i % 3)).is_some_and(|id| gateway.depth(id, path) == path.len() as u32)
    };
    paths.iter().enumerate().filter(held).count()
}

#[test]
fn a_placement_is_seen_at_once_here_and_soon_everywhere() {
    let mut world = World::new(3, 2, 1);
    world.run_for(500 * MS);
    let path = paths(1, 9).remove(0);
    let here = world.gateways[0].find("e0").unwrap();
    let there = world.gateways[1].find("e0").unwrap();
    let now = world.now + world.gateways[0].skew;
    world.gateways[0].replica.place(here, HashSpace::Bytes, &path, now);
    assert_eq!(world.gateways[0].depth(here, &path), 9);
    assert_eq!(world.gateways[1].depth(there, &path), 0);
    world.run_for(10 * MS);
    assert_eq!(world.gateways[1].depth(there, &path), 9);
    let status = world.gateways[0].replica.status();
    assert_eq!(status.overlay_entries, 0, "confirmed by the operation, not by age");
    // Told again at once, a known path is no news.
    let sent = status.stats.placements_sent;
    for _ in 0..10 {
        let now = world.now + world.gateways[0].skew;
        world.gateways[0].replica.place(here, HashSpace::Bytes, &path, now);
        world.run_for(MS);
    }
    assert_eq!(world.gateways[0].replica.status().stats.placements_sent, sent + 1);
    let now = world.now + world.gateways[0].skew;
    world.gateways[0].replica.withdraw(here, HashSpace::Bytes, &path, 4, now);
    world.run_for(10 * MS);
    for (gateway, id) in [(0, here), (1, there)] {
        assert_eq!(world.gateways[gateway].depth(id, &path), 4);
    }
}

#[test]
fn a_placement_of_known_blocks_at_another_target_is_confirmed_too() {
    let (mut world, paths) = warm();
    let other = world.gateways[0].find("e1").unwrap();
    let now = world.now + world.gateways[0].skew;
    world.gateways[0].replica.place(other, HashSpace::Bytes, &paths[0], now);
    assert_eq!(world.gateways[0].replica.status().overlay_entries, 1);
    world.run_for(150 * MS);
    assert_eq!(world.gateways[0].replica.status().overlay_entries, 0);
    assert_eq!(world.gateways[0].depth(other, &paths[0]), 5);
}

#[test]
fn a_scheduler_restart_costs_no_knowledge_and_no_target() {
    let (mut world, paths) = warm();
    let before: Vec<_> = world.gateways.iter().map(|g| g.seen.borrow().targets.clone()).collect();
    for restart in 0..2 {
        world.stop_truth();
        for absent in 0..300 {
            if absent == 200 {
                world.start_truth();
            }
            // The second time, the third restart comes before the epoch has settled.
            if restart == 1 && absent == 250 {
                world.start_truth();
            }
            world.run_for(2 * MS);
            for gateway in 0..2 {
                assert_eq!(
                    known(&world, gateway, &paths),
                    12,
                    "restart {restart}, {absent}, gateway {gateway}"
                );
                assert_eq!(world.gateways[gateway].ready().len(), 4);
            }
        }
        for _ in 0..1_000 {
            world.run_for(2 * MS);
            for gateway in 0..2 {
                assert_eq!(known(&world, gateway, &paths), 12, "after restart {restart}");
                assert_eq!(world.gateways[gateway].ready().len(), 4);
            }
        }
        world.quiesce();
        world.check("after the restart");
        assert!(!world.gateways[0].replica.status().provisional);
    }
    for (gateway, before) in world.gateways.iter().zip(before) {
        assert_eq!(gateway.seen.borrow().targets, before, "local slots stay");
    }
}

#[test]
fn an_agent_that_leaves_takes_its_targets_out_at_once_and_its_knowledge_later() {
    let (mut world, paths) = warm();
    world.cut(world.agents[0].session);
    world.agents[0].held_off = true;
    world.run_for(10 * MS);
    let id = world.gateways[1].find("e0").unwrap();
    assert!(!world.gateways[1].ready().contains(&id));
    assert_eq!(known(&world, 1, &paths), 12);
    world.agents[0].held_off = false;
    world.run_for(50 * MS);
    assert!(world.gateways[1].ready().contains(&id));
    assert_eq!(known(&world, 1, &paths), 12);

    world.cut(world.agents[0].session);
    world.agents[0].held_off = true;
    world.run_for(1_500 * MS);
    assert_eq!(world.gateways[1].find("e0"), None);
    assert_eq!(world.truth().stats().targets, 3);
    // The first gateway still streams from it: its slot is not given away.
    assert!(world.gateways[0].seen.borrow().cooling.contains(&id));
    world.agents[0].held_off = false;
    world.run_for(1_000 * MS);
    let again = world.gateways[0].find("e0").unwrap();
    assert_ne!(again.slot, id.slot);
    world.gateways[0].seen.borrow_mut().reserved.remove(&id);
    world.run_for(1_000 * MS);
    assert!(world.gateways[0].seen.borrow().cooling.is_empty());
    world.quiesce();
    world.check("after the absence");
}

#[test]
fn an_engine_restart_voids_what_the_old_one_held() {
    let (mut world, paths) = warm();
    let old = world.gateways[0].find("e1").unwrap();
    world.restart_engine(1);
    world.run_for(20 * MS);
    let new = world.gateways[0].find("e1").unwrap();
    assert_ne!(old, new);
    assert_eq!(known(&world, 0, &paths), 8);
    // So too when it restarts while the scheduler is away: the gateways' recollections of it are void.
    world.stop_truth();
    world.agents[0].info.incarnation += 1;
    world.run_for(300 * MS);
    world.start_truth();
    world.run_for(30 * MS);
    assert_eq!(known(&world, 0, &paths), 4);
    world.quiesce();
    world.check("after the engines' restarts");
    assert_eq!(known(&world, 0, &paths), 4);
}

#[test]
fn a_target_that_does_not_come_back_ends_with_the_provisional_time() {
    let (mut world, _) = warm();
    world.stop_truth();
    world.agents[2].held_off = true;
    world.start_truth();
    world.run_for(2 * HEARTBEAT);
    assert!(world.gateways[0].find("e2").is_some());
    world.run_for(2 * HEARTBEAT);
    assert_eq!(world.gateways[0].find("e2"), None);
    assert_eq!(world.gateways[0].ready().len(), 2);
}

#[test]
fn a_gateway_that_ends_takes_its_reservations_with_it() {
    let (mut world, _) = warm();
    let id = world.gateways[1].find("e0").unwrap();
    assert_eq!(world.gateways[1].seen.borrow().peers[&id].requests, 4);
    world.cut(world.gateways[0].session);
    world.gateways[0].held_off = true;
    world.run_for(10 * MS);
    assert_eq!(world.gateways[1].seen.borrow().peers[&id].requests, 0);
    world.gateways[0].held_off = false;
    world.run_for(10 * MS);
    assert_eq!(world.gateways[1].seen.borrow().peers[&id].requests, 4);
}

#[test]
fn ids_of_an_epoch_whose_state_never_came_mean_nothing_in_the_next() {
    let mut gateway = Gateway::new("g", 1, 0, replica_config(), 0);
    // The new scheduler counts its sessions anew, and gives its targets the slots in the order of their coming.
    let peer = PeerLoad { gateway: 3, version: 9, full: true, targets: Vec::new() };
    for (epoch, name, peers) in [(1, "e1", vec![peer]), (2, "e2", Vec::new())] {
        let now = epoch * 10;
        let welcome = Welcome { protocol: 1, epoch, cluster_seed: 1, heartbeat_ms: 100, block_tokens: 64 };
        gateway.replica.connected(&welcome, now);
        let told = peers.len();
        let update = LoadUpdate { gateways: peers, live: Some(vec![1, 2, 3]), ..LoadUpdate::default() };
        let info = TargetInfo {
            target: fairlead_wire::TargetId::new(4, 1).pack(),
            rank: 0,
            ready: true,
            cache: CacheSource::Placements,
            costs: None,
            leaning: fairlead_wire::msg::ServingRole::Both,
            instance: instance(name, 1),
        };
        let chunk =
            SnapshotChunk { part: 0, last: false, settled: false, targets: vec![info], runs: Vec::new() };
        let stamp = fairlead_wire::Stamp { epoch, new_seq: 5, created_us: now, ..Default::default() };
        for frame in [fairlead_wire::encode(&update, stamp), fairlead_wire::encode(&chunk, stamp)] {
            gateway.replica.on_frame(&frame.unwrap(), now).unwrap();
        }
        assert_eq!(gateway.replica.status().peers, told, "epoch {epoch}");
        let id = gateway.find(name).unwrap();
        assert_eq!(gateway.replica.translation().len(), 1);
        assert_eq!(gateway.replica.translation()[0].0, id, "epoch {epoch}");
        gateway.replica.disconnected(now);
    }
    assert_eq!(gateway.ready().len(), 2, "the first target stays until the new epoch is settled");
}

#[test]
fn trust_falls_with_silence_and_returns() {
    let (mut world, paths) = warm();
    world.stop_truth();
    for (after, want) in [(800, None), (400, Some(Trust::Stale)), (5_000, Some(Trust::Blind))] {
        world.run_for(after * MS);
        assert_eq!(world.gateways[0].seen.borrow().trust, want, "{after} ms later");
        assert_eq!(known(&world, 0, &paths), 12);
    }
    // Placements made meanwhile stay in the overlay however long it lasts, and reach the new scheduler.
    let more = self::paths(20, 4).split_off(12);
    let target = world.gateways[0].find("e0").unwrap();
    let now = world.now + world.gateways[0].skew;
    for path in &more {
        world.gateways[0].replica.place(target, HashSpace::Bytes, path, now);
    }
    world.run_for(3_000 * MS);
    world.start_truth();
    world.quiesce();
    world.check("after the silence");
    assert_eq!(world.gateways[0].seen.borrow().trust, Some(Trust::Fresh));
    let target = world.gateways[1].find("e0").unwrap();
    assert!(more.iter().all(|path| world.gateways[1].depth(target, path) == 4));
}

#[test]
fn instances_of_the_configuration_serve_until_the_scheduler_names_its_own() {
    let mut world = World::new(5, 1, 2);
    world.stop_truth();
    let now = world.now + world.gateways[0].skew;
    let fixed = [InstanceInfo { incarnation: 0, ..instance("e0", 1) }, instance("other", 1)];
    world.gateways[0].replica.serve_fixed(&fixed, now);
    for _ in 0..100 {
        world.now += 100 * MS;
        let now = world.now + world.gateways[0].skew;
        world.gateways[0].replica.tick(now);
    }
    assert_eq!(world.gateways[0].ready().len(), 2);
    assert_eq!(
        world.gateways[0].seen.borrow().trust,
        None,
        "a list from the configuration does not grow old"
    );
    let path = paths(1, 3).remove(0);
    let id = world.gateways[0].find("e0").unwrap();
    let now = world.now + world.gateways[0].skew;
    world.gateways[0].replica.place(id, HashSpace::Bytes, &path, now);
    world.start_truth();
    world.quiesce();
    world.check("with a scheduler");
    assert_eq!(world.gateways[0].find("e0"), Some(id), "the same name is the same target");
    assert_eq!(world.gateways[0].find("other"), None);
    assert_eq!(
        world.gateways[0].depth(id, &path),
        3,
        "what was placed before the scheduler came is told to it"
    );
}

#[test]
fn a_gateway_too_small_routes_by_load_and_says_so() {
    let mut world = World::new(6, 1, 3);
    let config = fairlead_replication::ReplicaConfig { max_targets: 2, ..replica_config() };
    world.gateways[0] = Gateway::new("g0", 9, 0, config, world.now);
    world.run_for(500 * MS);
    let status = world.gateways[0].replica.status();
    assert!(status.index_off && status.synced, "{status:?}");
    assert_eq!((status.targets, status.stats.targets_refused > 0), (2, true));
    let id = world.gateways[0].ready()[0];
    let now = world.now + world.gateways[0].skew;
    world.gateways[0].replica.place(id, HashSpace::Bytes, &[1, 2, 3], now);
    world.run_for(500 * MS);
    let status = world.gateways[0].replica.status();
    assert!(status.synced && status.stats.diverged == 0 && status.blocks == 0, "{status:?}");
}

#[test]
fn foreign_traffic_is_told_apart_whatever_the_clocks_say() {
    let mut world = World::new(7, 1, 2);
    world.delay = 0;
    world.run_for(500 * MS);
    let ids = world.gateways[0].ready();
    for step in 0..3_000 {
        let id = ids[world.rng.below(ids.len())];
        let more = if world.rng.one_in(2) { 1 } else { -1 };
        world.gateways[0].reserve(id, more);
        world.run_for(MS);
        for id in &ids {
            let seen = world.gateways[0].seen.borrow();
            let view = seen.engines[id];
            assert_eq!(view.foreign_requests, Some(3), "step {step}: {view:?}");
            assert!(view.load.taken_us <= world.now + world.gateways[0].skew);
        }
    }
}
