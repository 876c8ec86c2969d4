//! `fairlead replay` by itself: builds in a fraction of the time, for work on a policy.

use clap::Parser;
use fairlead_sim::replay::{BadReplay, ReplayArgs, compare};
use std::io::Write as _;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    replay: ReplayArgs,
}

fn main() -> Result<(), BadReplay> {
    let args = Cli::parse().replay;
    let comparison = compare(&args)?;
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{comparison}");
    if let Some(path) = &args.json {
        let _ = std::fs::write(path, format!("{:#}\n", comparison.to_json("")));
    }
    Ok(())
}
