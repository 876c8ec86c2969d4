//! Filters: which of a model's targets a decision may pick.
//!
//! | filter | a target is left out when | given up |
//! |---|---|---|
//! | model | it does not serve the model or adapter asked for ([`TargetTable::model`](crate::TargetTable::model)) | never |
//! | part | it cannot take the part of a request that is to be placed ([`Parts`]) | never |
//! | ready | the scheduler, or the gateway where it judges alone, does not call it ready | never |
//! | labels | the request's [`LabelFilter`] does not match its labels | never |
//! | tried | this request has failed there already | never |
//! | room | its engine reports less free KV room than the prompt's uncached part needs | first |
//! | host | this request has failed at another target of its host | then |
//! | circuit | this gateway could lately not connect to it | last |
//!
//! What is given up is given up rather than have no target: a full engine makes the request wait, a host may be well, and
//! the scheduler still calls a target ready whose circuit is open. A filter that cannot apply to a request costs nothing
//! per target.

mod labels;
mod room;
#[cfg(test)]
mod tests;
mod tried;

pub use labels::{LabelError, LabelFilter};
pub(crate) use room::Room;

use crate::fleet::{Mode, ModelEntry, Parts, Row, TargetEntry};
use crate::plan::NoPlan;
use crate::request::PlanRequest;

/// What holds in one pass over the targets.
#[derive(Clone, Copy)]
pub(crate) struct Strictness {
    room: bool,
    host: bool,
    circuit: bool,
}

impl Strictness {
    /// From all filters to those that are never given up.
    pub(crate) const STEPS: [Self; 6] = [
        Self::of(true, true, true),
        Self::of(false, true, true),
        Self::of(true, false, true),
        Self::of(false, false, true),
        Self::of(true, false, false),
        Self::of(false, false, false),
    ];

    /// Those of them that leave out whom this gateway could not connect to.
    pub(crate) const CONNECTED: &'static [Self] = &[
        Self::of(true, true, true),
        Self::of(false, true, true),
        Self::of(true, false, true),
        Self::of(false, false, true),
    ];

    const fn of(room: bool, host: bool, circuit: bool) -> Self {
        Self { room, host, circuit }
    }
}

/// The filters of one request.
pub(crate) struct Filters<'a> {
    request: &'a PlanRequest<'a>,
    /// Whether a target's description must be looked at.
    described: bool,
    /// Whether KV room is known and asked for.
    room: bool,
    /// Whether the pass left a target out for want of room.
    crowded: bool,
    /// The target must be able to take one of these.
    parts: Parts,
}

impl<'a> Filters<'a> {
    pub(crate) fn new(request: &'a PlanRequest<'a>, mode: Mode, parts: Parts) -> Self {
        let described = !request.tried.is_empty() || request.labels.is_some();
        // Reports that are not fresh say nothing about room.
        let room = mode == Mode::Fresh && request.prompt_tokens > 0;
        Self { request, described, room, crowded: false, parts }
    }

    /// Whether a pass can find what the passes before it did not.
    pub(crate) fn begin(&mut self, step: Strictness) -> bool {
        let gives_up_room = !step.room;
        !gives_up_room || std::mem::take(&mut self.crowded)
    }

    /// Whether the target passes, as far as that can be said without knowing what it holds.
    #[inline]
    pub(crate) fn admits(&self, step: Strictness, row: &Row, model: &ModelEntry, number: usize) -> bool {
        row.ready
            && row.parts.has(self.parts)
            && (!step.circuit || row.cells.circuit_closed(self.request.now_us))
            && (!self.described || self.admits_described(step, &model.targets[number]))
    }

    fn admits_described(&self, step: Strictness, target: &TargetEntry) -> bool {
        let is_tried = tried::is_tried(self.request, target)
            || (step.host && tried::is_host_tried(self.request, target));
        !is_tried && self.request.labels.is_none_or(|labels| labels.matches(&target.info.labels))
    }

    /// Whether the target has room for what it does not hold of the prompt.
    #[inline]
    pub(crate) fn has_room(&mut self, step: Strictness, row: &Row, cached_blocks: u32) -> bool {
        let lacks = step.room && self.room && row.cells.room.lacks(self.request, cached_blocks);
        self.crowded |= lacks;
        !lacks
    }

    /// Why there is no candidate.
    pub(crate) fn why_none(&self, model: &ModelEntry) -> NoPlan {
        let matches = |target: &TargetEntry| {
            self.request.labels.is_none_or(|labels| labels.matches(&target.info.labels))
        };
        let mut matching = model.targets.iter().filter(|target| matches(target)).peekable();
        if matching.peek().is_none() {
            return NoPlan::NoneMatches;
        }
        let mut able = matching.filter(|target| target.parts.has(self.parts)).peekable();
        if able.peek().is_none() {
            NoPlan::NoneWhole
        } else if able.any(|target| target.ready) {
            NoPlan::AllTried
        } else {
            NoPlan::NoneReady
        }
    }
}
