//! What the tests of whole fleets are made of: engines and clients that speak HTTP over simulated sockets.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod agent;
pub mod cache;
pub mod client;
pub mod engine;
pub mod fleet;
pub mod gateway;
pub mod http;
pub mod link;
pub mod scheduler;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use fairlead_dataplane::runtime::sim::{World, WorldOptions};

/// The seeds to run: `FAIRLEAD_SEEDS=a..b`, or the first `default`.
pub fn seeds(default: u64) -> std::ops::Range<u64> {
    match std::env::var("FAIRLEAD_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("FAIRLEAD_SEEDS=a..b");
            from.parse().expect("a number")..to.parse().expect("a number")
        }
        Err(_) => 0..default,
    }
}

/// Runs `one` for every seed, on two threads, and says which one failed first. Gives what came of them in order.
pub fn each_seed<T: Send>(default: u64, one: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let seeds = seeds(default);
    let next = AtomicU64::new(seeds.start);
    let results = Mutex::new(BTreeMap::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            match catch_unwind(AssertUnwindSafe(|| one(seed))) {
                Ok(result) => drop(results.lock().unwrap().insert(seed, result)),
                Err(panic) => {
                    eprintln!("seed {seed} fails; again with FAIRLEAD_SEEDS={seed}..{}", seed + 1);
                    next.store(seeds.end, Ordering::Relaxed);
                    resume_unwind(panic);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work();
        if let Err(panic) = other.join() {
            resume_unwind(panic);
        }
    });
    results.into_inner().unwrap().into_values().collect()
}

/// A world of that seed. With `FAIRLEAD_TRACE=1` it prints everything that happens, to be compared with another run.
pub fn world(seed: u64) -> World {
    let mut options = WorldOptions::seeded(seed);
    if std::env::var_os("FAIRLEAD_TRACE").is_some() {
        options.log = Some(|now_us, process, what| eprintln!("{now_us} {} {what:x}", process.0));
    }
    World::new(options)
}
