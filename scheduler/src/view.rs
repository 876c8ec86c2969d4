//! What the admin pages show.

use std::sync::Arc;

use ahash::AHashMap;
use fairlead_replication::{SessionId, Truth};
use fairlead_telemetry::admin::Page;
use fairlead_telemetry::{Definition, Registry, Samples, names};
use fairlead_transport::{Refusals, role_str};
use fairlead_wire::msg::{CacheSource, Costs, RankLoad, RefuseCode};
use serde_json::{Value, json};

use crate::core::{Outlet, Session};

/// What an admin page shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Metrics,
    Health,
    Targets,
    Sessions,
}

/// Counts of the driver.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Kept by the listener.
    pub(crate) turned_away: Arc<Refusals>,
    pub(crate) connected: u64,
    pub(crate) timed_out: u64,
    /// Sessions refused for a frame that is none.
    pub(crate) malformed: u64,
    pub(crate) messages: u64,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

/// All that pages are made of.
pub(crate) struct Scene<'a, O> {
    pub(crate) truth: &'a Truth,
    pub(crate) sessions: &'a AHashMap<SessionId, Session<O>>,
    pub(crate) traffic: &'a Traffic,
    pub(crate) now_us: u64,
}

pub(crate) fn render<O: Outlet>(view: View, scene: &Scene<'_, O>) -> Page {
    match view {
        View::Metrics => metrics(scene),
        // That the truth's owner has answered is the message. Whether peers are there must not matter: they could
        // not come to a scheduler that waits for them before it counts as ready.
        View::Health => Page::text(200, "ok\n"),
        View::Targets => Page::json(targets(scene).to_string()),
        View::Sessions => Page::json(sessions(scene).to_string()),
    }
}

fn targets<O: Outlet>(scene: &Scene<'_, O>) -> Value {
    let list: Vec<Value> = scene
        .truth
        .targets()
        .into_iter()
        .map(|target| {
            let info = &target.info;
            json!({
                "target": target.id.to_string(),
                "instance": info.name,
                "rank": target.rank,
                "ready": target.ready,
                "address": info.address,
                "host": info.host,
                "engine": format!("{:?}", info.engine).to_lowercase(),
                "engine_version": info.engine_version,
                "role": info.role.as_str(),
                "leaning": target.leaning.as_str(),
                "handoff": info.transfer.as_ref().map(|transfer| transfer.handoff.as_str()),
                "incarnation": info.incarnation.to_string(),
                "models": info.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>(),
                "kv_blocks": info.kv_blocks,
                "block_size": info.block_size,
                "in_flight": target.requests,
                "cache": cache_str(target.cache),
                "held_blocks": target.held_blocks,
                "believed_blocks": target.believed_blocks,
                "capacity_factor": target.capacity_factor,
                "cached_ratio": target.cached_ratio,
                "costs": target.costs.map(|costs| costs_json(&costs)),
                "load": target.load.map(|load| load_json(&load, scene.now_us)),
            })
        })
        .collect();
    let stats = scene.truth.stats();
    json!({ "epoch": stats.epoch.to_string(), "sequence": stats.sequence, "settled": stats.settled, "targets": list })
}

fn costs_json(costs: &Costs) -> Value {
    json!({
        "prefill_us": costs.prefill,
        "attention_us": costs.attention,
        "step_us": costs.step,
        "sequence_us": costs.sequence,
        "context_us": costs.context,
        "chunk_tokens": costs.chunk,
        "prefills": costs.prefills,
        "decodes": costs.decodes,
    })
}

const fn cache_str(cache: CacheSource) -> &'static str {
    match cache {
        CacheSource::Placements => "placements",
        CacheSource::Events => "events",
        CacheSource::PartialEvents => "events, partial",
    }
}

/// All codes with which peers are refused, in the order of their declaration, and their labels.
const CODES: [(RefuseCode, &str); 6] = [
    (RefuseCode::Protocol, "protocol"),
    (RefuseCode::Identity, "identity"),
    (RefuseCode::Invalid, "invalid"),
    (RefuseCode::Malformed, "malformed"),
    (RefuseCode::Capacity, "capacity"),
    (RefuseCode::Superseded, "superseded"),
];

