//! The truth alone, driven by hand.
#![allow(clippy::unwrap_used, reason = "a test may fail so")]

mod world;

use fairlead_prefix::Hits;
use fairlead_replication::{Lane, Output, SessionId, TruthConfig};
use fairlead_wire::msg::*;
use fairlead_wire::{Message, TargetId};
use world::{Desk, MS, instance, paths, truth_config};

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
    desk.pass(50 * MS, &[1, 2, 3]);
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

#[test]
fn answers_correct_what_a_target_is_believed_to_hold() {
    let mut desk = Desk::new(TruthConfig { target_share: 1.0, ..truth_config() });
    desk.hello(1, Role::Agent, "a", 1);
    // 400 blocks of 256 bytes, at 4 bytes a token.
    desk.register(1, InstanceInfo { kv_blocks: Some(1_600), block_size: Some(16), ..instance("a", 1) });
    desk.hello(2, Role::Gateway, "g", 1);
    let id = desk.truth.targets()[0].id;
    let place = |desk: &mut Desk, paths: Vec<Vec<u64>>| {
        let item = |path| Placement { target: id.pack(), path, keep: None, space: HashSpace::Bytes };
        desk.says(2, Placements { items: paths.into_iter().map(item).collect() });
    };
    let answers = |cached_tokens| TargetFeedback {
        target: id.pack(),
        space: HashSpace::Bytes,
        answers: 100,
        predicted_tokens: 100_000,
        cached_tokens,
        prompt_tokens: 200_000,
        prompt_bytes: 800_000,
    };
    place(&mut desk, paths(100, 5));
    desk.pass(50 * MS, &[1, 2]);
    let held = |desk: &Desk| desk.truth.index().held_by(id.slot);
    assert!((350..=400).contains(&held(&desk)), "{}", held(&desk));
    for _ in 0..6 {
        desk.says(2, Feedback { items: vec![answers(50_000)], ..Feedback::default() });
    }
    let view = desk.truth.targets().remove(0);
    assert!(view.capacity_factor < 0.5 && view.cached_ratio.is_some_and(|ratio| ratio < 0.6), "{view:?}");
    // A snapshot may be under way, during which the index stands still.
    desk.pass(50 * MS, &[1, 2]);
    place(&mut desk, paths(101, 5).split_off(100));
    assert!(held(&desk) <= view.believed_blocks.unwrap() && held(&desk) < 200, "{} {view:?}", held(&desk));
    // Of targets that are gone, and of none at all.
    desk.says(
        2,
        Feedback { items: vec![TargetFeedback { target: 4_000, ..answers(0) }], ..Feedback::default() },
    );
    desk.says(2, Feedback::default());
}
