//! What the shards of one process share with each other and with the control thread.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use ahash::AHashMap;
use arc_swap::ArcSwap;
use crossbeam_queue::ArrayQueue;
use fairlead_routing::Fleet;
use fairlead_telemetry::Registry;
use fairlead_wire::TargetId;

use crate::degraded::Degraded;
use crate::options::GatewayOptions;
use crate::prefill_down::PrefillDown;
use crate::routing::Routing;
use crate::runtime::Bell;
use crate::shard::{AnswerNote, Gauge, Offload, PlacementNote, SpeedNote};
use crate::tls::{Edge, Trust};
use crate::token_mode::TokenModels;

/// Blocks of all queued placements together: 32 MiB of hashes.
const MAX_PLACEMENT_BLOCKS: usize = 4 << 20;

/// Requests in flight up to which the control thread is woken for every placement.
const FEW: usize = 8;
/// With more, time after which it is woken again. It looks at what was handed over once a millisecond anyway, while
/// anything is in flight; each further wake costs the shards' cores two changes of thread.
const GATHER_US: u64 = 2_000;

/// Answers waiting for the control thread: it sums them, so those beyond are left out without harm.
const MAX_ANSWERS: usize = 4096;
/// What answers showed of their targets' speed, waiting for the control thread: 400 KiB.
const MAX_SPEEDS: usize = 4096;

/// Observations behind what is known of a target's costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LearntCount {
    /// This gateway's own: of prefill, and of decoding.
    pub own: (u32, u32),
    /// Those that the scheduler tells of, all gateways' together.
    pub shared: (u32, u32),
}

/// The same by target.
pub type LearntCounts = AHashMap<TargetId, LearntCount>;

/// State shared by shards and control thread. No lock is taken on a request's path.
pub struct Shared {
    /// The fleet view: written by the control thread, read by shards.
    pub fleet: Arc<Fleet>,
    /// Secret that enters every block hash. The control thread replaces it when the scheduler tells another one;
    /// prompts hashed before then simply match nothing.
    pub cluster_seed: AtomicU64,
    /// Tokens in a block of token hashes; the scheduler tells it as it tells the seed.
    pub block_tokens: AtomicU32,
    /// Tokenizers, by the models that have one.
    pub token_models: TokenModels,
    /// How requests are routed.
    pub(crate) routing: Routing,
    /// Policies that do without figures which targets do not report.
    pub(crate) degraded: Degraded,
    /// Models whose requests find no prefill target.
    pub(crate) prefill_down: PrefillDown,
    /// When the scheduler was last heard, microseconds of the process's clock; 0 is never.
    heard_us: AtomicU64,
    /// What clients are shown over TLS, where they are served so.
    pub(crate) edge: Option<Arc<Edge>>,
    /// How instances are reached over TLS, where they may be.
    pub(crate) trust: Option<Trust>,
    /// Client connections open.
    pub connections: Arc<Gauge>,
    /// Requests being forwarded.
    pub in_flight: Arc<Gauge>,
    /// Bytes of request bodies held.
    pub body_bytes: Arc<Gauge>,
    /// Placements on their way to the control thread.
    placements: ArrayQueue<PlacementNote>,
    /// Blocks in the queue: notes differ in size by four orders of magnitude.
    placement_blocks: AtomicUsize,
    placements_dropped: AtomicU64,
    /// When the control thread was last woken for one.
    rung_us: AtomicU64,
    /// What answers showed of the targets' caches, on its way to the control thread.
    answers: ArrayQueue<AnswerNote>,
    /// What they showed of the targets' speed.
    speeds: ArrayQueue<SpeedNote>,
    costs: ArcSwap<LearntCounts>,
    bell: Bell,
    /// Runs what would hold a shard for too long.
    pub(crate) offload: Offload,
    registry: Registry,
    synced: AtomicBool,
    fleet_known: AtomicBool,
    sync_lock: Mutex<()>,
    sync_changed: Condvar,
    draining: AtomicBool,
    cut_off: AtomicBool,
    shards_running: AtomicUsize,
}

impl Shared {
    /// State for the shards of one gateway.
    ///
    /// # Errors
    /// Descriptors are exhausted, `options.routing` names a policy or profile that does not exist, or a certificate or
    /// key cannot be used.
    pub fn new(options: &GatewayOptions, fleet: Arc<Fleet>) -> io::Result<Arc<Self>> {
        Self::with_helper(options, fleet, Offload::default())
    }

