//! How many prompt tokens were sent to a target lately.

use std::sync::atomic::{AtomicU64, Ordering};

/// Time after which what was sent counts a third, seconds.
const LATELY_S: f32 = 60.0;

/// A decayed sum of prompt tokens, cached ones included: what the target's decoding has to read, beyond the requests
/// that it has at this moment. Requests that come at once from several shards may lose one of their notes.
#[derive(Debug, Default)]
pub(crate) struct Recent(AtomicU64);

impl Recent {
    /// Notes a prompt.
    #[inline]
    pub(crate) fn note(&self, tokens: f32, now_us: u64) {
        let sum = decayed(self.0.load(Ordering::Relaxed), now_us) + tokens;
        self.0.store(u64::from(sum.to_bits()) << 32 | u64::from(millis(now_us)), Ordering::Relaxed);
    }

    /// Prompt tokens a second.
    #[inline]
    pub(crate) fn rate(&self, now_us: u64) -> f32 {
        decayed(self.0.load(Ordering::Relaxed), now_us) / LATELY_S
    }
}

/// Milliseconds, wrapping after seven weeks: an idle target's sum is nothing long before that.
fn millis(now_us: u64) -> u32 {
    (now_us / 1_000) as u32
}

#[inline]
fn decayed(word: u64, now_us: u64) -> f32 {
    let (sum, then) = (f32::from_bits((word >> 32) as u32), word as u32);
    let passed = millis(now_us).wrapping_sub(then) as f32 / (1_000.0 * LATELY_S);
    // (1 - x/8)^8 for exp(-x): near enough, and a decision may do it for a thousand targets.
    let step = (1.0 - passed / 8.0).max(0.0);
    let squared = step * step;
    let fourth = squared * squared;
    sum * fourth * fourth
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
