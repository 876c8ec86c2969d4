//! The keys. Each stands here once, with its default and its meaning; `docs/configuration.md` follows from them.

use crate::error::{ConfigError, join};
use crate::handoff::{Details, HandoffSetting, Label, Part, has_bootstrap};
use crate::http2::Http2;
use crate::routing::{Explain, Named, PolicySettings, PolicyText, Profile, SidePolicy, Slo};
use crate::schema::{Check, section};
use crate::setting::{Setting, Size};
use crate::tls::{Tls, UpstreamTls};
use crate::types::{
    Advertised, BasePath, Driver, Endpoints, HostPort, HttpUrl, InstanceUrl, KvEvents, LogFilter, LogFormat,
    Runtime, Shards,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Port of bootstrap servers where nobody says otherwise.
const BOOTSTRAP_PORT: u16 = 8998;

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

const DAY: Duration = secs(86_400);

fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

fn here(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

section! {
    /// One file may hold the sections of several processes; each process reads its own and checks all.
    pub struct Config {
        /// Folder with this process's certificate and key, as `fairlead certs` writes it. A section's own `identity`
        /// comes first.
        identity: Option<PathBuf> = None;
        /// Read by `fairlead gateway`.
        gateway: Gateway = Gateway::default();
        /// Read by `fairlead scheduler`.
        scheduler: Scheduler = Scheduler::default();
        /// Read by `fairlead agent`; its options on the command line come first.
        agent: Agent = Agent::default();
        /// What is written to standard error.
        log: Log = Log::default();
    }
}

section! {
    /// The gateway takes clients' requests and sends each to the instance that will serve it best.
    pub struct Gateway {
        /// Address of the traffic port.
        listen: SocketAddr = everywhere(8080);
        /// Address of `/metrics`, `/healthz`, `/readyz` and `/debug/*`. Not for clients: keep it on a private address.
        admin: Option<SocketAddr> = Some(here(8081));
        /// A port for clients that speak TLS.
        tls: Tls = Tls::default();
        /// HTTP/2 with clients.
        http2: Http2 = Http2::default();
        /// Name of this gateway, unique in the cluster. Without it: the name in the certificate, or host name and
        /// process where the certificate fits any name.
        name: Option<String> = None;
        /// Threads that serve requests, each on a core of its own. `auto`: the cores the process may use, less one
        /// from four up.
        shards: Shards = Shards::Auto;
        /// What they run on. `glommio` is there to compare with: it needs io_uring, and a program built with the cargo
        /// feature of that name.
        runtime: Runtime = Runtime::Monoio;
        /// How they wait for the kernel. `auto` takes io_uring where the kernel grants it, else epoll; the log says
        /// which.
        driver: Driver = Driver::Auto;
        /// Prefix of all paths, removed before anything else; requests without it are answered 404.
        base_path: BasePath = BasePath::default();
        /// Every connection begins with a header of the PROXY protocol (version 1 or 2), which a load balancer puts
        /// there; one without is closed. The client's address goes to the instances in `X-Forwarded-For`.
        proxy_protocol: bool = false;
        /// The scheduler. Without one only `instances` are served, with what this gateway sees itself.
        scheduler: Option<HostPort> = None;
        /// Folder with the gateway's certificate and key. Needed with `scheduler`.
        identity: Option<PathBuf> = None;
        /// How an instance is picked, unless the request, its profile or its model says otherwise. Without it: what the
        /// environment's `FAIRLEAD_POLICY` says, else its `ROUTING_ALGORITHM`, else `cost`.
        policy: Option<PolicyText> = None;
        /// Whatever requests ask for, and whatever their profile says, their model's policy or this one decides.
        policy_locked: bool = false;
        /// How `pd-split` picks the instance that prefills.
        prefill_policy: SidePolicy = SidePolicy::default();
        /// How `pd-split` picks the instance that decodes.
        decode_policy: SidePolicy = SidePolicy::default();
        /// Settings of the policies.
        policies: PolicySettings = PolicySettings::default();
        /// Settings under a name, chosen request by request.
        profiles: Named<Profile> = Named::default();
        /// The profile of requests that name none. Without it: the one of the name `default`, where there is one.
        default_profile: Option<String> = None;
        /// Limits for all requests, for policies that know limits.
        slo: Slo = Slo::default();
        /// Why an instance was picked: told to clients that ask, and to the log.
        explain: Explain = Explain::default();
        /// Instances known without a scheduler: served when there is none, and after a start during which none
        /// answered within `wait_for_snapshot`.
        instances: Vec<Instance> = Vec::new();
        /// What holds for single models: tokenizer, policy, limits. The prompts of a model that has a tokenizer are routed
        /// by token ids, as its engines cache them; all others by their bytes, which needs nothing.
        models: Vec<Model> = Vec::new();
        /// How much work tokenising may be.
        tokenising: Tokenising = Tokenising::default();
        /// Longest request body; a longer one is answered 413.
        max_body: Size = Size::mib(64) => Size(1024), Size::mib(16 * 1024);
        /// How much of a form (audio, images, files) is held while its `model` field is looked for; beyond it the form is
        /// answered 400, unless only one model is served. What follows that field is never held.
        max_form_held: Size = Size::mib(32) => Size(4096), Size::mib(1024);
        /// Longest request head; a longer one is answered 431.
        max_head: Size = Size(64 << 10) => Size(1024), Size::mib(1);
        /// Request bodies held at one time, all together, for the case that they must be sent again; beyond it
        /// requests are answered 503 with `Retry-After`.
        max_held_bodies: Size = Size::mib(1024) => Size::mib(1), Size::mib(1024 * 1024);
        /// Client connections at one time; beyond it a connection is answered 503 and closed.
        max_connections: usize = 65_536 => 1, 1 << 24;
        /// Requests forwarded at one time; beyond it a request is answered 503 with `Retry-After`.
        max_in_flight: usize = 65_536 => 1, 1 << 24;
        /// Further instances that are tried for a request whose instance fails before the first byte of an answer.
        retry_count: u32 = 2 => 0, 16;
        /// When and how often they are tried.
        retry: Retry = Retry::default();
        /// Deadlines of clients' connections.
        timeouts: Timeouts = Timeouts::default();
        /// Connections to instances.
        upstream: Upstream = Upstream::default();
        /// Forward body members that steer an engine (`kv_transfer_params` and the like) instead of refusing them;
        /// headers that do are dropped in any case. Only behind clients that are trusted as much as the gateway.
        allow_steering: bool = false;
        /// Memory for the replica of the prefix index. It should be somewhat more than the scheduler's `index_bytes`:
        /// a gateway into which the index does not fit says so and routes by load alone.
        index_bytes: Size = Size::mib(1280) => Size::mib(1), Size::mib(1280 * 1024);
        /// Age of the scheduler's state from which load is judged by this gateway's own requests alone. What is
        /// known of prefixes stays in use.
        stale_after: Duration = secs(10) => ms(100), DAY;
        /// Age of the list of instances from which, if nothing else is known either, instances are taken in turn.
        blind_after: Duration = secs(60) => ms(100), DAY;
        /// Longest wait for the scheduler's state after a start; then `instances` are served.
        wait_for_snapshot: Duration = secs(5) => ms(0), secs(3600);
    }
}

section! {
    /// Each is an engine, or anything that speaks OpenAI's routes.
    pub struct Instance {
        /// Its name in metrics and logs, and what clients are told. Without it: `instance-1` for the first in the list,
        /// and so on.
        name: Option<String> = None;
        /// Where it is: `http://HOST:PORT`, `https://HOST:PORT` (see `upstream.tls`), or `unix:/PATH`. Must be given.
        url: Option<InstanceUrl> = None;
        /// Names of the models it serves. Must be given: without a scheduler nobody asks the engine.
        models: Vec<String> = Vec::new();
        /// Its part in hand-offs between engines: prefill, decode, or both. `auto` is both: nobody asks the engine.
        role: Part = Part::Auto;
        /// How it hands KV to other instances. `auto` is none: nobody asks the engine.
        handoff: HandoffSetting = HandoffSetting::Auto;
        /// Bootstrap server of its connector, as engines reach it (`sglang`, `mooncake`). Without it: port 8998 of the
        /// instance's host.
        bootstrap: Option<HostPort> = None;
        /// The connector's own socket, as engines reach it. Needed with `mori-read`, `mori-write` and `p2p-nccl`, and with
        /// `lmcache-pd` unless it only prefills.
        peer: Option<HostPort> = None;
        /// A further port of the connector: notices (`mori-read`, `mori-write`), allocation (`lmcache-pd`). Needed where
        /// `peer` is.
        peer_port: Option<u16> = None => Some(1), Some(u16::MAX);
        /// Instances hand over to each other only where this is equal: name what their connectors refuse each other for,
        /// such as the engine's version, and the part of the network.
        transfer_domain: Option<String> = None;
        /// KV bytes of one token, of which the time of a transfer follows.
        kv_bytes_per_token: Option<u32> = None => Some(1), Some(1 << 30);
    }
}

section! {
    /// A tokenizer's files must be those of the engines. Where they are not, most prompts have another number of tokens
    /// there; that is noticed, logged once, and the model's prompts are then routed by their bytes.
    pub struct Model {
        /// Name by which clients ask for the model. Its LoRA adapters follow. Without it: all models that have no entry of
        /// their own.
        name: Option<String> = None;
        /// A `tokenizer.json`, or the folder that holds it, with `tokenizer_config.json` and `chat_template.jinja` beside
        /// it where the model has them.
        tokenizer: Option<PathBuf> = None;
        /// A file with the chat template, where the engines were given one.
        chat_template: Option<PathBuf> = None;
        /// How an instance is picked for the model's requests, unless they or their profile say otherwise.
        policy: Option<PolicyText> = None;
        /// They may not say otherwise: `routing-strategy` and the profile's policy do not count.
        policy_locked: bool = false;
        /// Limits for the model's requests.
        slo: Slo = Slo::default();
    }
}

section! {
    /// What is not cached and too long for a shard goes to a helper thread; a request that waits for it too long is
    /// routed by its bytes.
    pub struct Tokenising {
        /// Memory of each shard's cache of tokenised messages, and of the helper's; beyond it those not used for longest
        /// go.
        cache: Size = Size::mib(64) => Size(0), Size::mib(64 * 1024);
        /// Longest text that a shard tokenises itself for one request, beside what its cache knows.
        in_line: Size = Size(4 << 10) => Size(0), Size::mib(1);
        /// Longest wait for the helper thread.
        deadline: Duration = ms(20) => ms(0), secs(10);
    }
}

section! {
    /// Retries happen only before the first byte of an answer and never after an answer of 4xx.
    pub struct Retry {
        /// Pause before the first retry; doubled for each further one, with jitter.
        backoff: Duration = ms(5) => ms(0), secs(10);
        /// Retries as a share of the requests served: a fleet that fails altogether is not hit with a multiple of its
        /// load.
        budget: f64 = 0.2 => 0.0, 10.0;
        /// Retries per second of each shard that are free of the budget.
        budget_floor: u32 = 10 => 0, 1_000_000;
    }
}

section! {
    /// There is no deadline for the answer of an engine that serves a request by itself: a long prefill is not a failure.
    pub struct Timeouts {
        /// From the first byte of a request's head to its last; then 408.
        head: Duration = secs(10) => ms(10), secs(3600);
        /// Longest silence while a request's body arrives; then 408.
        body: Duration = secs(30) => ms(10), secs(3600);
        /// Longest time between two requests on a connection; then it is closed.
        idle: Duration = secs(75) => ms(10), DAY;
        /// Longest time a client may leave its answer unread; then the answer is cut and the engine's work cancelled.
        stall: Duration = secs(300) => ms(100), DAY;
        /// Connecting to an instance.
        connect: Duration = secs(2) => ms(10), secs(300);
        /// Of a request that is prefilled on one instance and decoded on another: longest time for the prefill, and
        /// longest wait for the first token of the other; then another pair is tried. Of two engines that wait for each
        /// other one may wait for ever.
        prefill: Duration = secs(300) => ms(100), DAY;
    }
}

section! {
    /// Connections are kept and used again, by each shard for itself.
    pub struct Upstream {
        /// Longest idle life of a connection. Shorter than the engines' own limit (uvicorn: 5 s), so that a request
        /// seldom meets a connection that is being closed.
        idle: Duration = secs(2) => ms(1), secs(3600);
        /// Idle connections of one shard to one target; beyond it the oldest is closed.
        max_per_target: usize = 1024 => 0, 65_536;
        /// How instances are reached that speak TLS.
        tls: UpstreamTls = UpstreamTls::default();
    }
}

section! {
    /// The scheduler holds the truth about instances, load and cached prefixes, and tells it to the gateways.
    pub struct Scheduler {
        /// Address (UDP) for gateways and agents.
        listen: SocketAddr = everywhere(7400);
        /// Address of `/metrics`, `/healthz`, `/readyz` and `/debug/*`.
        admin: Option<SocketAddr> = Some(here(7401));
        /// Folder with the scheduler's certificate and key. Needed.
        identity: Option<PathBuf> = None;
        /// Memory for the prefix index; beyond it the longest unused prefixes are forgotten, here and in every
        /// gateway.
        index_bytes: Size = Size::mib(1024) => Size::mib(1), Size::mib(1024 * 1024);
        /// Tokens in a block of the prompts that are routed by token ids, the same for the whole cluster. A multiple of
        /// the engines' pages serves best.
        block_tokens: u32 = 64 => 1, 1024;
        /// Interval of heartbeats with every peer. Three missed ones remove an instance.
        heartbeat: Duration = secs(1) => ms(10), secs(60);
        /// Which instances without a fixed role should rather prefill and which rather decode.
        prefill_decode: PrefillDecode = PrefillDecode::default();
    }
}

section! {
    /// Instances of one model that hand KV over to one another and have no fixed role serve whole requests while tokens
    /// come in time. Where too many answers are late, some are to prefill and the others to decode, as many as the traffic
    /// asks for; gateways whose policy is `dynamic-pd-split` go by that.
    pub struct PrefillDecode {
        /// Whether instances lean at all.
        enabled: bool = true;
        /// Time per token that is to be kept. Which answers are late, gateways judge by `target_tpot_ms` of their
        /// `dynamic-pd-split`: set both alike.
        target_tpot: Duration = ms(50) => ms(1), secs(60);
        /// Tokens of a short answer. Where so few tokens come, a single prefill in between makes the whole answer late;
        /// it is to be kept nearly always even so.
        short_answer_tokens: u32 = 64 => 1, 1_000_000;
        /// Least time that an instance leans one way.
        dwell: Duration = secs(5) => ms(250), secs(3600);
    }
}

section! {
    /// The agent stands beside one engine and tells the scheduler about it.
    pub struct Agent {
        /// The engine. Must be given, here or on the command line.
        engine: Option<HttpUrl> = None;
        /// The scheduler. Must be given, here or on the command line.
        scheduler: Option<HostPort> = None;
        /// Folder with the agent's certificate and key. Needed.
        identity: Option<PathBuf> = None;
        /// Where gateways reach the engine, when they cannot use `engine`: an agent beside its engine in a pod says
        /// `http://127.0.0.1:8000` there and the pod's address here. `https://HOST:PORT` where they are to use TLS, which
        /// something in front of the engine ends.
        advertise: Option<Advertised> = None;
        /// Address of `/metrics`, `/healthz` and `/readyz`.
        listen: Option<SocketAddr> = Some(here(7402));
        /// Name of the instance, unique in the cluster; clients are told it. Without it: the name in the certificate, or
        /// where that fits any name the host's name and six hexadecimal digits that follow from the advertised address.
        name: Option<String> = None;
        /// Interval of reading the engine's metrics while it works.
        scrape_busy: Duration = ms(250) => ms(10), secs(60);
        /// Interval of reading them while it is idle.
        scrape_idle: Duration = secs(2) => ms(10), secs(600);
        /// The engine's KV-cache events, from which the index learns what the engine really holds: where the engine
        /// says that it publishes them, not at all, or at these endpoints. One endpoint for each data-parallel rank, or
        /// one from which the ranks' ports count up; `*` is the engine's host.
        kv_events: KvEvents = KvEvents::default();
        /// Where the engine repeats events that were missed, when `kv_events` has endpoints.
        kv_replay: Option<Endpoints> = None;
        /// Memory for what the engine's cache holds, about 200 bytes for each of the engine's pages. Beyond it what was
        /// stored longest ago is forgotten.
        kv_bytes: Size = Size::mib(256) => Size::mib(1), Size::mib(1024 * 1024);
        /// Labels of the instance, for filters.
        labels: Vec<Label> = Vec::new();
        /// The engine's part in hand-offs between engines: prefill, decode, or both. `auto` is what the engine says:
        /// SGLang its mode, vLLM in development mode (`VLLM_SERVER_DEV_MODE=1`) its connector's role; else both.
        role: Part = Part::Auto;
        /// How it hands KV to other engines. `auto` is what the engine says: SGLang with a mode, vLLM in development mode
        /// with its connector, else with its figures of NIXL transfers.
        handoff: HandoffSetting = HandoffSetting::Auto;
        /// Bootstrap server of its connector, as engines and this agent reach it (`sglang`, `mooncake`). Without it: the
        /// engine's host as gateways reach it, with the port that the engine tells, else 8998.
        bootstrap: Option<HostPort> = None;
        /// The connector's own socket, as engines reach it (`mori-read`, `mori-write`, `p2p-nccl`, `lmcache-pd`), where
        /// the engine does not tell it.
        peer: Option<HostPort> = None;
        /// A further port of the connector: notices (`mori-read`, `mori-write`), allocation (`lmcache-pd`).
        peer_port: Option<u16> = None => Some(1), Some(u16::MAX);
        /// Engines hand over to each other only where this is equal. Without it: what their connectors refuse each other
        /// for, vLLM's connector and version, SGLang's transfer backend. Give it where the network parts engines.
        transfer_domain: Option<String> = None;
        /// KV bytes of one token, of which the time of a transfer follows.
        kv_bytes_per_token: Option<u32> = None => Some(1), Some(1 << 30);
    }
}

section! {
    /// Standard output stays free for what a command prints.
    pub struct Log {
        /// Which lines are written.
        level: LogFilter = LogFilter::default();
        /// Their form.
        format: LogFormat = LogFormat::Text;
    }
}

/// What a section says beside `handoff`.
macro_rules! details {
    ($section:expr) => {
        Details {
            bootstrap: $section.bootstrap.as_ref().map(Setting::show),
            peer: $section.peer.as_ref().map(Setting::show),
            peer_port: $section.peer_port.as_ref().map(Setting::show),
            transfer_domain: $section.transfer_domain.as_ref().map(Setting::show),
            kv_bytes_per_token: $section.kv_bytes_per_token.as_ref().map(Setting::show),
        }
    };
}

/// Refuses `later` below `earlier`.
fn ordered(path: &str, later: (&str, Duration), earlier: (&str, Duration)) -> Result<(), ConfigError> {
    if later.1 >= earlier.1 {
        return Ok(());
    }
    let allowed = format!("at least {} ({})", earlier.0, earlier.1.show());
    Err(ConfigError::value(&join(path, later.0), later.1.show(), allowed))
}

impl Check for Gateway {
    fn check(&self, path: &str) -> Result<(), ConfigError> {
        ordered(path, ("blind_after", self.blind_after), ("stale_after", self.stale_after))?;
        if self.admin == Some(self.listen) && self.listen.port() != 0 {
            let allowed = "another address than listen's";
            return Err(ConfigError::value(&join(path, "admin"), self.listen, allowed));
        }
        let tls = self.tls.certificate.as_ref().map(|_| self.tls.listen);
        if tls.is_some() && tls == self.admin && self.tls.listen.port() != 0 {
            let allowed = "another address than admin's";
            return Err(ConfigError::value(&join(path, "tls.listen"), self.tls.listen, allowed));
        }
        let mut models: Vec<_> =
            self.models.iter().map(|model| model.name.as_deref().unwrap_or("*")).collect();
        models.sort_unstable();
        if let Some(pair) = models.windows(2).find(|pair| pair[0] == pair[1]) {
            let at = join(path, "models");
            return Err(ConfigError::value(&at, format!("{:?} twice", pair[0]), "one entry for each model"));
        }
        let profiles = &self.profiles.0;
        if profiles.iter().any(|(name, _)| name == "auto") {
            let allowed = "another name: `config-profile: auto` chooses by the profiles' conditions";
            return Err(ConfigError::value(&join(path, "profiles"), "\"auto\"", allowed));
        }
        if let Some(name) = &self.default_profile
            && !profiles.iter().any(|(known, _)| known == name)
        {
            let names: Vec<_> = profiles.iter().map(|(name, _)| name.as_str()).collect();
            let allowed = match names.is_empty() {
                true => "nothing: there are no profiles".to_owned(),
                false => names.join(", "),
            };
            let at = join(path, "default_profile");
            return Err(ConfigError::value(&at, format!("{name:?}"), allowed));
        }
        let names = self.instances.iter().enumerate().map(|(at, instance)| instance.name(at));
        let urls = self.instances.iter().filter_map(|instance| instance.url.as_ref());
        let mut taken = [names.collect(), urls.map(InstanceUrl::address).collect::<Vec<_>>()];
        taken.iter_mut().for_each(|taken| taken.sort_unstable());
        match taken.iter().flat_map(|taken| taken.windows(2)).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                let at = join(path, "instances");
                Err(ConfigError::value(
                    &at,
                    format!("{:?} twice", pair[0]),
                    "a name and an address of its own for each",
                ))
            }
            None => Ok(()),
        }
    }
}

