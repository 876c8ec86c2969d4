//! Process-wide amounts that requests draw on, and the retry budget of a shard.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::options::RetryOptions;

/// An amount with a ceiling, shared by all shards.
#[derive(Debug)]
pub struct Gauge {
    used: AtomicUsize,
    limit: usize,
}

impl Gauge {
    /// Nothing used of `limit`.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// What is in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `amount`, or nothing when it would pass the limit.
    #[must_use]
    pub fn take(self: &Arc<Self>, amount: usize) -> Option<Share> {
        let mut share = Share { gauge: self.clone(), amount: 0 };
        share.grow(amount).then_some(share)
    }
}

/// Part of a [`Gauge`], given back when dropped.
#[derive(Debug)]
pub struct Share {
    gauge: Arc<Gauge>,
    amount: usize,
}

impl Share {
    /// Takes `more` on top; false, and nothing taken, when it would pass the limit.
    #[must_use]
    pub fn grow(&mut self, more: usize) -> bool {
        let before = self.gauge.used.fetch_add(more, Ordering::Relaxed);
        if before.saturating_add(more) > self.gauge.limit {
            self.gauge.used.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.amount += more;
        true
    }

    /// The amount held.
    pub fn amount(&self) -> usize {
        self.amount
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.gauge.used.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

/// Bounds retries to a share of the requests, so that a failing fleet does not get a multiple of its load. A bucket:
/// each request adds a part of a token, each second adds the floor, a retry takes one.
#[derive(Debug)]
pub struct RetryBudget {
    tokens: Cell<f64>,
    filled_us: Cell<u64>,
    share: f64,
    floor: f64,
    capacity: f64,
}

impl RetryBudget {
    /// A full bucket.
    pub fn new(options: &RetryOptions) -> Self {
        let floor = f64::from(options.budget_floor);
        let capacity = f64::from(options.budget_burst).max(1.0);
        Self {
            tokens: Cell::new(capacity),
            filled_us: Cell::new(0),
            share: options.budget_share.max(0.0),
            floor,
            capacity,
        }
    }

    /// Counts a request.
    pub fn request(&self) {
        self.tokens.set((self.tokens.get() + self.share).min(self.capacity));
    }

    /// Takes a retry out of the budget.
    #[must_use]
    pub fn take(&self, now_us: u64) -> bool {
        let elapsed = now_us.saturating_sub(self.filled_us.replace(now_us)) as f64 / 1e6;
        let tokens = (self.tokens.get() + elapsed * self.floor).min(self.capacity);
        self.tokens.set(if tokens >= 1.0 { tokens - 1.0 } else { tokens });
        tokens >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_return_what_they_took() {
        let gauge = Gauge::new(100);
        let mut first = gauge.take(60).unwrap();
        assert!(gauge.take(41).is_none());
        assert!(first.grow(40) && !first.grow(1));
        assert_eq!((gauge.used(), first.amount()), (100, 100));
        drop(first);
        assert_eq!(gauge.used(), 0);
    }

    #[test]
    fn retries_are_a_share_of_requests_above_the_floor() {
        let options =
            RetryOptions { budget_share: 0.5, budget_floor: 1, budget_burst: 10, ..RetryOptions::default() };
        let budget = RetryBudget::new(&options);
        assert_eq!((0..20).filter(|_| budget.take(1)).count(), 10, "a full bucket");
        budget.request();
        assert!(!budget.take(1));
        budget.request();
        assert!(budget.take(1) && !budget.take(1));
        assert!(budget.take(1_000_001) && !budget.take(1_000_001));
    }
}
