//! What a request's work is predicted to take at each candidate.

use super::{Candidate, Decision};
use crate::cost::Constants;

/// Tokens of an answer of which nothing is known.
pub(crate) const ANSWER_TOKENS: f32 = 500.0;

/// What a request's work at a target is predicted to take, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Predicted {
    /// The request's own prefill work.
    pub own: f32,
    /// What a prompt token costs there.
    pub prefill: f32,
    /// Prefill work queued before it.
    pub queue: f32,
    /// Requests decoding there now, a count.
    pub batch: f32,
    /// A decode step now.
    pub step: f32,
    /// A decode step with this request in it.
    pub step_after: f32,
    /// Until there is KV room for it.
    pub room: f32,
    /// Time to its first token.
    pub ttft: f32,
    /// Share of the target's time that reading the contexts sent there lately takes.
    pub crowding: f32,
}

impl Decision<'_> {
    /// What the request's work at a candidate is predicted to take.
    #[inline]
    pub fn predict(&self, candidate: &Candidate) -> Predicted {
        let request = self.request;
        let cells = &self.target(candidate).cells;
        let constants = cells.costs.read();
        let uncached = request.uncached(candidate.cached_blocks);
        let cached = request.prompt_tokens - uncached;
        let own = constants.work(uncached as f32, cached as f32);
        let (batch, context) = (candidate.decoding() as f32, candidate.context_tokens as f32);
        let step = constants.decode_step(batch, context);
        // What the target has done of its queue since it was last seen to advance.
        let since = request.now_us.saturating_sub(cells.counters.progress_us()) as f32;
        let queued = candidate.queued_us as f32;
        let left = (queued - since * constants.prefill_share(step)).max(0.0);
        let tokens = if queued > 0.0 { candidate.queued_tokens as f32 * (left / queued) } else { 0.0 };
        // A prompt that meets no queue waits for the end of the step under way.
        let under_way = if left == 0.0 && batch > 0.0 { 0.5 * step } else { 0.0 };
        let room = self.room_wait(candidate, step);
        Predicted {
            own,
            prefill: constants.prefill,
            queue: left,
            batch,
            step,
            step_after: constants.decode_step(batch + 1.0, context + request.prompt_tokens as f32),
            room,
            ttft: room + under_way + constants.prefill_time(left + own, tokens + uncached as f32, step),
            crowding: self.crowding(candidate, &constants),
        }
    }

    /// Share of the target's time that prefill took lately.
    #[inline]
    pub(crate) fn prefill_share(&self, candidate: &Candidate, predicted: &Predicted) -> f32 {
        let done = self.target(candidate).cells.decoding.prefill_rate(self.request.now_us);
        (done * predicted.prefill / 1e6).min(0.95)
    }

    /// Time until the requests that run have ended in such number that this one and those that wait before it fit
    /// into the KV room; 0 where they fit now, or where the engine does not report its room.
    #[inline]
    fn room_wait(&self, candidate: &Candidate, step: f32) -> f32 {
        let answer = self.request.max_output.map_or(ANSWER_TOKENS, |most| ANSWER_TOKENS.min(most as f32));
        let need = self.request.prompt_tokens as f32 + answer;
        // Most targets have room to spare for all that wait; they are passed over at the cost of one load.
        let plenty = need * (candidate.prefilling as f32 + 1.0);
        match self.target(candidate).cells.room.free() {
            Some(free) if (free as f32) < plenty => self.room_wait_by_report(candidate, step, need),
            _ => 0.0,
        }
    }

    #[cold]
    fn room_wait_by_report(&self, candidate: &Candidate, step: f32, need: f32) -> f32 {
        let figures = self.figures(candidate);
        let (Some(usage), Some(total)) = (figures.kv_usage, figures.kv_total_tokens) else { return 0.0 };
        let used = usage.clamp(0.0, 1.0) * total as f32;
        let waiting = figures.waiting.unwrap_or(0) as f32;
        let missing = used + (waiting + 1.0) * need - total as f32;
        if missing > 0.0 && used > 0.0 {
            // All that is held now is given back in about the time of an answer, in which prefill doubles the steps.
            missing / used * ANSWER_TOKENS * 2.0 * step
        } else {
            0.0
        }
    }

    #[inline]
    fn crowding(&self, candidate: &Candidate, constants: &Constants) -> f32 {
        let rate = self.target(candidate).cells.counters.recent.rate(self.request.now_us);
        rate * ANSWER_TOKENS * constants.context / 1e6
    }
}
