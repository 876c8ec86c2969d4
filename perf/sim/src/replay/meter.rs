//! What an agent measures of an engine from counters that only grow: rates, and means over the requests that ended lately.

use fairlead_routing::EngineFigures;

use super::cluster::Engine;
use crate::histogram::Histogram;

/// Least interval of two measurements, seconds: agents read a busy engine's metrics so often.
const INTERVAL: f64 = 0.25;
/// How long the past counts: what is older counts the less, by 1/e with each such time, seconds.
const WINDOW: f64 = 30.0;
/// When less than this of a request is left in the window, none ended lately.
const LEAST: f64 = 0.05;

/// A mean that fades.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    last: (f64, f64),
    sum: f64,
    count: f64,
}

impl Mean {
    /// The mean after a measurement; 0 when no request is left in the window.
    fn fold(&mut self, of: &Histogram, keep: f64) -> Option<f32> {
        let (sum, count) = (of.sum(), of.count() as f64);
        self.sum = self.sum * keep + (sum - self.last.0);
        self.count = self.count * keep + (count - self.last.1);
        self.last = (sum, count);
        Some(if self.count >= LEAST { (self.sum / self.count) as f32 } else { 0.0 })
    }
}

/// Counters at a measurement.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    at: f64,
    busy: f64,
    prompt: u64,
    generation: u64,
}

/// The recent past of one engine.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter {
    /// At the last measurement.
    last: Last,
    queue: Mean,
    prefill: Mean,
    decode: Mean,
    prompt: Mean,
    generation: Mean,
    busy: f64,
    told: EngineFigures,
}

impl Meter {
    /// Whether a measurement is due.
    pub fn is_due(&self, now: f64) -> bool {
        now - self.last.at >= INTERVAL
    }

    /// Figures of an engine between two steps.
    pub fn figures(&mut self, engine: &Engine, now: f64) -> EngineFigures {
        let model = &engine.model;
        let (running, capacity) = (model.running() as u32, f64::from(model.cache().capacity()));
        let kv_usage = (f64::from(model.cache().used()) / capacity) as f32;
        let batch = running as f32 / model.options().profile.max_running as f32;
        if self.is_due(now) {
            let (stats, last) = (model.stats(), self.last);
            let elapsed = now - last.at;
            let keep = (-elapsed / WINDOW).exp();
            let rate = |now: u64, before: u64| Some((now.saturating_sub(before) as f64 / elapsed) as f32);
            self.busy = self.busy * keep + ((engine.busy_s - last.busy) / elapsed).min(1.0) * (1.0 - keep);
            self.told = EngineFigures {
                prompt_tokens_per_s: rate(stats.prompt_tokens, last.prompt),
                generation_tokens_per_s: rate(stats.generation_tokens, last.generation),
                queue_time_s: self.queue.fold(&stats.queue, keep),
                prefill_time_s: self.prefill.fold(&stats.prefill, keep),
                decode_time_s: self.decode.fold(&stats.decode, keep),
                request_prompt_tokens: self.prompt.fold(&stats.request_prompt_tokens, keep),
                request_generation_tokens: self.generation.fold(&stats.request_generation_tokens, keep),
                busy: Some(self.busy as f32),
                ..EngineFigures::default()
            };
            let (prompt, generation) = (stats.prompt_tokens, stats.generation_tokens);
            self.last = Last { at: now, busy: engine.busy_s, prompt, generation };
        }
        EngineFigures {
            running: Some(running),
            waiting: Some(model.waiting() as u32),
            kv_usage: Some(kv_usage),
            kv_total_tokens: Some(capacity as u64 * u64::from(model.options().block_tokens)),
            utilization: Some(kv_usage.max(batch).min(1.0)),
            // All traffic is the gateways'.
            foreign_requests: Some(0),
            ..self.told
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::profile::Profile;
    use crate::replay::{Event, InstanceSpec, Play, Workload, World};
    use crate::trace::{Ask, Talk, Trace};

    #[test]
    fn figures_are_of_the_recent_past() {
        let ask = Ask { input: 2_000, output: 401, think: 0.0, shared: 0, fresh: Box::default() };
        let talks = vec![Talk { at: Some(0.0), prefix: 0, asks: vec![ask] }];
        let workload = Arc::new(Workload::new(&Trace { talks, left_out: 0 }, &Play::default()));
        let spec = InstanceSpec { profile: Profile::h200_8b(), kv_blocks: 1_000 };
        let mut world = World::new(workload, [spec].as_slice().into(), &[], 1);
        let (mut meter, mut all, mut end) = (Meter::default(), Vec::new(), (0.0, 0.0));
        while let Some(event) = world.next() {
            match event {
                Event::Arrival(request) => world.send(request, 0).unwrap(),
                Event::FirstToken { .. } => end.0 = world.now,
                Event::Finished { .. } => end.1 = world.now,
                Event::Stepped(_) => all.push(meter.figures(&world.engines[0], world.now)),
                _ => {}
            }
        }
        let close =
            |a: Option<f32>, b: f64| assert!((f64::from(a.unwrap()) - b).abs() < 0.05 * b, "{a:?} {b}");
        let step = (end.1 - end.0) / 400.0;
        let late = &all[all.len() - 2];
        close(late.generation_tokens_per_s, 1.0 / step);
        assert_eq!((late.running, late.waiting, late.decode_time_s), (Some(1), Some(0), Some(0.0)));
        close(late.kv_usage, 5.0 / 1_000.0);
        // Measured at most an interval before.
        let busy = |until: f64| (1.0 - (-until / WINDOW).exp()) as f32;
        assert!(late.busy.unwrap() <= busy(end.1) && late.busy.unwrap() >= busy(end.1 - 1.1 * INTERVAL));
        // When it has ended and time has passed.
        let idle = meter.figures(&world.engines[0], end.1 + 10.0);
        close(idle.decode_time_s, end.1 - end.0);
        close(idle.prefill_time_s, end.0);
        close(idle.request_prompt_tokens, 2_000.0);
        close(idle.request_generation_tokens, 401.0);
        assert_eq!((idle.running, idle.queue_time_s), (Some(0), Some(0.0)));
        assert!(idle.generation_tokens_per_s.unwrap() < 10.0 && idle.busy < late.busy);
        let later = meter.figures(&world.engines[0], end.1 + 200.0);
        assert_eq!((later.decode_time_s, later.generation_tokens_per_s), (Some(0.0), Some(0.0)));
    }
}
