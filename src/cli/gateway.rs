//! `fairlead gateway`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use fairlead_config::{Config, Driver, Gateway, HandoffSetting, Runtime, Shards, Size};
use fairlead_dataplane::http::HeadLimits;
use fairlead_dataplane::runtime::Kind;
use fairlead_dataplane::{
    ControlOptions, ControlledGateway, GatewayOptions, Http2Options, Limits, RetryOptions, StaticInstance,
    Timeouts, TlsOptions, UpstreamTls, start_controlled,
};
use fairlead_replication::ReplicaConfig;
use fairlead_transport::{ANY_NAME, LinkOptions};
use fairlead_wire::msg::{Role, ServingRole, Transfer};

use super::tokenizers::{self, TokenizerArgs};
use super::{config, identity, out, routing, signals};

/// How long requests in flight may take to end after the first signal; a second signal ends them at once.
pub const DRAIN: Duration = Duration::from_secs(60);

/// Takes client traffic and routes it: one pinned thread per core, each with its own listener. Serves on when the
/// scheduler is gone.
#[derive(Args)]
pub struct GatewayArgs {
    /// Configuration file; its `gateway:` section is read
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    tokenizers: TokenizerArgs,
}

/// The runtime of the shards.
#[derive(Args)]
pub struct RuntimeArgs {
    /// What shards run on: monoio (the default), or glommio to compare, where the program was built with it
    #[arg(long, value_name = "NAME")]
    runtime: Option<Kind>,
}

impl RuntimeArgs {
    /// What is asked for on the command line comes first. Says at once when this program does not have it.
    pub fn apply(&self, options: &mut GatewayOptions) -> anyhow::Result<()> {
        options.runtime = self.runtime.unwrap_or(options.runtime);
        options.runtime.check().context("runtime")
    }
}

pub fn run(args: GatewayArgs) -> anyhow::Result<ExitCode> {
    let config = config::load(&args.config)?;
    let (mut options, control) = options(&config)?;
    args.runtime.apply(&mut options)?;
    args.tokenizers.add(&mut options.token_models)?;
    let gateway = start_controlled(options, control)?;
    let admin = gateway.admin_addr().map(|addr| format!(" admin=http://{addr}")).unwrap_or_default();
    let data = gateway.gateway();
    let tls = data.tls_addr();
    let plain = (tls != Some(data.addr())).then(|| format!("http://{}", data.addr()));
    let secure = tls.map(|addr| format!("https://{addr}"));
    let urls = [plain, secure].into_iter().flatten().collect::<Vec<_>>().join(" ");
    out::line(format_args!(
        "ready: {urls}{admin} policy={} shards={} runtime={} driver={}",
        data.shared().policy(),
        data.shards(),
        data.runtime(),
        data.driver()
    ));
    signals::runtime(1)?.block_on(async {
        let mut stop = signals::Stop::listen()?;
        if tls.is_some() {
            signals::on_hangup(gateway.gateway().shared().clone(), |shared| shared.reload_tls())?;
        }
        stop.recv().await;
        drain(gateway, &mut stop).await
    })
}

/// Ends a gateway in order: no new connections, what is in flight ends by itself, or by the second signal.
pub async fn drain(gateway: ControlledGateway, stop: &mut signals::Stop) -> anyhow::Result<ExitCode> {
    tracing::info!("draining: requests in flight end, then the gateway does; another signal ends it at once");
    let draining = tokio::task::spawn_blocking(move || gateway.drain(DRAIN));
    tokio::select! {
        finished = draining => {
            if !finished.context("draining")? {
                tracing::warn!("requests were still in flight after {} s and have been cut off", DRAIN.as_secs());
            }
            Ok(ExitCode::SUCCESS)
        }
        () = stop.recv() => {
            tracing::warn!("ended by a second signal with requests in flight");
            // The shards end with the process.
            std::process::exit(130)
        }
    }
}

