//! The options of `fairlead replay`, and what they ask for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fairlead_routing::{PolicyName, Settings};
use serde_json::{Map, Value};

use super::{Failure, InstanceSpec, Play, Setup, Slo, TransferSpec, Workload};
use crate::profile::Profile;
use crate::trace::{Take, Trace, TraceError};

/// A recorded trace on simulated engines.
#[derive(Clone, Debug, clap::Args)]
pub struct ReplayArgs {
    /// Recorded traffic: Mooncake's or coding sessions (JSON lines) or Azure's (csv), plain or gzipped; a file, or the
    /// beginning of its name in the folder FAIRLEAD_TRACES or in perf/data
    #[arg(long, value_name = "FILE")]
    pub trace: String,
    /// Policies to compare, comma-separated or repeated; `all` is every one that has a name
    #[arg(long, value_name = "NAMES", required = true)]
    pub policy: Vec<String>,
    /// Instances
    #[arg(long, default_value_t = 8, value_name = "N", conflicts_with = "pool")]
    pub instances: usize,
    /// The first P instances only prefill, the other D only decode; without it each may do either, for policies that
    /// place prefill and decode apart
    #[arg(long, value_name = "P:D")]
    pub pd: Option<String>,
    /// Times and think times of the trace pass this many times as fast
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    pub speed: f64,
    /// Gateways; each request comes to one of them, drawn evenly
    #[arg(long, default_value_t = 1, value_name = "G")]
    pub gateways: usize,
    /// Time until a gateway knows what engines and other gateways have done, milliseconds
    #[arg(long, default_value_t = 0.0, value_name = "MS")]
    pub state_delay: f64,
    /// A good answer begins before this, seconds
    #[arg(long, default_value_t = 2.0, value_name = "S")]
    pub slo_ttft: f64,
    /// A good answer's mean time between tokens is below this, milliseconds
    #[arg(long, default_value_t = 50.0, value_name = "MS")]
    pub slo_tpot: f64,
    /// Requests bear these objectives, for policies that look at them
    #[arg(long)]
    pub tell_slo: bool,
    /// Gateways predict with the constants that they start with, instead of learning what engines cost
    #[arg(long)]
    pub no_learning: bool,
    /// Changes a setting of a policy, for example --tune cost.own_prefill=2; repeatable
    #[arg(long, value_name = "POLICY.KEY=VALUE")]
    pub tune: Vec<String>,
    /// Runs of each policy, with the seeds 1 to K; figures are their means
    #[arg(long, default_value_t = 1, value_name = "K")]
    pub seeds: u64,
    /// Write the figures here, a row for each policy
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Runs at a time [default: the cores that this process may use]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// What an instance is: 8b-h200, 70b-tp4, or a YAML or JSON file with the fields of a profile
    #[arg(
        long,
        default_value = "8b-h200",
        value_name = "NAME|FILE",
        conflicts_with = "pool",
        help_heading = "Engines"
    )]
    pub profile: String,
    /// Instances of several kinds, for example 4x8b-h200,4x70b-tp4
    #[arg(long, value_name = "NxPROFILE,...", help_heading = "Engines")]
    pub pool: Option<String>,
    /// Changes one field of the profiles, for example --set token_budget=8192
    #[arg(long, value_name = "FIELD=VALUE", help_heading = "Engines")]
    pub set: Vec<String>,
    /// KV blocks of an instance; default is what the profile's memory holds
    #[arg(long, value_name = "N", help_heading = "Engines")]
    pub kv_blocks: Option<u32>,
    /// Tokens in a block of the trace and of the engines
    #[arg(long, default_value_t = 512, value_name = "TOKENS", help_heading = "Engines")]
    pub block_tokens: u32,
    /// What handing KV over takes besides its bytes, milliseconds
    #[arg(long, default_value_t = 2.0, value_name = "MS", help_heading = "Engines")]
    pub transfer_ms: f64,
    /// How fast KV passes, gigabytes per second
    #[arg(long, default_value_t = 25.0, value_name = "GB/S", help_heading = "Engines")]
    pub transfer_gbps: f64,
    /// KV bytes of a token [default: 131072, for profiles of 70B models 327680]
    #[arg(long, value_name = "BYTES", help_heading = "Engines")]
    pub kv_bytes_per_token: Option<u32>,
    /// An instance (counted from 0) dies at a time, seconds, and returns empty at another if one is given; repeatable
    #[arg(long, value_name = "INSTANCE@SECONDS[:SECONDS]", value_parser = failure, help_heading = "Engines")]
    pub fail: Vec<Failure>,
    /// The first so many requests of the trace
    #[arg(long, value_name = "N", help_heading = "Requests")]
    pub requests: Option<usize>,
    /// Coding sessions; more than the trace has play it again as others' sessions [default: what the trace has]
    #[arg(long, value_name = "N", help_heading = "Requests")]
    pub sessions: Option<usize>,
    /// Coding sessions that start in a second
    #[arg(long, default_value_t = 0.075, value_name = "X", help_heading = "Requests")]
    pub starts_per_s: f64,
    /// Requests of a coding session at most
    #[arg(long, default_value_t = 40, value_name = "N", help_heading = "Requests")]
    pub max_turns: usize,
    /// Longest think time, seconds
    #[arg(long, default_value_t = 30.0, value_name = "S", help_heading = "Requests")]
    pub max_think: f64,
}

