//! From pages to reports: rates between scrapes, and what changed.

use crate::metrics::{Field, Sample};
use crate::window::Window;
use fairlead_wire::limits;
use fairlead_wire::msg::{EngineKind, RankLoad};

/// How much of the older lookups stays in the hit rate with each scrape that saw new ones: about ten such scrapes
/// are remembered.
const HIT_MEMORY: f64 = 0.9;

/// Most requests at one rank that make sense.
pub(crate) const REQUESTS_MAX: u32 = 1 << 24;

/// Counters of one rank at the last scrape.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    prompt: Option<u64>,
    generation: Option<u64>,
    queries: Option<u64>,
    hits: Option<u64>,
    recent_queries: f64,
    recent_hits: f64,
    window: Window,
}

/// What a scrape showed beside the figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Requests are running or waiting, or tokens have moved since the last scrape.
    pub busy: bool,
    /// A counter is lower than at the last scrape.
    pub went_back: bool,
}

/// Remembers the last scrape.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    at_us: Option<u64>,
    last: Vec<Last>,
}

impl Tracker {
    /// Forgets what the engine said before: it was restarted.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Turns a page taken at `taken_us` into loads.
    pub fn fold(
        &mut self,
        sample: &Sample,
        kind: EngineKind,
        taken_us: u64,
        loads: &mut Vec<RankLoad>,
    ) -> Seen {
        let mut seen = Seen::default();
        let elapsed =
            self.at_us.map(|before| taken_us.saturating_sub(before) as f64 / 1e6).filter(|s| *s > 0.0);
        self.at_us = Some(taken_us);
        self.last.resize(sample.ranks(), Last::default());
        loads.clear();
        for (rank, last) in self.last.iter_mut().enumerate() {
            let whole = |field| sample.get(rank, field).map(|value| value as u64);
            let either = |new, old| whole(new).or_else(|| whole(old));
            let prompt = whole(Field::PromptTokens);
            let generation = whole(Field::GenerationTokens);
            let queries = either(Field::CacheQueries, Field::CacheQueriesOld);
            let hits = either(Field::CacheHits, Field::CacheHitsOld);

            let mut moved = false;
            let mut step = |before: Option<u64>, now: Option<u64>| match (before, now) {
                (Some(before), Some(now)) if now < before => {
                    seen.went_back = true;
                    None
                }
                (Some(before), Some(now)) => {
                    moved |= now > before;
                    Some((now - before) as f64)
                }
                _ => None,
            };
            let prompts = step(last.prompt, prompt);
            let generations = step(last.generation, generation);
            let lookups = step(last.queries, queries);
            let found = step(last.hits, hits);
            seen.busy |= moved;
            if let (Some(lookups), Some(found)) = (lookups, found)
                && lookups > 0.0
            {
                last.recent_queries = last.recent_queries * HIT_MEMORY + lookups;
                last.recent_hits = last.recent_hits * HIT_MEMORY + found;
            }
            *last = Last { prompt, generation, queries, hits, ..*last };

            let running = count(sample.get(rank, Field::Running));
            let waiting = count(sample.get(rank, Field::Waiting));
            seen.busy |= running.unwrap_or(0) + waiting.unwrap_or(0) > 0;
            let since = elapsed.unwrap_or(0.0);
            let means = last.window.means(sample, rank, since);
            let busy = last.window.busy(running, moved, since);
            let rate = |step: Option<f64>| per_second(step? / elapsed?);
            let measured = rate(generations);
            let own = sample.get(rank, Field::GenThroughput).and_then(per_second);
            loads.push(RankLoad {
                rank: rank as u16,
                taken_us,
                running,
                waiting,
                kv_usage: share(
                    sample.get(rank, Field::KvUsage).or_else(|| sample.get(rank, Field::KvUsageOld)),
                ),
                kv_total_tokens: kv_tokens(sample, rank),
                prompt_tokens_total: prompt,
                generation_tokens_total: generation,
                prompt_tokens_per_s: rate(prompts),
                // SGLang adds a request's tokens to its total when the request ends; its own figure is the smoother.
                generation_tokens_per_s: if kind == EngineKind::Sglang { own.or(measured) } else { measured },
                cache_hit_rate: share(sample.get(rank, Field::HitRate)).or_else(|| {
                    (last.recent_queries > 0.0)
                        .then(|| (last.recent_hits / last.recent_queries).clamp(0.0, 1.0) as f32)
                }),
                host_kv_usage: share(sample.get(rank, Field::HostKvUsage).or_else(|| {
                    let room = sample.get(rank, Field::HostKvTokens).filter(|room| *room > 0.0)?;
                    Some(sample.get(rank, Field::HostKvUsed)? / room)
                })),
                queue_time_s: seconds(means.queue_s),
                prefill_time_s: seconds(means.prefill_s),
                decode_time_s: seconds(means.decode_s),
                request_prompt_tokens: means.prompt_tokens.and_then(per_second),
                request_generation_tokens: means.generation_tokens.and_then(per_second),
                busy,
                // Some engines go a little beyond 1; a percentage is no share.
                utilization: sample
                    .get(rank, Field::Utilization)
                    .filter(|share| *share <= 2.0)
                    .map(|share| share.min(1.0) as f32),
            });
        }
        seen
    }
}

