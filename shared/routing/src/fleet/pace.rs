//! How busy a model's targets are, as decisions have seen them lately.

use std::sync::atomic::{AtomicU32, Ordering};

/// Weight of a decision in the averages of what it has seen of the targets.
const SEEN: f32 = 0.05;
/// Weight of a decision in the average of what requests add, which differ more.
const ADDED: f32 = 0.02;

/// Averages over decisions, written by those that compare targets. Each is a float's bits by itself; of decisions that
/// end at once, one may go uncounted.
#[derive(Debug, Default)]
pub struct Pace {
    queue: AtomicU32,
    own: AtomicU32,
    prefill: AtomicU32,
}

/// What a decision has seen of all targets that it looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// Sum of the prefill work queued, microseconds.
    pub(crate) queue: f32,
    /// Sum of what a prompt token costs, microseconds.
    pub(crate) prefill: f32,
    /// Targets.
    pub(crate) targets: f32,
}

impl Pace {
    /// Takes a decision into account, and the prefill work that it has given to the target picked, microseconds.
    pub(crate) fn note(&self, seen: &Seen, own: f32) {
        if seen.targets > 0.0 {
            towards(&self.queue, seen.queue / seen.targets, SEEN);
            towards(&self.prefill, seen.prefill / seen.targets, SEEN);
            towards(&self.own, own, ADDED);
        }
    }

    /// Mean queue of a target, in multiples of a mean request's own prefill work; 0 before anything was seen.
    #[inline]
    pub fn backlog(&self) -> f32 {
        let own = read(&self.own);
        if own > 0.0 { read(&self.queue) / own.max(1_000.0) } else { 0.0 }
    }

    /// What a prompt token costs on the mean target, microseconds; `own` before anything was seen.
    #[inline]
    pub(crate) fn prefill_or(&self, own: f32) -> f32 {
        let mean = read(&self.prefill);
        if mean > 0.0 { mean } else { own }
    }
}

#[inline]
fn read(cell: &AtomicU32) -> f32 {
    f32::from_bits(cell.load(Ordering::Relaxed))
}

fn towards(cell: &AtomicU32, sample: f32, weight: f32) {
    if sample.is_finite() {
        let mean = read(cell);
        let next = if mean == 0.0 { sample } else { mean + weight * (sample - mean) };
        cell.store(next.to_bits(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_follow_what_is_seen_and_ignore_what_is_broken() {
        let pace = Pace::default();
        assert_eq!((pace.backlog(), pace.prefill_or(7.0)), (0.0, 7.0));
        let seen = Seen { queue: 8_000_000.0, prefill: 240.0, targets: 8.0 };
        for _ in 0..500 {
            pace.note(&seen, 100_000.0);
        }
        assert!((pace.backlog() - 10.0).abs() < 0.1 && (pace.prefill_or(7.0) - 30.0).abs() < 0.1, "{pace:?}");
        pace.note(&Seen { queue: f32::NAN, prefill: f32::INFINITY, targets: 1.0 }, f32::NAN);
        pace.note(&Seen::default(), 5.0);
        assert!((pace.backlog() - 10.0).abs() < 0.1, "{pace:?}");
    }
}
