//! Figures of the KV-cache events for the agent's metrics page.

use super::follower::Follower;
use super::mirror::Counters;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Sums over all streams.
#[derive(Debug, Default)]
pub(crate) struct KvStats {
    pub streams: AtomicU64,
    pub connected: AtomicU64,
    pub partial: AtomicU64,
    pub blocks: AtomicU64,
    pub pages: AtomicU64,
    pub bytes: AtomicU64,
    pub batches: AtomicU64,
    pub malformed: AtomicU64,
    pub gaps: AtomicU64,
    pub replays: AtomicU64,
    pub replay_failures: AtomicU64,
    pub losses: AtomicU64,
    pub restarts: AtomicU64,
    pub messages: AtomicU64,
    pub accounts: AtomicU64,
    stored: AtomicU64,
    removed: AtomicU64,
    cleared: AtomicU64,
    ignored: AtomicU64,
    orphans: AtomicU64,
    conflicts: AtomicU64,
    dropped: AtomicU64,
    untold: AtomicU64,
    retold: AtomicU64,
}

impl KvStats {
    /// Appends everything in Prometheus' text form.
    pub fn write(&self, page: &mut String) {
        let mut metric = |name: &str, kind: &str, help: &str, value: &AtomicU64| {
            let value = value.load(Relaxed);
            // Writing to a String cannot fail.
            let _ = write!(
                page,
                "# HELP fairlead_agent_kv_{name} {help}\n# TYPE fairlead_agent_kv_{name} {kind}\nfairlead_agent_kv_{name} {value}\n"
            );
        };
        for (name, help, value) in [
            ("streams", "Streams of KV-cache events that are to be followed, one a rank.", &self.streams),
            ("streams_connected", "Those connected.", &self.connected),
            ("partial_ranks", "Ranks that may hold more than is known.", &self.partial),
            ("blocks", "Routing blocks held by the engine, as known.", &self.blocks),
            ("pages", "Pages of the engine known.", &self.pages),
            ("mirror_bytes", "Memory that knowing them takes.", &self.bytes),
        ] {
            metric(name, "gauge", help, value);
        }
        for (name, help, value) in [
            ("batches_total", "Batches of events applied.", &self.batches),
            ("malformed_total", "Messages, batches and events that make no sense.", &self.malformed),
            ("gaps_total", "Times that batches were missing.", &self.gaps),
            ("replays_total", "Questions to the engine's buffer.", &self.replays),
            ("replay_failures_total", "Questions that had no answer.", &self.replay_failures),
            ("losses_total", "Times that what was known became void.", &self.losses),
            ("restarts_total", "Restarts of the engine that its batches showed.", &self.restarts),
            ("messages_total", "Messages for the scheduler.", &self.messages),
            ("accounts_total", "Full accounts for the scheduler.", &self.accounts),
            ("orphans_total", "Stored pages whose parent is not known.", &self.orphans),
            ("conflicts_total", "Stored pages that contradict what is known.", &self.conflicts),
            ("dropped_pages_total", "Pages dropped for want of room.", &self.dropped),
            ("untold_blocks_total", "Blocks that cannot be told.", &self.untold),
            ("retold_total", "Times that copies turned out to be pages told of again.", &self.retold),
        ] {
            metric(name, "counter", help, value);
        }
        let name = "fairlead_agent_kv_events_total";
        let _ = write!(page, "# HELP {name} Events by kind.\n# TYPE {name} counter\n");
        for (kind, value) in [
            ("stored", &self.stored),
            ("removed", &self.removed),
            ("cleared", &self.cleared),
            ("ignored", &self.ignored),
        ] {
            let _ = writeln!(page, "{name}{{kind=\"{kind}\"}} {}", value.load(Relaxed));
        }
    }
}

/// One stream's share of the sums; it ends with this.
#[derive(Debug)]
pub(crate) struct Gauges {
    stats: Arc<KvStats>,
    /// Partial, blocks, pages, bytes.
    shown: [u64; 4],
    counters: Counters,
    batches: u64,
    malformed: u64,
}

impl Gauges {
    pub fn new(stats: Arc<KvStats>) -> Self {
        Self { stats, shown: [0; 4], counters: Counters::default(), batches: 0, malformed: 0 }
    }

    /// Shows the state of a stream.
    pub fn show(&mut self, follower: &Follower) {
        let mirror = &follower.mirror;
        self.set([
            u64::from(mirror.is_partial()),
            mirror.blocks() as u64,
            mirror.pages() as u64,
            mirror.bytes() as u64,
        ]);
        let (now, stats) = (follower.counters(), self.stats.clone());
        for (sum, now, before) in [
            (&stats.stored, now.stored, self.counters.stored),
            (&stats.removed, now.removed, self.counters.removed),
            (&stats.cleared, now.cleared, self.counters.cleared),
            (&stats.ignored, now.ignored, self.counters.ignored),
            (&stats.orphans, now.orphans, self.counters.orphans),
            (&stats.conflicts, now.conflicts, self.counters.conflicts),
            (&stats.dropped, now.dropped, self.counters.dropped),
            (&stats.untold, now.untold, self.counters.untold),
            (&stats.retold, now.retold, self.counters.retold),
            (&stats.batches, follower.batches, self.batches),
            (&stats.malformed, follower.malformed, self.malformed),
        ] {
            if now > before {
                sum.fetch_add(now - before, Relaxed);
            }
        }
        self.counters = now;
        self.batches = follower.batches;
        self.malformed = follower.malformed;
    }

    fn set(&mut self, now: [u64; 4]) {
        let stats = &self.stats;
        let sums = [&stats.partial, &stats.blocks, &stats.pages, &stats.bytes];
        for ((sum, now), shown) in sums.into_iter().zip(now).zip(&mut self.shown) {
            // Adds the difference, modulo 2^64.
            sum.fetch_add(now.wrapping_sub(*shown), Relaxed);
            *shown = now;
        }
    }
}

impl Drop for Gauges {
    fn drop(&mut self) {
        self.set([0; 4]);
    }
}

/// A connected stream.
#[derive(Debug)]
pub(crate) struct Connected(Arc<KvStats>);

impl Connected {
    pub fn new(stats: Arc<KvStats>) -> Self {
        stats.connected.fetch_add(1, Relaxed);
        Self(stats)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Relaxed);
    }
}
