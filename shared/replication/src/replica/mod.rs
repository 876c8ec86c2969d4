//! A gateway's copy of the truth: the single writer of what its shards read.
//!
//! # Slots
//! Targets have slots of this gateway's own; operations are translated when they are applied. A scheduler's restart
//! changes only the translation, so guards of running requests, counters and the overlay stay valid through it.
//!
//! # Two trees
//! Runs of the index have the same names in two indexes only when both have applied the same operations, so a new
//! state can never be mixed into an old tree. There are two trees, both read by every lookup (one is nearly always
//! empty, which costs one failed probe); the *live* one follows the stream.
//! - A snapshot of the same epoch is loaded into the other tree, while the live one goes on answering; when it is
//!   complete, it becomes the live one and the old is emptied.
//! - At the first snapshot of a new epoch the old tree becomes the *base*: it answers on, unchanged but for targets
//!   that are gone, beside the tree that follows the new epoch. The base is emptied when the epoch is settled
//!   (`EpochSettled`, or a snapshot taken after it); unconfirmed targets go at the same moment.
//! - A further snapshot while there is a base: the live tree's paths are entered in the base, then it is emptied and
//!   loaded anew.
//!
//! So what the gateway knew is in use until the truth says otherwise, and after a settled epoch the live tree alone
//! remains, equal to the truth.
//!
//! # New epoch
//! A target is the same when instance name, rank and engine incarnation are: it is confirmed, and keeps its local slot
//! and its base holdings. Another incarnation ends the old target at once. What this gateway remembers of each target
//! is sent to the new scheduler as recollections; overlay entries are sent again as placements.
//!
//! # Gaps
//! A frame that does not start at the sequence held is kept (bounded), and a resume asked for; what comes from the
//! ring or as a snapshot is applied, then what was kept. A heartbeat names the scheduler's newest sequence, so that a
//! lost last frame is noticed too.
//!
//! # Too small
//! When the index does not fit this gateway's budget, or there are more targets than local slots, prefix knowledge is
//! switched off until the next snapshot, and the status says so: routing goes on by load.

mod account;
mod apply;
mod costs;
mod cover;
mod feedback;
mod load;
mod overlay;
mod send;
mod sink;
mod table;
mod types;
mod work;

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::AHashSet;
use fairlead_prefix::{Config, Hits, Reader, Writer};
use fairlead_wire::msg::{
    CacheSource, HashSpace, InFlight, InstanceInfo, Op, Placement, Pong, ServingRole, Welcome,
};
use fairlead_wire::{Frame, Message, Slot, TargetId};

use crate::ClockMap;
pub use feedback::CacheAnswer;
use load::Peers;
pub use overlay::{Entry, Overlay};
pub use send::Outgoing;
pub use sink::{EngineView, ReplicaSink, ReservationSource, TargetState, Trust};
use table::Table;
pub use types::{Readers, ReplicaConfig, ReplicaError, ReplicaStats, ReplicaStatus};
use work::Part;

/// A tick later than this after the one before means that this process was starved.
const STALL_US: u64 = 500_000;
/// Interval at which the use of a known path is told again.
const TOUCH_US: u64 = 1_000_000;
/// Known paths whose use is told at most once an interval; of more, every use is told.
const MAX_TOUCHED: usize = 1 << 16;
/// Overlay entries looked up in the live tree at a time.
pub const CONFIRM: usize = 256;
/// Interval at which the overlay is looked through, microseconds.
pub const CHORES_US: u64 = 100_000;

/// A link to a scheduler.
struct Link {
    epoch: u64,
    heartbeat_us: u64,
    clock: ClockMap,
    next_ping_us: u64,
    pongs: VecDeque<Pong>,
    /// The scheduler's newest sequence that was heard of.
    head: u64,
    resume: bool,
    next_resume_us: u64,
    /// The next load message lists everything.
    full_load: bool,
    next_full_us: u64,
    next_load_us: u64,
    /// Creation time of the last list of live peers, so that an older one is not taken for news.
    live_us: u64,
    /// Whether a list of live peers has come.
    peers_known: bool,
}

