//! What the policies that keep limits have in common: the load of a target against what it can take within them.

use super::{Candidate, Decision};
use crate::request::Slo;
use crate::settings::SloSettings;

/// Batch that is taken for the most where neither a limit nor the engine says so: vLLM's usual one.
const USUAL_BATCH: f64 = 256.0;

/// A target under a request's limits.
///
/// ```text
/// batch       = most sequences whose decode step takes at most the TPOT limit, each with this request's mean context
/// throughput  = 1 / (own prefill + N · step(batch) / batch)                requests per time
/// latency     = own prefill + N · step(batch)
/// consumption = 1 / (throughput · latency)                                 share of the target that the request takes
/// load        = (queued prefill + requests · N · step(batch) / batch) / latency
/// ```
///
/// `N` are the tokens expected of the answer. By Little's law `throughput · latency` is the number of requests that
/// the target holds when it is just within the limits, so that a load of 1 is that. AIBrix sums `1/(throughput ·
/// latency)` over the pending requests, from profiles measured before; here throughput and latency follow from the
/// target's learnt costs, and pending requests, of which only sums are kept, count with the prefill queued for them
/// and, for the rest, as of this request's length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Load before the request.
    pub(super) load: f64,
    /// What the request adds.
    pub(super) consumption: f64,
    /// The worst of load, TTFT and TPOT with the request, each over its limit: above 1 some limit is missed.
    pub(super) worst: f64,
}

impl Load {
    /// Load with the request.
    pub(super) fn after(&self) -> f64 {
        self.load + self.consumption
    }

    /// Whether every limit is predicted to be kept.
    pub(super) fn keeps(&self) -> bool {
        self.worst <= 1.0
    }

    /// Looks at a candidate; `None` where the target's costs are no numbers.
    pub(super) fn of(
        settings: &SloSettings,
        decision: &Decision<'_>,
        slo: &Slo,
        c: &Candidate,
    ) -> Option<Self> {
        let target = decision.target(c);
        let constants = target.cells.costs.read();
        let predicted = decision.predict(c);
        let answer = decision.request.max_output.map_or(settings.output_tokens, f64::from);
        let answer = answer.min(settings.output_tokens).max(1.0);
        let context = f64::from(decision.request.prompt_tokens) + answer / 2.0;
        let step = f64::from(constants.step);
        let sequence = f64::from(constants.sequence) + f64::from(constants.context) * context;
        let most = target.info.max_num_seqs.map_or(USUAL_BATCH, f64::from).max(1.0);
        let tpot = f64::from(slo.tpot_us);
        // Not even one fits where the bare step takes longer; the load is then that of one at a time.
        let batch = if tpot > 0.0 { ((tpot - step) / sequence).floor().clamp(1.0, most) } else { most };
        let decode = answer * (step + sequence * batch);
        let (own, queued) = (f64::from(predicted.own), f64::from(predicted.queue));
        let latency = own + decode;
        let consumption = (own + decode / batch) / latency;
        let load = (queued + c.requests as f64 * decode / batch) / latency;
        let over = |value: f64, limit: u32| if limit > 0 { value / f64::from(limit) } else { 0.0 };
        let worst = ((load + consumption) / settings.cap)
            .max(over(f64::from(predicted.ttft), slo.ttft_us))
            .max(over(f64::from(predicted.step_after), slo.tpot_us));
        // A maximum passes over what is no number.
        let sound = [load, consumption, f64::from(predicted.ttft), f64::from(predicted.step_after)];
        sound.iter().all(|value| value.is_finite()).then_some(Self { load, consumption, worst })
    }
}

/// The request's limits, else the configured ones; `None` where there are neither.
pub(super) fn limits(settings: &SloSettings, decision: &Decision<'_>) -> Option<Slo> {
    let Slo { ttft_us, tpot_us } = decision.request.slo;
    let either = |own: u32, set_ms: f64| if own > 0 { own } else { (set_ms * 1e3) as u32 };
    let slo = Slo {
        ttft_us: either(ttft_us, settings.target_ttft_ms),
        tpot_us: either(tpot_us, settings.target_tpot_ms),
    };
    (slo != Slo::default()).then_some(slo)
}

/// The name of what is missing where a request has no limits.
pub(super) const NO_LIMITS: &str = "slo";
