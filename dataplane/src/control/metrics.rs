//! The replica's and the fleet's figures, read when scraped.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use fairlead_replication::{ReplicaStatus, Trust};
use fairlead_routing::Fleet;
use fairlead_telemetry::{Definition, Registry, Samples, names};

use crate::runtime::now_us;
use crate::shared::Shared;

const TARGET_REQUESTS: Definition = Definition::new(
    "fairlead_target_requests_total",
    "Requests that this gateway has sent to a target, retries included",
    &["target"],
);
const TARGET_COST: Definition = Definition::new(
    "fairlead_target_cost_seconds",
    "What a target's work costs, as decisions take it: a prompt token (prefill), a decode step by itself (step)",
    &["target", "part"],
);
const TARGET_OBSERVATIONS: Definition = Definition::new(
    "fairlead_target_cost_observations",
    "Observations behind a target's costs: this gateway's own, and all gateways' together as the scheduler tells",
    &["target", "kind", "whose"],
);
const PLACEMENTS_DROPPED: Definition = Definition::new(
    "fairlead_placements_dropped_total",
    "Placements that found the queue to the control thread full",
    &[],
);
const CONNECTED: Definition =
    Definition::new("fairlead_scheduler_connected", "1 while there is a link to the scheduler", &[]);
const TRUST: Definition = Definition::new(
    "fairlead_replica_trust",
    "How far the replicated state is trusted: 0 fresh, 1 stale (own load only), 2 blind (round robin)",
    &[],
);
const TARGETS: Definition = Definition::new("fairlead_targets", "Targets known, by readiness", &["ready"]);
const OVERLAY: Definition = Definition::new(
    "fairlead_overlay_placements",
    "Placements that the scheduler has not confirmed yet",
    &[],
);
const RESYNCS: Definition =
    Definition::new("fairlead_replica_snapshots_total", "Snapshots loaded, the first included", &[]);
const GAPS: Definition =
    Definition::new("fairlead_replica_gaps_total", "Deltas that were missed and asked for", &[]);
const CONNECTIONS: Definition =
    Definition::new("fairlead_client_connections", "Client connections open", &[]);
const TOKEN_MODE: Definition = Definition::new(
    "fairlead_token_mode",
    "Of models with a tokenizer: 1 while prompts are routed by token ids, 0 since the tokenizer was found to be wrong",
    &["model"],
);
const TLS_RELOADS: Definition = Definition::new(
    "fairlead_tls_reloads_total",
    "Times that certificate and key of the TLS port were read anew, and whether they could be used",
    &["outcome"],
);
const BODY_BYTES: Definition = Definition::new("fairlead_body_bytes", "Bytes of request bodies held", &[]);

/// The newest status of the replica, with the time at which it was taken.
pub(super) type Published = Arc<ArcSwapOption<(ReplicaStatus, u64)>>;

