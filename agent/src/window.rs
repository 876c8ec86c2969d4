//! Figures over the recent past, from counters that only grow.

use crate::metrics::{Field, Sample};

/// How long the past counts: what is older counts the less, by 1/e with each such time, seconds.
const WINDOW_S: f64 = 30.0;
/// A page that is seen for the first time tells of this many requests at most, however many there have been.
const FIRST: f64 = 8.0;
/// When less than this of a request is left in the window, none ended lately.
const LEAST: f64 = 0.05;
/// Busy shares are told in steps of this: a share that only fades is not news at each scrape.
const BUSY_STEP: f64 = 1.0 / 256.0;

/// What is left of the past after so many seconds.
fn keep(elapsed_s: f64) -> f64 {
    (-elapsed_s / WINDOW_S).exp()
}

/// A mean over the requests of the recent past, from a growing sum and a growing count.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    last: Option<(f64, f64)>,
    sum: f64,
    count: f64,
}

impl Mean {
    /// The mean after a scrape: 0 when no request is left in the window, `None` when the page does not tell.
    fn fold(&mut self, now: Option<(f64, f64)>, keep: f64) -> Option<f64> {
        let Some((sum, count)) = now else {
            *self = Self::default();
            return None;
        };
        match self.last {
            Some((before, counted)) if sum >= before && count >= counted => {
                self.sum = self.sum * keep + (sum - before);
                self.count = self.count * keep + (count - counted);
            }
            // The engine was restarted: its new life begins with nothing.
            Some(_) => (self.sum, self.count) = (0.0, 0.0),
            None => {
                let share = if count > FIRST { FIRST / count } else { 1.0 };
                (self.sum, self.count) = (sum * share, count * share);
            }
        }
        self.last = now;
        Some(if self.count >= LEAST { self.sum / self.count } else { 0.0 })
    }
}

/// Mean times (seconds) and lengths (tokens) of the requests that ended lately. `None` is unknown; 0 is none ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Means {
    pub queue_s: Option<f64>,
    pub prefill_s: Option<f64>,
    pub decode_s: Option<f64>,
    pub prompt_tokens: Option<f64>,
    pub generation_tokens: Option<f64>,
}

/// The recent past of one rank.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Window {
    queue: Mean,
    prefill: Mean,
    decode: Mean,
    first_token: Mean,
    whole: Mean,
    prompt: Mean,
    generation: Mean,
    /// Share of the time with requests running, and whether there were any at the last scrape.
    busy: Option<(f64, bool)>,
}

impl Window {
    /// Means after a page that comes `elapsed_s` after the one before.
    pub(crate) fn means(&mut self, sample: &Sample, rank: usize, elapsed_s: f64) -> Means {
        let keep = keep(elapsed_s);
        let pair = |sum, count| Some((sample.get(rank, sum)?, sample.get(rank, count)?));
        let either = |sum, count, total| pair(sum, count).or_else(|| pair(total, Field::Requests));
        let queue_s = self.queue.fold(pair(Field::QueueTime, Field::QueueTimeCount), keep);
        let prefill = self.prefill.fold(pair(Field::PrefillTime, Field::PrefillTimeCount), keep);
        let decode = self.decode.fold(pair(Field::DecodeTime, Field::DecodeTimeCount), keep);
        let first = self.first_token.fold(pair(Field::FirstTokenTime, Field::FirstTokenTimeCount), keep);
        let whole = self.whole.fold(pair(Field::WholeTime, Field::WholeTimeCount), keep);
        // SGLang has no phases of their own: they lie between the queue's end, the first token and the end.
        let between = |from: Option<f64>, to: Option<f64>| match (from?, to?) {
            (_, 0.0) => Some(0.0),
            (from, to) => Some((to - from).max(0.0)),
        };
        Means {
            queue_s,
            prefill_s: prefill.or_else(|| between(queue_s, first)),
            decode_s: decode.or_else(|| between(first, whole)),
            prompt_tokens: self
                .prompt
                .fold(either(Field::RequestPrompt, Field::RequestPromptCount, Field::PromptTokens), keep),
            generation_tokens: self.generation.fold(
                either(Field::RequestGeneration, Field::RequestGenerationCount, Field::GenerationTokens),
                keep,
            ),
        }
    }

    /// Share of the time in which requests were running, after a scrape that found `running` of them. A stretch
    /// between two scrapes counts by what they found at its ends; one in which tokens `moved` though neither found
    /// anything counts half.
    pub(crate) fn busy(&mut self, running: Option<u32>, moved: bool, elapsed_s: f64) -> Option<f32> {
        let Some(running) = running.map(|running| running > 0) else {
            self.busy = None;
            return None;
        };
        let share = match self.busy {
            None => f64::from(u8::from(running)),
            Some((share, before)) => {
                let stretch = match (before, running) {
                    (true, true) => 1.0,
                    (false, false) if !moved => 0.0,
                    _ => 0.5,
                };
                let keep = keep(elapsed_s);
                share * keep + stretch * (1.0 - keep)
            }
        };
        self.busy = Some((share, running));
        Some(((share / BUSY_STEP).round() * BUSY_STEP) as f32)
    }
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

