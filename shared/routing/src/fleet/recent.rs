//! Sums that fade: what was sent to a target lately, and what it has prefilled.

use std::sync::atomic::{AtomicU64, Ordering};

/// A decayed sum; after `SECONDS` what was noted counts a third. Notes that come at once from several shards may be
/// lost but for one.
#[derive(Debug, Default)]
pub(crate) struct Faded<const SECONDS: u32>(AtomicU64);

/// Prompt tokens, cached ones included: what the target's decoding has to read, beyond the requests that it has at this
/// moment.
pub(crate) type Recent = Faded<60>;

impl<const SECONDS: u32> Faded<SECONDS> {
    /// Adds to the sum.
    #[inline]
    pub(crate) fn note(&self, tokens: f32, now_us: u64) {
        let sum = Self::decayed(self.0.load(Ordering::Relaxed), now_us) + tokens;
        self.0.store(u64::from(sum.to_bits()) << 32 | u64::from(millis(now_us)), Ordering::Relaxed);
    }

    /// What was noted, a second.
    #[inline]
    pub(crate) fn rate(&self, now_us: u64) -> f32 {
        Self::decayed(self.0.load(Ordering::Relaxed), now_us) / SECONDS as f32
    }

    #[inline]
    fn decayed(word: u64, now_us: u64) -> f32 {
        let (sum, then) = (f32::from_bits((word >> 32) as u32), word as u32);
        let passed = millis(now_us).wrapping_sub(then) as f32 / (1_000 * SECONDS) as f32;
        // (1 - x/8)^8 for exp(-x): near enough, and a decision may do it for a thousand targets.
        let step = (1.0 - passed / 8.0).max(0.0);
        let squared = step * step;
        let fourth = squared * squared;
        sum * fourth * fourth
    }
}

/// Milliseconds, wrapping after seven weeks: an idle target's sum is nothing long before that.
fn millis(now_us: u64) -> u32 {
    (now_us / 1_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_shows_its_rate_and_fades_when_it_ends() {
        let recent = Recent::default();
        assert_eq!(recent.rate(5_000_000), 0.0);
        for second in 0..600 {
            recent.note(1_000.0, second * 1_000_000);
        }
        assert!((800.0..1_100.0).contains(&recent.rate(600_000_000)), "{}", recent.rate(600_000_000));
        assert!(recent.rate(660_000_000) < 450.0);
        assert_eq!(recent.rate(2_000_000_000), 0.0);
    }
}
