//! `consistent-hash`.

use super::{Candidate, Choice, Decision, Missing, Policy, Reason};
use crate::fleet::rendezvous;
use crate::rng::Rng;
use crate::settings::{ConsistentHashSettings, Settings};

/// The target that a key is bound to, unless it has more than its share of the requests.
///
/// Rule: the key is the request's session, else its prompt's first blocks. The targets are ranked by rendezvous hashing
/// of key and name, equal in all gateways. The first one wins that, with this request, has at most
///
/// ```text
/// bound = ceil(load_factor × (requests of all candidates + 1) / candidates)
/// ```
///
/// requests in flight; there is always one. A target that comes or goes moves only its own keys, an overloaded one
/// spreads those that it cannot take over all others.
///
/// Inputs: session or prompt, requests in flight. Without both (no session, and a prompt shorter than a block) the
/// policy passes to `least-request`. Defaults: load factor 1.25 (0 or less: no bound), 4 blocks.
///
/// Sources: consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, arXiv 1608.01350); `consistent_hash`
/// of vllm-router and `prefix_hash` of SMG. Ours differs: rendezvous hashing instead of a ring with virtual nodes, which
/// spreads more evenly and needs no table; a request's own id is never a key.
pub(crate) struct ConsistentHash(ConsistentHashSettings);

impl ConsistentHash {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(settings.consistent_hash)
    }

    fn key(&self, decision: &Decision<'_>) -> Option<u64> {
        let request = decision.request;
        // A chained hash stands for all blocks before it.
        let last = (self.0.blocks.max(1) as usize).min(request.path.len());
        request.session.or_else(|| last.checked_sub(1).map(|last| request.path[last]))
    }

    fn bound(&self, candidates: &[Candidate]) -> u64 {
        let requests = candidates.iter().map(|c| c.requests).fold(1, u64::saturating_add);
        let bound = (self.0.load_factor * requests as f64 / candidates.len() as f64).ceil();
        // A factor below 1, or none, would leave nobody.
        if self.0.load_factor > 0.0 {
            (bound as u64).max(requests.div_ceil(candidates.len() as u64))
        } else {
            u64::MAX
        }
    }
}

impl Policy for ConsistentHash {
    fn pick(&self, decision: &Decision<'_>, _: &mut Rng) -> Result<Choice, Option<Missing>> {
        let key = self.key(decision).ok_or(None)?;
        let bound = self.bound(decision.candidates);
        let (mut own, mut first) = (None, None);
        for (index, candidate) in decision.candidates.iter().enumerate() {
            let weight = Some((rendezvous(key, decision.target(candidate).key), index));
            first = first.max(weight);
            if candidate.requests < bound {
                own = own.max(weight);
            }
        }
        let (_, index) = own.ok_or(None)?;
        let reason = if own == first { Reason::Bound } else { Reason::BoundElsewhere };
        Ok(Choice { index, reason })
    }

    /// Where the target stands in the key's ranking, 0 to 1, whatever its load.
    fn value(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64> {
        let weight = rendezvous(self.key(decision)?, decision.target(candidate).key);
        Some(1.0 - weight as f64 / u64::MAX as f64)
    }
}
