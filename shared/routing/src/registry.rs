//! The policies by name: one line each.

use crate::policy::Policy;
use crate::settings::Settings;

/// A policy name that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown policy {name:?}; known: {known}")]
pub struct UnknownPolicy {
    /// What was asked for.
    pub name: String,
    /// The known names, comma-separated.
    pub known: String,
}

macro_rules! registry {
    ($($variant:ident, $name:literal $(| $alias:literal)*, $build:expr;)*) => {
        /// A policy by name. Rules, inputs and sources stand with each policy's code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the names say it, and each policy's own file says the rest")]
        pub enum PolicyName { $($variant,)* Weighted, Custom }

        impl PolicyName {
            /// Every policy that a name alone chooses, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The configured spelling.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* Self::Weighted => "weighted", Self::Custom => "custom" }
            }

            /// The policy of that name or of that other name for it.
            fn find(name: &str) -> Option<Self> {
                match name { $($name $(| $alias)* => Some(Self::$variant),)* _ => None }
            }

            /// Builds the policy. `Weighted` and `Custom` are built from their parts, not by name.
            pub(crate) fn build(self, settings: &Settings) -> Option<Box<dyn Policy>> {
                match self {
                    $(Self::$variant => { let build: fn(&Settings) -> Box<dyn Policy> = $build; Some(build(settings)) })*
                    Self::Weighted | Self::Custom => None,
                }
            }
        }
    };
}

use crate::policy as p;

// Variant, name | other names, constructor.
registry! {
    Cost, "cost", |s| Box::new(p::Cost::new(s));
    PrefixCache, "prefix-cache", |s| Box::new(p::PrefixCache::new(s));
    LeastRequest, "least-request", |_| Box::new(p::LeastRequest);
    LeastToken, "least-token", |_| Box::new(p::LeastToken);
    LlmMetricBased, "llm-metric-based", |s| Box::new(p::LlmMetricBased::new(s));
    RoundRobin, "round-robin", |_| Box::new(p::RoundRobin);
    Random, "random", |_| Box::new(p::Random);
    ConsistentHash, "consistent-hash", |s| Box::new(p::ConsistentHash::new(s));
    Lmetric, "lmetric", |_| Box::new(p::Lmetric);
    LeastQueuedTokens, "least-queued-tokens", |_| Box::new(p::LeastQueuedTokens);
    Dynamo, "dynamo", |s| Box::new(p::Dynamo::new(s));
    LlmD, "llm-d", |s| Box::new(p::LlmD::new(s));
    SglangCacheAware, "sglang-cache-aware", |s| Box::new(p::SglangCacheAware::new(s));
    AibrixLeastRequest, "aibrix-least-request", |_| Box::new(p::AibrixLeastRequest);
    LeastBusyTime, "least-busy-time", |_| Box::new(p::LeastBusyTime);
    LeastLatency, "least-latency", |s| Box::new(p::LeastLatency::new(s));
    LeastKvCache, "least-kv-cache", |_| Box::new(p::LeastKvCache);
    LeastGpuCache, "least-gpu-cache", |_| Box::new(p::LeastGpuCache);
    LeastUtilization, "least-utilization", |_| Box::new(p::LeastUtilization);
    Throughput, "throughput", |s| Box::new(p::Throughput::new(s));
    PowerOfTwo, "power-of-two", |_| Box::new(p::PowerOfTwo);
    AibrixPrefixCache, "aibrix-prefix-cache", |s| Box::new(p::AibrixPrefixCache::new(s));
    PrefixCachePreble, "prefix-cache-preble", |s| Box::new(p::PrefixCachePreble::new(s));
    VtcBasic, "vtc-basic", |s| Box::new(p::VtcBasic::new(s));
    SloLeastLoadPulling, "slo-least-load-pulling" | "slo", |s| Box::new(p::SloLeastLoadPulling::new(s));
    SloLeastLoad, "slo-least-load", |s| Box::new(p::SloLeastLoad::new(s));
    SloPackLoad, "slo-pack-load", |s| Box::new(p::SloPackLoad::new(s));
    SessionAffinity, "session-affinity", |_| Box::new(p::SessionAffinity);
    Marginal, "marginal", |_| Box::new(p::Marginal::default());
    DynamicPdSplit, "dynamic-pd-split", |s| Box::new(crate::pd::DynamicPdSplit::new(s));
    PdSplit, "pd-split" | "static-pd-split", |s| Box::new(crate::pd::PdSplit::new(s));
    Pd, "pd", |s| Box::new(crate::pd::Pd::new(s));
}

impl Default for PolicyName {
    /// What is used where nothing is configured.
    fn default() -> Self {
        Self::Cost
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
        Self::find(name).ok_or_else(|| UnknownPolicy {
            name: name.chars().take(64).collect(),
            known: Self::ALL.iter().map(|policy| policy.as_str()).collect::<Vec<_>>().join(", "),
        })
    }
}