impl Instance {
    /// The name given, or `instance-1` and so on by its place in the list, which counts from 0. Clients are told names:
    /// the address would be none.
    pub fn name(&self, place: usize) -> String {
        self.name.clone().unwrap_or_else(|| format!("instance-{}", place + 1))
    }

    /// Its bootstrap server, `host:port`: the one given, or that of its host where its part needs one.
    pub fn bootstrap(&self) -> Option<String> {
        let own = || {
            let (InstanceUrl::Http(url) | InstanceUrl::Https(url)) = self.url.as_ref()? else { return None };
            let (host, _) = url.authority().as_str().rsplit_once(':')?;
            Some(format!("{host}:{BOOTSTRAP_PORT}"))
        };
        let serves = match self.handoff {
            HandoffSetting::Is(handoff) => has_bootstrap(handoff) && self.role != Part::Decode,
            _ => false,
        };
        let given = self.bootstrap.as_ref().map(|place| place.as_str().to_owned());
        given.or_else(|| own().filter(|_| serves))
    }
}

impl Check for Instance {
    fn check(&self, path: &str) -> Result<(), ConfigError> {
        let at = join(path, "url");
        match &self.url {
            None => Err(ConfigError::Missing { path: at, allowed: InstanceUrl::allowed() }),
            Some(InstanceUrl::Http(url) | InstanceUrl::Https(url)) if !url.path().is_empty() => {
                Err(ConfigError::value(
                    &at,
                    url,
                    "a URL without a path: the client's path is what the engine gets",
                ))
            }
            Some(url @ InstanceUrl::Unix(_)) if matches!(self.handoff, HandoffSetting::Is(_)) => {
                Err(ConfigError::value(&at, url.address(), "a URL with a host: other engines connect to it"))
            }
            Some(_) if self.models.is_empty() => Err(ConfigError::Missing {
                path: join(path, "models"),
                allowed: "the names of the models that the instance serves".into(),
            }),
            Some(_) => {
                let details = details!(self);
                details.check(path, self.handoff, false)?;
                details.complete(path, self.role, self.handoff)
            }
        }
    }
}

