//! What a step of an engine costs: a roofline-style model of prefill and decode.

use serde::{Deserialize, Serialize};

/// Constants of an engine's step time and of its memory.
///
/// `step = base + prefill tokens * prefill + Σ chunk * context * attention + sequences * per_sequence
/// + Σ decode context * decode_context`, all in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Cost of a step by itself, seconds.
    pub base: f64,
    /// Linear cost of one prefill token, seconds.
    pub prefill: f64,
    /// Attention cost of one prefill token per token of context before it, seconds.
    pub attention: f64,
    /// Cost of one sequence in the batch, seconds.
    pub per_sequence: f64,
    /// Cost of one token of context of a decoding sequence, seconds.
    pub decode_context: f64,
    /// Tokens of KV cache.
    pub kv_tokens: u64,
    /// Tokens that one step may compute.
    pub token_budget: u32,
    /// Sequences that may run at once.
    pub max_running: u32,
}

impl Profile {
    /// An 8B-class model on one H200.
    pub fn h200_8b() -> Self {
        Self {
            base: 0.006,
            prefill: 1.0 / 30_000.0,
            // As dear as the linear part at 30.7k tokens of context.
            attention: 1.0 / 30_000.0 / 30_700.0,
            per_sequence: 0.000_03,
            decode_context: 2e-8,
            kv_tokens: 3_000 * 512,
            token_budget: 1_024,
            max_running: 256,
        }
    }

    /// A 70B-class model over four cards.
    pub fn tp4_70b() -> Self {
        Self {
            prefill: 1.0 / 12_000.0,
            attention: 1.0 / 12_000.0 / 30_700.0,
            kv_tokens: 1_200 * 512,
            ..Self::h200_8b()
        }
    }

    /// The profiles that have a name, in the order help texts show them.
    pub const NAMES: [&'static str; 2] = ["8b-h200", "70b-tp4"];

    /// A profile by name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "8b-h200" => Some(Self::h200_8b()),
            "70b-tp4" => Some(Self::tp4_70b()),
            _ => None,
        }
    }
}

/// What a step computes, as far as its cost goes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepWork {
    /// Prompt tokens computed.
    pub prefill_tokens: u64,
    /// Σ over chunks of tokens × mean context before them.
    pub attended: f64,
    /// Sequences in the step.
    pub sequences: u32,
    /// Σ of the contexts of decoding sequences, tokens.
    pub decode_context: u64,
}

impl Profile {
    /// Seconds that a step takes.
    pub fn step_seconds(&self, w: &StepWork) -> f64 {
        self.base
            + w.prefill_tokens as f64 * self.prefill
            + w.attended * self.attention
            + f64::from(w.sequences) * self.per_sequence
            + w.decode_context as f64 * self.decode_context
    }
}
