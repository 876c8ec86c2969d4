//! `dynamo`.

use super::figures::least_known;
use super::{Candidate, Choice, Decision, Missing, Policy, Reason};
use crate::rng::Rng;
use crate::settings::{DynamoSettings, Settings};

/// Tokens of a block where the path's blocks are of bytes and the prompt has none: vLLM's usual size.
const USUAL_BLOCK: f64 = 16.0;

/// The least sum of blocks to prefill and blocks to decode.
///
/// ```text
/// prefill = max((queued + L)/B − overlap_credit · cached/B, 0)
/// decode  = (queued + context + L − cached)/B
/// cost    = prefill_scale · prefill + decode + request_weight · requests
/// ```
///
/// `L` are the prompt's tokens, `cached` those that the target holds, `queued` the uncached prompt tokens queued there,
/// `context` the prompt tokens being decoded there, `B` the tokens of a block. With temperature 0 the least cost wins and
/// ties are drawn; else targets are drawn with probability `exp(−(cost − least)/(most − least)/temperature)`.
///
/// Inputs: reservations of all gateways, cached blocks. Defaults: credit 1, scale 1, request
/// weight 0, temperature 0.
///
/// Source: the default cost function of Dynamo's KV router (crates 1.6.1), GPU tier, without its decay of the credit (off
/// by default). Ours differs: which blocks running requests share is not looked up among them; what a target holds of the
/// prompt counts as shared, and of prompts not yet prefilled only the uncached part counts as blocks to decode. What an
/// answer adds is not counted, as by its default.
pub(crate) struct Dynamo(DynamoSettings);

impl Dynamo {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.dynamo)
    }

    fn cost(&self, decision: &Decision<'_>, c: &Candidate) -> f64 {
        let s = &self.0;
        let request = decision.request;
        let prompt = f64::from(request.prompt_tokens);
        let cached = f64::from(request.prompt_tokens - request.uncached(c.cached_blocks));
        let block = match (request.block_tokens, request.path.len()) {
            (0, 0) => USUAL_BLOCK,
            (0, blocks) => (prompt / blocks as f64).max(1.0),
            (tokens, _) => f64::from(tokens),
        };
        let queued = c.queued_tokens as f64;
        let prefill = (queued + prompt - s.overlap_credit * cached).max(0.0);
        let decode = queued + c.context_tokens as f64 + prompt - cached;
        (s.prefill_scale * prefill + decode) / block + s.request_weight * c.requests as f64
    }

    /// Draws by the costs: the greatest of `−cost/temperature` with Gumbel noise is a draw from their softmax.
    fn draw(&self, decision: &Decision<'_>, rng: &mut Rng) -> Option<usize> {
        let cost = |c: &Candidate| self.cost(decision, c);
        let spread = |(least, most): (f64, f64), cost: f64| (least.min(cost), most.max(cost));
        let (least, most) =
            decision.candidates.iter().map(cost).fold((f64::INFINITY, f64::NEG_INFINITY), spread);
        let range = if most > least { most - least } else { 1.0 };
        let noisy = |(index, c): (usize, &Candidate)| {
            // In (0, 1], so that the noise is a number.
            let gumbel = -(-(1.0 - rng.unit()).max(f64::MIN_POSITIVE).ln()).max(f64::MIN_POSITIVE).ln();
            (index, gumbel - (cost(c) - least) / range / self.0.temperature)
        };
        let all = decision.candidates.iter().enumerate().map(noisy);
        all.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(index, _)| index)
    }
}

impl Policy for Dynamo {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>> {
        if self.0.temperature > 0.0 {
            let index = self.draw(decision, rng).ok_or(None)?;
            return Ok(Choice { index, reason: Reason::Drawn });
        }
        let index = least_known(decision.candidates, rng, |c| Some(self.cost(decision, c))).ok_or(None)?;
        Ok(Choice { index, reason: Reason::LeastCost })
    }

    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        Some(self.cost(decision, candidate))
    }
}
