//! What came of a load.

use super::client::Outcome;
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

/// A good answer begins before this, microseconds.
const GOOD_TTFT: u64 = 2_000_000;
/// A good answer's mean time between tokens is below this, microseconds.
const GOOD_TPOT: u64 = 50_000;
/// Longest time told apart, microseconds.
const LONGEST: u64 = 3_600_000_000;
/// Instances told apart; further ones are counted together.
const MAX_INSTANCES: usize = 4096;
/// Seconds kept in the course of time.
const MAX_SECONDS: usize = 7200;

/// Mean and quantiles; the unit is the field's that holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "named after what they are")]
pub struct Quantiles {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

/// One second of the run, by the time at which requests ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Second {
    /// Requests that ended well.
    pub ok: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Prompt tokens of those that ended well.
    pub prompt_tokens: u64,
    /// Of these, tokens that came from a cache.
    pub cached_tokens: u64,
    /// Sum of their times to the first token, seconds.
    pub ttft_sum: f64,
}

/// The result of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Endpoint.
    pub url: String,
    /// Model.
    pub model: String,
    /// The load in words.
    pub load: String,
    /// Unix time of the start, seconds.
    pub started: f64,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Requests that ended, well or not.
    pub requests: u64,
    /// Of these, requests of the warm-up: they count here, as errors and in the course of time, and nowhere else.
    pub warm_up: u64,
    /// Those that ended well.
    pub ok: u64,
    /// Failures by kind.
    pub errors: BTreeMap<String, u64>,
    /// What was said at the first failure of each kind.
    pub error_examples: BTreeMap<String, String>,
    /// Requests cut off at the end of the run.
    pub unfinished: u64,
    /// Arrivals not sent because too many requests were in flight.
    pub not_sent: u64,
    /// Conversations (or single requests) that came to their last turn.
    pub sessions: u64,
    /// Time to the first token, seconds.
    pub ttft_s: Quantiles,
    /// Time per output token after the first, milliseconds.
    pub tpot_ms: Quantiles,
    /// Share of the requests answered with their first token within 2 s and less than 50 ms between tokens.
    pub goodput: Option<f64>,
    /// Time to the end of the answer, seconds.
    pub latency_s: Quantiles,
    /// How late requests were sent, milliseconds.
    pub send_lag_ms: Quantiles,
    /// Requests that ended well, per second, after the warm-up.
    pub throughput_rps: f64,
    /// Output tokens per second.
    pub output_tokens_per_s: f64,
    /// Prompt tokens, as the answers tell them.
    pub prompt_tokens: u64,
    /// Of these, tokens that came from a cache.
    pub cached_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Cached over prompt tokens; unknown when no answer told usage.
    pub hit_ratio: Option<f64>,
    /// The same of one cache without limits on this load.
    pub hit_ratio_bound: Option<f64>,
    /// Requests by the engine that answered, where answers name it.
    pub instances: BTreeMap<String, u64>,
    /// What casts doubt on the figures.
    pub warnings: Vec<String>,
    /// The run by seconds, 7,200 at most.
    pub timeline: Vec<Second>,
}

impl Report {
    /// Failures in all.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Hit ratio as a share of the bound.
    pub fn hit_ratio_of_bound(&self) -> Option<f64> {
        match (self.hit_ratio, self.hit_ratio_bound) {
            (Some(h), Some(b)) if b > 0.0 => Some(h / b),
            _ => None,
        }
    }

