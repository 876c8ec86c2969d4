//! Engines that tell what they hold: the truth is what they say, and every replica equals the truth.
//!
//! `FAIRLEAD_SEEDS=from..to` runs other seeds.
#![allow(clippy::unwrap_used, reason = "a test may fail so")]

mod world;

use std::collections::BTreeSet;

use fairlead_replication::TruthConfig;
use fairlead_wire::msg::*;
use fairlead_wire::{Message, TargetId};
use world::{Cache, Desk, MS, Rng, World, instance, paths, truth_config};

fn seeds() -> std::ops::Range<u64> {
    let given = std::env::var("FAIRLEAD_SEEDS").ok();
    let range = given.as_deref().and_then(|range| {
        let (from, to) = range.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    range.unwrap_or(0..4)
}

fn events(rank: u16, replace: bool, ops: Vec<CacheOp>) -> Message {
    CacheEvents { incarnation: 1, rank, partial: false, replace, ops }.into()
}

/// Room for everything: what is held is decided by the engines alone.
fn roomy() -> TruthConfig {
    TruthConfig { target_share: 1.0, index_bytes: 4 << 20, ..truth_config() }
}

/// What the truth believes of an instance's rank.
fn believed(world: &World, name: &str) -> (CacheSource, BTreeSet<u64>) {
    let view = world.truth().targets().into_iter().find(|view| view.info.name == name).unwrap();
    let all = world.truth().index().holdings();
    (view.cache, all.into_iter().filter(|(id, _)| *id == view.id.pack()).map(|(_, block)| block).collect())
}

/// One random schedule; how many checks found an engine's cache known in full.
fn explore(seed: u64, faults: bool) -> usize {
    let mut world = World::new(seed, 2, 2);
    world.truth_config = roomy();
    world.start_truth();
    let mut caches = [Cache::default(), Cache::default()];
    let mut dumped = [None; 2];
    let mut whole = 0;
    for round in 0..3 {
        for _ in 0..400 {
            for (i, cache) in caches.iter_mut().enumerate() {
                let session = world.agents[i].session;
                let ops = match world.rng.below(10) {
                    0..=5 => {
                        let path = world.rng.path(24);
                        let again = world.rng.one_in(6);
                        cache.store(&path, again)
                    }
                    6..=8 => cache.remove(&mut world.rng),
                    _ if world.rng.one_in(20) => cache.clear(),
                    _ => Vec::new(),
                };
                if session.is_none() {
                    continue;
                }
                if dumped[i] != session {
                    dumped[i] = session;
                    world.agent_says(i, &events(0, true, cache.dump()));
                } else if !ops.is_empty() {
                    world.agent_says(i, &events(0, false, ops));
                }
                // Prompts that are sent there change nothing of what is known to be there.
                let path = world.rng.path(24);
                if let Some(target) = world.gateways[0].find(&format!("e{i}")) {
                    let now = world.now + world.gateways[0].skew;
                    world.gateways[0].replica.place(target, HashSpace::Tokens, &path, now);
                }
            }
            if faults {
                match world.rng.below(150) {
                    0 => world.cut(world.gateways[0].session),
                    1 => world.cut(world.agents[0].session),
                    2 => world.restart_gateway(1),
                    3 => world.loss = [0, 4][world.rng.below(2)],
                    4 if world.rng.one_in(4) => world.start_truth(),
                    _ => {}
                }
            }
            world.run_for(2 * MS);
        }
        world.quiesce();
        // Whoever lost its session while it was quiet tells all again.
        for (i, cache) in caches.iter().enumerate() {
            if dumped[i] != world.agents[i].session {
                dumped[i] = world.agents[i].session;
                world.agent_says(i, &events(0, true, cache.dump()));
            }
        }
        world.run_for(1_000 * MS);
        let what = format!("seed {seed} round {round}");
        world.check(&what);
        for (i, cache) in caches.iter().enumerate() {
            let (source, held) = believed(&world, &format!("e{i}"));
            assert_ne!(source, CacheSource::Placements, "{what}");
            assert!(held.is_subset(&cache.held), "{what}: e{i} holds less than is believed");
            if source == CacheSource::Events {
                assert_eq!(held, cache.held, "{what}: e{i}");
                whole += 1;
            }
        }
    }
    whole
}

#[test]
fn the_truth_is_what_engines_say() {
    for seed in seeds() {
        assert_eq!(explore(seed, false), 6, "seed {seed}: nothing was lost, so everything is known");
    }
}

#[test]
fn through_faults_too() {
    let whole: usize = seeds().map(|seed| explore(seed, true)).sum();
    assert!(whole > 0);
}

/// An agent, a gateway, and a truth that knows the agent's one target.
fn desk(config: TruthConfig) -> (Desk, TargetId) {
    let mut desk = Desk::new(config);
    desk.hello(1, Role::Agent, "a", 1);
    desk.register(1, instance("a", 1));
    desk.hello(2, Role::Gateway, "g", 1);
    let id = desk.truth.targets()[0].id;
    (desk, id)
}

fn store(above: &[u64], blocks: &[u64]) -> CacheOp {
    CacheOp::Store { above: above.to_vec(), blocks: blocks.to_vec() }
}

fn held(desk: &Desk) -> Vec<u64> {
    desk.truth.index().holdings().into_iter().map(|(_, block)| block).collect()
}

#[test]
fn a_target_of_events_takes_no_placements_in_token_space() {
    let (mut desk, id) = desk(roomy());
    let place = |path: &[u64], space| Placements {
        items: vec![Placement { target: id.pack(), path: path.to_vec(), keep: None, space }],
    };
    desk.says(2, place(&[1, 2], HashSpace::Tokens));
    assert_eq!(held(&desk), [1, 2], "nothing better is known");
    desk.says(1, events(0, true, vec![store(&[], &[3, 4])]));
    assert_eq!((held(&desk), desk.truth.targets()[0].cache), (vec![3, 4], CacheSource::Events));
    desk.says(2, place(&[3, 4, 5], HashSpace::Tokens));
    let withdrawn =
        Placement { target: id.pack(), path: vec![3, 4], keep: Some(0), space: HashSpace::Tokens };
    desk.says(2, Placements { items: vec![withdrawn] });
    assert_eq!(held(&desk), [3, 4]);
    desk.says(2, place(&[6], HashSpace::Bytes));
    assert_eq!(held(&desk), [3, 4, 6]);
    // Gateways are told of the source.
    desk.pass(20 * MS, &[1, 2]);
    let told = desk.sent.iter().rev().find_map(|(_, message)| match message {
        Message::Delta(delta) => delta.ops.iter().rev().find_map(|op| match op {
            Op::Target(target) => Some(target.cache),
            _ => None,
        }),
        _ => None,
    });
    assert_eq!(told, Some(CacheSource::Events));
}

#[test]
fn what_is_lost_is_said_and_the_next_dump_heals_it() {
    let (mut desk, _) = desk(roomy());
    let cache = |desk: &Desk| desk.truth.targets()[0].cache;
    desk.says(1, events(0, true, vec![store(&[], &[3, 4])]));
    desk.says(1, events(0, false, vec![store(&[99], &[100])]));
    assert_eq!((cache(&desk), desk.truth.stats().unknown_parents), (CacheSource::PartialEvents, 1));
    assert_eq!(held(&desk), [3, 4], "what is known is right");
    desk.says(1, events(0, false, vec![store(&[3, 4], &[5])]));
    assert_eq!((cache(&desk), held(&desk)), (CacheSource::PartialEvents, vec![3, 4, 5]));
    desk.says(1, events(0, true, vec![store(&[], &[3, 4])]));
    assert_eq!((cache(&desk), held(&desk)), (CacheSource::Events, vec![3, 4]));
    let partial = CacheEvents { incarnation: 1, rank: 0, partial: true, replace: false, ops: Vec::new() };
    desk.says(1, partial);
    assert_eq!(cache(&desk), CacheSource::PartialEvents);
    desk.says(1, events(0, false, vec![CacheOp::Clear]));
    assert_eq!((cache(&desk), held(&desk)), (CacheSource::Events, vec![]));
    // Of another start of the engine, or before it is known: no business of this target.
    let other =
        CacheEvents { incarnation: 7, rank: 0, partial: false, replace: true, ops: vec![store(&[], &[8])] };
    desk.says(1, other);
    assert_eq!((held(&desk), desk.truth.stats().events_ignored), (vec![], 1));
}

/// A scheduler that was restarted is told of a cache whose pages were evicted from anywhere.
#[test]
fn an_account_of_a_cache_with_holes_is_known_in_full() {
    for seed in 0..200 {
        let mut rng = Rng(seed);
        let mut cache = Cache::default();
        for _ in 0..rng.below(60) {
            let path = rng.path(24);
            cache.store(&path, false);
            cache.remove(&mut rng);
        }
        let (mut desk, _) = desk(roomy());
        desk.says(1, events(0, true, cache.dump()));
        let known: BTreeSet<u64> = held(&desk).into_iter().collect();
        assert_eq!((known, desk.truth.targets()[0].cache), (cache.held, CacheSource::Events), "seed {seed}");
    }
}

#[test]
fn a_new_session_that_goes_on_without_a_dump_is_partial_and_one_without_events_counts_by_placements() {
    let (mut desk, _) = desk(roomy());
    let cache = |desk: &Desk| desk.truth.targets()[0].cache;
    desk.says(1, events(0, true, vec![store(&[], &[3, 4])]));
    desk.hello(3, Role::Agent, "a", 2);
    desk.register(3, instance("a", 1));
    assert_eq!((cache(&desk), held(&desk)), (CacheSource::Events, vec![3, 4]), "the engine runs on");
    desk.says(3, events(0, false, vec![store(&[3, 4], &[5])]));
    assert_eq!((cache(&desk), held(&desk)), (CacheSource::PartialEvents, vec![3, 4, 5]));
    desk.hello(4, Role::Agent, "a", 3);
    desk.register(4, instance("a", 1));
    desk.pass(roomy().linger_us - 100 * MS, &[2, 4]);
    assert_eq!(held(&desk), [3, 4, 5]);
    desk.pass(300 * MS, &[2, 4]);
    assert_eq!((cache(&desk), held(&desk)), (CacheSource::Placements, vec![]));
}

#[test]
fn one_target_of_events_cannot_take_the_index() {
    let (mut desk, id) = desk(truth_config());
    desk.says(1, events(0, true, Vec::new()));
    for path in paths(100, 6) {
        desk.says(1, events(0, false, vec![store(&[], &path)]));
    }
    assert!(desk.truth.index().held_by(id.slot) <= 59, "its share");
    assert_eq!(desk.truth.targets()[0].cache, CacheSource::PartialEvents, "more may be there");
    // An engine's KV room is no bound: the engine itself says what it holds.
    let mut desk = Desk::new(roomy());
    desk.hello(1, Role::Agent, "a", 1);
    desk.register(1, InstanceInfo { kv_blocks: Some(32), block_size: Some(16), ..instance("a", 1) });
    for (i, path) in paths(100, 6).into_iter().enumerate() {
        desk.says(1, events(0, i == 0, vec![store(&[], &path)]));
    }
    assert_eq!(held(&desk).len(), 600);
}

/// A scheduler that was restarted knows nothing of an engine that has been full for long.
#[test]
fn the_first_account_is_not_bound_by_what_an_engine_was_believed_to_keep() {
    let mut desk = Desk::new(roomy());
    desk.hello(1, Role::Agent, "a", 1);
    desk.register(1, InstanceInfo { kv_blocks: Some(2_000), block_size: Some(16), ..instance("a", 1) });
    // Until events come, placements count, and no more of them than the engine keeps.
    let account: Vec<CacheOp> = paths(90, 20).into_iter().map(|path| store(&[], &path)).collect();
    assert!(desk.truth.targets()[0].believed_blocks.is_some_and(|room| room < 1_800));
    desk.says(1, events(0, true, account));
    assert_eq!((held(&desk).len(), desk.truth.targets()[0].cache), (1_800, CacheSource::Events));
}

#[test]
fn the_index_stands_still_while_a_snapshot_is_encoded_and_nothing_is_left_out() {
    let (mut desk, id) = desk(TruthConfig { chunk_bytes: 600, ..roomy() });
    for (i, path) in paths(100, 8).into_iter().enumerate() {
        desk.says(1, events(0, i == 0, vec![store(&[], &path)]));
    }
    desk.pass(20 * MS, &[1, 2]);
    let before = held(&desk);
    let sequence = desk.truth.stats().sequence;
    desk.hello(3, Role::Gateway, "late", 1);
    // Everything that changes the index, while the snapshot is under way.
    let mut news = Rng(5);
    for step in 0..20u64 {
        desk.now += MS;
        let path: Vec<u64> = (0..5).map(|_| news.next().max(1)).collect();
        desk.says(1, events(0, false, vec![store(&[], &path)]));
        desk.says(
            2,
            Placements {
                items: vec![Placement { target: id.pack(), path, keep: None, space: HashSpace::Bytes }],
            },
        );
        if step == 3 {
            desk.hello(4, Role::Agent, "b", 1);
            desk.register(4, instance("b", 1));
            desk.says(4, events(0, true, vec![store(&[], &[77, 78])]));
            // An engine that starts anew drops its old holdings.
            desk.register(1, InstanceInfo { incarnation: 2, ..instance("a", 1) });
        }
        if step < 10 {
            assert_eq!(held(&desk), before, "step {step}");
            assert!(desk.truth.stats().waiting_bytes > 0);
            assert!(desk.truth.next_deadline() <= desk.now, "there is work");
        }
        // Heartbeats and figures are not held up.
        desk.sent.clear();
        desk.says(1, Ping { id: 9, sent_us: step });
        assert!(
            desk.sent
                .iter()
                .any(|(_, message)| matches!(message, Message::Pong(pong) if pong.ping_sent_us == step))
        );
        desk.truth.tick(desk.now);
    }
    desk.sent.clear();
    desk.pass(200 * MS, &[1, 2, 3, 4]);
    assert_eq!(desk.truth.stats().waiting_bytes, 0);
    assert_eq!(held(&desk), [77, 78], "the old engine's holdings went when it was their turn");
    assert!(desk.truth.stats().sequence > sequence);
    // The snapshot spoke of the state before, and was made once for whoever comes while it is young.
    assert_eq!(desk.truth.stats().snapshots_built, 2);
    desk.hello(5, Role::Gateway, "later", 1);
    desk.pass(200 * MS, &[1, 2, 3, 4, 5]);
    assert!(desk.truth.stats().snapshots_built <= 3);
}

#[test]
fn too_much_that_waits_ends_the_wait() {
    let (mut desk, _) = desk(TruthConfig { chunk_bytes: 600, hold_bytes: 4 << 10, ..roomy() });
    for (i, path) in paths(200, 8).into_iter().enumerate() {
        desk.says(1, events(0, i == 0, vec![store(&[], &path)]));
    }
    desk.pass(20 * MS, &[1, 2]);
    desk.hello(3, Role::Gateway, "late", 1);
    for path in paths(300, 8).split_off(200) {
        desk.says(1, events(0, false, vec![store(&[], &path)]));
    }
    assert_eq!(desk.truth.stats().holds_cut, 1);
    assert_eq!(held(&desk).len(), 300 * 8);
}
