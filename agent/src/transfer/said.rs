//! What engines say of their connectors.

use fairlead_wire::msg::{Handoff, ServingRole};
use serde_json::Value;

/// Longest name of a connector or transfer backend kept, bytes.
const NAME_MAX: usize = 128;

/// Port of P2pNcclConnector's socket where none is configured.
const P2P_NCCL_PORT: u16 = 14579;
/// Ports of MoRIIOConnector's handshakes and notices where none are configured.
const MORI_PORTS: (u16, u16) = (6301, 61005);

/// What an engine says of its connector. `None` is not said.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Said {
    pub role: Option<ServingRole>,
    pub handoff: Option<Handoff>,
    /// It may be a store of the engine's own, that no other engine reads: only an instance with a part to play is taken
    /// to share it.
    pub private: bool,
    /// Name of the connector, SGLang: of the transfer backend.
    pub connector: Option<String>,
    pub bootstrap_port: Option<u16>,
    /// Host of its socket, where that is named.
    pub peer_host: Option<String>,
    pub peer: Option<u16>,
    pub peer_port: Option<u16>,
}

impl Said {
    /// A vLLM of which only the metrics page tells: it has figures of NIXL transfers.
    pub fn nixl() -> Self {
        Self { handoff: Some(Handoff::NixlPull), ..Self::default() }
    }
}

/// Reads SGLang's `/server_info`.
pub(crate) fn sglang(server: &Value) -> Said {
    let role = match text(server, "disaggregation_mode") {
        Some("prefill") => ServingRole::Prefill,
        Some("decode") => ServingRole::Decode,
        _ => return Said::default(),
    };
    Said {
        role: Some(role),
        handoff: Some(Handoff::Sglang),
        connector: text(server, "disaggregation_transfer_backend")
            .filter(|name| fits(name))
            .map(str::to_owned),
        bootstrap_port: port(server, "disaggregation_bootstrap_port"),
        ..Said::default()
    }
}

/// Reads vLLM's `/server_info?config_format=json`. Versions and forks have the configuration at its top or one level
/// down, as an object; written out as text it is not read.
pub(crate) fn vllm(info: &Value) -> Said {
    let places = [info.get("kv_transfer_config"), info.pointer("/vllm_config/kv_transfer_config")];
    let Some(config) = places.into_iter().flatten().find(|config| config.is_object()) else {
        return Said::default();
    };
    let environment = info.get("vllm_env").unwrap_or(&Value::Null);
    let mut said = connector(config, environment);
    if text(config, "kv_connector") == Some("MultiConnector") {
        let inner = config.pointer("/kv_connector_extra_config/connectors").and_then(Value::as_array);
        let known = inner.into_iter().flatten().map(|inner| connector(inner, environment));
        if let Some(known) = known.into_iter().find(|said| said.handoff.is_some()) {
            said = Said { role: known.role.or(said.role), ..known };
        }
    }
    said
}

/// Reads one connector's configuration.
fn connector(config: &Value, environment: &Value) -> Said {
    let name = text(config, "kv_connector").unwrap_or_default();
    let extra = config.get("kv_connector_extra_config").unwrap_or(&Value::Null);
    let role = match text(config, "kv_role") {
        Some("kv_producer") => Some(ServingRole::Prefill),
        Some("kv_consumer") => Some(ServingRole::Decode),
        Some("kv_both") => Some(ServingRole::Both),
        _ => None,
    };
    let said = Said { role, connector: fits(name).then(|| name.to_owned()), ..Said::default() };
    match name {
        "NixlConnector" => Said { handoff: Some(Handoff::NixlPull), ..said },
        "NixlPushConnector" => Said { handoff: Some(Handoff::NixlPush), ..said },
        "MooncakeConnector" => Said {
            handoff: Some(Handoff::Mooncake),
            bootstrap_port: port(environment, "VLLM_MOONCAKE_BOOTSTRAP_PORT"),
            ..said
        },
        "MoRIIOConnector" => {
            // Versions that read it from the environment list it there; later ones do not.
            let mode = extra.get("read_mode").or_else(|| environment.get("VLLM_MORIIO_CONNECTOR_READ_MODE"));
            let reads = mode.is_some_and(is_yes);
            Said {
                handoff: Some(if reads { Handoff::MoriRead } else { Handoff::MoriWrite }),
                peer_host: text(extra, "host_ip").map(str::to_owned),
                peer: port(extra, "handshake_port").or(Some(MORI_PORTS.0)),
                peer_port: port(extra, "notify_port").or(Some(MORI_PORTS.1)),
                ..said
            }
        }
        "P2pNcclConnector" => Said {
            handoff: Some(Handoff::P2pNccl),
            peer_host: text(config, "kv_ip").map(str::to_owned),
            peer: port(config, "kv_port").or(Some(P2P_NCCL_PORT)),
            ..said
        },
        "SharedStorageConnector" | "ExampleConnector" => Said { handoff: Some(Handoff::SharedStore), ..said },
        "LMCacheConnectorV1" | "LMCacheMPConnector" | "OffloadingConnector" => {
            Said { handoff: Some(Handoff::SharedStore), private: true, ..said }
        }
        _ => said,
    }
}

fn fits(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.contains(char::is_control)
}

fn text<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    value.get(key)?.as_str()
}

/// A port, as a number or in digits.
fn port(value: &Value, key: &str) -> Option<u16> {
    let port = match value.get(key)? {
        Value::Number(number) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
        Value::String(digits) => digits.parse().ok(),
        _ => None,
    };
    port.filter(|port| *port > 0)
}

