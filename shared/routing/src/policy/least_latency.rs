//! `least-latency`.

use super::figures::{least_known, sound};
use super::{Candidate, Choice, Decision, Missing, Policy, Reason};
use crate::fleet::EngineFigures;
use crate::rng::Rng;
use crate::settings::{LeastLatencySettings, Settings};

/// The target at which an average request takes least time.
///
/// ```text
/// value = max(queue, waiting · prefill) + prefill / own prompt · prompt + decode / own generation · generation
/// ```
///
/// `queue`, `prefill` and `decode` are mean times of the requests that ended there lately, `own prompt` and `own
/// generation` their mean lengths, `prompt` and `generation` the means of those lengths over the candidates that tell
/// them: targets are compared by one and the same request. Where a target tells no length its own part counts as it
/// is. `waiting` are the requests of the gateways there without a first token: an engine's figures tell of a queue
/// only when it has been waited through, and without this every request would follow the others into it.
///
/// What has ended says little of what has just begun: the means follow the load by the length of a request and more, so
/// that near saturation requests still follow one another, and policies that count reservations do better.
///
/// Inputs: requests in flight; the engines' histograms (vLLM's of queue, prefill and decode time and of tokens; of
/// SGLang's the queue, the first token and the end), as means over about 30 s. A target at which no request ended
/// lately has nothing to compare: it is taken first while it has no request at all, one at a time, and passed over
/// else; so a slow start, or an idle hour, holds against nobody for ever. Targets without these figures are passed
/// over; where no target has them the policy passes to `least-request`. Ties are drawn. Defaults: 10 and 100 tokens
/// where no lengths are known.
///
/// Source: AIBrix `least-latency`. Ours differs: the original reads the queue's histogram as a plain value, zero, and
/// the lengths likewise, so that it compares the sums of all prefill and decode means since the engine's start; and
/// with it an untried target takes every request until its first answer has ended. It does not count who is waiting
/// now.
pub(crate) struct LeastLatency(LeastLatencySettings);

/// What a candidate is compared by.
enum Measure {
    /// Expected seconds.
    Known(f64),
    /// Reported, but no request ended there lately.
    Untried,
    /// Not reported.
    Unknown,
}

impl LeastLatency {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.least_latency)
    }

    /// Prompt and generated tokens of the request by which the candidates are compared.
    fn lengths(&self, decision: &Decision<'_>) -> (f64, f64) {
        let mut prompt = (0.0, 0.0);
        let mut generation = (0.0, 0.0);
        let take = |(sum, count): &mut (f64, f64), length: Option<f32>| {
            if let Some(length) = sound(length).filter(|length| *length > 0.0) {
                (*sum, *count) = (*sum + length, *count + 1.0);
            }
        };
        for candidate in decision.candidates {
            let figures = decision.figures(candidate);
            take(&mut prompt, figures.request_prompt_tokens);
            take(&mut generation, figures.request_generation_tokens);
        }
        let mean = |(sum, count): (f64, f64), guess: f64| if count > 0.0 { sum / count } else { guess };
        (mean(prompt, self.0.guess_prompt_tokens), mean(generation, self.0.guess_generation_tokens))
    }

    fn measure(&self, figures: &EngineFigures, waiting: u64, lengths: (f64, f64)) -> Measure {
        let (prompt, generation) = lengths;
        let scaled = |time: f64, own: Option<f32>, length: f64| match sound(own) {
            Some(own) if own > 0.0 => time / own * length,
            _ => time,
        };
        let times =
            (sound(figures.queue_time_s), sound(figures.prefill_time_s), sound(figures.decode_time_s));
        let (Some(queue), Some(prefill), Some(decode)) = times else { return Measure::Unknown };
        if queue + prefill + decode == 0.0 {
            return Measure::Untried;
        }
        let queue = queue.max(waiting as f64 * prefill);
        let prefill = scaled(prefill, figures.request_prompt_tokens, prompt);
        let decode = scaled(decode, figures.request_generation_tokens, generation);
        Measure::Known(queue + prefill + decode)
    }

    fn of(&self, decision: &Decision<'_>, candidate: &Candidate, lengths: (f64, f64)) -> Option<f64> {
        match self.measure(&decision.figures(candidate), candidate.prefilling, lengths) {
            Measure::Known(seconds) => Some(seconds),
            Measure::Untried => (candidate.requests == 0).then_some(0.0),
            Measure::Unknown => None,
        }
    }
}

impl Policy for LeastLatency {
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        let lengths = self.lengths(decision);
        if let Some(index) = least_known(decision.candidates, rng, |c| self.of(decision, c, lengths)) {
            return Ok(Choice { index, reason: Reason::LeastLoad });
        }
        let untried =
            |c: &Candidate| matches!(self.measure(&decision.figures(c), 0, lengths), Measure::Untried);
        // Where there are such, the figure is not missing; the first answers are still under way.
        Err((!decision.candidates.iter().any(untried)).then_some(Missing("request_times")))
    }

    /// Expected seconds.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        self.of(decision, candidate, self.lengths(decision))
    }

    fn values(&self, decision: &Decision<'_>, tell: &mut dyn FnMut(usize, Option<f64>)) {
        let lengths = self.lengths(decision);
        for (index, candidate) in decision.candidates.iter().enumerate() {
            tell(index, self.of(decision, candidate, lengths));
        }
    }
}
