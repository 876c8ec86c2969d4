//! How the engine hands KV to other engines, and which part it plays.
//!
//! What an engine says of its connector ([`Said`]) is brought together with what the agent was told
//! ([`TransferOptions`]), which wins. Ports become addresses on the host at which gateways reach the engine: connectors
//! listen beside it and are reached by the same network.

mod bootstrap;
mod options;
mod said;

pub(crate) use bootstrap::{NoBootstrap, engine_ids, route};
pub use options::{HandoffChoice, TransferOptions};
pub(crate) use said::{Said, sglang, vllm};

use crate::engine::cleaned;
use fairlead_wire::limits;
use fairlead_wire::msg::{EngineKind, Handoff, ServingRole, Transfer};

/// Port of bootstrap servers where nobody says otherwise: SGLang's and vLLM's Mooncake connector agree.
pub(crate) const BOOTSTRAP_PORT: u16 = 8998;

/// Whether prefill instances have a bootstrap server for it.
pub(crate) fn has_bootstrap(handoff: Handoff) -> bool {
    matches!(handoff, Handoff::Sglang | Handoff::Mooncake)
}

/// Whether the connectors' own sockets are named in requests.
pub(crate) fn has_peer(handoff: Handoff) -> bool {
    matches!(handoff, Handoff::MoriRead | Handoff::MoriWrite | Handoff::P2pNccl | Handoff::LmcachePd)
}

/// Whether an instance of that role is of no use without it: of LMCache's PD backend only the receiver is named.
pub(crate) fn needs_peer(handoff: Handoff, role: ServingRole) -> bool {
    has_peer(handoff) && !(handoff == Handoff::LmcachePd && role == ServingRole::Prefill)
}

/// Whether a connector's further port is named in requests.
pub(crate) fn has_peer_port(handoff: Handoff) -> bool {
    matches!(handoff, Handoff::MoriRead | Handoff::MoriWrite | Handoff::LmcachePd)
}

/// `host:port`; `None` for a host that cannot be one, or is one's own everywhere.
pub(crate) fn place(host: &str, port: u16) -> Option<String> {
    let own = |ip: std::net::IpAddr| ip.is_loopback() || ip.is_unspecified();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) if own(ip) => None,
        Ok(std::net::IpAddr::V6(ip)) => Some(format!("[{ip}]:{port}")),
        Ok(ip) => Some(format!("{ip}:{port}")),
        Err(_) => ((1..=limits::MAX_NAME - 6).contains(&host.len())
            && host != "localhost"
            && host.bytes().all(plain))
        .then(|| format!("{host}:{port}")),
    }
}

