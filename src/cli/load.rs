//! `fairlead load`.

use std::process::ExitCode;

use clap::Args;
use fairlead_bench::load;

use super::{out, signals};

const EXAMPLES: &str = "\
Examples:
  64 requests at any time, for half a minute:
    fairlead load --concurrency 64 --duration 30
  200 conversations with think time, 20 requests/s:
    fairlead load --conversations 200 --turns 6 --think 5 --rate 20
  a recorded hour in 20 minutes, over two gateways:
    fairlead load --trace conversation_trace.jsonl.gz --speed 3 --url http://a --url http://b
  coding sessions, 16 at any time, think times a tenth:
    fairlead load --trace sessions.jsonl.gz --concurrency 16 --speed 10 --max-input 120000

The hit ratio is what the answers' usage says (prompt_tokens_details.cached_tokens), beside that
of one cache without limits on the same load.";

/// Sends load and reports TTFT, TPOT, latency, throughput, errors and the cache hit ratio, beside the ratio that one
/// cache without limits would have had on the same load.
#[derive(Args)]
#[group(skip)]
#[command(after_help = EXAMPLES)]
pub struct LoadArgs {
    #[command(flatten)]
    load: load::LoadArgs,
}

pub fn run(args: LoadArgs) -> anyhow::Result<ExitCode> {
    let report = signals::runtime(1)?.block_on(load::run(&args.load))?;
    out::line(&report);
    let failed = report.failed() > 0 && args.load.fail_on_error;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
