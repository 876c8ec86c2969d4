//! Policies: each picks one of the eligible candidates.
//!
//! A policy is one file here and one line in [`PolicyName::policy`]. It sees only candidates that may be picked; the
//! host filters before and reserves after.

mod least_request;
mod name;
mod prefix_cache;
mod random;
mod round_robin;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use name::{PolicyName, UnknownPolicy};

use crate::fleet::{Fleet, TargetEntry};
use crate::rng::Rng;

/// An eligible target with the figures of this decision.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Which of the model's targets it is: see [`Decision::target`].
    pub number: u32,
    /// Leading blocks of the prompt that it holds.
    pub cached_blocks: u32,
    /// Requests in flight there: this gateway's and the others', and foreign ones where known.
    pub requests: u64,
    /// Requests of the gateways there that have no first token yet.
    pub prefilling: u64,
    /// Tokens in process there: uncached prompt tokens to prefill and context being decoded.
    pub tokens: u64,
}

/// What a policy decides on.
pub struct Decision<'a> {
    /// Eligible targets, at least one.
    pub candidates: &'a [Candidate],
    /// The model's targets, eligible or not.
    pub targets: &'a [Arc<TargetEntry>],
    /// Full blocks in the prompt.
    pub prompt_blocks: u32,
    /// The fleet.
    pub fleet: &'a Fleet,
    /// For ties.
    pub rng: &'a mut Rng,
}

impl Decision<'_> {
    /// The target that a candidate stands for.
    pub fn target(&self, candidate: &Candidate) -> &TargetEntry {
        &self.targets[candidate.number as usize]
    }
}

/// A policy's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Index into the candidates.
    pub index: usize,
    /// Why.
    pub reason: Reason,
}

/// Why a target was picked: a metric label and part of the explain record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Only one target was eligible.
    OnlyCandidate,
    /// Longest prefix, and not busy.
    PrefixHit,
    /// Longest prefix; all of its holders are busy, this one is near the mean load.
    PrefixHitBusy,
    /// No holder, or too little of the prompt is held: least tokens.
    PrefixMiss,
    /// All holders are overloaded: least tokens over all.
    PrefixOverloaded,
    /// The policy knows nothing else.
    Turn,
    /// Uniformly drawn.
    Drawn,
    /// Fewest requests.
    LeastRequests,
    /// The replicated state is too old: round robin.
    Blind,
}

impl Reason {
    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OnlyCandidate => "only_candidate",
            Self::PrefixHit => "prefix_hit",
            Self::PrefixHitBusy => "prefix_hit_busy",
            Self::PrefixMiss => "prefix_miss",
            Self::PrefixOverloaded => "prefix_overloaded",
            Self::Turn => "turn",
            Self::Drawn => "drawn",
            Self::LeastRequests => "least_requests",
            Self::Blind => "blind",
        }
    }

    /// All reasons, for metrics registration.
    pub const ALL: [Self; 9] = [
        Self::OnlyCandidate,
        Self::PrefixHit,
        Self::PrefixHitBusy,
        Self::PrefixMiss,
        Self::PrefixOverloaded,
        Self::Turn,
        Self::Drawn,
        Self::LeastRequests,
        Self::Blind,
    ];
}

/// Picks one of the eligible candidates. Must not block, allocate or fail: a policy that lacks what it needs names
/// another as [`Policy::fallback`].
pub trait Policy: Sync {
    /// Whether candidates need `cached_blocks`.
    fn wants_prefix(&self) -> bool {
        false
    }

    /// Picks, or passes (`None`) to the fallback.
    fn pick(&self, decision: &mut Decision<'_>) -> Option<Choice>;

    /// The policy that decides when this one passes.
    fn fallback(&self) -> PolicyName {
        PolicyName::LeastRequest
    }
}

/// Index of the candidate with the least `key` among those that `keep` admits; ties are drawn evenly, so that shards
/// and gateways with equal views do not herd. `None` when none is admitted.
///
/// Three passes without branches that depend on the figures: over a thousand candidates, one pass that remembers ties
/// as it goes mispredicts often enough to cost more.
pub(crate) fn least<K: Ord + Copy>(
    candidates: &[Candidate],
    rng: &mut Rng,
    keep: impl Fn(&Candidate) -> bool,
    key: impl Fn(&Candidate) -> K,
) -> Option<usize> {
    let least = candidates.iter().filter(|c| keep(c)).map(&key).min()?;
    let is_least = |c: &Candidate| keep(c) & (key(c) == least);
    let ties = candidates.iter().map(|c| usize::from(is_least(c))).sum();
    let mut skip = if ties > 1 { rng.below(ties) } else { 0 };
    candidates.iter().position(|c| {
        let found = is_least(c);
        let here = found && skip == 0;
        skip -= usize::from(found && !here);
        here
    })
}