fn load_json(load: &RankLoad, now_us: u64) -> Value {
    json!({
        "age_ms": now_us.saturating_sub(load.taken_us) / 1000,
        "running": load.running,
        "waiting": load.waiting,
        "kv_usage": load.kv_usage,
        "kv_total_tokens": load.kv_total_tokens,
        "prompt_tokens_total": load.prompt_tokens_total,
        "generation_tokens_total": load.generation_tokens_total,
        "prompt_tokens_per_s": load.prompt_tokens_per_s,
        "generation_tokens_per_s": load.generation_tokens_per_s,
        "cache_hit_rate": load.cache_hit_rate,
        "host_kv_usage": load.host_kv_usage,
        "queue_time_s": load.queue_time_s,
        "prefill_time_s": load.prefill_time_s,
        "decode_time_s": load.decode_time_s,
        "request_prompt_tokens": load.request_prompt_tokens,
        "request_generation_tokens": load.request_generation_tokens,
        "busy": load.busy,
        "utilization": load.utilization,
    })
}

fn sessions<O: Outlet>(scene: &Scene<'_, O>) -> Value {
    let mut ordered: Vec<_> = scene.sessions.iter().collect();
    ordered.sort_unstable_by_key(|(session, _)| **session);
    let list: Vec<Value> = ordered
        .into_iter()
        .map(|(session, entry)| {
            let stats = entry.sender.stats();
            json!({
                "session": session.0,
                "role": role_str(entry.role),
                "name": entry.name,
                "software": entry.software,
                "protocol": entry.protocol,
                "incarnation": entry.incarnation.to_string(),
                "remote": entry.sender.remote_address().to_string(),
                "connected_s": scene.now_us.saturating_sub(entry.since_us) / 1_000_000,
                "link_lost": entry.lost,
                "messages_received": entry.messages,
                "frames_sent": stats.frames_sent,
                "bytes_sent": stats.bytes_sent,
                "bytes_received": stats.bytes_received,
                "packets_lost": stats.packets_lost,
                "rtt_us": stats.rtt_us,
            })
        })
        .collect();
    json!({ "epoch": scene.truth.stats().epoch.to_string(), "sessions": list })
}

