//! What is counted of hand-offs.

use super::{Handover, LegKind};
use crate::engine::lock;
use crate::histogram::{self, Histogram};
use fairlead_wire::msg::ServingRole;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// An engine's hand-offs, as `GET /sim/state` tells them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoffState {
    /// The way, as options spell it.
    pub handoff: String,
    /// `prefill`, `decode` or `both`.
    pub role: String,
    /// The engine's name in transfers.
    pub engine_id: String,
    /// Prefill legs so far that were neither refused nor stopped by a fault.
    pub prefill_legs: u64,
    /// Decode legs so far, likewise.
    pub decode_legs: u64,
    /// Other requests so far, likewise.
    pub plain: u64,
    /// Prefill legs that wait for the decode side to enter their room.
    pub waiting_for_room: u64,
    /// Decode legs that wait for their KV.
    pub waiting_for_kv: u64,
    /// Decode sides that wait here for a prefill leg that has not come.
    pub awaited: u64,
    /// Shipments whose prefill leg has not ended.
    pub computing: u64,
    /// Shipments that nobody has asked for yet.
    pub ready: u64,
    /// Shipments under way.
    pub sending: u64,
    /// Shipments that have arrived.
    pub taken: u64,
    /// Shipments that nobody fetched in time.
    pub expired: u64,
    /// Shipments dropped on demand.
    pub lost: u64,
    /// Shipments that ended because one side left.
    pub failed: u64,
    /// Decode legs whose KV did not come.
    pub refused: u64,
    /// Prompt tokens whose KV came from elsewhere.
    pub tokens_received: u64,
    /// Prompt tokens whose KV was sent to others.
    pub tokens_sent: u64,
}

/// Counters of an engine's hand-offs.
pub(crate) struct Tally {
    legs: [AtomicU64; 3],
    waiting: [AtomicU64; 2],
    failed_loads: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    number: AtomicU64,
    transfers: Mutex<Transfers>,
}

/// Transfers, as the side that makes them counts them: who pulls, or who pushes.
#[derive(Clone)]
pub(crate) struct Transfers {
    /// Seconds on the card.
    pub seconds: Histogram,
    pub bytes: Histogram,
}

impl Default for Tally {
    fn default() -> Self {
        let transfers = Transfers {
            seconds: Histogram::new(histogram::FIRST_TOKEN),
            bytes: Histogram::new(histogram::TRANSFER_BYTES),
        };
        Self {
            legs: Default::default(),
            waiting: Default::default(),
            failed_loads: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            number: AtomicU64::new(0),
            transfers: Mutex::new(transfers),
        }
    }
}

impl Tally {
    pub fn leg(&self, kind: Option<LegKind>) {
        let at = kind.map_or(2, |k| k as usize);
        self.legs[at].fetch_add(1, Ordering::Relaxed);
    }

    pub fn failed_load(&self) {
        self.failed_loads.fetch_add(1, Ordering::Relaxed);
    }

    pub fn failed_loads(&self) -> u64 {
        self.failed_loads.load(Ordering::Relaxed)
    }

    pub fn received(&self, tokens: u64) {
        self.received.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Prompt tokens whose KV came from elsewhere.
    pub fn tokens_received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub fn sent(&self, tokens: u32) {
        self.sent.fetch_add(u64::from(tokens), Ordering::Relaxed);
    }

    pub fn moved(&self, time: Duration, bytes: u64) {
        let mut transfers = lock(&self.transfers);
        transfers.seconds.observe(time.as_secs_f64());
        transfers.bytes.observe(bytes as f64);
    }

    pub fn transfers(&self) -> Transfers {
        lock(&self.transfers).clone()
    }

    /// Another number each time.
    pub fn number(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    /// Legs of that kind that wait for the other side.
    pub fn waiting(&self, kind: LegKind) -> u64 {
        self.waiting[kind as usize].load(Ordering::Relaxed)
    }
}

/// Counts a leg among those that wait, for as long as it does.
pub(crate) struct Gauge {
    handover: Arc<Handover>,
    kind: LegKind,
}

impl Gauge {
    pub fn raise(handover: &Arc<Handover>, kind: LegKind) -> Self {
        handover.tally.waiting[kind as usize].fetch_add(1, Ordering::Relaxed);
        Self { handover: Arc::clone(handover), kind }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.handover.tally.waiting[self.kind as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

impl HandoffState {
    pub(crate) fn of(handover: &Handover) -> Self {
        let (counts, tally) = (handover.outbox.counts(), &handover.tally);
        let legs = |at: usize| tally.legs[at].load(Ordering::Relaxed);
        Self {
            handoff: handover.options.handoff.as_str().to_owned(),
            role: match handover.role {
                ServingRole::Both => "both",
                ServingRole::Prefill => "prefill",
                ServingRole::Decode => "decode",
            }
            .to_owned(),
            engine_id: handover.engine_id.clone(),
            prefill_legs: legs(LegKind::Prefill as usize),
            decode_legs: legs(LegKind::Decode as usize),
            plain: legs(2),
            waiting_for_room: tally.waiting(LegKind::Prefill),
            waiting_for_kv: tally.waiting(LegKind::Decode),
            awaited: counts.awaited,
            computing: counts.computing,
            ready: counts.ready,
            sending: counts.sending,
            taken: counts.taken,
            expired: counts.expired,
            lost: counts.lost,
            failed: counts.failed,
            refused: tally.failed_loads(),
            tokens_received: tally.tokens_received(),
            tokens_sent: tally.sent.load(Ordering::Relaxed),
        }
    }
}
