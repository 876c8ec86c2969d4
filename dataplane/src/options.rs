//! What a gateway's data plane is told at start.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use fairlead_routing::{PolicyName, Settings, Slo};

use crate::http::HeadLimits;
use crate::http2::Http2Options;
use crate::runtime::{Driver, Kind};
use crate::tls::{TlsOptions, UpstreamTls};
use crate::token_mode::TokenModels;

/// Settings of the data plane. Every limit has a defined behaviour at the limit, named at the field.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// Address of the traffic port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Serves clients over TLS; `None` for plain connections only.
    pub tls: Option<TlsOptions>,
    /// How HTTP/2 is spoken with clients.
    pub http2: Http2Options,
    /// How instances are reached whose address begins with `https://`; `None` reaches none of these.
    pub upstream_tls: Option<UpstreamTls>,
    /// Shard threads; 0 takes all processors the process may use, less one from four up.
    pub shards: usize,
    /// Pin each shard to a processor of its own. Shards beyond the number of processors are not pinned.
    pub pin: bool,
    /// Runtime of the shards.
    pub runtime: Kind,
    /// Its driver.
    pub driver: Driver,
    /// Prefix of every path, removed before routing; empty for none.
    pub base_path: String,
    /// Every connection begins with a header of the PROXY protocol; one without is closed.
    pub proxy_protocol: bool,
    /// How requests are routed.
    pub routing: RoutingOptions,
    /// Secret of the cluster that enters every block hash; the scheduler tells it to its gateways.
    pub cluster_seed: u64,
    /// Bytes of canonical prompt in a block.
    pub block_bytes: u32,
    /// Blocks of a prompt that are hashed; the rest of a longer prompt is routed by this prefix.
    pub max_blocks: u32,
    /// Tokenizers of models: their prompts are routed by token ids, as the engines cache them.
    pub token_models: TokenModels,
    /// How much work tokenising may be.
    pub tokenising: Tokenising,
    /// Let members that steer engines (`kv_transfer_params` and the like) pass instead of answering 400.
    pub allow_steering: bool,
    /// Limits on what clients may send and hold.
    pub limits: Limits,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Retries.
    pub retry: RetryOptions,
    /// Seed of everything drawn at random; 0 takes one from the operating system.
    pub seed: u64,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            tls: None,
            http2: Http2Options::default(),
            upstream_tls: None,
            shards: 0,
            pin: true,
            runtime: Kind::Monoio,
            driver: Driver::Auto,
            base_path: String::new(),
            proxy_protocol: false,
            routing: RoutingOptions::default(),
            cluster_seed: 0,
            block_bytes: fairlead_tokens::DEFAULT_BLOCK_BYTES,
            max_blocks: fairlead_tokens::DEFAULT_MAX_BLOCKS,
            token_models: TokenModels::default(),
            tokenising: Tokenising::default(),
            allow_steering: false,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            retry: RetryOptions::default(),
            seed: 0,
        }
    }
}

/// How requests are routed, where they do not say otherwise and may.
#[derive(Debug, Clone)]
pub struct RoutingOptions {
    /// The gateway's policy, as [`Strategy::parse`](fairlead_routing::Strategy::parse) reads it.
    pub policy: String,
    /// Requests and profiles may not say otherwise.
    pub locked: bool,
    /// Settings of all policies.
    pub settings: Settings,
    /// Limits for all requests.
    pub slo: Slo,
    /// What holds for single models.
    pub models: Vec<ModelRouting>,
    /// What requests choose by name.
    pub profiles: Vec<ProfileRouting>,
    /// The profile of requests that name none; `None` is the one of the name `default`, where there is one.
    pub default_profile: Option<String>,
    /// Answer `x-fairlead-explain: 1`.
    pub explain: bool,
    /// Share of the decisions that are logged, 0 to 1, while the log lets `fairlead::explain` pass.
    pub explain_sample: f64,
}

impl Default for RoutingOptions {
    fn default() -> Self {
        Self {
            policy: PolicyName::default().as_str().to_owned(),
            locked: false,
            settings: Settings::default(),
            slo: Slo::default(),
            models: Vec::new(),
            profiles: Vec::new(),
            default_profile: None,
            explain: true,
            explain_sample: 0.01,
        }
    }
}

/// What holds for a model.
#[derive(Debug, Clone, Default)]
pub struct ModelRouting {
    /// Its name; `None` for all models that have no entry of their own.
    pub name: Option<String>,
    /// Its policy; `None` for the gateway's.
    pub policy: Option<String>,
    /// Requests and profiles may not say otherwise.
    pub locked: bool,
    /// Limits for its requests.
    pub slo: Slo,
}

