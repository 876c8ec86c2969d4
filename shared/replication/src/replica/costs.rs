//! What targets' work costs in time: what this gateway has learnt out, what all have learnt together in.

use fairlead_wire::limits::MAX_OBSERVATIONS;
use fairlead_wire::msg::{Costs, TargetCosts};
use fairlead_wire::{Slot, TargetId};

use super::{Replica, ReplicaSink, ReservationSource};

/// Least interval between two messages, microseconds.
const TELL_US: u64 = 2_000_000;
/// Share by which a constant must have changed to be told again.
const STEP: f32 = 0.02;

/// When what was learnt is told.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// Something was learnt, or what was told may not have arrived.
    due: bool,
    next_us: u64,
}

/// What is known of one target's costs.
#[derive(Debug, Default)]
pub(crate) struct LocalCosts {
    /// What this gateway has learnt; counts are of all its observations.
    learnt: Option<Costs>,
    /// The same when the linked scheduler was last told of it.
    told: Option<Costs>,
    /// What all gateways have learnt together.
    shared: Option<Costs>,
    /// That is what an earlier scheduler said, and no later one has said anything.
    of_before: bool,
}

impl LocalCosts {
    /// Another epoch begins.
    pub(crate) fn of_before(&mut self) {
        self.of_before = self.shared.is_some();
    }

    /// What is to be told now, with the observations since the last time.
    fn news(&mut self) -> Option<Costs> {
        let Some(learnt) = self.learnt else {
            // Nothing of its own; but perhaps nobody else remembers what was known.
            let shared = self.shared.filter(|_| std::mem::take(&mut self.of_before))?;
            return Some(Costs {
                prefills: shared.prefills.min(1),
                decodes: shared.decodes.min(1),
                ..shared
            });
        };
        let before = self.told.unwrap_or(Costs { prefills: 0, decodes: 0, ..learnt });
        let prefills = learnt.prefills.saturating_sub(before.prefills);
        let decodes = learnt.decodes.saturating_sub(before.decodes);
        let moved = |numbers: [(f32, f32); 3]| {
            numbers.iter().any(|(before, now)| (now - before).abs() > STEP * before)
        };
        let of_prefill = [
            (before.prefill, learnt.prefill),
            (before.attention, learnt.attention),
            (before.chunk, learnt.chunk),
        ];
        let of_decoding = [
            (before.step, learnt.step),
            (before.sequence, learnt.sequence),
            (before.context, learnt.context),
        ];
        // Told too when there are as many observations again, so that what does not move has its weight.
        let is_news = (prefills > 0 && (moved(of_prefill) || prefills >= before.prefills))
            || (decodes > 0 && (moved(of_decoding) || decodes >= before.decodes));
        if !is_news {
            return None;
        }
        self.told = Some(learnt);
        Some(Costs {
            prefills: prefills.min(MAX_OBSERVATIONS),
            decodes: decodes.min(MAX_OBSERVATIONS),
            ..learnt
        })
    }
}

impl<S: ReplicaSink + ReservationSource> Replica<S> {
    /// This gateway has learnt what a target's work costs: absolute, with all its observations. To be told when it says
    /// something new, in time; the newest replaces what has not been told yet.
    pub fn learnt(&mut self, target: TargetId, costs: &Costs) {
        if let Some(local) = self.table.get_mut(target.slot).filter(|local| local.id == target) {
            local.costs.learnt = Some(*costs);
            self.costs.due = true;
        }
    }

    /// What all gateways have learnt of a target together.
    pub fn shared_costs(&self, target: TargetId) -> Option<Costs> {
        self.table.get(target.slot).filter(|local| local.id == target)?.costs.shared
    }

    /// What was told may not have arrived: all is told again, as if nothing had been.
    pub(super) fn tell_costs_again(&mut self) {
        self.costs.due = true;
        for local in self.table.iter_mut() {
            local.costs.told = None;
        }
    }

    /// A target has an id of the linked scheduler now.
    pub(super) fn costs_are_due(&mut self) {
        self.costs.due = true;
    }

    /// What is due to be told.
    pub(super) fn costs_due(&mut self, now_us: u64) -> Vec<TargetCosts> {
        if !self.costs.due || now_us < self.costs.next_us {
            return Vec::new();
        }
        self.costs = Telling { due: false, next_us: now_us + TELL_US };
        let told = self.table.iter_mut().filter_map(|local| {
            let target = local.remote?;
            Some(TargetCosts { target, costs: local.costs.news()? })
        });
        told.collect()
    }

    /// The scheduler says what a target costs; nothing, if it does not know yet.
    pub(super) fn show_costs(&mut self, remote: u32, costs: Option<Costs>) {
        let (Some(costs), Some(slot)) = (costs, self.slot_of(remote)) else { return };
        let Some(local) = self.table.get_mut(slot) else { return };
        local.costs.of_before = false;
        if local.costs.shared.replace(costs) != Some(costs) {
            self.sink.costs(local.id, &costs);
        }
    }

    fn slot_of(&self, remote: u32) -> Option<Slot> {
        self.table.by_remote(remote).map(|local| local.id.slot)
    }
}
