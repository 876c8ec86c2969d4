//! The benchmark programs, one module each. A new one is a module here and a line in [`PROGRAMS`].

pub mod decision;
pub mod index;
pub mod propagation;

use std::io::Write as _;

use crate::kit::sheet::Sheet;

/// What the command line asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// End within 50 s on two cores.
    pub quick: bool,
}

/// A benchmark.
pub struct Program {
    /// What `perf/run` calls it.
    pub name: &'static str,
    /// What it shows, for `list`.
    pub about: &'static str,
    /// Runs it and fills the sheet. What it says while it runs goes to standard error through [`say`].
    pub run: fn(&Options, &mut Sheet) -> anyhow::Result<()>,
}

/// All programs, in the order of `list`.
pub const PROGRAMS: &[Program] = &[
    Program {
        name: "index",
        about: "the prefix index: memory, lookups idle and under a writer, updates",
        run: index::run,
    },
    Program {
        name: "decision",
        about: "from block hashes to reservation: time and allocations",
        run: decision::run,
    },
    Program {
        name: "propagation",
        about: "from agent and gateway through the scheduler to the shards of other processes: time, rate, joining",
        run: propagation::run,
    },
];

/// Tells how far a run has come, on standard error. A closed standard error is no reason to stop.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