/// A snapshot on its way into a tree.
struct Loading {
    sequence: u64,
    next_part: u32,
    into: usize,
    /// Targets that the snapshot lists.
    listed: AHashSet<u32>,
}

/// Operations that came too early.
struct Early {
    base: u64,
    new: u64,
    ops: Vec<Op>,
    bytes: usize,
}

/// See the module's documentation.
pub struct Replica<S> {
    config: ReplicaConfig,
    sink: S,
    trees: [Writer; 2],
    readers: [Reader; 2],
    hits: Hits,
    live: usize,
    /// The other tree holds the old epoch's state.
    base: bool,
    /// Version of the live tree.
    held: Option<(u64, u64)>,
    /// Whether the live tree is that version (not while it is being loaded or after a divergence).
    whole: bool,
    settled: bool,
    index_off: bool,
    loading: Option<Loading>,
    /// Pieces of the snapshot that is being loaded, while its tree is not empty yet.
    parts: VecDeque<Part>,
    parts_bytes: usize,
    /// Trees that are being emptied.
    emptying: [bool; 2],
    early: VecDeque<Early>,
    early_bytes: usize,
    table: Table,
    table_changed: bool,
    overlay: Overlay,
    /// Overlay entries to be sent again.
    resend: VecDeque<u64>,
    resend_due: bool,
    queue: VecDeque<Placement>,
    queue_bytes: usize,
    /// Ends of known paths whose use the truth has been told lately.
    touched: AHashSet<(u16, u64)>,
    next_touch_us: u64,
    /// Targets whose recollections have not been sent.
    recollect: VecDeque<TargetId>,
    recollections: VecDeque<bytes::Bytes>,
    peers: Peers,
    /// Epoch of the last link: whose ids `table` and `peers` name.
    linked_epoch: Option<u64>,
    feedback: feedback::Sums,
    costs: costs::Telling,
    link: Option<Link>,
    load_version: u64,
    load_dirty: bool,
    /// Something of this gateway's own was in flight at the last sample.
    loaded: bool,
    /// Targets at which something was in flight when they were last looked at.
    busy: Vec<Slot>,
    /// The last target that was sampled in its turn.
    turn: usize,
    next_sample_us: u64,
    next_chores_us: u64,
    last_heard_us: u64,
    /// Last time the stream got further.
    progress_us: u64,
    last_tick_us: u64,
    trust: Trust,
    now_us: u64,
    stats: ReplicaStats,
}

impl<S: ReplicaSink + ReservationSource> Replica<S> {
    /// An empty replica; `sink` is made from the readers that the shards will use.
    pub fn new(config: ReplicaConfig, sink: impl FnOnce(&Readers) -> S, now_us: u64) -> Self {
        let tree = |max_bytes| {
            fairlead_prefix::new(Config { max_bytes, max_targets: config.max_targets, locate: false })
        };
        let (first, first_reader) = tree(config.index_bytes);
        let (second, second_reader) = tree(config.index_bytes);
        let (overlay, overlay_reader) = tree(config.overlay_bytes);
        let readers = Readers { index: [first_reader, second_reader], overlay: overlay_reader };
        Self {
            sink: sink(&readers),
            trees: [first, second],
            readers: readers.index,
            hits: Hits::default(),
            live: 0,
            base: false,
            held: None,
            whole: false,
            settled: false,
            index_off: false,
            loading: None,
            parts: VecDeque::new(),
            parts_bytes: 0,
            emptying: [false; 2],
            early: VecDeque::new(),
            early_bytes: 0,
            table: Table::new(config.max_targets),
            table_changed: false,
            overlay: Overlay::new(overlay, config.overlay_bytes, config.overlay_keep_us),
            resend: VecDeque::new(),
            resend_due: false,
            queue: VecDeque::new(),
            queue_bytes: 0,
            touched: AHashSet::new(),
            next_touch_us: now_us,
            recollect: VecDeque::new(),
            recollections: VecDeque::new(),
            peers: Peers::default(),
            linked_epoch: None,
            feedback: feedback::Sums::default(),
            costs: costs::Telling::default(),
            link: None,
            load_version: 0,
            load_dirty: false,
            loaded: false,
            busy: Vec::new(),
            turn: 0,
            next_sample_us: now_us,
            next_chores_us: now_us,
            last_heard_us: now_us,
            progress_us: now_us,
            last_tick_us: now_us,
            trust: Trust::Fresh,
            now_us,
            stats: ReplicaStats::default(),
            config,
        }
    }

