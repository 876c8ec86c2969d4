//! Scorers: what a weighted sum adds up. Each is a file here and a line in the list below.
//!
//! A scorer has a *measure* of every candidate (or none, where a figure is unknown) and turns it into a score from 0 to
//! 1, 1 is best, given the least and the greatest measure among the candidates. A candidate without a measure scores 0:
//! what is unknown does not attract. Measures that are negative or no finite numbers are unknown.

mod active_request;
mod kv_cache_utilization;
mod load_aware;
mod no_hit_lru;
mod of_policy;
mod prefix_cache;
mod queue;
mod running_requests;
mod token_load;

pub(crate) use of_policy::OfPolicy;

use crate::policy::{Candidate, Decision};
use crate::settings::Settings;

/// Least and greatest measure among the candidates that have one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of no measure at all.
    pub(crate) const NONE: Self = Self { least: f64::INFINITY, most: f64::NEG_INFINITY };

    pub(crate) fn add(&mut self, measure: f64) {
        self.least = self.least.min(measure);
        self.most = self.most.max(measure);
    }

    pub(crate) fn is_none(&self) -> bool {
        self.least > self.most
    }

    /// 1 for the least measure, 0 for the greatest, in proportion between them; 1 for all where they are equal.
    pub(crate) fn least_is_best(&self, measure: f64) -> f64 {
        let range = self.most - self.least;
        if range > 0.0 { (self.most - measure) / range } else { 1.0 }
    }
}

/// One kind of score.
pub(crate) trait Scorer: Send + Sync {
    /// Whether candidates need `cached_blocks`.
    fn wants_prefix(&self) -> bool {
        false
    }

    /// The figure that is missing when no candidate has a measure.
    fn figure(&self) -> &'static str;

    /// The candidate's measure.
    fn measure(&self, decision: &Decision<'_>, candidate: &Candidate) -> Option<f64>;

    /// The measures of all candidates, in their order.
    fn measures(&self, decision: &Decision<'_>, tell: &mut dyn FnMut(usize, Option<f64>)) {
        for (index, candidate) in decision.candidates.iter().enumerate() {
            tell(index, self.measure(decision, candidate));
        }
    }

    /// The score of a measure.
    fn score(&self, measure: f64, spread: &Spread) -> f64;

    /// The sum has picked this candidate.
    fn picked(&self, _decision: &Decision<'_>, _candidate: &Candidate, _spread: &Spread) {}
}

/// A measure fit for comparing.
pub(crate) fn sane(measure: Option<f64>) -> Option<f64> {
    measure.filter(|measure| measure.is_finite() && *measure >= 0.0)
}

macro_rules! scorers {
    ($($(#[doc = $doc:literal])* $variant:ident, $name:literal | $short:literal, $build:expr;)*) => {
        /// A scorer by name; the name without `-scorer` means it too, where no policy has that name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ScorerName { $($(#[doc = $doc])* $variant,)* }

        impl ScorerName {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The scorer of that name.
            pub fn find(name: &str) -> Option<Self> {
                match name { $($name | $short => Some(Self::$variant),)* _ => None }
            }

            pub(crate) fn build(self, settings: &Settings) -> Box<dyn Scorer> {
                match self {
                    $(Self::$variant => {
                        let build: fn(&Settings) -> Box<dyn Scorer> = $build;
                        build(settings)
                    })*
                }
            }
        }
    };
}

// Variant, name | short name, constructor.
scorers! {
    /// Few requests in the engine's queue.
    Queue, "queue-scorer" | "queue", |_| Box::new(queue::Queue);
    /// Few requests running.
    RunningRequests, "running-requests-size-scorer" | "running-requests-size",
        |_| Box::new(running_requests::RunningRequests);
    /// KV room free.
    KvCacheUtilization, "kv-cache-utilization-scorer" | "kv-cache-utilization",
        |_| Box::new(kv_cache_utilization::KvCacheUtilization);
    /// A short queue, measured against a threshold.
    LoadAware, "load-aware-scorer" | "load-aware", |s| Box::new(load_aware::LoadAware(s.load_aware_scorer));
    /// Few requests in flight.
    ActiveRequest, "active-request-scorer" | "active-request",
        |s| Box::new(active_request::ActiveRequest(s.active_request_scorer));
    /// Few tokens in flight.
    TokenLoad, "token-load-scorer" | "token-load", |s| Box::new(token_load::TokenLoad(s.token_load_scorer));
    /// Much of the prompt cached.
    PrefixCache, "prefix-cache-scorer" | "prefix-cache",
        |s| Box::new(prefix_cache::PrefixCache(s.prefix_cache_scorer));
    /// For prompts that nobody holds: longest without one.
    NoHitLru, "no-hit-lru-scorer" | "no-hit-lru", |_| Box::new(no_hit_lru::NoHitLru);
}

impl std::fmt::Display for ScorerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
