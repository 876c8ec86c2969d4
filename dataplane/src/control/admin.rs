//! The gateway's admin pages.

use std::sync::Arc;

use fairlead_replication::ReplicaStatus;
use fairlead_routing::Constants;
use fairlead_telemetry::admin::{Page, serve_pages};
use fairlead_wire::msg::{EngineKind, Handoff};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::metrics::Published;
use crate::shared::{LearntCount, Shared};

const KNOWN: &str = "/metrics /healthz /readyz /debug/targets /debug/replica";

/// Serves the pages until dropped.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, status: Published) {
    serve_pages(listener, KNOWN, move |path| {
        let page = match path.as_str() {
            "/metrics" => Some(Page::metrics(shared.registry())),
            "/healthz" => Some(Page::text(200, "ok\n")),
            "/readyz" => Some(match crate::shard::readiness(&shared, &shared.fleet.table()) {
                Ok(ready) => Page::text(200, format!("ready: {ready} targets\n")),
                Err(why) => Page::text(503, format!("{why}\n")),
            }),
            "/debug/targets" => Some(Page::json(targets(&shared).to_string())),
            "/debug/replica" => {
                Some(Page::json(status.load().as_deref().map_or(Value::Null, |s| replica(&s.0)).to_string()))
            }
            _ => None,
        };
        async move { page }
    })
    .await;
}

fn targets(shared: &Shared) -> Value {
    let table = shared.fleet.table();
    let learnt = shared.learnt_counts();
    let rows: Vec<Value> = table
        .entries
        .iter()
        .flatten()
        .map(|entry| {
            let own = entry.cells.counters.in_flight();
            let peers = entry.cells.peers();
            let load = entry.cells.load.read();
            let costs = costs(&entry.cells.costs.read(), learnt.get(&entry.id).copied().unwrap_or_default());
            let engine = match entry.info.engine {
                EngineKind::Generic => "generic",
                EngineKind::Vllm => "vllm",
                EngineKind::Sglang => "sglang",
            };
            let models: Vec<&str> = entry.info.models.iter().map(|m| m.name.as_str()).collect();
            json!({
                "target": entry.id.to_string(),
                "instance": &*entry.name,
                "address": &*entry.address,
                "rank": entry.rank,
                "engine": engine,
                "ready": entry.ready,
                "role": entry.info.role.as_str(),
                "leaning": entry.leaning.as_str(),
                "handoff": entry.handoff().map(Handoff::as_str),
                "models": models,
                "circuit_closed": entry.cells.circuit_closed(crate::runtime::now_us()),
                "requests_total": entry.cells.counters.requests_total(),
                "requests": own.requests,
                "prefilling": own.prefilling,
                "prefill_tokens": own.prefill_tokens,
                "context_tokens": own.context_tokens,
                "peer_requests": peers.requests,
                "foreign_requests": load.foreign_requests,
                "running": load.running,
                "waiting": load.waiting,
                "kv_usage": load.kv_usage,
                "costs": costs,
            })
        })
        .collect();
    json!({ "version": table.version, "targets": rows })
}

/// Constants that decisions are made with, microseconds and tokens, and the observations behind them.
fn costs(constants: &Constants, count: LearntCount) -> Value {
    json!({
        "prefill_us": constants.prefill,
        "attention_us": constants.attention,
        "step_us": constants.step,
        "sequence_us": constants.sequence,
        "context_us": constants.context,
        "chunk_tokens": constants.chunk,
        "own": { "prefills": count.own.0, "decodes": count.own.1 },
        "shared": { "prefills": count.shared.0, "decodes": count.shared.1 },
    })
}

fn replica(status: &ReplicaStatus) -> Value {
    json!({
        "epoch": status.epoch.to_string(),
        "sequence": status.sequence,
        "age_us": status.age_us,
        "connected": status.connected,
        "synced": status.synced,
        "settled": status.settled,
        "provisional": status.provisional,
        "loading": status.loading,
        "index_off": status.index_off,
        "trust": format!("{:?}", status.trust),
        "targets": status.targets,
        "ready": status.ready,
        "peer_gateways": status.peers,
        "overlay_entries": status.overlay_entries,
        "overlay_bytes": status.overlay_bytes,
        "blocks": status.blocks,
        "held_blocks": status.held_blocks,
        "index_bytes": status.index_bytes,
        "round_trip_us": status.round_trip_us,
        "deltas": status.stats.delta_frames,
        "gaps": status.stats.gaps,
        "resumes": status.stats.resumes,
        "snapshots": status.stats.snapshots,
        "placements_sent": status.stats.placements_sent,
        "placements_dropped": status.stats.placements_dropped,
        "diverged": status.stats.diverged,
    })
}
