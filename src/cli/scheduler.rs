//! `fairlead scheduler`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use fairlead_config::{Config, PrefillDecode};
use fairlead_replication::LeanConfig;
use fairlead_scheduler::{Scheduler, SchedulerOptions};
use fairlead_wire::msg::Role;

use super::{config, identity, out, signals};

/// The one place that sums up the fleet. Agents and gateways connect to it over QUIC; it keeps no file and may be
/// restarted at any time: gateways serve on and tell it what they know.
#[derive(Args)]
pub struct SchedulerArgs {
    /// Configuration file; its `scheduler:` section is read
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub fn run(args: SchedulerArgs) -> anyhow::Result<ExitCode> {
    let config = config::load(&args.config)?;
    let options = options(&config)?;
    signals::runtime(2)?.block_on(async {
        let mut stop = signals::Stop::listen()?;
        let scheduler = Scheduler::start(options).await?;
        let admin = scheduler.admin_addr().map(|addr| format!(" admin=http://{addr}")).unwrap_or_default();
        out::line(format_args!("ready: scheduler quic={}{admin}", scheduler.addr()));
        stop.recv().await;
        scheduler.shutdown().await;
        Ok(ExitCode::SUCCESS)
    })
}

fn options(config: &Config) -> anyhow::Result<SchedulerOptions> {
    let section = &config.scheduler;
    let dir = config
        .scheduler_identity()
        .context("scheduler.identity: needed: the folder that `fairlead certs` has made for the scheduler")?;
    let identity = identity::load("scheduler.identity", dir, Role::Scheduler)?;
    let mut options = SchedulerOptions::new(section.listen, identity);
    options.admin = section.admin;
    options.index_bytes = section.index_bytes.bytes();
    options.heartbeat = section.heartbeat;
    options.block_tokens = section.block_tokens;
    options.lean = lean(&section.prefill_decode);
    Ok(options)
}

fn lean(section: &PrefillDecode) -> LeanConfig {
    LeanConfig {
        enabled: section.enabled,
        tpot_us: section.target_tpot.as_micros() as f32,
        short_answer: section.short_answer_tokens as f32,
        dwell_us: u64::try_from(section.dwell.as_micros()).unwrap_or(u64::MAX),
        ..LeanConfig::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail so")]
mod tests {
    use super::*;

    #[test]
    fn what_the_section_says_is_how_roles_lean() {
        let of = |text: &str| lean(&Config::from_yaml(text).unwrap().scheduler.prefill_decode);
        assert_eq!(of("scheduler: {}"), LeanConfig::default());
        let text = "scheduler: {prefill_decode: {enabled: false, target_tpot: 20ms, short_answer_tokens: 9, dwell: 1s}}";
        let want = LeanConfig {
            enabled: false,
            tpot_us: 20_000.0,
            short_answer: 9.0,
            dwell_us: 1_000_000,
            ..LeanConfig::default()
        };
        assert_eq!(of(text), want);
    }
}
