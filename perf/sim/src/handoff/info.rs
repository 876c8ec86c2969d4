//! What an engine tells of its hand-offs.

use super::{Handover, OnKvFailure};
use crate::engine::Engine;
use crate::options::EngineKind;
use fairlead_wire::msg::{Handoff, ServingRole};
use serde_json::{Map, Value, json};

/// SGLang's `disaggregation_mode`.
pub(crate) fn mode(engine: &Engine) -> &'static str {
    match engine.handover.as_ref().map(|h| h.role) {
        Some(ServingRole::Prefill) => "prefill",
        Some(ServingRole::Decode) => "decode",
        _ => "null",
    }
}

/// vLLM's `GET /server_info`, as far as it is about hand-offs; there in development mode only. Its configuration is
/// an object where JSON is asked for, else text.
pub(crate) fn server_info(engine: &Engine, handover: &Handover, json: bool) -> Value {
    let config = config(engine, handover);
    let config = if json { config } else { Value::from(config.to_string()) };
    json!({"vllm_config": config, "vllm_env": {}, "system_env": {}})
}

fn config(engine: &Engine, handover: &Handover) -> Value {
    let (host, port) = handover.side_channel();
    let role = match handover.role {
        ServingRole::Both => "kv_both",
        ServingRole::Prefill => "kv_producer",
        ServingRole::Decode => "kv_consumer",
    };
    let mut extra = Map::new();
    if !handover.options.domain.is_empty() {
        extra.insert("domain".into(), json!(handover.options.domain));
    }
    let connector = match handover.options.handoff {
        // SGLang's never asks; it has another page.
        Handoff::NixlPull | Handoff::Sidecar | Handoff::Sglang => "NixlConnector",
        Handoff::NixlPush => "NixlPushConnector",
        Handoff::Mooncake => "MooncakeConnector",
        Handoff::MoriRead | Handoff::MoriWrite => {
            let reads = handover.options.handoff == Handoff::MoriRead;
            extra.insert("read_mode".into(), json!(reads));
            for name in ["http_port", "handshake_port", "notify_port"] {
                extra.insert(name.into(), json!(port));
            }
            "MoRIIOConnector"
        }
        Handoff::P2pNccl => {
            extra.insert("http_port".into(), json!(port));
            "P2pNcclConnector"
        }
        Handoff::SharedStore => "LMCacheConnectorV1",
        Handoff::LmcachePd => {
            extra.insert("lmcache_pd".into(), json!(true));
            "LMCacheConnectorV1"
        }
    };
    let o = &engine.options;
    let policy = match handover.options.on_failure {
        OnKvFailure::Fail => "fail",
        OnKvFailure::Recompute => "recompute",
    };
    json!({
        "model_config": {"model": o.models[0], "max_model_len": o.max_model_len},
        "cache_config": {"block_size": o.block_tokens},
        "kv_transfer_config": {
            "kv_connector": connector, "engine_id": handover.engine_id, "kv_buffer_device": "cuda",
            "kv_buffer_size": 1e9, "kv_role": role, "kv_rank": null, "kv_parallel_size": 1, "kv_ip": host,
            "kv_port": port, "kv_connector_extra_config": extra, "kv_connector_module_path": null,
            "kv_load_failure_policy": policy}})
}

/// Mooncake's bootstrap server: engines by data-parallel rank, workers by tensor and pipeline rank.
pub(crate) fn query(engine: &Engine) -> Option<Value> {
    let handover = engine.handover.as_ref()?;
    let serves = handover.options.handoff == Handoff::Mooncake && handover.role != ServingRole::Decode;
    let (host, port) = handover.side_channel();
    let worker = format!("tcp://{}", super::leg::place(&host, port));
    serves.then(|| json!({"0": {"engine_id": handover.engine_id, "worker_addr": {"0": {"0": worker}}}}))
}

/// SGLang's bootstrap server: `None` where there is none, `Some(None)` until all ranks have registered.
pub(crate) fn route(engine: &Engine) -> Option<Option<Value>> {
    let handover = engine.handover.as_ref()?;
    if engine.options.engine != EngineKind::Sglang || handover.role != ServingRole::Prefill {
        return None;
    }
    let o = &engine.options;
    Some(engine.ready().then(|| {
        json!({
            "attn_tp_size": 1, "attn_cp_size": 1, "dp_size": 1, "pp_size": 1, "page_size": o.block_tokens,
            "kv_cache_dtype": "auto", "follow_bootstrap_room": true, "prefill_http_port": o.listen.port()})
    }))
}
