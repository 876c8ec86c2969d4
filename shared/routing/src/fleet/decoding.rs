//! How much a target decoded and prefilled over time, as this process knows it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::recent::Faded;

/// Sums over time, so that two looks give the mean between them. Shards that look at once may count a stretch twice
/// or not at all, as long as one of them takes to look.
#[derive(Debug, Default)]
pub(crate) struct Decoding {
    since_us: AtomicU64,
    /// Requests past their first token, request-microseconds.
    batch: AtomicU64,
    /// Their prompt tokens, token-milliseconds.
    context: AtomicU64,
    /// Prompt tokens prefilled, own and others'.
    prefilled: AtomicU64,
    /// The same lately.
    lately: Faded<LATELY_S>,
}

/// Time in which prefill counts as lately, seconds: about that of an answer, over which its mean time between tokens is
/// taken.
const LATELY_S: u32 = 6;

/// The sums at some time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) at_us: u64,
    batch: u64,
    context: u64,
    prefilled: u64,
}

impl Decoding {
    /// Counts the time since the last look, in which there were so many requests with so many prompt tokens.
    pub(crate) fn look(&self, now_us: u64, batch: u64, context: u64) -> Sums {
        let passed = now_us.saturating_sub(self.since_us.fetch_max(now_us, Ordering::Relaxed));
        let add = |cell: &AtomicU64, more: u64| cell.fetch_add(more, Ordering::Relaxed).wrapping_add(more);
        Sums {
            at_us: now_us,
            batch: add(&self.batch, batch.saturating_mul(passed)),
            context: add(&self.context, (context as f64 * passed as f64 / 1e3) as u64),
            prefilled: self.prefilled.load(Ordering::Relaxed),
        }
    }

    /// Prompt tokens were prefilled.
    pub(crate) fn prefilled(&self, tokens: u64, now_us: u64) {
        if tokens > 0 {
            self.prefilled.fetch_add(tokens, Ordering::Relaxed);
            self.lately.note(tokens as f32, now_us);
        }
    }

    /// Prompt tokens prefilled a second, lately.
    #[inline]
    pub(crate) fn prefill_rate(&self, now_us: u64) -> f32 {
        self.lately.rate(now_us)
    }
}

impl Sums {
    /// Mean requests and their prompt tokens since `then`, and prompt tokens prefilled since.
    pub(crate) fn since(&self, then: &Self) -> (f32, f32, f32) {
        let span = self.at_us.saturating_sub(then.at_us).max(1) as f64;
        let batch = self.batch.wrapping_sub(then.batch) as f64 / span;
        let context = self.context.wrapping_sub(then.context) as f64 * 1e3 / span;
        (batch as f32, context as f32, self.prefilled.wrapping_sub(then.prefilled) as f32)
    }
}
