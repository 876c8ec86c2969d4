//! Peers turned away before they had a link, counted by cause.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use fairlead_wire::msg::RefuseCode;

use crate::error::REFUSE_CODES;

/// Counts of a listener; go on counting wherever they are kept.
#[derive(Debug, Default)]
pub struct Refusals {
    by_code: [AtomicUsize; REFUSE_CODES.len()],
    /// No certificate of this cluster, no hello in time, too many at once.
    other: AtomicUsize,
}

impl Refusals {
    /// Counts one; returns how many there have been.
    pub(crate) fn count(&self, code: Option<RefuseCode>) -> usize {
        let at = REFUSE_CODES.iter().position(|known| Some(*known) == code);
        at.map_or(&self.other, |at| &self.by_code[at]).fetch_add(1, Relaxed);
        self.total()
    }

    /// All.
    pub fn total(&self) -> usize {
        self.other.load(Relaxed) + self.by_code.iter().map(|count| count.load(Relaxed)).sum::<usize>()
    }

    /// Those that were told this code.
    pub fn of(&self, code: RefuseCode) -> usize {
        let at = REFUSE_CODES.iter().position(|known| *known == code);
        at.map_or(0, |at| self.by_code[at].load(Relaxed))
    }
}
