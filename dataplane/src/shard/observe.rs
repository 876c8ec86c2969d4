//! What a shard learns from the requests that it has served, and what it counts.

use std::cell::RefCell;

use fairlead_openai::Usage;
use fairlead_replication::CacheAnswer;
use fairlead_routing::Plan;
use fairlead_telemetry::{Buckets, Counter, Definition, Histogram, Local, Registry, names};
use fairlead_wire::TargetId;
use fairlead_wire::msg::{CacheSource, Handoff};

use super::Shard;
use super::decide::{AnswerNote, Prompt};
use super::relay::Ended;
use super::upstream::Cause;
use crate::runtime::Runtime;
use crate::token_mode::Compared;

/// Status counted for requests whose client left before it was answered.
pub const CLIENT_LEFT: u16 = 499;
/// Model counted for requests that never got as far as a model.
const NO_MODEL: &str = "";

const TOKENISED: Definition = Definition::new(
    "fairlead_tokenised_prompts_total",
    "Prompts of models with a tokenizer: tokenised on the shard or its helper, or why routed by bytes",
    &["model", "how"],
);

const HANDSHAKES: Definition = Definition::new(
    "fairlead_tls_handshakes_total",
    "TLS handshakes with clients: full, resumed, or why none came about",
    &["outcome"],
);

/// How handshakes of clients end, beside [`Failure::as_str`](crate::tls::Failure::as_str).
pub struct Handshake;

impl Handshake {
    /// All of it.
    pub const FULL: &str = "full";
    /// From an earlier session.
    pub const RESUMED: &str = "resumed";
    /// It took too long.
    pub const LATE: &str = "late";
}

/// One shard's cells.
pub struct Metrics {
    requests: RefCell<Local<Counter>>,
    picks: RefCell<Local<Counter>>,
    retries: RefCell<Local<Counter>>,
    ttft: Histogram,
    tpot: Histogram,
    overhead: Histogram,
    cached_prediction: Histogram,
    ttft_prediction: Histogram,
    tokenised: RefCell<Local<Counter>>,
    handoffs: RefCell<Local<Counter>>,
    handoff_time: Histogram,
    handshakes: RefCell<Local<Counter>>,
}

impl Metrics {
    /// Cells of their own in the process's registry.
    pub fn new(registry: &Registry) -> Self {
        let counters = |definition| RefCell::new(Local::new(&registry.counter(definition)));
        let histogram = |definition, buckets| registry.histogram(definition, buckets).handle(&[]);
        Self {
            requests: counters(&names::REQUESTS),
            picks: counters(&names::PICKS),
            retries: counters(&names::RETRIES),
            ttft: histogram(&names::TTFT, Buckets::LATENCY),
            tpot: histogram(&names::TPOT, Buckets::LATENCY),
            overhead: histogram(&names::OVERHEAD, Buckets::OVERHEAD),
            tokenised: counters(&TOKENISED),
            handoffs: counters(&names::HANDOFFS),
            handshakes: counters(&HANDSHAKES),
            handoff_time: histogram(&names::HANDOFF_TIME, Buckets::LATENCY),
            cached_prediction: histogram(&names::CACHED_TOKENS_PREDICTION, Buckets::RATIO),
            ttft_prediction: histogram(&names::TTFT_PREDICTION, Buckets::RATIO),
        }
    }

    /// Counts a decision.
    pub fn picked(&self, plan: &Plan) {
        self.picks.borrow_mut().get(&[plan.policy.as_str(), plan.reason.as_str()]).inc();
    }

    /// Counts a prompt of a model that has a tokenizer.
    pub fn tokenised(&self, model: &str, how: &str) {
        self.tokenised.borrow_mut().get(&[model, how]).inc();
    }

    /// Counts a handshake with a client, by its end.
    pub fn shook_hands(&self, how: &str) {
        self.handshakes.borrow_mut().get(&[how]).inc();
    }

    /// Counts a retry.
    pub fn retried(&self, cause: Cause) {
        self.retries.borrow_mut().get(&[cause.as_str()]).inc();
    }

    /// Counts a hand-off that has ended.
    pub fn handed_over(&self, handoff: Handoff, outcome: &str) {
        self.handoffs.borrow_mut().get(&[handoff.as_str(), outcome]).inc();
    }

    /// Takes note of the time from the end of a prefill leg to the first token, microseconds.
    pub fn handoff_took(&self, us: u64) {
        self.handoff_time.observe(us as f64 / 1e6);
    }

    /// Counts a request that ended with `status`.
    pub fn ended(&self, model: Option<&str>, status: u16) {
        let code = http::StatusCode::from_u16(status).unwrap_or_default();
        self.requests.borrow_mut().get(&[model.unwrap_or(NO_MODEL), code.as_str()]).inc();
    }
}