    fn vllm(requests: f64, queue: f64, prefill: f64, decode: f64, prompt: f64, generation: f64) -> Sample {
        let mut text = String::new();
        for (name, sum) in [
            ("queue_time_seconds", queue),
            ("prefill_time_seconds", prefill),
            ("decode_time_seconds", decode),
            ("prompt_tokens", prompt),
            ("generation_tokens", generation),
        ] {
            let name = format!("vllm:request_{name}");
            text += &format!(
                "{name}_bucket{{engine=\"0\",le=\"+Inf\"}} {requests}\n{name}_count{{engine=\"0\"}} {requests}\n\
                 {name}_sum{{engine=\"0\"}} {sum}\n"
            );
        }
        page(&text)
    }

    fn rounded(means: Means) -> [Option<f64>; 5] {
        [means.queue_s, means.prefill_s, means.decode_s, means.prompt_tokens, means.generation_tokens]
            .map(|mean| mean.map(|mean| (mean * 1e6).round() / 1e6))
    }

    #[test]
    fn means_are_those_of_the_requests_that_ended_since() {
        let mut window = Window::default();
        let none = window.means(&vllm(0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 0, 0.0);
        assert_eq!(rounded(none), [Some(0.0); 5], "nobody has ended yet");
        let two = window.means(&vllm(2.0, 1.0, 0.5, 8.0, 600.0, 200.0), 0, 1.0);
        assert_eq!(rounded(two), [Some(0.5), Some(0.25), Some(4.0), Some(300.0), Some(100.0)]);
        let idle = window.means(&vllm(2.0, 1.0, 0.5, 8.0, 600.0, 200.0), 0, 60.0);
        assert_eq!(rounded(idle), rounded(two), "still the last ones");
        // A crowd later the two no longer matter much.
        let later = window.means(&vllm(102.0, 1.0, 100.5, 8.0, 600.0, 200.0), 0, 60.0);
        assert!((later.prefill_s.unwrap() - 1.0).abs() < 0.01, "{later:?}");
        assert!(later.queue_s.unwrap() < 0.01, "{later:?}");
        let long_idle = window.means(&vllm(102.0, 1.0, 100.5, 8.0, 600.0, 200.0), 0, 1_000.0);
        assert_eq!(rounded(long_idle), [Some(0.0); 5], "nobody ended lately");
    }

    #[test]
    fn the_first_page_counts_as_few_requests() {
        let mut window = Window::default();
        let first = window.means(&vllm(1e6, 1e6, 1e6, 1e6, 1e6, 1e6), 0, 0.0);
        assert_eq!(rounded(first), [Some(1.0); 5]);
        let next = window.means(&vllm(1e6 + 8.0, 1e6 + 24.0, 1e6, 1e6, 1e6, 1e6), 0, 0.0);
        assert_eq!(rounded(next)[0], Some(2.0));
    }

    #[test]
    fn what_the_page_lacks_is_unknown_and_a_restart_forgets() {
        let mut window = Window::default();
        assert_eq!(window.means(&page("vllm:num_requests_running 1\n"), 0, 1.0), Means::default());
        window.means(&vllm(4.0, 4.0, 4.0, 4.0, 4.0, 4.0), 0, 1.0);
        let restarted = window.means(&vllm(1.0, 9.0, 0.5, 0.5, 0.5, 0.5), 0, 1.0);
        assert_eq!(rounded(restarted)[1], Some(0.0));
        let gone = window.means(&page("vllm:num_requests_running 1\n"), 0, 1.0);
        assert_eq!(gone, Means::default());
    }

    #[test]
    fn sglang_s_phases_lie_between_its_marks() {
        let text = |requests: f64| {
            format!(
                "sglang:queue_time_seconds_sum {}\nsglang:queue_time_seconds_count {requests}\n\
                 sglang:time_to_first_token_seconds_sum {}\nsglang:time_to_first_token_seconds_count {requests}\n\
                 sglang:e2e_request_latency_seconds_sum {}\nsglang:e2e_request_latency_seconds_count {requests}\n\
                 sglang:prompt_tokens_total {}\nsglang:generation_tokens_total {}\n\
                 sglang:num_requests_total {requests}\n",
                0.5 * requests,
                0.75 * requests,
                4.75 * requests,
                200.0 * requests,
                50.0 * requests,
            )
        };
        let mut window = Window::default();
        assert_eq!(rounded(window.means(&page(&text(0.0)), 0, 0.0)), [Some(0.0); 5]);
        let means = window.means(&page(&text(4.0)), 0, 1.0);
        assert_eq!(rounded(means), [Some(0.5), Some(0.25), Some(4.0), Some(200.0), Some(50.0)]);
    }

    #[test]
    fn busy_is_the_share_of_the_time_with_requests_running() {
        let mut window = Window::default();
        assert_eq!(window.busy(None, false, 0.0), None);
        assert_eq!(window.busy(Some(0), false, 0.0), Some(0.0));
        for _ in 0..600 {
            window.busy(Some(3), true, 0.25);
        }
        assert!(window.busy(Some(1), true, 0.25).unwrap() > 0.98);
        // A fourth of the time, in stretches much shorter than the window.
        for at in 0..2_000 {
            window.busy(Some(u32::from(at % 4 == 0)), true, 0.25);
        }
        let quarter = window.busy(Some(0), false, 0.0).unwrap();
        assert!((0.2..0.55).contains(&quarter), "{quarter}");
        for _ in 0..200 {
            window.busy(Some(0), false, 2.0);
        }
        assert_eq!(window.busy(Some(0), false, 2.0), Some(0.0), "fades to nothing, and then is no news");
        assert_eq!(window.busy(None, false, 1.0), None);
    }
}
