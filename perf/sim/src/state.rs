//! What a test may want to know about an engine.

use crate::engine::Engine;
use crate::faults::Faults;
use crate::handoff::HandoffState;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest part of the last request's body shown as text, bytes.
const SHOWN_BODY: usize = 64 << 10;

/// A picture of an engine, as `GET /sim/state` tells it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Its name.
    pub name: String,
    /// Whether `/health` says 200.
    pub ready: bool,
    /// Seconds since its start.
    pub uptime: f64,
    /// Requests on prompt routes whose answer has not ended.
    pub in_flight: u64,
    /// Sequences being worked on for nobody, and shipments of a hand-off that nobody looks after.
    pub orphaned: u64,
    /// Sequences in the batch.
    pub running: u64,
    /// Sequences in the queue.
    pub waiting: u64,
    /// Blocks held by running sequences.
    pub kv_used: u64,
    /// Blocks in all.
    pub kv_blocks: u64,
    /// Blocks that a prompt could find.
    pub kv_named: u64,
    /// Named blocks given up for room.
    pub evictions: u64,
    /// Batches of KV events numbered so far.
    pub kv_batches: u64,
    /// Of these, batches held back on demand.
    pub kv_batches_dropped: u64,
    /// Requests on prompt routes so far.
    pub requests: u64,
    /// Those whose answer was handed to the connection to its end, refusals included.
    pub completed: u64,
    /// Those whose client left first, or whose answer broke on demand.
    pub aborted: u64,
    /// Those refused by validation or a full queue.
    pub refused: u64,
    /// Requests whose body did not arrive whole.
    pub broken_bodies: u64,
    /// Sequences aborted inside the engine.
    pub aborted_sequences: u64,
    /// Complete requests by route.
    pub by_route: BTreeMap<String, u64>,
    /// Open connections.
    pub connections: u64,
    /// Connections so far.
    pub connections_total: u64,
    /// Prompt tokens of sequences that reached their first token.
    pub prompt_tokens: u64,
    /// Of these, tokens that came from the cache.
    pub cached_tokens: u64,
    /// Tokens made.
    pub generation_tokens: u64,
    /// Steps run.
    pub steps: u64,
    /// Seconds by which steps came too late for their profile and that were not caught up with.
    pub behind: f64,
    /// Hand-offs, where the engine has any.
    #[serde(default)]
    pub handoff: HandoffState,
    /// The faults in force.
    pub faults: Faults,
    /// The last request on a prompt route.
    pub last: Option<Last>,
}

/// A request as it arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// Method.
    pub method: String,
    /// Request target.
    pub target: String,
    /// Headers in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body length, bytes.
    pub body_bytes: u64,
    /// XXH3-64 of the body, in hex.
    pub body_xxh3: String,
    /// The body's first 64 KiB as text; `GET /sim/last-body` has all of it.
    pub body: String,
}

impl Last {
    /// The first header of a name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
}

impl State {
    pub(crate) fn of(engine: &Engine) -> Self {
        let ready = engine.ready();
        let (kv_batches, kv_batches_dropped) = engine.events.as_ref().map_or((0, 0), |e| e.counts());
        let handoff = engine.handover.as_ref().map(|h| HandoffState::of(h)).unwrap_or_default();
        let unowned = engine.handover.as_ref().map_or(0, |h| h.outbox.counts().unowned);
        let core = engine.core();
        let (m, t) = (&core.model, &core.traffic);
        let s = m.stats();
        Self {
            name: engine.options.name.clone(),
            ready,
            uptime: engine.now(),
            in_flight: t.in_flight,
            orphaned: core.orphaned() as u64 + unowned,
            running: m.running() as u64,
            waiting: m.waiting() as u64,
            kv_used: u64::from(m.cache().used()),
            kv_blocks: u64::from(m.cache().capacity()),
            kv_named: u64::from(m.cache().named()),
            evictions: m.cache().evictions(),
            kv_batches,
            kv_batches_dropped,
            requests: t.requests,
            completed: t.completed,
            aborted: t.aborted,
            refused: t.refused,
            broken_bodies: t.broken_bodies,
            aborted_sequences: s.aborted,
            by_route: t.by_route.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect(),
            connections: t.connections,
            connections_total: t.connections_total,
            prompt_tokens: s.prompt_tokens,
            cached_tokens: s.cached_prompt_tokens,
            generation_tokens: s.generation_tokens,
            steps: s.steps,
            behind: core.behind,
            handoff,
            faults: core.faults.clone(),
            last: t.last.as_ref().map(|l| Last {
                method: l.method.clone(),
                target: l.target.clone(),
                headers: l.headers.clone(),
                body_bytes: l.body.len() as u64,
                body_xxh3: format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&l.body)),
                body: String::from_utf8_lossy(&l.body[..l.body.len().min(SHOWN_BODY)]).into_owned(),
            }),
        }
    }
}
