//! `fairlead agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use clap::Args;
use fairlead_agent::{Agent, AgentOptions};
use fairlead_transport::Identity;

use super::{out, signals};

/// Runs beside an engine: waits until it is ready, registers it with the scheduler, watches its health and metrics,
/// and reports them. Everything may also stand in a file's `agent:` section; what is given here wins.
#[derive(Args)]
pub struct AgentArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The engine, for example http://127.0.0.1:8000
    #[arg(long, value_name = "URL")]
    engine: Option<String>,
    /// The scheduler
    #[arg(long, value_name = "HOST:PORT")]
    scheduler: Option<String>,
    /// Folder with certificate and key, as `fairlead certs` writes it
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
    /// Address at which gateways reach the engine; default is the engine URL's
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Unique name of the instance; default is the advertised address
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where to serve /metrics and /healthz
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

pub fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let options = options(args)?;
    let engine = options.engine_url.clone();
    signals::runtime(1)?.block_on(async {
        let mut stop = signals::Stop::listen()?;
        let agent = Agent::start(options)?;
        let admin = agent.admin_addr().map(|addr| format!(" admin=http://{addr}")).unwrap_or_default();
        out::line(format_args!("ready: agent of {engine}{admin}"));
        stop.recv().await;
        agent.shutdown().await;
        Ok(ExitCode::SUCCESS)
    })
}