/// Registers everything that is read at the scrape.
pub(super) fn register(registry: &Registry, shared: &Arc<Shared>, status: &Published) {
    let fleet = shared.fleet.clone();
    registry.gauge_callback(&names::RESERVATIONS, move |samples| reservations(&fleet, samples));
    let fleet = shared.fleet.clone();
    registry.counter_callback(&TARGET_REQUESTS, move |samples| {
        for entry in fleet.table().entries.iter().flatten() {
            samples.push(&[&entry.name], entry.cells.counters.requests_total() as f64);
        }
    });
    let fleet = shared.fleet.clone();
    registry.gauge_callback(&TARGET_COST, move |samples| {
        for entry in fleet.table().entries.iter().flatten() {
            let costs = entry.cells.costs.read();
            samples.push(&[&entry.name, "prefill"], f64::from(costs.prefill) / 1e6);
            samples.push(&[&entry.name, "step"], f64::from(costs.step) / 1e6);
        }
    });
    let of = shared.clone();
    registry.gauge_callback(&TARGET_OBSERVATIONS, move |samples| {
        let counts = of.learnt_counts();
        for entry in of.fleet.table().entries.iter().flatten() {
            let count = counts.get(&entry.id).copied().unwrap_or_default();
            for (whose, (prefills, decodes)) in [("own", count.own), ("shared", count.shared)] {
                samples.push(&[&entry.name, "prefill", whose], f64::from(prefills));
                samples.push(&[&entry.name, "decode", whose], f64::from(decodes));
            }
        }
    });
    let fleet = shared.fleet.clone();
    registry.gauge_callback(&TARGETS, move |samples| {
        let table = fleet.table();
        let known = table.entries.iter().flatten().count();
        samples.push(&["true"], table.ready() as f64);
        samples.push(&["false"], (known - table.ready().min(known)) as f64);
    });
    let of = shared.clone();
    registry.counter_callback(&PLACEMENTS_DROPPED, move |s| s.push(&[], of.placements_dropped() as f64));
    let of = shared.clone();
    registry.gauge_callback(&CONNECTIONS, move |s| s.push(&[], of.connections.used() as f64));
    let of = shared.clone();
    registry.gauge_callback(&TOKEN_MODE, move |samples| {
        for mode in of.token_models.all() {
            samples.push(&[mode.name()], f64::from(u8::from(mode.is_on())));
        }
    });
    let of = shared.clone();
    registry.gauge_callback(&names::POLICY_DEGRADED, move |samples| {
        of.degraded.each(|policy, figure, on| {
            samples.push(&[policy.as_str(), figure], f64::from(u8::from(on)));
        });
    });
    let of = shared.clone();
    registry.gauge_callback(&names::PREFILL_DOWN, move |samples| {
        of.prefill_down.each(|model, on| samples.push(&[model], f64::from(u8::from(on))));
    });
    if shared.edge.is_some() {
        let of = shared.clone();
        registry.counter_callback(&TLS_RELOADS, move |samples| {
            let (done, failed) = of.tls_reloads();
            samples.push(&["loaded"], done as f64);
            samples.push(&["failed"], failed as f64);
        });
    }
    let of = shared.clone();
    registry.gauge_callback(&BODY_BYTES, move |s| s.push(&[], of.body_bytes.used() as f64));

    let gauge = |definition: &Definition, read: fn(&ReplicaStatus) -> f64| {
        let status = status.clone();
        registry.gauge_callback(definition, move |samples| {
            if let Some(published) = &*status.load() {
                samples.push(&[], read(&published.0));
            }
        });
    };
    gauge(&names::REPLICA_EPOCH, |s| s.epoch as f64);
    gauge(&names::REPLICA_SEQUENCE, |s| s.sequence as f64);
    gauge(&names::INDEX_BLOCKS, |s| s.held_blocks as f64);
    gauge(&names::INDEX_BYTES, |s| s.index_bytes as f64);
    gauge(&CONNECTED, |s| f64::from(u8::from(s.connected)));
    gauge(&OVERLAY, |s| s.overlay_entries as f64);
    gauge(&TRUST, |s| match s.trust {
        Trust::Fresh => 0.0,
        Trust::Stale => 1.0,
        Trust::Blind => 2.0,
    });
    let counter = |definition: &Definition, read: fn(&ReplicaStatus) -> u64| {
        let status = status.clone();
        registry.counter_callback(definition, move |samples| {
            if let Some(published) = &*status.load() {
                samples.push(&[], read(&published.0) as f64);
            }
        });
    };
    counter(&RESYNCS, |s| s.stats.snapshots);
    counter(&GAPS, |s| s.stats.gaps);
    let of = status.clone();
    registry.gauge_callback(&names::REPLICA_AGE, move |samples| {
        if let Some(published) = &*of.load() {
            let (status, taken_us) = &**published;
            samples.push(&[], (status.age_us + now_us().saturating_sub(*taken_us)) as f64 / 1e6);
        }
    });
}

fn reservations(fleet: &Fleet, samples: &mut Samples) {
    for entry in fleet.table().entries.iter().flatten() {
        let sums = entry.cells.counters.in_flight();
        samples.push(&[&entry.name, "requests"], sums.requests as f64);
        samples.push(&[&entry.name, "prefill_tokens"], sums.prefill_tokens as f64);
        samples.push(&[&entry.name, "context_tokens"], sums.context_tokens as f64);
    }
}
