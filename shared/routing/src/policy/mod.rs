//! Policies: each picks one of the eligible candidates.
//!
//! A policy is one file here and one line in `registry.rs`. It sees only candidates that may be picked; the host
//! filters before and reserves after.

mod aibrix_least_request;
mod aibrix_prefix_cache;
mod consistent_hash;
pub(crate) mod cost;
mod dynamo;
mod figures;
mod least_busy_time;
mod least_gpu_cache;
mod least_kv_cache;
mod least_latency;
mod least_queued_tokens;
mod least_request;
mod least_token;
mod least_utilization;
mod llm_d;
mod llm_metric_based;
mod lmetric;
mod marginal;
mod power_of_two;
mod predict;
mod prefix_cache;
mod prefix_cache_preble;
mod random;
mod round_robin;
mod session_affinity;
mod sglang_cache_aware;
mod sliding;
mod slo;
mod slo_least_load;
mod slo_least_load_pulling;
mod slo_pack_load;
#[cfg(test)]
mod tests;
mod throughput;
mod vtc_basic;
mod vtc_users;
mod weighted;

use std::sync::Arc;

pub(crate) use aibrix_least_request::AibrixLeastRequest;
pub(crate) use aibrix_prefix_cache::AibrixPrefixCache;
pub(crate) use consistent_hash::ConsistentHash;
pub(crate) use cost::Cost;
pub(crate) use dynamo::Dynamo;
pub(crate) use least_busy_time::LeastBusyTime;
pub(crate) use least_gpu_cache::LeastGpuCache;
pub(crate) use least_kv_cache::LeastKvCache;
pub(crate) use least_latency::LeastLatency;
pub(crate) use least_queued_tokens::LeastQueuedTokens;
pub(crate) use least_request::LeastRequest;
pub(crate) use least_token::LeastToken;
pub(crate) use least_utilization::LeastUtilization;
pub(crate) use llm_d::LlmD;
pub(crate) use llm_metric_based::LlmMetricBased;
pub(crate) use lmetric::Lmetric;
pub(crate) use marginal::Marginal;
pub(crate) use power_of_two::PowerOfTwo;
pub(crate) use predict::ANSWER_TOKENS;
pub use predict::Predicted;
pub(crate) use prefix_cache::PrefixCache;
pub(crate) use prefix_cache_preble::PrefixCachePreble;
pub(crate) use random::Random;
pub(crate) use round_robin::RoundRobin;
pub(crate) use session_affinity::SessionAffinity;
pub(crate) use sglang_cache_aware::SglangCacheAware;
pub(crate) use slo_least_load::SloLeastLoad;
pub(crate) use slo_least_load_pulling::SloLeastLoadPulling;
pub(crate) use slo_pack_load::SloPackLoad;
pub(crate) use throughput::Throughput;
pub(crate) use vtc_basic::VtcBasic;
pub(crate) use weighted::Weighted;

use fairlead_wire::msg::ServingRole;

use crate::fleet::{EngineFigures, Fleet, Mode, ModelCells, Parts, TargetEntry};
use crate::pd::Pairing;
use crate::registry::PolicyName;
use crate::request::PlanRequest;
use crate::rng::Rng;

/// An eligible target with the figures of this decision.
#[derive(Clone, Copy, Debug, Default)]
pub struct Candidate {
    /// Which of the model's targets it is: see [`Decision::target`].
    pub number: u32,
    /// Leading blocks of the prompt that it holds.
    pub cached_blocks: u32,
    /// Requests in flight there: this gateway's and the others', and foreign ones where known.
    pub requests: u64,
    /// Requests of the gateways there that have no first token yet.
    pub prefilling: u64,
    /// Uncached prompt tokens of those: what is still to be prefilled there, as reserved at the picks.
    pub queued_tokens: u64,
    /// The same as work of the target, as predicted at the picks, microseconds.
    pub queued_us: u64,
    /// Prompt tokens of the gateways' requests past their first token.
    pub context_tokens: u64,
    /// Tokens in process there: uncached prompt tokens to prefill and context being decoded.
    pub tokens: u64,
    /// Which parts of a request it can take.
    pub parts: Parts,
    /// Targets of one domain can hand over to each other; 0 to none.
    pub domain: u8,
    /// The part that the scheduler would rather have it play; `Both` for no leaning.
    pub leaning: ServingRole,
}

