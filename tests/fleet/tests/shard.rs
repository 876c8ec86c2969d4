//! Whole shards, one gateway, engines that misbehave: nothing is lost that need not be, and nothing stays behind.
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
use fairlead_dataplane::{GatewayOptions, Inbox, StaticInstance, sim, static_fleet};
use support::client::{Habits, Tally, client};
use support::each_seed;
use support::engine::{Engine, Moods};

const GATEWAY: &str = "10.0.0.1:80";

struct Run {
    moods: Moods,
    habits: Habits,
    /// Engines die and come back.
    deaths: bool,
}

/// Two shards, three engines, ten clients; until all clients are done and the gateway has drained.
fn run(seed: u64, how: &Run) -> (Tally, u64) {
    let world = support::world(seed);
    let engines: Vec<Engine> =
        (0..3).map(|n| Engine::new(format!("10.0.1.{n}:8000").parse().unwrap(), how.moods)).collect();
    let instances: Vec<StaticInstance> = engines
        .iter()
        .map(|engine| StaticInstance {
            name: engine.addr.to_string(),
            address: engine.addr.to_string(),
            models: vec!["m".into()],
        })
        .collect();
    let processes: Vec<_> = engines.iter().map(|engine| engine.start(&world)).collect();
    let options = Arc::new(GatewayOptions { seed: 1, ..GatewayOptions::default() });
    let shared = sim::shared(&options, static_fleet(&instances)).unwrap();
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
                let at = within.below(3) as usize;
                within.kill(processes[at]);
                Sim::sleep(Duration::from_millis(within.below(50))).await;
                processes[at] = engines[at].start(&within);
            }
        });
    }
    assert!(world.run_until(|| left.get() == 0), "clients that wait for ever");
    sim::drain(&shared, &inboxes);
    assert!(world.run_until(|| shared.shards_running() == 0), "a drain that does not end");
    for entry in shared.fleet.table_full().entries.iter().flatten() {
        assert_eq!(entry.cells.counters.in_flight(), Default::default(), "{}", entry.name);
    }
    assert_eq!((shared.in_flight.used(), shared.body_bytes.used(), shared.connections.used()), (0, 0, 0));
    world.end();
    let tally = tally.borrow().clone();
    (tally, world.trace())
}

#[test]
fn every_request_of_a_quiet_fleet_is_answered() {
    let how = Run {
        moods: Moods { short_keep: 2, until_close: 8, ..Moods::default() },
        habits: Habits::default(),
        deaths: false,
    };
    each_seed(10, |seed| {
        let (tally, _) = run(seed, &how);
        assert_eq!((tally.sent, tally.whole), (80, 80), "{tally:?}");
    });
}

#[test]
fn whatever_engines_and_clients_do_nothing_is_left_behind() {
    let how = Run {
        moods: Moods { silent_close: 12, break_off: 8, busy: 8, short_keep: 2, until_close: 0 },
        habits: Habits { leave: 4, slow: 4, half_close: 5, drip: 4 },
        deaths: true,
    };
    let tallies = each_seed(40, |seed| run(seed, &how).0);
    let mut sum = Tally::default();
    tallies.iter().for_each(|tally| sum.and(tally));
    if tallies.len() >= 40 {
        assert!(sum.whole > 0 && sum.cut > 0 && sum.left > 0 && sum.refused > 0, "{sum:?}");
    }
}

#[test]
fn a_seed_repeats_everything() {
    let how = Run {
        moods: Moods { silent_close: 12, break_off: 8, busy: 8, short_keep: 2, until_close: 0 },
        habits: Habits { leave: 4, slow: 4, half_close: 5, drip: 4 },
        deaths: true,
    };
    each_seed(3, |seed| assert_eq!(run(seed, &how), run(seed, &how)));
}
