//! `fairlead-bench`: the benchmark programs behind `perf/run`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::Parser;
use fairlead_bench::kit::alloc::Counting;
use fairlead_bench::kit::sheet::Sheet;
use fairlead_bench::machine;
use fairlead_bench::programs::{Options, PROGRAMS, say};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Benchmarks of Fairlead: ours beside a baseline, in one run.
#[derive(Parser, Debug)]
#[command(name = "perf/run")]
struct Args {
    /// A benchmark's name, or `list`.
    name: String,
    /// End within 50 s on two cores; figures are coarser.
    #[arg(long)]
    quick: bool,
    /// Write the rows there as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if args.name == "list" {
        for program in PROGRAMS {
            writeln!(out, "{:<12} {}", program.name, program.about)?;
        }
        return Ok(());
    }
    let program = PROGRAMS.iter().find(|p| p.name == args.name).with_context(|| {
        let names: Vec<_> = PROGRAMS.iter().map(|p| p.name).collect();
        format!("no benchmark `{}`; there are: {}", args.name, names.join(", "))
    })?;
    let machine = conditions();
    let started = Instant::now();
    let mut sheet = Sheet::default();
    (program.run)(&Options { quick: args.quick }, &mut sheet)?;
    write!(out, "{}", sheet.table())?;
    writeln!(out, "machine: {machine}")?;
    writeln!(out, "{} took {:.0} s", args.name, started.elapsed().as_secs_f64())?;
    if let Some(path) = &args.json {
        let value = json!({"name": program.name, "machine": machine, "rows": sheet.rows()});
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
