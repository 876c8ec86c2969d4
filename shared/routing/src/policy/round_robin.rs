//! `round-robin`.

use std::sync::atomic::Ordering;

use super::{Choice, Decision, Missing, Policy, Reason, least};
use crate::registry::PolicyName;
use crate::rng::Rng;

/// The eligible target that was picked longest ago.
///
/// Rule: every pick takes a ticket from a counter of the process and leaves it on the target; the smallest ticket is
/// next. Over an unchanged eligible set that is exact rotation; a target that comes back takes one turn and then its
/// place in the order, where a running index modulo the set's size would skip or repeat others.
pub(crate) struct RoundRobin;

impl Policy for RoundRobin {
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let targets = decision.targets;
        let cell = |c: &super::Candidate| &targets[c.number as usize].cells.ticket;
        let ticket = |c: &super::Candidate| cell(c).load(Ordering::Relaxed);
        let index = least(decision.candidates, rng, |_| true, ticket).ok_or(None)?;
        let cell = cell(&decision.candidates[index]);
        cell.store(decision.fleet.next_ticket(), Ordering::Relaxed);
        Ok(Choice { index, reason: Reason::Turn })
    }

    fn fallback(&self) -> Option<PolicyName> {
        None
    }
}
