//! `fairlead sim`, and the simulated engines of `fairlead up --sim N`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Args;
use fairlead_dataplane::TokenModels;
use fairlead_sim::{
    EngineKind, Faults, HandoffOptions, KvEncoding, KvEvents, OnKvFailure, Profile, Sim, SimOptions,
};
use fairlead_tokens::TokenModel;
use fairlead_wire::msg::{Handoff, ServingRole};

use super::{out, signals};

/// A simulated engine: OpenAI and Anthropic routes, streaming, continuous batching, a block prefix cache, metrics
/// under the real engine's names. `POST /sim/control` makes it fail on demand, `GET /sim/state` shows what reached it.
#[derive(Args)]
pub struct SimArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "ADDR")]
    listen: SocketAddr,
    /// Time until the engine is ready, seconds; until then /health answers 503
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS")]
    startup: f64,
    /// Faults from the start, as the JSON that POST /sim/control takes, for example '{"die_after":3}'
    #[arg(long, value_name = "JSON")]
    faults: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Count and tell tokens as this tokenizer.json has them (or the one in a folder, with the chat template beside it);
    /// by default four bytes of prompt are a token
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// File with the chat template, where it is not the tokenizer's own
    #[arg(long, value_name = "FILE", requires = "tokenizer")]
    chat_template: Option<String>,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    handoff: HandoffArgs,
}

/// Whether and how the cache's changes are told.
#[derive(Args, Clone)]
struct KvArgs {
    /// Publish KV-cache events here, for example tcp://127.0.0.1:5557; port 0 takes a free one
    #[arg(long, value_name = "ENDPOINT", value_parser = endpoint, help_heading = "KV events")]
    kv_events: Option<SocketAddr>,
    /// Where past events can be asked for again [default: a free port beside --kv-events]
    #[arg(long, value_name = "ENDPOINT", value_parser = endpoint, requires = "kv_events", help_heading = "KV events")]
    kv_replay: Option<SocketAddr>,
    /// Events as maps (vLLM from 0.24, SGLang from 0.5.20) or as arrays (before)
    #[arg(long, value_enum, default_value_t, requires = "kv_events", help_heading = "KV events")]
    kv_encoding: KvEncoding,
    /// First frame of each message
    #[arg(
        long,
        default_value = "",
        requires = "kv_events",
        value_name = "TOPIC",
        help_heading = "KV events"
    )]
    kv_topic: String,
    /// Batches kept for those who ask again
    #[arg(
        long,
        default_value_t = 10_000,
        requires = "kv_events",
        value_name = "N",
        help_heading = "KV events"
    )]
    kv_buffer: usize,
    /// Tell blocks found in the cache again as stored, as vLLM does when asked to report in full
    #[arg(long, requires = "kv_events", help_heading = "KV events")]
    kv_tell_reused: bool,
}

impl KvArgs {
    fn options(&self) -> Option<KvEvents> {
        let listen = self.kv_events?;
        Some(KvEvents {
            listen,
            replay: Some(self.kv_replay.unwrap_or(SocketAddr::new(listen.ip(), 0))),
            encoding: self.kv_encoding,
            topic: self.kv_topic.clone(),
            kept: self.kv_buffer,
            tell_reused: self.kv_tell_reused,
        })
    }
}

/// `tcp://HOST:PORT`, where the host is an address or `*`.
fn endpoint(text: &str) -> Result<SocketAddr, String> {
    let place = text.strip_prefix("tcp://").ok_or("only tcp://ADDRESS:PORT is served")?;
    let place = place.strip_prefix('*').map_or_else(|| place.to_owned(), |port| format!("0.0.0.0{port}"));
    place.parse().map_err(|_| format!("{place:?} is not of the form ADDRESS:PORT"))
}

