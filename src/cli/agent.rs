//! `fairlead agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Args;
use fairlead_agent::{Agent, AgentOptions, KvEvents};
use fairlead_config::Config;
use fairlead_wire::msg::Role;

use super::{config, identity, out, signals};

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
    /// Unique name of the instance, which clients are told; default is the certificate's, else the host's name and six
    /// digits that follow from the advertised address
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where to serve /metrics and /healthz
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The engine's KV-cache events: auto, off, or tcp://HOST:PORT for each rank with commas between
    #[arg(long, value_name = "ENDPOINT")]
    kv_events: Option<String>,
    /// Where the engine repeats events that were missed, in the same form
    #[arg(long, value_name = "ENDPOINT")]
    kv_replay: Option<String>,
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

fn options(args: AgentArgs) -> anyhow::Result<AgentOptions> {
    let config = match &args.config {
        Some(file) => config::load(file)?,
        None => Config::default(),
    };
    let section = &config.agent;
    let missing =
        |key: &str, flag: &str| anyhow!("{flag} is needed, or agent.{key} in a file given by --config");
    let engine = args
        .engine
        .or_else(|| section.engine.as_ref().map(ToString::to_string))
        .ok_or_else(|| missing("engine", "--engine"))?;
    let scheduler = args
        .scheduler
        .or_else(|| section.scheduler.as_ref().map(|a| a.as_str().to_owned()))
        .ok_or_else(|| missing("scheduler", "--scheduler"))?;
    let dir = args
        .identity
        .or_else(|| config.agent_identity().cloned())
        .ok_or_else(|| missing("identity", "--identity"))?;
    let identity = identity::load("the agent's identity", &dir, Role::Agent)?;
    let mut options = AgentOptions::new(engine, scheduler, identity);
    options.name = args.name.or_else(|| section.name.clone());
    options.advertise = args.advertise.or_else(|| section.advertise.as_ref().map(|a| a.as_str().to_owned()));
    // Several agents on one machine are common, so a command line without --listen opens no port.
    options.listen = args.listen.or(if args.config.is_some() { section.listen } else { None });
    let events = args.kv_events.as_deref().unwrap_or(section.kv_events.as_str());
    let replay = args.kv_replay.as_deref().or(section.kv_replay.as_ref().map(|replay| replay.as_str()));
    // Endpoints in a file mean nothing beside others on the command line.
    let replay = if args.kv_events.is_some() { args.kv_replay.as_deref() } else { replay };
    options.kv_events = KvEvents::parse(events, replay).map_err(|why| anyhow!("--kv-events: {why}"))?;
    options.kv_bytes = section.kv_bytes.bytes();
    options.intervals.scrape_busy = section.scrape_busy;
    options.intervals.scrape_idle = section.scrape_idle;
    Ok(options)
}
