//! What answers show of the targets' caches, summed until it is told to the scheduler.

use std::collections::BTreeMap;

use fairlead_wire::TargetId;
use fairlead_wire::limits::MAX_COUNT;
use fairlead_wire::msg::{Feedback, HashSpace, TargetFeedback};

use super::{Replica, ReplicaSink, ReservationSource};

/// Interval between two messages, microseconds.
const FEEDBACK_US: u64 = 1_000_000;
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

/// Sums by local target and space; at most two entries a target.
#[derive(Debug, Default)]
pub(super) struct Sums {
    entries: BTreeMap<(TargetId, bool), TargetFeedback>,
    next_us: u64,
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

    /// What is due to be told.
    pub(super) fn feedback_due(&mut self, now_us: u64) -> Option<Feedback> {
        let costs = self.costs_due(now_us);
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
        (!items.is_empty() || !costs.is_empty()).then_some(Feedback { items, costs })
    }
}
