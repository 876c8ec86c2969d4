//! Load accounting by guard: reserved at the pick, released when the request ends, in whatever way it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cells::InFlightSums;
use super::table::TargetEntry;

/// Cumulative counters of one target in this process. In flight is reserved less released; both only grow, so a
/// sampler can difference them over any span.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Counters {
    requests_reserved: AtomicU64,
    requests_released: AtomicU64,
    prefilling_reserved: AtomicU64,
    prefilling_released: AtomicU64,
    prefill_reserved: AtomicU64,
    prefill_released: AtomicU64,
    context_reserved: AtomicU64,
    context_released: AtomicU64,
}

impl Counters {
    /// What is in flight now. Released is read before reserved, so the difference cannot be negative; a reader that is
    /// interrupted in between sees too much for once.
    #[inline]
    pub fn in_flight(&self) -> InFlightSums {
        let difference = |released: &AtomicU64, reserved: &AtomicU64| {
            let released = released.load(Ordering::Acquire);
            reserved.load(Ordering::Relaxed).wrapping_sub(released)
        };
        InFlightSums {
            requests: difference(&self.requests_released, &self.requests_reserved),
            prefilling: difference(&self.prefilling_released, &self.prefilling_reserved),
            prefill_tokens: difference(&self.prefill_released, &self.prefill_reserved),
            context_tokens: difference(&self.context_released, &self.context_reserved),
        }
    }

    /// Requests ever reserved.
    pub fn requests_total(&self) -> u64 {
        self.requests_reserved.load(Ordering::Relaxed)
    }
}

/// One request's share of its target's load. Dropping it releases all that is still held.
#[derive(Debug)]
#[must_use = "dropping the guard releases the reservation"]
pub struct Reservation {
    target: Arc<TargetEntry>,
    prefill_tokens: u64,
    prompt_tokens: u64,
    prefilled: bool,
}

impl Reservation {
    /// Reserves on `target`: one request, `uncached` tokens to prefill of `prompt` tokens in all.
    pub fn new(target: Arc<TargetEntry>, prompt: u64, uncached: u64) -> Self {
        let counters = &target.cells.counters;
        counters.requests_reserved.fetch_add(1, Ordering::Relaxed);
        counters.prefilling_reserved.fetch_add(1, Ordering::Relaxed);
        counters.prefill_reserved.fetch_add(uncached, Ordering::Relaxed);
        Self { target, prefill_tokens: uncached, prompt_tokens: prompt, prefilled: false }
    }

    /// The target reserved on.
    pub fn target(&self) -> &Arc<TargetEntry> {
        &self.target
    }

    /// Uncached prompt tokens reserved at the pick.
    pub fn prefill_tokens(&self) -> u64 {
        self.prefill_tokens
    }

    /// The first token came: prefill work ends, context being decoded begins. Further calls do nothing.
    pub fn prefill_done(&mut self) {
        if !std::mem::replace(&mut self.prefilled, true) {
            let counters = &self.target.cells.counters;
            counters.context_reserved.fetch_add(self.prompt_tokens, Ordering::Relaxed);
            counters.prefill_released.fetch_add(self.prefill_tokens, Ordering::Release);
            counters.prefilling_released.fetch_add(1, Ordering::Release);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let counters = &self.target.cells.counters;
        if self.prefilled {
            counters.context_released.fetch_add(self.prompt_tokens, Ordering::Release);
        } else {
            counters.prefill_released.fetch_add(self.prefill_tokens, Ordering::Release);
            counters.prefilling_released.fetch_add(1, Ordering::Release);
        }
        counters.requests_released.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::tests_support::entry;

    #[test]
    fn every_way_to_end_returns_to_zero() {
        let target = entry(0, "a", "m");
        let in_flight = || target.cells.counters.in_flight();
        let early = Reservation::new(target.clone(), 100, 60);
        let mut late = Reservation::new(target.clone(), 50, 50);
        assert_eq!(
            in_flight(),
            InFlightSums { requests: 2, prefilling: 2, prefill_tokens: 110, context_tokens: 0 }
        );
        late.prefill_done();
        late.prefill_done();
        assert_eq!(
            in_flight(),
            InFlightSums { requests: 2, prefilling: 1, prefill_tokens: 60, context_tokens: 50 }
        );
        drop(early);
        assert_eq!(
            in_flight(),
            InFlightSums { requests: 1, prefilling: 0, prefill_tokens: 0, context_tokens: 50 }
        );
        drop(late);
        assert_eq!(in_flight(), InFlightSums::default());
        assert_eq!(target.cells.counters.requests_total(), 2);
    }

    #[test]
    fn concurrent_guards_never_go_negative() {
        let target = entry(0, "a", "m");
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for i in 0..20_000u64 {
                        let mut guard = Reservation::new(target.clone(), 7, 3);
                        if i % 2 == 0 {
                            guard.prefill_done();
                        }
                    }
                });
            }
            for _ in 0..20_000 {
                let now = target.cells.counters.in_flight();
                // A reader that was interrupted between two loads sees too much, never less than nothing.
                let all = [now.requests, now.prefilling, now.prefill_tokens, now.context_tokens];
                assert!(all.iter().all(|&n| n < 1 << 63), "{now:?}");
            }
        });
        assert_eq!(target.cells.counters.in_flight(), InFlightSums::default());
    }
}
