//! What a gateway knows of its fleet, in the form in which a decision reads it.

mod cells;
mod reservation;
mod table;
#[cfg(test)]
pub(crate) mod tests_support;

pub use cells::{EngineFigures, InFlightSums, LoadCell, Mode, ModelCells, TargetCells};
pub use reservation::{Counters, Reservation};
pub use table::{ModelEntry, TargetEntry, TargetTable};

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};

/// The fleet view. One per process; the control thread writes, shards read.
pub struct Fleet {
    table: ArcSwap<TargetTable>,
    index: fairlead_prefix::Reader,
    overlay: fairlead_prefix::Reader,
    mode: AtomicU8,
    /// Source of round-robin tickets: the target picked longest ago has the smallest.
    ticket: AtomicU64,
}

impl Fleet {
    /// An empty fleet that reads prefixes from `index` (the replica) and `overlay` (this gateway's own placements
    /// that the scheduler has not confirmed yet).
    pub fn new(index: fairlead_prefix::Reader, overlay: fairlead_prefix::Reader) -> Self {
        Self {
            table: ArcSwap::from_pointee(TargetTable::default()),
            index,
            overlay,
            mode: AtomicU8::new(Mode::Fresh as u8),
            ticket: AtomicU64::new(1),
        }
    }

    /// The current target table. Hold the guard for one decision, not across an await.
    pub fn table(&self) -> Guard<Arc<TargetTable>> {
        self.table.load()
    }

    /// The current target table, owned: for readers that keep it longer than a decision.
    pub fn table_full(&self) -> Arc<TargetTable> {
        self.table.load_full()
    }

    /// Replaces the target table. Entries that live on must carry their old cells, so that guards, counters and
    /// loads stay with their target.
    pub fn publish(&self, entries: Vec<Option<Arc<TargetEntry>>>) {
        let before = self.table.load();
        let table = TargetTable::build(before.version + 1, entries, &before);
        self.table.store(Arc::new(table));
    }

    /// The replica's index.
    pub fn index(&self) -> &fairlead_prefix::Reader {
        &self.index
    }

    /// This gateway's unconfirmed placements.
    pub fn overlay(&self) -> &fairlead_prefix::Reader {
        &self.overlay
    }

    /// How far the replicated state may be trusted.
    pub fn mode(&self) -> Mode {
        Mode::from_u8(self.mode.load(Ordering::Relaxed))
    }

    /// Sets the trust in the replicated state.
    pub fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// A ticket later than all before it.
    pub(crate) fn next_ticket(&self) -> u64 {
        self.ticket.fetch_add(1, Ordering::Relaxed)
    }
}
