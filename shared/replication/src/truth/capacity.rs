//! How many blocks a target may be believed to hold by placements alone: about as many as its engine does.
//!
//! Placements say what was sent to a target, not what its engine has evicted since. So the least recently used go
//! where the target would hold more than
//!
//! ```text
//!  blocks = kv_tokens × bytes_per_token ÷ block_bytes × factor
//! ```
//!
//! with the engine's KV room in tokens, the bytes of prompt per token that its answers showed (4 until one has), and a
//! factor that starts at 1 and is corrected by what answers report: of [`WINDOW_ANSWERS`] answers at least, with
//! [`WINDOW_TOKENS`] tokens at least, `r` = cached tokens ÷ predicted tokens.
//!
//! | r | then |
//! |---|---|
//! | below 0.9 | the engine forgets earlier than we do: blocks become `max(r, 0.8)` of what the target holds now, when that is less than the bound |
//! | above 1.1, and the bound was in the way | it forgets later: blocks × `min(r, 1.25)` |
//! | between | nothing |
//!
//! A first window out of the band only warns; the second in a row with the same sign acts, so that a burst of equal
//! prompts (predicted, but not yet computed) moves nothing. The factor stays within 1/8 and 4.

use fairlead_wire::msg::{HashSpace, TargetFeedback};

/// Answers before a ratio is judged.
pub(super) const WINDOW_ANSWERS: u32 = 64;
/// Predicted or cached tokens before a ratio is judged.
pub(super) const WINDOW_TOKENS: u64 = 16_384;
const FACTOR: (f64, f64) = (0.125, 4.0);
const BYTES_PER_TOKEN: f64 = 4.0;
/// Weight of one message's bytes per token, at most.
const LEARN: f64 = 0.125;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Capacity {
    bytes_per_token: f64,
    measured: bool,
    pub(crate) factor: f64,
    /// Cached over predicted tokens of the last window.
    pub(crate) ratio: Option<f64>,
    /// Sign of the last window that was out of the band.
    lean: i8,
    answers: u32,
    predicted: u64,
    cached: u64,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            bytes_per_token: BYTES_PER_TOKEN,
            measured: false,
            factor: 1.0,
            ratio: None,
            lean: 0,
            answers: 0,
            predicted: 0,
            cached: 0,
        }
    }
}

impl Capacity {
    /// Blocks that an engine with room for `kv_tokens` is believed to hold.
    pub(crate) fn blocks(&self, kv_tokens: u64, block_bytes: u32) -> u64 {
        let room = kv_tokens as f64 * self.bytes_per_token / f64::from(block_bytes.max(1));
        ((room * self.factor) as u64).max(1)
    }

