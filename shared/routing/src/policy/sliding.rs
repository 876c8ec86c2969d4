//! Sums over a sliding window, in one word each.

use std::sync::atomic::{AtomicU64, Ordering};

/// Most units that one window holds; more counts as that.
const MOST: u64 = (1 << 24) - 1;

/// A sum over the last window of time, by the usual approximation with two fixed windows: the present one whole, and of
/// the one before it the share that the sliding window still covers, as if it had come evenly.
///
/// One word: the number of the window (16 bits), the sum of the one before and of the present one (24 bits each). It
/// comes round after 65,536 windows; a sum untouched for exactly so long would count once more.
#[derive(Debug, Default)]
pub(super) struct SlidingSum(AtomicU64);

/// The length of the window and the unit of its sums.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// Length of the window, microseconds.
    pub(super) window_us: u64,
    /// Least amount that is told apart.
    pub(super) unit: f64,
}

impl Scale {
    fn number(&self, now_us: u64) -> u64 {
        (now_us / self.window_us.max(1)) & 0xffff
    }

    /// The word as it stands in the present window: sums of the one before and of this one.
    fn turned(&self, word: u64, now_us: u64) -> (u64, u64) {
        let (number, before, now) = (word >> 48, word >> 24 & MOST, word & MOST);
        match self.number(now_us).wrapping_sub(number) & 0xffff {
            0 => (before, now),
            1 => (now, 0),
            // A clock reading that is a little older than the last: shards do not agree to the microsecond.
            0xffff => (before, now),
            _ => (0, 0),
        }
    }
}

impl SlidingSum {
    /// Adds an amount; one that is no number, or not above zero, adds nothing.
    pub(super) fn add(&self, scale: &Scale, now_us: u64, amount: f64) {
        // A float becomes the nearest whole number that there is, and what is no number becomes 0.
        let units = ((amount / scale.unit).ceil() as u64).min(MOST);
        let number = scale.number(now_us);
        let next = |word| {
            let (before, now) = scale.turned(word, now_us);
            // A clock that is behind does not turn the window back.
            let ahead = (word >> 48).wrapping_sub(number) & 0xffff == 1;
            let number = if ahead { word >> 48 } else { number };
            Some(number << 48 | before << 24 | (now + units).min(MOST))
        };
        _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// The sum over the last window.
    #[inline]
    pub(super) fn read(&self, scale: &Scale, now_us: u64) -> f64 {
        let (before, now) = scale.turned(self.0.load(Ordering::Relaxed), now_us);
        let into = (now_us % scale.window_us.max(1)) as f64 / scale.window_us.max(1) as f64;
        (before as f64 * (1.0 - into) + now as f64) * scale.unit
    }

    /// Empties the sum.
    pub(super) fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALE: Scale = Scale { window_us: 1_000, unit: 0.5 };

    #[test]
    fn what_is_older_than_a_window_fades_and_goes() {
        let sum = SlidingSum::default();
        let start = 5_000_000;
        sum.add(&SCALE, start, 10.0);
        sum.add(&SCALE, start + 900, 2.0);
        for (after, want) in
            [(900, 12.0), (999, 12.0), (1_000, 12.0), (1_500, 6.0), (1_999, 0.012), (2_000, 0.0)]
        {
            let got = sum.read(&SCALE, start + after);
            assert!((got - want).abs() < 1e-9, "after {after}: {got}");
        }
        sum.add(&SCALE, start + 1_500, 4.0);
        assert_eq!(sum.read(&SCALE, start + 1_500), 10.0);
        assert_eq!(sum.read(&SCALE, start + 2_250), 3.0);
        sum.clear();
        assert_eq!(sum.read(&SCALE, start + 1_500), 0.0);
        // Shards' clocks on both sides of a turn.
        sum.add(&SCALE, start + 1_999, 1.0);
        sum.add(&SCALE, start + 2_000, 1.0);
        sum.add(&SCALE, start + 1_999, 1.0);
        sum.add(&SCALE, start + 2_000, 1.0);
        assert_eq!(sum.read(&SCALE, start + 2_000), 4.0);
    }

    #[test]
    fn sums_are_bounded_and_broken_amounts_add_nothing() {
        let sum = SlidingSum::default();
        for amount in [f64::NAN, -3.0, 0.0, f64::NEG_INFINITY] {
            sum.add(&SCALE, 7, amount);
            assert_eq!(sum.read(&SCALE, 7), 0.0, "{amount}");
        }
        sum.add(&SCALE, 7, 0.1);
        assert_eq!(sum.read(&SCALE, 7), 0.5, "rounded up, so that small amounts are not lost");
        for _ in 0..3 {
            sum.add(&SCALE, 7, f64::INFINITY);
        }
        assert_eq!(sum.read(&SCALE, 7), MOST as f64 * 0.5);
    }

    #[test]
    fn follows_an_even_stream_as_the_exact_sum_does() {
        let sum = SlidingSum::default();
        for now in 0..20_000u64 {
            sum.add(&SCALE, now, 1.0);
            if now > 2_000 {
                let got = sum.read(&SCALE, now);
                assert!((got - 1_000.0).abs() <= 2.0, "{now}: {got}");
            }
        }
    }
}
