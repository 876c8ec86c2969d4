//! `fairlead up`: everything in one process.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{ArgGroup, Args};
use fairlead_agent::{Agent, AgentOptions};
use fairlead_config::{Config, PolicyText};
use fairlead_dataplane::runtime::Driver;
use fairlead_dataplane::{ControlOptions, ControlledGateway, GatewayOptions, TokenModels, start_controlled};
use fairlead_replication::ReplicaConfig;
use fairlead_scheduler::{Scheduler, SchedulerOptions};
use fairlead_sim::Sim;
use fairlead_transport::{ANY_NAME, Authority, LinkOptions};
use fairlead_wire::msg::Role;

use super::sim::UpSimArgs;
use super::tokenizers::TokenizerArgs;
use super::{gateway, out, signals};

/// How long the ready line waits for the rest of the engines once one is ready.
const GRACE: Duration = Duration::from_secs(1);
/// Engines listed by address in the ready line.
const LISTED: usize = 8;

/// Gateway, scheduler and an agent for each engine in one process, linked as they would be on separate machines. For a
/// single host, for trying out, and for development.
#[derive(Args)]
#[command(group = ArgGroup::new("engines").required(true).multiple(true).args(["engine", "sim"]))]
pub struct UpArgs {
    /// An engine that runs, for example http://127.0.0.1:8000; repeatable. They are named engine-1, engine-2 and so on in
    /// the order given
    #[arg(long, value_name = "URL")]
    engine: Vec<String>,
    #[command(flatten)]
    sim: UpSimArgs,
    /// Where clients connect
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    listen: SocketAddr,
    /// Where /metrics, /healthz, /readyz and /debug/* are served
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDR")]
    admin: SocketAddr,
    /// How an instance is picked: a policy's name, such as cost or prefix-cache, or several with weights, such as
    /// prefix-cache:2,least-request:1; without it what FAIRLEAD_POLICY or ROUTING_ALGORITHM says, else cost
    #[arg(long, value_name = "NAME")]
    policy: Option<PolicyText>,
    /// Shard threads; default is one per core, less one from four cores up
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    shards: Option<u16>,
    /// How shards wait for the kernel: auto, uring or epoll
    #[arg(long, default_value = "auto", value_name = "NAME")]
    driver: Driver,
    #[command(flatten)]
    runtime: gateway::RuntimeArgs,
    /// Prefix of all paths
    #[arg(long, default_value = "", value_name = "PATH")]
    base_path: String,
    #[command(flatten)]
    tokenizers: TokenizerArgs,
}

pub fn run(args: UpArgs) -> anyhow::Result<ExitCode> {
    // The bounds and spelling of a base path are the configuration's.
    let quoted = serde_json::to_string(&args.base_path)?;
    let mut config =
        Config::from_yaml(&format!("gateway: {{base_path: {quoted}}}")).context("--base-path")?;
    config.gateway.policy.clone_from(&args.policy);
    let (mut options, _) = gateway::options(&config)?;
    options.listen = args.listen;
    options.shards = args.shards.map_or(0, usize::from);
    options.driver = args.driver;
    args.runtime.apply(&mut options)?;
    args.tokenizers.add(&mut options.token_models)?;

    let runtime = signals::runtime(2)?;
    let outcome = runtime.block_on(async move {
        let mut stop = signals::Stop::listen()?;
        let parts = Parts::start(&args, &options.token_models).await?;
        let up = tokio::select! {
            up = parts.up(options, &args) => up?,
            () = stop.recv() => None,
        };
        let code = match up {
            Some(gateway) => {
                let ready = tokio::select! {
                    ready = parts.ready(&gateway, &args) => Some(ready),
                    () = stop.recv() => None,
                };
                if let Some(line) = ready {
                    out::line(line);
                    stop.recv().await;
                }
                gateway::drain(gateway, &mut stop).await?
            }
            None => ExitCode::SUCCESS,
        };
        parts.stop().await;
        Ok(code)
    });
    // A gateway that is still starting is not waited for.
    runtime.shutdown_background();
    outcome
}

/// Everything but the gateway.
struct Parts {
    authority: Authority,
    scheduler: fairlead_scheduler::Handle,
    sims: Vec<fairlead_sim::Handle>,
    agents: Vec<fairlead_agent::Handle>,
    engines: Vec<String>,
}

