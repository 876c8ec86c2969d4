//! `fairlead load`.

use std::process::ExitCode;

use clap::Args;
use fairlead_bench::load;

use super::{out, signals};

/// Sends load and reports TTFT, TPOT, latency, throughput, errors and the cache hit ratio, beside the ratio that one
/// cache without limits would have had on the same load.
///
/// Closed loop: --concurrency 64 --duration 30. Open loop: --rate 200 --duration 30. Conversations with think time:
/// --conversations 200 --turns 6 --think 5 --rate 20.
#[derive(Args)]
#[group(skip)]
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
