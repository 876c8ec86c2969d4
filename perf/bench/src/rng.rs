//! Seeded numbers: a Weyl sequence through SplitMix64's finaliser, enough for arrival times and word choice.

use fairlead_sim::text::mix;

/// A stream of numbers that depends on its seed alone.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Time to the next arrival of a Poisson process, seconds.
    pub fn exponential(&mut self, per_second: f64) -> f64 {
        -(1.0 - self.unit()).ln() / per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_their_rate() {
        let mut r = Rng::new(1);
        let total: f64 = (0..20_000).map(|_| r.exponential(50.0)).sum();
        assert!((total - 400.0).abs() < 12.0, "{total}");
        assert_eq!(Rng::new(5).next(), Rng::new(5).next());
    }
}
