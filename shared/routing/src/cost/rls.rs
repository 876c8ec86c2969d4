//! Recursive least squares with forgetting, for a handful of coefficients.

/// Estimates `y ≈ x·θ` from one observation after another. Features are to be scaled so that the prior is about one
/// for each coefficient.
///
/// Source: the textbook recursion (Ljung, *System Identification*, chapter 11), with the covariance bounded by its
/// start so that quiet features do not wind up, and residuals clipped (Huber 1964).
#[derive(Clone, Debug)]
pub(crate) struct Rls<const N: usize> {
    theta: [f64; N],
    covariance: [[f64; N]; N],
    start: f64,
    forget: f64,
    /// Running mean of the residuals' size.
    spread: f64,
    seen: u32,
}

/// Residuals beyond this many times their usual size count as that.
const CLIP: f64 = 4.0;
/// Coefficients stay within this factor of one.
const RANGE: f64 = 64.0;

impl<const N: usize> Rls<N> {
    /// Begins at one for every coefficient, with that variance.
    pub(crate) fn new(variance: f64, forget: f64) -> Self {
        let mut covariance = [[0.0; N]; N];
        for (i, row) in covariance.iter_mut().enumerate() {
            row[i] = variance;
        }
        Self { theta: [1.0; N], covariance, start: variance, forget, spread: 0.5, seen: 0 }
    }

    /// The coefficients.
    pub(crate) fn theta(&self) -> &[f64; N] {
        &self.theta
    }

    /// Observations taken.
    pub(crate) fn seen(&self) -> u32 {
        self.seen
    }

    /// Takes an observation; what is not finite is passed over.
    pub(crate) fn observe(&mut self, x: &[f64; N], y: f64) {
        if !y.is_finite() || x.iter().any(|x| !x.is_finite()) {
            return;
        }
        let px: [f64; N] = std::array::from_fn(|i| dot(&self.covariance[i], x));
        let denominator = self.forget + dot(x, &px);
        if !(denominator.is_finite() && denominator > 0.0) {
            return;
        }
        let error = y - dot(&self.theta, x);
        let bound = CLIP * self.spread.max(0.02);
        self.spread += (error.abs().min(2.0 * bound) - self.spread) / 32.0;
        let error = error.clamp(-bound, bound);
        for i in 0..N {
            let gain = px[i] / denominator;
            self.theta[i] = (self.theta[i] + gain * error).clamp(1.0 / RANGE, RANGE);
        }
        let mut widest: f64 = 0.0;
        for i in 0..N {
            for j in 0..N {
                self.covariance[i][j] = (self.covariance[i][j] - px[i] * px[j] / denominator) / self.forget;
            }
            widest = widest.max(self.covariance[i][i]);
        }
        if widest > self.start {
            let shrink = self.start / widest;
            self.covariance.iter_mut().flatten().for_each(|cell| *cell *= shrink);
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

    #[test]
    fn finds_the_coefficients_through_noise_and_follows_a_change() {
        let mut rng = Rng::new(3);
        let mut rls = Rls::<3>::new(1.0, 0.995);
        for (truth, rounds) in [([2.0, 0.5, 1.0], 2_000), ([0.7, 3.0, 0.4], 4_000)] {
            for _ in 0..rounds {
                let x = [rng.unit(), rng.unit(), rng.unit()];
                let noise = 1.0 + 0.1 * (rng.unit() - 0.5);
                rls.observe(&x, dot(&truth, &x) * noise);
            }
            for (found, truth) in rls.theta().iter().zip(truth) {
                assert!((found / truth - 1.0).abs() < 0.1, "{:?}", rls.theta());
            }
        }
    }

    #[test]
    fn broken_and_wild_observations_do_little() {
        let mut rls = Rls::<2>::new(1.0, 0.995);
        for i in 0..500 {
            rls.observe(&[1.0, f64::from(i % 7) / 7.0], 1.0 + f64::from(i % 7) / 7.0);
        }
        rls.observe(&[1.0, 0.5], f64::NAN);
        rls.observe(&[f64::INFINITY, 0.5], 1.0);
        rls.observe(&[1.0, 0.5], 1e9);
        assert!(rls.theta().iter().all(|t| (0.8..1.25).contains(t)), "{:?}", rls.theta());
        assert_eq!(rls.seen(), 501);
    }
}