    pub(crate) fn with_helper(
        options: &GatewayOptions,
        fleet: Arc<Fleet>,
        offload: Offload,
    ) -> io::Result<Arc<Self>> {
        let limits = &options.limits;
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        Ok(Arc::new(Self {
            fleet,
            cluster_seed: AtomicU64::new(options.cluster_seed),
            block_tokens: AtomicU32::new(fairlead_tokens::DEFAULT_BLOCK_TOKENS),
            token_models: options.token_models.clone(),
            routing: Routing::new(&options.routing)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?,
            degraded: Degraded::default(),
            prefill_down: PrefillDown::default(),
            heard_us: AtomicU64::new(0),
            edge: options.tls.as_ref().map(Edge::new).transpose().map_err(invalid)?,
            trust: options.upstream_tls.as_ref().map(Trust::new).transpose().map_err(invalid)?,
            connections: Gauge::new(limits.max_connections),
            in_flight: Gauge::new(limits.max_in_flight),
            body_bytes: Gauge::new(limits.body_budget),
            placements: ArrayQueue::new(limits.placement_queue.max(1)),
            placement_blocks: AtomicUsize::new(0),
            placements_dropped: AtomicU64::new(0),
            rung_us: AtomicU64::new(0),
            answers: ArrayQueue::new(MAX_ANSWERS),
            speeds: ArrayQueue::new(MAX_SPEEDS),
            costs: ArcSwap::default(),
            bell: Bell::new()?,
            offload,
            registry: Registry::new(),
            synced: AtomicBool::new(true),
            fleet_known: AtomicBool::new(true),
            sync_lock: Mutex::default(),
            sync_changed: Condvar::new(),
            draining: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
            shards_running: AtomicUsize::new(0),
        }))
    }

    /// Hands a placement to the control thread. At the bound the new one is dropped and counted: the request is
    /// served all the same, and only its prefix stays unknown. Under load placements gather for up to a millisecond.
    pub fn place(&self, note: PlacementNote, now_us: u64) {
        let blocks = note.path.len();
        let queued = self.placement_blocks.fetch_add(blocks, Ordering::Relaxed);
        if queued.saturating_add(blocks) > MAX_PLACEMENT_BLOCKS || self.placements.push(note).is_err() {
            self.placement_blocks.fetch_sub(blocks, Ordering::Relaxed);
            self.placements_dropped.fetch_add(1, Ordering::Relaxed);
        }
        if self.must_ring(now_us) {
            self.rung_us.store(now_us, Ordering::Relaxed);
            self.bell.ring();
        }
    }

    fn must_ring(&self, now_us: u64) -> bool {
        self.in_flight.used() <= FEW
            || now_us.saturating_sub(self.rung_us.load(Ordering::Relaxed)) >= GATHER_US
            || self.placements.len() > self.placements.capacity() / 8
    }

    /// The next placement, oldest first.
    pub fn next_placement(&self) -> Option<PlacementNote> {
        let note = self.placements.pop()?;
        self.placement_blocks.fetch_sub(note.path.len(), Ordering::Relaxed);
        Some(note)
    }

    /// Tells the control thread what an answer showed of its target's cache, whenever that thread wakes next. At the
    /// bound it is left out: what is told is summed over many answers.
    pub fn answered(&self, note: AnswerNote) {
        let _ = self.answers.push(note);
    }

    /// The next of those, oldest first.
    pub fn next_answer(&self) -> Option<AnswerNote> {
        self.answers.pop()
    }

    /// Tells the control thread what an answer showed of its target's speed, whenever that thread wakes next. At the
    /// bound it is left out: others show the same.
    pub fn sped(&self, note: SpeedNote) {
        let _ = self.speeds.push(note);
    }

    /// The next of those, oldest first.
    pub fn next_speed(&self) -> Option<SpeedNote> {
        self.speeds.pop()
    }

    /// How much is behind what is known of targets' costs.
    pub fn learnt_counts(&self) -> Arc<LearntCounts> {
        self.costs.load_full()
    }