impl Candidate {
    /// Requests of the gateways there past their first token.
    #[inline]
    pub fn decoding(&self) -> u64 {
        self.requests.saturating_sub(self.prefilling)
    }
}

/// What a policy decides on.
pub struct Decision<'a> {
    /// The request.
    pub request: &'a PlanRequest<'a>,
    /// Eligible targets, at least one.
    pub candidates: &'a [Candidate],
    /// The model's targets, eligible or not.
    pub targets: &'a [Arc<TargetEntry>],
    /// What was learnt about the model.
    pub model: &'a ModelCells,
    /// The fleet.
    pub fleet: &'a Fleet,
}

impl<'a> Decision<'a> {
    /// The target that a candidate stands for.
    pub fn target(&self, candidate: &Candidate) -> &'a TargetEntry {
        &self.targets[candidate.number as usize]
    }

    /// What the engine of a candidate reported last: nothing while the replicated state is not fresh, since a load
    /// that was true some time ago attracts everything.
    pub fn figures(&self, candidate: &Candidate) -> EngineFigures {
        match self.fleet.mode() {
            Mode::Fresh => self.target(candidate).cells.load.read(),
            Mode::Stale | Mode::Blind => EngineFigures::default(),
        }
    }

    /// Full blocks in the prompt.
    pub fn prompt_blocks(&self) -> u32 {
        self.request.path.len() as u32
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

/// A figure that no candidate's engine reports, by its name in documentation and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Missing(pub &'static str);

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $label:literal,)*) => {
        /// Why a target was picked: a metric label and part of the explain record.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// The metric label.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// All reasons, for metrics registration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
        }
    };
}

reasons! {
    /// Only one target was eligible.
    OnlyCandidate = "only_candidate",
    /// Longest prefix, and not busy.
    PrefixHit = "prefix_hit",
    /// Longest prefix; all of its holders are busy, this one is near the mean load.
    PrefixHitBusy = "prefix_hit_busy",
    /// No holder, or too little of the prompt is held: least loaded.
    PrefixMiss = "prefix_miss",
    /// All holders are overloaded: least loaded over all.
    PrefixOverloaded = "prefix_overloaded",
    /// The policy knows nothing else.
    Turn = "turn",
    /// Uniformly drawn.
    Drawn = "drawn",
    /// Fewest requests.
    LeastRequests = "least_requests",
    /// Least of the policy's own measure of load.
    LeastLoad = "least_load",
    /// Least predicted cost.
    LeastCost = "least_cost",
    /// Highest score.
    HighestScore = "highest_score",
    /// Bound by a session or a key.
    Bound = "bound",
    /// The target that the key names is too busy or not eligible: the next one.
    BoundElsewhere = "bound_elsewhere",
    /// Loads are too uneven: the least loaded, whatever it holds.
    Imbalance = "imbalance",
    /// No target keeps the request's limits: the one that misses them least.
    SloInfeasible = "slo_infeasible",
    /// Prefill and decode apart: the best pair.
    Remote = "remote",
    /// Prefill and decode apart, though no choice keeps the limits: the pair that misses them least.
    RemoteInfeasible = "remote_infeasible",
    /// Prefilled where it decodes: little is to be computed there, and no pair would be better.
    Local = "local",
    /// Prefilled where it decodes: the target holds the conversation, and the new turn is short.
    LocalPrefix = "local_prefix",
    /// Prefilled where it decodes, since the prefill side is backed up.
    LocalBacklog = "local_p_backlog",
    /// Served whole: the request cannot be split.
    NotSplit = "not_split",
    /// Served whole: no prefill target is ready.
    PrefillDown = "prefill_down",
    /// The replicated state is too old: round robin.
    Blind = "blind",
}

