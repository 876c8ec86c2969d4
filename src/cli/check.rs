//! `fairlead check`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use fairlead_transport::Identity;
use fairlead_wire::msg::Role;

use super::{config, gateway, identity, out, routing};

/// Reads a configuration file as the processes would and says what is wrong with it, or what it means.
#[derive(Args)]
pub struct CheckArgs {
    /// The file
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
}

pub fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let config = config::load(&args.config)?;
    // One folder for all sections is an identity of one role: that of the process which reads the file.
    let common = config.identity.as_ref();
    if common.is_none() {
        // What only its start would find out.
        gateway::options(&config)?.0.runtime.check().context("gateway.runtime")?;
    }
    gateway::check_tls(&config.gateway)?;
    let roles = [
        ("gateway", config.gateway_identity(), Role::Gateway),
        ("scheduler", config.scheduler_identity(), Role::Scheduler),
        ("agent", config.agent_identity(), Role::Agent),
    ];
    let mut identities = Vec::new();
    for (name, dir, role) in roles {
        let Some(dir) = dir else { continue };
        let key = format!("{name}.identity");
        let identity = if common == Some(dir) {
            Identity::load(dir).context(key)?
        } else {
            identity::load(&key, dir, role)?
        };
        identities.push((name, identity, dir));
    }
    let gateway = &config.gateway;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".into());
    out::line(format_args!("{}: ok", args.config.display()));
    out::line(format_args!(
        "gateway:   listen {}, tls {}, admin {}, policy {}, scheduler {}, {} fixed instances",
        gateway.listen,
        or_none(gateway.tls.certificate.as_ref().map(|_| gateway.tls.listen.to_string())),
        or_none(gateway.admin.map(|a| a.to_string())),
        routing::policy(gateway)?,
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
    for (name, identity, dir) in identities {
        out::line(format_args!("identity:  {name}: {} ({})", identity.peer(), dir.display()));
    }
    Ok(ExitCode::SUCCESS)
}