    /// The form of `--json` files: name, machine, rows, and the report as `summary`.
    pub fn to_json(&self, machine: &str) -> Value {
        let row = |metric: &str, unit: &str, ours: f64, baseline: Option<f64>, name: Option<&str>| {
            json!({"case": self.load, "metric": metric, "unit": unit, "ours": ours, "baseline": baseline,
                "baseline_name": name, "ratio": baseline.filter(|b| *b > 0.0).map(|b| ours / b), "runs": 1,
                "spread": null})
        };
        let mut rows = vec![
            row("requests", "", self.requests as f64, None, None),
            row("errors", "", self.failed() as f64, None, None),
            row("throughput", "requests/s", self.throughput_rps, None, None),
            row("output_throughput", "tokens/s", self.output_tokens_per_s, None, None),
        ];
        for (name, unit, q) in
            [("ttft", "s", self.ttft_s), ("tpot", "ms", self.tpot_ms), ("latency", "s", self.latency_s)]
        {
            for (part, v) in [("mean", q.mean), ("p50", q.p50), ("p90", q.p90), ("p99", q.p99)] {
                rows.push(row(&format!("{name}_{part}"), unit, v, None, None));
            }
        }
        if let Some(h) = self.hit_ratio {
            rows.push(row("hit_ratio", "", h, self.hit_ratio_bound, Some("infinite cache")));
        }
        json!({"name": "load", "machine": machine, "rows": rows, "summary": self})
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on {}, model {}", self.load, self.url, self.model)?;
        writeln!(
            f,
            "requests    {} in {:.1} s, {:.1}/s, {} failed, {} unfinished",
            self.requests,
            self.seconds,
            self.throughput_rps,
            self.failed(),
            self.unfinished
        )?;
        if self.warm_up > 0 {
            writeln!(f, "warm-up     {} requests, not in the figures below", self.warm_up)?;
        }
        for (kind, n) in &self.errors {
            let said = self.error_examples.get(kind).map_or("", String::as_str);
            writeln!(f, "  {kind:<12} {n}  ({said})")?;
        }
        let line = |f: &mut fmt::Formatter<'_>, name: &str, unit: &str, q: &Quantiles| {
            writeln!(
                f,
                "{name:<11} p50 {:.3} {unit}, p90 {:.3}, p99 {:.3}, mean {:.3}, max {:.3}",
                q.p50, q.p90, q.p99, q.mean, q.max
            )
        };
        line(f, "TTFT", "s", &self.ttft_s)?;
        line(f, "TPOT", "ms", &self.tpot_ms)?;
        line(f, "latency", "s", &self.latency_s)?;
        writeln!(
            f,
            "tokens      {} prompt, {} cached, {} output ({:.0}/s)",
            self.prompt_tokens, self.cached_tokens, self.output_tokens, self.output_tokens_per_s
        )?;
        if let Some(h) = self.hit_ratio {
            write!(f, "hit ratio   {h:.4}")?;
            if let (Some(b), Some(share)) = (self.hit_ratio_bound, self.hit_ratio_of_bound()) {
                write!(f, ", infinite cache {b:.4}, share {share:.3}")?;
            }
            writeln!(f)?;
        }
        if !self.instances.is_empty() {
            let total: u64 = self.instances.values().sum();
            write!(f, "instances  ")?;
            for (name, n) in &self.instances {
                write!(f, " {name} {:.1}%", 100.0 * *n as f64 / total.max(1) as f64)?;
            }
            writeln!(f)?;
        }
        for w in &self.warnings {
            writeln!(f, "warning     {w}")?;
        }
        Ok(())
    }
}

/// Gathers outcomes while a run goes on.
pub(crate) struct Recorder {
    start: Instant,
    ttft: Histogram<u64>,
    tpot: Histogram<u64>,
    latency: Histogram<u64>,
    lag: Histogram<u64>,
    last_end: Instant,
    measured_from: Option<Instant>,
    measured: u64,
    measured_ok: u64,
    good: u64,
    no_usage: u64,
    pub report: Report,
}

fn histogram() -> Result<Histogram<u64>, hdrhistogram::CreationError> {
    Histogram::new_with_bounds(1, LONGEST, 3)
}

fn quantiles(h: &Histogram<u64>, scale: f64) -> Quantiles {
    let at = |q| h.value_at_quantile(q) as f64 * scale;
    Quantiles {
        mean: h.mean() * scale,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        max: h.max() as f64 * scale,
    }
}

fn micros(from: Instant, to: Instant) -> u64 {
    to.saturating_duration_since(from).as_micros().min(u128::from(LONGEST)) as u64
}

