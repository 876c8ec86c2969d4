//! What the admin pages show.

use std::fmt::Write;

use ahash::AHashMap;
use fairlead_replication::{SessionId, Truth};
use fairlead_transport::role_str;
use fairlead_wire::msg::RankLoad;
use serde_json::{Value, json};

use crate::core::Session;

/// An admin page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Metrics,
    Health,
    Targets,
    Sessions,
}

/// Counts of the driver.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) connected: u64,
    pub(crate) timed_out: u64,
    pub(crate) messages: u64,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

/// All that pages are made of.
pub(crate) struct Scene<'a> {
    pub(crate) truth: &'a Truth,
    pub(crate) sessions: &'a AHashMap<SessionId, Session>,
    pub(crate) traffic: &'a Traffic,
    pub(crate) now_us: u64,
}

pub(crate) const fn content_type(page: Page) -> &'static str {
    match page {
        Page::Metrics => "text/plain; version=0.0.4; charset=utf-8",
        Page::Health => "text/plain; charset=utf-8",
        Page::Targets | Page::Sessions => "application/json",
    }
}

pub(crate) fn render(page: Page, scene: &Scene<'_>) -> String {
    match page {
        Page::Metrics => metrics(scene),
        // That the truth's owner has answered is the message. Whether peers are there must not matter: they could
        // not come to a scheduler that waits for them before it counts as ready.
        Page::Health => "ok\n".to_owned(),
        Page::Targets => targets(scene).to_string(),
        Page::Sessions => sessions(scene).to_string(),
    }
}

fn targets(scene: &Scene<'_>) -> Value {
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
                "role": format!("{:?}", info.role).to_lowercase(),
                "incarnation": info.incarnation.to_string(),
                "models": info.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>(),
                "kv_blocks": info.kv_blocks,
                "block_size": info.block_size,
                "in_flight": target.requests,
                "load": target.load.map(|load| load_json(&load, scene.now_us)),
            })
        })
        .collect();
    let stats = scene.truth.stats();
    json!({ "epoch": stats.epoch.to_string(), "sequence": stats.sequence, "settled": stats.settled, "targets": list })
}

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
    })
}

fn sessions(scene: &Scene<'_>) -> Value {
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

fn metrics(scene: &Scene<'_>) -> String {
    let stats = scene.truth.stats();
    let index = scene.truth.index_stats();
    let traffic = scene.traffic;
    let mut page = Metrics(String::with_capacity(8 * 1024));
    page.gauge("fairlead_scheduler_epoch", "Start of this scheduler, microseconds since 1970.", stats.epoch);
    page.gauge("fairlead_scheduler_sequence", "Operations told to gateways in this epoch.", stats.sequence);
    page.gauge("fairlead_scheduler_settled", "Whether the epoch has settled.", stats.settled.into());
    page.labelled(
        "fairlead_scheduler_sessions",
        "gauge",
        "Peers connected.",
        &[("role=\"agent\"", stats.agents as u64), ("role=\"gateway\"", stats.gateways as u64)],
    );
    page.labelled(
        "fairlead_scheduler_targets",
        "gauge",
        "Targets known.",
        &[
            ("state=\"ready\"", stats.ready as u64),
            ("state=\"unready\"", (stats.targets - stats.ready) as u64),
        ],
    );
    page.gauge("fairlead_index_blocks", "Distinct blocks in the prefix index.", index.blocks);
    page.gauge("fairlead_index_runs", "Runs in the prefix index.", index.runs);
    page.gauge("fairlead_index_bytes", "Memory of the prefix index.", index.bytes);
    page.gauge("fairlead_index_held_blocks", "Pairs of target and block held.", index.held_blocks);
    page.gauge(
        "fairlead_scheduler_ring_bytes",
        "Recent frames kept for resuming gateways.",
        stats.ring_bytes as u64,
    );
    for (name, help, value) in [
        ("fairlead_scheduler_connections_total", "Peers that connected.", traffic.connected),
        ("fairlead_scheduler_links_timed_out_total", "Links lost for silence.", traffic.timed_out),
        ("fairlead_scheduler_messages_total", "Messages received.", traffic.messages),
        ("fairlead_scheduler_frames_total", "Frames sent, counted per receiver.", traffic.frames),
        ("fairlead_scheduler_sent_bytes_total", "Bytes of those frames.", traffic.bytes),
        ("fairlead_scheduler_delta_frames_total", "Frames of operations made.", stats.delta_frames),
        ("fairlead_scheduler_snapshots_built_total", "Snapshots encoded.", stats.snapshots_built),
        ("fairlead_scheduler_snapshots_total", "Gateways started on a snapshot.", stats.snapshots_started),
        ("fairlead_scheduler_resumed_total", "Gateways resumed from recent frames.", stats.resumed),
        ("fairlead_scheduler_refused_total", "Sessions refused.", stats.refused),
        ("fairlead_scheduler_silent_total", "Sessions given up for silence.", stats.silent),
        (
            "fairlead_scheduler_reports_ignored_total",
            "Reports that fit no registration.",
            stats.reports_ignored,
        ),
        ("fairlead_scheduler_placements_total", "Placements taken.", stats.placements),
        (
            "fairlead_scheduler_placements_ignored_total",
            "Placements on targets that are gone.",
            stats.placements_ignored,
        ),
        ("fairlead_scheduler_evictions_total", "Operations that evicted runs.", stats.evictions),
        (
            "fairlead_scheduler_recollections_dropped_total",
            "Recollected paths not kept for want of room.",
            stats.recollections_dropped,
        ),
        ("fairlead_scheduler_stalls_total", "Times this process was starved.", stats.stalls),
    ] {
        page.labelled(name, "counter", help, &[("", value)]);
    }
    page.0
}

struct Metrics(String);

impl Metrics {
    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.labelled(name, "gauge", help, &[("", value)]);
    }

    fn labelled(&mut self, name: &str, kind: &str, help: &str, samples: &[(&str, u64)]) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            let _ = match *labels {
                "" => writeln!(self.0, "{name} {value}"),
                labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
            };
        }
    }
}
