//! `fairlead agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Args;
use fairlead_agent::{Agent, AgentOptions, HandoffChoice, KvEvents, TransferOptions};
use fairlead_config::{Config, HostPort, Label, Setting};
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
    /// Address at which gateways reach the engine, `https://HOST:PORT` over TLS; default is the engine URL's
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
    /// A label of the instance, for filters; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// The engine's part in hand-offs between engines: auto (what it says), both, prefill or decode
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// How it hands KV to other engines: auto (what it says), none, or a name such as nixl-pull or sglang
    #[arg(long, value_name = "NAME")]
    handoff: Option<String>,
    /// Bootstrap server of its connector, as engines and this agent reach it
    #[arg(long, value_name = "HOST:PORT")]
    bootstrap: Option<String>,
    /// The connector's own socket, as engines reach it
    #[arg(long, value_name = "HOST:PORT")]
    peer: Option<String>,
    /// A further port of the connector: notices (MoRI-IO), allocation (LMCache's PD backend)
    #[arg(long, value_name = "PORT")]
    peer_port: Option<u16>,
    /// Engines hand over to each other only where this is equal
    #[arg(long, value_name = "TEXT")]
    transfer_domain: Option<String>,
    /// KV bytes of one token, of which the time of a transfer follows
    #[arg(long, value_name = "BYTES")]
    kv_bytes_per_token: Option<u32>,
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
    let label = |text: &String| {
        Label::parse(text).ok_or_else(|| anyhow!("--label {text:?}: {} is possible", Label::allowed()))
    };
    let given = args.labels.iter().map(label).collect::<anyhow::Result<Vec<_>>>()?;
    let labels = if given.is_empty() { section.labels.clone() } else { given };
    options.labels = labels.into_iter().map(|label| (label.key, label.value)).collect();
    let part = args.role.as_deref().unwrap_or(section.role.as_str());
    let handoff = args.handoff.as_deref().unwrap_or(section.handoff.as_str());
    let place = |place: &Option<HostPort>| place.as_ref().map(|place| place.as_str().to_owned());
    options.transfer = TransferOptions {
        role: TransferOptions::parse_role(part).map_err(|why| anyhow!("--role {why}"))?,
        handoff: HandoffChoice::parse(handoff).map_err(|why| anyhow!("--handoff {why}"))?,
        bootstrap: args.bootstrap.or_else(|| place(&section.bootstrap)),
        peer: args.peer.or_else(|| place(&section.peer)),
        peer_port: args.peer_port.or(section.peer_port),
        domain: args.transfer_domain.or_else(|| section.transfer_domain.clone()),
        bytes_per_token: args.kv_bytes_per_token.or(section.kv_bytes_per_token),
    };
    options.intervals.scrape_busy = section.scrape_busy;
    options.intervals.scrape_idle = section.scrape_idle;
    Ok(options)
}
