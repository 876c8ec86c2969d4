//! Targets that cost the same are given the same constants.
//!
//! What one target alone has shown is uncertain by some percent, and a decision between equal targets would follow
//! that noise. Targets whose own estimates lie near each other are taken to be of one kind, and share the mean of what
//! all of them have shown; those of another kind (another GPU, another model length) stay apart.

use super::constants::Constants;

/// Estimates nearer than this factor are of one kind.
const KIND: f32 = 1.4;

/// One target's own estimate and how much stands behind it; replaced by its kind's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The constants.
    pub constants: Constants,
    /// Observations behind them.
    pub samples: u32,
}

/// Replaces the estimates of targets of one model by those of their kinds. Targets that nothing is known of are taken
/// to be of the kind of which most is known. Costs a sort.
pub fn pool(estimates: &mut [Estimate]) {
    let mut known: Vec<usize> = (0..estimates.len()).filter(|&i| estimates[i].samples > 0).collect();
    let mut best: Option<Estimate> = None;
    kinds(&mut known, estimates, prefill_weight, &mut |group, estimates| {
        let mut decode = group.to_vec();
        kinds(&mut decode, estimates, decode_weight, &mut |kind, estimates| {
            let mean = mean(kind, estimates);
            for &i in kind {
                estimates[i].constants = mean.constants;
            }
            if best.is_none_or(|best| mean.samples > best.samples) {
                best = Some(mean);
            }
        });
    });
    if let Some(best) = best {
        for estimate in estimates.iter_mut().filter(|e| e.samples == 0) {
            estimate.constants = best.constants;
        }
    }
}

/// Cost of a prompt of middling length.
fn prefill_weight(c: &Constants) -> f32 {
    c.prefill_time(c.work(2_048.0, 2_048.0), 2_048.0, c.decode_step(8.0, 32_768.0))
}

/// Cost of a step of middling load.
fn decode_weight(c: &Constants) -> f32 {
    c.decode_step(16.0, 65_536.0)
}

/// Sorts by a weight and tells each stretch without a gap.
fn kinds(
    order: &mut [usize],
    estimates: &mut [Estimate],
    weight: fn(&Constants) -> f32,
    told: &mut dyn FnMut(&[usize], &mut [Estimate]),
) {
    let of = |i: usize, estimates: &[Estimate]| weight(&estimates[i].constants);
    order.sort_by(|&a, &b| of(a, estimates).total_cmp(&of(b, estimates)));
    let mut from = 0;
    for at in 1..=order.len() {
        if at == order.len() || of(order[at], estimates) > of(order[at - 1], estimates) * KIND {
            told(&order[from..at], estimates);
            from = at;
        }
    }
}

/// Geometric mean, weighted by observations.
fn mean(kind: &[usize], estimates: &[Estimate]) -> Estimate {
    if let [only] = kind {
        return estimates[*only];
    }
    let mut sums = [0.0f64; super::constants::CONSTANTS];
    let mut samples = 0u32;
    for &i in kind {
        let weight = estimates[i].samples.min(1_000);
        samples = samples.saturating_add(weight);
        for (sum, number) in sums.iter_mut().zip(estimates[i].constants.to_array()) {
            *sum += f64::from(weight) * f64::from(number.max(f32::MIN_POSITIVE)).ln();
        }
    }
    let numbers = sums.map(|sum| (sum / f64::from(samples.max(1))).exp() as f32);
    Estimate { constants: Constants::from_array(numbers), samples }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(factor: f32, samples: u32) -> Estimate {
        let c = Constants::PRIOR;
        let constants = Constants { prefill: c.prefill * factor, step: c.step * factor, ..c };
        Estimate { constants, samples }
    }

    #[test]
    fn near_ones_become_equal_and_far_ones_stay_apart() {
        let mut all = [scaled(1.0, 100), scaled(3.0, 50), scaled(1.1, 100), scaled(2.9, 50), scaled(9.0, 0)];
        pool(&mut all);
        assert_eq!(all[0].constants, all[2].constants);
        assert_eq!(all[1].constants, all[3].constants);
        assert_eq!(all[4].constants, all[0].constants, "of the kind of which most is known");
        let factor = |e: &Estimate| e.constants.prefill / Constants::PRIOR.prefill;
        assert!((1.0..1.1).contains(&factor(&all[0])) && (2.9..3.0).contains(&factor(&all[1])), "{all:?}");
    }

    #[test]
    fn nothing_known_changes_nothing() {
        let mut all = [scaled(1.0, 0), scaled(2.0, 0)];
        let before = all;
        pool(&mut all);
        assert_eq!(all, before);
        pool(&mut []);
    }
}
