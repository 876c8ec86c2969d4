//! `no-hit-lru-scorer`.

use std::sync::atomic::Ordering;

use super::{Scorer, Spread};
use crate::policy::{Candidate, Decision};

/// Spreads prompts of which nobody holds anything: the longer a target has been without such a prompt, the better.
///
/// Rule: 0.5 for all where any candidate holds a block of the prompt. Else 1 for a target that has never had a cold
/// prompt from this gateway, and for the others the number of cold prompts since their last one over the number of
/// candidates, at most 1.
///
/// Inputs: cached blocks; a count on each target. Source: llm-d, which ranks the targets of an LRU list of 1,024 and
/// scores by rank; while cold prompts go round, as they do by this score, age and rank are the same, and age needs
/// neither list nor lock.
pub(super) struct NoHitLru;

/// Above all ages: the candidate holds something, so the prompt is not cold.
const WARM: f64 = 2.0;

impl Scorer for NoHitLru {
    fn wants_prefix(&self) -> bool {
        true
    }

    fn figure(&self) -> &'static str {
        "cached_blocks"
    }

    fn measure(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        if candidate.cached_blocks > 0 {
            return Some(WARM);
        }
        let last = decision.target(candidate).cells.cold.load(Ordering::Relaxed);
        if last == 0 {
            return Some(1.0);
        }
        let age = decision.fleet.cold().load(Ordering::Relaxed).saturating_sub(last);
        Some((age as f64 / decision.candidates.len() as f64).min(1.0))
    }

    fn score(&self, measure: f64, spread: &Spread) -> f64 {
        if spread.most >= WARM { 0.5 } else { measure }
    }

    fn picked(&self, decision: &Decision<'_>, candidate: &Candidate, spread: &Spread) {
        if spread.most < WARM {
            let now = decision.fleet.cold().fetch_add(1, Ordering::Relaxed) + 1;
            decision.target(candidate).cells.cold.store(now, Ordering::Relaxed);
        }
    }
}
