//! A live fleet in this process, its parts linked as they would be on separate machines: simulated engines with a thread
//! each, an agent for each, a scheduler and a gateway, and what all of it takes of the machine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use fairlead_agent::{Agent, AgentOptions};
use fairlead_dataplane::{
    ControlOptions, ControlledGateway, GatewayOptions, TokenModels, Tokenising, start_controlled,
};
use fairlead_replication::ReplicaConfig;
use fairlead_scheduler::{Scheduler, SchedulerOptions};
use fairlead_sim::trace::{BARE_TEMPLATE, tokenizer};
use fairlead_sim::{Host, KvEvents, Profile, SimOptions};
use fairlead_tokens::TokenModel;
use fairlead_transport::{ANY_NAME, Authority, LinkOptions};
use fairlead_wire::msg::{CacheSource, Role};
use tokio::runtime::Runtime;

/// How long the fleet may take until it serves.
const START: Duration = Duration::from_secs(30);
/// Longest prompt that the gateway reads on its shard, bytes.
const LONGEST: usize = 4 << 20;

/// The fleet. Ends with it.
pub(super) struct Fleet {
    gateway: Option<ControlledGateway>,
    agents: Vec<fairlead_agent::Handle>,
    scheduler: Option<fairlead_scheduler::Handle>,
    engines: Vec<(fairlead_sim::Handle, Host)>,
    runtime: Runtime,
}

impl Fleet {
    /// Starts it and waits until every engine's cache is known.
    ///
    /// # Errors
    /// A part does not start.
    pub fn start(
        engines: usize,
        policy: &str,
        speed: f64,
        kv_blocks: u32,
        block: u32,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let model = Arc::new(TokenModel::from_parts(&tokenizer(), None, Some(BARE_TEMPLATE))?);
        let authority = Authority::new("local")?;
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut options = SchedulerOptions::new(loopback, authority.issue(Role::Scheduler, "scheduler")?);
        options.block_tokens = block;
        let scheduler = runtime.block_on(Scheduler::start(options))?;
        let mut fleet =
            Self { gateway: None, agents: Vec::new(), scheduler: None, engines: Vec::new(), runtime };
        let address = scheduler.addr().to_string();
        fleet.scheduler = Some(scheduler);

        let identity = authority.issue(Role::Agent, ANY_NAME)?;
        for number in 0..engines {
            let host = Host::new()?;
            let engine = host.start(SimOptions {
                name: format!("sim-{number}"),
                profile: Profile::h200_8b(),
                speed,
                block_tokens: block,
                kv_blocks: Some(kv_blocks),
                max_waiting: u32::MAX,
                tokenizer: Some(model.clone()),
                kv_events: Some(KvEvents::default()),
                ..SimOptions::default()
            })?;
            let mut options = AgentOptions::new(engine.url(), address.clone(), identity.clone());
            options.name = Some(format!("sim-{number}"));
            fleet.engines.push((engine, host));
            let _context = fleet.runtime.enter();
            fleet.agents.push(Agent::start(options)?);
        }

        let identity = authority.issue(Role::Gateway, "gateway")?;
        let mut token_models = TokenModels::default();
        token_models.add(None, model);
        let mut options = GatewayOptions {
            shards: 1,
            pin: false,
            token_models,
            cluster_seed: identity.cluster_seed(),
            // A helper thread would compete for the same processors.
            tokenising: Tokenising { in_line_body: LONGEST, in_line_text: LONGEST, ..Tokenising::default() },
            ..GatewayOptions::default()
        };
        options.routing.policy = policy.to_owned();
        let control = ControlOptions {
            scheduler: Some((address, identity)),
            name: "gateway".into(),
            admin: None,
            instances: Vec::new(),
            snapshot_wait: START,
            replica: ReplicaConfig::default(),
            link: LinkOptions::default(),
        };
        fleet.gateway = Some(start_controlled(options, control)?);
        fleet.wait(engines)?;
        Ok(fleet)
    }

    fn wait(&self, engines: usize) -> anyhow::Result<()> {
        let gateway = self.gateway.as_ref().context("no gateway")?;
        let shared = gateway.gateway().shared();
        let until = Instant::now() + START;
        let ready = || {
            let table = shared.fleet.table();
            table.entries.iter().flatten().filter(|e| e.ready && e.cache == CacheSource::Events).count()
        };
        while ready() < engines {
            ensure!(Instant::now() < until, "{} of {engines} engines ready after {START:?}", ready());
            std::thread::sleep(Duration::from_millis(5));
        }
        shared.set_fleet_known(true);
        Ok(())
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        self.gateway.as_ref().map(|g| format!("http://{}", g.gateway().addr())).unwrap_or_default()
    }

    /// Waits for something on the fleet's runtime.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Seconds by which engines' steps came too late and that they did not catch up with.
    pub fn behind(&self) -> f64 {
        self.engines.iter().map(|(engine, _)| engine.control().state().behind).sum()
    }

    /// The processor time used so far.
    pub fn used(&self) -> Used {
        Used::now()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.drain(Duration::from_secs(1));
        }
        let (agents, scheduler) = (std::mem::take(&mut self.agents), self.scheduler.take());
        self.runtime.block_on(async {
            for agent in agents {
                agent.shutdown().await;
            }
            if let Some(scheduler) = scheduler {
                scheduler.shutdown().await;
            }
        });
    }
}

/// Processor time, as `/proc` tells it; zeros where there is none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    own: u64,
    busy: u64,
    whole: u64,
}

/// Shares of all the machine's processors.
pub(super) struct Shares {
    /// Of this process.
    pub own: f64,
    /// Of everybody.
    pub all: f64,
}

impl Used {
    fn now() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let numbers = |text: &str| -> Vec<u64> { text.split(' ').filter_map(|n| n.parse().ok()).collect() };
        // user, nice, system, idle, iowait, irq, softirq, steal; guests count in user already.
        let stat = read("/proc/stat");
        let all = numbers(stat.lines().next().unwrap_or_default());
        let whole: u64 = all.iter().take(8).sum();
        let idle: u64 = all.iter().skip(3).take(2).sum();
        // Behind the name, which may hold blanks: the state, ten numbers, then user and system time.
        let process = read("/proc/self/stat");
        let behind = process.rsplit(')').next().unwrap_or_default().trim_start();
        let own: u64 = behind.split(' ').skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        Self { own, busy: whole - idle.min(whole), whole }
    }

    /// What was used since.
    pub fn since(&self, before: &Self) -> Shares {
        let whole = self.whole.saturating_sub(before.whole).max(1) as f64;
        let share = |now: u64, then: u64| now.saturating_sub(then) as f64 / whole;
        Shares { own: share(self.own, before.own), all: share(self.busy, before.busy) }
    }
}