/// Options of the data plane and of the control thread from a configuration.
pub fn options(config: &Config) -> anyhow::Result<(GatewayOptions, ControlOptions)> {
    let section = &config.gateway;
    let identity = match (&section.scheduler, config.gateway_identity()) {
        (None, _) => None,
        (Some(_), None) => anyhow::bail!(
            "gateway.identity: needed with gateway.scheduler: the folder that `fairlead certs` has made for gateways"
        ),
        (Some(address), Some(dir)) => {
            Some((address.as_str().to_owned(), identity::load("gateway.identity", dir, Role::Gateway)?))
        }
    };
    let seed = identity.as_ref().map_or(0, |(_, identity)| identity.cluster_seed());
    let name = section.name.clone().unwrap_or_else(|| match &identity {
        Some((_, identity)) if identity.peer().name != ANY_NAME => identity.peer().name.clone(),
        _ => unique_name(),
    });
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let alone = identity.is_none();
    let control = ControlOptions {
        scheduler: identity,
        name,
        admin: section.admin,
        instances: instances(section),
        snapshot_wait: section.wait_for_snapshot,
        replica: ReplicaConfig {
            index_bytes: section.index_bytes.bytes(),
            stale_us: micros(section.stale_after),
            blind_us: micros(section.blind_after),
            alone,
            ..ReplicaConfig::default()
        },
        link: LinkOptions::default(),
    };
    let options = GatewayOptions {
        listen: section.listen,
        tls: tls(section),
        http2: http2(section),
        upstream_tls: Some(upstream_tls(section)),
        shards: match section.shards {
            Shards::Auto => 0,
            Shards::Exactly(count) => count,
        },
        runtime: match section.runtime {
            Runtime::Monoio => Kind::Monoio,
            Runtime::Glommio => Kind::Glommio,
        },
        driver: match section.driver {
            Driver::Auto => fairlead_dataplane::runtime::Driver::Auto,
            Driver::Uring => fairlead_dataplane::runtime::Driver::Uring,
            Driver::Epoll => fairlead_dataplane::runtime::Driver::Epoll,
        },
        base_path: section.base_path.as_str().to_owned(),
        proxy_protocol: section.proxy_protocol,
        routing: routing::options(section)?,
        cluster_seed: seed,
        token_models: tokenizers::models(section)?,
        tokenising: tokenizers::bounds(section),
        allow_steering: section.allow_steering,
        limits: Limits {
            head: HeadLimits { max_bytes: section.max_head.bytes(), ..HeadLimits::default() },
            max_body: section.max_body.bytes(),
            form_held: section.max_form_held.bytes(),
            body_budget: section.max_held_bodies.bytes(),
            max_connections: section.max_connections,
            max_in_flight: section.max_in_flight,
            pool_per_target: section.upstream.max_per_target,
            ..Limits::default()
        },
        timeouts: Timeouts {
            head: section.timeouts.head,
            body: section.timeouts.body,
            idle: section.timeouts.idle,
            stall: section.timeouts.stall,
            prefill: section.timeouts.prefill,
            connect: section.timeouts.connect,
            pool_idle: section.upstream.idle,
            ..Timeouts::default()
        },
        retry: RetryOptions {
            max_retries: section.retry_count,
            backoff: section.retry.backoff,
            budget_share: section.retry.budget,
            budget_floor: section.retry.budget_floor,
            ..RetryOptions::default()
        },
        ..GatewayOptions::default()
    };
    Ok((options, control))
}

/// The TLS port, where there is a certificate.
fn tls(section: &Gateway) -> Option<TlsOptions> {
    let tls = &section.tls;
    Some(TlsOptions {
        listen: tls.listen,
        certificate: tls.certificate.clone()?,
        key: tls.key.clone()?,
        client_ca: tls.client_ca.clone(),
        require_client_certificate: tls.require_client_certificate,
        http2: section.http2.enabled,
    })
}

/// How HTTP/2 is spoken with clients.
fn http2(section: &Gateway) -> Http2Options {
    let http2 = &section.http2;
    // The configuration bounds them.
    let window = |size: Size| u32::try_from(size.bytes()).unwrap_or(u32::MAX);
    Http2Options {
        enabled: http2.enabled,
        max_concurrent_streams: http2.max_concurrent_streams,
        stream_window: window(http2.stream_window),
        connection_window: window(http2.connection_window),
        withdrawal: http2.withdrawal,
    }
}

/// How instances are reached over TLS.
fn upstream_tls(section: &Gateway) -> UpstreamTls {
    let tls = &section.upstream.tls;
    UpstreamTls {
        ca: tls.ca.clone(),
        server_name: tls.server_name.clone(),
        insecure: tls.insecure_skip_verify,
    }
}

/// Reads certificates and keys as a start would.
pub fn check_tls(section: &Gateway) -> anyhow::Result<()> {
    if let Some(tls) = tls(section) {
        tls.check().context("gateway.tls")?;
    }
    upstream_tls(section).check().context("gateway.upstream.tls")
}

fn instances(section: &Gateway) -> Vec<fairlead_wire::msg::InstanceInfo> {
    let known = |(at, instance): (usize, &fairlead_config::Instance)| {
        let address = instance.url.as_ref()?.address();
        let models = instance.models.clone();
        let named = StaticInstance { name: instance.name(at), address, models };
        let role = instance.role.role().unwrap_or_default();
        let transfer = transfer(instance);
        if transfer.is_none() && role != ServingRole::Both {
            tracing::warn!(
                instance = named.name,
                "its role is {}, but how it hands KV over is not said: give handoff",
                instance.role.as_str()
            );
        }
        Some(named.info_as(role, transfer))
    };
    section.instances.iter().enumerate().filter_map(known).collect()
}

/// How a configured instance hands KV over; `None` unless that is said.
fn transfer(instance: &fairlead_config::Instance) -> Option<Transfer> {
    let HandoffSetting::Is(handoff) = instance.handoff else { return None };
    Some(Transfer {
        domain: instance.transfer_domain.clone().unwrap_or_default(),
        bootstrap: instance.bootstrap(),
        peer: instance.peer.as_ref().map(|peer| peer.as_str().to_owned()),
        peer_port: instance.peer_port,
        bytes_per_token: instance.kv_bytes_per_token,
        ..Transfer::new(handoff)
    })
}

/// A name that no other gateway of the cluster has.
fn unique_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{}-{}", if host.is_empty() { "gateway" } else { host }, std::process::id())
}
