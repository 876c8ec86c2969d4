//! What became of the requests, and the figures of a run.

use serde::{Deserialize, Serialize};

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Record {
    /// When it came, seconds.
    pub arrival: f64,
    /// The instance that answered it, or had it last.
    pub instance: Option<u32>,
    /// The instance that prefilled it, where that is another.
    pub prefill: Option<u32>,
    /// Prompt tokens found in the cache of the instance that prefilled it.
    pub cached: u32,
    /// Prompt, tokens.
    pub prompt: u32,
    /// Answer, tokens.
    pub output: u32,
    /// When the first token was made, seconds.
    pub first: Option<f64>,
    /// When the last token was made, seconds; `None` where it failed.
    pub end: Option<f64>,
}

impl Record {
    /// Time to the first token, seconds, of a request that was answered in full.
    pub fn ttft(&self) -> Option<f64> {
        self.end.and(self.first).map(|first| first - self.arrival)
    }

    /// Mean time between its tokens, seconds; `None` of an answer of one token.
    pub fn tpot(&self) -> Option<f64> {
        let (first, end) = (self.first?, self.end?);
        (self.output > 1).then(|| (end - first) / f64::from(self.output - 1))
    }
}

/// What a good answer is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slo {
    /// Time to the first token is below this, seconds.
    pub ttft: f64,
    /// Mean time between tokens is below this, seconds.
    pub tpot: f64,
}

impl Default for Slo {
    fn default() -> Self {
        Self { ttft: 2.0, tpot: 0.050 }
    }
}

/// Figures over the requests after the warm-up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Requests counted.
    pub requests: u64,
    /// Time to the first token, mean, seconds.
    pub ttft_mean_s: f64,
    /// Half of the requests had theirs by then, seconds.
    pub ttft_p50_s: f64,
    /// 99 % of them, seconds.
    pub ttft_p99_s: f64,
    /// Mean over requests of the mean time between tokens, milliseconds.
    pub tpot_mean_ms: f64,
    /// 99 % of the requests are below, milliseconds.
    pub tpot_p99_ms: f64,
    /// Share of prompt tokens that came from a cache.
    pub hit_ratio: f64,
    /// Share of requests that were answered within the objectives.
    pub goodput: f64,
    /// Requests answered in a second, between the first arrival and the last answer.
    pub throughput_rps: f64,
    /// Requests that were not answered in full.
    pub failed: u64,
    /// Share of requests whose prefill was another instance's than their decoding.
    #[serde(default)]
    pub remote_share: f64,
}

/// What became of every request of a run, in the order of arrival.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The requests.
    pub records: Vec<Record>,
}

/// Share of a trace that only warms the caches.
pub const WARM_UP: f64 = 0.1;

impl Outcome {
    /// The requests after the warm-up.
    pub fn counted(&self) -> &[Record] {
        &self.records[(self.records.len() as f64 * WARM_UP) as usize..]
    }

    /// The figures.
    pub fn summary(&self, slo: &Slo) -> Summary {
        let counted = self.counted();
        let mut ttft: Vec<f64> = counted.iter().filter_map(Record::ttft).collect();
        let mut tpot: Vec<f64> = counted.iter().filter_map(Record::tpot).collect();
        ttft.sort_by(f64::total_cmp);
        tpot.sort_by(f64::total_cmp);
        let good = |r: &&Record| {
            r.ttft().is_some_and(|t| t < slo.ttft) && r.tpot().is_none_or(|between| between < slo.tpot)
        };
        let answered: Vec<&Record> = counted.iter().filter(|r| r.end.is_some()).collect();
        let prompt: u64 = answered.iter().map(|r| u64::from(r.prompt)).sum();
        let cached: u64 = answered.iter().map(|r| u64::from(r.cached)).sum();
        let first = counted.iter().map(|r| r.arrival).fold(f64::INFINITY, f64::min);
        let last = answered.iter().filter_map(|r| r.end).fold(f64::NEG_INFINITY, f64::max);
        Summary {
            requests: counted.len() as u64,
            ttft_mean_s: mean(&ttft),
            ttft_p50_s: percentile(&ttft, 0.50),
            ttft_p99_s: percentile(&ttft, 0.99),
            tpot_mean_ms: mean(&tpot) * 1e3,
            tpot_p99_ms: percentile(&tpot, 0.99) * 1e3,
            hit_ratio: ratio(cached as f64, prompt as f64),
            goodput: ratio(counted.iter().filter(good).count() as f64, counted.len() as f64),
            throughput_rps: if last > first { answered.len() as f64 / (last - first) } else { 0.0 },
            failed: (counted.len() - answered.len()) as u64,
            remote_share: ratio(
                counted.iter().filter(|r| r.prefill.is_some()).count() as f64,
                counted.len() as f64,
            ),
        }
    }
}

impl Summary {
    /// Means over runs; counts are rounded.
    pub fn mean(runs: &[Self]) -> Self {
        let n = runs.len().max(1) as f64;
        let of = |get: fn(&Self) -> f64| runs.iter().map(get).sum::<f64>() / n;
        Self {
            requests: of(|s| s.requests as f64).round() as u64,
            ttft_mean_s: of(|s| s.ttft_mean_s),
            ttft_p50_s: of(|s| s.ttft_p50_s),
            ttft_p99_s: of(|s| s.ttft_p99_s),
            tpot_mean_ms: of(|s| s.tpot_mean_ms),
            tpot_p99_ms: of(|s| s.tpot_p99_ms),
            hit_ratio: of(|s| s.hit_ratio),
            goodput: of(|s| s.goodput),
            throughput_rps: of(|s| s.throughput_rps),
            failed: of(|s| s.failed as f64).round() as u64,
            remote_share: of(|s| s.remote_share),
        }
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

fn mean(values: &[f64]) -> f64 {
    ratio(values.iter().sum(), values.len() as f64)
}

/// The least of the sorted values that at least this share of them does not exceed (nearest rank); 0 of none.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}
