//! `fairlead replay`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use fairlead_bench::machine;
use fairlead_sim::replay;

use super::out;

const EXAMPLES: &str = "\
Examples:
  every policy on a public trace, three times as fast as recorded, on 8 instances:
    fairlead replay --trace conversation_trace.jsonl.gz --policy all --speed 3
  four gateways whose state is 10 ms old:
    fairlead replay --trace mooncake_conversation_trace --policy prefix-cache,least-request --gateways 4 --state-delay 10
  coding sessions on larger caches:
    fairlead replay --trace claude_code_sessions_200 --policy all --sessions 300 --kv-blocks 6000
  an instance dies after a minute and is back after two:
    fairlead replay --trace sample.jsonl --policy all --fail 0@60:120

A trace is a file, or the beginning of the name of a file in the folder FAIRLEAD_TRACES or in perf/data.
Times are simulated: compare policies with one another, not seconds with those of a real engine.";

/// Plays a recorded trace through simulated engines in virtual time, and compares policies by what becomes of it.
#[derive(Args)]
#[group(skip)]
#[command(after_help = EXAMPLES)]
pub struct ReplayArgs {
    #[command(flatten)]
    replay: replay::ReplayArgs,
}

pub fn run(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    let comparison = replay::compare(&args.replay)?;
    out::line(&comparison);
    if let Some(path) = &args.replay.json {
        let text = format!("{:#}\n", comparison.to_json(&machine::describe()));
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
