//! Single stories, each with one fault.
#![allow(clippy::unwrap_used, reason = "a test may fail so")]

mod world;

use fairlead_prefix::Hits;
use fairlead_replication::{Lane, Output, SessionId, Trust, Truth, TruthConfig};
use fairlead_wire::msg::*;
use fairlead_wire::{Frame, Message, TargetId};
use world::{Gateway, HEARTBEAT, MS, Rng, World, instance, replica_config, truth_config};

fn paths(count: u64, len: u64) -> Vec<Vec<u64>> {
    (0..count).map(|p| (0..len).map(|i| Rng(p * 1_000 + i).next().max(1)).collect()).collect()
}

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

/// A truth driven by hand.
struct Desk {
    truth: Truth,
    now: u64,
    closed: Vec<(SessionId, Refuse)>,
    sent: Vec<(SessionId, Message)>,
}

impl Desk {
    fn new(config: TruthConfig) -> Self {
        Self {
            truth: Truth::new(config, 9, 1, 1_000_000),
            now: 1_000_000,
            closed: Vec::new(),
            sent: Vec::new(),
        }
    }

    fn hello(&mut self, session: u64, role: Role, name: &str, incarnation: u64) {
        let hello = Hello {
            role,
            name: name.into(),
            incarnation,
            protocol_min: 1,
            protocol_max: 1,
            software: String::new(),
            have: None,
        };
        self.truth.connected(SessionId(session), &hello, 1, self.now);
        self.drain();
    }

    fn says(&mut self, session: u64, message: impl Into<Message>) {
        self.truth.message(SessionId(session), message.into(), self.now);
        self.drain();
    }

    fn register(&mut self, session: u64, info: InstanceInfo) {
        self.says(session, Register { instance: info });
    }

