//! What policies that compare engines' own figures have in common.

use super::{Candidate, Choice, Decision, Missing, Reason};
use crate::rng::Rng;

/// The figure, where it can be one: finite and not below zero.
#[inline]
pub(super) fn sound(figure: Option<f32>) -> Option<f64> {
    figure.filter(|figure| figure.is_finite() && *figure >= 0.0).map(f64::from)
}

/// Index of the candidate with the least measure; candidates without a measure, or with one that is no finite number,
/// are passed over; ties are drawn evenly. `None` when none has a measure.
///
/// One pass, unlike [`least`](super::least): here the measure is what costs, an engine's report being read for it.
pub(super) fn least_known(
    candidates: &[Candidate],
    rng: &mut Rng,
    measure: impl Fn(&Candidate) -> Option<f64>,
) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    let mut ties = 1;
    for (index, candidate) in candidates.iter().enumerate() {
        let Some(value) = measure(candidate).filter(|value| value.is_finite()) else { continue };
        match best {
            Some((least, _)) if value > least => continue,
            Some((least, _)) if value == least => {
                ties += 1;
                if rng.below(ties) != 0 {
                    continue;
                }
            }
            _ => ties = 1,
        }
        best = Some((value, index));
    }
    best.map(|(_, index)| index)
}

/// Picks the least of a figure of the engines, which goes by the name of `figure` where nobody reports it.
pub(super) fn pick_least(
    decision: &Decision<'_>,
    rng: &mut Rng,
    figure: &'static str,
    measure: impl Fn(&Candidate) -> Option<f64>,
) -> Result<Choice, Option<Missing>> {
    let index = least_known(decision.candidates, rng, measure).ok_or(Some(Missing(figure)))?;
    Ok(Choice { index, reason: Reason::LeastLoad })
}
