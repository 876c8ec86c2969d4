//! The options of `fairlead sim`.

use crate::faults::Faults;
use crate::options::{EngineKind, SimOptions};
use crate::profile::Profile;
use std::net::SocketAddr;
use std::time::Duration;

/// A simulated engine.
#[derive(Clone, Debug, clap::Args)]
pub struct SimArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:9000")]
    pub listen: SocketAddr,
    /// Engines to start, on consecutive ports (or all on free ones)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub count: u16,
    /// Whose names, routes and metrics to speak
    #[arg(long, value_enum, default_value_t)]
    pub engine: EngineKind,
    /// Step costs and memory: 8b-h200 or 70b-tp4
    #[arg(long, default_value = "8b-h200", value_parser = profile)]
    pub profile: Profile,
    /// Served model name; repeat for more
    #[arg(long = "model", default_value = "sim-8b")]
    pub models: Vec<String>,
    /// How many times faster than life
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
    /// Tokens in a KV block
    #[arg(long, default_value_t = 16)]
    pub block_size: u32,
    /// KV blocks [default: the profile's memory]
    #[arg(long)]
    pub kv_blocks: Option<u32>,
    /// Requests in the batch at most [default: the profile's]
    #[arg(long)]
    pub max_num_seqs: Option<u32>,
    /// Tokens in a step at most [default: the profile's]
    #[arg(long)]
    pub max_num_batched_tokens: Option<u32>,
    /// Requests waiting at most; one more is answered 503
    #[arg(long, default_value_t = 4096)]
    pub max_waiting: u32,
    /// Longest prompt and output together, tokens
    #[arg(long, default_value_t = 131_072)]
    pub max_model_len: u32,
    /// Never reuse a prefix
    #[arg(long)]
    pub no_prefix_caching: bool,
    /// Seconds until ready
    #[arg(long, default_value_t = 0.0, value_parser = seconds)]
    pub startup: f64,
    /// Seconds that an idle connection is kept, 0 for ever
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub keep_alive: f64,
    /// Metric names of vLLM before 0.11
    #[arg(long)]
    pub legacy_metrics: bool,
    /// Cost of a step by itself, milliseconds [default: the profile's]
    #[arg(long)]
    pub step_ms: Option<f64>,
    /// Prefill tokens per second [default: the profile's]
    #[arg(long)]
    pub prefill_rate: Option<f64>,
    /// Faults from the start, as JSON: '{"status":500,"times":3}'
    #[arg(long, value_parser = faults)]
    pub faults: Option<Faults>,
}

fn profile(name: &str) -> Result<Profile, String> {
    Profile::named(name).ok_or_else(|| format!("known profiles: {}", Profile::NAMES.join(", ")))
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if (0.0..=86_400.0).contains(&v) => Ok(v),
        _ => Err("expected seconds between 0 and 86400".into()),
    }
}

fn faults(text: &str) -> Result<Faults, String> {
    let f: Faults = serde_json::from_str(text).map_err(|e| e.to_string())?;
    f.validate().map_err(|e| e.to_string())?;
    Ok(f)
}

impl SimArgs {
    /// The engines asked for, in order of their ports. An option out of range is told by the start.
    pub fn engines(&self) -> Vec<SimOptions> {
        let mut p = self.profile.clone();
        p.max_running = self.max_num_seqs.unwrap_or(p.max_running);
        p.token_budget = self.max_num_batched_tokens.unwrap_or(p.token_budget);
        p.base = self.step_ms.map_or(p.base, |ms| ms / 1e3);
        if let Some(rate) = self.prefill_rate {
            // The point at which attention costs as much as the linear part stays where it is.
            p.attention *= 1.0 / rate / p.prefill;
            p.prefill = 1.0 / rate;
        }
        (0..self.count)
            .map(|i| {
                let mut listen = self.listen;
                if listen.port() != 0 {
                    listen.set_port(listen.port().saturating_add(i));
                }
                SimOptions {
                    listen,
                    name: format!("sim-{i}"),
                    engine: self.engine,
                    models: self.models.clone(),
                    profile: p.clone(),
                    speed: self.speed,
                    block_tokens: self.block_size,
                    kv_blocks: self.kv_blocks,
                    max_waiting: self.max_waiting,
                    max_model_len: self.max_model_len,
                    prefix_caching: !self.no_prefix_caching,
                    startup: Duration::from_secs_f64(self.startup),
                    keep_alive: (self.keep_alive > 0.0).then(|| Duration::from_secs_f64(self.keep_alive)),
                    legacy_metrics: self.legacy_metrics,
                    faults: self.faults.clone().unwrap_or_default(),
                    ..SimOptions::default()
                }
            })
            .collect()
    }
}