/// The targets that a policy must be shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// All that are eligible.
    #[default]
    All,
    /// Those that hold as much of the prompt as any; a sample of all if nobody holds anything, and what
    /// [`Policy::scope_after_holders`] says if the policy cannot decide on these.
    Holders,
    /// Those that hold much of the prompt, and a sample of the others.
    Sample,
}

/// Picks one of the eligible candidates. Must not block, allocate or panic.
pub trait Policy: Send + Sync {
    /// Whether candidates need `cached_blocks`.
    fn wants_prefix(&self) -> bool {
        false
    }

    /// Which targets it must be shown where a model has very many.
    fn scope(&self) -> Scope {
        Scope::All
    }

    /// Which targets it must be shown when it could not decide on the holders. Asked only of policies whose scope is
    /// [`Scope::Holders`].
    fn scope_after_holders(&self, _decision: &Decision<'_>) -> Scope {
        Scope::All
    }

    /// Picks among the eligible targets that hold most of the prompt, if its rule does not look at others then: what
    /// [`Policy::pick`] would pick of all. Asked only of policies whose scope is [`Scope::Holders`].
    fn pick_holder(&self, _decision: &Decision<'_>, _rng: &mut Rng) -> Option<Choice> {
        None
    }

    /// Picks; `rng` is for ties.
    ///
    /// # Errors
    /// The policy passes to its fallback, for want of the figure named or for another reason.
    fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Result<Choice, Option<Missing>>;

    /// The policy's measure of a candidate, least is best: for explain records and weighted sums. `None` where it has
    /// none or lacks a figure.
    fn value(&self, _decision: &Decision<'_>, _candidate: &Candidate) -> Option<f64> {
        None
    }

    /// The values of all candidates, in their order: for explain records. Policies whose value depends on the other
    /// candidates do in one go what [`Policy::value`] does anew for each.
    fn values(&self, decision: &Decision<'_>, tell: &mut dyn FnMut(usize, Option<f64>)) {
        for (index, candidate) in decision.candidates.iter().enumerate() {
            tell(index, self.value(decision, candidate));
        }
    }

    /// A figure without which the policy has decided all the same: one of several that it adds up, and which no
    /// candidate's engine reports.
    fn missing(&self, _decision: &Decision<'_>) -> Option<Missing> {
        None
    }

    /// Its code for placing prefill and decode apart, where it does. [`Policy::pick`] then places whole requests: those
    /// that cannot be split, and those of a model whose targets cannot.
    fn pairing(&self) -> Option<&dyn Pairing> {
        None
    }

    /// The policy that decides when this one passes.
    fn fallback(&self) -> Option<PolicyName> {
        Some(PolicyName::LeastRequest)
    }
}

/// Index of the candidate with the least `key` among those that `keep` admits; ties are drawn evenly, so that shards
/// and gateways with equal views do not herd. `None` when none is admitted.
///
/// Three passes without branches that depend on the figures: over a thousand candidates, one pass that remembers ties
/// as it goes mispredicts often enough to cost more.
pub fn least<K: Ord + Copy>(
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

/// As [`least`] for a measure that is a float: what is not a number, or that `key` does not know, never wins; a
/// negative measure counts as zero, so that a broken figure cannot attract. `None` when no candidate has a measure.
pub fn least_f64(
    candidates: &[Candidate],
    rng: &mut Rng,
    mut key: impl FnMut(&Candidate) -> Option<f64>,
) -> Option<usize> {
    // One pass: a measure may cost more than a branch that is mispredicted now and then.
    let (mut best, mut found, mut ties) = (f64::INFINITY, None, 0);
    for (index, candidate) in candidates.iter().enumerate() {
        let Some(value) = key(candidate).filter(|value| !value.is_nan()) else { continue };
        let value = value.max(0.0);
        if value < best || found.is_none() {
            (best, found, ties) = (value, Some(index), 1);
        } else if value == best {
            ties += 1;
            if rng.below(ties) == 0 {
                found = Some(index);
            }
        }
    }
    found
}