/// What holds for requests that choose this profile.
#[derive(Debug, Clone, Default)]
pub struct ProfileRouting {
    /// Its name.
    pub name: String,
    /// Its policy; `None` for the model's or the gateway's.
    pub policy: Option<String>,
    /// Limits.
    pub slo: Slo,
    /// Chosen by `auto` for prompts of so many tokens or more.
    pub prompt_tokens_gte: Option<u32>,
    /// Chosen by `auto` for prompts of fewer tokens.
    pub prompt_tokens_lt: Option<u32>,
    /// Chosen by `auto` for requests that allow so many tokens of output or more.
    pub max_tokens_gte: Option<u32>,
    /// Chosen by `auto` for requests that allow fewer.
    pub max_tokens_lt: Option<u32>,
}

/// Bounds on tokenising, for the models that have a tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenising {
    /// Longest request body whose prompt is rendered on its shard, bytes; a longer one goes to the helper thread.
    pub in_line_body: usize,
    /// Bytes of text that a shard tokenises itself for one request, beside what its cache knows; more goes to the
    /// helper thread.
    pub in_line_text: usize,
    /// How long a request waits for the helper thread; then it is routed by its bytes.
    pub deadline: Duration,
    /// Memory of each thread's cache of tokenised parts of prompts, bytes. At the bound those not used for longest go.
    pub cache_bytes: usize,
}

impl Default for Tokenising {
    fn default() -> Self {
        Self {
            in_line_body: 64 << 10,
            in_line_text: 4 << 10,
            deadline: Duration::from_millis(20),
            cache_bytes: 64 << 20,
        }
    }
}

/// Limits, all of them for the whole process unless said otherwise.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Of a request head; beyond: 431.
    pub head: HeadLimits,
    /// Bytes of one request body; beyond: 413.
    pub max_body: usize,
    /// Bytes of a form held while its model is looked for; beyond: 400, unless only one model is served.
    pub form_held: usize,
    /// Bytes of request bodies held at one time; beyond: 503 with `Retry-After`.
    pub body_budget: usize,
    /// Client connections; beyond: 503 with `Retry-After` and close.
    pub max_connections: usize,
    /// Requests forwarded at one time; beyond: 503 with `Retry-After`.
    pub max_in_flight: usize,
    /// Idle connections kept to one target by one shard; beyond: the oldest is closed.
    pub pool_per_target: usize,
    /// Placements waiting for the control thread, per shard; beyond: the new one is dropped and counted.
    pub placement_queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: HeadLimits::default(),
            max_body: 64 << 20,
            form_held: 32 << 20,
            body_budget: 1 << 30,
            max_connections: 65_536,
            max_in_flight: 65_536,
            pool_per_target: 1024,
            placement_queue: 4096,
        }
    }
}

/// Deadlines. There is none for the answer of an engine that serves a request by itself: a long prefill is not a failure.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// From the first byte of a request head (or from the accept) to its end; beyond: 408 and close.
    pub head: Duration,
    /// Longest silence while a body is read; a body must also keep up 8 KB/s on average beyond this allowance.
    /// Beyond: 408 and close.
    pub body: Duration,
    /// Longest life of a connection without a request; beyond: close.
    pub idle: Duration,
    /// Longest time a client may refuse to take bytes of its answer; beyond: the answer is cut and the upstream
    /// request cancelled.
    pub stall: Duration,
    /// Connecting to a target.
    pub connect: Duration,
    /// Longest idle life of a connection to a target. Shorter than the keep-alive of common engines (uvicorn: 5 s),
    /// so that a connection is rarely reused while the engine closes it.
    pub pool_idle: Duration,
    /// How long an answer's head may wait for the first byte of its body. Until the head has gone out, a request can
    /// still be retried elsewhere.
    pub head_hold: Duration,
    /// How long a prefill leg may take, and how long a decode leg may be without a first token; beyond: the request is
    /// tried elsewhere. Of two engines that wait for each other one may wait for ever.
    pub prefill: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            idle: Duration::from_secs(75),
            stall: Duration::from_secs(300),
            connect: Duration::from_secs(2),
            pool_idle: Duration::from_secs(2),
            head_hold: Duration::from_secs(10),
            prefill: Duration::from_secs(300),
        }
    }
}

/// Retries before the first byte of an answer.
#[derive(Debug, Clone)]
pub struct RetryOptions {
    /// Further targets tried after the first.
    pub max_retries: u32,
    /// Pause before the first retry; doubled for each further one, with jitter between half and all of it.
    pub backoff: Duration,
    /// Retries allowed per request served, as a share: a fleet that fails altogether is not hit with a multiple of
    /// its load.
    pub budget_share: f64,
    /// Retries per second allowed to each shard whatever the share says.
    pub budget_floor: u32,
    /// Retries that a shard may have saved up: what the death of one engine may cost at once.
    pub budget_burst: u32,
}

impl Default for RetryOptions {
    fn default() -> Self {
        Self {
            max_retries: 2,
            backoff: Duration::from_millis(5),
            budget_share: 0.2,
            budget_floor: 10,
            budget_burst: 1000,
        }
    }
}