    /// Passes time in ticks of 10 ms, with a heartbeat from everybody in `alive`.
    fn pass(&mut self, us: u64, alive: &[u64]) {
        let end = self.now + us;
        while self.now < end {
            self.now += 10 * MS;
            for &session in alive {
                self.says(session, Ping { id: 1, sent_us: 0 });
            }
            self.truth.tick(self.now);
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.truth.poll(|_, _| true) {
            match output {
                Output::Close { session, refuse } => self.closed.push((session, refuse)),
                Output::Send { session, bytes, .. } => {
                    self.sent.push((session, Frame::from_bytes(&bytes).unwrap().message().unwrap()));
                }
            }
        }
    }

    fn last_refusal(&self) -> (u64, RefuseCode, &str) {
        let (session, refuse) = self.closed.last().expect("refused");
        (session.0, refuse.code, &refuse.reason)
    }
}

#[test]
fn peers_that_lie_are_refused_with_a_reason() {
    let mut desk = Desk::new(TruthConfig { max_targets: 4, max_gateways: 1, ..truth_config() });
    desk.hello(1, Role::Scheduler, "s", 1);
    assert_eq!(desk.last_refusal(), (1, RefuseCode::Identity, "hello.role: scheduler"));
    desk.hello(2, Role::Agent, "a", 1);
    desk.register(2, instance("b", 1));
    let (session, code, reason) = desk.last_refusal();
    assert_eq!((session, code), (2, RefuseCode::Identity));
    assert!(reason.contains("\"b\"") && reason.contains("\"a\""), "{reason}");
    desk.hello(3, Role::Agent, "a", 1);
    desk.register(3, instance("a", 5));
    let (session, code, reason) = desk.last_refusal();
    assert_eq!((session, code), (3, RefuseCode::Capacity));
    assert!(reason.contains("no room for 5 of 4"), "{reason}");
    desk.hello(4, Role::Agent, "a", 1);
    desk.says(4, Placements { items: Vec::new() });
    assert_eq!(desk.last_refusal().1, RefuseCode::Malformed);
    desk.hello(5, Role::Gateway, "g", 1);
    desk.hello(6, Role::Gateway, "h", 1);
    assert_eq!((desk.last_refusal().0, desk.last_refusal().1), (6, RefuseCode::Capacity));
    assert_eq!(desk.truth.stats().refused, 5);
    assert_eq!((desk.truth.stats().agents, desk.truth.stats().gateways), (0, 1));
    // Messages of a session that was refused change nothing.
    desk.register(2, instance("a", 1));
    assert_eq!(desk.truth.stats().targets, 0);
}

#[test]
fn of_two_sessions_with_one_name_the_newer_incarnation_stays() {
    let mut desk = Desk::new(truth_config());
    desk.hello(1, Role::Agent, "a", 5);
    desk.register(1, instance("a", 1));
    desk.hello(2, Role::Agent, "a", 4);
    assert_eq!((desk.last_refusal().0, desk.last_refusal().1), (2, RefuseCode::Superseded));
    let id = desk.truth.targets()[0].id;
    desk.hello(3, Role::Agent, "a", 5);
    assert_eq!((desk.last_refusal().0, desk.last_refusal().1), (1, RefuseCode::Superseded));
    assert!(desk.truth.targets()[0].ready, "no gap while the new session has not registered yet");
    desk.register(3, instance("a", 1));
    // The old link's end comes late and must not be taken for the new one's.
    desk.truth.gone(SessionId(1), desk.now);
    desk.pass(500 * MS, &[3]);
    assert_eq!((desk.truth.targets()[0].id, desk.truth.targets()[0].ready), (id, true));
    // One that never registers again is not waited for.
    desk.hello(4, Role::Agent, "a", 6);
    desk.pass(500 * MS, &[4]);
    assert!(!desk.truth.targets()[0].ready);
    desk.pass(1_000 * MS, &[4]);
    assert_eq!(desk.truth.stats().targets, 0);
}

#[test]
fn silence_is_judged_by_own_progress() {
    let mut desk = Desk::new(truth_config());
    desk.hello(1, Role::Agent, "a", 1);
    desk.hello(2, Role::Agent, "b", 1);
    desk.register(1, instance("a", 1));
    desk.register(2, instance("b", 1));
    // This process stands still for a minute: nobody is to blame.
    desk.now += 60_000 * MS;
    desk.truth.tick(desk.now);
    desk.drain();
    assert!(desk.closed.is_empty());
    assert_eq!((desk.truth.stats().ready, desk.truth.stats().stalls), (2, 1));
    // From then on, whoever is silent for three heartbeats is.
    desk.pass(250 * MS, &[1]);
    assert!(desk.closed.is_empty());
    desk.pass(200 * MS, &[1]);
    assert_eq!(desk.closed.len(), 1);
    assert_eq!((desk.last_refusal().0, desk.truth.stats().silent), (2, 1));
    let views = desk.truth.targets();
    assert_eq!(
        views.iter().map(|view| (&*view.info.name, view.ready)).collect::<Vec<_>>(),
        [("a", true), ("b", false)]
    );
}

#[test]
fn reports_that_do_not_fit_are_ignored() {
    let mut desk = Desk::new(truth_config());
    let report = |incarnation, rank| Report {
        incarnation,
        ready: true,
        reason: None,
        ranks: vec![RankLoad { rank, running: Some(1), ..RankLoad::default() }],
    };
    desk.hello(1, Role::Agent, "a", 1);
    desk.says(1, report(1, 0));
    desk.register(1, instance("a", 2));
    desk.says(1, report(2, 0));
    desk.says(1, report(1, 2));
    assert_eq!(desk.truth.stats().reports_ignored, 3);
    desk.says(1, report(1, 1));
    let loads: Vec<_> = desk.truth.targets().iter().map(|view| view.load.is_some()).collect();
    assert_eq!(loads, [false, true]);
    desk.says(1, Report { incarnation: 1, ready: false, reason: Some("probe".into()), ranks: Vec::new() });
    assert_eq!(desk.truth.stats().ready, 0);
}

#[test]
fn figures_that_are_no_longer_reported_are_unknown() {
    let mut desk = Desk::new(truth_config());
    let rank = |rank, running| RankLoad { rank, running: Some(running), taken_us: 7, ..RankLoad::default() };
    let report = |ready, ranks| Report { incarnation: 1, ready, reason: None, ranks };
    let running = |desk: &Desk| {
        desk.truth.targets().iter().map(|view| view.load.map(|load| load.running)).collect::<Vec<_>>()
    };
    desk.hello(1, Role::Agent, "a", 1);
    desk.register(1, instance("a", 2));
    desk.hello(2, Role::Gateway, "g", 1);
    desk.says(1, report(true, Vec::new()));
    assert_eq!(running(&desk), [None, None], "nothing was ever known");
    desk.says(1, report(true, vec![rank(0, 5), rank(1, 6)]));
    desk.says(1, report(true, vec![rank(1, 7)]));
    assert_eq!(running(&desk), [Some(None), Some(Some(7))]);
    desk.pass(20 * MS, &[1, 2]);
    desk.sent.clear();
    desk.says(1, report(true, Vec::new()));
    desk.pass(20 * MS, &[1, 2]);
    assert_eq!(running(&desk), [Some(None), Some(None)]);
    let told = |desk: &Desk| {
        let engines = desk.sent.iter().filter_map(|(_, message)| match message {
            Message::LoadUpdate(update) => Some(update.engines.iter().map(|e| e.load.running)),
            _ => None,
        });
        engines.flatten().collect::<Vec<_>>()
    };
    assert_eq!(told(&desk), [None], "only what has changed is told, and once");
    desk.says(1, report(true, Vec::new()));
    desk.pass(20 * MS, &[1, 2]);
    assert_eq!(told(&desk), [None]);
}

#[test]
fn a_lane_without_room_is_not_waited_for_by_the_clock() {
    let mut desk = Desk::new(truth_config());
    desk.hello(1, Role::Agent, "a", 1);
    desk.register(1, instance("a", 1));
    desk.hello(2, Role::Gateway, "g", 1);
    desk.pass(20 * MS, &[1, 2]);
    let rank = RankLoad { running: Some(1), taken_us: 7, ..RankLoad::default() };
    let report = Report { incarnation: 1, ready: true, reason: None, ranks: vec![rank] };
    desk.truth.message(SessionId(1), report.into(), desk.now);
    assert!(desk.truth.next_deadline() <= desk.now + truth_config().flush_us, "due with others soon");
    for _ in 0..3 {
        desk.now += MS;
        desk.truth.tick(desk.now);
        desk.truth.flush(desk.now);
        assert!(desk.truth.poll(|_, lane| lane != Lane::Load).is_none());
        assert!(desk.truth.next_deadline() > desk.now, "only room can help");
    }
    assert!(matches!(desk.truth.poll(|_, _| true), Some(Output::Send { lane: Lane::Load, .. })));
}

#[test]
fn a_gateway_that_does_not_read_costs_bounded_memory_and_gets_a_snapshot() {
    let mut desk = Desk::new(truth_config());
    desk.hello(1, Role::Agent, "a", 1);
    desk.register(1, instance("a", 1));
    desk.hello(2, Role::Gateway, "g", 1);
    desk.hello(3, Role::Gateway, "slow", 1);
    desk.pass(20 * MS, &[1, 2, 3]);
    let target = desk.truth.targets()[0].id.pack();
    let before = desk.truth.stats();
    desk.sent.clear();
    for (i, path) in paths(500, 8).into_iter().enumerate() {
        desk.truth.message(
            SessionId(2),
            Placements { items: vec![Placement { target, path, keep: None, space: HashSpace::Bytes }] }
                .into(),
            desk.now + i as u64,
        );
        desk.truth.flush(desk.now + i as u64);
        while let Some(output) = desk.truth.poll(|session, _| session == SessionId(2)) {
            assert!(matches!(output, Output::Send { session: SessionId(2), .. }));
        }
        assert!(desk.truth.stats().ring_bytes <= truth_config().ring_bytes);
    }
    desk.drain();
    let after = desk.truth.stats();
    assert_eq!(after.snapshots_started, before.snapshots_started + 1);
    let to_slow: Vec<_> = desk.sent.iter().filter(|(session, _)| *session == SessionId(3)).collect();
    assert!(to_slow.iter().any(|(_, message)| matches!(message, Message::Snapshot(chunk) if chunk.last)));
    assert!(
        to_slow.iter().all(|(_, message)| !matches!(message, Message::Delta(_))),
        "what it missed is not replayed"
    );
}

#[test]
fn one_target_cannot_take_the_index() {
    let mut desk = Desk::new(truth_config());
    desk.hello(1, Role::Agent, "a", 1);
    desk.hello(2, Role::Agent, "b", 1);
    desk.hello(3, Role::Gateway, "g", 1);
    desk.register(1, instance("a", 1));
    // 4 blocks of 16 tokens are one routing block: room for 8.
    desk.register(2, InstanceInfo { kv_blocks: Some(32), block_size: Some(16), ..instance("b", 1) });
    let ids: Vec<TargetId> = desk.truth.targets().iter().map(|view| view.id).collect();
    for path in paths(100, 6) {
        let place = |id: &TargetId| Placement {
            target: id.pack(),
            path: path.clone(),
            keep: None,
            space: HashSpace::Bytes,
        };
        desk.says(3, Placements { items: ids.iter().map(place).collect() });
    }
    assert!(desk.truth.index().held_by(ids[0].slot) <= 59, "its share");
    assert!(desk.truth.index().held_by(ids[1].slot) <= 8, "its engine's room");
    let last = paths(100, 6).pop().unwrap();
    let mut hits = Hits::default();
    desk.truth.index().reader().lookup(&last, &mut hits);
    assert_eq!((hits.get(ids[0].slot), hits.get(ids[1].slot)), (6, 6), "the newest stays");
}

#[test]
fn lanes_do_not_wait_for_one_another() {
    let mut desk = Desk::new(truth_config());
    desk.hello(1, Role::Agent, "a", 1);
    desk.register(1, instance("a", 1));
    desk.hello(2, Role::Gateway, "g", 1);
    desk.truth.message(SessionId(2), Ping { id: 4, sent_us: 5 }.into(), desk.now);
    let output = desk.truth.poll(|_, lane| lane == Lane::Control);
    assert!(matches!(output, Some(Output::Send { lane: Lane::Control, .. })), "{output:?}");
    assert!(desk.truth.poll(|_, lane| lane == Lane::Control).is_none());
}

#[test]
fn recollections_count_for_the_same_incarnation_only() {
    let mut desk = Desk::new(truth_config());
    let told = |incarnation, path: &[u64]| Recollection {
        instance: "a".into(),
        rank: 0,
        incarnation,
        paths: vec![path.to_vec()],
        last: false,
    };
    desk.hello(1, Role::Gateway, "g", 1);
    desk.hello(2, Role::Gateway, "h", 1);
    // Before the instance has registered: two gateways, two incarnations.
    desk.says(1, told(1, &[1, 2, 3]));
    desk.says(2, told(1, &[1, 2, 3]));
    desk.says(2, told(0, &[8, 9]));
    desk.hello(3, Role::Agent, "a", 1);
    desk.register(3, instance("a", 1));
    let held =
        |desk: &Desk| desk.truth.index().holdings().iter().map(|(_, block)| *block).collect::<Vec<_>>();
    assert_eq!(held(&desk), [1, 2, 3]);
    // And after.
    desk.says(1, told(1, &[1, 2, 4]));
    desk.says(1, told(0, &[6]));
    assert_eq!(held(&desk), [1, 2, 3, 4]);
    // What nobody has claimed is void when the epoch settles; what is known may still be added to.
    desk.says(1, Recollection { instance: "b".into(), ..told(1, &[5]) });
    desk.pass(400 * MS, &[1, 2, 3]);
    assert!(desk.truth.stats().settled);
    desk.hello(4, Role::Agent, "b", 1);
    desk.register(4, instance("b", 1));
    assert_eq!(held(&desk), [1, 2, 3, 4]);
    desk.says(2, told(1, &[7]));
    assert_eq!(held(&desk), [1, 2, 3, 4, 7]);
    desk.pass(5_000 * MS, &[1, 2, 3, 4]);
    desk.says(2, told(1, &[10]));
    assert_eq!(held(&desk), [1, 2, 3, 4, 7]);
    assert_eq!(desk.truth.stats().recollections_dropped, 1);
}