/// One answered request. Times are in microseconds of the process's clock.
pub struct Answered<'a> {
    /// The request.
    pub prompt: &'a Prompt,
    /// Target that answered.
    pub target: TargetId,
    /// Target that prefilled, where that was another, with the tokens as it counted them.
    pub prefill: Option<(TargetId, Option<Usage>)>,
    /// Status of the answer.
    pub status: u16,
    /// Blocks that the decision took to be cached at the target that prefills.
    pub cached_blocks: u32,
    /// Time to the first token that the decision predicted; 0 for none.
    pub predicted_ttft_us: u32,
    /// The request's head was complete.
    pub began_us: u64,
    /// The request was complete.
    pub read_us: u64,
    /// The request began to go out. With retries, the last time.
    pub sent_us: u64,
    /// It was sent once only.
    pub first_try: bool,
    /// First byte of the answer's body; 0 if it had none.
    pub first_us: u64,
    /// The first write to the client was done; 0 if there was none.
    pub passed_us: u64,
    /// Last bytes of the answer's body.
    pub last_us: u64,
    /// Tokens, as the engine counted them.
    pub usage: Option<Usage>,
    /// Events of a stream, its end mark included.
    pub events: u64,
    /// How it ended.
    pub ended: Ended,
}

/// Of `held` leading tokens of a prompt of `tokens`, how many its engine need not compute. It always computes the last
/// token, and with it that token's page (of so many tokens, where known).
fn reusable(held: u64, tokens: u64, page: Option<u32>) -> u64 {
    let below = tokens.saturating_sub(1);
    let page = page.map_or(1, |page| u64::from(page.max(1)));
    held.min(below - below % page)
}

/// Takes an answered request into account.
pub fn answered<R: Runtime>(shard: &Shard<R>, answered: &Answered<'_>) {
    let metrics = &shard.metrics;
    let status = match answered.ended {
        Ended::ClientGone => CLIENT_LEFT,
        Ended::Complete { .. } | Ended::Broken => answered.status,
    };
    metrics.ended(Some(&answered.prompt.model), status);
    if !(200..300).contains(&answered.status) || answered.first_us == 0 {
        return;
    }
    let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    metrics.ttft.observe(seconds(answered.began_us, answered.first_us));
    if answered.first_try && answered.passed_us != 0 {
        let before = seconds(answered.read_us, answered.sent_us);
        metrics.overhead.observe(before + seconds(answered.first_us, answered.passed_us));
    }
    // An answer in one piece comes with its last token. The decision was made when the request was sent.
    if answered.events > 0 && answered.predicted_ttft_us > 0 {
        let actual = answered.first_us.saturating_sub(answered.sent_us).max(1);
        metrics.ttft_prediction.observe(f64::from(answered.predicted_ttft_us) / actual as f64);
    }
    let complete = matches!(answered.ended, Ended::Complete { .. });
    let tokens = answered.usage.map_or(answered.events.saturating_sub(1), |usage| usage.completion_tokens);
    if complete && answered.prompt.stream && answered.events > 1 && tokens > 1 {
        metrics.tpot.observe(seconds(answered.first_us, answered.last_us) / (tokens - 1) as f64);
    }
    let table = shard.shared.fleet.table();
    let Some(model) = table.model(&answered.prompt.model) else { return };
    // What a target had cached is told by the one that prefilled.
    let (target, usage) = answered.prefill.unwrap_or((answered.target, answered.usage));
    let Some(usage) = usage else { return };
    let prompt = answered.prompt;
    let blocks = u64::from(answered.cached_blocks);
    let predicted = match &prompt.tokenised {
        Some(by) => {
            let page = table.get(target).and_then(|entry| entry.info.block_size);
            reusable(blocks * u64::from(by.block), prompt.tokens.into(), page) as f64
        }
        None => {
            blocks as f64 * f64::from(shard.options.block_bytes) / f64::from(model.cells.bytes_per_token())
        }
    };
    if let Some(by) = &prompt.tokenised {
        let exact = table.get(target).is_some_and(|entry| entry.cache == CacheSource::Events);
        by.mode.compare(&Compared {
            computed: u64::from(prompt.tokens),
            counted: usage.prompt_tokens,
            cached: usage.cached_tokens.filter(|_| exact).map(|cached| (predicted as u64, cached)),
            block: by.block,
        });
    }
    if let Some(cached) = usage.cached_tokens {
        // One token on both sides keeps "nothing predicted, nothing cached" at one.
        metrics.cached_prediction.observe((predicted + 1.0) / (cached as f64 + 1.0));
        let answer = CacheAnswer {
            space: prompt.space(),
            predicted_tokens: predicted as u64,
            cached_tokens: cached,
            prompt_tokens: usage.prompt_tokens,
            prompt_bytes: answered.prompt.bytes,
        };
        // For whoever wants each answer's figures; off unless the log filter names it.
        tracing::debug!(
            target: "fairlead::cache",
            to = ?target,
            space = ?answer.space,
            predicted_tokens = answer.predicted_tokens,
            cached_tokens = answer.cached_tokens,
            prompt_tokens = answer.prompt_tokens,
            "cached tokens of an answer"
        );
        shard.shared.answered(AnswerNote { target, answer });
    }
    model.cells.learn(answered.prompt.bytes, usage.prompt_tokens);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tokens_page_is_computed_again() {
        // What vLLM answered to prompts that it had seen a moment before; pages of 32.
        for (tokens, held, cached) in [
            (31, 0, 0),
            (32, 32, 0),
            (33, 32, 32),
            (64, 64, 32),
            (65, 64, 64),
            (357, 352, 352),
            (541, 384, 384),
        ] {
            assert_eq!(reusable(held, tokens, Some(32)), cached, "{tokens} tokens, {held} held");
        }
        assert_eq!(reusable(64, 64, None), 63);
        assert_eq!(reusable(64, 0, Some(0)), 0);
    }
}
