//! Conversations in a closed loop, in the form of the table that EAS publishes for its router: five instances, clients
//! that ask turn by turn, the router's prefix policy against none.
//!
//! Each client plays one conversation after the other: about three turns, log-normal lengths of new text and answer,
//! the whole history in each prompt. Unlike in the published runs, as far as is known, clients *think* between turns:
//! without that, a loop that is closed makes least-request sticky by accident, because the server that has just answered
//! is the one with a request less.

use std::sync::Arc;

use fairlead_sim::Profile;
use fairlead_sim::replay::{InstanceSpec, Play, Setup, Workload};
use fairlead_sim::trace::{Ask, Talk, Trace};

use crate::rng::Rng;

/// Tokens in a block.
const BLOCK: u32 = 16;
/// Instances.
const INSTANCES: usize = 5;
/// Requests of a client, at least.
const REQUESTS: usize = 24;
/// Longest prompt and answer.
const MOST: f64 = 8_000.0;

/// A model, and how many clients ask it.
pub struct Shape {
    /// What the case is called.
    pub name: &'static str,
    clients: usize,
    /// Mean tokens of new text in a turn and of an answer.
    text: f64,
    answer: f64,
    /// Constants of a step, milliseconds: by itself, a prompt token, a sequence, a token of context.
    step: [f64; 4],
    kv_tokens: u64,
}

/// The three rows of the published table. Constants are fitted to land near its round robin, not measured.
pub const SHAPES: [Shape; 3] = [
    Shape {
        name: "7B, 500 clients",
        clients: 500,
        text: 420.0,
        answer: 1_325.0,
        step: [11.0, 0.045, 0.13, 6e-5],
        kv_tokens: 520_000,
    },
    Shape {
        name: "32B, 100 clients",
        clients: 100,
        text: 450.0,
        answer: 1_599.0,
        step: [48.0, 0.22, 0.25, 1.2e-4],
        kv_tokens: 230_000,
    },
    Shape {
        name: "72B, 100 clients",
        clients: 100,
        text: 300.0,
        answer: 775.0,
        step: [36.0, 0.13, 0.2, 1e-4],
        kv_tokens: 300_000,
    },
];

impl Shape {
    /// The instances.
    pub fn setup(&self) -> Setup {
        let [base, prefill, sequence, context] = self.step.map(|ms| ms / 1e3);
        let profile = Profile {
            base,
            prefill,
            // As dear as the linear part at 30.7k tokens of context.
            attention: prefill / 30_700.0,
            per_sequence: sequence,
            decode_context: context,
            kv_tokens: self.kv_tokens,
            token_budget: 4_096,
            max_running: 256,
        };
        let kv_blocks = (self.kv_tokens / u64::from(BLOCK)) as u32;
        Setup::new(InstanceSpec { profile, kv_blocks }, INSTANCES)
    }

    /// The clients, who start within 20 s.
    pub fn workload(&self) -> Arc<Workload> {
        let mut rng = Rng::new(0x0ea5);
        let mut next_id = 0;
        let talks = (0..self.clients).map(|_| self.client(&mut rng, &mut next_id)).collect();
        let play = Play {
            block_tokens: BLOCK,
            starts_per_s: self.clients as f64 / 20.0,
            max_turns: usize::MAX,
            max_think: f64::INFINITY,
            ..Play::default()
        };
        Arc::new(Workload::new(&Trace { talks, left_out: 0 }, &play))
    }

    fn client(&self, rng: &mut Rng, next_id: &mut u64) -> Talk {
        let mut asks: Vec<Ask> = Vec::new();
        while asks.len() < REQUESTS {
            let (mut history, mut blocks) = (0, 0);
            loop {
                let input = history + log_normal(rng, self.text);
                let output = log_normal(rng, self.answer);
                let fresh = input / BLOCK - blocks;
                asks.push(Ask {
                    input,
                    output,
                    think: 5.0 + 10.0 * rng.unit(),
                    shared: blocks,
                    fresh: [(*next_id, fresh)].into(),
                });
                *next_id += u64::from(fresh);
                (history, blocks) = (input + output, input / BLOCK);
                // Three turns in the mean.
                if rng.unit() < 1.0 / 3.0 {
                    break;
                }
            }
        }
        Talk { at: None, prefix: 0, asks }
    }
}

/// Log-normal with σ = 1 and this mean, up to [`MOST`].
fn log_normal(rng: &mut Rng, mean: f64) -> u32 {
    // Box and Muller's transform.
    let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
    let normal = radius * (std::f64::consts::TAU * rng.unit()).cos();
    (mean.ln() - 0.5 + normal).exp().clamp(1.0, MOST) as u32
}
