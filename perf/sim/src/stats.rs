//! What an engine counts. All times are seconds of the clock that the caller of the model uses.

use crate::histogram::{self, Histogram};
use crate::model::SeqSpec;

/// Counters and histograms of one engine since its start.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields carry the names of the page they feed")]
pub struct Stats {
    pub prompt_tokens: u64,
    pub cached_prompt_tokens: u64,
    pub generation_tokens: u64,
    pub cache_queries: u64,
    pub cache_hits: u64,
    pub last_hit_rate: f64,
    pub steps: u64,
    pub aborted: u64,
    pub finished_length: u64,
    pub finished_stop: u64,
    pub rejected: u64,
    pub request_prompt_tokens: Histogram,
    pub request_generation_tokens: Histogram,
    pub request_max_tokens: Histogram,
    pub request_n: Histogram,
    pub request_computed_tokens: Histogram,
    pub request_preemptions: Histogram,
    pub step_tokens: Histogram,
    pub ttft: Histogram,
    pub inter_token: Histogram,
    pub tpot: Histogram,
    pub e2e: Histogram,
    pub queue: Histogram,
    pub prefill: Histogram,
    pub decode: Histogram,
    pub inference: Histogram,
    silent: bool,
}

impl Stats {
    /// All zero.
    pub fn new() -> Self {
        Self::build(false)
    }

    /// Sums and counts alone, without buckets, and nothing of single tokens but their number: cheap to clone and to keep.
    pub(crate) fn silent() -> Self {
        Self::build(true)
    }

    fn build(silent: bool) -> Self {
        let histogram = |bounds| Histogram::new(if silent { &[] } else { bounds });
        let tokens = || histogram(histogram::REQUEST_TOKENS);
        let seconds = || histogram(histogram::REQUEST_SECONDS);
        let between = || histogram(histogram::BETWEEN_TOKENS);
        Self {
            prompt_tokens: 0,
            cached_prompt_tokens: 0,
            generation_tokens: 0,
            cache_queries: 0,
            cache_hits: 0,
            last_hit_rate: 0.0,
            steps: 0,
            aborted: 0,
            finished_length: 0,
            finished_stop: 0,
            rejected: 0,
            request_prompt_tokens: tokens(),
            request_generation_tokens: tokens(),
            request_max_tokens: tokens(),
            request_n: histogram(histogram::SMALL),
            request_computed_tokens: tokens(),
            request_preemptions: histogram(histogram::SMALL),
            step_tokens: histogram(histogram::STEP_TOKENS),
            ttft: histogram(histogram::FIRST_TOKEN),
            inter_token: between(),
            tpot: between(),
            e2e: seconds(),
            queue: seconds(),
            prefill: seconds(),
            decode: seconds(),
            inference: seconds(),
            silent,
        }
    }

    pub(crate) fn admitted(&mut self, prompt: u32, cached: u32, waited: f64) {
        self.cache_queries += u64::from(prompt);
        self.cache_hits += u64::from(cached);
        self.last_hit_rate = f64::from(cached) / f64::from(prompt.max(1));
        self.queue.observe(waited);
    }

    pub(crate) fn prefilled(&mut self, prompt: u32, cached: u32) {
        self.prompt_tokens += u64::from(prompt);
        self.cached_prompt_tokens += u64::from(cached);
        self.request_computed_tokens.observe(f64::from(prompt - cached));
    }

    pub(crate) fn first_token(&mut self, after: f64) {
        if self.silent {
            return;
        }
        self.generation_tokens += 1;
        self.ttft.observe(after);
    }

    pub(crate) fn next_token(&mut self, after: f64) {
        if self.silent {
            return;
        }
        self.generation_tokens += 1;
        self.inter_token.observe(after);
    }

    /// A step has computed so many tokens, and made so many.
    pub(crate) fn step(&mut self, tokens: u64, made: u64) {
        self.steps += 1;
        if self.silent {
            self.generation_tokens += made;
            return;
        }
        self.step_tokens.observe(tokens as f64);
    }

    /// `times`: arrival, admission, first token, end.
    pub(crate) fn finished(&mut self, spec: &SeqSpec, emitted: u32, times: [f64; 4]) {
        let [arrived, admitted, first, end] = times;
        self.request_prompt_tokens.observe(f64::from(spec.prompt_tokens));
        self.request_generation_tokens.observe(f64::from(emitted));
        self.request_preemptions.observe(0.0);
        if spec.limited {
            self.finished_length += 1;
        } else {
            self.finished_stop += 1;
        }
        if emitted > 1 {
            self.tpot.observe((end - first) / f64::from(emitted - 1));
        }
        self.e2e.observe(end - arrived);
        self.prefill.observe(first - admitted);
        self.decode.observe(end - first);
        self.inference.observe(end - admitted);
    }
}

impl Default for Stats {
    fn default() -> Self {
        Self::new()
    }
}
