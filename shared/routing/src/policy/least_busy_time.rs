//! `least-busy-time`.

use super::figures::{pick_least, sound};
use super::{Candidate, Choice, Decision, Missing, Policy};
use crate::rng::Rng;

/// The target that was busy for the least share of the time lately.
///
/// Rule: least share of the time in which requests were running, in whole percent: between targets that are hardly ever
/// idle, less says nothing. Inputs: that share as the agent measures it between
/// its scrapes, older times fading with 30 s; targets of which it is unknown are passed over, and where it is unknown
/// of all the policy passes to `least-request`. Ties, such as between targets that are never idle, are drawn.
/// Defaults: none to set.
///
/// Source: AIBrix `least-busy-time`, as documented. Ours differs: no engine exports the busy ratio that the original
/// asks for, so that it is always random there; here it is measured.
pub(crate) struct LeastBusyTime;

impl Policy for LeastBusyTime {
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        pick_least(decision, rng, "busy", |c| self.value(decision, c))
    }

    /// Percent.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        sound(decision.figures(candidate).busy).map(|share| (share * 100.0).round())
    }
}