impl Recorder {
    pub fn new(start: Instant) -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self {
            start,
            ttft: histogram()?,
            tpot: histogram()?,
            latency: histogram()?,
            lag: histogram()?,
            last_end: start,
            measured_from: None,
            measured: 0,
            measured_ok: 0,
            good: 0,
            no_usage: 0,
            report: Report::default(),
        })
    }

    /// Counts a request: when it should have been sent, when it was, and how it ended.
    pub fn record(&mut self, due: Instant, sent: Instant, warm_up: bool, o: &Outcome) {
        let end = o.end.unwrap_or(sent);
        self.last_end = self.last_end.max(end);
        self.lag.saturating_record(micros(due, sent));
        let r = &mut self.report;
        r.requests += 1;
        if warm_up {
            r.warm_up += 1;
        } else {
            self.measured += 1;
            self.measured_from = Some(self.measured_from.map_or(due, |t| t.min(due)));
        }
        if let Some(name) = &o.instance {
            let name = if r.instances.len() < MAX_INSTANCES || r.instances.contains_key(name) {
                name
            } else {
                "others"
            };
            *r.instances.entry(name.to_owned()).or_default() += 1;
        }
        let at = end.saturating_duration_since(self.start).as_secs() as usize;
        if at < MAX_SECONDS && r.timeline.len() <= at {
            r.timeline.resize(at + 1, Second::default());
        }
        let second = r.timeline.get_mut(at);
        if let Some(failure) = &o.error {
            *r.errors.entry(failure.kind.clone()).or_default() += 1;
            r.error_examples.entry(failure.kind.clone()).or_insert_with(|| failure.detail.clone());
            if let Some(s) = second {
                s.errors += 1;
            }
            return;
        }
        r.ok += 1;
        if let Some(s) = second {
            s.ok += 1;
            s.prompt_tokens += o.usage.map_or(0, |u| u.prompt);
            s.cached_tokens += o.usage.map_or(0, |u| u.cached);
            s.ttft_sum += o.first_token.map_or(0.0, |t| micros(due, t) as f64 / 1e6);
        }
        if warm_up {
            return;
        }
        self.measured_ok += 1;
        self.latency.saturating_record(micros(due, end));
        let tokens = o.usage.map_or(o.chunks, |u| u.completion);
        r.output_tokens += tokens;
        if let (Some(first), Some(last)) = (o.first_token, o.last_token) {
            let ttft = micros(due, first);
            let tpot = micros(first, last) / tokens.saturating_sub(1).max(1);
            self.ttft.saturating_record(ttft);
            if tokens > 1 && last > first {
                self.tpot.saturating_record(tpot);
            }
            self.good += u64::from(ttft < GOOD_TTFT && (tokens <= 1 || tpot < GOOD_TPOT));
        }
        match o.usage {
            Some(u) => {
                r.prompt_tokens += u.prompt;
                r.cached_tokens += u.cached;
            }
            None => self.no_usage += 1,
        }
    }

    /// Median and 99th percentile of the time to the first token so far, seconds.
    pub fn ttft_now(&self) -> (f64, f64) {
        let q = quantiles(&self.ttft, 1e-6);
        (q.p50, q.p99)
    }

    /// The figures at the end.
    pub fn finish(mut self, bound: Option<f64>) -> Report {
        /// A generator later than this distorts what it measures, milliseconds.
        const LATE: f64 = 20.0;
        let r = &mut self.report;
        r.seconds = self.last_end.saturating_duration_since(self.start).as_secs_f64();
        r.ttft_s = quantiles(&self.ttft, 1e-6);
        r.tpot_ms = quantiles(&self.tpot, 1e-3);
        r.latency_s = quantiles(&self.latency, 1e-6);
        r.send_lag_ms = quantiles(&self.lag, 1e-3);
        let from = if r.warm_up > 0 { self.measured_from.unwrap_or(self.last_end) } else { self.start };
        let measured = self.last_end.saturating_duration_since(from).as_secs_f64();
        let per = |n: u64| if measured > 0.0 { n as f64 / measured } else { 0.0 };
        r.throughput_rps = per(self.measured_ok);
        r.output_tokens_per_s = per(r.output_tokens);
        r.goodput = (self.measured > 0).then(|| self.good as f64 / self.measured as f64);
        if r.prompt_tokens > 0 {
            r.hit_ratio = Some(r.cached_tokens as f64 / r.prompt_tokens as f64);
        }
        r.hit_ratio_bound = bound;
        if r.send_lag_ms.p99 > LATE {
            let lag = r.send_lag_ms;
            r.warnings.push(format!(
                "the generator fell behind: requests were sent {:.1} ms late at p99, {:.1} at most",
                lag.p99, lag.max
            ));
        }
        if r.not_sent > 0 {
            r.warnings.push(format!("{} arrivals were not sent: too many requests in flight", r.not_sent));
        }
        if matches!((r.hit_ratio, bound), (Some(h), Some(b)) if h > b + 0.005) {
            r.warnings.push(
                "more was cached than this load can have left: the caches were warm, try another --seed"
                    .into(),
            );
        }
        if self.no_usage > 0 {
            r.warnings.push(format!(
                "{} answers told no usage: tokens and hit ratio leave them out",
                self.no_usage
            ));
        }
        self.report
    }
}
