//! What the tests of whole fleets are made of: engines and clients that speak HTTP over simulated sockets.

pub mod client;
pub mod engine;
pub mod http;

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

/// Runs `one` for every seed and says which one failed.
pub fn each_seed(default: u64, one: impl Fn(u64)) {
    for seed in seeds(default) {
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| one(seed))) {
            eprintln!("seed {seed} fails; again with FAIRLEAD_SEEDS={seed}..{}", seed + 1);
            std::panic::resume_unwind(panic);
        }
    }
}
