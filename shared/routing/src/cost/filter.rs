//! An estimator of a handful of positive coefficients from one observation after another.

/// Estimates the coefficients of `y ≈ f(θ)`, `f` a sum of products of them, in their logarithms: a coefficient stays
/// positive, and one that is three times too small is as far off as one that is three times too large.
///
/// Source: the extended Kalman filter with a random walk of the state (Simon, *Optimal State Estimation*, chapter 13),
/// its measurement the logarithm of `y`. The noise of the measurement is taken from the residuals, which are clipped
/// (Huber 1964). What the observations do not speak of keeps its variance, so nothing winds up while a coefficient is
/// quiet, and others are forgotten at the same pace.
#[derive(Clone, Debug)]
pub(crate) struct Filter<const N: usize> {
    /// Natural logarithms, relative to the prior.
    log: [f64; N],
    covariance: [[f64; N]; N],
    /// The covariance at the start, whose variances none exceeds.
    start: [[f64; N]; N],
    /// Running mean of the residuals' size.
    spread: f64,
    /// Running mean of the residuals, each relative to the size that it was expected to have.
    lean: f64,
    seen: u32,
}

/// Residuals beyond this many times their usual size count as that.
const CLIP: f64 = 4.0;
/// Least and greatest standard deviation that a measurement is taken to have.
const NOISE: (f64, f64) = (0.05, 1.0);
/// Size of residuals to begin with.
const SPREAD: f64 = 0.3;
/// Variance that a coefficient's logarithm gains from observation to observation: with residuals of a tenth, the last
/// hundred observations count.
const DRIFT: f64 = 1e-6;
/// Residuals that lean to one side by more than this, three times as much as chance makes them, show that something has
/// changed: then this share of what was known at the start is forgotten.
const LEAN: f64 = 0.8;
const FORGET: f64 = 0.05;
/// Coefficients stay within this factor of the prior.
const RANGE: f64 = 64.0;

impl<const N: usize> Filter<N> {
    /// Begins at the prior. Of each coefficient: the standard deviation of its logarithm that it shares with all
    /// others (a device is slower than another in everything), and that which is its own.
    pub(crate) fn new(deviations: [(f64, f64); N]) -> Self {
        let mut covariance = [[0.0; N]; N];
        for (i, row) in covariance.iter_mut().enumerate() {
            for (j, cell) in row.iter_mut().enumerate() {
                *cell = deviations[i].0 * deviations[j].0;
            }
            row[i] += deviations[i].1 * deviations[i].1;
        }
        Self { log: [0.0; N], covariance, start: covariance, spread: SPREAD, lean: 0.0, seen: 0 }
    }

    /// The coefficients, relative to the prior.
    pub(crate) fn factors(&self) -> [f64; N] {
        self.log.map(f64::exp)
    }

    /// Observations taken.
    pub(crate) fn seen(&self) -> u32 {
        self.seen
    }

    /// Takes an observation `y`, where `predicted` was expected; `slopes` say by how much that grows with the
    /// logarithm of each coefficient. What is not finite, or not positive, is passed over.
    pub(crate) fn observe(&mut self, predicted: f64, slopes: [f64; N], y: f64) {
        let x = slopes.map(|slope| slope / predicted);
        let error = (y / predicted).ln();
        if !(predicted > 0.0 && error.is_finite() && x.iter().all(|x| x.is_finite())) {
            return;
        }
        let noise = self.spread.clamp(NOISE.0, NOISE.1);
        let px: [f64; N] = std::array::from_fn(|i| dot(&self.covariance[i], &x));
        let denominator = noise * noise + dot(&x, &px);
        if !(denominator.is_finite() && denominator > 0.0) {
            return;
        }
        // A residual is as large as the noise and what is not known yet of the coefficients make it.
        let bound = CLIP * denominator.sqrt();
        let weighed = error.clamp(-bound, bound);
        let range = RANGE.ln();
        for i in 0..N {
            self.log[i] = (self.log[i] + px[i] / denominator * weighed).clamp(-range, range);
            for j in 0..N {
                self.covariance[i][j] -= px[i] * px[j] / denominator;
            }
        }
        // Of what was not known the observation says nothing about the noise.
        let left = weighed.abs() * noise / denominator.sqrt();
        self.spread += (left.min(2.0 * CLIP * noise) - self.spread) / 32.0;
        self.lean += (weighed / denominator.sqrt() - self.lean) / 8.0;
        let forget = if self.lean.abs() > LEAN { FORGET } else { 0.0 };
        if forget > 0.0 {
            self.lean = 0.0;
        }
        for i in 0..N {
            self.covariance[i][i] += DRIFT;
            for j in 0..N {
                self.covariance[i][j] += forget * self.start[i][j];
            }
        }
        for i in 0..N {
            if self.covariance[i][i] > self.start[i][i] {
                let shrink = (self.start[i][i] / self.covariance[i][i]).sqrt();
                for j in 0..N {
                    self.covariance[i][j] *= shrink;
                    self.covariance[j][i] *= shrink;
                }
            }
        }
        self.seen = self.seen.saturating_add(1);
    }
}