/// `host:port` on the engine's own host, which may be a loopback address there.
fn beside(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The part that an instance plays, and how.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Settled {
    pub role: ServingRole,
    pub transfer: Option<Transfer>,
}

/// Brings together what was told and what the engine says. `host`: where gateways reach the engine.
pub(crate) fn settle(
    options: &TransferOptions,
    said: &Said,
    host: &str,
    kind: EngineKind,
    version: &str,
) -> Settled {
    let role = options.role.or(said.role).unwrap_or_default();
    let found = said.handoff.filter(|_| !(said.private && role == ServingRole::Both));
    let handoff = match options.handoff {
        HandoffChoice::Auto => found,
        HandoffChoice::None => None,
        HandoffChoice::Is(handoff) => Some(handoff),
    };
    let Some(handoff) = handoff else { return Settled { role, transfer: None } };
    let nothing = Said::default();
    let said = if said.handoff == Some(handoff) { said } else { &nothing };
    let bootstrap = || beside(host, said.bootstrap_port.unwrap_or(BOOTSTRAP_PORT));
    let peer =
        |port| said.peer_host.as_deref().and_then(|host| place(host, port)).unwrap_or(beside(host, port));
    let serves = has_bootstrap(handoff) && role != ServingRole::Decode;
    let transfer = Transfer {
        domain: options.domain.clone().unwrap_or_else(|| domain(handoff, said, kind, version)),
        bootstrap: options.bootstrap.clone().or_else(|| serves.then(bootstrap)),
        peer: options.peer.clone().or_else(|| said.peer.map(peer)),
        peer_port: options.peer_port.or(said.peer_port),
        bytes_per_token: options.bytes_per_token,
        ..Transfer::new(handoff)
    };
    Settled { role, transfer: Some(transfer) }
}

/// Connectors of different vLLM versions refuse each other when they meet, so that must be seen before. SGLang's
/// engines of one transfer backend understand each other.
fn domain(handoff: Handoff, said: &Said, kind: EngineKind, version: &str) -> String {
    let name = said.connector.as_deref();
    let text = match (handoff, kind) {
        (Handoff::Sglang, _) => name.unwrap_or_default().to_owned(),
        (_, EngineKind::Vllm) => {
            let connector = match handoff {
                Handoff::NixlPull => "NixlConnector",
                Handoff::NixlPush => "NixlPushConnector",
                Handoff::Mooncake => "MooncakeConnector",
                Handoff::MoriRead | Handoff::MoriWrite => "MoRIIOConnector",
                Handoff::P2pNccl => "P2pNcclConnector",
                // These share a store, which is another for each of them.
                _ => name.unwrap_or(handoff.as_str()),
            };
            format!("{connector}/{version}")
        }
        _ => String::new(),
    };
    cleaned(&text, limits::MAX_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(handoff: HandoffChoice) -> TransferOptions {
        TransferOptions { handoff, ..TransferOptions::default() }
    }

    #[test]
    fn what_is_told_wins() {
        let said = Said {
            handoff: Some(Handoff::P2pNccl),
            role: Some(ServingRole::Prefill),
            connector: Some("P2pNcclConnector".into()),
            peer_host: Some("10.0.0.9".into()),
            peer: Some(21001),
            ..Said::default()
        };
        let settle =
            |options: &TransferOptions| settle(options, &said, "10.0.0.1", EngineKind::Vllm, "0.20.0");
        let found = settle(&TransferOptions::default());
        assert_eq!(found.role, ServingRole::Prefill);
        let transfer = found.transfer.expect("a hand-off");
        assert_eq!(
            (transfer.handoff, transfer.domain.as_str()),
            (Handoff::P2pNccl, "P2pNcclConnector/0.20.0")
        );
        assert_eq!((transfer.peer.as_deref(), transfer.bootstrap), (Some("10.0.0.9:21001"), None));

        assert_eq!(settle(&told(HandoffChoice::None)).transfer, None);
        let other = settle(&told(HandoffChoice::Is(Handoff::Mooncake))).transfer.expect("a hand-off");
        assert_eq!((other.peer, other.bootstrap.as_deref()), (None, Some("10.0.0.1:8998")));
        assert_eq!(other.domain, "MooncakeConnector/0.20.0");

        let all = TransferOptions {
            role: Some(ServingRole::Decode),
            handoff: HandoffChoice::Is(Handoff::P2pNccl),
            peer: Some("a:1".into()),
            domain: Some("rack-7".into()),
            bytes_per_token: Some(1024),
            ..TransferOptions::default()
        };
        let found = settle(&all);
        let transfer = found.transfer.expect("a hand-off");
        assert_eq!(found.role, ServingRole::Decode);
        assert_eq!((transfer.peer.as_deref(), transfer.domain.as_str()), (Some("a:1"), "rack-7"));
        assert_eq!(transfer.bytes_per_token, Some(1024));
    }

    #[test]
    fn a_cache_of_its_own_is_no_shared_store() {
        let said = Said { handoff: Some(Handoff::SharedStore), private: true, ..Said::default() };
        let settle = |options: &TransferOptions| settle(options, &said, "h", EngineKind::Vllm, "1").transfer;
        assert_eq!(settle(&TransferOptions::default()), None);
        let decode = TransferOptions { role: Some(ServingRole::Decode), ..TransferOptions::default() };
        assert!(settle(&decode).is_some());
        assert!(settle(&told(HandoffChoice::Is(Handoff::SharedStore))).is_some());
    }

    #[test]
    fn places_are_reached_from_elsewhere() {
        for (host, want) in [
            ("10.0.0.1", Some("10.0.0.1:7")),
            ("engine-1.pool_a", Some("engine-1.pool_a:7")),
            ("fe80::1", Some("[fe80::1]:7")),
            ("127.0.0.1", None),
            ("0.0.0.0", None),
            ("::1", None),
            ("::", None),
            ("localhost", None),
            ("", None),
            ("a b", None),
            ("a:1", None),
            ("ä", None),
        ] {
            assert_eq!(place(host, 7).as_deref(), want, "{host}");
        }
        assert_eq!(place(&"a".repeat(300), 7), None);
        assert_eq!(beside("::1", 7), "[::1]:7");
    }
}
