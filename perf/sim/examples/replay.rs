//! `fairlead replay` by itself: builds in a fraction of the time, for work on a policy.

use clap::Parser;
use fairlead_sim::replay::{ReplayArgs, compare};
use std::io::Write as _;
use std::process::ExitCode;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    replay: ReplayArgs,
}

fn main() -> ExitCode {
    let args = Cli::parse().replay;
    let mut out = std::io::stdout();
    let comparison = match compare(&args) {
        Ok(comparison) => comparison,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let _ = writeln!(out, "{comparison}");
    if let Some(path) = &args.json {
        let _ = std::fs::write(path, format!("{:#}\n", comparison.to_json("")));
    }
    ExitCode::SUCCESS
}