fn dot<const N: usize>(a: &[f64; N], b: &[f64; N]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    fn observe<const N: usize>(filter: &mut Filter<N>, x: [f64; N], y: f64) {
        let factors = filter.factors();
        let slopes: [f64; N] = std::array::from_fn(|i| x[i] * factors[i]);
        filter.observe(slopes.iter().sum(), slopes, y);
    }

    #[test]
    fn finds_the_coefficients_through_noise_and_follows_a_change() {
        let mut rng = Rng::new(3);
        let mut filter = Filter::<3>::new([(1.0, 0.7); 3]);
        for (truth, rounds) in [([2.0, 0.5, 1.0], 1_000), ([0.7, 3.0, 0.4], 4_000), ([5.0, 5.0, 5.0], 4_000)]
        {
            for _ in 0..rounds {
                let x = [rng.unit(), rng.unit(), rng.unit()];
                let noise = 1.0 + 0.1 * (rng.unit() - 0.5);
                observe(&mut filter, x, dot(&truth, &x) * noise);
            }
            for (found, truth) in filter.factors().iter().zip(truth) {
                assert!((found / truth - 1.0).abs() < 0.1, "{:?} is not {truth:?}", filter.factors());
            }
        }
    }

    #[test]
    fn what_is_shared_moves_together_until_there_is_evidence() {
        for truth in [0.2, 5.0] {
            let mut filter = Filter::<2>::new([(1.1, 0.3); 2]);
            for _ in 0..20 {
                observe(&mut filter, [1.0, 0.0], truth);
            }
            let [told, untold] = filter.factors();
            assert!((told / truth - 1.0).abs() < 0.05, "{told} is not {truth}");
            assert!((untold.ln() - truth.ln()).abs() < 0.15, "{untold} stays behind {truth}");
            for _ in 0..50 {
                observe(&mut filter, [0.5, 0.5], 0.5 * truth + 0.5);
                observe(&mut filter, [1.0, 0.0], truth);
            }
            assert!((filter.factors()[1] - 1.0).abs() < 0.15, "{:?}", filter.factors());
        }
    }

    #[test]
    fn broken_and_wild_observations_do_little() {
        let mut filter = Filter::<2>::new([(1.0, 0.5); 2]);
        for i in 0..500 {
            let x = f64::from(i % 7) / 7.0;
            observe(&mut filter, [1.0, x], (1.0 + x) * if i % 2 == 0 { 1.1 } else { 0.9 });
        }
        for (x, y) in [
            (0.5, f64::NAN),
            (f64::INFINITY, 1.0),
            (0.5, 0.0),
            (0.5, -1.0),
            (0.5, f64::INFINITY),
            (0.5, 1e12),
        ] {
            observe(&mut filter, [1.0, x], y);
        }
        filter.observe(0.0, [0.0; 2], 1.0);
        assert!(filter.factors().iter().all(|t| (0.8..1.25).contains(t)), "{:?}", filter.factors());
        assert_eq!(filter.seen(), 501);
        for _ in 0..10_000 {
            observe(&mut filter, [1.0, 0.1], 1e12);
        }
        assert!(filter.factors().iter().all(|t| (1.0 / 64.01..64.01).contains(t)), "{:?}", filter.factors());
    }
}