impl Parts {
    async fn start(args: &UpArgs, tokenizers: &TokenModels) -> anyhow::Result<Self> {
        let authority = Authority::new("local")?;
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let identity = authority.issue(Role::Scheduler, "scheduler")?;
        let scheduler = Scheduler::start(SchedulerOptions::new(loopback, identity)).await?;

        let mut sims = Vec::new();
        for number in 0..args.sim.sim.unwrap_or(0) {
            sims.push(Sim::start(args.sim.options(format!("sim-{number}"), tokenizers)?)?);
        }
        let simulated = sims.iter().map(|sim| format!("http://{}", sim.addr()));
        let engines: Vec<String> = args.engine.iter().cloned().chain(simulated).collect();
        let identity = authority.issue(Role::Agent, ANY_NAME)?;
        let mut agents = Vec::new();
        for (number, engine) in engines.iter().enumerate() {
            let mut options = AgentOptions::new(engine, scheduler.addr().to_string(), identity.clone());
            options.name = Some(match number.checked_sub(args.engine.len()) {
                Some(number) => format!("sim-{number}"),
                None => format!("engine-{}", number + 1),
            });
            agents.push(Agent::start(options).with_context(|| format!("--engine {engine}"))?);
        }
        Ok(Self { authority, scheduler, sims, agents, engines })
    }

    /// Starts the gateway. `None` never comes: it stands for a signal in the caller's choice.
    async fn up(
        &self,
        mut options: GatewayOptions,
        args: &UpArgs,
    ) -> anyhow::Result<Option<ControlledGateway>> {
        let identity = self.authority.issue(Role::Gateway, "gateway")?;
        options.cluster_seed = identity.cluster_seed();
        let control = ControlOptions {
            scheduler: Some((self.scheduler.addr().to_string(), identity)),
            name: "gateway".into(),
            admin: Some(args.admin),
            instances: Vec::new(),
            snapshot_wait: Duration::from_secs(5),
            replica: ReplicaConfig::default(),
            link: LinkOptions::default(),
        };
        // Starting waits for the state of the fleet; the scheduler on this runtime must go on meanwhile.
        let gateway = tokio::task::spawn_blocking(move || start_controlled(options, control)).await??;
        Ok(Some(gateway))
    }

    /// Waits until the fleet can serve, and gives the line that says so.
    async fn ready(&self, gateway: &ControlledGateway, args: &UpArgs) -> String {
        let shared = gateway.gateway().shared();
        let fleet = &shared.fleet;
        let mut first: Option<Instant> = None;
        let mut complained = Instant::now();
        loop {
            let ready = fleet.table().ready();
            if ready > 0 {
                let since = *first.get_or_insert_with(Instant::now);
                if ready >= self.engines.len() {
                    // There are no others: what they do not serve does not exist.
                    shared.set_fleet_known(true);
                    break;
                }
                if since.elapsed() > GRACE {
                    break;
                }
            }
            if complained.elapsed() > Duration::from_secs(5) {
                complained = Instant::now();
                for (engine, agent) in self.engines.iter().zip(&self.agents) {
                    let state = agent.state().borrow().clone();
                    if let Some(reason) = state.reason.filter(|_| !state.ready) {
                        tracing::info!(%engine, %reason, "waiting for an engine");
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let models: Vec<String> = fleet.table().model_names().iter().map(ToString::to_string).collect();
        let engines: Vec<&str> = self.engines.iter().map(|e| e.trim_start_matches("http://")).collect();
        let engines = if engines.len() > LISTED { engines.len().to_string() } else { engines.join(",") };
        let url = format!("http://{}{}", gateway.gateway().addr(), args.base_path);
        let admin = gateway.admin_addr().map(|addr| format!(" admin=http://{addr}")).unwrap_or_default();
        let model = models.first().map_or("MODEL", String::as_str);
        format!(
            "ready: {url} models={} engines={engines} policy={} runtime={} driver={}{admin} try: \
             curl -N {url}/v1/chat/completions -H 'content-type: application/json' \
             -d '{{\"model\":\"{model}\",\"stream\":true,\"max_tokens\":32,\
             \"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'",
            models.join(","),
            shared.policy(),
            gateway.gateway().runtime(),
            gateway.gateway().driver()
        )
    }

    async fn stop(self) {
        for agent in self.agents {
            agent.shutdown().await;
        }
        self.scheduler.shutdown().await;
        for sim in self.sims {
            sim.shutdown();
        }
    }
}
