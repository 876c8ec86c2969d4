//! What a gateway knows of its fleet, in the form in which a decision reads it.

mod cells;
mod decoding;
mod key;
mod pace;
mod parts;
mod pressure;
mod recent;
mod reservation;
mod table;
#[cfg(test)]
pub(crate) mod tests_support;

pub use cells::{EngineFigures, InFlightSums, LoadCell, Mode, ModelCells, TargetCells};
pub use key::{name_key, rendezvous, text_key};
pub use pace::Pace;
pub(crate) use pace::Seen as PaceSeen;
pub use parts::Parts;
pub use pressure::Pressure;
pub use reservation::{Counters, Leg, Reservation};
pub(crate) use table::Row;
pub use table::{ModelEntry, TargetEntry, TargetTable};

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use fairlead_prefix::Reader;

use crate::settings::DynamicPdSettings;

/// The fleet view. One per process; the control thread writes, shards read.
pub struct Fleet {
    table: ArcSwap<TargetTable>,
    prefixes: Box<[Reader]>,
    mode: AtomicU8,
    /// Source of round-robin tickets: the target picked longest ago has the smallest.
    ticket: AtomicU64,
    /// Prompts that nobody held any part of, as far as a policy counts them.
    cold: AtomicU64,
    /// What transfers of KV are taken to take by policies that have no settings of their own about it.
    pub(crate) transfer: DynamicPdSettings,
}

impl Fleet {
    /// An empty fleet that looks prefixes up in all of `prefixes`: the trees of the replica, and the overlay of this
    /// gateway's own placements that the scheduler has not confirmed yet. Per target the longest answer counts.
    pub fn new(prefixes: impl IntoIterator<Item = Reader>) -> Self {
        Self {
            table: ArcSwap::from_pointee(TargetTable::default()),
            prefixes: prefixes.into_iter().collect(),
            mode: AtomicU8::new(Mode::Fresh as u8),
            ticket: AtomicU64::new(1),
            cold: AtomicU64::new(0),
            transfer: DynamicPdSettings::default(),
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

    /// Where prefixes are looked up.
    pub fn prefixes(&self) -> &[Reader] {
        &self.prefixes
    }

    /// How far the replicated state may be trusted.
    pub fn mode(&self) -> Mode {
        Mode::from_u8(self.mode.load(Ordering::Relaxed))
    }

    /// Sets the trust in the replicated state.
    pub fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// Count of cold prompts: see [`TargetCells::cold`].
    pub(crate) fn cold(&self) -> &AtomicU64 {
        &self.cold
    }

    /// A ticket later than all before it.
    pub(crate) fn next_ticket(&self) -> u64 {
        self.ticket.fetch_add(1, Ordering::Relaxed)
    }
}
