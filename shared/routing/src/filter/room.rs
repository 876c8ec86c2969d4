//! KV room for the prompt.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::fleet::EngineFigures;
use crate::request::PlanRequest;

/// Free KV room of a target as its engine reported it last: one word beside what every decision reads anyway.
#[derive(Debug, Default)]
pub(crate) struct Room(
    /// Tokens and one more; 0 is unknown.
    AtomicU32,
);

impl Room {
    /// Takes over a report. Room is known where the engine says how much it has; of that it has all where it does not
    /// say what is in use.
    pub(crate) fn report(&self, figures: &EngineFigures) {
        let word = match figures.kv_total_tokens {
            None | Some(0) => 0,
            Some(total) => {
                let used =
                    figures.kv_usage.filter(|used| !used.is_nan()).map_or(0.0, |used| used.clamp(0.0, 1.0));
                let free = (total as f64 * (1.0 - f64::from(used))) as u64;
                u32::try_from(free).unwrap_or(u32::MAX).saturating_add(1)
            }
        };
        self.0.store(word, Ordering::Relaxed);
    }

    /// Free tokens, where known.
    #[inline]
    pub(crate) fn free(&self) -> Option<u32> {
        self.0.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Whether there is certainly too little of it: engines count cached blocks that nobody uses as free, so even the
    /// prompt's uncached part alone does not fit.
    #[inline]
    pub(super) fn lacks(&self, request: &PlanRequest<'_>, cached_blocks: u32) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        // Most have room for all of it, and need no second look.
        word.wrapping_sub(1) < request.prompt_tokens && word - 1 < request.uncached(cached_blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PolicyName, Settings, Strategy};

    #[test]
    fn room_is_what_is_not_in_use() {
        let strategy = Strategy::new(PolicyName::Random, &Settings::default());
        let lacks = |total, used, tokens, cached| {
            let room = Room::default();
            room.report(&EngineFigures {
                kv_total_tokens: total,
                kv_usage: used,
                ..EngineFigures::default()
            });
            let request = PlanRequest {
                path: &[1; 10],
                prompt_tokens: tokens,
                block_tokens: 64,
                ..PlanRequest::new("m", &strategy)
            };
            room.lacks(&request, cached)
        };
        for (what, total, used, tokens, cached, want) in [
            ("nothing known", None, None, u32::MAX, 0, false),
            ("use without size", None, Some(1.0), u32::MAX, 0, false),
            ("no size at all", Some(0), Some(1.0), 9, 0, false),
            ("fits", Some(1000), Some(0.5), 500, 0, false),
            ("just not", Some(1000), Some(0.5), 501, 0, true),
            ("its uncached part fits", Some(1000), Some(0.5), 564, 1, false),
            ("not even that", Some(1000), Some(0.5), 565, 1, true),
            ("use unknown: all of it", Some(1000), None, 1000, 0, false),
            ("smaller than the prompt", Some(1000), None, 1001, 0, true),
            ("full", Some(1000), Some(1.0), 1, 0, true),
            ("broken use", Some(1000), Some(f32::NAN), 1000, 0, false),
            ("more than full", Some(1000), Some(7.0), 1, 0, true),
            ("less than nothing", Some(1000), Some(-7.0), 1000, 0, false),
            ("huge", Some(u64::MAX), Some(0.5), u32::MAX - 1, 0, false),
            ("no prompt", Some(1000), Some(1.0), 0, 0, false),
        ] {
            assert_eq!(lacks(total, used, tokens, cached), want, "{what}");
        }
    }
}
