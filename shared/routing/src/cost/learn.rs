//! Learning a target's constants from what a gateway sees: when first tokens come and how fast the others follow.

use super::constants::Constants;
use super::rls::Rls;

/// A request's prefill as a gateway saw it: the time in which the target did this request's prefill and nothing
/// else, since engines take prompts in order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrefillSeen {
    /// From the first token before it at the target, or its own sending where that was later, microseconds.
    pub span_us: u64,
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
const BEFORE: u32 = 12;

/// Learns the constants of one target.
#[derive(Clone, Debug)]
pub struct Learner {
    prior: Constants,
    /// Prefill per token, attention, and decode steps per token (the inverse of `chunk`).
    prefill: Rls<3>,
    /// Step, sequence, context, and prefill per token.
    decode: Rls<4>,
    /// Sums of the spans not yet observed: time, features.
    pending: (f64, [f64; 3]),
}

impl Learner {
    /// Knows nothing but `prior`.
    pub fn new(prior: Constants) -> Self {
        Self { prior, prefill: Rls::new(0.5, 0.997), decode: Rls::new(0.5, 0.997), pending: (0.0, [0.0; 3]) }
    }

    /// Observations taken.
    pub fn samples(&self) -> u32 {
        self.prefill.seen().saturating_add(self.decode.seen())
    }

    /// Takes a first token into account.
    pub fn prefilled(&mut self, seen: &PrefillSeen) {
        let (u, c) = (f64::from(seen.tokens), f64::from(seen.cached));
        let step = f64::from(self.constants().decode_step(seen.batch, seen.context));
        let prior = &self.prior;
        let features = [
            u * f64::from(prior.prefill),
            u * (c + u / 2.0) * f64::from(prior.attention),
            u / f64::from(prior.chunk) * step,
        ];
        let (span, sums) = &mut self.pending;
        *span += seen.span_us as f64;
        for (sum, feature) in sums.iter_mut().zip(features) {
            *sum += feature;
        }
        if *span >= SPAN_US {
            let scale = sums.iter().zip(self.prefill.theta()).map(|(x, t)| x * t).sum::<f64>().max(10_000.0);
            let x = sums.map(|sum| sum / scale);
            self.prefill.observe(&x, *span / scale);
            self.pending = (0.0, [0.0; 3]);
        }
    }

    /// Takes the end of an answer into account.
    pub fn decoded(&mut self, seen: &DecodeSeen) {
        if seen.tokens < TOKENS {
            return;
        }
        let per_token = 1.0 / f64::from(seen.tokens);
        let prior = &self.prior;
        let features = [
            f64::from(prior.step),
            f64::from(prior.sequence * seen.batch),
            f64::from(prior.context * seen.context),
            f64::from(prior.prefill * seen.prefilled) * per_token,
        ];
        let scale = features.iter().zip(self.decode.theta()).map(|(x, t)| x * t).sum::<f64>().max(100.0);
        let x = features.map(|feature| feature / scale);
        self.decode.observe(&x, seen.span_us as f64 * per_token / scale);
    }

    /// What is known now.
    pub fn constants(&self) -> Constants {
        let mut constants = self.prior;
        if self.prefill.seen() >= BEFORE {
            let [prefill, attention, steps] = self.prefill.theta().map(|t| t as f32);
            constants.prefill *= prefill;
            constants.attention *= attention;
            constants.chunk /= steps;
        }
        if self.decode.seen() >= BEFORE {
            let [step, sequence, context, _] = self.decode.theta().map(|t| t as f32);
            constants.step *= step;
            constants.sequence *= sequence;
            constants.context *= context;
        }
        constants
    }
}
