//! Traffic for prefill and decode apart: long prompts with short answers, short prompts with long answers, and what lies
//! between; and a mix that flips.

use std::sync::Arc;

use fairlead_sim::replay::{Play, Workload};
use fairlead_sim::trace::{Ask, Talk, Trace};

use crate::rng::Rng;

/// Tokens in a block.
const BLOCK: u32 = 512;

/// Requests of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Mean prompt, tokens.
    pub prompt: f64,
    /// Mean answer, tokens.
    pub answer: f64,
}

/// Long documents, short answers.
pub const READING: Kind = Kind { prompt: 6_000.0, answer: 60.0 };
/// Short questions, long answers.
pub const WRITING: Kind = Kind { prompt: 500.0, answer: 600.0 };

/// Traffic over some time.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    /// Seconds.
    pub seconds: f64,
    /// Requests per second.
    pub rate: f64,
    /// Share of [`READING`].
    pub reading: f64,
}

/// Requests that come one by one at random times, stretch after stretch; no two prompts begin alike.
pub fn workload(stretches: &[Stretch], seed: u64) -> Arc<Workload> {
    let mut rng = Rng::new(seed);
    let (mut talks, mut from, mut next_id) = (Vec::new(), 0.0, 1u64 << 32);
    for stretch in stretches {
        let mut at = from;
        loop {
            at -= (1.0 - rng.unit()).ln() / stretch.rate;
            if at >= from + stretch.seconds {
                break;
            }
            let kind = if rng.unit() < stretch.reading { READING } else { WRITING };
            let input = log_normal(&mut rng, kind.prompt, 32_000.0).max(16);
            let output = log_normal(&mut rng, kind.answer, 4_000.0).max(2);
            let blocks = input / BLOCK;
            let ask = Ask { input, output, think: 0.0, shared: 0, fresh: [(next_id, blocks)].into() };
            next_id += u64::from(blocks) + 1;
            talks.push(Talk { at: Some(at), prefix: 0, asks: vec![ask] });
        }
        from += stretch.seconds;
    }
    Arc::new(Workload::new(&Trace { talks, left_out: 0 }, &Play::default()))
}

/// Log-normal with σ = 0.5 and this mean, up to `most`.
fn log_normal(rng: &mut Rng, mean: f64, most: f64) -> u32 {
    const SIGMA: f64 = 0.5;
    // Box and Muller's transform.
    let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
    let normal = radius * (std::f64::consts::TAU * rng.unit()).cos();
    (mean.ln() - SIGMA * SIGMA / 2.0 + SIGMA * normal).exp().clamp(1.0, most) as u32
}
