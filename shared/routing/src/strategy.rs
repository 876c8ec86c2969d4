//! A policy made ready to decide: built once from its name and settings, used by every request that asks for it.

use crate::pd::Pairing;
use crate::policy::{Choice, Decision, Missing, Policy, Reason, Weighted};
use crate::registry::{PolicyName, UnknownPolicy};
use crate::rng::Rng;
use crate::settings::Settings;

/// Most policies in a chain of fallbacks.
const MOST_FALLBACKS: usize = 4;

/// A policy with its settings and its fallbacks.
pub struct Strategy {
    label: Box<str>,
    chain: Vec<(PolicyName, Box<dyn Policy>)>,
    wants_prefix: bool,
}

/// Why a text names no strategy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StrategyError {
    /// No policy has that name.
    #[error(transparent)]
    Unknown(#[from] UnknownPolicy),
    /// A part of a weighted sum has no proper weight.
    #[error("the weight of {name} is {weight:?}; allowed is a whole number from 0 to 1000000")]
    Weight {
        /// The part.
        name: &'static str,
        /// What stood there.
        weight: String,
    },
    /// A part stands twice in a weighted sum.
    #[error("{0} stands twice in the weighted sum")]
    Twice(&'static str),
    /// A policy that cannot be part of a weighted sum.
    #[error("{0} cannot be part of a weighted sum: it decides as a whole")]
    Exclusive(&'static str),
    /// A weighted sum of more parts than 16.
    #[error("a weighted sum has at most 16 parts")]
    TooMany,
    /// A weighted sum whose weights are all 0.
    #[error("every weight of the sum is 0")]
    NoWeight,
}

/// What a strategy decided, and which policy of its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picked {
    /// The policy's answer.
    pub choice: Choice,
    /// The policy that gave it: the strategy's own, or one it fell back to.
    pub policy: PolicyName,
    /// The figure for want of which a policy of the chain passed.
    pub missing: Option<Missing>,
}

impl Strategy {
    /// The policy of that name. `Weighted` and `Custom` have no policy by name; they give the default one.
    pub fn new(name: PolicyName, settings: &Settings) -> Self {
        let (name, policy) = match name.build(settings) {
            Some(policy) => (name, policy),
            None => (PolicyName::LeastRequest, Box::new(crate::policy::LeastRequest) as Box<dyn Policy>),
        };
        Self::from_parts(name.as_str(), name, policy, settings)
    }

    /// A policy of the embedder's own, shown as `label`.
    pub fn custom(label: &str, policy: Box<dyn Policy>, settings: &Settings) -> Self {
        Self::from_parts(label, PolicyName::Custom, policy, settings)
    }

    /// The strategy that a configuration or a header names: a policy's name, or a weighted sum of policies and scorers
    /// as in `prefix-cache:2,least-request:1`.
    ///
    /// # Errors
    /// A name is unknown, or the sum is not possible.
    pub fn parse(text: &str, settings: &Settings) -> Result<Self, StrategyError> {
        if text.contains([':', ',']) {
            let (label, sum) = Weighted::parse(text, settings)?;
            return Ok(Self::from_parts(&label, PolicyName::Weighted, Box::new(sum), settings));
        }
        Ok(Self::new(text.trim().parse()?, settings))
    }

    fn from_parts(label: &str, name: PolicyName, policy: Box<dyn Policy>, settings: &Settings) -> Self {
        let mut chain = vec![(name, policy)];
        while chain.len() < MOST_FALLBACKS
            && let Some((_, last)) = chain.last()
            && let Some(next) = last.fallback()
            && !chain.iter().any(|(name, _)| *name == next)
            && let Some(policy) = next.build(settings)
        {
            chain.push((next, policy));
        }
        let wants_prefix = chain.iter().any(|(_, policy)| policy.wants_prefix());
        Self { label: label.into(), chain, wants_prefix }
    }

    /// As it was asked for.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The policy that decides unless it passes.
    pub fn name(&self) -> PolicyName {
        self.chain[0].0
    }

    /// The policy itself.
    pub fn policy(&self) -> &dyn Policy {
        &*self.chain[0].1
    }

    /// The policy of that name in the chain.
    pub(crate) fn member(&self, name: PolicyName) -> Option<&dyn Policy> {
        self.chain.iter().find(|(member, _)| *member == name).map(|(_, policy)| &**policy)
    }

    /// The policy's code for placing prefill and decode apart, where it does.
    pub fn pairing(&self) -> Option<&dyn Pairing> {
        self.policy().pairing()
    }

    /// Whether any policy of the chain looks at cached prefixes.
    pub fn wants_prefix(&self) -> bool {
        self.wants_prefix
    }

    /// Picks one of the holders that are the candidates, if the first policy of the chain can.
    pub(crate) fn pick_holder(&self, decision: &Decision<'_>, rng: &mut Rng) -> Option<Picked> {
        let (policy, code) = &self.chain[0];
        let choice = code.pick_holder(decision, rng)?;
        Some(Picked { choice, policy: *policy, missing: None })
    }

    /// Picks one of the candidates, of which there must be one at least.
    pub fn pick(&self, decision: &Decision<'_>, rng: &mut Rng) -> Picked {
        let mut missing = None;
        for (policy, code) in &self.chain {
            match code.pick(decision, rng) {
                Ok(choice) => {
                    let missing = missing.or_else(|| code.missing(decision));
                    return Picked { choice, policy: *policy, missing };
                }
                Err(why) => missing = missing.or(why),
            }
        }
        let choice = Choice { index: rng.below(decision.candidates.len()), reason: Reason::Drawn };
        Picked { choice, policy: PolicyName::Random, missing }
    }
}

impl std::fmt::Debug for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Strategy").field(&self.label).finish()
    }
}
