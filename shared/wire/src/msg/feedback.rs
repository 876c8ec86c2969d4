//! What answers teach the scheduler: of caches and of costs.

use rkyv::{Archive, Deserialize, Serialize};

use super::HashSpace;

/// What answers of one target told of its cache since the last message; sums over the answers that told it.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TargetFeedback {
    /// Packed [`crate::TargetId`].
    pub target: u32,
    /// Space of the prediction.
    pub space: HashSpace,
    /// Answers that told how many prompt tokens came from cache.
    pub answers: u32,
    /// Cached prompt tokens that the index predicted for them.
    pub predicted_tokens: u64,
    /// Cached prompt tokens that the engine reported.
    pub cached_tokens: u64,
    /// Prompt tokens that the engine reported.
    pub prompt_tokens: u64,
    /// Bytes of the canonical prompts.
    pub prompt_bytes: u64,
}

/// What a target's work costs in time, as learnt from its answers: the constants of the step model in
/// `fairlead-routing`. Microseconds, but for the last and the counts.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// One uncached prompt token.
    pub prefill: f32,
    /// One uncached prompt token, for each token of context before it.
    pub attention: f32,
    /// A decode step by itself.
    pub step: f32,
    /// One sequence in a decode step.
    pub sequence: f32,
    /// One token of context of a decoding sequence, in a decode step.
    pub context: f32,
    /// Prompt tokens that a step takes while prompts wait, tokens.
    pub chunk: f32,
    /// Observations behind `prefill`, `attention` and `chunk`; with none, these say nothing.
    pub prefills: u32,
    /// Observations behind `step`, `sequence` and `context`.
    pub decodes: u32,
}

/// What a gateway has learnt of one target.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
pub struct TargetCosts {
    /// Packed [`crate::TargetId`].
    pub target: u32,
    /// What it has learnt; counts are of observations since it last told of this target.
    pub costs: Costs,
}

impl Costs {
    /// Before anything was observed: an 8B model on one current data-centre GPU, as gateways take it too.
    pub const PRIOR: Self = Self {
        prefill: 33.3,
        attention: 33.3 / 30_700.0,
        step: 6_000.0,
        sequence: 30.0,
        context: 0.02,
        chunk: 1_024.0,
        prefills: 0,
        decodes: 0,
    };

    /// With the prior's numbers where no observation stands behind its own.
    pub const fn or_prior(self) -> Self {
        let Self { prefill, attention, chunk, .. } = if self.prefills > 0 { self } else { Self::PRIOR };
        let Self { step, sequence, context, .. } = if self.decodes > 0 { self } else { Self::PRIOR };
        Self { prefill, attention, step, sequence, context, chunk, ..self }
    }
}

/// How fast one target's answers came since the last message: those with more than one token.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TargetPace {
    /// Packed [`crate::TargetId`].
    pub target: u32,
    /// Answers that have ended.
    pub answers: u32,
    /// Those of them that took longer per token, in the mean, than the gateway's limit.
    pub late: u32,
}

/// Gateway to scheduler: what answers showed. Predicted against reported cache hits, at most once a second; what
/// targets' work costs, where that has changed; and how many answers came too slowly, at most four times a second.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
pub struct Feedback {
    /// Targets that answered since the last message.
    pub items: Vec<TargetFeedback>,
    /// Targets whose learnt costs have changed.
    pub costs: Vec<TargetCosts>,
    /// Targets that can hand KV over and whose answers have ended since the last message.
    pub paces: Vec<TargetPace>,
}
