//! `fairlead-bench`: the benchmark programs behind `perf/run`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Parser;
use fairlead_bench::kit::alloc::Counting;
use fairlead_bench::programs::{Options, PROGRAMS, present, say};

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
    /// `routing`, `handoff`: fail where a bar is missed.
    #[arg(long)]
    check: bool,
    /// `routing`: put the tables into this document, between the lines made for them.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// `relay`, `stream`, `runtime`: this case alone, as the table names it.
    #[arg(long, value_name = "CASE")]
    only: Option<String>,
    /// `routing`, `decision`: prefill and decode apart, and nothing else.
    #[arg(long)]
    pd: bool,
    /// `relay`: clients speak TLS, beside nginx and HAProxy with TLS.
    #[arg(long)]
    tls: bool,
    /// `relay`: clients speak HTTP/2, beside nginx and HAProxy with HTTP/2.
    #[arg(long)]
    http2: bool,
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
    if args.name == "list" {
        let mut out = std::io::stdout().lock();
        for program in PROGRAMS {
            writeln!(out, "{:<12} {}", program.name, program.about)?;
        }
        return Ok(());
    }
    let program = PROGRAMS.iter().find(|p| p.name == args.name).with_context(|| {
        let names: Vec<_> = PROGRAMS.iter().map(|p| p.name).collect();
        format!("no benchmark `{}`; there are: {}", args.name, names.join(", "))
    })?;
    ensure!(
        matches!(program.name, "routing" | "handoff") || !args.check,
        "--check is for `routing` and `handoff`"
    );
    ensure!(program.name == "routing" || args.write.is_none(), "--write is for `routing`");
    ensure!(
        matches!(program.name, "routing" | "decision") || !args.pd,
        "--pd is for `routing` and `decision`"
    );
    ensure!(
        matches!(program.name, "relay" | "stream" | "runtime") || args.only.is_none(),
        "--only is for `relay`, `stream` and `runtime`"
    );
    ensure!(program.name == "relay" || !args.tls, "--tls is for `relay`");
    ensure!(program.name == "relay" || !args.http2, "--http2 is for `relay`");
    ensure!(!args.tls || !args.http2, "--tls and --http2 are measured one at a time");
    let options = Options {
        quick: args.quick,
        check: args.check,
        write: args.write.clone(),
        pd: args.pd,
        tls: args.tls,
        http2: args.http2,
        only: args.only.clone(),
    };
    present(program.name, args.json.as_deref(), |sheet| (program.run)(&options, sheet))
}
