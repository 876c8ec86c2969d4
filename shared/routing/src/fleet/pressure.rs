//! How badly the fleet's caches miss the room for what is asked for again.
//!
//! A prompt is compared with the prompts before it: what they have in common could have been found in a cache without
//! limits. What of it no target holds any more was given up for room. Set against what had to be computed (and so
//! took the place of something else), this tells how likely a block given up is to be wanted again: near 0 while the
//! caches hold all that matters, near 1 when the working set has outgrown them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Remembered blocks: one for about every [`SAMPLE_TOKENS`] prompt tokens seen last; half a megabyte of their tags.
const REMEMBERED: usize = 1 << 17;
/// Tokens that one remembered block stands for.
const SAMPLE_TOKENS: u32 = 1_024;
/// Prompt tokens over which the figures are averaged, about.
const WINDOW_TOKENS: f32 = 8_000_000.0;

/// What prompts had in common with those before them, and what was left of it.
///
/// Shared by all shards. Every word is an atomic by itself: shards that write at once may lose a note or a sample,
/// which the averages do not mind.
pub struct Pressure {
    /// Tags of remembered blocks, each at the place that its hash names; a newer one replaces an older. Made at the
    /// first prompt, since a fleet may list many models that nobody asks for.
    tags: OnceLock<Box<[AtomicU32]>>,
    /// Averages, bits of f32: tokens a prompt that were lost, and that had to be computed.
    averages: AtomicU64,
}

impl Pressure {
    /// Nothing seen.
    pub fn new() -> Self {
        Self { tags: OnceLock::new(), averages: AtomicU64::new(0) }
    }

    /// Share of what is computed that takes the place of something that will be wanted again, 0 to 1.
    #[inline]
    pub fn regret(&self) -> f32 {
        let (lost, computed) = unpack(self.averages.load(Ordering::Relaxed));
        if computed > 0.0 { (lost / computed).clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Takes a prompt into account: its blocks, their size in tokens, how many of them the best holder has, and the
    /// tokens that the chosen target must compute.
    pub fn note(&self, path: &[u64], block_tokens: f32, held: u32, computed: u32) {
        if path.is_empty() || block_tokens <= 0.0 {
            return;
        }
        let every = ((SAMPLE_TOKENS as f32 / block_tokens) as u64).max(1).next_power_of_two();
        // The high bits choose the sample, the low ones the place.
        let sampled = |block: u64| (block >> 40) & (every - 1) == 0;
        let tags = self.tags.get_or_init(|| (0..REMEMBERED).map(|_| AtomicU32::new(0)).collect());
        let held = (held as usize).min(path.len());
        // Of the blocks after the held ones, those up to the last that was seen before were lost. (One in between may
        // have been forgotten: a block seen implies those before it.)
        let (mut lost, mut samples) = (0u64, 0u64);
        for &block in &path[held..] {
            if !sampled(block) {
                continue;
            }
            let cell = &tags[block as usize % REMEMBERED];
            let tag = (block >> 17) as u32 | 1;
            samples += 1;
            if cell.load(Ordering::Relaxed) == tag {
                lost = samples;
            } else {
                cell.store(tag, Ordering::Relaxed);
            }
        }
        let lost = (lost * every) as f32 * block_tokens;
        let tokens = path.len() as f32 * block_tokens;
        let weight = (tokens / WINDOW_TOKENS).min(0.05);
        let (mean_lost, mean_computed) = unpack(self.averages.load(Ordering::Relaxed));
        // Both are kept a token of prompt, so that long prompts weigh by their length.
        let towards = |mean: f32, sample: f32| mean + weight * (sample / tokens - mean);
        let next = (towards(mean_lost, lost), towards(mean_computed, computed as f32));
        self.averages.store(pack(next), Ordering::Relaxed);
    }
}

fn pack((a, b): (f32, f32)) -> u64 {
    u64::from(a.to_bits()) << 32 | u64::from(b.to_bits())
}

fn unpack(word: u64) -> (f32, f32) {
    (f32::from_bits((word >> 32) as u32), f32::from_bits(word as u32))
}

impl Default for Pressure {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Pressure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pressure").field("regret", &self.regret()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    fn path(rng: &mut Rng, blocks: usize) -> Vec<u64> {
        (0..blocks).map(|_| rng.next_u64()).collect()
    }

    #[test]
    fn new_prompts_regret_nothing() {
        let pressure = Pressure::new();
        let mut rng = Rng::new(1);
        for _ in 0..2_000 {
            pressure.note(&path(&mut rng, 20), 512.0, 0, 20 * 512);
        }
        assert!(pressure.regret() < 0.01, "{pressure:?}");
    }

    #[test]
    fn what_is_held_is_no_loss_and_what_was_seen_and_is_gone_is() {
        for block_tokens in [64.0, 512.0, 4_096.0] {
            let mut rng = Rng::new(2);
            let blocks = (65_536.0 / block_tokens) as usize;
            let prompts: Vec<_> = (0..100).map(|_| path(&mut rng, blocks)).collect();
            // Asked again and again: half of each prompt is held, the other half is gone each time.
            let pressure = Pressure::new();
            for turn in 0..4_000 {
                let prompt = &prompts[turn % prompts.len()];
                let held = if turn < 100 { 0 } else { blocks / 2 };
                pressure.note(
                    prompt,
                    block_tokens,
                    held as u32,
                    65_536 - (held as f32 * block_tokens) as u32,
                );
            }
            assert!(pressure.regret() > 0.8, "{block_tokens}: {pressure:?}");
            for turn in 0..4_000 {
                pressure.note(&prompts[turn % prompts.len()], block_tokens, blocks as u32, 1);
            }
            let fresh = path(&mut rng, blocks);
            pressure.note(&fresh, block_tokens, 0, 65_536);
            assert!(pressure.regret() < 0.2, "{block_tokens}: {pressure:?}");
        }
    }

    #[test]
    fn broken_input_changes_nothing() {
        let pressure = Pressure::new();
        pressure.note(&[], 512.0, 0, 5);
        pressure.note(&[1, 2], 0.0, 9, 5);
        pressure.note(&[1, 2], 512.0, 9, 5);
        assert!(pressure.regret().is_finite());
    }
}
