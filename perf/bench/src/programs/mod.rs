//! The benchmark programs, one module each. A new one is a module here and a line in [`PROGRAMS`].

pub mod decision;
#[cfg(feature = "fleet")]
pub mod handoff;
pub mod index;
#[cfg(feature = "fleet")]
pub mod life;
#[cfg(feature = "fleet")]
pub mod memory;
#[cfg(feature = "fleet")]
pub mod propagation;
#[cfg(feature = "fleet")]
pub mod relay;
pub mod routing;
#[cfg(feature = "fleet")]
pub mod runtime;
#[cfg(feature = "fleet")]
pub mod scale;
#[cfg(feature = "fleet")]
pub mod stream;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use serde_json::json;

use crate::kit::sheet::Sheet;
use crate::machine;

/// What the command line asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// End within 50 s on two cores.
    pub quick: bool,
    /// `routing`, `handoff`: fail where a bar is missed.
    pub check: bool,
    /// `routing`: put the tables into this document.
    pub write: Option<PathBuf>,
    /// `routing`, `decision`: prefill and decode apart alone.
    pub pd: bool,
    /// `relay`: clients speak TLS.
    pub tls: bool,
    /// `relay`: clients speak HTTP/2.
    pub http2: bool,
    /// `relay`, `stream`, `runtime`: this case alone.
    pub only: Option<String>,
}

impl Options {
    /// Whether a case is asked for.
    pub fn wants(&self, case: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == case)
    }
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
    #[cfg(feature = "fleet")]
    Program {
        name: "relay",
        about: "a chat request through the gateway beside nginx, HAProxy and other routers: processor time, added latency",
        run: relay::run,
    },
    #[cfg(feature = "fleet")]
    Program {
        name: "stream",
        about: "tokens of streams through the gateway beside nginx and HAProxy: processor time, time on the way, stalls",
        run: stream::run,
    },
    #[cfg(feature = "fleet")]
    Program {
        name: "runtime",
        about: "monoio on io_uring, monoio on epoll and glommio under the same few lines: echo, relay, streams",
        run: runtime::run,
    },
    #[cfg(feature = "fleet")]
    Program {
        name: "memory",
        about: "the gateway's memory for each stream and each idle connection, and after many requests",
        run: memory::run,
    },
    #[cfg(feature = "fleet")]
    Program {
        name: "scale",
        about: "thousands of streams at a time; the cost of a request with 1,000 targets over that with 8",
        run: scale::run,
    },
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
        name: "routing",
        about: "every policy on recorded traffic in simulation, beside a planner that knows the future",
        run: routing::run,
    },
    #[cfg(feature = "fleet")]
    Program {
        name: "handoff",
        about: "processor time of the gateway for a request that two engines serve, beside one that one serves",
        run: handoff::run,
    },
    #[cfg(feature = "fleet")]
    Program {
        name: "propagation",
        about: "from agent and gateway through the scheduler to the shards of other processes: time, rate, joining",
        run: propagation::run,
    },
    #[cfg(feature = "fleet")]
    Program {
        name: "life",
        about: "a trace on live gateway and simulated engines beside its replay: TTFT, hits, goodput",
        run: life::run,
    },
];

/// Tells how far a run has come, on standard error. A closed standard error is no reason to stop.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Runs a measurement, prints its table and the machine it ran on, and writes the rows to `file` as JSON.
///
/// # Errors
/// Those of the measurement, and of writing.
pub fn present(
    name: &str,
    file: Option<&Path>,
    measure: impl FnOnce(&mut Sheet) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let machine = conditions();
    let started = Instant::now();
    let mut sheet = Sheet::default();
    measure(&mut sheet)?;
    let mut out = std::io::stdout().lock();
    write!(out, "{}", sheet.table())?;
    writeln!(out, "machine: {machine}")?;
    writeln!(out, "{name} took {:.0} s", started.elapsed().as_secs_f64())?;
    if let Some(path) = file {
        let value = json!({"name": name, "machine": machine, "rows": sheet.rows()});
        let text = serde_json::to_string_pretty(&value)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The machine, and what else may sway the figures: the build profile and how busy the machine was at the start.
fn conditions() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let profile = std::env::var("FAIRLEAD_PROFILE").unwrap_or_else(|_| "unknown".to_owned());
    format!("{}, profile {profile}, load {load} at the start", machine::describe())
}