    /// Takes answers into account. `held` blocks are believed to be held; `bound` is what [`Capacity::blocks`] says.
    pub(crate) fn learn(&mut self, told: &TargetFeedback, held: u64, bound: u64) {
        if told.prompt_tokens > 0 && told.prompt_bytes > 0 {
            let seen = (told.prompt_bytes as f64 / told.prompt_tokens as f64).clamp(0.5, 64.0);
            let weight = if self.measured { LEARN } else { 1.0 };
            self.bytes_per_token += (seen - self.bytes_per_token) * weight;
            self.measured = true;
        }
        if told.space == HashSpace::Tokens {
            // Says how good the events are, nothing of what placements are worth.
            return;
        }
        self.answers = self.answers.saturating_add(told.answers);
        self.predicted = self.predicted.saturating_add(told.predicted_tokens);
        self.cached = self.cached.saturating_add(told.cached_tokens);
        if self.answers < WINDOW_ANSWERS || self.predicted.max(self.cached) < WINDOW_TOKENS {
            return;
        }
        let ratio = (self.cached as f64 + 1.0) / (self.predicted as f64 + 1.0);
        (self.answers, self.predicted, self.cached) = (0, 0, 0);
        self.ratio = Some(ratio);
        let lean = match ratio {
            r if r < 0.9 => -1,
            r if r > 1.1 && held >= bound - bound / 8 => 1,
            _ => 0,
        };
        let before = std::mem::replace(&mut self.lean, lean);
        if lean == 0 || lean != before {
            return;
        }
        let step = if lean < 0 {
            // A bound that is far above what is held is no bound; the first step takes it to where it counts.
            ratio.max(0.8) * (held as f64 / bound.max(1) as f64).clamp(0.001, 1.0)
        } else {
            ratio.min(1.25)
        };
        self.factor = (self.factor * step).clamp(FACTOR.0, FACTOR.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(answers: u32, predicted: u64, cached: u64) -> TargetFeedback {
        TargetFeedback {
            target: 0,
            space: HashSpace::Bytes,
            answers,
            predicted_tokens: predicted,
            cached_tokens: cached,
            prompt_tokens: 100_000,
            prompt_bytes: 400_000,
        }
    }

    #[test]
    fn blocks_follow_room_bytes_and_factor() {
        let mut capacity = Capacity::default();
        for (tokens, block_bytes, want) in
            [(64_000, 256, 1_000), (0, 256, 1), (64, 256, 1), (64_000, 0, 256_000)]
        {
            assert_eq!(capacity.blocks(tokens, block_bytes), want);
        }
        capacity.learn(&TargetFeedback { prompt_bytes: 200_000, ..told(1, 0, 0) }, 0, 1_000);
        assert_eq!(capacity.blocks(64_000, 256), 500, "the first measurement counts in full");
        capacity.learn(&told(1, 0, 0), 0, 1_000);
        assert_eq!(capacity.blocks(64_000, 256), 562, "later ones by an eighth");
        capacity.learn(&TargetFeedback { prompt_tokens: 0, ..told(1, 0, 0) }, 0, 1_000);
        capacity.learn(&TargetFeedback { prompt_bytes: u64::MAX, ..told(1, 0, 0) }, 0, 1_000);
        assert!(capacity.blocks(u64::MAX, 1) > 0);
    }

    #[test]
    fn the_factor_moves_by_the_table() {
        // Windows as (predicted, cached, held of a bound of 1,000), and the factor after them.
        let full = WINDOW_TOKENS * 2;
        let part = |share: f64| (full as f64 * share) as u64;
        type Window = (u64, u64, u64);
        let cases: [(&str, &[Window], f64); 9] = [
            ("as predicted", &[(full, full, 1_000); 4], 1.0),
            ("within the band", &[(full, part(0.92), 1_000), (full, part(1.08), 1_000)], 1.0),
            ("one window only warns", &[(full, part(0.5), 1_000)], 1.0),
            ("two in a row act", &[(full, part(0.85), 1_000); 2], 0.85),
            ("by a fifth at most", &[(full, part(0.3), 1_000); 2], 0.8),
            (
                "an alternating sign acts never",
                &[(full, part(0.5), 1_000), (full, full, 1_000), (full, part(0.5), 1_000)],
                1.0,
            ),
            ("more is held than believed", &[(full, part(2.0), 1_000); 2], 1.25),
            ("more, but the bound is not in the way", &[(full, part(2.0), 500); 2], 1.0),
            ("from what is held", &[(full, part(0.9) - 10, 500); 2], 0.45),
        ];
        for (what, windows, want) in cases {
            let mut capacity = Capacity::default();
            for &(predicted, cached, held) in windows {
                capacity.learn(&told(WINDOW_ANSWERS, predicted, cached), held, 1_000);
            }
            assert!((capacity.factor - want).abs() < 0.01, "{what}: {} is not {want}", capacity.factor);
        }
    }

    #[test]
    fn the_factor_is_bounded_and_comes_back() {
        let mut capacity = Capacity::default();
        for _ in 0..100 {
            capacity.learn(&told(WINDOW_ANSWERS, WINDOW_TOKENS, 0), 10, 1_000);
        }
        assert_eq!(capacity.factor, FACTOR.0);
        for _ in 0..100 {
            capacity.learn(&told(WINDOW_ANSWERS, WINDOW_TOKENS, 2 * WINDOW_TOKENS), 1_000, 1_000);
        }
        assert_eq!(capacity.factor, FACTOR.1);
    }

    #[test]
    fn few_answers_and_token_space_move_nothing() {
        let mut capacity = Capacity::default();
        for _ in 0..10 {
            capacity.learn(&told(1, WINDOW_TOKENS * 2, 0), 1_000, 1_000);
            capacity.learn(
                &TargetFeedback { space: HashSpace::Tokens, ..told(WINDOW_ANSWERS, WINDOW_TOKENS * 2, 0) },
                1_000,
                1_000,
            );
        }
        assert_eq!((capacity.factor, capacity.ratio), (1.0, None));
    }
}
