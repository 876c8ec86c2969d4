//! What an agent is told at its start.

use crate::http::Origin;
use crate::incarnation::mix;
use crate::kv::endpoints;
use crate::transfer::TransferOptions;
use fairlead_transport::{Identity, IdentityError};
use fairlead_wire::msg::{EngineKind, Handoff, InstanceInfo, Register, Role, ServingRole, Transfer};
use fairlead_wire::{FrameError, Stamp, encode};
use std::net::SocketAddr;
use std::time::Duration;

/// Longest name of an instance, bytes.
const NAME_MAX: usize = fairlead_transport::NAME_MAX;

/// How often things happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    /// Between health probes.
    pub probe: Duration,
    /// Longest wait for the answer of a probe, and of any other small request.
    pub probe_timeout: Duration,
    /// Between scrapes while the engine works.
    pub scrape_busy: Duration,
    /// Between scrapes of an engine that has been idle for some time; the way there doubles from `scrape_busy`.
    pub scrape_idle: Duration,
    /// Between looks at the list of models, which changes when adapters are loaded.
    pub models: Duration,
    /// Longest pause between attempts while the engine is not ready.
    pub wait: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            probe: Duration::from_secs(1),
            probe_timeout: Duration::from_secs(1),
            scrape_busy: Duration::from_millis(250),
            scrape_idle: Duration::from_secs(2),
            models: Duration::from_secs(10),
            wait: Duration::from_secs(1),
        }
    }
}

/// Whether and where the engine's KV-cache events are followed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum KvEvents {
    /// Where the engine says that it publishes them.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// At these endpoints, `tcp://HOST:PORT`: one for each data-parallel rank, or one from which the ranks' ports count
    /// up. `*` is the engine's host.
    At {
        /// Of the sockets that publish.
        events: Vec<String>,
        /// Of the sockets that repeat what was published; may be empty.
        replay: Vec<String>,
    },
}

impl KvEvents {
    /// Reads `auto`, `off`, or endpoints with commas between them, and the endpoints of replays.
    ///
    /// # Errors
    /// What cannot be used, and why.
    pub fn parse(events: &str, replay: Option<&str>) -> Result<Self, String> {
        let list = |text: &str| text.split(',').map(|one| one.trim().to_owned()).collect::<Vec<_>>();
        let replay = replay.filter(|text| !text.trim().is_empty()).map(list).unwrap_or_default();
        let read = match events.trim() {
            "auto" => Self::Auto,
            "off" => Self::Off,
            text => Self::At { events: list(text), replay: replay.clone() },
        };
        match &read {
            Self::At { events, replay } => {
                events.iter().chain(replay).try_for_each(|one| endpoints::check(one))?
            }
            _ if !replay.is_empty() => return Err("replay endpoints need event endpoints".into()),
            _ => {}
        }
        Ok(read)
    }
}

/// Bound on the memory that knows the engine's cache, where none is given, bytes.
pub const KV_BYTES: usize = 256 << 20;

/// Options of [`crate::Agent::start`].
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The engine, `http://host:port`, with a base path where it has one.
    pub engine_url: String,
    /// The scheduler, `host:port`.
    pub scheduler: String,
    /// Certificate and key; the role must be agent.
    pub identity: Identity,
    /// Unique name of the instance. Default: the name in the certificate, or for a certificate that may bear any
    /// name the host's name and six hexadecimal digits that follow from the advertised address.
    pub name: Option<String>,
    /// `host:port` at which gateways reach the engine. Default: that of `engine_url`.
    pub advertise: Option<String>,
    /// Where to serve `/metrics`, `/healthz` and `/readyz`.
    pub listen: Option<SocketAddr>,
    /// Labels of the instance, for filters.
    pub labels: Vec<(String, String)>,
    /// How often things happen.
    pub intervals: Intervals,
    /// The engine's KV-cache events.
    pub kv_events: KvEvents,
    /// Bound on the memory that knows what the engine's cache holds, bytes; shared by its ranks. About 200 bytes a page.
    pub kv_bytes: usize,
    /// The instance's part in hand-offs between engines.
    pub transfer: TransferOptions,
}

