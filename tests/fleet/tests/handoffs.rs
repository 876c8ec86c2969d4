//! Whole shards whose requests are split between engines that misbehave: both legs end, whatever becomes of either, and
//! nothing stays reserved. The simulated sockets see to it that no read or write is dropped and its connection used on.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests fail by panicking and say with which seed"
)]

mod support;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fairlead_dataplane::runtime::Runtime;
use fairlead_dataplane::runtime::sim::Sim;
use fairlead_dataplane::{GatewayOptions, Inbox, sim, static_fleet};
use fairlead_routing::TargetEntry;
use fairlead_wire::TargetId;
use fairlead_wire::msg::{Handoff, InstanceInfo, ServingRole, Transfer};
use support::client::{Habits, Tally, client};
use support::each_seed;
use support::engine::{Engine, Moods};

const GATEWAY: &str = "10.0.0.1:80";
const HANDOFFS: [Handoff; 6] = [
    Handoff::NixlPull,
    Handoff::Sglang,
    Handoff::SharedStore,
    Handoff::P2pNccl,
    Handoff::MoriWrite,
    Handoff::Sidecar,
];

struct Run {
    handoff: Handoff,
    moods: Moods,
    habits: Habits,
    /// Engines die and come back.
    deaths: bool,
}

fn target(slot: u16, engine: &Engine, handoff: Handoff) -> Option<Arc<TargetEntry>> {
    let address = engine.addr.to_string();
    let role = if slot < 2 { ServingRole::Prefill } else { ServingRole::Decode };
    let transfer = Some(Transfer { peer: Some(address.clone()), ..Transfer::new(handoff) });
    let info = InstanceInfo { role, transfer, ..InstanceInfo::new(&address, &address, ["m"]) };
    Some(Arc::new(TargetEntry::new(TargetId::new(slot, 1), Arc::new(info), 0, true, Arc::default())))
}

/// Two shards, two engines on each side, ten clients; until all clients are done and the gateway has drained.
fn run(seed: u64, how: &Run) -> (Tally, u64) {
    let world = support::world(seed);
    let engines: Vec<Engine> =
        (0..4).map(|n| Engine::new(format!("10.0.1.{n}:8000").parse().unwrap(), how.moods)).collect();
    let processes: Vec<_> = engines.iter().map(|engine| engine.start(&world)).collect();
    let fleet = static_fleet(&[]);
    fleet.publish((0u16..).zip(&engines).map(|(slot, engine)| target(slot, engine, how.handoff)).collect());
    let mut options = GatewayOptions { seed: 1, ..GatewayOptions::default() };
    options.timeouts.prefill = Duration::from_secs(2);
    let options = Arc::new(options);
    let shared = sim::shared(&options, fleet).unwrap();
    let gateway = world.process_with(7_000_000);
    let inboxes = [Inbox::default(), Inbox::default()];
    for (n, inbox) in inboxes.iter().enumerate() {
        let (options, shared, inbox) = (options.clone(), shared.clone(), inbox.clone());
        world.spawn(gateway, async move {
            let listener = Sim::listen(GATEWAY.parse().unwrap()).unwrap();
            sim::shard(listener, options, shared, inbox, seed ^ n as u64).await;
        });
    }
    let tally = Rc::<RefCell<Tally>>::default();
    let people = world.process_with(0);
    let left = Rc::new(std::cell::Cell::new(10));
    for number in 0..left.get() {
        let (tally, left, habits) = (tally.clone(), left.clone(), how.habits);
        world.spawn(people, async move {
            client(GATEWAY.parse().unwrap(), number, 8, habits, tally).await;
            left.set(left.get() - 1);
        });
    }
    if how.deaths {
        let (engines, within) = (engines.clone(), world.clone());
        let mut processes = processes;
        world.spawn(people, async move {
            for _ in 0..6 {
                Sim::sleep(Duration::from_millis(30)).await;
                let at = within.below(4) as usize;
                within.kill(processes[at]);
                Sim::sleep(Duration::from_millis(within.below(50))).await;
                processes[at] = engines[at].start(&within);
            }
        });
    }
    assert!(world.run_until(|| left.get() == 0), "clients that wait for ever");
    sim::drain(&shared, &inboxes);
    assert!(world.run_until(|| shared.shards_running() == 0), "a drain that does not end");
    // Prefill legs that were given up end by themselves.
    world.run_for(3_000_000);
    for entry in shared.fleet.table_full().entries.iter().flatten() {
        assert_eq!(entry.cells.counters.in_flight(), Default::default(), "{}", entry.name);
    }
    let running: u32 = engines.iter().map(|engine| engine.figures.borrow().running).sum();
    assert_eq!(running, 0, "engines that work for nobody");
    assert_eq!((shared.in_flight.used(), shared.body_bytes.used(), shared.connections.used()), (0, 0, 0));
    let met = engines[..2].iter().map(|engine| engine.figures.borrow().met).sum();
    world.end();
    let tally = tally.borrow().clone();
    (tally, met)
}

#[test]
fn every_request_of_a_quiet_fleet_is_answered() {
    for handoff in HANDOFFS {
        let moods = Moods { short_keep: 2, ..Moods::default() };
        let how = Run { handoff, moods, habits: Habits::default(), deaths: false };
        each_seed(10, |seed| {
            let (tally, prefilled) = run(seed, &how);
            assert_eq!((tally.sent, tally.whole), (80, 80), "{handoff:?} {tally:?}");
            // These engines do not wait for each other: a decode leg may end before its prefill leg has got anywhere.
            let wanted = match handoff {
                Handoff::Sidecar => 0,
                handoff if handoff.is_concurrent() => 40,
                _ => 80,
            };
            assert!(prefilled >= wanted, "{handoff:?}: {prefilled} prefilled");
        });
    }
}

#[test]
fn whatever_engines_and_clients_do_nothing_is_left_behind() {
    for handoff in HANDOFFS {
        let moods = Moods { silent_close: 12, break_off: 8, busy: 8, short_keep: 2, until_close: 0 };
        let habits = Habits { leave: 4, slow: 4, half_close: 5, drip: 4 };
        let how = Run { handoff, moods, habits, deaths: true };
        let tallies = each_seed(20, |seed| run(seed, &how).0);
        let mut sum = Tally::default();
        tallies.iter().for_each(|tally| sum.and(tally));
        if tallies.len() >= 20 {
            assert!(sum.whole > 0 && sum.cut > 0 && sum.left > 0, "{handoff:?} {sum:?}");
        }
    }
}
