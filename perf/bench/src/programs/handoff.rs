//! What a request costs the gateway whose prompt is computed on one engine and its answer on another, beside one that an
//! engine serves whole: processor time of the shard's thread. Same gateway, same engines, same requests in turn; only the
//! policy that requests ask for differs.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use fairlead_dataplane::{ControlOptions, ControlledGateway, GatewayOptions, start_controlled};
use fairlead_replication::ReplicaConfig;
use fairlead_sim::{HandoffOptions, Host, SimOptions};
use fairlead_transport::LinkOptions;
use fairlead_wire::msg::{Handoff, InstanceInfo, ServingRole, Transfer};

use super::{Options, say};
use crate::kit::sheet::{Metric, Sheet};
use crate::kit::stats::median;
use crate::load::{LoadArgs, run as load};

const CPU: Metric = Metric::new("shard_cpu_us", "µs/request");
/// What a request served apart may take, over one served whole.
const LIMIT: f64 = 2.2;
/// Engines, all of which do both.
const ENGINES: usize = 4;
/// So much faster than a card the engines are: they are not what is measured.
const SPEED: f64 = 1e6;

/// A request: its name, the tokens of its message and of its answer, and whether that is streamed.
const CASES: [(&str, u32, u32, bool); 3] = [
    ("1,000 tokens, 16 at once", 1_000, 16, false),
    ("1,000 tokens, 16 streamed", 1_000, 16, true),
    ("8,000 tokens, 128 streamed", 8_000, 128, true),
];
/// One leg after the other, both at once, and one that says nothing in the body.
const HANDOFFS: [Handoff; 3] = [Handoff::NixlPull, Handoff::Sglang, Handoff::SharedStore];

#[derive(Parser)]
struct Load {
    #[command(flatten)]
    args: LoadArgs,
}

/// Runs the comparison.
///
/// # Errors
/// The fleet does not start, a request fails, or one is not served as asked.
pub fn run(options: &Options, sheet: &mut Sheet) -> anyhow::Result<()> {
    let (rounds, requests) = if options.quick { (3, 300) } else { (9, 2_000) };
    let mut missed = Vec::new();
    for handoff in HANDOFFS {
        let fleet = Fleet::start(handoff)?;
        for (name, prompt, answer, stream) in CASES {
            let case = format!("{handoff}, {name}", handoff = handoff.as_str());
            say(&format!("{case} ..."));
            let mut ratios = Vec::new();
            let round = |policy: &str, requests: u64| fleet.ask(policy, requests, prompt, answer, stream);
            for policy in ["cost", "pd-split"] {
                round(policy, requests / 4)?;
            }
            for _ in 0..rounds {
                let (whole, apart) = (round("cost", requests)?, round("pd-split", requests)?);
                sheet.ours(&case, CPU, apart);
                sheet.baseline(&case, CPU, "served whole", whole);
                ratios.push(apart / whole);
            }
            let ratio = median(&ratios);
            sheet.note(format!("{case}: median of the rounds' ratios {ratio:.2} (at most {LIMIT} wanted)"));
            if ratio > LIMIT {
                missed.push(case);
            }
        }
    }
    ensure!(!options.check || missed.is_empty(), "above {LIMIT}: {}", missed.join("; "));
    Ok(())
}

/// A gateway of one shard and engines, in this process.
struct Fleet {
    gateway: Option<ControlledGateway>,
    shard: String,
    runtime: tokio::runtime::Runtime,
    _engines: Vec<(fairlead_sim::Handle, Host)>,
}

impl Fleet {
    fn start(handoff: Handoff) -> anyhow::Result<Self> {
        let (mut engines, mut instances) = (Vec::new(), Vec::new());
        for number in 0..ENGINES {
            let host = Host::new()?;
            let name = format!("sim-{number}");
            let engine = host.start(SimOptions {
                name: name.clone(),
                models: vec!["m".to_owned()],
                speed: SPEED,
                transfer: Some(HandoffOptions { latency: Duration::ZERO, ..HandoffOptions::new(handoff) }),
                role: ServingRole::Both,
                ..SimOptions::default()
            })?;
            let address = engine.addr().to_string();
            let transfer = Transfer { bootstrap: Some(address.clone()), ..Transfer::new(handoff) };
            instances
                .push(InstanceInfo { transfer: Some(transfer), ..InstanceInfo::new(&name, &address, ["m"]) });
            engines.push((engine, host));
        }
        let before = shards()?;
        let options = GatewayOptions { shards: 1, pin: false, ..GatewayOptions::default() };
        let control = ControlOptions {
            scheduler: None,
            name: "gateway".into(),
            admin: None,
            instances,
            snapshot_wait: Duration::ZERO,
            replica: ReplicaConfig::default(),
            link: LinkOptions::default(),
        };
        let gateway = start_controlled(options, control)?;
        let shard = shards()?.into_iter().find(|thread| !before.contains(thread));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let shard = shard.context("no thread of a shard")?;
        Ok(Self { gateway: Some(gateway), shard, runtime, _engines: engines })
    }

    fn url(&self) -> String {
        let addr: Option<SocketAddr> = self.gateway.as_ref().map(|gateway| gateway.gateway().addr());
        addr.map(|addr| format!("http://{addr}")).unwrap_or_default()
    }

    /// Processor time of the shard for each of so many requests, microseconds.
    fn ask(
        &self,
        policy: &str,
        requests: u64,
        prompt: u32,
        answer: u32,
        stream: bool,
    ) -> anyhow::Result<f64> {
        let (url, header) = (self.url(), format!("routing-strategy: {policy}"));
        let (n, prompt, answer) = (requests.to_string(), prompt.to_string(), answer.to_string());
        let stream = stream.to_string();
        let args = Load::try_parse_from([
            "load",
            "--url",
            &url,
            "--model",
            "m",
            "--header",
            &header,
            "--concurrency",
            "8",
            "--requests",
            &n,
            "--user-tokens",
            &prompt,
            "--system-tokens",
            "0",
            "--output-tokens",
            &answer,
            "--stream",
            &stream,
        ])?
        .args;
        let before = cpu_us(&self.shard)?;
        let report = self.runtime.block_on(load(&args))?;
        let took = cpu_us(&self.shard)? - before;
        ensure!(report.failed() == 0 && report.unfinished == 0, "requests failed: {report}");
        Ok(took / requests as f64)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.drain(Duration::from_secs(1));
        }
    }
}

/// The threads of this process that are shards, as folders of `/proc`.
fn shards() -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task").context("no /proc")? {
        let folder = entry?.path();
        let name = std::fs::read_to_string(folder.join("comm")).unwrap_or_default();
        if name.starts_with("shard-") {
            found.push(folder.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// Time that a thread has run, microseconds.
fn cpu_us(thread: &str) -> anyhow::Result<f64> {
    let file = format!("{thread}/schedstat");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let ran = text.split(' ').next().and_then(|text| text.parse::<f64>().ok());
    Ok(ran.with_context(|| format!("{file} says {text}"))? / 1e3)
}