fn metrics<O: Outlet>(scene: &Scene<'_, O>) -> Page {
    let stats = scene.truth.stats();
    let index = scene.truth.index_stats();
    let traffic = scene.traffic;
    let registry = Registry::new();
    let gauge = |name, help, labels, samples: Vec<(&'static str, u64)>| {
        registry.gauge_callback(&Definition::new(name, help, labels), push(samples));
    };
    gauge(
        "fairlead_scheduler_sessions",
        "Peers connected",
        &["role"],
        vec![("agent", stats.agents as u64), ("gateway", stats.gateways as u64)],
    );
    gauge(
        "fairlead_scheduler_targets",
        "Targets known",
        &["state"],
        vec![("ready", stats.ready as u64), ("unready", stats.targets.saturating_sub(stats.ready) as u64)],
    );
    let refusals = CODES.iter().map(|&(code, label)| {
        let malformed = if code == RefuseCode::Malformed { traffic.malformed } else { 0 };
        let before_hello = traffic.turned_away.of(code) as u64;
        (label, stats.refused_by[code as usize] + malformed + before_hello)
    });
    registry.counter_callback(&names::SCHEDULER_REFUSALS, push(refusals.collect()));
    gauge(
        names::SCHEDULER_CACHE_SOURCES.name,
        names::SCHEDULER_CACHE_SOURCES.help,
        names::SCHEDULER_CACHE_SOURCES.labels,
        vec![
            ("events", stats.exact as u64),
            ("partial", stats.partial as u64),
            ("placements", stats.targets.saturating_sub(stats.exact + stats.partial) as u64),
        ],
    );
    gauge(
        "fairlead_scheduler_leaning",
        "Targets by the part that they should rather play",
        &["role"],
        vec![
            ("prefill", stats.lean_prefill as u64),
            ("decode", stats.lean_decode as u64),
            ("neither", stats.targets.saturating_sub(stats.lean_prefill + stats.lean_decode) as u64),
        ],
    );
    for (definition, value) in [(names::INDEX_BLOCKS, index.held_blocks), (names::INDEX_BYTES, index.bytes)] {
        registry.gauge_callback(&definition, push(vec![("", value)]));
    }
    for (name, help, value) in [
        ("fairlead_scheduler_epoch", "Start of this scheduler, microseconds since 1970", stats.epoch),
        ("fairlead_scheduler_sequence", "Operations told to gateways in this epoch", stats.sequence),
        ("fairlead_scheduler_settled", "Whether the epoch has settled", stats.settled.into()),
        (
            "fairlead_scheduler_index_distinct_blocks",
            "Blocks in the prefix index, counted once",
            index.blocks,
        ),
        ("fairlead_scheduler_index_runs", "Runs in the prefix index", index.runs),
        (
            "fairlead_scheduler_ring_bytes",
            "Recent frames kept for resuming gateways",
            stats.ring_bytes as u64,
        ),
        ("fairlead_scheduler_snapshot_bytes", "Snapshots kept", stats.snapshot_bytes as u64),
        (
            "fairlead_scheduler_waiting_bytes",
            "Inputs that wait while a snapshot is encoded",
            stats.waiting_bytes as u64,
        ),
    ] {
        gauge(name, help, &[], vec![("", value)]);
    }
    for (name, help, value) in [
        ("fairlead_scheduler_connections_total", "Peers that connected", traffic.connected),
        (
            "fairlead_scheduler_turned_away_total",
            "Peers refused before their hello was accepted",
            traffic.turned_away.total() as u64,
        ),
        ("fairlead_scheduler_links_timed_out_total", "Links lost for silence", traffic.timed_out),
        ("fairlead_scheduler_messages_total", "Messages received", traffic.messages),
        ("fairlead_scheduler_frames_total", "Frames sent, counted per receiver", traffic.frames),
        ("fairlead_scheduler_sent_bytes_total", "Bytes of those frames", traffic.bytes),
        ("fairlead_scheduler_delta_frames_total", "Frames of operations made", stats.delta_frames),
        ("fairlead_scheduler_snapshots_built_total", "Snapshots encoded", stats.snapshots_built),
        ("fairlead_scheduler_snapshots_total", "Gateways started on a snapshot", stats.snapshots_started),
        ("fairlead_scheduler_resumed_total", "Gateways resumed from recent frames", stats.resumed),
        ("fairlead_scheduler_refused_total", "Sessions refused", stats.refused),
        ("fairlead_scheduler_silent_total", "Sessions given up for silence", stats.silent),
        (
            "fairlead_scheduler_reports_ignored_total",
            "Reports that fit no registration",
            stats.reports_ignored,
        ),
        ("fairlead_scheduler_placements_total", "Placements taken", stats.placements),
        (
            "fairlead_scheduler_placements_ignored_total",
            "Placements on targets that are gone",
            stats.placements_ignored,
        ),
        ("fairlead_scheduler_cache_events_total", "KV-cache events taken", stats.cache_events),
        (
            "fairlead_scheduler_cache_events_ignored_total",
            "KV-cache events that fit no registration",
            stats.events_ignored,
        ),
        (
            "fairlead_scheduler_unknown_parents_total",
            "KV-cache events whose place is not in the index",
            stats.unknown_parents,
        ),
        (
            "fairlead_scheduler_trims_total",
            "Operations that took from a target what goes beyond its share or its engine's room",
            stats.trims,
        ),
        ("fairlead_scheduler_evictions_total", "Operations that evicted runs", stats.evictions),
        (
            "fairlead_scheduler_recollections_dropped_total",
            "Recollected paths not kept",
            stats.recollections_dropped,
        ),
        ("fairlead_scheduler_stalls_total", "Times this process was starved", stats.stalls),
    ] {
        registry.counter_callback(&Definition::new(name, help, &[]), push(vec![("", value)]));
    }
    Page::metrics(&registry)
}

/// Shows figures that were read when the page was asked for.
fn push(figures: Vec<(&'static str, u64)>) -> impl Fn(&mut Samples) + Send + Sync + 'static {
    move |samples| {
        for (label, value) in &figures {
            samples.push(&[label], *value as f64);
        }
    }
}
