//! What a request costs the gateway whose prompt is computed on one engine and its answer on another, beside one that an
//! engine serves whole: processor time of the shard's thread. Same gateway, engines alike, same requests in turn; only the
//! model that requests ask for differs, and the policy.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use fairlead_dataplane::{ControlOptions, ControlledGateway, GatewayOptions, start_controlled};
use fairlead_replication::ReplicaConfig;
use fairlead_sim::{EngineKind, HandoffOptions, Host, SimOptions};
use fairlead_transport::LinkOptions;
use fairlead_wire::msg::{Handoff, InstanceInfo, ServingRole, Transfer};

use super::{Options, say};
use crate::kit::sheet::{Metric, Sheet};
use crate::kit::stats::median;
use crate::load::{LoadArgs, run as load};

const CPU: Metric = Metric::new("shard_cpu_us", "µs/request");
/// What a request served apart may take, over one served whole.
const LIMIT: f64 = 2.2;
/// Engines that serve requests whole, as many that prefill and as many that decode.
const ENGINES: usize = 2;
/// So much faster than a card the engines are, which are not what is measured. Their time limits are as much shorter.
const SPEED: f64 = 1e3;

/// A request: its name, the tokens of its message and of its answer, and whether that is streamed.
const CASES: [(&str, u32, u32, bool); 3] = [
    ("1,000 tokens in, 16 out", 1_000, 16, false),
    ("1,000 in, 16 out, streamed", 1_000, 16, true),
    ("8,000 in, 128 out, streamed", 8_000, 128, true),
];
/// The same arrivals for both ways: what the bar is about.
const RATE: Traffic = Traffic { name: "300/s", option: "--rate", value: "300" };
/// As fast as it goes. What is served apart takes longer, so that less of it is under way at a time, and the work of one
/// wake-up is shared by fewer requests.
const BUSY: Traffic = Traffic { name: "64 at once", option: "--concurrency", value: "64" };
/// One leg after the other, both at once, and one that says nothing in the body.
const HANDOFFS: [Handoff; 3] = [Handoff::NixlPull, Handoff::Sglang, Handoff::SharedStore];

/// The model and the policy that requests ask for.
struct Way {
    model: &'static str,
    policy: &'static str,
}

const WHOLE: Way = Way { model: "whole", policy: "cost" };
const APART: Way = Way { model: "apart", policy: "pd-split" };

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
    let (rounds, requests) = if options.quick { (3, 150) } else { (5, 600) };
    let mut missed = Vec::new();
    for handoff in HANDOFFS {
        let fleet = Fleet::start(handoff)?;
        let cases = CASES.into_iter().flat_map(|case| [(case, RATE), (case, BUSY)]);
        for ((name, prompt, answer, stream), traffic) in cases {
            let case = format!("{handoff}, {name}, {load}", handoff = handoff.as_str(), load = traffic.name);
            say(&format!("{case} ..."));
            let requests = if traffic == BUSY { requests * 3 } else { requests };
            let shape = Shape { prompt, answer, stream, traffic };
            for way in [&WHOLE, &APART] {
                fleet.ask(way, requests / 4, &shape)?;
            }
            let mut ratios = Vec::new();
            for _ in 0..rounds {
                let (whole, apart) =
                    (fleet.ask(&WHOLE, requests, &shape)?, fleet.ask(&APART, requests, &shape)?);
                sheet.ours(&case, CPU, apart);
                sheet.baseline(&case, CPU, "served whole", whole);
                ratios.push(apart / whole);
            }
            let ratio = median(&ratios);
            let bar = if traffic == RATE { format!(" (at most {LIMIT} wanted)") } else { String::new() };
            sheet.note(format!("{case}: median of the rounds' ratios {ratio:.2}{bar}"));
            if traffic == RATE && ratio > LIMIT {
                missed.push(case);
            }
        }
    }
    if options.check && !missed.is_empty() {
        say(&sheet.table());
        bail!("above {LIMIT}: {}", missed.join("; "));
    }
    Ok(())
}

/// How requests arrive.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Traffic {
    name: &'static str,
    option: &'static str,
    value: &'static str,
}

/// Requests of one kind.
struct Shape {
    /// Tokens of the message.
    prompt: u32,
    /// Tokens of the answer.
    answer: u32,
    stream: bool,
    traffic: Traffic,
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
        let engine = if handoff == Handoff::Sglang { EngineKind::Sglang } else { EngineKind::Vllm };
        let parts = [ServingRole::Both, ServingRole::Prefill, ServingRole::Decode];
        for (number, role) in parts.into_iter().flat_map(|role| [role; ENGINES]).enumerate() {
            let host = Host::new()?;
            let name = format!("sim-{number}");
            let whole = role == ServingRole::Both;
            let model = if whole { WHOLE.model } else { APART.model };
            let sim = host.start(SimOptions {
                engine,
                name: name.clone(),
                models: vec![model.to_owned()],
                speed: SPEED,
                transfer: (!whole)
                    .then(|| HandoffOptions { latency: Duration::ZERO, ..HandoffOptions::new(handoff) }),
                role,
                ..SimOptions::default()
            })?;
            let address = sim.addr().to_string();
            let transfer =
                (!whole).then(|| Transfer { bootstrap: Some(address.clone()), ..Transfer::new(handoff) });
            instances.push(InstanceInfo { transfer, role, ..InstanceInfo::new(&name, &address, [model]) });
            engines.push((sim, host));
        }
        let before = shards()?;
        let options = GatewayOptions { shards: 1, pin: false, ..GatewayOptions::default() };
        let control = ControlOptions {
            scheduler: None,
            name: "gateway".into(),
            admin: None,
            instances,
            snapshot_wait: Duration::from_secs(5),
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
    fn ask(&self, way: &Way, requests: u64, shape: &Shape) -> anyhow::Result<f64> {
        let (url, header) = (self.url(), format!("routing-strategy: {}", way.policy));
        let (n, prompt, answer) = (requests.to_string(), shape.prompt.to_string(), shape.answer.to_string());
        let stream = shape.stream.to_string();
        let args = Load::try_parse_from([
            "load",
            "--url",
            &url,
            "--model",
            way.model,
            "--header",
            &header,
            shape.traffic.option,
            shape.traffic.value,
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
