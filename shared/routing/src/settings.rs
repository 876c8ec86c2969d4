//! What can be set about the policies, with the defaults of the systems that they come from.

/// Settings of all policies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
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