/// The part that the engine plays where prefill and decode are apart. All times pass --speed times faster.
#[derive(Args, Clone)]
#[command(next_help_heading = "Prefill and decode")]
struct HandoffArgs {
    /// Part that the engine plays: prefill, decode or both
    #[arg(long, default_value = "both", value_name = "ROLE", value_parser = role)]
    role: ServingRole,
    /// How KV is handed over: sglang (with --engine sglang), or nixl-pull, nixl-push, mooncake, mori-read, mori-write,
    /// p2p-nccl, shared-store, lmcache-pd or sidecar
    #[arg(long, value_name = "NAME", value_parser = handoff)]
    handoff: Option<Handoff>,
    /// KV bytes of one token; default is the profile's
    #[arg(long, value_name = "BYTES", requires = "handoff")]
    kv_bytes_per_token: Option<u32>,
    /// Bandwidth of a transfer, gigabytes per second
    #[arg(long, default_value_t = 25.0, value_name = "GB/S", requires = "handoff")]
    transfer_gbps: f64,
    /// What a transfer takes besides its bytes
    #[arg(long, default_value = "0.002", value_name = "SECONDS", value_parser = seconds, requires = "handoff")]
    transfer_latency: Duration,
    /// How long KV that nobody has fetched is kept, and how long a decode leg waits for its prefill leg
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = seconds, requires = "handoff")]
    lease: Duration,
    /// How long an SGLang prefill leg waits for the decode side
    #[arg(long, default_value = "300", value_name = "SECONDS", value_parser = seconds, requires = "handoff")]
    bootstrap_timeout: Duration,
    /// How long an SGLang decode leg waits for its KV
    #[arg(long, default_value = "300", value_name = "SECONDS", value_parser = seconds, requires = "handoff")]
    waiting_timeout: Duration,
    /// Lease and waiting time of mooncake
    #[arg(long, default_value = "480", value_name = "SECONDS", value_parser = seconds, requires = "handoff")]
    abort_timeout: Duration,
    /// Engines hand over to each other only where this is equal
    #[arg(long, default_value = "", value_name = "NAME", requires = "handoff")]
    handoff_domain: String,
    /// What a decode leg does when its KV does not come
    #[arg(long, value_enum, default_value_t, requires = "handoff")]
    on_kv_failure: OnKvFailure,
    /// Folder that engines of shared-store have in common; default is a store in this process
    #[arg(long, value_name = "DIR", requires = "handoff")]
    kv_store: Option<PathBuf>,
    /// Where a prefill engine of lmcache-pd tells the router that a transfer has ended
    #[arg(long, value_name = "ENDPOINT", value_parser = endpoint, requires = "handoff")]
    lmcache_proxy: Option<SocketAddr>,
}

impl HandoffArgs {
    fn options(&self, profile: &str) -> anyhow::Result<Option<HandoffOptions>> {
        let Some(handoff) = self.handoff else {
            let alone = self.role == ServingRole::Both;
            return if alone { Ok(None) } else { Err(anyhow!("--role needs --handoff NAME")) };
        };
        Ok(Some(HandoffOptions {
            handoff,
            bytes_per_token: self
                .kv_bytes_per_token
                .unwrap_or_else(|| HandoffOptions::bytes_per_token_of(profile)),
            gigabytes_per_second: self.transfer_gbps,
            latency: self.transfer_latency,
            lease: self.lease,
            bootstrap_timeout: self.bootstrap_timeout,
            waiting_timeout: self.waiting_timeout,
            abort_timeout: self.abort_timeout,
            domain: self.handoff_domain.clone(),
            on_failure: self.on_kv_failure,
            store: self.kv_store.clone(),
            lmcache_proxy: self.lmcache_proxy,
        }))
    }
}

fn role(text: &str) -> Result<ServingRole, String> {
    match text {
        "both" => Ok(ServingRole::Both),
        "prefill" => Ok(ServingRole::Prefill),
        "decode" => Ok(ServingRole::Decode),
        _ => Err("allowed are prefill, decode and both".into()),
    }
}

fn handoff(text: &str) -> Result<Handoff, String> {
    let names = || Handoff::ALL.iter().map(|h| h.as_str()).collect::<Vec<_>>().join(", ");
    Handoff::find(text).ok_or_else(|| format!("allowed are {}", names()))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(number).map_err(|e| e.to_string())
}

