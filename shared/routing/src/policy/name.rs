//! Names of the policies, as they stand in configuration and headers.

use super::Policy;

/// A policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum PolicyName {
    /// Longest cached prefix, bounded by load; the rule of PAI-EAS.
    #[default]
    PrefixCache,
    /// Fewest requests in flight.
    LeastRequest,
    /// Each in turn.
    RoundRobin,
    /// Uniformly drawn.
    Random,
}

/// A policy name that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown policy {name:?}; known: {known}")]
pub struct UnknownPolicy {
    /// What was asked for.
    pub name: String,
    /// The known names, comma-separated.
    pub known: String,
}

impl PolicyName {
    /// Every policy, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::PrefixCache, Self::LeastRequest, Self::RoundRobin, Self::Random];

    /// The configured spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PrefixCache => "prefix-cache",
            Self::LeastRequest => "least-request",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
        }
    }

    /// The code behind the name.
    pub fn policy(self) -> &'static dyn Policy {
        match self {
            Self::PrefixCache => &super::prefix_cache::PrefixCache,
            Self::LeastRequest => &super::least_request::LeastRequest,
            Self::RoundRobin => &super::round_robin::RoundRobin,
            Self::Random => &super::random::Random,
        }
    }
}

impl std::fmt::Display for PolicyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for PolicyName {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == name).ok_or_else(|| UnknownPolicy {
            name: name.chars().take(64).collect(),
            known: Self::ALL.map(Self::as_str).join(", "),
        })
    }
}