/// Whether a setting that may be a text, a number or a truth value says yes.
fn is_yes(value: &Value) -> bool {
    match value {
        Value::Bool(yes) => *yes,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => matches!(text.to_ascii_lowercase().as_str(), "true" | "1" | "yes" | "on"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: &Value) -> Said {
        vllm(&json!({"vllm_config": {"model_config": {}, "kv_transfer_config": config}, "vllm_env": {}}))
    }

    #[test]
    fn every_connector_of_vllm_is_known() {
        let table = [
            (
                json!({"kv_connector": "NixlConnector", "kv_role": "kv_both"}),
                Some(Handoff::NixlPull),
                Some(ServingRole::Both),
            ),
            (
                json!({"kv_connector": "NixlPushConnector", "kv_role": "kv_producer"}),
                Some(Handoff::NixlPush),
                Some(ServingRole::Prefill),
            ),
            (
                json!({"kv_connector": "MooncakeConnector", "kv_role": "kv_consumer"}),
                Some(Handoff::Mooncake),
                Some(ServingRole::Decode),
            ),
            (json!({"kv_connector": "MoRIIOConnector"}), Some(Handoff::MoriWrite), None),
            (
                json!({"kv_connector": "MoRIIOConnector", "kv_connector_extra_config": {"read_mode": "True"}}),
                Some(Handoff::MoriRead),
                None,
            ),
            (json!({"kv_connector": "P2pNcclConnector"}), Some(Handoff::P2pNccl), None),
            (
                json!({"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}),
                Some(Handoff::SharedStore),
                Some(ServingRole::Both),
            ),
            (json!({"kv_connector": "OffloadingConnector"}), Some(Handoff::SharedStore), None),
            (json!({"kv_connector": "SharedStorageConnector"}), Some(Handoff::SharedStore), None),
            (json!({"kv_connector": "ExampleConnector"}), Some(Handoff::SharedStore), None),
            (json!({"kv_connector": "OurOwn", "kv_role": "kv_producer"}), None, Some(ServingRole::Prefill)),
            (
                json!({"kv_connector": "MultiConnector", "kv_role": "kv_producer", "kv_connector_extra_config": {"connectors": [
                    7, {"kv_connector": "OurOwn"}, {"kv_connector": "NixlConnector"}, {"kv_connector": "LMCacheConnectorV1"},
                ]}}),
                Some(Handoff::NixlPull),
                Some(ServingRole::Prefill),
            ),
            (
                json!({"kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": {}}}),
                None,
                None,
            ),
            (json!({}), None, None),
        ];
        for (config, handoff, role) in table {
            let said = read(&config);
            assert_eq!((said.handoff, said.role), (handoff, role), "{config}");
            let at_top = vllm(&json!({"kv_transfer_config": config}));
            assert_eq!(at_top.handoff, handoff, "{config}");
        }
        for none in [json!(null), json!("KVTransferConfig(kv_connector='NixlConnector')"), json!([1])] {
            assert_eq!(read(&none), Said::default());
        }
        assert_eq!(vllm(&json!({"vllm_config": "VllmConfig(...)"})), Said::default());
        assert_eq!(vllm(&json!([])), Said::default());
    }

    #[test]
    fn sockets_are_found() {
        let said =
            read(&json!({"kv_connector": "P2pNcclConnector", "kv_ip": "10.1.1.1", "kv_port": "21001"}));
        assert_eq!((said.peer_host.as_deref(), said.peer), (Some("10.1.1.1"), Some(21001)));
        assert_eq!(
            read(&json!({"kv_connector": "P2pNcclConnector", "kv_port": 70000})).peer,
            Some(P2P_NCCL_PORT)
        );
        let extra = json!({"handshake_port": 6400, "notify_port": "61100", "host_ip": "10.0.0.3"});
        let said = read(&json!({"kv_connector": "MoRIIOConnector", "kv_connector_extra_config": extra}));
        assert_eq!((said.peer, said.peer_port), (Some(6400), Some(61100)));
        assert_eq!(said.peer_host.as_deref(), Some("10.0.0.3"));
        let environment =
            json!({"VLLM_MOONCAKE_BOOTSTRAP_PORT": 9001, "VLLM_MORIIO_CONNECTOR_READ_MODE": true});
        let read = |name: &str| {
            vllm(&json!({"kv_transfer_config": {"kv_connector": name}, "vllm_env": environment}))
        };
        assert_eq!(read("MooncakeConnector").bootstrap_port, Some(9001));
        assert_eq!(read("MoRIIOConnector").handoff, Some(Handoff::MoriRead));
    }

    #[test]
    fn sglang_says_its_part() {
        let server = |mode: &str| {
            json!({"disaggregation_mode": mode, "disaggregation_bootstrap_port": 9100,
                "disaggregation_transfer_backend": "nixl"})
        };
        let said = sglang(&server("prefill"));
        assert_eq!((said.role, said.handoff), (Some(ServingRole::Prefill), Some(Handoff::Sglang)));
        assert_eq!((said.bootstrap_port, said.connector.as_deref()), (Some(9100), Some("nixl")));
        assert_eq!(sglang(&server("decode")).role, Some(ServingRole::Decode));
        assert_eq!(sglang(&server("null")), Said::default());
        assert_eq!(sglang(&json!({})), Said::default());
    }
}
