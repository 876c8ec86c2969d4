//! What answers show of the targets' caches and of their pace, summed until it is told to the scheduler.

use std::collections::BTreeMap;

use fairlead_wire::TargetId;
use fairlead_wire::limits::MAX_COUNT;
use fairlead_wire::msg::{Feedback, HashSpace, TargetFeedback, TargetPace};

use super::{Replica, ReplicaSink, ReservationSource};

/// Least interval between two messages of caches, microseconds.
const FEEDBACK_US: u64 = 1_000_000;
/// Least interval between two messages of paces, microseconds.
const PACES_US: u64 = 250_000;
/// Answers of one target of which the paces may wait to be told. Beyond, all that wait count half: those of a long time
/// without a scheduler say little of the present.
const MAX_PACES: u32 = 1_024;
/// Most answers that one message may count.
const MAX_ANSWERS: u32 = 1 << 24;

/// One answer whose usage tells how much of its prompt was cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheAnswer {
    /// What the blocks were made of by which the prediction was made.
    pub space: HashSpace,
    /// Prompt tokens that the index said the target holds.
    pub predicted_tokens: u64,
    /// Prompt tokens that the engine served from its cache.
    pub cached_tokens: u64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Bytes of the canonical prompt.
    pub prompt_bytes: u64,
}

/// Sums by local target and space; at most two entries a target. Of paces one.
#[derive(Debug, Default)]
pub(super) struct Sums {
    entries: BTreeMap<(TargetId, bool), TargetFeedback>,
    next_us: u64,
    paces: BTreeMap<TargetId, TargetPace>,
    next_paces_us: u64,
}

impl<S: ReplicaSink + ReservationSource> Replica<S> {
    /// Takes an answer of `target` into account.
    pub fn answered(&mut self, target: TargetId, answer: &CacheAnswer) {
        if self.remote_of(target).is_none() {
            return;
        }
        let tokens = answer.space == HashSpace::Tokens;
        let sums = self.feedback.entries.entry((target, tokens)).or_insert(TargetFeedback {
            target: 0,
            space: answer.space,
            answers: 0,
            predicted_tokens: 0,
            cached_tokens: 0,
            prompt_tokens: 0,
            prompt_bytes: 0,
        });
        if sums.answers == MAX_ANSWERS {
            return;
        }
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more).min(MAX_COUNT);
        sums.answers += 1;
        add(&mut sums.predicted_tokens, answer.predicted_tokens);
        add(&mut sums.cached_tokens, answer.cached_tokens);
        add(&mut sums.prompt_tokens, answer.prompt_tokens);
        add(&mut sums.prompt_bytes, answer.prompt_bytes);
    }

    /// An answer of more than one token has ended; `late` if it took longer per token than this gateway's limit. Kept
    /// until a scheduler can be told, also while there is none.
    pub fn paced(&mut self, target: TargetId, late: bool) {
        if self.table.get(target.slot).is_none_or(|local| local.id != target) {
            return;
        }
        let pace = self.feedback.paces.entry(target).or_default();
        if pace.answers >= MAX_PACES {
            (pace.answers, pace.late) = (pace.answers / 2, pace.late / 2);
        }
        pace.answers += 1;
        pace.late += u32::from(late);
    }

    /// The paces that are due to be told; those of targets that the scheduler has not named yet go on waiting.
    fn paces_due(&mut self, now_us: u64) -> Vec<TargetPace> {
        if self.feedback.paces.is_empty() || now_us < self.feedback.next_paces_us {
            return Vec::new();
        }
        self.feedback.next_paces_us = now_us + PACES_US;
        let mut told = Vec::new();
        let table = &self.table;
        self.feedback.paces.retain(|id, pace| {
            let Some(local) = table.get(id.slot).filter(|local| local.id == *id) else { return false };
            let Some(target) = local.remote else { return true };
            told.push(TargetPace { target, ..*pace });
            false
        });
        told
    }

    /// What is due to be told.
    pub(super) fn feedback_due(&mut self, now_us: u64) -> Option<Feedback> {
        let costs = self.costs_due(now_us);
        let paces = self.paces_due(now_us);
        let due = now_us >= self.feedback.next_us && !self.feedback.entries.is_empty();
        let sums = if due { std::mem::take(&mut self.feedback.entries) } else { BTreeMap::new() };
        if due {
            self.feedback.next_us = now_us + FEEDBACK_US;
        }
        let named = |((target, _), sums): ((TargetId, bool), TargetFeedback)| {
            // Answers of a target that is gone, or unknown to a new scheduler, correct nothing.
            Some(TargetFeedback { target: self.remote_of(target)?, ..sums })
        };
        let items: Vec<TargetFeedback> = sums.into_iter().filter_map(named).collect();
        let feedback = Feedback { items, costs, paces };
        (feedback != Feedback::default()).then_some(feedback)
    }
}