impl Check for Agent {
    fn check(&self, path: &str) -> Result<(), ConfigError> {
        details!(self).check(path, self.handoff, true)?;
        if let Some(replay) = &self.kv_replay
            && matches!(self.kv_events.as_str(), "auto" | "off")
        {
            let at = join(path, "kv_replay");
            return Err(ConfigError::value(&at, replay.as_str(), "nothing, unless kv_events has endpoints"));
        }
        ordered(path, ("scrape_idle", self.scrape_idle), ("scrape_busy", self.scrape_busy))
    }
}

impl Check for Model {
    fn check(&self, path: &str) -> Result<(), ConfigError> {
        match (&self.tokenizer, &self.chat_template) {
            (None, Some(_)) => {
                Err(ConfigError::Missing { path: join(path, "tokenizer"), allowed: PathBuf::allowed() })
            }
            (None, None) if *self == (Self { name: self.name.clone(), ..Self::default() }) => {
                let allowed = "what holds for the model: tokenizer, policy, policy_locked or slo".to_owned();
                Err(ConfigError::Missing { path: join(path, "tokenizer"), allowed })
            }
            _ => Ok(()),
        }
    }
}

impl Check for Config {}
impl Check for Tokenising {}
impl Check for Retry {}
impl Check for Timeouts {}
impl Check for Upstream {}
impl Check for Scheduler {}
impl Check for PrefillDecode {}
impl Check for Log {}

impl Config {
    /// The gateway's certificate folder: its own, else the shared one.
    pub fn gateway_identity(&self) -> Option<&PathBuf> {
        self.gateway.identity.as_ref().or(self.identity.as_ref())
    }

    /// The scheduler's certificate folder: its own, else the shared one.
    pub fn scheduler_identity(&self) -> Option<&PathBuf> {
        self.scheduler.identity.as_ref().or(self.identity.as_ref())
    }

    /// The agent's certificate folder: its own, else the shared one.
    pub fn agent_identity(&self) -> Option<&PathBuf> {
        self.agent.identity.as_ref().or(self.identity.as_ref())
    }
}
