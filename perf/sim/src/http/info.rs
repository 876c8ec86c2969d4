//! Routes that tell about the engine.

use super::body::AnswerBody;
use super::route::{error, reply, reply_json};
use crate::engine::Engine;
use crate::handoff::info as handoff;
use crate::metrics;
use crate::options::EngineKind;
use hyper::{Method, Response, StatusCode, Uri};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;

/// Version told by engines that speak vLLM.
pub(crate) const VLLM_VERSION: &str = "0.32.0";
/// Version told by engines that speak SGLang.
pub(crate) const SGLANG_VERSION: &str = "0.5.23";

/// Answers a route without a prompt.
pub(crate) fn answer(engine: &Arc<Engine>, uri: &Uri, method: &Method) -> Response<AnswerBody> {
    let path = uri.path();
    let sglang = engine.options.engine == EngineKind::Sglang;
    let get = method == Method::GET || method == Method::HEAD;
    let ok = |v: Value| reply_json(StatusCode::OK, &v);
    let unknown = || error(engine, None, StatusCode::NOT_FOUND, None, "Not Found");
    match path {
        "/health" | "/ping" => health(engine),
        "/health_generate" | "/health/ready" if get => health(engine),
        "/metrics" | "/metrics/" if get => {
            let page = if sglang { metrics::sglang(engine) } else { metrics::vllm(engine) };
            reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
        }
        "/v1/models" if get => ok(models(engine)),
        "/version" if get && !sglang => ok(json!({"version": VLLM_VERSION})),
        "/load" if get && !sglang => ok(json!({"server_load": engine.core().traffic.in_flight})),
        "/kv_event_sources" if get && !sglang && engine.events.is_some() => ok(kv_event_sources(engine)),
        "/server_info" | "/get_server_info" if get && sglang => ok(server_info(engine)),
        "/server_info" if get => match &engine.handover {
            Some(handover) => {
                let json = uri.query().is_some_and(|q| q.split('&').any(|p| p == "config_format=json"));
                ok(handoff::server_info(engine, handover, json))
            }
            None => unknown(),
        },
        "/query" if get => handoff::query(engine).map_or_else(unknown, ok),
        "/route" if get => match handoff::route(engine) {
            Some(Some(known)) => ok(known),
            Some(None) => {
                reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not all ranks have registered")
            }
            None => unknown(),
        },
        "/model_info" | "/get_model_info" if get && sglang => ok(json!({
            "model_path": engine.options.models[0], "tokenizer_path": engine.options.models[0],
            "is_generation": true, "preferred_sampling_params": null, "weight_version": "default"})),
        "/v1/loads" if get && sglang => ok(loads(engine)),
        "/reset_prefix_cache" | "/flush_cache" if method == Method::POST => {
            engine.clear_cache();
            reply(StatusCode::OK, "text/plain", "")
        }
        _ => unknown(),
    }
}

fn health(engine: &Engine) -> Response<AnswerBody> {
    let status = if engine.ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    reply(status, "application/json", "")
}

fn models(engine: &Engine) -> Value {
    let owner = if engine.options.engine == EngineKind::Vllm { "vllm" } else { "sglang" };
    let o = &engine.options;
    let all = o.models.iter().map(|m| (m, None)).chain(o.loras.iter().map(|m| (m, Some(&o.models[0]))));
    let data: Vec<Value> = all
        .map(|(m, parent)| {
            json!({"id": m, "object": "model", "created": engine.started_unix as u64, "owned_by": owner, "root": m,
                "parent": parent, "max_model_len": o.max_model_len})
        })
        .collect();
    json!({"object": "list", "data": data})
}

fn server_info(engine: &Engine) -> Value {
    let o = &engine.options;
    let core = engine.core();
    json!({
        "model_path": o.models[0], "served_model_name": o.models[0], "version": SGLANG_VERSION,
        "host": o.listen.ip().to_string(), "port": o.listen.port(), "page_size": o.block_tokens, "dp_size": 1,
        "tp_size": 1, "context_length": o.max_model_len, "disaggregation_mode": handoff::mode(engine),
        "disaggregation_bootstrap_port": if engine.handover.is_some() { o.listen.port() } else { 8998 },
        "disaggregation_transfer_backend": "mooncake",
        "max_running_requests": o.profile.max_running, "chunked_prefill_size": o.profile.token_budget,
        "max_total_num_tokens": max_tokens(engine), "status": if core.traffic.in_flight > 0 { "busy" } else { "ready" },
        "enable_metrics": true, "kv_events": kv_events(engine),
        "internal_states": [{"last_gen_throughput": core.rate, "avg_spec_accept_length": null}]})
}

/// An address as the engines tell it.
fn endpoint(addr: SocketAddr) -> String {
    if addr.ip().is_unspecified() { format!("tcp://*:{}", addr.port()) } else { format!("tcp://{addr}") }
}

/// vLLM's form: publishers by data-parallel rank, of which there is one.
fn kv_event_sources(engine: &Engine) -> Value {
    let Some(told) = engine.events.as_ref().map(|e| &e.told) else { return json!({}) };
    json!({"0": {
        "enable_kv_cache_events": true, "publisher": "zmq", "endpoint": endpoint(told.events),
        "replay_endpoint": told.replay.map(endpoint), "buffer_steps": told.kept, "hwm": 100_000,
        "max_queue_size": 100_000, "topic": told.topic}})
}

/// SGLang's form: the first of the ranks' ports.
fn kv_events(engine: &Engine) -> Value {
    let Some(told) = engine.events.as_ref().map(|e| &e.told) else { return Value::Null };
    let ip = told.events.ip();
    let host = if ip.is_unspecified() { "*".to_owned() } else { ip.to_string() };
    let mut v = json!({
        "publisher": "zmq", "endpoint_host": host, "endpoint_port_base": told.events.port(), "topic": told.topic,
        "block_size": engine.options.block_tokens, "dp_size": 1});
    if let Some(replay) = told.replay {
        v["replay_endpoint_port_base"] = replay.port().into();
    }
    v
}

/// Tokens that the cache holds.
pub(crate) fn max_tokens(engine: &Engine) -> u64 {
    u64::from(engine.options.blocks()) * u64::from(engine.options.block_tokens)
}

fn loads(engine: &Engine) -> Value {
    let max = max_tokens(engine);
    let now = engine.started_unix + engine.now();
    let core = engine.core();
    let m = &core.model;
    let used = m.used_tokens();
    let waiting_uncached = m.waiting_uncached_tokens();
    let throughput = if m.running() > 0 { core.rate } else { 0.0 };
    json!({
        "timestamp": now, "version": SGLANG_VERSION, "accelerator": "simulated", "num_accelerators": 1,
        "loads": [{
            "dp_rank": 0, "num_running_reqs": m.running(), "num_waiting_reqs": m.waiting(),
            "num_waiting_uncached_tokens": waiting_uncached, "num_used_tokens": used,
            "num_total_tokens": used + waiting_uncached, "num_active_tokens": used, "max_total_num_tokens": max,
            "max_running_requests": engine.options.profile.max_running,
            "token_usage": used as f64 / max.max(1) as f64, "gen_throughput": throughput,
            "cache_hit_rate": m.stats().last_hit_rate,
            "utilization": m.running() as f64 / f64::from(engine.options.profile.max_running)}]})
}