/// Why a replay cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum BadReplay {
    /// An option's value makes no sense.
    #[error("--{option} {value:?}: {reason}")]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A policy is unknown.
    #[error(transparent)]
    Policy(#[from] super::BadPolicy),
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

fn bad(option: &'static str, value: impl ToString, reason: impl ToString) -> BadReplay {
    BadReplay::Option { option, value: value.to_string(), reason: reason.to_string() }
}

impl ReplayArgs {
    /// The policies, each once, in the order named.
    ///
    /// # Errors
    /// A name is unknown.
    pub fn policies(&self) -> Result<Vec<String>, BadReplay> {
        let mut policies: Vec<String> = Vec::new();
        for text in &self.policy {
            // The parts of a weighted policy are parted by commas too.
            let names = if text.contains(':') { vec![text.as_str()] } else { text.split(',').collect() };
            for name in names.iter().map(|name| name.trim()) {
                let named: Vec<String> = match name {
                    "all" => PolicyName::ALL.iter().map(|policy| policy.as_str().to_owned()).collect(),
                    name => {
                        let strategy = super::strategy(name, &Settings::default());
                        vec![strategy.map_err(|e| bad("policy", name, e))?.label().to_owned()]
                    }
                };
                named.into_iter().for_each(|policy| {
                    if !policies.contains(&policy) {
                        policies.push(policy);
                    }
                });
            }
        }
        Ok(policies)
    }

    /// What a good answer is.
    ///
    /// # Errors
    /// A value is not positive.
    pub fn slo(&self) -> Result<Slo, BadReplay> {
        positive("slo-ttft", self.slo_ttft)?;
        positive("slo-tpot", self.slo_tpot)?;
        Ok(Slo { ttft: self.slo_ttft, tpot: self.slo_tpot / 1e3 })
    }

    /// Who serves.
    ///
    /// # Errors
    /// A value makes no sense.
    pub fn setup(&self) -> Result<Setup, BadReplay> {
        if !(0.0..=1e9).contains(&self.state_delay) {
            return Err(bad("state-delay", self.state_delay, "is not a time in milliseconds"));
        }
        if self.gateways == 0 {
            return Err(bad("gateways", 0, "at least one is needed"));
        }
        if self.seeds == 0 {
            return Err(bad("seeds", 0, "at least one run is needed"));
        }
        let pool = self.pool()?;
        let prefillers = self.prefillers(pool.len())?;
        let transfer = self.transfer(&pool)?;
        for failure in &self.fail {
            if failure.instance >= pool.len() {
                let reason = format!("there are instances 0 to {}", pool.len() - 1);
                return Err(bad("fail", failure.instance, reason));
            }
        }
        Ok(Setup {
            pool,
            prefillers,
            transfer,
            leaning: true,
            gateways: self.gateways,
            state_delay: self.state_delay / 1e3,
            failures: self.fail.clone(),
            settings: self.settings()?,
            learn: !self.no_learning,
            told_slo: if self.tell_slo { Some(self.slo()?) } else { None },
            progress: None,
        })
    }

    /// How many instances only prefill.
    fn prefillers(&self, instances: usize) -> Result<Option<usize>, BadReplay> {
        let Some(text) = &self.pd else { return Ok(None) };
        let parts = text.split_once(':').and_then(|(p, d)| Some((p.parse().ok()?, d.parse().ok()?)));
        let (p, d): (usize, usize) = parts.ok_or_else(|| bad("pd", text, "is not like 3:5"))?;
        if p == 0 || d == 0 {
            return Err(bad("pd", text, "at least one instance of each kind is needed"));
        }
        if p + d != instances {
            return Err(bad(
                "pd",
                text,
                format!("there are {instances} instances; set --instances or --pool"),
            ));
        }
        Ok(Some(p))
    }

    fn transfer(&self, pool: &[InstanceSpec]) -> Result<TransferSpec, BadReplay> {
        positive("transfer-gbps", self.transfer_gbps)?;
        if !(0.0..=1e6).contains(&self.transfer_ms) {
            return Err(bad("transfer-ms", self.transfer_ms, "is not a time in milliseconds"));
        }
        // Of a larger model, as far as the profile shows its size.
        let large = pool.iter().any(|spec| spec.profile.prefill > 1.0 / 20_000.0);
        let bytes = self.kv_bytes_per_token.unwrap_or(if large { 327_680 } else { 131_072 });
        if bytes == 0 || bytes > 1 << 30 {
            return Err(bad("kv-bytes-per-token", bytes, "is not from 1 to 2^30"));
        }
        Ok(TransferSpec { base_s: self.transfer_ms / 1e3, bytes_per_token: bytes, gbps: self.transfer_gbps })
    }

    /// Settings of the policies, with `--tune`.
    fn settings(&self) -> Result<Settings, BadReplay> {
        let mut settings = Settings::default();
        for text in &self.tune {
            let parts = text.split_once('=').and_then(|(name, value)| {
                let (policy, key) = name.trim().split_once('.')?;
                Some((policy, key, value.trim().parse::<f64>().ok()?))
            });
            let (policy, key, value) =
                parts.ok_or_else(|| bad("tune", text, "is not like cost.own_prefill=2"))?;
            let known =
                || Settings::keys().iter().map(|k| format!("{}.{}", k.policy, k.key)).collect::<Vec<_>>();
            let setting = Settings::keys().iter().find(|k| k.policy == policy && k.key == key);
            let setting =
                setting.ok_or_else(|| bad("tune", text, format!("known are {}", known().join(", "))))?;
            setting.set(&mut settings, value).map_err(|e| bad("tune", text, e))?;
        }
        Ok(settings)
    }

    fn pool(&self) -> Result<Vec<InstanceSpec>, BadReplay> {
        if !(1..=65_536).contains(&self.block_tokens) {
            return Err(bad("block-tokens", self.block_tokens, "is not from 1 to 65536"));
        }
        let mut pool = Vec::new();
        match &self.pool {
            None => self.add("instances", self.instances, &self.profile, &mut pool)?,
            Some(text) => {
                for part in text.split(',') {
                    let (n, profile) = part
                        .trim()
                        .split_once('x')
                        .and_then(|(n, profile)| Some((n.parse().ok()?, profile)))
                        .ok_or_else(|| bad("pool", text, format!("{part:?} is not like 4x8b-h200")))?;
                    self.add("pool", n, profile, &mut pool)?;
                }
            }
        }
        Ok(pool)
    }

    fn add(
        &self,
        option: &'static str,
        n: usize,
        profile: &str,
        pool: &mut Vec<InstanceSpec>,
    ) -> Result<(), BadReplay> {
        const MOST: usize = fairlead_prefix::MAX_TARGETS;
        if n == 0 || pool.len() + n > MOST {
            return Err(bad(option, n, format!("1 to {MOST} instances can be simulated")));
        }
        let profile = self.set(self.named(profile)?)?;
        let blocks = profile.kv_tokens / u64::from(self.block_tokens);
        let kv_blocks = self.kv_blocks.unwrap_or(blocks.min(u64::from(u32::MAX)) as u32);
        if kv_blocks == 0 || profile.token_budget == 0 || profile.max_running == 0 {
            return Err(bad("profile", &self.profile, "an instance without memory or batch serves nobody"));
        }
        pool.extend(std::iter::repeat_n(InstanceSpec { profile, kv_blocks }, n));
        Ok(())
    }

    fn named(&self, name: &str) -> Result<Profile, BadReplay> {
        if let Some(profile) = Profile::named(name) {
            return Ok(profile);
        }
        let text = std::fs::read_to_string(name).map_err(|e| {
            bad("profile", name, format!("neither {} nor a file: {e}", Profile::NAMES.join(", ")))
        })?;
        serde_yaml_ng::from_str(&text).map_err(|e| bad("profile", name, e))
    }

    /// Applies `--set`.
    fn set(&self, profile: Profile) -> Result<Profile, BadReplay> {
        if self.set.is_empty() {
            return Ok(profile);
        }
        let mut fields: Map<String, Value> = match serde_json::to_value(&profile) {
            Ok(Value::Object(fields)) => fields,
            _ => return Ok(profile),
        };
        for text in &self.set {
            let (field, value) = text
                .split_once('=')
                .and_then(|(field, value)| Some((field.trim(), serde_json::from_str(value.trim()).ok()?)))
                .ok_or_else(|| bad("set", text, "is not like token_budget=8192"))?;
            if !fields.contains_key(field) {
                let known: Vec<&str> = fields.keys().map(String::as_str).collect();
                return Err(bad("set", text, format!("a profile has the fields {}", known.join(", "))));
            }
            fields.insert(field.to_owned(), value);
        }
        serde_json::from_value(Value::Object(fields)).map_err(|e| bad("set", self.set.join(" "), e))
    }

    /// The file of the trace: as named, or one whose name begins so in the folders for traces, the shortest.
    pub fn file(&self) -> PathBuf {
        find(&self.trace)
    }

    /// Reads the trace.
    ///
    /// # Errors
    /// It cannot be found or read, or a value makes no sense.
    pub fn workload(&self) -> Result<Arc<Workload>, BadReplay> {
        positive("speed", self.speed)?;
        positive("starts-per-s", self.starts_per_s)?;
        if !(0.0..=1e9).contains(&self.max_think) {
            return Err(bad("max-think", self.max_think, "is not a time in seconds"));
        }
        for (option, value) in
            [("requests", self.requests), ("sessions", self.sessions), ("max-turns", Some(self.max_turns))]
        {
            if value == Some(0) {
                return Err(bad(option, 0, "nothing would be asked"));
            }
        }
        let path = self.file();
        let trace = Trace::load(&path, Take { requests: u64::MAX, max_input: u32::MAX })?;
        if trace.timed() && self.sessions.is_some() {
            return Err(bad("sessions", self.sessions.unwrap_or(0), "this trace has times of its own"));
        }
        let play = Play {
            speed: self.speed,
            block_tokens: self.block_tokens,
            requests: self.requests.unwrap_or(usize::MAX),
            sessions: self.sessions.unwrap_or(0),
            starts_per_s: self.starts_per_s,
            max_turns: self.max_turns,
            max_think: self.max_think,
        };
        Ok(Arc::new(Workload::new(&trace, &play)))
    }
}

fn positive(option: &'static str, value: f64) -> Result<(), BadReplay> {
    if value > 0.0 && value.is_finite() { Ok(()) } else { Err(bad(option, value, "is not more than 0")) }
}

fn find(name: &str) -> PathBuf {
    let given = PathBuf::from(name);
    if given.is_file() || name.contains('/') {
        return given;
    }
    let folders = std::env::var_os("FAIRLEAD_TRACES").map(PathBuf::from).into_iter();
    for folder in folders.chain([PathBuf::from("perf/data")]) {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let begins = |path: &Path| {
            path.is_file()
                && path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(name))
                && path.extension().is_some_and(|e| e != "md")
        };
        let found = entries.flatten().map(|entry| entry.path()).filter(|path| begins(path));
        if let Some(path) = found.min_by_key(|path| (path.as_os_str().len(), path.clone())) {
            return path;
        }
    }
    given
}

fn failure(text: &str) -> Result<Failure, String> {
    let wrong = || format!("{text:?} is not like 0@60 or 0@60:120");
    let (instance, times) = text.split_once('@').ok_or_else(wrong)?;
    let (at, until) = match times.split_once(':') {
        Some((at, until)) => (at, Some(until)),
        None => (times, None),
    };
    let seconds = |text: &str| text.parse::<f64>().ok().filter(|s| (0.0..1e9).contains(s)).ok_or_else(wrong);
    let at = seconds(at)?;
    let until = until.map(seconds).transpose()?;
    if until.is_some_and(|until| until <= at) {
        return Err(format!("{text:?}: it would return before it dies"));
    }
    Ok(Failure { instance: instance.parse().map_err(|_| wrong())?, at, until })
}