/// `P:D`, at least one of each.
fn prefill_decode(text: &str) -> Result<(u16, u16), String> {
    let parts = text.split_once(':').and_then(|(p, d)| Some((p.parse().ok()?, d.parse().ok()?)));
    parts.filter(|(p, d)| *p > 0 && *d > 0).ok_or_else(|| "not of the form P:D, each at least 1".into())
}

/// What a simulated engine is, apart from where it listens.
#[derive(Args, Clone)]
struct EngineArgs {
    /// Engine whose names and routes are spoken
    #[arg(long = "engine", value_enum, default_value_t = EngineKind::Vllm)]
    kind: EngineKind,
    /// Step costs and memory: 8b-h200 or 70b-tp4
    #[arg(long = "profile", default_value = "8b-h200", value_name = "NAME")]
    profile: String,
    /// Model names served, comma-separated
    #[arg(long = "model", default_value = "sim-8b", value_delimiter = ',', value_name = "NAMES")]
    models: Vec<String>,
    /// Adapters of that model, comma-separated
    #[arg(long = "lora", value_delimiter = ',', value_name = "NAMES")]
    loras: Vec<String>,
    /// How many times faster than life the engine computes
    #[arg(long = "speed", default_value_t = 1.0, value_name = "FACTOR")]
    speed: f64,
    /// Tokens in a KV block
    #[arg(long = "block-size", default_value_t = 16, value_name = "TOKENS")]
    block_size: u32,
    /// KV blocks; default is what the profile's memory holds
    #[arg(long = "kv-blocks", value_name = "N")]
    kv_blocks: Option<u32>,
    /// Requests run at once; default is the profile's
    #[arg(long = "max-num-seqs", value_name = "N")]
    max_num_seqs: Option<u32>,
    /// Requests that may wait; beyond, 503
    #[arg(long = "max-waiting", default_value_t = 4096, value_name = "N")]
    max_waiting: u32,
}

impl EngineArgs {
    fn options(&self, listen: SocketAddr) -> anyhow::Result<SimOptions> {
        let mut profile = profile("--profile", &self.profile)?;
        if let Some(seqs) = self.max_num_seqs {
            profile.max_running = seqs;
        }
        Ok(SimOptions {
            listen,
            engine: self.kind,
            models: self.models.clone(),
            loras: self.loras.clone(),
            profile,
            speed: self.speed,
            block_tokens: self.block_size,
            kv_blocks: self.kv_blocks,
            max_waiting: self.max_waiting,
            ..SimOptions::default()
        })
    }
}

/// The traits of simulated engines that `fairlead up` lets one choose.
#[derive(Args, Clone)]
pub struct UpSimArgs {
    /// Number of simulated engines; with --tokenizer they have it too and publish KV-cache events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub sim: Option<u16>,
    /// Their step costs and memory: 8b-h200 or 70b-tp4
    #[arg(long = "sim-profile", default_value = "8b-h200", value_name = "NAME")]
    profile: String,
    /// The model names they serve, comma-separated
    #[arg(long = "sim-model", default_value = "sim-8b", value_delimiter = ',', value_name = "NAMES")]
    models: Vec<String>,
    /// How many times faster than life they compute
    #[arg(long = "sim-speed", default_value_t = 1.0, value_name = "FACTOR")]
    speed: f64,
    /// KV blocks of 16 tokens that each has; default is what the profile's memory holds
    #[arg(long = "sim-kv-blocks", value_name = "N")]
    kv_blocks: Option<u32>,
    /// The first P of them only prefill, the next D only decode; any others do both
    #[arg(long = "sim-pd", value_name = "P:D", requires = "sim", value_parser = prefill_decode)]
    pd: Option<(u16, u16)>,
    /// How they hand KV over [default: nixl-pull with --sim-pd]
    #[arg(long = "sim-handoff", value_name = "NAME", requires = "sim", value_parser = handoff)]
    handoff: Option<Handoff>,
}