    /// Version to name in the hello.
    pub fn have(&self) -> Option<(u64, u64)> {
        // A tree that is not whole must not be resumed on: no scheduler's ring covers that sequence.
        self.held.map(|(epoch, sequence)| (epoch, if self.whole { sequence } else { u64::MAX }))
    }

    /// A scheduler has welcomed this gateway.
    pub fn connected(&mut self, welcome: &Welcome, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        let now_us = self.now_us;
        self.drop_link();
        self.last_heard_us = now_us;
        self.progress_us = now_us;
        let heartbeat_us = u64::from(welcome.heartbeat_ms) * 1_000;
        self.link = Some(Link {
            epoch: welcome.epoch,
            heartbeat_us,
            clock: ClockMap::default(),
            next_ping_us: now_us,
            pongs: VecDeque::new(),
            head: 0,
            resume: false,
            next_resume_us: 0,
            full_load: true,
            next_full_us: now_us + heartbeat_us,
            next_load_us: now_us,
            live_us: 0,
            peers_known: false,
        });
        // Even of an epoch whose state has never come as a whole, some ids may be known.
        let linked = self.linked_epoch.replace(welcome.epoch);
        if linked.is_some_and(|epoch| epoch != welcome.epoch)
            || self.held.is_some_and(|(epoch, _)| epoch != welcome.epoch)
        {
            self.begin_epoch();
        }
        self.overlay.renew(now_us);
        self.resend_due = true;
        self.settle_trust();
    }

    /// The link has ended.
    pub fn disconnected(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        self.drop_link();
    }

    /// A frame has come from the scheduler, on any lane.
    pub fn on_frame(&mut self, frame: &Frame, now_us: u64) -> Result<(), ReplicaError> {
        self.now_us = self.now_us.max(now_us);
        let now_us = self.now_us;
        let message = frame.message()?;
        let Some(link) = &mut self.link else { return Err(ReplicaError::NotConnected) };
        self.last_heard_us = now_us;
        let stamp = frame.header.stamp();
        let ours = stamp.epoch == link.epoch;
        if ours {
            link.head = link.head.max(stamp.new_seq);
        }
        match message {
            Message::Ping(ping) => {
                if link.pongs.len() < 16 {
                    let received_us = now_us;
                    link.pongs.push_back(Pong { id: ping.id, ping_sent_us: ping.sent_us, received_us });
                }
            }
            Message::Pong(pong) => link.clock.pong(&pong, now_us),
            Message::Delta(delta) if ours => {
                self.delta(stamp.base_seq, stamp.new_seq, delta.ops, frame.wire_len());
            }
            Message::Snapshot(chunk) if ours => self.snapshot(stamp.new_seq, chunk, frame.wire_len()),
            Message::LoadUpdate(update) if ours => self.load_update(update, stamp.created_us),
            // Of the epoch before: the link was made anew meanwhile.
            Message::Delta(_) | Message::Snapshot(_) | Message::LoadUpdate(_) => {
                self.stats.loads_ignored += 1
            }
            // The driver has taken it with the handshake already.
            Message::Welcome(_) => {}
            other => return Err(ReplicaError::Unexpected(other.kind())),
        }
        self.publish();
        Ok(())
    }

    /// A prompt was sent to a target: it will hold these blocks (none, if it is shorter than one).
    pub fn place(&mut self, target: TargetId, space: HashSpace, path: &[u64], now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        let Some(local) = self.table.get(target.slot).filter(|local| local.id == target) else { return };
        let remote = local.remote;
        if self.config.alone {
            return self.overlay.remember(target, path, self.now_us);
        }
        // The request was reserved for before this was said; the others are told at once, not with the next sample.
        self.sample_one(target.slot);
        if path.is_empty() {
            return;
        }
        self.readers[self.live].lookup(path, &mut self.hits);
        if (self.hits.get(target.slot) as usize) < path.len() {
            self.overlay.add(target, space, path, self.now_us);
        } else if self.touched.len() < MAX_TOUCHED
            && !self.touched.insert((target.slot, path[path.len() - 1]))
        {
            return;
        }
        if let Some(remote) = remote {
            // Sent even when it is known, once in a while: the truth keeps the order of last use.
            self.enqueue(Placement { target: remote, path: path.to_vec(), keep: None, space });
        }
    }