    /// Shows the same to the admin pages.
    pub fn set_learnt_counts(&self, counts: LearntCounts) {
        self.costs.store(Arc::new(counts));
    }

    /// Whether placements wait.
    pub fn has_placements(&self) -> bool {
        !self.placements.is_empty()
    }

    /// Placements dropped at the bound.
    pub fn placements_dropped(&self) -> u64 {
        self.placements_dropped.load(Ordering::Relaxed)
    }

    /// The bell that wakes the control thread. Its descriptor becomes readable when it was rung while armed.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// What this process exposes.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Whether the state of the fleet was received (or will never be): part of readiness.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Relaxed)
    }

    /// Sets [`is_synced`](Self::is_synced); true from the start.
    pub fn set_synced(&self, synced: bool) {
        let _held = self.sync_lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.synced.store(synced, Ordering::Relaxed);
        self.sync_changed.notify_all();
    }

    /// Whether a model that is not in the table does not exist. Not so while a gateway that has just started hears from
    /// a scheduler that has just started: the model's instances may not have found it yet.
    pub fn is_fleet_known(&self) -> bool {
        self.fleet_known.load(Ordering::Relaxed)
    }

    /// Sets [`is_fleet_known`](Self::is_fleet_known); true from the start.
    pub fn set_fleet_known(&self, known: bool) {
        self.fleet_known.store(known, Ordering::Relaxed);
    }

    /// Age of what the scheduler has told, microseconds; `None` while it has told nothing.
    pub fn state_age_us(&self, now_us: u64) -> Option<u64> {
        let heard = self.heard_us.load(Ordering::Relaxed);
        (heard != 0).then(|| now_us.saturating_sub(heard))
    }

    /// Notes when the scheduler was last heard.
    pub fn set_heard(&self, at_us: u64) {
        self.heard_us.store(at_us, Ordering::Relaxed);
    }

    /// Name of the gateway's own policy, as it was asked for.
    pub fn policy(&self) -> &str {
        self.routing.default_strategy().label()
    }

    /// Waits until [`is_synced`](Self::is_synced), at most `limit`. For the thread that starts the shards.
    pub fn wait_synced(&self, limit: Duration) {
        let held = self.sync_lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether it came or the time ran out, the shards start now.
        let _ = self.sync_changed.wait_timeout_while(held, limit, |()| !self.is_synced());
    }

    /// Has certificate and key of the TLS port read again, soon.
    pub fn reload_tls(&self) {
        if let Some(edge) = &self.edge {
            edge.ask();
            self.bell.ring();
        }
    }

    /// How often they were read anew, and how often in vain.
    pub fn tls_reloads(&self) -> (u64, u64) {
        self.edge.as_ref().map_or((0, 0), |edge| edge.reloads())
    }

    /// Reads them again where they were changed or that was asked for. For the control thread, or whoever stands in for
    /// it.
    pub fn check_tls(&self) {
        if let Some(edge) = &self.edge {
            edge.check();
        }
    }

    /// Whether the gateway has stopped accepting.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Whether requests still in flight are to be ended.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    pub(crate) fn cut_off(&self) {
        self.cut_off.store(true, Ordering::SeqCst);
    }

    pub(crate) fn shard_started(&self) {
        self.shards_running.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn shard_ended(&self) {
        self.shards_running.fetch_sub(1, Ordering::SeqCst);
    }

    /// Shards that have not ended.
    pub fn shards_running(&self) -> usize {
        self.shards_running.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placements_gather_while_much_is_in_flight() {
        let options = GatewayOptions::default();
        let shared = Shared::new(&options, crate::static_fleet(&[])).unwrap();
        let note = || PlacementNote {
            target: TargetId::new(1, 1),
            path: Arc::default(),
            space: fairlead_wire::msg::HashSpace::Bytes,
            keep: None,
        };
        let start = 1_000_000;
        shared.place(note(), start);
        assert!(shared.must_ring(start), "few are in flight");
        let held = shared.in_flight.take(FEW + 1);
        assert!(!shared.must_ring(start + GATHER_US - 1));
        assert!(shared.must_ring(start + GATHER_US));
        for _ in 0..options.limits.placement_queue / 8 {
            shared.place(note(), start);
        }
        assert!(shared.must_ring(start), "so many wait that room may run out");
        drop(held);
    }
}
