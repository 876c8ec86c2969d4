//! `fairlead check`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use fairlead_config::Config;

use super::out;

/// Reads a configuration file as the processes would and says what is wrong with it, or what it means.
#[derive(Args)]
pub struct CheckArgs {
    /// The file
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
}

pub fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config).with_context(|| args.config.display().to_string())?;
    let gateway = &config.gateway;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".into());
    out::line(format_args!("{}: ok", args.config.display()));
    out::line(format_args!(
        "gateway:   listen {}, admin {}, policy {}, scheduler {}, {} fixed instances",
        gateway.listen,
        or_none(gateway.admin.map(|a| a.to_string())),
        gateway.policy,
        or_none(gateway.scheduler.as_ref().map(|a| a.as_str().to_owned())),
        gateway.instances.len()
    ));
    out::line(format_args!(
        "scheduler: listen {} (udp), admin {}, index {} bytes",
        config.scheduler.listen,
        or_none(config.scheduler.admin.map(|a| a.to_string())),
        config.scheduler.index_bytes.bytes()
    ));
    out::line(format_args!(
        "agent:     engine {}, scheduler {}",
        or_none(config.agent.engine.as_ref().map(|e| e.to_string())),
        or_none(config.agent.scheduler.as_ref().map(|a| a.as_str().to_owned()))
    ));
    for (role, dir) in [
        ("gateway", config.gateway_identity()),
        ("scheduler", config.scheduler_identity()),
        ("agent", config.agent_identity()),
    ] {
        let Some(dir) = dir else { continue };
        match fairlead_transport::Identity::load(dir) {
            Ok(identity) => {
                out::line(format_args!("identity:  {role}: {} ({})", identity.peer(), dir.display()))
            }
            Err(error) => return Err(anyhow::Error::new(error).context(format!("{role}.identity"))),
        }
    }
    Ok(ExitCode::SUCCESS)
}