    /// The request behind a placement failed before its target answered: of the path, the target holds only the first
    /// `keep` blocks (what it was known to hold at the pick).
    pub fn withdraw(&mut self, target: TargetId, space: HashSpace, path: &[u64], keep: u32, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        let Some(local) = self.table.get(target.slot).filter(|local| local.id == target) else { return };
        let remote = local.remote;
        if self.config.alone {
            return self.overlay.forget(target, path, keep);
        }
        self.overlay.withdraw(target, path);
        if let Some(remote) = remote
            && !path.is_empty()
        {
            self.enqueue(Placement { target: remote, path: path.to_vec(), keep: Some(keep), space });
        }
    }

    /// Serves instances from the gateway's own configuration until a scheduler names its targets. Instances known
    /// already are left alone.
    pub fn serve_fixed(&mut self, instances: &[InstanceInfo], now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        if self.settled {
            return;
        }
        for instance in instances {
            let info = Arc::new(instance.clone());
            for rank in 0..info.dp_ranks {
                if self.table.by_name(&info.name, rank).is_none() {
                    let cache = CacheSource::Placements;
                    let state = TargetState { rank, ready: true, cache, leaning: ServingRole::Both };
                    self.add_target(state, info.clone(), None);
                }
            }
        }
        self.publish();
    }

    /// Does what is due. Call at [`Replica::next_deadline`] at the latest.
    pub fn tick(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        let now_us = self.now_us;
        let stalled = now_us.saturating_sub(self.last_tick_us);
        self.last_tick_us = now_us;
        if stalled > STALL_US && self.link.is_some() {
            // What the scheduler sent meanwhile still waits in our own queues.
            self.last_heard_us = now_us;
            self.progress_us = now_us;
        }
        self.work();
        if now_us >= self.next_sample_us {
            self.sample();
        }
        if now_us >= self.next_chores_us {
            self.next_chores_us = now_us + CHORES_US;
            self.chores();
        }
        self.publish();
    }

    /// When [`Replica::tick`] has something to do next.
    pub fn next_deadline(&self) -> u64 {
        if self.has_work() {
            return self.now_us;
        }
        let load = self.link.as_ref().filter(|_| self.load_dirty).map_or(u64::MAX, |link| link.next_load_us);
        self.next_sample_us.min(self.next_chores_us).min(load)
    }

    /// Whether anything was in flight at the last sample, or the scheduler has yet to be told of a change. Otherwise a
    /// driver need not sample as often as [`Replica::next_deadline`] says.
    pub fn is_loaded(&self) -> bool {
        self.loaded || self.load_dirty
    }

