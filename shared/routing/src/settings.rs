//! What can be set about the policies, with the defaults of the systems that they come from.

/// Settings of all policies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
    /// Of `cost`.
    pub cost: CostSettings,
    /// Of `prefix-cache`.
    pub prefix_cache: PrefixCacheSettings,
}

/// Settings of `prefix-cache`: the thresholds of PAI-EAS.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrefixCacheSettings {
    /// Below this share of the prompt's blocks, a match does not decide.
    pub hit_rate: f64,
    /// A holder with this many requests before their first token, besides one, is busy.
    pub waiting: u64,
    /// A busy holder is still taken while its tokens are within this share above the mean.
    pub tolerance: f64,
}

impl Default for PrefixCacheSettings {
    fn default() -> Self {
        Self { hit_rate: 0.5, waiting: 2, tolerance: 0.3 }
    }
}

/// Settings of `cost`: weights of what a choice does to others, against the request's own time to first token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostSettings {
    /// On the request's own prefill work.
    pub own_prefill: f32,
    /// On that work times what is queued at the target, over `horizon_us`.
    pub queued_prefill: f32,
    /// On the decode step with the request in it.
    pub decode_step: f32,
    /// On the own prefill work times the requests that decode at the target.
    pub disturbance: f32,
    /// On prefill work that is to be done again because the choice evicts what is wanted.
    pub eviction: f32,
    /// Costs within this share of the least are drawn from.
    pub band: f32,
}

impl Default for CostSettings {
    fn default() -> Self {
        Self {
            own_prefill: 4.0,
            queued_prefill: 0.0,
            decode_step: 120.0,
            disturbance: 0.1,
            eviction: 1.0,
            band: 0.0,
        }
    }
}