impl UpSimArgs {
    /// Options of the engine with that name, which ends in its number, on a free port. With a tokenizer for its model it
    /// has that one too, and tells what its cache holds.
    pub fn options(&self, name: String, tokenizers: &TokenModels) -> anyhow::Result<SimOptions> {
        let profile = profile("--sim-profile", &self.profile)?;
        let (models, kv_blocks) = (self.models.clone(), self.kv_blocks);
        let tokenizer =
            models.first().and_then(|model| tokenizers.of(model, model)).map(|mode| mode.model().clone());
        let kv_events = tokenizer.is_some().then(KvEvents::default);
        let speed = self.speed;
        let (role, transfer) = self.part(&name)?;
        let sglang = transfer.as_ref().is_some_and(|t| t.handoff == Handoff::Sglang);
        Ok(SimOptions {
            engine: if sglang { EngineKind::Sglang } else { EngineKind::Vllm },
            role,
            transfer,
            name,
            models,
            profile,
            speed,
            kv_blocks,
            tokenizer,
            kv_events,
            ..SimOptions::default()
        })
    }
}

impl UpSimArgs {
    /// What the engine of that name does where prefill and decode are apart.
    fn part(&self, name: &str) -> anyhow::Result<(ServingRole, Option<HandoffOptions>)> {
        let handoff = self.handoff.or_else(|| self.pd.map(|_| Handoff::NixlPull));
        let Some(handoff) = handoff else { return Ok((ServingRole::Both, None)) };
        let number: u32 = name.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let (prefill, decode) = self.pd.map_or((0, 0), |(p, d)| (u32::from(p), u32::from(d)));
        let engines = u32::from(self.sim.unwrap_or(0));
        if prefill + decode > engines {
            return Err(anyhow!("--sim-pd {prefill}:{decode} needs more engines than --sim {engines}"));
        }
        if handoff == Handoff::Sglang && prefill + decode < engines {
            return Err(anyhow!(
                "--sim-handoff sglang: --sim-pd must give each of the {engines} engines a role"
            ));
        }
        let role = match number {
            n if n < prefill => ServingRole::Prefill,
            n if n < prefill + decode => ServingRole::Decode,
            _ => ServingRole::Both,
        };
        let bytes_per_token = HandoffOptions::bytes_per_token_of(&self.profile);
        Ok((role, Some(HandoffOptions { bytes_per_token, ..HandoffOptions::new(handoff) })))
    }
}

fn profile(flag: &str, name: &str) -> anyhow::Result<Profile> {
    Profile::named(name).ok_or_else(|| anyhow!("{flag} {name:?}: allowed are {}", Profile::NAMES.join(", ")))
}

pub fn run(args: SimArgs) -> anyhow::Result<ExitCode> {
    let mut options = args.engine.options(args.listen)?;
    options.startup = Duration::try_from_secs_f64(args.startup).context("--startup")?;
    if let Some(faults) = &args.faults {
        options.faults = serde_json::from_str::<Faults>(faults).context("--faults")?;
    }
    options.kv_events = args.kv.options();
    options.role = args.handoff.role;
    options.transfer = args.handoff.options(&args.engine.profile)?;
    if let Some(path) = &args.tokenizer {
        let model = TokenModel::load(path, args.chat_template.as_deref()).context("--tokenizer")?;
        options.tokenizer = Some(Arc::new(model));
    }
    let models = options.models.join(",");
    signals::runtime(1)?.block_on(async {
        let mut stop = signals::Stop::listen()?;
        let sim = Sim::start(options)?;
        let part = args.handoff.handoff.map_or(String::new(), |h| format!(" handoff={}", h.as_str()));
        let told = |name: &str, addr: Option<SocketAddr>| {
            addr.map(|addr| format!(" {name}=tcp://{addr}")).unwrap_or_default()
        };
        let events = told("kv_events", sim.kv_events_addr()) + &told("kv_replay", sim.kv_replay_addr());
        out::line(format_args!(
            "ready: http://{} models={models}{events}{part} simulated engine",
            sim.addr()
        ));
        stop.recv().await;
        sim.shutdown();
        Ok(ExitCode::SUCCESS)
    })
}
