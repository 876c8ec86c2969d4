//! Prefill and decode apart: which target computes the prompt, and which one the answer.
//!
//! A pair hands KV over by its engines' connector, so both must be of one *domain*: the same hand-off, and nothing that
//! their connectors would refuse. Where a policy knows nothing of pairs and the model has targets that do nothing but
//! prefill, the policy picks on each side by itself ([`sides`]).

mod aibrix;
mod dynamic;
mod sides;
#[cfg(test)]
mod tests;
mod transfer;

pub(crate) use aibrix::Pd;
pub(crate) use dynamic::DynamicPdSplit;
pub(crate) use sides::{PdSplit, sides};
pub use transfer::TransferCell;

use crate::policy::{Candidate, Decision, Missing, Reason};
use crate::rng::Rng;

/// Two candidates, by their index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The one that prefills.
    pub prefill: usize,
    /// The one that decodes: another one, of the same domain.
    pub decode: usize,
}

/// Where the parts of a request go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PairChoice {
    /// Apart.
    Apart {
        /// The legs.
        pair: Pair,
        /// Why.
        reason: Reason,
        /// Predicted time to the first token, microseconds.
        ttft_us: f32,
        /// The part of it that the transfer takes.
        transfer_us: f32,
        /// A figure for want of which a side was picked by another rule.
        missing: Option<Missing>,
    },
    /// Both to one that serves whole requests.
    Whole {
        /// Index of the candidate.
        index: usize,
        /// Why.
        reason: Reason,
    },
}

/// Places prefill and decode apart. Must not block, allocate (but for the growth of `side`) or panic.
pub trait Pairing: Send + Sync {
    /// Picks among candidates of which some take prefill legs and some decode legs, others perhaps whole requests alone.
    /// `side` is room for a part of them, kept from decision to decision. `None` where no two can be paired and none
    /// serves whole requests.
    fn pick_pair(
        &self,
        decision: &Decision<'_>,
        side: &mut Vec<Candidate>,
        rng: &mut Rng,
    ) -> Option<PairChoice>;
}

/// Which domains there are among candidates.
#[derive(Clone, Copy, Debug, Default)]
struct Domains([u64; 4]);

impl Domains {
    fn add(&mut self, domain: u8) {
        if domain > 0 {
            self.0[usize::from(domain >> 6)] |= 1 << (domain & 63);
        }
    }

    fn has(&self, domain: u8) -> bool {
        self.0[usize::from(domain >> 6)] >> (domain & 63) & 1 == 1
    }
}