impl AgentOptions {
    /// Options with defaults for everything that has one.
    pub fn new(engine_url: impl Into<String>, scheduler: impl Into<String>, identity: Identity) -> Self {
        Self {
            engine_url: engine_url.into(),
            scheduler: scheduler.into(),
            identity,
            name: None,
            advertise: None,
            listen: None,
            labels: Vec::new(),
            intervals: Intervals::default(),
            kv_events: KvEvents::default(),
            kv_bytes: KV_BYTES,
            transfer: TransferOptions::default(),
        }
    }
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The engine's URL cannot be used.
    #[error("engine {url:?}: {why}")]
    Engine {
        /// As given.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// The address for gateways cannot be used.
    #[error("advertise {address:?}: {why}")]
    Advertise {
        /// As given.
        address: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The instance's name cannot be used.
    #[error("name {name:?}: {why}")]
    Name {
        /// As given.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// An endpoint of KV-cache events that cannot be used.
    #[error("kv_events: {why}")]
    KvEvents {
        /// Which, and why.
        why: String,
    },
    /// Something of the instance's part in hand-offs that cannot be.
    #[error("{option}: {why}")]
    Transfer {
        /// Which option.
        option: &'static str,
        /// What is wrong.
        why: String,
    },
    /// An interval of zero.
    #[error("interval {interval}: 0 is not possible")]
    Interval {
        /// Which.
        interval: &'static str,
    },
    /// The certificate is not an agent's.
    #[error("identity {identity}: an agent's certificate is needed")]
    Role {
        /// Name in the certificate.
        identity: String,
    },
    /// The identity cannot be read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The admin address cannot be bound.
    #[error("listen {address}: {source}")]
    Listen {
        /// As given.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something that is told to the scheduler breaks a rule of the protocol.
    #[error("{0}")]
    Instance(#[from] FrameError),
    /// Not called within a tokio runtime.
    #[error("an agent needs a tokio runtime around it")]
    NoRuntime,
}

/// Options after checking.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub origin: Origin,
    pub scheduler: String,
    pub identity: Identity,
    pub name: String,
    pub address: String,
    pub host: String,
    pub listen: Option<SocketAddr>,
    pub labels: Vec<(String, String)>,
    pub intervals: Intervals,
    pub kv_events: KvEvents,
    pub kv_bytes: usize,
    pub transfer: TransferOptions,
}

impl Settings {
    pub fn check(options: AgentOptions) -> Result<Self, AgentError> {
        let AgentOptions {
            engine_url,
            scheduler,
            identity,
            name,
            advertise,
            listen,
            labels,
            intervals,
            kv_events,
            kv_bytes,
            transfer,
        } = options;
        let origin =
            Origin::parse(&engine_url).map_err(|why| AgentError::Engine { url: engine_url.clone(), why })?;
        if identity.peer().role != Role::Agent {
            return Err(AgentError::Role { identity: identity.peer().to_string() });
        }
        let given = advertise.is_some();
        let address = advertise.unwrap_or_else(|| origin.authority().to_owned());
        let host = host_of(address.strip_prefix("https://").unwrap_or(&address))
            .map_err(|why| AgentError::Advertise { address: address.clone(), why })?;
        if !given && origin.is_loopback() && !is_local(&scheduler) {
            tracing::warn!(
                engine = engine_url,
                "gateways are told {address}, which only this machine reaches; give --advertise HOST:PORT"
            );
        }
        let name = name.unwrap_or_else(|| match identity.peer().name.as_str() {
            fairlead_transport::ANY_NAME => name_at(&host_name(), &address),
            own => own.to_owned(),
        });
        let bad_name = |why: String| AgentError::Name { name: name.clone(), why };
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(bad_name(format!("1 to {NAME_MAX} bytes are possible")));
        }
        if !identity.peer().may_be_called(&name) {
            return Err(bad_name(format!("the certificate is for {:?}", identity.peer().name)));
        }
        for (interval, value) in [
            ("probe", intervals.probe),
            ("probe_timeout", intervals.probe_timeout),
            ("scrape_busy", intervals.scrape_busy),
            ("scrape_idle", intervals.scrape_idle),
            ("models", intervals.models),
            ("wait", intervals.wait),
        ] {
            if value.is_zero() {
                return Err(AgentError::Interval { interval });
            }
        }
        if let KvEvents::At { events, replay } = &kv_events {
            let all = events.iter().chain(replay);
            all.into_iter()
                .try_for_each(|one| endpoints::check(one))
                .map_err(|why| AgentError::KvEvents { why })?;
        }
        transfer.check().map_err(|(option, why)| AgentError::Transfer { option, why })?;
        let settings = Self {
            origin,
            scheduler,
            identity,
            name,
            address,
            host,
            listen,
            labels,
            intervals,
            kv_events,
            kv_bytes,
            transfer,
        };
        // Found now rather than at the first registration.
        let told = Transfer {
            bootstrap: settings.transfer.bootstrap.clone(),
            peer: settings.transfer.peer.clone(),
            ..Transfer::new(Handoff::Sidecar)
        };
        let instance = InstanceInfo { transfer: Some(told), ..settings.instance() };
        encode(&Register { instance }, Stamp::default())?;
        Ok(settings)
    }
}

impl Settings {
    /// Where in a period this agent begins. It follows from the name, so that many agents started together, in one
    /// process or in one rollout, do not act in step.
    pub fn phase(&self, period: Duration) -> Duration {
        period.mul_f64((hash_of(&self.name) >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// What is known of the instance before its engine has been asked.
    pub fn instance(&self) -> InstanceInfo {
        InstanceInfo {
            name: self.name.clone(),
            address: self.address.clone(),
            host: self.host.clone(),
            incarnation: 0,
            engine: EngineKind::Generic,
            engine_version: String::new(),
            models: Vec::new(),
            role: ServingRole::Both,
            transfer: None,
            dp_ranks: 1,
            block_size: None,
            kv_blocks: None,
            max_num_seqs: None,
            labels: self.labels.clone(),
        }
    }
}

fn hash_of(text: &str) -> u64 {
    text.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte) ^ 0x5bd1_e995))
}

/// This machine's name; `engine` where it has none that can be read.
fn host_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    if host.is_empty() { "engine".into() } else { host.into() }
}

/// Name of the engine at `address` on the machine `host`: the same after every start, another for each engine of the
/// machine, and no address, for clients are told it.
fn name_at(host: &str, address: &str) -> String {
    format!("{host}-{:06x}", hash_of(address) >> 40)
}

/// The host of `host:port`, brackets of an IPv6 address removed.
pub(crate) fn host_of(address: &str) -> Result<String, &'static str> {
    let (host, port) = address.rsplit_once(':').ok_or("write HOST:PORT")?;
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err("the port is a number from 1 to 65535");
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare {
        Some(bare) if bare.parse::<std::net::Ipv6Addr>().is_ok() => Ok(bare.to_owned()),
        None if !host.is_empty() && !host.contains([':', '/', ' ', '@']) => Ok(host.to_owned()),
        _ => Err("write HOST:PORT, an IPv6 address in brackets"),
    }
}

fn is_local(address: &str) -> bool {
    host_of(address).is_ok_and(|host| {
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use super::{host_name, host_of, name_at};

    #[test]
    fn a_name_is_kept_and_is_no_address() {
        let name = name_at("node-7", "10.0.0.1:8000");
        assert_eq!(name, name_at("node-7", "10.0.0.1:8000"));
        let (host, digits) = name.rsplit_once('-').expect("two parts");
        assert!(
            host == "node-7" && digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_hexdigit()),
            "{name}"
        );
        let others: std::collections::BTreeSet<_> =
            (8000..8064).map(|port| name_at("node-7", &format!("10.0.0.1:{port}"))).collect();
        assert_eq!(others.len(), 64);
        assert!(!host_name().is_empty());
    }

    #[test]
    fn hosts_of_addresses() {
        for (address, host) in [("a:1", "a"), ("10.0.0.1:8000", "10.0.0.1"), ("[fe80::1]:9", "fe80::1")] {
            assert_eq!(host_of(address).as_deref(), Ok(host), "{address}");
        }
        for address in
            ["", "a", ":1", "a:", "a:0", "a:65536", "a:b", "::1:80", "[x]:1", "http://a:1", "u@a:1"]
        {
            assert!(host_of(address).is_err(), "{address}");
        }
    }
}