/// KV room of a rank in tokens: the engine's own figure (which knows of groups with several block sizes), else
/// blocks times their size.
pub(crate) fn kv_tokens(sample: &Sample, rank: usize) -> Option<u64> {
    let blocks = || Some(sample.get(rank, Field::KvBlocks)? * sample.get(rank, Field::BlockSize)?);
    sample
        .get(rank, Field::KvTokens)
        .or_else(blocks)
        .map(|tokens| tokens as u64)
        .filter(|tokens| (1..=limits::MAX_COUNT).contains(tokens))
}

/// Whether two reports say the same, the time of taking aside.
pub(crate) fn same_figures(a: &[RankLoad], b: &[RankLoad]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| *a == RankLoad { taken_us: a.taken_us, ..*b })
}

fn count(value: Option<f64>) -> Option<u32> {
    value.filter(|value| *value <= f64::from(REQUESTS_MAX)).map(|value| value as u32)
}

fn per_second(value: f64) -> Option<f32> {
    Some(value as f32).filter(|value| *value <= limits::MAX_RATE)
}

fn seconds(value: Option<f64>) -> Option<f32> {
    value.map(|value| value as f32).filter(|value| *value <= limits::MAX_SECONDS)
}

/// A share of 1. Rounding may carry an engine's figure a little over; a percentage is not a share.
fn share(value: Option<f64>) -> Option<f32> {
    value.filter(|value| *value <= 1.01).map(|value| value.min(1.0) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Reader;

    fn page(text: &str) -> Sample {
        let mut reader = Reader::new();
        reader.feed(text.as_bytes());
        reader.finish().clone()
    }

    fn vllm(prompt: u64, generation: u64, queries: u64, hits: u64) -> Sample {
        page(&format!(
            "vllm:num_requests_running{{engine=\"0\"}} 0\nvllm:prompt_tokens_total{{engine=\"0\"}} {prompt}\n\
             vllm:generation_tokens_total{{engine=\"0\"}} {generation}\n\
             vllm:prefix_cache_queries_total{{engine=\"0\"}} {queries}\n\
             vllm:prefix_cache_hits_total{{engine=\"0\"}} {hits}\n"
        ))
    }

    #[test]
    fn rates_come_from_two_scrapes() {
        let (mut tracker, mut loads) = (Tracker::default(), Vec::new());
        let seen = tracker.fold(&vllm(100, 10, 100, 0), EngineKind::Vllm, 1_000_000, &mut loads);
        assert_eq!(seen, Seen::default());
        assert_eq!((loads[0].prompt_tokens_per_s, loads[0].cache_hit_rate), (None, None));
        let seen = tracker.fold(&vllm(300, 60, 300, 50), EngineKind::Vllm, 1_500_000, &mut loads);
        assert_eq!(seen, Seen { busy: true, went_back: false });
        assert_eq!(loads[0].prompt_tokens_per_s, Some(400.0));
        assert_eq!(loads[0].generation_tokens_per_s, Some(100.0));
        assert_eq!(loads[0].cache_hit_rate, Some(0.25));
        assert_eq!(loads[0].prompt_tokens_total, Some(300));
        let seen = tracker.fold(&vllm(300, 60, 300, 50), EngineKind::Vllm, 2_500_000, &mut loads);
        assert_eq!(seen, Seen::default());
        assert_eq!(loads[0].prompt_tokens_per_s, Some(0.0));
        assert_eq!(loads[0].cache_hit_rate, Some(0.25));
    }

    #[test]
    fn counters_that_go_back_give_no_rate() {
        let (mut tracker, mut loads) = (Tracker::default(), Vec::new());
        tracker.fold(&vllm(100, 10, 0, 0), EngineKind::Vllm, 1_000_000, &mut loads);
        let seen = tracker.fold(&vllm(40, 10, 0, 0), EngineKind::Vllm, 2_000_000, &mut loads);
        assert!(seen.went_back);
        assert_eq!(loads[0].prompt_tokens_per_s, None);
        assert_eq!(loads[0].generation_tokens_per_s, Some(0.0));
    }

    #[test]
    fn a_figure_is_unknown_rather_than_absurd() {
        let (mut tracker, mut loads) = (Tracker::default(), Vec::new());
        for (usage, want) in
            [("0.5", Some(0.5)), ("1.0000001", Some(1.0)), ("55", None), ("NaN", None), ("-1", None)]
        {
            let sample = page(&format!("vllm:kv_cache_usage_perc {usage}\nvllm:num_requests_running 1e12\n"));
            tracker.fold(&sample, EngineKind::Vllm, 1, &mut loads);
            assert_eq!((loads[0].kv_usage, loads[0].running), (want, None), "{usage}");
        }
    }

    #[test]
    fn an_engine_with_ranks_gives_a_load_for_each() {
        let (mut tracker, mut loads) = (Tracker::default(), Vec::new());
        let sample = page(
            "vllm:num_requests_running{engine=\"0\"} 1\nvllm:num_requests_running{engine=\"1\"} 4\n\
             vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"10\"} 1\n\
             vllm:cache_config_info{block_size=\"16\",engine=\"1\",kv_cache_size_tokens=\"99\",num_gpu_blocks=\"20\"} 1\n",
        );
        tracker.fold(&sample, EngineKind::Vllm, 7, &mut loads);
        let got: Vec<_> = loads.iter().map(|l| (l.rank, l.running, l.waiting, l.kv_total_tokens)).collect();
        assert_eq!(got, [(0, Some(1), None, Some(160)), (1, Some(4), None, Some(99))]);
    }

    #[test]
    fn sglang_reports_its_own_throughput() {
        let (mut tracker, mut loads) = (Tracker::default(), Vec::new());
        let sample = page("sglang:gen_throughput 42.5\nsglang:cache_hit_rate 0.5\nsglang_token_usage 0.25\n");
        tracker.fold(&sample, EngineKind::Sglang, 7, &mut loads);
        assert_eq!(
            (loads[0].generation_tokens_per_s, loads[0].cache_hit_rate, loads[0].kv_usage, loads[0].running),
            (Some(42.5), Some(0.5), Some(0.25), None)
        );
    }

    #[test]
    fn the_time_of_taking_is_not_a_change() {
        let a = RankLoad { taken_us: 1, running: Some(1), ..RankLoad::default() };
        let b = RankLoad { taken_us: 2, ..a };
        assert!(same_figures(&[a], &[b]));
        assert!(!same_figures(&[a], &[RankLoad { running: None, ..b }]));
        assert!(!same_figures(&[a], &[]));
    }
}
