//! Learning a target's constants from what a gateway sees: when first tokens come and how fast the others follow.

use super::constants::Constants;
use super::filter::Filter;

/// A request's prefill as a gateway saw it: the time in which the target did this request's prefill and nothing
/// else, since engines take prompts in order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrefillSeen {
    /// From the first token before it at the target, or its own sending where that was later, microseconds.
    pub span_us: u64,
    /// Whether that was its own sending: the target then had no prompt before it, and began with the next step.
    pub alone: bool,
    /// Prompt tokens that were not cached, as predicted.
    pub tokens: u32,
    /// Prompt tokens that were.
    pub cached: u32,
    /// Requests decoding at the target meanwhile.
    pub batch: f32,
    /// Their prompt tokens.
    pub context: f32,
}

/// A request's decoding as a gateway saw it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeSeen {
    /// From the first token to the last, microseconds.
    pub span_us: u64,
    /// Tokens after the first.
    pub tokens: u32,
    /// Requests decoding at the target meanwhile, this one included.
    pub batch: f32,
    /// Their prompt tokens.
    pub context: f32,
    /// Prompt tokens that the target prefilled meanwhile.
    pub prefilled: f32,
}

/// Shortest time that makes an observation of prefill: shorter ones, which whole steps blur, are put together.
const SPAN_US: f64 = 80_000.0;
/// Fewest tokens that make an observation of decoding.
const TOKENS: u32 = 8;
/// Observations of each kind before the constants move from the prior.
const BEFORE: u32 = 4;
/// Deviations of the logarithms before any observation: engines differ by some factor in all that they do, and by less
/// in its parts.
const PREFILL: [(f64, f64); 3] = [(1.1, 0.2), (1.1, 0.4), (0.0, 0.5)];
const DECODE: [(f64, f64); 4] = [(1.1, 0.2), (1.1, 0.4), (1.1, 0.4), (0.0, 0.3)];

/// Learns the constants of one target.
#[derive(Clone, Debug)]
pub struct Learner {
    prior: Constants,
    /// Prefill per token, attention, and chunk.
    prefill: Filter<3>,
    /// Step, sequence, context, and how much of a prefill the decoding requests wait for.
    decode: Filter<4>,
    pending: Pending,
}

/// Spans of prefill not yet observed.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    span: f64,
    predicted: f64,
    slopes: [f64; 3],
}

impl Learner {
    /// Knows nothing but `prior`.
    pub fn new(prior: Constants) -> Self {
        let (prefill, decode) = (Filter::new(PREFILL), Filter::new(DECODE));
        Self { prior, prefill, decode, pending: Pending::default() }
    }

    /// Observations taken.
    pub fn samples(&self) -> u32 {
        self.prefills().saturating_add(self.decodes())
    }

    /// Observations behind `prefill`, `attention` and `chunk`: 0 as long as these are the prior's.
    pub fn prefills(&self) -> u32 {
        if self.prefill.seen() < BEFORE { 0 } else { self.prefill.seen() }
    }

    /// Observations behind `step`, `sequence` and `context`: 0 as long as these are the prior's.
    pub fn decodes(&self) -> u32 {
        if self.decode.seen() < BEFORE { 0 } else { self.decode.seen() }
    }

    /// Takes a first token into account.
    pub fn prefilled(&mut self, seen: &PrefillSeen) {
        let known = self.estimate();
        let (tokens, cached) = (f64::from(seen.tokens), f64::from(seen.cached));
        let linear = tokens * f64::from(known.prefill);
        let attention = tokens * (cached + tokens / 2.0) * f64::from(known.attention);
        let step = f64::from(known.decode_step(seen.batch, seen.context));
        let steps = tokens / f64::from(known.chunk);
        // Its chunks beside the decoding; alone, at least one step, after the rest of one that was under way.
        let (least, wait) = match (seen.alone, seen.batch > 0.0) {
            (true, true) => (1.0, 0.5 * step),
            (true, false) => (1.0, 0.0),
            (false, _) => (0.0, 0.0),
        };
        let by_chunk = if steps > least { -steps * step } else { 0.0 };
        let pending = &mut self.pending;
        pending.span += seen.span_us as f64;
        pending.predicted += linear + attention + steps.max(least) * step + wait;
        for (sum, slope) in pending.slopes.iter_mut().zip([linear, attention, by_chunk]) {
            *sum += slope;
        }
        if pending.span >= SPAN_US {
            let Pending { span, predicted, slopes } = std::mem::take(pending);
            self.prefill.observe(predicted, slopes, span);
        }
    }

    /// Takes the end of an answer into account.
    pub fn decoded(&mut self, seen: &DecodeSeen) {
        if seen.tokens < TOKENS {
            return;
        }
        let known = self.estimate();
        let [.., waits] = self.decode.factors();
        let per_token = 1.0 / f64::from(seen.tokens);
        let slopes = [
            f64::from(known.step),
            f64::from(known.sequence * seen.batch),
            f64::from(known.context * seen.context),
            f64::from(known.prefill * seen.prefilled) * per_token * waits,
        ];
        self.decode.observe(slopes.iter().sum(), slopes, seen.span_us as f64 * per_token);
    }

    /// What is known now.
    pub fn constants(&self) -> Constants {
        let (mut constants, estimate) = (self.prior, self.estimate());
        if self.prefills() > 0 {
            constants = Constants {
                prefill: estimate.prefill,
                attention: estimate.attention,
                chunk: estimate.chunk,
                ..constants
            };
        }
        if self.decodes() > 0 {
            constants = Constants {
                step: estimate.step,
                sequence: estimate.sequence,
                context: estimate.context,
                ..constants
            };
        }
        constants
    }

    /// The best guess, however few the observations.
    fn estimate(&self) -> Constants {
        let [prefill, attention, chunk] = self.prefill.factors().map(|factor| factor as f32);
        let [step, sequence, context, _] = self.decode.factors().map(|factor| factor as f32);
        let prior = &self.prior;
        Constants {
            prefill: prior.prefill * prefill,
            attention: prior.attention * attention,
            step: prior.step * step,
            sequence: prior.sequence * sequence,
            context: prior.context * context,
            chunk: prior.chunk * chunk,
        }
    }
}