    /// Whether the scheduler has been silent for three heartbeats: the driver should connect anew.
    pub fn link_is_dead(&self, now_us: u64) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| now_us.saturating_sub(self.last_heard_us) > 3 * link.heartbeat_us)
    }

    /// When the scheduler was last heard, microseconds; `None` while it has told nothing.
    pub fn heard_us(&self) -> Option<u64> {
        self.held.map(|_| self.last_heard_us)
    }

    /// State, for metrics and admin pages.
    pub fn status(&self) -> ReplicaStatus {
        let (epoch, sequence) = self.held.unwrap_or((0, 0));
        let [first, second] = [self.trees[0].stats(), self.trees[1].stats()];
        ReplicaStatus {
            epoch,
            sequence,
            age_us: self.now_us.saturating_sub(self.last_heard_us),
            connected: self.link.is_some(),
            synced: self.synced(),
            settled: self.settled,
            provisional: self.base,
            loading: self.loading.is_some(),
            index_off: self.index_off,
            trust: self.trust,
            targets: self.table.len(),
            ready: self.table.iter().filter(|local| local.state.ready).count(),
            peers: self.peers.len(),
            overlay_entries: self.overlay.len(),
            overlay_bytes: self.overlay.bytes(),
            blocks: first.blocks + second.blocks,
            held_blocks: first.held_blocks + second.held_blocks,
            index_bytes: first.bytes + second.bytes,
            round_trip_us: self.link.as_ref().and_then(|link| link.clock.round_trip_us()),
            stats: ReplicaStats { overlay_crowded: self.overlay.crowded, ..self.stats },
        }
    }

    /// What the process is told through.
    pub fn sink(&self) -> &S {
        &self.sink
    }

    /// See [`Replica::sink`].
    pub fn sink_mut(&mut self) -> &mut S {
        &mut self.sink
    }

    /// The live tree, for tests and admin pages.
    pub fn index(&self) -> &Writer {
        &self.trees[self.live]
    }

    /// Local and scheduler's id of every confirmed target.
    pub fn translation(&self) -> Vec<(TargetId, TargetId)> {
        self.table.iter().filter_map(|local| Some((local.id, TargetId::unpack(local.remote?)))).collect()
    }

    /// Sums of the other gateways' reservations at a target, as last told to the sink.
    pub fn peer_sums(&self, target: TargetId) -> Option<InFlight> {
        self.table.get(target.slot).filter(|local| local.id == target).map(|local| local.peers)
    }

    /// Whether the live tree follows the linked scheduler.
    fn synced(&self) -> bool {
        self.whole
            && self.link.as_ref().is_some_and(|link| self.held.is_some_and(|(epoch, _)| epoch == link.epoch))
    }

    fn drop_link(&mut self) {
        if self.link.take().is_none() {
            return;
        }
        self.abort_loading();
        self.clear_early();
        self.queue.clear();
        self.queue_bytes = 0;
        self.touched.clear();
        self.resend.clear();
        self.tell_costs_again();
    }

    /// Things that need no haste.
    fn chores(&mut self) {
        let now_us = self.now_us;
        let synced = self.synced();
        let (stall_us, progress_us) = (self.config.stall_us, self.progress_us);
        let held = self.held.map_or(0, |(_, sequence)| sequence);
        let idle_us = now_us.saturating_sub(progress_us);
        if let Some(link) = &mut self.link {
            let behind = synced && self.loading.is_none() && link.head > held && idle_us > 200_000;
            let stuck = (!synced || self.loading.is_some()) && idle_us > stall_us;
            if behind || stuck {
                link.resume = true;
            }
            if stuck {
                self.progress_us = now_us;
                self.abort_loading();
            }
            if synced {
                let (reader, hits) = (&self.readers[self.live], &mut self.hits);
                self.overlay.confirm_by(CONFIRM, |target, path| {
                    reader.lookup(path, hits);
                    hits.get(target.slot) as usize >= path.len()
                });
                self.overlay.expire(now_us);
            }
        }
        if now_us >= self.next_touch_us {
            self.next_touch_us = now_us + TOUCH_US;
            self.touched.clear();
        }
        for tree in &mut self.trees {
            tree.collect();
        }
        if self.config.alone {
            self.overlay.make_room(now_us);
        }
        self.overlay.tree.collect();
        let sink = &self.sink;
        let busy = |id| sink.in_flight(id).requests > 0;
        for id in self.table.thaw(now_us, self.config.slot_grace_us, busy) {
            self.sink.forgotten(id);
        }
        self.settle_trust();
    }

    fn settle_trust(&mut self) {
        let age_us = self.now_us.saturating_sub(self.last_heard_us);
        let all_fixed = self.table.iter().all(|local| local.fixed);
        let trust = match age_us {
            // Instances from the configuration do not grow old, and nobody else's load was ever known.
            _ if all_fixed => Trust::Fresh,
            age if age > self.config.blind_us => Trust::Blind,
            age if age > self.config.stale_us => Trust::Stale,
            _ => Trust::Fresh,
        };
        if trust != self.trust {
            self.trust = trust;
            self.sink.trust(trust);
        }
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.table_changed) {
            self.sink.publish();
        }
        if self.resend_due && self.resend.is_empty() {
            self.resend_due = false;
            self.resend = self.overlay.ids().collect();
        }
    }
}
